//! The memory of an ITS, for whoever checks it.

use smmuv3::address::PhysAddr;

use super::devices::MAX_DEVICE_BITS;
use super::registers::{BASER, BASER_ADDRESS, BASER_PAGE_SIZE_SHIFT, BASER_SIZE, BASERS, VALID};
use super::{Its, setup};
use crate::memory::pool::PAGE_LOG2;
use crate::oracle::{Finding, Runs, what};
use crate::platform::Platform;

impl Its {
    /// Tells of every run of the pool that it has: the tables that the hardware was given, the queue, and what the host's devices have.
    pub(crate) fn add_runs<P: Platform>(&self, p: &P, runs: &mut Runs<'_>) -> Result<(), Finding> {
        for n in 0..BASERS as u64 {
            let baser = p.read_register_u64(self.base.offset(BASER + 8 * n));
            if baser & VALID == 0 {
                continue;
            }
            let page_log2 = 12 + 2 * (baser >> BASER_PAGE_SIZE_SHIFT & 0b11);
            let bytes = ((baser & BASER_SIZE) + 1) << page_log2;
            let order = bytes.trailing_zeros() as u8 - PAGE_LOG2;
            runs.add(PhysAddr(baser & BASER_ADDRESS), order, what::ITS)?;
        }
        runs.add(self.queue.place(), setup::ORDER_64K, what::ITS)?;
        let (root, pages) = self.devices.pages(p);
        runs.add(root, 0, what::ITS)?;
        for (first, page) in pages {
            runs.add(page, 0, what::ITS)?;
            for device in first..first + (1 << (MAX_DEVICE_BITS / 2)) {
                if let Some(itt) = self.devices.get(p, device) {
                    runs.add(itt.place, itt.order, what::ITS)?;
                }
            }
        }
        Ok(())
    }
}
