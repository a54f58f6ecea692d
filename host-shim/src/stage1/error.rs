//! What can go wrong.

use crate::call::Refused;
use core::fmt;
use smmuv3::invalidation::{BadEntries, InvalidationFailed, NotThere, OutOfMemory};
use smmuv3::pgtable::{MapError, UnmapError};
use smmuv3::tags::Exhausted;

/// Why an operation of the host's stage 1 failed. Nothing has changed, unless the operation says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The hypervisor refused a call.
    Call(Refused),
    /// The CPU may not reach memory that was given to the module: what the operation did is not known.
    Memory {
        /// The first such address.
        address: u64,
    },
    /// An SMMU does not translate by both stages.
    NoNesting {
        /// Its index.
        smmu: usize,
    },
    /// The SMMUs have no granule in common, or there are none.
    NoFormat,
    /// The memory that was given is used up.
    NoMemory,
    /// Every ASID is in use.
    NoAsid,
    /// There are more SMMUs, domains or streams than the module has places for.
    TooMany,
    /// The SMMU does not exist.
    UnknownSmmu,
    /// The domain does not exist.
    UnknownDomain,
    /// The stream was not added.
    UnknownStream,
    /// The stream cannot send this SubstreamID, or not as many.
    Substream(u32),
    /// The stream was added before, or is attached to that domain.
    Present,
    /// Nothing is attached there.
    NotAttached,
    /// It is in use.
    Busy,
    /// A mapping was refused.
    Map(MapError),
    /// An unmapping was refused.
    Unmap(UnmapError),
    /// The range is empty or wraps.
    Range,
    /// An invalidation array does not have what it should: a bug here.
    Inconsistent,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(refused) => write!(f, "the hypervisor answered {refused}"),
            Self::Memory { address } => write!(f, "the CPU may not reach {address:#x}"),
            Self::NoNesting { smmu } => write!(f, "SMMU {smmu} does not translate by both stages"),
            Self::Substream(substream) => write!(f, "the stream has no SubstreamID {substream:#x}"),
            other => write!(f, "{other:?}"),
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Call(refused)
    }
}

impl From<Exhausted> for Error {
    fn from(Exhausted: Exhausted) -> Self {
        Self::NoAsid
    }
}

impl From<OutOfMemory> for Error {
    fn from(_: OutOfMemory) -> Self {
        Self::NoMemory
    }
}

impl From<NotThere> for Error {
    fn from(NotThere: NotThere) -> Self {
        Self::Inconsistent
    }
}

impl From<BadEntries> for Error {
    fn from(BadEntries: BadEntries) -> Self {
        Self::Inconsistent
    }
}

impl From<InvalidationFailed<Error>> for Error {
    fn from(failed: InvalidationFailed<Error>) -> Self {
        failed.fault
    }
}

impl From<MapError> for Error {
    fn from(error: MapError) -> Self {
        match error {
            MapError::OutOfTables { .. } => Self::NoMemory,
            other => Self::Map(other),
        }
    }
}

impl From<UnmapError> for Error {
    fn from(error: UnmapError) -> Self {
        match error {
            UnmapError::OutOfTables { .. } => Self::NoMemory,
            other => Self::Unmap(other),
        }
    }
}
