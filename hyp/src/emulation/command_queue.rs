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

/// Where the queue is, as CMDQ_BASE says; that does not change while CMDQEN is 1.
#[derive(Clone, Copy, Debug)]
struct Ring {
    /// Address of the first command.
    base: u64,
    /// log2 of the commands that it holds.
    log2: u32,
}

impl Ring {
    /// Commands from CMDQ_CONS to CMDQ_PROD; 0 while the indexes are inconsistent.
    const fn between(self, consumer: u32, producer: u32) -> u32 {
        let waiting = producer.wrapping_sub(consumer) & wrap_mask(self.log2);
        if waiting > 1 << self.log2 { 0 } else { waiting }
    }

    /// CMDQ_CONS when `count` more commands are consumed.
    const fn after(self, consumer: u32, count: u32) -> u32 {
        consumer.wrapping_add(count) & wrap_mask(self.log2)
    }

    /// The address of the command at CMDQ_CONS, and how many there are from it on in one page before the end of the queue.
    fn piece(self, consumer: u32) -> (PhysAddr, u32) {
        let index = consumer & (wrap_mask(self.log2) >> 1);
        let address = PhysAddr(self.base.wrapping_add(u64::from(index) * COMMAND_BYTES));
        let in_page = (PAGE_BYTES - address.0 % PAGE_BYTES) / COMMAND_BYTES;
        let in_queue = (1u32 << self.log2).wrapping_sub(index);
        (address, (in_page as u32).min(in_queue))
    }
}

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
    /// A store of a word to CMDQ_PROD, as [`EmulatedSmmu::write`] does it.
    #[inline]
    pub fn write_cmdq_prod(&mut self, backend: &impl Backend, value: u32) -> Progress {
        self.registers.set_cmdq_prod(value);
        self.consume(backend)
    }

    /// Works the queue off, as far as one step goes.
    #[inline(never)]
    pub(super) fn consume(&mut self, backend: &impl Backend) -> Progress {
        let mut budget = Budget::new();
        let ring = self.ring();
        if self.range.is_some() && self.go_on_with_range(backend, ring, &mut budget) == Progress::Again {
            return Progress::Again;
        }
        while self.can_consume() {
            let waiting = ring.between(self.registers.cmdq_cons, self.registers.cmdq_prod);
            if waiting == 0 {
                break;
            }
            let most = waiting.min(BATCH as u32).min(budget.0);
            if most == 0 {
                return Progress::Again;
            }
            let (address, piece) = ring.piece(self.registers.cmdq_cons);
            let count = most.min(piece);
            match self.consume_batch(backend, ring, address, count, &mut budget) {
                Batch::Consumed if count == waiting => break,
                Batch::Consumed => {}
                Batch::UsedUp => return Progress::Again,
                Batch::Stopped => break,
            }
        }
        Progress::Done
    }

    /// A step of the CFGI_STE_RANGE that was begun. It was checked then, and is not looked at again.
    #[cold]
    fn go_on_with_range(&mut self, backend: &impl Backend, ring: Ring, budget: &mut Budget) -> Progress {
        if let Some(walk) = self.range
            && self.can_consume()
        {
            self.range = self.walk_if_active(backend, walk, budget);
            if self.range.is_some() {
                return Progress::Again;
            }
            self.advance(ring, 1);
        }
        Progress::Done
    }

    /// Whether commands are processed (4.1.2).
    const fn can_consume(&self) -> bool {
        let stopped = self.registers.active_errors() & GERROR::CMDQ_ERR::SET.value != 0;
        self.registers.cr0 & CMDQEN != 0 && !stopped && !self.failed
    }

    fn ring(&self) -> Ring {
        let log2 = queue_log2(&self.ids, Queue::Commands, self.registers.cmdq_base);
        Ring { base: queue_base(self.registers.cmdq_base, log2, COMMAND_BYTES.trailing_zeros()), log2 }
    }

    /// Moves CMDQ_CONS past commands that were consumed.
    const fn advance(&mut self, ring: Ring, count: u32) {
        self.registers.cmdq_cons = ring.after(self.registers.cmdq_cons, count);
    }

    /// Copies `count` commands, which lie in one page, and carries them out.
    #[inline]
    fn consume_batch(
        &mut self,
        backend: &impl Backend,
        ring: Ring,
        address: PhysAddr,
        count: u32,
        budget: &mut Budget,
    ) -> Batch {
        let copied = match self.batch.get_mut(..count as usize) {
            Some(commands) => backend.read_commands(address, commands).is_ok(),
            None => false,
        };
        if !copied {
            self.command_error(backend, CommandError::ABORT);
            return Batch::Stopped;
        }
        self.carry_out(backend, ring, count, budget)
    }

    /// Carries out the first `count` commands of the batch. Invalidations collect until something has to find them complete.
    #[inline]
    fn carry_out(&mut self, backend: &impl Backend, ring: Ring, count: u32, budget: &mut Budget) -> Batch {
        // Those before `position` in the batch are done but for the `collected` ones; `consumed` is where CMDQ_CONS is.
        let (mut collected, mut consumed) = (0, 0);
        for position in 0..count {
            let Some(command) = self.batch.get(position as usize) else { break };
            if !budget.take(1) {
                return self.complete(backend, ring, collected, position - consumed, Batch::UsedUp);
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
                request => request,
            };
            let before = self.complete(backend, ring, collected, position - consumed, Batch::Consumed);
            if before == Batch::Stopped {
                return before;
            }
            collected = 0;
            match request {
                Ok(Request::Sync(completion)) => {
                    self.advance(ring, 1);
                    self.syncs = self.syncs.wrapping_add(1);
                    self.signal(backend, completion);
                }
                request => match self.fulfil(backend, ring, request.ok(), budget) {
                    Batch::Consumed => {}
                    end => return end,
                },
            }
            consumed = position + 1;
        }
        self.complete(backend, ring, collected, count - consumed, Batch::Consumed)
    }

    /// Has the SMMU carry out what was collected, which consumes `count` commands: `then`, or stopped.
    #[inline(always)]
    fn complete(
        &mut self,
        backend: &impl Backend,
        ring: Ring,
        collected: usize,
        count: u32,
        then: Batch,
    ) -> Batch {
        if collected != 0
            && let Err(fault) = self.forward(backend, collected)
        {
            self.incomplete(backend, ring, fault, collected, count);
            return Batch::Stopped;
        }
        self.advance(ring, count);
        then
    }

    #[inline(never)]
    fn forward(&self, backend: &impl Backend, collected: usize) -> Result<(), Fault> {
        backend.invalidate(self.batch.get(..collected).unwrap_or(&[]))
    }

    /// Says that the collected commands, which came of `count` ones, may not have been carried out. An ATC that does not answer is the
    /// device's fault, and is told at what follows the commands; others are begun again, from the first on, when the error is acknowledged.
    #[cold]
    #[inline(never)]
    fn incomplete(&mut self, backend: &impl Backend, ring: Ring, fault: Fault, collected: usize, count: u32) {
        self.fail(backend, fault);
        if fault != Fault::Incomplete {
            return;
        }
        let commands = self.batch.get(..collected).unwrap_or(&[]);
        if commands.iter().any(|command| command.opcode() == opcode::ATC_INV) {
            self.advance(ring, count);
            self.command_error(backend, CommandError::ATC_INV_SYNC);
        } else {
            self.command_error(backend, CommandError::ABORT);
        }
    }

    /// Does what the command at CMDQ_CONS asks for, and consumes it; `None` is an illegal one.
    #[inline(never)]
    fn fulfil(
        &mut self,
        backend: &impl Backend,
        ring: Ring,
        request: Option<Request>,
        budget: &mut Budget,
    ) -> Batch {
        match request {
            Some(Request::Stream(stream)) => {
                if !budget.take(SET_UNITS) {
                    return Batch::UsedUp;
                }
                if self.is_active()
                    && backend.next_stream(stream) == Some(stream)
                    && self.set_from_table(backend, stream, budget) == Err(Fault::Incomplete)
                {
                    self.command_error(backend, CommandError::ABORT);
                    return Batch::Stopped;
                }
            }
            Some(Request::Streams { first, last }) => {
                self.range = self.walk_if_active(backend, Walk::over(first, last), budget);
                if self.range.is_some() {
                    return Batch::UsedUp;
                }
            }
            // The rest is for the caller.
            Some(Request::Invalidate(_) | Request::Nothing | Request::Sync(_)) => {}
            None => {
                self.command_error(backend, CommandError::ILLEGAL);
                return Batch::Stopped;
            }
        }
        self.advance(ring, 1);
        if self.failed { Batch::Stopped } else { Batch::Consumed }
    }

    /// Goes on with a walk over streams whose STEs have changed. While SMMUEN is 0 there is nothing to forget.
    fn walk_if_active(&mut self, backend: &impl Backend, walk: Walk, budget: &mut Budget) -> Option<Walk> {
        if self.is_active() { self.walk(backend, walk, budget) } else { None }
    }

    /// Signals that a CMD_SYNC is complete (4.7.3). CMDQ_CONS is past it already.
    #[inline]
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
