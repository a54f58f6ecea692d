//! Calls that make and end guests.

use abi::{DomainHandle, GuestHandle, Status};

use super::Outcome;
use crate::hypervisor::Hypervisor;
use crate::platform::Platform;

impl<P: Platform> Hypervisor<P> {
    pub(super) fn guest_create(&self) -> Outcome {
        // With this lock no stream can be attached to a guest that is only half there.
        let _streams = self.streams.lock();
        let caches = self.caches();
        let cx = self.context(&caches);
        let (guest, root) = {
            let mut memory = self.memory.lock();
            let guest = memory.create_guest(&cx)?;
            (guest, memory.guest_table(guest).map(|table| table.root()))
        };
        let domain = DomainHandle::Guest(guest);
        let created = root.is_some_and(|root| self.iommu.create_domain(domain, root).is_ok());
        if !created {
            self.memory.lock().destroy_guest(&cx, guest)?;
            return Err(Status::NoSpace.into());
        }
        Ok([guest.to_register(), 0, 0, 0])
    }

    pub(super) fn guest_destroy(&self, guest: u64) -> Outcome {
        let guest = GuestHandle::from_register(guest).ok_or(Status::UnknownGuest)?;
        let _streams = self.streams.lock();
        let root = self.memory.lock().guest_table(guest).ok_or(Status::UnknownGuest)?.root();
        // The domain first: when it is gone no walker and no cache has anything of the table.
        self.iommu.destroy_domain(guest)?;
        let caches = self.caches();
        let destroyed = self.memory.lock().destroy_guest(&self.context(&caches), guest);
        if let Err(status) = destroyed {
            // The guest owns memory. Nobody could attach in between, so the domain comes back as it was.
            let _ = self.iommu.create_domain(DomainHandle::Guest(guest), root);
            return Err(status.into());
        }
        Ok([0; 4])
    }
}
