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
    pages: HashMap<u64, Box<Page>>,
    clock: u64,
}

/// Words of a page, and when each line of 64 bytes changed last.
#[derive(Debug)]
struct Page {
    words: [u64; 512],
    changed: [u64; 64],
}

/// What never-written RAM reads as.
pub const FRESH: u64 = 0xdead_beef_5a5a_a5a5;

impl PhysMemory {
    /// RAM at the given spans.
    pub fn new(ram: &[Span]) -> Self {
        Self { ram: ram.to_vec(), pages: HashMap::new(), clock: 0 }
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
        Some(self.pages.get(&(address >> 12)).map_or(FRESH, |page| page.words[word]))
    }

    /// Writes 64 bits; `false` where no RAM is.
    pub fn write(&mut self, address: u64, value: u64) -> bool {
        if !self.is_ram(address) {
            return false;
        }
        let word = (address >> 3 & 511) as usize;
        let fresh = || Box::new(Page { words: [FRESH; 512], changed: [0; 64] });
        let page = self.pages.entry(address >> 12).or_insert_with(fresh);
        if page.words[word] != value {
            self.clock += 1;
            page.words[word] = value;
            page.changed[word / 8] = self.clock;
        }
        true
    }

    /// Fills whole 4 KiB pages with zeros.
    pub fn wipe(&mut self, span: Span) {
        self.clock += 1;
        for page in span.start >> 12..span.end >> 12 {
            self.pages.insert(page, Box::new(Page { words: [0; 512], changed: [self.clock; 64] }));
        }
    }

    /// A count that grows with every change of memory.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// What [`PhysMemory::clock`] said after the last change of the 64 bytes around an address; 0 if they never changed.
    ///
    /// Every STE and CD is one such line, so this answers whether a cache that was filled earlier can be out of date,
    /// even if the old bytes came back meanwhile.
    pub fn changed_at(&self, address: u64) -> u64 {
        let line = (address >> 6 & 63) as usize;
        self.pages.get(&(address >> 12)).map_or(0, |page| page.changed[line])
    }
}
