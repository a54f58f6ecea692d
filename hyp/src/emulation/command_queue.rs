//! The command queue (IHI 0070, chapter 4, 3.5 and 6.3.26 to 6.3.28): commands are copied in batches, checked, forwarded in their order.

use smmuv3::address::PhysAddr;
use smmuv3::command::{COMMAND_BYTES, CommandError, opcode};
use smmuv3::registers::GERROR;
use smmuv3::vsmmu::{self, Completion, Illegal, Request};

use super::registers::{CMDQEN, Queue, queue_base, queue_log2, wrap_mask};
use super::stream_table::Walk;
use super::{BATCH, Backend, Budget, EmulatedSmmu, Fault, Interrupt, SET_UNITS};
use crate::memory::Progress;

/// Bytes of a page: a batch lies in one.
const PAGE_BYTES: u64 = 0x1000;

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Batch {
    /// All of it is consumed.
    Consumed,
    /// The step is used up.
    UsedUp,
    /// The queue is stopped by an error.
    Stopped,
}

impl EmulatedSmmu {
    /// Works the queue off, as far as one step goes.
    pub(super) fn consume(&mut self, backend: &impl Backend) -> Progress {
        let mut budget = Budget::new();
        if let Some(walk) = self.range
            && self.can_consume()
        {
            // The command was checked when it was begun, and is not looked at again.
            self.range = self.walk_if_active(backend, walk, &mut budget);
            if self.range.is_some() {
                return Progress::Again;
            }
            self.advance(1);
        }
        while self.can_consume() {
            let waiting = self.waiting_commands();
            if waiting == 0 {
                break;
            }
            let count = waiting.min(BATCH as u32).min(budget.0);
            if count == 0 {
                return Progress::Again;
            }
            match self.consume_batch(backend, count, &mut budget) {
                Batch::Consumed => {}
                Batch::UsedUp => return Progress::Again,
                Batch::Stopped => break,
            }
        }
        Progress::Done
    }

    /// Whether commands are processed (4.1.2).
    const fn can_consume(&self) -> bool {
        let stopped = self.registers.active_errors() & GERROR::CMDQ_ERR::SET.value != 0;
        self.registers.cr0 & CMDQEN != 0 && !stopped && !self.failed
    }

    /// Commands that wait; 0 while the indexes are inconsistent.
    fn waiting_commands(&self) -> u32 {
        let mask = wrap_mask(self.command_queue_log2());
        let waiting = self.registers.cmdq_prod.wrapping_sub(self.registers.cmdq_cons) & mask;
        if waiting > mask / 2 + 1 { 0 } else { waiting }
    }

    fn command_queue_log2(&self) -> u32 {
        queue_log2(&self.ids, Queue::Commands, self.registers.cmdq_base)
    }

    /// Moves CMDQ_CONS past commands that were consumed.
    fn advance(&mut self, count: u32) {
        let mask = wrap_mask(self.command_queue_log2());
        self.registers.cmdq_cons = self.registers.cmdq_cons.wrapping_add(count) & mask;
    }

    /// Copies up to `count` commands, as many as lie in one page before the end of the queue, and carries them out.
    fn consume_batch(&mut self, backend: &impl Backend, count: u32, budget: &mut Budget) -> Batch {
        let log2 = self.command_queue_log2();
        let base = queue_base(self.registers.cmdq_base, log2, COMMAND_BYTES.trailing_zeros());
        let entries = 1u32 << log2;
        let index = self.registers.cmdq_cons & (entries - 1);
        let address = PhysAddr(base.wrapping_add(u64::from(index) * COMMAND_BYTES));
        let in_page = (PAGE_BYTES - address.0 % PAGE_BYTES) / COMMAND_BYTES;
        let count = count.min(entries - index).min(in_page as u32);
        let copied = match self.batch.get_mut(..count as usize) {
            Some(commands) => backend.read_commands(address, commands).is_ok(),
            None => false,
        };
        if !copied {
            self.command_error(backend, CommandError::ABORT);
            return Batch::Stopped;
        }
        self.carry_out(backend, count, budget)
    }

    /// Carries out the first `count` commands of the batch. Invalidations collect until something has to find them complete.
    fn carry_out(&mut self, backend: &impl Backend, count: u32, budget: &mut Budget) -> Batch {
        // Those before `position` in the batch are done but for the `collected` ones; `consumed` is where CMDQ_CONS is.
        let (mut collected, mut consumed) = (0, 0);
        for position in 0..count {
            let Some(command) = self.batch.get(position as usize) else { break };
            if !budget.take(1) {
                return self.complete(backend, collected, position - consumed, Batch::UsedUp);
            }
            let lookup = |stream| backend.hosts_stream(stream);
            let request = match vsmmu::read(*command, &self.limits, self.vmid, lookup) {
                Ok(Request::Invalidate(command)) => {
                    if let Some(place) = self.batch.get_mut(collected) {
                        *place = command;
                        collected += 1;
                    }
                    continue;
                }
                Ok(Request::Nothing) | Err(Illegal::Stream(_)) => continue,
                Ok(request) => Some(request),
                Err(_) => None,
            };
            if self.complete(backend, collected, position - consumed, Batch::Consumed) == Batch::Stopped {
                return Batch::Stopped;
            }
            collected = 0;
            match request {
                Some(request) if self.fulfil(backend, request, budget) => {}
                Some(_) => return Batch::UsedUp,
                None => {
                    self.command_error(backend, CommandError::ILLEGAL);
                    return Batch::Stopped;
                }
            }
            if self.failed {
                return Batch::Stopped;
            }
            consumed = position + 1;
        }
        self.complete(backend, collected, count - consumed, Batch::Consumed)
    }

    /// Has the SMMU carry out what was collected, which consumes `count` commands: `then`, or stopped.
    fn complete(&mut self, backend: &impl Backend, collected: usize, count: u32, then: Batch) -> Batch {
        let commands = self.batch.get(..collected).unwrap_or(&[]);
        if commands.is_empty() {
            self.advance(count);
            return then;
        }
        match backend.invalidate(commands) {
            Ok(()) => {
                self.advance(count);
                then
            }
            Err(fault) => {
                self.fail(backend, fault);
                if fault == Fault::Incomplete {
                    self.incomplete(backend, collected, count);
                }
                Batch::Stopped
            }
        }
    }

    /// Says that the collected commands, which came of `count` ones, may not have been carried out. An ATC that does not answer is the
    /// device's fault, and is told at what follows the commands; others are begun again, from the first on, when the error is acknowledged.
    fn incomplete(&mut self, backend: &impl Backend, collected: usize, count: u32) {
        let commands = self.batch.get(..collected).unwrap_or(&[]);
        if commands.iter().any(|command| command.opcode() == opcode::ATC_INV) {
            self.advance(count);
            self.command_error(backend, CommandError::ATC_INV_SYNC);
        } else {
            self.command_error(backend, CommandError::ABORT);
        }
    }

    /// Does what the command at CMDQ_CONS asks for, and consumes it; false when the step is used up.
    fn fulfil(&mut self, backend: &impl Backend, request: Request, budget: &mut Budget) -> bool {
        match request {
            Request::Stream(stream) => {
                if !budget.take(SET_UNITS) {
                    return false;
                }
                if self.is_active() && backend.next_stream(stream) == Some(stream) {
                    self.set_from_table(backend, stream);
                }
            }
            Request::Streams { first, last } => {
                self.range = self.walk_if_active(backend, Walk::over(first, last), budget);
                if self.range.is_some() {
                    return false;
                }
            }
            Request::Sync(completion) => {
                self.advance(1);
                self.syncs = self.syncs.wrapping_add(1);
                self.signal(backend, completion);
                return true;
            }
            Request::Invalidate(_) | Request::Nothing => {}
        }
        self.advance(1);
        true
    }

    /// Goes on with a walk over streams whose STEs have changed. While SMMUEN is 0 there is nothing to forget.
    fn walk_if_active(&mut self, backend: &impl Backend, walk: Walk, budget: &mut Budget) -> Option<Walk> {
        if self.is_active() { self.walk(backend, walk, budget) } else { None }
    }

    /// Signals that a CMD_SYNC is complete (4.7.3). CMDQ_CONS is past it already.
    fn signal(&mut self, backend: &impl Backend, completion: Completion) {
        match completion {
            // IDR0.SEV is 0.
            Completion::None | Completion::Event => {}
            Completion::Wired => backend.raise(Interrupt::CommandSync),
            Completion::Msi { address, data } => {
                if backend.write_host_u32(PhysAddr(address), data).is_err() {
                    self.activate(backend, GERROR::MSI_CMDQ_ABT_ERR::SET.value);
                }
            }
        }
    }
}
