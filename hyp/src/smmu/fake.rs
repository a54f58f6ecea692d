//! A platform with fake SMMUs, for the unit tests: what the driver does to memory, registers and command
//! queues, in order.
//!
//! It panics where the driver breaks a rule of IHI 0070 that hardware would not report.

extern crate std;

use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::vec::Vec;

use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::command::{Command, opcode};
use smmuv3::event::EVENT_BYTES;
use smmuv3::features::Part;
use smmuv3::memory::Memory;

use super::Pages;
use crate::platform::{Heap, Platform};

/// Registers of the first SMMU; each next is 128 KiB further.
pub const BASE: u64 = 0x0c00_0000;
const SPACE: u64 = 0x2_0000;
/// Where the pool of [`FakePages`] starts.
pub const POOL: u64 = 0x8000_0000;

/// Something that the driver did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A 64-bit store to memory.
    Store { at: u64, value: u64 },
    /// A full barrier.
    Barrier,
    /// An SMMU consumed a command.
    Command { smmu: usize, command: [u64; 2] },
}

/// How an SMMU treats its queue and registers.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// Reads of CMDQ_CONS between two commands; 0: the write of PROD consumes all.
    pub reads_per_command: u32,
    /// Counts of commands, over all that were fetched, that stop the queue with an error.
    pub illegal: BTreeSet<u64>,
    /// Counts in the same way, of CMD_SYNCs that stop the queue because an ATC does not answer.
    pub unanswered: BTreeSet<u64>,
    /// Consumes nothing.
    pub hung: bool,
    /// Does not acknowledge CR0.
    pub deaf: bool,
    /// GBPA.UPDATE stays 1.
    pub gbpa_stuck: bool,
    /// Events that come right after EVENTQ_PROD was read, one each time.
    pub late_events: VecDeque<[u64; 4]>,
}

/// One SMMU.
#[derive(Clone, Debug)]
pub struct FakeSmmu {
    pub behaviour: Behaviour,
    pub registers: BTreeMap<u64, u64>,
    /// Commands fetched so far, those that failed included.
    fetched: u64,
    reads: u32,
}

pub struct State {
    pub memory: BTreeMap<u64, u64>,
    pub smmus: Vec<FakeSmmu>,
    pub actions: Vec<Action>,
    now_ns: u64,
}

/// The platform. The second field is called with the address of every store to memory, after it.
pub struct Fake(pub Mutex<State>, pub Mutex<Option<Hook>>);

/// See [`Fake`].
pub type Hook = Box<dyn Fn(u64) + Send>;

/// Registers by offset.
pub mod offset {
    pub const CR0: u64 = 0x20;
    pub const CR0ACK: u64 = 0x24;
    pub const GBPA: u64 = 0x44;
    pub const GERROR: u64 = 0x60;
    pub const GERRORN: u64 = 0x64;
    pub const STRTAB_BASE: u64 = 0x80;
    pub const STRTAB_CFG: u64 = 0x88;
    pub const CMDQ_BASE: u64 = 0x90;
    pub const CMDQ_PROD: u64 = 0x98;
    pub const CMDQ_CONS: u64 = 0x9c;
    pub const EVENTQ_BASE: u64 = 0xa0;
    pub const EVENTQ_PROD: u64 = 0x1_00a8;
    pub const EVENTQ_CONS: u64 = 0x1_00ac;
}
use offset::*;

impl FakeSmmu {
    fn new() -> Self {
        let mut registers = BTreeMap::new();
        registers.extend([(0x00, 0x0d44_101b), (0x04, 0x0273_0010), (0x0c, 0x1414), (0x14, 0x74)]);
        Self { behaviour: Behaviour::default(), registers, fetched: 0, reads: 0 }
    }

    pub fn get(&self, offset: u64) -> u64 {
        self.registers.get(&offset).copied().unwrap_or(0)
    }

    pub fn set(&mut self, offset: u64, value: u64) {
        self.registers.insert(offset, value);
    }

    /// Makes the command queue as short as this.
    pub fn limit_command_queue(&mut self, log2: u64) {
        let idr1 = self.get(0x04);
        self.set(0x04, idr1 & !(0x1f << 21) | log2 << 21);
    }
}

impl State {
    fn consume(&mut self, smmu: usize, limit: usize) {
        for _ in 0..limit {
            let State { memory, smmus, actions, .. } = self;
            let Some(device) = smmus.get_mut(smmu) else { return };
            let (base, cons) = (device.get(CMDQ_BASE), device.get(CMDQ_CONS));
            let mask = (2u64 << (base & 31)) - 1;
            let cons = cons & 0xf_ffff;
            let stopped = (device.get(GERROR) ^ device.get(GERRORN)) & 1 != 0;
            if device.get(CR0) & 8 == 0 || stopped || device.behaviour.hung || cons == device.get(CMDQ_PROD) {
                return;
            }
            let at = (base & 0x000f_ffff_ffff_ffe0) + (cons & (mask >> 1)) * 16;
            let command = [at, at + 8].map(|at| memory.get(&at).copied().unwrap_or(0));
            device.fetched += 1;
            if device.behaviour.illegal.contains(&device.fetched) && command[0] as u8 != opcode::SYNC {
                let gerror = device.get(GERROR);
                device.set(GERROR, gerror ^ 1);
                device.set(CMDQ_CONS, cons | 1 << 24);
                return;
            }
            if device.behaviour.unanswered.contains(&device.fetched) {
                assert_eq!(command[0] as u8, opcode::SYNC, "no other command waits for an ATC");
                let gerror = device.get(GERROR);
                device.set(GERROR, gerror ^ 1);
                device.set(CMDQ_CONS, cons | 3 << 24);
                return;
            }
            device.set(CMDQ_CONS, (cons + 1) & mask);
            actions.push(Action::Command { smmu, command });
        }
    }

    fn write_register(&mut self, at: u64, value: u64) {
        let (smmu, offset) = (((at - BASE) / SPACE) as usize, (at - BASE) % SPACE);
        let device = &mut self.smmus[smmu];
        let cr0 = device.get(CR0);
        match offset {
            CR0 => {
                device.set(CR0, value);
                if !device.behaviour.deaf {
                    device.set(CR0ACK, value);
                }
                return;
            }
            GBPA => {
                assert_eq!(device.get(GBPA) >> 31 & 1, 0, "GBPA written while UPDATE is 1");
                assert_eq!(value >> 31, 1, "GBPA written without UPDATE");
                let stuck = u64::from(device.behaviour.gbpa_stuck) << 31;
                device.set(GBPA, value & 0x7fff_ffff | stuck);
                return;
            }
            CMDQ_BASE | CMDQ_CONS => assert_eq!(cr0 & 8, 0, "register {offset:#x} written while CMDQEN = 1"),
            EVENTQ_BASE => assert_eq!(cr0 & 4, 0, "register {offset:#x} written while EVENTQEN = 1"),
            0x28 => assert_eq!(cr0 & 0xf, 0, "CR1 written while something is enabled"),
            0x2c | STRTAB_BASE | STRTAB_CFG => {
                assert_eq!(cr0 & 1, 0, "register {offset:#x} written while SMMUEN = 1")
            }
            GERRORN => {
                let active = device.get(GERROR) ^ device.get(GERRORN);
                assert_eq!((value ^ device.get(GERRORN)) & !active, 0, "an inactive error was acknowledged");
            }
            _ => {}
        }
        device.set(offset, value);
        if matches!(offset, CMDQ_BASE | EVENTQ_BASE) {
            let bytes = (if offset == CMDQ_BASE { 16 } else { 32 }) << (value & 31);
            assert_eq!(value & 0x000f_ffff_ffff_ffe0 & (bytes - 1), 0, "a queue is not aligned to its size");
        }
        match offset {
            CMDQ_PROD if device.behaviour.reads_per_command == 0 => self.consume(smmu, usize::MAX),
            GERRORN => self.consume(smmu, usize::MAX),
            _ => {}
        }
    }

    fn read_register(&mut self, at: u64) -> u64 {
        let (smmu, offset) = (((at - BASE) / SPACE) as usize, (at - BASE) % SPACE);
        if offset == CMDQ_CONS {
            let device = &mut self.smmus[smmu];
            device.reads += 1;
            let every = device.behaviour.reads_per_command;
            if every != 0 && device.reads.is_multiple_of(every) {
                self.consume(smmu, 1);
            }
        }
        let value = self.smmus[smmu].get(offset);
        if offset == EVENTQ_PROD
            && let Some(words) = self.smmus[smmu].behaviour.late_events.pop_front()
        {
            self.raise_event(smmu, words);
        }
        value
    }

    fn raise_event(&mut self, smmu: usize, words: [u64; 4]) {
        let device = &mut self.smmus[smmu];
        let (base, prod, cons) = (device.get(EVENTQ_BASE), device.get(EVENTQ_PROD), device.get(EVENTQ_CONS));
        let entries = 1u64 << (base & 31);
        let (index, taken) = (prod & 0xf_ffff, cons & 0xf_ffff);
        if index ^ taken == entries {
            if (prod ^ cons) >> 31 == 0 {
                device.set(EVENTQ_PROD, prod ^ 1 << 31);
            }
            return;
        }
        device.set(EVENTQ_PROD, (index + 1) & (entries * 2 - 1) | prod & 1 << 31);
        let at = (base & 0x000f_ffff_ffff_ffe0) + (index & (entries - 1)) * EVENT_BYTES;
        for (word, value) in (0..).zip(words) {
            self.memory.insert(at + word * 8, value);
        }
    }
}

impl Fake {
    pub fn new(smmus: usize) -> Self {
        let state = State {
            memory: BTreeMap::new(),
            smmus: (0..smmus).map(|_| FakeSmmu::new()).collect(),
            actions: Vec::new(),
            now_ns: 0,
        };
        Self(Mutex::new(state), Mutex::new(None))
    }

    pub fn bases(&self) -> Vec<PhysAddr> {
        (0..self.0.lock().unwrap().smmus.len() as u64).map(|index| PhysAddr(BASE + index * SPACE)).collect()
    }

    /// As [`Set::probe`](super::Set::probe) wants them.
    pub fn smmus(&self) -> impl Iterator<Item = (PhysAddr, Option<Part>)> + use<> {
        self.bases().into_iter().map(|base| (base, None))
    }

    pub fn with<R>(&self, smmu: usize, f: impl FnOnce(&mut FakeSmmu) -> R) -> R {
        f(&mut self.0.lock().unwrap().smmus[smmu])
    }

    /// Fetched commands from now on count from 1.
    pub fn fail_commands(&self, smmu: usize, illegal: &[u64]) {
        self.with(smmu, |device| {
            device.fetched = 0;
            device.behaviour.illegal = illegal.iter().copied().collect();
        });
    }

    /// As [`Fake::fail_commands`], for CMD_SYNCs that find an ATC that does not answer.
    pub fn fail_syncs(&self, smmu: usize, unanswered: impl Iterator<Item = u64>) {
        self.with(smmu, |device| {
            device.fetched = 0;
            device.behaviour.unanswered = unanswered.collect();
        });
    }

    pub fn take_actions(&self) -> Vec<Action> {
        std::mem::take(&mut self.0.lock().unwrap().actions)
    }

    /// The opcodes that an SMMU consumed since the last call.
    pub fn take_opcodes(&self, wanted: usize) -> Vec<u8> {
        let consumed = |action: &Action| match action {
            Action::Command { smmu, command } if *smmu == wanted => Some(Command(*command).opcode()),
            _ => None,
        };
        self.take_actions().iter().filter_map(consumed).collect()
    }

    /// The SMMU writes an event, or sets OVFLG if the queue is full.
    pub fn raise_event(&self, smmu: usize, words: [u64; 4]) {
        self.0.lock().unwrap().raise_event(smmu, words);
    }
}

impl Memory for Fake {
    fn read_u64(&self, address: PhysAddr) -> u64 {
        self.0.lock().unwrap().memory.get(&address.0).copied().unwrap_or(0)
    }

    fn write_u64(&self, address: PhysAddr, value: u64) {
        let mut state = self.0.lock().unwrap();
        state.memory.insert(address.0, value);
        state.actions.push(Action::Store { at: address.0, value });
        drop(state);
        if let Some(hook) = &*self.1.lock().unwrap() {
            hook(address.0);
        }
    }

    fn full_barrier(&self) {
        self.0.lock().unwrap().actions.push(Action::Barrier);
    }
}

impl Platform for Fake {
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

    fn wipe(&self, _range: PhysRange) {}

    fn read_register_u32(&self, address: PhysAddr) -> u32 {
        self.0.lock().unwrap().read_register(address.0) as u32
    }

    fn write_register_u32(&self, address: PhysAddr, value: u32) {
        self.0.lock().unwrap().write_register(address.0, value.into());
    }

    fn read_register_u64(&self, address: PhysAddr) -> u64 {
        self.0.lock().unwrap().read_register(address.0)
    }

    fn write_register_u64(&self, address: PhysAddr, value: u64) {
        self.0.lock().unwrap().write_register(address.0, value);
    }

    fn invalidate_host_stage2(&self, _range: PhysRange) {}

    fn now_ns(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        state.now_ns += 100_000;
        state.now_ns
    }

    fn relax(&self) {}

    fn heap_add(&self, _heap: Heap, _range: PhysRange) {}

    fn heap_take(&self, _heap: Heap, _order: u8) -> Option<PhysAddr> {
        None
    }

    fn heap_give(&self, _heap: Heap, _run: PhysAddr, _order: u8) {}
}

/// A pool that gives aligned runs until `left` pages are gone.
pub struct FakePages {
    pub next: u64,
    pub left: u64,
}

impl FakePages {
    pub fn new() -> Self {
        Self { next: POOL, left: 1000 }
    }
}

impl Pages for FakePages {
    fn take_run(&mut self, order: u8) -> Option<PhysAddr> {
        let bytes = 4096u64 << order;
        self.left = self.left.checked_sub(1 << order)?;
        let run = self.next.next_multiple_of(bytes);
        self.next = run + bytes;
        Some(PhysAddr(run))
    }

    fn give_run(&mut self, _: PhysAddr, order: u8) {
        self.left += 1 << order;
    }
}
