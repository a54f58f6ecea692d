//! A CPU that stops between any two operations of a call: its thread waits there, with whatever locks it holds, until it may go on.

use crate::threads;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// Operations of a call on another CPU while one is stopped, at most: one that is not bounded goes on and on.
const MOST_OPERATIONS: u64 = 20_000;

/// Every operation of the hypervisor on the machine passes it.
#[derive(Debug, Default)]
pub struct Gate {
    is_closed: AtomicBool,
    /// Operations of CPUs that need not stop, while it is closed.
    passed: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The CPU that stops.
    cpu: u16,
    is_stopped: bool,
    may_go: bool,
    /// Its call is over.
    is_done: bool,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An operation of a CPU.
    #[inline]
    pub(crate) fn pass(&self) {
        if self.is_closed.load(Ordering::Relaxed) {
            self.pass_closed();
        }
    }

    fn pass_closed(&self) {
        let mut state = self.state();
        if state.cpu != threads::number() || state.is_done {
            self.passed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.is_stopped = true;
        self.changed.notify_all();
        while !state.may_go && !state.is_done {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (state.is_stopped, state.may_go) = (false, false);
    }

    /// Makes a call on this CPU, which stops before each of its operations.
    pub fn stopping<T>(&self, call: impl FnOnce() -> T) -> T {
        *self.state() = State { cpu: threads::number(), ..State::default() };
        self.is_closed.store(true, Ordering::Relaxed);
        let result = call();
        self.state().is_done = true;
        self.is_closed.store(false, Ordering::Relaxed);
        self.changed.notify_all();
        result
    }

    /// Waits until the CPU has stopped; `false` when its call is over.
    pub fn await_stop(&self) -> bool {
        let mut state = self.state();
        while !state.is_stopped && !state.is_done {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.is_done
    }

    /// Lets the CPU go on to the end of its call when what is returned is dropped: a check that fails leaves no thread that waits.
    pub fn open_at_end(&self) -> impl Drop + '_ {
        struct Opened<'a>(&'a Gate);

        impl Drop for Opened<'_> {
            fn drop(&mut self) {
                self.0.state().is_done = true;
                self.0.changed.notify_all();
            }
        }

        Opened(self)
    }

    /// Lets the CPU do one operation.
    pub fn step(&self) {
        let mut state = self.state();
        state.may_go = true;
        state.is_stopped = false;
        self.changed.notify_all();
    }

    /// Waits a little for a call on another CPU; whether it has ended. One that has not touches the machine no more: it waits for a lock.
    ///
    /// # Panics
    /// It goes on and on; `name` says what was tried.
    pub fn ends_or_waits<T>(&self, call: &ScopedJoinHandle<'_, T>, name: &str) -> bool {
        let first = self.passed();
        let mut quiet_since = (Instant::now(), first);
        loop {
            if call.is_finished() {
                return true;
            }
            let passed = self.passed();
            assert!(passed - first < MOST_OPERATIONS, "{name}: a call on another CPU does not end");
            if passed != quiet_since.1 {
                quiet_since = (Instant::now(), passed);
            }
            if quiet_since.0.elapsed() > Duration::from_millis(20) {
                return false;
            }
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// Operations of all other CPUs while one could stop.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}
