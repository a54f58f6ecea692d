//! Unmapping, and taking a table apart.

use super::chain::TableChain;
use super::descriptor::{self, TableInfo};
use super::walk::{self, PageWalk, Span, cut};
use super::{Blocks, BreakBlock, PageTable, UnmapError};
use crate::address::{PhysAddr, PhysRange};
use crate::gather::Gather;
use crate::memory::{Memory, TablePages};

/// One call of unmap that does not end on the short way.
struct Unmapper<'a, M> {
    table: &'a PageTable,
    memory: &'a M,
    breaker: &'a mut dyn BreakBlock,
    gather: &'a mut Gather,
    stock: TableChain,
}

/// What clearing a part of a table did to it.
#[derive(Default)]
struct Cleared {
    /// Entries that became invalid.
    removed: u64,
    /// A block became a table.
    split: bool,
}

impl PageTable {
    /// The body of [`PageTable::unmap`].
    #[inline]
    pub(super) fn unmap_range<M: Memory>(
        &self,
        memory: &M,
        pages: &mut dyn TablePages,
        breaker: &mut dyn BreakBlock,
        range: PhysRange,
        gather: &mut Gather,
    ) -> Result<(), UnmapError> {
        let granule = self.geometry.granule().bytes();
        if !range.is_aligned(granule) {
            return Err(UnmapError::Misaligned);
        }
        let span = (range.start().0, range.last().0);
        if !self.reaches(span.1) {
            return Err(UnmapError::OutOfRange);
        }
        if self.is_page(span) && self.unmap_page(memory, span.0, gather) {
            return Ok(());
        }

        self.unmap_span(memory, pages, breaker, span, gather)
    }

    /// Any unmapping.
    #[inline(never)]
    fn unmap_span<M: Memory>(
        &self,
        memory: &M,
        pages: &mut dyn TablePages,
        breaker: &mut dyn BreakBlock,
        span: Span,
        gather: &mut Gather,
    ) -> Result<(), UnmapError> {
        let level = self.geometry.start_level();
        let needed = self.count_splits(memory, self.root, level, span);
        let stock = walk::reserve(memory, pages, needed).ok_or(UnmapError::OutOfTables { needed })?;
        let mut unmapper = Unmapper { table: self, memory, breaker, gather, stock };
        let cleared = unmapper.clear(self.root, level, span);
        walk::give_back(memory, pages, unmapper.stock);
        // The stock was counted for exactly this table, so it never runs out.
        cleared.map(|_| ()).ok_or(UnmapError::OutOfTables { needed })
    }

    /// The short way for one page of a table that keeps other pages. `false`: nothing was done.
    #[inline]
    fn unmap_page<M: Memory>(&self, memory: &M, ia: u64, gather: &mut Gather) -> bool {
        let (parent_slot, parent, slot) = match self.walk_page(memory, ia) {
            PageWalk::Page { parent_slot, parent, slot } => (parent_slot, parent, slot),
            PageWalk::Block => return false,
            PageWalk::Nothing => return true,
        };
        if memory.read_u64(slot) & descriptor::VALID == 0 {
            return true;
        }
        let Some(parent) = descriptor::one_less(parent) else {
            return false;
        };
        memory.write_u64(slot, 0);
        memory.write_u64(parent_slot, parent);
        gather.add_leaf(ia, self.geometry.granule().bytes(), 3);
        true
    }

    /// The tables that unmapping a span takes: those of the blocks at its two ends.
    fn count_splits<M: Memory>(&self, memory: &M, table: PhysAddr, level: u8, span: Span) -> usize {
        let pieces = cut(span, self.geometry.level_shift(level));
        let head = pieces.head().map_or(0, |part| self.count_splits_in_entry(memory, table, level, part));
        let tail = pieces.tail().map_or(0, |part| self.count_splits_in_entry(memory, table, level, part));
        head.wrapping_add(tail)
    }

    fn count_splits_in_entry<M: Memory>(&self, memory: &M, table: PhysAddr, level: u8, part: Span) -> usize {
        let found = memory.read_u64(self.slot(table, level, part.0));
        let below = level.wrapping_add(1);
        if descriptor::is_table(found, level) {
            self.count_splits(memory, descriptor::address(found), below, part)
        } else if found & descriptor::VALID != 0 {
            self.count_split(below, part)
        } else {
            0
        }
    }

    /// The tables from `level` down that a block is split into around a hole.
    fn count_split(&self, level: u8, hole: Span) -> usize {
        let pieces = cut(hole, self.geometry.level_shift(level));
        let below = level.wrapping_add(1);
        let head = pieces.head().map_or(0, |part| self.count_split(below, part));
        let tail = pieces.tail().map_or(0, |part| self.count_split(below, part));
        head.wrapping_add(tail).wrapping_add(1)
    }

    /// The body of [`PageTable::tables_for_unmap`].
    #[inline]
    pub(super) fn count_for_unmap<M: Memory>(&self, memory: &M, range: PhysRange) -> usize {
        let span = (range.start().0, range.last().0);
        let aligned = range.is_aligned(self.geometry.granule().bytes());
        if !aligned || !self.reaches(span.1) {
            return 0;
        }
        if self.is_page(span) && !matches!(self.walk_page(memory, span.0), PageWalk::Block) {
            return 0;
        }
        self.count_for_unmap_span(memory, span)
    }

    #[inline(never)]
    fn count_for_unmap_span<M: Memory>(&self, memory: &M, span: Span) -> usize {
        self.count_splits(memory, self.root, self.geometry.start_level(), span)
    }

    /// Calls `free` with every table below `table`, then with `table`, which may be overwritten then.
    pub(super) fn for_each_table<M: Memory>(
        &self,
        memory: &M,
        table: PhysAddr,
        level: u8,
        free: &mut impl FnMut(PhysAddr),
    ) {
        if level < 3 {
            self.for_each_child(memory, table, level, self.geometry.entries(), free);
        }
        free(table);
    }

    /// Calls `free` with every table below the first `entries` entries of `table`.
    pub(super) fn for_each_child<M: Memory>(
        &self,
        memory: &M,
        table: PhysAddr,
        level: u8,
        entries: u64,
        free: &mut impl FnMut(PhysAddr),
    ) {
        let mut slot = table;
        let end = table.offset(entries.wrapping_mul(8));
        while slot != end {
            let found = memory.read_u64(slot);
            if descriptor::is_table(found, level) {
                self.for_each_table(memory, descriptor::address(found), level.wrapping_add(1), free);
            }
            slot = slot.offset(8);
        }
    }
}

impl<M: Memory> Unmapper<'_, M> {
    /// Unmaps the span in a table of `level`. `None` when the stock has run out.
    fn clear(&mut self, table: PhysAddr, level: u8, span: Span) -> Option<Cleared> {
        let pieces = cut(span, self.table.geometry.level_shift(level));
        let mut cleared = Cleared::default();
        if let Some(part) = pieces.head() {
            self.clear_part(table, level, part, &mut cleared)?;
        }
        if let Some(whole) = pieces.middle() {
            self.clear_entries(table, level, whole, &mut cleared);
        }
        if let Some(part) = pieces.tail() {
            self.clear_part(table, level, part, &mut cleared)?;
        }
        Some(cleared)
    }

    /// Clears entries as a whole: leaves, and tables with all that hangs on them.
    fn clear_entries(&mut self, table: PhysAddr, level: u8, (first, last): Span, cleared: &mut Cleared) {
        let size = self.table.geometry.level_bytes(level);
        let mut slot = self.table.slot(table, level, first);
        if level >= 3 {
            return self.clear_pages(slot, (first, last), cleared);
        }
        let mut ia = first;
        // First and last leaf of those cleared here, gathered once.
        let mut leaves: Option<Span> = None;
        while ia < last {
            let found = self.memory.read_u64(slot);
            if found & descriptor::VALID != 0 {
                self.memory.write_u64(slot, 0);
                cleared.removed = cleared.removed.wrapping_add(1);
                if descriptor::is_table(found, level) {
                    self.unlinked(descriptor::address(found), level.wrapping_add(1), ia, size);
                } else {
                    leaves = Some((leaves.map_or(ia, |(first, _)| first), ia));
                }
            }
            slot = slot.offset(8);
            ia = ia.wrapping_add(size);
        }
        if let Some((first, last)) = leaves {
            self.gather.add_leaf(first, last.wrapping_sub(first).wrapping_add(size), level);
        }
    }

    /// [`Self::clear_entries`] of a level-3 table, where every valid entry is a leaf.
    fn clear_pages(&mut self, slot: PhysAddr, (first, last): Span, cleared: &mut Cleared) {
        let size = last.wrapping_sub(first).wrapping_add(1);
        let count = size.wrapping_shr(u32::from(self.table.geometry.granule().log2()));
        let valid = walk::clear_entries(self.memory, slot, count);
        if valid != 0 {
            self.gather.add_leaf(first, size, 3);
            cleared.removed = cleared.removed.wrapping_add(valid);
        }
    }

    /// Unmaps the part of a span that is a part of one entry of `table`.
    fn clear_part(&mut self, table: PhysAddr, level: u8, span: Span, cleared: &mut Cleared) -> Option<()> {
        let slot = self.table.slot(table, level, span.0);
        let found = self.memory.read_u64(slot);
        if found & descriptor::VALID == 0 {
            return Some(());
        }
        if !descriptor::is_table(found, level) {
            cleared.split = true;
            return self.split(slot, level, found, span);
        }
        let child = descriptor::address(found);
        let below = level.wrapping_add(1);
        let cleared_below = self.clear(child, below, span)?;
        let mut info = TableInfo::of(found);
        info.count = info.count.wrapping_sub(cleared_below.removed);
        info.mixed |= cleared_below.split;
        if info.count == 0 {
            let size = self.table.geometry.level_bytes(level);
            self.memory.write_u64(slot, 0);
            // Its last entry is gone, so no table hangs on it.
            self.gather.add_structural(span.0 & !size.wrapping_sub(1), size);
            self.gather.add_emptied(self.memory, child);
            cleared.removed = cleared.removed.wrapping_add(1);
        } else if cleared_below.removed != 0 || cleared_below.split {
            self.memory.write_u64(slot, info.descriptor(child));
        }
        Some(())
    }

    /// Gathers a table whose descriptor, for `size` bytes at `ia`, was just cleared, and the tables below it.
    fn unlinked(&mut self, child: PhysAddr, level: u8, ia: u64, size: u64) {
        self.gather.add_structural(ia, size);
        let (memory, gather) = (self.memory, &mut *self.gather);
        self.table.for_each_table(memory, child, level, &mut |table| gather.add_emptied(memory, table));
    }

    /// Exchanges a block for a table that has the hole already.
    fn split(&mut self, slot: PhysAddr, level: u8, block: u64, hole: Span) -> Option<()> {
        let size = self.table.geometry.level_bytes(level);
        let start = hole.0 & !size.wrapping_sub(1);
        let below = level.wrapping_add(1);
        let child = self.stock.pop(self.memory)?;
        let info = self.build(
            child,
            below,
            descriptor::at_level(block, below),
            (start, start | size.wrapping_sub(1)),
            hole,
        )?;
        self.memory.full_barrier();
        match self.table.blocks {
            // All of the block: a cache may hold it in pieces, and those outside the hole would survive a later
            // invalidation that says level 3.
            Blocks::InPlace => self.gather.add_structural(start, size),
            // With `Never` there is no block; one that somebody else left is treated with care.
            Blocks::BreakBeforeMake | Blocks::Never => {
                self.memory.write_u64(slot, 0);
                self.breaker.break_block(start, size);
            }
        }
        self.memory.write_u64(slot, info.descriptor(child));
        Some(())
    }

    /// Fills a new table of `level`, which stands for `span` and would begin with the descriptor `leaf`, with
    /// all leaves outside the hole.
    fn build(&mut self, table: PhysAddr, level: u8, leaf: u64, span: Span, hole: Span) -> Option<TableInfo> {
        let shift = u32::from(self.table.geometry.level_shift(level));
        let size = self.table.geometry.level_bytes(level);
        let index = |ia: u64| ia.wrapping_sub(span.0).wrapping_shr(shift);
        // Entries wholly before the hole and wholly after it.
        let before = index(hole.0);
        let after = index(hole.1).wrapping_add(1);
        let entries = self.table.geometry.entries();
        let at = |index: u64| leaf.wrapping_add(index.wrapping_mul(size));
        let slot = |index: u64| table.offset(index.wrapping_mul(8));
        walk::write_leaves(self.memory, table, before, leaf, size);
        walk::write_leaves(self.memory, slot(after), entries.wrapping_sub(after), at(after), size);
        let mut info = TableInfo { count: before.wrapping_add(entries.wrapping_sub(after)), mixed: false };
        let pieces = cut(hole, shift as u8);
        let below = level.wrapping_add(1);
        for at_tail in [false, true] {
            let Some(hole) = (if at_tail { pieces.tail() } else { pieces.head() }) else {
                continue;
            };
            let child = self.stock.pop(self.memory)?;
            let start = hole.0 & !size.wrapping_sub(1);
            let leaf = descriptor::at_level(at(index(start)), below);
            let info_below = self.build(child, below, leaf, (start, start | size.wrapping_sub(1)), hole)?;
            self.memory.write_u64(slot(index(start)), info_below.descriptor(child));
            info.count = info.count.wrapping_add(1);
            info.mixed = true;
        }
        Some(info)
    }
}
