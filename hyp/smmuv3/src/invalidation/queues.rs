//! The command queues, as the walk uses them.

use crate::command::{Command, opcode};
use crate::features::Features;

/// Commands that a batch holds: then they are issued, so that the SMMU can begin.
pub const BATCH_COMMANDS: usize = 64;

/// What the walk must know of an SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// Range invalidation and TTL hints (IDR3.RIL).
    pub range_invalidation: bool,
    /// An erratum: invalidations, but those of ATCs, and their CMD_SYNC must be issued twice.
    pub repeat_invalidations: bool,
    /// An erratum: what is issued must end in a CMD_SYNC, which takes the last slot of a full batch.
    pub sync_before_last_slot: bool,
}

impl Traits {
    /// Those of an SMMU with range invalidation and without errata.
    pub const PLAIN: Self =
        Self { range_invalidation: true, repeat_invalidations: false, sync_before_last_slot: false };

    /// Those of an SMMU with these features.
    pub const fn of(features: &Features) -> Self {
        Self {
            range_invalidation: features.range_invalidation,
            repeat_invalidations: features.repeat_invalidations,
            sync_before_last_slot: features.sync_before_last_slot,
        }
    }
}

/// The command queues of all SMMUs.
pub trait Queues {
    /// Names posted commands, to wait for them.
    type Ticket: Copy + Default;
    /// Why commands did not complete.
    type Fault;
    /// Commands on their way into one queue.
    type Batch<'a>: Batch<Ticket = Self::Ticket, Fault = Self::Fault>
    where
        Self: 'a;

    /// What the SMMU is like.
    fn traits(&self, smmu: usize) -> Traits;

    /// Begins a batch. Nobody else appends to the queue of that SMMU until it is closed or dropped; dropped with nothing appended, it
    /// has done nothing.
    ///
    /// # Errors
    /// The SMMU does not take commands any more.
    fn open(&self, smmu: usize) -> Result<Self::Batch<'_>, Self::Fault>;

    /// As [`Queues::open`], but only for an SMMU that is [`Traits::PLAIN`]; `None` for others.
    ///
    /// # Errors
    /// As [`Queues::open`].
    #[inline]
    fn open_plain(&self, smmu: usize) -> Result<Option<Self::Batch<'_>>, Self::Fault> {
        if self.traits(smmu) == Traits::PLAIN { self.open(smmu).map(Some) } else { Ok(None) }
    }

    /// Waits, with a bound, until the CMD_SYNC of the ticket is complete.
    ///
    /// # Errors
    /// One of the ticket's commands failed, or the SMMU did not answer in time.
    fn wait(&self, smmu: usize, ticket: Self::Ticket) -> Result<(), Self::Fault>;
}

/// Commands on their way into one queue.
pub trait Batch {
    /// See [`Queues::Ticket`].
    type Ticket;
    /// See [`Queues::Fault`].
    type Fault;

    /// Appends a command; waits, with a bound, only for room. A failure shows when the batch is closed.
    fn push(&mut self, command: Command);

    /// Appends a CMD_SYNC.
    fn sync(&mut self) {
        self.push(Command::sync());
    }

    /// Lets the SMMU begin what was appended.
    fn issue(&mut self);

    /// Appends a CMD_SYNC and lets the SMMU begin.
    ///
    /// # Errors
    /// The commands may have taken effect or not; the caller treats them as not done.
    fn close(self) -> Result<Self::Ticket, Self::Fault>;

    /// Appends a command and closes.
    ///
    /// # Errors
    /// As [`Batch::close`].
    #[inline]
    fn close_with(mut self, command: Command) -> Result<Self::Ticket, Self::Fault>
    where
        Self: Sized,
    {
        self.push(command);
        self.close()
    }
}

/// How what was appended to a batch ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing was appended.
    Empty,
    /// With a CMD_SYNC.
    Sync,
    /// With a command that no CMD_SYNC follows yet.
    Unsynced,
}

/// Appends to a batch by the rules of its SMMU.
pub(super) struct Appender<B> {
    batch: B,
    /// Commands until the batch is issued.
    room: usize,
    end: End,
    sync_before_last_slot: bool,
}

impl<B: Batch> Appender<B> {
    pub const fn new(batch: B, traits: Traits) -> Self {
        let sync_before_last_slot = traits.sync_before_last_slot;
        Self { batch, room: Self::slots(sync_before_last_slot), end: End::Empty, sync_before_last_slot }
    }

    /// Commands that are issued together, without the CMD_SYNC that must be the last of them.
    const fn slots(sync_before_last_slot: bool) -> usize {
        BATCH_COMMANDS - sync_before_last_slot as usize
    }

    pub fn is_empty(&self) -> bool {
        self.end == End::Empty
    }

    #[inline]
    pub fn push(&mut self, command: Command) {
        self.end = End::Unsynced;
        self.batch.push(command);
        self.appended();
    }

    /// Appends a CMD_SYNC between commands that must not overtake each other, unless nothing is before it.
    #[inline]
    pub fn sync(&mut self) {
        if self.end == End::Unsynced {
            self.end = End::Sync;
            self.batch.sync();
            self.appended();
        }
    }

    #[inline]
    fn appended(&mut self) {
        self.room = self.room.wrapping_sub(1);
        if self.room == 0 {
            if self.sync_before_last_slot && self.end == End::Unsynced {
                self.end = End::Sync;
                self.batch.sync();
            }
            self.batch.issue();
            self.room = Self::slots(self.sync_before_last_slot);
        }
    }

    pub fn close(self) -> Result<B::Ticket, B::Fault> {
        self.batch.close()
    }
}

/// Posts `commands`, which invalidate, and a CMD_SYNC to one SMMU, and waits for it.
///
/// # Errors
/// The fault of the queue; the commands may have taken effect or not.
#[inline]
pub fn run<Q: Queues>(queues: &Q, smmu: usize, commands: &[Command]) -> Result<(), Q::Fault> {
    let ticket = match commands {
        [command] => match queues.open_plain(smmu)? {
            Some(batch) => batch.close_with(*command)?,
            None => post_all(queues, smmu, commands)?,
        },
        _ => post_all(queues, smmu, commands)?,
    };
    queues.wait(smmu, ticket)
}

#[cold]
#[inline(never)]
fn post_all<Q: Queues>(queues: &Q, smmu: usize, commands: &[Command]) -> Result<Q::Ticket, Q::Fault> {
    let traits = queues.traits(smmu);
    let mut appender = Appender::new(queues.open(smmu)?, traits);
    if traits.repeat_invalidations {
        let to_smmu = commands.iter().filter(|command| command.opcode() != opcode::ATC_INV);
        to_smmu.for_each(|command| appender.push(*command));
        appender.sync();
    }
    commands.iter().for_each(|command| appender.push(*command));
    appender.close()
}
