//! Device pages that are out of the host's stage 2 while a stream belongs to a guest.

use abi::Status;
use smmuv3::address::PhysRange;
use smmuv3::gather::Gather;

use super::host_stage2::{MAX_ABSENT, for_each_gap};
use super::pool::{PAGE_LOG2, Reserve};
use super::transition::Mapping;
use super::{Context, Failure, HOST_DEVICE, Ownership};
use crate::list::{Full, List};
use crate::platform::Platform;

/// The most ranges that are held at once: every bridge of the machine, a BAR of each, and eight for each of some 20 functions.
const MAX_HELD: usize = 256;
/// The most other ranges that one overlaps, so that giving it back is bounded.
const MAX_OVERLAPS: usize = 8;

/// What is left of a range without those that overlap it.
type Gaps = List<PhysRange, { MAX_OVERLAPS + 1 }>;

/// The ranges that one attached stream holds: a bit for each place in the table of held ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldSet([u64; MAX_HELD / 64]);

impl HeldSet {
    /// Nothing held.
    pub const EMPTY: Self = Self([0; MAX_HELD / 64]);

    fn contains(self, index: usize) -> bool {
        self.0.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    fn insert(&mut self, index: usize) {
        if let Some(word) = self.0.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }
}

#[derive(Clone, Copy)]
struct Held {
    range: PhysRange,
    /// Streams that hold it. A range without any is on its way back to the host, for lack of table pages: it may
    /// not be taken for withdrawn.
    users: u32,
}

/// The table of held ranges, and what the host never had.
pub(super) struct Holds {
    pub absent: List<PhysRange, MAX_ABSENT>,
    held: [Option<Held>; MAX_HELD],
    /// No place from here on is taken: the table is mostly short.
    end: usize,
}

impl Holds {
    pub const fn new() -> Self {
        Self { absent: List::new(), held: [None; MAX_HELD], end: 0 }
    }

    /// The ranges in the table and their places.
    fn held(&self) -> impl Iterator<Item = (usize, &Held)> {
        (0..self.end).zip(&self.held).filter_map(|(index, held)| Some((index, held.as_ref()?)))
    }

    /// The first place that is free.
    fn free(&self) -> Option<usize> {
        self.held.iter().position(Option::is_none)
    }

    fn get(&self, index: usize) -> Option<&Held> {
        self.held.get(index)?.as_ref()
    }

    fn put(&mut self, index: usize, held: Option<Held>) {
        if let Some(place) = self.held.get_mut(index) {
            *place = held;
            self.end = self.end.max(index + 1);
        }
        while self.end > 0 && self.get(self.end - 1).is_none() {
            self.end -= 1;
        }
    }

    /// Says what the host never has.
    pub fn keep(&mut self, absent: &List<PhysRange, MAX_ABSENT>) {
        self.absent = *absent;
    }

    /// What is out of the host's stage 2: what it never had, and what is held; without `in_use_only` also what is on its way back.
    #[cfg(feature = "oracle")]
    pub fn away(&self, in_use_only: bool) -> impl Iterator<Item = &PhysRange> {
        let held = self.held().filter(move |(_, held)| held.users > 0 || !in_use_only);
        self.absent.iter().chain(held.map(|(_, held)| &held.range))
    }

    /// The other ranges that overlap this one and are `wanted`.
    ///
    /// # Errors
    /// [`Full`] when there are more than [`MAX_OVERLAPS`].
    fn overlapping(
        &self,
        range: PhysRange,
        wanted: impl Fn(usize, &Held) -> bool,
    ) -> Result<List<PhysRange, MAX_OVERLAPS>, Full> {
        let mut found = List::new();
        for (index, held) in self.held() {
            if held.range.overlaps(range) && held.range != range && wanted(index, held) {
                found.push(held.range)?;
            }
        }
        Ok(found)
    }

    /// The parts of a range that none of those that overlap it and are `wanted` has, in ascending order.
    ///
    /// # Errors
    /// As [`Self::overlapping`].
    fn gaps(&self, range: PhysRange, wanted: impl Fn(usize, &Held) -> bool) -> Result<Gaps, Full> {
        let others = self.overlapping(range, wanted)?;
        let mut gaps = List::new();
        for_each_gap(range, || others.iter(), |gap| gaps.push(gap))?;
        Ok(gaps)
    }

    /// Whether one more range leaves every range with at most [`MAX_OVERLAPS`] that it overlaps.
    fn has_room_at(&self, range: PhysRange) -> bool {
        self.overlapping(range, |_, _| true).is_ok_and(|near| {
            near.iter().all(|other| {
                self.overlapping(*other, |_, _| true).is_ok_and(|list| list.len() < list.capacity())
            })
        })
    }
}

impl Ownership {
    /// Takes a device range out of the host's stage 2 and adds it to `set`, unless the set has it already. It may
    /// overlap ranges that are held. When this returns `Ok`, no CPU of the host reaches any byte of it. Tables that are
    /// empty then go to `spare`: they are what giving it back needs. If it was on its way back, what that lacked is taken from the pool too.
    ///
    /// # Errors
    /// `Busy` when a byte of it is RAM, is the hypervisor's or is outside the host's address space, or the machine
    /// ends; `NoSpace` when too many ranges are held, or too many overlap; `NoMemory`. Nothing is changed.
    pub fn hold<P: Platform, I>(
        &mut self,
        cx: &Context<'_, P, I>,
        range: PhysRange,
        set: &mut HeldSet,
        spare: &mut Reserve<'_, P>,
    ) -> Result<(), Failure> {
        let page_mask = (1 << PAGE_LOG2) - 1;
        let start = smmuv3::address::PhysAddr(range.start().0 & !page_mask);
        let last = smmuv3::address::PhysAddr(range.last().0 | page_mask);
        let range = PhysRange::inclusive(start, last).ok_or(Status::Busy)?;
        if self.ending {
            return Err(Status::Busy.into());
        }
        let known = self.holds.held().find(|(_, held)| held.range == range).map(|(index, _)| index);
        // Most calls: a second stream holds the same bridges.
        if let Some(index) = known
            && let Some(Some(held)) = self.holds.held.get_mut(index)
            && held.users > 0
        {
            if !set.contains(index) {
                held.users = held.users.saturating_add(1);
                set.insert(index);
            }
            return Ok(());
        }
        let above = last.0 >> self.cpu.geometry().ia_bits() != 0;
        let forbidden = self.holds.absent.iter().any(|absent| absent.overlaps(range));
        if above || forbidden || self.frames.overlaps_ram(range) {
            return Err(Status::Busy.into());
        }
        let index = match known {
            Some(index) => index,
            None if !self.holds.has_room_at(range) => return Err(Status::NoSpace.into()),
            None => self.holds.free().ok_or(Status::NoSpace)?,
        };
        if known.is_some() {
            // It was not whole, so what its way back lacks comes from no table that is emptied now.
            let others = |index, _: &Held| !set.contains(index);
            let gaps = self.holds.gaps(range, others).map_err(|_| Status::NoSpace)?;
            let needed = self.tables_for(cx.platform, &gaps);
            spare.take(spare.left().saturating_add(needed)).map_err(|_| cx.no_memory(needed as u64))?;
        }
        self.withdraw_devices(cx, range, spare)?;
        self.holds.put(index, Some(Held { range, users: 1 }));
        set.insert(index);
        Ok(())
    }

    /// Unmaps a range from the CPUs' stage 2; parts that are held already are not mapped, and are skipped. Tables that are empty go to `spare`.
    ///
    /// # Errors
    /// `NoMemory`; nothing is changed.
    fn withdraw_devices<P: Platform, I>(
        &mut self,
        cx: &Context<'_, P, I>,
        range: PhysRange,
        spare: &mut Reserve<'_, P>,
    ) -> Result<(), Failure> {
        let p = cx.platform;
        let mut reserve = cx.spare();
        let needed = self.cpu.tables_for_unmap(p, range);
        cx.fill(&mut reserve, needed)?;
        let (cpu, mut gather) = (self.cpu, Gather::new());
        if !self.unmap_for_cpus(p, &cpu, range, &mut reserve, &mut gather) {
            return Err(Status::NoMemory.into());
        }
        p.invalidate_host_stage2(range);
        while let Some(table) = gather.take_freed(p) {
            spare.push(table);
            self.host_table_pages = self.host_table_pages.saturating_sub(1);
        }
        Ok(())
    }

    /// Takes the table pages that [`Self::release`] of this set needs now, at most, to `spare`.
    ///
    /// # Errors
    /// `NoMemory` when the pool has less; nothing is changed.
    pub fn reserve_release<P: Platform, I>(
        &self,
        cx: &Context<'_, P, I>,
        set: HeldSet,
        spare: &mut Reserve<'_, P>,
    ) -> Result<(), Failure> {
        // What stays out of the host's stage 2 when the set is released, or may stay because it is on its way back already.
        let stays = |index, held: &Held| !set.contains(index) || held.users > 1;
        let mut needed = 0;
        for (_, held) in
            self.holds.held().filter(|(index, held)| set.contains(*index) && !stays(*index, held))
        {
            let gaps = self.holds.gaps(held.range, stays).map_err(|_| Status::NoSpace)?;
            needed += self.tables_for(cx.platform, &gaps);
        }
        cx.fill(spare, needed)
    }

    /// Gives the host back what only this set holds, and empties the set. No stream needs it any more. Table pages come from `spare` first.
    ///
    /// A range for which neither has enough table pages stays out of the host's stage 2 as a whole, and is tried
    /// again at the next release; whether there was none. With what [`Self::hold`] or [`Self::reserve_release`] has put there it is only one for
    /// which others, that changed what lies beside it meanwhile, have left no table and no page of the pool.
    pub fn release<P: Platform, I>(
        &mut self,
        cx: &Context<'_, P, I>,
        set: &mut HeldSet,
        spare: &mut Reserve<'_, P>,
    ) -> bool {
        for (index, slot) in (0..self.holds.end).zip(&mut self.holds.held) {
            if let Some(held) = slot.as_mut().filter(|_| set.contains(index)) {
                held.users = held.users.saturating_sub(1);
            }
        }
        let own = core::mem::replace(set, HeldSet::EMPTY);
        // Its own before those that are on their way back for longer.
        for is_own in [true, false] {
            // From the last, so that the table becomes shorter.
            for index in (0..self.holds.end).rev() {
                let free = self.holds.get(index).filter(|held| held.users == 0);
                let Some(held) = free.filter(|_| own.contains(index) == is_own).copied() else { continue };
                if self.unhold(cx, held.range, spare) {
                    self.holds.put(index, None);
                }
            }
        }
        self.holds.held().all(|(_, held)| held.users > 0)
    }

    /// Tables that mapping these parts in the CPUs' stage 2 needs: one that several of them are mapped in counts once.
    fn tables_for<P: Platform>(&self, p: &P, gaps: &Gaps) -> usize {
        let geometry = self.cpu.geometry();
        let mut needed = 0usize;
        let mut before: Option<PhysRange> = None;
        for gap in gaps.iter() {
            needed += self.cpu.tables_for_map(p, *gap, gap.start());
            let first = PhysRange::new(gap.start(), 1 << PAGE_LOG2);
            if let (Some(before), Some(first)) = (before.replace(*gap), first) {
                // Of the tables on the way to its first page, from the last level up, those that the part before has made.
                let lacking = self.cpu.tables_for_map(p, first, first.start());
                let levels = [2, 1, 0].into_iter().take(lacking).map(|level| geometry.level_shift(level));
                let made = levels.filter(|shift| before.last().0 >> shift == first.start().0 >> shift);
                needed = needed.saturating_sub(made.count());
            }
        }
        needed
    }

    /// Maps what no other held range has of this one, all of it or nothing; whether it did.
    fn unhold<P: Platform, I>(
        &mut self,
        cx: &Context<'_, P, I>,
        range: PhysRange,
        spare: &mut Reserve<'_, P>,
    ) -> bool {
        // The other unused ranges are still in the table and count as held, so no part is mapped twice.
        let Ok(gaps) = self.holds.gaps(range, |_, _| true) else { return false };
        // The tables of all parts before the first is mapped.
        if spare.take(self.tables_for(cx.platform, &gaps)).is_err() {
            return false;
        }
        let cpu = self.cpu;
        let mut map = |gap: &&PhysRange| {
            self.map_for_cpus(cx.platform, &cpu, Mapping::identity(**gap), HOST_DEVICE, spare)
        };
        let mapped = gaps.iter().take_while(&mut map).count();
        if mapped < gaps.len() {
            for gap in gaps.iter().take(mapped) {
                // Without table pages it stays mapped, for the next hold to withdraw.
                let _ = self.withdraw_devices(cx, *gap, spare);
            }
        }
        mapped == gaps.len()
    }
}
