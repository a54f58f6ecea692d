//! GICv3 Redistributors, mediated: their LPI tables are pinned memory of the host's.
//!
//! A Redistributor reads the LPI Configuration table and reads and writes the LPI Pending table by itself, with no SMMU in front of
//! it: GICR_PROPBASER and GICR_PENDBASER (IHI 0069, 12.11) would be a way around every page table. So the 4 KiB page of RD_base
//! that holds them is absent from the host's stage 2, and EL2 emulates it. What the host may use is on an allow list;
//! all else reads as zero and ignores writes. So is the page of VLPI_base (GICv4) that holds
//! GICR_VPROPBASER and GICR_VPENDBASER: all of it reads as zero and ignores writes.
//!
//! The host's values of the two registers stay with EL2 until the host sets GICR_CTLR.EnableLPIs. Then both tables must be
//! memory of the host's, they are pinned, and only then the hardware gets their addresses. The pending table stays pinned until the hardware says that LPIs
//! are off, which not every one can do (GICR_CTLR.CES), the configuration table until all Redistributors say so. Redistributors may have GICR_PROPBASER in common, so
//! all that have LPIs on have the same IDbits: else one could read and write its tables as far as another's register says. The contents of both tables are bits and priorities: whatever the host
//! writes there, it changes its own interrupts only. When the machine has no ITS that is mediated, LPIs are reported as not implemented.

use smmuv3::address::{PhysAddr, PhysRange};

use super::access::{Access, Half};
use super::{FIRST_LPI, GicError, Services};
use crate::devicetree::Machine;
use crate::list::List;
use crate::platform::{Platform, waited_for};
use crate::smmu::TIMEOUT_NS;
use crate::sync::{Guarded, Mutex, Rank};

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
const PROPBASER: u64 = 0x70;
const PENDBASER: u64 = 0x78;

/// GICR_CTLR.EnableLPIs.
const CTLR_ENABLE_LPIS: u32 = 1 << 0;
/// GICR_CTLR.CES: EnableLPIs can be cleared.
const CTLR_CES: u32 = 1 << 1;
/// GICR_CTLR.IR: GICR_INVLPIR, GICR_INVALLR and GICR_SYNCR are there. They are not carried.
const CTLR_IR: u32 = 1 << 2;
/// GICR_CTLR.RWP: a write that turned something off is not complete.
const CTLR_RWP: u32 = 1 << 3;
/// GICR_TYPER.PLPIS.
const TYPER_PLPIS: u32 = 1 << 0;
/// GICR_TYPER.Dirty, DirectLPI and RVPEID.
const TYPER_NOT_CARRIED: u32 = 1 << 2 | 1 << 3 | 1 << 7;
/// GICR_TYPER.VLPIS: two more frames follow. Kept, because whoever walks the region needs it.
const TYPER_VLPIS: u32 = 1 << 1;
/// GICR_TYPER.Last.
const TYPER_LAST: u32 = 1 << 4;

/// GICR_PROPBASER.IDbits: bits of an INTID, less one.
const PROPBASER_ID_BITS: u64 = 0x1f;
/// GICR_PROPBASER.Physical_Address, bits 51:12.
const PROPBASER_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// GICR_PENDBASER.Physical_Address, bits 51:16.
const PENDBASER_ADDRESS: u64 = 0x000f_ffff_ffff_0000;
/// GICR_PENDBASER.PTZ: the table is all zeros. Reads as zero.
const PENDBASER_PTZ: u64 = 1 << 62;
/// OuterCache, Shareability and InnerCache of both.
const BASER_ATTRIBUTES: u64 = 0b111 << 56 | BASER_SHAREABILITY | 0b111 << 7;
const BASER_SHAREABILITY: u64 = 0b11 << 10;
/// Inner Shareable, Normal write-back: what a Redistributor that is coherent with the CPUs keeps.
const BASER_COHERENT: u64 = 0b01 << 10 | 0b111 << 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    base: PhysAddr,
    /// VLPI_base, not RD_base.
    virtual_lpis: bool,
    /// GICR_TYPER.PLPIS.
    physical_lpis: bool,
    /// GICR_TYPER.Processor_Number.
    processor: u16,
}

/// The LPI tables of one Redistributor.
#[derive(Clone, Copy, Debug, Default)]
struct Tables {
    /// GICR_PROPBASER as the host sees it.
    propbaser: u64,
    /// GICR_PENDBASER, as the host wrote it.
    pendbaser: u64,
    /// The hardware has no Shareability: it is not coherent with the CPUs' caches, and the host must know.
    incoherent: bool,
    /// What the hardware uses, from the write of EnableLPIs on until it says that LPIs are off.
    in_use: Option<InUse>,
}

/// Tables that a Redistributor uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct InUse {
    /// Pinned as long as any Redistributor has LPIs on; see [`Lpis::configurations`].
    configuration: PhysRange,
    /// Pinned.
    pending: PhysRange,
}

impl Guarded for Lpis {
    const RANK: Rank = Rank::Lpis;
}

pub(super) struct Lpis {
    /// Configuration tables, each pinned once, from the first Redistributor that turns LPIs on until the last one turns them off. A
    /// kernel that is started by another one in its place, as by Linux's kexec, finds all LPIs on and turns them off and on with
    /// a table of its own, one Redistributor after the other. Those may have one table in common (GICR_TYPER.CommonLPIAff), and then it is
    /// UNPREDICTABLE which of the two is read.
    configurations: List<PhysRange, { Self::CONFIGURATIONS }>,
    /// Bits of an INTID; 0 where LPIs are hidden.
    intid_bits: u8,
    tables: [Tables; Redistributors::CAPACITY],
    refusal_logged: bool,
}

/// The frames whose first page the host's stage 2 must not have, in ascending order within a region.
pub struct Redistributors {
    frames: List<Frame, { Self::CAPACITY }>,
    lpis: Mutex<Lpis>,
}

impl Redistributors {
    /// The most frames that are mediated: one for each CPU, two with virtual LPIs.
    pub const CAPACITY: usize = 128;

    /// Walks the Redistributor regions and turns LPIs off. Called once, before the host runs.
    ///
    /// # Errors
    /// [`GicError`].
    pub fn find<P: Platform>(p: &P, machine: &Machine) -> Result<Self, GicError> {
        let lpis = Lpis {
            configurations: List::new(),
            intid_bits: 0,
            tables: [Tables::default(); Self::CAPACITY],
            refusal_logged: false,
        };
        let mut found = Self { frames: List::new(), lpis: Mutex::new(lpis) };
        for region in machine.redistributors.iter() {
            found.find_in_region(p, *region)?;
        }
        Ok(found)
    }

    fn find_in_region<P: Platform>(&mut self, p: &P, region: PhysRange) -> Result<(), GicError> {
        let mut base = region.start();
        // Ends at the latest when the list is full.
        loop {
            let fits = |bytes| PhysRange::new(base, bytes).is_some_and(|range| region.encloses(range));
            if !fits(2 * FRAME_BYTES) {
                return Err(GicError::CutOff(base));
            }
            let typer = p.read_register_u32(base.offset(TYPER));
            turn_lpis_off(p, base)?;
            let physical_lpis = typer & TYPER_PLPIS != 0;
            let processor = (typer >> 8) as u16;
            self.add(Frame { base, virtual_lpis: false, physical_lpis, processor })?;
            let mut size_bytes = 2 * FRAME_BYTES;
            if typer & TYPER_VLPIS != 0 {
                size_bytes = 4 * FRAME_BYTES;
                if !fits(size_bytes) {
                    return Err(GicError::CutOff(base));
                }
                let base = base.offset(2 * FRAME_BYTES);
                self.add(Frame { base, virtual_lpis: true, physical_lpis, processor })?;
            }
            if typer & TYPER_LAST != 0 {
                return Ok(());
            }
            base = base.offset(size_bytes);
        }
    }

    #[cfg(feature = "oracle")]
    pub(super) fn lock(&self) -> crate::sync::MutexGuard<'_, Lpis> {
        self.lpis.lock()
    }

    fn add(&mut self, frame: Frame) -> Result<(), GicError> {
        self.frames.push(frame).map_err(|full| GicError::TooMany { limit: full.capacity })
    }

    /// The 4 KiB pages that are absent from the host's stage 2.
    pub fn pages(&self) -> impl Iterator<Item = PhysRange> {
        self.frames.iter().filter_map(|frame| PhysRange::new(frame.base, PAGE_BYTES))
    }

    /// Whether there are Redistributors, and all of them have physical LPIs.
    pub fn all_have_lpis(&self) -> bool {
        !self.frames.is_empty() && self.frames.iter().all(|frame| frame.physical_lpis)
    }

    /// Shows the host LPIs with INTIDs of at most `intid_bits` bits. Called once, before the host runs, with LPIs off.
    pub fn show_lpis<P: Platform>(&mut self, p: &P, intid_bits: u8) {
        let lpis = self.lpis.get_mut();
        lpis.intid_bits = intid_bits;
        for (frame, tables) in self.frames.iter().zip(&mut lpis.tables) {
            if frame.virtual_lpis {
                continue;
            }
            // Which attributes the hardware has is found out before it has any address, and while LPIs are off.
            p.write_register_u64(frame.base.offset(PROPBASER), BASER_COHERENT);
            p.write_register_u64(frame.base.offset(PENDBASER), BASER_COHERENT);
            let both = p.read_register_u64(frame.base.offset(PROPBASER))
                & p.read_register_u64(frame.base.offset(PENDBASER));
            tables.incoherent = both & BASER_SHAREABILITY == 0;
        }
    }

    /// The Redistributors as targets of ITS commands: RDbase, bits 51:16 (IHI 0069, 5.3), as addresses if GITS_TYPER.PTA, else as processor
    /// numbers.
    pub fn targets(&self, by_address: bool) -> impl Iterator<Item = u64> {
        let frames = self.frames.iter().filter(|frame| !frame.virtual_lpis);
        frames.map(move |frame| if by_address { frame.base.0 >> 16 } else { frame.processor.into() })
    }

    /// Whether the Redistributor that an ITS command names has LPIs on.
    pub fn has_lpis_on<P: Platform>(&self, p: &P, by_address: bool, target: u64) -> bool {
        let frames = self.frames.iter().filter(|frame| !frame.virtual_lpis);
        let found = frames.zip(self.targets(by_address)).find(|(_, other)| *other == target);
        found.is_some_and(|(frame, _)| p.read_register_u32(frame.base.offset(CTLR)) & CTLR_ENABLE_LPIS != 0)
    }

    /// Emulates an access to one of [`Redistributors::pages`]: `None` if `address` is in none of them, else the value read, 0 for a
    /// write.
    ///
    /// An access that is not aligned, of a size that the register does not have, or to any other offset reads as zero and
    /// ignores writes.
    pub fn access<P: Platform>(
        &self,
        services: Services<'_, P>,
        address: PhysAddr,
        access: Access,
    ) -> Option<u64> {
        let page = address.0 & !(PAGE_BYTES - 1);
        let offset = address.0 - page;
        let index = self.frames.position(|frame| frame.base.0 == page)?;
        let frame = self.frames.get(index)?;
        if frame.virtual_lpis {
            return Some(0);
        }
        let p = services.platform;
        let mut lpis = self.lpis.lock();
        Some(match access.write {
            Some(value) => {
                match (access.size_bytes, offset) {
                    (8, PROPBASER | PENDBASER) => lpis.write_table_register(index, offset, value),
                    (4, CTLR) => lpis.write_ctlr(services, index, frame.base, value as u32),
                    (4, STATUSR | WAKER | PARTIDR) => {
                        p.write_register_u32(frame.base.offset(offset), value as u32);
                    }
                    (4, _) if offset.is_multiple_of(4) => {
                        let (register, half) = Half::at(offset);
                        let old = lpis.table_register(index, register);
                        lpis.write_table_register(index, register, half.replaced(old, value));
                    }
                    _ => {}
                }
                0
            }
            None => match (access.size_bytes, offset) {
                (8, TYPER) => {
                    let high = u64::from(lpis.read_u32(services, index, frame.base, TYPER_HIGH));
                    high << 32 | u64::from(lpis.read_u32(services, index, frame.base, TYPER))
                }
                (8, PROPBASER | PENDBASER) => lpis.table_register(index, offset) & !PENDBASER_PTZ,
                (4, _) if offset.is_multiple_of(4) => {
                    u64::from(lpis.read_u32(services, index, frame.base, offset))
                }
                _ => 0,
            },
        })
    }
}

impl Lpis {
    /// The most configuration tables until all Redistributors have LPIs off.
    const CONFIGURATIONS: usize = 16;

    const fn are_shown(&self) -> bool {
        self.intid_bits != 0
    }

    /// GICR_PROPBASER or GICR_PENDBASER; 0 for any other offset.
    fn table_register(&self, index: usize, offset: u64) -> u64 {
        match (self.tables.get(index), offset) {
            (Some(tables), PROPBASER) => tables.propbaser,
            (Some(tables), PENDBASER) => tables.pendbaser,
            _ => 0,
        }
    }

    /// Writes GICR_PROPBASER or GICR_PENDBASER; ignored at any other offset, and while the tables are in use (IHI 0069, 12.11.31 and
    /// 12.11.32: UNPREDICTABLE).
    fn write_table_register(&mut self, index: usize, offset: u64, value: u64) {
        if !self.are_shown() {
            return;
        }
        let Some(tables) = self.tables.get_mut(index).filter(|tables| tables.in_use.is_none()) else {
            return;
        };
        let value = if tables.incoherent { value & !BASER_SHAREABILITY } else { value };
        match offset {
            PROPBASER => {
                tables.propbaser = value & (PROPBASER_ADDRESS | BASER_ATTRIBUTES | PROPBASER_ID_BITS);
            }
            PENDBASER => tables.pendbaser = value & (PENDBASER_ADDRESS | BASER_ATTRIBUTES | PENDBASER_PTZ),
            _ => {}
        }
    }

    fn read_u32<P: Platform>(
        &mut self,
        services: Services<'_, P>,
        index: usize,
        base: PhysAddr,
        offset: u64,
    ) -> u32 {
        let hidden = match offset {
            CTLR if self.are_shown() => {
                let ctlr = self.settle(services, index, base);
                return ctlr & !CTLR_IR;
            }
            CTLR => CTLR_ENABLE_LPIS | CTLR_CES | CTLR_IR,
            TYPER if self.are_shown() => TYPER_NOT_CARRIED,
            TYPER => TYPER_PLPIS | TYPER_NOT_CARRIED,
            IIDR | TYPER_HIGH | STATUSR | WAKER | MPAMIDR | PARTIDR => 0,
            _ => {
                let (register, half) = Half::at(offset);
                return half.of(self.table_register(index, register) & !PENDBASER_PTZ) as u32;
            }
        };
        services.platform.read_register_u32(base.offset(offset)) & !hidden
    }

    /// The ranges that are pinned, each as often as it is.
    #[cfg(feature = "oracle")]
    pub fn pinned(&self) -> impl Iterator<Item = PhysRange> {
        let pending = self.tables.iter().filter_map(|tables| Some(tables.in_use?.pending));
        self.configurations.iter().copied().chain(pending)
    }

    /// Reads GICR_CTLR, and if it says that LPIs are off lets go of the tables.
    fn settle<P: Platform>(&mut self, services: Services<'_, P>, index: usize, base: PhysAddr) -> u32 {
        let p = services.platform;
        let ctlr = p.read_register_u32(base.offset(CTLR));
        if ctlr & (CTLR_ENABLE_LPIS | CTLR_RWP) == 0
            && let Some(tables) = self.tables.get_mut(index)
            && let Some(in_use) = tables.in_use.take()
        {
            services.memory.lock().unpin(p, in_use.pending);
            self.let_go_of_configurations(services);
        }
        ctlr
    }

    /// If no Redistributor has LPIs on, nothing is read any more.
    fn let_go_of_configurations<P: Platform>(&mut self, services: Services<'_, P>) {
        if self.tables.iter().all(|tables| tables.in_use.is_none()) {
            let mut memory = services.memory.lock();
            while let Some(configuration) = self.configurations.pop() {
                memory.unpin(services.platform, configuration);
            }
        }
    }

    /// Pins a configuration table, unless it is. The error is why not.
    fn hold_configuration<P: Platform>(
        &mut self,
        services: Services<'_, P>,
        configuration: PhysRange,
    ) -> Result<(), &'static str> {
        if self.configurations.iter().any(|held| *held == configuration) {
            return Ok(());
        }
        if self.configurations.len() == Self::CONFIGURATIONS {
            return Err("there were too many configuration tables since all LPIs were off");
        }
        let pinned = services.memory.lock().pin(services.platform, configuration);
        pinned.map_err(|_| "its configuration table is not memory of the host's alone")?;
        // There is room, as was looked at.
        let _ = self.configurations.push(configuration);
        Ok(())
    }

    fn write_ctlr<P: Platform>(
        &mut self,
        services: Services<'_, P>,
        index: usize,
        base: PhysAddr,
        value: u32,
    ) {
        let p = services.platform;
        let enables = value & CTLR_ENABLE_LPIS != 0 && self.are_shown();
        let others = value & !CTLR_ENABLE_LPIS;
        let ctlr = self.settle(services, index, base);
        let enabled = if self.tables.get(index).is_some_and(|tables| tables.in_use.is_some()) {
            // Where it cannot be cleared it stays set. Setting it again while it is being cleared would be too early.
            if ctlr & CTLR_CES != 0 { enables && ctlr & CTLR_ENABLE_LPIS != 0 } else { true }
        } else {
            enables && self.enable(services, index, base)
        };
        p.write_register_u32(base.offset(CTLR), others | u32::from(enabled));
        self.settle(services, index, base);
    }

    /// Pins the tables and gives the hardware their addresses; whether EnableLPIs can be set now. If not, nothing has changed.
    fn enable<P: Platform>(&mut self, services: Services<'_, P>, index: usize, base: PhysAddr) -> bool {
        let Some(tables) = self.tables.get(index) else { return false };
        let Some((in_use, propbaser)) = tables.ranges(self.intid_bits) else {
            self.log_refusal(base, "the tables have no place, or too few bits");
            return false;
        };
        let mut others = self.tables.iter().filter_map(|tables| tables.in_use);
        if others.any(|other| other.pending.size_bytes() != in_use.pending.size_bytes()) {
            self.log_refusal(base, "it has not as many bits of INTIDs as the others");
            return false;
        }
        let p = services.platform;
        let pendbaser = tables.pendbaser;
        if services.memory.lock().pin(p, in_use.pending).is_err() {
            self.log_refusal(base, "its pending table is not memory of the host's alone");
            return false;
        }
        if let Err(why) = self.hold_configuration(services, in_use.configuration) {
            services.memory.lock().unpin(p, in_use.pending);
            self.log_refusal(base, why);
            return false;
        }
        if let Some(tables) = self.tables.get_mut(index) {
            tables.in_use = Some(in_use);
            tables.pendbaser &= !PENDBASER_PTZ;
        }
        p.write_register_u64(base.offset(PROPBASER), propbaser);
        p.write_register_u64(base.offset(PENDBASER), pendbaser);
        p.full_barrier();
        true
    }

    fn log_refusal(&mut self, base: PhysAddr, why: &str) {
        if !self.refusal_logged {
            self.refusal_logged = true;
            log::warn!("LPIs of the Redistributor at {base} stay off: {why}");
        }
    }
}

impl Tables {
    /// What the hardware would read and write with these registers, and GICR_PROPBASER as the hardware gets it; `None` if there would be
    /// no LPIs, or a table without a place.
    fn ranges(&self, intid_bits: u8) -> Option<(InUse, u64)> {
        // IDbits above those of the Distributor count as those; below 14 bits there are no LPIs (IHI 0069, 12.11.32).
        let id_bits = (self.propbaser & PROPBASER_ID_BITS).min(u64::from(intid_bits.checked_sub(1)?));
        let intids = 1_u64 << (id_bits + 1);
        let lpis = intids.checked_sub(FIRST_LPI).filter(|lpis| *lpis > 0)?;
        Some((
            InUse {
                configuration: PhysRange::new(PhysAddr(self.propbaser & PROPBASER_ADDRESS), lpis)?,
                pending: PhysRange::new(PhysAddr(self.pendbaser & PENDBASER_ADDRESS), intids / 8)?,
            },
            self.propbaser & !PROPBASER_ID_BITS | id_bits,
        ))
    }
}

/// Turns LPIs off, and waits until the Redistributor has let go of its tables: then they can be anybody's, and others can be named.
fn turn_lpis_off<P: Platform>(p: &P, base: PhysAddr) -> Result<(), GicError> {
    let register = base.offset(CTLR);
    let ctlr = p.read_register_u32(register);
    if ctlr & CTLR_ENABLE_LPIS != 0 {
        // Allowed where CTLR.CES is 1; elsewhere the bit is RES1 once it is set.
        p.write_register_u32(register, ctlr & !CTLR_ENABLE_LPIS);
    }
    let is_off = waited_for(p, register, CTLR_ENABLE_LPIS | CTLR_RWP, 0, TIMEOUT_NS);
    if is_off { Ok(()) } else { Err(GicError::LpisEnabled(base)) }
}
