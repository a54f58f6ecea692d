//! Random histories, of both stages, against a model of runs of pages. After every operation: walking the raw descriptors
//! gives the model; counts and flags in table descriptors agree with the tables; tables taken, linked and
//! given back balance; the predicted number of tables was taken. At every store: a walker sees the old or the
//! new translation (or, where break-before-make is allowed to, none), and finds no table that was not
//! complete before a barrier.

#![cfg_attr(not(test), allow(dead_code, unused_imports))]

extern crate std;

mod rig;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use rig::*;

#[derive(Clone, Debug)]
struct Op {
    map: bool,
    /// Start: which top-level block, which block of level 2 in it, which page, and the size by kind.
    top: u8,
    block: u8,
    page: i64,
    kind: u8,
    pages: i64,
    shift: u8,
    attribute: bool,
    join: bool,
}

fn op() -> impl Strategy<Value = Op> {
    let top = prop_oneof![1 => Just(0u8), 3 => Just(1), 1 => Just(2)];
    let block = prop_oneof![3 => Just(0u8), 3 => 1..4u8];
    let place = (top, block, prop_oneof![3 => -3i64..4, 1 => -600i64..600]);
    let size = (0u8..8, -2i64..3);
    let shift = prop_oneof![8 => Just(0u8), 1 => Just(1u8), 1 => Just(2u8)];
    (any::<bool>(), place, size, shift, prop::bool::weighted(0.75), any::<bool>()).prop_map(
        |(map, (top, block, page), (kind, pages), shift, attribute, join)| Op {
            map,
            top,
            block,
            page,
            kind,
            pages,
            shift,
            attribute,
            join,
        },
    )
}

/// The range of an operation, around the boundaries of blocks at the middle of the input space.
fn range_of(g: &Geometry, op: &Op) -> (u64, u64) {
    let page = g.granule().bytes() as i64;
    let top = g.level_bytes(g.first_block_level()) as i64;
    let block = g.level_bytes(2) as i64;
    let base = (1i64 << (g.ia_bits() - 1)) - top;
    let in_top = [0, 1, 2, top / block - 1][usize::from(op.block)] * block;
    let start = base + i64::from(op.top) * top + in_top + op.page * page;
    let size = match op.kind {
        0..=2 => op.pages.abs() * page + page,
        3 => block + op.pages * page,
        4 => block,
        5 => 2 * block + op.pages * page,
        6 => top,
        _ => top + op.pages * page,
    };
    // Large runs start at a block, else nearly all of them would be odd.
    let start = if matches!(op.kind, 4 | 6) { start & !(block - 1) } else { start };
    (start as u64, (start + size - 1) as u64)
}

/// A stage, as far as a page table knows it.
#[derive(Clone, Copy, Debug)]
enum Stage {
    One,
    Two,
}

impl Stage {
    fn geometry(self, granule: Granule, ia_bits: u8) -> Geometry {
        match self {
            Self::One => Geometry::stage1(granule, ia_bits, 48),
            Self::Two => Geometry::stage2(granule, ia_bits, 48),
        }
        .unwrap()
    }

    fn attributes(self, choice: bool) -> Attributes {
        match self {
            Self::One => Attributes::io_stage1_normal(choice),
            Self::Two => Attributes::stage2_normal(choice),
        }
    }
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![Just(Stage::One), Just(Stage::Two)]
}

fn run_history(stage: Stage, granule: Granule, ia_bits: u8, blocks: Blocks, always_join: bool, ops: &[Op]) {
    let g = stage.geometry(granule, ia_bits);
    let memory = TestMemory::new(granule.bytes());
    let pt = PageTable::new(g, blocks, PhysAddr(0x10_0000_0000));
    let mut pages = TestPages {
        memory: &memory,
        next: 0x20_0000_0000,
        free: Vec::new(),
        out: HashSet::new(),
        taken: 0,
        left: usize::MAX / 2,
    };
    let mut model = Model::default();
    let mut gather = Gather::new();
    for op in ops {
        let (first, last) = range_of(&g, op);
        let range = PhysRange::inclusive(PhysAddr(first), PhysAddr(last)).unwrap();
        let old = model.clone();
        let delta = [0, granule.bytes(), g.level_bytes(2)][usize::from(op.shift)];
        let attributes = stage.attributes(op.attribute);
        let taken_at_first = match op.map {
            true => model.first_in(first, last),
            false => None,
        };
        let is_error = taken_at_first.is_some();
        if !is_error {
            model.clear(first, last);
            if op.map {
                model.0.insert(first, (last, (delta, attributes.bits())));
            }
        }
        let page = granule.bytes();
        let mut addresses =
            std::vec![first, last, first.wrapping_sub(page), last + 1, first + page, last - page];
        addresses.extend([0, 1, 2].map(|level| first & !(g.level_bytes(level.max(g.start_level())) - 1)));
        addresses.extend([0, 1, 2].map(|level| last | (g.level_bytes(level.max(g.start_level())) - 1)));
        addresses.retain(|ia| ia >> ia_bits == 0);
        let probes = addresses.iter().map(|ia| (*ia, [old.get(*ia), model.get(*ia)])).collect();
        let levels: Vec<_> =
            addresses.iter().map(|ia| memory.walk(&pt, *ia).map(|(_, level)| level)).collect();
        // Watching costs a walk of all tables for every store: only where there are few.
        let few = granule == Granule::Size4K && last - first < 16 * page;
        if few {
            let mut live = HashMap::new();
            reachable(&memory, &pt, &mut live);
            let may_break = blocks == Blocks::BreakBeforeMake;
            *memory.watch.borrow_mut() =
                Some(Watch { table: pt, live: RefCell::new(live), probes, may_break });
        }
        let mut breaks = Breaks { memory: &memory, table: pt, ranges: Vec::new() };
        let predicted = match op.map {
            true => pt.tables_for_map(&memory, range, PhysAddr(first + delta)),
            false => pt.tables_for_unmap(&memory, range),
        };
        pages.taken = 0;
        let stores = memory.stores.get();
        if op.map {
            let join = op.join || always_join;
            let output = PhysAddr(first + delta);
            let result =
                pt.map(&memory, &mut pages, &mut breaks, range, output, attributes, join, &mut gather);
            match taken_at_first {
                Some(at) => assert_eq!(result, Err(MapError::AlreadyMapped { at })),
                None => assert_eq!(result, Ok(())),
            }
        } else {
            pt.unmap(&memory, &mut pages, &mut breaks, range, &mut gather).unwrap();
        }
        if is_error {
            assert_eq!(memory.stores.get(), stores, "a failed map stored something");
        }
        *memory.watch.borrow_mut() = None;
        assert_eq!(pages.taken, predicted, "{op:?}");

        // What walkers may still hold is gathered or was broken.
        for (ia, level) in addresses.iter().zip(levels) {
            let gathered = gather.first() <= *ia && *ia <= gather.last();
            if old.get(*ia).is_some() && model.get(*ia).is_none() {
                let broken = breaks.ranges.iter().any(|(first, last)| first <= ia && ia <= last);
                assert!(gathered || broken, "{ia:#x} is neither gathered nor broken");
                if let (true, Some(leaf)) = (gathered && !broken, gather.leaf_level()) {
                    assert_eq!(Some(leaf), level);
                }
            }
        }
        if blocks != Blocks::BreakBeforeMake {
            assert!(breaks.ranges.is_empty());
        }
        let structural = gather.leaf_level().is_none();
        let out_before = pages.out.len();
        gather.give_freed(&memory, &mut pages);
        assert!(gather.is_empty());
        assert!(pages.out.len() == out_before || structural);

        let mut found = Survey { leaves: Vec::new(), tables: 0, joinable: 0 };
        survey(&memory, &pt, pt.root().0, g.start_level(), 0, &mut found);
        assert_eq!(found.tables, pages.out.len(), "tables lost");
        if always_join {
            assert_eq!(found.joinable, 0, "a whole table was not joined: {op:?}");
        }
        let runs = model.0.iter().map(|(first, (last, target))| (*first, *last, *target));
        assert_eq!(Model::merged(found.leaves.into_iter()), Model::merged(runs), "{op:?}");
        for ia in addresses {
            let leaf = pt.lookup(&memory, ia).map(|l| (l.output.0.wrapping_sub(ia), l.attributes.bits()));
            assert_eq!(leaf, model.get(ia));
        }
    }
    pt.free_all(&memory, &mut pages);
    assert!(pages.out.is_empty());
    assert_eq!(pt.lookup(&memory, 0), None);
}

fn history(longest: usize) -> impl Strategy<Value = (Stage, Blocks, bool, Vec<Op>)> {
    let blocks = prop_oneof![Just(Blocks::InPlace), Just(Blocks::BreakBeforeMake)];
    (stage(), blocks, any::<bool>(), prop::collection::vec(op(), 1..longest))
}

/// A history of maps and unmaps in a table of any kind.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzzing::Choices;
    let mut choices = Choices::of_bytes(bytes);
    let stage = choices.one_of(&[Stage::Two, Stage::One]);
    let granule = choices.one_of(&[Granule::Size4K, Granule::Size4K, Granule::Size16K, Granule::Size64K]);
    let blocks = choices.one_of(&[Blocks::InPlace, Blocks::BreakBeforeMake, Blocks::Never]);
    let (ia_bits, join) = (choices.one_of(&[36u8, 34, 40, 44, 47]), choices.coin());
    // Large runs of pages are thousands of stores, and large blocks of the other granules thousands of pages.
    let is_slow = blocks == Blocks::Never || granule != Granule::Size4K;
    let (most, kinds) = if is_slow { (6, 6) } else { (24, 8) };
    let ops = choices.repeat(most, |choices| Op {
        map: choices.coin(),
        top: choices.one_of(&[1, 1, 0, 2]),
        block: choices.byte() % 4,
        page: if choices.byte() < 192 {
            choices.below(7) as i64 - 3
        } else {
            choices.below(1200) as i64 - 600
        },
        kind: choices.byte() % kinds,
        pages: choices.below(5) as i64 - 2,
        shift: choices.one_of(&[0, 0, 0, 0, 0, 0, 1, 2]),
        attribute: choices.byte() < 192,
        join: choices.coin(),
    });
    run_history(stage, granule, ia_bits, blocks, join && blocks != Blocks::Never, &ops);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blocks_of_4k((stage, blocks, join, ops) in history(24), ia_bits in prop::sample::select(&[33u8, 36, 40, 48])) {
        run_history(stage, Granule::Size4K, ia_bits, blocks, join, &ops);
    }

    #[test]
    fn pages_of_4k(stage in stage(), ops in prop::collection::vec(op(), 1..8), ia_bits in prop::sample::select(&[33u8, 48])) {
        let small = |op: &Op| Op { kind: op.kind % 6, ..op.clone() };
        let ops: Vec<Op> = ops.iter().map(small).collect();
        run_history(stage, Granule::Size4K, ia_bits, Blocks::Never, false, &ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blocks_of_16k((stage, blocks, join, ops) in history(12), ia_bits in prop::sample::select(&[36u8, 41, 48])) {
        run_history(stage, Granule::Size16K, ia_bits, blocks, join, &ops);
    }

    #[test]
    fn blocks_of_64k((stage, blocks, join, ops) in history(8), ia_bits in prop::sample::select(&[34u8, 44, 47])) {
        run_history(stage, Granule::Size64K, ia_bits, blocks, join, &ops);
    }

    #[test]
    fn pages_of_16k_and_64k(stage in stage(), ops in prop::collection::vec(op(), 1..6), large in any::<bool>()) {
        let small = |op: &Op| Op { kind: op.kind % 6, ..op.clone() };
        let ops: Vec<Op> = ops.iter().map(small).collect();
        let granule = if large { Granule::Size64K } else { Granule::Size16K };
        run_history(stage, granule, 40, Blocks::Never, false, &ops);
    }
}

struct Rig {
    memory: TestMemory,
    pt: PageTable,
}

impl Rig {
    fn new(blocks: Blocks) -> Self {
        let g = Geometry::stage2(Granule::Size4K, 40, 44).unwrap();
        Self { memory: TestMemory::new(4096), pt: PageTable::new(g, blocks, PhysAddr(0x10_0000_0000)) }
    }

    fn pages(&self, left: usize) -> TestPages<'_> {
        let (free, out) = (Vec::new(), HashSet::new());
        TestPages { memory: &self.memory, next: 0x20_0000_0000, free, out, taken: 0, left }
    }

    fn map(
        &self,
        pages: &mut TestPages<'_>,
        ia: u64,
        size: u64,
        gather: &mut Gather,
    ) -> Result<(), MapError> {
        let range = PhysRange::new(PhysAddr(ia), size).unwrap();
        let normal = Attributes::io_stage2_normal();
        self.pt.map(&self.memory, pages, &mut NoBreak, range, PhysAddr(ia), normal, true, gather)
    }

    fn unmap(&self, pages: &mut TestPages<'_>, ia: u64, size: u64, g: &mut Gather) -> Result<(), UnmapError> {
        self.pt.unmap(&self.memory, pages, &mut NoBreak, PhysRange::new(PhysAddr(ia), size).unwrap(), g)
    }
}

const GIB: u64 = 1 << 30;

#[test]
fn a_page_out_of_a_gigabyte_and_back() {
    let rig = Rig::new(Blocks::InPlace);
    let (mut pages, mut gather) = (rig.pages(4), Gather::new());
    rig.map(&mut pages, GIB, GIB, &mut gather).unwrap();
    assert!(gather.is_empty() && pages.out.is_empty());
    rig.unmap(&mut pages, GIB + 0x5000, 0x1000, &mut gather).unwrap();
    assert_eq!(pages.out.len(), 2);
    // Not the page alone: a cache may hold pieces of the block that was split.
    assert_eq!((gather.first(), gather.last()), (GIB, 2 * GIB - 1));
    assert_eq!(gather.leaf_level(), None);
    gather.give_freed(&rig.memory, &mut pages);
    rig.unmap(&mut pages, GIB + 0x7000, 0x1000, &mut gather).unwrap();
    assert_eq!(gather.leaf_level(), Some(3));
    gather.give_freed(&rig.memory, &mut pages);
    rig.map(&mut pages, GIB + 0x5000, 0x1000, &mut gather).unwrap();
    assert!(gather.is_empty());
    rig.map(&mut pages, GIB + 0x7000, 0x1000, &mut gather).unwrap();
    assert_eq!((gather.first(), gather.last()), (GIB, 2 * GIB - 1));
    assert_eq!(gather.leaf_level(), None);
    gather.give_freed(&rig.memory, &mut pages);
    assert!(pages.out.is_empty());
    assert_eq!(rig.pt.lookup(&rig.memory, GIB + 0x5000).unwrap().level, 1);
}

#[test]
fn out_of_tables_changes_nothing_and_says_how_many() {
    let rig = Rig::new(Blocks::InPlace);
    let (mut pages, mut gather) = (rig.pages(3), Gather::new());
    rig.map(&mut pages, GIB, 3 * GIB, &mut gather).unwrap();
    // A hole over two borders of gigabytes: two tables at each end.
    let before = rig.memory.tables.borrow().clone();
    let result = rig.unmap(&mut pages, 2 * GIB - 0x1000, GIB + 0x2000, &mut gather);
    assert_eq!(result, Err(UnmapError::OutOfTables { needed: 4 }));
    let live = |tables: &HashMap<u64, Vec<u64>>| tables.get(&0x10_0000_0000).cloned();
    assert_eq!(live(&before), live(&rig.memory.tables.borrow()));
    assert!(gather.is_empty() && pages.out.is_empty());
    // Pages at both ends of a range whose middle is blocks.
    let result = rig.map(&mut pages, 8 * GIB - 0x1000, GIB + 0x2000, &mut gather);
    assert_eq!(result, Err(MapError::OutOfTables { needed: 4 }));
    assert_eq!(live(&before), live(&rig.memory.tables.borrow()));
    assert!(gather.is_empty() && pages.out.is_empty());
}

#[test]
fn bad_arguments() {
    let rig = Rig::new(Blocks::InPlace);
    let (mut pages, mut gather) = (rig.pages(3), Gather::new());
    assert_eq!(rig.map(&mut pages, 0x800, 0x1000, &mut gather), Err(MapError::Misaligned));
    assert_eq!(rig.map(&mut pages, 0x1000, 0x800, &mut gather), Err(MapError::Misaligned));
    assert_eq!(rig.map(&mut pages, (1 << 40) - 0x1000, 0x2000, &mut gather), Err(MapError::OutOfRange));
    assert_eq!(rig.map(&mut pages, u64::MAX - 0xfff, 0x1000, &mut gather), Err(MapError::OutOfRange));
    assert_eq!(rig.unmap(&mut pages, 0x800, 0x1000, &mut gather), Err(UnmapError::Misaligned));
    assert_eq!(rig.unmap(&mut pages, 1 << 40, 0x1000, &mut gather), Err(UnmapError::OutOfRange));
    let one = PhysRange::new(PhysAddr(0), 0x1000).unwrap();
    let normal = Attributes::io_stage2_normal();
    for (output, error) in
        [(0x10, MapError::Misaligned), (1 << 44, MapError::OutOfRange), (!0xfff, MapError::OutOfRange)]
    {
        let output = PhysAddr(output);
        let result =
            rig.pt.map(&rig.memory, &mut pages, &mut NoBreak, one, output, normal, false, &mut gather);
        assert_eq!(result, Err(error));
        assert_eq!(rig.pt.tables_for_map(&rig.memory, one, output), 0);
    }
    assert_eq!(rig.pt.lookup(&rig.memory, 1 << 40), None);
    assert_eq!(rig.memory.stores.get(), 0);
}

#[test]
fn the_last_page_of_the_input_space() {
    for ia_bits in [32, 40, 48] {
        let g = Geometry::stage2(Granule::Size4K, ia_bits, 48).unwrap();
        let memory = TestMemory::new(4096);
        let pt = PageTable::new(g, Blocks::InPlace, PhysAddr(0x10_0000_0000));
        let rig = Rig { memory, pt };
        let (mut pages, mut gather) = (rig.pages(3), Gather::new());
        let page = (1 << ia_bits) - 0x1000;
        rig.map(&mut pages, page, 0x1000, &mut gather).unwrap();
        assert_eq!(rig.pt.lookup(&rig.memory, page + 0x123).unwrap().output, PhysAddr(page + 0x123));
        rig.unmap(&mut pages, 0, 1 << ia_bits, &mut gather).unwrap();
        assert_eq!(gather.last(), (1 << ia_bits) - 1);
        gather.give_freed(&rig.memory, &mut pages);
        assert!(pages.out.is_empty());
    }
}

#[test]
fn a_full_gather_puts_a_join_off() {
    let rig = Rig::new(Blocks::InPlace);
    let (mut pages, mut gather) = (rig.pages(64), Gather::new());
    rig.map(&mut pages, 0, 64 << 21, &mut gather).unwrap();
    // Nothing of this is invalidated in between.
    for block in 0..10 {
        rig.unmap(&mut pages, (block << 21) + 0x3000, 0x1000, &mut gather).unwrap();
        rig.map(&mut pages, (block << 21) + 0x3000, 0x1000, &mut gather).unwrap();
    }
    let levels = [0, 1, 3, 4, 5].map(|block| rig.pt.lookup(&rig.memory, block << 21).unwrap().level);
    assert_eq!(levels, [2, 2, 2, 3, 3]);
    gather.give_freed(&rig.memory, &mut pages);
    // The tables that stayed are whole, and are joined when they are next full.
    rig.unmap(&mut pages, 8 << 21, 0x1000, &mut gather).unwrap();
    rig.map(&mut pages, 8 << 21, 0x1000, &mut gather).unwrap();
    assert_eq!(rig.pt.lookup(&rig.memory, 8 << 21).unwrap().level, 2);
}

#[test]
fn any_number_of_tables_is_gathered() {
    let rig = Rig::new(Blocks::Never);
    let (mut pages, mut gather) = (rig.pages(600), Gather::new());
    rig.map(&mut pages, GIB, GIB, &mut gather).unwrap();
    assert_eq!(pages.out.len(), 513);
    rig.unmap(&mut pages, GIB - 0x1000, GIB + 0x1000, &mut gather).unwrap();
    assert_eq!((gather.first(), gather.last(), gather.leaf_level()), (GIB, 2 * GIB - 1, None));
    assert_eq!(pages.out.len(), 513);
    gather.give_freed(&rig.memory, &mut pages);
    assert_eq!(pages.out.len(), 0);
}

#[test]
fn a_table_is_joined_only_when_all_pages_agree() {
    let rig = Rig::new(Blocks::InPlace);
    let (mut pages, mut gather) = (rig.pages(2), Gather::new());
    let mut map = |index: u64, target: u64, exec: bool| {
        let page = PhysRange::new(PhysAddr(index * 0x1000), 0x1000).unwrap();
        let (output, attributes) = (PhysAddr(target * 0x1000), Attributes::stage2_normal(exec));
        let p = &mut pages;
        rig.pt.map(&rig.memory, p, &mut NoBreak, page, output, attributes, true, &mut gather).unwrap();
        rig.pt.lookup(&rig.memory, 0).map(|leaf| leaf.level)
    };
    // Not in order, so that the pages that come first have no neighbours.
    for index in (0..512).step_by(2).chain((1..511).step_by(2)) {
        assert_eq!(map(index, index, false), Some(3));
    }
    assert_eq!(map(511, 511, true), Some(3));
    let unmap = |index: u64| {
        let page = PhysRange::new(PhysAddr(index * 0x1000), 0x1000).unwrap();
        let (mut pages, mut gather) = (rig.pages(0), Gather::new());
        rig.pt.unmap(&rig.memory, &mut pages, &mut NoBreak, page, &mut gather).unwrap();
    };
    unmap(511);
    assert_eq!(map(511, 512, false), Some(3));
    unmap(511);
    unmap(0);
    assert_eq!(map(511, 511, false), None);
    assert_eq!(map(0, 0, false), Some(2));
}
