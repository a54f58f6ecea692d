//! What whoever drives the interrupt controller does, right and wrong: the ITS (IHI 0069, 5.3 and 12.19), and the LPIs of Redistributors (12.11).

use super::knowledge::Knowledge;
use super::places::Places;
use super::step::Choices;
use crate::devices::gic::its::COMMAND_BYTES;
use crate::devices::gic::{its, lpis};
use crate::host::{Abort, Host, SideDoors};

/// The registers of an ITS that are written.
const ITS_WRITTEN: [u64; 7] =
    [its::CTLR, its::CBASER, its::CWRITER, its::CREADR, its::BASER, its::BASER + 8, its::BASER + 0x38];
/// Bytes of the control frame.
const ITS_BYTES: u64 = 0x1_0000;
/// The queue's bytes.
const QUEUE_BYTES: u64 = 0x1000;
/// The registers of a Redistributor that are written: its LPIs', and GICR_INVLPIR and GICR_INVALLR.
const LPI_WRITTEN: [u64; 5] = [lpis::CTLR, lpis::PROPBASER, lpis::PENDBASER, 0xa0, 0xb0];
/// RD_base and SGI_base of a Redistributor without virtual LPIs.
const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
const RD_BASE_BYTES: u64 = 0x1_0000;
/// The first LPI.
const FIRST_LPI: u64 = 8192;

/// Opcodes of commands (IHI 0069, 5.3), and one that there is not.
const OPCODES: [u64; 15] = [
    0x08, // MAPD
    0x08, 0x09, // MAPC
    0x0a, // MAPTI
    0x0a, 0x0b, // MAPI
    0x01, // MOVI
    0x03, // INT
    0x04, // CLEAR
    0x05, // SYNC
    0x0c, // INV
    0x0d, // INVALL
    0x0e, // MOVALL
    0x0f, // DISCARD
    0x2f,
];

/// One thing that is done to the interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptAction {
    /// The ITS is turned off, gets tables and a queue, and is turned on.
    Reset,
    /// Two commands.
    Send([[u64; 4]; 2]),
    /// A Redistributor gets tables for LPIs and is told to use them, or is told to stop.
    Lpis {
        /// Which, from the first CPU's.
        redistributor: u64,
        /// Where the configuration table is.
        configuration: u64,
        /// Where the pending table is.
        pending: u64,
        /// Whether LPIs are to be on.
        on: bool,
    },
    /// An access to a register.
    Access {
        /// That of the ITS, or of a Redistributor, counted from the first CPU's.
        frame: Option<u64>,
        /// A multiple of the bytes.
        offset: u64,
        /// 1, 2, 4 or 8.
        bytes: u8,
        /// What is stored; `None` of a load.
        value: Option<u64>,
    },
}

/// Anything that is done to it.
pub fn any(choices: &mut Choices<'_>, known: &Knowledge) -> InterruptAction {
    let places = known.places();
    let kind = choices.below(16);
    match kind {
        0 | 1 => InterruptAction::Reset,
        2..7 => InterruptAction::Send([(); 2].map(|()| command(choices, known))),
        7..9 => {
            let redistributor = choices.below(4);
            let (mut configuration, mut pending) = places.lpi_tables(redistributor);
            if choices.seldom(64) {
                configuration = known.page(choices);
            }
            if choices.seldom(64) {
                pending = known.page(choices);
            }
            InterruptAction::Lpis { redistributor, configuration, pending, on: choices.below(4) != 0 }
        }
        _ => {
            let of_its = kind < 13;
            let (registers, size): (&[u64], u64) =
                if of_its { (&ITS_WRITTEN, ITS_BYTES) } else { (&LPI_WRITTEN, RD_BASE_BYTES) };
            let frame = (!of_its).then(|| choices.below(4));
            let bytes = choices.of(&[4, 8, 8, 1, 2]).unwrap_or(4);
            let named = choices.of(registers).unwrap_or(0) + choices.below(8);
            let offset = if choices.seldom(64) { choices.half() % size } else { named };
            let value = match choices.below(8) {
                0 | 1 => None,
                2 => Some(choices.below(4)),
                3 => Some(COMMAND_BYTES * choices.below(QUEUE_BYTES / COMMAND_BYTES)),
                4..7 => Some(known.page(choices) | choices.below(16) | choices.below(2) << 63),
                _ => Some(choices.word()),
            };
            InterruptAction::Access { frame, offset: offset & !(u64::from(bytes) - 1), bytes, value }
        }
    }
}

/// A command for a few devices, events and collections, mostly.
pub(super) fn command(choices: &mut Choices<'_>, known: &Knowledge) -> [u64; 4] {
    let opcode = choices.of(&OPCODES).unwrap_or(0);
    let smmu = known.smmu(choices);
    let device = known.stream(choices, smmu) & 0xffff_ffff;
    let (event, collection, valid) = (choices.below(8), choices.below(4), choices.below(4) != 0);
    let interrupt = if choices.seldom(16) { choices.half() } else { FIRST_LPI + choices.below(64) };
    let place = match opcode {
        // An ITT.
        0x08 if choices.seldom(48) => known.page(choices) & 0x000f_ffff_ffff_ff00,
        0x08 => known.places().translation_table(device),
        // RDbase, as a processor's number.
        0x09 | 0x0e => choices.below(4) << 16,
        _ => 0,
    };
    let second = if opcode == 0x08 { choices.below(8) } else { event | interrupt << 32 };
    let mut words = [opcode | device << 32, second, collection | place | u64::from(valid) << 63, 0];
    if choices.seldom(24) {
        let word = choices.below(4) as usize;
        if let Some(word) = words.get_mut(word) {
            *word ^= 1 << choices.below(64);
        }
    }
    words
}

/// Does it; what the last load answered.
///
/// # Errors
/// [`Abort`] when a page, or the frame, is not the host's. What comes after it is not done.
pub fn perform<H: Host + ?Sized>(
    host: &H,
    places: &Places,
    doors: &SideDoors,
    action: &InterruptAction,
) -> Result<u64, Abort> {
    let frame = |register: u64| doors.its + register;
    match *action {
        InterruptAction::Reset => {
            host.cpu_store(frame(its::CTLR), 4, 0)?;
            for (n, table) in (0..2).zip(places.its_tables()) {
                host.cpu_store(frame(its::BASER + 8 * n), 8, its::VALID | table)?;
            }
            host.cpu_store(frame(its::CBASER), 8, its::VALID | places.its_queue())?;
            host.cpu_store(frame(its::CWRITER), 8, 0)?;
            host.cpu_store(frame(its::CTLR), 4, its::ENABLED)?;
        }
        InterruptAction::Send(commands) => {
            let mut written = host.cpu_load(frame(its::CWRITER), 8)? & !(COMMAND_BYTES - 1);
            for command in commands {
                let place = places.its_queue() + written % QUEUE_BYTES;
                for (word, at) in command.into_iter().zip((place..).step_by(8)) {
                    host.cpu_store(at, 8, word)?;
                }
                written = (written + COMMAND_BYTES) % QUEUE_BYTES;
            }
            host.cpu_store(frame(its::CWRITER), 8, written)?;
        }
        InterruptAction::Lpis { redistributor, configuration, pending, on } => {
            let frame = doors.redistributor + redistributor * REDISTRIBUTOR_BYTES;
            if on {
                host.cpu_store(frame + lpis::PROPBASER, 8, configuration | lpis::ID_BITS)?;
                host.cpu_store(frame + lpis::PENDBASER, 8, pending | lpis::ALL_ZEROS)?;
            }
            let enable = u64::from(lpis::ENABLE);
            let control = host.cpu_load(frame + lpis::CTLR, 4)?;
            let control = if on { control | enable } else { control & !enable };
            host.cpu_store(frame + lpis::CTLR, 4, control)?;
        }
        InterruptAction::Access { frame, offset, bytes, value } => {
            let base = frame.map_or(doors.its, |frame| doors.redistributor + frame * REDISTRIBUTOR_BYTES);
            match value {
                None => return host.cpu_load(base + offset, bytes),
                Some(value) => host.cpu_store(base + offset, bytes, value)?,
            }
        }
    }
    Ok(0)
}
