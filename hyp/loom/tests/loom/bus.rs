//! The platform: the model machine, on which every CPU and device takes a turn when it does what another one could see. So loom tries every order
//! of these moments, and of the hypervisor's own locks.
//!
//! Memory is sequentially consistent. A load is no turn. Nor is a store to the frame table, which only who has the memory lock reads, or to a
//! command queue, where nobody looks until CMDQ_PROD moves. Stores to one page, one after the other, are one turn, but for those to stream tables.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use hyp_loom::platform::{Heap, Platform};
use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::command::{Command, opcode};
use smmuv3::memory::Memory;
use smmuv3::registers::CMDQ_CONS_OFFSET;
use tests::model::memory::Span;
use tests::model::{Machine, SMMU_BASE, SMMU_BYTES};

use crate::look;
use crate::mistake::Mistake;
use crate::world::{FRAME_TABLE, PAGE};

/// CPUs, and devices, which are threads as well.
pub const THREADS: usize = 4;

loom::thread_local! {
    static THREAD: Cell<usize> = Cell::new(0);
}

/// Who reaches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// CPUs and devices of the host.
    Host,
    /// Devices of the guest.
    Guest,
}

/// What is known of the machine, and not by the hypervisor.
#[derive(Default)]
struct Truth {
    /// Whose the contents of a page are; nobody's when it is wiped.
    holders: BTreeMap<u64, Actor>,
    /// Pages of words, for each SMMU, that say whose its VMIDs are.
    vmid_tables: Vec<u64>,
    /// The page that a thread stored to last, if it took no turn for something else.
    last_stored: BTreeMap<usize, u64>,
    /// What the frame table was when a thread entered EL2.
    frames: [Vec<u64>; THREADS],
    /// What a mistake keeps back.
    late: Vec<Late>,
    /// VMIDs, by SMMU, whose flush a mistake keeps back.
    unflushed: BTreeSet<(usize, u16)>,
    /// Threads that have flushed, too early, since they entered EL2.
    flushed: BTreeSet<usize>,
}

/// Something that happens later than the hypervisor thinks.
#[derive(Clone, Copy)]
enum Late {
    /// When the frame table changes.
    Wipe(PhysRange),
    CpuTlbi(PhysRange),
    /// When the thread leaves EL2.
    Store(usize, PhysAddr, u32),
}

/// The machine as all CPUs see it.
pub struct Bus {
    turn: loom::sync::Mutex<()>,
    machine: Mutex<Machine>,
    truth: Mutex<Truth>,
    mistake: Mistake,
    /// Several go on at once.
    explored: AtomicBool,
}

/// Says which of [`THREADS`] the present one is.
pub fn number_thread(number: usize) {
    THREAD.with(|thread| thread.set(number));
}

fn thread() -> usize {
    THREAD.with(Cell::get)
}

fn span(range: PhysRange) -> Span {
    Span { start: range.start().0, end: range.last().0 + 1 }
}

impl Bus {
    pub fn new(machine: Machine, mistake: Mistake) -> Self {
        let turn = loom::sync::Mutex::new(());
        Self {
            turn,
            machine: Mutex::new(machine),
            truth: Mutex::default(),
            mistake,
            explored: AtomicBool::new(false),
        }
    }

    pub fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap()
    }

    fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap()
    }

    /// From here on others may go on at every turn, and mistakes are made. What the host reaches of these pages has contents of its own.
    pub fn explore(&self, of: &[u64]) {
        let machine = self.machine();
        let mut truth = self.truth();
        self.explored.store(true, Ordering::Relaxed);
        truth.holders = of
            .iter()
            .filter(|page| look::is_hosts(&machine, **page))
            .map(|page| (*page, Actor::Host))
            .collect();
    }

    fn is_explored(&self) -> bool {
        self.explored.load(Ordering::Relaxed)
    }

    /// Whether this mistake is made by now.
    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == mistake && self.is_explored()
    }

    /// A moment at which somebody else may go on instead.
    fn turn(&self) {
        if self.is_explored() {
            drop(self.turn.lock().unwrap());
        }
    }

    /// The machine, at a turn.
    fn operate(&self) -> MutexGuard<'_, Machine> {
        self.truth().last_stored.remove(&thread());
        self.turn();
        self.machine()
    }

    /// Something that is no part of the hypervisor does something: the machine, at its turn.
    pub fn act<T>(&self, act: impl FnOnce(&mut Machine) -> T) -> T {
        act(&mut self.operate())
    }

    /// Somebody reaches a page: what is in it must be its own.
    pub fn reached(&self, actor: Actor, address: u64) {
        let holder = *self.truth().holders.entry(address / PAGE * PAGE).or_insert(actor);
        assert_eq!(holder, actor, "{actor:?} reaches {address:#x}, which has contents of {holder:?}");
    }

    /// A CPU enters EL2.
    pub fn enter(&self) {
        let machine = self.machine();
        let words = (FRAME_TABLE.start..FRAME_TABLE.end).step_by(8);
        self.truth().flushed.remove(&thread());
        self.truth().frames[thread()] = words.map(|at| machine.memory.read(at).unwrap()).collect();
    }

    /// It leaves EL2.
    pub fn leave(&self) {
        let mut stores = Vec::new();
        self.truth().late.retain(|late| match *late {
            Late::Store(by, at, value) if by == thread() => {
                stores.push((at, value));
                false
            }
            _ => true,
        });
        for (at, value) in stores {
            self.store_host_u32(at, value);
        }
    }

    /// Does what was kept back until the frame table changes.
    fn record_changed(&self) {
        let late = std::mem::take(&mut self.truth().late);
        for late in late {
            match late {
                Late::Wipe(range) => self.wipe_now(range),
                Late::CpuTlbi(range) => self.operate().cpu.invalidate(span(range)),
                store @ Late::Store(..) => self.truth().late.push(store),
            }
        }
    }

    fn wipe_now(&self, range: PhysRange) {
        let mut machine = self.operate();
        machine.wipe(span(range));
        let wrong = machine.violations.all().first().cloned();
        assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
        let mut truth = self.truth();
        for page in look::pages(span(range)) {
            truth.holders.remove(&page);
        }
    }

    /// EL2 looks at or changes memory that it takes for the host's: then the host reaches it, by its stage 2.
    fn check_host(&self, machine: &Machine, address: PhysAddr) {
        assert!(look::is_hosts(machine, address.0), "EL2 reaches {address} for the host, which has it not");
    }

    fn store_host_u32(&self, address: PhysAddr, value: u32) {
        let (word, shift) = (address.0 & !7, (address.0 & 4) * 8);
        let mut machine = self.operate();
        self.check_host(&machine, address);
        let kept = machine.read_u64(word) & !(0xffff_ffff << shift);
        machine.write_u64(word, kept | u64::from(value) << shift);
    }

    /// The SMMU, and its register, at an address.
    fn register(address: PhysAddr) -> (usize, u64) {
        let offset = address.0.wrapping_sub(SMMU_BASE);
        ((offset / SMMU_BYTES) as usize, offset % SMMU_BYTES)
    }

    /// What a mistake makes of a command.
    fn mistaken(&self, smmu: usize, words: [u64; 2]) -> [u64; 2] {
        let command = Command(words);
        let is_flush = command.opcode() == opcode::TLBI_S12_VMALL;
        let left_out = match self.mistake {
            Mistake::TlbiLeftOut => command.opcode() == opcode::TLBI_S2_IPA,
            Mistake::CfgiLeftOut => command.opcode() == opcode::CFGI_STE,
            Mistake::FlushedBeforeSte => is_flush,
            Mistake::FlushedAfterFree if is_flush => {
                self.truth().unflushed.insert((smmu, (words[0] >> 32) as u16));
                true
            }
            _ => false,
        };
        if left_out { Command::sync().0 } else { words }
    }
}

impl Memory for Bus {
    fn read_u64(&self, address: PhysAddr) -> u64 {
        if FRAME_TABLE.contains(address.0) && self.makes(Mistake::CheckedBefore) {
            return self.truth().frames[thread()][((address.0 - FRAME_TABLE.start) / 8) as usize];
        }
        self.machine().read_u64(address.0)
    }

    fn write_u64(&self, address: PhysAddr, value: u64) {
        if !self.is_explored() {
            return self.machine().write_u64(address.0, value);
        }
        if FRAME_TABLE.contains(address.0) {
            self.record_changed();
            return self.machine().write_u64(address.0, value);
        }
        let stream_table = look::stream_table_at(&self.machine(), address);
        let page = address.0 / PAGE;
        let last = self.truth().last_stored.insert(thread(), page);
        if stream_table.is_some() || last != Some(page) {
            self.turn();
        }
        let mut machine = self.machine();
        if self.makes(Mistake::FlushedBeforeSte)
            && let Some(smmu) = stream_table
            && self.truth().flushed.insert(thread())
        {
            look::flush(&mut machine, smmu, |_| true);
        }
        machine.write_u64(address.0, value);
    }

    fn write_pair(&self, address: PhysAddr, words: [u64; 2]) {
        let queue = if self.is_explored() { look::queue_at(&self.machine(), address) } else { None };
        let Some(smmu) = queue else {
            self.write_u64(address, words[0]);
            return self.write_u64(address.offset(8), words[1]);
        };
        for (at, word) in (address.0..).step_by(8).zip(self.mistaken(smmu, words)) {
            self.machine().write_u64(at, word);
        }
    }

    fn write_release_u64(&self, address: PhysAddr, value: u64) {
        self.write_u64(address, value);
        let mut truth = self.truth();
        let page = address.0 / PAGE * PAGE;
        // The first stores of this kind are those that say whose VMID the host's drivers have.
        if !self.is_explored() && truth.frames[0].is_empty() && !truth.vmid_tables.contains(&page) {
            truth.vmid_tables.push(page);
        }
        let table = truth.vmid_tables.iter().position(|table| *table == page);
        if let (Some(smmu), 0, true) = (table, value, self.is_explored()) {
            let vmid = (address.0 % PAGE / 8) as u16;
            let mut machine = self.machine();
            look::check_free(&machine, smmu, vmid);
            if truth.unflushed.remove(&(smmu, vmid)) {
                look::flush(&mut machine, smmu, |tagged| tagged == vmid);
            }
        }
    }

    fn full_barrier(&self) {}
}

impl Platform for Bus {
    fn cpu(&self) -> u16 {
        thread() as u16
    }

    fn cpus(&self) -> u16 {
        THREADS as u16
    }

    fn wipe(&self, range: PhysRange) {
        if self.makes(Mistake::WipedLate) {
            return self.truth().late.push(Late::Wipe(range));
        }
        self.wipe_now(range);
    }

    fn read_host_u64(&self, address: PhysAddr) -> u64 {
        let mut machine = self.operate();
        self.check_host(&machine, address);
        machine.read_u64(address.0)
    }

    fn write_host_u64(&self, address: PhysAddr, value: u64) {
        let mut machine = self.operate();
        self.check_host(&machine, address);
        machine.write_u64(address.0, value);
    }

    fn write_host_u32(&self, address: PhysAddr, value: u32) {
        if self.makes(Mistake::WrittenAfter) {
            return self.truth().late.push(Late::Store(thread(), address, value));
        }
        self.store_host_u32(address, value);
    }

    fn read_register_u32(&self, address: PhysAddr) -> u32 {
        let (smmu, offset) = Self::register(address);
        if offset == CMDQ_CONS_OFFSET && self.makes(Mistake::SyncNotAwaited) {
            return self.machine().smmus[smmu].registers.cmdq_prod;
        }
        self.machine().read_register_u32(address.0)
    }

    fn write_register_u32(&self, address: PhysAddr, value: u32) {
        self.operate().write_register_u32(address.0, value);
    }

    fn read_register_u64(&self, address: PhysAddr) -> u64 {
        self.machine().read_register_u64(address.0)
    }

    fn write_register_u64(&self, address: PhysAddr, value: u64) {
        self.operate().write_register_u64(address.0, value);
    }

    fn invalidate_host_stage2(&self, range: PhysRange) {
        if self.makes(Mistake::CpuTlbiLate) {
            return self.truth().late.push(Late::CpuTlbi(range));
        }
        self.operate().cpu.invalidate(span(range));
    }

    fn now_ns(&self) -> u64 {
        self.machine().now_ns
    }

    /// An SMMU that has something to do does it now. Else it is another CPU that is waited for.
    fn relax(&self) {
        let idle = self.machine().smmus.iter().all(|smmu| smmu.commands_waiting() == 0);
        if idle && self.is_explored() {
            loom::thread::yield_now();
        }
        self.operate().relax();
    }

    fn heap_add(&self, heap: Heap, range: PhysRange) {
        self.machine().heaps[heap as usize].add(range.start().0 >> 12, range.size_bytes() >> 12).unwrap();
    }

    fn heap_take(&self, heap: Heap, order: u8) -> Option<PhysAddr> {
        self.machine().heap_take(heap as usize, order).map(PhysAddr)
    }

    fn heap_give(&self, heap: Heap, run: PhysAddr, order: u8) {
        self.machine().heap_give(heap as usize, run.0, order);
    }
}
