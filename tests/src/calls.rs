//! The calls about domains and vSMMUs, as methods of [`Bench`].

use crate::bench::{Bench, COMMANDS};
use abi::{Function, Reason, Statistic, Status, attach};
use host_shim::call::Calls;

/// An answer; with an error comes what is in `X1`.
pub type Detail<T> = Result<T, (Status, u64)>;

/// What STREAM_ATTACH with an SMMU that cannot do it answers.
pub const fn incompatible<T>(reason: Reason) -> Detail<T> {
    Err((Status::Incompatible, reason as u64))
}

impl Bench {
    /// DOMAIN_CREATE.
    pub fn domain(&self, guest: u64, options: u64) -> Result<u64, Status> {
        self.call(Function::DomainCreate, [guest, options, 0, 0]).map(|[domain, ..]| domain)
    }

    /// DOMAIN_DESTROY.
    pub fn destroy(&self, domain: u64) -> Result<(), Status> {
        self.call(Function::DomainDestroy, [domain, 0, 0, 0]).map(drop)
    }

    /// DOMAIN_MAP, repeated until all is mapped.
    pub fn map(&self, domain: u64, ipa: u64, start: u64, size: u64) -> Result<(), Status> {
        let mut done = 0;
        while done < size {
            done +=
                self.call(Function::DomainMap, [domain, ipa + done, start + done, size - done])?[0].max(1);
        }
        Ok(())
    }

    /// DOMAIN_UNMAP, repeated until all is unmapped.
    pub fn unmap(&self, domain: u64, ipa: u64, size: u64) -> Result<(), Status> {
        let mut done = 0;
        while done < size {
            done += self.call(Function::DomainUnmap, [domain, ipa + done, size - done, 0])?[0].max(1);
        }
        Ok(())
    }

    /// VSMMU_CREATE.
    pub fn vsmmu(&self, smmu: usize, parent: u64) -> Result<u64, Status> {
        self.call(Function::VsmmuCreate, [smmu as u64, parent, 0, 0]).map(|[vsmmu, ..]| vsmmu)
    }

    /// VSMMU_ADD_STREAM of a device.
    pub fn add_stream(
        &self,
        vsmmu: u64,
        virtual_stream: u64,
        smmu: usize,
        device: usize,
    ) -> Result<(), Status> {
        let stream = u64::from(self.devices[smmu][device].stream);
        self.call(Function::VsmmuAddStream, [vsmmu, virtual_stream, stream, 0]).map(drop)
    }

    /// DOMAIN_CREATE_NESTED.
    pub fn nested(&self, vsmmu: u64, [word0, word1]: [u64; 2]) -> Detail<u64> {
        self.call_detail(Function::DomainCreateNested, [vsmmu, word0, word1, 0]).map(|[domain, ..]| domain)
    }

    /// STREAM_ATTACH of a device with flags.
    pub fn attach_with(&self, smmu: usize, device: usize, domain: u64, flags: u64) -> Detail<()> {
        let stream = u64::from(self.devices[smmu][device].stream);
        self.call_detail(Function::StreamAttach, [smmu as u64, stream, domain, flags]).map(drop)
    }

    /// STREAM_ATTACH of a device that is attached.
    pub fn replace(&self, smmu: usize, device: usize, domain: u64) -> Result<(), Status> {
        self.attach_with(smmu, device, domain, attach::REPLACE).map_err(|(status, _)| status)
    }

    /// Makes a call while these devices (SMMU, device) do not answer ATC invalidations, however often they are asked.
    pub fn while_silent<T>(&self, devices: &[(usize, usize)], call: impl FnOnce() -> T) -> T {
        let stream = |&(smmu, device): &(usize, usize)| (smmu, self.devices[smmu][device].stream);
        for (smmu, stream) in devices.iter().map(stream) {
            self.machine().smmus[smmu].atc.silent.insert(stream);
        }
        let result = call();
        for (smmu, stream) in devices.iter().map(stream) {
            self.machine().smmus[smmu].atc.silent.remove(&stream);
        }
        result
    }

    /// The domain that a device is attached to.
    pub fn attached_to(&self, smmu: usize, device: usize) -> Option<u64> {
        let stream = u64::from(self.devices[smmu][device].stream);
        match self.call(Function::StreamQuery, [smmu as u64, stream, 0, 0]) {
            Ok([1, domain, ..]) => Some(domain),
            _ => None,
        }
    }

    /// VSMMU_INVALIDATE with these commands, which the host writes to a page of its own.
    pub fn invalidate(&self, vsmmu: u64, commands: &[[u64; 2]]) -> Detail<u64> {
        {
            let mut machine = self.machine();
            for (word, offset) in commands.iter().flatten().zip((0..).step_by(8)) {
                machine.memory.write(COMMANDS + offset, *word);
            }
        }
        self.call_detail(Function::VsmmuInvalidate, [vsmmu, COMMANDS, commands.len() as u64, 0])
            .map(|[done, ..]| done)
    }

    /// GUEST_TEARDOWN until the guest is gone; the number of steps.
    pub fn tear_down(&self, guest: u64) -> Result<u64, Status> {
        for step in 1..100_000 {
            if self.call(Function::GuestTeardown, [guest, 0, 0, 0])?[0] == 0 {
                return Ok(step);
            }
        }
        self.machine().violations.record(format!("the end of guest {guest} does not come"));
        Err(Status::Busy)
    }

    /// VMIDs of an SMMU that are in use when nothing is attached: for unattached streams and, where it can nest, for those of the host's own driver.
    pub fn idle_vmids(&self, smmu: usize) -> u64 {
        let features = self.call(Function::SmmuFeatures, [smmu as u64, 0, 0, 0]).unwrap_or_default();
        1 + (features[0] >> 1 & 1)
    }

    /// VMIDs in use and free on an SMMU.
    pub fn tags(&self, smmu: usize) -> (u64, u64) {
        let tags = self.call(Function::SmmuTags, [smmu as u64, 0, 0, 0]);
        tags.map_or((0, 0), |[used, free, ..]| (used, free))
    }

    /// STATISTICS.
    ///
    /// # Panics
    /// It is refused.
    pub fn statistic(&self, wanted: Statistic) -> u64 {
        Calls::statistic(self, wanted).unwrap_or_else(|refused| panic!("{wanted:?}: {refused:?}"))
    }

    /// Where an address of a stage-2 domain leads.
    pub fn query(&self, domain: u64, ipa: u64) -> Option<u64> {
        self.call(Function::DomainQuery, [domain, ipa, 0, 0]).ok().map(|[address, ..]| address)
    }
}
