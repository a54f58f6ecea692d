//! Commands (IHI 0070, chapter 4).

use core::fmt;

/// Opcodes (4.1.2).
pub mod opcode {
    /// CMD_CFGI_STE.
    pub const CFGI_STE: u8 = 0x03;
    /// CMD_CFGI_STE_RANGE; with Range 31 it is CMD_CFGI_ALL.
    pub const CFGI_STE_RANGE: u8 = 0x04;
    /// CMD_CFGI_CD.
    pub const CFGI_CD: u8 = 0x05;
    /// CMD_CFGI_CD_ALL.
    pub const CFGI_CD_ALL: u8 = 0x06;
    /// CMD_TLBI_NH_ALL.
    pub const TLBI_NH_ALL: u8 = 0x10;
    /// CMD_TLBI_NH_ASID.
    pub const TLBI_NH_ASID: u8 = 0x11;
    /// CMD_TLBI_NH_VA.
    pub const TLBI_NH_VA: u8 = 0x12;
    /// CMD_TLBI_EL2_ALL.
    pub const TLBI_EL2_ALL: u8 = 0x20;
    /// CMD_TLBI_S12_VMALL.
    pub const TLBI_S12_VMALL: u8 = 0x28;
    /// CMD_TLBI_S2_IPA.
    pub const TLBI_S2_IPA: u8 = 0x2a;
    /// CMD_TLBI_NSNH_ALL.
    pub const TLBI_NSNH_ALL: u8 = 0x30;
    /// CMD_ATC_INV.
    pub const ATC_INV: u8 = 0x40;
    /// CMD_SYNC.
    pub const SYNC: u8 = 0x46;
}

/// Bytes of a command.
pub const COMMAND_BYTES: u64 = 16;

/// One command: its two 64-bit words, in the order of memory.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Command(pub [u64; 2]);

/// What a `TLBI` by address says about the leaves that it covers (4.4.1): Leaf, TTL and TG, as they stand in word 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafHints(u64);

impl LeafHints {
    /// * `tg`: 0 no hint and no range, 1 4 KiB, 2 16 KiB, 3 64 KiB.
    /// * `ttl`: 0 no hint, else the level of the leaves (1 to 3).
    /// * `leaf`: only leaves, not the tables above them.
    pub const fn new(tg: u8, ttl: u8, leaf: bool) -> Self {
        Self(leaf as u64 | ((ttl & 3) as u64) << 8 | ((tg & 3) as u64) << 10)
    }

    /// TG.
    pub const fn tg(self) -> u8 {
        (self.0 >> 10) as u8 & 3
    }

    /// TTL.
    pub const fn ttl(self) -> u8 {
        (self.0 >> 8) as u8 & 3
    }

    /// Leaf.
    pub const fn leaf(self) -> bool {
        self.0 & 1 != 0
    }
}

/// The range of a `TLBI` by address (4.4.1). Without range invalidation NUM, SCALE, TG and TTL are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlbiRange {
    /// First address; bits below the granule are 0.
    pub address: u64,
    /// NUM: `num + 1` runs of pages, 0 to 31.
    pub num: u8,
    /// SCALE: a run is `1 << scale` pages, 0 to 39.
    pub scale: u8,
    /// Which leaves.
    pub hints: LeafHints,
}

impl Command {
    const fn of(opcode: u8) -> u64 {
        opcode as u64
    }

    /// The opcode: bits 7:0.
    pub const fn opcode(self) -> u8 {
        self.0[0] as u8
    }

    /// CMD_CFGI_STE (4.3.1): forget the STE of `stream`, and where `leaf` is false the level-1 descriptor above it.
    pub const fn cfgi_ste(stream: u32, leaf: bool) -> Self {
        Self([Self::of(opcode::CFGI_STE) | (stream as u64) << 32, leaf as u64])
    }

    /// CMD_CFGI_STE_RANGE (4.3.2): forget the STEs of the `2^(range + 1)` streams around `stream`, and what is above
    /// them.
    pub const fn cfgi_ste_range(stream: u32, range: u8) -> Self {
        Self([Self::of(opcode::CFGI_STE_RANGE) | (stream as u64) << 32, (range & 0x1f) as u64])
    }

    /// CMD_CFGI_ALL (4.3.5): forget all configuration.
    pub const fn cfgi_all() -> Self {
        Self::cfgi_ste_range(0, 31)
    }

    /// CMD_TLBI_NH_ALL (4.4.2.1): forget all stage-1 translations of a VMID.
    pub const fn tlbi_nh_all(vmid: u16) -> Self {
        Self([Self::of(opcode::TLBI_NH_ALL) | (vmid as u64) << 32, 0])
    }

    /// CMD_TLBI_EL2_ALL (4.4.3.1): forget all translations of StreamWorld EL2.
    pub const fn tlbi_el2_all() -> Self {
        Self([Self::of(opcode::TLBI_EL2_ALL), 0])
    }

    /// CMD_TLBI_NSNH_ALL (4.4.4.3): forget all Non-secure translations that are not EL2's.
    pub const fn tlbi_nsnh_all() -> Self {
        Self([Self::of(opcode::TLBI_NSNH_ALL), 0])
    }

    /// CMD_TLBI_S12_VMALL (4.4.4.2): forget both stages of a VMID.
    pub const fn tlbi_s12_vmall(vmid: u16) -> Self {
        Self([Self::of(opcode::TLBI_S12_VMALL) | (vmid as u64) << 32, 0])
    }

    /// CMD_TLBI_S2_IPA (4.4.4.1): forget the stage-2 translations of a VMID for a range of IPAs.
    pub const fn tlbi_s2_ipa(vmid: u16, range: TlbiRange) -> Self {
        Self([
            Self::of(opcode::TLBI_S2_IPA)
                | (range.num as u64) << 12
                | (range.scale as u64) << 20
                | (vmid as u64) << 32,
            range.address | range.hints.0,
        ])
    }

    /// CMD_ATC_INV (4.5.1) without a SubstreamID: the device behind `stream` forgets the `4096 << size` bytes at
    /// `address`, which is aligned to them; size 52 is everything.
    pub const fn atc_inv(stream: u32, address: u64, size: u8) -> Self {
        Self([Self::of(opcode::ATC_INV) | (stream as u64) << 32, (address & !0xfff) | (size & 0x3f) as u64])
    }

    /// CMD_SYNC (4.7.3) with CS = SIG_NONE: complete when CMDQ_CONS has gone past it.
    pub const fn sync() -> Self {
        Self([Self::of(opcode::SYNC), 0])
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({:#018x}, {:#018x})", self.0[0], self.0[1])
    }
}

/// Why the command queue stopped: CMDQ_CONS.ERR (7.1). Open, because hardware may say what this text does not know.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CommandError(pub u8);

impl CommandError {
    /// CERROR_ILL: a command is not legal on this SMMU.
    pub const ILLEGAL: Self = Self(1);
    /// CERROR_ABT: reading the queue was aborted.
    pub const ABORT: Self = Self(2);
    /// CERROR_ATC_INV_SYNC: a CMD_SYNC found that an ATC did not answer.
    pub const ATC_INV_SYNC: Self = Self(3);
}

impl fmt::Debug for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ILLEGAL => f.write_str("CERROR_ILL (illegal command)"),
            Self::ABORT => f.write_str("CERROR_ABT (reading the queue was aborted)"),
            Self::ATC_INV_SYNC => f.write_str("CERROR_ATC_INV_SYNC (an ATC did not answer)"),
            Self(other) => write!(f, "CMDQ_CONS.ERR {other:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_specification() {
        assert_eq!(Command::cfgi_ste(0x1234, true).0, [0x1234_0000_0003, 1]);
        assert_eq!(Command::cfgi_all().0, [0x04, 31]);
        assert_eq!(Command::tlbi_s12_vmall(7).0, [0x7_0000_0028, 0]);
        assert_eq!(Command::sync().0, [0x46, 0]);
        assert_eq!(Command::atc_inv(0x10, 0x8000_0000, 3).0, [0x10_0000_0040, 0x8000_0003]);
        let range = TlbiRange { address: 0x4020_0000, num: 0, scale: 9, hints: LeafHints::new(1, 0, false) };
        assert_eq!(Command::tlbi_s2_ipa(2, range).0, [0x2_0090_002a, 0x4020_0400]);
        let page = TlbiRange { address: 0x4020_0000, num: 0, scale: 0, hints: LeafHints::new(1, 3, true) };
        assert_eq!(Command::tlbi_s2_ipa(2, page).0, [0x2_0000_002a, 0x4020_0701]);
    }
}
