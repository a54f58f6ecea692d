//! The oracle: whether everything that must hold between calls does. For fuzzing, by a call that only an image with the feature `oracle`
//! answers; and for tests of the library.
//!
//! It takes all locks, in the order of docs/architecture.md, so that no call is half way; while it has them nobody waits for anything but
//! it. What it reads are the structures themselves, not what calls would answer: the frame table, page tables from their roots, stream tables,
//! invalidation arrays, tables of VMIDs, and the pool.
//!
//! What a failed SMMU leaves behind (quarantined pages, mappings that nobody has, entries of both sides of an attach) is counted nowhere exactly.
//! Once one has failed the oracle asks only that nobody reaches too much.

mod digest;
mod runs;
#[cfg(test)]
pub(crate) mod tests;

use core::fmt;

use abi::oracle::{Wrong, request};
use abi::{Statistic, Status};
use smmuv3::address::PhysAddr;
use smmuv3::invalidation::MAX_SMMUS;

pub(crate) use digest::{Digest, mix};
pub(crate) use runs::{Runs, what};

use crate::host_smmus;
use crate::hypervisor::{GuestStream, Hypervisor, MAX_GUEST_STREAMS};
use crate::iommu::oracle::Attached;
use crate::list::List;
use crate::memory::Ownership;
use crate::memory::oracle::Look;
use crate::platform::Platform;
use crate::sync::{MutexGuard, lock_beside};
use runs::Marks;

/// What is wrong, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub wrong: Wrong,
    /// What [`Wrong::doc`] says in parentheses.
    pub words: [u64; 3],
}

impl Finding {
    pub(crate) const fn new(wrong: Wrong, words: [u64; 3]) -> Self {
        Self { wrong, words }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:#x?}", self.wrong.doc(), self.words)
    }
}

impl core::error::Error for Finding {}

/// The oracle of a hypervisor.
pub struct Oracle<'a, P: Platform>(&'a Hypervisor<P>);

/// All locks but those of queues and the pool, outermost first.
struct Locked<'a> {
    _drivers: [Option<host_smmus::Guard<'a>>; MAX_SMMUS],
    gic: Option<crate::gic::oracle::Locked<'a>>,
    streams: MutexGuard<'a, List<GuestStream, MAX_GUEST_STREAMS>>,
    attached: Attached<'a>,
    memory: MutexGuard<'a, Ownership>,
}

impl<P: Platform> Hypervisor<P> {
    /// The oracle.
    pub const fn oracle(&self) -> Oracle<'_, P> {
        Oracle(self)
    }
}

impl<'a, P: Platform> Oracle<'a, P> {
    fn lock(&self) -> Locked<'a> {
        let Self(hypervisor) = self;
        Locked {
            _drivers: hypervisor.host_smmus.lock_all(),
            gic: hypervisor.gic().map(|gic| gic.lock_all()),
            streams: hypervisor.streams.lock(),
            attached: hypervisor.iommu.lock_all(),
            memory: lock_beside(&hypervisor.memory),
        }
    }

    /// Whether no SMMU is dead or lost, and nothing is quarantined. An error that an SMMU survived was undone, so it excuses nothing.
    fn is_exact(&self) -> bool {
        self.0.iommu.counters().dead == 0 && self.0.statistic(Statistic::QuarantinedPages) == 0
    }

    /// Checks everything: the frame table, every page table, the pool, every stream, tag and object.
    ///
    /// # Errors
    /// The first [`Finding`].
    pub fn check_all(&self) -> Result<(), Finding> {
        let Self(hypervisor) = self;
        let exact = self.is_exact();
        let locked = self.lock();
        let p = &hypervisor.platform;
        let look = Look { p, exact };
        let memory: &Ownership = &locked.memory;
        let census = memory.census(p)?;
        let pinned = locked.gic.as_ref().into_iter().flat_map(|gic| gic.pinned());
        memory.check_pins(&census, pinned)?;

        let marks = Marks::take(p, &hypervisor.pool, memory);
        let checked = (|| {
            let mut in_use = marks.pages();
            let mut add = |run, order, what| {
                in_use += 1u64 << order;
                marks.set(p, memory, run, order, what)
            };
            let mut runs = Runs(&mut add);
            memory.check_tables(&look, &census, &mut runs)?;
            hypervisor.iommu.add_runs(p, &locked.attached, &mut runs)?;
            if let Some(gic) = &locked.gic {
                gic.add_runs(p, &mut runs)?;
            }
            let lost = memory.lost_tables(&census);
            runs::check_pool(p, &hypervisor.pool, memory, &marks, in_use + lost, exact)
        })();
        marks.give(p, &hypervisor.pool);
        checked?;

        let mut of_guests = 0;
        hypervisor.iommu.check_all(p, &locked.attached, exact, |smmu, stream, guest| {
            of_guests += 1;
            let known = locked
                .streams
                .iter()
                .any(|known| known.smmu == smmu && known.stream == stream && known.guest == guest);
            let finding = Finding::new(Wrong::GuestStreams, [smmu as u64, stream.into(), 0]);
            if known { Ok(()) } else { Err(finding) }
        })?;
        if of_guests != locked.streams.len() {
            let first = locked.streams.first().map_or(0, |known| u64::from(known.stream));
            return Err(Finding::new(Wrong::GuestStreams, [u64::MAX, first, of_guests as u64]));
        }
        Ok(())
    }

    /// Checks one page, if there is one, against every table, one stream against what it is attached to, and the sizes of the pool. For after
    /// every step.
    ///
    /// # Errors
    /// The first [`Finding`].
    pub fn check_step(&self, page: Option<PhysAddr>, smmu: usize, stream: u32) -> Result<(), Finding> {
        match self.check_step_exactly(page, smmu, stream, true) {
            // Seldom, so it is asked only now.
            Err(_) if !self.is_exact() => self.check_step_exactly(page, smmu, stream, false),
            checked => checked,
        }
    }

    fn check_step_exactly(
        &self,
        page: Option<PhysAddr>,
        smmu: usize,
        stream: u32,
        exact: bool,
    ) -> Result<(), Finding> {
        let Self(hypervisor) = self;
        let p = &hypervisor.platform;
        {
            let attached = hypervisor.iommu.lock_all();
            hypervisor.iommu.check_stream(p, &attached, smmu, stream)?;
        }
        let memory = hypervisor.memory.lock();
        if let Some(page) = page {
            memory.check_page(&Look { p, exact }, page)?;
        }
        let (state, kept) = (hypervisor.pool.state(), hypervisor.pool.kept());
        let tables = memory.table_pages();
        if state.free + kept + tables > state.total || state.free_donated > state.donated {
            return Err(Finding::new(
                Wrong::PoolCount,
                [state.total - state.free - kept, tables, state.free],
            ));
        }
        Ok(())
    }

    /// A digest of all that calls can change and see: owners, mappings, stream table entries, domains, vSMMUs, tags, the pool's size. Events,
    /// counters and the shape of free memory are no part of it.
    pub fn digest(&self) -> u64 {
        let Self(hypervisor) = self;
        let locked = self.lock();
        let mut digest = Digest::new();
        for known in locked.streams.iter() {
            digest.add(known.guest.to_register() | (known.smmu as u64) << 8 | u64::from(known.stream) << 32);
        }
        hypervisor.iommu.digest(&hypervisor.platform, &locked.attached, &mut digest);
        locked.memory.digest(&hypervisor.platform, &mut digest);
        let pool = hypervisor.pool.state();
        digest.add(pool.total);
        digest.add(pool.donated);
        digest.finish()
    }

    /// The call: `X0` to `X4` of the answer.
    #[cold]
    pub(crate) fn call(&self, [what, address, stream, _]: [u64; 4]) -> [u64; 5] {
        let checked = match what {
            request::STEP => {
                let page = Some(PhysAddr(address)).filter(|page| page.0 != request::NO_PAGE);
                self.check_step(page, (stream >> 32) as usize, stream as u32).map(|()| 0)
            }
            request::ALL => self.check_all().map(|()| 0),
            request::DIGEST => Ok(self.digest()),
            _ => Err(Finding::new(Wrong::Request, [what, 0, 0])),
        };
        match checked {
            Ok(digest) => [Status::Success.to_register(), digest, 0, 0, 0],
            Err(Finding { wrong, words: [x1, x2, x3] }) => [wrong.to_register(), x1, x2, x3, 0],
        }
    }
}
