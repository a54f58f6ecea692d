//! `cargo xtask test`: everything that can fail, with one line at the end that says whether something did.

mod tally;

use std::io::{BufRead, BufReader, pipe};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use super::fuzz;
use super::run::{Machine, bootargs_of_shim, prepare};
use crate::console::Console;
use crate::emulator::{self, Entry, Record, Run};
use crate::linux::Again;
use crate::machine::cpu::Cpu;
use crate::machine::{Shape, check};
use crate::workspace::Workspace;
use crate::{image, panics, setup};
use tally::Tally;

/// Options of `test`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Only the tests that need no QEMU
    #[arg(long, conflicts_with = "qemu_only")]
    no_qemu: bool,
    /// Only the runs in QEMU
    #[arg(long)]
    qemu_only: bool,
}

/// One machine that the checks run on.
struct Case {
    name: &'static str,
    smmus: u8,
    cpus: u8,
    cpu: Cpu,
    memory: &'static str,
    entry: Entry,
    /// Instructions are counted, and a check that measures EL2 by them has a limit then.
    icount: bool,
    bootargs: &'static str,
    /// The checks that do not apply to it, if that is looked at: a check finds out by what the hypervisor shows of the machine,
    /// so a hypervisor that shows too little turns checks off.
    not_applicable: Option<&'static [&'static str]>,
}

/// The default machine runs everything; the others shorten the concurrent check. The smallest has the oldest CPU.
/// The last one looks how many instructions EL2 keeps a CPU for: counting them takes one CPU, and long for all other checks.
const CASES: &[Case] = &[
    Case { name: "default", not_applicable: Some(NOT_APPLICABLE), ..DEFAULT },
    Case {
        name: "smallest",
        smmus: 1,
        cpus: 1,
        cpu: Cpu::CortexA53,
        memory: "256M",
        bootargs: "rounds=500",
        ..DEFAULT
    },
    Case { name: "largest", smmus: 8, cpus: 5, memory: "2G", bootargs: "rounds=500", ..DEFAULT },
    Case {
        name: "elf",
        smmus: 2,
        cpus: 2,
        memory: "512M",
        entry: Entry::Elf,
        bootargs: "rounds=500",
        ..DEFAULT
    },
    // The words are in the names of two checks: the one of command queues, and the one of ITS queues.
    Case {
        name: "instructions",
        cpus: 1,
        icount: true,
        bootargs: "only=takes_for_ever",
        not_applicable: Some(&[]),
        ..DEFAULT
    },
];

/// What `cargo xtask run` starts.
const DEFAULT: Case = Case {
    name: "",
    smmus: 3,
    cpus: 4,
    cpu: Cpu::Max,
    memory: "1G",
    entry: Entry::Image,
    icount: false,
    bootargs: "",
    not_applicable: None,
};

/// What does not apply to the default machine: QEMU's SMMUs have no SubstreamIDs. Everything else must.
const NOT_APPLICABLE: &[&str] = &["SubstreamIDs"];

/// When a run in QEMU that has no outcome is ended: they take a minute, and several on a machine that does other things too.
const TIMEOUT: Duration = Duration::from_secs(480);

/// Runs all tests.
///
/// # Errors
///
/// Set-up or build failed: then nothing is known about the tests.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let workspace = Workspace::current();
    let started = Instant::now();
    let mut tally = Tally::default();
    if !arguments.qemu_only {
        on_this_machine(&workspace, &mut tally)?;
        tally.time("panics", |tally| panics(&workspace, tally))?;
    }
    if !arguments.no_qemu {
        in_qemu(&workspace, &mut tally)?;
        fuzz(&workspace, &mut tally)?;
        linux(&workspace, &mut tally)?;
    }
    println!("\nall tests took {} seconds", started.elapsed().as_secs());
    println!("{tally}");
    Ok(tally.failed == 0 && tally.passed != 0)
}

/// Unit, property and model tests: everything that cargo knows.
fn on_this_machine(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    println!("tests on this machine: cargo test --workspace");
    let tests = || {
        let mut cargo = workspace.cargo();
        cargo.args(["test", "--workspace", "--no-fail-fast"]).stdin(Stdio::null());
        cargo
    };
    let built = tally.time("the tests on this machine are built", |_| tests().arg("--no-run").status());
    if !built.context("cargo cannot be started")?.success() {
        tally.add(0, 1);
        return Ok(());
    }
    // Cargo says on one of them which program it runs, and the program on the other how it went.
    let (reader, writer) = pipe()?;
    let mut cargo = tests();
    let mut child =
        cargo.stdout(writer.try_clone()?).stderr(writer).spawn().context("cargo cannot be started")?;
    // It has the ends to write to, and the last one must be closed for this one to end.
    drop(cargo);
    let (mut passed, mut failed) = (0, 0);
    let (mut program, mut since) = (String::new(), Instant::now());
    for line in BufReader::new(reader).lines() {
        let line = line?;
        if let Some(name) = program_of(&line) {
            (program, since) = (name, Instant::now());
        } else if let Some(counts) = cargo_result(&line) {
            tally.took(&program, since.elapsed());
            (passed, failed) = (passed + counts.0, failed + counts.1);
        }
        // Of thousands of lines, those that say "ok" are of no use to a reader.
        if !line.is_empty() && !line.ends_with("... ok") && !line.starts_with("running ") {
            println!("{line}");
        }
    }
    if !child.wait()?.success() && failed == 0 {
        // A test program that crashed has no result line.
        failed = 1;
    }
    println!("on this machine: {passed} passed, {failed} failed\n");
    tally.add(passed, failed);
    Ok(())
}

/// Reads `Running tests/loom.rs (target/debug/deps/loom-0123456789abcdef)` and `Doc-tests abi`.
fn program_of(line: &str) -> Option<String> {
    let line = line.trim_start();
    if line.starts_with("Doc-tests ") {
        return Some(line.to_owned());
    }
    let (source, path) = line.strip_prefix("Running ")?.strip_suffix(')')?.split_once(" (")?;
    let (name, _) = path.rsplit('/').next()?.rsplit_once('-')?;
    Some(format!("{name}, {source}"))
}

/// Reads `test result: ok. 12 passed; 0 failed; ...`.
fn cargo_result(line: &str) -> Option<(u64, u64)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number =
        |what: &str| counts.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
    Some((number(" passed")?, number(" failed")?))
}

/// Whether each place where the host might make the release image panic is explained.
fn panics(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    let image = image::hypervisor(workspace, setup::standard_library(false)?)?;
    let complaints = panics::examine(&image)?.complaints();
    complaints.iter().for_each(|complaint| println!("panics: {complaint}"));
    println!("panics: {} of them are not explained\n", complaints.len());
    let passed = complaints.is_empty();
    tally.add(passed.into(), (!passed).into());
    Ok(())
}

fn in_qemu(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    let (qemu, images) = tally.time("the images are built", |_| prepare(workspace))?;
    for case in CASES {
        let shape =
            Shape::new(case.smmus, case.cpus, case.memory.parse()?)?.with_cpu(case.cpu).with_mmio_disk();
        println!("QEMU, {}: {shape}, {:?}", case.name, case.entry);
        match check::against_qemu(&shape, &qemu) {
            Ok(nodes) => {
                println!("device tree: {nodes} nodes agree with QEMU's own");
                tally.add(1, 0);
            }
            Err(error) => {
                println!("device tree: {error:#}");
                tally.add(0, 1);
            }
        }
        let run = Run {
            name: case.name,
            shape,
            entry: case.entry,
            bootargs: bootargs_of_shim(case.bootargs, case.icount),
            extra: if case.icount { emulator::count_instructions(0) } else { Vec::new() },
            timeout: TIMEOUT,
            silence: None,
            show: false,
            logs: workspace.logs()?,
        };
        let record = emulator::run(&run, &qemu, &images.software())?;
        count(case.name, &record, tally);
        if let Some(expected) = case.not_applicable {
            let complaints = unlike(expected, &record.console);
            complaints.iter().for_each(|complaint| println!("{}: {complaint}", case.name));
            let as_expected = complaints.is_empty();
            tally.add(as_expected.into(), (!as_expected).into());
        }
    }
    Ok(())
}

/// How the checks that said that they do not apply differ from those that were expected to; a run that ended early has said less.
fn unlike(expected: &[&str], console: &Console) -> Vec<String> {
    let seen: Vec<(&str, &str)> = console.not_applicable().collect();
    let turned_off = seen.iter().filter(|(name, _)| !expected.contains(name));
    let turned_off = turned_off.map(|(_, line)| format!("this check must apply to the machine: {line}"));
    let missing = expected.iter().filter(|name| !seen.iter().any(|(other, _)| other == *name));
    let missing = missing.map(|name| {
        format!("the check \"{name}\" should say n/a: if it applies now, take it out of NOT_APPLICABLE")
    });
    turned_off.chain(missing).collect()
}

/// Minutes that a hostile host attacks.
const FUZZ_MINUTES: u64 = 2;

/// A hostile host, with the oracle in the hypervisor: what was found once, whether seeds do the same twice, and two minutes. All seeds are new ones.
fn fuzz(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    let target =
        tally.time("the image with the oracle is built", |_| fuzz::in_qemu::Target::prepare(workspace))?;
    println!("QEMU, recordings of tests/regressions");
    let (passed, failed) = tally.time("QEMU, recordings", |_| fuzz::replay_all(workspace, &target))?;
    tally.add(passed, failed);
    println!("QEMU, a seed twice, with instructions counted");
    for cpus in [1, 4] {
        let name = format!("QEMU, a seed twice on {cpus} CPUs");
        let same = tally.time(&name, |_| fuzz::in_qemu::is_repeatable(&target, cpus))?;
        tally.add(same.into(), (!same).into());
    }
    println!("QEMU, {FUZZ_MINUTES} minutes of random steps");
    // What it says, and how it ends, is shown as it comes.
    tally.add_run("QEMU, random steps", &fuzz::in_qemu::test(&target, FUZZ_MINUTES)?);
    println!();
    Ok(())
}

/// A run of Linux.
struct LinuxCase {
    name: &'static str,
    cpus: u8,
    memory: &'static str,
    again: Option<Again>,
    bootargs: &'static str,
}

/// Linux uses every disk at once with an invalidation for each unmapping, gives devices away and takes them back, keeps root from harm,
/// that of a thousand random steps too, and turns the machine off; and it is started anew by a reset, and by itself with everything left on.
/// Then the other ways to use SMMUs, with as little and as much of a machine: flushes that are deferred, and no stage 1 until a domain wants it.
const LINUX_CASES: &[LinuxCase] = &[
    LinuxCase {
        name: "linux",
        cpus: 4,
        memory: "1G",
        again: None,
        bootargs: "iommu.strict=1 checks=smmus,disks,vfio,cpus,calls,fuzz,log,attacks",
    },
    LinuxCase {
        name: "linux-reboot",
        cpus: 2,
        memory: "1G",
        again: Some(Again::Reboot),
        bootargs: "iommu.strict=1 checks=smmus,log",
    },
    LinuxCase {
        name: "linux-crash",
        cpus: 2,
        memory: "1G",
        again: Some(Again::Crash),
        bootargs: "iommu.strict=1 checks=smmus,log",
    },
    LinuxCase {
        name: "linux-deferred",
        cpus: 1,
        memory: "512M",
        again: None,
        bootargs: "iommu.strict=0 checks=smmus,disks,rebind,log",
    },
    LinuxCase {
        name: "linux-passthrough",
        cpus: 2,
        memory: "4G",
        again: None,
        bootargs: "iommu.passthrough=1 checks=smmus,disks,domains,log",
    },
];

/// Debian's Linux as the host.
fn linux(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    for case in LINUX_CASES {
        let machine = Machine {
            memory: case.memory.into(),
            again: case.again,
            ..Machine::with_linux(3, case.cpus, case.bootargs.into())?
        };
        let software = tally.time("Linux is prepared", |_| machine.prepare(workspace))?;
        let run = Run { show: false, ..machine.run(case.name, workspace, TIMEOUT, false)? };
        println!("QEMU, {}: {}, {}", case.name, run.shape, software.software.host.name);
        count(case.name, &emulator::run(&run, &software.qemu, &software.software)?, tally);
    }
    Ok(())
}

/// Counts the checks of a run, and says how it went.
fn count(name: &str, record: &Record, tally: &mut Tally) {
    let (passed, failed) = tally.add_run(&format!("QEMU, {name}"), record);
    if !record.passed() {
        for line in record.console.tail(30) {
            println!("    {line}");
        }
    }
    let seconds = record.elapsed.as_secs_f64();
    println!("{}: {passed} passed, {failed} failed ({seconds:.1} seconds)\n", record.sentence(TIMEOUT));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_results_are_counted() {
        let line =
            "test result: ok. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(cargo_result(line), Some((12, 3)));
        assert_eq!(cargo_result("test result: FAILED. 0 passed; 1 failed; 0 ignored"), Some((0, 1)));
        assert_eq!(cargo_result("test tests::ok ... ok"), None);
    }

    #[test]
    fn checks_that_are_turned_off_are_complained_of() {
        let mut console = Console::default();
        console.feed(
            b"pass a: expected x; seen: y\nn/a  b: expected x; seen: no b\nn/a  c: expected x; seen: no c\n",
        );
        assert_eq!(unlike(&["c", "b"], &console), Vec::<String>::new());
        let [turned_off] = &unlike(&["b"], &console)[..] else { panic!("c should apply") };
        assert!(turned_off.ends_with("n/a  c: expected x; seen: no c"), "{turned_off}");
        let [missing] = &unlike(&["b", "a", "c"], &console)[..] else { panic!("a applies") };
        assert!(missing.contains("\"a\""), "{missing}");
        assert_eq!(unlike(&["b", "d"], &console).len(), 2);
    }

    #[test]
    fn cargo_says_which_program_runs() {
        let line = "     Running unittests src/lib.rs (target/debug/deps/hyp_iommu-0ad32cbf9ffaa772)";
        assert_eq!(program_of(line).as_deref(), Some("hyp_iommu, unittests src/lib.rs"));
        assert_eq!(program_of("   Doc-tests abi").as_deref(), Some("Doc-tests abi"));
        assert_eq!(program_of("running 12 tests"), None);
    }
}
