//! Calls about SMMUs, streams and events.

use abi::{DomainHandle, Principal, Status, attach};

use super::Outcome;
use crate::hypervisor::{GuestStream, Hypervisor, MAX_GUEST_STREAMS};
use crate::iommu::{How, StreamState};
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

    pub(super) fn smmu_tags(&self, smmu: u64) -> Outcome {
        let (used, free) = self.iommu.vmids(self.claimed_smmu(smmu)?).ok_or(Status::UnknownSmmu)?;
        Ok([used.into(), free.into(), 0, 0])
    }

    pub(super) fn smmu_features(&self, smmu: u64) -> Outcome {
        let ids = self.iommu.owner_id_registers(self.claimed_smmu(smmu)?).ok_or(Status::UnknownSmmu)?;
        Ok([ids.idr0, ids.idr1, ids.idr3, ids.idr5].map(u64::from))
    }

    pub(super) fn stream_query(&self, smmu: u64, stream: u64) -> Outcome {
        let (smmu, stream) = self.claimed_stream(smmu, stream)?;
        match self.iommu.query(&self.platform, smmu, stream)? {
            StreamState::Unattached => Ok([0; 4]),
            StreamState::Attached { domain, vmid } => Ok([1, domain.to_register(), vmid.into(), 0]),
        }
    }

    pub(super) fn stream_attach(&self, smmu: u64, stream: u64, domain: u64, flags: u64) -> Outcome {
        let (smmu, stream) = self.claimed_stream(smmu, stream)?;
        let how = How { replace: flags & attach::REPLACE != 0, ats: flags & attach::ATS != 0 };
        let mut streams = self.streams.lock();
        // Whoever ends the machine sets this first and then takes the lock.
        if self.is_ending() {
            return Err(Status::Busy.into());
        }
        let domain = DomainHandle::from_register(domain);
        let is_defined = flags & !(attach::REPLACE | attach::ATS) == 0;
        if let Some(domain) = domain.filter(|domain| domain.owner() == Principal::Host && is_defined) {
            self.attach(smmu, stream, domain, how)?;
            return Ok([0; 4]);
        }
        // What is wrong with the stream is said before what is wrong with the domain.
        let state = self.iommu.query(&self.platform, smmu, stream)?;
        let domain = domain.ok_or(Status::UnknownDomain)?;
        let owner = self.iommu.owner_of(domain)?;
        if !is_defined {
            return Err(Status::Invalid.into());
        }
        if let Principal::Guest(guest) = owner {
            self.memory.lock().check_alive(guest)?;
        }
        match (state, owner) {
            (StreamState::Attached { .. }, _) if !how.replace => return Err(Status::Busy.into()),
            // Before anything is held for it.
            (StreamState::Unattached, _) if how.replace => return Err(Status::WrongState.into()),
            (StreamState::Unattached, Principal::Guest(guest)) => {
                self.attach_to_guest(&mut streams, smmu, stream, domain, how, guest)?;
            }
            // What a guest's stream rests on is held since it was attached first.
            (StreamState::Attached { .. }, _) | (StreamState::Unattached, Principal::Host) => {
                self.attach(smmu, stream, domain, how)?;
            }
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
        how: How,
        guest: abi::GuestHandle,
    ) -> Result<(), Failure> {
        let machine = self.machine().ok_or(Status::UnknownStream)?;
        let function = pci::find_function(machine, smmu, stream).map_err(|error| error.status())?;
        if streams.len() == streams.capacity() {
            return Err(Status::NoSpace.into());
        }
        let caches = self.caches();
        let cx = self.context(&caches);
        let (mut held, mut spare) = (HeldSet::EMPTY, cx.spare());
        let hold = &mut |range| self.memory.lock().hold(&cx, range, &mut held, &mut spare);
        let roots = self.root_bridges();
        let attached = match pci::hold_function(&self.platform, machine, roots, function, hold) {
            Ok(()) => self.attach(smmu, stream, domain, how),
            Err(HoldError::Pci(error)) => Err(error.status().into()),
            Err(HoldError::Hold(failure)) => Err(failure),
        };
        // After a failure too it can be the guest's, if the SMMU is lost: it may translate by the guest's table, and what is held stays held
        // for as long. Or the host's driver has taken it since it was found free, and it is the host's.
        let is_guests = || {
            let state = self.iommu.query(&self.platform, smmu, stream);
            matches!(state, Ok(StreamState::Attached { domain, .. }) if domain.owner() == Principal::Guest(guest))
        };
        if attached.is_ok() || is_guests() {
            // There is room, see above.
            let _ = streams.push(GuestStream { guest, smmu, stream, held });
        } else {
            self.memory.lock().release(&cx, &mut held, &mut spare);
        }
        attached
    }

    fn attach(&self, smmu: usize, stream: u32, domain: DomainHandle, how: How) -> Result<(), Failure> {
        let mut pages = self.pages();
        let result = self.iommu.attach(&self.platform, smmu, stream, domain, how, &mut pages);
        result.map_err(|refused| pages.failure(refused))
    }

    pub(super) fn stream_detach(&self, smmu: u64, stream: u64) -> Outcome {
        let (smmu, stream) = self.claimed_stream(smmu, stream)?;
        let has_driver = {
            let mut streams = self.streams.lock();
            let place = streams.position(|known| known.smmu == smmu && known.stream == stream);
            if let Some(known) = place.and_then(|place| streams.get(place)) {
                self.memory.lock().check_alive(known.guest)?;
            }
            self.detach(&mut streams, smmu, stream, place)?
        };
        if has_driver {
            self.return_stream(smmu, stream);
        }
        Ok([0; 4])
    }

    /// Detaches a stream, and gives the host back what was held for it, if it stands at `place` of the guests' streams. Answers as
    /// [`crate::iommu::Iommu::detach`] does.
    pub(super) fn detach(
        &self,
        streams: &mut List<GuestStream, MAX_GUEST_STREAMS>,
        smmu: usize,
        stream: u32,
        place: Option<usize>,
    ) -> Result<bool, Failure> {
        let held = place.and_then(|place| streams.get(place)).map(|known| known.held);
        let caches = self.caches();
        let cx = self.context(&caches);
        let mut spare = cx.spare();
        if let Some(held) = held {
            self.memory.lock().reserve_release(&cx, held, &mut spare)?;
        }
        let has_driver = self.iommu.detach(&self.platform, smmu, stream, &mut self.pages())?;
        if let (Some(place), Some(mut held)) = (place, held) {
            streams.swap_remove(place);
            self.memory.lock().release(&cx, &mut held, &mut spare);
        }
        Ok(has_driver)
    }

    pub(super) fn event_read(&self) -> Outcome {
        let (event, lost) = self.iommu.read_event(&self.platform).ok_or(Status::Empty)?;
        Ok([event.source, event.address, event.ipa, lost])
    }

    pub(super) fn claimed_smmu(&self, register: u64) -> Result<usize, Status> {
        let index = usize::try_from(register).map_err(|_| Status::UnknownSmmu)?;
        if index < self.iommu.set().count() { Ok(index) } else { Err(Status::UnknownSmmu) }
    }

    fn claimed_stream(&self, smmu: u64, stream: u64) -> Result<(usize, u32), Status> {
        let smmu = self.claimed_smmu(smmu)?;
        // Whether the SMMU has the StreamID is the IOMMU service's to say.
        Ok((smmu, u32::try_from(stream).map_err(|_| Status::UnknownStream)?))
    }
}
