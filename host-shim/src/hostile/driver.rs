//! What the driver of an emulated SMMU does, right and wrong (IHI 0070, 6.3 and chapter 5).

use super::calls;
use super::knowledge::Knowledge;
use super::places::Places;
use super::step::Choices;
use crate::host::{Abort, Host};
use smmuv3::command::opcode;
use smmuv3::registers::{
    CMDQ_BASE_OFFSET, CMDQ_CONS_OFFSET, CMDQ_PROD_OFFSET, CR0_OFFSET, CR0ACK_OFFSET, CR1_OFFSET, CR2_OFFSET,
    EVENTQ_BASE_OFFSET, EVENTQ_CONS_OFFSET, EVENTQ_IRQ_CFG0_OFFSET, EVENTQ_PROD_OFFSET, GBPA_OFFSET,
    GERROR_IRQ_CFG0_OFFSET, GERROR_OFFSET, GERRORN_OFFSET, IRQ_CTRL_OFFSET, SPACE_BYTES,
    STRTAB_BASE_CFG_OFFSET, STRTAB_BASE_OFFSET,
};

/// CMD_SYNC.
const SYNC: [u64; 2] = [opcode::SYNC as u64, 0];
/// CR0: CMDQEN, EVENTQEN, SMMUEN.
const ON: u64 = 1 << 3 | 1 << 2 | 1;
/// log2 of the entries of a command queue, at the most: a page of 4 KiB.
const COMMANDS_LOG2: u64 = 8;
/// The same of an event queue.
const EVENTS_LOG2: u64 = 7;

/// Registers that a driver writes.
const WRITTEN: [u64; 20] = [
    CR0_OFFSET,
    CR0_OFFSET,
    CR0ACK_OFFSET,
    CR1_OFFSET,
    CR2_OFFSET,
    GBPA_OFFSET,
    IRQ_CTRL_OFFSET,
    GERROR_OFFSET,
    GERRORN_OFFSET,
    GERROR_IRQ_CFG0_OFFSET,
    STRTAB_BASE_OFFSET,
    STRTAB_BASE_CFG_OFFSET,
    CMDQ_BASE_OFFSET,
    CMDQ_PROD_OFFSET,
    CMDQ_CONS_OFFSET,
    EVENTQ_BASE_OFFSET,
    EVENTQ_PROD_OFFSET,
    EVENTQ_CONS_OFFSET,
    EVENTQ_IRQ_CFG0_OFFSET,
    EVENTQ_IRQ_CFG0_OFFSET + 4,
];

/// One thing that a driver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverAction {
    /// The SMMU.
    pub smmu: usize,
    /// What.
    pub what: What,
}

/// What a driver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It resets the SMMU and turns it on, with queues of 2 to these powers.
    Reset {
        /// LOG2SIZE of the command queue.
        commands_log2: u64,
        /// LOG2SIZE of the event queue.
        events_log2: u64,
        /// STRTAB_BASE_CFG.
        format: u64,
    },
    /// Words 0 and 1 of the STE of a stream, where it is in the table that [`What::Reset`] sets up.
    Entry {
        /// The StreamID.
        stream: u64,
        /// The words.
        words: [u64; 2],
        /// CFGI_STE and CMD_SYNC follow.
        tell: bool,
    },
    /// Two commands.
    Send([[u64; 2]; 2]),
    /// CMDQ_PROD is written, whatever is in the queue.
    Produce(u64),
    /// The command that stopped the queue becomes a CMD_SYNC, and errors are acknowledged.
    Acknowledge,
    /// The event queue is read to its end.
    Events,
    /// A load of a register.
    Load {
        /// Offset, a multiple of the bytes.
        offset: u64,
        /// 1, 2, 4 or 8.
        bytes: u8,
    },
    /// A store to a register.
    Store {
        /// Offset, a multiple of the bytes.
        offset: u64,
        /// 1, 2, 4 or 8.
        bytes: u8,
        /// In the low bytes.
        value: u64,
    },
}

/// Anything that a driver does.
pub fn any(choices: &mut Choices<'_>, known: &Knowledge) -> DriverAction {
    let smmu = known.smmu(choices);
    let what = match choices.below(16) {
        0 => What::Reset {
            commands_log2: if choices.seldom(64) { choices.below(32) } else { COMMANDS_LOG2 },
            events_log2: if choices.seldom(64) { choices.below(32) } else { EVENTS_LOG2 },
            format: match choices.below(8) {
                0 => choices.half() | choices.below(4) << 16,
                // Linear.
                1 => choices.below(9),
                // LOG2SIZE 16, SPLIT 8, two levels.
                _ => 1 << 16 | 8 << 6 | 16,
            },
        },
        1..4 => What::Entry {
            stream: known.stream(choices, smmu),
            tell: choices.below(4) != 0,
            words: [0, 1].map(|word| calls::entry_word(choices, known, word)),
        },
        4..9 => What::Send(
            [(); 2].map(|()| calls::command(choices, known, |choices| known.stream(choices, smmu))),
        ),
        9 => What::Produce(choices.word() & if choices.seldom(32) { u64::MAX } else { 0x1ff }),
        10 => What::Acknowledge,
        11 => What::Events,
        12 => {
            let (offset, bytes) = register(choices);
            What::Load { offset, bytes }
        }
        _ => {
            let (offset, bytes) = register(choices);
            let value = match choices.below(8) {
                0..3 => choices.below(32),
                3 => ON,
                4 | 5 => known.page(choices) | choices.below(20),
                6 => 1 << 16 | choices.below(11) << 6 | choices.below(33),
                _ => choices.word(),
            };
            What::Store { offset, bytes, value }
        }
    };
    DriverAction { smmu, what }
}

fn register(choices: &mut Choices<'_>) -> (u64, u8) {
    let bytes = choices.of(&[4, 4, 4, 8, 8, 1, 2]).unwrap_or(4);
    let named = choices.of(&WRITTEN).unwrap_or(0);
    let offset = if choices.seldom(64) {
        (choices.half() | choices.below(2) << 16) % SPACE_BYTES
    } else {
        named + choices.below(8)
    };
    (offset & !(u64::from(bytes) - 1), bytes)
}

/// An emulated SMMU and what its driver keeps.
struct Driver<'a, H: ?Sized> {
    host: &'a H,
    places: &'a Places,
    smmu: usize,
    base: u64,
}

/// Does what a driver does; what the last load answered.
///
/// # Errors
/// [`Abort`] when a page, or the SMMU, is not the host's. What comes after it is not done, as in a driver that crashes.
pub fn perform<H: Host + ?Sized>(
    host: &H,
    places: &Places,
    base: u64,
    action: &DriverAction,
) -> Result<u64, Abort> {
    let driver = Driver { host, places, smmu: action.smmu, base };
    match action.what {
        What::Reset { commands_log2, events_log2, format } => {
            driver.reset(commands_log2, events_log2, format)?;
        }
        What::Entry { stream, words, tell } => driver.entry(stream, words, tell)?,
        What::Send(commands) => driver.send(&commands)?,
        What::Produce(prod) => driver.store(CMDQ_PROD_OFFSET, prod)?,
        What::Acknowledge => driver.acknowledge()?,
        What::Events => {
            let prod = driver.load(EVENTQ_PROD_OFFSET)?;
            driver.store(EVENTQ_CONS_OFFSET, prod)?;
            return Ok(prod);
        }
        What::Load { offset, bytes } => return host.cpu_load(base + offset, bytes),
        What::Store { offset, bytes, value } => host.cpu_store(base + offset, bytes, value)?,
    }
    Ok(0)
}

impl<H: Host + ?Sized> Driver<'_, H> {
    fn load(&self, offset: u64) -> Result<u64, Abort> {
        self.host.cpu_load(self.base + offset, 4)
    }

    fn store(&self, offset: u64, value: u64) -> Result<(), Abort> {
        self.host.cpu_store(self.base + offset, 4, value)
    }

    fn store_word(&self, offset: u64, value: u64) -> Result<(), Abort> {
        self.host.cpu_store(self.base + offset, 8, value)
    }

    fn reset(&self, commands_log2: u64, events_log2: u64, format: u64) -> Result<(), Abort> {
        let places = self.places;
        // Every level-1 descriptor leads to the one table of 256 entries: L2Ptr, Span = 9.
        for n in 0..256 {
            let descriptor = places.stream_entries(self.smmu) | 9;
            self.host.cpu_store(places.stream_table(self.smmu) + 8 * n, 8, descriptor)?;
        }
        self.store(CR0_OFFSET, 0)?;
        self.store_word(STRTAB_BASE_OFFSET, places.stream_table(self.smmu))?;
        self.store(STRTAB_BASE_CFG_OFFSET, format)?;
        self.store_word(CMDQ_BASE_OFFSET, places.command_queue(self.smmu) | commands_log2)?;
        self.store(CMDQ_PROD_OFFSET, 0)?;
        self.store(CMDQ_CONS_OFFSET, 0)?;
        self.store_word(EVENTQ_BASE_OFFSET, places.event_queue(self.smmu) | events_log2)?;
        self.store(EVENTQ_PROD_OFFSET, 0)?;
        self.store(EVENTQ_CONS_OFFSET, 0)?;
        let errors = self.load(GERROR_OFFSET)?;
        self.store(GERRORN_OFFSET, errors)?;
        self.store(IRQ_CTRL_OFFSET, 0b101)?;
        self.store(CR0_OFFSET, ON)
    }

    fn entry(&self, stream: u64, [word0, word1]: [u64; 2], tell: bool) -> Result<(), Abort> {
        let at = self.places.stream_entries(self.smmu) + 64 * (stream & 0xff);
        self.host.cpu_store(at + 8, 8, word1)?;
        self.host.cpu_store(at, 8, word0)?;
        if tell { self.send(&[[u64::from(opcode::CFGI_STE) | stream << 32, 1], SYNC]) } else { Ok(()) }
    }

    /// The slot of a command in the queue that CMDQ_BASE says, if it is one that [`What::Reset`] made.
    fn slot(&self, index: u64) -> u64 {
        self.places.command_queue(self.smmu) + 16 * (index & ((1 << COMMANDS_LOG2) - 1))
    }

    fn send(&self, commands: &[[u64; 2]]) -> Result<(), Abort> {
        let mut prod = self.load(CMDQ_PROD_OFFSET)?;
        for [low, high] in commands {
            self.host.cpu_store(self.slot(prod), 8, *low)?;
            self.host.cpu_store(self.slot(prod) + 8, 8, *high)?;
            prod = (prod + 1) & ((2 << COMMANDS_LOG2) - 1);
        }
        self.store(CMDQ_PROD_OFFSET, prod)
    }

    fn acknowledge(&self) -> Result<(), Abort> {
        let cons = self.load(CMDQ_CONS_OFFSET)?;
        self.host.cpu_store(self.slot(cons), 8, SYNC[0])?;
        self.host.cpu_store(self.slot(cons) + 8, 8, SYNC[1])?;
        let errors = self.load(GERROR_OFFSET)?;
        self.store(GERRORN_OFFSET, errors)
    }
}
