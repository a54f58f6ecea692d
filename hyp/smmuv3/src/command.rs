//! Commands (IHI 0070, chapter 4).

mod error;
pub(crate) mod field;
pub mod opcode;
mod tlbi;

pub use error::CommandError;
pub use tlbi::{LeafHints, TlbiRange};

use core::fmt;

/// Bytes of a command.
pub const COMMAND_BYTES: u64 = 16;

/// One command: its two 64-bit words, in the order of memory.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Command(pub [u64; 2]);

/// Size of an ATC_INV that covers the whole address space.
pub const ATC_INV_EVERYTHING: u8 = 52;

/// Word 0 of a command about a stream.
const fn of_stream(opcode: u8, stream: u32) -> u64 {
    opcode as u64 | field::write(field::STREAM, stream as u64)
}

/// Word 1 of ATC_INV: Address, aligned to the span as the SMMU would, and Size.
const fn atc_span(address: u64, size: u8) -> u64 {
    let below = if size >= ATC_INV_EVERYTHING { u64::MAX } else { (0x1000 << size) - 1 };
    address & !below | field::write(field::SIZE, size as u64)
}

impl Command {
    /// The opcode: bits 7:0.
    pub const fn opcode(self) -> u8 {
        self.0[0] as u8
    }

    /// StreamID, of a command that has one.
    pub const fn stream(self) -> u32 {
        field::read(self.0[0], field::STREAM) as u32
    }

    /// CMD_CFGI_STE (4.3.1): forget the STE of `stream`, and where `leaf` is false the level-1 descriptor above it.
    pub const fn cfgi_ste(stream: u32, leaf: bool) -> Self {
        Self([of_stream(opcode::CFGI_STE, stream), leaf as u64])
    }

    /// CMD_CFGI_STE_RANGE (4.3.2): forget the STEs of the `2^(range + 1)` streams around `stream`, and what is above
    /// them.
    pub const fn cfgi_ste_range(stream: u32, range: u8) -> Self {
        Self([of_stream(opcode::CFGI_STE_RANGE, stream), (range & 0x1f) as u64])
    }

    /// CMD_CFGI_CD (4.3.3): forget the CD of a SubstreamID (20 bits) of `stream`, and where `leaf` is false the
    /// level-1 descriptor above it.
    pub const fn cfgi_cd(stream: u32, ssid: u32, leaf: bool) -> Self {
        Self([of_stream(opcode::CFGI_CD, stream) | field::write(field::SUBSTREAM, ssid as u64), leaf as u64])
    }

    /// CMD_CFGI_CD_ALL (4.3.4): forget all CDs of `stream`, and all level-1 descriptors above them.
    pub const fn cfgi_cd_all(stream: u32) -> Self {
        Self([of_stream(opcode::CFGI_CD_ALL, stream), 0])
    }

    /// CMD_CFGI_ALL (4.3.6): forget all configuration.
    pub const fn cfgi_all() -> Self {
        Self::cfgi_ste_range(0, 31)
    }

    /// CMD_ATC_INV (4.5.1) without a SubstreamID: the device behind `stream` forgets the `4096 << size` bytes around
    /// `address`; size [`ATC_INV_EVERYTHING`], which is the largest, is all of them.
    pub const fn atc_inv(stream: u32, address: u64, size: u8) -> Self {
        Self([of_stream(opcode::ATC_INV, stream), atc_span(address, size)])
    }

    /// CMD_ATC_INV (4.5.1) of one SubstreamID (20 bits), with `global` of all of them: as [`Self::atc_inv`] else.
    pub const fn atc_inv_substream(stream: u32, ssid: u32, global: bool, address: u64, size: u8) -> Self {
        let which =
            field::SSV | if global { field::GLOBAL } else { 0 } | field::write(field::SUBSTREAM, ssid as u64);
        Self([of_stream(opcode::ATC_INV, stream) | which, atc_span(address, size)])
    }

    /// CMD_SYNC (4.7.3) with CS = SIG_NONE: complete when CMDQ_CONS has gone past it.
    pub const fn sync() -> Self {
        Self([opcode::SYNC as u64, 0])
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({:#018x}, {:#018x})", self.0[0], self.0[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_commands_name_stream_and_substream() {
        assert_eq!(Command::cfgi_ste(0x1234, true).0, [0x1234_0000_0003, 1]);
        assert_eq!(Command::cfgi_all().0, [0x04, 31]);
        assert_eq!(Command::cfgi_cd(0x1234, 0xa_bcde, true).0, [0x1234_abcd_e005, 1]);
        assert_eq!(Command::cfgi_cd(0x1234, 0, false).0, [0x1234_0000_0005, 0]);
        assert_eq!(Command::cfgi_cd_all(0xffff_ffff).0, [0xffff_ffff_0000_0006, 0]);
        assert_eq!(Command::sync().0, [0x46, 0]);
    }

    #[test]
    fn an_atc_invalidation_is_aligned_to_its_span() {
        assert_eq!(Command::atc_inv(0x10, 0x8000_0000, 3).0, [0x10_0000_0040, 0x8000_0003]);
        assert_eq!(Command::atc_inv(0x10, 0x8000_9fff, 3).0, [0x10_0000_0040, 0x8000_8003]);
        assert_eq!(Command::atc_inv(0x10, !0, 51).0, [0x10_0000_0040, 1 << 63 | 51]);
        assert_eq!(Command::atc_inv(0x10, !0, ATC_INV_EVERYTHING).0, [0x10_0000_0040, 52]);
    }

    #[test]
    fn an_atc_invalidation_of_a_substream_has_ssv() {
        let one = Command::atc_inv_substream(0x10, 0xf_fffe, false, 0x1000, 0);
        assert_eq!(one.0, [0x10_ffff_e840, 0x1000]);
        assert_eq!(Command::atc_inv_substream(0x10, 1, true, 0, 0).0, [0x10_0000_1a40, 0]);
    }
}
