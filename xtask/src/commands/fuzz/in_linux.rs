//! `cargo xtask fuzz --host linux`: random steps by root of Linux, above the hypervisor with its oracle.

use std::time::Duration;

use anyhow::{Result, bail};

use super::in_qemu::{Death, Options, new_seed};
use crate::commands::run::Machine;
use crate::emulator::{self, Run};
use crate::workspace::Workspace;

/// Time that the machine has besides its steps: to boot, to use its disks, and to end.
const BESIDES: Duration = Duration::from_secs(300);

/// Time without a word after which it hangs: an attack says each ten seconds how far it is, and the disks need some time after it.
const SILENCE: Duration = Duration::from_secs(150);

/// Runs for so many minutes; whether nothing was found, every disk was well, and Linux ended without a complaint.
///
/// # Errors
///
/// An option that Linux does not know; or set-up, build or QEMU failed.
pub fn run(options: &Options, minutes: u64) -> Result<bool> {
    refuse(options)?;
    let workspace = Workspace::current();
    let &Options { cpus, smmus, .. } = options;
    let seed = options.seed.unwrap_or_else(new_seed);
    println!("seed {seed}: the same steps with `{}`", options.command("--host linux", seed, minutes));
    let bootargs = bootargs(options, seed, minutes);
    let machine = Machine { oracle: true, ..Machine::with_linux(smmus, cpus, bootargs)? };
    let timeout = Duration::from_secs(minutes * 60) + BESIDES;
    let run = machine.run("fuzz-linux", &workspace, timeout, false)?;
    let run = Run { silence: Some(SILENCE), ..run };
    let prepared = machine.prepare(&workspace)?;
    let record = emulator::run(&run, &prepared.qemu, &prepared.software)?;
    println!("{} ({:.1} seconds)", record.sentence(timeout), record.elapsed.as_secs_f64());
    if let Some(Death(cause)) = Death::of(&record) {
        println!("died of: {cause}");
    }
    Ok(record.passed())
}

/// What Linux's command line says: which checks, and what the attack is told. Each unmapping of a driver is an invalidation, so that there are
/// many besides the attack.
fn bootargs(options: &Options, seed: u64, minutes: u64) -> String {
    let steps = options.steps.map_or_else(String::new, |steps| format!(",steps={steps}"));
    format!("iommu.strict=1 checks=smmus,fuzz,log fuzz=oracle,seed={seed},seconds={}{steps}", minutes * 60)
}

/// Refuses what only the project's own host does.
fn refuse(options: &Options) -> Result<()> {
    let given = [
        (options.icount, "--icount"),
        (options.calm, "--calm"),
        (options.calls, "--calls"),
        (options.replay.is_some(), "--replay FILE"),
    ];
    if let Some((_, option)) = given.iter().find(|(given, _)| *given) {
        bail!("{option} needs the project's own host: type `cargo xtask fuzz --in-qemu {option}`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fuzz::Arguments;

    #[test]
    fn what_is_typed_is_told_to_linux() {
        let arguments =
            Arguments::typed("--host linux --minutes 3 --seed 7 --steps 50 --cpus 2").expect("options");
        let line = bootargs(&arguments.machine, 7, arguments.minutes);
        assert!(line.ends_with("checks=smmus,fuzz,log fuzz=oracle,seed=7,seconds=180,steps=50"), "{line}");
        assert_eq!((arguments.machine.cpus, arguments.machine.smmus), (2, 3));
    }

    #[test]
    fn the_command_that_is_printed_tells_linux_the_same() {
        let first =
            Arguments::typed("--host linux --minutes 3 --steps 50 --cpus 2 --smmus 1").expect("options");
        let command = first.machine.command("--host linux", 7, first.minutes);
        let again = Arguments::typed(
            command.strip_prefix("cargo xtask fuzz ").expect("it is a command of this kind"),
        );
        let again = again.expect("options");
        let run = |of: &Arguments| {
            let Options { cpus, smmus, .. } = of.machine;
            (bootargs(&of.machine, 7, of.minutes), cpus, smmus, of.host)
        };
        assert_eq!((run(&again), again.machine.seed), (run(&first), Some(7)));
    }

    #[test]
    fn what_linux_cannot_do_is_refused_with_who_can() {
        for (option, said) in [
            ("--icount", "--icount"),
            ("--calm", "--calm"),
            ("--calls", "--calls"),
            ("--replay x", "--replay FILE"),
        ] {
            let arguments = Arguments::typed(&format!("--host linux {option}")).expect("it is an option");
            let error = refuse(&arguments.machine).expect_err("it is not Linux's").to_string();
            assert!(error.contains(&format!("cargo xtask fuzz --in-qemu {said}")), "{error}");
        }
        assert!(refuse(&Arguments::typed("--host linux --seed 1").expect("options").machine).is_ok());
    }

    #[test]
    fn machines_and_targets_do_not_go_together() {
        assert!(
            Arguments::typed("--host shim --calm").is_ok() && Arguments::typed("--in-qemu --icount").is_ok()
        );
        for text in ["--in-qemu --host linux", "host --host linux", "--jobs 2 --host linux", "--seed 7"] {
            assert!(Arguments::typed(text).is_err(), "{text}");
        }
        let error = Arguments::typed("--host bsd").expect_err("there is none");
        assert!(error.contains("shim, linux"), "{error}");
    }
}
