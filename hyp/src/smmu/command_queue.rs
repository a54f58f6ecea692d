//! The command queue (IHI 0070, 3.5.1 and 6.3.26 to 6.3.28): its ring, posting to it and waiting for it.
//!
//! Indexes are monotonic 64-bit counts since the queue was enabled; the index and wrap bit of a register are
//! the low bits of the count. So full and empty are never confused, and a ticket keeps its meaning after the
//! queue has wrapped.

use smmuv3::address::PhysAddr;
use smmuv3::command::{COMMAND_BYTES, Command};
use smmuv3::invalidation::Batch;
use smmuv3::registers::{CMDQ_CONS, CMDQ_CONS_OFFSET, CMDQ_PROD_OFFSET};

use super::registers::{Registers, TIMEOUT_NS};
use crate::platform::Platform;
use crate::sync::{Guarded, Mutex, MutexGuard, Rank};

/// log2 of the entries that a queue has where the SMMU allows it: 4 KiB.
pub(super) const LOG2_ENTRIES: u8 = 8;

/// Commands in the queue of one SMMU, to wait for: the counts `first..end`, a CMD_SYNC last.
///
/// The default, `0..0`, names no commands: always complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticket {
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

/// Where command queue errors stopped the queue: those who own the commands there hear of it when they wait. A call may own many, and who waits
/// last hears of the first; so the newest are kept one by one, and of all others the first and the last.
pub(super) struct Failures {
    /// Counts, in a ring of which the next place is `noted`.
    newest: [Option<u64>; Self::MAX],
    /// The lowest and the highest count that is not in the ring any more.
    older: Option<(u64, u64)>,
    noted: u64,
    /// The count after the newest one: the queue goes on in order.
    end: u64,
}

impl Failures {
    const MAX: usize = 32;

    const NONE: Self = Self { newest: [None; Self::MAX], older: None, noted: 0, end: 0 };

    /// Notes a failure; `false` if the queue failed there the last time too.
    pub(super) fn note(&mut self, count: u64) -> bool {
        let end = count.wrapping_add(1);
        if self.end == end {
            return false;
        }
        let place = self.newest.get_mut((self.noted % Self::MAX as u64) as usize);
        if let Some(oldest) = place.and_then(|place| place.replace(count)) {
            self.older = Some((self.older.map_or(oldest, |(first, _)| first), oldest));
        }
        self.noted = self.noted.wrapping_add(1);
        self.end = end;
        true
    }

    /// Whether a command of the ticket failed. Of a ticket among failures that are not kept one by one it is taken for granted.
    #[inline]
    fn concern(&self, ticket: Ticket) -> bool {
        // By far the most SMMUs never fail, and by far the most tickets are newer than the last failure.
        ticket.first < self.end && self.concern_any(ticket)
    }

    #[cold]
    fn concern_any(&self, ticket: Ticket) -> bool {
        let owned = |&count: &u64| ticket.first <= count && count < ticket.end;
        let among = |&(first, last): &(u64, u64)| ticket.first <= last && first < ticket.end;
        let is_empty = ticket.first == ticket.end;
        self.newest.iter().flatten().any(owned) || self.older.as_ref().is_some_and(among) && !is_empty
    }
}

/// How long a wait has seen no progress of the SMMU.
pub(super) struct Patience {
    since_ns: u64,
    steps: u64,
}

impl Patience {
    /// That of a wait that has seen nothing yet.
    pub(super) const NEW: Self = Self { since_ns: 0, steps: u64::MAX };

    /// Whether the SMMU, which is this many steps far now, was as far [`TIMEOUT_NS`] ago.
    fn is_over(&mut self, now_ns: u64, steps: u64) -> bool {
        if self.steps != steps {
            *self = Self { since_ns: now_ns, steps };
        }
        now_ns.saturating_sub(self.since_ns) > TIMEOUT_NS
    }
}

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
    /// Of the commands written, those that are a CMD_SYNC.
    pub(super) syncs: u64,
    pub(super) failures: Failures,
    /// A command other than an ATC invalidation has failed: the next one is the SMMU's end.
    pub(super) erred: bool,
    /// It is logged that an ATC did not answer.
    pub(super) atc_logged: bool,
    pub(super) condition: Condition,
    /// GERROR conditions acknowledged.
    pub(super) global_errors: u64,
    /// How often the SMMU said that it could not write an event (GERROR.EVENTQ_ABT_ERR), one lost event or
    /// more each time, since the ring was last told.
    pub(super) events_aborted: u64,
}

impl Guarded for CommandQueue {
    const RANK: Rank = Rank::Leaf;
}

impl CommandQueue {
    pub(super) const fn new(registers: Registers) -> Self {
        Self {
            registers,
            base: PhysAddr(0),
            mask: 0,
            produced: 0,
            consumed: 0,
            syncs: 0,
            failures: Failures::NONE,
            erred: false,
            atc_logged: false,
            condition: Condition::Off,
            global_errors: 0,
            events_aborted: 0,
        }
    }

    /// Where it is.
    #[cfg(feature = "oracle")]
    pub(super) const fn base(&self) -> PhysAddr {
        self.base
    }

    /// Takes the memory of the queue, before it is enabled: `1 << log2_entries` commands at `base`.
    pub(super) fn place(&mut self, base: PhysAddr, log2_entries: u8) {
        self.base = base;
        self.mask = (2 << log2_entries) - 1;
    }

    const fn slot(&self, count: u64) -> PhysAddr {
        self.base.offset((count & (self.mask >> 1)).wrapping_mul(COMMAND_BYTES))
    }

    const fn is_full(&self) -> bool {
        self.produced.wrapping_sub(self.consumed) > self.mask >> 1
    }

    /// Overwrites a command that the SMMU has not consumed.
    #[inline]
    pub(super) fn overwrite<P: Platform>(&self, p: &P, count: u64, command: Command) {
        p.write_pair(self.slot(count), command.0);
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

    /// Adds a command and a CMD_SYNC; `false`, and nothing is changed, if it is not known that there is room for both.
    #[inline]
    fn append_synced<P: Platform>(&mut self, p: &P, command: Command) -> bool {
        let count = self.produced;
        let next = count.wrapping_add(1);
        let has_room = next.wrapping_sub(self.consumed) <= self.mask >> 1;
        if has_room {
            self.overwrite(p, count, command);
            self.overwrite(p, next, Command::sync());
            self.produced = next.wrapping_add(1);
            self.syncs = self.syncs.wrapping_add(1);
        }
        has_room
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

    /// What became of the commands of a ticket as far as is known, `None` while they are under way.
    fn outcome(&mut self, ticket: Ticket) -> Option<Result<(), Fault>> {
        if self.consumed >= ticket.end {
            return Some(if self.failures.concern(ticket) { Err(Fault) } else { Ok(()) });
        }
        (self.condition != Condition::Running).then_some(Err(Fault))
    }

    /// Waits until the queue is not full.
    #[cold]
    #[inline(never)]
    fn await_room<P: Platform>(&mut self, p: &P) -> Result<(), Fault> {
        // What was appended and not published would never be consumed.
        self.publish(p);
        let mut patience = Patience::NEW;
        loop {
            let now_ns = p.now_ns();
            self.look(p);
            if self.condition != Condition::Running {
                return Err(Fault);
            }
            if !self.is_full() {
                return Ok(());
            }
            if patience.is_over(now_ns, self.steps()) {
                self.time_out(p);
                return Err(Fault);
            }
            p.relax();
        }
    }

    /// How far the SMMU is. A command that fails is a step, once: it may take as long again until it is consumed. So the steps to a ticket are
    /// no more than two for each command before its end.
    const fn steps(&self) -> u64 {
        self.consumed.wrapping_add(self.failures.noted)
    }

    /// Looks for progress and, where there is none, for errors.
    fn look<P: Platform>(&mut self, p: &P) {
        let before = self.consumed;
        if self.refresh(p).is_err() {
            log::error!("SMMU {}: CMDQ_CONS is beyond CMDQ_PROD", self.registers.base());
            self.shut_down(p);
        } else if self.consumed == before {
            self.handle_global_errors(p);
        }
    }

    #[cold]
    fn time_out<P: Platform>(&mut self, p: &P) {
        log::error!("SMMU {}: a command did not complete in time", self.registers.base());
        self.shut_down(p);
    }

    /// The outcome of a ticket if it is known, or shows at a first glance.
    #[inline]
    pub(super) fn glance<P: Platform>(&mut self, p: &P, ticket: Ticket) -> Option<Result<(), Fault>> {
        // Whoever is waited for first often sees the commands of the others complete as well.
        if let Some(outcome) = self.outcome(ticket) {
            return Some(outcome);
        }
        self.refresh(p).ok()?;
        self.outcome(ticket)
    }

    /// The outcome of a ticket after one look at the SMMU; `None` while it is under way. An SMMU that goes on is waited for, one that does
    /// not is shut down.
    pub(super) fn poll<P: Platform>(
        &mut self,
        p: &P,
        ticket: Ticket,
        patience: &mut Patience,
    ) -> Option<Result<(), Fault>> {
        // The clock is read first: a CPU that was away between the two looks once more before it gives up.
        let now_ns = p.now_ns();
        self.look(p);
        let outcome = self.outcome(ticket);
        if outcome.is_none() && patience.is_over(now_ns, self.steps()) {
            self.time_out(p);
            return self.outcome(ticket);
        }
        outcome
    }

    pub(super) const fn registers(&self) -> Registers {
        self.registers
    }
}

/// Waits for commands, and calls `meanwhile` each time they are not complete.
///
/// The lock is held for one look at a time, so that others can post and wait. The wait is over when the SMMU has made no progress for
/// [`TIMEOUT_NS`], so it is no longer than twice that for each command before.
#[inline]
pub(super) fn wait<P: Platform>(
    queue: &Mutex<CommandQueue>,
    p: &P,
    ticket: Ticket,
    meanwhile: impl FnMut(),
) -> Result<(), Fault> {
    if let Some(outcome) = queue.lock().glance(p, ticket) {
        return outcome;
    }
    wait_on(queue, p, ticket, meanwhile)
}

/// The part of [`wait`] that takes its time.
#[cold]
#[inline(never)]
fn wait_on<P: Platform>(
    queue: &Mutex<CommandQueue>,
    p: &P,
    ticket: Ticket,
    mut meanwhile: impl FnMut(),
) -> Result<(), Fault> {
    let mut patience = Patience::NEW;
    loop {
        if let Some(outcome) = queue.lock().poll(p, ticket, &mut patience) {
            return outcome;
        }
        meanwhile();
        p.relax();
    }
}

/// A queue that takes commands of one CPU, until they are all there.
pub struct OpenQueue<'a, P: Platform> {
    p: &'a P,
    queue: MutexGuard<'a, CommandQueue>,
    first: u64,
    state: Taking,
}

/// What an open queue does with commands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taking {
    /// It appends them.
    Commands,
    /// Its SMMU is dead: there is nothing to invalidate.
    Nothing,
    /// There was no room in time, or the SMMU failed.
    Failed,
}

impl<'a, P: Platform> OpenQueue<'a, P> {
    /// Opens the queue. That of a dead SMMU takes anything: it has nothing to invalidate.
    ///
    /// # Errors
    /// The SMMU is off, or was lost.
    #[inline]
    pub(super) fn new(p: &'a P, queue: MutexGuard<'a, CommandQueue>) -> Result<Self, Fault> {
        let state = match queue.condition {
            Condition::Running => Taking::Commands,
            Condition::Dead => Taking::Nothing,
            Condition::Off | Condition::Lost => return Err(Fault),
        };
        Ok(Self { p, first: queue.produced, queue, state })
    }
}

impl<P: Platform> Batch for OpenQueue<'_, P> {
    type Ticket = Ticket;
    type Fault = Fault;

    #[inline]
    fn push(&mut self, command: Command) {
        if self.state == Taking::Commands && self.queue.append(self.p, command).is_err() {
            self.state = Taking::Failed;
        }
    }

    #[inline]
    fn sync(&mut self) {
        self.push(Command::sync());
        self.queue.syncs = self.queue.syncs.wrapping_add(u64::from(self.state == Taking::Commands));
    }

    fn issue(&mut self) {
        if self.state == Taking::Commands {
            self.queue.publish(self.p);
        }
    }

    #[inline]
    fn close(mut self) -> Result<Ticket, Fault> {
        self.sync();
        match self.state {
            Taking::Commands => {
                self.queue.publish(self.p);
                Ok(Ticket { first: self.first, end: self.queue.produced })
            }
            Taking::Nothing => Ok(Ticket::default()),
            Taking::Failed => Err(Fault),
        }
    }

    #[inline(always)]
    fn close_with(mut self, command: Command) -> Result<Ticket, Fault> {
        if self.state != Taking::Commands || !self.queue.append_synced(self.p, command) {
            self.push(command);
            return self.close();
        }
        self.queue.publish(self.p);
        Ok(Ticket { first: self.first, end: self.queue.produced })
    }
}
