//! Threads stand for CPUs: each has a number of its own for as long as it lives.

use std::sync::{Mutex, PoisonError};

/// Threads that have a number at once.
pub const MOST: u16 = 64;

static TAKEN: Mutex<u64> = Mutex::new(0);

struct Number(u16);

impl Number {
    fn take() -> Self {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let free = taken.trailing_ones() as u16;
        assert!(free < MOST, "more threads than the model has CPUs");
        *taken |= 1 << free;
        Self(free)
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) &= !(1 << self.0);
    }
}

thread_local! {
    static OWN: Number = Number::take();
}

/// The number of this thread.
pub fn number() -> u16 {
    OWN.with(|own| own.0)
}
