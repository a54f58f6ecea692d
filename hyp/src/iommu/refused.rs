//! Why the service refuses a call.

use abi::{Reason, Status};

use crate::memory::Failure;

/// Why a call to the service was refused. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no SMMU with this index.
    UnknownSmmu,
    /// The SMMU, or the vSMMU, has no such StreamID.
    UnknownStream,
    /// The domain does not exist, or is somebody else's, or of another kind than the call is for.
    UnknownDomain,
    /// The guest whose domain it should be does not exist.
    UnknownGuest,
    /// The vSMMU does not exist, or is somebody else's.
    UnknownVsmmu,
    /// The stream is attached, or the object is in use.
    Busy,
    /// The stream is not attached, or the object exists already.
    WrongState,
    /// No VMID is left on the SMMU, or a table is full.
    NoSpace,
    /// An argument has a value that is not defined.
    Invalid,
    /// The pool has not enough memory.
    NoMemory {
        /// Pages of 4 KiB, in one aligned run, that are needed.
        pages: u64,
    },
    /// The SMMU cannot do what the domain needs.
    Incompatible(Reason),
    /// A word or a command says what its owner may not say.
    Illegal {
        /// Its index.
        index: u64,
    },
    /// The SMMU failed.
    Hardware,
}

impl From<Refused> for Failure {
    /// What the caller of a hypercall is told.
    fn from(refused: Refused) -> Self {
        let (status, detail) = match refused {
            Refused::UnknownSmmu => (Status::UnknownSmmu, 0),
            Refused::UnknownStream => (Status::UnknownStream, 0),
            Refused::UnknownDomain => (Status::UnknownDomain, 0),
            Refused::UnknownGuest => (Status::UnknownGuest, 0),
            Refused::UnknownVsmmu => (Status::UnknownVsmmu, 0),
            Refused::Busy => (Status::Busy, 0),
            Refused::WrongState => (Status::WrongState, 0),
            Refused::NoSpace => (Status::NoSpace, 0),
            Refused::Invalid => (Status::Invalid, 0),
            Refused::NoMemory { pages } => (Status::NoMemory, pages),
            Refused::Incompatible(reason) => (Status::Incompatible, reason as u64),
            Refused::Illegal { index } => (Status::Illegal, index),
            Refused::Hardware => (Status::Hardware, 0),
        };
        Self { status, detail }
    }
}
