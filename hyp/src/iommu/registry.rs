//! What exists: domains and vSMMUs, who owns them, and what uses them. All of it is guarded by the attach lock.

use abi::{DomainHandle, GuestHandle, ObjectHandle, Principal, VsmmuHandle};
use smmuv3::invalidation::{DomainIndex, MAX_SMMUS, Retired};
use smmuv3::pgtable::PageTable;
use smmuv3::ste::Stage1Config;
use smmuv3::tags::IdSpace;

use super::Refused;
use super::sorted_map::SortedMap;
use crate::sync::{Guarded, Rank};

/// Domains that can exist at once.
pub(crate) const MAX_DOMAINS: usize = DomainHandle::MAX as usize;
/// vSMMUs that can exist at once.
const MAX_VSMMUS: usize = VsmmuHandle::MAX as usize;

/// The host's domain.
pub(crate) const HOST: DomainIndex = DomainIndex(0);

/// An address space for DMA.
#[derive(Clone, Copy, Debug)]
pub(super) struct Domain {
    pub owner: Principal,
    pub generation: u16,
    pub kind: Kind,
    /// Streams that are attached.
    pub streams: u32,
    /// vSMMUs on top of it.
    pub vsmmus: u32,
}

/// How a domain translates.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// By a stage-2 table, which the memory part of the hypervisor writes.
    Stage2(PageTable),
    /// By a stage 1 of the vSMMU's owner, and the stage 2 that the vSMMU stands on.
    Nested {
        /// Place of the vSMMU.
        vsmmu: u16,
        /// What its owner may have.
        config: Stage1Config,
    },
    /// By what the host's driver says of each stream in the stream table of an emulated SMMU, on top of the host's stage 2.
    Emulated {
        /// The SMMU.
        smmu: u8,
        /// The tag of all its streams, as long as the domain is there.
        vmid: u16,
    },
}

/// What a principal sees of an SMMU.
#[derive(Debug)]
pub(super) struct Vsmmu {
    pub owner: Principal,
    pub generation: u16,
    pub smmu: u8,
    /// The stage-2 domain that it stands on.
    pub parent: u16,
    pub vmid: u16,
    /// Nested domains on it.
    pub domains: u32,
    /// StreamIDs of the SMMU by those of the vSMMU.
    pub streams: SortedMap,
}

/// A stream of a vSMMU, as it stands in [`Registry::streams`]: place of the vSMMU in bits 15:0, virtual StreamID in 63:32, and
/// in 31:16 the nested domain that it is attached to, 0 for none.
#[derive(Clone, Copy, Debug)]
pub(super) struct VsmmuStream(pub u64);

impl VsmmuStream {
    pub const fn new(vsmmu: u16, virtual_stream: u32, domain: Option<u16>) -> Self {
        let domain = match domain {
            Some(domain) => domain as u64,
            None => 0,
        };
        Self(vsmmu as u64 | domain << 16 | (virtual_stream as u64) << 32)
    }

    pub const fn vsmmu(self) -> u16 {
        self.0 as u16
    }

    pub const fn domain(self) -> Option<u16> {
        match (self.0 >> 16) as u16 {
            0 => None,
            domain => Some(domain),
        }
    }

    pub const fn virtual_stream(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub const fn in_domain(self, domain: Option<u16>) -> Self {
        Self::new(self.vsmmu(), self.virtual_stream(), domain)
    }
}

/// Everything that the attach lock guards.
pub(super) struct Registry {
    /// VMIDs of each SMMU.
    pub vmids: [IdSpace; MAX_SMMUS],
    /// Streams of vSMMUs, by the SMMU they are behind.
    pub streams: [SortedMap; MAX_SMMUS],
    /// Invalidation arrays that somebody may be reading.
    pub retired: Retired,
    /// What the host's driver has a stream for and what it is to have it for, while that changes.
    pub driver_configs: [Stage1Config; 2],
    domains: [Option<Domain>; MAX_DOMAINS],
    vsmmus: [Option<Vsmmu>; MAX_VSMMUS],
    /// The generation of the next object: 65,536 objects later a handle could be taken for another's.
    generation: u16,
}

impl Guarded for Registry {
    const RANK: Rank = Rank::Attach;
}

impl Registry {
    pub const fn new() -> Self {
        Self {
            vmids: [const { IdSpace::EMPTY }; MAX_SMMUS],
            streams: [const { SortedMap::new() }; MAX_SMMUS],
            retired: Retired::new(),
            driver_configs: [Stage1Config::Abort; 2],
            domains: [const { None }; MAX_DOMAINS],
            vsmmus: [const { None }; MAX_VSMMUS],
            generation: 0,
        }
    }

    /// The domain at a place.
    #[inline]
    pub fn domain(&self, index: u16) -> Result<&Domain, Refused> {
        self.domains.get(usize::from(index)).and_then(Option::as_ref).ok_or(Refused::UnknownDomain)
    }

    pub fn domain_mut(&mut self, index: u16) -> Option<&mut Domain> {
        self.domains.get_mut(usize::from(index)).and_then(Option::as_mut)
    }

    /// The vSMMU at a place.
    pub fn vsmmu(&self, place: u16) -> Result<&Vsmmu, Refused> {
        self.vsmmus.get(usize::from(place)).and_then(Option::as_ref).ok_or(Refused::UnknownVsmmu)
    }

    pub fn vsmmu_mut(&mut self, place: u16) -> Option<&mut Vsmmu> {
        self.vsmmus.get_mut(usize::from(place)).and_then(Option::as_mut)
    }

    /// The place of the domain that a handle names.
    ///
    /// # Errors
    /// [`Refused::UnknownGuest`] for the memory domain of a guest that does not exist, else [`Refused::UnknownDomain`]: also for
    /// one that has gone, or is somebody else's.
    #[inline]
    pub fn find_domain(&self, handle: DomainHandle) -> Result<u16, Refused> {
        let index = index_of(handle);
        match (handle, self.domain(index)) {
            (DomainHandle::Guest(_), Err(_)) => Err(Refused::UnknownGuest),
            (_, Err(refused)) => Err(refused),
            (DomainHandle::Host | DomainHandle::Guest(_), Ok(_)) => Ok(index),
            (DomainHandle::Created(claimed), Ok(domain)) => {
                let same = claimed.owner == domain.owner && claimed.generation == domain.generation;
                if same { Ok(index) } else { Err(Refused::UnknownDomain) }
            }
        }
    }

    /// The handle of a domain that exists.
    pub fn handle_of(&self, index: u16) -> Result<DomainHandle, Refused> {
        Ok(match self.domain(index)?.owner {
            _ if index >= DomainHandle::FIRST_CREATED => DomainHandle::Created(self.created_handle(index)?),
            Principal::Host => DomainHandle::Host,
            Principal::Guest(guest) => DomainHandle::Guest(guest),
        })
    }

    /// The handle of a domain that a call made.
    pub fn created_handle(&self, index: u16) -> Result<ObjectHandle, Refused> {
        let domain = self.domain(index)?;
        Ok(ObjectHandle { owner: domain.owner, generation: domain.generation, place: index })
    }

    /// The place of the vSMMU that a handle names.
    ///
    /// # Errors
    /// [`Refused::UnknownVsmmu`]: also for one that has gone, or is somebody else's.
    pub fn find_vsmmu(&self, VsmmuHandle(claimed): VsmmuHandle) -> Result<u16, Refused> {
        let vsmmu = self.vsmmu(claimed.place)?;
        let same = claimed.owner == vsmmu.owner && claimed.generation == vsmmu.generation;
        if same { Ok(claimed.place) } else { Err(Refused::UnknownVsmmu) }
    }

    /// The handle of a vSMMU that exists.
    pub fn vsmmu_handle(&self, place: u16) -> Result<VsmmuHandle, Refused> {
        let vsmmu = self.vsmmu(place)?;
        Ok(VsmmuHandle(ObjectHandle { owner: vsmmu.owner, generation: vsmmu.generation, place }))
    }

    /// Puts a domain at the place that its handle names.
    ///
    /// # Errors
    /// [`Refused::WrongState`] if there is one; nothing is changed.
    pub fn put_domain(&mut self, index: u16, owner: Principal, kind: Kind) -> Result<(), Refused> {
        let generation = self.generation;
        let place = self.domains.get_mut(usize::from(index)).ok_or(Refused::UnknownDomain)?;
        if place.is_some() {
            return Err(Refused::WrongState);
        }
        *place = Some(Domain { owner, generation, kind, streams: 0, vsmmus: 0 });
        self.generation = generation.wrapping_add(1);
        Ok(())
    }

    /// A place for a domain that a call makes.
    pub fn free_domain_place(&self) -> Result<u16, Refused> {
        let created = DomainHandle::FIRST_CREATED..DomainHandle::MAX;
        created.into_iter().find(|index| self.domain(*index).is_err()).ok_or(Refused::NoSpace)
    }

    /// Ends a domain.
    ///
    /// # Errors
    /// [`Refused::Busy`] if a stream is attached to it or a vSMMU stands on it; nothing is changed.
    pub fn remove_domain(&mut self, index: u16) -> Result<Domain, Refused> {
        let domain = *self.domain(index)?;
        if domain.streams != 0 || domain.vsmmus != 0 {
            return Err(Refused::Busy);
        }
        if let Some(place) = self.domains.get_mut(usize::from(index)) {
            *place = None;
        }
        Ok(domain)
    }

    /// A place for a vSMMU.
    pub fn free_vsmmu_place(&self) -> Result<u16, Refused> {
        (0..VsmmuHandle::MAX).find(|place| self.vsmmu(*place).is_err()).ok_or(Refused::NoSpace)
    }

    /// Puts a vSMMU at a free place.
    pub fn put_vsmmu(&mut self, place: u16, owner: Principal, smmu: u8, parent: u16, vmid: u16) {
        let generation = self.generation;
        self.generation = generation.wrapping_add(1);
        if let Some(slot) = self.vsmmus.get_mut(usize::from(place)) {
            *slot =
                Some(Vsmmu { owner, generation, smmu, parent, vmid, domains: 0, streams: SortedMap::new() });
        }
    }

    pub fn remove_vsmmu(&mut self, place: u16) {
        if let Some(slot) = self.vsmmus.get_mut(usize::from(place)) {
            *slot = None;
        }
    }

    /// The first domain that a call made for an owner, if `wanted` accepts it.
    pub fn find_created(&self, owner: Principal, wanted: impl Fn(&Kind) -> bool) -> Option<u16> {
        (DomainHandle::FIRST_CREATED..DomainHandle::MAX).find(|index| {
            self.domain(*index).is_ok_and(|domain| domain.owner == owner && wanted(&domain.kind))
        })
    }

    /// The first vSMMU of an owner.
    pub fn vsmmu_of(&self, owner: Principal) -> Option<u16> {
        (0..VsmmuHandle::MAX).find(|place| self.vsmmu(*place).is_ok_and(|vsmmu| vsmmu.owner == owner))
    }
}

/// The memory domain of a guest.
pub(crate) const fn memory_domain(guest: GuestHandle) -> DomainIndex {
    DomainIndex(guest.to_register() as u16)
}

/// The place of a domain in all tables of domains: 0 the host's, 1 to 64 the guests' memory domains.
pub(crate) const fn index_of(domain: DomainHandle) -> u16 {
    match domain {
        DomainHandle::Host => HOST.0,
        DomainHandle::Guest(guest) => memory_domain(guest).0,
        DomainHandle::Created(created) => created.place,
    }
}
