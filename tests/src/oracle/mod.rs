//! The oracle: what the hypervisor says, and what calls have made, against every table, every STE and every cache.
//!
//! [`check`] asks, while no call is under way: is any translation still cached that the tables no longer give? is any tag free but not clean?
//! was any invalidation sent that no cache could need? And: do the tables give what the calls asked for, and no more?

mod caches;
mod incremental;
mod leaves;
mod owners;
mod snapshot;
mod standing;
mod streams;
mod tags;

pub use incremental::Incremental;
pub use owners::Owners;
pub use snapshot::Snapshot;

use crate::bench::{Bench, IMAGE, IMAGE_BYTES, POOL, POOL_BYTES};
use crate::model::memory::Span;
use crate::model::stage2::{Stage2Config, all_leaves};
use crate::model::{ITS, RAM_BASE};
use crate::record::{Domain, Record};
use abi::{Function, Status};
use std::collections::HashMap;
use std::sync::Arc;

const HYPERVISOR: u64 = 0x100;

/// What everything is held against.
pub(crate) struct View<'a> {
    pub bench: &'a Bench,
    pub owners: &'a Owners,
    pub record: Arc<Record>,
    pub unit: u64,
    /// The page that devices write MSIs to.
    pub doorbell: Span,
}

impl<'a> View<'a> {
    fn of(bench: &'a Bench, owners: &'a Owners) -> Self {
        let unit = bench.unit();
        let doorbell = Span::new((ITS.start + 0x1_0000) & !(unit - 1), unit);
        Self { bench, owners, record: bench.record(), unit, doorbell }
    }

    /// Where a page of a stage-2 domain leads, by what calls have made.
    pub fn maps(&self, domain: u64, page: u64) -> Option<u64> {
        if self.doorbell.contains(page) {
            return Some(page);
        }
        match self.record.domain(domain) {
            Some(Domain::Mapping(pages)) => pages.get(&page).copied(),
            Some(Domain::Nested { .. }) => None,
            None => (page >= RAM_BASE && self.owners.allows(domain, page)).then_some(page),
        }
    }

    /// Whether some address of a stage-2 domain leads to a page.
    pub fn leads_to(&self, domain: u64, page: u64) -> bool {
        match self.record.domain(domain) {
            Some(Domain::Mapping(pages)) => {
                self.doorbell.contains(page) || pages.values().any(|mapped| *mapped == page)
            }
            _ => self.maps(domain, page) == Some(page),
        }
    }
}

/// The stage-2 walks of domains, as STEs say.
pub(crate) type Configs = HashMap<u64, Vec<Stage2Config>>;

/// [`check_state`], and that no invalidation was sent that no cache could need.
///
/// # Errors
/// What does not agree, in words.
pub fn check(bench: &Bench) -> Result<(), String> {
    check_with(bench, &Owners::read(bench)?)
}

/// [`check`], for one who has asked for the owners.
fn check_with(bench: &Bench, owners: &Owners) -> Result<(), String> {
    check_view(&View::of(bench, owners))?;
    for smmu in &mut bench.machine().smmus {
        if let Some(needless) = std::mem::take(&mut smmu.needless).first() {
            return Err(format!("SMMU {}: needless {needless}", smmu.index));
        }
    }
    Ok(())
}

/// Checks everything that must hold while no call is under way.
///
/// For every page, the owner that MEM_QUERY names agrees with the CPU's stage 2, with the I/O table of every domain, and
/// with every cache of every SMMU, ATC and CPU. The hypervisor's memory and the SMMUs' registers are in none.
/// An unattached stream reaches nothing, and a VMID that no stream has is in no cache.
///
/// # Errors
/// What does not agree, in words.
pub fn check_state(bench: &Bench) -> Result<(), String> {
    check_view(&View::of(bench, &Owners::read(bench)?))
}

fn check_view(view: &View) -> Result<(), String> {
    let bench = view.bench;
    let own = bench.hypervisor.oracle().check_all();
    own.map_err(|finding| format!("the hypervisor's own oracle: {finding}"))?;
    for address in [IMAGE, IMAGE + IMAGE_BYTES - view.unit, POOL, POOL + POOL_BYTES - view.unit] {
        if view.owners.of(address) != Some((HYPERVISOR, 0)) {
            return Err(format!("the hypervisor's page {address:#x} is {:x?}'s", view.owners.of(address)));
        }
    }
    let cpu = bench.machine().cpu.stage2.ok_or("the CPUs have no stage 2")?;
    let leaves = all_leaves(&bench.machine().memory, &cpu);
    for leaf in leaves.iter().chain(bench.machine().cpu.leaves.iter()) {
        leaves::check_cpu(view, leaf).map_err(|text| format!("CPU stage 2: {text}"))?;
    }
    leaves::check_complete(view, &leaves, 0).map_err(|text| format!("CPU stage 2: {text}"))?;
    check_mappings(view)?;
    let mut configs = Configs::new();
    let mut dead = false;
    for smmu in 0..bench.devices.len() {
        let translating = bench.machine().smmus[smmu].translating();
        if !translating && !bench.machine().smmus[smmu].aborting() {
            return Err(format!("SMMU {smmu}: neither translates nor aborts"));
        }
        let checked = tags::check(view, smmu).and_then(|tags| {
            if !translating {
                dead = true;
                return Ok(());
            }
            streams::check(view, smmu, &tags, &mut configs)?;
            caches::check(view, smmu, &tags, &configs)
        });
        checked.map_err(|text| format!("SMMU {smmu}: {text}"))?;
    }
    for (domain, configs) in &configs {
        for config in configs {
            let leaves = all_leaves(&bench.machine().memory, config);
            leaves::check_table(view, &leaves, *domain)
                .map_err(|text| format!("table of domain {domain:#x}: {text}"))?;
        }
    }
    let violations = bench.machine().violations.take();
    if violations.is_empty() {
        Ok(())
    } else {
        Err(format!("{} violations: {violations:#?}", violations.len()))
    }
}

/// DOMAIN_QUERY says what calls have made, of pages that the guest owns; and those cannot be reclaimed.
fn check_mappings(view: &View) -> Result<(), String> {
    for (handle, domain) in &view.record.domains {
        let Domain::Mapping(pages) = domain else { continue };
        let guest = crate::record::owner_of(*handle);
        for (&ipa, &page) in pages {
            let found = view.bench.query(*handle, ipa);
            if found != Some(page) {
                return Err(format!("domain {handle:#x} maps {ipa:#x} to {found:x?}, not to {page:#x}"));
            }
            if view.owners.of(page) != Some((guest, 0)) {
                return Err(format!(
                    "domain {handle:#x} of guest {guest} maps page {page:#x} of {:x?}",
                    view.owners.of(page)
                ));
            }
        }
        let Some(&page) = pages.values().next() else { continue };
        let reclaimed = view.bench.call(Function::MemReclaim, [page & !(view.unit - 1), view.unit, guest, 0]);
        if !matches!(reclaimed, Err(Status::WrongState | Status::Busy)) {
            return Err(format!("page {page:#x} is mapped, and its reclaim answers {reclaimed:?}"));
        }
    }
    Ok(())
}
