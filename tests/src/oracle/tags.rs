//! VMIDs: who has which, and that no others are in use.

use super::View;
use crate::model::smmu::ste::Meaning;
use crate::record::Domain;
use abi::Function;
use std::collections::BTreeMap;

/// Who has a VMID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// The streams that nobody attached.
    Parked,
    /// A stage-2 domain.
    Domain(u64),
    /// A vSMMU on a stage-2 domain.
    Vsmmu {
        /// Its handle.
        vsmmu: u64,
        /// The domain.
        parent: u64,
        /// A stream is attached whose STE translates with the VMID.
        used: bool,
    },
    /// The host's own driver, on the host's domain, which lets a stream through.
    Driver,
}

/// The VMIDs of one SMMU.
#[derive(Debug)]
pub(crate) struct Tags(BTreeMap<u16, Holder>);

impl Tags {
    /// Who has a VMID.
    pub fn holder(&self, vmid: u16) -> Option<Holder> {
        self.0.get(&vmid).copied()
    }

    /// The VMID of a holder.
    pub fn of(&self, wanted: impl Fn(Holder) -> bool) -> Option<u16> {
        self.0.iter().find(|(_, holder)| wanted(**holder)).map(|(vmid, _)| *vmid)
    }

    fn add(&mut self, vmid: u64, holder: Holder) -> Result<(), String> {
        if vmid == 0 || vmid > 0xffff {
            return Err(format!("{holder:x?} has VMID {vmid}"));
        }
        match self.0.insert(vmid as u16, holder) {
            Some(other) => Err(format!("VMID {vmid} is that of {holder:x?} and of {other:x?}")),
            None => Ok(()),
        }
    }
}

/// Whether DOMAIN_TAG, SMMU_TAGS and SMMU_DESCRIBE agree with what is attached; who has which VMID.
pub(super) fn check(view: &View, smmu: usize) -> Result<Tags, String> {
    let (bench, record) = (view.bench, &view.record);
    let mut tags = Tags(BTreeMap::new());
    // No device has one of the lowest StreamIDs, but a call may have attached it.
    let unattached = (0..64).find(|stream| !record.streams.contains_key(&(smmu, *stream))).unwrap_or(0);
    if let Some(Meaning::Stage2 { vmid, .. }) = bench.machine().meaning_in_memory(smmu, unattached) {
        tags.add(u64::from(vmid), Holder::Parked)?;
    }
    let is_parked = tags.0.len();
    let tag = |domain: u64| {
        bench
            .call(Function::DomainTag, [domain, smmu as u64, 0, 0])
            .map_err(|status| format!("DOMAIN_TAG of {domain:#x} answered {status:?}"))
    };
    for domain in record.stage2_domains() {
        let [kind, vmid, users, _] = tag(domain)?;
        let streams = record.users(domain, Some(smmu));
        if (kind, users) != (u64::from(streams != 0), streams) {
            return Err(format!("domain {domain:#x} has {streams} streams; DOMAIN_TAG says {kind}, {users}"));
        }
        if streams != 0 {
            tags.add(vmid, Holder::Domain(domain))?;
        }
    }
    for (handle, vsmmu) in record.vsmmus.iter().filter(|(_, vsmmu)| vsmmu.smmu == smmu) {
        let used = record.streams.iter().any(|((at, _), attached)| {
            let Some(Domain::Nested { vsmmu: of, words }) = record.domain(attached.domain) else {
                return false;
            };
            *at == smmu && of == handle && !super::streams::aborts(*words)
        });
        let (vsmmu_handle, parent) = (*handle, vsmmu.parent);
        tags.add(u64::from(vsmmu.vmid), Holder::Vsmmu { vsmmu: vsmmu_handle, parent, used })?;
    }
    // Only a stream of the driver's says which VMID it has; without one it is among those that are always in use.
    let driven = bench.driven(smmu).streams;
    let mut is_driver = 0;
    if let Some(stream) = driven.keys().next() {
        let query = bench.call(Function::StreamQuery, [smmu as u64, u64::from(*stream), 0, 0]);
        let Ok([1, domain, vmid, _]) = query else {
            return Err(format!("stream {stream:#x} should be {driven:x?}; STREAM_QUERY says {query:x?}"));
        };
        tags.add(vmid, Holder::Driver)?;
        is_driver = 1;
        let wanted = [2, vmid, driven.len() as u64, 0];
        let said = tag(domain)?;
        if said != wanted {
            return Err(format!(
                "DOMAIN_TAG of the driver's {domain:#x} says {said:x?}, and not {wanted:x?}"
            ));
        }
    }
    for (handle, domain) in &record.domains {
        let Domain::Nested { vsmmu, .. } = domain else { continue };
        let vsmmu = record.vsmmu(*vsmmu).ok_or_else(|| format!("{handle:#x} is nested on nothing"))?;
        let here = vsmmu.smmu == smmu;
        let wanted = [2, u64::from(vsmmu.vmid), record.users(*handle, Some(smmu)), 0];
        let said = tag(*handle)?;
        if said != if here { wanted } else { [0; 4] } {
            return Err(format!("DOMAIN_TAG of {handle:#x} says {said:x?}, and not {wanted:x?}"));
        }
    }
    let in_use = (tags.0.len() - is_parked - is_driver) as u64 + bench.idle_vmids(smmu);
    let (used, free) = bench.tags(smmu);
    let described = bench.call(Function::SmmuDescribe, [smmu as u64, 0, 0, 0]).unwrap_or_default()[2];
    if used != in_use || described & 0xffff != used - 1 || used + free != described >> 16 {
        return Err(format!(
            "{in_use} VMIDs should be in use: SMMU_TAGS says {used}, {free} free; SMMU_DESCRIBE {described:#x}"
        ));
    }
    Ok(tags)
}
