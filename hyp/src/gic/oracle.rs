//! What the interrupt controller uses, for whoever checks it.

use smmuv3::address::PhysRange;

use super::its::Its;
use super::redistributor::Lpis;
use super::{Gic, MAX_ITS};
use crate::oracle::{Finding, Runs};
use crate::platform::Platform;
use crate::sync::{MutexGuard, lock_beside};

/// All ITSs, then the Redistributors' LPIs.
pub(crate) struct Locked<'a> {
    its: [Option<MutexGuard<'a, Its>>; MAX_ITS],
    lpis: MutexGuard<'a, Lpis>,
}

impl Gic {
    /// Keeps everybody from the registers.
    pub(crate) fn lock_all(&self) -> Locked<'_> {
        let its = self.its.each_ref().map(|its| its.as_ref().map(|(_, its)| lock_beside(its)));
        Locked { its, lpis: self.redistributors.lock() }
    }
}

impl Locked<'_> {
    /// The ranges of host memory that are pinned, each as often as it is.
    pub(crate) fn pinned(&self) -> impl Iterator<Item = PhysRange> {
        self.lpis.pinned()
    }

    /// Tells of every run of the pool that an ITS has.
    pub(crate) fn add_runs<P: Platform>(&self, p: &P, runs: &mut Runs<'_>) -> Result<(), Finding> {
        self.its.iter().flatten().try_for_each(|its| its.add_runs(p, runs))
    }
}
