//! Updates of CR0 (IHI 0070, 6.3.9).

use super::registers::{CMDQEN, SMMUEN};
use super::stream_table::Walk;
use super::{Backend, Budget, EmulatedSmmu, Fault};
use crate::memory::Progress;

/// How far the streams are from what CR0.SMMUEN says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Translation {
    /// All abort.
    Off,
    /// They are being made to abort.
    Aborting,
    /// They are being set from the stream table; this is left.
    Filling(Walk),
    /// They do what the stream table said when it was last looked at.
    On,
}

impl EmulatedSmmu {
    /// Brings the SMMU to what CR0 says, as far as one step goes. CR0ACK shows a field when it is done.
    pub(super) fn update(&mut self, backend: &impl Backend) -> Progress {
        let cr0 = self.registers.cr0;
        self.registers.cr0ack = cr0 & !SMMUEN | self.registers.cr0ack & SMMUEN;
        if cr0 & CMDQEN == 0 {
            // The command that was begun stays in the queue as the first one that is not consumed (6.3.9.3).
            self.range = None;
        }
        if self.update_translation(backend) == Progress::Again {
            return Progress::Again;
        }
        self.consume(backend)
    }

    /// A step towards CR0.SMMUEN. An update that another one overtakes is finished backwards: whatever is set when SMMUEN goes to 0 aborts
    /// first, and only then is the table looked at.
    fn update_translation(&mut self, backend: &impl Backend) -> Progress {
        let enable = self.registers.cr0 & SMMUEN != 0;
        if !enable && self.is_active() {
            self.translation = Translation::Aborting;
        }
        if self.translation == Translation::Aborting {
            match backend.abort_all_step() {
                Ok(Progress::Again) => return Progress::Again,
                Ok(Progress::Done) => {}
                // Something may pass still: that is not acknowledged.
                Err(Fault::Incomplete) => return Progress::Done,
                // It is turned off, and everything aborts.
                Err(Fault::Dead) => self.fail(backend, Fault::Dead),
            }
            self.translation = Translation::Off;
        }
        if !enable {
            self.registers.cr0ack &= !SMMUEN;
            return Progress::Done;
        }
        if self.translation == Translation::Off {
            self.translation = Translation::Filling(Walk::FILL);
        }
        if let Translation::Filling(walk) = self.translation {
            if let Some(rest) = self.walk(backend, walk, &mut Budget::new()) {
                self.translation = Translation::Filling(rest);
                return Progress::Again;
            }
            self.translation = Translation::On;
        }
        self.registers.cr0ack |= SMMUEN;
        Progress::Done
    }

    /// Whether STEs count: what was set of them stays set until it is looked at again.
    pub(crate) const fn is_active(&self) -> bool {
        matches!(self.translation, Translation::Filling(_) | Translation::On)
    }
}
