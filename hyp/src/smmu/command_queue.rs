//! The command queue (IHI 0070, 3.5.1 and 6.3.26 to 6.3.28): its ring, posting to it and waiting for it.
//!
//! Indexes are monotonic 64-bit counts since the queue was enabled; the index and wrap bit of a register are
//! the low bits of the count. So full and empty are never confused, and a batch keeps its name after the
//! queue has wrapped.

use smmuv3::address::PhysAddr;
use smmuv3::command::{COMMAND_BYTES, Command};
use smmuv3::registers::{CMDQ_CONS, CMDQ_CONS_OFFSET, CMDQ_PROD_OFFSET};

use super::registers::{Registers, TIMEOUT_NS};
use crate::platform::Platform;

/// log2 of the entries that a queue has where the SMMU allows it: 4 KiB.
pub(super) const LOG2_ENTRIES: u8 = 8;

/// A batch of commands in the queue of one SMMU: the counts `first..end`, its CMD_SYNC last.
///
/// The default, `0..0`, is a batch without commands: always complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Count of the first command.
    pub first: u64,
    /// Count after the last.
    pub end: u64,
}

/// How an SMMU stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Not brought up: GBPA.ABORT is set and SMMUEN is 0.
    Off,
    /// Translating.
    Running,
    /// It failed for good: GBPA.ABORT is set and SMMUEN is acknowledged as 0, so it aborts every transaction
    /// and needs no invalidation.
    Dead,
    /// It failed for good and did not acknowledge that it was turned off: what it still lets through is
    /// unknown, so every operation that needs it fails.
    Lost,
}

/// The command queue of one SMMU failed, or the SMMU cannot be reached any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// The command queue. The lock around it also guards GERRORN and CR0 after bring-up.
pub(super) struct CommandQueue {
    registers: Registers,
    base: PhysAddr,
    /// The bits of a count that the registers hold: index and wrap bit.
    mask: u64,
    /// Commands written since the queue was enabled.
    pub(super) produced: u64,
    /// Of them, commands that the SMMU has consumed, as last seen.
    pub(super) consumed: u64,
    /// Batches posted: each has one CMD_SYNC.
    pub(super) batches: u64,
    /// The command that a command queue error stopped at; there is at most one, a second error is the SMMU's
    /// end.
    pub(super) failed: Option<u64>,
    pub(super) condition: Condition,
    /// GERROR conditions acknowledged.
    pub(super) global_errors: u64,
    /// How often the SMMU said that it could not write an event (GERROR.EVENTQ_ABT_ERR), one lost event or
    /// more each time, since the ring was last told.
    pub(super) events_aborted: u64,
}

impl CommandQueue {
    pub(super) const fn new(registers: Registers) -> Self {
        Self {
            registers,
            base: PhysAddr(0),
            mask: 0,
            produced: 0,
            consumed: 0,
            batches: 0,
            failed: None,
            condition: Condition::Off,
            global_errors: 0,
            events_aborted: 0,
        }
    }

    /// Takes the memory of the queue, before it is enabled: `1 << log2_entries` commands at `base`.
    pub(super) fn place(&mut self, base: PhysAddr, log2_entries: u8) {
        self.base = base;
        self.mask = (2 << log2_entries) - 1;
    }

    const fn slot(&self, count: u64) -> PhysAddr {
        self.base.offset((count & (self.mask >> 1)) * COMMAND_BYTES)
    }

    const fn is_full(&self) -> bool {
        self.produced.wrapping_sub(self.consumed) > self.mask >> 1
    }

    /// Overwrites a command that the SMMU has not consumed.
    pub(super) fn overwrite<P: Platform>(&self, p: &P, count: u64, command: Command) {
        let slot = self.slot(count);
        p.write_u64(slot, command.0[0]);
        p.write_u64(slot.offset(8), command.0[1]);
    }

    /// Adds a command, and waits for room first if there is none.
    #[inline]
    fn append<P: Platform>(&mut self, p: &P, command: Command) -> Result<(), Fault> {
        if self.is_full() && (self.refresh(p).is_err() || self.is_full()) {
            self.await_room(p)?;
        }
        self.overwrite(p, self.produced, command);
        self.produced = self.produced.wrapping_add(1);
        Ok(())
    }

    /// Lets the SMMU see every command that was appended.
    fn publish<P: Platform>(&self, p: &P) {
        // The commands, and the descriptors and STEs that they are about, before PROD.
        p.full_barrier();
        self.registers.write_u32(p, CMDQ_PROD_OFFSET, (self.produced & self.mask) as u32);
    }

    /// Reads how far the SMMU is. A consumer index beyond what was produced is the SMMU's fault.
    pub(super) fn refresh<P: Platform>(&mut self, p: &P) -> Result<(), Fault> {
        let read = u64::from(CMDQ_CONS::RD.read(self.registers.read_u32(p, CMDQ_CONS_OFFSET)));
        let step = read.wrapping_sub(self.consumed) & self.mask;
        if step > self.produced.wrapping_sub(self.consumed) {
            return Err(Fault);
        }
        self.consumed = self.consumed.wrapping_add(step);
        Ok(())
    }

    /// What became of a batch as far as is known, `None` while it is under way.
    fn outcome(&self, batch: Batch) -> Option<Result<(), Fault>> {
        if self.consumed >= batch.end {
            let failed = self.failed.is_some_and(|count| batch.first <= count && count < batch.end);
            return Some(if failed { Err(Fault) } else { Ok(()) });
        }
        (self.condition != Condition::Running).then_some(Err(Fault))
    }

    /// Writes the commands and a CMD_SYNC and lets the SMMU begin it; waits only for room, at most
    /// [`TIMEOUT_NS`].
    ///
    /// On a dead SMMU there is nothing to invalidate: the batch is complete. Fails when the SMMU was lost
    /// before, or fails while room is awaited.
    pub(super) fn post<P: Platform>(
        &mut self,
        p: &P,
        commands: impl Iterator<Item = Command>,
    ) -> Result<Batch, Fault> {
        match self.condition {
            Condition::Running => {}
            Condition::Dead => return Ok(Batch::default()),
            Condition::Off | Condition::Lost => return Err(Fault),
        }
        let first = self.produced;
        for command in commands {
            self.append(p, command)?;
        }
        self.append(p, Command::sync())?;
        self.publish(p);
        self.batches = self.batches.wrapping_add(1);
        Ok(Batch { first, end: self.produced })
    }

    /// Waits until the queue is not full.
    #[cold]
    #[inline(never)]
    fn await_room<P: Platform>(&mut self, p: &P) -> Result<(), Fault> {
        // What was appended and not published would never be consumed.
        self.publish(p);
        let start = p.now_ns();
        loop {
            let late = p.now_ns().saturating_sub(start) > TIMEOUT_NS;
            let recovered = self.look(p);
            if self.condition != Condition::Running {
                return Err(Fault);
            }
            if !self.is_full() {
                return Ok(());
            }
            if late && !recovered {
                self.time_out(p);
                return Err(Fault);
            }
            p.relax();
        }
    }

    /// Looks for progress and, where there is none, for errors. Whether a command queue error was recovered
    /// from, which happens once at most.
    fn look<P: Platform>(&mut self, p: &P) -> bool {
        let before = self.consumed;
        if self.refresh(p).is_err() {
            log::error!("SMMU {}: CMDQ_CONS is beyond CMDQ_PROD", self.registers.base());
            self.shut_down(p);
            return false;
        }
        self.consumed == before && self.handle_global_errors(p)
    }

    #[cold]
    fn time_out<P: Platform>(&mut self, p: &P) {
        log::error!("SMMU {}: a command did not complete in time", self.registers.base());
        self.shut_down(p);
    }

    /// The outcome of a batch if it is known, or shows at a first glance.
    #[inline]
    pub(super) fn glance<P: Platform>(&mut self, p: &P, batch: Batch) -> Option<Result<(), Fault>> {
        // Whoever is waited for first often sees the batches of the others complete as well.
        if let Some(outcome) = self.outcome(batch) {
            return Some(outcome);
        }
        self.refresh(p).ok()?;
        self.outcome(batch)
    }

    /// The outcome of a batch after one look at the SMMU; `None` while it is under way. With `late` the wait
    /// for the batch has lasted [`TIMEOUT_NS`]: an SMMU that is not done is shut down.
    pub(super) fn poll<P: Platform>(&mut self, p: &P, batch: Batch, late: bool) -> Option<Result<(), Fault>> {
        let recovered = self.look(p);
        let outcome = self.outcome(batch);
        if outcome.is_none() && late && !recovered {
            self.time_out(p);
            return self.outcome(batch);
        }
        outcome
    }

    pub(super) const fn registers(&self) -> Registers {
        self.registers
    }
}
