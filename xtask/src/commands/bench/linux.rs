//! Linux as the host, measured beside Linux without a hypervisor.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use super::el2_log::{self, Work};
use super::table::{Limit, Row, Table};
use super::{Arguments, SMMUS};
use crate::commands::run::{Machine, Prepared};
use crate::emulator::{self, Outcome, Record, Run};
use crate::machine::cpu::Cpu;
use crate::workspace::Workspace;

/// Boots of each system under icount: they are not repeatable to the instruction, because Linux takes random numbers from the CPU
/// for its layout, and waits for disks that take real time.
const BOOTS: usize = 3;
/// Transfers in the two phases of a kind: the difference has what a transfer costs, and not what a program's start does.
const PHASES: [u64; 2] = [500, 1000];

/// What transfers are timed with.
struct Mode {
    name: &'static str,
    /// The command line that says what Linux does with its SMMUs.
    bootargs: &'static str,
    cpu: Cpu,
    /// For the throughput as a part of the native one.
    limit: Limit,
}

/// Each on the CPU that every other command has, and on one of Armv8.2: the newest has five levels of stage 1 and pointer authentication, and QEMU takes
/// long for walks of two stages.
const MODES: [Mode; 4] = [
    strict("strict", Cpu::Max),
    passthrough("passthrough", Cpu::Max),
    strict("strict, Armv8.2", Cpu::NeoverseN1),
    passthrough("passthrough, Armv8.2", Cpu::NeoverseN1),
];

const fn strict(name: &'static str, cpu: Cpu) -> Mode {
    Mode { name, bootargs: "iommu.strict=1", cpu, limit: Limit::AtLeast(0.8) }
}

const fn passthrough(name: &'static str, cpu: Cpu) -> Mode {
    Mode { name, bootargs: "iommu.passthrough=1", cpu, limit: Limit::AtLeast(0.95) }
}

/// Transfers by what the guest calls them, and whether a disk makes them. That of a pipe shows what stage 2 of the CPU costs alone: two programs
/// take turns, and neither a device nor EL2 has a part in it.
const TRANSFERS: [(&str, &str, bool); 5] = [
    ("read-4k-ns", "read 4 KiB", true),
    ("write-4k-ns", "write 4 KiB", true),
    ("read-64k-ns", "read 64 KiB", true),
    ("write-64k-ns", "write 64 KiB", true),
    ("pipe-64k-ns", "64 KiB through a pipe", false),
];

/// A system that is measured.
struct System {
    name: &'static str,
    machine: Machine,
    prepared: Prepared,
}

impl System {
    fn new(arguments: &Arguments, native: bool, workspace: &Workspace) -> Result<Self> {
        // One CPU: under icount because there can be no more, and in wall time because what other CPUs' threads do to
        // each other on the machine below would be measured too.
        let linux_version = arguments.linux_version.clone();
        let machine = Machine { linux_version, native, ..Machine::with_linux(SMMUS, 1, String::new())? };
        let prepared = machine.prepare(workspace)?;
        Ok(Self { name: if native { "native" } else { "hypervisor" }, machine, prepared })
    }

    /// Lets `act` run the machine with such CPUs, a command line and more arguments of QEMU. It must end well.
    fn measure<T>(
        &self,
        workspace: &Workspace,
        arguments: &Arguments,
        cpu: Cpu,
        bootargs: &str,
        extra: &[String],
        act: impl FnOnce(&Run<'_>, &Prepared) -> Result<(Record, T)>,
    ) -> Result<(Record, T)> {
        let machine = Machine { cpu, bootargs: bootargs.to_owned(), ..self.machine.clone() };
        let mut run = machine.run("bench-linux", workspace, arguments.timeout(), false)?;
        run.show = false;
        run.extra.extend_from_slice(extra);
        let (record, read) = act(&run, &self.prepared)?;
        if record.outcome != (Outcome::Said { pass: true }) {
            for line in record.console.tail(30) {
                println!("    {line}");
            }
            bail!("{}, {bootargs}: {}", self.name, record.sentence(run.timeout));
        }
        println!("  {}, {bootargs}: {:.0} seconds", self.name, record.elapsed.as_secs_f64());
        Ok((record, read))
    }

    /// The same, and only its console is looked at.
    fn boot(
        &self,
        workspace: &Workspace,
        arguments: &Arguments,
        cpu: Cpu,
        bootargs: &str,
        extra: &[String],
    ) -> Result<Record> {
        let (record, ()) = self.measure(workspace, arguments, cpu, bootargs, extra, |run, prepared| {
            Ok((emulator::run(run, &prepared.qemu, &prepared.software)?, ()))
        })?;
        Ok(record)
    }
}

/// Measures, prints the table, and answers whether every limit is kept.
///
/// # Errors
///
/// As `run`, or a guest did not measure what it should.
pub fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.host_benches {
        bail!("--host-benches is of the shim's bench: type `cargo xtask bench --host-benches`");
    }
    let workspace = Workspace::current();
    let systems = [System::new(arguments, true, &workspace)?, System::new(arguments, false, &workspace)?];
    let linux = &systems[1].prepared.software.host.name;
    println!("{}, {linux}, each system in turn", systems[0].machine.shape()?);
    let mut table = Table::default();
    let measured = boots(&systems, arguments, &workspace, &mut table)
        .and_then(|()| instructions(&systems[1], arguments, &workspace, &mut table))
        .and_then(|()| times(&systems, arguments, &workspace, &mut table));
    // What is known is shown also when the rest could not be measured.
    let kept = table.print();
    measured?;
    Ok(kept)
}

/// What is booted: with Linux's SMMU driver, and without it, which leaves EL2 the translation of stage 2 alone.
const BOOTED: [(&str, &str); 2] = [
    ("boot to init, as a part of native", ""),
    ("the same without arm-smmu-v3", " initcall_blacklist=arm_smmu_driver_init"),
];

/// Virtual time from the kernel's first line to its first process.
fn boots(
    systems: &[System; 2],
    arguments: &Arguments,
    workspace: &Workspace,
    table: &mut Table,
) -> Result<()> {
    println!("boots, an instruction a nanosecond:");
    for (what, without) in BOOTED {
        let bootargs = format!("iommu.strict=1 bench=boot{without}");
        let mut times: [Vec<f64>; 2] = Default::default();
        for _ in 0..BOOTS {
            for (system, times) in systems.iter().zip(&mut times) {
                let icount = emulator::count_instructions(0);
                let record = system.boot(workspace, arguments, Cpu::Max, &bootargs, &icount)?;
                times.push(least(&record, "linux-init-us")? / 1e6);
            }
        }
        let [native, hypervisor] = &times;
        table.add(Row {
            what: what.into(),
            value: median(hypervisor) / median(native),
            limit: Limit::AtMost(1.05),
            note: format!("{} s of {} s native", spread(hypervisor), spread(native)),
        });
    }
    Ok(())
}

/// Instructions and entries of EL2 for a transfer.
fn instructions(
    system: &System,
    arguments: &Arguments,
    workspace: &Workspace,
    table: &mut Table,
) -> Result<()> {
    println!("instructions at EL2, from QEMU's log of them, which takes minutes:");
    let hypervisor = system.prepared.software.hypervisor.as_ref().context("there is no hypervisor")?;
    let extra = [emulator::count_instructions(0), el2_log::arguments(hypervisor)].concat();
    let (_, phases) = system.measure(
        workspace,
        arguments,
        Cpu::Max,
        "iommu.strict=1 bench=phases",
        &extra,
        |run, prepared| emulator::run_with_log(run, &prepared.qemu, &prepared.software, el2_log::read),
    )?;
    for (name, what, limit) in [
        ("read-4k", "EL2 for a strict 4 KiB read", Limit::AtMost(1000.0)),
        ("write-4k", "EL2 for a strict 4 KiB write", Limit::None),
    ] {
        let [few, many] = PHASES.map(|count| el2_log::find(&phases, name, count));
        let (Some(few), Some(many)) = (few, many) else { bail!("QEMU's log has no phase of {name}") };
        let each =
            |of: fn(&Work) -> u64| (of(many) as f64 - of(few) as f64) / (PHASES[1] as f64 - PHASES[0] as f64);
        let entries = each(|work| work.entries.values().sum());
        if entries <= 0.0 {
            bail!("QEMU's log has no entry of EL2 for {name}: is this QEMU's log another one?");
        }
        table.add(Row {
            what: what.into(),
            value: each(|work| work.instructions),
            limit,
            note: format!(
                "instructions; {entries:.3} entries each; of {}: {}",
                PHASES[1],
                reasons(&many.entries)
            ),
        });
    }
    Ok(())
}

/// Entries of EL2 by reason.
fn reasons(entries: &BTreeMap<u8, u64>) -> String {
    let named = entries.iter().map(|(class, count)| {
        // ESR_EL2.EC (DDI 0487, D24.2.40).
        let name = match class {
            0x01 => "WFI or WFE".to_owned(),
            0x16 => "HVC".to_owned(),
            0x17 => "SMC".to_owned(),
            0x18 => "system register".to_owned(),
            0x20 => "instruction abort".to_owned(),
            0x24 => "data abort".to_owned(),
            other => format!("class {other:#x}"),
        };
        format!("{count} {name}")
    });
    named.collect::<Vec<_>>().join(", ")
}

/// Wall time of transfers, and what the hypervisor counted meanwhile.
fn times(
    systems: &[System; 2],
    arguments: &Arguments,
    workspace: &Workspace,
    table: &mut Table,
) -> Result<()> {
    for mode in MODES {
        let (name, cpu) = (mode.name, mode.cpu);
        println!("wall time, {name}, {}, {} times each:", cpu.qemu(), arguments.runs);
        let bootargs = format!("{} bench=time", mode.bootargs);
        let mut times: [[Vec<f64>; TRANSFERS.len()]; 2] = Default::default();
        let mut traps = Traps::default();
        for _ in 0..arguments.runs {
            for (system, times) in systems.iter().zip(&mut times) {
                let record = system.boot(workspace, arguments, cpu, &bootargs, &[])?;
                for ((name, ..), times) in TRANSFERS.iter().zip(times) {
                    times.push(least(&record, name)? / 1e3);
                }
                if !system.machine.native {
                    traps.add(&record)?;
                }
            }
        }
        if name == "strict" {
            traps.rows(table);
        }
        let [native, hypervisor] = &times;
        for (((_, what, by_disk), native), hypervisor) in TRANSFERS.iter().zip(native).zip(hypervisor) {
            table.add(Row {
                what: format!("{name}, {what}: part of native"),
                value: median(native) / median(hypervisor),
                limit: if *by_disk { mode.limit } else { Limit::None },
                note: format!("{} us, native {} us", spread(hypervisor), spread(native)),
            });
        }
    }
    Ok(())
}

/// Accesses of emulated SMMUs, as the hypervisor says when the machine goes off.
#[derive(Default)]
struct Traps {
    accesses: u64,
    queue_stores: u64,
    syncs: u64,
}

impl Traps {
    fn add(&mut self, record: &Record) -> Result<()> {
        let line = record.console.tail(usize::MAX).iter().rev().find_map(|line| Self::parse(line));
        let more = line.context("the hypervisor did not say what Linux's driver did")?;
        self.accesses += more.accesses;
        self.queue_stores += more.queue_stores;
        self.syncs += more.syncs;
        Ok(())
    }

    /// Reads `hyp: the host's SMMUs: 243 accesses, 144 of CMDQ_PROD, for 122 CMD_SYNCs`.
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once("the host's SMMUs: ")?;
        let mut numbers = rest.split(' ').filter_map(|word| word.parse().ok());
        let [accesses, queue_stores, syncs] = [numbers.next()?, numbers.next()?, numbers.next()?];
        Some(Self { accesses, queue_stores, syncs })
    }

    fn rows(&self, table: &mut Table) {
        let &Self { accesses, queue_stores, syncs } = self;
        table.add(Row {
            what: "strict, traps of SMMUs a CMD_SYNC".into(),
            value: accesses as f64 / syncs as f64,
            limit: Limit::AtMost(1.02),
            note: format!(
                "{queue_stores} of CMDQ_PROD, {} of other registers, for {syncs}; boots included",
                accesses - queue_stores
            ),
        });
    }
}

/// The least value that a guest measured under this name: the one with the least of what else the machine did.
fn least(record: &Record, name: &str) -> Result<f64> {
    let values = record.console.measures().iter().filter(|measure| measure.name == name);
    let least = values.map(|measure| measure.value).min();
    let least = least.with_context(|| format!("the guest did not measure {name}"))?;
    Ok(least as f64)
}

/// The value in the middle, or the mean of the two that are.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    (middle((sorted.len().max(1) - 1) / 2) + middle(sorted.len() / 2)) / 2.0
}

/// The median, with the least and the greatest value.
fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let digits = if greatest < 10.0 { 3 } else { 0 };
    format!("{:.digits$} ({least:.digits$} to {greatest:.digits$})", median(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
        assert_eq!(spread(&[0.9, 0.8, 1.0]), "0.900 (0.800 to 1.000)");
        assert_eq!(spread(&[190.0, 200.0, 310.0]), "200 (190 to 310)");
    }

    #[test]
    fn what_the_hypervisor_says_at_the_end_is_read() {
        let traps = Traps::parse("hyp: the host's SMMUs: 243 accesses, 144 of CMDQ_PROD, for 122 CMD_SYNCs");
        let traps = traps.expect("three numbers");
        assert_eq!((traps.accesses, traps.queue_stores, traps.syncs), (243, 144, 122));
        assert!(Traps::parse("hyp: the host's SMMUs: 243 accesses").is_none());
    }
}
