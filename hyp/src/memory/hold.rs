//! Device pages that are out of the host's stage 2 while a stream belongs to a guest.

use abi::Status;
use smmuv3::address::PhysRange;

use super::host_stage2::{MAX_ABSENT, for_each_gap};
use super::pool::PAGE_LOG2;
use super::transition::{Kept, Reserves, Tables};
use super::{Context, Failure, HOST_DEVICE, IoCaches, Ownership};
use crate::list::List;
use crate::platform::Platform;

/// The most ranges that are held at once.
const MAX_HELD: usize = 128;

/// The ranges that one attached stream holds: a bit for each place in the table of held ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldSet(u128);

impl HeldSet {
    /// Nothing held.
    pub const EMPTY: Self = Self(0);

    fn contains(self, index: usize) -> bool {
        self.0 >> (index % MAX_HELD) & 1 == 1
    }
}

#[derive(Clone, Copy)]
struct Held {
    range: PhysRange,
    /// Streams that hold it; a range without any is free.
    users: u32,
}

/// The table of held ranges, and what the host never had.
pub(super) struct Holds {
    absent: List<PhysRange, MAX_ABSENT>,
    held: [Option<Held>; MAX_HELD],
}

impl Holds {
    pub const fn new() -> Self {
        Self { absent: List::new(), held: [None; MAX_HELD] }
    }

    /// Says what the host never has.
    pub fn keep(&mut self, absent: &List<PhysRange, MAX_ABSENT>) {
        self.absent = *absent;
    }

    fn ranges(&self) -> impl Iterator<Item = &PhysRange> {
        self.held.iter().flatten().map(|held| &held.range)
    }

    /// Ranges that stay out of the host's stage 2 when `set` is released, apart from what the host never had.
    fn remaining(&self, set: HeldSet) -> impl Iterator<Item = &PhysRange> {
        let stays = move |(index, held): (usize, &'_ Option<Held>)| {
            held.as_ref().is_some_and(|held| held.users > u32::from(set.contains(index)))
        };
        let entries = self.held.iter().enumerate();
        entries
            .filter(move |(index, held)| stays((*index, held)))
            .filter_map(|(_, h)| h.as_ref().map(|h| &h.range))
    }
}

impl Ownership {
    fn device_tables(&self) -> Tables {
        Tables { cpu: Some((self.cpu, HOST_DEVICE)), io: None }
    }

    /// Takes a device range out of the host's stage 2 and adds it to `set`, unless the set has it already. It may
    /// overlap ranges that are held. When this returns `Ok`, no CPU of the host reaches any byte of it.
    ///
    /// # Errors
    /// `Busy` when a byte of it is RAM, is the hypervisor's or is outside the host's address space, or the machine
    /// ends; `NoSpace` when too many ranges are held; `NoMemory`. Nothing is changed.
    pub fn hold<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        range: PhysRange,
        set: &mut HeldSet,
    ) -> Result<(), Failure> {
        let page_mask = (1 << PAGE_LOG2) - 1;
        let start = smmuv3::address::PhysAddr(range.start().0 & !page_mask);
        let last = smmuv3::address::PhysAddr(range.last().0 | page_mask);
        let range = PhysRange::inclusive(start, last).ok_or(Status::Busy)?;
        let above = last.0 >> self.cpu.geometry().ia_bits() != 0;
        let forbidden = self.holds.absent.iter().any(|absent| absent.overlaps(range));
        if self.ending || above || forbidden || self.frames.overlaps_ram(range) {
            return Err(Status::Busy.into());
        }
        let known = self.holds.held.iter().position(|held| held.is_some_and(|held| held.range == range));
        if let Some(index) = known {
            if !set.contains(index) {
                if let Some(Some(held)) = self.holds.held.get_mut(index) {
                    held.users = held.users.saturating_add(1);
                }
                set.0 |= 1 << index;
            }
            return Ok(());
        }
        let free = self.holds.held.iter().position(Option::is_none).ok_or(Status::NoSpace)?;
        let tables = self.device_tables();
        // Parts that are held already are not mapped, and are skipped.
        let mut reserves = Reserves::empty(cx, self.io_order);
        reserves.take(cx, Some(&tables), None, range)?;
        if let Err(Kept::Restored(failure)) = self.withdraw(cx, &tables, range, &mut reserves) {
            return Err(failure);
        }
        if let Some(slot) = self.holds.held.get_mut(free) {
            *slot = Some(Held { range, users: 1 });
        }
        set.0 |= 1 << free;
        Ok(())
    }

    /// How many table pages [`Self::release`] of this set needs now, at most.
    ///
    /// # Errors
    /// `NoMemory` when the pool has less; nothing is changed either way.
    pub fn can_release<P: Platform, I>(&self, cx: &Context<'_, P, I>, set: HeldSet) -> Result<(), Failure> {
        let mut needed = 0u64;
        for (_, held) in self.holds.held.iter().enumerate().filter(|(index, _)| set.contains(*index)) {
            let Some(held) = held else { continue };
            let _ = for_each_gap(
                held.range,
                || self.holds.remaining(set),
                |gap| {
                    needed += self.cpu.tables_for_map(cx.platform, gap, gap.start()) as u64;
                    Ok::<(), ()>(())
                },
            );
        }
        match needed.saturating_sub(cx.pool.state().free) {
            0 => Ok(()),
            missing_pages => Err(Failure { status: Status::NoMemory, missing_pages }),
        }
    }

    /// Gives the host back what only this set holds, and empties the set. No stream needs it any more.
    ///
    /// A part for which the pool has no table page stays out of the host's stage 2, and is tried again at the next
    /// release; whether there was none.
    pub fn release<P: Platform, I: IoCaches>(&mut self, cx: &Context<'_, P, I>, set: &mut HeldSet) -> bool {
        for (index, slot) in self.holds.held.iter_mut().enumerate() {
            if let Some(held) = slot.as_mut().filter(|_| set.contains(index)) {
                held.users = held.users.saturating_sub(1);
            }
        }
        *set = HeldSet::EMPTY;
        let tables = self.device_tables();
        let mut complete = true;
        for index in 0..MAX_HELD {
            let Some(Some(held)) = self.holds.held.get(index).copied() else { continue };
            if held.users > 0 {
                continue;
            }
            // The other unused ranges are still in the table and count as held, so no part is mapped twice.
            let mut gaps = List::<PhysRange, MAX_HELD>::new();
            let others = || self.holds.ranges().filter(|other| **other != held.range);
            let _ = for_each_gap(held.range, others, |gap| gaps.push(gap));
            let done = gaps.iter().all(|gap| {
                // A part that an earlier, incomplete try has mapped is skipped.
                if self.cpu.lookup(cx.platform, gap.start().0).is_some() {
                    return true;
                }
                let mut reserves = Reserves::empty(cx, self.io_order);
                reserves.take(cx, None, Some(&tables), *gap).is_ok()
                    && self.grant(cx, &tables, *gap, &mut reserves)
            });
            if let Some(slot) = self.holds.held.get_mut(index).filter(|_| done) {
                *slot = None;
            }
            complete &= done;
        }
        complete
    }
}
