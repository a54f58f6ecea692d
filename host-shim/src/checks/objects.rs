//! Objects of the host's that end with the value that stands for them: a check that fails half-way leaves none behind. Those of a guest end
//! with the guest.
//!
//! When a value goes, refusals are passed over. A check that has come to its end ends its objects itself, and looks at the answers.

use super::Stop;
use super::support::good;
use crate::call::{Calls, DomainCalls, VsmmuCalls};
use crate::host::{Device, Host};
use abi::{DomainHandle, VsmmuHandle};

/// A vSMMU.
pub struct Vsmmu<'h, H: Host> {
    host: &'h H,
    /// Its handle.
    pub handle: VsmmuHandle,
    /// Its VMID.
    pub vmid: u64,
}

impl<'h, H: Host> Vsmmu<'h, H> {
    /// A vSMMU on a domain.
    pub fn create(host: &'h H, smmu: usize, domain: DomainHandle) -> Result<Self, Stop> {
        let (handle, vmid) = good("VSMMU_CREATE", host.create_vsmmu(smmu, domain))?;
        Ok(Self { host, handle, vmid })
    }

    /// Ends it.
    pub fn end(self) -> Result<(), Stop> {
        good("VSMMU_DESTROY", self.host.destroy_vsmmu(self.handle))
    }
}

impl<H: Host> Drop for Vsmmu<'_, H> {
    fn drop(&mut self) {
        let _ = self.host.destroy_vsmmu(self.handle);
    }
}

/// A StreamID of a vSMMU.
pub struct Member<'h, H: Host> {
    host: &'h H,
    vsmmu: VsmmuHandle,
    /// The StreamID in the vSMMU.
    pub virtual_stream: u32,
}

impl<'h, H: Host> Member<'h, H> {
    /// Gives a stream a StreamID in a vSMMU.
    pub fn add(host: &'h H, vsmmu: VsmmuHandle, virtual_stream: u32, stream: u32) -> Result<Self, Stop> {
        good("VSMMU_ADD_STREAM", host.add_stream(vsmmu, virtual_stream, stream))?;
        Ok(Self { host, vsmmu, virtual_stream })
    }

    /// Takes it out of the vSMMU.
    pub fn end(self) -> Result<(), Stop> {
        good("VSMMU_REMOVE_STREAM", self.host.remove_stream(self.vsmmu, self.virtual_stream))
    }
}

impl<H: Host> Drop for Member<'_, H> {
    fn drop(&mut self) {
        let _ = self.host.remove_stream(self.vsmmu, self.virtual_stream);
    }
}

/// A nested domain.
pub struct Nested<'h, H: Host> {
    host: &'h H,
    /// Its handle.
    pub handle: DomainHandle,
}

impl<'h, H: Host> Nested<'h, H> {
    /// A nested domain on a vSMMU.
    pub fn create(host: &'h H, vsmmu: VsmmuHandle, words: [u64; 2]) -> Result<Self, Stop> {
        Ok(Self { host, handle: good("DOMAIN_CREATE_NESTED", host.create_nested(vsmmu, words))? })
    }

    /// Ends it.
    pub fn end(self) -> Result<(), Stop> {
        good("DOMAIN_DESTROY", self.host.destroy_domain(self.handle))
    }
}

impl<H: Host> Drop for Nested<'_, H> {
    /// Detaches its streams first.
    fn drop(&mut self) {
        for smmu in 0..self.host.smmus() {
            for stream in Device::ALL.into_iter().filter_map(|device| self.host.stream(smmu, device)) {
                if let Ok(Some(attachment)) = self.host.attachment(smmu, stream)
                    && attachment.domain == self.handle.to_register()
                {
                    let _ = self.host.detach(smmu, stream);
                }
            }
        }
        let _ = self.host.destroy_domain(self.handle);
    }
}
