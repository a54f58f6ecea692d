//! What the owner of a virtual SMMU may send (IHI 0070, chapter 4 and 4.3.7).
//!
//! The owner writes commands as for a stage-1 SMMU of its own: its StreamIDs are virtual and it has one VMID, which it
//! does not know. A command that is on the allow list here is made anew from the fields that were checked, with the
//! VMID and the StreamID that the SMMU knows it by. No bit of the owner's command is passed on besides.

use core::fmt;

use crate::command::{ATC_INV_EVERYTHING, Command, LeafHints, TlbiRange, field, opcode};
use crate::features::Features;
use crate::ste::Ats;

/// What a virtual SMMU says in its ID registers that it can do, as far as it makes commands legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VsmmuLimits {
    /// IDR3.RIL: TLBI commands may have a range and a level.
    pub range_invalidation: bool,
    /// IDR0.ATS.
    pub ats: bool,
    /// IDR1.SSIDSIZE.
    pub substream_bits: u8,
    /// Width of an ASID: 8 or 16 (IDR0.ASID16).
    pub asid_bits: u8,
}

impl VsmmuLimits {
    /// The limits of a virtual SMMU on one with `features` whose streams are granted `ats`.
    pub const fn new(features: &Features, ats: Ats) -> Self {
        Self {
            range_invalidation: features.range_invalidation,
            ats: features.ats && !matches!(ats, Ats::Off),
            substream_bits: features.substream_bits,
            asid_bits: features.asid_bits,
        }
    }
}

/// Why a command was refused: a virtual SMMU stops at it with CERROR_ILL. It is the owner's fault; values are given
/// as the owner wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Illegal {
    /// The opcode is reserved, or of a command that a stage-1 SMMU without stalls, PRI and StreamWorld EL2 has not.
    Opcode(u8),
    /// CFGI_STE and CFGI_STE_RANGE of an owner without a stream table: attach invalidates what it must.
    StreamTable,
    /// Bits are set that the command does not have.
    Reserved {
        /// 0 or 1.
        word: u8,
        /// Those bits, where they stand in the word.
        bits: u64,
    },
    /// The virtual SMMU has no such stream.
    Stream(u32),
    /// The SubstreamID is too large, or there are none.
    Substream(u32),
    /// The ASID is too large.
    Asid(u16),
    /// NUM, SCALE, TTL or TG without range invalidation.
    NoRangeInvalidation,
    /// A reserved combination of NUM, SCALE, TTL and TG.
    ReservedRange,
    /// ATC_INV without ATS.
    NoAts,
    /// Size of ATC_INV is above 52.
    AtcSize(u8),
    /// CS of SYNC is reserved, or is not SIG_NONE and the virtual SMMU sends no MSI and no wake-up event.
    CompletionSignal(u8),
}

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Opcode(opcode) => write!(f, "opcode {opcode:#04x} is not the owner's to send"),
            Self::StreamTable => f.write_str("stream table entries are changed and invalidated by attach"),
            Self::Reserved { word, bits } => write!(f, "reserved bits {bits:#x} of word {word} are set"),
            Self::Stream(stream) => write!(f, "there is no stream {stream:#x}"),
            Self::Substream(ssid) => write!(f, "SubstreamID {ssid:#x} is too large"),
            Self::Asid(asid) => write!(f, "ASID {asid:#x} is too large"),
            Self::NoRangeInvalidation => f.write_str("NUM, SCALE, TTL or TG without range invalidation"),
            Self::ReservedRange => f.write_str("reserved combination of NUM, SCALE, TTL and TG"),
            Self::NoAts => f.write_str("ATC_INV without ATS"),
            Self::AtcSize(size) => write!(f, "Size {size} of ATC_INV is above {ATC_INV_EVERYTHING}"),
            Self::CompletionSignal(cs) => write!(f, "CS {cs:#04b} of SYNC is not SIG_NONE"),
        }
    }
}

/// What a legal command of an owner asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// An invalidation: this command for the SMMU itself.
    Invalidate(Command),
    /// Nothing that anybody could notice: a prefetch.
    Nothing,
    /// CFGI_STE: the STE of this stream of the owner's has changed; also the level-1 descriptor above it.
    Stream(u32),
    /// CFGI_STE_RANGE and CFGI_ALL: the STEs of the streams from `first` to `last` may have changed.
    Streams {
        /// The first StreamID, as the owner knows it.
        first: u32,
        /// The last.
        last: u32,
    },
    /// SYNC: everything before it is to be complete, then this is to be signalled.
    Sync(Completion),
}

/// How a completed SYNC is told (4.7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// By CMDQ_CONS alone: SIG_NONE.
    None,
    /// SIG_IRQ without MSIAddress: by the wired interrupt.
    Wired,
    /// SIG_IRQ: by a 32-bit write of `data` to `address`, a multiple of 4.
    Msi {
        /// MSIAddress, as the owner wrote it.
        address: u64,
        /// MSIData.
        data: u32,
    },
    /// SIG_SEV: by a wake-up event, which there is none of where IDR0.SEV is 0.
    Event,
}

/// The command that the SMMU may be given for one that the owner of a virtual SMMU wrote: `vmid` is the tag of the
/// virtual SMMU, and `lookup` finds the StreamID of a virtual one.
///
/// For an owner that has neither a stream table nor queues of its own, and calls EL2 instead: of what [`read`] allows there are
/// only invalidations, and SYNC with CS = SIG_NONE.
///
/// # Errors
/// [`Illegal`], for the first rule that is broken.
pub fn check(
    command: Command,
    limits: &VsmmuLimits,
    vmid: u16,
    lookup: impl Fn(u32) -> Option<u32>,
) -> Result<Command, Illegal> {
    match command.opcode() {
        opcode::CFGI_STE | opcode::CFGI_STE_RANGE => return Err(Illegal::StreamTable),
        prefetch @ (opcode::PREFETCH_CONFIG | opcode::PREFETCH_ADDR) => {
            return Err(Illegal::Opcode(prefetch));
        }
        _ => {}
    }
    match read(command, limits, vmid, lookup)? {
        Request::Invalidate(command) => Ok(command),
        Request::Sync(Completion::None) => Ok(Command::sync()),
        Request::Sync(_) => Err(Illegal::CompletionSignal(completion_signal(command))),
        Request::Nothing | Request::Stream(_) | Request::Streams { .. } => {
            Err(Illegal::Opcode(command.opcode()))
        }
    }
}

/// What a command that the owner of a virtual SMMU wrote asks for: `vmid` is the tag of the virtual SMMU, and `lookup` finds the
/// StreamID of a virtual one.
///
/// Allowed are CFGI_CD, CFGI_CD_ALL, TLBI_NH_ALL, NH_ASID, NH_VA and NH_VAA, NSNH_ALL (which becomes NH_ALL of the
/// VMID), ATC_INV where there is ATS, the commands about the stream table, prefetches, and SYNC. What the architecture ignores is
/// dropped: the VMID, MSI fields of a SYNC without MSI, SubstreamID and Global without SSV.
///
/// # Errors
/// [`Illegal`], for the first rule that is broken.
#[inline]
pub fn read(
    command: Command,
    limits: &VsmmuLimits,
    vmid: u16,
    lookup: impl Fn(u32) -> Option<u32>,
) -> Result<Request, Illegal> {
    check_reserved(command)?;
    // Nearly all that drivers send.
    match command.opcode() {
        opcode::TLBI_NH_VA => {
            let asid = check_asid(command.0[0], limits)?;
            Ok(Request::Invalidate(Command::tlbi_nh_va(vmid, asid, check_range(command, limits)?)))
        }
        opcode::SYNC => Ok(Request::Sync(check_completion(command)?)),
        _ => read_other(command, limits, vmid, lookup),
    }
}

/// [`read`] of a command that has no reserved bits set, and is none of the usual ones.
#[inline(never)]
fn read_other(
    command: Command,
    limits: &VsmmuLimits,
    vmid: u16,
    lookup: impl Fn(u32) -> Option<u32>,
) -> Result<Request, Illegal> {
    let Command([word0, word1]) = command;
    let stream = || {
        let written = field::read(word0, field::STREAM) as u32;
        lookup(written).ok_or(Illegal::Stream(written))
    };
    Ok(Request::Invalidate(match command.opcode() {
        opcode::CFGI_CD => {
            let leaf = word1 & field::LEAF != 0;
            Command::cfgi_cd(stream()?, check_substream(word0, limits)?, leaf)
        }
        opcode::CFGI_CD_ALL => Command::cfgi_cd_all(stream()?),
        opcode::TLBI_NH_ALL | opcode::TLBI_NSNH_ALL => Command::tlbi_nh_all(vmid),
        opcode::TLBI_NH_ASID => Command::tlbi_nh_asid(vmid, check_asid(word0, limits)?),
        opcode::TLBI_NH_VAA => Command::tlbi_nh_vaa(vmid, check_range(command, limits)?),
        opcode::ATC_INV => check_atc_inv(command, limits, stream)?,
        opcode::CFGI_STE => return Ok(Request::Stream(field::read(word0, field::STREAM) as u32)),
        opcode::CFGI_STE_RANGE => return Ok(streams(command)),
        opcode::PREFETCH_CONFIG | opcode::PREFETCH_ADDR => return Ok(Request::Nothing),
        other => return Err(Illegal::Opcode(other)),
    }))
}

/// The aligned 2^(Range + 1) streams around StreamID (4.3.2).
const fn streams(Command([word0, word1]): Command) -> Request {
    let stream = field::read(word0, field::STREAM) as u32;
    let others = u32::MAX >> (31 - field::read(word1, field::RANGE));
    Request::Streams { first: stream & !others, last: stream | others }
}

/// CS of a SYNC.
const fn completion_signal(Command([word0, _]): Command) -> u8 {
    field::read(word0, field::CS) as u8
}

/// CS of a SYNC, and what counts with it (4.7.3).
const fn check_completion(command: Command) -> Result<Completion, Illegal> {
    let Command([word0, word1]) = command;
    Ok(match completion_signal(command) {
        0b00 => Completion::None,
        0b01 => match word1 & field::MSI_ADDRESS {
            0 => Completion::Wired,
            address => Completion::Msi { address, data: field::read(word0, field::MSI_DATA) as u32 },
        },
        0b10 => Completion::Event,
        reserved => return Err(Illegal::CompletionSignal(reserved)),
    })
}

/// The fields of a command that its owner may write: the allow list.
const fn fields(opcode: u8) -> Result<[u64; 2], Illegal> {
    /// IDR5.DS is 0 for the owner, so that SCALE has five bits (4.4.1.1).
    const SCALE: u64 = 0x1f << 20;
    const SPAN: u64 = field::NUM | SCALE;
    const LEAVES: u64 = field::ADDRESS | field::LEAF | field::TTL | field::TG;
    let [word0, word1] = match opcode {
        opcode::CFGI_CD => [field::STREAM | field::SUBSTREAM, field::LEAF],
        opcode::CFGI_CD_ALL => [field::STREAM, 0],
        opcode::TLBI_NH_ALL => [field::VMID, 0],
        opcode::TLBI_NH_ASID => [field::VMID | field::ASID, 0],
        opcode::TLBI_NH_VA => [field::VMID | field::ASID | SPAN, LEAVES],
        opcode::TLBI_NH_VAA => [field::VMID | SPAN, LEAVES],
        opcode::TLBI_NSNH_ALL => [0, 0],
        opcode::ATC_INV => {
            [field::STREAM | field::SUBSTREAM | field::SSV | field::GLOBAL, field::ADDRESS | field::SIZE]
        }
        opcode::SYNC => [field::CS | field::MSI, field::MSI_ADDRESS],
        opcode::CFGI_STE => [field::STREAM, field::LEAF],
        opcode::CFGI_STE_RANGE => [field::STREAM, field::RANGE],
        opcode::PREFETCH_CONFIG => [field::STREAM | field::SUBSTREAM | field::SSV, 0],
        opcode::PREFETCH_ADDR => {
            [field::STREAM | field::SUBSTREAM | field::SSV, field::ADDRESS | field::PREFETCH_SPAN]
        }
        other => return Err(Illegal::Opcode(other)),
    };
    Ok([field::OPCODE | word0, word1])
}

/// [`fields`] by opcode; none of an opcode that is not allowed.
static FIELDS: [[u64; 2]; opcode::SYNC as usize + 1] = {
    let mut table = [[0; 2]; opcode::SYNC as usize + 1];
    let mut opcode = 0;
    while opcode < table.len() {
        if let Ok(fields) = fields(opcode as u8) {
            table[opcode] = fields;
        }
        opcode += 1;
    }
    table
};

/// No bit outside of the command's fields: SSec is one of those (4.1.5, 4.1.6).
#[inline]
fn check_reserved(command: Command) -> Result<(), Illegal> {
    let Command([word0, word1]) = command;
    match FIELDS.get(usize::from(command.opcode())) {
        Some([fields0, fields1]) if word0 & !fields0 | word1 & !fields1 == 0 => Ok(()),
        _ => refuse_reserved(command),
    }
}

/// What is wrong with a command that has bits outside of its fields, or has no fields.
#[cold]
fn refuse_reserved(command: Command) -> Result<(), Illegal> {
    let fields = fields(command.opcode())?;
    for ((word, value), fields) in (0..).zip(command.0).zip(fields) {
        if value & !fields != 0 {
            return Err(Illegal::Reserved { word, bits: value & !fields });
        }
    }
    Ok(())
}

fn check_substream(word0: u64, limits: &VsmmuLimits) -> Result<u32, Illegal> {
    let ssid = field::read(word0, field::SUBSTREAM) as u32;
    if ssid >> limits.substream_bits.min(31) == 0 { Ok(ssid) } else { Err(Illegal::Substream(ssid)) }
}

fn check_asid(word0: u64, limits: &VsmmuLimits) -> Result<u16, Illegal> {
    let asid = field::read(word0, field::ASID) as u16;
    if u32::from(asid) >> limits.asid_bits.min(16) == 0 { Ok(asid) } else { Err(Illegal::Asid(asid)) }
}

/// The range of a TLBI by address (4.4.1.1).
fn check_range(command: Command, limits: &VsmmuLimits) -> Result<TlbiRange, Illegal> {
    /// TG and TTL of a level at which a 16 KiB granule has no leaves while IDR5.DS is 0.
    const LEVEL_1_OF_16K: (u8, u8) = (2, 1);
    let Command([word0, word1]) = command;
    let [num, scale] = [field::NUM, field::SCALE].map(|mask| field::read(word0, mask) as u8);
    let [ttl, tg] = [field::TTL, field::TG].map(|mask| field::read(word1, mask) as u8);
    let is_single = num == 0 && scale == 0 && ttl == 0;
    if !limits.range_invalidation && (tg != 0 || !is_single) {
        return Err(Illegal::NoRangeInvalidation);
    }
    // Without a granule there is no range and no level; with one there must be either.
    if (tg == 0) != is_single || (tg, ttl) == LEVEL_1_OF_16K {
        return Err(Illegal::ReservedRange);
    }
    let hints = LeafHints::new(tg, ttl, word1 & field::LEAF != 0);
    Ok(TlbiRange { address: word1 & field::ADDRESS, num, scale, hints })
}

fn check_atc_inv(
    command: Command,
    limits: &VsmmuLimits,
    stream: impl FnOnce() -> Result<u32, Illegal>,
) -> Result<Command, Illegal> {
    let Command([word0, word1]) = command;
    if !limits.ats {
        return Err(Illegal::NoAts);
    }
    let size = field::read(word1, field::SIZE) as u8;
    if size > ATC_INV_EVERYTHING {
        return Err(Illegal::AtcSize(size));
    }
    let address = word1 & field::ADDRESS;
    if word0 & field::SSV == 0 {
        return Ok(Command::atc_inv(stream()?, address, size));
    }
    let ssid = check_substream(word0, limits)?;
    if limits.substream_bits == 0 {
        return Err(Illegal::Substream(ssid));
    }
    Ok(Command::atc_inv_substream(stream()?, ssid, word0 & field::GLOBAL != 0, address, size))
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;
