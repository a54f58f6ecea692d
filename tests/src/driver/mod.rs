//! The host's own driver of an SMMU, that does what Linux's arm-smmu-v3 does: registers by accesses that trap, stream table, queues, context
//! descriptors and stage 1 in memory of the host's, and MSIs for the completion of CMD_SYNC.
//!
//! Written in raw registers, commands and entries (IHI 0070), as everything of the model machine is.

mod events;
mod layout;
mod queue;
pub mod reg;

pub use events::{Fault, faults};
pub use layout::{Format, Layout};
pub use queue::{cfgi_ste, sync_to, tlbi_asid, tlbi_nsnh_all, tlbi_range, tlbi_va};

use crate::bench::Bench;
use crate::model::{SMMU_BASE, SMMU_BYTES};
use crate::owner::Stage1;
use host_shim::host::Host;

/// CR0.SMMUEN.
pub const SMMUEN: u32 = 1;
/// CR0.EVENTQEN.
pub const EVENTQEN: u32 = 1 << 2;
/// CR0.CMDQEN.
pub const CMDQEN: u32 = 1 << 3;
/// An STE that aborts: V alone.
pub const ABORT: [u64; 2] = [1, 0];
/// An STE that bypasses stage 1, with SHCFG = 0b01.
pub const BYPASS: [u64; 2] = [1 | 0b100 << 1, 1 << 44];

/// The driver of one SMMU.
#[derive(Debug)]
pub struct Driver<'a> {
    /// The machine.
    pub bench: &'a Bench,
    /// Index of the SMMU.
    pub smmu: usize,
    /// Where it keeps what.
    pub layout: Layout,
    /// CMDQ_PROD.
    pub prod: u32,
    /// EVENTQ_CONS, with OVACKFLG.
    pub cons: u32,
    /// Overflows of the event queue that it noticed.
    pub overflows: u32,
}

impl<'a> Driver<'a> {
    /// One that has not touched the SMMU yet.
    pub fn new(bench: &'a Bench, smmu: usize, layout: Layout) -> Self {
        Self { bench, smmu, layout, prod: 0, cons: 0, overflows: 0 }
    }

    /// One that Linux's probe has ended for: with two-level tables, and the SMMU on.
    pub fn started(bench: &'a Bench, smmu: usize) -> Self {
        let mut driver = Self::new(bench, smmu, Layout::linux(smmu));
        driver.clear();
        driver.reset();
        driver
    }

    /// Where a register is.
    pub fn register(&self, offset: u64) -> u64 {
        SMMU_BASE + SMMU_BYTES * self.smmu as u64 + offset
    }

    /// A load of a register.
    pub fn read(&self, offset: u64) -> u32 {
        self.bench.cpu_read_u32(self.register(offset)).unwrap_or_else(|_| panic!("no register {offset:#x}"))
    }

    /// A store to a register.
    pub fn write(&self, offset: u64, value: u32) {
        let stored = self.bench.cpu_write_u32(self.register(offset), value);
        stored.unwrap_or_else(|_| panic!("no register {offset:#x}"));
    }

    /// A store to a register of 64 bits.
    pub fn write_u64(&self, offset: u64, value: u64) {
        let stored = self.bench.cpu_write_u64(self.register(offset), value);
        stored.unwrap_or_else(|_| panic!("no register {offset:#x}"));
    }

    /// A store to CR0, whose update CR0ACK shows.
    pub fn write_cr0(&self, value: u32) {
        self.write(reg::CR0, value);
        assert_eq!(self.read(reg::CR0ACK), value, "the update of CR0");
    }

    /// A store to memory; whether the host reaches it.
    pub fn store(&self, address: u64, value: u64) -> bool {
        self.bench.cpu_write_u64(address, value).is_ok()
    }

    /// A load of memory.
    pub fn load(&self, address: u64) -> u64 {
        self.bench.cpu_read_u64(address).unwrap_or_else(|_| panic!("{address:#x} is not the host's"))
    }

    /// Clears the stream table: no stream has an entry.
    pub fn clear(&self) {
        for at in self.layout.table_words() {
            assert!(self.store(at, 0), "{at:#x} is not the host's");
        }
    }

    /// arm_smmu_device_reset.
    pub fn reset(&mut self) {
        if self.read(reg::CR0) & SMMUEN != 0 {
            self.write(reg::GBPA, 1 << 31 | 1 << 20);
            assert_eq!(self.read(reg::GBPA) >> 31, 0, "UPDATE");
        }
        self.write_cr0(0);
        self.write(reg::CR1, 0xd75);
        self.write(reg::CR2, 0b111);
        self.write_u64(reg::STRTAB_BASE, 1 << 62 | self.layout.table);
        self.write(reg::STRTAB_BASE_CFG, self.layout.format.word());
        (self.prod, self.cons) = (0, 0);
        self.write_u64(reg::CMDQ_BASE, 1 << 62 | self.layout.commands | u64::from(self.layout.commands_log2));
        self.write(reg::CMDQ_PROD, 0);
        self.write(reg::CMDQ_CONS, 0);
        self.write_cr0(CMDQEN);
        // What the one before left active.
        self.acknowledge();
        self.run(&[[0x04, 31]]);
        self.run(&[tlbi_nsnh_all()]);
        self.write_u64(reg::EVENTQ_BASE, 1 << 62 | self.layout.events | u64::from(self.layout.events_log2));
        self.write(reg::EVENTQ_PROD, 0);
        self.write(reg::EVENTQ_CONS, 0);
        self.write_cr0(CMDQEN | EVENTQEN);
        self.write(reg::IRQ_CTRL, 0);
        self.write_u64(reg::GERROR_IRQ_CFG0, 0);
        self.write_u64(reg::EVENTQ_IRQ_CFG0, 0);
        self.write(reg::IRQ_CTRL, 0b101);
        assert_eq!(self.read(reg::IRQ_CTRLACK), 0b101);
        self.write_cr0(CMDQEN | EVENTQEN | SMMUEN);
    }

    /// arm_smmu_device_shutdown.
    pub fn shut_down(&self) {
        self.write_cr0(0);
    }

    /// StreamID of a device: 0 or 1.
    pub fn stream(&self, device: usize) -> u32 {
        self.bench.devices[self.smmu][device].stream
    }

    /// Where the STE of a device is, below a level-1 descriptor if there are two levels.
    pub fn entry(&self, device: usize) -> u64 {
        let stream = self.stream(device);
        let entry = self.layout.entry(stream);
        if let Some((at, descriptor)) = self.layout.descriptor(stream)
            && self.load(at) != descriptor
        {
            assert!(self.store(at, descriptor), "{at:#x} is not the host's");
        }
        entry
    }

    /// Words 0 and 1 of a device's STE.
    pub fn words(&self, device: usize) -> [u64; 2] {
        let entry = self.entry(device);
        [self.load(entry), self.load(entry + 8)]
    }

    /// Writes words 0 and 1 of a device's STE, and sends nothing.
    pub fn store_words(&self, device: usize, [word0, word1]: [u64; 2]) {
        let entry = self.entry(device);
        assert!(self.store(entry + 8, word1) && self.store(entry, word0), "{entry:#x} is not the host's");
    }

    /// arm_smmu_write_ste: the word that counts changes last when a stream comes, and first when it goes; CFGI_STE and CMD_SYNC after each.
    pub fn write_entry(&mut self, device: usize, [word0, word1]: [u64; 2]) {
        let stream = self.stream(device);
        let [_, old] = self.words(device);
        let entry = self.entry(device);
        let comes = word0 & 0b1111 > 1;
        let steps = if comes { [(8, word1), (0, word0)] } else { [(0, word0), (8, word1)] };
        for (offset, word) in steps {
            if offset == 0 || old != word1 {
                assert!(self.store(entry + offset, word), "{entry:#x} is not the host's");
                self.run(&[cfgi_ste(stream)]);
            }
        }
    }

    /// Attaches a device to stage 1 with one CD, as Linux does: the CD is written and told, then the STE.
    pub fn attach(&mut self, device: usize, stage1: &Stage1) {
        let stream = self.stream(device);
        self.run(&[[0x05 | u64::from(stream) << 32, 1]]);
        self.write_entry(device, Self::stage1_words(stage1));
    }

    /// Words 0 and 1 of an STE with stage 1: S1ContextPtr; S1CIR and S1COR write-back, S1CSH inner, SHCFG incoming.
    pub fn stage1_words(stage1: &Stage1) -> [u64; 2] {
        let [word0, word1] = stage1.words();
        [word0, word1 | 0b01 << 2 | 0b01 << 4 | 0b11 << 6]
    }

    /// Maps an entry of the last table to a page of the host's: no command is needed.
    pub fn map(&self, stage1: &Stage1, n: u64, page: u64) {
        assert!(stage1.write_entry(self.bench, 0, n, Some(page)));
    }

    /// Unmaps `count` entries from `first` on, and tells the SMMU of the range.
    pub fn unmap(&mut self, stage1: &Stage1, asid: u64, first: u64, count: u64) {
        for n in first..first + count {
            assert!(stage1.write_entry(self.bench, 0, n, None));
        }
        let has_ranges = self.read(reg::IDR3) >> 10 & 1 == 1;
        let (page, log2) = (stage1.va(first), stage1.granule_log2);
        if has_ranges {
            self.run(&tlbi_range(asid, page, log2, count));
        } else {
            let pages: Vec<_> = (0..count).map(|n| tlbi_va(asid, page + (n << log2))).collect();
            self.run(&pages);
        }
    }
}
