//! The page heaps that the machine keeps for the hypervisor: they catch double frees, and fail on demand.

use std::collections::{BTreeSet, HashMap};

/// One heap of 4 KiB pages.
#[derive(Debug, Default)]
pub struct PageHeap {
    free: BTreeSet<u64>,
    taken: HashMap<u64, u8>,
    /// Pages that were ever added and not taken for good.
    pub total: usize,
}

impl PageHeap {
    /// Adds a page range by page number.
    pub fn add(&mut self, first: u64, pages: u64) -> Result<(), String> {
        for page in first..first + pages {
            if !self.free.insert(page) {
                return Err(format!("page {page:#x} was added to a heap twice"));
            }
        }
        self.total += pages as usize;
        Ok(())
    }

    /// Takes an aligned run, the lowest that fits.
    pub fn take(&mut self, order: u8) -> Option<u64> {
        let count = 1u64 << order;
        let run = self.free.iter().copied().find(|page| {
            page & (count - 1) == 0
                && (order == 0 || self.free.range(*page..page + count).count() as u64 == count)
        })?;
        for page in run..run + count {
            self.free.remove(&page);
        }
        self.taken.insert(run, order);
        Some(run)
    }

    /// Gives a run back.
    pub fn give(&mut self, run: u64, order: u8) -> Result<(), String> {
        match self.taken.remove(&run) {
            Some(taken) if taken == order => {
                self.free.extend(run..run + (1 << order));
                Ok(())
            }
            Some(taken) => {
                Err(format!("run {run:#x} was taken with order {taken} and given back with {order}"))
            }
            None => Err(format!("run {run:#x} was given back but is not taken")),
        }
    }

    /// Free pages.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Whether a page is taken now, by page number.
    pub fn is_taken(&self, page: u64) -> bool {
        self.taken.iter().any(|(&run, &order)| (run..run + (1 << order)).contains(&page))
    }
}
