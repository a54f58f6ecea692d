//! GICv3 Redistributors, mediated: the host may not aim their LPI tables at memory.
//!
//! A Redistributor reads and writes the LPI Configuration and Pending tables by itself, with no SMMU in front
//! of it: GICR_PROPBASER and GICR_PENDBASER (IHI 0069, 12.11) would be a way around every page table. So the
//! 4 KiB page of RD_base that holds them is absent from the host's stage 2, and EL2 emulates it. What the
//! host may use is on an allow list, with LPIs reported as not implemented; all else reads as zero and
//! ignores writes. The frames of virtual LPIs (GICv4) are absent as a whole and read as zero.

use crate::devicetree::Machine;
use crate::list::List;
use crate::platform::Platform;
use crate::smmu::TIMEOUT_NS;
use core::fmt;
use smmuv3::address::{PhysAddr, PhysRange};

/// Bytes of one register frame.
const FRAME_BYTES: u64 = 0x1_0000;
/// Bytes of the mediated page of a frame.
const PAGE_BYTES: u64 = 0x1000;

const CTLR: u64 = 0x0;
const IIDR: u64 = 0x4;
const TYPER: u64 = 0x8;
const TYPER_HIGH: u64 = 0xc;
const STATUSR: u64 = 0x10;
const WAKER: u64 = 0x14;
const MPAMIDR: u64 = 0x18;
const PARTIDR: u64 = 0x1c;

/// GICR_CTLR.EnableLPIs.
const CTLR_ENABLE_LPIS: u32 = 1 << 0;
/// GICR_CTLR.CES and IR: what they announce is about LPIs only.
const CTLR_CES_IR: u32 = 0b11 << 1;
/// GICR_TYPER.PLPIS, Dirty, DirectLPI and RVPEID.
const TYPER_LPIS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 7;
/// GICR_TYPER.VLPIS: two more frames follow. Kept, because whoever walks the region needs it.
const TYPER_VLPIS: u32 = 1 << 1;
/// GICR_TYPER.Last.
const TYPER_LAST: u32 = 1 << 4;

/// GITS_CTLR, at the start of an ITS's control frame (IHI 0069, 12.19).
const GITS_CTLR: u64 = 0x0;
/// GITS_CTLR.Enabled.
const GITS_CTLR_ENABLED: u32 = 1 << 0;
/// GITS_CTLR.Quiescent.
const GITS_CTLR_QUIESCENT: u32 = 1 << 31;

/// An access that the host made to a page which is absent from its stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Bytes: 1, 2, 4 or 8.
    pub size_bytes: u8,
    /// What it writes; `None` for a read.
    pub write: Option<u64>,
}

/// Emulates an access at `offset` bytes into the page of RD_base at `frame_base`: the value read, `None` for
/// a write.
///
/// An access that is not aligned, of a size the register does not have, or to any other offset reads as zero
/// and ignores writes. At most two device registers are touched.
pub fn access<P: Platform>(p: &P, frame_base: PhysAddr, offset: u64, access: Access) -> Option<u64> {
    match access.write {
        Some(value) => {
            if access.size_bytes == 4 {
                write_u32(p, frame_base, offset, value as u32);
            }
            None
        }
        None => Some(match (access.size_bytes, offset) {
            (8, TYPER) => {
                let high = u64::from(read_u32(p, frame_base, TYPER_HIGH));
                high << 32 | u64::from(read_u32(p, frame_base, TYPER))
            }
            (4, _) => u64::from(read_u32(p, frame_base, offset)),
            _ => 0,
        }),
    }
}

fn read_u32<P: Platform>(p: &P, frame_base: PhysAddr, offset: u64) -> u32 {
    let hidden = match offset {
        CTLR => CTLR_ENABLE_LPIS | CTLR_CES_IR,
        TYPER => TYPER_LPIS,
        IIDR | TYPER_HIGH | STATUSR | WAKER | MPAMIDR | PARTIDR => 0,
        _ => return 0,
    };
    p.read_register_u32(frame_base.offset(offset)) & !hidden
}

fn write_u32<P: Platform>(p: &P, frame_base: PhysAddr, offset: u64, value: u32) {
    let value = match offset {
        CTLR => value & !CTLR_ENABLE_LPIS,
        STATUSR | WAKER | PARTIDR => value,
        _ => return,
    };
    p.write_register_u32(frame_base.offset(offset), value);
}

/// Why the Redistributors cannot be mediated, or an ITS cannot be turned off. One sentence when displayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicrError {
    /// LPIs were enabled before the hypervisor started and cannot be turned off: the tables may be anywhere.
    LpisEnabled(PhysAddr),
    /// The ITS at this address cannot be turned off: it may go on to read and write its tables.
    ItsEnabled(PhysAddr),
    /// A region ends before the Redistributor at this address does.
    CutOff(PhysAddr),
    /// There are more frames than the hypervisor has room for.
    TooMany {
        /// How many it has room for.
        limit: usize,
    },
}

impl fmt::Display for GicrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LpisEnabled(frame) => {
                write!(f, "the Redistributor at {frame} has LPIs enabled and does not let go of them")
            }
            Self::ItsEnabled(base) => {
                write!(f, "the ITS at {base} is on, or not quiescent, and cannot be turned off")
            }
            Self::CutOff(frame) => write!(f, "the Redistributor at {frame} does not fit into its region"),
            Self::TooMany { limit } => write!(f, "more than {limit} Redistributor frames are not supported"),
        }
    }
}

impl core::error::Error for GicrError {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    base: PhysAddr,
    /// VLPI_base, not RD_base.
    virtual_lpis: bool,
}

/// The frames whose first page the host's stage 2 must not have, in ascending order within a region.
#[derive(Clone, Debug)]
pub struct Redistributors {
    frames: List<Frame, { Self::CAPACITY }>,
}

impl Redistributors {
    /// The most frames that are mediated: one for each CPU, two with virtual LPIs.
    pub const CAPACITY: usize = 128;

    /// Walks the Redistributor regions and turns LPIs off. Called once, before the host runs.
    ///
    /// # Errors
    /// [`GicrError`].
    pub fn find<P: Platform>(p: &P, machine: &Machine) -> Result<Self, GicrError> {
        let mut found = Self { frames: List::new() };
        for region in machine.redistributors.iter() {
            found.find_in_region(p, *region)?;
        }
        Ok(found)
    }

    fn find_in_region<P: Platform>(&mut self, p: &P, region: PhysRange) -> Result<(), GicrError> {
        let mut base = region.start();
        // Ends at the latest when the list is full.
        loop {
            let fits = |bytes| PhysRange::new(base, bytes).is_some_and(|range| region.encloses(range));
            if !fits(2 * FRAME_BYTES) {
                return Err(GicrError::CutOff(base));
            }
            let typer = p.read_register_u32(base.offset(TYPER));
            turn_lpis_off(p, base)?;
            self.add(Frame { base, virtual_lpis: false })?;
            let mut size_bytes = 2 * FRAME_BYTES;
            if typer & TYPER_VLPIS != 0 {
                size_bytes = 4 * FRAME_BYTES;
                if !fits(size_bytes) {
                    return Err(GicrError::CutOff(base));
                }
                self.add(Frame { base: base.offset(2 * FRAME_BYTES), virtual_lpis: true })?;
            }
            if typer & TYPER_LAST != 0 {
                return Ok(());
            }
            base = base.offset(size_bytes);
        }
    }

    fn add(&mut self, frame: Frame) -> Result<(), GicrError> {
        self.frames.push(frame).map_err(|full| GicrError::TooMany { limit: full.capacity })
    }

    /// The 4 KiB pages that are absent from the host's stage 2.
    pub fn pages(&self) -> impl Iterator<Item = PhysRange> {
        self.frames.iter().filter_map(|frame| PhysRange::new(frame.base, PAGE_BYTES))
    }

    /// Emulates an access to one of [`Redistributors::pages`]: `None` if `address` is in none of them, else
    /// as [`access`] answers, 0 for a write.
    pub fn access<P: Platform>(&self, p: &P, address: PhysAddr, request: Access) -> Option<u64> {
        let page = address.0 & !(PAGE_BYTES - 1);
        let frame = self.frames.iter().find(|frame| frame.base.0 == page)?;
        if frame.virtual_lpis {
            return Some(0);
        }
        Some(access(p, frame.base, address.0 - page, request).unwrap_or(0))
    }
}

fn turn_lpis_off<P: Platform>(p: &P, base: PhysAddr) -> Result<(), GicrError> {
    let ctlr = p.read_register_u32(base.offset(CTLR));
    if ctlr & CTLR_ENABLE_LPIS == 0 {
        return Ok(());
    }
    // Allowed where CTLR.CES is 1; elsewhere the bit is RES1 once it is set.
    p.write_register_u32(base.offset(CTLR), ctlr & !CTLR_ENABLE_LPIS);
    if p.read_register_u32(base.offset(CTLR)) & CTLR_ENABLE_LPIS != 0 {
        return Err(GicrError::LpisEnabled(base));
    }
    Ok(())
}

/// Turns every ITS off, which like a Redistributor reads and writes tables in memory with no SMMU in front of it,
/// and waits at most [`TIMEOUT_NS`] for each to be quiescent. Called once, before the host runs.
///
/// # Errors
/// [`GicrError::ItsEnabled`]; those after it are as they were.
pub fn turn_its_off<P: Platform>(p: &P, machine: &Machine) -> Result<(), GicrError> {
    for its in machine.its.iter() {
        let register = its.start().offset(GITS_CTLR);
        let ctlr = p.read_register_u32(register);
        if ctlr & GITS_CTLR_ENABLED != 0 {
            p.write_register_u32(register, ctlr & !GITS_CTLR_ENABLED);
        }
        let start = p.now_ns();
        loop {
            // Read before the value, so that a last look follows a long pause.
            let late = p.now_ns().saturating_sub(start) > TIMEOUT_NS;
            let ctlr = p.read_register_u32(register);
            if ctlr & (GITS_CTLR_ENABLED | GITS_CTLR_QUIESCENT) == GITS_CTLR_QUIESCENT {
                break;
            }
            if late {
                return Err(GicrError::ItsEnabled(its.start()));
            }
            p.relax();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
