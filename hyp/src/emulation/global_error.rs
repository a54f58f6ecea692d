//! Global errors (IHI 0070, 6.3.19, 6.3.20 and 7.5).

use smmuv3::command::CommandError;
use smmuv3::registers::{GERROR, IRQ_CTRL};

use super::{Backend, EmulatedSmmu, Fault, Interrupt};

impl EmulatedSmmu {
    /// Makes errors active, given as bits of GERROR; those that are active already stay as they are.
    pub(super) fn activate(&mut self, backend: &impl Backend, errors: u32) {
        let new = errors & !self.registers.active_errors();
        self.registers.gerror ^= new;
        if new != 0 && IRQ_CTRL::GERROR_IRQEN.is_set(self.registers.irq_ctrl) {
            backend.raise(Interrupt::GlobalError);
        }
    }

    /// Stops the command queue at the command that CMDQ_CONS points to (7.1).
    pub(super) fn command_error(&mut self, backend: &impl Backend, error: CommandError) {
        self.registers.cmdq_error = error.0;
        self.activate(backend, GERROR::CMDQ_ERR::SET.value);
    }

    /// Looks whether the SMMU has failed by itself, which it may do with no command under way.
    pub(super) fn look_for_errors(&mut self, backend: &impl Backend) {
        if let Err(fault) = backend.look_for_errors() {
            self.fail(backend, fault);
        }
    }

    /// Enters service failure mode, for good, if the SMMU is dead (12.3).
    pub(super) fn fail(&mut self, backend: &impl Backend, fault: Fault) {
        if fault == Fault::Dead && !self.failed {
            self.failed = true;
            self.activate(backend, GERROR::SFM_ERR::SET.value);
        }
    }
}
