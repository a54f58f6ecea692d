//! Memory, page source and model that the tests run on. The walker here decodes raw descriptors itself.

extern crate std;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::vec::Vec;

use crate::address::PhysAddr;
use crate::memory::{Memory, TablePages};
use crate::pgtable::{Blocks, BreakBlock, PageTable};

/// Output less input address, and attribute bits.
pub(super) type Target = (u64, u64);

/// Memory that holds tables only, and watches the stores to them.
pub(super) struct TestMemory {
    /// By address of the first entry.
    pub(super) tables: RefCell<HashMap<u64, Vec<u64>>>,
    /// Tables stored to since the last barrier.
    pub(super) unfinished: RefCell<HashSet<u64>>,
    pub(super) granule: u64,
    pub(super) watch: RefCell<Option<Watch>>,
    pub(super) stores: Cell<usize>,
}

/// What to check at every store.
pub(super) struct Watch {
    pub(super) table: PageTable,
    /// Tables that walkers reach or reached a moment ago, with their levels.
    pub(super) live: RefCell<HashMap<u64, u8>>,
    /// Input address, and the translations that it may have.
    pub(super) probes: Vec<(u64, [Option<Target>; 2])>,
    pub(super) may_break: bool,
}

impl TestMemory {
    pub(super) fn new(granule: u64) -> Self {
        Self {
            tables: RefCell::default(),
            unfinished: RefCell::default(),
            granule,
            watch: RefCell::default(),
            stores: Cell::new(0),
        }
    }

    pub(super) fn word(&self, address: u64) -> u64 {
        let home = address & !(self.granule - 1);
        self.tables.borrow().get(&home).map_or(0, |table| table[(address - home) as usize / 8])
    }

    /// The entries of a table.
    fn entries(&self, base: u64) -> Vec<u64> {
        let empty = || std::vec![0; self.granule as usize / 8];
        self.tables.borrow().get(&base).cloned().unwrap_or_else(empty)
    }

    /// The first `count` entries of a root, which may be several tables.
    fn root_entries(&self, base: u64, count: u64) -> Vec<u64> {
        let mut entries = Vec::new();
        while (entries.len() as u64) < count {
            entries.extend(self.entries(base + entries.len() as u64 * 8));
        }
        entries.truncate(count as usize);
        entries
    }

    /// Walks as hardware does: target and level.
    pub(super) fn walk(&self, table: &PageTable, ia: u64) -> Option<(Target, u8)> {
        let g = table.geometry();
        let bits = u32::from(g.granule().log2() - 3);
        let mut level = g.start_level();
        let mut base = table.root().0;
        loop {
            let shift = u32::from(g.granule().log2()) + bits * u32::from(3 - level);
            let index =
                if level == g.start_level() { ia >> shift } else { (ia >> shift) & ((1 << bits) - 1) };
            let found = self.word(base + index * 8);
            match (found & 3, level) {
                (3, 0..=2) => {
                    base = found & 0xffff_ffff_f000;
                    level += 1;
                }
                (3, 3) | (1, 1..=2) => {
                    let output = (found & 0xffff_ffff_f000) + (ia & ((1 << shift) - 1));
                    return Some(((output.wrapping_sub(ia), found & !0xffff_ffff_f003), level));
                }
                (0, _) => return None,
                _ => panic!("descriptor {found:#x} at level {level}"),
            }
        }
    }
}

impl Memory for TestMemory {
    fn read_u64(&self, address: PhysAddr) -> u64 {
        assert!(address.is_aligned(8));
        self.word(address.0)
    }

    fn write_u64(&self, address: PhysAddr, value: u64) {
        assert!(address.is_aligned(8));
        self.stores.set(self.stores.get() + 1);
        let home = address.0 & !(self.granule - 1);
        let mut tables = self.tables.borrow_mut();
        let table = tables.entry(home).or_insert_with(|| std::vec![0; self.granule as usize / 8]);
        let old = std::mem::replace(&mut table[(address.0 - home) as usize / 8], value);
        drop(tables);
        self.unfinished.borrow_mut().insert(home);
        let watch = self.watch.borrow();
        let Some(watch) = watch.as_ref() else { return };
        let Some(&level) = watch.live.borrow().get(&home) else { return };
        // Bits that a walker looks at.
        let seen = |value: u64, level: u8| {
            if level < 3 && value & 3 == 3 { value & !(0x3ff << 2 | 0xf << 55) } else { value }
        };
        if old & 1 != 0 && value & 1 != 0 && seen(old, level) != seen(value, level) {
            assert_eq!(watch.table.blocks(), Blocks::InPlace, "{old:#x} -> {value:#x} in one store");
        }
        if level < 3 && value & 3 == 3 && old & 0xffff_ffff_f003 != value & 0xffff_ffff_f003 {
            let mut below = HashMap::new();
            collect(self, value & 0xffff_ffff_f000, level + 1, watch.table.geometry().entries(), &mut below);
            let unfinished = self.unfinished.borrow();
            assert!(below.keys().all(|table| !unfinished.contains(table)), "linked before the barrier");
            watch.live.borrow_mut().extend(below);
        }
        for (ia, allowed) in &watch.probes {
            let now = self.walk(&watch.table, *ia).map(|(target, _)| target);
            let fine = allowed.contains(&now) || (watch.may_break && now.is_none());
            assert!(fine, "{ia:#x} is {now:x?}, may be {allowed:x?}");
        }
    }

    fn full_barrier(&self) {
        self.unfinished.borrow_mut().clear();
    }
}

/// Tables below `base` and itself, with their levels.
pub(super) fn collect(memory: &TestMemory, base: u64, level: u8, entries: u64, found: &mut HashMap<u64, u8>) {
    assert!(found.insert(base, level).is_none(), "table linked twice");
    if level == 3 {
        return;
    }
    for word in memory.root_entries(base, entries) {
        if word & 3 == 3 {
            collect(memory, word & 0xffff_ffff_f000, level + 1, memory.granule / 8, found);
        }
    }
}

/// Every page of the root and every table that walkers reach.
pub(super) fn reachable(memory: &TestMemory, table: &PageTable, found: &mut HashMap<u64, u8>) {
    let g = table.geometry();
    collect(memory, table.root().0, g.start_level(), g.root_entries(), found);
    for index in 1..u64::from(g.root_tables()) {
        found.insert(table.root().0 + index * memory.granule, g.start_level());
    }
}

/// Tables from a counter, `left` of them.
pub(super) struct TestPages<'a> {
    pub(super) memory: &'a TestMemory,
    pub(super) next: u64,
    pub(super) free: Vec<u64>,
    pub(super) out: HashSet<u64>,
    pub(super) taken: usize,
    pub(super) left: usize,
}

impl TablePages for TestPages<'_> {
    fn take(&mut self) -> Option<PhysAddr> {
        self.left = self.left.checked_sub(1)?;
        self.taken += 1;
        let table = self.free.pop().unwrap_or_else(|| {
            self.next += self.memory.granule;
            self.next
        });
        self.memory.tables.borrow_mut().remove(&table);
        self.memory.unfinished.borrow_mut().insert(table);
        assert!(self.out.insert(table));
        Some(PhysAddr(table))
    }

    fn give(&mut self, table: PhysAddr) {
        assert!(self.out.remove(&table.0), "{table} given twice");
        self.free.push(table.0);
        self.left += 1;
    }
}

/// Records what was broken, and that it was invalid then.
pub(super) struct Breaks<'a> {
    pub(super) memory: &'a TestMemory,
    pub(super) table: PageTable,
    pub(super) ranges: Vec<(u64, u64)>,
}

impl BreakBlock for Breaks<'_> {
    fn break_block(&mut self, ia: u64, size: u64) {
        assert_eq!(self.table.blocks(), Blocks::BreakBeforeMake);
        assert_eq!(self.memory.walk(&self.table, ia), None);
        assert_eq!(self.memory.walk(&self.table, ia + size - 1), None);
        self.ranges.push((ia, ia + size - 1));
    }
}

/// Runs of pages: first address to last address and target.
#[derive(Clone, Default)]
pub(super) struct Model(pub(super) BTreeMap<u64, (u64, Target)>);

impl Model {
    pub(super) fn get(&self, ia: u64) -> Option<Target> {
        let (_, &(last, target)) = self.0.range(..=ia).next_back()?;
        (ia <= last).then_some(target)
    }

    pub(super) fn first_in(&self, first: u64, last: u64) -> Option<u64> {
        if self.get(first).is_some() {
            return Some(first);
        }
        self.0.range(first..=last).next().map(|(&first, _)| first)
    }

    pub(super) fn clear(&mut self, first: u64, last: u64) {
        let cut: Vec<_> =
            self.0.range(..=last).filter(|(_, run)| run.0 >= first).map(|(&f, &run)| (f, run)).collect();
        for (run_first, (run_last, target)) in cut {
            self.0.remove(&run_first);
            if run_first < first {
                self.0.insert(run_first, (first - 1, target));
            }
            if run_last > last {
                self.0.insert(last + 1, (run_last, target));
            }
        }
    }

    /// With neighbours of one target merged.
    pub(super) fn merged(runs: impl Iterator<Item = (u64, u64, Target)>) -> Vec<(u64, u64, Target)> {
        let mut merged: Vec<(u64, u64, Target)> = Vec::new();
        for (first, last, target) in runs {
            match merged.last_mut() {
                Some(before) if before.1.wrapping_add(1) == first && before.2 == target => before.1 = last,
                _ => merged.push((first, last, target)),
            }
        }
        merged
    }
}

/// What a walk over all descriptors finds below a table; checks the bookkeeping of each on the way.
pub(super) struct Survey {
    pub(super) leaves: Vec<(u64, u64, Target)>,
    pub(super) tables: usize,
    pub(super) joinable: usize,
}

pub(super) fn survey(
    memory: &TestMemory,
    pt: &PageTable,
    base: u64,
    level: u8,
    ia: u64,
    survey_out: &mut Survey,
) {
    let g = pt.geometry();
    let root = level == g.start_level();
    let size = g.level_bytes(level);
    let count = if root { g.root_entries() } else { g.entries() };
    for (word, index) in memory.root_entries(base, count).into_iter().zip(0u64..) {
        let ia = ia + index * size;
        if word & 1 == 0 {
            assert_eq!(word, 0);
        } else if level < 3 && word & 3 == 3 {
            let child = word & 0xffff_ffff_f000;
            let entries = memory.entries(child);
            let valid = entries.iter().filter(|e| **e & 1 != 0).count() as u64;
            let count = ((word >> 2 & 0x3ff) | (word >> 55 & 7) << 10) + 1;
            assert_eq!(count, valid, "count of {child:#x}, level {}", level + 1);
            let step = g.level_bytes(level + 1);
            let bases: HashSet<u64> = (0..g.entries())
                .filter(|i| entries[*i as usize] & 1 != 0)
                .map(|i| entries[i as usize].wrapping_sub(i * step))
                .collect();
            let tables = level < 2 && entries.iter().any(|e| e & 3 == 3);
            let aligned = bases.iter().all(|b| b & 0xffff_ffff_f000 & (size - 1) == 0);
            let uniform = bases.len() == 1 && !tables && aligned;
            let may_join = pt.blocks() != Blocks::Never && level >= g.first_block_level();
            if may_join && word >> 58 & 1 == 0 {
                assert!(uniform, "table {child:#x} is not mixed but {bases:x?}");
            }
            if may_join && uniform && count == g.entries() {
                survey_out.joinable += 1;
            }
            survey_out.tables += 1;
            survey(memory, pt, child, level + 1, ia, survey_out);
        } else {
            assert!(level == 3 || (pt.blocks() != Blocks::Never && level >= g.first_block_level()));
            assert_eq!(word & 3, if level == 3 { 3 } else { 1 });
            let output = word & 0xffff_ffff_f000;
            assert_eq!(output & (size - 1), 0);
            let target = (output.wrapping_sub(ia), word & !0xffff_ffff_f003);
            survey_out.leaves.push((ia, ia + (size - 1), target));
        }
    }
}
