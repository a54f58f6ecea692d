//! Locks of loom's. Ranks are for the other tests to check: here threads are not those of the build machine.

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
