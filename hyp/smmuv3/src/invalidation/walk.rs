//! The walk: from "this range of a domain changed" to commands for each SMMU.

use super::MAX_SMMUS;
use super::array::{Cell, ENTRY_BYTES, Entries};
use super::entry::{Detail, Key, atc_inv, flush, kind};
use super::queues::{Appender, Batch, Queues, Traits};
use super::readers::{DomainIndex, Readers};
use crate::address::PhysAddr;
use crate::command::{ATC_INV_EVERYTHING, Command};
use crate::gather::Gather;
use crate::memory::Memory;
use crate::pgtable::Granule;
use crate::range::Ranges;

/// The caches of an SMMU, or of a device behind it, may still hold what was to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidationFailed<F> {
    /// Index of the first SMMU that failed.
    pub smmu: usize,
    /// What it said.
    pub fault: F,
}

/// A domain as one of its readers sees it.
#[derive(Clone, Copy, Debug)]
pub struct Domain<'a> {
    /// Who reads.
    pub readers: &'a Readers,
    /// Which CPU this is.
    pub cpu: u16,
    /// The domain's name among readers.
    pub index: DomainIndex,
    /// Where its array is.
    pub array: Cell,
}

/// Makes every cache that may hold translations of the domain forget what `gather` collected, and returns when they have.
///
/// The commands and the last CMD_SYNC of every SMMU are posted before any is waited for, so the time is that of the slowest
/// SMMU. The descriptors are stored before the call; the barrier that orders them before the load of the array and
/// before the commands is in here. Waits for nobody who attaches or detaches.
///
/// On one SMMU: the IOTLB; then, when that is done, what stage 1 was combined with and the context descriptors of nested streams, which
/// would be made from it again; then ATCs, which the IOTLB would fill again.
///
/// # Errors
/// [`InvalidationFailed`] for the first SMMU that failed, after all others were waited for: one that did not take its commands
/// comes before one that did not complete them. What was gathered may still be cached there.
pub fn invalidate<Q: Queues, M: Memory>(
    queues: &Q,
    memory: &M,
    domain: &Domain<'_>,
    gather: &Gather,
) -> Result<(), InvalidationFailed<Q::Fault>> {
    if gather.is_empty() {
        memory.full_barrier();
        return Ok(());
    }
    domain.readers.enter(memory, domain.cpu, domain.index);
    // The descriptors, and the word that says who reads, before the array.
    memory.full_barrier();
    let result = match domain.array.load(memory) {
        None => Ok(()),
        Some(array) => {
            let entries = array.entries(memory);
            // Room for few tickets is made sooner.
            match entries.end.0.wrapping_sub(entries.first.0) / ENTRY_BYTES {
                0 => Ok(()),
                1..=4 => walk::<Q, M, 4>(queues, memory, entries, gather),
                _ => walk::<Q, M, MAX_SMMUS>(queues, memory, entries, gather),
            }
        }
    };
    domain.readers.leave(memory, domain.cpu);
    result
}

/// [`invalidate`] for these entries, which are of `N` SMMUs at most.
fn walk<Q: Queues, M: Memory, const N: usize>(
    queues: &Q,
    memory: &M,
    entries: Entries,
    gather: &Gather,
) -> Result<(), InvalidationFailed<Q::Fault>> {
    let (mut smmus, mut tickets) = ([0u8; N], [Q::Ticket::default(); N]);
    let mut places = smmus.iter_mut().zip(&mut tickets);
    let mut posted = 0usize;
    let mut outcome = Ok(());
    let mut sized = Sized::new(gather);
    let mut at = entries.first;
    while at != entries.end {
        let first = at;
        let [key, detail] = memory.read_pair(first);
        let (key, detail) = (Key(key), Detail(detail));
        if detail.users() == 0 {
            at = skip_trash(memory, first.offset(ENTRY_BYTES), entries.end);
            continue;
        }
        let smmu = key.smmu();
        let next = first.offset(ENTRY_BYTES);
        let is_alone = next == entries.end || Key(memory.read_u64(next)).smmu() != smmu;
        let posted_one =
            if is_alone { post_one(queues, smmu, only(key, detail, &mut sized)) } else { Ok(None) };
        let (end, result) = match posted_one {
            Ok(None) => post(queues, memory, smmu, Entries { first, ..entries }, &mut sized),
            done => (next, done),
        };
        at = end;
        match result {
            Ok(None) => {}
            Ok(Some(ticket)) => match places.next() {
                Some(place) => {
                    (*place.0, *place.1) = (smmu as u8, ticket);
                    posted = posted.wrapping_add(1);
                }
                // More SMMUs than a machine has. A ticket is never dropped: what it names is not done yet.
                None => {
                    outcome = outcome
                        .and(queues.wait(smmu, ticket).map_err(|fault| InvalidationFailed { smmu, fault }));
                }
            },
            Err(fault) => outcome = outcome.and(Err(InvalidationFailed { smmu, fault })),
        }
    }
    for (smmu, ticket) in smmus.iter().zip(&tickets).take(posted) {
        let smmu = usize::from(*smmu);
        if let Err(fault) = queues.wait(smmu, *ticket) {
            outcome = outcome.and(Err(InvalidationFailed { smmu, fault }));
        }
    }
    outcome
}

/// The command that is all that an entry takes which is the only one of its SMMU: nearly all that there are.
#[inline]
fn only(key: Key, detail: Detail, sized: &mut Sized<'_>) -> Option<Command> {
    if key.kind() > kind::S2_VMID || detail.hears_broadcast() {
        return None;
    }
    sized.only(detail.page_log2()).map(|command| tagged(command, key.operand(), detail))
}

/// Posts one command to an SMMU that needs no more care; `None` if it does, or there is none.
#[inline(always)]
fn post_one<Q: Queues>(
    queues: &Q,
    smmu: usize,
    command: Option<Command>,
) -> Result<Option<Q::Ticket>, Q::Fault> {
    let Some(command) = command else { return Ok(None) };
    let Some(batch) = queues.open_plain(smmu)? else { return Ok(None) };
    batch.close_with(command).map(Some)
}

/// The first entry with users in `at..end`, or `end`.
#[inline]
fn skip_trash<M: Memory>(memory: &M, at: PhysAddr, end: PhysAddr) -> PhysAddr {
    let is_trash = |at: PhysAddr| Detail(memory.read_u64(at.offset(8))).users() == 0;
    let mut at = at;
    // Trash comes in runs, or hardly at all.
    while end.0.wrapping_sub(at.0) >= 4 * ENTRY_BYTES {
        for _ in 0..4 {
            if !is_trash(at) {
                return at;
            }
            at = at.offset(ENTRY_BYTES);
        }
    }
    while at != end && is_trash(at) {
        at = at.offset(ENTRY_BYTES);
    }
    at
}

/// Posts what the entries of one SMMU ask for, the first of which lives. Where the next SMMU's begin, and the ticket, if anything was posted.
#[inline(never)]
#[allow(clippy::type_complexity)]
fn post<Q: Queues, M: Memory>(
    queues: &Q,
    memory: &M,
    smmu: usize,
    entries: Entries,
    sized: &mut Sized<'_>,
) -> (PhysAddr, Result<Option<Q::Ticket>, Q::Fault>) {
    let traits = queues.traits(smmu);
    let batch = match queues.open(smmu) {
        Ok(batch) => batch,
        Err(fault) => {
            return (entries.lower_bound(memory, entries.first, Key::last(smmu, kind::LAST)), Err(fault));
        }
    };
    let mut appender = Appender::new(batch, traits);
    // Twice, if it must be, and the second time for ATCs as well. One call, so that it is inlined.
    let mut to_devices = !traits.repeat_invalidations;
    loop {
        let end = append(memory, smmu, &entries, sized, traits, to_devices, &mut appender);
        if to_devices {
            let is_empty = appender.is_empty();
            return (end, if is_empty { Ok(None) } else { appender.close().map(Some) });
        }
        appender.sync();
        to_devices = true;
    }
}

/// Entries that live, in order.
struct Live<'a, M> {
    memory: &'a M,
    at: PhysAddr,
    end: PhysAddr,
}

impl<M: Memory> Live<'_, M> {
    /// The next entry, unless its key is above `last`.
    #[inline]
    fn next(&mut self, last: Key) -> Option<(Key, Detail)> {
        while self.at != self.end {
            let detail = Detail(self.memory.read_u64(self.at.offset(8)));
            if detail.users() == 0 {
                self.at = skip_trash(self.memory, self.at.offset(ENTRY_BYTES), self.end);
                continue;
            }
            let key = Key(self.memory.read_u64(self.at));
            if key > last {
                break;
            }
            self.at = self.at.offset(ENTRY_BYTES);
            return Some((key, detail));
        }
        None
    }
}

/// Appends the commands for the entries of one SMMU, which begin at `entries.first`, those for ATCs if `to_devices`; where they end.
#[inline]
fn append<M: Memory, B: Batch>(
    memory: &M,
    smmu: usize,
    entries: &Entries,
    sized: &mut Sized<'_>,
    traits: Traits,
    to_devices: bool,
    appender: &mut Appender<B>,
) -> PhysAddr {
    let mut live = Live { memory, at: entries.first, end: entries.end };
    let lives = |kind, key: Key| {
        entries.find_live(memory, entries.first, Key::of(smmu as u8, kind, key.id(), 0)).is_some()
    };
    // A loop for each kind: what they differ in is not asked of every entry.
    while let Some((key, detail)) = live.next(Key::last(smmu, kind::S1_ASID)) {
        // The one place where broadcast invalidation is relied on.
        if !detail.hears_broadcast() || sized.gather.is_everything() {
            sized.append(key, detail, key.asid(), traits, appender);
        }
    }
    while let Some((key, detail)) = live.next(Key::last(smmu, kind::S2_VMID)) {
        sized.append(key, detail, key.vmid_or_stream(), traits, appender);
    }
    while let Some((key, detail)) = live.next(Key::last(smmu, kind::S2_VMID_VSMMU)) {
        if lives(kind::S2_VMID_S1_CLEAR, key) {
            // One command and no CMD_SYNC in between, instead of TLBI_S2_IPA, CMD_SYNC, TLBI_NH_ALL: both leave
            // nothing of stage 1, and what this takes of stage 2 besides costs a walk for each page that is used again.
            appender.push(flush(key, detail));
        } else {
            sized.append(key, detail, key.vmid_or_stream(), traits, appender);
        }
    }
    let mut is_first = true;
    while let Some((key, detail)) = live.next(Key::last(smmu, kind::NESTED_CDS)) {
        if key.kind() == kind::S2_VMID_S1_CLEAR && lives(kind::S2_VMID_VSMMU, key) {
            continue;
        }
        if is_first {
            appender.sync();
            is_first = false;
        }
        appender.push(flush(key, detail));
    }
    if to_devices && let Some((key, _)) = live.next(Key::last(smmu, kind::ATS_FULL)) {
        appender.sync();
        let (range, everything) = (atc_range(sized.gather), u64::from(ATC_INV_EVERYTHING));
        let range_of = |key: Key| if key.kind() == kind::ATS { range } else { everything };
        appender.push(atc_inv(key, range_of(key)));
        while let Some((key, _)) = live.next(Key::last(smmu, kind::ATS)) {
            appender.push(atc_inv(key, range));
        }
        while let Some((key, _)) = live.next(Key::last(smmu, kind::LAST)) {
            appender.push(atc_inv(key, everything));
        }
    }
    live.at
}

/// What a change becomes, without the tags and streams: made once for all entries that agree on it.
struct Sized<'a> {
    gather: &'a Gather,
    /// log2 of the page that the commands are for; 0 before they are made.
    page_log2: u8,
    /// With range invalidation, one command is all that a tag takes: `first`.
    is_one: bool,
    first: Command,
    /// What `first` and the others are made from; empty where the whole tag goes.
    ranges: Ranges,
}

impl<'a> Sized<'a> {
    const fn new(gather: &'a Gather) -> Self {
        Self { gather, page_log2: 0, is_one: false, first: Command([0; 2]), ranges: Ranges::NONE }
    }

    /// The command that is all that a tag takes on an SMMU with range invalidation; `None` if it takes more.
    #[inline]
    fn only(&mut self, page_log2: u8) -> Option<Command> {
        if self.page_log2 != page_log2 {
            self.make(page_log2);
        }
        if self.is_one { Some(self.first) } else { None }
    }

    /// Appends the sized commands for a tag, or the unsized one where that is better.
    /// `tag` is where word 0 has it.
    #[inline]
    fn append<B: Batch>(
        &mut self,
        key: Key,
        detail: Detail,
        tag: u64,
        traits: Traits,
        appender: &mut Appender<B>,
    ) {
        // By far the most changes are one command, and the most SMMUs have range invalidation.
        match self.only(detail.page_log2()) {
            Some(first) if traits.range_invalidation => appender.push(tagged(first, tag, detail)),
            _ => self.append_others(key, detail, tag, traits, appender),
        }
    }

    #[inline(never)]
    fn append_others<B: Batch>(
        &self,
        key: Key,
        detail: Detail,
        tag: u64,
        traits: Traits,
        appender: &mut Appender<B>,
    ) {
        let ranges = if traits.range_invalidation {
            Some(self.ranges).filter(|ranges| !ranges.is_empty())
        } else {
            self.granule(detail.page_log2()).and_then(|granule| Ranges::one_by_one(self.gather, granule))
        };
        match ranges {
            Some(ranges) => ranges.for_each(|range| appender.push(tagged(range.fields(), tag, detail))),
            None => appender.push(flush(key, detail)),
        }
    }

    fn granule(&self, page_log2: u8) -> Option<Granule> {
        if self.gather.is_everything() { None } else { Granule::from_log2(page_log2) }
    }

    #[inline(never)]
    fn make(&mut self, page_log2: u8) {
        self.page_log2 = page_log2;
        let Some(granule) = self.granule(page_log2) else { return };
        self.ranges = Ranges::new(self.gather, granule);
        let mut rest = self.ranges;
        if let Some(first) = rest.next() {
            (self.first, self.is_one) = (first.fields(), rest.is_empty());
        }
    }
}

/// A `TLBI` by address for the tag of an entry.
#[inline]
const fn tagged(Command([low, high]): Command, tag: u64, detail: Detail) -> Command {
    Command([low | detail.sized() | tag, high])
}

/// Word 1 of the ATC invalidation that covers a change (4.5.1): the smallest naturally aligned power of two.
const fn atc_range(gather: &Gather) -> u64 {
    let (first, last) = (gather.first() >> 12, gather.last() >> 12);
    let size = u64::BITS - (first ^ last).leading_zeros();
    if size < ATC_INV_EVERYTHING as u32 {
        first >> size << (size + 12) | size as u64
    } else {
        ATC_INV_EVERYTHING as u64
    }
}
