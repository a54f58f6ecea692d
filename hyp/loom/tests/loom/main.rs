//! What several CPUs do at once, in every order, on the hypervisor's own sources: the library with locks of loom's.
//!
//! The models of the command queue and of events see memory as loom allows it, stale values included. In the others memory is sequentially consistent, the
//! whole hypervisor runs on the model machine, and what is tried is who goes on: calls, traps of an emulated SMMU's driver, devices, CPUs of the
//! host. In the end, and whenever a page is wiped or a tag is freed, nobody may reach what is not his. Then something is left out or done in the
//! wrong order, and loom must find a failure.

mod bus;
mod emulation;
mod ending;
mod explore;
mod look;
mod mistake;
#[path = "../../../smmuv3/tests/must_find/mod.rs"]
mod must_find;
mod ownership;
mod pairs;
mod tags;
mod world;

/// For the sources below, as in the library.
mod platform {
    pub use hyp_loom::platform::Platform;
}

/// As in the library.
mod sync {
    pub use hyp_loom::sync::{Guarded, Mutex, MutexGuard, Rank};

    pub mod atomic {
        pub use crate::smmu::events::fence;
        pub use loom::sync::atomic::{AtomicU16, AtomicU64, Ordering};
    }
}

/// The sources of the command queue, and of who may read an event, which the library shows nobody.
mod smmu {
    use hyp_loom::smmu::PARKED_VMID;

    #[allow(dead_code)]
    #[path = "../../../../src/smmu/command_queue.rs"]
    mod command_queue;
    pub mod events;
    #[path = "../../../../src/smmu/global_error.rs"]
    mod global_error;
    mod machine;
    mod posting;
    #[allow(dead_code)]
    #[path = "../../../../src/smmu/readers.rs"]
    mod readers;
    #[allow(dead_code)]
    #[path = "../../../../src/smmu/vmids.rs"]
    mod vmids;

    mod registers {
        pub use hyp_loom::smmu::{Registers, TIMEOUT_NS};
    }
}
