//! A small allocator of the memory that the module was given.

use super::Error;
use smmuv3::address::PhysAddr;
use smmuv3::invalidation::ArrayPages;
use smmuv3::memory::{Memory, TablePages};

/// log2 of the smallest run in bytes.
const SMALLEST_LOG2: u8 = 12;
/// The order of a run of one such page.
pub(super) const PAGE_ORDER: u8 = 0;
/// Orders: 4 KiB to 512 KiB.
const ORDERS: usize = 8;

/// The order of a run of so many bytes: log2 of its pages of 4 KiB.
pub(super) const fn order_of(bytes: u64) -> u8 {
    (bytes.div_ceil(1 << SMALLEST_LOG2).next_power_of_two().trailing_zeros()) as u8
}

/// Writes zeros.
pub(super) fn zero<M: Memory>(memory: &M, start: PhysAddr, bytes: u64) {
    for offset in (0..bytes).step_by(8) {
        memory.write_u64(start.offset(offset), 0);
    }
}

/// Runs of pages: new ones from the front of the memory, used ones from a list for each order, chained through their first words. Runs are
/// never joined: the module asks for the same few orders again and again.
#[derive(Debug)]
pub(super) struct Pages {
    next: u64,
    end: u64,
    /// The first free run of each order, 0 for none.
    free: [u64; ORDERS],
}

impl Pages {
    pub const fn new(start: u64, size: u64) -> Self {
        Self { next: start, end: start.saturating_add(size), free: [0; ORDERS] }
    }

    /// A run aligned to its size, with anything in it.
    pub fn take<M: Memory>(&mut self, memory: &M, order: u8) -> Option<PhysAddr> {
        let first = self.free.get_mut(usize::from(order))?;
        if *first != 0 {
            let run = PhysAddr(*first);
            *first = memory.read_u64(run);
            return Some(run);
        }
        let size = 1 << (SMALLEST_LOG2 + order);
        let run = self.next.checked_next_multiple_of(size)?;
        let end = run.checked_add(size).filter(|&end| end <= self.end)?;
        // What alignment skips is less than a run of a higher order, and stays unused.
        self.next = end;
        Some(PhysAddr(run))
    }

    /// Takes back what [`Pages::take`] gave for that order.
    pub fn give<M: Memory>(&mut self, memory: &M, run: PhysAddr, order: u8) {
        if let Some(first) = self.free.get_mut(usize::from(order)) {
            memory.write_u64(run, *first);
            *first = run.0;
        }
    }

    /// A run of zeros.
    pub fn take_zeroed<M: Memory>(&mut self, memory: &M, order: u8) -> Result<PhysAddr, Error> {
        let run = self.take(memory, order).ok_or(Error::NoMemory)?;
        zero(memory, run, 1 << (SMALLEST_LOG2 + order));
        Ok(run)
    }
}

/// The pages as the page tables take them.
pub(super) struct Tables<'a, M> {
    pub pages: &'a mut Pages,
    pub memory: &'a M,
    /// Of the granule.
    pub order: u8,
}

impl<M: Memory> TablePages for Tables<'_, M> {
    fn take(&mut self) -> Option<PhysAddr> {
        self.pages.take_zeroed(self.memory, self.order).ok()
    }

    fn give(&mut self, table: PhysAddr) {
        self.pages.give(self.memory, table, self.order);
    }
}

/// The pages as the invalidation arrays take them.
pub(super) struct Arrays<'a, M> {
    pub pages: &'a mut Pages,
    pub memory: &'a M,
}

impl<M: Memory> ArrayPages for Arrays<'_, M> {
    fn take(&mut self, bytes: u64) -> Option<PhysAddr> {
        self.pages.take(self.memory, order_of(bytes))
    }

    fn give(&mut self, array: PhysAddr, bytes: u64) {
        self.pages.give(self.memory, array, order_of(bytes));
    }
}
