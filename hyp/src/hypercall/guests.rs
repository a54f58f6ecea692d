//! Calls that make and end guests.

use abi::{DomainHandle, GuestHandle, Principal, Status};

use super::Outcome;
use crate::hypervisor::Hypervisor;
use crate::iommu::Owned;
use crate::memory::{Failure, Progress};
use crate::platform::Platform;

impl<P: Platform> Hypervisor<P> {
    pub(super) fn guest_create(&self) -> Outcome {
        // With this lock no stream can be attached to a guest that is only half there.
        let _streams = self.streams.lock();
        let caches = self.caches();
        let cx = self.context(&caches);
        let (guest, table) = {
            let mut memory = self.memory.lock();
            let guest = memory.create_guest(&cx)?;
            (guest, memory.guest_table(guest).copied())
        };
        let domain = DomainHandle::Guest(guest);
        let created = table.is_some_and(|table| self.iommu.create_domain(domain, table).is_ok());
        if !created {
            self.memory.lock().destroy_guest(&cx, guest)?;
            return Err(Status::NoSpace.into());
        }
        Ok([guest.to_register(), 0, 0, 0])
    }

    pub(super) fn guest_destroy(&self, guest: u64) -> Outcome {
        let guest = GuestHandle::from_register(guest).ok_or(Status::UnknownGuest)?;
        let _streams = self.streams.lock();
        self.memory.lock().check_alive(guest)?;
        self.end_guest(guest)?;
        Ok([0; 4])
    }

    /// Ends a guest that has nothing, with `streams` locked.
    fn end_guest(&self, guest: GuestHandle) -> Result<(), Failure> {
        let table = *self.memory.lock().guest_table(guest).ok_or(Status::UnknownGuest)?;
        if self.iommu.next_of(&self.platform, Principal::Guest(guest)).is_some() {
            return Err(Status::Busy.into());
        }
        let domain = DomainHandle::Guest(guest);
        // The domain first: when it is gone no walker and no cache has anything of the table.
        self.iommu.destroy_domain(domain)?;
        let caches = self.caches();
        let destroyed = self.memory.lock().destroy_guest(&self.context(&caches), guest);
        if let Err(status) = destroyed {
            // The guest owns memory. Nobody could attach in between, so the domain comes back as it was.
            let _ = self.iommu.create_domain(domain, table);
            return Err(status.into());
        }
        Ok(())
    }

    /// One step: a stream, or an object, or a piece of memory.
    pub(super) fn guest_teardown(&self, guest: u64) -> Outcome {
        const MORE: Outcome = Ok([1, 0, 0, 0]);
        let guest = GuestHandle::from_register(guest).ok_or(Status::UnknownGuest)?;
        let mut streams = self.streams.lock();
        self.memory.lock().begin_teardown(guest)?;
        if let Some(place) = streams.position(|known| known.guest == guest)
            && let Some(known) = streams.get(place).copied()
        {
            let has_driver = self.detach(&mut streams, known.smmu, known.stream, Some(place))?;
            // The lock of an emulated SMMU comes before this one.
            drop(streams);
            if has_driver {
                self.return_stream(known.smmu, known.stream);
            }
            return MORE;
        }
        let p = &self.platform;
        match self.iommu.next_of(p, Principal::Guest(guest)) {
            Some(Owned::Nested(domain)) => self.iommu.destroy_domain(domain)?,
            Some(Owned::VirtualStream(vsmmu, id)) => {
                let (smmu, stream) = self.iommu.remove_virtual_stream(p, vsmmu, id, &mut self.pages())?;
                drop(streams);
                self.return_stream(smmu, stream);
            }
            Some(Owned::Vsmmu(vsmmu)) => self.iommu.destroy_vsmmu(p, vsmmu)?,
            Some(Owned::Stage2(handle, index)) if self.memory.lock().maps_nothing(index) => {
                self.destroy_created(handle)?;
            }
            Some(Owned::Stage2(..)) | None => {
                let caches = self.caches();
                // The lock is let go before the guest ends, which takes it.
                let progress = self.memory.lock().teardown_step(&self.context(&caches), guest)?;
                match progress {
                    Progress::Again => {}
                    Progress::Done => {
                        self.end_guest(guest)?;
                        return Ok([0; 4]);
                    }
                }
            }
        }
        MORE
    }
}
