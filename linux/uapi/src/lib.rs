//! What programs in Linux ask of `/dev/hyp-iommu`, in one definition: the kernel module answers from it, and `hyp-iommu` asks with it.
//!
//! Each request is an `ioctl` with a pointer to a [`Record`], five words of 64 bits that the kernel reads once and, when the request
//! succeeds, writes back. Words that a request does not use must be zero. `docs/linux.md` says what each word means.

#![no_std]
#![forbid(unsafe_code)]

/// The device.
pub const PATH: &str = "/dev/hyp-iommu";

/// Version of these requests: major in bits 31:16 (a change that breaks programs), minor in bits 15:0 (an addition).
pub const VERSION: u32 = 1 << 16 | 1;

/// What a request carries both ways.
pub type Record = [u64; 5];

/// The most bytes that one [`Request::Allocate`] takes: what one call of the hypervisor changes at the most.
pub const MAX_BYTES: u64 = 2 << 20;

/// Both directions, in bits 31:30 of the number of an `ioctl`.
const READ_AND_WRITE: u32 = 3 << 30;
/// Bits 29:16: bytes of what is carried.
const SIZE: u32 = (size_of::<Record>() as u32) << 16;
/// Bits 15:8: whose request it is.
const TYPE: u32 = 0xb5 << 8;

/// A request; the value is the low byte of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Request {
    /// Which interface this is.
    Version = 0,
    /// A call of the hypervisor, if it is one of those that the module makes.
    Call = 1,
    /// Pages of the kernel's for the hypervisor's calls about memory.
    Allocate = 2,
    /// Pages go back to the kernel.
    Free = 3,
    /// Which pages are allocated.
    Pages = 4,
    /// Reads a word of an allocated page that the host owns.
    Read = 5,
    /// Writes one.
    Write = 6,
}

impl Request {
    /// Every request.
    pub const ALL: [Self; 7] =
        [Self::Version, Self::Call, Self::Allocate, Self::Free, Self::Pages, Self::Read, Self::Write];

    /// The number that `ioctl` takes.
    pub const fn number(self) -> u32 {
        READ_AND_WRITE | SIZE | TYPE | self as u32
    }

    /// The request with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|request| request.number() == number)
    }

    /// How many words of the record it reads; the others must be zero.
    pub const fn words(self) -> usize {
        match self {
            Self::Version => 0,
            Self::Allocate | Self::Free | Self::Pages | Self::Read => 1,
            Self::Write => 2,
            Self::Call => 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_a_program_in_c() {
        // _IOWR(0xb5, 1, __u64[5])
        assert_eq!(Request::Call.number(), 0xc028_b501);
        for request in Request::ALL {
            assert_eq!(Request::from_number(request.number()), Some(request));
        }
        assert_eq!(Request::from_number(0xc028_b507), None);
        assert_eq!(Request::from_number(0x8028_b501), None);
    }
}
