//! `cargo xtask bench`: instructions, counted exactly, against the limits; and Linux as the host beside Linux alone.

mod el2_log;
mod linux;
mod table;

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use super::run::{Host, prepare};
use crate::emulator::{self, Entry, Outcome, Run};
use crate::machine::Shape;
use crate::machine::memory_size::MemorySize;
use crate::setup::linux::{DEFAULT, Wanted};
use crate::workspace::Workspace;

/// SMMUs of the measured machine.
const SMMUS: u8 = 3;

/// Options of `bench`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The program at EL1: the shim measures operations of EL2, Linux itself with the hypervisor and without
    #[arg(long, value_enum, default_value_t = Host::Shim)]
    host: Host,
    /// With --host linux: the newest of Debian's kernels whose version begins with this
    #[arg(long, value_name = "VERSION", default_value = DEFAULT)]
    linux_version: Wanted,
    /// With --host linux: how often each system is timed in each mode
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    runs: u8,
    /// Seconds after which a guest without an outcome is ended
    #[arg(long, default_value_t = 600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Also times the algorithms and the fuzzers' hypercalls on this machine (criterion); wall time is noise, so nothing is compared with a limit
    #[arg(long)]
    host_benches: bool,
}

impl Arguments {
    const fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// Where a value comes from.
enum Source {
    /// A `measure: NAME VALUE` line of the guest.
    Guest(&'static str),
    /// The same, where the value is in thousandths.
    Thousandths(&'static str),
    /// Text, read-only data and data of the hypervisor's ELF.
    ImageBytes,
}

/// A row of the table.
struct Row {
    what: &'static str,
    source: Source,
    limit: u64,
    unit: &'static str,
    pkvm: &'static str,
}

/// The limits, and what pKVM of Linux 7.2 was measured at in the same QEMU, without any SMMU; in brackets, what its SMMU driver was.
const ROWS: &[Row] = &[
    Row {
        what: "empty hypercall and back",
        source: Source::Guest("empty-hypercall"),
        limit: 120,
        unit: "instructions",
        pkvm: "170 to 178",
    },
    Row {
        what: "donate 4 KiB, wiping included",
        source: Source::Guest("donate-page"),
        limit: 2_000,
        unit: "instructions",
        pkvm: "2119",
    },
    Row {
        what: "reclaim 4 KiB, wiping included",
        source: Source::Guest("reclaim-page"),
        limit: 2_000,
        unit: "instructions",
        pkvm: "1816",
    },
    Row {
        what: "attach and detach, domain in use",
        source: Source::Guest("attach-detach-again"),
        limit: 2_500,
        unit: "instructions",
        pkvm: "-",
    },
    Row {
        what: "emulated SMMU: a load",
        source: Source::Guest("emulated-load"),
        limit: 180,
        unit: "instructions",
        pkvm: "-",
    },
    Row {
        what: "emulated SMMU: TLBI and SYNC, one trap",
        source: Source::Guest("emulated-batch-1"),
        limit: 700,
        unit: "instructions",
        pkvm: "-",
    },
    Row {
        what: "map and unmap 4 KiB, guest domain",
        source: Source::Guest("domain-map-unmap-page"),
        limit: 2_200,
        unit: "instructions",
        pkvm: "-",
    },
    Row {
        what: "EL2 from entry to EL1",
        source: Source::Guest("boot"),
        limit: 2_000_000,
        unit: "instructions",
        pkvm: "6.4 million",
    },
    Row {
        what: "donate 2 MiB with a split: TLBI",
        source: Source::Guest("donate-2mib-tlbi"),
        limit: SMMUS as u64,
        unit: "commands, all SMMUs",
        pkvm: "-",
    },
    Row {
        what: "donate 2 MiB with a split: SYNC",
        source: Source::Guest("donate-2mib-sync"),
        limit: SMMUS as u64,
        unit: "commands, all SMMUs",
        pkvm: "-",
    },
    Row {
        what: "unmap 341 pages, guest domain: TLBI",
        source: Source::Guest("unmap-341-pages-tlbi"),
        limit: 2 * SMMUS as u64,
        unit: "commands, all SMMUs; one a page: 1023",
        pkvm: "-",
    },
    Row {
        what: "unmap 341 pages, guest domain: SYNC",
        source: Source::Guest("unmap-341-pages-sync"),
        limit: SMMUS as u64,
        unit: "commands, all SMMUs",
        pkvm: "-",
    },
    Row {
        what: "unmap 1 to 509 pages: beyond these",
        source: Source::Guest("unmap-pages-beyond"),
        limit: 0,
        unit: "commands, all sizes together",
        pkvm: "-",
    },
    Row {
        what: "array: an entry",
        source: Source::Guest("array-entry"),
        limit: 16,
        unit: "bytes",
        pkvm: "(32)",
    },
    Row {
        what: "array of 1,024: walk past trash",
        source: Source::Thousandths("array-walk-trash"),
        limit: 4,
        unit: "instructions an entry",
        pkvm: "(5)",
    },
    Row {
        what: "array of 1,024: walk, with commands",
        source: Source::Thousandths("array-walk"),
        limit: 30,
        unit: "instructions an entry",
        pkvm: "(147)",
    },
    Row {
        what: "array of 1,024: merge of a stream",
        source: Source::Thousandths("array-merge"),
        limit: 6,
        unit: "instructions an entry",
        pkvm: "(111)",
    },
    Row {
        what: "array of 1,025: unref of that stream",
        source: Source::Guest("array-unref"),
        limit: 200,
        unit: "instructions",
        pkvm: "(34900)",
    },
    Row {
        what: "array of 1,025: purge",
        source: Source::Thousandths("array-purge"),
        limit: 6,
        unit: "instructions an entry",
        pkvm: "(20)",
    },
    Row {
        what: "array of 1,024: purge, half trash",
        source: Source::Thousandths("array-purge-half"),
        limit: 6,
        unit: "instructions an entry",
        pkvm: "-",
    },
    Row {
        what: "tables of a 1 GiB host",
        source: Source::Guest("host-table-bytes"),
        limit: 128 << 10,
        unit: "bytes",
        pkvm: "-",
    },
    Row {
        what: "image: text, rodata and data",
        source: Source::ImageBytes,
        limit: 288 << 10,
        unit: "bytes",
        pkvm: "147 KiB",
    },
];

/// Measures, prints the table, and answers whether every limit is kept.
///
/// # Errors
///
/// As `run`.
pub fn run(arguments: &Arguments) -> Result<bool> {
    match arguments.host {
        Host::Shim => shim(arguments),
        Host::Linux => linux::run(arguments),
    }
}

fn shim(arguments: &Arguments) -> Result<bool> {
    let workspace = Workspace::current();
    let (qemu, images) = prepare(&workspace)?;
    let timeout = arguments.timeout();
    let run = Run {
        name: "bench",
        shape: Shape::new(SMMUS, 1, MemorySize::DEFAULT)?,
        entry: Entry::Image,
        bootargs: "bench".into(),
        extra: emulator::count_instructions(0),
        timeout,
        silence: None,
        show: false,
        logs: workspace.logs()?,
    };
    println!("{}, one instruction per tick", run.shape);
    let record = emulator::run(&run, &qemu, &images.software())?;
    let ended_well = record.outcome == Outcome::Said { pass: true };
    if !ended_well {
        for line in record.console.tail(30) {
            println!("    {line}");
        }
        println!("{}", record.sentence(timeout));
    }
    let measures = || record.console.measures().iter();
    let mut kept = ended_well;
    println!("{:<36} {:>10} {:>10} {:>12}", "", "measured", "limit", "pKVM");
    for row in ROWS {
        let measured =
            |wanted: &str| measures().rfind(|measure| measure.name == wanted).map(|measure| measure.value);
        // In thousandths of the unit, whatever the source.
        let value = match row.source {
            Source::Guest(name) => measured(name).map(|value| value * 1000),
            Source::Thousandths(name) => measured(name),
            Source::ImageBytes => Some(images.hypervisor.sizes.loaded() * 1000),
        };
        let within = value.is_some_and(|value| value <= row.limit * 1000);
        kept &= within;
        let value = match (value, &row.source) {
            (None, _) => "missing".to_owned(),
            (Some(value), Source::Thousandths(_)) => format!("{}.{:03}", value / 1000, value % 1000),
            (Some(value), _) => (value / 1000).to_string(),
        };
        let verdict = if within { "" } else { "  MISSED" };
        println!("{:<36} {value:>10} {:>10} {:>12}  {}{verdict}", row.what, row.limit, row.pkvm, row.unit);
    }
    println!("\nbesides, without a limit:");
    let has_limit = |wanted: &str| {
        ROWS.iter().any(
            |row| matches!(row.source, Source::Guest(name) | Source::Thousandths(name) if name == wanted),
        )
    };
    for measure in measures().filter(|measure| !has_limit(&measure.name)) {
        println!("{:<36} {:>10}", measure.name, measure.value);
    }
    if arguments.host_benches {
        println!("\ntimes on this machine: cargo bench --package smmuv3 --package tests");
        let status = workspace.cargo().args(["bench", "--package", "smmuv3", "--package", "tests"]).status();
        kept &= status.context("cargo cannot be started")?.success();
    }
    Ok(kept)
}
