//! The SMMUs of the machine: bring-up, queues, stream tables and errors.
//!
//! [`abort_all`] comes before anything else. Then [`Set::probe`] reads what the SMMUs can do, [`Set::start`]
//! turns them on with every stream parked, and from then on the set is shared: each queue has a lock of its
//! own, held for one post or one look at it. The lock of an event queue is taken before that of the ring, and that before the one of the
//! events of an SMMU's driver; with the lock of a command queue held no other is taken.

mod command_queue;
mod device;
mod event_queue;
#[cfg(test)]
pub(crate) mod fake;
mod global_error;
#[cfg(feature = "oracle")]
mod oracle;
mod readers;
mod registers;
mod stream_table;
#[cfg(test)]
mod tests;
mod vmids;

use core::fmt;

use smmuv3::address::PhysAddr;
use smmuv3::features::{CommonFormat, Features, Part, Unusable};
use smmuv3::invalidation::{MAX_SMMUS, Queues, Traits};
use smmuv3::pgtable::Geometry;
use smmuv3::ste::{Ats, STE_BYTES, StreamTableEntry};

pub use command_queue::{Condition, Fault, OpenQueue, Ticket};
pub use event_queue::{DrainedEvent, NoEvent, RING_ENTRIES, RecordedEvent};
pub use registers::{NoAcknowledge, Registers, TIMEOUT_NS};

pub use vmids::{VMID_BITS, VmidOwner};

use crate::platform::Platform;
use crate::sync::Mutex;
pub(crate) use device::Smmu;
use event_queue::EventRing;
use readers::Reader;

/// The VMID, on every SMMU, of the streams that nobody attached. No domain has it.
pub const PARKED_VMID: u16 = 1;

/// Events that one call to [`Set::drain_events`] moves at most, from all SMMUs together.
const DRAIN_BUDGET: usize = RING_ENTRIES;

/// How often a queue is drained that is to be found empty: events may come while it is.
const DRAINS: usize = 2;

/// Where structures of SMMUs and domains are allocated.
pub trait Pages {
    /// A run of `4096 << order` bytes, aligned to its size, not cleared, the hypervisor's; `None` when there
    /// is none.
    fn take_run(&mut self, order: u8) -> Option<PhysAddr>;

    /// Takes a run back that [`Pages::take_run`] gave, with the same order.
    fn give_run(&mut self, run: PhysAddr, order: u8);
}

/// The smallest order whose run holds `bytes`.
pub(crate) const fn order_of(bytes: u64) -> u8 {
    bytes.div_ceil(4096).next_power_of_two().trailing_zeros() as u8
}

/// Why the SMMUs cannot be owned. As a text it is a sentence that names the SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartError {
    /// Start of the registers of the SMMU; `None` when the reason is none of a single SMMU.
    pub base: Option<PhysAddr>,
    /// What is wrong.
    pub cause: Cause,
}

/// What is wrong with an SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A feature is missing.
    Unusable(Unusable),
    /// A register did not acknowledge an update in time.
    NoAcknowledge(NoAcknowledge),
    /// Its command queue failed.
    Commands,
    /// The page pool has not enough memory.
    NoMemory,
    /// More SMMUs than [`MAX_SMMUS`].
    TooMany,
    /// The SMMUs have no granule in common.
    NoCommonGranule,
}

impl From<NoAcknowledge> for Cause {
    fn from(error: NoAcknowledge) -> Self {
        Self::NoAcknowledge(error)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(unusable) => fmt::Display::fmt(unusable, f),
            Self::NoAcknowledge(NoAcknowledge { offset }) => {
                write!(
                    f,
                    "its register at offset {offset:#x} did not acknowledge an update in {TIMEOUT_NS} ns"
                )
            }
            Self::Commands => f.write_str("its command queue failed"),
            Self::NoMemory => f.write_str("there is no memory for its stream table and queues"),
            Self::TooMany => write!(f, "there are more than {MAX_SMMUS} of them"),
            Self::NoCommonGranule => f.write_str("they have no translation granule in common"),
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.base {
            Some(base) => write!(f, "the SMMU at {base} cannot be owned: {}", self.cause),
            None => write!(f, "the SMMUs cannot be owned: {}", self.cause),
        }
    }
}

impl core::error::Error for StartError {}

/// Makes every SMMU abort every transaction: GBPA.ABORT, and SMMUEN = 0 where firmware left it set. To be
/// called before anything else, for all SMMUs of the machine.
///
/// # Errors
/// An SMMU does not acknowledge; the ones after it are made to abort all the same.
pub fn abort_all<P: Platform>(p: &P, bases: impl Iterator<Item = PhysAddr>) -> Result<(), StartError> {
    let mut outcome = Ok(());
    for base in bases {
        let registers = Registers::new(base);
        let aborted = registers.abort_all(p).and_then(|()| registers.set_cr0(p, 0));
        outcome = outcome.and(
            aborted.map_err(|error| StartError { base: Some(base), cause: Cause::NoAcknowledge(error) }),
        );
    }
    outcome
}

/// What an SMMU is, for `SMMU_DESCRIBE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Start of its registers.
    pub base: PhysAddr,
    /// Width in bits of the StreamIDs that can be attached.
    pub stream_bits: u8,
    /// How it stands.
    pub condition: Condition,
}

/// Counters over all SMMUs since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commands posted, CMD_SYNC included.
    pub commands: u64,
    /// CMD_SYNC commands posted.
    pub syncs: u64,
    /// Events read from the hardware queues.
    pub events: u64,
    /// Events lost in hardware or because the ring was full.
    pub events_lost: u64,
    /// GERROR conditions acknowledged.
    pub global_errors: u64,
    /// SMMUs that were shut down.
    pub dead: u64,
}

/// All SMMUs of the machine. Their indexes are the order in which [`Set::probe`] saw them.
pub struct Set {
    smmus: [Smmu; MAX_SMMUS],
    count: usize,
    /// The STE of a stream that nobody attached.
    parked: StreamTableEntry,
    ring: Mutex<EventRing>,
}

impl Default for Set {
    fn default() -> Self {
        Self::new()
    }
}

impl Set {
    /// A set without SMMUs.
    pub const fn new() -> Self {
        Self {
            smmus: [const { Smmu::none() }; MAX_SMMUS],
            count: 0,
            parked: StreamTableEntry::ABORT,
            ring: Mutex::new(EventRing::new()),
        }
    }

    /// Reads what the SMMUs can do, each with the part that it is if that matters, and answers the page-table format that all of them can walk.
    /// [`abort_all`] was called for them.
    ///
    /// # Errors
    /// An SMMU cannot be owned, or they have no granule in common.
    pub fn probe<P: Platform>(
        &mut self,
        p: &P,
        smmus: impl Iterator<Item = (PhysAddr, Option<Part>)>,
    ) -> Result<CommonFormat, StartError> {
        for (base, part) in smmus {
            let error = |cause| StartError { base: Some(base), cause };
            let place = self.smmus.get_mut(self.count).ok_or(error(Cause::TooMany))?;
            *place = Smmu::probe(p, base, part).map_err(error)?;
            self.count += 1;
        }
        CommonFormat::of(self.features()).ok_or(StartError { base: None, cause: Cause::NoCommonGranule })
    }

    /// Brings every SMMU up with every stream parked: from here on they translate. `geometry` is that of all domains' page tables.
    ///
    /// # Errors
    /// An SMMU cannot be brought up, which leaves it and those after it aborting every transaction. Memory
    /// that was taken is not given back: the machine does not start.
    pub fn start<P: Platform>(
        &mut self,
        p: &P,
        geometry: &Geometry,
        pages: &mut impl Pages,
    ) -> Result<(), StartError> {
        let error = |base, cause| StartError { base, cause };
        let no_memory = error(None, Cause::NoMemory);
        let root = pages.take_run(order_of(geometry.root_bytes())).ok_or(no_memory)?;
        for offset in (0..geometry.root_bytes()).step_by(8) {
            p.write_u64(root.offset(offset), 0);
        }
        self.parked = StreamTableEntry::stage2(geometry, root, PARKED_VMID, Ats::Off);
        let smmus = self.smmus.get_mut(..self.count).unwrap_or_default();
        let mut parked_level2 = PhysAddr(0);
        if let Some(split) = smmus.iter().filter_map(|smmu| smmu.shape().split).max() {
            parked_level2 = pages.take_run(order_of(STE_BYTES << split)).ok_or(no_memory)?;
            stream_table::fill(p, parked_level2, 1 << split, &self.parked);
        }
        for smmu in smmus {
            smmu.start(p, pages, &self.parked, parked_level2)
                .map_err(|cause| error(Some(smmu.base()), cause))?;
        }
        Ok(())
    }

    /// How many SMMUs there are.
    #[inline]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The features of each SMMU.
    pub fn features(&self) -> impl Iterator<Item = &Features> {
        self.iter().map(|smmu| &smmu.features)
    }

    /// What an SMMU is; `None` if there is none with this index.
    pub fn describe(&self, index: usize) -> Option<Description> {
        let smmu = self.get(index)?;
        Some(Description { base: smmu.base(), stream_bits: smmu.stream_bits(), condition: smmu.condition() })
    }

    /// The command queues, for [`smmuv3::invalidation::invalidate`].
    #[inline]
    pub const fn queues<'a, P: Platform>(&'a self, p: &'a P) -> CommandQueues<'a, P> {
        CommandQueues { p, set: self }
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&Smmu> {
        if index < self.count { self.smmus.get(index) } else { None }
    }

    fn iter(&self) -> impl Iterator<Item = &Smmu> {
        self.smmus.iter().take(self.count)
    }

    pub(crate) const fn parked(&self) -> &StreamTableEntry {
        &self.parked
    }

    /// Moves events from the hardware queues to the ring, a bounded number of each SMMU, and looks after
    /// global errors. Events of streams that are attached to a guest are counted, not kept.
    pub fn drain_events<P: Platform>(&self, p: &P) {
        let share = (DRAIN_BUDGET / self.count.max(1)) as u64;
        for (index, smmu) in (0u8..).zip(self.iter()) {
            self.drain_smmu(p, index, smmu, share);
        }
    }

    /// As [`Set::drain_events`], but all events of one SMMU. Answers how many there were: for as long as it is not 0 there may be more, for
    /// which the SMMU does not interrupt.
    pub(crate) fn drain_events_of<P: Platform>(&self, p: &P, index: usize) -> u64 {
        match (self.get(index), u8::try_from(index)) {
            (Some(smmu), Ok(index)) => self.drain_smmu(p, index, smmu, 1 << event_queue::LOG2_ENTRIES),
            _ => 0,
        }
    }

    fn drain_smmu<P: Platform>(&self, p: &P, index: u8, smmu: &Smmu, budget: u64) -> u64 {
        let drained = {
            let (mut events, mut ring, mut driver) =
                (smmu.events.lock(), self.ring.lock(), smmu.driver_events.lock());
            let drained = events.drain(p, budget, |record| {
                let event = record.decode();
                match smmu.reader_of(p, event.stream) {
                    Reader::Nobody => {}
                    Reader::Caller => ring.push(RecordedEvent::new(index, &event)),
                    Reader::Driver { parked } => driver.push(p, record, parked),
                }
            });
            ring.drained = ring.drained.wrapping_add(drained.events);
            if drained.overflowed {
                ring.lost = ring.lost.wrapping_add(1);
                driver.lose();
            }
            drained.events
        };
        self.look_after(p, smmu);
        drained
    }

    /// Acknowledges the global errors of an SMMU and does what they ask for. Events that it could not write are lost to whoever reads them.
    pub(crate) fn look_after_errors<P: Platform>(&self, p: &P, index: usize) {
        if let Some(smmu) = self.get(index) {
            self.look_after(p, smmu);
        }
    }

    fn look_after<P: Platform>(&self, p: &P, smmu: &Smmu) {
        let mut commands = smmu.commands.lock();
        if commands.condition == Condition::Running {
            commands.handle_global_errors(p);
        }
        let aborted = core::mem::take(&mut commands.events_aborted);
        drop(commands);
        if aborted != 0 {
            let (mut ring, mut driver) = (self.ring.lock(), smmu.driver_events.lock());
            ring.lost = ring.lost.wrapping_add(aborted);
            driver.lose();
        }
    }

    /// Drains the queue of an SMMU until it was found empty, so that the SMMU interrupts for the next event; false if it never was. Bounded.
    pub(crate) fn empty_event_queue<P: Platform>(&self, p: &P, index: usize) -> bool {
        (0..DRAINS).any(|_| self.drain_events_of(p, index) == 0)
    }

    /// The oldest event of an SMMU that the host's driver may see; those in the hardware queue are looked for.
    ///
    /// # Errors
    /// There is none: [`NoEvent`].
    pub(crate) fn take_driver_event<P: Platform>(
        &self,
        p: &P,
        index: usize,
    ) -> Result<DrainedEvent, NoEvent> {
        let smmu = self.get(index).ok_or(NoEvent::QueueEmpty)?;
        let take = || smmu.driver_events.lock().take(p);
        for _ in 0..DRAINS {
            if let Some(record) = take() {
                return Ok(record);
            }
            if self.drain_events_of(p, index) == 0 {
                // Another CPU may have drained it just before.
                return take().ok_or(NoEvent::QueueEmpty);
            }
        }
        take().ok_or(NoEvent::MayBeMore)
    }

    /// Discards the events that the host's driver might have seen. False if there may be more for which the SMMU does not interrupt.
    pub(crate) fn discard_driver_events<P: Platform>(&self, p: &P, index: usize) -> bool {
        let is_empty = self.empty_event_queue(p, index);
        if let Some(smmu) = self.get(index) {
            smmu.driver_events.lock().discard();
        }
        is_empty
    }

    /// Whether events that the host's driver might have seen were lost since the last call.
    pub(crate) fn take_driver_overflow(&self, index: usize) -> bool {
        self.get(index).is_some_and(|smmu| smmu.driver_events.lock().take_overflow())
    }

    /// Turns an SMMU that is on off for good: every transaction aborts.
    #[cold]
    pub(crate) fn shut_down<P: Platform>(&self, p: &P, index: usize) {
        if let Some(smmu) = self.get(index) {
            let mut commands = smmu.commands.lock();
            if commands.condition == Condition::Running {
                commands.shut_down(p);
            }
        }
    }

    /// Takes the oldest event out of the ring, and how many were lost since the last call that took one.
    pub fn take_event(&self) -> Option<(RecordedEvent, u64)> {
        self.ring.lock().take()
    }

    /// The counters.
    pub fn counters(&self) -> Counters {
        let mut sum = {
            let ring = self.ring.lock();
            Counters { events: ring.drained, events_lost: ring.lost, ..Counters::default() }
        };
        for smmu in self.iter() {
            let commands = smmu.commands.lock();
            sum.commands = sum.commands.wrapping_add(commands.produced);
            sum.syncs = sum.syncs.wrapping_add(commands.syncs);
            sum.events_lost = sum.events_lost.wrapping_add(commands.events_aborted);
            sum.global_errors = sum.global_errors.wrapping_add(commands.global_errors);
            let gone = matches!(commands.condition, Condition::Dead | Condition::Lost);
            sum.dead = sum.dead.wrapping_add(u64::from(gone));
        }
        sum
    }
}

/// The command queues of a [`Set`] on a platform. That of a place without an SMMU is off.
pub struct CommandQueues<'a, P: Platform> {
    p: &'a P,
    set: &'a Set,
}

impl<P: Platform> Queues for CommandQueues<'_, P> {
    type Ticket = Ticket;
    type Fault = Fault;
    type Batch<'a>
        = OpenQueue<'a, P>
    where
        Self: 'a;

    #[inline]
    fn traits(&self, smmu: usize) -> Traits {
        // One that is not there cannot be opened.
        self.set.smmus.get(smmu).map_or(Traits::PLAIN, Smmu::traits)
    }

    #[inline]
    fn open(&self, smmu: usize) -> Result<OpenQueue<'_, P>, Fault> {
        self.set.smmus.get(smmu).ok_or(Fault)?.open(self.p)
    }

    #[inline]
    fn open_plain(&self, smmu: usize) -> Result<Option<OpenQueue<'_, P>>, Fault> {
        self.set.smmus.get(smmu).ok_or(Fault)?.open_plain(self.p)
    }

    #[inline]
    fn wait(&self, smmu: usize, ticket: Ticket) -> Result<(), Fault> {
        self.set.smmus.get(smmu).ok_or(Fault)?.wait(self.p, ticket, || self.set.drain_events(self.p))
    }
}
