//! Locks of the image. A CPU that waits for one is halted (WFE) until something happens, and looks again.
//!
//! What happens at the latest is the event stream of the counter, about a microsecond later (`image/platform.rs` starts it before a CPU takes a
//! lock). So who lets a lock go need not say so, which would cost every call; and where CPUs are threads of an emulator, the one that waits
//! leaves its processor to the one that has the lock.

use core::hint::black_box;
use core::sync::atomic::{AtomicBool, Ordering};

use aarch64_cpu::asm::wfe;
use spin::RelaxStrategy;
use spin::mutex::{SpinMutex, SpinMutexGuard};

/// A lock.
pub type Mutex<T> = SpinMutex<T, Wait>;

/// A lock that is held.
pub type MutexGuard<'a, T> = SpinMutexGuard<'a, T, Wait>;

/// How a CPU waits.
#[derive(Debug)]
pub struct Wait;

impl RelaxStrategy for Wait {
    #[cold]
    fn relax() {
        // The attempt that failed left the exclusive monitor armed, with which an emulator that does not follow other CPUs' stores cannot tell when
        // to wake this one, and so does not halt it. A store that succeeds disarms it.
        black_box(&AtomicBool::new(false)).swap(true, Ordering::Relaxed);
        wfe();
    }
}
