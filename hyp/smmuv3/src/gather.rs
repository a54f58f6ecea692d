//! What a change of a page table obliges its owner to invalidate.

use crate::address::PhysAddr;
use crate::memory::{Memory, TablePages};
use crate::pgtable::chain::TableChain;

/// Joined tables that one gather can hold. One call of map joins at most four: two ends, two levels.
const JOINED: usize = 4;

/// The input addresses whose translation was taken away or changed its shape since the last invalidation, and
/// the tables that only caches can still reach.
///
/// After an operation: [`Self::is_empty`], and there is nothing to invalidate; otherwise invalidate from
/// [`Self::first`] to [`Self::last`], then give the tables back with [`Self::give_freed`]. If the
/// invalidation failed, the tables are as unsafe to use again as the pages that were unmapped. Dropping a
/// gather leaks its tables.
#[derive(Debug)]
#[must_use]
pub struct Gather {
    first: u64,
    last: u64,
    /// Bit n: a leaf of level n was taken away.
    levels: u8,
    structural: bool,
    joined_count: u8,
    /// Tables replaced by a block. Walkers may still use their entries, which are right, until the
    /// invalidation: they cannot be chained through.
    joined: [PhysAddr; JOINED],
    /// Tables whose whole range was unmapped.
    emptied: TableChain,
}

impl Default for Gather {
    fn default() -> Self {
        Self::new()
    }
}

impl Gather {
    /// Nothing to invalidate.
    #[inline]
    pub const fn new() -> Self {
        Self {
            first: u64::MAX,
            last: 0,
            levels: 0,
            structural: false,
            joined_count: 0,
            joined: [PhysAddr(0); JOINED],
            emptied: TableChain::new(),
        }
    }

    /// All of the address space, with all levels.
    pub const fn everything() -> Self {
        let mut gather = Self::new();
        gather.first = 0;
        gather.last = u64::MAX;
        gather.structural = true;
        gather
    }

    /// Whether it is all of the address space: the whole tag is invalidated then.
    #[inline]
    pub const fn is_everything(&self) -> bool {
        self.first == 0 && self.last == u64::MAX
    }

    /// Whether there is nothing to invalidate (and no table to give back).
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.first > self.last
    }

    /// First input address to invalidate. Meaningless when empty.
    #[inline]
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// Last input address to invalidate, itself included. Meaningless when empty.
    #[inline]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// The level of the old leaves, 1 to 3: `Some` only when all of them were of that level and no table was
    /// linked, unlinked or joined. `None` asks for an invalidation of all levels (Leaf = 0, TTL = 0).
    #[inline]
    pub const fn leaf_level(&self) -> Option<u8> {
        if self.structural || !self.levels.is_power_of_two() {
            return None;
        }
        Some(self.levels.trailing_zeros() as u8)
    }

    /// Leaves of `level` (0 to 3) that translated `size_bytes` (not 0) from `ia` are gone.
    #[inline]
    pub fn add_leaf(&mut self, ia: u64, size_bytes: u64, level: u8) {
        self.widen(ia, size_bytes);
        self.levels |= 1 << (level & 3);
    }

    /// The range was translated by one shape of tables and is by another, or by none: a block that was split,
    /// leaves that were joined, a table that was unlinked.
    #[inline]
    pub fn add_structural(&mut self, ia: u64, size_bytes: u64) {
        self.widen(ia, size_bytes);
        self.structural = true;
    }

    /// Whether [`Self::add_joined`] would find room.
    pub const fn has_room_for_joined(&self) -> bool {
        (self.joined_count as usize) < JOINED
    }

    /// `table` was replaced by a block of `size_bytes` at `ia`. `false`, and nothing is changed, when there
    /// is no room.
    pub fn add_joined(&mut self, ia: u64, size_bytes: u64, table: PhysAddr) -> bool {
        let Some(slot) = self.joined.get_mut(usize::from(self.joined_count)) else {
            return false;
        };
        *slot = table;
        self.joined_count = self.joined_count.wrapping_add(1);
        self.add_structural(ia, size_bytes);
        true
    }

    /// `table` was unlinked and all that it translated is to be invalidated: its range is added with
    /// [`Self::add_structural`]. Any number of tables fits; the first entry of each is overwritten.
    pub fn add_emptied<M: Memory>(&mut self, memory: &M, table: PhysAddr) {
        self.emptied.push(memory, table);
    }

    /// Removes one freed table from the gather; `None` when there is none left. To be used again only when
    /// the invalidation is complete.
    pub fn take_freed<M: Memory>(&mut self, memory: &M) -> Option<PhysAddr> {
        if let Some(count) = self.joined_count.checked_sub(1) {
            self.joined_count = count;
            return self.joined.get(usize::from(count)).copied();
        }
        if self.emptied.is_empty() { None } else { self.emptied.pop(memory) }
    }

    /// After a complete invalidation: gives all freed tables back and starts anew.
    pub fn give_freed<M: Memory>(&mut self, memory: &M, pages: &mut dyn TablePages) {
        while let Some(table) = self.take_freed(memory) {
            pages.give(table);
        }
        *self = Self::new();
    }

    #[inline]
    fn widen(&mut self, ia: u64, size_bytes: u64) {
        self.first = self.first.min(ia);
        self.last = self.last.max(ia.wrapping_add(size_bytes).wrapping_sub(1));
    }
}
