//! The oracle: who may reach a page, by what the hypervisor says, against what every table and every cache says.

use crate::bench::{Bench, IMAGE, IMAGE_BYTES, POOL, POOL_BYTES, RAM_BYTES};
use crate::model::memory::Span;
use crate::model::smmu::stream::Meaning;
use crate::model::stage2::{Leaf, Stage2Config, all_leaves};
use crate::model::{FW_CFG, GICR, ITS, RAM_BASE, SMMU_BASE, SMMU_BYTES};
use abi::{Function, Status};
use std::collections::HashMap;

const HYPERVISOR: u64 = 0x100;
const PAGES: usize = (RAM_BYTES >> 12) as usize;

/// What MEM_QUERY says of every page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owners(Vec<(u64, u64)>);

impl Owners {
    /// Asks for every page of RAM.
    pub fn read(bench: &Bench) -> Result<Self, String> {
        let unit = bench.unit();
        let mut owners = Vec::with_capacity(PAGES);
        for address in (RAM_BASE..RAM_BASE + RAM_BYTES).step_by(unit as usize) {
            let [owner, shared, ..] = bench
                .call(Function::MemQuery, [address, 0, 0, 0])
                .map_err(|status| format!("MEM_QUERY of {address:#x} answered {status:?}"))?;
            owners.extend(std::iter::repeat_n((owner, shared), (unit >> 12) as usize));
        }
        Ok(Self(owners))
    }

    /// Whether a domain (0 the host's) may reach the page at an address of RAM.
    fn allows(&self, domain: u64, address: u64) -> bool {
        let Some(&(owner, shared)) = self.0.get(((address - RAM_BASE) >> 12) as usize) else { return false };
        owner == domain || domain != 0 && owner == 0 && shared == domain
    }

    /// Who owns a page, and with whom it is shared.
    pub fn of(&self, address: u64) -> Option<(u64, u64)> {
        self.0.get(((address - RAM_BASE) >> 12) as usize).copied()
    }
}

/// Whether a leaf, of a table or a cache, maps only what a domain may reach, at the same address.
fn check_leaf(
    owners: &Owners,
    leaf: &Leaf,
    domain: u64,
    cpu: bool,
    unit: u64,
    smmus: usize,
) -> Result<(), String> {
    if leaf.ia != leaf.output {
        return Err(format!("{:#x} is mapped to {:#x}", leaf.ia, leaf.output));
    }
    if !cpu && !leaf.execute_never() {
        return Err(format!("{:#x} is executable in an I/O table", leaf.ia));
    }
    let span = Span::new(leaf.output, 1 << leaf.size_log2);
    let ram = Span::new(RAM_BASE, RAM_BYTES);
    for page in (span.start.max(ram.start)..span.end.min(ram.end)).step_by(4096) {
        if !owners.allows(domain, page) {
            let owner = owners.of(page);
            return Err(format!("level {} leaf maps page {page:#x}, which is {owner:x?}'s", leaf.level));
        }
    }
    if span.start >= ram.start && span.end <= ram.end {
        return Ok(());
    }
    if !cpu {
        let doorbell = Span::new((ITS.start + 0x1_0000) & !(unit - 1), unit);
        if span.start < doorbell.start || span.end > doorbell.end {
            return Err(format!("{span:x?}, neither RAM nor the doorbell, is mapped for devices"));
        }
        return Ok(());
    }
    let smmus = Span::new(SMMU_BASE, SMMU_BYTES * smmus as u64);
    let redistributors = (GICR.start..GICR.end).step_by(0x2_0000).map(|base| Span::new(base, 0x1000));
    match [smmus, ITS, FW_CFG].into_iter().chain(redistributors).find(|absent| absent.overlaps(span)) {
        Some(absent) => Err(format!("{absent:x?} is in the host's stage 2, in a leaf of {span:x?}")),
        None => Ok(()),
    }
}

/// Whether a table maps every page that the domain may reach.
fn check_complete(owners: &Owners, leaves: &[Leaf], domain: u64) -> Result<(), String> {
    let mut mapped = vec![false; PAGES];
    for leaf in leaves {
        let end = (leaf.ia + (1 << leaf.size_log2)).min(RAM_BASE + RAM_BYTES);
        for page in (leaf.ia.max(RAM_BASE)..end).step_by(4096) {
            if let Some(slot) =
                page.checked_sub(RAM_BASE).and_then(|offset| mapped.get_mut((offset >> 12) as usize))
            {
                *slot = leaf.readable() && leaf.writable();
            }
        }
    }
    match mapped
        .iter()
        .enumerate()
        .find(|&(n, &is)| is != owners.allows(domain, RAM_BASE + ((n as u64) << 12)))
    {
        Some((n, _)) => Err(format!("page {:#x} is not mapped read-write", RAM_BASE + ((n as u64) << 12))),
        None => Ok(()),
    }
}

/// Checks everything that must hold while no call is under way.
///
/// For every page, the owner that MEM_QUERY names agrees with the CPU's stage 2, with the I/O table of every attached stream, and
/// with every cached translation of every IOTLB and of the CPUs. The hypervisor's memory and the SMMUs' registers are in none.
/// An unattached stream reaches nothing, and a VMID that no stream has is in no IOTLB.
pub fn check(bench: &Bench) -> Result<(), String> {
    let owners = Owners::read(bench)?;
    let unit = bench.unit();
    for address in [IMAGE, IMAGE + IMAGE_BYTES - unit, POOL, POOL + POOL_BYTES - unit] {
        if owners.of(address) != Some((HYPERVISOR, 0)) {
            return Err(format!("the hypervisor's page {address:#x} is {:x?}'s", owners.of(address)));
        }
    }
    let cpu = bench.machine().cpu.stage2.ok_or("the CPUs have no stage 2")?;
    let leaves = all_leaves(&bench.machine().memory, &cpu);
    for leaf in leaves.iter().chain(bench.machine().cpu.leaves.iter()) {
        check_leaf(&owners, leaf, 0, true, unit, bench.devices.len())
            .map_err(|text| format!("CPU stage 2: {text}"))?;
    }
    check_complete(&owners, &leaves, 0).map_err(|text| format!("CPU stage 2: {text}"))?;
    let mut tables: HashMap<Stage2Config, u64> = HashMap::new();
    for smmu in 0..bench.devices.len() {
        check_smmu(bench, &owners, smmu, unit, &mut tables).map_err(|text| format!("SMMU {smmu}: {text}"))?;
    }
    let violations = bench.machine().violations.take();
    if violations.is_empty() {
        Ok(())
    } else {
        Err(format!("{} violations: {violations:#?}", violations.len()))
    }
}

fn check_smmu(
    bench: &Bench,
    owners: &Owners,
    smmu: usize,
    unit: u64,
    tables: &mut HashMap<Stage2Config, u64>,
) -> Result<(), String> {
    if !bench.machine().smmus[smmu].translating() {
        return if bench.machine().smmus[smmu].aborting() {
            Ok(())
        } else {
            Err("neither translates nor aborts".into())
        };
    }
    let mut domains: HashMap<u16, Option<u64>> = HashMap::new();
    for device in &bench.devices[smmu] {
        let stream = u64::from(device.stream);
        let [attached, domain, tag, _] = bench
            .call(Function::StreamQuery, [smmu as u64, stream, 0, 0])
            .map_err(|status: Status| format!("STREAM_QUERY of {stream:#x} answered {status:?}"))?;
        let meaning = bench.machine().meaning_in_memory(smmu, device.stream);
        match (attached, meaning) {
            (1, Some(Meaning::Stage2 { vmid, config, record })) => {
                if u64::from(vmid) != tag || vmid == 0 || !record || !config.access_flag_fault_disabled {
                    return Err(format!(
                        "STE of {stream:#x} has VMID {vmid}, S2R {record}; the tag is {tag}"
                    ));
                }
                if domains.insert(vmid, Some(domain)).is_some_and(|old| old != Some(domain)) {
                    return Err(format!("VMID {vmid} is used for two domains"));
                }
                if tables.insert(config, domain).is_none() {
                    let leaves = all_leaves(&bench.machine().memory, &config);
                    for leaf in &leaves {
                        check_leaf(owners, leaf, domain, false, unit, 0)
                            .map_err(|text| format!("table of domain {domain}: {text}"))?;
                    }
                    check_complete(owners, &leaves, domain)
                        .map_err(|text| format!("table of domain {domain}: {text}"))?;
                }
            }
            (1, other) => return Err(format!("attached stream {stream:#x} has {other:?}")),
            (0, Some(Meaning::Stage2 { vmid, config, .. })) => {
                if domains.insert(vmid, None).is_some_and(|old| old.is_some()) {
                    return Err(format!("parked VMID {vmid} is a domain's too"));
                }
                if !all_leaves(&bench.machine().memory, &config).is_empty() {
                    return Err(format!("unattached stream {stream:#x} has a table that is not empty"));
                }
            }
            (0, None | Some(Meaning::Abort)) => {}
            (_, other) => return Err(format!("stream {stream:#x}, attached {attached}, has {other:?}")),
        }
    }
    let machine = bench.machine();
    let model = &machine.smmus[smmu];
    for (stream, entry) in &model.configuration.stes {
        if entry.doomed {
            return Err(format!("a CFGI for {stream:#x} has had no SYNC"));
        }
    }
    for entry in &model.tlb.translations {
        match domains.get(&entry.vmid) {
            Some(Some(domain)) => check_leaf(owners, &entry.leaf, *domain, false, unit, 0)
                .map_err(|text| format!("IOTLB, VMID {}: {text}", entry.vmid))?,
            _ => {
                return Err(format!(
                    "IOTLB has {:#x} for VMID {}, which no stream has",
                    entry.leaf.ia, entry.vmid
                ));
            }
        }
    }
    // Pointers to tables under a VMID that nobody has would come alive with the next domain that gets it.
    if let Some(step) = model.tlb.walks.iter().find(|step| !domains.contains_key(&step.vmid)) {
        return Err(format!(
            "walk cache has level {} for VMID {}, which no stream has",
            step.table.level, step.vmid
        ));
    }
    Ok(())
}
