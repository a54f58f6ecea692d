//! A list of tables that costs no memory: each holds the address of the next in its first entry.

use crate::address::PhysAddr;
use crate::memory::Memory;

/// Bit 1 of a link: another table follows. Bit 0 stays clear, so a walker that still reaches the table finds
/// an invalid descriptor there.
const FOLLOWED: u64 = 1 << 1;

/// Tables that are not linked to any page table, last in first out.
#[derive(Debug, Default)]
pub(crate) struct TableChain {
    head: Option<PhysAddr>,
}

impl TableChain {
    /// The empty chain.
    pub(crate) const fn new() -> Self {
        Self { head: None }
    }

    /// Adds a table; its first entry is overwritten.
    pub(crate) fn push<M: Memory>(&mut self, memory: &M, table: PhysAddr) {
        let link = match self.head {
            Some(next) => next.0 | FOLLOWED,
            None => 0,
        };
        memory.write_u64(table, link);
        self.head = Some(table);
    }

    /// Removes a table; its first entry is zero afterwards.
    pub(crate) fn pop<M: Memory>(&mut self, memory: &M) -> Option<PhysAddr> {
        let table = self.head?;
        let link = memory.read_u64(table);
        self.head = if link & FOLLOWED != 0 { Some(PhysAddr(link & !FOLLOWED)) } else { None };
        memory.write_u64(table, 0);
        Some(table)
    }

    /// Whether there is no table in it.
    pub(crate) const fn is_empty(&self) -> bool {
        self.head.is_none()
    }
}
