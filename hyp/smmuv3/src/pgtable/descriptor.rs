//! Descriptors of VMSAv8-64 tables of both stages (DDI 0487, D8.3), and what is kept in the bits that walkers
//! ignore.

use crate::address::PhysAddr;

/// Bit 0: the descriptor is valid.
pub(crate) const VALID: u64 = 1 << 0;
/// Bits 1:0 of a table descriptor (levels 0 to 2) and of a page descriptor (level 3).
pub(crate) const TABLE_OR_PAGE: u64 = 0b11;
/// Bits 1:0 of a block descriptor.
pub(crate) const BLOCK: u64 = 0b01;
/// Bits 47:12: output address or next table.
pub(crate) const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// The low ten bits of the count in a table descriptor, see [`TableInfo`].
const COUNT_LOW: u64 = 0x3ff << 2;
/// One in them.
const COUNT_ONE: u64 = 1 << 2;
/// [`TableInfo::mixed`] in a table descriptor.
pub(crate) const MIXED: u64 = 1 << 58;

/// Attributes of a leaf, of either stage: bits 58:53, 51:50 and 11:2 of its descriptor. The contiguous bit is never set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes(u64);

impl Attributes {
    const MASK: u64 = 0x07ec_0000_0000_0ffc;

    /// Stage 2: MemAttr\[3:0\], bits 5:2, without FWB.
    const NORMAL_WRITE_BACK: u64 = 0b1111 << 2;
    const DEVICE_NGNRE: u64 = 0b0001 << 2;
    /// Stage 2: S2AP, bits 7:6.
    const READ_WRITE: u64 = 0b11 << 6;
    /// SH, bits 9:8.
    const INNER_SHAREABLE: u64 = 0b11 << 8;
    const OUTER_SHAREABLE: u64 = 0b10 << 8;
    /// AF, bit 10: no access raises an Access flag fault.
    const ACCESSED: u64 = 1 << 10;
    /// Stage 2: XN\[1:0\], bits 54:53, = 0b10: no execution at EL1 or EL0, with FEAT_XNX and without.
    const EXECUTE_NEVER: u64 = 0b10 << 53;
    /// Stage 1: AttrIndx, bits 4:2: a byte of MAIR.
    const ATTR_INDEX_SHIFT: u32 = 2;
    /// Stage 1: AP\[1\], bit 6: unprivileged accesses too.
    const UNPRIVILEGED: u64 = 1 << 6;
    /// Stage 1: AP\[2\], bit 7: no writes.
    const READ_ONLY: u64 = 1 << 7;
    /// Stage 1: nG, bit 11: tagged with the ASID.
    const NOT_GLOBAL: u64 = 1 << 11;
    /// Stage 1: PXN and UXN, bits 53 and 54: no execution, privileged or not.
    const PRIVILEGED_AND_UNPRIVILEGED_EXECUTE_NEVER: u64 = 0b11 << 53;

    /// The value of MAIR that [`Self::io_stage1_normal`] and [`Self::io_stage1_device`] choose from: Attr0 is Normal
    /// Write-Back (inner and outer, read- and write-allocate), Attr1 is Device-nGnRE.
    pub const IO_MAIR: u64 = 0x04ff;

    /// CPU stage 2: Normal Write-Back memory, read and write, executable or not. It is the weakest type, so
    /// stage 1 alone decides: also right for device space that the host maps with types of its own.
    pub const fn stage2_normal(exec: bool) -> Self {
        let bits = Self::NORMAL_WRITE_BACK | Self::READ_WRITE | Self::INNER_SHAREABLE | Self::ACCESSED;
        Self(if exec { bits } else { bits | Self::EXECUTE_NEVER })
    }

    /// CPU stage 2: Device-nGnRE, read and write, not executable, whatever stage 1 says.
    pub const fn stage2_device() -> Self {
        let bits = Self::DEVICE_NGNRE | Self::READ_WRITE | Self::OUTER_SHAREABLE | Self::ACCESSED;
        Self(bits | Self::EXECUTE_NEVER)
    }

    /// I/O stage 2: Normal Write-Back, Inner Shareable, read and write, not executable.
    pub const fn io_stage2_normal() -> Self {
        Self::stage2_normal(false)
    }

    /// I/O stage 2 for an MSI doorbell: Device-nGnRE, read and write, not executable.
    pub const fn io_stage2_device() -> Self {
        Self::stage2_device()
    }

    /// I/O stage 1: the memory type that byte `mair_index` (0 to 7) of the CD's MAIR names, Inner Shareable; read and,
    /// if `write`, written by privileged and unprivileged transactions; not executable; of one ASID (nG = 1).
    pub const fn io_stage1(mair_index: u8, write: bool) -> Self {
        let bits = ((mair_index & 7) as u64) << Self::ATTR_INDEX_SHIFT
            | Self::UNPRIVILEGED
            | Self::INNER_SHAREABLE
            | Self::ACCESSED
            | Self::NOT_GLOBAL
            | Self::PRIVILEGED_AND_UNPRIVILEGED_EXECUTE_NEVER;
        Self(if write { bits } else { bits | Self::READ_ONLY })
    }

    /// I/O stage 1: Normal Write-Back, under [`Self::IO_MAIR`].
    pub const fn io_stage1_normal(write: bool) -> Self {
        Self::io_stage1(0, write)
    }

    /// I/O stage 1: Device-nGnRE, read and write, under [`Self::IO_MAIR`]. For an MSI doorbell.
    pub const fn io_stage1_device() -> Self {
        Self::io_stage1(1, true)
    }

    /// The attribute bits of a leaf descriptor; others are dropped.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & Self::MASK)
    }

    /// The bits as they stand in the descriptor.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// A leaf descriptor for `level`.
#[inline]
pub(crate) const fn leaf(output: PhysAddr, level: u8, attributes: Attributes) -> u64 {
    output.0 | attributes.0 | if level == 3 { TABLE_OR_PAGE } else { BLOCK }
}

/// The leaf descriptor `descriptor` rewritten for another `level`: same output address and attributes.
#[inline]
pub(crate) const fn at_level(descriptor: u64, level: u8) -> u64 {
    (descriptor & !TABLE_OR_PAGE) | if level == 3 { TABLE_OR_PAGE } else { BLOCK }
}

/// Output address of a leaf, or address of the next table.
#[inline]
pub(crate) const fn address(descriptor: u64) -> PhysAddr {
    PhysAddr(descriptor & ADDRESS)
}

/// Whether a descriptor found at `level` points to a table.
#[inline]
pub(crate) const fn is_table(descriptor: u64, level: u8) -> bool {
    level < 3 && descriptor & TABLE_OR_PAGE == TABLE_OR_PAGE
}

/// What a table descriptor says about the table it points to.
///
/// Bits 11:2 and 58:55 of a table descriptor are ignored by walkers at both stages (DDI 0487, D8.3.1.1). At stage 1 the
/// attributes for the levels below (NSTable, APTable, UXNTable, PXNTable) are bits 63:59, which stay 0. Bits 11:2 are
/// not ignored with DS = 1 (bits 9:8 are of the address) and with HAFT (bit 10 is the access flag of a table): no
/// VTCR_EL2, STE or CD of this project enables either.
///
/// They hold a 14-bit number, the low ten bits in 11:2: bits 12:0 are the count of valid entries less one (a linked
/// table is never empty), bit 13 is `mixed`. Changing them needs no invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableInfo {
    /// Valid entries, 1 to 8192.
    pub count: u64,
    /// Clear: all valid entries are leaves of one run, contiguous and equal in attributes, that would be a
    /// block if the table were full. Set: nothing is known.
    pub mixed: bool,
}

impl TableInfo {
    /// From a table descriptor.
    #[inline]
    pub(crate) const fn of(descriptor: u64) -> Self {
        let low = (descriptor >> 2) & 0x3ff;
        let high = (descriptor >> 55) & 0x7;
        Self { count: (high << 10 | low).wrapping_add(1), mixed: descriptor & MIXED != 0 }
    }

    /// The descriptor of `table` with this content.
    #[inline]
    pub(crate) const fn descriptor(self, table: PhysAddr) -> u64 {
        let less_one = self.count.wrapping_sub(1);
        let mixed = if self.mixed { MIXED } else { 0 };
        table.0 | TABLE_OR_PAGE | (less_one & 0x3ff) << 2 | ((less_one >> 10) & 0x7) << 55 | mixed
    }
}

/// A table descriptor after one entry became valid; `None` where the low ten bits of the count would carry.
#[inline]
pub(crate) const fn one_more(descriptor: u64) -> Option<u64> {
    if descriptor & COUNT_LOW == COUNT_LOW { None } else { Some(descriptor.wrapping_add(COUNT_ONE)) }
}

/// A table descriptor after one entry became invalid; `None` where the low ten bits of the count would
/// borrow, which includes the last valid entry.
#[inline]
pub(crate) const fn one_less(descriptor: u64) -> Option<u64> {
    if descriptor & COUNT_LOW == 0 { None } else { Some(descriptor.wrapping_sub(COUNT_ONE)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_in_ignored_bits() {
        for count in [1, 2, 511, 512, 1024, 1025, 2048, 8191, 8192] {
            for mixed in [false, true] {
                let descriptor = TableInfo { count, mixed }.descriptor(PhysAddr(0xffff_ffff_0000));
                assert_eq!(TableInfo::of(descriptor), TableInfo { count, mixed });
                assert_eq!(address(descriptor), PhysAddr(0xffff_ffff_0000));
                assert_eq!(descriptor & !(0x3ff << 2 | 0xf << 55), 0xffff_ffff_0003);
            }
        }
    }

    #[test]
    fn counting_by_one() {
        for count in 1..8192 {
            let here = TableInfo { count, mixed: false }.descriptor(PhysAddr(0x1000));
            let next = TableInfo { count: count + 1, mixed: false }.descriptor(PhysAddr(0x1000));
            assert_eq!(one_more(here), if count % 1024 == 0 { None } else { Some(next) });
            assert_eq!(one_less(next), if count % 1024 == 0 { None } else { Some(here) });
        }
    }

    #[test]
    fn attributes_are_those_of_the_architecture() {
        assert_eq!(Attributes::stage2_normal(true).bits(), 0x7fc);
        assert_eq!(Attributes::io_stage2_normal().bits(), 0x0040_0000_0000_07fc);
        assert_eq!(Attributes::io_stage2_device().bits(), 0x0040_0000_0000_06c4);
        // nG, AF, SH inner, AP[2:1], AttrIndx; UXN, PXN.
        assert_eq!(Attributes::io_stage1_normal(true).bits(), 0b11 << 53 | 0xf40);
        assert_eq!(Attributes::io_stage1_normal(false).bits(), 0b11 << 53 | 0xfc0);
        assert_eq!(Attributes::io_stage1_device().bits(), 0b11 << 53 | 0xf44);
        assert_eq!(Attributes::io_stage1(7, true).bits() >> 2 & 0b1111, 7, "NS = 0");
        assert_eq!(Attributes::from_bits(u64::MAX).bits() & (1 << 52 | ADDRESS | 3), 0);
    }
}
