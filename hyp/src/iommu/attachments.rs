//! Attach and detach, in the order that keeps the invalidation array true.
//!
//! * Attach: tag, array, full barrier, STE. So whoever takes a page away either sees the tag in the array or
//!   did it before the SMMU could walk the table.
//! * Detach: STE back to parked and forgotten by the SMMU; if the stream was the tag's last user, the tag is
//!   flushed; only then it leaves the array and is free. So a VMID that stands in no array is in no IOTLB,
//!   and a detach that fails has a tag in the array that was there all the time.

use abi::{DomainHandle, GuestHandle};
use smmuv3::address::PhysAddr;
use smmuv3::command::Command;
use smmuv3::invalidation::{MAX_SMMUS, Tag, Unref};
use smmuv3::ste::StreamTableEntry;
use smmuv3::tags::Vmids;
use spin::MutexGuard;

use core::sync::atomic::Ordering;

use super::{Domain, Iommu, Refused, index_of};
use crate::platform::Platform;
use crate::smmu::{Condition, PARKED_VMID, Pages};

/// What a stream is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamState {
    /// Nothing: its transactions abort.
    Unattached,
    /// A domain.
    Attached {
        /// The domain.
        domain: DomainHandle,
        /// The tag of the domain on the stream's SMMU.
        vmid: u16,
    },
}

/// The attach lock, held: what is found out through it stays true until it is dropped.
pub struct Attachments<'a> {
    iommu: &'a Iommu,
    vmids: MutexGuard<'a, [Vmids; MAX_SMMUS]>,
}

impl<'a> Attachments<'a> {
    pub(super) fn new(iommu: &'a Iommu) -> Self {
        Self { iommu, vmids: iommu.attach.lock() }
    }

    pub(super) fn create_domain(&self, domain: DomainHandle, root: PhysAddr) -> Result<(), Refused> {
        let domain = self.iommu.domain(domain).ok_or(Refused::UnknownDomain)?;
        match domain.root() {
            Some(_) => Err(Refused::WrongState),
            None => {
                domain.root.store(root.0, Ordering::Release);
                Ok(())
            }
        }
    }

    pub(super) fn destroy_domain(&self, guest: GuestHandle) -> Result<(), Refused> {
        let domain = self.existing(DomainHandle::Guest(guest))?;
        if !domain.tags.is_idle() {
            return Err(Refused::Busy);
        }
        domain.root.store(0, Ordering::Release);
        Ok(())
    }

    fn existing(&self, domain: DomainHandle) -> Result<&'a Domain, Refused> {
        self.iommu.domain(domain).filter(|domain| domain.root().is_some()).ok_or(Refused::UnknownDomain)
    }

    /// What a stream is attached to.
    ///
    /// # Errors
    /// [`Refused::UnknownSmmu`], [`Refused::UnknownStream`].
    pub fn query<P: Platform>(&self, p: &P, smmu: usize, stream: u32) -> Result<StreamState, Refused> {
        let device = self.iommu.set.get(smmu).ok_or(Refused::UnknownSmmu)?;
        let vmid = device.vmid(p, stream).ok_or(Refused::UnknownStream)?;
        if vmid == PARKED_VMID {
            return Ok(StreamState::Unattached);
        }
        let vmids = self.vmids.get(smmu).ok_or(Refused::UnknownSmmu)?;
        (0..=u64::from(GuestHandle::MAX))
            .filter_map(DomainHandle::from_register)
            .find(|domain| vmids.find(index_of(*domain)) == Some(vmid))
            .map(|domain| StreamState::Attached { domain, vmid })
            // Every STE that is not parked has the tag of a domain.
            .ok_or(Refused::Hardware)
    }

    /// Lets an unattached stream into a domain. On return its transactions are translated by the domain's
    /// table.
    ///
    /// # Errors
    /// [`Refused::UnknownSmmu`], [`Refused::UnknownStream`], [`Refused::UnknownDomain`]; [`Refused::Busy`] if
    /// the stream is attached; [`Refused::NoSpace`]; [`Refused::NoMemory`]; [`Refused::Hardware`]. The stream
    /// is unattached then, and no tag was used up; a level-2 stream table that the SMMU may have seen is kept.
    /// Only when the SMMU turned [`Condition::Lost`] under this call, the stream counts as attached after
    /// [`Refused::Hardware`]: nobody knows whether it is translated.
    pub fn attach<P: Platform>(
        &mut self,
        p: &P,
        smmu: usize,
        stream: u32,
        domain: DomainHandle,
        pages: &mut impl Pages,
    ) -> Result<(), Refused> {
        if self.query(p, smmu, stream)? != StreamState::Unattached {
            return Err(Refused::Busy);
        }
        let device = self.iommu.set.get(smmu).ok_or(Refused::UnknownSmmu)?;
        if device.condition() != Condition::Running {
            return Err(Refused::Hardware);
        }
        let target = self.existing(domain)?;
        let root = target.root().ok_or(Refused::UnknownDomain)?;
        let geometry = self.iommu.geometry.as_ref().ok_or(Refused::UnknownDomain)?;
        let vmids = self.vmids.get_mut(smmu).ok_or(Refused::UnknownSmmu)?;

        let (vmid, allocated) = vmids.allocate(index_of(domain)).map_err(|_| Refused::NoSpace)?;
        if let Some(order) = device.separate_order(p, stream) {
            let Some(table) = pages.take_run(order) else {
                if allocated {
                    vmids.free(index_of(domain));
                }
                return Err(Refused::NoMemory { pages: 1 << order });
            };
            device.separate(p, stream, table, self.iommu.set.parked());
        }
        let tag = Tag { smmu, vmid };
        if target.tags.merge(tag).is_err() {
            if allocated {
                vmids.free(index_of(domain));
            }
            return Err(Refused::NoSpace);
        }
        if domain == DomainHandle::Host {
            device.set_host_vmid(vmid);
        } else {
            // What the stream did before it was the guest's is the host's to see.
            self.iommu.set.drain_events_of(p, smmu);
        }
        // The tag in the array, before the SMMU can walk the table.
        p.full_barrier();
        let entry = StreamTableEntry::stage2(geometry, root, vmid);
        if device.write_entry(p, stream, &entry).is_err() {
            let mut undo = || self.remove(p, smmu, stream, domain, vmid);
            // What fails at first succeeds once the SMMU is dead. If not, it is lost and may translate by the
            // domain's table: the stream counts as attached, and its tag stays in the array, so that what this
            // domain takes away is not taken for forgotten.
            let _ = undo().or_else(|_| undo());
            return Err(Refused::Hardware);
        }
        Ok(())
    }

    /// Takes an attached stream out of its domain. On return its transactions abort, and none that was let
    /// through is under way.
    ///
    /// # Errors
    /// [`Refused::UnknownSmmu`], [`Refused::UnknownStream`]; [`Refused::WrongState`] if the stream is
    /// unattached; [`Refused::Hardware`]. The stream counts as attached then.
    pub fn detach<P: Platform>(&mut self, p: &P, smmu: usize, stream: u32) -> Result<(), Refused> {
        match self.query(p, smmu, stream)? {
            StreamState::Unattached => Err(Refused::WrongState),
            StreamState::Attached { domain, vmid } => self.remove(p, smmu, stream, domain, vmid),
        }
    }

    /// Parks a stream whose tag is in its domain's array, and takes one user off the tag. When it fails the
    /// STE says again that the stream is attached, and the tag keeps its user.
    fn remove<P: Platform>(
        &mut self,
        p: &P,
        smmu: usize,
        stream: u32,
        domain: DomainHandle,
        vmid: u16,
    ) -> Result<(), Refused> {
        let device = self.iommu.set.get(smmu).ok_or(Refused::UnknownSmmu)?;
        let source = self.existing(domain)?;
        let vmids = self.vmids.get_mut(smmu).ok_or(Refused::UnknownSmmu)?;
        let tag = Tag { smmu, vmid };
        let is_last = source.tags.find(smmu).is_some_and(|(_, users)| users == 1);
        if domain != DomainHandle::Host {
            device.set_leaving(Some(stream));
        }
        let removed = device.write_entry(p, stream, self.iommu.set.parked()).and_then(|()| {
            if is_last { device.run(p, [Command::tlbi_s12_vmall(vmid)].into_iter()) } else { Ok(()) }
        });
        if let (Err(_), Some(geometry), Some(root)) = (removed, &self.iommu.geometry, source.root()) {
            let entry = StreamTableEntry::stage2(geometry, root, vmid);
            if device.write_entry(p, stream, &entry).is_err() {
                device.store_entry(p, stream, &entry);
            }
        }
        if domain != DomainHandle::Host {
            // The guest's last events, while it is known whose they are.
            self.iommu.set.drain_events_of(p, smmu);
            device.set_leaving(None);
        }
        removed.map_err(|_| Refused::Hardware)?;
        if source.tags.unref(tag) == Ok(Unref::Last) {
            vmids.free(index_of(domain));
            if domain == DomainHandle::Host {
                device.set_host_vmid(0);
            }
        }
        Ok(())
    }
}
