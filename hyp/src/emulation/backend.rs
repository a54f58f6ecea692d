//! What an emulated SMMU needs of the hypervisor.

use smmuv3::address::PhysAddr;
use smmuv3::command::Command;
use smmuv3::event::EventRecord;
use smmuv3::ste::Stage1Claim;

use crate::memory::Progress;
pub use crate::smmu::DrainedEvent;
use crate::smmu::NoEvent;

/// An address that is not RAM of the host's: what an SMMU would find an external abort at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotHost;

/// The SMMU did not do what it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not this time: an invalidation may not have happened. Tried again it may succeed.
    Incomplete,
    /// It is turned off for good, and every transaction aborts.
    Dead,
}

/// Why a stream could not be set. Whichever it is, what the stream does is no wider than what the host asked for: it
/// aborts, or it is not the host's at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetStreamError {
    /// The STE says what the host may not say, or what the SMMU cannot do. The stream aborts.
    Refused,
    /// EL2 has no memory for it. The stream aborts.
    NoMemory,
    /// The stream is somebody else's at present: nothing is changed.
    NotHosts,
    /// The SMMU failed.
    Fault(Fault),
}

impl From<Fault> for SetStreamError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// An interrupt that hardware did not cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// The event queue is not empty any more.
    EventQueue,
    /// A CMD_SYNC that asked for it is complete.
    CommandSync,
    /// A global error is active.
    GlobalError,
}

/// The hypervisor behind one emulated SMMU. Every method takes the locks that it needs and holds none of them on return; the caller holds
/// the lock of the emulated SMMU, which comes before all of these.
pub trait Backend {
    /// Reads `N` 64-bit words of host memory once. `address` is a multiple of the size, which is a power of two.
    ///
    /// # Errors
    /// [`NotHost`] unless all of it is RAM that the host owns.
    fn read_host<const N: usize>(&self, address: PhysAddr) -> Result<[u64; N], NotHost>;

    /// Copies commands out of host memory, once. They lie in one page of 4 KiB, at a multiple of 16.
    ///
    /// # Errors
    /// As [`Backend::read_host`]; `commands` may have changed.
    fn read_commands(&self, address: PhysAddr, commands: &mut [Command]) -> Result<(), NotHost>;

    /// Writes an event record to host memory, at a multiple of 32.
    ///
    /// # Errors
    /// [`NotHost`] unless it is RAM that the host owns; nothing is written.
    fn write_event(&self, address: PhysAddr, record: EventRecord) -> Result<(), NotHost>;

    /// Writes a 32-bit word to host memory, at a multiple of 4: the MSI of a CMD_SYNC.
    ///
    /// # Errors
    /// As [`Backend::write_event`].
    fn write_host_u32(&self, address: PhysAddr, value: u32) -> Result<(), NotHost>;

    /// The lowest StreamID from `from` on that a device can have, which the machine's firmware tables say. No stream that is not among
    /// these is ever set, and none of them is ever left out of a walk over all streams.
    fn next_stream(&self, from: u32) -> Option<u32>;

    /// The StreamID by which the SMMU knows a stream of the host's; `None` if the host has no such stream now.
    fn hosts_stream(&self, stream: u32) -> Option<u32>;

    /// Makes an STE of the host's what its stream does from now on: words 0 and 1, `None` for none or one with V = 0. The change is hitless
    /// where it can be, and on return the SMMU has forgotten the old entry and all CDs that it read by it. What already is so costs little.
    ///
    /// # Errors
    /// [`SetStreamError`].
    fn set_stream(&self, stream: u32, claim: Option<Stage1Claim>) -> Result<(), SetStreamError>;

    /// Has the SMMU carry out checked commands of the host, in this order, and returns when they are complete.
    ///
    /// # Errors
    /// [`Fault`]: any of them may not have been carried out.
    fn invalidate(&self, commands: &[Command]) -> Result<(), Fault>;

    /// A bounded step of making all streams of the host's abort.
    ///
    /// # Errors
    /// [`Fault`].
    fn abort_all_step(&self) -> Result<Progress, Fault>;

    /// Takes the next event of a stream of the host's.
    ///
    /// # Errors
    /// There is none. Unless the SMMU's own queue was empty, nobody says when there is one: it interrupts for an event that finds its queue
    /// empty, and for no other.
    fn next_event(&self) -> Result<DrainedEvent, NoEvent>;

    /// Has EL2 take what events the SMMU's own queue has, for [`Backend::next_event`], so that they are known by what their streams are now; how
    /// many there were. Bounded by the length of the queue.
    fn drain_events(&self) -> u32;

    /// Discards all events of the host's streams so far. False if the SMMU's own queue was not found empty, as in [`Backend::next_event`].
    fn discard_events(&self) -> bool;

    /// Whether events of the host's streams were lost before EL2 could take them, since the last call.
    fn take_overflow(&self) -> bool;

    /// Has EL2 look at the SMMU's own global errors.
    ///
    /// # Errors
    /// [`Fault::Dead`].
    fn look_for_errors(&self) -> Result<(), Fault>;

    /// Makes an interrupt of the SMMU pending at the distributor.
    fn raise(&self, interrupt: Interrupt);
}
