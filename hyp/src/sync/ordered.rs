//! Locks of the build machine, which know their rank.

extern crate std;

use core::cell::RefCell;
use core::ops::{Deref, DerefMut};
use std::thread_local;
use std::vec::Vec;

use spin::RelaxStrategy;
use spin::mutex::{SpinMutex, SpinMutexGuard};

use super::{Guarded, Rank};

thread_local! {
    /// Ranks of the locks that this thread, which stands for a CPU, holds.
    static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
}

/// How a thread waits: there may be more of them than processors.
#[derive(Debug)]
struct Yield;

impl RelaxStrategy for Yield {
    fn relax() {
        std::thread::yield_now();
    }
}

/// A spin lock that knows its rank.
#[derive(Debug)]
pub struct Mutex<T>(SpinMutex<T, Yield>);

/// A lock that is held.
#[derive(Debug)]
pub struct MutexGuard<'a, T: Guarded>(SpinMutexGuard<'a, T, Yield>);

impl<T> Mutex<T> {
    /// A lock that nobody holds.
    pub const fn new(value: T) -> Self {
        Self(SpinMutex::new(value))
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
