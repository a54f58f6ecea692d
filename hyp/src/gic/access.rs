//! An access that the host made to a register which EL2 emulates, and its answer.

use crate::esr::DataAccess;

/// An access that the host made to a page which is absent from its stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Bytes: 1, 2, 4 or 8.
    pub size_bytes: u8,
    /// What it writes; `None` for a read.
    pub write: Option<u64>,
}

impl Access {
    /// The access that a data abort describes, of a register that holds `register` if it is a store.
    #[inline]
    pub fn of(access: DataAccess, register: u64) -> Self {
        Self { size_bytes: access.size_bytes, write: access.write.then(|| access.stored(register)) }
    }
}

/// What came of an emulated access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done; what was read, 0 for a write.
    Done(u64),
    /// A bounded part of what the store starts is done: the host makes it again, and the rest follows.
    Again,
}

/// The low or the high half of a 64-bit register whose bits 63:32 and 31:0 are accessible separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    /// Bits 31:0.
    Low,
    /// Bits 63:32.
    High,
}

impl Half {
    /// The register that `offset`, a multiple of 4, is in, and which half of it.
    pub const fn at(offset: u64) -> (u64, Self) {
        (offset & !7, if offset & 4 == 0 { Self::Low } else { Self::High })
    }

    /// This half of a register.
    pub const fn of(self, register: u64) -> u64 {
        match self {
            Self::Low => register & 0xffff_ffff,
            Self::High => register >> 32,
        }
    }

    /// The register with this half replaced by the low 32 bits of `value`.
    pub const fn replaced(self, register: u64, value: u64) -> u64 {
        match self {
            Self::Low => register & !0xffff_ffff | value & 0xffff_ffff,
            Self::High => register & 0xffff_ffff | value << 32,
        }
    }
}
