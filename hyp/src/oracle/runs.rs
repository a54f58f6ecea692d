//! The pages of the pool: each is free, or has exactly one user.

use abi::oracle::Wrong;
use smmuv3::address::PhysAddr;

use super::Finding;
use crate::memory::Ownership;
use crate::memory::pool::{PAGE_LOG2, Pool};
use crate::platform::Platform;

/// What has a run, where it is no page table (those are named by their domain).
pub(crate) mod what {
    /// The list of free runs, or what is kept for top ups.
    pub const FREE: u64 = 0x1000;
    /// Words of the IOMMU service: cells, readers, VMIDs.
    pub const SERVICE: u64 = 0x1001;
    /// An invalidation array.
    pub const ARRAY: u64 = 0x1002;
    /// Streams of vSMMUs.
    pub const STREAMS: u64 = 0x1003;
    /// A stream table, queue or table of VMIDs of an SMMU.
    pub const SMMU: u64 = 0x1004;
    /// Tables of an ITS.
    pub const ITS: u64 = 0x1005;
    /// The oracle's own.
    pub const ORACLE: u64 = 0x1006;
}

/// Who wants to know of runs that are in use: first byte, order, and what has it.
pub(crate) struct Runs<'a>(pub &'a mut dyn FnMut(PhysAddr, u8, u64) -> Result<(), Finding>);

impl Runs<'_> {
    pub fn add(&mut self, run: PhysAddr, order: u8, what: u64) -> Result<(), Finding> {
        (self.0)(run, order, what)
    }
}

/// A bit for each page of RAM, in a run of the pool: whether somebody has it. Without memory for it nothing is marked.
pub(super) struct Marks(Option<(PhysAddr, u8)>);

impl Marks {
    /// Clear marks.
    pub fn take<P: Platform>(p: &P, pool: &Pool, memory: &Ownership) -> Self {
        let bytes = memory.ram_pages().div_ceil(8);
        let order = bytes.div_ceil(1 << PAGE_LOG2).next_power_of_two().trailing_zeros() as u8;
        Self(pool.take_zeroed(p, order).ok().map(|run| (run, order)))
    }

    pub fn give<P: Platform>(self, p: &P, pool: &Pool) {
        if let Self(Some((run, order))) = self {
            pool.give(p, run, order);
        }
    }

    /// Pages that they take.
    pub fn pages(&self) -> u64 {
        self.0.map_or(0, |(_, order)| 1 << order)
    }

    /// Marks a run that `what` has: no page of it is marked yet, and each is the hypervisor's.
    pub fn set<P: Platform>(
        &self,
        p: &P,
        memory: &Ownership,
        run: PhysAddr,
        order: u8,
        what: u64,
    ) -> Result<(), Finding> {
        for page in (0..1u64 << order).map(|page| run.offset(page << PAGE_LOG2)) {
            let Some(number) = memory.own_page(p, page) else {
                return Err(Finding::new(Wrong::PoolForeign, [page.0, what, 0]));
            };
            let Some((marks, _)) = self.0 else { continue };
            let (word, bit) = (marks.offset(number / 64 * 8), 1 << (number % 64));
            let marked = p.read_u64(word);
            if marked & bit != 0 {
                return Err(Finding::new(Wrong::PoolTwice, [page.0, what, 0]));
            }
            p.write_u64(word, marked | bit);
        }
        Ok(())
    }
}

/// As many pages are taken as are in use, and none of these is free too.
pub(super) fn check_pool<P: Platform>(
    p: &P,
    pool: &Pool,
    memory: &Ownership,
    marks: &Marks,
    in_use: u64,
    exact: bool,
) -> Result<(), Finding> {
    let mut marked = marks.0.map_or(Ok(()), |(run, order)| marks.set(p, memory, run, order, what::ORACLE));
    pool.for_each_free(p, |run, order| {
        if marked.is_ok() {
            marked = marks.set(p, memory, run, order, what::FREE);
        }
        // A run that leads back to itself is marked already.
        marked.is_ok() && marks.0.is_some()
    });
    marked?;
    let state = pool.state();
    let taken = state.total - state.free - pool.kept();
    if taken == in_use || !exact && in_use <= taken {
        return Ok(());
    }
    Err(Finding::new(Wrong::PoolCount, [taken, in_use, state.free]))
}
