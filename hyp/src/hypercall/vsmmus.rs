//! Calls about vSMMUs.

use abi::{DomainHandle, MAX_INVALIDATIONS, Principal, Status, VsmmuHandle};
use smmuv3::address::PhysAddr;
use smmuv3::command::{COMMAND_BYTES, Command};

use super::Outcome;
use crate::hypervisor::Hypervisor;
use crate::iommu::{OwnerCommands, Refused};
use crate::memory::Failure;
use crate::platform::Platform;

/// The commands of one call lie in one page of this size.
const PAGE_BYTES: u64 = 4096;

impl<P: Platform> Hypervisor<P> {
    pub(super) fn vsmmu_create(&self, smmu: u64, domain: u64) -> Outcome {
        let smmu = self.claimed_smmu(smmu)?;
        let domain = DomainHandle::from_register(domain).ok_or(Status::UnknownDomain)?;
        let _streams = self.streams.lock();
        if let Principal::Guest(guest) = self.iommu.owner_of(domain)? {
            self.memory.lock().check_alive(guest)?;
        }
        let (vsmmu, vmid) = self.iommu.create_vsmmu(&self.platform, smmu, domain)?;
        Ok([vsmmu.to_register(), vmid.into(), 0, 0])
    }

    pub(super) fn vsmmu_destroy(&self, vsmmu: u64) -> Outcome {
        // With this lock nobody takes the guest apart, here and below.
        let _streams = self.streams.lock();
        let vsmmu = self.claimed_vsmmu(vsmmu)?;
        self.iommu.destroy_vsmmu(&self.platform, vsmmu)?;
        Ok([0; 4])
    }

    pub(super) fn vsmmu_add_stream(&self, vsmmu: u64, virtual_stream: u64, stream: u64) -> Outcome {
        let _streams = self.streams.lock();
        let vsmmu = self.claimed_vsmmu(vsmmu)?;
        let stream = u32::try_from(stream).map_err(|_| Status::UnknownStream)?;
        let virtual_stream = u32::try_from(virtual_stream).map_err(|_| Status::Invalid)?;
        let mut pages = self.pages();
        let p = &self.platform;
        let added = self.iommu.add_virtual_stream(p, vsmmu, virtual_stream, stream, &mut pages);
        added.map_err(|refused| pages.failure(refused))?;
        Ok([0; 4])
    }

    pub(super) fn vsmmu_remove_stream(&self, vsmmu: u64, virtual_stream: u64) -> Outcome {
        let (smmu, stream) = {
            let _streams = self.streams.lock();
            let vsmmu = self.claimed_vsmmu(vsmmu)?;
            let virtual_stream = u32::try_from(virtual_stream).map_err(|_| Status::UnknownStream)?;
            self.iommu.remove_virtual_stream(&self.platform, vsmmu, virtual_stream, &mut self.pages())?
        };
        // The lock of an emulated SMMU comes before that of the streams.
        self.return_stream(smmu, stream);
        Ok([0; 4])
    }

    pub(super) fn vsmmu_query_stream(&self, vsmmu: u64, virtual_stream: u64) -> Outcome {
        let vsmmu = VsmmuHandle::from_register(vsmmu).ok_or(Status::UnknownVsmmu)?;
        let found = u32::try_from(virtual_stream)
            .map_err(|_| Refused::UnknownStream)
            .and_then(|id| self.iommu.query_virtual_stream(&self.platform, vsmmu, id))?;
        let domain = found.domain.map_or(0, DomainHandle::to_register);
        Ok([found.stream.into(), found.domain.is_some().into(), domain, 0])
    }

    pub(super) fn vsmmu_invalidate(&self, vsmmu: u64, start: u64, count: u64) -> Outcome {
        let vsmmu = self.claimed_vsmmu(vsmmu)?;
        if count == 0 || count > MAX_INVALIDATIONS {
            return Err(Status::Invalid.into());
        }
        let size = count * COMMAND_BYTES;
        if !start.is_multiple_of(COMMAND_BYTES) || start % PAGE_BYTES + size > PAGE_BYTES {
            return Err(Status::Unaligned.into());
        }
        let mut claimed = {
            // Under the lock the page stays the host's, and what is copied is the host's to show.
            let memory = self.memory.lock();
            memory.check_host_page(&self.platform, PhysAddr(start))?;
            let word = |offset| self.platform.read_host_u64(PhysAddr(start + offset));
            let offsets = (0..size).step_by(COMMAND_BYTES as usize);
            OwnerCommands::new(offsets.map(|offset| Command([word(offset), word(offset + 8)])))
        };
        self.iommu.invalidate_by_owner(&self.platform, vsmmu, &mut claimed)?;
        Ok([count, 0, 0, 0])
    }

    /// A vSMMU that a caller claims, whose owner is not being taken apart. Whether it exists is the IOMMU service's to say.
    fn claimed_vsmmu(&self, register: u64) -> Result<VsmmuHandle, Failure> {
        let vsmmu = VsmmuHandle::from_register(register).ok_or(Status::UnknownVsmmu)?;
        self.iommu.check_vsmmu(vsmmu)?;
        self.check_owner_alive(vsmmu.0, Status::UnknownVsmmu)?;
        Ok(vsmmu)
    }
}
