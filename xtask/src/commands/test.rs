//! `cargo xtask test`: everything that can fail, with one line at the end that says whether something did.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use super::fuzz;
use super::run::{Host, Machine, prepare};
use crate::emulator::{self, Entry, Record, Run};
use crate::linux::Again;
use crate::machine::{Shape, check};
use crate::setup::linux::DEFAULT;
use crate::workspace::Workspace;
use crate::{image, panics, setup};

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
    memory: &'static str,
    entry: Entry,
    bootargs: &'static str,
}

/// The default machine runs everything; the others differ in one thing each and shorten the concurrent check.
const CASES: &[Case] = &[
    Case { name: "default", smmus: 3, cpus: 4, memory: "1G", entry: Entry::Image, bootargs: "" },
    Case { name: "smallest", smmus: 1, cpus: 1, memory: "256M", entry: Entry::Image, bootargs: "rounds=500" },
    Case { name: "largest", smmus: 8, cpus: 5, memory: "2G", entry: Entry::Image, bootargs: "rounds=500" },
    Case { name: "elf", smmus: 2, cpus: 2, memory: "512M", entry: Entry::Elf, bootargs: "rounds=500" },
];

/// When a run in QEMU that has no outcome is ended.
const TIMEOUT: Duration = Duration::from_secs(240);

/// How many tests passed and failed.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    fn add(&mut self, passed: u64, failed: u64) {
        self.passed += passed;
        self.failed += failed;
    }
}

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
        panics(&workspace, &mut tally)?;
    }
    if !arguments.no_qemu {
        in_qemu(&workspace, &mut tally)?;
        fuzz(&workspace, &mut tally)?;
        linux(&workspace, &mut tally)?;
    }
    println!("\nall tests took {} seconds", started.elapsed().as_secs());
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0 && tally.passed != 0)
}

/// Unit, property and model tests: everything that cargo knows.
fn on_this_machine(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    println!("tests on this machine: cargo test --workspace");
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = cargo.spawn().context("cargo cannot be started")?;
    let mut counted = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            if let Some((passed, failed)) = cargo_result(&line) {
                counted.add(passed, failed);
            }
            // Of thousands of lines, those that say "ok" are of no use to a reader.
            if !line.is_empty() && !line.ends_with("... ok") && !line.starts_with("running ") {
                println!("{line}");
            }
        }
    }
    let status = child.wait()?;
    if !status.success() && counted.failed == 0 {
        // A test program that did not compile, or crashed, has no result line.
        counted.failed = 1;
    }
    println!("on this machine: {} passed, {} failed\n", counted.passed, counted.failed);
    tally.add(counted.passed, counted.failed);
    Ok(())
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
    let (qemu, images) = prepare(workspace)?;
    for case in CASES {
        let shape = Shape::new(case.smmus, case.cpus, case.memory.parse()?)?.with_mmio_disk();
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
            bootargs: case.bootargs.into(),
            extra: Vec::new(),
            timeout: TIMEOUT,
            silence: None,
            show: false,
            logs: workspace.logs()?,
        };
        let record = emulator::run(&run, &qemu, &images.software())?;
        count(&record, tally);
    }
    Ok(())
}

/// Minutes that a hostile host attacks.
const FUZZ_MINUTES: u64 = 2;

/// A hostile host, with the oracle in the hypervisor: what was found once, whether a seed does the same twice, and two minutes with a new one.
fn fuzz(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    let target = fuzz::in_qemu::Target::prepare(workspace)?;
    println!("QEMU, recordings of tests/regressions");
    let (passed, failed) = fuzz::replay_all(workspace, &target)?;
    tally.add(passed, failed);
    println!("QEMU, the same seed twice, with instructions counted");
    let same = fuzz::in_qemu::is_repeatable(&target)?;
    tally.add(same.into(), (!same).into());
    println!("QEMU, {FUZZ_MINUTES} minutes of random steps");
    count(&fuzz::in_qemu::test(&target, FUZZ_MINUTES)?, tally);
    Ok(())
}

/// A run of Linux.
struct LinuxCase {
    name: &'static str,
    cpus: u8,
    again: Option<Again>,
    bootargs: &'static str,
}

/// Linux uses every disk at once with an invalidation for each unmapping, gives devices away and takes them back, keeps root from harm,
/// and turns the machine off; and it is started anew by a reset, and by itself with everything left on.
const LINUX_CASES: &[LinuxCase] = &[
    LinuxCase {
        name: "linux",
        cpus: 4,
        again: None,
        bootargs: "iommu.strict=1 checks=smmus,disks,vfio,cpus,calls,log,attacks",
    },
    LinuxCase {
        name: "linux-reboot",
        cpus: 2,
        again: Some(Again::Reboot),
        bootargs: "iommu.strict=1 checks=smmus,log",
    },
    LinuxCase {
        name: "linux-crash",
        cpus: 2,
        again: Some(Again::Crash),
        bootargs: "iommu.strict=1 checks=smmus,log",
    },
];

/// Debian's Linux as the host.
fn linux(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    for case in LINUX_CASES {
        let machine = Machine {
            smmus: 3,
            cpus: case.cpus,
            memory: "1G".into(),
            host: Host::Linux,
            linux_version: DEFAULT.parse()?,
            native: false,
            again: case.again,
            elf: false,
            icount: false,
            bootargs: case.bootargs.into(),
        };
        let software = machine.prepare(workspace)?;
        let run = Run { show: false, ..machine.run(case.name, workspace, TIMEOUT, false)? };
        println!("QEMU, {}: {}, {}", case.name, run.shape, software.software.host.name);
        count(&emulator::run(&run, &software.qemu, &software.software)?, tally);
    }
    Ok(())
}

/// Counts the checks of a run, and says how it went.
fn count(record: &Record, tally: &mut Tally) {
    let passed = record.console.passed().unwrap_or(0);
    let mut failed = record.console.failed().unwrap_or(0);
    if !record.passed() {
        // A run that went wrong counts, also when it could not say which of its checks did.
        failed = failed.max(1);
        for line in record.console.tail(30) {
            println!("    {line}");
        }
    }
    tally.add(passed, failed);
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
}
