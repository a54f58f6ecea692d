//! The locks, and the order in which they are taken (docs/architecture.md, Locks).
//!
//! In the image a lock is a spin lock that is waited for with WFE. On the build machine each lock also knows its rank in the order, and one that is taken
//! out of order is a panic: whatever runs there, with one CPU or several, shows that the order is kept, so that no two CPUs can wait
//! for each other. With `cfg(loom)`, which `hyp-loom` sets, loom decides who gets a lock, and tries every order.

#[cfg(target_os = "none")]
mod waiting;
#[cfg(target_os = "none")]
pub use waiting::{Mutex, MutexGuard};

#[cfg(all(not(target_os = "none"), not(loom)))]
mod ordered;
#[cfg(all(not(target_os = "none"), not(loom)))]
pub use ordered::{Mutex, MutexGuard};

#[cfg(loom)]
mod explored;
#[cfg(loom)]
pub use explored::{Mutex, MutexGuard};

/// Words that are read without a lock. The models of `hyp/loom` that include sources of the library have loom's in their place.
pub(crate) mod atomic {
    pub(crate) use core::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};
}

/// Takes a lock beside others that nobody but the oracle holds together: several of one rank, and the attach lock with that of memory. It takes all
/// in the order of their ranks, so nobody who holds one of them waits for another that it has.
#[cfg(all(feature = "oracle", any(target_os = "none", loom)))]
pub(crate) fn lock_beside<T: Guarded>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock()
}

#[cfg(all(feature = "oracle", not(target_os = "none"), not(loom)))]
pub(crate) use ordered::lock_beside;

/// Where a lock stands in the order. It is taken while holding locks of ranks before its own, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// One emulated SMMU.
    EmulatedSmmu,
    /// One ITS.
    Its,
    /// The LPIs of all Redistributors.
    Lpis,
    /// The streams of guests.
    Streams,
    /// The attach lock. Never held together with [`Rank::Memory`].
    Attach,
    /// The frame table and all page tables.
    Memory,
    /// The event queue of one SMMU.
    EventQueue,
    /// The event ring.
    EventRing,
    /// The events of one SMMU's driver.
    DriverEvents,
    /// A leaf: the command queue of one SMMU, or the pool. While it is held no other lock of these is taken.
    Leaf,
}

impl Rank {
    /// Whether a lock of this rank may be taken while holding one of `held`.
    pub const fn may_follow(self, held: Self) -> bool {
        (held as u8) < self as u8 && !(matches!(held, Self::Attach) && matches!(self, Self::Memory))
    }
}

/// What a lock protects, which says how it ranks.
pub trait Guarded {
    /// Its rank.
    const RANK: Rank;
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    struct Outer;
    struct Inner;
    struct Attach;
    struct Memory;

    impl Guarded for Outer {
        const RANK: Rank = Rank::Streams;
    }

    impl Guarded for Inner {
        const RANK: Rank = Rank::Leaf;
    }

    impl Guarded for Attach {
        const RANK: Rank = Rank::Attach;
    }

    impl Guarded for Memory {
        const RANK: Rank = Rank::Memory;
    }

    fn both<A: Guarded, B: Guarded>(first: A, second: B) -> bool {
        let (first, second) = (Mutex::new(first), Mutex::new(second));
        let taken = catch_unwind(AssertUnwindSafe(|| {
            let _first = first.lock();
            let _second = second.lock();
        }));
        taken.is_ok()
    }

    #[test]
    fn a_lock_out_of_order_is_a_panic() {
        assert!(both(Outer, Inner));
        assert!(!both(Inner, Outer));
        assert!(!both(Inner, Inner), "two leaves");
        assert!(!both(Attach, Memory), "rows 2 and 3 of the table");
        assert!(both(Outer, Memory));
        assert!(both(Outer, Attach));
    }

    #[test]
    fn what_was_let_go_does_not_count() {
        let (outer, inner) = (Mutex::new(Outer), Mutex::new(Inner));
        drop(inner.lock());
        let outer = outer.lock();
        drop(inner.lock());
        drop(outer);
    }
}
