//! The IOTLB with its walk cache: every entry stays until an invalidation that names it, and a SYNC, took it away. This part is about
//! stage 2; [`super::combined`] has what stage 1 has a part in.

use super::super::stage2::{Leaf, Stage2Config, TableRef, walk};
use super::combined::{Combined, Stage1Step};
use super::{Bus, Smmu};

/// A cached translation of stage 2 alone: for streams without stage 1, and for what stage 1 reads and puts out.
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
    /// The invalidation that named it was for both stages: nothing that is made meanwhile outlives it (4.4.3, CMD_TLBI_S12_VMALL).
    pub(crate) superseded: bool,
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

impl Hint {
    fn overlaps(&self, ia: u64, size_log2: u32) -> bool {
        self.first <= ia + ((1 << size_log2) - 1) && ia <= self.last
    }

    /// 4.4.1.1: whether a leaf entry goes. One of another level than TTL names, or of another granule than TG, need not.
    pub(crate) fn names_leaf(&self, ia: u64, size_log2: u32, level: u32, granule_log2: u32) -> bool {
        self.overlaps(ia, size_log2)
            && self.level.is_none_or(|named| named == level)
            && self.granule_log2.is_none_or(|named| named == granule_log2)
    }

    /// Whether a pointer to a table of this level goes. Leaf = 1 leaves table pointers alone; so does a TTL that names a level above
    /// the table (a leaf there has no table below).
    pub(crate) fn names_table(&self, ia: u64, size_log2: u32, level: u32) -> bool {
        !self.leaf_only && self.overlaps(ia, size_log2) && self.level.is_none_or(|named| named >= level)
    }
}

/// What an SMMU remembers of translation tables.
#[derive(Debug, Default)]
pub struct Tlb {
    /// Translations of stage 2 alone.
    pub translations: Vec<Translation>,
    /// Pointers to stage-2 tables.
    pub walks: Vec<WalkStep>,
    /// Translations that stage 1 has a part in.
    pub combined: Vec<Combined>,
    /// Pointers to stage-1 tables.
    pub stage1_walks: Vec<Stage1Step>,
}

impl Tlb {
    /// Removes what an invalidation named before.
    pub fn forget_doomed(&mut self) {
        self.translations.retain(|entry| !entry.doomed);
        self.walks.retain(|entry| !entry.doomed);
        self.combined.retain(|entry| !entry.doomed);
        self.stage1_walks.retain(|entry| !entry.doomed);
    }

    /// The oldest translation of an IPA, doomed or not: the worst that hardware may use.
    pub fn find(&self, vmid: u16, ia: u64) -> Option<&Translation> {
        self.translations.iter().find(|entry| entry.vmid == vmid && entry.leaf.covers(ia))
    }

    /// The oldest translation of an IPA from which an entry may be made that outlives the next SYNC.
    pub(crate) fn find_for_combining(&self, vmid: u16, ipa: u64) -> Option<&Translation> {
        self.translations.iter().find(|e| e.vmid == vmid && e.leaf.covers(ipa) && !e.superseded)
    }

    /// Translations of stage 2 alone whose output is in `first..=last`.
    pub fn reaching(&self, first: u64, last: u64) -> impl Iterator<Item = &Translation> {
        self.translations.iter().filter(move |entry| {
            let (start, end) = (entry.leaf.output, entry.leaf.output + ((1 << entry.leaf.size_log2) - 1));
            start <= last && first <= end
        })
    }
}

impl Smmu {
    /// 4.4: dooms stage-2 entries of a VMID (or of all), of a range (or of all addresses). `both` if the command is for both stages.
    pub(crate) fn doom_translations(
        &mut self,
        bus: &mut Bus,
        vmid: Option<u16>,
        hint: Option<Hint>,
        both: bool,
    ) {
        let mut again = Vec::new();
        for entry in &mut self.tlb.translations {
            let (ia, size_log2, level) = (entry.leaf.ia, entry.leaf.size_log2, entry.leaf.level);
            if vmid.is_some_and(|vmid| vmid != entry.vmid)
                || hint.is_some_and(|hint| !hint.names_leaf(ia, size_log2, level, entry.granule_log2))
            {
                continue;
            }
            entry.superseded |= both;
            if !entry.doomed {
                entry.doomed = true;
                again.push((entry.vmid, entry.config, entry.leaf.ia));
            }
        }
        for step in &mut self.tlb.walks {
            let (ia, size_log2, level) = (step.table.ia, step.table.size_log2, step.table.level);
            let named = hint.is_none_or(|hint| hint.names_table(ia, size_log2, level));
            step.doomed |= vmid.is_none_or(|vmid| vmid == step.vmid) && named;
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
        let config = *config;
        let fresh = Translation { vmid, leaf, granule_log2, doomed: false, superseded: false, config };
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
