//! One SMMUv3 (IHI 0070), as adverse as the architecture allows: nothing that is cached goes away before a completed
//! CMD_SYNC says so, and everything that may be cached is.

pub mod ats;
pub mod cd;
pub mod combined;
pub mod command;
pub mod config;
pub mod context;
pub mod event;
pub mod interrupt;
pub mod needless;
pub mod queue;
pub mod registers;
pub mod ste;
pub mod stream;
pub mod tlb;
pub mod tlbi;
pub mod translate;

use super::hash::Map;
use super::memory::PhysMemory;
use super::violation::Violations;
use config::SmmuConfig;
use std::collections::{HashMap, VecDeque};

/// What an SMMU reaches outside itself while it works.
pub struct Bus<'a> {
    /// Physical memory.
    pub memory: &'a mut PhysMemory,
    /// Where broken rules are recorded.
    pub violations: &'a mut Violations,
    /// The time.
    pub now_ns: u64,
}

/// What goes wrong with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is consumed without any effect: hardware that lies. Nothing can notice except a check of the caches.
    Skip,
    /// It is refused with CERROR_ILL, once: whatever replaces it is consumed.
    Illegal,
    /// It is refused with CERROR_ILL, and so is every command after it.
    IllegalForever,
    /// Reading it fails with CERROR_ABT, once.
    Abort,
    /// The queue stops without an error.
    Stuck,
    /// It, and what follows, is looked at after so many nanoseconds.
    Late(u64),
    /// When it is looked at, these bits of GERROR become active, and then it is consumed. With CMDQ_ERR the queue stops before it, and CMDQ_CONS.ERR
    /// says that there was no error.
    Raise(u32),
    /// The device that the next CMD_ATC_INV is for does not answer it: the SYNC after it fails with CERROR_ATC_INV_SYNC, and the ATC
    /// keeps what it has. Armed for another command, it waits for one.
    NoAnswer,
}

/// A transaction that was translated and has not reached memory yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Where it goes.
    pub address: u64,
    /// What it writes; `None` for a read.
    pub value: Option<u64>,
    /// When it gets there.
    pub lands_ns: u64,
}

/// One SMMU.
#[derive(Debug)]
pub struct Smmu {
    /// Index in the machine, for messages.
    pub index: usize,
    /// Physical address of register page 0.
    pub base: u64,
    /// What it is.
    pub config: SmmuConfig,
    /// Registers.
    pub registers: registers::Registers,
    /// Translations and table pointers that it caches.
    pub tlb: tlb::Tlb,
    /// Stream table entries and context descriptors that it caches.
    pub configuration: stream::ConfigurationCache,
    /// The ATCs of the devices behind it.
    pub atc: ats::Atc,
    /// Invalidations that no cache could need, in words (see [`needless`]).
    pub needless: Vec<String>,
    /// Streams that have a device: what a greedy SMMU reads ahead.
    pub streams: Vec<u32>,
    /// Faults to come: how many commands from now, and what.
    pub faults: VecDeque<(u64, Fault)>,
    /// Commands consumed since reset.
    pub commands: u64,
    /// Commands consumed by opcode.
    pub counts: HashMap<u8, u64>,
    /// The last commands consumed, newest last.
    pub history: VecDeque<[u64; 2]>,
    /// Transactions under way.
    pub in_flight: Vec<InFlight>,
    /// Event records written, whole.
    pub events: Vec<[u64; 4]>,
    /// Wired interrupts so far.
    pub wired: Vec<interrupt::Source>,
    /// How often each identification register was read, by offset.
    pub id_reads: HashMap<u64, u64>,
    /// Bits of identification registers, by offset, that are others from the second read on.
    pub lies: HashMap<u64, u32>,
    pub(crate) stuck: bool,
    pub(crate) poisoned: Option<(u32, [u64; 2])>,
    pub(crate) doomed_forever: bool,
    pub(crate) next_command_ns: u64,
    pub(crate) sync_due_ns: Option<u64>,
    pub(crate) ledger: needless::Ledger,
    /// Where STEs were read: address to StreamID.
    pub(crate) ste_places: Map<u64, u32>,
    /// Table addresses of walks, for the check of stores: page number to (config, input address).
    pub(crate) walked: Map<u64, Vec<(super::stage2::Stage2Config, u64)>>,
}

impl Smmu {
    /// An SMMU after reset: everything off and bypassed (GBPA.ABORT = 0).
    pub fn new(index: usize, base: u64, config: SmmuConfig, streams: Vec<u32>) -> Self {
        Self {
            index,
            base,
            config,
            registers: registers::Registers::default(),
            tlb: tlb::Tlb::default(),
            configuration: stream::ConfigurationCache::default(),
            atc: ats::Atc::default(),
            needless: Vec::new(),
            streams,
            faults: VecDeque::new(),
            commands: 0,
            counts: HashMap::new(),
            history: VecDeque::new(),
            in_flight: Vec::new(),
            events: Vec::new(),
            wired: Vec::new(),
            id_reads: HashMap::new(),
            lies: HashMap::new(),
            stuck: false,
            poisoned: None,
            doomed_forever: false,
            next_command_ns: 0,
            sync_due_ns: None,
            ledger: needless::Ledger::default(),
            ste_places: Map::default(),
            walked: Map::default(),
        }
    }

    /// An SMMU with the same registers and nothing in its caches, which records no events: what it does is what memory says now.
    pub(crate) fn without_caches(&self) -> Self {
        let mut probe = Self::new(self.index, self.base, self.config.lazy(), Vec::new());
        probe.registers = self.registers.clone();
        probe.registers.cr0ack &= !registers::EVENTQEN;
        probe
    }

    /// Whether the address is one of its registers (two pages of 64 KiB, IHI 0070, 6.1).
    pub fn owns(&self, address: u64) -> bool {
        (self.base..self.base + 0x2_0000).contains(&address)
    }

    /// Lets it do what is due by now: transactions that land, register updates, commands.
    pub fn step(&mut self, bus: &mut Bus) {
        if !self.in_flight.is_empty() {
            let due: Vec<InFlight> =
                self.in_flight.iter().copied().filter(|t| t.lands_ns <= bus.now_ns).collect();
            self.in_flight.retain(|t| t.lands_ns > bus.now_ns);
            for transaction in due {
                if let Some(value) = transaction.value {
                    bus.memory.write(transaction.address, value);
                }
            }
        }
        self.step_registers(bus);
        self.step_commands(bus);
    }

    /// Arms a fault for the command that is consumed after `after` others.
    pub fn arm(&mut self, after: u64, fault: Fault) {
        self.faults.push_back((self.commands + after, fault));
    }

    /// Makes bits of GERROR active, but for those that are (6.3.18).
    pub fn raise(&mut self, bus: &mut Bus, bits: u32) {
        let active = self.registers.gerror ^ self.registers.gerrorn;
        self.registers.gerror ^= bits & !active;
        if bits & !active != 0 {
            self.interrupt(bus, interrupt::Source::Error);
        }
    }

    /// Commands of this opcode consumed since reset.
    pub fn count(&self, opcode: u8) -> u64 {
        self.counts.get(&opcode).copied().unwrap_or(0)
    }

    pub(crate) fn violation(&self, bus: &mut Bus, text: impl std::fmt::Display) {
        bus.violations.record(format!("SMMU {}: {text}", self.index));
    }
}
