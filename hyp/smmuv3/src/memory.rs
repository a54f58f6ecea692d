//! How the algorithms reach memory.

use crate::address::PhysAddr;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod testing;

/// Memory that structures shared with hardware, or between CPUs without a lock, lie in: page tables, stream tables, queues,
/// invalidation arrays.
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

    /// Reads 64 bits; no access after it is made before it (load-acquire).
    #[inline]
    fn read_acquire_u64(&self, address: PhysAddr) -> u64 {
        let value = self.read_u64(address);
        self.full_barrier();
        value
    }

    /// Writes 64 bits; every access before it is seen before it (store-release).
    #[inline]
    fn write_release_u64(&self, address: PhysAddr, value: u64) {
        self.full_barrier();
        self.write_u64(address, value);
    }

    /// Reads two words side by side, each of them atomic on its own, in any order.
    #[inline]
    fn read_pair(&self, address: PhysAddr) -> [u64; 2] {
        [self.read_u64(address), self.read_u64(address.offset(8))]
    }

    /// Writes two words side by side, each of them atomic on its own, in any order.
    #[inline]
    fn write_pair(&self, address: PhysAddr, value: [u64; 2]) {
        let [low, high] = value;
        self.write_u64(address, low);
        self.write_u64(address.offset(8), high);
    }

    /// Reads four pairs that follow each other, as [`Memory::read_pair`] does.
    #[inline]
    fn read_four_pairs(&self, address: PhysAddr) -> [[u64; 2]; 4] {
        [0, 16, 32, 48].map(|offset| self.read_pair(address.offset(offset)))
    }

    /// Writes four pairs that follow each other, as [`Memory::write_pair`] does.
    #[inline]
    fn write_four_pairs(&self, address: PhysAddr, pairs: [[u64; 2]; 4]) {
        for (offset, pair) in [0, 16, 32, 48].into_iter().zip(pairs) {
            self.write_pair(address.offset(offset), pair);
        }
    }
}

/// Where page-table pages come from and go to.
pub trait TablePages {
    /// A table of the granule's size, aligned to it and filled with zeros; `None` when there is none.
    fn take(&mut self) -> Option<PhysAddr>;

    /// Takes back a table that no walker and no cache can reach any more.
    fn give(&mut self, table: PhysAddr);
}
