//! ESR_EL2 and HPFAR_EL2: why EL2 was entered (DDI 0487, D24.2.40 and D24.2.63).

use core::fmt;

use smmuv3::address::PhysAddr;

/// ESR_EL2.EC, bits 31:26. Open: an encoding that is not named is a value like any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class(pub u8);

impl Class {
    /// HVC instruction in AArch64 state.
    pub const HVC64: Self = Self(0x16);
    /// SMC instruction in AArch64 state, trapped by HCR_EL2.TSC.
    pub const SMC64: Self = Self(0x17);
    /// MSR, MRS or system instruction in AArch64 state.
    pub const SYSTEM_REGISTER: Self = Self(0x18);
    /// Instruction abort from a lower Exception level.
    pub const INSTRUCTION_ABORT_LOWER: Self = Self(0x20);
    /// Instruction abort taken without a change of Exception level.
    pub const INSTRUCTION_ABORT_SAME: Self = Self(0x21);
    /// Data abort from a lower Exception level.
    pub const DATA_ABORT_LOWER: Self = Self(0x24);
    /// Data abort taken without a change of Exception level.
    pub const DATA_ABORT_SAME: Self = Self(0x25);
    /// SError exception.
    pub const SERROR: Self = Self(0x2f);

    /// The class in words.
    pub fn words(self) -> &'static str {
        match self.0 {
            0x00 => "unknown reason",
            0x01 => "WFI or WFE",
            0x07 => "SVE, SIMD or floating-point access",
            0x09 => "pointer authentication",
            0x0a => "LD64B or ST64B",
            0x0d => "branch target",
            0x0e => "illegal execution state",
            0x15 => "SVC in AArch64 state",
            0x16 => "HVC in AArch64 state",
            0x17 => "SMC in AArch64 state",
            0x18 => "MSR, MRS or system instruction",
            0x19 => "SVE access",
            0x1a => "ERET",
            0x1c => "pointer authentication failure",
            0x1d => "SME access",
            0x20 => "instruction abort from a lower Exception level",
            0x21 => "instruction abort at EL2",
            0x22 => "PC alignment fault",
            0x24 => "data abort from a lower Exception level",
            0x25 => "data abort at EL2",
            0x26 => "SP alignment fault",
            0x2c => "floating-point exception",
            0x2f => "SError",
            0x30 | 0x31 => "breakpoint",
            0x32 | 0x33 => "software step",
            0x34 | 0x35 => "watchpoint",
            0x3c => "BRK instruction",
            _ => "reserved or AArch32 class",
        }
    }
}

/// A value of ESR_EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syndrome(pub u64);

impl Syndrome {
    /// EC.
    #[inline]
    pub const fn class(self) -> Class {
        Class((self.0 >> 26 & 0x3f) as u8)
    }

    /// ISS, bits 24:0.
    #[inline]
    pub const fn iss(self) -> u32 {
        (self.0 & 0x1ff_ffff) as u32
    }

    /// Whether the instruction has 32 bits (IL).
    pub const fn is_32_bit(self) -> bool {
        self.0 >> 25 & 1 == 1
    }

    /// The immediate of an HVC or SMC instruction.
    #[inline]
    pub const fn immediate(self) -> u16 {
        self.0 as u16
    }

    /// Whether this is an instruction or data abort.
    pub const fn is_abort(self) -> bool {
        matches!(self.class().0, 0x20 | 0x21 | 0x24 | 0x25)
    }

    /// Fault status code of an abort (DFSC or IFSC, bits 5:0).
    #[inline]
    pub const fn fault(self) -> FaultStatus {
        FaultStatus((self.0 & 0x3f) as u8)
    }

    /// Whether a stage-1 table walk made the access that stage 2 refused (S1PTW).
    #[inline]
    pub const fn in_stage1_walk(self) -> bool {
        self.0 >> 7 & 1 == 1
    }

    /// Whether the access was a write (WnR); a cache maintenance instruction (CM) counts as a write here too.
    pub const fn is_write(self) -> bool {
        self.0 >> 6 & 1 == 1
    }

    /// Whether FAR_EL2 does not hold the address (FnV).
    pub const fn far_is_invalid(self) -> bool {
        self.0 >> 10 & 1 == 1
    }

    /// The access that a data abort from a lower Exception level made; `None` when the syndrome does not
    /// describe it (ISV = 0) or this is not such an abort.
    pub const fn access(self) -> Option<DataAccess> {
        let valid = self.class().0 == Class::DATA_ABORT_LOWER.0 && self.0 >> 24 & 1 == 1;
        // A cache maintenance instruction carries no data, and a stage-1 walk is nobody's load or store.
        if !valid || self.0 >> 8 & 1 == 1 || self.in_stage1_walk() {
            return None;
        }
        Some(DataAccess {
            size_bytes: 1 << (self.0 >> 22 & 0b11),
            sign_extend: self.0 >> 21 & 1 == 1,
            register: (self.0 >> 16 & 0x1f) as u8,
            is_64_bit: self.0 >> 15 & 1 == 1,
            write: self.is_write(),
        })
    }
}

impl fmt::Display for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ESR {:#x}: {}", self.0, self.class().words())?;
        if self.is_abort() {
            write!(f, ", {}", self.fault())?;
            if matches!(self.class(), Class::DATA_ABORT_LOWER | Class::DATA_ABORT_SAME) {
                f.write_str(if self.is_write() { ", write" } else { ", read" })?;
            }
            if self.in_stage1_walk() {
                f.write_str(", in a stage-1 walk")?;
            }
            Ok(())
        } else {
            write!(f, ", ISS {:#x}", self.iss())
        }
    }
}

/// DFSC or IFSC. Open like [`Class`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultStatus(pub u8);

impl FaultStatus {
    /// Translation fault of any level, -1 included.
    pub const fn is_translation(self) -> bool {
        self.0 & 0b11_1100 == 0b00_0100 || self.0 == 0b10_1011
    }

    /// TLB conflict abort.
    pub const fn is_tlb_conflict(self) -> bool {
        self.0 == 0b11_0000
    }

    /// Permission fault of any level.
    pub const fn is_permission(self) -> bool {
        self.0 & 0b11_1100 == 0b00_1100
    }
}

impl fmt::Display for FaultStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = self.0 & 0b11;
        match self.0 {
            0x00..=0x03 => write!(f, "address size fault, level {level}"),
            0x04..=0x07 => write!(f, "translation fault, level {level}"),
            0x08..=0x0b => write!(f, "access flag fault, level {level}"),
            0x0c..=0x0f => write!(f, "permission fault, level {level}"),
            0x10 => f.write_str("synchronous External abort"),
            0x11 => f.write_str("synchronous tag check fault"),
            0x14..=0x17 => write!(f, "synchronous External abort on a walk, level {level}"),
            0x18 => f.write_str("synchronous parity or ECC error"),
            0x21 => f.write_str("alignment fault"),
            0x2b => f.write_str("translation fault, level -1"),
            0x30 => f.write_str("TLB conflict abort"),
            0x31 => f.write_str("unsupported atomic hardware update"),
            other => write!(f, "fault status {other:#x}"),
        }
    }
}

/// A load or store that a data abort's ISS describes (DDI 0487, ISS encoding for an exception from a Data Abort).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAccess {
    /// Bytes accessed (SAS): 1, 2, 4 or 8.
    pub size_bytes: u8,
    /// Whether a load extends the sign (SSE).
    pub sign_extend: bool,
    /// The general-purpose register (SRT); 31 is XZR.
    pub register: u8,
    /// Whether the register is 64 bits wide (SF).
    pub is_64_bit: bool,
    /// Whether it is a store (WnR).
    pub write: bool,
}

impl DataAccess {
    /// What the register holds after a load that read `raw` (low `size_bytes` bytes are looked at).
    #[inline]
    pub const fn loaded(self, raw: u64) -> u64 {
        let unused = self.unused_bits();
        let raw = raw.wrapping_shl(unused);
        let value = if self.sign_extend {
            raw.cast_signed().wrapping_shr(unused).cast_unsigned()
        } else {
            raw.wrapping_shr(unused)
        };
        if self.is_64_bit { value } else { value & 0xffff_ffff }
    }

    /// What a store of a register with this value writes, zero-extended.
    #[inline]
    pub const fn stored(self, register: u64) -> u64 {
        register.wrapping_shl(self.unused_bits()).wrapping_shr(self.unused_bits())
    }

    /// Bits of 64 that the access does not have: 0 to 56.
    #[inline]
    const fn unused_bits(self) -> u32 {
        64u32.wrapping_sub(8 * self.size_bytes as u32)
    }
}

/// A stage-2 abort of the host, as the image read it from the system registers.
#[derive(Clone, Copy, Debug)]
pub struct HostAbort {
    /// ESR_EL2.
    pub syndrome: Syndrome,
    /// FAR_EL2.
    pub far: u64,
    /// HPFAR_EL2.
    pub hpfar: u64,
    /// The register that the syndrome's access names (0 for XZR), if there is one and it stores.
    pub stored: u64,
}

impl HostAbort {
    /// The IPA that was accessed: HPFAR_EL2.FIPA (bits 43:4 hold IPA bits 51:12) and the page offset of FAR_EL2.
    ///
    /// In a stage-1 walk FAR holds the address being translated, so the offset is not that of the access: then bits
    /// 11:0 are zero.
    #[inline]
    pub const fn ipa(&self) -> PhysAddr {
        let page = (self.hpfar & 0x0fff_ffff_fff0) << 8;
        let offset = if self.syndrome.in_stage1_walk() { 0 } else { self.far & 0xfff };
        PhysAddr(page | offset)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::format;

    #[test]
    fn a_store_word_is_decoded() {
        // EC 0x24, IL, ISV, SAS = word, SRT = 5, WnR, translation fault level 3.
        let syndrome = Syndrome(0x24 << 26 | 1 << 25 | 1 << 24 | 0b10 << 22 | 5 << 16 | 1 << 6 | 0x07);
        let access = syndrome.access().unwrap();
        assert_eq!((access.size_bytes, access.register, access.write), (4, 5, true));
        assert_eq!(access.stored(0x1_2345_6789), 0x2345_6789);
        assert_eq!(
            format!("{syndrome}"),
            "ESR 0x93850047: data abort from a lower Exception level, translation fault, level 3, write"
        );
        assert!(Syndrome(syndrome.0 & !(1 << 24)).access().is_none());
        assert!(Syndrome(syndrome.0 | 1 << 8).access().is_none());
    }

    #[test]
    fn loads_extend_as_the_instruction_says() {
        let mut load =
            DataAccess { size_bytes: 1, sign_extend: true, register: 0, is_64_bit: false, write: false };
        assert_eq!(load.loaded(0x1280), 0xffff_ff80);
        load.is_64_bit = true;
        assert_eq!(load.loaded(0x80), 0xffff_ffff_ffff_ff80);
        load.sign_extend = false;
        assert_eq!(load.loaded(0x1280), 0x80);
        load.size_bytes = 8;
        assert_eq!(load.loaded(u64::MAX), u64::MAX);
    }

    #[test]
    fn the_ipa_is_page_and_offset() {
        let abort = HostAbort {
            syndrome: Syndrome(0x24 << 26),
            far: 0xffff_8000_1234_5678,
            hpfar: 0x0008_0a00,
            stored: 0,
        };
        assert_eq!(abort.ipa(), PhysAddr(0x080a_0678));
    }
}
