//! Readers of the invalidation array beside attach and detach, in every order that the memory model allows.
//!
//! Each reader stores a descriptor and walks; when the walk has returned, nothing may translate by the old descriptor any
//! more. Attach and detach keep to the order in `invalidation/mod.rs`. The SMMU is part of the model: it fetches descriptors at the time of its
//! choice from the moment on that its STE is written, keeps what it fetched, and forgets it when it consumes a command. What fails:
//!
//! * an old descriptor that is cached, or fetched, after the walk for it has returned;
//! * an access to an array that was given back, or that is not ordered before its being given back;
//! * a tag that is freed while something of it is cached;
//! * an ATC invalidation that is on its way after its stream's detach has returned.
//!
//! Loom explores schedules and stale values, but no loads that are satisfied by later stores. Then one barrier, or one step of
//! the order, is left out at a time, and loom must find a failure: each is needed, and the models can see it.

mod must_find;

use std::cell::Cell as Local;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Mutex;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use must_find::must_find;
use smmuv3::address::PhysAddr;
use smmuv3::command::Command;
use smmuv3::gather::Gather;
use smmuv3::invalidation::{
    Array, ArrayPages, Batch, Cell, Domain, DomainIndex, Entry, Queues, Readers, Retired, StreamEntries,
    Target, Traits, invalidate, run,
};
use smmuv3::memory::Memory;
use smmuv3::pgtable::Granule;

const CELL: Cell = Cell(PhysAddr(0x100));
const READERS: PhysAddr = PhysAddr(0x200);
const CPUS: u16 = 2;
/// Room for arrays of four entries.
const ARRAYS: u64 = 0x1000;
const ARRAY_BYTES: u64 = 96;
const ARRAY_COUNT: u64 = 4;
/// What is in memory that nobody has written.
const POISON: u64 = 0xdead_dead_dead_dead;

const DOMAIN: DomainIndex = DomainIndex(0);
const STREAM: u32 = 9;

/// A descriptor: the one that is taken away, and what is stored instead.
const OLD: u64 = 1;
const NEW: u64 = 2;

/// What is left out, or done in the wrong order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// No full barrier in this step.
    Barrier(Step),
    /// An ordinary store in place of a store-release, or load in place of a load-acquire, to words of this kind.
    Release(Word),
    Acquire(Word),
    /// Attach: the SMMU may use the tag before it is in the array.
    SteBeforeArray,
    /// Detach: the tag leaves the array before it is flushed.
    UnrefBeforeFlush,
    /// Detach: the tag is flushed while the SMMU uses it.
    FlushBeforeSte,
    /// Detach: readers that may post ATC invalidations are not awaited.
    NoAwait,
    /// Whoever replaces an array gives it back at once.
    NoGracePeriod,
}

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Walk,
    Replace,
    Await,
    Other,
}

/// Kinds of words that are shared between threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Cell,
    Epoch,
    Cpu,
    Array,
}

impl Word {
    fn at(address: PhysAddr) -> Self {
        match address.0 {
            0x100 => Self::Cell,
            0x200 => Self::Epoch,
            0x240..ARRAYS => Self::Cpu,
            _ => Self::Array,
        }
    }
}

/// What is known outside of the memory model: it orders nothing, and loom does not switch threads at it.
#[derive(Default)]
struct Truth {
    /// What the IOTLBs hold, by SMMU, VMID and page.
    cached: BTreeMap<(usize, u16, usize), u64>,
    /// The walk for the page's old descriptor has returned.
    done: [bool; 2],
    /// The stream with the ATC has left.
    stream_gone: bool,
    /// Posted commands, by ticket.
    posted: Vec<Vec<Command>>,
    /// Arrays that are out.
    taken: [bool; ARRAY_COUNT as usize],
}

/// Shared without a count that loom would see: its threads take turns on one.
struct Machine {
    mistake: Mistake,
    words: BTreeMap<u64, AtomicU64>,
    /// Of each array: loom complains about an access that is not ordered with its being taken and given back.
    lifetimes: Vec<UnsafeCell<()>>,
    descriptors: [AtomicU64; 2],
    /// An SMMU fetches and consumes commands one at a time: what follows a command sees what was stored before it.
    smmus: [loom::sync::Mutex<()>; 2],
    truth: Mutex<Truth>,
}

impl Machine {
    fn new(mistake: Mistake) -> Rc<Self> {
        let fixed = [CELL.0.0].into_iter().chain((0..=u64::from(CPUS)).map(|n| READERS.0 + n * 64));
        let arrays = (0..ARRAY_COUNT * ARRAY_BYTES / 8).map(|n| ARRAYS + n * 8);
        Rc::new(Self {
            mistake,
            words: fixed.chain(arrays).map(|address| (address, AtomicU64::new(POISON))).collect(),
            lifetimes: (0..ARRAY_COUNT).map(|_| UnsafeCell::new(())).collect(),
            descriptors: [AtomicU64::new(OLD), AtomicU64::new(OLD)],
            smmus: Default::default(),
            truth: Mutex::default(),
        })
    }

    fn truth(&self) -> std::sync::MutexGuard<'_, Truth> {
        self.truth.lock().unwrap()
    }

    fn array_of(address: PhysAddr) -> Option<usize> {
        address.0.checked_sub(ARRAYS).map(|offset| (offset / ARRAY_BYTES) as usize)
    }

    /// The SMMU uses the tag: it fetches descriptors and keeps them.
    fn translate(&self, smmu: usize, vmid: u16, pages: usize) {
        for page in 0..pages {
            let turn = self.smmus[smmu].lock().unwrap();
            let fetched = self.descriptors[page].load(Ordering::Relaxed);
            let mut truth = self.truth();
            truth.cached.insert((smmu, vmid, page), fetched);
            let late = fetched == OLD && truth.done[page];
            drop((truth, turn));
            assert!(!late, "an old descriptor was fetched after its walk");
        }
    }

    /// The SMMU consumes the commands of a ticket.
    fn consume(&self, smmu: usize, ticket: usize) {
        let turn = self.smmus[smmu].lock().unwrap();
        let mut truth = self.truth();
        let mut too_late = false;
        for Command([low, high]) in truth.posted[ticket].clone() {
            let page = (high >> 12) as usize;
            let forgotten = |entry: &(usize, u16, usize)| entry.0 == smmu && entry.1 == (low >> 32) as u16;
            match low & 0xff {
                0x28 => truth.cached.retain(|entry, _| !forgotten(entry)),
                0x2a => truth.cached.retain(|entry, _| !forgotten(entry) || entry.2 != page),
                0x40 => too_late |= truth.stream_gone,
                other => panic!("opcode {other:#x}"),
            }
        }
        drop((truth, turn));
        assert!(!too_late, "an ATC invalidation for a stream that is gone");
    }
}

/// The machine as one CPU sees it.
struct Cpu {
    machine: Rc<Machine>,
    step: Local<Step>,
}

impl Cpu {
    fn new(machine: &Rc<Machine>) -> Self {
        Self { machine: machine.clone(), step: Local::new(Step::Other) }
    }

    fn during<T>(&self, step: Step, act: impl FnOnce() -> T) -> T {
        self.step.set(step);
        let result = act();
        self.step.set(Step::Other);
        result
    }

    fn word(&self, address: PhysAddr) -> &AtomicU64 {
        if let Some(array) = Machine::array_of(address) {
            self.machine.lifetimes[array].with(|_| ());
            assert!(self.machine.truth().taken[array], "an array that was given back is used");
        }
        &self.machine.words[&address.0]
    }
}

impl Memory for Cpu {
    fn read_u64(&self, address: PhysAddr) -> u64 {
        let value = self.word(address).load(Ordering::Relaxed);
        assert_ne!(value, POISON, "nothing was written at {address}");
        value
    }

    fn write_u64(&self, address: PhysAddr, value: u64) {
        self.word(address).store(value, Ordering::Relaxed);
    }

    fn full_barrier(&self) {
        if self.machine.mistake != Mistake::Barrier(self.step.get()) {
            fence(Ordering::SeqCst);
        }
    }

    fn read_acquire_u64(&self, address: PhysAddr) -> u64 {
        if self.machine.mistake == Mistake::Acquire(Word::at(address)) {
            return self.read_u64(address);
        }
        self.word(address).load(Ordering::Acquire)
    }

    fn write_release_u64(&self, address: PhysAddr, value: u64) {
        if self.machine.mistake == Mistake::Release(Word::at(address)) {
            return self.write_u64(address, value);
        }
        self.word(address).store(value, Ordering::Release);
    }
}

impl ArrayPages for &Machine {
    fn take(&mut self, bytes: u64) -> Option<PhysAddr> {
        assert!(bytes <= ARRAY_BYTES);
        let mut truth = self.truth();
        let free = truth.taken.iter().position(|taken| !taken)?;
        truth.taken[free] = true;
        self.lifetimes[free].with_mut(|_| ());
        Some(PhysAddr(ARRAYS + free as u64 * ARRAY_BYTES))
    }

    fn give(&mut self, array: PhysAddr, _bytes: u64) {
        let array = Machine::array_of(array).unwrap();
        self.truth().taken[array] = false;
        self.lifetimes[array].with_mut(|_| ());
    }
}

impl Queues for Machine {
    type Ticket = usize;
    type Fault = ();
    type Batch<'a> = Posting<'a>;

    fn traits(&self, _smmu: usize) -> Traits {
        Traits { range_invalidation: false, repeat_invalidations: false, sync_before_last_slot: false }
    }

    fn open(&self, _smmu: usize) -> Result<Posting<'_>, ()> {
        Ok(Posting { machine: self, commands: Vec::new() })
    }

    fn wait(&self, smmu: usize, ticket: usize) -> Result<(), ()> {
        self.consume(smmu, ticket);
        Ok(())
    }
}

struct Posting<'a> {
    machine: &'a Machine,
    commands: Vec<Command>,
}

impl Batch for Posting<'_> {
    type Ticket = usize;
    type Fault = ();

    fn push(&mut self, command: Command) {
        if command != Command::sync() {
            self.commands.push(command);
        }
    }

    fn issue(&mut self) {}

    fn close(self) -> Result<usize, ()> {
        let mut truth = self.machine.truth();
        truth.posted.push(self.commands);
        Ok(truth.posted.len() - 1)
    }
}

/// A reader: takes the pages away one after the other.
fn reader(machine: &Rc<Machine>, readers: Readers, cpu: u16, pages: &[usize]) {
    let memory = Cpu::new(machine);
    let domain = Domain { readers: &readers, cpu, index: DOMAIN, array: CELL };
    for &page in pages {
        machine.descriptors[page].store(NEW, Ordering::Relaxed);
        let mut gather = Gather::new();
        gather.add_leaf((page as u64) << 12, 4096, 3);
        memory.during(Step::Walk, || invalidate(&**machine, &memory, &domain, &gather)).unwrap();
        let mut truth = machine.truth();
        truth.done[page] = true;
        let stale = truth.cached.iter().any(|(entry, value)| entry.2 == page && *value == OLD);
        drop(truth);
        assert!(!stale, "an old descriptor is cached after its walk");
    }
}

/// Who attaches and detaches.
struct Editor {
    memory: Cpu,
    readers: Readers,
    retired: Retired,
}

/// A stream behind an SMMU, whose domain has this VMID there. The first has an ATC if asked for.
#[derive(Clone, Copy)]
struct Stream {
    smmu: usize,
    vmid: u16,
    ats: bool,
}

impl Stream {
    fn tag(self) -> Entry {
        Entry::new(self.smmu as u8, Target::S2Vmid { vmid: self.vmid }, Granule::Size4K)
    }

    fn entries(self) -> StreamEntries {
        let ats = Target::Ats { stream: STREAM, substream: 0 };
        let ats = self.ats.then(|| Entry::new(self.smmu as u8, ats, Granule::Size4K));
        StreamEntries::of([self.tag()].into_iter().chain(ats)).unwrap()
    }
}

impl Editor {
    fn new(machine: &Rc<Machine>) -> Self {
        let memory = Cpu::new(machine);
        memory.write_u64(CELL.0, 0);
        let readers = Readers::new(&memory, READERS, CPUS);
        Self { memory, readers, retired: Retired::new() }
    }

    fn machine(&self) -> &Machine {
        &self.memory.machine
    }

    fn publish(&mut self, new: Array) {
        let Self { memory, readers, retired } = self;
        let old = memory.read_u64(CELL.0);
        memory.during(Step::Replace, || retired.replace(memory, readers, CELL, Some(new)));
        let mut pages = &*memory.machine;
        if memory.machine.mistake == Mistake::NoGracePeriod && old != 0 {
            *retired = Retired::new();
            pages.give(PhysAddr(old), ARRAY_BYTES);
        }
        retired.collect(memory, readers, &mut pages);
    }

    fn attach(&mut self, stream: Stream, pages: usize) {
        let early = self.machine().mistake == Mistake::SteBeforeArray;
        if early {
            self.machine().translate(stream.smmu, stream.vmid, pages);
        }
        let old = CELL.load(&self.memory);
        let new = Array::merge(&self.memory, old, &stream.entries(), &mut self.machine()).unwrap();
        self.publish(new);
        if !early {
            self.machine().translate(stream.smmu, stream.vmid, pages);
        }
    }

    fn detach(&mut self, stream: Stream, pages: usize) {
        let mistake = self.machine().mistake;
        let array = CELL.load(&self.memory).unwrap();
        let last = CELL.users(&self.memory, &stream.tag()) == 1;
        let flush = |editor: &Self| {
            if last {
                run(editor.machine(), stream.smmu, &[stream.tag().flush()]).unwrap();
            }
        };
        if mistake == Mistake::FlushBeforeSte {
            flush(self);
        }
        // The last time that the stream uses the tag.
        self.machine().translate(stream.smmu, stream.vmid, pages);
        if !matches!(mistake, Mistake::FlushBeforeSte | Mistake::UnrefBeforeFlush) {
            flush(self);
        }
        array.unref(&self.memory, &stream.entries(), |_| {}).unwrap();
        if stream.ats {
            if mistake != Mistake::NoAwait {
                let await_readers =
                    || self.readers.await_readers(&self.memory, DOMAIN, loom::thread::yield_now);
                self.memory.during(Step::Await, await_readers);
            }
            self.machine().truth().stream_gone = true;
        }
        if mistake == Mistake::UnrefBeforeFlush {
            flush(self);
        }
        if last {
            let left = self
                .machine()
                .truth()
                .cached
                .keys()
                .any(|(smmu, vmid, _)| (*smmu, *vmid) == (stream.smmu, stream.vmid));
            assert!(!left, "a tag is freed while it is cached");
        }
        let purged = array.purge(&self.memory, &mut self.machine()).unwrap();
        if let Some(purged) = purged {
            self.publish(purged);
        }
    }
}

const A: Stream = Stream { smmu: 0, vmid: 1, ats: false };
const B: Stream = Stream { smmu: 1, vmid: 2, ats: false };
const WITH_ATC: Stream = Stream { smmu: 0, vmid: 1, ats: true };

fn explore(preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 5_000;
    builder.check(model);
}

/// Runs readers of these pages beside what `edit` does to a domain that `before` has prepared.
fn readers_beside(
    mistake: Mistake,
    readers: &'static [&'static [usize]],
    before: fn(&mut Editor),
    edit: fn(&mut Editor),
) {
    let machine = Machine::new(mistake);
    let mut editor = Editor::new(&machine);
    before(&mut editor);
    let threads: Vec<_> = (0..)
        .zip(readers)
        .map(|(cpu, pages)| {
            let (machine, readers) = (machine.clone(), editor.readers);
            loom::thread::spawn(move || reader(&machine, readers, cpu, pages))
        })
        .collect();
    edit(&mut editor);
    for thread in threads {
        thread.join().unwrap();
    }
}

fn found(mistake: Mistake, complaint: &str, model: fn(Mistake)) {
    must_find(mistake, complaint, || model(mistake));
}

/// The first stream of a domain, beside a walk.
fn attach_first(mistake: Mistake) {
    explore(None, move || readers_beside(mistake, &[&[0]], |_| {}, |editor| editor.attach(A, 1)));
}

/// One more stream, behind another SMMU: the walk may be in the old array.
fn attach_second(mistake: Mistake) {
    explore(None, move || {
        readers_beside(mistake, &[&[0]], |editor| editor.attach(A, 1), |editor| editor.attach(B, 1));
    });
}

/// The last stream of a domain leaves, beside a walk.
fn detach_last(mistake: Mistake) {
    explore(None, move || {
        readers_beside(mistake, &[&[0]], |editor| editor.attach(A, 1), |editor| editor.detach(A, 1));
    });
}

/// One of two streams with the same tag leaves, beside a walk.
fn detach_one_of_two(mistake: Mistake) {
    explore(None, move || {
        let attach_twice = |editor: &mut Editor| {
            editor.attach(A, 1);
            editor.attach(A, 1);
        };
        readers_beside(mistake, &[&[0]], attach_twice, |editor| {
            editor.detach(A, 1);
            editor.machine().translate(A.smmu, A.vmid, 1);
        });
    });
}

/// A stream with an ATC leaves, beside a walk.
fn detach_with_atc(mistake: Mistake) {
    explore(None, move || {
        readers_beside(
            mistake,
            &[&[0]],
            |editor| editor.attach(WITH_ATC, 1),
            |editor| editor.detach(WITH_ATC, 1),
        );
    });
}

/// Two walks of one CPU, beside two replacements: an array that goes back is used again at once.
fn replace_twice(mistake: Mistake) {
    explore(None, move || {
        readers_beside(
            mistake,
            &[&[0, 1]],
            |editor| editor.attach(A, 0),
            |editor| {
                editor.attach(A, 0);
                editor.attach(A, 0);
            },
        );
    });
}

/// Two CPUs walk while something happens to a domain that has a stream with an ATC.
fn two_walks_beside(preemptions: usize, edit: fn(&mut Editor)) {
    explore(Some(preemptions), move || {
        readers_beside(Mistake::None, &[&[0], &[1]], |editor| editor.attach(WITH_ATC, 2), edit);
    });
}

#[test]
fn a_walk_beside_an_attach() {
    attach_first(Mistake::None);
    attach_second(Mistake::None);
}

#[test]
fn a_walk_beside_a_detach() {
    detach_last(Mistake::None);
    detach_one_of_two(Mistake::None);
}

#[test]
fn a_walk_beside_a_detach_with_an_atc() {
    detach_with_atc(Mistake::None);
}

#[test]
fn two_walks_beside_two_replacements() {
    replace_twice(Mistake::None);
}

/// All schedules with two preemptions of a thread that could go on: some seconds.
#[test]
fn two_walks_at_once_beside_an_attach() {
    two_walks_beside(2, |editor| editor.attach(B, 2));
}

#[test]
fn two_walks_at_once_beside_a_detach() {
    two_walks_beside(2, |editor| editor.detach(WITH_ATC, 2));
}

/// All schedules with one preemption. With two they pass as well, in a minute.
#[test]
fn two_walks_at_once_beside_attach_and_detach() {
    two_walks_beside(1, |editor| {
        editor.attach(B, 2);
        editor.detach(WITH_ATC, 2);
    });
}

const MISSED: &str = "an old descriptor";
const NOT_ORDERED: &str = "Causality violation";

#[test]
fn the_barrier_of_a_walk_is_needed() {
    found(Mistake::Barrier(Step::Walk), MISSED, attach_first);
    found(Mistake::Barrier(Step::Walk), NOT_ORDERED, replace_twice);
}

#[test]
fn the_barrier_of_whoever_publishes_is_needed() {
    found(Mistake::Barrier(Step::Replace), MISSED, attach_first);
    found(Mistake::Barrier(Step::Replace), NOT_ORDERED, replace_twice);
}

#[test]
fn the_barrier_before_readers_are_awaited_is_needed() {
    found(Mistake::Barrier(Step::Await), "an ATC invalidation for a stream that is gone", detach_with_atc);
}

#[test]
fn arrays_are_published_with_a_release_and_read_with_an_acquire() {
    found(Mistake::Release(Word::Cell), NOT_ORDERED, attach_first);
    found(Mistake::Acquire(Word::Cell), NOT_ORDERED, attach_first);
}

#[test]
fn reading_ends_with_a_release_and_is_looked_at_with_an_acquire() {
    found(Mistake::Release(Word::Cpu), NOT_ORDERED, replace_twice);
    found(Mistake::Acquire(Word::Cpu), NOT_ORDERED, replace_twice);
}

#[test]
fn the_order_of_attach_is_needed() {
    found(Mistake::SteBeforeArray, MISSED, attach_first);
}

#[test]
fn the_order_of_detach_is_needed() {
    found(Mistake::UnrefBeforeFlush, MISSED, detach_last);
    found(Mistake::FlushBeforeSte, "a tag is freed while it is cached", detach_last);
}

#[test]
fn readers_must_be_awaited() {
    found(Mistake::NoAwait, "an ATC invalidation for a stream that is gone", detach_with_atc);
    found(Mistake::NoGracePeriod, NOT_ORDERED, replace_twice);
}
