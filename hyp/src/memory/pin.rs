//! Memory of the host's that the interrupt controller reads and writes with no SMMU in front of it: it stays the host's as long as it
//! is pinned.
//!
//! A pin is counted in the frame table, in place of whom the unit is shared with. Every change of ownership starts from a state that a
//! pinned unit is not in, so each is refused with `WrongState` until the last pin is gone.

use abi::Status;
use smmuv3::address::{PhysAddr, PhysRange};

use super::Ownership;
use super::frame::FrameRun;
use crate::platform::Platform;

impl Ownership {
    /// Pins every unit that a byte of `range` is in, once more. Of at most 1 MiB, so that it is bounded.
    ///
    /// # Errors
    /// `NotRam`; `WrongState` when a unit is not the host's, or is shared; `NoSpace` when one is pinned as often as can be counted; `Busy` when the
    /// machine ends. Nothing is changed.
    pub fn pin(&mut self, platform: &impl Platform, range: PhysRange) -> Result<(), Status> {
        if self.ending {
            return Err(Status::Busy);
        }
        let run = self.whole_units(range).ok_or(Status::NotRam)?;
        self.frames.add_pin(platform, &run)
    }

    /// Takes a pin off again that [`Self::pin`] put on the same range.
    pub fn unpin(&mut self, platform: &impl Platform, range: PhysRange) {
        if let Some(run) = self.whole_units(range) {
            self.frames.remove_pin(platform, &run);
        }
    }

    pub(super) fn whole_units(&self, range: PhysRange) -> Option<FrameRun> {
        let mask = self.unit_bytes() - 1;
        let first = PhysAddr(range.start().0 & !mask);
        self.frames.run(PhysRange::inclusive(first, PhysAddr(range.last().0 | mask))?)
    }
}
