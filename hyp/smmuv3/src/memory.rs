//! How the algorithms reach memory.

use crate::address::PhysAddr;

/// Memory that structures shared with hardware lie in: page tables, stream tables, queues.
///
/// Every access is one single-copy atomic access of 64 bits to an address that is a multiple of 8 and that
/// belongs to the hypervisor (or, on the host's side, to the host's driver).
pub trait Memory {
    /// Reads 64 bits.
    fn read_u64(&self, address: PhysAddr) -> u64;

    /// Writes 64 bits.
    fn write_u64(&self, address: PhysAddr, value: u64);

    /// A full barrier (DSB SY): every access before it is complete, and seen by page-table walkers, SMMUs and other
    /// CPUs, before any access after it begins.
    fn full_barrier(&self);
}

/// Where page-table pages come from and go to.
pub trait TablePages {
    /// A table of the granule's size, aligned to it and filled with zeros; `None` when there is none.
    fn take(&mut self) -> Option<PhysAddr>;

    /// Takes back a table that no walker and no cache can reach any more.
    fn give(&mut self, table: PhysAddr);
}
