//! The IOMMU service: domains, and which streams are attached to them.
//!
//! A domain is an address space for DMA: that of the host, which shadows its stage 2, or that of a guest. It
//! has a stage-2 page table, which the memory part of the hypervisor writes, and an invalidation array: the
//! tags, one VMID per SMMU, under which caches may hold translations of that table. Everybody who takes a
//! translation away calls [`Iommu::invalidate`]; attach and detach edit the array.
//!
//! The attach lock comes before all locks of memory, pool and queues. It guards the tags, the STEs and the
//! domains' existence; [`Iommu::invalidate`] does not take it.

mod attachments;
#[cfg(test)]
mod tests;

use core::sync::atomic::{AtomicU64, Ordering};

use abi::{DomainHandle, GuestHandle, Status};
use smmuv3::address::PhysAddr;
use smmuv3::features::CommonFormat;
use smmuv3::gather::Gather;
use smmuv3::invalidation::{self, InvalidationArray, MAX_SMMUS};
use smmuv3::pgtable::{Geometry, Granule};
use smmuv3::tags::{MAX_DOMAINS, Vmids};
use spin::Mutex;

pub use attachments::{Attachments, StreamState};

use crate::platform::Platform;
use crate::smmu::{Counters, Description, Fault, PARKED_VMID, Pages, RecordedEvent, Set, StartError};

/// Why a call to the service was refused. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no SMMU with this index.
    UnknownSmmu,
    /// The SMMU has no such StreamID.
    UnknownStream,
    /// The domain does not exist.
    UnknownDomain,
    /// The stream is attached, or the domain has streams.
    Busy,
    /// The stream is not attached, or the domain exists already.
    WrongState,
    /// No VMID is left on the SMMU.
    NoSpace,
    /// The pool has not enough memory.
    NoMemory {
        /// Pages of 4 KiB, in one aligned run, that are needed.
        pages: u64,
    },
    /// The SMMU failed.
    Hardware,
}

impl Refused {
    /// What the caller of a hypercall is told.
    pub const fn status(self) -> Status {
        match self {
            Self::UnknownSmmu => Status::UnknownSmmu,
            Self::UnknownStream => Status::UnknownStream,
            Self::UnknownDomain => Status::UnknownGuest,
            Self::Busy => Status::Busy,
            Self::WrongState => Status::WrongState,
            Self::NoSpace => Status::NoSpace,
            Self::NoMemory { .. } => Status::NoMemory,
            Self::Hardware => Status::Hardware,
        }
    }

    /// Pages of 4 KiB that the pool lacks, for `X1` of the answer; 0 for other reasons.
    pub const fn pages(self) -> u64 {
        match self {
            Self::NoMemory { pages } => pages,
            _ => 0,
        }
    }
}

/// The place of a domain in tables of [`MAX_DOMAINS`]: 0 the host's, else the guest's handle.
const fn index_of(domain: DomainHandle) -> usize {
    domain.to_register() as usize
}

/// An address space for DMA.
struct Domain {
    /// Root of its page table, 0 while the domain does not exist.
    root: AtomicU64,
    tags: InvalidationArray,
}

impl Domain {
    const fn new() -> Self {
        Self { root: AtomicU64::new(0), tags: InvalidationArray::new() }
    }

    fn root(&self) -> Option<PhysAddr> {
        let root = self.root.load(Ordering::Acquire);
        (root != 0).then_some(PhysAddr(root))
    }
}

/// The IOMMU service of the machine.
pub struct Iommu {
    set: Set,
    geometry: Option<Geometry>,
    domains: [Domain; MAX_DOMAINS],
    /// The attach lock, and the VMIDs of each SMMU that it guards.
    attach: Mutex<[Vmids; MAX_SMMUS]>,
}

impl Default for Iommu {
    fn default() -> Self {
        Self::new()
    }
}

impl Iommu {
    /// A service without SMMUs and domains.
    pub const fn new() -> Self {
        Self {
            set: Set::new(),
            geometry: None,
            domains: [const { Domain::new() }; MAX_DOMAINS],
            attach: Mutex::new([const { Vmids::new(0, &[]) }; MAX_SMMUS]),
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
        bases: impl Iterator<Item = PhysAddr>,
    ) -> Result<CommonFormat, StartError> {
        let format = self.set.probe(p, bases)?;
        for (vmids, features) in self.attach.get_mut().iter_mut().zip(self.set.features()) {
            *vmids = Vmids::new(features.vmid_bits, &[PARKED_VMID]);
        }
        Ok(format)
    }

    /// Turns the SMMUs on with every stream parked. `geometry` is that of every domain's page table.
    ///
    /// # Errors
    /// See [`Set::start`]: the machine cannot be started.
    pub fn start<P: Platform>(
        &mut self,
        p: &P,
        format: &CommonFormat,
        geometry: Geometry,
        pages: &mut impl Pages,
    ) -> Result<(), StartError> {
        self.geometry = Some(geometry);
        self.set.start(p, format, pages)
    }

    /// The SMMUs.
    pub const fn set(&self) -> &Set {
        &self.set
    }

    /// Makes a domain whose page table, of the geometry that [`Iommu::start`] was given, has its root at
    /// `root`.
    ///
    /// # Errors
    /// [`Refused::WrongState`] if the domain exists; nothing is changed.
    pub fn create_domain(&self, domain: DomainHandle, root: PhysAddr) -> Result<(), Refused> {
        self.attachments().create_domain(domain, root)
    }

    /// Ends a guest's domain. On return no SMMU uses its page table and no cache holds anything of it.
    ///
    /// # Errors
    /// [`Refused::UnknownDomain`]; [`Refused::Busy`] if a stream is attached to it; nothing is changed.
    pub fn destroy_domain(&self, guest: GuestHandle) -> Result<(), Refused> {
        self.attachments().destroy_domain(guest)
    }

    /// Takes the attach lock: no lock of memory, pool or queues is held.
    #[inline]
    pub fn attachments(&self) -> Attachments<'_> {
        Attachments::new(self)
    }

    /// Whether no stream is attached to a domain, so that nothing of its table is in any IOTLB.
    #[inline]
    pub fn is_idle(&self, domain: DomainHandle) -> bool {
        self.domain(domain).is_none_or(|domain| domain.tags.is_idle())
    }

    /// Makes every IOTLB forget what `gather` collected from a domain's page table, and returns when they
    /// have. The descriptors are stored before; the barriers are in here. Takes no lock but those of the
    /// queues.
    ///
    /// # Errors
    /// [`Fault`]: an IOTLB may still hold what was to be forgotten. The caller restores or quarantines.
    #[inline]
    pub fn invalidate<P: Platform>(
        &self,
        p: &P,
        domain: DomainHandle,
        gather: &Gather,
        granule: Granule,
    ) -> Result<(), Fault> {
        let Some(domain) = self.domain(domain) else { return Ok(()) };
        invalidation::invalidate(&self.set.queues(p), p, &domain.tags, gather, granule)
            .map_err(|failed| failed.fault)
    }

    #[inline]
    fn domain(&self, domain: DomainHandle) -> Option<&Domain> {
        self.domains.get(index_of(domain))
    }

    /// What an SMMU is, the VMIDs in use on it, and the largest that it can give out; `None` if there is none
    /// with this index.
    pub fn describe(&self, index: usize) -> Option<(Description, u16, u16)> {
        let description = self.set.describe(index)?;
        let vmids = self.attach.lock();
        let vmids = vmids.get(index)?;
        Some((description, vmids.in_use() as u16, vmids.max()))
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
