//! Calls about domains that calls make.

use abi::{DomainHandle, GuestHandle, ObjectHandle, Status, VsmmuHandle, domain_options};
use smmuv3::address::PhysAddr;

use super::Outcome;
use crate::hypervisor::Hypervisor;
use crate::iommu::{DomainKind, DomainTag};
use crate::platform::Platform;

/// Register values of kinds of domains (`DOMAIN_DESCRIBE`).
const STAGE_2: u64 = 0;
const NESTED: u64 = 1;
const EMULATED: u64 = 2;

impl<P: Platform> Hypervisor<P> {
    pub(super) fn domain_create(&self, guest: u64, options: u64) -> Outcome {
        let guest = GuestHandle::from_register(guest).ok_or(Status::UnknownGuest)?;
        if options & !domain_options::BLOCKS != 0 {
            self.memory.lock().check_alive(guest)?;
            return Err(Status::Invalid.into());
        }
        // With this lock nobody else makes a domain, or ends the guest.
        let _streams = self.streams.lock();
        let caches = self.caches();
        let cx = self.context(&caches);
        let index = self.iommu.reserve_domain();
        let table = {
            let mut memory = self.memory.lock();
            // What is wrong with the guest is said before what there is no room for.
            memory.check_alive(guest)?;
            memory.create_guest_domain(&cx, guest, index?, options & domain_options::BLOCKS != 0)?
        };
        let created = index.and_then(|index| self.iommu.create_stage2(index, guest, table));
        let mut memory = self.memory.lock();
        match created {
            Ok(handle) => {
                memory.name_guest_domain(handle);
                Ok([DomainHandle::Created(handle).to_register(), 0, 0, 0])
            }
            Err(refused) => {
                // It maps nothing, so it goes.
                let _ = memory.destroy_guest_domain(&cx, index?);
                Err(refused.into())
            }
        }
    }

    pub(super) fn domain_create_nested(&self, vsmmu: u64, word0: u64, word1: u64) -> Outcome {
        let vsmmu = VsmmuHandle::from_register(vsmmu).ok_or(Status::UnknownVsmmu)?;
        let _streams = self.streams.lock();
        self.check_owner_alive(vsmmu.0, Status::UnknownVsmmu)?;
        let domain = self.iommu.create_nested(vsmmu, [word0, word1])?;
        Ok([domain.to_register(), 0, 0, 0])
    }

    pub(super) fn domain_destroy(&self, domain: u64) -> Outcome {
        let handle = claimed_created(domain)?;
        let _streams = self.streams.lock();
        let domain = DomainHandle::Created(handle);
        self.iommu.owner_of(domain)?;
        self.check_owner_alive(handle, Status::UnknownDomain)?;
        self.destroy_created(handle)?;
        Ok([0; 4])
    }

    /// Ends a domain that a call made, with `streams` locked.
    pub(super) fn destroy_created(&self, handle: ObjectHandle) -> Result<(), crate::memory::Failure> {
        let domain = DomainHandle::Created(handle);
        if self.iommu.describe_domain(domain)?.kind != DomainKind::Stage2 {
            return Ok(self.iommu.destroy_domain(domain)?);
        }
        // Nothing more can be mapped in it from here on; if a stream is attached, it goes on.
        let index = self.memory.lock().begin_destroy_guest_domain(handle)?;
        let destroyed = self.iommu.destroy_domain(domain);
        let caches = self.caches();
        let mut memory = self.memory.lock();
        match destroyed {
            Ok(()) => Ok(memory.destroy_guest_domain(&self.context(&caches), index)?),
            Err(refused) => {
                memory.name_guest_domain(handle);
                Err(refused.into())
            }
        }
    }

    pub(super) fn domain_map(&self, domain: u64, ipa: u64, start: u64, size: u64) -> Outcome {
        let handle = claimed_created(domain)?;
        let caches = self.caches();
        let mut memory = self.memory.lock();
        memory.find_guest_domain(handle)?;
        let step = memory.step(start, size)?;
        memory.map_in_domain(&self.context(&caches), handle, ipa, &step)?;
        Ok([step.range().size_bytes(), 0, 0, 0])
    }

    pub(super) fn domain_unmap(&self, domain: u64, ipa: u64, size: u64) -> Outcome {
        let handle = claimed_created(domain)?;
        let caches = self.caches();
        let done = self.memory.lock().unmap_in_domain(&self.context(&caches), handle, ipa, size)?;
        Ok([done, 0, 0, 0])
    }

    pub(super) fn domain_query(&self, domain: u64, ipa: u64) -> Outcome {
        let domain = DomainHandle::from_register(domain).ok_or(Status::UnknownDomain)?;
        let (PhysAddr(address), size) = self.memory.lock().domain_lookup(&self.platform, domain, ipa)?;
        Ok([address, size, 0, 0])
    }

    pub(super) fn domain_describe(&self, domain: u64) -> Outcome {
        let domain = DomainHandle::from_register(domain).ok_or(Status::UnknownDomain)?;
        let found = self.iommu.describe_domain(domain)?;
        let (kind, parent) = match found.kind {
            DomainKind::Stage2 => (STAGE_2, 0),
            DomainKind::Nested(vsmmu) => (NESTED, vsmmu),
            DomainKind::Emulated(smmu) => (EMULATED, smmu),
        };
        Ok([kind, parent, found.streams.into(), found.vsmmus.into()])
    }

    pub(super) fn domain_tag(&self, domain: u64, smmu: u64) -> Outcome {
        let domain = DomainHandle::from_register(domain).ok_or(Status::UnknownDomain)?;
        self.iommu.owner_of(domain)?;
        let smmu = self.claimed_smmu(smmu)?;
        Ok(match self.iommu.domain_tag(&self.platform, domain, smmu)? {
            DomainTag::None => [0; 4],
            DomainTag::Own(vmid, users) => [1, vmid.into(), users.into(), 0],
            DomainTag::Vsmmu(vmid, users) => [2, vmid.into(), users.into(), 0],
        })
    }

    /// Whether the owner of an object can be given something; an owner that does not exist has no objects.
    pub(super) fn check_owner_alive(&self, handle: ObjectHandle, unknown: Status) -> Result<(), Status> {
        match handle.owner {
            abi::Principal::Host => Ok(()),
            abi::Principal::Guest(guest) => match self.memory.lock().check_alive(guest) {
                Err(Status::UnknownGuest) => Err(unknown),
                checked => checked,
            },
        }
    }
}

/// A domain that a call made, as a caller claims it.
fn claimed_created(register: u64) -> Result<ObjectHandle, Status> {
    match DomainHandle::from_register(register) {
        Some(DomainHandle::Created(handle)) => Ok(handle),
        Some(DomainHandle::Host | DomainHandle::Guest(_)) | None => Err(Status::UnknownDomain),
    }
}
