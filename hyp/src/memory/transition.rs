//! The one function through which every change of ownership passes, and the two halves it is made of.
//!
//! The order is: check everything; take the table pages that will be needed; clear the CPU's and the SMMUs'
//! descriptors; CPU TLBI; TLBI and CMD_SYNC on every SMMU; wipe; map for the new owner; record. Up to the wipe
//! everything can be undone, and is when an SMMU fails.

use abi::{GuestHandle, Recipient, Status};
use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::gather::Gather;
use smmuv3::invalidation::DomainIndex;
use smmuv3::pgtable::{Attributes, NoBreak, PageTable};

use super::frame::{FrameRun, PageState};
use super::pool::{Direct, PAGE_LOG2, Reserve};
use super::{BreakHost, CPU_ORDER, Context, Failure, HOST_RAM, IoCaches, Ownership};
use crate::iommu::{HOST, memory_domain};
use crate::platform::Platform;

/// A change of ownership. Each unit of the range must be in the first state and ends in the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Host to guest.
    Donate(GuestHandle),
    /// Guest to host.
    Reclaim(GuestHandle),
    /// Host to host and shared.
    Share(Recipient),
    /// Host and shared to host.
    Unshare(Recipient),
    /// Host to hypervisor.
    TopUp,
    /// Hypervisor to host.
    GiveBack,
}

/// An owner that has page tables.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Host,
    Guest(GuestHandle),
}

impl Change {
    #[inline]
    const fn from(self) -> PageState {
        match self {
            Self::Donate(_) | Self::Share(_) | Self::TopUp => PageState::HOST,
            Self::Reclaim(guest) => PageState::guest(guest),
            Self::Unshare(with) => PageState::shared(with),
            Self::GiveBack => PageState::HYPERVISOR,
        }
    }

    #[inline]
    const fn to(self) -> PageState {
        match self {
            Self::Reclaim(_) | Self::Unshare(_) | Self::GiveBack => PageState::HOST,
            Self::Donate(guest) => PageState::guest(guest),
            Self::Share(with) => PageState::shared(with),
            Self::TopUp => PageState::HYPERVISOR,
        }
    }

    /// Whose tables lose the range.
    #[inline]
    const fn loses(self) -> Option<Space> {
        match self {
            Self::Donate(_) | Self::TopUp => Some(Space::Host),
            Self::Reclaim(guest) | Self::Unshare(Recipient::Guest(guest)) => Some(Space::Guest(guest)),
            Self::Share(_) | Self::Unshare(Recipient::Hypervisor) | Self::GiveBack => None,
        }
    }

    /// Whose tables gain the range.
    #[inline]
    const fn gains(self) -> Option<Space> {
        match self {
            Self::Reclaim(_) | Self::GiveBack => Some(Space::Host),
            Self::Donate(guest) | Self::Share(Recipient::Guest(guest)) => Some(Space::Guest(guest)),
            Self::Share(Recipient::Hypervisor) | Self::Unshare(_) | Self::TopUp => None,
        }
    }

    /// Whether the new owner must not see what the old one left.
    #[inline]
    const fn wipes(self) -> bool {
        !matches!(self, Self::Share(_) | Self::Unshare(_))
    }
}

/// The tables that one owner reaches memory through, and how.
pub(super) struct Tables {
    /// Stage 2 of its CPUs, with the attributes of what is mapped.
    pub cpu: Option<(PageTable, Attributes)>,
    /// I/O table of its domain.
    pub io: Option<(PageTable, DomainIndex)>,
}

/// Addresses of an owner, and where they lead: all in one run, at the same address but in domains that map memory as they want.
#[derive(Clone, Copy)]
pub(super) struct Mapping {
    pub input: PhysRange,
    pub output: PhysAddr,
}

impl Mapping {
    /// Every address leads to itself.
    #[inline]
    pub const fn identity(range: PhysRange) -> Self {
        Self { input: range, output: range.start() }
    }
}

/// The table pages that one change may take.
pub(super) struct Reserves<'a, P: Platform> {
    cpu: Reserve<'a, P>,
    io: Reserve<'a, P>,
    io_order: u8,
}

impl<'a, P: Platform> Reserves<'a, P> {
    /// Reserves without any tables.
    #[inline]
    pub const fn empty<I>(cx: &Context<'a, P, I>, io_order: u8) -> Self {
        Self {
            cpu: Reserve::empty(cx.platform, cx.pool, CPU_ORDER),
            io: Reserve::empty(cx.platform, cx.pool, io_order),
            io_order,
        }
    }

    /// Takes what `withdraw` from `loses` and `grant` to `gains` will need.
    ///
    /// # Errors
    /// `NoMemory` with the pages that are missing; what was taken goes back when this is dropped.
    #[inline]
    pub fn take<I>(
        &mut self,
        cx: &Context<'a, P, I>,
        loses: Option<&Tables>,
        gains: Option<&Tables>,
        mapping: Mapping,
    ) -> Result<(), Failure> {
        let (cpu, io) = Self::count(cx, loses, gains, mapping);
        if cpu | io == 0 { Ok(()) } else { self.take_count(cx, cpu, io) }
    }

    #[inline(always)]
    fn count<I>(
        cx: &Context<'a, P, I>,
        loses: Option<&Tables>,
        gains: Option<&Tables>,
        mapping: Mapping,
    ) -> (usize, usize) {
        let p = cx.platform;
        let Mapping { input: range, output } = mapping;
        let mut cpu = 0;
        let mut io = 0;
        if let Some(tables) = loses {
            cpu += tables.cpu.as_ref().map_or(0, |(table, _)| table.tables_for_unmap(p, range));
            io += tables.io.as_ref().map_or(0, |(table, _)| table.tables_for_unmap(p, range));
        }
        if let Some(tables) = gains {
            cpu += tables.cpu.as_ref().map_or(0, |(table, _)| table.tables_for_map(p, range, output));
            io += tables.io.as_ref().map_or(0, |(table, _)| table.tables_for_map(p, range, output));
        }
        (cpu, io)
    }

    /// For a top up that [`Self::take`] refused: takes what is kept for it too.
    ///
    /// # Errors
    /// As [`Self::take`].
    #[cold]
    fn take_kept<I>(
        &mut self,
        cx: &Context<'a, P, I>,
        loses: Option<&Tables>,
        range: PhysRange,
    ) -> Result<(), Failure> {
        let (cpu, io) = Self::count(cx, loses, None, Mapping::identity(range));
        let taken = self.cpu.take_kept(cpu).and_then(|()| self.io.take_kept(io));
        taken.map_err(|_| {
            self.release();
            let needed = ((cpu as u64) << CPU_ORDER) + ((io as u64) << self.io_order);
            let there = cx.pool.state().free.saturating_add(cx.pool.kept());
            Failure { status: Status::NoMemory, detail: needed.saturating_sub(there).max(1) }
        })
    }

    #[cold]
    fn take_count<I>(&mut self, cx: &Context<'a, P, I>, cpu: usize, io: usize) -> Result<(), Failure> {
        let taken = self.cpu.take(cpu).and_then(|()| self.io.take(io));
        taken.map_err(|_| {
            self.release();
            let needed = ((cpu as u64) << CPU_ORDER) + ((io as u64) << self.io_order);
            cx.no_memory(needed)
        })
    }
}

impl<P: Platform> Reserves<'_, P> {
    /// Gives what is left back to the pool.
    fn release(&mut self) {
        self.cpu.release();
        self.io.release();
    }
}

/// What came of a mapping that could not be taken away.
pub(super) enum Kept {
    /// Nothing has changed.
    Restored(Failure),
    /// The old mapping could not be restored: nobody has it.
    Lost,
}

impl Ownership {
    /// Changes who owns or shares `run`, which is one step: what [`Self::step`] answered, or a run of the pool.
    ///
    /// # Errors
    /// * `UnknownGuest`: the guest does not exist. Nothing has changed, as with all but `Hardware`.
    /// * `WrongState`: a unit is not in the state that the change starts from.
    /// * `NoMemory`: the pool has not enough pages for tables.
    /// * `Busy`: the machine is being reset or turned off, or the guest is being taken apart.
    /// * `Hardware`: an SMMU failed. The old state is restored, or the range is quarantined and counted; or, without a table for either, the host
    ///   keeps its pages, which count as shared while the guest's table lacks them, until an `Unshare` succeeds.
    #[inline]
    pub fn change<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        change: Change,
        run: &FrameRun,
    ) -> Result<(), Failure> {
        self.change_of(cx, change, run, false)
    }

    /// [`Self::change`], also of a guest that is being taken apart if `also_ending`.
    #[inline(never)]
    pub(super) fn change_of<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        change: Change,
        run: &FrameRun,
        also_ending: bool,
    ) -> Result<(), Failure> {
        if self.ending {
            return Err(Status::Busy.into());
        }
        let p = cx.platform;
        let range = run.range();
        let loses = self.tables(change.loses(), also_ending)?;
        let gains = self.tables(change.gains(), also_ending)?;
        if !self.frames.all(p, run, change.from()) {
            return Err(Status::WrongState.into());
        }
        let mut reserves = Reserves::empty(cx, self.io_order);
        if let Err(failure) = reserves.take(cx, loses.as_ref(), gains.as_ref(), Mapping::identity(range)) {
            // With an empty pool nothing else could fill it again.
            if !matches!(change, Change::TopUp) {
                return Err(failure);
            }
            reserves.take_kept(cx, loses.as_ref(), range)?;
        }

        if let Some(tables) = &loses {
            match self.withdraw(cx, tables, Mapping::identity(range), &mut reserves) {
                Ok(()) => {}
                Err(Kept::Restored(failure)) => return Err(failure),
                Err(Kept::Lost) => return Err(self.quarantine(cx, change, run)),
            }
        }
        if change.wipes() {
            p.wipe(range);
        }
        if let Some(tables) = &gains
            && !self.grant(cx, tables, Mapping::identity(range), &mut reserves)
        {
            return Err(self.quarantine(cx, change, run));
        }
        self.frames.fill(p, run, change.to());
        if let Some(Space::Guest(guest)) = change.loses() {
            self.guests.lost(guest, run.units());
        }
        if let Some(Space::Guest(guest)) = change.gains() {
            self.guests.gained(guest, run.units());
        }
        p.full_barrier();
        Ok(())
    }

    fn tables(&self, space: Option<Space>, also_ending: bool) -> Result<Option<Tables>, Status> {
        Ok(match space {
            None => None,
            Some(Space::Host) => Some(Tables { cpu: Some((self.cpu, HOST_RAM)), io: Some((self.io, HOST)) }),
            Some(Space::Guest(guest)) => {
                let table = *self.guests.usable(guest, also_ending)?;
                Some(Tables { cpu: None, io: Some((table, memory_domain(guest))) })
            }
        })
    }

    /// Takes a mapping, all of which `tables` have, away from its owner: when this returns `Ok`, no CPU and no device
    /// reaches it through these tables or through a cache. The only place where a mapping ends.
    pub(super) fn withdraw<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        tables: &Tables,
        mapping: Mapping,
        reserves: &mut Reserves<'_, P>,
    ) -> Result<(), Kept> {
        let p = cx.platform;
        let range = mapping.input;
        let mut cpu_gather = Gather::new();
        if let Some((cpu, _)) = &tables.cpu
            && !self.unmap_for_cpus(p, cpu, range, &mut reserves.cpu, &mut cpu_gather)
        {
            return Err(Kept::Restored(Status::NoMemory.into()));
        }
        let mut gather = Gather::new();
        let mut cleared = true;
        if let Some((io, domain)) = &tables.io {
            let left = reserves.io.left();
            cleared = io.unmap(p, &mut reserves.io, &mut NoBreak, range, &mut gather).is_ok();
            self.count_io_tables(*domain, (left - reserves.io.left()) as u64);
            if cleared && self.has_half_ended_shares {
                // Perhaps of this range, or of a part of it: what was unmapped just now does not say.
                gather.add_structural(range.start().0, range.size_bytes());
            }
        }
        if tables.cpu.is_some() {
            // Of any level, so the emptied tables are out of use too.
            p.invalidate_host_stage2(range);
            self.give_freed(cx, CPU_ORDER, HOST, &mut cpu_gather);
        }
        if let Some((_, domain)) = &tables.io {
            if !cleared || cx.caches.forget(*domain, &gather).is_err() {
                return Err(self.restore(cx, tables, mapping, gather, reserves));
            }
            self.give_freed(cx, self.io_order, *domain, &mut gather);
        }
        Ok(())
    }

    /// Makes a mapping, no part of which `tables` have, for its new owner; `false`, and then nothing is mapped, when a
    /// table did not allow it.
    pub(super) fn grant<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        tables: &Tables,
        mapping: Mapping,
        reserves: &mut Reserves<'_, P>,
    ) -> bool {
        let p = cx.platform;
        let Mapping { input: range, output } = mapping;
        if let Some((cpu, attributes)) = &tables.cpu
            && !self.map_for_cpus(p, cpu, mapping, *attributes, &mut reserves.cpu)
        {
            return false;
        }
        if let Some((io, domain)) = &tables.io {
            let mut gather = Gather::new();
            let left = reserves.io.left();
            let attributes = Attributes::io_stage2_normal();
            if io
                .map(p, &mut reserves.io, &mut NoBreak, range, output, attributes, true, &mut gather)
                .is_err()
            {
                if tables.cpu.is_some() {
                    self.drop_from_cpu(cx, range);
                }
                return false;
            }
            self.count_io_tables(*domain, (left - reserves.io.left()) as u64);
            // Leaves were joined. All that caches hold of them is still right, but for the tables that are free now.
            if !gather.is_empty() {
                self.retire_tables(cx, *domain, gather);
            }
        }
        true
    }

    /// Puts back what [`Self::withdraw`] took, after an SMMU did not forget it.
    ///
    /// The SMMU that failed has recovered or is turned off by now, so the invalidation is tried once more: not to go on,
    /// but because the tables that were emptied can be used again if it succeeds.
    #[cold]
    fn restore<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        tables: &Tables,
        mapping: Mapping,
        gather: Gather,
        reserves: &mut Reserves<'_, P>,
    ) -> Kept {
        let p = cx.platform;
        let Mapping { input: range, output } = mapping;
        reserves.release();
        let mut again = Gather::new();
        if let Some((io, domain)) = &tables.io {
            // Nothing gathered: the table was refused before it changed, and still maps the range.
            if !gather.is_empty() {
                self.retire_tables(cx, *domain, gather);
                let mut pages = Direct::undoing(p, cx.pool, self.io_order);
                let attributes = Attributes::io_stage2_normal();
                let result =
                    io.map(p, &mut pages, &mut NoBreak, range, output, attributes, false, &mut again);
                self.count_io_tables(*domain, pages.taken);
                if result.is_err() {
                    return Kept::Lost;
                }
            }
        }
        if let Some((cpu, attributes)) = &tables.cpu {
            let mut pages = Direct::undoing(p, cx.pool, CPU_ORDER);
            let result =
                cpu.map(p, &mut pages, &mut BreakHost(p), range, output, *attributes, false, &mut again);
            self.host_table_pages += pages.taken;
            if result.is_err() {
                self.drop_from_io(cx, tables, range);
                return Kept::Lost;
            }
        }
        Kept::Restored(Status::Hardware.into())
    }

    /// Takes away what was just mapped again in the I/O table, whose leaves end where the range does.
    #[cold]
    fn drop_from_io<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        tables: &Tables,
        range: PhysRange,
    ) {
        if let Some((io, domain)) = &tables.io {
            let mut gather = Gather::new();
            let mut pages = Direct::new(cx.platform, cx.pool, self.io_order);
            let _ = io.unmap(cx.platform, &mut pages, &mut NoBreak, range, &mut gather);
            self.count_io_tables(*domain, pages.taken);
            self.retire_tables(cx, *domain, gather);
        }
    }

    /// Invalidates, and gives the freed tables of `gather` back. If an SMMU does not forget them even on a second try
    /// they are never used again.
    #[cold]
    fn retire_tables<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        domain: DomainIndex,
        mut gather: Gather,
    ) {
        let forgotten =
            cx.caches.forget(domain, &gather).or_else(|_| cx.caches.forget(domain, &gather)).is_ok();
        if forgotten {
            self.give_freed(cx, self.io_order, domain, &mut gather);
            return;
        }
        while gather.take_freed(cx.platform).is_some() {
            self.quarantined_pages += 1 << self.io_order;
        }
    }

    /// Nobody gets the run. It is unmapped from the losing owner already, and not mapped for the new one.
    #[cold]
    fn quarantine<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        change: Change,
        run: &FrameRun,
    ) -> Failure {
        // A share that the guest could not be given leaves the host's pages as they were.
        if matches!(change, Change::Share(_)) {
            return Status::Hardware.into();
        }
        // A share that could not be ended: a device of the guest may still reach the host's own page.
        if matches!(change, Change::Unshare(_)) && !self.take_from_host(cx, run.range()) {
            // Without a table for a split the host keeps the page, still shared.
            self.has_half_ended_shares = true;
            return Status::Hardware.into();
        }
        if let Some(Space::Guest(guest)) = change.loses() {
            self.guests.lost(guest, run.units());
        }
        self.frames.fill(cx.platform, run, PageState::NOBODY);
        self.quarantined_pages += run.range().size_bytes() >> PAGE_LOG2;
        cx.platform.full_barrier();
        Status::Hardware.into()
    }

    /// Takes pages of the host's own away from its CPUs and devices. `false`, and nothing is changed, if there is no table for a split.
    #[cold]
    fn take_from_host<P: Platform, I: IoCaches>(&mut self, cx: &Context<'_, P, I>, range: PhysRange) -> bool {
        if !self.drop_from_cpu(cx, range) {
            return false;
        }
        let mut gather = Gather::new();
        let mut pages = Direct::new(cx.platform, cx.pool, self.io_order);
        let unmapped = self.io.unmap(cx.platform, &mut pages, &mut NoBreak, range, &mut gather).is_ok();
        self.count_io_tables(HOST, pages.taken);
        if unmapped {
            self.retire_tables(cx, HOST, gather);
            return true;
        }
        // The table that the CPUs' leaf was in is there, or was given back just now.
        let mut pages = Direct::undoing(cx.platform, cx.pool, CPU_ORDER);
        let stage2 = &mut BreakHost(cx.platform);
        let _ =
            self.cpu.map(cx.platform, &mut pages, stage2, range, range.start(), HOST_RAM, false, &mut gather);
        self.host_table_pages = self.host_table_pages.saturating_add(pages.taken);
        false
    }

    /// Takes a range away from the host's CPUs. `false`, and nothing is changed, if there is no table for a split.
    #[cold]
    fn drop_from_cpu<P: Platform, I: IoCaches>(&mut self, cx: &Context<'_, P, I>, range: PhysRange) -> bool {
        let mut gather = Gather::new();
        let mut pages = Direct::new(cx.platform, cx.pool, CPU_ORDER);
        let unmapped =
            self.cpu.unmap(cx.platform, &mut pages, &mut BreakHost(cx.platform), range, &mut gather).is_ok();
        self.host_table_pages += pages.taken;
        cx.platform.invalidate_host_stage2(range);
        self.give_freed(cx, CPU_ORDER, HOST, &mut gather);
        unmapped
    }

    /// Unmaps a range in a stage 2 of CPUs, whose TLBs know it still, and counts tables for splits; `false`, and then nothing has changed, if the
    /// reserve has too few.
    #[inline]
    pub(super) fn unmap_for_cpus<P: Platform>(
        &mut self,
        p: &P,
        cpu: &PageTable,
        range: PhysRange,
        reserve: &mut Reserve<'_, P>,
        gather: &mut Gather,
    ) -> bool {
        let left = reserve.left();
        if cpu.unmap(p, reserve, &mut BreakHost(p), range, gather).is_err() {
            return false;
        }
        self.host_table_pages += (left - reserve.left()) as u64;
        true
    }

    /// Makes a mapping in a stage 2 of CPUs that has no part of it, and counts tables that are new, and those that a join gave back; `false`, and
    /// then nothing has changed, when a table did not allow it.
    #[inline]
    pub(super) fn map_for_cpus<P: Platform>(
        &mut self,
        p: &P,
        cpu: &PageTable,
        Mapping { input, output }: Mapping,
        attributes: Attributes,
        reserve: &mut Reserve<'_, P>,
    ) -> bool {
        let (left, given) = (reserve.left(), reserve.given);
        let mut gather = Gather::new();
        if cpu.map(p, reserve, &mut BreakHost(p), input, output, attributes, true, &mut gather).is_err() {
            return false;
        }
        self.host_table_pages += (left - reserve.left()) as u64;
        self.host_table_pages = self.host_table_pages.saturating_sub(reserve.given - given);
        true
    }

    /// Gives the tables back that no cache holds any more.
    #[inline]
    fn give_freed<P: Platform, I>(
        &mut self,
        cx: &Context<'_, P, I>,
        order: u8,
        domain: DomainIndex,
        gather: &mut Gather,
    ) {
        while let Some(table) = gather.take_freed(cx.platform) {
            cx.pool.give(cx.platform, table, order);
            let pages = self.table_pages_of(domain);
            *pages = pages.saturating_sub(1 << order);
        }
    }

    #[inline]
    fn table_pages_of(&mut self, domain: DomainIndex) -> &mut u64 {
        if domain == HOST { &mut self.host_table_pages } else { &mut self.guest_table_pages }
    }

    #[inline]
    pub(super) fn count_io_tables(&mut self, domain: DomainIndex, tables: u64) {
        *self.table_pages_of(domain) += tables << self.io_order;
    }
}
