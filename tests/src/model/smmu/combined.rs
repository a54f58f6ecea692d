//! What an SMMU caches of stage 1: translations, combined with stage 2 where there is one, and pointers to stage-1 tables.
//!
//! Entries are tagged with VMID and ASID (IHI 0070, 3.17 and 4.4). An entry that combines both stages is a stage-1 entry to every
//! command: CMD_TLBI_S2_IPA leaves it alone (4.4.2), and so it goes on translating what stage 2 no longer has until a CMD_TLBI_NH_*
//! names it. The same holds for a cached pointer to a stage-1 table, which has the physical address that stage 2 gave.

use super::super::stage1::{Stage1Config, Stage1Fault, Stage1Leaf, Stage1Table, Tables, walk};
use super::super::stage2::{Leaf, WalkFault};
use super::cd::Context;
use super::context::Setup;
use super::event::{Class, Refusal, number};
use super::tlb::Hint;
use super::translate::Mapping;
use super::{Bus, Smmu};

/// What an entry's output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Stage 1 alone translates: a physical address.
    Stage1,
    /// Both stages: a physical address.
    Nested,
    /// Stage 1 of a nested stream, for split-stage ATS: an IPA.
    Split,
}

impl Kind {
    pub(crate) fn of(setup: &Setup) -> Self {
        if setup.parent.is_some() { Self::Nested } else { Self::Stage1 }
    }
}

/// A cached translation that stage 1 has a part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Combined {
    /// Tag.
    pub vmid: u16,
    /// Tag; of no meaning if `global`.
    pub asid: u16,
    /// nG = 0: it is for all ASIDs.
    pub global: bool,
    /// What its output is.
    pub kind: Kind,
    /// First input address.
    pub ia: u64,
    /// First output address.
    pub output: u64,
    /// log2 of its size: the smaller of the two leaves.
    pub size_log2: u32,
    /// The stage-1 leaf.
    pub stage1: Stage1Leaf,
    /// The stage-2 leaf, if the kind is nested.
    pub stage2: Option<Leaf>,
    /// Granule of stage 1.
    pub granule_log2: u32,
    /// An invalidation named it; it goes with the next SYNC.
    pub doomed: bool,
    /// StreamID and SSID (0 for a transaction without one) that it was made for; others with the same tags find it too.
    pub maker: (u32, u32),
    pub(crate) privileged: bool,
}

impl Combined {
    /// Whether it maps the input address.
    pub fn covers(&self, ia: u64) -> bool {
        ia >> self.size_log2 == self.ia >> self.size_log2
    }

    /// Output for an input address it covers.
    pub fn translate(&self, ia: u64) -> u64 {
        self.output | ia & ((1 << self.size_log2) - 1)
    }

    /// What stage 1 makes of an input address it covers.
    pub fn ipa_of(&self, ia: u64) -> u64 {
        self.stage1.output | ia & ((1 << self.stage1.size_log2) - 1)
    }

    /// Whether stage 1 allows an access.
    pub fn stage1_allows(&self, write: bool) -> bool {
        self.stage1.allows(write, self.privileged)
    }

    /// Whether stage 2 allows an access, if it has a part.
    pub fn stage2_allows(&self, write: bool) -> bool {
        self.stage2.is_none_or(|leaf| if write { leaf.writable() } else { leaf.readable() })
    }

    pub(crate) fn mapping(&self) -> Mapping {
        Mapping {
            ia: self.ia,
            output: self.output,
            size_log2: self.size_log2,
            readable: self.stage1_allows(false) && self.stage2_allows(false),
            writable: self.stage1_allows(true) && self.stage2_allows(true),
        }
    }
}

/// A cached pointer to descriptors of a stage-1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage1Step {
    /// Tag.
    pub vmid: u16,
    /// Tag.
    pub asid: u16,
    /// Where the descriptors are and what they resolve.
    pub table: Stage1Table,
    /// An invalidation named it; it goes with the next SYNC.
    pub doomed: bool,
    pub(crate) granule_log2: u32,
    /// TTB0, for descriptors of the first table: another CD with the same ASID must not walk from them.
    pub(crate) root: Option<u64>,
}

/// Which stage-1 entries a command names (4.4.1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    pub(crate) vmid: Option<u16>,
    pub(crate) asid: Option<u16>,
    /// Entries of all ASIDs too: with an address, not with an ASID alone (DDI 0487, D8.14.5).
    pub(crate) globals: bool,
    pub(crate) hint: Option<Hint>,
}

struct Below<'a, 'b, 'c> {
    smmu: &'a mut Smmu,
    bus: &'b mut Bus<'c>,
    setup: &'a Setup,
}

impl Tables for Below<'_, '_, '_> {
    type Refusal = Refusal;

    fn locate(&mut self, address: u64) -> Result<u64, Refusal> {
        self.smmu.locate(self.bus, self.setup, address, Class::Table)
    }

    fn read(&mut self, address: u64) -> Option<u64> {
        self.bus.memory.read(address)
    }
}

impl Smmu {
    /// The translation of an address through a CD: from the TLB if it is there, the oldest first, else by a walk.
    pub(crate) fn combine(
        &mut self,
        bus: &mut Bus,
        maker: (u32, u32),
        setup: &Setup,
        context: &Context,
        va: u64,
        kind: Kind,
    ) -> Result<Combined, Refusal> {
        let (vmid, asid) = (setup.vmid, context.asid);
        // The tags do not say whether stage 2 had a part: an entry from before the STE asked for stage 2 is found too.
        let split = kind == Kind::Split;
        let cached = context.walk.input(va).and_then(|va| {
            self.tlb.combined.iter().find(|entry| {
                entry.vmid == vmid
                    && (entry.global || entry.asid == asid)
                    && (entry.kind == Kind::Split) == split
                    && entry.covers(va)
            })
        });
        match cached {
            Some(entry) => Ok(*entry),
            None => self.fill_combined(bus, maker, setup, context, va, kind),
        }
    }

    fn cached_step(&self, vmid: u16, asid: u16, walk: &Stage1Config, va: u64) -> Option<Stage1Table> {
        let va = walk.input(va)?;
        self.tlb
            .stage1_walks
            .iter()
            .filter(|step| step.vmid == vmid && step.asid == asid && !step.doomed)
            .filter(|step| step.granule_log2 == walk.granule_log2)
            .filter(|step| step.root.is_none_or(|root| root == walk.root))
            .filter(|step| step.table.level >= walk.start_level())
            .filter(|step| va >> step.table.size_log2 == step.table.ia >> step.table.size_log2)
            .max_by_key(|step| step.table.level)
            .map(|step| step.table)
    }

    /// Walks for an address and caches what it finds. Cached table pointers that are not doomed are used first.
    fn fill_combined(
        &mut self,
        bus: &mut Bus,
        maker: (u32, u32),
        setup: &Setup,
        context: &Context,
        va: u64,
        kind: Kind,
    ) -> Result<Combined, Refusal> {
        let (vmid, asid, config) = (setup.vmid, context.asid, context.walk);
        let from = self.cached_step(vmid, asid, &config, va);
        let mut tables = Vec::new();
        let found = walk(&mut Below { smmu: self, bus, setup }, &config, va, from, &mut tables);
        for table in tables {
            let root = (table.level == config.start_level()).then_some(config.root);
            let granule_log2 = config.granule_log2;
            let step = Stage1Step { vmid, asid, table, doomed: false, granule_log2, root };
            if !self.tlb.stage1_walks.contains(&step) {
                self.tlb.stage1_walks.push(step);
            }
        }
        let stage1 = found.map_err(|fault| match fault {
            Stage1Fault::Table(refusal) => refusal,
            Stage1Fault::Walk(fault) => {
                let external = matches!(fault, WalkFault::ExternalAbort(_));
                let class = if external { Class::Table } else { Class::Input };
                Refusal::stage1(number::of_walk(fault), class, context.record)
            }
        })?;
        let va = config.input(va).unwrap_or(va);
        let (mut size_log2, mut output, mut stage2) = (stage1.size_log2, stage1.output, None);
        if let (Kind::Nested, Some(parent)) = (kind, setup.parent) {
            let ipa = stage1.output | va & ((1 << stage1.size_log2) - 1);
            let leaf = self.below(bus, vmid, &parent, ipa, Class::Input)?;
            size_log2 = size_log2.min(leaf.size_log2);
            output = leaf.translate(ipa) >> size_log2 << size_log2;
            stage2 = Some(leaf);
        }
        let entry = Combined {
            vmid,
            asid,
            global: stage1.global(),
            kind,
            ia: va >> size_log2 << size_log2,
            output,
            size_log2,
            stage1,
            stage2,
            granule_log2: config.granule_log2,
            doomed: false,
            privileged: setup.contexts.privileged,
            maker,
        };
        if !self.tlb.combined.contains(&entry) {
            self.tlb.combined.push(entry);
        }
        Ok(entry)
    }

    /// 4.4: dooms stage-1 entries and table pointers. A greedy SMMU walks again at once, through stage-2 entries that are not gone yet.
    pub(crate) fn doom_combined(&mut self, bus: &mut Bus, scope: &Scope) {
        let mut again = Vec::new();
        for entry in &mut self.tlb.combined {
            let vmid = scope.vmid.is_none_or(|vmid| vmid == entry.vmid);
            let asid =
                scope.asid.is_none_or(|asid| if entry.global { scope.globals } else { asid == entry.asid });
            // TTL and TG are about the stage-1 leaf, whatever stage 2 has below it (4.4.1.1).
            let named = scope.hint.is_none_or(|hint| {
                hint.names_leaf(entry.ia, entry.size_log2, entry.stage1.level, entry.granule_log2)
            });
            if vmid && asid && named && !entry.doomed {
                entry.doomed = true;
                again.push(*entry);
            }
        }
        for step in &mut self.tlb.stage1_walks {
            let vmid = scope.vmid.is_none_or(|vmid| vmid == step.vmid);
            let asid = scope.asid.is_none_or(|asid| asid == step.asid);
            let (ia, size_log2, level) = (step.table.ia, step.table.size_log2, step.table.level);
            let named = scope.hint.is_none_or(|hint| hint.names_table(ia, size_log2, level));
            step.doomed |= vmid && asid && named;
        }
        if !(self.config.greedy && self.translating()) {
            return;
        }
        for entry in again {
            // Only what a cached STE and CD still say can be read again.
            let Some(setup) = self.cached_setup(entry.maker.0) else { continue };
            let Some(cd) = self.configuration.cds.get(&entry.maker).map(|cached| cached.cd) else { continue };
            let Ok(context) = self.decode_cd(&cd, &setup.contexts) else { continue };
            let kind = if entry.kind == Kind::Split { Kind::Split } else { Kind::of(&setup) };
            if setup.vmid == entry.vmid && context.asid == entry.asid {
                let _ = self.fill_combined(bus, entry.maker, &setup, &context, entry.ia, kind);
            }
        }
    }
}
