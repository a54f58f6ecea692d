//! Which cached translations and CDs memory no longer agrees with: each is allowed until its invalidation is complete, and wrong after it.

use super::Machine;
use super::inspect::Cached;
use super::memory::PhysMemory;
use super::smmu::ats::AtcEntry;
use super::smmu::combined::{Combined, Kind};
use super::smmu::context::{CachedCd, Setup};
use super::smmu::tlb::{Translation, WalkStep};
use super::smmu::{Bus, Smmu};
use super::stage2::{Stage2Config, walk};
use super::violation::Violations;

impl Machine {
    /// What an SMMU, and the ATCs behind it, cache and would not find in memory now: translations of stage 2 and pointers to its tables whose
    /// VMID no STE has, or that its table does not give; translations of stage 1, CDs and ATC entries that the stream they were made for
    /// would not get. Nothing of an SMMU that does not translate. Pointers to stage-1 tables are not among them: see
    /// [`Machine::check_unreachable`] for where they lead.
    pub fn stale(&mut self, index: usize) -> Vec<Cached> {
        let Some(smmu) = self.smmus.get(index).filter(|smmu| smmu.translating()) else { return Vec::new() };
        let (streams, cached): (Vec<u32>, Vec<Cached>) = (smmu.streams.clone(), smmu.cached().collect());
        let mut parents: Vec<(u16, Stage2Config)> = Vec::new();
        for stream in streams {
            if let Some(meaning) = self.meaning_in_memory(index, stream)
                && let (Some(vmid), Some(config)) = (meaning.vmid(), meaning.stage2())
                && !parents.contains(&(vmid, config))
            {
                parents.push((vmid, config));
            }
        }
        let Some(smmu) = self.smmus.get(index) else { return Vec::new() };
        let mut unheard = Violations::default();
        let mut bus = Bus { memory: &mut self.memory, violations: &mut unheard, now_ns: self.now_ns };
        let agrees = |cached: &Cached, bus: &mut Bus| match cached {
            Cached::Stage2(entry) => stage2_agrees(bus.memory, &parents, entry),
            Cached::Stage2Walk(step) => walk_agrees(bus.memory, &parents, step),
            Cached::Combined(entry) => combined_agrees(smmu, bus, entry),
            Cached::Cd(key, entry) => cd_agrees(smmu, bus, *key, entry),
            Cached::Atc(entry) => atc_agrees(smmu, bus, entry),
            Cached::Stage1Walk(_) | Cached::CdTable(..) => true,
        };
        cached.into_iter().filter(|cached| !agrees(cached, &mut bus)).collect()
    }
}

fn stage2_agrees(memory: &PhysMemory, parents: &[(u16, Stage2Config)], entry: &Translation) -> bool {
    parents.iter().filter(|(vmid, _)| *vmid == entry.vmid).any(|(_, config)| {
        walk(memory, config, entry.leaf.ia, None, &mut Vec::new(), &mut Vec::new()).is_ok_and(|leaf| {
            // A block may have been split, or joined, to the same output.
            leaf.translate(entry.leaf.ia) == entry.leaf.output
                && leaf.readable() == entry.leaf.readable()
                && leaf.writable() == entry.leaf.writable()
        })
    })
}

fn walk_agrees(memory: &PhysMemory, parents: &[(u16, Stage2Config)], step: &WalkStep) -> bool {
    parents.iter().filter(|(vmid, _)| *vmid == step.vmid).any(|(_, config)| {
        let mut tables = Vec::new();
        let _ = walk(memory, config, step.table.ia, None, &mut tables, &mut Vec::new());
        tables.contains(&step.table)
    })
}

fn combined_agrees(smmu: &Smmu, bus: &mut Bus, entry: &Combined) -> bool {
    let mut probe = smmu.without_caches();
    let (stream, ssid) = entry.maker;
    let Some(setup) = setup(&mut probe, bus, stream) else { return false };
    let Ok(context) = probe.context_of(bus, stream, ssid, &setup) else { return false };
    let kind = if entry.kind == Kind::Split { Kind::Split } else { Kind::of(&setup) };
    let Ok(now) = probe.combine(bus, entry.maker, &setup, &context, entry.ia, kind) else { return false };
    let rights = |entry: &Combined| {
        [false, true].map(|write| entry.stage1_allows(write) && entry.stage2_allows(write))
    };
    (now.vmid, now.asid, now.global, now.kind) == (entry.vmid, entry.asid, entry.global, entry.kind)
        && now.translate(entry.ia) == entry.output
        && rights(&now) == rights(entry)
}

fn cd_agrees(smmu: &Smmu, bus: &mut Bus, key: (u32, u32), entry: &CachedCd) -> bool {
    let mut probe = smmu.without_caches();
    let Some(setup) = setup(&mut probe, bus, key.0) else { return false };
    let read = probe.cd_of(bus, key.0, key.1, &setup);
    let address = probe.configuration.cds.get(&key).map(|cached| cached.address);
    read == Ok(entry.cd) && address == Some(entry.address)
}

fn atc_agrees(smmu: &Smmu, bus: &mut Bus, entry: &AtcEntry) -> bool {
    smmu.without_caches().ask(bus, entry.origin, entry.ia).is_ok_and(|now| {
        now.translate(entry.ia) == entry.output
            && (now.split, now.readable, now.writable) == (entry.split, entry.readable, entry.writable)
    })
}

fn setup(probe: &mut Smmu, bus: &mut Bus, stream: u32) -> Option<Setup> {
    let decoded = probe.stream_of(bus, stream).ok()?;
    Setup::of(&decoded.meaning)
}
