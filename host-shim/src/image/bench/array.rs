//! What the invalidation array costs an entry: edits and walks of one with 1,024 entries, in memory of the host.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use smmuv3::address::PhysAddr;
use smmuv3::command::Command;
use smmuv3::gather::Gather;
use smmuv3::invalidation::{
    Array, ArrayPages, Batch, Cell, Domain, DomainIndex, ENTRY_BYTES, Entry, Queues, Readers, Retired,
    StreamEntries, Target, Traits, invalidate,
};
use smmuv3::memory::Memory;
use smmuv3::pgtable::Granule;

use super::super::cpu;
use super::{line, overhead};

const ENTRIES: u32 = 1024;
/// The entries are behind so many SMMUs: half of them tags, half of them ATCs.
const SMMUS: u32 = 4;
const PER_SMMU: u32 = ENTRIES / SMMUS;
/// Numbers per entry are in thousandths of an instruction.
const THOUSANDTHS: u64 = 1000;

/// RAM that only this CPU uses, and only as atomics.
struct Ram;

impl Ram {
    fn word(&self, address: PhysAddr) -> &AtomicU64 {
        // SAFETY: all addresses come from `Layout` and the arrays that it gives out: aligned, mapped RAM that the machine has
        // set aside for checks, and that nothing else touches while this runs.
        unsafe { AtomicU64::from_ptr(address.0 as *mut u64) }
    }
}

impl Memory for Ram {
    #[inline]
    fn read_u64(&self, address: PhysAddr) -> u64 {
        self.word(address).load(Ordering::Relaxed)
    }

    #[inline]
    fn write_u64(&self, address: PhysAddr, value: u64) {
        self.word(address).store(value, Ordering::Relaxed);
    }

    #[inline]
    fn full_barrier(&self) {
        aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
    }

    #[inline]
    fn read_acquire_u64(&self, address: PhysAddr) -> u64 {
        self.word(address).load(Ordering::Acquire)
    }

    #[inline]
    fn write_release_u64(&self, address: PhysAddr, value: u64) {
        self.word(address).store(value, Ordering::Release);
    }

    #[inline]
    fn read_pair(&self, address: PhysAddr) -> [u64; 2] {
        let (low, high);
        // SAFETY: as in `word`; each half of LDP is single-copy atomic (DDI 0487, B2.2.1).
        unsafe {
            asm!("ldp {}, {}, [{}]", out(reg) low, out(reg) high, in(reg) address.0,
                 options(nostack, preserves_flags, readonly));
        }
        [low, high]
    }

    #[inline]
    fn write_pair(&self, address: PhysAddr, [low, high]: [u64; 2]) {
        // SAFETY: as in `read_pair`.
        unsafe {
            asm!("stp {}, {}, [{}]", in(reg) low, in(reg) high, in(reg) address.0,
                 options(nostack, preserves_flags));
        }
    }

    #[inline]
    fn read_four_pairs(&self, address: PhysAddr) -> [[u64; 2]; 4] {
        let (a, b, c, d, e, f, g, h);
        // SAFETY: as in `read_pair`.
        unsafe {
            asm!("ldp {}, {}, [{at}]", "ldp {}, {}, [{at}, #16]", "ldp {}, {}, [{at}, #32]", "ldp {}, {}, [{at}, #48]",
                 out(reg) a, out(reg) b, out(reg) c, out(reg) d, out(reg) e, out(reg) f, lateout(reg) g, lateout(reg) h,
                 at = in(reg) address.0, options(nostack, preserves_flags, readonly));
        }
        [[a, b], [c, d], [e, f], [g, h]]
    }

    #[inline]
    fn write_four_pairs(&self, address: PhysAddr, [[a, b], [c, d], [e, f], [g, h]]: [[u64; 2]; 4]) {
        // SAFETY: as in `read_pair`.
        unsafe {
            asm!("stp {}, {}, [{at}]", "stp {}, {}, [{at}, #16]", "stp {}, {}, [{at}, #32]", "stp {}, {}, [{at}, #48]",
                 in(reg) a, in(reg) b, in(reg) c, in(reg) d, in(reg) e, in(reg) f, in(reg) g, in(reg) h,
                 at = in(reg) address.0, options(nostack, preserves_flags));
        }
    }
}

/// What lies where in the memory that is used here.
struct Layout {
    start: u64,
    /// Which of the places for arrays is next.
    turn: u64,
}

impl Layout {
    const READERS: u64 = 0x1000;
    const QUEUE: u64 = 0x1_0000;
    const ARRAYS: u64 = 0x2_0000;
    const ARRAY_BYTES: u64 = 0x1_0000;

    const fn cell(&self) -> Cell {
        Cell(PhysAddr(self.start))
    }

    const fn at(&self, offset: u64) -> PhysAddr {
        PhysAddr(self.start + offset)
    }
}

/// An array is replaced by the next one and not used again: three places are enough.
impl ArrayPages for Layout {
    fn take(&mut self, bytes: u64) -> Option<PhysAddr> {
        self.turn = (self.turn + 1) % 3;
        (bytes <= Self::ARRAY_BYTES).then(|| self.at(Self::ARRAYS + self.turn * Self::ARRAY_BYTES))
    }

    fn give(&mut self, _array: PhysAddr, _bytes: u64) {}
}

/// Command queues that nobody consumes.
struct Rings {
    start: PhysAddr,
}

/// 1,024 commands.
const RING_BYTES: u64 = 0x4000;

impl Queues for Rings {
    type Ticket = u64;
    type Fault = ();
    type Batch<'a> = Ring;

    fn traits(&self, _smmu: usize) -> Traits {
        Traits { range_invalidation: true, repeat_invalidations: false, sync_before_last_slot: false }
    }

    fn open(&self, _smmu: usize) -> Result<Ring, ()> {
        Ok(Ring { start: self.start, produced: 0 })
    }

    fn wait(&self, _smmu: usize, _ticket: u64) -> Result<(), ()> {
        Ok(())
    }
}

struct Ring {
    start: PhysAddr,
    produced: u64,
}

impl Batch for Ring {
    type Ticket = u64;
    type Fault = ();

    #[inline]
    fn push(&mut self, command: Command) {
        Ram.write_pair(self.start.offset(self.produced & (RING_BYTES - 1)), command.0);
        self.produced = self.produced.wrapping_add(16);
    }

    #[inline]
    fn issue(&mut self) {
        Ram.full_barrier();
    }

    fn close(mut self) -> Result<u64, ()> {
        self.push(Command::sync());
        self.issue();
        Ok(self.produced)
    }
}

/// What can go wrong: the numbers here are wrong then, not the machine.
struct Broken;

/// A domain that nobody translates by.
struct Bench {
    layout: Layout,
    readers: Readers,
    retired: Retired,
    rings: Rings,
}

impl Bench {
    fn new(scratch: u64) -> Self {
        let layout = Layout { start: scratch, turn: 0 };
        Ram.write_u64(layout.cell().0, 0);
        Self {
            readers: Readers::new(&Ram, layout.at(Layout::READERS), 1),
            retired: Retired::new(),
            rings: Rings { start: layout.at(Layout::QUEUE) },
            layout,
        }
    }

    fn array(&self) -> Result<Array, Broken> {
        self.layout.cell().load(&Ram).ok_or(Broken)
    }

    fn publish(&mut self, array: Option<Array>) {
        self.retired.replace(&Ram, &self.readers, self.layout.cell(), array);
    }

    /// Publishes an array with these entries, each with one user.
    fn fill(&mut self, mut entries: impl Iterator<Item = Entry>) -> Result<(), Broken> {
        self.publish(None);
        loop {
            let some = entries.by_ref().take(StreamEntries::MAX);
            let some = StreamEntries::of(some).map_err(|_| Broken)?;
            if some.is_empty() {
                return Ok(());
            }
            let new = Array::merge(&Ram, self.layout.cell().load(&Ram), &some, &mut self.layout);
            self.publish(Some(new.map_err(|_| Broken)?));
        }
    }

    /// Makes trash of these.
    fn unref(&mut self, entries: impl Iterator<Item = Entry>) -> Result<(), Broken> {
        for entry in entries {
            let one = StreamEntries::of([entry]).map_err(|_| Broken)?;
            self.array()?.unref(&Ram, &one, |_| {}).map_err(|_| Broken)?;
        }
        Ok(())
    }

    /// Instructions of one walk.
    fn walk(&self, gather: &Gather) -> Result<u64, Broken> {
        let domain =
            Domain { readers: &self.readers, cpu: 0, index: DomainIndex(0), array: self.layout.cell() };
        let (ticks, walked) = ticks(|| invalidate(&self.rings, &Ram, &domain, gather));
        walked.map_err(|_| Broken)?;
        Ok(ticks)
    }
}

/// Instructions of what `act` does, and its answer.
fn ticks<T>(act: impl FnOnce() -> T) -> (u64, T) {
    let overhead = overhead();
    let begin = cpu::ticks();
    let answer = act();
    let end = cpu::ticks();
    (end - begin - overhead, answer)
}

/// Entry `index` of an array of 1,024, in its order.
fn entry(index: u32) -> Entry {
    let (smmu, within) = (index / PER_SMMU, index % PER_SMMU);
    let target = match within.checked_sub(PER_SMMU / 2) {
        None => Target::S2Vmid { vmid: within as u16 + 1 },
        Some(atc) => Target::Ats { stream: 2 * atc, substream: 0 },
    };
    Entry::new(smmu as u8, target, Granule::Size4K)
}

fn all() -> impl Iterator<Item = Entry> {
    (0..ENTRIES).map(entry)
}

/// Tags of one SMMU.
fn tags(ids: core::ops::Range<u32>) -> impl Iterator<Item = Entry> {
    ids.map(|id| Entry::new(0, Target::S2Vmid { vmid: id as u16 }, Granule::Size4K))
}

/// Entry `index` of the array of a domain with 1,016 nested streams behind one vSMMU for each SMMU.
fn nested(index: u32) -> Entry {
    let (smmu, within) = (index / PER_SMMU, index % PER_SMMU);
    let target = match within {
        0 => Target::S2VmidVsmmu { vmid: 3 },
        1 => Target::S2VmidS1Clear { vmid: 3 },
        _ => Target::NestedCds { stream: 2 * within },
    };
    Entry::new(smmu as u8, target, Granule::Size4K)
}

/// The entries of one more nested stream behind SMMU 2: the tag twice, which others use, and the context descriptors.
fn stream() -> Option<StreamEntries> {
    let targets = [
        Target::S2VmidVsmmu { vmid: 3 },
        Target::S2VmidS1Clear { vmid: 3 },
        Target::NestedCds { stream: PER_SMMU + 1 },
    ];
    StreamEntries::of(targets.map(|target| Entry::new(2, target, Granule::Size4K))).ok()
}

fn per_entry(name: &str, ticks: u64, entries: u32) {
    line(name, ticks * THOUSANDTHS / u64::from(entries), "thousandths");
}

/// Measures everything, in half a MiB from `scratch`; whether it went well.
pub fn run(scratch: u64) -> bool {
    line("array-entry", ENTRY_BYTES, "bytes");
    let bench = &mut Bench::new(scratch);
    edits(bench).and_then(|()| walks(bench)).is_ok()
}

fn edits(bench: &mut Bench) -> Result<(), Broken> {
    bench.fill((0..ENTRIES).map(nested))?;
    let (old, stream) = (bench.array()?, stream().ok_or(Broken)?);
    let (cost, merged) = ticks(|| Array::merge(&Ram, Some(old), &stream, &mut bench.layout));
    per_entry("array-merge", cost, ENTRIES);
    let merged = merged.map_err(|_| Broken)?;
    let (cost, done) = ticks(|| merged.unref(&Ram, &stream, |_| {}));
    line("array-unref", cost, "instructions");
    done.map_err(|_| Broken)?;
    let (cost, purged) = ticks(|| merged.purge(&Ram, &mut bench.layout));
    per_entry("array-purge", cost, ENTRIES);
    let purged = purged.map_err(|_| Broken)?.ok_or(Broken)?;
    bench.publish(Some(purged));
    // At its worst: every other entry is trash.
    bench.unref((0..ENTRIES).step_by(2).map(nested))?;
    let array = bench.array()?;
    let (cost, purged) = ticks(|| array.purge(&Ram, &mut bench.layout));
    per_entry("array-purge-half", cost, ENTRIES);
    purged.map_err(|_| Broken)?.ok_or(Broken).map(drop)
}

fn walks(bench: &mut Bench) -> Result<(), Broken> {
    let mut gather = Gather::new();
    gather.add_leaf(0x4020_0000, 2 << 20, 2);
    bench.fill(all())?;
    per_entry("array-walk", bench.walk(&gather)?, ENTRIES);
    // One live entry at each end of much trash, and without it.
    bench.fill(tags(1..3))?;
    let two = bench.walk(&gather)?;
    bench.fill(tags(1..ENTRIES + 1))?;
    bench.unref(tags(2..ENTRIES))?;
    per_entry("array-walk-trash", bench.walk(&gather)?.saturating_sub(two), ENTRIES - 2);
    Ok(())
}
