//! Domains that map memory of a guest where they want: each has an I/O page table of its own, made of pages that the guest owns.
//!
//! A page may be mapped several times, in several domains. The frame table counts that, and a page that is mapped is not
//! in the state that a reclaim starts from: no owner loses a page that a domain of the old owner still has.

use abi::{DomainHandle, GuestHandle, ObjectHandle, Status};
use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::invalidation::DomainIndex;
use smmuv3::pgtable::{Blocks, Leaf, PageTable};

use super::frame::{FrameRun, SearchOf};
use super::transition::{Kept, Mapping, Reserves, Tables};
use super::{Change, Context, Failure, IoCaches, Ownership, Progress};
use crate::platform::Platform;

/// Domains that calls make at most.
const MAX: usize = (DomainHandle::MAX - DomainHandle::FIRST_CREATED) as usize;

#[derive(Clone, Copy)]
pub(super) struct GuestDomain {
    pub guest: GuestHandle,
    /// What callers name it by; `None` while it begins or ends.
    name: Option<ObjectHandle>,
    pub table: PageTable,
    /// Units that it maps, each as often as it is mapped.
    pub units: u64,
}

/// The domains that exist.
pub(super) struct GuestDomains {
    slots: [Option<GuestDomain>; MAX],
}

const fn slot(index: DomainIndex) -> usize {
    index.0.wrapping_sub(DomainHandle::FIRST_CREATED) as usize
}

impl GuestDomains {
    pub const fn new() -> Self {
        Self { slots: [None; MAX] }
    }

    pub fn get(&self, index: DomainIndex) -> Result<GuestDomain, Status> {
        self.slots.get(slot(index)).copied().flatten().ok_or(Status::UnknownDomain)
    }

    /// The domain that a caller names.
    fn find(&self, handle: ObjectHandle) -> Result<(DomainIndex, GuestDomain), Status> {
        let index = DomainIndex(handle.place);
        let domain = self.get(index)?;
        if domain.name == Some(handle) { Ok((index, domain)) } else { Err(Status::UnknownDomain) }
    }

    fn get_mut(&mut self, index: DomainIndex) -> Option<&mut GuestDomain> {
        self.slots.get_mut(slot(index)).and_then(Option::as_mut)
    }
}

/// Words of frame table that one step of [`Ownership::teardown_step`] looks at.
const TEARDOWN_WORDS: u64 = 8192;

impl Ownership {
    /// Makes a domain of a guest at a place that is free, with an I/O table that holds the MSI doorbells alone; its table. With `blocks` the
    /// table has blocks that change in place, whatever the machine's other I/O tables have.
    ///
    /// # Errors
    /// `UnknownGuest`; `NoMemory`; `Busy` when the guest or the machine ends. Nothing is changed.
    pub fn create_guest_domain<P: Platform, I>(
        &mut self,
        cx: &Context<'_, P, I>,
        guest: GuestHandle,
        index: DomainIndex,
        blocks: bool,
    ) -> Result<PageTable, Failure> {
        self.check_alive(guest)?;
        let blocks = if blocks { Blocks::InPlace } else { self.io.blocks() };
        let table = self.new_io_table(cx, blocks)?;
        if let Some(place) = self.domains.slots.get_mut(slot(index)) {
            *place = Some(GuestDomain { guest, name: None, table, units: 0 });
        }
        Ok(table)
    }

    /// Lets callers name a domain.
    pub fn name_guest_domain(&mut self, handle: ObjectHandle) {
        if let Some(domain) = self.domains.get_mut(DomainIndex(handle.place)) {
            domain.name = Some(handle);
        }
    }

    /// Whether there is a domain of that name.
    ///
    /// # Errors
    /// `UnknownDomain`.
    pub fn find_guest_domain(&self, handle: ObjectHandle) -> Result<(), Status> {
        self.domains.find(handle).map(drop)
    }

    /// Keeps callers from naming a domain that maps nothing, so that it can end; its place.
    ///
    /// # Errors
    /// `UnknownDomain`, or `Busy` while something is mapped. Nothing is changed.
    pub fn begin_destroy_guest_domain(&mut self, handle: ObjectHandle) -> Result<DomainIndex, Status> {
        let (index, domain) = self.domains.find(handle)?;
        if domain.units != 0 {
            return Err(Status::Busy);
        }
        if let Some(domain) = self.domains.get_mut(index) {
            domain.name = None;
        }
        Ok(index)
    }

    /// Where an address of a stage-2 domain leads, and the bytes of the leaf that says so.
    ///
    /// # Errors
    /// `UnknownGuest`, `UnknownDomain`; `WrongState` if it leads nowhere.
    pub fn domain_lookup(
        &self,
        platform: &impl Platform,
        domain: DomainHandle,
        ipa: u64,
    ) -> Result<(PhysAddr, u64), Status> {
        let table = match domain {
            DomainHandle::Host => self.io,
            DomainHandle::Guest(guest) => *self.guests.table(guest).ok_or(Status::UnknownGuest)?,
            DomainHandle::Created(handle) => self.domains.find(handle)?.1.table,
        };
        let leaf = table.lookup(platform, ipa).ok_or(Status::WrongState)?;
        Ok((leaf.output, table.geometry().level_bytes(leaf.level)))
    }

    /// Ends a domain that maps nothing and that no stream uses.
    ///
    /// # Errors
    /// `UnknownDomain`, or `Busy` while something is mapped. Nothing is changed.
    pub fn destroy_guest_domain<P: Platform, I>(
        &mut self,
        cx: &Context<'_, P, I>,
        index: DomainIndex,
    ) -> Result<(), Status> {
        if self.domains.get(index)?.units != 0 {
            return Err(Status::Busy);
        }
        let place = self.domains.slots.get_mut(slot(index)).ok_or(Status::UnknownDomain)?;
        if let Some(domain) = place.take() {
            self.free_io_table(cx, &domain.table);
        }
        Ok(())
    }

    /// Whether a domain maps nothing.
    pub fn maps_nothing(&self, index: DomainIndex) -> bool {
        self.domains.get(index).is_ok_and(|domain| domain.units == 0)
    }

    /// Maps `run`, one step, at `ipa` of a domain. Each unit must be the domain's guest's.
    ///
    /// # Errors
    /// `UnknownDomain`; `Unaligned` if `ipa` is not a multiple of the unit, or the domain does not reach so far; `WrongState` if the guest does not
    /// own a unit, or something is mapped there; `NoSpace` if a unit is mapped too often; `NoMemory`; `Busy` when guest or machine end. Nothing is changed.
    pub fn map_in_domain<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        handle: ObjectHandle,
        ipa: u64,
        run: &FrameRun,
    ) -> Result<(), Failure> {
        let (index, domain) = self.domains.find(handle)?;
        self.check_alive(domain.guest)?;
        let mapping = self.mapping(&domain.table, ipa, run.range().size_bytes(), run.range().start())?;
        let tables = Tables { cpu: None, io: Some((domain.table, index)) };
        let mut reserves = Reserves::empty(cx, self.io_order);
        reserves.take(cx, None, Some(&tables), mapping)?;
        match self.frames.add_mapping(cx.platform, run, domain.guest) {
            Ok(true) => {}
            Ok(false) => return Err(Status::WrongState.into()),
            Err(_) => return Err(Status::NoSpace.into()),
        }
        if !self.grant(cx, &tables, mapping, &mut reserves) {
            // The tables that it takes were reserved, so something is mapped there.
            self.frames.remove_mapping(cx.platform, run);
            return Err(Status::WrongState.into());
        }
        if let Some(domain) = self.domains.get_mut(index) {
            domain.units = domain.units.saturating_add(run.units());
        }
        Ok(())
    }

    /// Takes away what a domain maps from `ipa` on, as far as it is one run of memory and one step; how many bytes.
    ///
    /// # Errors
    /// `UnknownDomain`; `Unaligned` if an end is not a multiple of the unit, or out of the domain's reach; `WrongState` if nothing, or the MSI
    /// doorbell, is at `ipa`; `NoMemory`; `Hardware`, and then it is still mapped. Nothing is changed.
    pub fn unmap_in_domain<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        handle: ObjectHandle,
        ipa: u64,
        size_bytes: u64,
    ) -> Result<u64, Failure> {
        let (index, domain) = self.domains.find(handle)?;
        self.check_alive(domain.guest)?;
        self.unmap_at(cx, index, ipa, size_bytes)
    }

    /// [`Self::unmap_in_domain`], also of a guest that is being taken apart.
    fn unmap_at<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        index: DomainIndex,
        ipa: u64,
        size_bytes: u64,
    ) -> Result<u64, Failure> {
        let domain = self.domains.get(index)?;
        self.mapping(&domain.table, ipa, size_bytes, PhysAddr(ipa))?;
        let leaf = domain.table.lookup(cx.platform, ipa).ok_or(Status::WrongState)?;
        let output = leaf.output;
        let size = contiguous(cx.platform, &domain.table, ipa, size_bytes, leaf);
        let mapping = self.mapping(&domain.table, ipa, size, output)?;
        let range = PhysRange::new(output, size).ok_or(Status::WrongState)?;
        let run = self.frames.run(range).ok_or(Status::WrongState)?;
        let tables = Tables { cpu: None, io: Some((domain.table, index)) };
        let mut reserves = Reserves::empty(cx, self.io_order);
        reserves.take(cx, Some(&tables), None, mapping)?;
        match self.withdraw(cx, &tables, mapping, &mut reserves) {
            Ok(()) => {}
            Err(Kept::Restored(failure)) => return Err(failure),
            // It is not mapped, but may be cached: it counts as mapped for ever, so nobody gets the pages.
            Err(Kept::Lost) => return Err(Status::Hardware.into()),
        }
        self.frames.remove_mapping(cx.platform, &run);
        if let Some(domain) = self.domains.get_mut(index) {
            domain.units = domain.units.saturating_sub(run.units());
        }
        Ok(size)
    }

    /// Checks addresses of a domain that a caller claims.
    fn mapping(
        &self,
        table: &PageTable,
        ipa: u64,
        size_bytes: u64,
        output: PhysAddr,
    ) -> Result<Mapping, Status> {
        let input = PhysRange::new(PhysAddr(ipa), size_bytes).ok_or(Status::Unaligned)?;
        if !input.is_aligned(self.unit_bytes()) || input.last().0 >> table.geometry().ia_bits() != 0 {
            return Err(Status::Unaligned);
        }
        Ok(Mapping { input, output })
    }

    /// One bounded step of taking the memory of a guest away that ends: first what its domains map, then what it owns, then
    /// what is shared with it. Its streams are detached.
    ///
    /// # Errors
    /// As the single steps; those before are done.
    pub fn teardown_step<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        guest: GuestHandle,
    ) -> Result<Progress, Failure> {
        let mapped = (DomainHandle::FIRST_CREATED..DomainHandle::MAX).map(DomainIndex).find(|index| {
            self.domains.get(*index).is_ok_and(|domain| domain.guest == guest && domain.units != 0)
        });
        if let Some(index) = mapped {
            self.unmap_first(cx, index)?;
            return Ok(Progress::Again);
        }
        let from = self.guests.teardown(guest).ok_or(Status::UnknownGuest)?;
        match self.frames.next_of(cx.platform, guest, from, TEARDOWN_WORDS) {
            SearchOf::Found { range, owned, at } => {
                let run = self.frames.run(range).ok_or(Status::WrongState)?;
                let change = if owned {
                    Change::Reclaim(guest)
                } else {
                    Change::Unshare(abi::Recipient::Guest(guest))
                };
                self.guests.set_teardown(guest, at);
                self.change_of(cx, change, &run, true)?;
                Ok(Progress::Again)
            }
            SearchOf::Unfinished(position) => {
                self.guests.set_teardown(guest, position);
                Ok(Progress::Again)
            }
            SearchOf::End => Ok(Progress::Done),
        }
    }

    /// Unmaps the lowest mapping of a domain that has one.
    fn unmap_first<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        index: DomainIndex,
    ) -> Result<(), Failure> {
        let table = self.domains.get(index)?.table;
        // The doorbells are no memory of the guest's.
        let mut doorbells = self.doorbells;
        doorbells.sort_by_key(|range| range.start());
        let mut from = 0;
        while let Some((ipa, level)) = table.next_leaf(cx.platform, from) {
            let leaf_bytes = table.geometry().level_bytes(level);
            if doorbells.iter().any(|doorbell| doorbell.contains(PhysAddr(ipa))) {
                from = ipa + leaf_bytes;
                continue;
            }
            return self.unmap_at(cx, index, ipa, abi::MAX_STEP_BYTES.min(reach(&table, ipa))).map(drop);
        }
        // Units are counted, and none is mapped: what a failed SMMU kept. They stay nobody's to have.
        Err(Status::Hardware.into())
    }
}

/// Bytes from `ipa`, where `first` is the leaf, `most` or one step at most, that lead to one run of memory.
fn contiguous(platform: &impl Platform, table: &PageTable, ipa: u64, most: u64, first: Leaf) -> u64 {
    let most = most.min(abi::MAX_STEP_BYTES);
    let mut leaf = first;
    let mut size = 0;
    loop {
        let leaf_bytes = table.geometry().level_bytes(leaf.level);
        size += leaf_bytes - ((ipa + size) & (leaf_bytes - 1));
        if size >= most {
            return most;
        }
        match table.lookup(platform, ipa + size) {
            Some(next) if next.output == first.output.offset(size) => leaf = next,
            Some(_) | None => return size,
        }
    }
}

/// Bytes from `ipa` to the end of what a table can reach.
const fn reach(table: &PageTable, ipa: u64) -> u64 {
    (1 << table.geometry().ia_bits()) - ipa
}
