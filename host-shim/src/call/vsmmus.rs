//! Calls about vSMMUs.

use super::{Caller, Refused, malformed};
use abi::{DomainHandle, Function, VsmmuHandle};

/// What VSMMU_QUERY_STREAM answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualStream {
    /// StreamID on the SMMU.
    pub stream: u64,
    /// Register value of the nested domain that it is attached to.
    pub domain: Option<u64>,
}

/// The calls about vSMMUs. Errors are those of [`abi::TABLE`].
pub trait VsmmuCalls: Caller {
    /// VSMMU_CREATE: its handle and its VMID.
    fn create_vsmmu(&self, smmu: usize, domain: DomainHandle) -> Result<(VsmmuHandle, u64), Refused> {
        let [vsmmu, vmid, ..] =
            self.call(Function::VsmmuCreate, [smmu as u64, domain.to_register(), 0, 0])?;
        Ok((VsmmuHandle::from_register(vsmmu).ok_or(malformed(vsmmu))?, vmid))
    }

    /// VSMMU_DESTROY.
    fn destroy_vsmmu(&self, vsmmu: VsmmuHandle) -> Result<(), Refused> {
        self.call(Function::VsmmuDestroy, [vsmmu.to_register(), 0, 0, 0]).map(|_| ())
    }

    /// VSMMU_ADD_STREAM: `stream` is that of the SMMU.
    fn add_stream(&self, vsmmu: VsmmuHandle, virtual_stream: u32, stream: u32) -> Result<(), Refused> {
        let arguments = [vsmmu.to_register(), u64::from(virtual_stream), u64::from(stream), 0];
        self.call(Function::VsmmuAddStream, arguments).map(|_| ())
    }

    /// VSMMU_REMOVE_STREAM.
    fn remove_stream(&self, vsmmu: VsmmuHandle, virtual_stream: u32) -> Result<(), Refused> {
        self.call(Function::VsmmuRemoveStream, [vsmmu.to_register(), u64::from(virtual_stream), 0, 0])
            .map(|_| ())
    }

    /// VSMMU_QUERY_STREAM.
    fn virtual_stream(&self, vsmmu: VsmmuHandle, virtual_stream: u32) -> Result<VirtualStream, Refused> {
        let arguments = [vsmmu.to_register(), u64::from(virtual_stream), 0, 0];
        let [stream, nested, domain, _] = self.call(Function::VsmmuQueryStream, arguments)?;
        Ok(VirtualStream { stream, domain: (nested != 0).then_some(domain) })
    }

    /// VSMMU_INVALIDATE: `count` commands at the physical address `commands`.
    fn invalidate(&self, vsmmu: VsmmuHandle, commands: u64, count: u64) -> Result<(), Refused> {
        let [done, ..] = self.call(Function::VsmmuInvalidate, [vsmmu.to_register(), commands, count, 0])?;
        if done == count { Ok(()) } else { Err(malformed(done)) }
    }
}

impl<C: Caller + ?Sized> VsmmuCalls for C {}
