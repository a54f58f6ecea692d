//! Attach, replace and detach: one way for all three, in the order that keeps the invalidation arrays true.
//!
//! A stream stands on a [`Side`]: what its STE says, and what that puts into the array of a stage-2 domain. [`Iommu::attach`]
//! and [`Iommu::detach`] work out the side that it leaves and the one that it goes to, either of which can be none, and
//! [`Iommu::switch`] changes over: entries into the new array, full barrier, STE, flush of what only this stream used,
//! entries out of the old array. So whoever takes a page away either sees the entry in the array or
//! did it before the SMMU could walk the table; and a VMID that stands in no array is in no IOTLB.

use abi::{DomainHandle, Principal, Reason};
use smmuv3::invalidation::{
    self, Array, ArrayPages, Cell, DomainIndex, Entry, MAX_SMMUS, StreamEntries, Tag, Target,
};
use smmuv3::pgtable::{Granule, PageTable};
use smmuv3::ste::{Ats, Stage1Config, StreamTableEntry};
use smmuv3::tags::{self, TagKind};

use super::registry::{HOST, Kind, Registry, VsmmuStream};
use super::{ArrayRuns, Iommu, Refused, can_walk};
use crate::platform::Platform;
use crate::smmu::{Condition, Fault, PARKED_VMID, Pages, Smmu, VmidOwner, order_of};

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

/// How a stream is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// It changes over from another domain of the same principal.
    pub replace: bool,
    /// The device may use ATS.
    pub ats: bool,
}

/// A domain that a stream stands on, and how.
#[derive(Clone, Copy)]
pub(super) struct Side {
    domain: u16,
    /// The stage-2 domain whose array has the entries: the same, or the parent of the vSMMU.
    stage2: DomainIndex,
    vmid: u16,
    ats: Ats,
    granule: Granule,
    stages: Stages,
    /// Where the domain does not say it: which of [`Registry::driver_configs`] the stream has.
    config: u8,
}

/// What a stream is translated by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stages {
    /// Stage 2 with a VMID of the domain's own.
    Stage2,
    /// Nothing passes.
    Abort,
    /// Stage 2 with the VMID of a vSMMU.
    Bypass,
    /// Both.
    Nested,
}

impl From<&Stage1Config> for Stages {
    fn from(config: &Stage1Config) -> Self {
        match config {
            Stage1Config::Abort => Self::Abort,
            Stage1Config::Bypass => Self::Bypass,
            Stage1Config::Translate(_) => Self::Nested,
        }
    }
}

/// A stream behind an SMMU that exists.
#[derive(Clone, Copy)]
pub(super) struct Stream<'a> {
    pub device: &'a Smmu,
    pub smmu: u8,
    pub id: u32,
}

impl Iommu {
    pub(super) fn stream(&self, smmu: usize, id: u32) -> Result<Stream<'_>, Refused> {
        let device = self.set.get(smmu).ok_or(Refused::UnknownSmmu)?;
        // There are at most 64.
        const { assert!(MAX_SMMUS <= 256) };
        Ok(Stream { device, smmu: smmu as u8, id })
    }

    /// What a stream is attached to.
    ///
    /// # Errors
    /// [`Refused::UnknownSmmu`], [`Refused::UnknownStream`].
    pub fn query<P: Platform>(&self, p: &P, smmu: usize, stream: u32) -> Result<StreamState, Refused> {
        let stream = self.stream(smmu, stream)?;
        let registry = self.lock();
        match registry.standing(p, stream)? {
            None => Ok(StreamState::Unattached),
            Some((index, vmid)) => Ok(StreamState::Attached { domain: registry.handle_of(index)?, vmid }),
        }
    }

    /// Lets a stream into a domain: an unattached one, or with [`How::replace`] one that is attached to a domain of the same
    /// principal. On return its transactions are translated by that domain.
    ///
    /// # Errors
    /// [`Refused::UnknownSmmu`], [`Refused::UnknownStream`], [`Refused::UnknownDomain`], [`Refused::UnknownGuest`]; [`Refused::Busy`] if
    /// the stream is attached, [`Refused::WrongState`] if it should be and is not; [`Refused::Incompatible`], [`Refused::NoSpace`],
    /// [`Refused::NoMemory`], [`Refused::Hardware`]. The stream
    /// is as it was then, and no tag was used up; a level-2 stream table that the SMMU may have seen is kept.
    /// After [`Refused::Hardware`] a device that has ATS in both domains and does not answer is where it was without ATS. Only when the SMMU turned
    /// [`Condition::Lost`] under this call the stream counts as attached to the new domain: nobody knows by what it is translated, and the old
    /// one does not end any more.
    pub fn attach<P: Platform, G: Pages>(
        &self,
        p: &P,
        smmu: usize,
        stream: u32,
        domain: DomainHandle,
        how: How,
        pages: &mut G,
    ) -> Result<(), Refused> {
        let stream = self.stream(smmu, stream)?;
        let mut registry = self.lock();
        let from = self.side_of(p, &registry, stream)?;
        let index = registry.find_domain(domain)?;
        match (&from, how.replace) {
            (Some(_), false) => return Err(Refused::Busy),
            (None, true) => return Err(Refused::WrongState),
            _ => {}
        }
        if stream.device.condition() != Condition::Running {
            return Err(Refused::Hardware);
        }
        let owner = registry.domain(index)?.owner;
        if let Some(from) = &from
            && registry.domain(from.domain)?.owner != owner
        {
            return Err(Refused::UnknownDomain);
        }
        let (to, fresh) = self.new_side(p, &mut registry, stream, index, how.ats)?;
        let is_guest = owner != Principal::Host;
        let result = self.separate(p, stream, pages).and_then(|()| {
            if from.is_none() && is_guest {
                // What the stream did before it was the guest's is the host's to see.
                self.set.drain_events_of(p, smmu);
            }
            self.while_leaving(p, stream, from.is_some() && is_guest, || {
                self.switch(p, &mut registry, stream, from.as_ref(), Some(&to), pages)
            })
        });
        if fresh && !registry.is_used(p, self.cell(to.stage2), stream.smmu, to.vmid) {
            registry.free_vmid(p, stream, to.vmid);
        }
        result
    }

    /// Takes an attached stream out of its domain. On return its transactions abort, and none that was let
    /// through is under way. Answers whether the host's driver has turned the SMMU on: it may have the stream now.
    ///
    /// # Errors
    /// [`Refused::UnknownSmmu`], [`Refused::UnknownStream`]; [`Refused::WrongState`] if the stream is
    /// unattached; [`Refused::Hardware`]. The stream counts as attached then.
    pub fn detach<P: Platform, G: Pages>(
        &self,
        p: &P,
        smmu: usize,
        stream: u32,
        pages: &mut G,
    ) -> Result<bool, Refused> {
        let stream = self.stream(smmu, stream)?;
        let mut registry = self.lock();
        let from = self.side_of(p, &registry, stream)?.ok_or(Refused::WrongState)?;
        let is_guest = registry.domain(from.domain)?.owner != Principal::Host;
        let result = self.while_leaving(p, stream, is_guest, || {
            self.switch(p, &mut registry, stream, Some(&from), None, pages)
        });
        result.map(|()| stream.device.has_driver())
    }

    /// Lets a stream leave where it stands. If that is a guest's, its events are nobody's to see until the last of them are drained, though its STE,
    /// or the owner of its VMID, says so no more.
    #[inline]
    fn while_leaving<P: Platform, T>(
        &self,
        p: &P,
        stream: Stream<'_>,
        is_guest: bool,
        leave: impl FnOnce() -> T,
    ) -> T {
        if !is_guest {
            return leave();
        }
        stream.device.set_leaving(Some(stream.id));
        let result = leave();
        self.set.drain_events_of(p, stream.smmu.into());
        stream.device.set_leaving(None);
        result
    }

    /// The side that a stream stands on.
    #[inline]
    fn side_of<P: Platform>(
        &self,
        p: &P,
        registry: &Registry,
        stream: Stream<'_>,
    ) -> Result<Option<Side>, Refused> {
        let Some((domain, vmid)) = registry.standing(p, stream)? else { return Ok(None) };
        let entry = stream.device.entry(p, stream.id).ok_or(Refused::Hardware)?;
        registry.side(domain, vmid, entry.ats()).map(Some)
    }

    /// The side that a stream goes to, and whether its VMID was allocated for it.
    fn new_side<P: Platform>(
        &self,
        p: &P,
        registry: &mut Registry,
        stream: Stream<'_>,
        index: u16,
        ats: bool,
    ) -> Result<(Side, bool), Refused> {
        let domain = *registry.domain(index)?;
        let features = &stream.device.features;
        let most = Ats::most(features, self.is_trusted(usize::from(stream.smmu), stream.id));
        let no_ats = Err(Refused::Incompatible(Reason::Ats));
        match domain.kind {
            Kind::Stage2(table) => {
                can_walk(&table, features)?;
                let ats = match (ats, most) {
                    (false, _) => Ats::Off,
                    (true, Ats::Full) => Ats::Full,
                    // Without stage 1 the device would hold what only full ATS has: physical addresses.
                    (true, Ats::Off | Ats::SplitStage) => return no_ats,
                };
                let space = registry.vmids.get_mut(usize::from(stream.smmu)).ok_or(Refused::UnknownSmmu)?;
                let cell = self.cell(DomainIndex(index));
                let tag = tags::allocate(p, space, cell, stream.smmu, TagKind::Vmid)
                    .map_err(|_| Refused::NoSpace)?;
                if tag.fresh {
                    let is_guest = domain.owner != Principal::Host;
                    stream.device.vmids().set(p, tag.number, VmidOwner::Domain(index), is_guest);
                }
                // The VMID goes back with the side, if the attach fails.
                Ok((registry.side(index, tag.number, ats)?, tag.fresh))
            }
            Kind::Nested { vsmmu: place, config } => {
                let vsmmu = registry.vsmmu(place)?;
                let known = registry.vsmmu_stream(p, stream.smmu, stream.id);
                if vsmmu.smmu != stream.smmu || known.is_none_or(|known| known.vsmmu() != place) {
                    return Err(Refused::Incompatible(Reason::Vsmmu));
                }
                let wanted = matches!(config, Stage1Config::Translate(stage1) if stage1.wants_ats());
                let ats = match (wanted, most) {
                    (false, _) => Ats::Off,
                    (true, Ats::Off) => return no_ats,
                    (true, most) => most,
                };
                Ok((registry.side(index, vsmmu.vmid, ats)?, false))
            }
            Kind::Emulated { .. } => Err(Refused::UnknownDomain),
        }
    }

    /// Sees to it that the STE of a stream is its own.
    pub(super) fn separate<P: Platform>(
        &self,
        p: &P,
        stream: Stream<'_>,
        pages: &mut impl Pages,
    ) -> Result<(), Refused> {
        if let Some(order) = stream.device.separate_order(p, stream.id) {
            let table = pages.take_run(order).ok_or(Refused::NoMemory { pages: 1 << order })?;
            stream.device.separate(p, stream.id, table, self.set.parked());
        }
        Ok(())
    }

    /// Changes a stream over from one side to another; none is parked.
    #[inline]
    pub(super) fn switch<P: Platform, G: Pages>(
        &self,
        p: &P,
        registry: &mut Registry,
        stream: Stream<'_>,
        from: Option<&Side>,
        to: Option<&Side>,
        pages: &mut G,
    ) -> Result<(), Refused> {
        let mut pages = ArrayRuns(pages);
        if let Some(to) = to {
            self.add_entries(p, registry, stream, to, &mut pages)?;
        }
        let (left, result) = match self.settle(p, registry, stream, from, to) {
            Ok(()) => {
                registry.record(p, stream, from, to);
                (from, Ok(()))
            }
            Err(Fault) => {
                self.undo(p, registry, stream, from, to, &mut pages)?;
                (to, Err(Refused::Hardware))
            }
        };
        if let Some(left) = left {
            self.drop_entries(p, registry, stream, left, &left.entries(stream), &mut pages);
        }
        registry.retired.collect(p, &self.readers, &mut pages);
        result
    }

    /// Publishes the array of a side's stage-2 domain with the side's entries, before the SMMU can walk its table.
    #[inline]
    fn add_entries<P: Platform>(
        &self,
        p: &P,
        registry: &mut Registry,
        stream: Stream<'_>,
        side: &Side,
        pages: &mut impl ArrayPages,
    ) -> Result<(), Refused> {
        let entries = side.entries(stream);
        if entries.is_empty() {
            return Ok(());
        }
        let cell = self.cell(side.stage2);
        let array = Array::merge(p, cell.load(p), &entries, pages)
            .map_err(|error| Refused::NoMemory { pages: 1 << order_of(error.bytes) })?;
        registry.retired.replace(p, &self.readers, cell, Some(array));
        Ok(())
    }

    /// Writes the STE of `to`, and flushes what only this stream had in the IOTLB by the side that it leaves. ATS that goes on, or stays on,
    /// begins with an empty ATC; that of a device whose ATS goes off is of no use to it, since its requests abort.
    #[inline]
    fn settle<P: Platform>(
        &self,
        p: &P,
        registry: &Registry,
        stream: Stream<'_>,
        from: Option<&Side>,
        to: Option<&Side>,
    ) -> Result<(), Fault> {
        let device = stream.device;
        let had_ats = from.is_some_and(|from| from.ats != Ats::Off);
        let gets_ats = to.is_some_and(|to| to.ats != Ats::Off);
        if gets_ats && !had_ats {
            // Before the first request is let through: the ATC may be from before another owner's time.
            empty_atc(p, stream)?;
        }
        let parked = self.set.parked();
        match to {
            None => device.write_entry(p, stream.id, parked, parked)?,
            Some(to) => device.write_entry(p, stream.id, &registry.entry_of(to), parked)?,
        }
        if gets_ats && had_ats {
            empty_atc(p, stream)?;
        }
        match from {
            Some(from) => self.flush_last(p, stream, from),
            None => Ok(()),
        }
    }

    /// Flushes what only this stream had in the IOTLB: the tag of a side, or else what stage 1 was combined with under it. Other streams of the
    /// vSMMU, or this one on its new side, may go on with the tag and have no stage 1: then nobody would flush that any more.
    #[inline]
    fn flush_last<P: Platform>(&self, p: &P, stream: Stream<'_>, side: &Side) -> Result<(), Fault> {
        let cell = self.cell(side.stage2);
        let is_last = |entry: &Entry| cell.users(p, entry) == 1;
        let last =
            side.tag_entry(stream).filter(is_last).or_else(|| side.stage1_entry(stream).filter(is_last));
        last.map_or(Ok(()), |entry| stream.device.run(p, &[entry.flush()]))
    }

    /// Goes back to `from`. The SMMU is told to forget the STE in any case: memory may say what it should while what the SMMU has cached does
    /// not. Where a device that has ATS does not answer twice, the stream goes back without ATS, for which nothing need be asked of the
    /// device. That takes three tries at most: the SMMU survives one refused command, and takes anything once it is dead.
    ///
    /// So only an SMMU that is lost is left, and by it either side may be in use: the stream counts as on the new one, what either side put
    /// into an array stays there, so that what the domains take away is not taken for forgotten, and the old domain keeps its count of streams,
    /// so that neither it nor the vSMMU that it is nested on comes to an end, and no table or tag is used again.
    #[cold]
    #[inline(never)]
    fn undo<P: Platform>(
        &self,
        p: &P,
        registry: &mut Registry,
        stream: Stream<'_>,
        from: Option<&Side>,
        to: Option<&Side>,
        pages: &mut impl ArrayPages,
    ) -> Result<(), Refused> {
        let forget = || stream.device.run(p, &[invalidation::forget_ste(stream.id, false)]);
        let back = |side: Option<&Side>| {
            self.settle(p, registry, stream, to, side)?;
            forget()
        };
        if back(from).or_else(|_| back(from)).is_ok() {
            return Ok(());
        }
        let quiet = from.map(|from| Side { ats: Ats::Off, ..*from });
        if (0..3).any(|_| back(quiet.as_ref()).is_ok()) {
            if let Some(from) = from
                && let Some(atc) = from.atc_entry(stream)
            {
                self.drop_entries(p, registry, stream, from, &StreamEntries::one(atc), pages);
            }
            return Ok(());
        }
        if let Some(stuck) = to.or(from) {
            stream.device.store_entry(p, stream.id, &registry.entry_of(stuck));
            let _ = forget();
            registry.record(p, stream, from.filter(|from| from.domain == stuck.domain), Some(stuck));
        }
        Err(Refused::Hardware)
    }

    /// Takes entries of a side that a stream has left out of the array, and frees its VMID with the last of them.
    #[inline]
    fn drop_entries<P: Platform>(
        &self,
        p: &P,
        registry: &mut Registry,
        stream: Stream<'_>,
        side: &Side,
        entries: &StreamEntries,
        pages: &mut impl ArrayPages,
    ) {
        let cell = self.cell(side.stage2);
        let Some(array) = cell.load(p).filter(|_| !entries.is_empty()) else { return };
        let mut freed = None;
        let unref = array.unref(p, entries, |entry| {
            // That of a vSMMU lives as long as the vSMMU.
            if let Some(Tag::Vmid(vmid)) = entry.tag() {
                freed = Some(vmid);
            }
        });
        if unref.is_err() {
            log::error!(
                "SMMU {}: stream {:#x} left a domain whose array does not know it",
                stream.smmu,
                stream.id
            );
            return;
        }
        if side.ats == Ats::Full {
            self.readers.await_readers(p, side.stage2, || p.relax());
        }
        if let Some(vmid) = freed {
            registry.free_vmid(p, stream, vmid);
        }
        registry.retired.tidy(p, &self.readers, cell, pages);
    }
}

/// Empties the ATC of a stream.
#[cold]
fn empty_atc<P: Platform>(p: &P, stream: Stream<'_>) -> Result<(), Fault> {
    stream.device.run(p, &[invalidation::forget_atc(stream.id)])
}

impl Side {
    fn entry(&self, stream: Stream<'_>, target: Target) -> Entry {
        Entry::new(stream.smmu, target, self.granule)
    }

    /// The entry for the tag of the IOTLB.
    fn tag_entry(&self, stream: Stream<'_>) -> Option<Entry> {
        let vmid = self.vmid;
        match self.stages {
            Stages::Stage2 => Some(self.entry(stream, Target::S2Vmid { vmid })),
            // Nothing of it is cached but the STE.
            Stages::Abort => None,
            Stages::Bypass | Stages::Nested => Some(self.entry(stream, Target::S2VmidVsmmu { vmid })),
        }
    }

    /// The entry for what stage 1 is combined with in the IOTLB, under that tag.
    #[inline]
    fn stage1_entry(&self, stream: Stream<'_>) -> Option<Entry> {
        let vmid = self.vmid;
        (self.stages == Stages::Nested).then(|| self.entry(stream, Target::S2VmidS1Clear { vmid }))
    }

    /// The entry for the ATC of the device. With split-stage ATS that has IPAs, which every use translates anew.
    #[inline]
    fn atc_entry(&self, stream: Stream<'_>) -> Option<Entry> {
        let target = match (self.ats, self.stages) {
            (Ats::Full, Stages::Stage2) => Target::Ats { stream: stream.id, substream: 0 },
            (Ats::Full, Stages::Nested) => Target::AtsFull { stream: stream.id },
            _ => return None,
        };
        Some(self.entry(stream, target))
    }

    /// What the stream puts into the array of the stage-2 domain.
    #[inline]
    fn entries(&self, stream: Stream<'_>) -> StreamEntries {
        match self.tag_entry(stream) {
            None => StreamEntries::new(),
            Some(tag) if self.stages == Stages::Stage2 && self.ats != Ats::Full => StreamEntries::one(tag),
            Some(tag) => self.entries_besides(stream, tag),
        }
    }

    /// The same, where there is more than the tag.
    #[inline(never)]
    fn entries_besides(&self, stream: Stream<'_>, tag: Entry) -> StreamEntries {
        let cds = (self.stages == Stages::Nested)
            .then(|| self.entry(stream, Target::NestedCds { stream: stream.id }));
        let mut entries = StreamEntries::one(tag);
        for entry in [self.stage1_entry(stream), cds, self.atc_entry(stream)].into_iter().flatten() {
            // There is room for all of them, and no two are alike.
            let _ = entries.add(entry);
        }
        entries
    }
}

impl Registry {
    /// The domain that a stream is attached to, by what its STE says, and its VMID there.
    pub(super) fn standing<P: Platform>(
        &self,
        p: &P,
        stream: Stream<'_>,
    ) -> Result<Option<(u16, u16)>, Refused> {
        let vmid = stream.device.vmid(p, stream.id).ok_or(Refused::UnknownStream)?;
        if vmid == PARKED_VMID {
            return Ok(None);
        }
        let index = match stream.device.vmids().owner(p, vmid) {
            VmidOwner::Domain(index) => index,
            VmidOwner::Vsmmu(_) => {
                let known = self.vsmmu_stream(p, stream.smmu, stream.id);
                known.and_then(VsmmuStream::domain).ok_or(Refused::Hardware)?
            }
            // Every STE that is not parked has the VMID of a domain or a vSMMU.
            VmidOwner::Nobody => return Err(Refused::Hardware),
        };
        Ok(Some((index, vmid)))
    }

    /// What is known of a stream that is in a vSMMU.
    pub(super) fn vsmmu_stream<P: Platform>(&self, p: &P, smmu: u8, stream: u32) -> Option<VsmmuStream> {
        self.streams.get(usize::from(smmu))?.get(p, u64::from(stream)).map(VsmmuStream)
    }

    /// The side of a stream in a domain whose tag on its SMMU is `vmid`.
    #[inline]
    fn side(&self, domain: u16, vmid: u16, ats: Ats) -> Result<Side, Refused> {
        let (stage2, stages) = match &self.domain(domain)?.kind {
            Kind::Stage2(_) => (domain, Stages::Stage2),
            Kind::Nested { vsmmu, config } => (self.vsmmu(*vsmmu)?.parent, config.into()),
            // The host's driver has the stream, and only its stream table can let go of it.
            Kind::Emulated { .. } => return Err(Refused::Busy),
        };
        let granule = self.stage2_table(stage2)?.geometry().granule();
        Ok(Side { domain, stage2: DomainIndex(stage2), vmid, ats, granule, stages, config: 0 })
    }

    /// The side of a stream that the host's driver has, by one of [`Registry::driver_configs`].
    pub(super) fn emulated_side(
        &self,
        domain: u16,
        vmid: u16,
        ats: Ats,
        config: u8,
    ) -> Result<Side, Refused> {
        let granule = self.stage2_table(HOST.0)?.geometry().granule();
        let stages = self.driver_config(config)?.into();
        Ok(Side { domain, stage2: HOST, vmid, ats, granule, stages, config })
    }

    fn driver_config(&self, config: u8) -> Result<&Stage1Config, Refused> {
        self.driver_configs.get(usize::from(config)).ok_or(Refused::UnknownDomain)
    }

    /// The STE of a side. A side's domain is there; were it not, the stream would abort.
    #[inline]
    pub(super) fn entry_of(&self, side: &Side) -> StreamTableEntry {
        let (Ok(table), Ok(domain)) = (self.stage2_table(side.stage2.0), self.domain(side.domain)) else {
            return StreamTableEntry::ABORT;
        };
        let (geometry, root) = (table.geometry(), table.root());
        let config = match &domain.kind {
            Kind::Stage2(_) => return StreamTableEntry::stage2(geometry, root, side.vmid, side.ats),
            Kind::Nested { config, .. } => config,
            Kind::Emulated { .. } => match self.driver_config(side.config) {
                Ok(config) => config,
                Err(_) => return StreamTableEntry::ABORT,
            },
        };
        StreamTableEntry::nested(config, geometry, root, side.vmid, side.ats)
    }

    fn stage2_table(&self, index: u16) -> Result<&PageTable, Refused> {
        match &self.domain(index)?.kind {
            Kind::Stage2(table) => Ok(table),
            Kind::Nested { .. } | Kind::Emulated { .. } => Err(Refused::UnknownDomain),
        }
    }

    /// Records that a stream went from one side to another.
    fn record<P: Platform>(&mut self, p: &P, stream: Stream<'_>, from: Option<&Side>, to: Option<&Side>) {
        if let Some(domain) = from.and_then(|from| self.domain_mut(from.domain)) {
            domain.streams = domain.streams.saturating_sub(1);
        }
        let mut nested = None;
        if let Some(to) = to
            && let Some(domain) = self.domain_mut(to.domain)
        {
            domain.streams = domain.streams.saturating_add(1);
            nested = matches!(domain.kind, Kind::Nested { .. }).then_some(to.domain);
        }
        if let Some(known) = self.vsmmu_stream(p, stream.smmu, stream.id)
            && let Some(streams) = self.streams.get(usize::from(stream.smmu))
        {
            streams.set(p, u64::from(stream.id), known.in_domain(nested).0);
        }
    }

    /// Whether a domain's array has users of a VMID of its own.
    fn is_used<P: Platform>(&self, p: &P, cell: Cell, smmu: u8, vmid: u16) -> bool {
        tags::find(p, cell, smmu, TagKind::Vmid).is_some_and(|(used, _)| used == vmid)
    }

    /// Frees a VMID of a domain that was flushed, or never used.
    fn free_vmid<P: Platform>(&mut self, p: &P, stream: Stream<'_>, vmid: u16) {
        stream.device.vmids().set(p, vmid, VmidOwner::Nobody, false);
        if let Some(space) = self.vmids.get_mut(usize::from(stream.smmu)) {
            space.free(p, vmid);
        }
    }
}
