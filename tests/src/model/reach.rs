//! What still reaches memory that changes hands: every cache of every SMMU, ATC and CPU, and transactions under way.

use super::Machine;
use super::inspect::Cached;
use super::memory::Span;

impl Machine {
    /// Records everything that is cached by an SMMU that translates, by an ATC or by a CPU, and every transaction under way, that reaches
    /// the span: as memory of a device, or as a stage-1 table or CD that the SMMU would go on reading.
    ///
    /// An ATC entry that was got without split stages counts while the stream's EATS, in memory or in the cache, lets Translated requests
    /// pass; else it is marked, and ATS must not be switched on again before it is gone.
    pub fn check_unreachable(&mut self, span: Span, what: &str) {
        for index in 0..self.smmus.len() {
            if self.smmus[index].translating() {
                self.check_caches(index, span, what);
            } else {
                let held = self.smmus[index].atc.entries.iter_mut();
                held.filter(|entry| Cached::Atc(**entry).output().is_some_and(|place| place.overlaps(span)))
                    .for_each(|entry| entry.outlived = true);
            }
            for transaction in &self.smmus[index].in_flight {
                if span.contains(transaction.address) {
                    self.violations.record(format!(
                        "memory {what} while a transaction through SMMU {index} is on its way to {:#x}",
                        transaction.address
                    ));
                }
            }
        }
        for leaf in &self.cpu.leaves {
            if Span::new(leaf.output, 1 << leaf.size_log2).overlaps(span) {
                self.violations.record(format!(
                    "memory at {:#x} {what} while a CPU TLB has {:#x} -> {:#x} (level {})",
                    span.start, leaf.ia, leaf.output, leaf.level
                ));
            }
        }
    }

    fn check_caches(&mut self, index: usize, span: Span, what: &str) {
        let reaching: Vec<Cached> = self.smmus[index]
            .cached()
            .filter(|cached| {
                cached.output().or_else(|| cached.structure()).is_some_and(|place| place.overlaps(span))
            })
            .collect();
        for cached in reaching {
            if let Cached::Atc(entry) = cached
                && !self.has_full_ats(index, entry.origin.stream)
            {
                let held = self.smmus[index].atc.entries.iter_mut().filter(|other| **other == entry);
                held.for_each(|entry| entry.outlived = true);
                continue;
            }
            self.violations
                .record(format!("memory at {:#x} {what} while SMMU {index} caches {cached}", span.start));
        }
    }

    /// Gives a run of pages back to a heap. Nothing may reach it any more through a table pointer that an SMMU caches.
    pub fn heap_give(&mut self, heap: usize, run: u64, order: u8) {
        if let Err(text) = self.heaps[heap].give(run >> 12, order) {
            self.violations.record(text);
        }
        let span = Span::new(run, 4096 << order);
        for smmu in self.smmus.iter().filter(|smmu| smmu.translating()) {
            for cached in smmu.cached() {
                let place = match cached {
                    Cached::Stage2Walk(step) => Some(Span::new(step.table.address, 8)),
                    _ => cached.structure(),
                };
                if place.is_some_and(|place| place.overlaps(span)) {
                    self.violations.record(format!("SMMU {} caches {cached}, which is freed", smmu.index));
                }
            }
            // 5.1: Span [4:0], L2Ptr [55:6].
            for (descriptor, _) in smmu.configuration.level1.values() {
                let table = descriptor & 0x00ff_ffff_ffff_ffc0;
                if descriptor & 31 != 0 && span.contains(table) {
                    self.violations.record(format!(
                        "SMMU {} caches a pointer to the stream table at {table:#x}, which is freed",
                        smmu.index
                    ));
                }
            }
        }
        for table in self.cpu.walks.iter().filter(|table| span.contains(table.address)) {
            self.violations.record(format!(
                "a CPU caches a pointer to the table at {:#x}, which is freed",
                table.address
            ));
        }
    }
}
