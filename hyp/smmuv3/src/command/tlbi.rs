//! TLB invalidation (IHI 0070, 4.4).

use super::{Command, field, opcode};

/// What a `TLBI` by address says about the leaves that it covers (4.4.1): Leaf, TTL and TG, as they stand in word 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafHints(u64);

impl LeafHints {
    /// * `tg`: 0 no hint and no range, 1 4 KiB, 2 16 KiB, 3 64 KiB.
    /// * `ttl`: 0 no hint, else the level of the leaves (1 to 3).
    /// * `leaf`: only leaves, not the tables above them.
    pub const fn new(tg: u8, ttl: u8, leaf: bool) -> Self {
        Self(leaf as u64 | field::write(field::TTL, ttl as u64) | field::write(field::TG, tg as u64))
    }

    /// TG.
    pub const fn tg(self) -> u8 {
        field::read(self.0, field::TG) as u8
    }

    /// TTL.
    pub const fn ttl(self) -> u8 {
        field::read(self.0, field::TTL) as u8
    }

    /// Leaf.
    pub const fn leaf(self) -> bool {
        self.0 & field::LEAF != 0
    }
}

/// The range of a `TLBI` by address (4.4.1). Without range invalidation NUM, SCALE, TG and TTL are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlbiRange {
    /// First address; bits below the granule are 0.
    pub address: u64,
    /// NUM: `num + 1` runs of pages, 0 to 31.
    pub num: u8,
    /// SCALE: a run is `1 << scale` pages, 0 to 39, or to 31 where IDR5.DS is 0.
    pub scale: u8,
    /// Which leaves.
    pub hints: LeafHints,
}

impl TlbiRange {
    /// NUM and SCALE in word 0, the address and the hints in word 1: a `TLBI` by address without opcode and tag.
    pub(crate) const fn fields(self) -> Command {
        let span = field::write(field::NUM, self.num as u64) | field::write(field::SCALE, self.scale as u64);
        Command([span, self.address & field::ADDRESS | self.hints.0])
    }
}

/// A `TLBI` of `range` under a tag.
const fn by_address(opcode: u8, vmid: u16, asid: u16, range: TlbiRange) -> Command {
    let Command([span, address]) = range.fields();
    Command([by_tag(opcode, vmid, asid) | span, address])
}

/// Word 0 of a `TLBI`.
const fn by_tag(opcode: u8, vmid: u16, asid: u16) -> u64 {
    opcode as u64 | field::write(field::VMID, vmid as u64) | field::write(field::ASID, asid as u64)
}

impl Command {
    /// CMD_TLBI_NH_ALL (4.4.2.1): forget all stage-1 translations of a VMID.
    pub const fn tlbi_nh_all(vmid: u16) -> Self {
        Self([by_tag(opcode::TLBI_NH_ALL, vmid, 0), 0])
    }

    /// CMD_TLBI_NH_ASID (4.4.2.2): forget the stage-1 translations of an ASID of a VMID, but for global ones.
    pub const fn tlbi_nh_asid(vmid: u16, asid: u16) -> Self {
        Self([by_tag(opcode::TLBI_NH_ASID, vmid, asid), 0])
    }

    /// CMD_TLBI_NH_VAA (4.4.2.3): forget the stage-1 translations of a VMID for a range of VAs, under every ASID.
    pub const fn tlbi_nh_vaa(vmid: u16, range: TlbiRange) -> Self {
        by_address(opcode::TLBI_NH_VAA, vmid, 0, range)
    }

    /// CMD_TLBI_NH_VA (4.4.2.4): forget the stage-1 translations of an ASID of a VMID for a range of VAs, and
    /// global ones.
    pub const fn tlbi_nh_va(vmid: u16, asid: u16, range: TlbiRange) -> Self {
        by_address(opcode::TLBI_NH_VA, vmid, asid, range)
    }

    /// CMD_TLBI_EL2_ALL (4.4.2.7): forget all translations of StreamWorld EL2. Legal where IDR0.HYP is 1.
    pub const fn tlbi_el2_all() -> Self {
        Self([by_tag(opcode::TLBI_EL2_ALL, 0, 0), 0])
    }

    /// CMD_TLBI_EL2_VA (4.4.2.8): forget the translations of an ASID of StreamWorld EL2-E2H for a range of VAs, and
    /// global ones. Legal where IDR0.HYP is 1; without CR2.E2H the ASID is ignored.
    pub const fn tlbi_el2_va(asid: u16, range: TlbiRange) -> Self {
        by_address(opcode::TLBI_EL2_VA, 0, asid, range)
    }

    /// CMD_TLBI_EL2_ASID (4.4.2.10): forget the translations of an ASID of StreamWorld EL2-E2H, but for global ones.
    /// Legal where IDR0.HYP is 1.
    pub const fn tlbi_el2_asid(asid: u16) -> Self {
        Self([by_tag(opcode::TLBI_EL2_ASID, 0, asid), 0])
    }

    /// CMD_TLBI_S2_IPA (4.4.3.1): forget the stage-2 translations of a VMID for a range of IPAs. What was cached of
    /// both stages together stays.
    pub const fn tlbi_s2_ipa(vmid: u16, range: TlbiRange) -> Self {
        by_address(opcode::TLBI_S2_IPA, vmid, 0, range)
    }

    /// CMD_TLBI_S12_VMALL (4.4.3.2): forget both stages of a VMID.
    pub const fn tlbi_s12_vmall(vmid: u16) -> Self {
        Self([by_tag(opcode::TLBI_S12_VMALL, vmid, 0), 0])
    }

    /// CMD_TLBI_NSNH_ALL (4.4.4.1): forget all Non-secure translations that are not EL2's.
    pub const fn tlbi_nsnh_all() -> Self {
        Self([by_tag(opcode::TLBI_NSNH_ALL, 0, 0), 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVEL_2: TlbiRange =
        TlbiRange { address: 0x4020_0000, num: 2, scale: 9, hints: LeafHints::new(1, 2, true) };

    #[test]
    fn tags_stand_in_the_upper_half_of_word_0() {
        assert_eq!(Command::tlbi_nh_all(7).0, [0x0000_0007_0000_0010, 0]);
        assert_eq!(Command::tlbi_nh_asid(7, 0xabcd).0, [0xabcd_0007_0000_0011, 0]);
        assert_eq!(Command::tlbi_el2_all().0, [0x20, 0]);
        assert_eq!(Command::tlbi_el2_asid(3).0, [0x0003_0000_0000_0021, 0]);
        assert_eq!(Command::tlbi_s12_vmall(7).0, [0x0000_0007_0000_0028, 0]);
        assert_eq!(Command::tlbi_nsnh_all().0, [0x30, 0]);
    }

    #[test]
    fn ranges_stand_where_4_4_1_says() {
        let range = TlbiRange { address: 0x4020_0000, num: 0, scale: 9, hints: LeafHints::new(1, 0, false) };
        assert_eq!(Command::tlbi_s2_ipa(2, range).0, [0x2_0090_002a, 0x4020_0400]);
        let page = TlbiRange { address: 0x4020_0000, num: 0, scale: 0, hints: LeafHints::new(1, 3, true) };
        assert_eq!(Command::tlbi_s2_ipa(2, page).0, [0x2_0000_002a, 0x4020_0701]);
        assert_eq!(Command::tlbi_nh_va(2, 5, LEVEL_2).0, [0x0005_0002_0090_2012, 0x4020_0601]);
        assert_eq!(Command::tlbi_nh_vaa(2, LEVEL_2).0, [0x0000_0002_0090_2013, 0x4020_0601]);
        assert_eq!(Command::tlbi_el2_va(5, LEVEL_2).0, [0x0005_0000_0090_2022, 0x4020_0601]);
    }

    #[test]
    fn a_value_too_large_stays_in_its_field() {
        let range =
            TlbiRange { address: u64::MAX, num: 0xff, scale: 0xff, hints: LeafHints::new(0, 0, false) };
        assert_eq!(Command::tlbi_s2_ipa(0, range).0, [0x03f1_f02a, !0xfff]);
    }
}
