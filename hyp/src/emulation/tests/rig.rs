//! The host's memory and the hypervisor, as one emulated SMMU sees them.

extern crate std;

use core::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::vec::Vec;

use smmuv3::address::PhysAddr;
use smmuv3::command::Command;
use smmuv3::event::EventRecord;
use smmuv3::features::{Features, Granules, IdRegisters};
use smmuv3::registers::{CMDQ_CONS_OFFSET, CR0_OFFSET, CR0ACK_OFFSET, GERROR_OFFSET, GERRORN_OFFSET};
use smmuv3::ste::{Ats, Stage1Claim};
use smmuv3::vsmmu::VsmmuLimits;

use super::super::{
    Backend, DrainedEvent, EmulatedSmmu, Fault, Interrupt, NotHost, STEP_UNITS, SetStreamError,
};
use crate::memory::Progress;
use crate::smmu::NoEvent;

/// The host's memory: pages of it can be taken away.
pub(super) const RAM: core::ops::Range<u64> = 0x4000_0000..0x8000_0000;
/// Bytes of a page.
pub(super) const PAGE: u64 = 0x1000;
/// The VMID of the streams: no driver in these tests writes it.
pub(super) const VMID: u16 = 0x5a5a;
/// A store that is not done after this many steps hangs.
const MOST_STEPS: u32 = 1 << 17;
/// Streams that [`Backend::abort_all_step`] looks at in a step.
const ABORTS_PER_STEP: usize = 8;

/// What the SMMU can do that is emulated here.
pub(super) const FEATURES: Features = Features {
    nested: true,
    stage1: true,
    stage2: true,
    aarch64_tables: true,
    little_endian: true,
    coherent: true,
    ats: true,
    two_level_cd_table: true,
    range_invalidation: true,
    granules: Granules::ALL,
    oas_bits: 48,
    va_bits: 48,
    asid_bits: 16,
    vmid_bits: 16,
    stream_bits: 16,
    substream_bits: 16,
    ..Features::NONE
};

/// What the back-end was asked to change, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    SetStream(u32, Option<Stage1Claim>),
    Invalidate(Vec<Command>),
    WriteEvent(u64, EventRecord),
    WriteWord(u64, u32),
    Raise(Interrupt),
    AbortStep,
}

/// A page that stops being the host's after some accesses to it.
#[derive(Clone, Copy, Debug)]
struct Theft {
    page: u64,
    accesses_left: u32,
}

/// A store of the host's to a page, after some accesses to it.
#[derive(Clone, Copy, Debug)]
struct LateStore {
    address: u64,
    word: u64,
    accesses_left: u32,
}

/// The hypervisor: [`Backend`] for one emulated SMMU.
pub(super) struct Host {
    words: RefCell<BTreeMap<u64, u64>>,
    taken: RefCell<BTreeSet<u64>>,
    theft: Cell<Option<Theft>>,
    late_store: Cell<Option<LateStore>>,
    /// StreamIDs that devices have, each first and last.
    pub(super) streams: RefCell<Vec<(u32, u32)>>,
    /// What each stream does; nothing of those that abort.
    pub(super) set: RefCell<BTreeMap<u32, Stage1Claim>>,
    next_to_abort: Cell<u32>,
    calls: RefCell<Vec<Call>>,
    count: Cell<u32>,
    /// How `set_stream` fails, by stream.
    pub(super) set_errors: RefCell<BTreeMap<u32, SetStreamError>>,
    /// How the next calls of `invalidate` end; after these all of them succeed.
    pub(super) invalidate_results: RefCell<VecDeque<Result<(), Fault>>>,
    /// How the next calls of `abort_all_step` fail.
    pub(super) abort_faults: RefCell<VecDeque<Fault>>,
    /// Events that the SMMU recorded.
    pub(super) events: RefCell<VecDeque<DrainedEvent>>,
    /// What there is when these are taken.
    pub(super) no_event: Cell<NoEvent>,
    /// Some were lost before the hypervisor could take them.
    pub(super) lost_events: Cell<bool>,
    /// Events that the SMMU's own queue has when it is next drained.
    pub(super) late_events: Cell<u32>,
    /// The SMMU has failed by itself.
    pub(super) is_dead: Cell<bool>,
}

impl Host {
    pub(super) fn new() -> Self {
        Self {
            words: RefCell::default(),
            taken: RefCell::default(),
            theft: Cell::new(None),
            late_store: Cell::new(None),
            streams: RefCell::new([(0, 0xff), (0x800, 0x80f)].into()),
            set: RefCell::default(),
            next_to_abort: Cell::new(0),
            calls: RefCell::default(),
            count: Cell::new(0),
            set_errors: RefCell::default(),
            invalidate_results: RefCell::default(),
            abort_faults: RefCell::default(),
            events: RefCell::default(),
            no_event: Cell::new(NoEvent::QueueEmpty),
            lost_events: Cell::new(false),
            late_events: Cell::new(0),
            is_dead: Cell::new(false),
        }
    }

    /// A load of the host's.
    pub(super) fn load(&self, address: u64) -> u64 {
        assert_eq!(address % 8, 0);
        self.words.borrow().get(&address).copied().unwrap_or(0)
    }

    /// A store of the host's.
    pub(super) fn store(&self, address: u64, words: &[u64]) {
        for (at, word) in (address..).step_by(8).zip(words) {
            assert_eq!(at % 8, 0);
            self.words.borrow_mut().insert(at, *word);
        }
    }

    /// Takes the page at an address away from the host.
    pub(super) fn take_page(&self, address: u64) {
        self.taken.borrow_mut().insert(address / PAGE);
    }

    /// Gives it back.
    pub(super) fn give_back(&self, address: u64) {
        self.taken.borrow_mut().remove(&(address / PAGE));
    }

    /// Takes the page at an address away from the host after `accesses` more accesses to it.
    pub(super) fn take_page_after(&self, address: u64, accesses: u32) {
        self.theft.set(Some(Theft { page: address / PAGE, accesses_left: accesses }));
    }

    /// A store of the host's, made by another CPU after `accesses` more accesses to that page.
    pub(super) fn store_after(&self, address: u64, word: u64, accesses: u32) {
        self.late_store.set(Some(LateStore { address, word, accesses_left: accesses }));
    }

    /// What was asked since this was last called.
    pub(super) fn take_calls(&self) -> Vec<Call> {
        self.calls.take()
    }

    /// The commands that the SMMU was given since [`Host::take_calls`] was last called, one list for each call.
    pub(super) fn take_invalidations(&self) -> Vec<Vec<Command>> {
        let calls = self.take_calls().into_iter();
        calls
            .filter_map(|call| if let Call::Invalidate(commands) = call { Some(commands) } else { None })
            .collect()
    }

    /// The interrupts since [`Host::take_calls`] was last called.
    pub(super) fn take_interrupts(&self) -> Vec<Interrupt> {
        let calls = self.take_calls().into_iter();
        calls
            .filter_map(|call| if let Call::Raise(interrupt) = call { Some(interrupt) } else { None })
            .collect()
    }

    /// What a stream does.
    pub(super) fn stream(&self, stream: u32) -> Option<Stage1Claim> {
        self.set.borrow().get(&stream).copied()
    }

    /// Calls of the back-end since this was last called.
    pub(super) fn take_count(&self) -> u32 {
        self.count.take()
    }

    fn has_device(&self, stream: u32) -> bool {
        self.streams.borrow().iter().any(|(first, last)| (*first..=*last).contains(&stream))
    }

    fn counted(&self) {
        self.count.set(self.count.get() + 1);
    }

    fn record(&self, call: Call) {
        self.calls.borrow_mut().push(call);
    }

    /// An access to `bytes` bytes, which the contract says are aligned and lie in one page.
    fn access(&self, address: u64, bytes: u64, align: u64) -> Result<(), NotHost> {
        self.counted();
        assert_eq!(address % align, 0, "the access at {address:#x} is not aligned");
        assert!(address % PAGE + bytes <= PAGE, "the access at {address:#x} crosses a page");
        let page = address / PAGE;
        if let Some(theft) = self.theft.get().filter(|theft| theft.page == page) {
            match theft.accesses_left.checked_sub(1) {
                Some(accesses_left) => self.theft.set(Some(Theft { accesses_left, ..theft })),
                None => {
                    self.theft.set(None);
                    self.take_page(address);
                }
            }
        }
        if let Some(late) = self.late_store.get().filter(|late| late.address / PAGE == page) {
            match late.accesses_left.checked_sub(1) {
                Some(accesses_left) => self.late_store.set(Some(LateStore { accesses_left, ..late })),
                None => {
                    self.late_store.set(None);
                    self.store(late.address, &[late.word]);
                }
            }
        }
        let is_hosts = RAM.contains(&address) && !self.taken.borrow().contains(&page);
        if is_hosts { Ok(()) } else { Err(NotHost) }
    }
}

impl Backend for Host {
    fn read_host<const N: usize>(&self, PhysAddr(address): PhysAddr) -> Result<[u64; N], NotHost> {
        self.access(address, N as u64 * 8, N as u64 * 8)?;
        Ok(core::array::from_fn(|word| self.load(address + word as u64 * 8)))
    }

    fn read_commands(&self, PhysAddr(address): PhysAddr, commands: &mut [Command]) -> Result<(), NotHost> {
        assert!(!commands.is_empty(), "nothing to read");
        self.access(address, commands.len() as u64 * 16, 16)?;
        for (at, command) in (address..).step_by(16).zip(commands) {
            *command = Command([self.load(at), self.load(at + 8)]);
        }
        Ok(())
    }

    fn write_event(&self, PhysAddr(address): PhysAddr, record: EventRecord) -> Result<(), NotHost> {
        self.access(address, 32, 32)?;
        self.store(address, &record.0);
        self.record(Call::WriteEvent(address, record));
        Ok(())
    }

    fn write_host_u32(&self, PhysAddr(address): PhysAddr, value: u32) -> Result<(), NotHost> {
        self.access(address, 4, 4)?;
        let (old, shift) = (self.load(address & !7), address % 8 * 8);
        self.store(address & !7, &[old & !(0xffff_ffff << shift) | u64::from(value) << shift]);
        self.record(Call::WriteWord(address, value));
        Ok(())
    }

    fn next_stream(&self, from: u32) -> Option<u32> {
        self.counted();
        let streams = self.streams.borrow();
        streams.iter().filter(|(_, last)| from <= *last).map(|(first, _)| from.max(*first)).min()
    }

    fn hosts_stream(&self, stream: u32) -> Option<u32> {
        self.counted();
        self.set.borrow().contains_key(&stream).then_some(stream)
    }

    fn set_stream(&self, stream: u32, claim: Option<Stage1Claim>) -> Result<(), SetStreamError> {
        self.counted();
        assert!(self.has_device(stream), "there is no device with StreamID {stream:#x}");
        self.record(Call::SetStream(stream, claim));
        let error = self.set_errors.borrow().get(&stream).copied();
        match (error, claim.filter(|claim| !claim.aborts())) {
            (None, Some(claim)) => {
                self.set.borrow_mut().insert(stream, claim);
            }
            (None | Some(SetStreamError::Refused | SetStreamError::NoMemory), _) => {
                self.set.borrow_mut().remove(&stream);
            }
            (Some(SetStreamError::NotHosts | SetStreamError::Fault(_)), _) => {}
        }
        error.map_or(Ok(()), Err)
    }

    fn invalidate(&self, commands: &[Command]) -> Result<(), Fault> {
        self.counted();
        assert!(!commands.is_empty(), "there is nothing to do");
        self.record(Call::Invalidate(commands.to_vec()));
        self.invalidate_results.borrow_mut().pop_front().unwrap_or(Ok(()))
    }

    fn abort_all_step(&self) -> Result<Progress, Fault> {
        self.counted();
        self.record(Call::AbortStep);
        if let Some(fault) = self.abort_faults.borrow_mut().pop_front() {
            return Err(fault);
        }
        for _ in 0..ABORTS_PER_STEP {
            let next = self.set.borrow().range(self.next_to_abort.get()..).next().map(|(stream, _)| *stream);
            let Some(stream) = next else {
                self.next_to_abort.set(0);
                return Ok(Progress::Done);
            };
            self.set.borrow_mut().remove(&stream);
            self.next_to_abort.set(stream + 1);
        }
        Ok(Progress::Again)
    }

    fn next_event(&self) -> Result<DrainedEvent, NoEvent> {
        self.counted();
        self.events.borrow_mut().pop_front().ok_or(self.no_event.get())
    }

    fn drain_events(&self) -> u32 {
        self.counted();
        self.late_events.take()
    }

    fn discard_events(&self) -> bool {
        self.counted();
        self.events.borrow_mut().clear();
        self.lost_events.set(false);
        self.no_event.get() == NoEvent::QueueEmpty
    }

    fn take_overflow(&self) -> bool {
        self.lost_events.take()
    }

    fn look_for_errors(&self) -> Result<(), Fault> {
        self.counted();
        if self.is_dead.get() { Err(Fault::Dead) } else { Ok(()) }
    }

    fn raise(&self, interrupt: Interrupt) {
        self.counted();
        self.record(Call::Raise(interrupt));
    }
}

/// An emulated SMMU and all that it can reach.
pub(super) struct Rig {
    pub(super) smmu: EmulatedSmmu,
    pub(super) host: Host,
    /// Steps of the last store.
    pub(super) steps: u32,
}

/// The ID registers that the driver finds.
pub(super) fn id_registers() -> IdRegisters {
    FEATURES.for_emulation(Ats::Full)
}

/// What the driver may send.
pub(super) const LIMITS: VsmmuLimits = VsmmuLimits::new(&FEATURES, Ats::Full);

impl Rig {
    pub(super) fn new() -> Self {
        Self::with_ids(id_registers())
    }

    pub(super) fn with_ids(ids: IdRegisters) -> Self {
        Self { smmu: EmulatedSmmu::new(ids, LIMITS, VMID), host: Host::new(), steps: 0 }
    }

    /// A load of a 32-bit register.
    pub(super) fn read(&mut self, offset: u64) -> u32 {
        let peeked = self.smmu.peek(offset, 4);
        let value = self.smmu.read(&self.host, offset, 4);
        let value = u32::try_from(value).expect("more than 32 bits");
        assert_eq!(peeked.unwrap_or(value), value, "the short way of a load at {offset:#x}");
        value
    }

    /// One step of a store of a 32-bit register.
    pub(super) fn step(&mut self, offset: u64, value: u32) -> Progress {
        self.store_step(offset, 4, value.into())
    }

    /// One step of a store, which does so much at the most.
    pub(super) fn store_step(&mut self, offset: u64, size_bytes: u8, value: u64) -> Progress {
        self.host.take_count();
        let progress = self.smmu.write(&self.host, offset, size_bytes, value);
        let count = self.host.take_count();
        let most = if size_bytes == 8 { 2 } else { 1 } * 8 * STEP_UNITS;
        assert!(count <= most, "a step of a store to {offset:#x} calls the back-end {count} times");
        progress
    }

    /// A store of a 32-bit register.
    pub(super) fn write(&mut self, offset: u64, value: u32) {
        self.store(offset, 4, value.into());
    }

    /// A store of a 64-bit register.
    pub(super) fn write_u64(&mut self, offset: u64, value: u64) {
        self.store(offset, 8, value);
    }

    /// A store, made until it is done.
    pub(super) fn store(&mut self, offset: u64, size_bytes: u8, value: u64) {
        self.steps = 1;
        while self.store_step(offset, size_bytes, value) == Progress::Again {
            self.steps += 1;
            assert!(self.steps < MOST_STEPS, "the store of {value:#x} to {offset:#x} hangs");
        }
    }

    /// A store to CR0, which is acknowledged on return.
    pub(super) fn write_cr0(&mut self, value: u32) {
        self.write(CR0_OFFSET, value);
        assert_eq!(self.read(CR0ACK_OFFSET), value);
    }

    /// The global errors that are active.
    pub(super) fn errors(&mut self) -> u32 {
        self.read(GERROR_OFFSET) ^ self.read(GERRORN_OFFSET)
    }

    /// Acknowledges all global errors, as Linux does.
    pub(super) fn acknowledge(&mut self) {
        let gerror = self.read(GERROR_OFFSET);
        self.write(GERRORN_OFFSET, gerror);
        // What followed may have failed again at once.
    }

    /// CMDQ_CONS: RD and ERR.
    pub(super) fn command_consumer(&mut self) -> (u32, u32) {
        let cons = self.read(CMDQ_CONS_OFFSET);
        (cons & 0xf_ffff, cons >> 24)
    }
}

/// V and Config = bypass.
pub(super) const BYPASS: Stage1Claim = Stage1Claim([0b1001, 0]);
/// V and Config = abort.
pub(super) const ABORT: Stage1Claim = Stage1Claim([0b0001, 0]);

/// An STE with stage 1 by the CD at an address.
pub(super) const fn translate(cd: u64) -> Stage1Claim {
    Stage1Claim([0b1011 | cd, 0b1101_0100])
}

/// An event of the SMMU's about a stream that is set.
pub(super) const fn of_set_stream(words: [u64; 4]) -> DrainedEvent {
    DrainedEvent { record: EventRecord(words), parked: false }
}

/// What the SMMU records of a transaction of a stream that EL2 makes abort.
pub(super) const fn of_parked_stream(stream: u32) -> DrainedEvent {
    let word0 = (stream as u64) << 32 | 0x10;
    DrainedEvent { record: EventRecord([word0, 1 << 39 | 2 << 40, 0xdead_0000, 0xdead_0000]), parked: true }
}
