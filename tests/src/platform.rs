//! The platform of the hypervisor's library, made of the model machine: the only place that knows types of `smmuv3`.

use crate::gate::Gate;
use crate::model::Machine;
use crate::model::memory::Span;
use hyp::platform::{Heap, Platform};
use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::memory::Memory;
use spin::mutex::{SpinMutex, SpinMutexGuard};
use spin::relax::RelaxStrategy;
use std::sync::atomic::{AtomicU64, Ordering};

/// A model machine behind a lock: several threads stand for several CPUs.
///
/// The lock is taken for each word that the hypervisor reads or writes, nearly always by the only thread there is. This kind costs one atomic
/// exchange then; that of `std` costs two, and so took a third of the fuzzers' time.
#[derive(Debug)]
pub struct ModelPlatform {
    machine: SpinMutex<Machine, Yield>,
    /// A bit for each CPU that has done something.
    cpus: AtomicU64,
    /// Where a CPU can be stopped.
    pub gate: Gate,
}

/// The machine, held.
pub type MachineGuard<'a> = SpinMutexGuard<'a, Machine, Yield>;

/// Who waits for the machine lets others run.
#[derive(Debug)]
pub struct Yield;

impl RelaxStrategy for Yield {
    fn relax() {
        std::thread::yield_now();
    }
}

impl ModelPlatform {
    /// This machine.
    pub fn new(machine: Machine) -> Self {
        Self { machine: SpinMutex::new(machine), cpus: AtomicU64::new(0), gate: Gate::default() }
    }

    /// The machine, to look at or to break.
    pub fn machine(&self) -> MachineGuard<'_> {
        self.machine.lock()
    }

    /// The machine, for an operation of the hypervisor's.
    fn operate(&self) -> MachineGuard<'_> {
        self.gate.pass();
        let this = 1 << crate::threads::number();
        if self.cpus.load(Ordering::Relaxed) & this == 0 {
            self.cpus.fetch_or(this, Ordering::Relaxed);
        }
        self.machine()
    }

    /// Whether there is another CPU that this one could be waiting for.
    fn has_others(&self) -> bool {
        self.cpus.load(Ordering::Relaxed) & !(1 << crate::threads::number()) != 0
    }
}

fn span(range: PhysRange) -> Span {
    Span { start: range.start().0, end: range.last().0 + 1 }
}

fn index(heap: Heap) -> usize {
    match heap {
        Heap::Boot => 0,
        Heap::Donated => 1,
    }
}

impl Memory for ModelPlatform {
    fn read_u64(&self, address: PhysAddr) -> u64 {
        self.operate().read_u64(address.0)
    }

    fn write_u64(&self, address: PhysAddr, value: u64) {
        self.operate().write_u64(address.0, value);
    }

    fn full_barrier(&self) {}
}

impl Platform for ModelPlatform {
    fn cpu(&self) -> u16 {
        crate::threads::number()
    }

    fn cpus(&self) -> u16 {
        crate::threads::MOST
    }

    fn read_host_u64(&self, address: PhysAddr) -> u64 {
        self.operate().read_u64(address.0)
    }

    fn write_host_u64(&self, address: PhysAddr, value: u64) {
        self.write_u64(address, value);
    }

    fn write_host_u32(&self, address: PhysAddr, value: u32) {
        let (word, shift) = (PhysAddr(address.0 & !7), (address.0 & 4) * 8);
        let kept = self.read_u64(word) & !(0xffff_ffff << shift);
        self.write_u64(word, kept | u64::from(value) << shift);
    }

    fn wipe(&self, range: PhysRange) {
        self.operate().wipe(span(range));
    }

    fn read_register_u32(&self, address: PhysAddr) -> u32 {
        self.operate().read_register_u32(address.0)
    }

    fn write_register_u32(&self, address: PhysAddr, value: u32) {
        self.operate().write_register_u32(address.0, value);
    }

    fn read_register_u64(&self, address: PhysAddr) -> u64 {
        self.operate().read_register_u64(address.0)
    }

    fn write_register_u64(&self, address: PhysAddr, value: u64) {
        self.operate().write_register_u64(address.0, value);
    }

    fn invalidate_host_stage2(&self, range: PhysRange) {
        self.operate().cpu.invalidate(span(range));
    }

    fn now_ns(&self) -> u64 {
        let mut machine = self.operate();
        machine.now_ns += 50;
        machine.now_ns
    }

    fn relax(&self) {
        self.operate().relax();
        // On a machine that does other things too each takes milliseconds, and there are waits of 100,000.
        if self.has_others() {
            std::thread::yield_now();
        }
    }

    fn heap_add(&self, heap: Heap, range: PhysRange) {
        let mut machine = self.operate();
        let pages = range.size_bytes() >> 12;
        if let Err(text) = machine.heaps[index(heap)].add(range.start().0 >> 12, pages) {
            machine.violations.record(text);
        }
    }

    fn heap_take(&self, heap: Heap, order: u8) -> Option<PhysAddr> {
        self.operate().heap_take(index(heap), order).map(PhysAddr)
    }

    fn heap_give(&self, heap: Heap, run: PhysAddr, order: u8) {
        self.operate().heap_give(index(heap), run.0, order);
    }
}
