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
    ram: Vec<Span>,
    /// For each span of RAM its pages.
    pages: Vec<Vec<Contents>>,
    clock: u64,
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
        let pages =
            ram.iter().map(|span| (0..span.size() >> 12).map(|_| Contents::Fresh).collect()).collect();
        Self { ram: ram.to_vec(), pages, clock: 0 }
    }

    /// Where the page of an address is kept: its span, and which page of it.
    fn place(&self, address: u64) -> Option<(usize, usize)> {
        let span = self.ram.iter().position(|span| span.contains(address))?;
        Some((span, ((address - self.ram[span].start) >> 12) as usize))
    }

    fn contents(&self, address: u64) -> Option<&Contents> {
        let (span, page) = self.place(address)?;
        Some(&self.pages[span][page])
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
        Some(match self.contents(address)? {
            Contents::Fresh => FRESH,
            Contents::Wiped(_) => 0,
            Contents::Written(page) => page.words[(address >> 3 & 511) as usize],
        })
    }

    /// Writes 64 bits; `false` where no RAM is.
    pub fn write(&mut self, address: u64, value: u64) -> bool {
        let Some((span, page)) = self.place(address) else { return false };
        let contents = &mut self.pages[span][page];
        let page = match contents {
            Contents::Written(page) => page,
            Contents::Fresh => contents.written(Page { words: [FRESH; 512], changed: [0; 64] }),
            Contents::Wiped(at) => {
                let changed = [*at; 64];
                contents.written(Page { words: [0; 512], changed })
            }
        };
        let word = (address >> 3 & 511) as usize;
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
        for address in (span.start & !0xfff..span.end & !0xfff).step_by(4096) {
            if let Some((span, page)) = self.place(address) {
                self.pages[span][page] = Contents::Wiped(self.clock);
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
