//! `cargo xtask bench`: instructions, counted exactly, against the limits.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::run::prepare;
use crate::emulator::{self, Entry, Outcome, Run};
use crate::machine::Shape;
use crate::machine::memory_size::MemorySize;
use crate::workspace::Workspace;

/// SMMUs of the measured machine.
const SMMUS: u8 = 3;

/// Options of `bench`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Seconds after which a guest without an outcome is ended
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

/// Where a value comes from.
enum Source {
    /// A `measure: NAME VALUE` line of the guest.
    Guest(&'static str),
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

/// The limits, and what pKVM of Linux 7.2 was measured at in the same QEMU, without any SMMU.
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
        what: "tables of a 1 GiB host",
        source: Source::Guest("host-table-bytes"),
        limit: 128 << 10,
        unit: "bytes",
        pkvm: "-",
    },
    Row {
        what: "image: text, rodata and data",
        source: Source::ImageBytes,
        limit: 192 << 10,
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
    let workspace = Workspace::current();
    let (qemu, images) = prepare(&workspace)?;
    let timeout = Duration::from_secs(arguments.timeout);
    let run = Run {
        name: "bench",
        shape: Shape::new(SMMUS, 1, MemorySize::DEFAULT)?,
        entry: Entry::Image,
        bootargs: "bench".into(),
        extra: emulator::count_instructions(),
        timeout,
        show: false,
        logs: workspace.logs()?,
    };
    println!("{}, one instruction per tick", run.shape);
    let record = emulator::run(&run, &qemu, &images)?;
    let ended_well = record.outcome == Outcome::Said { pass: true };
    if !ended_well {
        for line in record.console.tail(30) {
            println!("    {line}");
        }
        println!("{}", record.sentence(timeout));
    }
    let measures = || record.console.measures().iter();
    let mut kept = ended_well;
    println!("{:<34} {:>10} {:>10} {:>12}", "", "measured", "limit", "pKVM");
    for row in ROWS {
        let value = match row.source {
            Source::Guest(name) => {
                measures().rfind(|measure| measure.name == name).map(|measure| measure.value)
            }
            Source::ImageBytes => Some(images.hypervisor.sizes.loaded()),
        };
        let within = value.is_some_and(|value| value <= row.limit);
        kept &= within;
        let value = value.map_or_else(|| "missing".to_owned(), |value| value.to_string());
        let verdict = if within { "" } else { "  MISSED" };
        println!("{:<34} {value:>10} {:>10} {:>12}  {}{verdict}", row.what, row.limit, row.pkvm, row.unit);
    }
    println!("\nbesides, without a limit:");
    let has_limit =
        |name: &str| ROWS.iter().any(|row| matches!(row.source, Source::Guest(limited) if limited == name));
    for measure in measures().filter(|measure| !has_limit(&measure.name)) {
        println!("{:<34} {:>10}", measure.name, measure.value);
    }
    Ok(kept)
}
