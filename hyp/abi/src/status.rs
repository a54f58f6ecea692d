//! What a call answers in `X0`.

/// The outcome of a call. Negative values are errors, and an error has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum Status {
    /// Done; for a range, `X1` says how many bytes of it (a caller goes on with the rest).
    Success = 0,
    /// No such function (the value that DEN 0028 gives to an unknown function).
    NotSupported = -1,
    /// An address or a size is not a multiple of the ownership unit, is zero where that has no meaning, or wraps.
    Unaligned = -2,
    /// The range is not RAM that a host may own, or is outside the machine's address space.
    NotRam = -3,
    /// A page of the range is not in the state that the call starts from: it has another owner, is shared, is
    /// not shared, or is already where it should go.
    WrongState = -4,
    /// Not enough free pages in EL2's pool: `X1` is how many more are needed.
    NoMemory = -5,
    /// No guest has this handle.
    UnknownGuest = -6,
    /// There is no SMMU with this index.
    UnknownSmmu = -7,
    /// The SMMU has no such StreamID, or no PCI function behind it has it.
    UnknownStream = -8,
    /// The stream, guest or page is in use in a way that excludes the call; undo that first.
    Busy = -9,
    /// A fixed table of EL2 is full (guests, VMIDs of an SMMU, held PCI functions).
    NoSpace = -10,
    /// An argument that is not an address, a size or a handle has a value that is not defined.
    Invalid = -11,
    /// Hardware failed or did not answer in time; the old state is restored, or the pages are quarantined and
    /// counted in [`Statistic::QuarantinedPages`](crate::Statistic::QuarantinedPages).
    Hardware = -12,
    /// There is nothing to read (no event is waiting).
    Empty = -13,
}

impl Status {
    /// Every status, in the order of its value.
    pub const ALL: [Self; 14] = [
        Self::Success,
        Self::NotSupported,
        Self::Unaligned,
        Self::NotRam,
        Self::WrongState,
        Self::NoMemory,
        Self::UnknownGuest,
        Self::UnknownSmmu,
        Self::UnknownStream,
        Self::Busy,
        Self::NoSpace,
        Self::Invalid,
        Self::Hardware,
        Self::Empty,
    ];

    /// The status that a register value stands for; `None` if the interface does not define it.
    pub fn from_register(value: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.to_register() == value)
    }

    /// The value of `X0` for this status.
    pub const fn to_register(self) -> u64 {
        (self as i64).cast_unsigned()
    }
}
