//! Times on the build machine: edits and walks of an invalidation array, range encoding and the entry writer. `cargo xtask bench` counts
//! instructions on the real target; this shows what changed a lot.

use std::cell::Cell as Local;
use std::convert::Infallible;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use criterion::{BatchSize, Criterion, Throughput};
use smmuv3::address::PhysAddr;
use smmuv3::command::Command;
use smmuv3::entry_writer::{EntrySink, write_entry};
use smmuv3::gather::Gather;
use smmuv3::invalidation::{
    Array, ArrayPages, Batch, Cell, Domain, DomainIndex, Entry, Queues, Readers, Retired, StreamEntries,
    Target, Traits, invalidate,
};
use smmuv3::memory::Memory;
use smmuv3::pgtable::Granule;
use smmuv3::range::Ranges;
use smmuv3::ste::{STE_WORDS, StreamTableEntry};

const ENTRIES: u32 = 1024;
const SMMUS: u32 = 4;
const PER_SMMU: u32 = ENTRIES / SMMUS;

const CELL: Cell = Cell(PhysAddr(0x100));
const READERS: PhysAddr = PhysAddr(0x200);
/// Places for arrays: three that are used in turn, and one for arrays that are not published.
const ARRAYS: u64 = 0x1000;
const ARRAY_BYTES: u64 = 0x8000;

/// Memory from address 0 on.
struct Words(Vec<AtomicU64>);

impl Memory for Words {
    fn read_u64(&self, address: PhysAddr) -> u64 {
        self.0[address.0 as usize / 8].load(Ordering::Relaxed)
    }

    fn write_u64(&self, address: PhysAddr, value: u64) {
        self.0[address.0 as usize / 8].store(value, Ordering::Relaxed);
    }

    fn full_barrier(&self) {
        fence(Ordering::SeqCst);
    }

    fn read_acquire_u64(&self, address: PhysAddr) -> u64 {
        self.0[address.0 as usize / 8].load(Ordering::Acquire)
    }

    fn write_release_u64(&self, address: PhysAddr, value: u64) {
        self.0[address.0 as usize / 8].store(value, Ordering::Release);
    }
}

#[derive(Default)]
struct InTurn(u64);

impl ArrayPages for InTurn {
    fn take(&mut self, bytes: u64) -> Option<PhysAddr> {
        self.0 = (self.0 + 1) % 3;
        (bytes <= ARRAY_BYTES).then_some(PhysAddr(ARRAYS + self.0 * ARRAY_BYTES))
    }

    fn give(&mut self, _array: PhysAddr, _bytes: u64) {}
}

struct Aside;

impl ArrayPages for Aside {
    fn take(&mut self, bytes: u64) -> Option<PhysAddr> {
        (bytes <= ARRAY_BYTES).then_some(PhysAddr(ARRAYS + 3 * ARRAY_BYTES))
    }

    fn give(&mut self, _array: PhysAddr, _bytes: u64) {}
}

/// Queues that only add up what they are given.
#[derive(Default)]
struct Sum(Local<u64>);

impl Queues for Sum {
    type Ticket = ();
    type Fault = Infallible;
    type Batch<'a> = &'a Sum;

    fn traits(&self, _smmu: usize) -> Traits {
        Traits { range_invalidation: true, repeat_invalidations: false, sync_before_last_slot: false }
    }

    fn open(&self, _smmu: usize) -> Result<&Sum, Infallible> {
        Ok(self)
    }

    fn wait(&self, _smmu: usize, _ticket: ()) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Batch for &Sum {
    type Ticket = ();
    type Fault = Infallible;

    fn push(&mut self, Command([low, high]): Command) {
        self.0.set(self.0.get().wrapping_add(low ^ high));
    }

    fn issue(&mut self) {}

    fn close(self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// A domain with an array of 1,024 entries.
struct Rig {
    memory: Words,
    readers: Readers,
    retired: Retired,
    places: InTurn,
}

impl Rig {
    fn new() -> Self {
        let memory = Words((0..(ARRAYS + 4 * ARRAY_BYTES) / 8).map(|_| AtomicU64::new(0)).collect());
        let readers = Readers::new(&memory, READERS, 1);
        let mut rig = Self { memory, readers, retired: Retired::new(), places: InTurn::default() };
        for index in 0..ENTRIES {
            rig.attach(&StreamEntries::of([entry(index)]).unwrap());
        }
        rig
    }

    fn array(&self) -> Array {
        CELL.load(&self.memory).unwrap()
    }

    fn attach(&mut self, added: &StreamEntries) {
        let new = Array::merge(&self.memory, CELL.load(&self.memory), added, &mut self.places).unwrap();
        self.retired.replace(&self.memory, &self.readers, CELL, Some(new));
    }

    fn purge(&self) -> Array {
        self.array().purge(&self.memory, &mut Aside).unwrap().expect("there is trash")
    }

    fn unref(&self, removed: &StreamEntries) {
        self.array().unref(&self.memory, removed, |_| {}).unwrap();
    }

    fn walk(&self, queues: &Sum, gather: &Gather) {
        let domain = Domain { readers: &self.readers, cpu: 0, index: DomainIndex(0), array: CELL };
        invalidate(queues, &self.memory, &domain, gather).unwrap();
    }
}

/// Entry `index` of the array, in its order: half of each SMMU's are tags, half are ATCs.
fn entry(index: u32) -> Entry {
    let (smmu, within) = (index / PER_SMMU, index % PER_SMMU);
    let target = match within.checked_sub(PER_SMMU / 2) {
        None => Target::S2Vmid { vmid: within as u16 + 1 },
        Some(atc) => Target::Ats { stream: 2 * atc, substream: 0 },
    };
    Entry::new(smmu as u8, target, Granule::Size4K)
}

/// One more stream behind SMMU 2, with a tag that others use.
fn stream() -> StreamEntries {
    let targets = [
        Target::S2Vmid { vmid: 64 },
        Target::NestedCds { stream: 5 },
        Target::Ats { stream: 5, substream: 0 },
    ];
    StreamEntries::of(targets.map(|target| Entry::new(2, target, Granule::Size4K))).unwrap()
}

fn two_mebibytes() -> Gather {
    let mut gather = Gather::new();
    gather.add_leaf(0x4020_0000, 2 << 20, 2);
    gather
}

fn array(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("array of 1,024 entries");
    group.throughput(Throughput::Elements(ENTRIES.into()));
    let mut rig = Rig::new();
    let (stream, queues, gather) = (stream(), Sum::default(), two_mebibytes());
    group.bench_function("walk", |bencher| bencher.iter(|| rig.walk(&queues, &gather)));
    group.bench_function("merge of a stream", |bencher| {
        bencher.iter(|| Array::merge(&rig.memory, Some(rig.array()), &stream, &mut Aside));
    });
    group.bench_function("merge and unref of a stream", |bencher| {
        bencher.iter(|| {
            rig.attach(&stream);
            rig.unref(&stream);
        });
    });
    group.bench_function("purge", |bencher| bencher.iter(|| rig.purge()));
    for index in (1..ENTRIES - 1).step_by(2) {
        rig.unref(&StreamEntries::of([entry(index)]).unwrap());
    }
    group.bench_function("purge of half of them", |bencher| bencher.iter(|| rig.purge()));
    for index in (2..ENTRIES - 1).step_by(2) {
        rig.unref(&StreamEntries::of([entry(index)]).unwrap());
    }
    group.bench_function("walk past trash", |bencher| bencher.iter(|| rig.walk(&queues, &gather)));
    group.finish();
}

fn ranges(criterion: &mut Criterion) {
    let mut gather = Gather::new();
    gather.add_leaf(0x4020_0000, 0x1234_5000, 3);
    criterion.bench_function("ranges of a ragged change", |bencher| {
        bencher.iter(|| Ranges::new(black_box(&gather), Granule::Size4K).map(|range| range.scale).max());
    });
}

/// Takes the words of an entry.
struct Sink([u64; STE_WORDS]);

impl EntrySink for Sink {
    type Fault = Infallible;

    fn store(&mut self, word: usize, value: u64) {
        self.0[word] = value;
    }

    fn sync(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

fn writer(criterion: &mut Criterion) {
    let abort = StreamTableEntry([1, 0, 0, 0, 0, 0, 0, 0]);
    let bypass = StreamTableEntry([1 | 4 << 1, 1 << 44, 0, 0, 0, 0, 0, 0]);
    criterion.bench_function("an entry from abort to bypass", |bencher| {
        bencher.iter_batched_ref(
            || Sink(abort.0),
            |sink| write_entry(sink, black_box(&abort), black_box(&bypass)),
            BatchSize::SmallInput,
        );
    });
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    array(&mut criterion);
    ranges(&mut criterion);
    writer(&mut criterion);
    criterion.final_summary();
}
