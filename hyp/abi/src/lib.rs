//! The hypercall interface, in one definition.
//!
//! `hyp` dispatches from it, `host-shim` calls through it, and `docs/hypercalls.md` is printed from it. Calls
//! are SMCCC 1.1+ fast calls (DEN 0028) with the 64-bit convention, made with `HVC #0` in the range of
//! vendor-specific hypervisor services. The function id goes in `W0`, arguments in `X1` to `X4`; the answer is a
//! [`Status`] in `X0` and up to four results in `X1` to `X4`. `X5` to `X17` are preserved as SMCCC 1.1 says.
//!
//! Unless a call says otherwise: addresses and sizes are in bytes, both must be multiples of the ownership unit
//! that [`Function::Features`] reports, and **a call that does not return [`Status::Success`] has changed nothing**.

#![no_std]
#![forbid(unsafe_code)]

mod function;
mod handle;
mod status;
mod table;

pub use function::Function;
pub use handle::{DomainHandle, GuestHandle, Recipient};
pub use status::Status;
pub use table::{Argument, Call, TABLE};

/// Interface version: major in bits 31:16 (a change that breaks callers), minor in bits 15:0 (an addition).
pub const VERSION: u32 = 1 << 16;

/// What `CALL_UID` answers (DEN 0028, 6.2), one 32-bit word in each of `W0` to `W3`.
///
/// It says that the hypervisor is this one, so a caller can tell before it makes any other call.
pub const UID: [u32; 4] = [0x6d02_9a5c, 0x4f1e_b7d3, 0x92aa_0e61, 0x3c58_d47f];

/// The most bytes that one call changes; a longer range is done in several calls (see [`Call::doc`] of the memory
/// calls): the answer's `X1` says how many bytes are done.
pub const MAX_STEP_BYTES: u64 = 2 << 20;

/// Feature bits of [`Function::Features`].
pub mod features {
    /// Every SMMU's caches are invalidated with range commands (IDR3.RIL).
    pub const RANGE_INVALIDATION: u64 = 1 << 0;
    /// The I/O page tables use block descriptors, split and joined in place (IDR3.BBML on every SMMU).
    pub const IO_BLOCKS: u64 = 1 << 1;
}

/// Counters of [`Function::Statistics`], by index.
///
/// Each is a 64-bit count since boot unless its name ends in a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Statistic {
    /// Pages that are in nobody's hands because hardware failed while they changed owner.
    QuarantinedPages = 0,
    /// Commands posted to all SMMUs' command queues, CMD_SYNC included.
    Commands = 1,
    /// CMD_SYNC commands posted to all SMMUs.
    Syncs = 2,
    /// Events read from all SMMUs' event queues.
    Events = 3,
    /// Events lost: a hardware queue overflowed, or the ring at EL2 was full.
    EventsLost = 4,
    /// GERROR conditions acknowledged.
    GlobalErrors = 5,
    /// SMMUs that failed for good and abort every transaction.
    DeadSmmus = 6,
    /// Stage-2 aborts injected into EL1.
    InjectedAborts = 7,
    /// Generic timer ticks from EL2's entry on the first CPU to its first exception return to EL1.
    BootTicks = 8,
    /// Pages that hold page tables, stream tables and queues.
    TablePages = 9,
    /// Accesses to mediated interrupt-controller registers that EL2 emulated.
    EmulatedAccesses = 10,
    /// Bytes of the page tables that hold the host's stage 2 and the shared I/O page table.
    HostTableBytes = 11,
}

impl Statistic {
    /// Every counter, in the order of its index.
    pub const ALL: [Self; 12] = [
        Self::QuarantinedPages,
        Self::Commands,
        Self::Syncs,
        Self::Events,
        Self::EventsLost,
        Self::GlobalErrors,
        Self::DeadSmmus,
        Self::InjectedAborts,
        Self::BootTicks,
        Self::TablePages,
        Self::EmulatedAccesses,
        Self::HostTableBytes,
    ];
}
