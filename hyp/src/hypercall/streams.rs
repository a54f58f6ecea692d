//! Calls about SMMUs, streams and events.

use abi::{DomainHandle, Status};

use super::Outcome;
use crate::hypervisor::{GuestStream, Hypervisor, MAX_GUEST_STREAMS, PoolPages};
use crate::iommu::{Refused, StreamState};
use crate::list::List;
use crate::memory::{Failure, HeldSet};
use crate::pci::{self, HoldError};
use crate::platform::Platform;
use crate::smmu::Condition;

impl<P: Platform> Hypervisor<P> {
    pub(super) fn smmu_describe(&self, smmu: u64) -> Outcome {
        let smmu = self.claimed_smmu(smmu)?;
        let (description, vmids_in_use, vmid_max) = self.iommu.describe(smmu).ok_or(Status::UnknownSmmu)?;
        let dead = matches!(description.condition, Condition::Dead | Condition::Lost);
        let vmids = u64::from(vmids_in_use) | u64::from(vmid_max) << 16;
        Ok([description.base.0, description.stream_bits.into(), vmids, dead.into()])
    }

    pub(super) fn stream_query(&self, smmu: u64, stream: u64) -> Outcome {
        let (smmu, stream) = self.claimed_stream(smmu, stream)?;
        match self.iommu.attachments().query(&self.platform, smmu, stream)? {
            StreamState::Unattached => Ok([0; 4]),
            StreamState::Attached { domain, vmid } => Ok([1, domain.to_register(), vmid.into(), 0]),
        }
    }

    pub(super) fn stream_attach(&self, smmu: u64, stream: u64, domain: u64) -> Outcome {
        let (smmu, stream) = self.claimed_stream(smmu, stream)?;
        let mut streams = self.streams.lock();
        // Whoever ends the machine sets this first and then takes the lock.
        if self.is_ending() {
            return Err(Status::Busy.into());
        }
        // What is wrong with the stream is said before what is wrong with the domain.
        let state = self.iommu.attachments().query(&self.platform, smmu, stream)?;
        let domain = DomainHandle::from_register(domain).ok_or(Status::UnknownGuest)?;
        if let DomainHandle::Guest(guest) = domain
            && self.memory.lock().guest_table(guest).is_none()
        {
            return Err(Status::UnknownGuest.into());
        }
        if state != StreamState::Unattached {
            return Err(Status::Busy.into());
        }
        match domain {
            DomainHandle::Host => self.attach(smmu, stream, domain)?,
            DomainHandle::Guest(_) => self.attach_to_guest(&mut streams, smmu, stream, domain)?,
        }
        Ok([0; 4])
    }

    /// Holds the function's config space and BARs, then attaches it; with `streams` locked.
    fn attach_to_guest(
        &self,
        streams: &mut List<GuestStream, MAX_GUEST_STREAMS>,
        smmu: usize,
        stream: u32,
        domain: DomainHandle,
    ) -> Result<(), Failure> {
        let machine = self.machine().ok_or(Status::UnknownStream)?;
        let function = pci::find_function(machine, smmu, stream).map_err(|error| error.status())?;
        if streams.len() == streams.capacity() {
            return Err(Status::NoSpace.into());
        }
        let caches = self.caches();
        let cx = self.context(&caches);
        let mut held = HeldSet::EMPTY;
        let hold = &mut |range| self.memory.lock().hold(&cx, range, &mut held);
        let roots = self.root_bridges();
        let attached = match pci::hold_function(&self.platform, machine, roots, function, hold) {
            Ok(()) => self.attach(smmu, stream, domain),
            Err(HoldError::Pci(error)) => Err(error.status().into()),
            Err(HoldError::Hold(failure)) => Err(failure),
        };
        // After a failure too it can be attached, if the SMMU is lost: it may translate by the guest's table, and what
        // is held stays held for as long.
        let unattached = Ok(StreamState::Unattached);
        if attached.is_ok() || self.iommu.attachments().query(&self.platform, smmu, stream) != unattached {
            // There is room, see above.
            let _ = streams.push(GuestStream { smmu, stream, held });
        } else {
            self.memory.lock().release(&cx, &mut held);
        }
        attached
    }

    fn attach(&self, smmu: usize, stream: u32, domain: DomainHandle) -> Result<(), Failure> {
        let mut pages = PoolPages { p: &self.platform, pool: &self.pool, missing: 0 };
        let result = self.iommu.attachments().attach(&self.platform, smmu, stream, domain, &mut pages);
        result.map_err(|refused| match refused {
            Refused::NoMemory { .. } => Failure { status: Status::NoMemory, missing_pages: pages.missing },
            other => other.into(),
        })
    }

    pub(super) fn stream_detach(&self, smmu: u64, stream: u64) -> Outcome {
        let (smmu, stream) = self.claimed_stream(smmu, stream)?;
        let mut streams = self.streams.lock();
        let place = streams.position(|known| known.smmu == smmu && known.stream == stream);
        let held = place.and_then(|place| streams.get(place)).map(|known| known.held);
        let caches = self.caches();
        let cx = self.context(&caches);
        if let Some(held) = held {
            self.memory.lock().can_release(&cx, held)?;
        }
        self.iommu.attachments().detach(&self.platform, smmu, stream)?;
        if let (Some(place), Some(mut held)) = (place, held) {
            streams.swap_remove(place);
            self.memory.lock().release(&cx, &mut held);
        }
        Ok([0; 4])
    }

    pub(super) fn event_read(&self) -> Outcome {
        let (event, lost) = self.iommu.read_event(&self.platform).ok_or(Status::Empty)?;
        Ok([event.source, event.address, event.ipa, lost])
    }

    fn claimed_smmu(&self, register: u64) -> Result<usize, Status> {
        let index = usize::try_from(register).map_err(|_| Status::UnknownSmmu)?;
        if index < self.iommu.set().count() { Ok(index) } else { Err(Status::UnknownSmmu) }
    }

    fn claimed_stream(&self, smmu: u64, stream: u64) -> Result<(usize, u32), Status> {
        let smmu = self.claimed_smmu(smmu)?;
        // Whether the SMMU has the StreamID is the IOMMU service's to say.
        Ok((smmu, u32::try_from(stream).map_err(|_| Status::UnknownStream)?))
    }
}
