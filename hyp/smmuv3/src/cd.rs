//! Context descriptors and level-1 context descriptors (IHI 0070, 5.3 and 5.4).

use crate::address::PhysAddr;
use crate::entry_writer::{ENTRY_WORDS, Entry};
use crate::pgtable::Geometry;

/// Bytes of a context descriptor.
pub const CD_BYTES: u64 = 64;
/// 64-bit words of a context descriptor.
pub const CD_WORDS: usize = ENTRY_WORDS;

/// Word 0: T0SZ, TG0, IR0, OR0 and SH0, bits 13:0: how TTB0 is walked.
const TTB0_WALK: u64 = 0x3fff;
/// Word 0: TG0, bits 7:6.
const TG0_SHIFT: u32 = 6;
/// Word 0: IR0 and OR0, bits 9:8 and 11:10: table walks are write-back cacheable.
const WALK_WRITE_BACK: u64 = 0b01 << 8 | 0b01 << 10;
/// Word 0: SH0, bits 13:12: table walks are inner shareable.
const WALK_INNER_SHAREABLE: u64 = 0b11 << 12;
/// Word 0: EPD0: TTB0 is not walked.
const EPD0: u64 = 1 << 14;
/// Word 0: EPD1: TTB1 is not walked.
const EPD1: u64 = 1 << 30;
/// Word 0: V.
const V: u64 = 1 << 31;
/// Word 0: IPS, bits 34:32.
const IPS_SHIFT: u32 = 32;
/// Word 0: AFFD: a clear access flag is no fault.
const AFFD: u64 = 1 << 35;
/// Word 0: AA64: the tables are VMSAv8-64.
const AA64: u64 = 1 << 41;
/// Word 0: R: faults are recorded. S, bit 44, stays 0: they do not stall.
const R: u64 = 1 << 45;
/// Word 0: A: faulting transactions abort.
const A: u64 = 1 << 46;
/// Word 0: ASET: the ASID is not one of the CPUs', and their broadcast maintenance by ASID not meant for it.
const ASET: u64 = 1 << 47;
/// Word 0: ASID, bits 63:48.
const ASID_SHIFT: u32 = 48;
/// Word 1: TTB0, bits 55:4.
const TTB0: u64 = 0x00ff_ffff_ffff_fff0;

/// A context descriptor: its eight 64-bit words, in the order of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextDescriptor(pub [u64; CD_WORDS]);

impl ContextDescriptor {
    /// A descriptor that is not valid: transactions abort with C_BAD_CD.
    pub const INVALID: Self = Self([0; CD_WORDS]);

    /// Stage-1 translation of the lower half of the input space by the table of stage-1 `geometry` at `root`, tagged
    /// with `asid`; `mair` gives the memory types that its leaves choose from, as MAIR_EL1 does.
    ///
    /// Fixed besides: the upper half faults (EPD1), faults abort and are recorded and do not stall (A = R = 1, S = 0),
    /// the access flag is not updated and its fault is off (HA = HD = 0, AFFD = 1), the ASID is the SMMU's own
    /// (ASET = 1), the top byte of an address counts (TBI = 0).
    pub const fn stage1(geometry: &Geometry, root: PhysAddr, asid: u16, mair: u64) -> Self {
        let walk = geometry.t0sz() as u64
            | (geometry.tg() as u64) << TG0_SHIFT
            | WALK_WRITE_BACK
            | WALK_INNER_SHAREABLE
            | (geometry.ps() as u64) << IPS_SHIFT;
        let word0 = walk | EPD1 | V | AFFD | AA64 | R | A | ASET | (asid as u64) << ASID_SHIFT;
        Self([word0, root.0 & TTB0, 0, mair, 0, 0, 0, 0])
    }

    /// Whether V is set.
    pub const fn is_valid(&self) -> bool {
        self.0[0] & V != 0
    }

    /// ASID.
    pub const fn asid(&self) -> u16 {
        (self.0[0] >> ASID_SHIFT) as u16
    }
}

impl Entry for ContextDescriptor {
    const INVALID: Self = Self::INVALID;

    fn words(&self) -> &[u64; ENTRY_WORDS] {
        &self.0
    }

    fn used_bits(&self) -> [u64; ENTRY_WORDS] {
        if !self.is_valid() {
            return [V, 0, 0, 0, 0, 0, 0, 0];
        }
        let mut used = [u64::MAX; ENTRY_WORDS];
        if self.0[0] & EPD0 != 0 {
            used[0] &= !TTB0_WALK;
            used[1] &= !TTB0;
        }
        used
    }

    fn safe_bits(&self, _target: &Self) -> [u64; ENTRY_WORDS] {
        [0; ENTRY_WORDS]
    }
}

/// Bytes of a level-1 context descriptor.
pub const LEVEL1_CD_BYTES: u64 = 8;

/// A level-1 context descriptor (5.3): where the level-2 table of a span of SubstreamIDs lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level1ContextDescriptor(pub u64);

impl Level1ContextDescriptor {
    /// L2Ptr, bits 55:12.
    const L2PTR: u64 = 0x00ff_ffff_ffff_f000;

    /// No table: SubstreamIDs of the span abort with C_BAD_SUBSTREAMID.
    pub const INVALID: Self = Self(0);

    /// The level-2 table at `table`: 64 CDs, aligned to 4 KiB, or 1024 CDs, aligned to 64 KiB, as S1Fmt says.
    pub const fn new(table: PhysAddr) -> Self {
        Self(table.0 & Self::L2PTR | 1)
    }

    /// The level-2 table, `None` while V is 0.
    pub const fn table(self) -> Option<PhysAddr> {
        if self.0 & 1 == 0 { None } else { Some(PhysAddr(self.0 & Self::L2PTR)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgtable::Granule;

    #[test]
    fn a_stage_1_descriptor_has_its_fields_where_5_4_says() {
        let geometry = Geometry::stage1(Granule::Size16K, 40, 44).unwrap();
        let descriptor = ContextDescriptor::stage1(&geometry, PhysAddr(0x4123_4000), 0xbeef, 0x04ff);
        let [word0, ttb0, ttb1, mair, rest @ ..] = descriptor.0;
        assert_eq!(word0 & 0x3f, 24, "T0SZ of 40 bits");
        assert_eq!(word0 >> 6 & 0b11, 0b10, "TG0 16 KiB");
        assert_eq!(word0 >> 8 & 0b11_11_11, 0b11_01_01, "SH0, OR0, IR0");
        assert_eq!(word0 >> 14 & 0b11, 0, "EPD0, ENDI");
        assert_eq!(word0 >> 16 & 0xffff, 0b11 << 14, "V, EPD1, nothing of TTB1");
        assert_eq!(word0 >> 32 & 0b111, 4, "IPS 44 bits");
        // AFFD, WXN, UWXN, TBI0, TBI1, PAN, AA64, HD, HA, S, R, A, ASET.
        assert_eq!(word0 >> 35 & 0x1fff, 0b1_1100_0100_0001);
        assert_eq!((word0 >> 48, descriptor.asid()), (0xbeef, 0xbeef));
        assert_eq!((ttb0, ttb1, mair, rest), (0x4123_4000, 0, 0x04ff, [0; 4]));
    }

    #[test]
    fn what_is_not_walked_does_not_matter() {
        let geometry = Geometry::stage1(Granule::Size4K, 40, 44).unwrap();
        let mut descriptor = ContextDescriptor::stage1(&geometry, PhysAddr(0x4123_4000), 1, 0xff);
        assert_eq!(descriptor.used_bits(), [u64::MAX; CD_WORDS]);
        descriptor.0[0] |= EPD0;
        assert_eq!(descriptor.used_bits()[..2], [!0x3fff, 0xff00_0000_0000_000f]);
        assert_eq!(ContextDescriptor::INVALID.used_bits(), [1 << 31, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_level_1_descriptor_has_validity_and_address() {
        let descriptor = Level1ContextDescriptor::new(PhysAddr(0x4123_0000));
        assert_eq!((descriptor.0, descriptor.table()), (0x4123_0001, Some(PhysAddr(0x4123_0000))));
        assert_eq!(Level1ContextDescriptor::INVALID.table(), None);
    }
}
