//! What must hold of streams, tags, arrays, domains and vSMMUs between calls.

use abi::oracle::Wrong;
use abi::{DomainHandle, GuestHandle, Principal, VsmmuHandle};
use smmuv3::invalidation::{Array, DomainIndex, MAX_SMMUS, Readers, Tag};
use smmuv3::pgtable::PageTable;
use smmuv3::ste::{Ats, Stage1Config, StreamTableEntry};
use smmuv3::tags::IdSpace;

use super::registry::{Domain, HOST, Kind, MAX_DOMAINS, Registry, Vsmmu};
use super::{CELL_BYTES, Iommu};
use crate::oracle::{Digest, Finding, Runs, what};
use crate::platform::Platform;
use crate::smmu::{Condition, PARKED_VMID, Smmu, VMID_BITS, VmidOwner, order_of};
use crate::sync::MutexGuard;

const VMIDS: usize = 1 << VMID_BITS;
const VSMMUS: usize = VsmmuHandle::MAX as usize;

/// The attach lock.
pub(crate) struct Attached<'a>(MutexGuard<'a, Registry>);

impl Attached<'_> {
    fn domains(&self) -> impl Iterator<Item = (u16, &Domain)> {
        (0..DomainHandle::MAX).filter_map(|index| Some((index, self.0.domain(index).ok()?)))
    }

    fn vsmmus(&self) -> impl Iterator<Item = (u16, &Vsmmu)> {
        (0..VsmmuHandle::MAX).filter_map(|place| Some((place, self.0.vsmmu(place).ok()?)))
    }

    fn stage2(&self, index: u16) -> Option<&PageTable> {
        match &self.0.domain(index).ok()?.kind {
            Kind::Stage2(table) => Some(table),
            Kind::Nested { .. } | Kind::Emulated { .. } => None,
        }
    }
}

/// An SMMU, and its index.
#[derive(Clone, Copy)]
struct Device<'a> {
    smmu: &'a Smmu,
    index: u8,
}

impl Device<'_> {
    fn finding<T>(self, wrong: Wrong, a: u64, b: u64) -> Result<T, Finding> {
        Err(Finding::new(wrong, [self.index.into(), a, b]))
    }
}

/// How many streams behind one SMMU do what.
struct Streams {
    /// Attached to each domain.
    in_domain: [u32; MAX_DOMAINS],
    /// With each VMID in what an IOTLB caches: all but those that abort.
    with_vmid: [u32; VMIDS],
}

/// What an attached stream is.
struct Standing {
    domain: u16,
    vmid: u16,
    aborts: bool,
    owner: Principal,
}

impl Iommu {
    /// Keeps everybody from attaching.
    pub(crate) fn lock_all(&self) -> Attached<'_> {
        Attached(self.lock())
    }

    fn devices(&self) -> impl Iterator<Item = Device<'_>> {
        (0u8..)
            .zip(0..self.set.count())
            .filter_map(|(index, place)| Some(Device { smmu: self.set.get(place)?, index }))
    }

    /// Tells of every run of the pool that the service and the SMMUs have, but for page tables.
    pub(crate) fn add_runs<P: Platform>(
        &self,
        p: &P,
        attached: &Attached<'_>,
        runs: &mut Runs<'_>,
    ) -> Result<(), Finding> {
        let Attached(registry) = attached;
        let spaces = IdSpace::bytes(VMID_BITS) * MAX_SMMUS as u64;
        let service = [
            (self.cells, MAX_DOMAINS as u64 * CELL_BYTES),
            (self.readers.place(), Readers::bytes(p.cpus())),
            (registry.vmids.first().map_or(self.cells, IdSpace::bitmap), spaces),
        ];
        for (place, bytes) in service {
            runs.add(place, order_of(bytes), what::SERVICE)?;
        }
        let array = |array: Array, runs: &mut Runs<'_>| {
            runs.add(array.place(), order_of(array.bytes(p)), what::ARRAY)
        };
        for index in (0..DomainHandle::MAX).map(DomainIndex) {
            if let Some(published) = self.cell(index).load(p) {
                array(published, runs)?;
            }
        }
        let mut added = Ok(());
        registry.retired.for_each(p, |retired| {
            added = array(retired, runs);
            added.is_ok()
        });
        added?;
        let of_vsmmus = attached.vsmmus().map(|(_, vsmmu)| &vsmmu.streams);
        for (place, order) in registry.streams.iter().chain(of_vsmmus).filter_map(|map| map.run()) {
            runs.add(place, order, what::STREAMS)?;
        }
        let root_bytes = attached.stage2(HOST.0).map_or(0, |table| table.geometry().root_bytes());
        self.set.add_runs(p, order_of(root_bytes), runs)
    }

    /// Checks all streams, VMIDs, arrays, domains and vSMMUs. `on_guests` is called with the SMMU, the StreamID and the guest of each stream
    /// that a guest has.
    pub(crate) fn check_all<P: Platform>(
        &self,
        p: &P,
        attached: &Attached<'_>,
        exact: bool,
        mut on_guests: impl FnMut(usize, u32, GuestHandle) -> Result<(), Finding>,
    ) -> Result<(), Finding> {
        let mut in_domain = [0u32; MAX_DOMAINS];
        for device in self.devices() {
            let mut streams = Streams { in_domain: [0; MAX_DOMAINS], with_vmid: [0; VMIDS] };
            device.smmu.for_each_entry(p, |stream, entry| {
                let Some(standing) = self.standing(p, attached, device, stream, &entry)? else {
                    return Ok(());
                };
                if let Some(count) = streams.in_domain.get_mut(usize::from(standing.domain)) {
                    *count += 1;
                }
                if let Some(count) = streams.with_vmid.get_mut(usize::from(standing.vmid))
                    && !standing.aborts
                {
                    *count += 1;
                }
                match standing.owner {
                    Principal::Guest(guest) => on_guests(usize::from(device.index), stream, guest),
                    Principal::Host => Ok(()),
                }
            })?;
            self.check_vmids(p, attached, device)?;
            // Of a failed SMMU the entries of both sides of an attach stay.
            if exact {
                self.check_arrays(p, attached, device, &streams)?;
            }
            for (sum, here) in in_domain.iter_mut().zip(streams.in_domain) {
                *sum += here;
            }
        }
        for (index, domain) in attached.domains() {
            let found = in_domain.get(usize::from(index)).copied().unwrap_or(0);
            // A stream that was lost between two counts in both.
            if domain.streams < found || exact && domain.streams != found {
                let words = [index.into(), domain.streams.into(), found.into()];
                return Err(Finding::new(Wrong::DomainStreams, words));
            }
        }
        self.check_objects(p, attached)
    }

    /// Checks one stream, if there is one.
    pub(crate) fn check_stream<P: Platform>(
        &self,
        p: &P,
        attached: &Attached<'_>,
        smmu: usize,
        stream: u32,
    ) -> Result<(), Finding> {
        let Some(device) = self.devices().find(|device| usize::from(device.index) == smmu) else {
            return Ok(());
        };
        match device.smmu.entry(p, stream) {
            Some(entry) => self.standing(p, attached, device, stream, &entry).map(drop),
            None => Ok(()),
        }
    }

    /// Whether an STE is what its stream is attached to; that, or `None` of one that is parked.
    fn standing<P: Platform>(
        &self,
        p: &P,
        attached: &Attached<'_>,
        device: Device<'_>,
        stream: u32,
        entry: &StreamTableEntry,
    ) -> Result<Option<Standing>, Finding> {
        let Attached(registry) = attached;
        let is_running = device.smmu.condition() == Condition::Running;
        let vmid = entry.vmid();
        let differs = |expected: &StreamTableEntry| {
            let words = entry.0.iter().zip(expected.0);
            words.enumerate().find(|(_, (found, expected))| **found != *expected).map(|(word, _)| word as u64)
        };
        if vmid == PARKED_VMID {
            return match differs(self.set.parked()).filter(|_| is_running) {
                Some(word) => device.finding(Wrong::Entry, stream.into(), word),
                None => Ok(None),
            };
        }
        let known = registry.vsmmu_stream(p, device.index, stream);
        let domain = match device.smmu.vmids().owner(p, vmid) {
            VmidOwner::Domain(index) => Some(index),
            VmidOwner::Vsmmu(_) => known.and_then(|known| known.domain()),
            VmidOwner::Nobody => None,
        };
        let no_tag = || device.finding(Wrong::EntryTag, stream.into(), vmid.into());
        let Some((index, found)) = domain.and_then(|index| Some((index, registry.domain(index).ok()?)))
        else {
            return no_tag();
        };
        let nested = |config: &Stage1Config, parent: u16| {
            let table = attached.stage2(parent)?;
            Some(StreamTableEntry::nested(config, table.geometry(), table.root(), vmid, entry.ats()))
        };
        let (expected, aborts) = match &found.kind {
            Kind::Stage2(table) => {
                let entry = StreamTableEntry::stage2(table.geometry(), table.root(), vmid, entry.ats());
                (Some(entry), false)
            }
            Kind::Nested { vsmmu, config } => {
                let parent = registry.vsmmu(*vsmmu).ok().filter(|vsmmu| vsmmu.vmid == vmid);
                let expected = parent.and_then(|vsmmu| nested(config, vsmmu.parent));
                (expected, matches!(config, Stage1Config::Abort))
            }
            Kind::Emulated { smmu, vmid: own } => {
                if *smmu != device.index || *own != vmid {
                    return no_tag();
                }
                // What stage 1 it has stands in the entry alone.
                let config = entry.stage1_config();
                (nested(&config, HOST.0), matches!(config, Stage1Config::Abort))
            }
        };
        let Some(expected) = expected else { return no_tag() };
        if let Some(word) = differs(&expected).filter(|_| is_running) {
            return device.finding(Wrong::Entry, stream.into(), word);
        }
        let trusted = self.is_trusted(usize::from(device.index), stream);
        let allowed = match entry.ats() {
            Ats::Off => true,
            ats => ats == Ats::most(&device.smmu.features, trusted),
        };
        if !allowed && is_running {
            return device.finding(Wrong::Entry, stream.into(), 1);
        }
        Ok(Some(Standing { domain: index, vmid, aborts, owner: found.owner }))
    }

    /// Each VMID that is taken is whose the table of VMIDs says, and is nobody else's; each that is free is nobody's.
    fn check_vmids<P: Platform>(
        &self,
        p: &P,
        attached: &Attached<'_>,
        device: Device<'_>,
    ) -> Result<(), Finding> {
        let Attached(registry) = attached;
        let Some(space) = registry.vmids.get(usize::from(device.index)) else { return Ok(()) };
        let mut domains = [0u16; MAX_DOMAINS];
        let mut vsmmus = [0u16; VSMMUS];
        let mut taken = 0u32;
        for vmid in 1..VMIDS as u16 {
            let is_taken = space.is_taken(p, vmid);
            taken += u32::from(is_taken);
            let owner = device.smmu.vmids().owner(p, vmid);
            // The owner, if the VMID is its own, and where it stands.
            let (known, place) = match owner {
                VmidOwner::Nobody => (None, None),
                VmidOwner::Domain(index) => {
                    let found = registry.domain(index).ok().filter(|domain| match domain.kind {
                        Kind::Stage2(_) => true,
                        Kind::Emulated { smmu, vmid: own } => smmu == device.index && own == vmid,
                        Kind::Nested { .. } => false,
                    });
                    (found.map(|domain| domain.owner), domains.get_mut(usize::from(index)))
                }
                VmidOwner::Vsmmu(place) => {
                    let found = registry.vsmmu(place).ok();
                    let found = found.filter(|vsmmu| vsmmu.smmu == device.index && vsmmu.vmid == vmid);
                    (found.map(|vsmmu| vsmmu.owner), vsmmus.get_mut(usize::from(place)))
                }
            };
            let is_once = place.is_none_or(|place| core::mem::replace(place, vmid) == 0);
            let is_guests = matches!(known, Some(Principal::Guest(_)));
            let is_right = match (is_taken, owner) {
                (false, VmidOwner::Nobody) => true,
                (true, VmidOwner::Nobody) => vmid == PARKED_VMID,
                (false, _) => false,
                (true, _) => known.is_some() && is_once && device.smmu.vmids().is_guest(p, vmid) == is_guests,
            };
            if !is_right {
                let said = match owner {
                    VmidOwner::Nobody => u64::MAX,
                    VmidOwner::Domain(index) => index.into(),
                    VmidOwner::Vsmmu(place) => 1 << 16 | u64::from(place),
                };
                return device.finding(Wrong::TagOwner, vmid.into(), said);
            }
        }
        if taken != space.taken() {
            return device.finding(Wrong::TagCount, space.taken().into(), taken.into());
        }
        Ok(())
    }

    /// The entries of all arrays for tags of an SMMU: each has as many users as streams have the VMID, and stands where a walk of its
    /// owner's stage 2 finds it.
    fn check_arrays<P: Platform>(
        &self,
        p: &P,
        attached: &Attached<'_>,
        device: Device<'_>,
        streams: &Streams,
    ) -> Result<(), Finding> {
        let Attached(registry) = attached;
        let streams_with = |vmid: u16| streams.with_vmid.get(usize::from(vmid)).copied().unwrap_or(0);
        let mut seen = 0u32;
        for index in 0..DomainHandle::MAX {
            let Some(array) = self.cell(DomainIndex(index)).load(p) else { continue };
            let mut checked = Ok(());
            array.for_each_live(p, |entry, users| {
                let (Some(tag), Ok(())) = (entry.tag(), checked) else { return };
                if entry.smmu() != usize::from(device.index) {
                    return;
                }
                let (Tag::Vmid(vmid) | Tag::VsmmuVmid(vmid) | Tag::Asid(vmid)) = tag;
                let is_here = match (tag, device.smmu.vmids().owner(p, vmid)) {
                    (Tag::Vmid(_), VmidOwner::Domain(owner)) => owner == index,
                    (Tag::VsmmuVmid(_), VmidOwner::Vsmmu(place)) => {
                        registry.vsmmu(place).is_ok_and(|vsmmu| vsmmu.parent == index)
                    }
                    // The VMID of the host's driver.
                    (Tag::VsmmuVmid(_), VmidOwner::Domain(_)) => index == HOST.0,
                    _ => false,
                };
                let found = if is_here { streams_with(vmid) } else { 0 };
                seen += found;
                if users != found {
                    let detail = u64::from(users) | u64::from(found) << 32;
                    checked = device.finding(Wrong::ArrayUsers, vmid.into(), detail);
                }
            });
            checked?;
        }
        let expected = streams.with_vmid.iter().sum::<u32>();
        if seen != expected {
            return device.finding(Wrong::ArrayUsers, u64::MAX, u64::from(seen) | u64::from(expected) << 32);
        }
        Ok(())
    }

    /// vSMMUs and domains count what stands on them, and a vSMMU and its streams know each other.
    fn check_objects<P: Platform>(&self, p: &P, attached: &Attached<'_>) -> Result<(), Finding> {
        let Attached(registry) = attached;
        let objects = |place: u64, counted: u32, found: usize| {
            if counted as usize == found {
                return Ok(());
            }
            Err(Finding::new(Wrong::Objects, [place, counted.into(), found as u64]))
        };
        for (index, domain) in attached.domains() {
            let stands_on = attached.vsmmus().filter(|(_, vsmmu)| vsmmu.parent == index).count();
            objects(index.into(), domain.vsmmus, stands_on)?;
            if let Kind::Nested { vsmmu, .. } = domain.kind
                && registry.vsmmu(vsmmu).is_ok_and(|vsmmu| vsmmu.owner != domain.owner)
            {
                return Err(Finding::new(Wrong::Objects, [index.into(), vsmmu.into(), 0]));
            }
        }
        let mut of_vsmmus = [0u64; MAX_SMMUS];
        for (place, vsmmu) in attached.vsmmus() {
            let is_on_it =
                |domain: &Domain| matches!(domain.kind, Kind::Nested { vsmmu, .. } if vsmmu == place);
            let nested = attached.domains().filter(|(_, domain)| is_on_it(domain)).count();
            objects(1 << 16 | u64::from(place), vsmmu.domains, nested)?;
            if attached.stage2(vsmmu.parent).is_none() {
                return Err(Finding::new(
                    Wrong::Objects,
                    [1 << 16 | u64::from(place), vsmmu.parent.into(), 0],
                ));
            }
            let Some(count) = of_vsmmus.get_mut(usize::from(vsmmu.smmu)) else { continue };
            for (virtual_stream, stream) in vsmmu.streams.pairs(p) {
                *count += 1;
                let known = registry.vsmmu_stream(p, vsmmu.smmu, stream as u32);
                if !known.is_some_and(|known| {
                    known.vsmmu() == place && u64::from(known.virtual_stream()) == virtual_stream
                }) {
                    let words = [vsmmu.smmu.into(), stream, place.into()];
                    return Err(Finding::new(Wrong::VirtualStreams, words));
                }
            }
        }
        for (smmu, (map, found)) in (0u64..).zip(registry.streams.iter().zip(of_vsmmus)) {
            if map.pairs(p).count() as u64 != found {
                return Err(Finding::new(Wrong::VirtualStreams, [smmu, u64::MAX, found]));
            }
        }
        Ok(())
    }

    /// Adds domains, vSMMUs, streams and tags.
    pub(crate) fn digest<P: Platform>(&self, p: &P, attached: &Attached<'_>, digest: &mut Digest) {
        for (index, domain) in attached.domains() {
            let counts = u64::from(domain.streams) | u64::from(domain.vsmmus) << 32;
            // Handles of other domains have no generation.
            let is_created = index >= DomainHandle::FIRST_CREATED;
            let generation = if is_created { domain.generation.into() } else { 0 };
            digest.add_all([index.into(), domain.owner.to_register(), generation, counts]);
            if let Some(array) = self.cell(DomainIndex(index)).load(p) {
                array.for_each_live(p, |entry, users| {
                    let [word, _] = entry.flush().0;
                    digest.add_all([entry.smmu() as u64, word, users.into()]);
                });
            }
        }
        for (place, vsmmu) in attached.vsmmus() {
            digest.add_all([
                place.into(),
                vsmmu.owner.to_register(),
                vsmmu.vmid.into(),
                vsmmu.domains.into(),
            ]);
        }
        for map in &attached.0.streams {
            for (stream, known) in map.pairs(p) {
                digest.add(stream);
                digest.add(known);
            }
        }
        for device in self.devices() {
            digest.add(device.index.into());
            let _ = device.smmu.for_each_entry(p, |stream, entry| {
                // A table of parked entries that a failed attach left is no difference.
                if entry.vmid() != PARKED_VMID {
                    digest.add(stream.into());
                    digest.add_all(entry.0);
                }
                Ok(())
            });
            if let Some(space) = attached.0.vmids.get(usize::from(device.index)) {
                for vmid in (1..VMIDS as u16).filter(|vmid| space.is_taken(p, *vmid)) {
                    digest.add(vmid.into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::registry::VsmmuStream;
    use super::*;
    use crate::oracle::tests::finds;

    fn finds_with(break_it: impl FnOnce(&mut Registry)) -> Wrong {
        finds(|hypervisor, _| break_it(&mut hypervisor.iommu.lock_all().0))
    }

    #[test]
    fn what_objects_count_wrongly_is_found() {
        assert_eq!(finds_with(|registry| registry.domain_mut(HOST.0).unwrap().vsmmus += 1), Wrong::Objects);
        assert_eq!(finds_with(|registry| registry.vsmmu_mut(0).unwrap().domains -= 1), Wrong::Objects);
        assert_eq!(
            finds_with(|registry| registry.domain_mut(HOST.0).unwrap().streams += 1),
            Wrong::DomainStreams
        );
    }

    #[test]
    fn a_vsmmu_and_a_stream_that_do_not_know_each_other_are_found() {
        let found = finds(|hypervisor, _| {
            let (p, registry) = (hypervisor.platform(), &hypervisor.iommu.lock_all().0);
            let known = registry.vsmmu_stream(p, 0, 9).unwrap();
            registry.streams[0].set(p, 9, VsmmuStream::new(0, 1, known.domain()).0);
        });
        assert_eq!(found, Wrong::VirtualStreams);
    }
}
