//! The IOMMU service: domains and vSMMUs, and which streams are attached to them.
//!
//! A domain is an address space for DMA: that of the host, which shadows its stage 2; the memory domain of a guest; one that maps
//! memory of a guest as it wants; or a nested one, whose stage 1 its owner writes, on top of one of these. A stage-2
//! domain has a page table, which the memory part of the hypervisor writes, and an invalidation array: the
//! caches that may hold translations of that table. Everybody who takes a
//! translation away calls [`Iommu::invalidate`]; attach and detach edit the array.
//!
//! The attach lock comes before all locks of memory, pool and queues. It guards the [`registry`], the STEs and all edits of
//! arrays; [`Iommu::invalidate`] does not take it.

mod attachments;
mod emulated;
#[cfg(feature = "oracle")]
pub(crate) mod oracle;
mod refused;
mod registry;
mod sorted_map;
#[cfg(test)]
mod tests;
mod vsmmus;

use abi::{DomainHandle, GuestHandle, ObjectHandle, Principal, Reason, VsmmuHandle};
use smmuv3::address::PhysAddr;
use smmuv3::features::{CommonFormat, Part};
use smmuv3::gather::Gather;
use smmuv3::invalidation::{self, ArrayPages, Cell, Domain, DomainIndex, MAX_SMMUS, Readers};
use smmuv3::pgtable::{Geometry, PageTable};
use smmuv3::tags::{self, IdSpace, TagKind};
use smmuv3::walkable::{self, Unwalkable};

pub use attachments::{How, StreamState};
pub use emulated::{Emulated, StreamRefused};
pub use refused::Refused;
pub(crate) use registry::{HOST, memory_domain};
pub use vsmmus::{OwnerCommands, VirtualStream};

use crate::list::List;
use crate::platform::Platform;
use crate::smmu::{
    Counters, Description, Fault, PARKED_VMID, Pages, RecordedEvent, Set, StartError, VMID_BITS, order_of,
};
use crate::sync::{Mutex, MutexGuard};
use registry::{Kind, MAX_DOMAINS, Registry, index_of};

/// StreamIDs whose devices may have full ATS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrustedStreams {
    /// Index of the SMMU.
    pub smmu: u8,
    /// The first StreamID.
    pub first: u32,
    /// The last StreamID.
    pub last: u32,
}

/// The most ranges of trusted streams.
pub const MAX_TRUSTED: usize = 16;

/// The IOMMU service of the machine.
pub struct Iommu {
    set: Set,
    /// The cells of all domains' arrays, one word each.
    cells: PhysAddr,
    readers: Readers,
    trusted: List<TrustedStreams, MAX_TRUSTED>,
    /// The attach lock.
    registry: Mutex<Registry>,
}

impl Default for Iommu {
    fn default() -> Self {
        Self::new()
    }
}

/// Memory for the invalidation arrays.
struct ArrayRuns<'a, G>(&'a mut G);

impl<G: Pages> ArrayPages for ArrayRuns<'_, G> {
    fn take(&mut self, bytes: u64) -> Option<PhysAddr> {
        self.0.take_run(order_of(bytes))
    }

    fn give(&mut self, array: PhysAddr, bytes: u64) {
        self.0.give_run(array, order_of(bytes));
    }
}

/// What a domain is, for `DOMAIN_DESCRIBE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainDescription {
    /// How it translates.
    pub kind: DomainKind,
    /// Streams that are attached.
    pub streams: u32,
    /// vSMMUs on top of it.
    pub vsmmus: u32,
}

/// How a domain translates, for `DOMAIN_DESCRIBE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainKind {
    /// By stage 2.
    Stage2,
    /// Nested on the vSMMU with this register value.
    Nested(u64),
    /// By the stream table of the emulated SMMU with this index.
    Emulated(u64),
}

/// The tag of a domain on an SMMU, for `DOMAIN_TAG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainTag {
    /// It has none.
    None,
    /// A VMID of its own, and how many streams use it.
    Own(u16, u32),
    /// That of its vSMMU, and how many streams use it.
    Vsmmu(u16, u32),
}

impl Iommu {
    /// A service without SMMUs and domains.
    pub const fn new() -> Self {
        Self {
            set: Set::new(),
            cells: PhysAddr(0),
            readers: Readers::NONE,
            trusted: List::new(),
            registry: Mutex::new(Registry::new()),
        }
    }

    /// Reads what the SMMUs can do, and answers the format that all of them can walk, to choose the geometry
    /// of the domains' page tables from. [`crate::smmu::abort_all`] was called for them.
    ///
    /// # Errors
    /// See [`Set::probe`].
    pub fn probe<P: Platform>(
        &mut self,
        p: &P,
        smmus: impl Iterator<Item = (PhysAddr, Option<Part>)>,
    ) -> Result<CommonFormat, StartError> {
        self.set.probe(p, smmus)
    }

    /// Turns the SMMUs on with every stream parked. `geometry` is that of all domains' page tables. Full ATS is for `trusted` streams
    /// alone.
    ///
    /// # Errors
    /// See [`Set::start`]: the machine cannot be started.
    pub fn start<P: Platform>(
        &mut self,
        p: &P,
        geometry: &Geometry,
        trusted: List<TrustedStreams, MAX_TRUSTED>,
        pages: &mut impl Pages,
    ) -> Result<(), StartError> {
        self.trusted = trusted;
        let no_memory = StartError { base: None, cause: crate::smmu::Cause::NoMemory };
        let mut take = |bytes| pages.take_run(order_of(bytes)).ok_or(no_memory);
        self.cells = take(MAX_DOMAINS as u64 * CELL_BYTES)?;
        for index in 0..MAX_DOMAINS as u64 {
            p.write_u64(self.cells.offset(index * CELL_BYTES), 0);
        }
        self.readers = Readers::new(p, take(Readers::bytes(p.cpus()))?, p.cpus());
        let space_bytes = IdSpace::bytes(VMID_BITS);
        let bitmaps = take(space_bytes * MAX_SMMUS as u64)?;
        let spaces = self.registry.get_mut().vmids.iter_mut();
        for ((space, features), offset) in
            spaces.zip(self.set.features()).zip((0..).step_by(space_bytes as usize))
        {
            *space = IdSpace::new(p, bitmaps.offset(offset), features.vmid_bits.min(VMID_BITS));
            space.reserve(p, PARKED_VMID);
        }
        self.set.start(p, geometry, pages)
    }

    /// The SMMUs.
    pub const fn set(&self) -> &Set {
        &self.set
    }

    /// Makes the host's domain or the memory domain of a guest, with this page table.
    ///
    /// # Errors
    /// [`Refused::WrongState`] if the domain exists; nothing is changed.
    pub fn create_domain(&self, domain: DomainHandle, table: PageTable) -> Result<(), Refused> {
        let owner = match domain {
            DomainHandle::Host => Principal::Host,
            DomainHandle::Guest(guest) => Principal::Guest(guest),
            DomainHandle::Created(_) => return Err(Refused::UnknownDomain),
        };
        self.registry.lock().put_domain(index_of(domain), owner, Kind::Stage2(table))
    }

    /// A place for a stage-2 domain that a call makes, to make its page table for. The caller keeps others from making domains.
    ///
    /// # Errors
    /// [`Refused::NoSpace`].
    pub fn reserve_domain(&self) -> Result<DomainIndex, Refused> {
        self.registry.lock().free_domain_place().map(DomainIndex)
    }

    /// Makes a stage-2 domain of a guest, with this page table, at a place that was free.
    ///
    /// # Errors
    /// [`Refused::WrongState`]; nothing is changed.
    pub fn create_stage2(
        &self,
        index: DomainIndex,
        guest: GuestHandle,
        table: PageTable,
    ) -> Result<ObjectHandle, Refused> {
        let mut registry = self.registry.lock();
        registry.put_domain(index.0, Principal::Guest(guest), Kind::Stage2(table))?;
        registry.created_handle(index.0)
    }

    /// Ends a domain. On return no SMMU uses its page table and no cache holds anything of it.
    ///
    /// # Errors
    /// [`Refused::UnknownDomain`], [`Refused::UnknownGuest`]; [`Refused::Busy`] if a stream is attached to it or a vSMMU stands on
    /// it; nothing is changed.
    pub fn destroy_domain(&self, domain: DomainHandle) -> Result<(), Refused> {
        let mut registry = self.registry.lock();
        let index = registry.find_domain(domain)?;
        if let Kind::Emulated { .. } = registry.domain(index)?.kind {
            return Err(Refused::UnknownDomain);
        }
        let removed = registry.remove_domain(index)?;
        if let Kind::Nested { vsmmu, .. } = removed.kind
            && let Some(vsmmu) = registry.vsmmu_mut(vsmmu)
        {
            vsmmu.domains = vsmmu.domains.saturating_sub(1);
        }
        Ok(())
    }

    /// Whether a domain exists, and whose it is.
    ///
    /// # Errors
    /// [`Refused::UnknownDomain`], [`Refused::UnknownGuest`].
    pub fn owner_of(&self, domain: DomainHandle) -> Result<Principal, Refused> {
        let registry = self.registry.lock();
        Ok(registry.domain(registry.find_domain(domain)?)?.owner)
    }

    /// What a domain is.
    ///
    /// # Errors
    /// [`Refused::UnknownDomain`], [`Refused::UnknownGuest`].
    pub fn describe_domain(&self, domain: DomainHandle) -> Result<DomainDescription, Refused> {
        let registry = self.registry.lock();
        let found = registry.domain(registry.find_domain(domain)?)?;
        let kind = match found.kind {
            Kind::Stage2(_) => DomainKind::Stage2,
            Kind::Nested { vsmmu, .. } => DomainKind::Nested(registry.vsmmu_handle(vsmmu)?.to_register()),
            Kind::Emulated { smmu, .. } => DomainKind::Emulated(smmu.into()),
        };
        Ok(DomainDescription { kind, streams: found.streams, vsmmus: found.vsmmus })
    }

    /// The tag that a domain has on an SMMU, and its users.
    ///
    /// # Errors
    /// [`Refused::UnknownDomain`], [`Refused::UnknownGuest`], [`Refused::UnknownSmmu`].
    pub fn domain_tag<P: Platform>(
        &self,
        p: &P,
        domain: DomainHandle,
        smmu: usize,
    ) -> Result<DomainTag, Refused> {
        let registry = self.registry.lock();
        let index = registry.find_domain(domain)?;
        if smmu >= self.set.count() {
            return Err(Refused::UnknownSmmu);
        }
        match registry.domain(index)?.kind {
            Kind::Stage2(_) => {
                let tag = tags::find(p, self.cell(DomainIndex(index)), smmu as u8, TagKind::Vmid);
                Ok(tag.map_or(DomainTag::None, |(vmid, users)| DomainTag::Own(vmid, users)))
            }
            Kind::Nested { vsmmu, .. } => {
                let vsmmu = registry.vsmmu(vsmmu)?;
                let is_here = usize::from(vsmmu.smmu) == smmu;
                let streams = registry.domain(index)?.streams;
                Ok(if is_here { DomainTag::Vsmmu(vsmmu.vmid, streams) } else { DomainTag::None })
            }
            Kind::Emulated { smmu: place, vmid } => {
                let streams = registry.domain(index)?.streams;
                let is_here = usize::from(place) == smmu;
                Ok(if is_here { DomainTag::Vsmmu(vmid, streams) } else { DomainTag::None })
            }
        }
    }

    /// Something that an owner has, on which nothing else of it stands; `None` when it has nothing.
    pub fn next_of<P: Platform>(&self, p: &P, owner: Principal) -> Option<Owned> {
        let registry = self.registry.lock();
        let nested = registry.find_created(owner, |kind| matches!(kind, Kind::Nested { .. }));
        if let Some(handle) = nested.and_then(|index| registry.handle_of(index).ok()) {
            return Some(Owned::Nested(handle));
        }
        if let Some(place) = registry.vsmmu_of(owner)
            && let (Ok(handle), Ok(vsmmu)) = (registry.vsmmu_handle(place), registry.vsmmu(place))
        {
            let stream = vsmmu.streams.first(p);
            return Some(
                stream.map_or(Owned::Vsmmu(handle), |(id, _)| Owned::VirtualStream(handle, id as u32)),
            );
        }
        let stage2 = registry.find_created(owner, |kind| matches!(kind, Kind::Stage2(_)))?;
        registry.created_handle(stage2).ok().map(|handle| Owned::Stage2(handle, DomainIndex(stage2)))
    }

    /// Whether a vSMMU exists.
    ///
    /// # Errors
    /// [`Refused::UnknownVsmmu`].
    pub fn check_vsmmu(&self, vsmmu: VsmmuHandle) -> Result<(), Refused> {
        self.registry.lock().find_vsmmu(vsmmu).map(drop)
    }

    #[inline]
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock()
    }

    /// Where the array of a domain is.
    #[inline]
    const fn cell(&self, domain: DomainIndex) -> Cell {
        Cell(self.cells.offset(domain.0 as u64 * CELL_BYTES))
    }

    /// Whether a stream may have full ATS.
    fn is_trusted(&self, smmu: usize, stream: u32) -> bool {
        self.trusted
            .iter()
            .any(|range| usize::from(range.smmu) == smmu && range.first <= stream && stream <= range.last)
    }

    /// Makes every cache forget what `gather` collected from a domain's page table, and returns when they
    /// have. The descriptors are stored before; the barriers are in here. Takes no lock but those of the
    /// queues.
    ///
    /// # Errors
    /// [`Fault`]: a cache may still hold what was to be forgotten. The caller restores or quarantines.
    #[inline]
    pub fn invalidate<P: Platform>(&self, p: &P, domain: DomainIndex, gather: &Gather) -> Result<(), Fault> {
        let domain = Domain { readers: &self.readers, cpu: p.cpu(), index: domain, array: self.cell(domain) };
        invalidation::invalidate(&self.set.queues(p), p, &domain, gather).map_err(|failed| failed.fault)
    }

    /// What an SMMU is, the VMIDs in use on it, and the largest that it can give out; `None` if there is none
    /// with this index.
    pub fn describe(&self, index: usize) -> Option<(Description, u16, u16)> {
        let description = self.set.describe(index)?;
        let (used, free) = self.vmids(index)?;
        Some((description, (used - 1) as u16, (used + free) as u16))
    }

    /// VMIDs of an SMMU that are in use, the one of unattached streams included, and that are free; `None` if there is no such SMMU.
    pub fn vmids(&self, index: usize) -> Option<(u32, u32)> {
        if index >= self.set.count() {
            return None;
        }
        let registry = self.registry.lock();
        let space = registry.vmids.get(index)?;
        Some((space.taken(), space.available()))
    }

    /// Drains the hardware event queues, then takes the oldest event and how many were lost since the last
    /// call that took one. Events of a guest's streams are counted, not shown.
    pub fn read_event<P: Platform>(&self, p: &P) -> Option<(RecordedEvent, u64)> {
        self.set.drain_events(p);
        self.set.take_event()
    }

    /// The counters of all SMMUs.
    pub fn counters(&self) -> Counters {
        self.set.counters()
    }
}

/// Bytes of a cell.
const CELL_BYTES: u64 = 8;

/// Something that an owner has, for whoever takes it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owned {
    /// A nested domain.
    Nested(DomainHandle),
    /// A StreamID of a vSMMU.
    VirtualStream(VsmmuHandle, u32),
    /// A vSMMU without StreamIDs.
    Vsmmu(VsmmuHandle),
    /// A stage-2 domain that a call made, and its place.
    Stage2(ObjectHandle, DomainIndex),
}

/// The reason that a caller is told.
const fn reason(unwalkable: Unwalkable) -> Reason {
    match unwalkable {
        Unwalkable::Format => Reason::Format,
        Unwalkable::Granule => Reason::Granule,
        Unwalkable::InputSize => Reason::InputSize,
        Unwalkable::OutputSize => Reason::OutputSize,
        Unwalkable::Blocks => Reason::Blocks,
        Unwalkable::Coherency => Reason::Coherency,
    }
}

/// Whether an SMMU can serve a stage-2 domain with this table.
fn can_walk(table: &PageTable, features: &smmuv3::features::Features) -> Result<(), Refused> {
    walkable::stage2(table, features).map_err(|unwalkable| Refused::Incompatible(reason(unwalkable)))
}
