//! The machine, with the instructions of every call and access counted where QEMU counts them.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::Statistic;
use host_shim::call::{Caller, Calls};
use host_shim::host::{Abort, Device, Dma, Forbidden, Host, SideDoors, Transfer};
use host_shim::text;
use host_shim::text::Text;

use crate::image::console::println;
use crate::image::machine::Machine;

/// Instructions of one entry into EL2 at the most: docs/architecture.md.
const LIMIT: u64 = 250_000;
/// The most that a call, and an entry for an access, took since boot.
static MOST_OF_CALL: AtomicU64 = AtomicU64::new(0);
static MOST_OF_ENTRY: AtomicU64 = AtomicU64::new(0);

/// The machine for one step.
pub struct Measured<'a> {
    machine: &'a Machine,
    counts: bool,
    /// Instructions of the first that took too many, and entries that it made; 0 while none did.
    over: AtomicU64,
    entries: AtomicU64,
}

impl<'a> Measured<'a> {
    pub fn new(machine: &'a Machine) -> Self {
        // With several CPUs, the others' instructions count too.
        let counts = machine.counts_instructions() && machine.other_cpus().next().is_none();
        Self { machine, counts, over: AtomicU64::new(0), entries: AtomicU64::new(0) }
    }

    /// Whether nothing took too long.
    ///
    /// # Errors
    /// What did.
    pub fn judge(&self) -> Result<(), Text> {
        match self.over.load(Ordering::Relaxed) {
            0 => Ok(()),
            over => {
                let entries = self.entries.load(Ordering::Relaxed);
                Err(text!("{over} instructions in {entries} entries, of {LIMIT} for each"))
            }
        }
    }

    /// Does something, and counts what it took by the entries that it made at the least.
    fn counted<T>(&self, most: &AtomicU64, entries: impl Fn() -> u64, act: impl FnOnce() -> T) -> T {
        if !self.counts {
            return act();
        }
        let (before, begin) = (entries(), self.machine.ticks());
        let result = act();
        let ticks = self.machine.ticks() - begin;
        let entries = (entries() - before).max(1);
        most.fetch_max(ticks / entries, Ordering::Relaxed);
        if ticks / entries > LIMIT {
            self.entries.store(entries, Ordering::Relaxed);
            self.over.store(ticks, Ordering::Relaxed);
        }
        result
    }

    /// A store that starts much work is made again after each part of it: as many entries as registers are emulated.
    fn access<T>(&self, act: impl FnOnce() -> T) -> T {
        self.counted(&MOST_OF_ENTRY, || self.machine.statistic(Statistic::EmulatedAccesses).unwrap_or(0), act)
    }
}

/// Prints the most that was seen, if it was counted.
pub fn summary() {
    for (name, most) in [("fuzz-longest-call", &MOST_OF_CALL), ("fuzz-longest-access", &MOST_OF_ENTRY)] {
        match most.load(Ordering::Relaxed) {
            0 => {}
            most => println!("measure: {name} {most} instructions"),
        }
    }
}

impl Caller for Measured<'_> {
    fn call_raw(&self, id: u32, arguments: [u64; 4]) -> [u64; 5] {
        self.counted(&MOST_OF_CALL, || 0, || self.machine.call_raw(id, arguments))
    }
}

impl Host for Measured<'_> {
    fn cpu_load(&self, address: u64, bytes: u8) -> Result<u64, Abort> {
        self.access(|| self.machine.cpu_load(address, bytes))
    }

    fn cpu_store(&self, address: u64, bytes: u8, value: u64) -> Result<(), Abort> {
        self.access(|| self.machine.cpu_store(address, bytes, value))
    }

    fn smmus(&self) -> usize {
        self.machine.smmus()
    }

    fn stream(&self, smmu: usize, device: Device) -> Option<u32> {
        self.machine.stream(smmu, device)
    }

    fn dma_write_at(&self, smmu: usize, address: u64, expected: u64) -> Dma {
        self.machine.dma_write_at(smmu, address, expected)
    }

    fn start(&self, smmu: usize, transfer: Transfer) -> Result<(), Abort> {
        self.machine.start(smmu, transfer)
    }

    fn settle(&self) {
        self.machine.settle();
    }

    fn scratch(&self) -> u64 {
        self.machine.scratch()
    }

    fn forbidden(&self, index: usize) -> Option<Forbidden> {
        self.machine.forbidden(index)
    }

    fn hypervisor_memory(&self) -> u64 {
        self.machine.hypervisor_memory()
    }

    fn side_doors(&self) -> Option<SideDoors> {
        self.machine.side_doors()
    }

    fn not_ram(&self) -> u64 {
        self.machine.not_ram()
    }

    fn on_each_cpu(&self, job: &(dyn Fn(usize) + Sync)) -> usize {
        self.machine.on_each_cpu(job)
    }

    fn ticks(&self) -> u64 {
        self.machine.ticks()
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        self.machine.log(line);
    }
}
