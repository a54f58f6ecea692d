//! Global errors (IHI 0070, 6.3.19, 6.3.20 and 7.5), and what becomes of an SMMU that fails.

use smmuv3::command::{Command, CommandError};
use smmuv3::registers::{
    CMDQ_CONS, CMDQ_CONS_OFFSET, CR0, CR0_OFFSET, GERROR, GERROR_OFFSET, GERRORN_OFFSET,
};

use super::command_queue::{CommandQueue, Condition};
use super::registers::Registers;
use crate::platform::Platform;

impl CommandQueue {
    /// Acknowledges every active global error and does what it asks for.
    ///
    /// A device that does not answer an ATC invalidation is the device's fault, or of who may turn it off: the operation that asked fails, the
    /// SMMU goes on. Of other command queue errors the first is survived, because only the operation that owns the command is in doubt.
    /// EL2 makes no illegal commands, so a second one says that the SMMU or its memory cannot be trusted: it
    /// is shut down.
    #[inline(never)]
    pub(super) fn handle_global_errors<P: Platform>(&mut self, p: &P) {
        let registers = self.registers();
        let raised = registers.read_u32(p, GERROR_OFFSET);
        let active = raised ^ registers.read_u32(p, GERRORN_OFFSET);
        if active == 0 {
            return;
        }
        self.global_errors = self.global_errors.wrapping_add(u64::from(active.count_ones()));
        let mut fatal = false;
        if GERROR::CMDQ_ERR.is_set(active) {
            let error = CommandError(CMDQ_CONS::ERR.read(registers.read_u32(p, CMDQ_CONS_OFFSET)) as u8);
            fatal =
                !self.note_failure(p, error) || error != CommandError::ATC_INV_SYNC && !self.skip_command(p);
        }
        if GERROR::EVENTQ_ABT_ERR.is_set(active) {
            self.events_aborted = self.events_aborted.wrapping_add(1);
        }
        if GERROR::SFM_ERR.is_set(active) {
            log::error!("SMMU {}: service failure mode", registers.base());
            fatal = true;
        }
        // The command that replaced the failed one, before the SMMU reads it again.
        p.full_barrier();
        registers.write_u32(p, GERRORN_OFFSET, raised);
        if fatal {
            self.shut_down(p);
        }
    }

    /// Notes that the SMMU stopped at a command; `false` if it stopped where none is.
    ///
    /// At a CMD_SYNC before which several ATCs do not answer (4.7.3) it may stop several times: when the error is acknowledged it does that
    /// CMD_SYNC once more, and they need not time out at the same moment. All are one failure.
    ///
    /// Such an ATC is logged once: whoever may turn a device off could have EL2 write lines without end. Of other errors there are two at the most.
    fn note_failure<P: Platform>(&mut self, p: &P, error: CommandError) -> bool {
        let is_at_command = self.refresh(p).is_ok() && self.consumed != self.produced;
        let is_new = !is_at_command || self.failures.note(self.consumed);
        let is_of_atc = error == CommandError::ATC_INV_SYNC;
        if is_new && !(is_of_atc && self.atc_logged) {
            self.atc_logged |= is_of_atc;
            log::error!("SMMU {}: command queue error, {error}", self.registers().base());
        }
        is_at_command
    }

    /// Replaces the command that the SMMU stopped at by a CMD_SYNC: CMDQ_CONS cannot be moved while the queue
    /// is enabled (6.3.28). `false` if that was done before.
    fn skip_command<P: Platform>(&mut self, p: &P) -> bool {
        let is_first = !core::mem::replace(&mut self.erred, true);
        if is_first {
            self.overwrite(p, self.consumed, Command::sync());
        }
        is_first
    }

    /// Turns the SMMU off for good: every transaction aborts, batches under way fail.
    ///
    /// GBPA.ABORT comes first, so that nothing is let through when SMMUEN goes. Then what was let through before gets its time to land: a
    /// CMD_SYNC would say when it has, but not one of an SMMU that failed.
    #[cold]
    #[inline(never)]
    pub(super) fn shut_down<P: Platform>(&mut self, p: &P) {
        let registers = self.registers();
        self.condition = Condition::Lost;
        let cr0 = registers.read_u32(p, CR0_OFFSET) & CR0::ATSCHK.val(1).value;
        if registers.abort_all(p).is_ok() && registers.set_cr0(p, cr0).is_ok() {
            Registers::await_landing(p);
            self.condition = Condition::Dead;
            log::error!("SMMU {}: shut down, it aborts every transaction", registers.base());
        } else {
            log::error!("SMMU {}: does not answer, whatever needs it fails from now on", registers.base());
        }
    }
}
