//! An SMMU that takes commands from its queue when it likes, and CPUs that see memory as loom allows.

use std::sync::{Arc, Mutex, MutexGuard};

use hyp_loom::platform::{Heap, Platform};
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::command::Command;
use smmuv3::memory::Memory;
use smmuv3::registers::{CMDQ_CONS_OFFSET, CMDQ_PROD_OFFSET, GERROR_OFFSET, GERRORN_OFFSET};

/// Where the queue is.
pub const QUEUE: PhysAddr = PhysAddr(0x1000);
/// Where the registers are.
pub const REGISTERS: PhysAddr = PhysAddr(0x10_0000);
/// CMDQ_CONS.ERR of CERROR_ILL (IHI 0070, 6.3.28), in place.
const CERROR_ILL: u32 = 1 << 24;
/// What is in memory that nobody has written.
const POISON: u64 = 0xdead_dead_dead_dead;

/// What is left out, or done in the wrong order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    None,
    /// No full barrier between the commands and CMDQ_PROD.
    PublishBarrier,
    /// CMDQ_PROD first, then the commands.
    ProdFirst,
    /// Each CPU has positions, and a lock, of its own.
    OwnPositions,
    /// The SMMU has consumed everything, it says.
    SaysAllIsConsumed,
    /// No full barrier between the command that replaces a refused one and the acknowledgement.
    RecoverBarrier,
    /// A refused command is acknowledged and left where it is.
    NotReplaced,
}

/// What a CPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Posting,
    Waiting,
}

/// What is known outside of the memory model: it orders nothing, and loom does not switch threads at it.
#[derive(Default)]
pub struct Truth {
    /// Commands carried out, in order.
    pub done: Vec<Command>,
}

/// The SMMU with its queue and registers.
pub struct Machine {
    pub mistake: Mistake,
    /// log2 of the entries.
    pub log2: u8,
    /// Word 0 of each command. Word 1 is 0 in all that are posted here, and is left out.
    words: Vec<AtomicU64>,
    prod: AtomicU32,
    cons: AtomicU32,
    gerror: AtomicU32,
    gerrorn: AtomicU32,
    /// Is refused once.
    refused: Option<Command>,
    hardware: loom::sync::Mutex<Hardware>,
    truth: Mutex<Truth>,
}

impl Machine {
    pub fn new(mistake: Mistake, log2: u8, refused: Option<Command>) -> Arc<Self> {
        Arc::new(Self {
            mistake,
            log2,
            words: (0..1u64 << log2).map(|_| AtomicU64::new(POISON)).collect(),
            prod: AtomicU32::new(0),
            cons: AtomicU32::new(0),
            gerror: AtomicU32::new(0),
            gerrorn: AtomicU32::new(0),
            refused,
            hardware: loom::sync::Mutex::new(Hardware::default()),
            truth: Mutex::default(),
        })
    }

    pub fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap()
    }

    pub fn refuses(&self, command: Command) -> bool {
        self.refused == Some(command)
    }

    fn store(&self, address: PhysAddr, value: u64) {
        let offset = address.0 - QUEUE.0;
        if offset.is_multiple_of(16) {
            self.words[(offset / 16) as usize].store(value, Ordering::Relaxed);
        } else {
            assert_eq!(value, 0);
        }
    }

    /// The SMMU looks at its queue, and carries out what it finds there: at any time, and each time that a CPU waits.
    pub fn work(&self) {
        let mask = (2u32 << self.log2) - 1;
        let mut hardware = self.hardware.lock().unwrap();
        if hardware.has_error && self.gerrorn.load(Ordering::Relaxed) != 1 {
            return;
        }
        let prod = self.prod.load(Ordering::Relaxed);
        // It fetches what was there when it saw PROD and GERRORN, or later.
        fence(Ordering::Acquire);
        while hardware.at != prod {
            let slot = (hardware.at & (mask >> 1)) as usize;
            let command = Command([self.words[slot].load(Ordering::Relaxed), 0]);
            assert_ne!(command.0[0], POISON, "the SMMU fetches what nobody wrote");
            if self.refuses(command) {
                assert!(!hardware.has_error, "the SMMU finds the refused command again");
                hardware.has_error = true;
                self.cons.store(hardware.at | CERROR_ILL, Ordering::Relaxed);
                self.gerror.store(1, Ordering::Release);
                return;
            }
            self.truth().done.push(command);
            hardware.at = (hardware.at + 1) & mask;
            self.cons.store(hardware.at, Ordering::Release);
        }
    }
}

/// What an SMMU knows, who looks at one time after the other.
#[derive(Default)]
struct Hardware {
    /// CMDQ_CONS.RD.
    at: u32,
    /// It has refused the command that it refuses.
    has_error: bool,
}

/// The machine as one CPU sees it.
pub struct Cpu {
    pub machine: Arc<Machine>,
    step: Mutex<Step>,
    /// Stores that a mistake keeps back.
    late: Mutex<Vec<(PhysAddr, u64)>>,
}

impl Cpu {
    pub fn new(machine: &Arc<Machine>) -> Self {
        Self { machine: machine.clone(), step: Mutex::new(Step::Posting), late: Mutex::default() }
    }

    fn step(&self) -> Step {
        *self.step.lock().unwrap()
    }

    pub fn begin(&self, step: Step) {
        *self.step.lock().unwrap() = step;
    }
}

impl Memory for Cpu {
    fn read_u64(&self, address: PhysAddr) -> u64 {
        panic!("EL2 reads its queue at {address}")
    }

    fn write_u64(&self, address: PhysAddr, value: u64) {
        match self.machine.mistake {
            Mistake::ProdFirst => self.late.lock().unwrap().push((address, value)),
            Mistake::NotReplaced if self.step() == Step::Waiting => {}
            _ => self.machine.store(address, value),
        }
    }

    fn full_barrier(&self) {
        let left_out = match self.step() {
            Step::Posting => Mistake::PublishBarrier,
            Step::Waiting => Mistake::RecoverBarrier,
        };
        if self.machine.mistake != left_out {
            fence(Ordering::SeqCst);
        }
    }
}

impl Platform for Cpu {
    fn cpu(&self) -> u16 {
        0
    }

    fn cpus(&self) -> u16 {
        2
    }

    fn read_register_u32(&self, address: PhysAddr) -> u32 {
        let machine = &self.machine;
        match address.0 - REGISTERS.0 {
            CMDQ_CONS_OFFSET if machine.mistake == Mistake::SaysAllIsConsumed => {
                machine.prod.load(Ordering::Relaxed)
            }
            CMDQ_CONS_OFFSET => machine.cons.load(Ordering::Acquire),
            GERROR_OFFSET => machine.gerror.load(Ordering::Acquire),
            GERRORN_OFFSET => machine.gerrorn.load(Ordering::Relaxed),
            other => panic!("a register at {other:#x} is read: the SMMU is shut down"),
        }
    }

    fn write_register_u32(&self, address: PhysAddr, value: u32) {
        let machine = &self.machine;
        match address.0 - REGISTERS.0 {
            CMDQ_PROD_OFFSET => {
                machine.prod.store(value, Ordering::Relaxed);
                for (address, value) in self.late.lock().unwrap().drain(..) {
                    machine.store(address, value);
                }
            }
            GERRORN_OFFSET => machine.gerrorn.store(value, Ordering::Relaxed),
            other => panic!("the register at {other:#x} is written"),
        }
    }

    fn now_ns(&self) -> u64 {
        0
    }

    fn relax(&self) {
        self.machine.work();
    }

    fn wipe(&self, _: PhysRange) {
        unreachable!("no memory changes hands");
    }

    fn read_host_u64(&self, _: PhysAddr) -> u64 {
        unreachable!("nothing is the host's");
    }

    fn write_host_u64(&self, _: PhysAddr, _: u64) {
        unreachable!("nothing is the host's");
    }

    fn write_host_u32(&self, _: PhysAddr, _: u32) {
        unreachable!("nothing is the host's");
    }

    fn read_register_u64(&self, address: PhysAddr) -> u64 {
        panic!("64 bits at {address} are read")
    }

    fn write_register_u64(&self, address: PhysAddr, _: u64) {
        panic!("64 bits at {address} are written")
    }

    fn invalidate_host_stage2(&self, _: PhysRange) {
        unreachable!("no stage 2 changes");
    }

    fn heap_add(&self, _: Heap, _: PhysRange) {
        unreachable!("no memory is given");
    }

    fn heap_take(&self, _: Heap, _: u8) -> Option<PhysAddr> {
        unreachable!("no memory is taken");
    }

    fn heap_give(&self, _: Heap, _: PhysAddr, _: u8) {
        unreachable!("no memory is given");
    }
}
