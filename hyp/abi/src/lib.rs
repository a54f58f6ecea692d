//! The hypercall interface, in one definition.
//!
//! `hyp` dispatches from it, `host-shim` calls through it, and `docs/hypercalls.md` is printed from it. Calls
//! are SMCCC 1.1+ fast calls (DEN 0028) with the 64-bit convention, made with `HVC #0` in the range of
//! vendor-specific hypervisor services. The function id goes in `W0`, arguments in `X1` to `X4`; the answer is a
//! [`Status`] in `X0` and up to four results in `X1` to `X4`. `X5` to `X17` are preserved as SMCCC 1.1 says.
//!
//! Unless a call says otherwise: addresses and sizes are in bytes, both must be multiples of the ownership unit
//! that [`Function::Features`] reports, and **a call that does not return [`Status::Success`] has changed nothing**; only
//! [`Status::Hardware`] may leave pages quarantined. While the machine is being reset or turned off, every call but
//! `CALL_UID`, `VERSION` and `FEATURES` answers [`Status::Busy`].

#![no_std]
#![forbid(unsafe_code)]

mod function;
mod handle;
pub mod oracle;
mod statistic;
mod status;
mod table;

pub use function::Function;
pub use handle::{DomainHandle, GuestHandle, ObjectHandle, Principal, Recipient, VsmmuHandle};
pub use statistic::Statistic;
pub use status::{Reason, Status};
pub use table::{Argument, Call, Kind, TABLE};

/// Interface version: major in bits 31:16 (a change that breaks callers), minor in bits 15:0 (an addition).
pub const VERSION: u32 = 1 << 16 | 1;

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
    /// Bits 15:8: how many bits an address of a stage-2 domain has. None of a domain is at or above two to that power.
    pub const ADDRESS_BITS_SHIFT: u32 = 8;
}

/// Bits of the flags of [`Function::StreamAttach`].
pub mod attach {
    /// The stream is attached, to a domain of the same principal, and changes over to this one.
    pub const REPLACE: u64 = 1 << 0;
    /// The device may ask for translations and keep them (ATS).
    pub const ATS: u64 = 1 << 1;
}

/// Bits of the options of [`Function::DomainCreate`].
pub mod domain_options {
    /// The page table has blocks that are split and joined in place, though not every SMMU of the machine allows that: those that
    /// do not (IDR3.BBML) are refused.
    pub const BLOCKS: u64 = 1 << 0;
}

/// The most commands of one [`Function::VsmmuInvalidate`].
pub const MAX_INVALIDATIONS: u64 = 64;
