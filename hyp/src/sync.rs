//! The locks, and the order in which they are taken (docs/architecture.md, Locks).
//!
//! In the image a lock is a spin lock and nothing else. On the build machine each lock also knows its rank in the order, and one that is taken
//! out of order is a panic: whatever runs there, with one CPU or several, shows that the order is kept, so that no two CPUs can wait
//! for each other. With `cfg(loom)`, which `hyp-loom` sets, loom decides who gets a lock, and tries every order.

#[cfg(target_os = "none")]
pub use spin::{Mutex, MutexGuard};

#[cfg(all(not(target_os = "none"), not(loom)))]
pub use ordered::{Mutex, MutexGuard};

#[cfg(loom)]
pub use explored::{Mutex, MutexGuard};

/// Takes a lock beside others that nobody but the oracle holds together: several of one rank, and the attach lock with that of memory. It takes all
/// in the order of their ranks, so nobody who holds one of them waits for another that it has.
#[cfg(all(feature = "oracle", target_os = "none"))]
pub(crate) fn lock_beside<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock()
}

#[cfg(all(feature = "oracle", not(target_os = "none")))]
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

#[cfg(all(not(target_os = "none"), not(loom)))]
mod ordered {
    extern crate std;

    use core::cell::RefCell;
    use core::ops::{Deref, DerefMut};
    use std::thread_local;
    use std::vec::Vec;

    use super::{Guarded, Rank};

    thread_local! {
        /// Ranks of the locks that this thread, which stands for a CPU, holds.
        static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
    }

    /// A spin lock that knows its rank.
    #[derive(Debug)]
    pub struct Mutex<T>(spin::Mutex<T>);

    /// A lock that is held.
    #[derive(Debug)]
    pub struct MutexGuard<'a, T: Guarded>(spin::MutexGuard<'a, T>);

    impl<T> Mutex<T> {
        /// A lock that nobody holds.
        pub const fn new(value: T) -> Self {
            Self(spin::Mutex::new(value))
        }

        /// What it protects, for who has it alone.
        pub fn get_mut(&mut self) -> &mut T {
            self.0.get_mut()
        }
    }

    impl<T: Guarded> Mutex<T> {
        /// Takes the lock.
        ///
        /// # Panics
        /// It may not follow one that the thread holds: the first try finds a mistake, without another CPU that waits.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            HELD.with_borrow_mut(|held| {
                if let Some(before) = held.iter().find(|held| !T::RANK.may_follow(**held)) {
                    panic!("lock order: {:?} is taken while {before:?} is held", T::RANK);
                }
                held.push(T::RANK);
            });
            MutexGuard(self.0.lock())
        }
    }

    /// See the one of the image.
    #[cfg(feature = "oracle")]
    pub(crate) fn lock_beside<T: Guarded>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
        HELD.with_borrow_mut(|held| {
            if let Some(before) = held.iter().find(|held| **held > T::RANK) {
                panic!("lock order: {:?} is taken while {before:?} is held", T::RANK);
            }
            held.push(T::RANK);
        });
        MutexGuard(lock.0.lock())
    }

    impl<T: Guarded> Drop for MutexGuard<'_, T> {
        fn drop(&mut self) {
            // Not at the end of a thread, when there is no list any more.
            let _ = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                if let Some(at) = held.iter().rposition(|rank| *rank == T::RANK) {
                    held.remove(at);
                }
            });
        }
    }

    impl<T: Guarded> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }

    impl<T: Guarded> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            &mut self.0
        }
    }
}

/// Locks of loom's. Ranks are for the other tests to check: here threads are not those of the build machine.
#[cfg(loom)]
mod explored {
    extern crate std;

    use core::ops::{Deref, DerefMut};
    use std::sync::{OnceLock, PoisonError};

    use super::Guarded;

    /// A lock that loom gives to one thread of a model at a time.
    #[derive(Debug)]
    pub struct Mutex<T> {
        /// Made when it is first taken: loom's cannot be made in a constant.
        turn: OnceLock<loom::sync::Mutex<()>>,
        value: std::sync::Mutex<T>,
    }

    /// A lock that is held.
    #[derive(Debug)]
    pub struct MutexGuard<'a, T: Guarded> {
        // Let go before the turn is.
        value: std::sync::MutexGuard<'a, T>,
        _turn: loom::sync::MutexGuard<'a, ()>,
    }

    impl<T> Mutex<T> {
        /// A lock that nobody holds.
        pub const fn new(value: T) -> Self {
            Self { turn: OnceLock::new(), value: std::sync::Mutex::new(value) }
        }

        /// What it protects, for who has it alone.
        pub fn get_mut(&mut self) -> &mut T {
            self.value.get_mut().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl<T: Guarded> Mutex<T> {
        /// Takes the lock.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            let turn = self.turn.get_or_init(|| loom::sync::Mutex::new(()));
            let turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            MutexGuard { value: self.value.lock().unwrap_or_else(PoisonError::into_inner), _turn: turn }
        }
    }

    impl<T: Guarded> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.value
        }
    }

    impl<T: Guarded> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            &mut self.value
        }
    }
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
