//! Where a driver keeps its stream table and its queues.

use crate::model::RAM_BASE;

/// What STRTAB_BASE_CFG says (6.3.25).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 2^`log2` STEs.
    Linear {
        /// LOG2SIZE.
        log2: u32,
    },
    /// 2^(`log2` - `split`) level-1 descriptors.
    TwoLevel {
        /// LOG2SIZE.
        log2: u32,
        /// SPLIT: 6, 8 or 10.
        split: u32,
    },
}

impl Format {
    /// FMT \[17:16], SPLIT \[10:6], LOG2SIZE \[5:0].
    pub const fn word(self) -> u32 {
        match self {
            Self::Linear { log2 } => log2,
            Self::TwoLevel { log2, split } => 1 << 16 | split << 6 | log2,
        }
    }
}

/// Places in the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The stream table, or its first level.
    pub table: u64,
    /// How it is made.
    pub format: Format,
    /// The tables of the second level, one after the other, each of `1 << span_log2` STEs; one for each bus that a device is on.
    pub level2: u64,
    /// log2 of the STEs of a table of the second level.
    pub span_log2: u32,
    /// The command queue.
    pub commands: u64,
    /// log2 of its entries.
    pub commands_log2: u32,
    /// The event queue.
    pub events: u64,
    /// log2 of its entries.
    pub events_log2: u32,
}

impl Layout {
    /// As Linux on the machine that QEMU makes: 16 bits of StreamID in two levels, with queues of a page each. There is room for 4 SMMUs.
    pub const fn linux(smmu: usize) -> Self {
        let base = RAM_BASE + (8 << 20) + smmu as u64 * 0x10_0000;
        Self {
            table: base,
            format: Format::TwoLevel { log2: 16, split: 8 },
            level2: base + 0x1_0000,
            span_log2: 8,
            commands: base + 0x8_0000,
            commands_log2: 8,
            events: base + 0x9_0000,
            events_log2: 7,
        }
    }

    /// Where the table of the second level for a stream is: the two devices of an SMMU are on buses whose low bits differ.
    const fn second(&self, stream: u32, split: u32) -> u64 {
        let shift = if split < 8 { 8 } else { split };
        self.level2 + (((stream >> shift & 3) as u64) << (self.span_log2 + 6))
    }

    /// Where the STE of a stream is.
    pub const fn entry(&self, stream: u32) -> u64 {
        match self.format {
            Format::Linear { .. } => self.table + stream as u64 * 64,
            Format::TwoLevel { split, .. } => {
                self.second(stream, split) + (stream & ((1 << split) - 1)) as u64 * 64
            }
        }
    }

    /// Where the level-1 descriptor of a stream is, and what it should be (5.1): L2Ptr, Span.
    pub const fn descriptor(&self, stream: u32) -> Option<(u64, u64)> {
        match self.format {
            Format::Linear { .. } => None,
            Format::TwoLevel { split, .. } => {
                let at = self.table + (stream >> split) as u64 * 8;
                Some((at, self.second(stream, split) | (self.span_log2 + 1) as u64))
            }
        }
    }

    /// All words of the table, and of four tables of the second level.
    pub fn table_words(&self) -> impl Iterator<Item = u64> {
        let (first, second) = match self.format {
            Format::Linear { log2 } => (64 << log2, 0),
            Format::TwoLevel { log2, split } => (8 << log2.saturating_sub(split), 256 << self.span_log2),
        };
        let words = |start: u64, bytes: u64| (start..start + bytes).step_by(8);
        words(self.table, first).chain(words(self.level2, second))
    }
}
