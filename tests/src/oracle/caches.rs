//! Everything that an SMMU, or an ATC behind it, caches against what the tables give now.
//!
//! A combined entry may be out of date by the stage 1 of its owner, who has to invalidate that; by stage 2 never: the IPA that stage 1 gave
//! leads to its output still. The same holds for CDs and pointers to stage-1 tables. All else is exactly what a walk would find.

use super::leaves::{check_io, check_pages};
use super::standing::By;
use super::tags::{Holder, Tags};
use super::{Configs, View};
use crate::bench::Bench;
use crate::model::inspect::Cached;
use crate::model::smmu::combined::Kind;
use crate::model::smmu::ste::{Eats, Meaning};
use crate::model::smmu::tlb::WalkStep;
use crate::model::stage2::walk;

/// Checks every cache of an SMMU that translates.
pub(super) fn check(view: &View, smmu: usize, tags: &Tags, configs: &Configs) -> Result<(), String> {
    let cached: Vec<Cached> = view.bench.machine().smmus[smmu].cached().collect();
    check_vmids(view.bench, smmu)?;
    for entry in cached {
        let checked = match entry.vmid() {
            Some(vmid) => check_tagged(view, &entry, vmid, tags, configs),
            None => check_of_stream(view, smmu, &entry),
        };
        checked.map_err(|text| format!("caches {entry}: {text}"))?;
        if entry.doomed() {
            return Err(format!("caches {entry}, whose invalidation has had no SYNC"));
        }
    }
    Ok(())
}

/// Whether a stream is translated with each VMID that something is cached with, and has a stage 1 if that is of a stage 1: else no change of stage 2
/// would reach it. An SMMU that translates nothing uses nothing that it caches.
pub(super) fn check_vmids(bench: &Bench, smmu: usize) -> Result<(), String> {
    let mut machine = bench.machine();
    if !machine.smmus[smmu].translating() {
        return Ok(());
    }
    let cached: Vec<Cached> = machine.smmus[smmu].cached().filter(|entry| entry.vmid().is_some()).collect();
    if cached.is_empty() {
        return Ok(());
    }
    // Those that have a device, and those that a call or a driver has without one.
    let with_device = machine.smmus[smmu].streams.clone();
    let record = bench.record();
    let attached = record.streams.keys().filter(|(at, _)| *at == smmu).map(|(_, stream)| *stream);
    let driven = bench.driven(smmu).streams;
    let streams = with_device.into_iter().chain(attached).chain(driven.into_keys());
    let meanings: Vec<Meaning> =
        streams.filter_map(|stream| machine.meaning_in_memory(smmu, stream)).collect();
    for entry in cached {
        let mut of_streams = meanings.iter().filter(|meaning| meaning.vmid() == entry.vmid());
        let needs_stage1 = matches!(entry, Cached::Combined(_) | Cached::Stage1Walk(_));
        if !of_streams.any(|meaning| !needs_stage1 || matches!(meaning, Meaning::Nested { .. })) {
            let what = if needs_stage1 { "has a stage 1 with" } else { "is translated with" };
            return Err(format!("caches {entry}, and no stream {what} the VMID"));
        }
    }
    Ok(())
}

fn check_tagged(
    view: &View,
    entry: &Cached,
    vmid: u16,
    tags: &Tags,
    configs: &Configs,
) -> Result<(), String> {
    let domain = match tags.holder(vmid) {
        None => return Err("nobody has the VMID".into()),
        // Its table is empty, and so there are no entries of it.
        Some(Holder::Parked) => return Err("the VMID is that of unattached streams".into()),
        Some(Holder::Vsmmu { used: false, .. }) => return Err("no stream of the vSMMU is attached".into()),
        Some(Holder::Driver) => 0,
        Some(Holder::Domain(domain) | Holder::Vsmmu { parent: domain, .. }) => domain,
    };
    match entry {
        Cached::Stage2(entry) => check_io(view, &entry.leaf, domain),
        Cached::Stage2Walk(step) => check_walk(view, step, domain, configs),
        Cached::Combined(entry) => match entry.kind {
            Kind::Stage1 => Err("it is of stage 1 alone".into()),
            // The output is an IPA of the owner's choice.
            Kind::Split => Ok(()),
            Kind::Nested => {
                let ipa = entry.ipa_of(entry.ia);
                check_pages(view, domain, ipa, entry.output, 1 << entry.size_log2)
            }
        },
        Cached::Stage1Walk(step) => check_pages(view, domain, step.table.ipa, step.table.address, 8),
        Cached::Cd(..) | Cached::CdTable(..) | Cached::Atc(_) => Ok(()),
    }
}

/// Whether a table that is pointed to is in the domain's tables still, at that place.
fn check_walk(view: &View, step: &WalkStep, domain: u64, configs: &Configs) -> Result<(), String> {
    let configs = configs.get(&domain).ok_or("no STE says how the domain is walked")?;
    let machine = view.bench.machine();
    let found = configs.iter().any(|config| {
        let mut tables = Vec::new();
        let _ = walk(&machine.memory, config, step.table.ia, None, &mut tables, &mut Vec::new());
        tables.contains(&step.table)
    });
    if found { Ok(()) } else { Err("there is no such table any more".into()) }
}

fn check_of_stream(view: &View, smmu: usize, entry: &Cached) -> Result<(), String> {
    let stream = entry.stream().ok_or("it is of no stream")?;
    let decoded = view.bench.machine().decoded_in_memory(smmu, stream);
    let below = view.standing(smmu, stream).map(|standing| {
        let is_nested = !matches!(standing.by, By::Call { vsmmu: None, .. });
        (standing.stage2, is_nested)
    });
    let meaning = decoded.map(|decoded| decoded.meaning);
    match (entry, below) {
        (Cached::Atc(entry), _) => {
            // Translated requests are refused, or go through stage 2: what the ATC holds says nothing.
            if entry.split || decoded.is_none_or(|decoded| decoded.eats != Eats::Full) {
                return Ok(());
            }
            let (domain, _) = below.ok_or("the stream is unattached")?;
            let size = 1 << entry.size_log2;
            if let Some(Meaning::Stage2 { .. }) = meaning {
                return check_pages(view, domain, entry.ia, entry.output, size);
            }
            let lost =
                (entry.output..entry.output + size).step_by(4096).find(|page| !view.leads_to(domain, *page));
            lost.map_or(Ok(()), |page| Err(format!("{page:#x} is not the domain's")))
        }
        (_, Some((domain, true))) if matches!(meaning, Some(Meaning::Nested { .. })) => match entry {
            Cached::Cd(_, cd) => check_pages(view, domain, cd.ipa, cd.address, 64),
            Cached::CdTable(_, table) if view.leads_to(domain, table.address & !0xfff) => Ok(()),
            _ => Err("it is from memory that is not the domain's".into()),
        },
        _ => Err("the stream has no stage 1".into()),
    }
}
