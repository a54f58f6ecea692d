//! vSMMUs: what a principal sees of an SMMU. A vSMMU stands on a stage-2 domain, has a VMID as long as it lives, StreamIDs of its own,
//! and nested domains, whose stage 1 its owner writes and invalidates.

use abi::{DomainHandle, MAX_INVALIDATIONS, Principal, Reason, VsmmuHandle};
use smmuv3::command::{Command, opcode};
use smmuv3::features::{Features, IdRegisters};
use smmuv3::ste::{Ats, Stage1Claim};
use smmuv3::vsmmu::{self, VsmmuLimits};

use super::emulated::names_stream;
use super::registry::{Kind, VsmmuStream};
use super::sorted_map::InsertError;
use super::{Iommu, Refused, can_walk};
use crate::platform::Platform;
use crate::smmu::{Condition, Pages, VmidOwner};

/// A stream of a vSMMU, for `VSMMU_QUERY_STREAM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualStream {
    /// Its StreamID on the SMMU.
    pub stream: u32,
    /// The nested domain that it is attached to.
    pub domain: Option<DomainHandle>,
}

impl From<InsertError> for Refused {
    fn from(error: InsertError) -> Self {
        match error {
            InsertError::Present => Self::Busy,
            InsertError::Full => Self::NoSpace,
            InsertError::NoMemory { order } => Self::NoMemory { pages: 1 << order },
        }
    }
}

impl Iommu {
    /// Makes a vSMMU on a stage-2 domain, whose owner it belongs to; its handle and its VMID.
    ///
    /// # Errors
    /// [`Refused::UnknownSmmu`], [`Refused::UnknownDomain`], [`Refused::UnknownGuest`]; [`Refused::Incompatible`] if the SMMU cannot walk the
    /// domain's table or cannot nest; [`Refused::NoSpace`]; [`Refused::Hardware`] if the SMMU has failed. Nothing is changed.
    pub fn create_vsmmu<P: Platform>(
        &self,
        p: &P,
        smmu: usize,
        domain: DomainHandle,
    ) -> Result<(VsmmuHandle, u16), Refused> {
        let device = self.set.get(smmu).ok_or(Refused::UnknownSmmu)?;
        let mut registry = self.lock();
        let parent = registry.find_domain(domain)?;
        let found = *registry.domain(parent)?;
        let Kind::Stage2(table) = found.kind else { return Err(Refused::UnknownDomain) };
        can_walk(&table, &device.features)?;
        if !device.features.nested {
            return Err(Refused::Incompatible(Reason::Nesting));
        }
        if device.condition() != Condition::Running {
            return Err(Refused::Hardware);
        }
        let place = registry.free_vsmmu_place()?;
        let space = registry.vmids.get_mut(smmu).ok_or(Refused::UnknownSmmu)?;
        let vmid = space.allocate(p).map_err(|_| Refused::NoSpace)?;
        device.vmids().set(p, vmid, VmidOwner::Vsmmu(place), found.owner != Principal::Host);
        registry.put_vsmmu(place, found.owner, smmu as u8, parent, vmid);
        if let Some(parent) = registry.domain_mut(parent) {
            parent.vsmmus = parent.vsmmus.saturating_add(1);
        }
        Ok((registry.vsmmu_handle(place)?, vmid))
    }

    /// The ID registers of an SMMU as the owner of a vSMMU on it may see them; `None` if there is no such SMMU.
    pub fn owner_id_registers(&self, smmu: usize) -> Option<IdRegisters> {
        let features = &self.set.get(smmu)?.features;
        Some(features.for_owner(self.most_ats(smmu, features)))
    }

    /// The most that any stream of an SMMU may be granted.
    pub(super) fn most_ats(&self, smmu: usize, features: &Features) -> Ats {
        let trusted = self.trusted.iter().any(|range| usize::from(range.smmu) == smmu);
        Ats::most(features, trusted)
    }

    /// Ends a vSMMU. Its VMID was flushed when its last stream left.
    ///
    /// # Errors
    /// [`Refused::UnknownVsmmu`]; [`Refused::Busy`] while it has a nested domain or a StreamID. Nothing is changed.
    pub fn destroy_vsmmu<P: Platform>(&self, p: &P, vsmmu: VsmmuHandle) -> Result<(), Refused> {
        let mut registry = self.lock();
        let place = registry.find_vsmmu(vsmmu)?;
        let found = registry.vsmmu(place)?;
        if found.domains != 0 || found.streams.first(p).is_some() {
            return Err(Refused::Busy);
        }
        let (smmu, vmid, parent) = (usize::from(found.smmu), found.vmid, found.parent);
        registry.remove_vsmmu(place);
        if let Some(parent) = registry.domain_mut(parent) {
            parent.vsmmus = parent.vsmmus.saturating_sub(1);
        }
        if let Some(device) = self.set.get(smmu) {
            device.vmids().set(p, vmid, VmidOwner::Nobody, false);
        }
        if let Some(space) = registry.vmids.get_mut(smmu) {
            space.free(p, vmid);
        }
        Ok(())
    }

    /// Makes a nested domain on a vSMMU, of what its owner claims for words 0 and 1 of an STE.
    ///
    /// # Errors
    /// [`Refused::UnknownVsmmu`]; [`Refused::Illegal`] with the word that says what it may not; [`Refused::NoSpace`]. Nothing is changed.
    pub fn create_nested(&self, vsmmu: VsmmuHandle, words: [u64; 2]) -> Result<DomainHandle, Refused> {
        let mut registry = self.lock();
        let place = registry.find_vsmmu(vsmmu)?;
        let found = registry.vsmmu(place)?;
        let owner = found.owner;
        let device = self.set.get(usize::from(found.smmu)).ok_or(Refused::UnknownSmmu)?;
        let Kind::Stage2(table) = registry.domain(found.parent)?.kind else {
            return Err(Refused::UnknownDomain);
        };
        let claim = Stage1Claim(words);
        let config = claim
            .check(&device.features, table.geometry())
            .map_err(|refusal| Refused::Illegal { index: u64::from(refusal.word()) })?;
        let index = registry.free_domain_place()?;
        registry.put_domain(index, owner, Kind::Nested { vsmmu: place, config })?;
        if let Some(vsmmu) = registry.vsmmu_mut(place) {
            vsmmu.domains = vsmmu.domains.saturating_add(1);
        }
        registry.handle_of(index)
    }

    /// Gives a stream a StreamID in a vSMMU.
    ///
    /// # Errors
    /// [`Refused::UnknownVsmmu`]; [`Refused::UnknownStream`] if the SMMU has no such stream, or it is attached to somebody else's
    /// domain; [`Refused::Busy`] if it is in a vSMMU, or the virtual StreamID is in use; [`Refused::NoSpace`]; [`Refused::NoMemory`].
    /// Nothing is changed.
    pub fn add_virtual_stream<P: Platform>(
        &self,
        p: &P,
        vsmmu: VsmmuHandle,
        virtual_stream: u32,
        stream: u32,
        pages: &mut impl Pages,
    ) -> Result<(), Refused> {
        let mut registry = self.lock();
        let place = registry.find_vsmmu(vsmmu)?;
        let found = registry.vsmmu(place)?;
        let (smmu, owner) = (found.smmu, found.owner);
        if let Some((domain, _)) = registry.standing(p, self.stream(usize::from(smmu), stream)?)? {
            let domain = registry.domain(domain)?;
            if domain.owner != owner {
                return Err(Refused::UnknownStream);
            }
            if let Kind::Emulated { .. } = domain.kind {
                return Err(Refused::Busy);
            }
        }
        let record = VsmmuStream::new(place, virtual_stream, None);
        let streams = registry.streams.get(usize::from(smmu)).ok_or(Refused::UnknownSmmu)?;
        let virtual_streams = &registry.vsmmu(place)?.streams;
        let room = streams.make_room(p, u64::from(stream), pages)?;
        let virtual_room = match virtual_streams.make_room(p, virtual_stream.into(), pages) {
            Ok(virtual_room) => virtual_room,
            Err(error) => {
                room.give_back(pages);
                return Err(error.into());
            }
        };
        if let Some(streams) = registry.streams.get_mut(usize::from(smmu)) {
            streams.insert_into(p, room, record.0, pages);
        }
        if let Some(vsmmu) = registry.vsmmu_mut(place) {
            vsmmu.streams.insert_into(p, virtual_room, u64::from(stream), pages);
        }
        Ok(())
    }

    /// Takes a StreamID out of a vSMMU. Answers the SMMU, and the stream that it was: the host's driver may have it now.
    ///
    /// # Errors
    /// [`Refused::UnknownVsmmu`], [`Refused::UnknownStream`]; [`Refused::Busy`] while the stream is attached to a nested domain. Nothing
    /// is changed.
    pub fn remove_virtual_stream<P: Platform>(
        &self,
        p: &P,
        vsmmu: VsmmuHandle,
        virtual_stream: u32,
        pages: &mut impl Pages,
    ) -> Result<(usize, u32), Refused> {
        let mut registry = self.lock();
        let place = registry.find_vsmmu(vsmmu)?;
        let found = registry.vsmmu(place)?;
        let smmu = found.smmu;
        let stream = found.streams.get(p, u64::from(virtual_stream)).ok_or(Refused::UnknownStream)?;
        let known = registry.vsmmu_stream(p, smmu, stream as u32).ok_or(Refused::UnknownStream)?;
        if known.domain().is_some() {
            return Err(Refused::Busy);
        }
        if let Some(vsmmu) = registry.vsmmu_mut(place) {
            vsmmu.streams.remove(p, u64::from(virtual_stream), pages);
        }
        if let Some(streams) = registry.streams.get_mut(usize::from(smmu)) {
            streams.remove(p, stream, pages);
        }
        Ok((usize::from(smmu), stream as u32))
    }

    /// Which stream a StreamID of a vSMMU is.
    ///
    /// # Errors
    /// [`Refused::UnknownVsmmu`], [`Refused::UnknownStream`].
    pub fn query_virtual_stream<P: Platform>(
        &self,
        p: &P,
        vsmmu: VsmmuHandle,
        virtual_stream: u32,
    ) -> Result<VirtualStream, Refused> {
        let registry = self.lock();
        let found = registry.vsmmu(registry.find_vsmmu(vsmmu)?)?;
        let stream = found.streams.get(p, u64::from(virtual_stream)).ok_or(Refused::UnknownStream)? as u32;
        let known = registry.vsmmu_stream(p, found.smmu, stream).ok_or(Refused::UnknownStream)?;
        let domain = known.domain().map(|index| registry.handle_of(index)).transpose()?;
        Ok(VirtualStream { stream, domain })
    }

    /// Sends invalidations of a vSMMU's owner, and returns when they are complete. None is sent unless all are legal. Those about a stream that is in
    /// no nested domain of the vSMMU are left out: nothing is cached of what they are about, and the stream may be another principal's.
    ///
    /// # Errors
    /// [`Refused::UnknownVsmmu`]; [`Refused::Illegal`] with the index of the first command that is not; [`Refused::Hardware`].
    pub fn invalidate_by_owner<P: Platform>(
        &self,
        p: &P,
        vsmmu: VsmmuHandle,
        claimed: &mut OwnerCommands,
    ) -> Result<(), Refused> {
        let registry = self.lock();
        let found = registry.vsmmu(registry.find_vsmmu(vsmmu)?)?;
        let device = self.set.get(usize::from(found.smmu)).ok_or(Refused::UnknownSmmu)?;
        let most_ats = self.most_ats(usize::from(found.smmu), &device.features);
        let limits = VsmmuLimits::new(&device.features, most_ats);
        let lookup = |id: u32| found.streams.get(p, u64::from(id)).map(|stream| stream as u32);
        let (mut to_streams, mut to_devices) = (false, false);
        for (index, command) in (0..).zip(claimed.iter_mut()) {
            *command = vsmmu::check(*command, &limits, found.vmid, lookup)
                .map_err(|_| Refused::Illegal { index })?;
            to_streams |= names_stream(command);
            to_devices |= command.opcode() == opcode::ATC_INV;
        }
        if to_streams {
            let known = |command: &Command| registry.vsmmu_stream(p, found.smmu, command.stream());
            let is_nested = |command: &Command| known(command).is_some_and(|known| known.domain().is_some());
            claimed.retain(|command| !names_stream(command) || is_nested(command));
        }
        // An ATC invalidation must not reach a device that has left meanwhile. Any other command is at worst not needed any
        // more when it gets to the SMMU, and nobody who attaches has to wait for it.
        let _held = to_devices.then_some(registry);
        device.run(p, claimed.as_slice()).map_err(|_| Refused::Hardware)
    }
}

/// Commands that the owner of a vSMMU claims to be legal, copied once from its memory.
pub struct OwnerCommands {
    commands: [Command; MAX_INVALIDATIONS as usize],
    count: usize,
}

impl OwnerCommands {
    /// Up to [`MAX_INVALIDATIONS`] commands.
    pub fn new(claimed: impl Iterator<Item = Command>) -> Self {
        let mut commands = [Command::sync(); MAX_INVALIDATIONS as usize];
        let mut count = 0;
        for (place, command) in commands.iter_mut().zip(claimed) {
            *place = command;
            count += 1;
        }
        Self { commands, count }
    }

    fn as_slice(&self) -> &[Command] {
        self.commands.get(..self.count).unwrap_or(&[])
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Command> {
        self.commands.iter_mut().take(self.count)
    }

    /// Leaves out what is not wanted.
    fn retain(&mut self, wanted: impl Fn(&Command) -> bool) {
        let mut count = 0;
        for index in 0..self.count {
            let Some(command) = self.commands.get(index).copied().filter(&wanted) else { continue };
            if let Some(place) = self.commands.get_mut(count) {
                *place = command;
            }
            count = count.saturating_add(1);
        }
        self.count = count;
    }
}
