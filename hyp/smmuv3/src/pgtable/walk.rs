//! What mapping and unmapping have in common: cutting a range at the entries of a level, filling runs of
//! entries, and taking all tables before the first store.

use super::chain::TableChain;
use super::descriptor;
use super::{Blocks, PageTable};
use crate::address::PhysAddr;
use crate::memory::{Memory, TablePages};

/// First and last input address, both in it.
pub(super) type Span = (u64, u64);

/// A span cut at the entries of one level.
#[derive(Clone, Copy)]
pub(super) struct Pieces {
    first: u64,
    /// First byte of the first whole entry; after the span when it is a part of one entry.
    start: u64,
    /// First byte after the last whole entry.
    end: u64,
    last: u64,
}

impl Pieces {
    /// The part of one entry that the span begins with, or all of it when it is a part of one entry.
    #[inline]
    pub(super) fn head(self) -> Option<Span> {
        (self.first < self.start).then_some((self.first, self.start.wrapping_sub(1)))
    }

    /// The entries that lie in the span as a whole.
    #[inline]
    pub(super) fn middle(self) -> Option<Span> {
        (self.start < self.end).then_some((self.start, self.end.wrapping_sub(1)))
    }

    /// The part of one entry that the span ends with.
    #[inline]
    pub(super) fn tail(self) -> Option<Span> {
        (self.end <= self.last).then_some((self.end, self.last))
    }
}

/// Cuts `first..=last`, which the table reaches, at multiples of `1 << shift`.
#[inline]
pub(super) fn cut((first, last): Span, shift: u8) -> Pieces {
    let mask = 1u64.wrapping_shl(u32::from(shift)).wrapping_sub(1);
    let after = last.wrapping_add(1);
    let start = first.wrapping_add(mask) & !mask;
    let end = after & !mask;
    if start > end {
        Pieces { first, start: after, end: after, last }
    } else {
        Pieces { first, start, end, last }
    }
}

/// Entries that are stored or compared before the end of a run is looked for.
const UNROLLED: u64 = 16;

/// Stores `count` leaf descriptors from `slot` on: `first`, then each `step` more than the one before.
#[inline(never)]
pub(super) fn write_leaves<M: Memory>(memory: &M, slot: PhysAddr, count: u64, first: u64, step: u64) {
    let mut slot = slot;
    let mut value = first;
    let end = slot.offset(count.wrapping_mul(8));
    // A split fills a whole table, and that is the longest thing a small change does.
    let end_unrolled = slot.offset((count & !15).wrapping_mul(8));
    while slot != end_unrolled {
        for index in 0..UNROLLED {
            memory.write_u64(slot.offset(index * 8), value);
            value = value.wrapping_add(step);
        }
        slot = slot.offset(UNROLLED * 8);
    }
    while slot != end {
        memory.write_u64(slot, value);
        value = value.wrapping_add(step);
        slot = slot.offset(8);
    }
}

/// Whether the `count` descriptors from `table` on, a multiple of 16, are `first` and then each `step` more
/// than the one before.
pub(super) fn are_leaves<M: Memory>(memory: &M, table: PhysAddr, count: u64, first: u64, step: u64) -> bool {
    let mut slot = table;
    let mut expected = first;
    let end = table.offset(count.wrapping_mul(8));
    while slot != end {
        let mut different = 0;
        for index in 0..UNROLLED {
            different |= memory.read_u64(slot.offset(index * 8)) ^ expected;
            expected = expected.wrapping_add(step);
        }
        if different != 0 {
            return false;
        }
        slot = slot.offset(UNROLLED * 8);
    }
    true
}

/// Index of the first valid one of the `count` descriptors from `slot` on.
pub(super) fn first_valid<M: Memory>(memory: &M, slot: PhysAddr, count: u64) -> Option<u64> {
    let mut index = 0;
    let end_unrolled = count & !15;
    while index != end_unrolled {
        let here = slot.offset(index.wrapping_mul(8));
        let any = (0..UNROLLED).fold(0, |any, i| any | memory.read_u64(here.offset(i * 8)));
        if any & descriptor::VALID != 0 {
            break;
        }
        index = index.wrapping_add(UNROLLED);
    }
    while index != count {
        if memory.read_u64(slot.offset(index.wrapping_mul(8))) & descriptor::VALID != 0 {
            return Some(index);
        }
        index = index.wrapping_add(1);
    }
    None
}

/// Clears the `count` descriptors from `slot` on, and says how many were valid.
pub(super) fn clear_entries<M: Memory>(memory: &M, slot: PhysAddr, count: u64) -> u64 {
    let mut valid = 0u64;
    let mut at = slot;
    let end = slot.offset(count.wrapping_mul(8));
    let end_unrolled = slot.offset((count & !15).wrapping_mul(8));
    while at != end_unrolled {
        for index in 0..UNROLLED {
            let here = at.offset(index * 8);
            valid = valid.wrapping_add(memory.read_u64(here) & descriptor::VALID);
            memory.write_u64(here, 0);
        }
        at = at.offset(UNROLLED * 8);
    }
    while at != end {
        valid = valid.wrapping_add(memory.read_u64(at) & descriptor::VALID);
        memory.write_u64(at, 0);
        at = at.offset(8);
    }
    valid
}

/// Takes `count` tables, or none at all.
pub(super) fn reserve<M: Memory>(memory: &M, pages: &mut dyn TablePages, count: usize) -> Option<TableChain> {
    let mut stock = TableChain::new();
    for _ in 0..count {
        match pages.take() {
            Some(table) => stock.push(memory, table),
            None => {
                give_back(memory, pages, stock);
                return None;
            }
        }
    }
    Some(stock)
}

/// Gives back what is left of a stock.
pub(super) fn give_back<M: Memory>(memory: &M, pages: &mut dyn TablePages, mut stock: TableChain) {
    while let Some(table) = stock.pop(memory) {
        pages.give(table);
    }
}

/// Where the walk for one page ends.
pub(super) enum PageWalk {
    /// At a level-3 table.
    Page {
        /// Address of the level-2 descriptor.
        parent_slot: PhysAddr,
        /// The level-2 descriptor.
        parent: u64,
        /// Address of the page's descriptor.
        slot: PhysAddr,
    },
    /// At a block.
    Block,
    /// At an invalid descriptor above level 3.
    Nothing,
}

impl PageTable {
    /// The highest level at which this table has leaves, where the alignment allows.
    #[inline]
    pub(super) fn first_leaf_level(&self) -> u8 {
        match self.blocks {
            Blocks::Never => 3,
            Blocks::InPlace | Blocks::BreakBeforeMake => self.geometry.first_block_level(),
        }
    }

    /// Address of the entry for `ia` in `table` of `level`.
    #[inline]
    pub(super) fn slot(&self, table: PhysAddr, level: u8, ia: u64) -> PhysAddr {
        table.offset(self.geometry.entry_offset(ia, level))
    }

    /// Whether an aligned span is one page.
    #[inline]
    pub(super) fn is_page(&self, (first, last): Span) -> bool {
        last.wrapping_sub(first) < self.geometry.granule().bytes()
    }

    /// Whether the range ends inside the input size.
    #[inline]
    pub(super) fn reaches(&self, last: u64) -> bool {
        last.wrapping_shr(u32::from(self.geometry.ia_bits())) == 0
    }

    /// Walks to the level-3 entry of an input address that the table reaches.
    #[inline]
    pub(super) fn walk_page<M: Memory>(&self, memory: &M, ia: u64) -> PageWalk {
        let stride = u32::from(self.geometry.stride());
        let mask = self.geometry.entries().wrapping_sub(1);
        let mut shift = u32::from(self.geometry.start_shift());
        let mut slot = self.root.offset(ia.wrapping_shr(shift) << 3);
        let mut level = self.geometry.start_level();
        loop {
            let parent = memory.read_u64(slot);
            if parent & descriptor::VALID == 0 {
                return PageWalk::Nothing;
            }
            if parent & descriptor::TABLE_OR_PAGE != descriptor::TABLE_OR_PAGE {
                return PageWalk::Block;
            }
            shift = shift.wrapping_sub(stride);
            level = level.wrapping_add(1);
            let parent_slot = slot;
            slot = descriptor::address(parent).offset((ia.wrapping_shr(shift) & mask) << 3);
            if level >= 3 {
                return PageWalk::Page { parent_slot, parent, slot };
            }
        }
    }
}
