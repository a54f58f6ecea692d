//! The library's own sources under loom: what several CPUs do to one SMMU's command queue, in every order that the memory model allows.
//!
//! The modules below are those of `hyp/src/smmu`, compiled here with locks of loom's.

/// As in the library.
mod platform {
    pub use hyp::platform::Platform;
}

/// The locks of `hyp::sync`, made of loom's.
mod sync {
    pub use hyp::sync::{Guarded, Rank};
    pub use loom::sync::MutexGuard;

    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }
}

mod smmu {
    #[allow(dead_code)]
    #[path = "../../../src/smmu/command_queue.rs"]
    mod command_queue;
    #[path = "../../../src/smmu/global_error.rs"]
    mod global_error;
    mod machine;
    mod posting;

    mod registers {
        pub use hyp::smmu::{Registers, TIMEOUT_NS};
    }
}
