//! Who may read the event of a stream, which is decided without the locks of attach and detach.

use smmuv3::memory::Memory;

use super::PARKED_VMID;
use super::vmids::VmidTable;
use crate::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

/// No StreamID: they have 32 bits at most.
pub(super) const NO_STREAM: u64 = u64::MAX;

/// Who reads the events of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// Nobody: they are a guest's, and counted.
    Nobody,
    /// Whoever calls `EVENT_READ`.
    Caller,
    /// The host's own driver, in the event queue of its emulated SMMU.
    Driver {
        /// It does not have the stream, or lets nothing through for it.
        parked: bool,
    },
}

/// What decides it, of one SMMU.
pub(super) struct Readers {
    /// Whose each VMID is.
    pub(super) vmids: VmidTable,
    /// A stream that is leaving a guest: its events are the guest's, whatever the STE says; [`NO_STREAM`] for
    /// none.
    pub(super) leaving: AtomicU64,
    /// The VMID of the streams that the host's driver has, and so are those that nobody attached; 0 while it has not turned the SMMU on.
    pub(super) driver_vmid: AtomicU16,
}

impl Readers {
    /// Of a stream whose STE has the VMID that `vmid` reads, `None` if the stream table does not cover it. Its events are nobody's when it is
    /// attached to a guest, or is leaving it.
    ///
    /// Called with the lock of the events. A stream that leaves a guest after its VMID was looked up counts as leaving until that lock was taken once more.
    #[inline]
    pub(super) fn of(&self, memory: &impl Memory, stream: u32, vmid: impl FnOnce() -> Option<u16>) -> Reader {
        let driver = self.driver_vmid.load(Ordering::Acquire);
        let reader = match vmid() {
            Some(vmid) if self.vmids.is_guest(memory, vmid) => Reader::Nobody,
            Some(vmid) if driver == 0 || vmid != driver && vmid != PARKED_VMID => Reader::Caller,
            // No stream at all: C_BAD_STREAMID.
            None if driver == 0 => Reader::Caller,
            vmid => Reader::Driver { parked: vmid != Some(driver) },
        };
        fence(Ordering::Acquire);
        if self.leaving.load(Ordering::Relaxed) == u64::from(stream) { Reader::Nobody } else { reader }
    }

    /// Says which stream is leaving a guest, before anything else says so; `None` when its last events were drained.
    #[inline]
    pub(super) fn set_leaving(&self, stream: Option<u32>) {
        self.leaving.store(stream.map_or(NO_STREAM, u64::from), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Says which VMID the streams of the host's driver have; 0 that there is no driver.
    #[inline]
    pub(super) fn set_driver_vmid(&self, vmid: u16) {
        self.driver_vmid.store(vmid, Ordering::Release);
    }

    /// Whether the host's driver has turned the SMMU on.
    #[inline]
    pub(super) fn has_driver(&self) -> bool {
        self.driver_vmid.load(Ordering::Relaxed) != 0
    }
}
