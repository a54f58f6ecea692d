//! The shape of a translation table: granule, input and output size, levels (DDI 0487, D8.2).

/// A translation granule: the size of a page and of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granule {
    /// 4 KiB: 512 entries a table, blocks of 1 GiB and 2 MiB.
    Size4K,
    /// 16 KiB: 2048 entries a table, blocks of 32 MiB.
    Size16K,
    /// 64 KiB: 8192 entries a table, blocks of 512 MiB.
    Size64K,
}

impl Granule {
    /// The granule of so many bytes, by their base-2 logarithm.
    pub const fn from_log2(log2: u8) -> Option<Self> {
        match log2 {
            12 => Some(Self::Size4K),
            14 => Some(Self::Size16K),
            16 => Some(Self::Size64K),
            _ => None,
        }
    }

    /// Base-2 logarithm of the size in bytes.
    pub const fn log2(self) -> u8 {
        match self {
            Self::Size4K => 12,
            Self::Size16K => 14,
            Self::Size64K => 16,
        }
    }

    /// Size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.log2()
    }
}

/// The shape of one table: of stage 2, as VTCR_EL2 and an STE describe it, or of stage 1, as TCR_EL1 and a CD do. Output
/// addresses have at most 48 bits and descriptors the format without FEAT_LPA2 (DS = 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    granule: Granule,
    ia_bits: u8,
    oa_bits: u8,
    start_level: u8,
    /// Log2 of the bytes that an entry at the start level stands for.
    start_shift: u8,
}

/// Log2 of the tables that may stand side by side at the start level (DDI 0487, "Concatenated translation
/// tables").
const CONCATENATION_LOG2: u8 = 4;

impl Geometry {
    /// A stage-2 table for input addresses (IPAs) of `ia_bits` bits, 32 to 48, and output addresses of
    /// `oa_bits` bits: 32, 36, 40, 42, 44 or 48. `None` for any other number.
    ///
    /// The walk starts at level 1, or at level 2 where one table covers the input; up to 16 tables are concatenated
    /// only at level 1, where that saves level 0, and at level 2 where level 1 is reserved. So there are always blocks, and a
    /// small root is one granule.
    pub const fn stage2(granule: Granule, ia_bits: u8, oa_bits: u8) -> Option<Self> {
        Self::with_concatenation(granule, ia_bits, oa_bits, CONCATENATION_LOG2)
    }

    /// A stage-1 table for virtual addresses of `va_bits` bits, 32 to 48, whose upper bits are 0 (TTB0), and output
    /// addresses of `oa_bits` bits: 32, 36, 40, 42, 44 or 48. `None` for any other number.
    ///
    /// The root is one table: tables are concatenated at stage 2 only. So the walk starts at level 0 as soon as one
    /// table at level 1 does not cover the input.
    pub const fn stage1(granule: Granule, va_bits: u8, oa_bits: u8) -> Option<Self> {
        Self::with_concatenation(granule, va_bits, oa_bits, 0)
    }

    /// A table of which up to `1 << concatenation_log2` may stand side by side at level 1, or at level 2.
    const fn with_concatenation(
        granule: Granule,
        ia_bits: u8,
        oa_bits: u8,
        concatenation_log2: u8,
    ) -> Option<Self> {
        if ia_bits < 32 || ia_bits > 48 || !matches!(oa_bits, 32 | 36 | 40 | 42 | 44 | 48) {
            return None;
        }
        let stride = granule.log2() - 3;
        let mut start_level = 2;
        let mut start_shift = granule.log2() + stride;
        // With 16 KiB pages a walk of stage 2 starts at level 1 only where physical addresses have 42 bits or more (VTCR_EL2.SL0).
        let is_level1_reserved = matches!(granule, Granule::Size16K) && oa_bits < 42;
        if ia_bits > start_shift + stride + if is_level1_reserved { concatenation_log2 } else { 0 } {
            start_level = 1;
            start_shift += stride;
        }
        if ia_bits > start_shift + stride + concatenation_log2 {
            start_level = 0;
            start_shift += stride;
        }
        Some(Self { granule, ia_bits, oa_bits, start_level, start_shift })
    }

    /// The granule.
    #[inline]
    pub const fn granule(&self) -> Granule {
        self.granule
    }

    /// Bits of an input address.
    #[inline]
    pub const fn ia_bits(&self) -> u8 {
        self.ia_bits
    }

    /// Bits of an output address.
    #[inline]
    pub const fn oa_bits(&self) -> u8 {
        self.oa_bits
    }

    /// Level of the first lookup, 0 to 2.
    #[inline]
    pub const fn start_level(&self) -> u8 {
        self.start_level
    }

    /// Tables of the granule's size that stand side by side at the start level: 1, 2, 4, 8 or 16.
    pub const fn root_tables(&self) -> u16 {
        let top = self.start_shift + self.stride();
        if self.ia_bits > top { 1 << (self.ia_bits - top) } else { 1 }
    }

    /// Bytes of the root, and its alignment: [`Self::root_tables`] times the granule, even where fewer
    /// entries of the only table are used.
    pub const fn root_bytes(&self) -> u64 {
        self.root_tables() as u64 * self.granule.bytes()
    }

    /// Entries of the root that input addresses can reach.
    pub const fn root_entries(&self) -> u64 {
        1 << (self.ia_bits - self.start_shift)
    }

    /// Entries of a table below the root: 512, 2048 or 8192.
    #[inline]
    pub const fn entries(&self) -> u64 {
        1 << self.stride()
    }

    /// T0SZ of VTCR_EL2 or TCR_EL1, S2T0SZ of an STE, T0SZ of a CD.
    pub const fn t0sz(&self) -> u8 {
        64 - self.ia_bits
    }

    /// SL0 of VTCR_EL2, S2SL0 of an STE. Stage 1 has no such field: there the level follows from T0SZ.
    pub const fn sl0(&self) -> u8 {
        match self.granule {
            Granule::Size4K => 2 - self.start_level,
            Granule::Size16K | Granule::Size64K => 3 - self.start_level,
        }
    }

    /// TG0 of VTCR_EL2 or TCR_EL1, S2TG of an STE, TG0 of a CD.
    pub const fn tg(&self) -> u8 {
        match self.granule {
            Granule::Size4K => 0b00,
            Granule::Size64K => 0b01,
            Granule::Size16K => 0b10,
        }
    }

    /// PS of VTCR_EL2, IPS of TCR_EL1, S2PS of an STE, IPS of a CD.
    pub const fn ps(&self) -> u8 {
        match self.oa_bits {
            0..=32 => 0b000,
            33..=36 => 0b001,
            37..=40 => 0b010,
            41..=42 => 0b011,
            43..=44 => 0b100,
            _ => 0b101,
        }
    }

    /// Log2 of the bytes that an entry at `level` stands for; `level` is 0 to 3.
    #[inline]
    pub const fn level_shift(&self, level: u8) -> u8 {
        let log2 = self.granule.log2();
        log2.wrapping_add(log2.wrapping_sub(3).wrapping_mul(3u8.wrapping_sub(level)))
    }

    /// Bytes that an entry at `level` stands for; `level` is 0 to 3.
    #[inline]
    pub const fn level_bytes(&self, level: u8) -> u64 {
        1u64.wrapping_shl(self.level_shift(level) as u32)
    }

    /// The highest level at which a block may stand: 1 with 4 KiB pages, else 2 (DDI 0487, without
    /// FEAT_LPA2).
    #[inline]
    pub const fn first_block_level(&self) -> u8 {
        let by_format = match self.granule {
            Granule::Size4K => 1,
            Granule::Size16K | Granule::Size64K => 2,
        };
        if by_format > self.start_level { by_format } else { self.start_level }
    }

    /// Address bits that one level below the start level resolves.
    #[inline]
    pub(crate) const fn stride(&self) -> u8 {
        self.granule.log2() - 3
    }

    /// Log2 of the bytes that an entry at the start level stands for.
    #[inline]
    pub(crate) const fn start_shift(&self) -> u8 {
        self.start_shift
    }

    /// Byte offset in its table of the entry for `ia` at `level`. The concatenated tables of the root count
    /// as one.
    #[inline]
    pub(crate) const fn entry_offset(&self, ia: u64, level: u8) -> u64 {
        let index = ia.wrapping_shr(self.level_shift(level) as u32);
        let mask = if level == self.start_level { u64::MAX } else { (1 << self.stride()) - 1 };
        (index & mask) << 3
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;

    use super::*;

    #[test]
    fn start_levels_follow_the_architecture() {
        // granule, input bits, level, tables, SL0
        let cases = [
            (Granule::Size4K, 32, 1, 1, 1),
            (Granule::Size4K, 35, 1, 1, 1),
            (Granule::Size4K, 39, 1, 1, 1),
            (Granule::Size4K, 40, 1, 2, 1),
            (Granule::Size4K, 43, 1, 16, 1),
            (Granule::Size4K, 44, 0, 1, 2),
            (Granule::Size4K, 48, 0, 1, 2),
            (Granule::Size16K, 32, 2, 1, 1),
            (Granule::Size16K, 36, 2, 1, 1),
            (Granule::Size16K, 37, 1, 1, 2),
            (Granule::Size16K, 41, 1, 1, 2),
            (Granule::Size16K, 48, 1, 2, 2),
            (Granule::Size64K, 32, 2, 1, 1),
            (Granule::Size64K, 42, 2, 1, 1),
            (Granule::Size64K, 43, 1, 1, 2),
            (Granule::Size64K, 48, 1, 1, 2),
        ];
        for (granule, ia_bits, level, tables, sl0) in cases {
            let g = Geometry::stage2(granule, ia_bits, 44).unwrap();
            assert_eq!(
                (g.start_level(), g.root_tables(), g.sl0()),
                (level, tables, sl0),
                "{granule:?} {ia_bits}"
            );
            assert_eq!(g.level_shift(g.start_level()), g.start_shift());
            assert!(g.root_entries() * 8 <= g.root_bytes());
            assert!(g.root_entries() << g.start_shift() == 1 << ia_bits);
        }
        assert_eq!(Geometry::stage2(Granule::Size4K, 31, 44), None);
        assert_eq!(Geometry::stage2(Granule::Size4K, 49, 44), None);
        assert_eq!(Geometry::stage2(Granule::Size4K, 40, 43), None);
        assert_eq!(Geometry::stage2(Granule::Size4K, 40, 52), None);
    }

    /// VTCR_EL2.SL0 and T0SZ, and S2SL0 and S2T0SZ of an STE: some start levels need a large enough physical address size, and the first lookup
    /// resolves from 1 bit to what 16 tables do.
    #[test]
    fn no_start_level_is_reserved() {
        for granule in [Granule::Size4K, Granule::Size16K, Granule::Size64K] {
            for oa_bits in [32, 36, 40, 42, 44, 48] {
                // VMSAv8-32 tables make IPAs of 40 bits, whatever the output size is.
                for ia_bits in 32..=oa_bits.max(40) {
                    let g = Geometry::stage2(granule, ia_bits, oa_bits).unwrap();
                    let (level, least) = match (granule, g.sl0()) {
                        (Granule::Size4K, 0) => (2, 0),
                        (Granule::Size4K, 1) => (1, 0),
                        (Granule::Size4K, 2) => (0, 44),
                        (_, 0) => (3, 0),
                        (_, 1) => (2, 0),
                        (Granule::Size16K, 2) => (1, 42),
                        (Granule::Size64K, 2) => (1, 44),
                        (_, sl0) => panic!("SL0 {sl0} is reserved"),
                    };
                    let name = format!("{granule:?}, {ia_bits} bits to {oa_bits}");
                    assert_eq!(g.start_level(), level, "{name}");
                    assert!(oa_bits >= least, "{name}: SL0 needs {least} bits");
                    let resolved = ia_bits - g.level_shift(level);
                    assert!((1..=granule.log2() - 3 + 4).contains(&resolved), "{name}: {resolved} bits");
                    assert_eq!(g.root_bytes(), (8 << resolved).max(granule.bytes()), "{name}");
                }
            }
        }
    }

    #[test]
    fn stage_1_has_one_root_table() {
        // granule, input bits, level, entries of the root
        let cases = [
            (Granule::Size4K, 32, 1, 4),
            (Granule::Size4K, 39, 1, 512),
            (Granule::Size4K, 40, 0, 2),
            (Granule::Size4K, 48, 0, 512),
            (Granule::Size16K, 36, 2, 2048),
            (Granule::Size16K, 37, 1, 2),
            (Granule::Size16K, 47, 1, 2048),
            (Granule::Size16K, 48, 0, 2),
            (Granule::Size64K, 42, 2, 8192),
            (Granule::Size64K, 43, 1, 2),
            (Granule::Size64K, 48, 1, 64),
        ];
        for (granule, va_bits, level, entries) in cases {
            let g = Geometry::stage1(granule, va_bits, 44).unwrap();
            assert_eq!((g.start_level(), g.root_entries()), (level, entries), "{granule:?} {va_bits}");
            assert_eq!((g.root_tables(), g.root_bytes()), (1, granule.bytes()));
            assert_eq!(g.level_shift(g.start_level()), g.start_shift());
        }
        assert_eq!(Geometry::stage1(Granule::Size4K, 31, 44), None);
        assert_eq!(Geometry::stage1(Granule::Size4K, 49, 44), None);
        assert_eq!(Geometry::stage1(Granule::Size4K, 48, 52), None);
    }

    #[test]
    fn level_sizes() {
        let size = |granule, level| Geometry::stage2(granule, 48, 48).unwrap().level_bytes(level);
        assert_eq!([0, 1, 2, 3].map(|l| size(Granule::Size4K, l)), [1 << 39, 1 << 30, 1 << 21, 1 << 12]);
        assert_eq!([1, 2, 3].map(|l| size(Granule::Size16K, l)), [1 << 36, 1 << 25, 1 << 14]);
        assert_eq!([1, 2, 3].map(|l| size(Granule::Size64K, l)), [1 << 42, 1 << 29, 1 << 16]);
    }
}
