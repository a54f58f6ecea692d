//! What becomes of a stream's transactions at every moment of a call: after each store of EL2, each access to a register of an SMMU, and each
//! time that passes.

use super::Machine;
use super::smmu::translate::Origin;
use std::collections::BTreeSet;

/// Accesses of one stream that are tried again and again, through all caches.
#[derive(Debug)]
pub struct Watch {
    /// The SMMU.
    pub smmu: usize,
    /// Whence and where to.
    pub probes: Vec<(Origin, u64)>,
    /// For each probe, where it went so far: `None` if it was aborted.
    pub seen: Vec<BTreeSet<Option<u64>>>,
    /// How often they were tried.
    pub moments: u64,
}

impl Watch {
    /// Nothing is seen yet.
    pub fn new(smmu: usize, probes: Vec<(Origin, u64)>) -> Self {
        let seen = vec![BTreeSet::new(); probes.len()];
        Self { smmu, probes, seen, moments: 0 }
    }
}

impl Machine {
    /// Tries the accesses that are watched.
    #[inline]
    pub(super) fn observe(&mut self) {
        if self.watch.is_some() {
            self.try_all();
        }
    }

    fn try_all(&mut self) {
        let Some(mut watch) = self.watch.take() else { return };
        watch.moments += 1;
        for ((origin, address), seen) in watch.probes.iter().zip(&mut watch.seen) {
            if let Some((smmu, mut bus)) = self.smmu(watch.smmu) {
                seen.insert(smmu.route(&mut bus, *origin, *address, false).ok());
            }
        }
        self.watch = Some(watch);
    }
}
