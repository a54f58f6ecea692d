//! Physical memory: sparse RAM in 4 KiB pages, read and written 64 bits at a time.

use std::collections::HashMap;

/// A run of physical addresses, the end not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
}

impl Span {
    /// `size` bytes from `start`.
    pub const fn new(start: u64, size: u64) -> Self {
        Self { start, end: start + size }
    }

    /// Whether the address is in the span.
    pub const fn contains(self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// Whether a byte is in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Bytes in it.
    pub const fn size(self) -> u64 {
        self.end - self.start
    }
}

/// RAM. Pages that were never written read as a pattern, so that nothing passes because fresh RAM happens to be zero.
#[derive(Debug, Default)]
pub struct PhysMemory {
    ram: Vec<Span>,
    pages: HashMap<u64, Box<[u64; 512]>>,
}

/// What never-written RAM reads as.
pub const FRESH: u64 = 0xdead_beef_5a5a_a5a5;

impl PhysMemory {
    /// RAM at the given spans.
    pub fn new(ram: &[Span]) -> Self {
        Self { ram: ram.to_vec(), pages: HashMap::new() }
    }

    /// The RAM spans.
    pub fn ram(&self) -> &[Span] {
        &self.ram
    }

    /// Whether RAM is at the address.
    pub fn is_ram(&self, address: u64) -> bool {
        self.ram.iter().any(|span| span.contains(address))
    }

    /// Reads the 64 bits at an address whose low three bits are ignored; `None` where no RAM is.
    pub fn read(&self, address: u64) -> Option<u64> {
        if !self.is_ram(address) {
            return None;
        }
        let word = (address >> 3 & 511) as usize;
        Some(self.pages.get(&(address >> 12)).map_or(FRESH, |page| page[word]))
    }

    /// Writes 64 bits; `false` where no RAM is.
    pub fn write(&mut self, address: u64, value: u64) -> bool {
        if !self.is_ram(address) {
            return false;
        }
        let word = (address >> 3 & 511) as usize;
        self.pages.entry(address >> 12).or_insert_with(|| Box::new([FRESH; 512]))[word] = value;
        true
    }

    /// Fills whole 4 KiB pages with zeros.
    pub fn wipe(&mut self, span: Span) {
        for page in span.start >> 12..span.end >> 12 {
            self.pages.insert(page, Box::new([0; 512]));
        }
    }
}
