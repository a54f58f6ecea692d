//! The invalidation module: which caches a change to a domain's page table must reach, and how it reaches them.
//!
//! A domain owns one [`InvalidationArray`]. Attach and detach edit it, one at a time; everybody who changes the page
//! table walks it with [`invalidate`], at any time and without waiting for them. The order that makes this safe:
//!
//! * whoever takes a translation away stores the descriptors, passes a full barrier, and then loads the array;
//! * whoever attaches a stream merges its tag into the array, passes a full barrier, and then stores the STE.
//!
//! So either the walk sees the tag, or the SMMU that uses it sees the new descriptors.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::command::Command;
use crate::gather::Gather;
use crate::memory::Memory;
use crate::pgtable::Granule;
use crate::range::Ranges;

/// Most SMMUs of a machine, and so most tags of a domain.
pub const MAX_SMMUS: usize = 64;

/// A tag of stage-2 translations: a VMID on one SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Index of the SMMU, below [`MAX_SMMUS`].
    pub smmu: usize,
    /// VMID; 0 stays reserved for bypass.
    pub vmid: u16,
}

/// What became of a tag when one of its users left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unref {
    /// Other streams of the domain use it still.
    Remaining,
    /// Nobody uses it any more: flush it, then free it.
    Last,
}

/// An edit named a tag that the array does not hold, or that another tag's place would have to be taken for. A bug
/// of the caller; nothing is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagMismatch;

/// The tags under which a domain's translations may be cached, one per SMMU.
///
/// Readers take no lock. Each entry is one 64-bit atomic, VMID in bits 47:32 and users in bits 31:0, so a reader sees
/// it whole; an entry without users is skipped. Edits are made by one caller at a time, who holds the attach lock.
#[derive(Debug)]
pub struct InvalidationArray {
    entries: [AtomicU64; MAX_SMMUS],
    /// 1 + the index of the last entry with users.
    length: AtomicUsize,
}

const fn pack(vmid: u16, users: u32) -> u64 {
    (vmid as u64) << 32 | users as u64
}

const fn unpack(entry: u64) -> (u16, u32) {
    ((entry >> 32) as u16, entry as u32)
}

impl Default for InvalidationArray {
    fn default() -> Self {
        Self::new()
    }
}

impl InvalidationArray {
    /// An array without tags.
    pub const fn new() -> Self {
        Self { entries: [const { AtomicU64::new(0) }; MAX_SMMUS], length: AtomicUsize::new(0) }
    }

    /// Adds one user of a tag. The caller passes a full barrier before it lets hardware use the tag.
    ///
    /// # Errors
    /// [`TagMismatch`] when the SMMU does not exist or has users under another VMID; nothing is changed.
    pub fn merge(&self, tag: Tag) -> Result<(), TagMismatch> {
        let entry = self.entries.get(tag.smmu).ok_or(TagMismatch)?;
        let (vmid, users) = unpack(entry.load(Ordering::Relaxed));
        if users != 0 && vmid != tag.vmid {
            return Err(TagMismatch);
        }
        entry.store(pack(tag.vmid, users.checked_add(1).ok_or(TagMismatch)?), Ordering::Release);
        self.length.fetch_max(tag.smmu + 1, Ordering::Release);
        Ok(())
    }

    /// Takes one user of a tag away. On [`Unref::Last`] the walk no longer reaches the tag: the caller flushes it
    /// before it is used for anything else.
    ///
    /// # Errors
    /// [`TagMismatch`] when the tag has no users; nothing is changed.
    pub fn unref(&self, tag: Tag) -> Result<Unref, TagMismatch> {
        let entry = self.entries.get(tag.smmu).ok_or(TagMismatch)?;
        let (vmid, users) = unpack(entry.load(Ordering::Relaxed));
        if users == 0 || vmid != tag.vmid {
            return Err(TagMismatch);
        }
        entry.store(pack(vmid, users - 1), Ordering::Release);
        if users > 1 {
            return Ok(Unref::Remaining);
        }
        let live = |entry: &AtomicU64| unpack(entry.load(Ordering::Relaxed)).1 != 0;
        let length = self.entries.iter().rposition(live).map_or(0, |last| last + 1);
        self.length.store(length, Ordering::Release);
        Ok(Unref::Last)
    }

    /// The tag that the domain has on an SMMU, and its users.
    pub fn find(&self, smmu: usize) -> Option<(Tag, u32)> {
        let (vmid, users) = unpack(self.entries.get(smmu)?.load(Ordering::Acquire));
        (users != 0).then_some((Tag { smmu, vmid }, users))
    }

    /// Whether no stream uses the domain.
    pub fn is_idle(&self) -> bool {
        self.length.load(Ordering::Acquire) == 0
    }
}

/// The command queues of all SMMUs.
pub trait Queues {
    /// Names posted commands, to wait for them.
    type Ticket: Copy + Default;
    /// Why commands did not complete.
    type Fault;

    /// Whether the SMMU has range invalidation (IDR3.RIL).
    fn range_invalidation(&self, smmu: usize) -> bool;

    /// Appends `commands` and a CMD_SYNC to the queue of an SMMU and lets it consume them; waits, with a bound, only
    /// for room in the queue.
    ///
    /// # Errors
    /// The commands may have taken effect or not; the caller treats them as not done.
    fn post(&self, smmu: usize, commands: impl Iterator<Item = Command>)
    -> Result<Self::Ticket, Self::Fault>;

    /// Waits, with a bound, until the CMD_SYNC of the ticket is complete.
    ///
    /// # Errors
    /// One of the ticket's commands failed, or the SMMU did not answer in time.
    fn wait(&self, smmu: usize, ticket: Self::Ticket) -> Result<(), Self::Fault>;
}

/// The caches of an SMMU may still hold what was to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidationFailed<F> {
    /// Index of the first SMMU that failed.
    pub smmu: usize,
    /// What it said.
    pub fault: F,
}

/// Makes every cache under the array's tags forget what `gather` collected, and returns when they have.
///
/// The commands and the CMD_SYNC of every SMMU are posted before any is waited for, so the time is that of the slowest
/// SMMU. The descriptors are stored before the call; the barrier that orders them before the load of the array and
/// before the commands is in here.
///
/// # Errors
/// [`InvalidationFailed`] for the first SMMU that failed, after all others were waited for. What was gathered may
/// still be cached there.
pub fn invalidate<Q: Queues>(
    queues: &Q,
    memory: &impl Memory,
    array: &InvalidationArray,
    gather: &Gather,
    granule: Granule,
) -> Result<(), InvalidationFailed<Q::Fault>> {
    memory.full_barrier();
    if gather.is_empty() {
        return Ok(());
    }
    let length = array.length.load(Ordering::Acquire).min(MAX_SMMUS);
    let entries = array.entries.get(..length).unwrap_or(&[]);
    match length {
        0 => Ok(()),
        // Room for few tickets is made sooner.
        1..=4 => walk::<Q, 4>(queues, entries, gather, granule),
        _ => walk::<Q, MAX_SMMUS>(queues, entries, gather, granule),
    }
}

/// [`invalidate`] for the `entries` of the first SMMUs, `N` at most. A tag that a concurrent attach adds behind them needs no
/// invalidation: its SMMU was not let into the table before the barrier of the caller.
fn walk<Q: Queues, const N: usize>(
    queues: &Q,
    entries: &[AtomicU64],
    gather: &Gather,
    granule: Granule,
) -> Result<(), InvalidationFailed<Q::Fault>> {
    let mut tickets = [Q::Ticket::default(); N];
    let mut posted = 0u64;
    let mut outcome = Ok(());
    let ranges = Ranges::new(gather, granule);
    for ((smmu, entry), place) in entries.iter().enumerate().zip(&mut tickets) {
        let (vmid, users) = unpack(entry.load(Ordering::Acquire));
        if users == 0 {
            continue;
        }
        let result = if queues.range_invalidation(smmu) {
            queues.post(smmu, ranges.map(|range| Command::tlbi_s2_ipa(vmid, range)))
        } else {
            match Ranges::one_by_one(gather, granule) {
                Some(leaves) => queues.post(smmu, leaves.map(|range| Command::tlbi_s2_ipa(vmid, range))),
                None => queues.post(smmu, core::iter::once(Command::tlbi_s12_vmall(vmid))),
            }
        };
        match result {
            Ok(ticket) => {
                *place = ticket;
                posted |= 1 << smmu;
            }
            Err(fault) => outcome = outcome.and(Err(InvalidationFailed { smmu, fault })),
        }
    }
    for (smmu, ticket) in tickets.iter().enumerate() {
        if posted >> smmu == 0 {
            break;
        }
        if posted >> smmu & 1 == 1
            && let Err(fault) = queues.wait(smmu, *ticket)
        {
            outcome = outcome.and(Err(InvalidationFailed { smmu, fault }));
        }
    }
    outcome
}

#[cfg(test)]
mod tests;
