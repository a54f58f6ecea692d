//! Translation tables of VMSAv8-64 (DDI 0487, D8): one implementation for the CPU's stage 2 of the host, the
//! I/O table that all SMMUs share, the tables of guests, and the host's own stage 1 for its devices. Map and unmap do
//! not know the stage: it is in the [`Geometry`] and the [`Attributes`].
//!
//! A table descriptor carries, in bits that walkers ignore, how many entries of the next table are valid and
//! whether they may form a block, so an empty table is seen, and a whole one joined, without
//! reading it.
//!
//! Walkers run at the same time. A new table is complete, and a barrier made, before the one store that links
//! it. An unmapping that needs part of a block builds the tables with the hole in them and then swaps one
//! descriptor. Nothing here locks: the owner of a [`PageTable`] lets one change run at a time.

pub(crate) mod chain;
mod descriptor;
mod geometry;
mod inspect;
mod map;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;
mod unmap;
mod walk;

pub use descriptor::Attributes;
pub use geometry::{Geometry, Granule};
pub use inspect::Found;

use crate::address::{PhysAddr, PhysRange};
use crate::gather::Gather;
use crate::memory::{Memory, TablePages};

/// Where blocks may stand, and how one is exchanged for a table or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// Nowhere: every leaf is a page.
    Never,
    /// Everywhere. All walkers have BBML2: one store changes the shape while devices use the memory.
    InPlace,
    /// Everywhere, with break-before-make: invalid first, then [`BreakBlock::break_block`], then the new
    /// descriptor. A walker may fault in between.
    BreakBeforeMake,
}

/// The "break" of break-before-make (DDI 0487, D8, "Using break-before-make when updating translation table
/// entries").
pub trait BreakBlock {
    /// Makes every walker forget what it holds of the range, leaves and tables of any level; complete on
    /// return. Stores made before the call are seen by walkers before that.
    fn break_block(&mut self, ia: u64, size_bytes: u64);
}

/// For tables that never break a block: [`Blocks::Never`] and [`Blocks::InPlace`].
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBreak;

impl BreakBlock for NoBreak {
    fn break_block(&mut self, _ia: u64, _size_bytes: u64) {}
}

/// Why a mapping was refused. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The range or the output address is not a multiple of the granule.
    Misaligned,
    /// The range ends above the input size or the output above the output size.
    OutOfRange,
    /// The input address `at` has a translation: the lowest one in the range.
    AlreadyMapped {
        /// Input address.
        at: u64,
    },
    /// The operation needs `needed` tables in all and could not get them.
    OutOfTables {
        /// Tables of the granule's size.
        needed: usize,
    },
}

/// Why an unmapping was refused. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmapError {
    /// The range is not a multiple of the granule.
    Misaligned,
    /// The range ends above the input size.
    OutOfRange,
    /// Splitting blocks needs `needed` tables in all and could not get them.
    OutOfTables {
        /// Tables of the granule's size.
        needed: usize,
    },
}

/// A translation that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Output address of the byte that was looked up, not of the leaf's first byte.
    pub output: PhysAddr,
    /// Level of the leaf: 3 is a page.
    pub level: u8,
    /// Its attributes.
    pub attributes: Attributes,
}

/// One translation table: its shape and where it stands. Two copies name the same table.
///
/// An input address is an IPA at stage 2 and a VA at stage 1; an output address is a PA, or at a stage 1 above a stage 2
/// an IPA.
#[derive(Clone, Copy, Debug)]
pub struct PageTable {
    geometry: Geometry,
    blocks: Blocks,
    root: PhysAddr,
}

impl PageTable {
    /// The table at `root`: [`Geometry::root_bytes`] bytes, aligned to that, zero or made by this type with
    /// the same geometry and blocks.
    pub const fn new(geometry: Geometry, blocks: Blocks, root: PhysAddr) -> Self {
        Self { geometry, blocks, root }
    }

    /// Its shape.
    #[inline]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Where blocks may stand.
    #[inline]
    pub const fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// Address of the first root table.
    #[inline]
    pub const fn root(&self) -> PhysAddr {
        self.root
    }

    /// Maps the input addresses of `range` to as many output addresses from `output`, with the largest leaves
    /// that [`Blocks`], the level and the alignment of both allow. On return walkers see the mapping.
    ///
    /// With `join`, a table that became full of contiguous leaves with equal attributes is replaced by one
    /// block, level by level. In place the replaced table and its range are added to `gather`; with
    /// break-before-make they are invalidated and given back at once, and `gather` stays as it was. Without
    /// `join` it always does.
    ///
    /// On an error neither the table nor `gather` has changed.
    #[allow(clippy::too_many_arguments)]
    pub fn map<M: Memory>(
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
        self.map_range(memory, pages, breaker, range, output, attributes, join, gather)
    }

    /// Takes away the translation of every input address in `range`; parts without one are skipped. Blocks
    /// that stick out are split, tables that become empty are unlinked.
    ///
    /// What walkers may still hold is added to `gather`: the caller makes the barrier and the invalidation,
    /// and only then gives away memory or [`Gather::give_freed`] the tables. What break-before-make has
    /// invalidated already is not added again.
    ///
    /// On an error neither the table nor `gather` has changed.
    pub fn unmap<M: Memory>(
        &self,
        memory: &M,
        pages: &mut dyn TablePages,
        breaker: &mut dyn BreakBlock,
        range: PhysRange,
        gather: &mut Gather,
    ) -> Result<(), UnmapError> {
        self.unmap_range(memory, pages, breaker, range, gather)
    }

    /// How many tables [`Self::map`] with the same arguments would take now; 0 where it would fail before
    /// taking any.
    #[inline]
    pub fn tables_for_map<M: Memory>(&self, memory: &M, range: PhysRange, output: PhysAddr) -> usize {
        self.count_for_map(memory, range, output)
    }

    /// How many tables [`Self::unmap`] of the range would take now; 0 where it would fail before taking any.
    #[inline]
    pub fn tables_for_unmap<M: Memory>(&self, memory: &M, range: PhysRange) -> usize {
        self.count_for_unmap(memory, range)
    }

    /// The translation of an input address.
    pub fn lookup<M: Memory>(&self, memory: &M, ia: u64) -> Option<Leaf> {
        if !self.reaches(ia) {
            return None;
        }
        let mut level = self.geometry.start_level();
        let mut table = self.root;
        loop {
            let found = memory.read_u64(self.slot(table, level, ia));
            if found & descriptor::VALID == 0 {
                return None;
            }
            if !descriptor::is_table(found, level) {
                let within = ia & self.geometry.level_bytes(level).wrapping_sub(1);
                let output = descriptor::address(found).offset(within);
                return Some(Leaf { output, level, attributes: Attributes::from_bits(found) });
            }
            table = descriptor::address(found);
            level = level.wrapping_add(1);
        }
    }

    /// The first leaf at or above an input address, as the first input address that it translates there, and its level.
    pub fn next_leaf<M: Memory>(&self, memory: &M, from: u64) -> Option<(u64, u8)> {
        let mut ia = from;
        let mut level = self.geometry.start_level();
        let mut table = self.root;
        // Tables are never empty, so each is left at most once at its end.
        while self.reaches(ia) {
            let size = self.geometry.level_bytes(level);
            let found = memory.read_u64(self.slot(table, level, ia));
            if found & descriptor::VALID != 0 {
                if !descriptor::is_table(found, level) {
                    return Some((ia, level));
                }
                table = descriptor::address(found);
                level = level.wrapping_add(1);
                continue;
            }
            ia = (ia | size.wrapping_sub(1)).wrapping_add(1);
            let above = size.wrapping_shl(u32::from(self.geometry.stride()));
            if level != self.geometry.start_level() && ia & above.wrapping_sub(1) == 0 {
                // The end of this table: on from the root.
                (level, table) = (self.geometry.start_level(), self.root);
            }
            if ia == 0 {
                return None;
            }
        }
        None
    }

    /// Gives back all tables below the root and clears the root, which stays the caller's. No walker and no
    /// cache may reach the table any more.
    pub fn free_all<M: Memory>(&self, memory: &M, pages: &mut dyn TablePages) {
        let entries = self.geometry.root_entries();
        let level = self.geometry.start_level();
        self.for_each_child(memory, self.root, level, entries, &mut |table| pages.give(table));
        for index in 0..entries {
            memory.write_u64(self.root.offset(index.wrapping_mul(8)), 0);
        }
    }
}
