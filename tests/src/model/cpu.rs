//! The CPUs' stage-2 TLB: one for all CPUs, which forgets nothing until it is told (DDI 0487, D8.16 and D8.17).

use super::memory::{PhysMemory, Span};
use super::stage2::{Leaf, Stage2Config, TableRef, WalkFault, walk};
use super::violation::Violations;

/// Why an access of the host's CPU was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuFault {
    /// The walk found no leaf.
    Walk(WalkFault),
    /// The leaf does not allow the access.
    Permission(u32),
}

/// The host's CPUs as one translation cache.
#[derive(Debug, Default)]
pub struct Cpu {
    /// What VTCR_EL2 and VTTBR_EL2 say; `None` before the host runs.
    pub stage2: Option<Stage2Config>,
    /// Cached leaves.
    pub leaves: Vec<Leaf>,
    /// Cached table pointers.
    pub walks: Vec<TableRef>,
}

impl Cpu {
    /// Translates an IPA for an access.
    pub fn translate(
        &mut self,
        memory: &PhysMemory,
        violations: &mut Violations,
        ipa: u64,
        write: bool,
    ) -> Result<u64, CpuFault> {
        let Some(config) = self.stage2 else { return Err(CpuFault::Walk(WalkFault::Translation(0))) };
        let leaf = match self.leaves.iter().position(|leaf| leaf.covers(ipa)) {
            Some(place) => {
                // The next access is likely to the same page.
                self.leaves.swap(0, place);
                self.leaves[0]
            }
            None => self.fill(memory, violations, &config, ipa).map_err(CpuFault::Walk)?,
        };
        if write && !leaf.writable() || !write && !leaf.readable() {
            return Err(CpuFault::Permission(leaf.level));
        }
        Ok(leaf.translate(ipa))
    }

    fn fill(
        &mut self,
        memory: &PhysMemory,
        violations: &mut Violations,
        config: &Stage2Config,
        ipa: u64,
    ) -> Result<Leaf, WalkFault> {
        let from = self
            .walks
            .iter()
            .filter(|table| ipa >> table.size_log2 == table.ia >> table.size_log2)
            .max_by_key(|table| table.level)
            .copied();
        let (mut tables, mut oddities) = (Vec::new(), Vec::new());
        let found = walk(memory, config, ipa, from, &mut tables, &mut oddities);
        for oddity in oddities {
            violations.record(format!("CPU stage 2: {oddity}"));
        }
        for table in tables {
            if !self.walks.contains(&table) {
                self.walks.push(table);
            }
        }
        let leaf = found?;
        if let Some(old) = self.leaves.iter().find(|old| old.covers(leaf.ia) || leaf.covers(old.ia)) {
            violations.record(format!(
                "CPU TLB conflict: level {} for {:#x} beside level {} for {:#x}: no break before make",
                leaf.level, leaf.ia, old.level, old.ia
            ));
        }
        self.leaves.push(leaf);
        Ok(leaf)
    }

    /// TLBI of an IPA range, all levels, and the combined entries made from it: complete on return.
    pub fn invalidate(&mut self, span: Span) {
        let apart = |ia: u64, size_log2: u32| !Span::new(ia, 1 << size_log2).overlaps(span);
        self.leaves.retain(|leaf| apart(leaf.ia, leaf.size_log2));
        self.walks.retain(|table| apart(table.ia, table.size_log2));
    }
}
