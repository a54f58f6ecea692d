//! The stream table (IHI 0070, 3.3 and 5.1) of one SMMU.
//!
//! Every stream that nobody attached is *parked*: its STE translates by a stage-2 table that maps nothing, so
//! its transactions abort and leave an event with their address. In a two-level table all level-1 descriptors
//! name one level-2 table of parked STEs that all SMMUs share; the first attach in a span gives the span a
//! copy of its own, which it keeps.

use smmuv3::address::PhysAddr;
use smmuv3::registers::STRTAB_BASE_CFG;
use smmuv3::ste::{LEVEL1_BYTES, Level1Descriptor, STE_BYTES, STE_WORDS, StreamTableEntry};

use super::{Pages, order_of};
use crate::platform::Platform;

/// StreamID bits that a linear table covers at most where the SMMU has no two-level tables: 256 KiB.
const LINEAR_BITS_MAX: u8 = 12;
/// Level-1 descriptors at most, log2: 64 KiB.
const LEVEL1_BITS_MAX: u8 = 13;
/// The values that STRTAB_BASE_CFG.SPLIT can have: level-2 tables of 4, 16 and 64 KiB.
const SPLITS: [u8; 3] = [6, 8, 10];

/// The shape of a stream table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// StreamID bits that the table covers. A stream beyond it aborts with C_BAD_STREAMID.
    pub(super) stream_bits: u8,
    /// StreamID bits that index level 2; `None` in a linear table.
    pub(super) split: Option<u8>,
}

impl Shape {
    /// The shape for an SMMU with that many StreamID bits: level-2 tables as small as the level-1 table
    /// allows.
    pub(super) fn new(stream_bits: u8, two_level: bool) -> Self {
        let [smallest, .., largest] = SPLITS;
        if !two_level || stream_bits <= smallest {
            return Self { stream_bits: stream_bits.min(LINEAR_BITS_MAX), split: None };
        }
        let fits = |split: &u8| stream_bits.saturating_sub(*split) <= LEVEL1_BITS_MAX;
        let split = SPLITS.into_iter().find(fits).unwrap_or(largest);
        Self { stream_bits: stream_bits.min(split + LEVEL1_BITS_MAX), split: Some(split) }
    }

    /// Streams of one table of STEs.
    #[cfg(feature = "oracle")]
    pub(super) const fn count(self) -> u32 {
        match self.split {
            None => 1 << self.stream_bits,
            Some(split) => 1 << split,
        }
    }

    /// Bytes of the table that STRTAB_BASE names: the linear table or level 1.
    pub(super) const fn base_bytes(self) -> u64 {
        match self.split {
            None => STE_BYTES << self.stream_bits,
            Some(split) => LEVEL1_BYTES << (self.stream_bits - split),
        }
    }

    /// Value of STRTAB_BASE_CFG.
    pub(super) fn configuration(self) -> u32 {
        let size = STRTAB_BASE_CFG::LOG2SIZE.val(u32::from(self.stream_bits)).value;
        match self.split {
            None => size | STRTAB_BASE_CFG::FMT::Linear.value,
            Some(split) => {
                size | STRTAB_BASE_CFG::FMT::TwoLevel.value
                    | STRTAB_BASE_CFG::SPLIT.val(u32::from(split)).value
            }
        }
    }
}

/// Where the STE of a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the parked table that all spans and SMMUs share: it must not be written.
    Shared,
    /// At this address, for this stream alone.
    Own(PhysAddr),
}

/// The stream table of one SMMU.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamTable {
    shape: Shape,
    base: PhysAddr,
    /// The shared level-2 table, for two levels.
    parked_level2: PhysAddr,
}

impl StreamTable {
    /// A table that covers no stream.
    pub(super) const NONE: Self =
        Self { shape: Shape { stream_bits: 0, split: None }, base: PhysAddr(0), parked_level2: PhysAddr(0) };

    /// Makes the table, every stream parked. `parked_level2` is a table of at least `1 << split` parked STEs.
    ///
    /// `None` when there is no memory, which is not taken then.
    pub(super) fn build<P: Platform>(
        p: &P,
        pages: &mut impl Pages,
        shape: Shape,
        parked: &StreamTableEntry,
        parked_level2: PhysAddr,
    ) -> Option<Self> {
        let base = pages.take_run(order_of(shape.base_bytes()))?;
        match shape.split {
            None => fill(p, base, 1 << shape.stream_bits, parked),
            Some(split) => {
                let descriptor = Level1Descriptor::new(parked_level2, split).0;
                for index in 0..1u64 << (shape.stream_bits - split) {
                    p.write_u64(base.offset(index * LEVEL1_BYTES), descriptor);
                }
            }
        }
        Some(Self { shape, base, parked_level2 })
    }

    /// Its base, aligned to its size.
    pub(super) const fn base(&self) -> PhysAddr {
        self.base
    }

    pub(super) const fn shape(&self) -> Shape {
        self.shape
    }

    /// The shared level-2 table, and log2 of its entries that this table uses.
    #[cfg(feature = "oracle")]
    pub(super) const fn shared(&self) -> Option<(PhysAddr, u8)> {
        match self.shape.split {
            Some(split) => Some((self.parked_level2, split)),
            None => None,
        }
    }

    /// The tables of STEs that are its own, each with the first stream of its span.
    #[cfg(feature = "oracle")]
    pub(super) fn own_tables<P: Platform>(&self, p: &P) -> impl Iterator<Item = (u64, PhysAddr)> {
        let spans = match self.shape.split {
            None => 1,
            Some(split) => 1u64 << (self.shape.stream_bits - split),
        };
        (0..spans).filter_map(move |span| {
            let Some(split) = self.shape.split else { return Some((0, self.base)) };
            let table = Level1Descriptor(p.read_u64(self.base.offset(span * LEVEL1_BYTES))).table();
            (table != self.parked_level2).then_some((span << split, table))
        })
    }

    /// Whether the table covers the stream.
    #[inline]
    pub(super) const fn covers(&self, stream: u32) -> bool {
        self.base.0 != 0 && (stream as u64) >> self.shape.stream_bits == 0
    }

    /// Address of the level-1 descriptor above a stream that the table covers, and log2 of the span.
    const fn level1(&self, stream: u32) -> Option<(PhysAddr, u8)> {
        match self.shape.split {
            None => None,
            Some(split) => Some((self.base.offset((stream as u64 >> split) * LEVEL1_BYTES), split)),
        }
    }

    /// Where the STE of a stream is; `None` if the table does not cover it.
    pub(super) fn place<P: Platform>(&self, p: &P, stream: u32) -> Option<Place> {
        if !self.covers(stream) {
            return None;
        }
        let Some((descriptor, split)) = self.level1(stream) else {
            return Some(Place::Own(self.base.offset(u64::from(stream) * STE_BYTES)));
        };
        let table = Level1Descriptor(p.read_u64(descriptor)).table();
        if table == self.parked_level2 {
            return Some(Place::Shared);
        }
        let index = u64::from(stream) & ((1 << split) - 1);
        Some(Place::Own(table.offset(index * STE_BYTES)))
    }

    /// log2 of the pages of 4 KiB that [`StreamTable::separate`] takes for a stream.
    pub(super) fn level2_order(&self) -> u8 {
        order_of(STE_BYTES << self.shape.split.unwrap_or(0))
    }

    /// Gives the span of a stream whose STE is [`Place::Shared`] the level-2 table `table`, of
    /// [`StreamTable::level2_order`], with all its streams parked. Until the SMMU has forgotten the
    /// descriptor above a stream (CMD_CFGI_STE with Leaf = 0), it may use either table for it.
    pub(super) fn separate<P: Platform>(
        &self,
        p: &P,
        stream: u32,
        table: PhysAddr,
        parked: &StreamTableEntry,
    ) {
        let Some((descriptor, split)) = self.level1(stream) else { return };
        fill(p, table, 1 << split, parked);
        // The table before the descriptor that leads to it.
        p.full_barrier();
        p.write_u64(descriptor, Level1Descriptor::new(table, split).0);
    }
}

/// Reads the STE at `at`.
#[inline]
pub(super) fn read_entry<P: Platform>(p: &P, at: PhysAddr) -> StreamTableEntry {
    StreamTableEntry(core::array::from_fn::<_, STE_WORDS, _>(|word| p.read_u64(at.offset(word as u64 * 8))))
}

/// The words of an STE, in the order in which a stream goes from being parked to stage 2 alone, or back: S2VMID first and S2TTB last, or the
/// other way round. `None` for all other changes. `empty` is the table of parked streams.
///
/// So that table, which maps nothing, stands there with the VMID of the domain for a moment. It leaves nothing in the IOTLB, and what
/// the domain left there the stream may use before or after. [`write_entry`] knows two words that matter and would
/// lead through V = 0, in three steps.
///
/// [`write_entry`]: smmuv3::entry_writer::write_entry
#[inline]
pub(super) fn parking_order(
    current: &StreamTableEntry,
    target: &StreamTableEntry,
    empty: PhysAddr,
) -> Option<[usize; 2]> {
    let [now0, now1, ..] = current.0;
    let [then0, then1, ..] = target.0;
    if now0 != then0 || now1 != then1 {
        return None;
    }
    if current.root() == empty {
        Some([2, 3])
    } else if target.root() == empty {
        Some([3, 2])
    } else {
        None
    }
}

/// Reads S2VMID of the STE at `at`.
pub(super) fn read_vmid<P: Platform>(p: &P, at: PhysAddr) -> u16 {
    StreamTableEntry([0, 0, p.read_u64(at.offset(16)), 0, 0, 0, 0, 0]).vmid()
}

/// Writes `count` copies of `entry` to memory that no SMMU uses.
pub(super) fn fill<P: Platform>(p: &P, table: PhysAddr, count: u64, entry: &StreamTableEntry) {
    for index in 0..count {
        let at = table.offset(index * STE_BYTES);
        for (word, value) in (0..).zip(entry.0) {
            p.write_u64(at.offset(word * 8), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_2_tables_are_as_small_as_level_1_allows() {
        assert_eq!(Shape::new(16, true), Shape { stream_bits: 16, split: Some(6) });
        assert_eq!(Shape::new(20, true), Shape { stream_bits: 20, split: Some(8) });
        assert_eq!(Shape::new(32, true), Shape { stream_bits: 23, split: Some(10) });
        assert_eq!(Shape::new(6, true), Shape { stream_bits: 6, split: None });
        assert_eq!(Shape::new(7, false), Shape { stream_bits: 7, split: None });
        assert_eq!(Shape::new(0, false).base_bytes(), STE_BYTES);
        assert_eq!(Shape::new(16, true).configuration(), 1 << 16 | 6 << 6 | 16);
        assert_eq!(Shape::new(4, true).configuration(), 4);
    }
}
