//! Stream table entries and level-1 stream table descriptors (IHI 0070, 5.1 and 5.2).

use crate::address::PhysAddr;
use crate::pgtable::Geometry;

/// Bytes of a stream table entry.
pub const STE_BYTES: u64 = 64;
/// 64-bit words of a stream table entry.
pub const STE_WORDS: usize = 8;

/// Word 0: V.
const V: u64 = 1;
/// Word 0: Config, bits 3:1, for abort.
const CONFIG_ABORT: u64 = 0b000 << 1;
/// Word 0: Config for stage-2 translation only.
const CONFIG_STAGE_2: u64 = 0b110 << 1;
/// Word 1: SHCFG, bits 45:44, for the incoming shareability.
const SHCFG_INCOMING: u64 = 0b01 << 44;
/// Word 2: S2IR0 and S2OR0, bits 41:40 and 43:42: table walks are write-back cacheable.
const S2_WALK_WRITE_BACK: u64 = 0b01 << 40 | 0b01 << 42;
/// Word 2: S2SH0, bits 45:44: table walks are inner shareable.
const S2_WALK_INNER_SHAREABLE: u64 = 0b11 << 44;
/// Word 2: S2AA64: the stage-2 tables are VMSAv8-64.
const S2AA64: u64 = 1 << 51;
/// Word 2: S2AFFD: a clear access flag is no fault.
const S2AFFD: u64 = 1 << 53;
/// Word 2: S2PTW: stage-1 walks into stage-2 Device memory fault.
const S2PTW: u64 = 1 << 54;
/// Word 2: S2R: stage-2 faults are recorded. S2S, bit 57, stays 0: they terminate.
const S2R: u64 = 1 << 58;

/// A stream table entry: its eight 64-bit words, in the order of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamTableEntry(pub [u64; STE_WORDS]);

impl StreamTableEntry {
    /// An entry that is not valid: the stream's transactions abort with C_BAD_STE.
    pub const INVALID: Self = Self([0; STE_WORDS]);

    /// An entry whose stream aborts without an event.
    pub const ABORT: Self = Self([V | CONFIG_ABORT, 0, 0, 0, 0, 0, 0, 0]);

    /// Stage-2 translation by the table at `root`, tagged with `vmid`.
    ///
    /// Fixed besides: faults terminate and are recorded (S2S = 0, S2R = 1), the access flag is not updated and
    /// its fault is off (S2HA = S2HD = 0, S2AFFD = 1), StreamWorld is EL1 (STRW = 0), EATS = 0.
    pub const fn stage2(geometry: &Geometry, root: PhysAddr, vmid: u16) -> Self {
        let vtcr = (geometry.t0sz() as u64) << 32
            | (geometry.sl0() as u64) << 38
            | S2_WALK_WRITE_BACK
            | S2_WALK_INNER_SHAREABLE
            | (geometry.tg() as u64) << 46
            | (geometry.ps() as u64) << 48;
        Self([
            V | CONFIG_STAGE_2,
            SHCFG_INCOMING,
            vmid as u64 | vtcr | S2AA64 | S2AFFD | S2PTW | S2R,
            root.0 & 0x000f_ffff_ffff_fff0,
            0,
            0,
            0,
            0,
        ])
    }

    /// Whether V is set.
    pub const fn is_valid(&self) -> bool {
        self.0[0] & V != 0
    }

    /// S2VMID.
    pub const fn vmid(&self) -> u16 {
        self.0[2] as u16
    }

    /// The bits of each word that matter to the SMMU (5.2 and the list in `docs/architecture.md`).
    ///
    /// `None` for a configuration that this crate does not build: its update is never hitless.
    pub(crate) const fn used_bits(&self) -> Option<[u64; STE_WORDS]> {
        const VALID_AND_CONFIG: u64 = 0xf;
        if !self.is_valid() {
            return Some([V, 0, 0, 0, 0, 0, 0, 0]);
        }
        match self.0[0] & 0b1110 {
            CONFIG_ABORT => Some([VALID_AND_CONFIG, 0, 0, 0, 0, 0, 0, 0]),
            CONFIG_STAGE_2 => Some([
                VALID_AND_CONFIG,
                // MEV, S2FWB, EATS, SHCFG.
                1 << 19 | 1 << 25 | 0b11 << 28 | 0b11 << 44,
                // S2VMID, the VTCR fields, S2AA64 to S2R.
                0xffff | 0x0007_ffff << 32 | 0xff << 51,
                0x000f_ffff_ffff_fff0,
                0,
                0,
                0,
                0,
            ]),
            _ => None,
        }
    }
}

/// Bytes of a level-1 stream table descriptor.
pub const LEVEL1_BYTES: u64 = 8;

/// A level-1 stream table descriptor (5.1): where the level-2 table of a span of StreamIDs lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level1Descriptor(pub u64);

impl Level1Descriptor {
    /// A level-2 table of `1 << split` entries at `table`, which is aligned to its size.
    pub const fn new(table: PhysAddr, split: u8) -> Self {
        Self(table.0 & 0x000f_ffff_ffff_ffc0 | (split as u64 + 1))
    }

    /// The level-2 table.
    pub const fn table(self) -> PhysAddr {
        PhysAddr(self.0 & 0x000f_ffff_ffff_ffc0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgtable::Granule;

    #[test]
    fn a_stage_2_entry_has_the_fields_that_el2_fixes() {
        let geometry = Geometry::stage2(Granule::Size4K, 40, 44).unwrap();
        let entry = StreamTableEntry::stage2(&geometry, PhysAddr(0x4123_4000), 0xbeef);
        let [word0, word1, word2, word3, ..] = entry.0;
        assert_eq!(word0, 0b1101);
        assert_eq!(word1 >> 28 & 0b1111, 0, "EATS = 0, STRW = EL1");
        assert_eq!(word1 >> 27 & 1, 0, "S1STALLD is of stage 1");
        assert_eq!(word2 as u16, 0xbeef);
        assert_eq!(word2 >> 32 & 0x3f, 24, "S2T0SZ of 40 bits");
        assert_eq!(word2 >> 38 & 0b11, 1, "S2SL0: start at level 1");
        assert_eq!(word2 >> 46 & 0b11, 0, "S2TG 4 KiB");
        assert_eq!(word2 >> 48 & 0b111, 4, "S2PS 44 bits");
        // S2AA64, S2ENDI, S2AFFD, S2PTW, S2HD, S2HA, S2S, S2R.
        assert_eq!(word2 >> 51, 0b1000_1101);
        assert_eq!(word3, 0x4123_4000);
        let used = entry.used_bits().unwrap();
        for (word, used) in entry.0.iter().zip(used) {
            assert_eq!(word & !used, 0, "a bit is set that the configuration does not use");
        }
    }

    #[test]
    fn a_level_1_descriptor_has_span_and_address() {
        let descriptor = Level1Descriptor::new(PhysAddr(0x4123_4000), 8);
        assert_eq!(descriptor.0, 0x4123_4009);
        assert_eq!(descriptor.table(), PhysAddr(0x4123_4000));
    }
}
