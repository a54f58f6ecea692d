//! Physical memory: sparse RAM in 4 KiB pages, read and written 64 bits at a time.

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
    banks: Vec<Bank>,
    clock: u64,
}

/// A span of RAM with its pages.
#[derive(Debug)]
struct Bank {
    ram: Span,
    pages: Vec<Contents>,
}

/// What a page holds.
#[derive(Debug)]
enum Contents {
    /// It was never written.
    Fresh,
    /// Zeros, since this moment.
    Wiped(u64),
    /// Words.
    Written(Box<Page>),
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
        let fresh = |span: &Span| (0..span.size() >> 12).map(|_| Contents::Fresh).collect();
        Self { banks: ram.iter().map(|span| Bank { ram: *span, pages: fresh(span) }).collect(), clock: 0 }
    }

    fn contents(&self, address: u64) -> Option<&Contents> {
        let bank = self.banks.iter().find(|bank| bank.ram.contains(address))?;
        bank.pages.get(((address - bank.ram.start) >> 12) as usize)
    }

    fn contents_mut(&mut self, address: u64) -> Option<&mut Contents> {
        let bank = self.banks.iter_mut().find(|bank| bank.ram.contains(address))?;
        bank.pages.get_mut(((address - bank.ram.start) >> 12) as usize)
    }

    /// The RAM spans.
    pub fn ram(&self) -> impl Iterator<Item = Span> {
        self.banks.iter().map(|bank| bank.ram)
    }

    /// Whether RAM is at the address.
    pub fn is_ram(&self, address: u64) -> bool {
        self.contents(address).is_some()
    }

    /// Reads the 64 bits at an address whose low three bits are ignored; `None` where no RAM is.
    pub fn read(&self, address: u64) -> Option<u64> {
        Some(match self.contents(address)? {
            Contents::Fresh => FRESH,
            Contents::Wiped(_) => 0,
            Contents::Written(page) => page.words[(address >> 3 & 511) as usize],
        })
    }

    /// Writes 64 bits; `false` where no RAM is.
    pub fn write(&mut self, address: u64, value: u64) -> bool {
        self.replace(address, value).is_some()
    }

    /// Writes 64 bits, and answers what was there; `None` where no RAM is.
    pub fn replace(&mut self, address: u64, value: u64) -> Option<u64> {
        let now = self.clock + 1;
        let page = match self.contents_mut(address)? {
            Contents::Written(page) => page,
            contents @ Contents::Fresh => contents.written(Page { words: [FRESH; 512], changed: [0; 64] }),
            contents @ &mut Contents::Wiped(at) => {
                contents.written(Page { words: [0; 512], changed: [at; 64] })
            }
        };
        let index = (address >> 3 & 511) as usize;
        let word = &mut page.words[index];
        let old = std::mem::replace(word, value);
        if old != value {
            page.changed[index / 8] = now;
            self.clock = now;
        }
        Some(old)
    }

    /// Fills whole 4 KiB pages with zeros.
    pub fn wipe(&mut self, span: Span) {
        self.clock += 1;
        for address in (span.start & !0xfff..span.end & !0xfff).step_by(4096) {
            let wiped = Contents::Wiped(self.clock);
            if let Some(contents) = self.contents_mut(address) {
                *contents = wiped;
            }
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
        match self.contents(address) {
            None | Some(Contents::Fresh) => 0,
            Some(Contents::Wiped(at)) => *at,
            Some(Contents::Written(page)) => page.changed[(address >> 6 & 63) as usize],
        }
    }
}

impl Contents {
    /// Makes it a page with words.
    fn written(&mut self, page: Page) -> &mut Page {
        *self = Self::Written(Box::new(page));
        match self {
            Self::Written(page) => page,
            Self::Fresh | Self::Wiped(_) => unreachable!("it was just written"),
        }
    }
}
