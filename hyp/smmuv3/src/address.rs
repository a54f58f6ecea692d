//! Addresses and ranges of them.

use core::fmt;

/// A physical address, or under an identity map the IPA that equals it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    /// The address `bytes` further on. The caller knows that it does not wrap: use it inside a checked range.
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// Whether the address is a multiple of `align_bytes`, which is a power of two.
    pub const fn is_aligned(self, align_bytes: u64) -> bool {
        self.0 & (align_bytes - 1) == 0
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A run of physical addresses that is not empty and does not wrap: `start` and the last byte are both in it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PhysRange {
    start: u64,
    last: u64,
}

impl PhysRange {
    /// `size_bytes` bytes from `start`; `None` when the size is 0 or the range would wrap.
    pub const fn new(start: PhysAddr, size_bytes: u64) -> Option<Self> {
        if size_bytes == 0 {
            return None;
        }
        match start.0.checked_add(size_bytes - 1) {
            Some(last) => Some(Self { start: start.0, last }),
            None => None,
        }
    }

    /// The bytes from `start` to `last`, both in it; `None` when `last` is below `start`.
    pub const fn inclusive(start: PhysAddr, last: PhysAddr) -> Option<Self> {
        if last.0 < start.0 { None } else { Some(Self { start: start.0, last: last.0 }) }
    }

    /// First byte.
    pub const fn start(self) -> PhysAddr {
        PhysAddr(self.start)
    }

    /// Last byte.
    pub const fn last(self) -> PhysAddr {
        PhysAddr(self.last)
    }

    /// Bytes in the range. The whole 64-bit space, which no page table has, would be reported one byte short.
    pub const fn size_bytes(self) -> u64 {
        (self.last - self.start).saturating_add(1)
    }

    /// Whether the address is in the range.
    pub const fn contains(self, address: PhysAddr) -> bool {
        self.start <= address.0 && address.0 <= self.last
    }

    /// Whether every byte of `other` is in the range.
    pub const fn encloses(self, other: Self) -> bool {
        self.start <= other.start && other.last <= self.last
    }

    /// Whether a byte is in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start <= other.last && other.start <= self.last
    }

    /// Whether first byte and size are multiples of `align_bytes`, which is a power of two.
    pub const fn is_aligned(self, align_bytes: u64) -> bool {
        self.start & (align_bytes - 1) == 0 && self.last & (align_bytes - 1) == align_bytes - 1
    }
}

impl fmt::Debug for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.start, self.last)
    }
}

impl fmt::Display for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
