//! What is left out, or done in the wrong order.

/// The platform makes it, so that the hypervisor's sources stay as they are: it does something later, or earlier, or not, or shows a CPU what was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    None,
    /// The frame table is read before the memory lock is taken.
    CheckedBefore,
    /// The old owner's IOTLB entries are not invalidated.
    TlbiLeftOut,
    /// A CMD_SYNC is not waited for.
    SyncNotAwaited,
    /// CPU TLBs forget the old owner's mapping when the new one's is made.
    CpuTlbiLate,
    /// A page is wiped when the new owner has it.
    WipedLate,
    /// A tag is flushed when it is free.
    FlushedAfterFree,
    /// A tag is flushed while the STE has it.
    FlushedBeforeSte,
    /// The SMMU is not told that an STE has changed.
    CfgiLeftOut,
    /// A completion word is written when the memory lock was let go.
    WrittenAfter,
}
