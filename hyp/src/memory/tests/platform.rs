//! A machine in memory: one SMMU that does at once what it is told, and a log of what the hypervisor did.

extern crate std;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::vec::Vec;

use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::gather::Gather;
use smmuv3::invalidation::DomainIndex;
use smmuv3::memory::Memory;

use crate::devicetree::{IommuMap, Machine, PcieNode, SmmuInterrupts, SmmuNode};
use crate::list::List;
use crate::memory::{CachesFailed, IoCaches};
use crate::platform::{Heap, Platform};

pub const RAM: u64 = 0x4000_0000;
pub const RAM_BYTES: u64 = 64 << 20;
/// The hypervisor's memory: all of it is pool.
pub const POOL: u64 = RAM + (48 << 20);
pub const POOL_BYTES: u64 = 1 << 20;
pub const SMMU: u64 = 0x0c00_0000;
pub const DOORBELL: u64 = 0x0809_0000;

/// What the hypervisor did to the machine, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    Wipe(PhysRange),
    CpuTlbi(PhysRange),
    Forget(DomainIndex, u64, u64),
}

#[derive(Default)]
pub struct State {
    words: BTreeMap<u64, u64>,
    registers: BTreeMap<u64, u64>,
    free: [BTreeSet<(u64, u8)>; 2],
    pub did: Vec<Did>,
    /// How many words of memory were read.
    pub reads: u64,
    /// How many of the next invalidations fail.
    pub failures: u32,
    /// The SMMU consumes no command and acknowledges nothing.
    pub deaf: bool,
    now_ns: u64,
}

#[derive(Default)]
pub struct TestPlatform(pub Mutex<State>);

impl TestPlatform {
    pub fn did(&self) -> Vec<Did> {
        std::mem::take(&mut self.0.lock().unwrap().did)
    }

    /// How many words of memory were read since the last time.
    pub fn reads(&self) -> u64 {
        std::mem::take(&mut self.0.lock().unwrap().reads)
    }

    pub fn fail_next(&self, invalidations: u32) {
        self.0.lock().unwrap().failures = invalidations;
    }

    /// All memory that is not zero.
    pub fn words(&self) -> BTreeMap<u64, u64> {
        let state = self.0.lock().unwrap();
        state.words.iter().filter(|(_, value)| **value != 0).map(|(a, v)| (*a, *v)).collect()
    }
}

impl Memory for TestPlatform {
    fn read_u64(&self, address: PhysAddr) -> u64 {
        assert!(address.is_aligned(8) && address.0 >= RAM && address.0 < RAM + RAM_BYTES, "{address}");
        let mut state = self.0.lock().unwrap();
        state.reads += 1;
        state.words.get(&address.0).copied().unwrap_or(0)
    }

    fn write_u64(&self, address: PhysAddr, value: u64) {
        assert!(address.is_aligned(8) && address.0 >= RAM && address.0 < RAM + RAM_BYTES, "{address}");
        self.0.lock().unwrap().words.insert(address.0, value);
    }

    fn full_barrier(&self) {}
}

impl Platform for TestPlatform {
    fn cpu(&self) -> u16 {
        0
    }

    fn cpus(&self) -> u16 {
        1
    }

    fn read_host_u64(&self, address: PhysAddr) -> u64 {
        self.read_u64(address)
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
        assert!(range.is_aligned(4096));
        let mut state = self.0.lock().unwrap();
        let inside = range.start().0..=range.last().0;
        let words: Vec<u64> = state.words.range(inside).map(|(address, _)| *address).collect();
        for address in words {
            state.words.remove(&address);
        }
        state.did.push(Did::Wipe(range));
    }

    fn read_register_u32(&self, address: PhysAddr) -> u32 {
        self.0.lock().unwrap().registers.get(&address.0).copied().unwrap_or(0) as u32
    }

    fn write_register_u32(&self, address: PhysAddr, value: u32) {
        let mut state = self.0.lock().unwrap();
        let deaf = state.deaf;
        let mut set = |offset, value: u32| state.registers.insert(SMMU + offset, u64::from(value));
        match address.0.wrapping_sub(SMMU) {
            offset @ (0x44 | 0x20 | 0x50 | 0x98) if deaf => set(offset, value),
            // GBPA.UPDATE reads 0 when the update is done; CR0ACK and IRQ_CTRLACK follow at once.
            0x44 => set(0x44, value & !(1 << 31)),
            0x20 => set(0x20, value).and(set(0x24, value)),
            0x50 => set(0x50, value).and(set(0x54, value)),
            // All commands are consumed when CMDQ_PROD is written.
            0x98 => set(0x98, value).and(set(0x9c, value)),
            offset => set(offset, value),
        };
    }

    fn read_register_u64(&self, address: PhysAddr) -> u64 {
        self.0.lock().unwrap().registers.get(&address.0).copied().unwrap_or(0)
    }

    fn write_register_u64(&self, address: PhysAddr, value: u64) {
        self.0.lock().unwrap().registers.insert(address.0, value);
    }

    fn invalidate_host_stage2(&self, range: PhysRange) {
        self.0.lock().unwrap().did.push(Did::CpuTlbi(range));
    }

    fn now_ns(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        state.now_ns += if state.deaf { 1_000_000 } else { 0 };
        state.now_ns
    }

    fn relax(&self) {}

    fn heap_add(&self, heap: Heap, range: PhysRange) {
        let free = &mut self.0.lock().unwrap().free[heap as usize];
        let (mut at, end) = (range.start().0, range.last().0 + 1);
        while at < end {
            let order = (0..=18).rev().find(|order| at % (4096 << order) == 0 && at + (4096 << order) <= end);
            free.insert((at, order.unwrap() as u8));
            at += 4096 << order.unwrap();
        }
    }

    fn heap_take(&self, heap: Heap, order: u8) -> Option<PhysAddr> {
        let free = &mut self.0.lock().unwrap().free[heap as usize];
        let (run, mut found) = *free.iter().filter(|(_, o)| *o >= order).min_by_key(|(_, o)| *o)?;
        free.remove(&(run, found));
        while found > order {
            found -= 1;
            free.insert((run + (4096 << found), found));
        }
        Some(PhysAddr(run))
    }

    fn heap_give(&self, heap: Heap, run: PhysAddr, order: u8) {
        let free = &mut self.0.lock().unwrap().free[heap as usize];
        let (mut run, mut order) = (run.0, order);
        while free.remove(&(run ^ (4096 << order), order)) {
            run &= !(4096 << order);
            order += 1;
        }
        assert!(free.insert((run, order)), "given twice: {run:#x}");
    }
}

impl IoCaches for TestPlatform {
    fn forget(&self, domain: DomainIndex, gather: &Gather) -> Result<(), CachesFailed> {
        let mut state = self.0.lock().unwrap();
        state.did.push(Did::Forget(domain, gather.first(), gather.last()));
        match state.failures.checked_sub(1) {
            Some(left) => {
                state.failures = left;
                Err(CachesFailed)
            }
            None => Ok(()),
        }
    }
}

pub fn range(start: u64, size_bytes: u64) -> PhysRange {
    PhysRange::new(PhysAddr(start), size_bytes).unwrap()
}

pub fn list<T: Copy, const N: usize>(items: &[T]) -> List<T, N> {
    let mut list = List::new();
    for item in items {
        list.push(*item).unwrap();
    }
    list
}

/// Config space of [`machine_with_functions`].
pub const ECAM: u64 = 0x1000_0000;

/// [`machine`] with a PCI bus. Registers that nobody wrote read as 0: every device is there, with one function without BARs, whose StreamID
/// is its Requester ID.
pub fn machine_with_functions(platform: &TestPlatform) -> Machine {
    let mut machine = machine(platform);
    let node = PcieNode {
        ecam: range(ECAM, 1 << 20),
        first_bus: 0,
        last_bus: 0,
        domain: 0,
        windows: List::new(),
        iommu_map: list(&[IommuMap { rid_base: 0, phandle: 1, stream_base: 0, length: 0x100 }]),
        iommu_map_mask: 0xffff,
    };
    machine.pcie.push(node).unwrap();
    machine
}

/// 64 MiB of RAM, one SMMU with the features of QEMU's, one ITS.
pub fn machine(platform: &TestPlatform) -> Machine {
    let ids = [(0x0, 0x0d44_101b), (0x4, 0x0273_0010), (0xc, 0x1414), (0x14, 0x74)];
    for (offset, value) in ids {
        platform.write_register_u64(PhysAddr(SMMU + offset), value);
    }
    // The only Redistributor: GICR_TYPER.Last.
    platform.write_register_u64(PhysAddr(0x080a_0008), 1 << 4);
    // The ITS: GITS_CTLR.Quiescent.
    platform.write_register_u64(PhysAddr(0x0808_0000), 1 << 31);
    Machine {
        memory: list(&[range(RAM, RAM_BYTES)]),
        reserved: List::new(),
        uart: Some(range(0x0900_0000, 0x1000)),
        gicd: range(0x0800_0000, 0x1_0000),
        redistributors: list(&[range(0x080a_0000, 0x2_0000)]),
        its: list(&[range(0x0808_0000, 0x2_0000)]),
        doorbells: list(&[PhysAddr(DOORBELL)]),
        ats_trusted: List::new(),
        smmus: list(&[SmmuNode {
            registers: range(SMMU, 0x2_0000),
            phandle: 1,
            part: None,
            interrupts: SmmuInterrupts::default(),
        }]),
        fw_cfg: list(&[range(0x0902_0000, 0x18)]),
        virtio_mmio: list(&[range(0x0a00_0000, 0x200), range(0x0a00_0200, 0x200)]),
        pcie: List::new(),
        cpus: list(&[0]),
        kernel: None,
        ramdisk: None,
        psci_smc: true,
    }
}
