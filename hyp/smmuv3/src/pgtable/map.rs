//! Mapping.

use super::chain::TableChain;
use super::descriptor::{self, Attributes, TableInfo};
use super::walk::{self, PageWalk, Span, cut};
use super::{Blocks, BreakBlock, MapError, PageTable};
use crate::address::{PhysAddr, PhysRange};
use crate::gather::Gather;
use crate::memory::{Memory, TablePages};

/// What a call of map says about its leaves.
struct Leaves {
    /// Output address less input address, wrapping.
    delta: u64,
    attributes: Attributes,
    /// The highest level at which the table, and the alignment of `delta`, allow a leaf.
    first_level: u8,
}

impl Leaves {
    fn new(table: &PageTable, first: u64, output: PhysAddr, attributes: Attributes) -> Self {
        let delta = output.0.wrapping_sub(first);
        let mut first_level = table.first_leaf_level();
        while first_level < 3 && delta & table.geometry.level_bytes(first_level).wrapping_sub(1) != 0 {
            first_level = first_level.wrapping_add(1);
        }
        Self { delta, attributes, first_level }
    }

    fn descriptor(&self, ia: u64, level: u8) -> u64 {
        descriptor::leaf(PhysAddr(ia.wrapping_add(self.delta)), level, self.attributes)
    }
}

/// One call of map that does not end on the short way.
struct Mapper<'a, M> {
    table: &'a PageTable,
    memory: &'a M,
    pages: &'a mut dyn TablePages,
    breaker: &'a mut dyn BreakBlock,
    gather: &'a mut Gather,
    leaves: Leaves,
    join: bool,
    stock: TableChain,
}

/// What filling a part of a table did to it.
#[derive(Default)]
struct Filled {
    /// Entries that became valid.
    added: u64,
    /// See [`TableInfo::mixed`].
    mixed: bool,
    /// An entry changed from a table to a block.
    joined: bool,
}

impl PageTable {
    /// The body of [`PageTable::map`].
    #[allow(clippy::too_many_arguments)]
    #[inline]
    pub(super) fn map_range<M: Memory>(
        &self,
        memory: &M,
        pages: &mut dyn TablePages,
        breaker: &mut dyn BreakBlock,
        range: PhysRange,
        output: PhysAddr,
        attributes: Attributes,
        join: bool,
        gather: &mut Gather,
    ) -> Result<(), MapError> {
        let span = self.check_map(range, output)?;
        if self.is_page(span)
            && let Some(result) = self.map_page(memory, span.0, output, attributes, join)
        {
            return result;
        }

        self.map_span(memory, pages, breaker, span, output, attributes, join, gather)
    }

    /// Any mapping.
    #[allow(clippy::too_many_arguments)]
    #[inline(never)]
    fn map_span<M: Memory>(
        &self,
        memory: &M,
        pages: &mut dyn TablePages,
        breaker: &mut dyn BreakBlock,
        span: Span,
        output: PhysAddr,
        attributes: Attributes,
        join: bool,
        gather: &mut Gather,
    ) -> Result<(), MapError> {
        let leaves = Leaves::new(self, span.0, output, attributes);
        let level = self.geometry.start_level();
        let needed = self
            .survey(memory, &leaves, self.root, level, span)
            .map_err(|at| MapError::AlreadyMapped { at })?;
        let stock = walk::reserve(memory, pages, needed).ok_or(MapError::OutOfTables { needed })?;
        let mut mapper = Mapper { table: self, memory, pages, breaker, gather, leaves, join, stock };
        let filled = mapper.fill(self.root, level, true, true, span);
        let Mapper { stock, pages, .. } = mapper;
        walk::give_back(memory, pages, stock);
        memory.full_barrier();
        // The stock was counted for exactly this table, so it never runs out.
        filled.map(|_| ()).ok_or(MapError::OutOfTables { needed })
    }

    /// The span of the range, when both ends of the mapping are aligned and reached.
    #[inline]
    fn check_map(&self, range: PhysRange, output: PhysAddr) -> Result<Span, MapError> {
        let granule = self.geometry.granule().bytes();
        if !range.is_aligned(granule) || !output.is_aligned(granule) {
            return Err(MapError::Misaligned);
        }
        let span = (range.start().0, range.last().0);
        let Some(last_output) = output.0.checked_add(span.1.wrapping_sub(span.0)) else {
            return Err(MapError::OutOfRange);
        };
        if !self.reaches(span.1) || last_output.wrapping_shr(u32::from(self.geometry.oa_bits())) != 0 {
            return Err(MapError::OutOfRange);
        }
        Ok(span)
    }

    /// The short way for one page whose level-3 table is there and is not to be joined. `None`: nothing was
    /// done.
    #[inline]
    fn map_page<M: Memory>(
        &self,
        memory: &M,
        ia: u64,
        output: PhysAddr,
        attributes: Attributes,
        join: bool,
    ) -> Option<Result<(), MapError>> {
        let PageWalk::Page { parent_slot, parent, slot } = self.walk_page(memory, ia) else {
            return None;
        };
        if memory.read_u64(slot) & descriptor::VALID != 0 {
            return Some(Err(MapError::AlreadyMapped { at: ia }));
        }
        let mut parent = descriptor::one_more(parent)?;
        let leaf = descriptor::leaf(output, 3, attributes);
        if self.blocks != Blocks::Never {
            if join && TableInfo::of(parent).count == self.geometry.entries() {
                return None;
            }
            if parent & descriptor::MIXED == 0
                && !self.continues(memory, slot, 1, leaf, self.geometry.granule().bytes())
            {
                parent |= descriptor::MIXED;
            }
        }
        memory.write_u64(slot, leaf);
        memory.write_u64(parent_slot, parent);
        memory.full_barrier();
        Some(Ok(()))
    }

    /// Whether `count` leaves from `slot` on, the first one `leaf`, continue the run of leaves of a table
    /// that is not mixed. Only the neighbours are looked at: without a valid one the answer is no.
    #[inline]
    fn continues<M: Memory>(&self, memory: &M, slot: PhysAddr, count: u64, leaf: u64, step: u64) -> bool {
        let in_table = self.geometry.granule().bytes().wrapping_sub(1);
        if slot.0 & in_table != 0 {
            let before = memory.read_u64(PhysAddr(slot.0.wrapping_sub(8)));
            if before & descriptor::VALID != 0 {
                return before.wrapping_add(step) == leaf;
            }
        }
        let next = slot.offset(count.wrapping_mul(8));
        if next.0 & in_table != 0 {
            let after = memory.read_u64(next);
            if after & descriptor::VALID != 0 {
                return leaf.wrapping_add(step.wrapping_mul(count)) == after;
            }
        }
        false
    }

    /// Whether the leaves of a full table make one block. Reads every entry, or as many as it takes to say
    /// no.
    fn is_whole<M: Memory>(&self, memory: &M, table: PhysAddr, level: u8) -> bool {
        let first = memory.read_u64(table);
        let step = self.geometry.level_bytes(level);
        let block = step.wrapping_shl(u32::from(self.geometry.stride()));
        if descriptor::is_table(first, level) || descriptor::address(first).0 & block.wrapping_sub(1) != 0 {
            return false;
        }
        walk::are_leaves(memory, table, self.geometry.entries(), first, step)
    }

    /// Whether a table of `level` may be replaced by a block.
    fn is_joinable(&self, level: u8) -> bool {
        level > self.first_leaf_level()
    }

    /// The tables that mapping a span takes, or the lowest input address in it that has a translation.
    fn survey<M: Memory>(
        &self,
        memory: &M,
        leaves: &Leaves,
        table: PhysAddr,
        level: u8,
        span: Span,
    ) -> Result<usize, u64> {
        let shift = self.geometry.level_shift(level);
        let size = self.geometry.level_bytes(level);
        let mut needed = 0usize;
        let mut slot = self.slot(table, level, span.0);
        let (mut first, last) = span;
        if level >= 3 {
            let count = last.wrapping_sub(first).wrapping_shr(u32::from(shift)).wrapping_add(1);
            return match walk::first_valid(memory, slot, count) {
                Some(index) => Err(first.wrapping_add(index.wrapping_shl(u32::from(shift)))),
                None => Ok(0),
            };
        }
        loop {
            // The part of the span that lies in the entry at `slot`.
            let entry_last = first | size.wrapping_sub(1);
            let part = (first, entry_last.min(last));
            let found = memory.read_u64(slot);
            let leaf = level >= leaves.first_level && first & size.wrapping_sub(1) == 0 && entry_last <= last;
            if descriptor::is_table(found, level) {
                let below = level.wrapping_add(1);
                needed = needed.wrapping_add(self.survey(
                    memory,
                    leaves,
                    descriptor::address(found),
                    below,
                    part,
                )?);
                if leaf {
                    // Tables are never empty, so the survey of this one has found something.
                    return Err(first);
                }
            } else if found & descriptor::VALID != 0 {
                return Err(first);
            } else if !leaf {
                needed = needed.wrapping_add(self.absent(leaves, level, shift, part));
            }
            if entry_last >= last {
                return Ok(needed);
            }
            first = entry_last.wrapping_add(1);
            slot = slot.offset(8);
        }
    }

    /// The tables below an invalid entry of `level` that mapping a part of it, or all of it, takes.
    fn absent(&self, leaves: &Leaves, level: u8, shift: u8, span: Span) -> usize {
        let pieces = cut(span, shift);
        if pieces.middle().is_some() && level >= leaves.first_level {
            return 0;
        }
        let below = level.wrapping_add(1);
        let shift_below = shift.wrapping_sub(self.geometry.stride());
        let pieces = cut(span, shift_below);
        let mut needed = 1usize;
        if let Some((first, last)) = pieces.middle()
            && below < leaves.first_level
        {
            let entries = last.wrapping_sub(first).wrapping_shr(u32::from(shift_below)).wrapping_add(1);
            let one_first = first;
            let one_last = first.wrapping_add(self.geometry.level_bytes(below)).wrapping_sub(1);
            let one = self.absent(leaves, below, shift_below, (one_first, one_last));
            needed = needed.wrapping_add(one.wrapping_mul(entries as usize));
        }
        if let Some(part) = pieces.head() {
            needed = needed.wrapping_add(self.absent(leaves, below, shift_below, part));
        }
        if let Some(part) = pieces.tail() {
            needed = needed.wrapping_add(self.absent(leaves, below, shift_below, part));
        }
        needed
    }

    /// The body of [`PageTable::tables_for_map`].
    #[inline]
    pub(super) fn count_for_map<M: Memory>(&self, memory: &M, range: PhysRange, output: PhysAddr) -> usize {
        let Ok(span) = self.check_map(range, output) else {
            return 0;
        };
        if self.is_page(span) && matches!(self.walk_page(memory, span.0), PageWalk::Page { .. }) {
            return 0;
        }
        self.count_for_map_span(memory, span, output)
    }

    #[inline(never)]
    fn count_for_map_span<M: Memory>(&self, memory: &M, span: Span, output: PhysAddr) -> usize {
        let leaves = Leaves::new(self, span.0, output, Attributes::from_bits(0));
        self.survey(memory, &leaves, self.root, self.geometry.start_level(), span).unwrap_or(0)
    }
}

impl<M: Memory> Mapper<'_, M> {
    /// Maps the span in a table of `level`. `live`: walkers can reach the table; `mixed`: what is known of it
    /// before. `None` when the stock has run out.
    fn fill(&mut self, table: PhysAddr, level: u8, live: bool, mixed: bool, span: Span) -> Option<Filled> {
        let geometry = &self.table.geometry;
        let (shift, size) = (geometry.level_shift(level), geometry.level_bytes(level));
        let pieces = cut(span, shift);
        let mut filled = Filled { mixed, ..Filled::default() };
        if let Some(part) = pieces.head() {
            self.descend(table, level, live, part, &mut filled)?;
        }
        if let Some((first, last)) = pieces.middle() {
            let slot = self.table.slot(table, level, first);
            if level >= self.leaves.first_level {
                let count = last.wrapping_sub(first).wrapping_shr(u32::from(shift)).wrapping_add(1);
                let leaf = self.leaves.descriptor(first, level);
                if self.table.is_joinable(level) && !filled.mixed {
                    filled.mixed = if live {
                        !self.table.continues(self.memory, slot, count, leaf, size)
                    } else {
                        // Aligned to the block that a full table would become.
                        level == self.leaves.first_level
                    };
                }
                walk::write_leaves(self.memory, slot, count, leaf, size);
                filled.added = filled.added.wrapping_add(count);
            } else {
                let mut first = first;
                while first < last {
                    let entry_last = first | size.wrapping_sub(1);
                    self.descend(table, level, live, (first, entry_last), &mut filled)?;
                    first = entry_last.wrapping_add(1);
                }
            }
        }
        if let Some(part) = pieces.tail() {
            self.descend(table, level, live, part, &mut filled)?;
        }
        Some(filled)
    }

    /// Maps the part of a span that lies in one entry of `table` and is no leaf there.
    fn descend(
        &mut self,
        table: PhysAddr,
        level: u8,
        live: bool,
        span: Span,
        filled: &mut Filled,
    ) -> Option<()> {
        filled.mixed = true;
        let below = level.wrapping_add(1);
        let slot = self.table.slot(table, level, span.0);
        let found = if live { self.memory.read_u64(slot) } else { 0 };
        if found & descriptor::VALID == 0 {
            let child = self.stock.pop(self.memory)?;
            let below = self.fill(child, below, false, false, span)?;
            if live {
                self.memory.full_barrier();
            }
            let info = TableInfo { count: below.added, mixed: below.mixed };
            self.memory.write_u64(slot, info.descriptor(child));
            filled.added = filled.added.wrapping_add(1);
            return Some(());
        }
        let child = descriptor::address(found);
        let mut info = TableInfo::of(found);
        let filled_below = self.fill(child, below, live, info.mixed, span)?;
        info.count = info.count.wrapping_add(filled_below.added);
        info.mixed = filled_below.mixed;
        let changed = filled_below.added != 0 || filled_below.joined;
        if self.join
            && changed
            && info.count == self.table.geometry.entries()
            && self.table.is_joinable(below)
            && (!info.mixed || self.table.is_whole(self.memory, child, below))
            && self.replace_by_block(slot, level, child, span.0)
        {
            filled.joined = true;
        } else if changed {
            self.memory.write_u64(slot, info.descriptor(child));
        }
        Some(())
    }

    /// Replaces the table `child`, whole, by one block in `slot`. `false`, and nothing is changed, when the
    /// gather has no room.
    fn replace_by_block(&mut self, slot: PhysAddr, level: u8, child: PhysAddr, ia: u64) -> bool {
        let size = self.table.geometry.level_bytes(level);
        let ia = ia & !size.wrapping_sub(1);
        let block = descriptor::at_level(self.memory.read_u64(child), level);
        match self.table.blocks {
            Blocks::InPlace | Blocks::Never => {
                if !self.gather.add_joined(ia, size, child) {
                    return false;
                }
                self.memory.write_u64(slot, block);
            }
            Blocks::BreakBeforeMake => {
                self.memory.write_u64(slot, 0);
                self.breaker.break_block(ia, size);
                self.memory.write_u64(slot, block);
                self.pages.give(child);
            }
        }
        true
    }
}
