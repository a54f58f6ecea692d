//! The model machine: memory, SMMUs, the CPUs' stage-2 TLB, devices and page heaps.

pub mod cpu;
pub mod device;
pub mod hash;
pub mod heap;
pub mod inspect;
pub mod memory;
pub mod pci;
pub mod reach;
pub mod smmu;
pub mod stage1;
pub mod stage2;
pub mod stale;
pub mod store;
pub mod violation;
pub mod watch;

use cpu::Cpu;
use hash::Map;
use heap::PageHeap;
use memory::{PhysMemory, Span};
use smmu::config::SmmuConfig;
use smmu::{Bus, Smmu};
use violation::Violations;

/// Where SMMU 0 is; the others follow (as in QEMU's virt machine). There is room for 256 before anything else.
pub const SMMU_BASE: u64 = 0x0c00_0000;
/// Bytes of one SMMU's registers.
pub const SMMU_BYTES: u64 = 0x2_0000;
/// First byte of RAM.
pub const RAM_BASE: u64 = 0x4000_0000;
/// The UART.
pub const UART: Span = Span::new(0x0900_0000, 0x1000);
/// QEMU's fw_cfg, a DMA master without an SMMU.
pub const FW_CFG: Span = Span::new(0x0902_0000, 0x1000);
/// The GIC distributor.
pub const GICD: Span = Span::new(0x0800_0000, 0x1_0000);
/// The ITS; its second 64 KiB page holds GITS_TRANSLATER.
pub const ITS: Span = Span::new(0x0808_0000, 0x2_0000);
/// GIC redistributors, two 64 KiB frames for each CPU.
pub const GICR: Span = Span::new(0x080a_0000, 0x8_0000);
/// PCI config space: 256 buses of 1 MiB.
pub const ECAM: Span = Span::new(0x40_1000_0000, 0x1000_0000);
/// Window for 32-bit BARs.
pub const BARS: Span = Span::new(0x1000_0000, 0x2eff_0000);

/// The whole machine.
#[derive(Debug)]
pub struct Machine {
    /// RAM.
    pub memory: PhysMemory,
    /// The SMMUs.
    pub smmus: Vec<Smmu>,
    /// The CPUs.
    pub cpu: Cpu,
    /// What was done wrong.
    pub violations: Violations,
    /// The time.
    pub now_ns: u64,
    /// How much time one [`Machine::relax`] takes.
    pub relax_ns: u64,
    /// How much time a read of an SMMU's register takes: it waits for an answer.
    pub register_access_ns: u64,
    /// How much time a write of an SMMU's register takes: nothing waits for it, unless this says so.
    pub register_write_ns: u64,
    /// Heap of the memory set aside at boot, and of what the host gave.
    pub heaps: [PageHeap; 2],
    /// Allocations since the count was last set.
    pub allocations: u64,
    /// The allocation (by [`Machine::allocations`]) that fails, and whether all after it do.
    pub failing_allocation: Option<(u64, bool)>,
    /// PCI functions by the address of their config page.
    pub functions: Map<u64, pci::Function>,
    /// Registers of devices that only store.
    pub registers: Map<u64, u32>,
    /// Writes of devices to GITS_TRANSLATER.
    pub doorbells: u64,
    /// Nanoseconds between translation and arrival of a device's write.
    pub dma_latency_ns: u64,
    /// Register accesses of the hypervisor: (address, value written or `None`), when recording is on.
    pub trace: Option<Vec<(u64, Option<u64>)>>,
    /// Accesses that are tried at every moment.
    pub watch: Option<watch::Watch>,
    /// Reads and writes of memory and registers by the hypervisor, and 4 KiB pages that it wiped: a measure of its work.
    pub accesses: u64,
    /// Stores and wipes of the hypervisor.
    changes: u64,
}

impl Machine {
    /// A machine after reset, with `ram_bytes` of RAM and these SMMUs, each with the same StreamIDs in use.
    pub fn new(ram_bytes: u64, smmus: &[SmmuConfig], streams: &[Vec<u32>]) -> Self {
        assert!(SMMU_BASE + SMMU_BYTES * smmus.len() as u64 <= 0x0e00_0000, "SMMUs run into the BARs");
        let smmus = smmus
            .iter()
            .enumerate()
            .map(|(n, config)| {
                let base = SMMU_BASE + SMMU_BYTES * n as u64;
                Smmu::new(n, base, *config, streams.get(n).cloned().unwrap_or_default())
            })
            .collect();
        Self {
            memory: PhysMemory::new(&[Span::new(RAM_BASE, ram_bytes)]),
            smmus,
            cpu: Cpu::default(),
            violations: Violations::default(),
            now_ns: 1,
            relax_ns: 2_000,
            register_access_ns: 100,
            register_write_ns: 0,
            heaps: Default::default(),
            allocations: 0,
            failing_allocation: None,
            functions: Map::default(),
            registers: Map::default(),
            doorbells: 0,
            dma_latency_ns: 0,
            trace: None,
            watch: None,
            accesses: 0,
            changes: 0,
        }
    }

    /// An SMMU together with the bus it needs; `None` if there is no such SMMU.
    pub fn smmu(&mut self, index: usize) -> Option<(&mut Smmu, Bus<'_>)> {
        let bus = Bus { memory: &mut self.memory, violations: &mut self.violations, now_ns: self.now_ns };
        Some((self.smmus.get_mut(index)?, bus))
    }

    /// Another number than before, if anything may have changed that decides what is reached.
    pub fn changes(&self) -> u64 {
        self.changes + self.smmus.iter().map(|smmu| smmu.commands).sum::<u64>()
    }

    /// Lets time pass, and everything that is due happen.
    pub fn advance(&mut self, ns: u64) {
        self.now_ns += ns;
        for index in 0..self.smmus.len() {
            if let Some((smmu, mut bus)) = self.smmu(index) {
                smmu.step(&mut bus);
            }
        }
        self.observe();
    }

    /// A hint that a CPU waits.
    pub fn relax(&mut self) {
        self.advance(self.relax_ns);
    }

    /// Hypervisor's read of RAM.
    pub fn read_u64(&mut self, address: u64) -> u64 {
        self.accesses += 1;
        if address & 7 != 0 {
            self.violations.record(format!("EL2 reads 64 bits at {address:#x}"));
        }
        match self.memory.read(address) {
            Some(value) => value,
            None => {
                self.violations.record(format!("EL2 reads memory at {address:#x}, where no RAM is"));
                0
            }
        }
    }

    /// Hypervisor's write of RAM, seen by all walkers at once.
    pub fn write_u64(&mut self, address: u64, value: u64) {
        self.accesses += 1;
        if address & 7 != 0 {
            self.violations.record(format!("EL2 writes 64 bits at {address:#x}"));
        }
        self.changes += 1;
        let Some(old) = self.memory.replace(address, value) else {
            self.violations.record(format!("EL2 writes memory at {address:#x}, where no RAM is"));
            return;
        };
        if old != value {
            self.check_store(address, old, value);
        }
        self.observe();
    }

    /// Hypervisor's wipe. Whatever could still reach the range through a cache, or is on its way to it, is a violation.
    pub fn wipe(&mut self, span: Span) {
        if span.start & 0xfff != 0 || span.end & 0xfff != 0 {
            self.violations.record(format!("wipe of {span:x?}: not a multiple of 4 KiB"));
        }
        self.accesses += span.size() >> 12;
        self.changes += 1;
        self.check_unreachable(span, "is wiped");
        self.memory.wipe(span);
    }

    fn smmu_at(&self, address: u64) -> Option<usize> {
        self.smmus.iter().position(|smmu| smmu.owns(address))
    }

    fn function_at(&mut self, address: u64) -> Option<&mut pci::Function> {
        self.functions.get_mut(&(address & !0xfff))
    }

    fn record_access(&mut self, address: u64, value: Option<u64>) {
        self.accesses += 1;
        if let Some(trace) = &mut self.trace {
            trace.push((address, value));
        }
    }

    /// Reads a 32-bit register.
    pub fn read_register_u32(&mut self, address: u64) -> u32 {
        self.record_access(address, None);
        if let Some(index) = self.smmu_at(address) {
            self.now_ns += self.register_access_ns;
            return self
                .smmu(index)
                .map_or(0, |(smmu, mut bus)| smmu.read_u32(&mut bus, address - smmu.base));
        }
        if ECAM.contains(address) {
            return self.function_at(address).map_or(u32::MAX, |function| function.read(address & 0xfff));
        }
        if self.memory.is_ram(address) {
            self.violations.record(format!("register read at {address:#x}, which is RAM"));
        }
        self.registers.get(&address).copied().unwrap_or(0)
    }

    /// Writes a 32-bit register.
    pub fn write_register_u32(&mut self, address: u64, value: u32) {
        self.record_access(address, Some(u64::from(value)));
        if let Some(index) = self.smmu_at(address) {
            self.now_ns += self.register_write_ns;
            if let Some((smmu, mut bus)) = self.smmu(index) {
                smmu.write_u32(&mut bus, address - smmu.base, value);
            }
            self.observe();
        } else if ECAM.contains(address) {
            if let Some(function) = self.function_at(address) {
                function.write(address & 0xfff, value);
            }
        } else {
            if self.memory.is_ram(address) {
                self.violations.record(format!("register write at {address:#x}, which is RAM"));
            }
            self.registers.insert(address, value);
        }
    }

    /// Reads a 64-bit register.
    pub fn read_register_u64(&mut self, address: u64) -> u64 {
        match self.smmu_at(address) {
            Some(index) => {
                self.now_ns += self.register_access_ns;
                self.smmu(index).map_or(0, |(smmu, mut bus)| smmu.read_u64(&mut bus, address - smmu.base))
            }
            None => {
                u64::from(self.read_register_u32(address))
                    | u64::from(self.read_register_u32(address + 4)) << 32
            }
        }
    }

    /// Writes a 64-bit register.
    pub fn write_register_u64(&mut self, address: u64, value: u64) {
        match self.smmu_at(address) {
            Some(index) => {
                self.now_ns += self.register_write_ns;
                if let Some((smmu, mut bus)) = self.smmu(index) {
                    smmu.write_u64(&mut bus, address - smmu.base, value);
                }
            }
            None => {
                self.write_register_u32(address, value as u32);
                self.write_register_u32(address + 4, (value >> 32) as u32);
            }
        }
    }

    /// Takes a run of pages from a heap; may be told to fail.
    pub fn heap_take(&mut self, heap: usize, order: u8) -> Option<u64> {
        let number = self.allocations;
        self.allocations += 1;
        if let Some((at, after)) = self.failing_allocation
            && (number == at || after && number > at)
        {
            return None;
        }
        self.heaps[heap].take(order).map(|page| page << 12)
    }
}
