//! The IOTLB with its walk cache: every entry stays until an invalidation that names it, and a SYNC, took it away.

use super::super::stage2::{Leaf, Stage2Config, TableRef, walk};
use super::{Bus, Smmu};

/// A cached translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Tag.
    pub vmid: u16,
    /// What it says.
    pub leaf: Leaf,
    /// Granule of the table it came from.
    pub granule_log2: u32,
    /// An invalidation named it; it goes with the next SYNC.
    pub doomed: bool,
    pub(crate) config: Stage2Config,
}

/// A cached pointer to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkStep {
    /// Tag.
    pub vmid: u16,
    /// Where the table is and what it resolves.
    pub table: TableRef,
    /// An invalidation named it; it goes with the next SYNC.
    pub doomed: bool,
}

/// Which addresses an invalidation names, and what it says about their entries.
#[derive(Clone, Copy, Debug)]
pub struct Hint {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
    /// Leaf entries of this level only (TTL).
    pub level: Option<u32>,
    /// Table pointers stay (Leaf = 1).
    pub leaf_only: bool,
    /// Entries of this granule only (TG).
    pub granule_log2: Option<u32>,
}

/// What an SMMU remembers of stage-2 tables.
#[derive(Debug, Default)]
pub struct Tlb {
    /// Translations.
    pub translations: Vec<Translation>,
    /// Table pointers.
    pub walks: Vec<WalkStep>,
}

impl Tlb {
    /// Removes what an invalidation named before.
    pub fn forget_doomed(&mut self) {
        self.translations.retain(|entry| !entry.doomed);
        self.walks.retain(|entry| !entry.doomed);
    }

    /// The oldest translation of an address, doomed or not: the worst that hardware may use.
    pub fn find(&self, vmid: u16, ia: u64) -> Option<&Translation> {
        self.translations.iter().find(|entry| entry.vmid == vmid && entry.leaf.covers(ia))
    }

    /// Translations whose output is in `first..=last`.
    pub fn reaching(&self, first: u64, last: u64) -> impl Iterator<Item = &Translation> {
        self.translations.iter().filter(move |entry| {
            let (start, end) = (entry.leaf.output, entry.leaf.output + ((1 << entry.leaf.size_log2) - 1));
            start <= last && first <= end
        })
    }
}

impl Smmu {
    /// 4.4: dooms entries of a VMID (or of all), of a range (or of all addresses).
    pub(crate) fn doom_translations(&mut self, bus: &mut Bus, vmid: Option<u16>, hint: Option<Hint>) {
        let mut again = Vec::new();
        for entry in &mut self.tlb.translations {
            if vmid.is_some_and(|vmid| vmid != entry.vmid) {
                continue;
            }
            if let Some(hint) = hint {
                let last = entry.leaf.ia + ((1 << entry.leaf.size_log2) - 1);
                if hint.last < entry.leaf.ia || last < hint.first {
                    continue;
                }
                // 4.4.1.1: an entry of another level than TTL names, or of another granule than TG, need not go.
                if hint.level.is_some_and(|level| level != entry.leaf.level)
                    || hint.granule_log2.is_some_and(|granule| granule != entry.granule_log2)
                {
                    continue;
                }
            }
            if !entry.doomed {
                entry.doomed = true;
                again.push((entry.vmid, entry.config, entry.leaf.ia));
            }
        }
        for step in &mut self.tlb.walks {
            if vmid.is_some_and(|vmid| vmid != step.vmid) {
                continue;
            }
            if let Some(hint) = hint {
                let last = step.table.ia + ((1 << step.table.size_log2) - 1);
                // Leaf = 1 leaves table pointers alone; so does a TTL that names a level above the table (a leaf there has no table below).
                if hint.leaf_only || hint.last < step.table.ia || last < hint.first {
                    continue;
                }
                if hint.level.is_some_and(|level| level < step.table.level) {
                    continue;
                }
            }
            step.doomed = true;
        }
        if self.config.greedy && self.translating() {
            // Only what a cached STE still names can be read again.
            let live = self.cached_configs();
            again.retain(|(vmid, config, _)| live.contains(&(*vmid, *config)));
            for (vmid, config, ia) in again {
                let _ = self.fill(bus, vmid, &config, ia);
            }
        }
    }

    /// Walks for an address and caches what it finds. Cached table pointers that are not doomed are used first.
    pub(crate) fn fill(
        &mut self,
        bus: &mut Bus,
        vmid: u16,
        config: &Stage2Config,
        ia: u64,
    ) -> Result<Leaf, super::super::stage2::WalkFault> {
        let from = self
            .tlb
            .walks
            .iter()
            .filter(|step| {
                step.vmid == vmid && ia >> step.table.size_log2 == step.table.ia >> step.table.size_log2
            })
            .filter(|step| !step.doomed)
            .max_by_key(|step| step.table.level)
            .map(|step| step.table);
        let (mut tables, mut oddities) = (Vec::new(), Vec::new());
        let found = walk(bus.memory, config, ia, from, &mut tables, &mut oddities);
        for oddity in oddities {
            self.violation(bus, oddity);
        }
        self.remember_table(config, config.root, config.root_bytes(), ia);
        for table in tables {
            self.remember_table(config, table.address, 1 << config.granule_log2, ia);
            if !self.tlb.walks.iter().any(|step| step.vmid == vmid && step.table == table && !step.doomed) {
                self.tlb.walks.push(WalkStep { vmid, table, doomed: false });
            }
        }
        let leaf = found?;
        let granule_log2 = config.granule_log2;
        let clash = self.tlb.translations.iter().find(|entry| {
            let (a, b) = (entry.leaf, leaf);
            entry.vmid == vmid
                && (a.covers(b.ia) || b.covers(a.ia))
                && (a.size_log2 != b.size_log2 || a.output != b.output)
        });
        if let Some(entry) = clash {
            let old = entry.leaf;
            let base = old.ia.max(leaf.ia);
            let same = old.translate(base) == leaf.translate(base);
            // DDI 0487, D8.16.1 and IHI 0070, 3.21.1.3: two sizes at once need BBML 2 and the same output; two outputs are never allowed.
            if !same || self.config.bbm_level() < 2 {
                self.violation(
                    bus,
                    format_args!(
                        "VMID {vmid}: a level {} entry for {:#x} (to {:#x}) is cached beside a level {} entry (to {:#x}), BBML {}",
                        leaf.level, leaf.ia, leaf.output, old.level, old.output, self.config.bbm_level()
                    ),
                );
            }
        }
        let fresh = Translation { vmid, leaf, granule_log2, doomed: false, config: *config };
        if !self.tlb.translations.contains(&fresh) {
            self.tlb.translations.push(fresh);
        }
        Ok(leaf)
    }

    fn remember_table(&mut self, config: &Stage2Config, address: u64, bytes: u64, ia: u64) {
        for page in address >> 12..=(address + bytes - 1) >> 12 {
            let users = self.walked.entry(page).or_default();
            if users.len() < 64 && !users.contains(&(*config, ia)) {
                users.push((*config, ia));
            }
        }
    }
}
