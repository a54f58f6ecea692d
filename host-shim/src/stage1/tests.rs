//! The host's half of attach, replace and detach, against a hypervisor that writes down what it is asked.

extern crate std;
use super::contexts::Contexts;
use super::queues::HostQueues;
use super::*;
use crate::call::{Caller, Refused};
use crate::host::{Abort, Device, Dma, Forbidden, Transfer};
use abi::{Function, ObjectHandle, Principal, Status, attach};
use core::fmt;
use smmuv3::cd::CD_BYTES;
use smmuv3::command::{COMMAND_BYTES, Command};
use smmuv3::features::IdRegisters;
use smmuv3::invalidation::{Batch, Queues};
use smmuv3::memory::Memory;
use smmuv3::ste::Ats;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::vec::Vec;

const RAM: u64 = 0x8000_0000;
const RAM_BYTES: u64 = 1 << 20;
const STREAM: u32 = 0x100;
const IOVA: u64 = 0x1234_4000_0000;
/// Opcodes (IHI 0070, 4.1.1).
const CFGI_CD: u64 = 0x05;
const NH_ASID: u64 = 0x11;
const NH_VA: u64 = 0x12;

/// What happened, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Call(Function),
    /// A command, and the place of the vSMMU.
    Command(u16, [u64; 2]),
}

#[derive(Default)]
struct State {
    memory: BTreeMap<u64, u64>,
    seen: Vec<Seen>,
    /// Nested domains by the streams that are attached, with words 0 and 1.
    attached: BTreeMap<(u64, u64), u64>,
    words: BTreeMap<u64, [u64; 2]>,
    /// Commands of each call.
    batches: Vec<u64>,
    next: u16,
    refuse: Option<Function>,
}

/// A machine with two SMMUs.
#[derive(Default)]
struct Fake(Mutex<State>);

fn handle(generation: u16, place: u16) -> u64 {
    ObjectHandle { owner: Principal::Host, generation, place }.to_register()
}

impl Fake {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    /// What happened since the last time.
    fn take(&self) -> Vec<Seen> {
        self.with(|state| std::mem::take(&mut state.seen))
    }

    fn commands(&self) -> Vec<(u16, [u64; 2])> {
        let commands = self.take().into_iter().filter_map(|seen| match seen {
            Seen::Command(place, command) => Some((place, command)),
            Seen::Call(_) => None,
        });
        commands.collect()
    }
}

impl Caller for Fake {
    fn call_raw(&self, id: u32, [x1, x2, x3, x4]: [u64; 4]) -> [u64; 5] {
        let function = Function::from_id(id).unwrap();
        self.with(|state| {
            state.seen.push(Seen::Call(function));
            if state.refuse == Some(function) {
                return [Status::Hardware.to_register(), 0, 0, 0, 0];
            }
            match function {
                Function::SmmuCount => [0, 2, 0, 0, 0],
                Function::SmmuFeatures => {
                    // QEMU's, with 4-bit SubstreamIDs.
                    let idr1 = 0x0273_0010 | 4 << 6;
                    let ids = IdRegisters { idr0: 0x0d44_101b, idr1, idr3: 0x1414, idr5: 0x74, iidr: 0 };
                    let ids = Features::probe(&ids).for_owner(Ats::Off);
                    [0, ids.idr0.into(), ids.idr1.into(), ids.idr3.into(), ids.idr5.into()]
                }
                Function::VsmmuCreate => [0, handle(1, x1 as u16), 1, 0, 0],
                Function::DomainCreateNested => {
                    state.next += 1;
                    let domain = handle(state.next, DomainHandle::FIRST_CREATED);
                    state.words.insert(domain, [x2, x3]);
                    [0, domain, 0, 0, 0]
                }
                Function::StreamQuery => match state.attached.get(&(x1, x2)) {
                    Some(domain) => [0, 1, *domain, 1, 0],
                    None => [0; 5],
                },
                Function::StreamAttach => {
                    let before = state.attached.insert((x1, x2), x3);
                    assert_eq!(x4 & attach::REPLACE != 0, before.is_some());
                    [0; 5]
                }
                Function::StreamDetach => {
                    assert!(state.attached.remove(&(x1, x2)).is_some());
                    [0; 5]
                }
                Function::VsmmuInvalidate => {
                    for index in 0..x3 {
                        let at = x2 + index * COMMAND_BYTES;
                        let word = |address| state.memory.get(&address).copied().unwrap_or(0);
                        let command = [word(at), word(at + 8)];
                        state.seen.push(Seen::Command(x1 as u16, command));
                    }
                    state.batches.push(x3);
                    [0, x3, 0, 0, 0]
                }
                _ => [0; 5],
            }
        })
    }
}

impl Host for Fake {
    fn smmus(&self) -> usize {
        2
    }

    fn stream(&self, _smmu: usize, _device: Device) -> Option<u32> {
        None
    }

    fn dma_write_at(&self, _smmu: usize, _address: u64, _expected: u64) -> Dma {
        Dma::Unreachable
    }

    fn start(&self, _smmu: usize, _transfer: Transfer) -> Result<(), Abort> {
        Err(Abort)
    }

    fn settle(&self) {}

    fn cpu_load(&self, address: u64, bytes: u8) -> Result<u64, Abort> {
        let inside = bytes == 8 && (RAM..RAM + RAM_BYTES).contains(&address);
        let read = || self.with(|state| state.memory.get(&address).copied().unwrap_or(0));
        if inside { Ok(read()) } else { Err(Abort) }
    }

    fn cpu_store(&self, address: u64, bytes: u8, value: u64) -> Result<(), Abort> {
        self.cpu_load(address, bytes)?;
        self.with(|state| state.memory.insert(address, value));
        Ok(())
    }

    fn scratch(&self) -> u64 {
        RAM
    }

    fn forbidden(&self, _index: usize) -> Option<Forbidden> {
        None
    }

    fn hypervisor_memory(&self) -> u64 {
        0
    }

    fn not_ram(&self) -> u64 {
        0
    }

    fn on_each_cpu(&self, _job: &(dyn Fn(usize) + Sync)) -> usize {
        0
    }

    fn ticks(&self) -> u64 {
        0
    }

    fn log(&self, _line: fmt::Arguments<'_>) {}
}

fn start(fake: &Fake) -> Stage1<'_, Fake> {
    let mut stage1 = Stage1::start(fake, RAM, RAM_BYTES).unwrap();
    for smmu in 0..2 {
        stage1.add_stream(smmu, STREAM, StreamOptions { cd_max: 2, ats: false }).unwrap();
    }
    stage1
}

/// The table of context descriptors that a stream's STE points to.
fn descriptors(fake: &Fake, smmu: u64) -> u64 {
    fake.with(|state| state.words[&state.attached[&(smmu, STREAM.into())]][0] & 0x00ff_ffff_ffff_ffc0)
}

#[test]
fn a_domain_has_an_asid_on_each_smmu_and_an_unmap_names_both() {
    let fake = Fake::default();
    let mut stage1 = start(&fake);
    let domain = stage1.create().unwrap();
    for smmu in 0..2 {
        stage1.attach(smmu, STREAM, 0, domain).unwrap();
    }
    assert_eq!([0, 1].map(|smmu| stage1.asid(domain, smmu).unwrap()), [Some((1, 1)), Some((2, 1))]);
    stage1.map(domain, IOVA, RAM, 0x2000, true).unwrap();
    fake.take();
    stage1.unmap(domain, IOVA, 0x1000).unwrap();
    // One page: TG 4 KiB, TTL 3, Leaf.
    let command = |asid: u64| [NH_VA | asid << 48, IOVA | 1 << 10 | 3 << 8 | 1];
    assert_eq!(fake.commands(), [(0, command(1)), (1, command(2))]);
}

#[test]
fn the_tag_is_flushed_after_the_last_detach_and_before_it_is_free() {
    let fake = Fake::default();
    let mut stage1 = start(&fake);
    let domain = stage1.create().unwrap();
    stage1.attach(0, STREAM, 0, domain).unwrap();
    assert_eq!(stage1.destroy(domain), Err(Error::Busy));
    fake.take();
    stage1.detach(0, STREAM, 0, Idle::Aborts).unwrap();
    let expected = [
        Seen::Call(Function::StreamDetach),
        Seen::Call(Function::VsmmuInvalidate),
        Seen::Command(0, [NH_ASID | 1 << 48, 0]),
        Seen::Call(Function::DomainDestroy),
    ];
    assert_eq!((fake.take(), stage1.asids_in_use()), (expected.into(), 0));
    // A flush that fails keeps the ASID.
    stage1.attach(0, STREAM, 0, domain).unwrap();
    fake.with(|state| state.refuse = Some(Function::VsmmuInvalidate));
    assert!(matches!(stage1.detach(0, STREAM, 0, Idle::Aborts), Err(Error::Call(_))));
    assert_eq!((stage1.asids_in_use(), stage1.destroy(domain)), (1, Err(Error::Busy)));
}

#[test]
fn replacing_a_domain_is_one_change_of_the_ste() {
    let fake = Fake::default();
    let mut stage1 = start(&fake);
    let [old, new] = [(); 2].map(|()| stage1.create().unwrap());
    for substream in [0, 3] {
        stage1.attach(0, STREAM, substream, old).unwrap();
    }
    assert_eq!(stage1.asid(old, 0), Ok(Some((1, 2))));
    let table = descriptors(&fake, 0);
    let kept = fake.with(|state| state.memory[&(table + 3 * CD_BYTES)]);
    fake.take();
    stage1.attach(0, STREAM, 0, new).unwrap();
    let expected = [
        Seen::Call(Function::StreamQuery),
        Seen::Call(Function::DomainCreateNested),
        Seen::Call(Function::StreamAttach),
        Seen::Call(Function::DomainDestroy),
    ];
    assert_eq!(fake.take(), expected, "no CMD_CFGI_CD, no flush: SubstreamID 3 uses the old domain");
    let moved = descriptors(&fake, 0);
    assert_ne!(moved, table);
    assert_eq!(fake.with(|state| state.memory[&(moved + 3 * CD_BYTES)]), kept);
    assert_eq!((stage1.asid(old, 0), stage1.asid(new, 0)), (Ok(Some((1, 1))), Ok(Some((2, 1)))));
    stage1.attach(0, STREAM, 3, new).unwrap();
    assert_eq!(fake.commands(), [(0, [NH_ASID | 1 << 48, 0])]);
    assert_eq!((stage1.asid(old, 0), stage1.asid(new, 0)), (Ok(None), Ok(Some((2, 2)))));
    assert_eq!(stage1.attach(0, STREAM, 3, new), Err(Error::Present));
}

#[test]
fn a_substream_comes_and_goes_in_place() {
    let fake = Fake::default();
    let mut stage1 = start(&fake);
    let domain = stage1.create().unwrap();
    stage1.attach(0, STREAM, 0, domain).unwrap();
    let table = descriptors(&fake, 0);
    fake.take();
    stage1.attach(0, STREAM, 2, domain).unwrap();
    let forget = (0, [CFGI_CD | 2 << 12 | u64::from(STREAM) << 32, 1]);
    assert_eq!(fake.commands(), [forget, forget], "the rest of the descriptor, then V");
    let memory = HostMemory::new(&fake);
    let valid = |substream: u64| memory.read_u64(PhysAddr(table + substream * CD_BYTES)) & 1 << 31 != 0;
    assert_eq!([0, 1, 2, 3].map(valid), [true, false, true, false]);
    stage1.detach(0, STREAM, 2, Idle::Aborts).unwrap();
    assert_eq!(fake.commands(), [forget, forget], "V, then the rest; the ASID is in use");
    assert_eq!([0, 1, 2, 3].map(valid), [true, false, false, false]);
    assert_eq!(stage1.detach(0, STREAM, 2, Idle::Aborts), Err(Error::NotAttached));
    assert_eq!(stage1.attach(0, STREAM, 4, domain), Err(Error::Substream(4)));
    // A descriptor that the SMMU may not have forgotten is there as before.
    fake.with(|state| state.refuse = Some(Function::VsmmuInvalidate));
    assert!(stage1.attach(0, STREAM, 1, domain).is_err());
    assert_eq!([0, 1, 2, 3].map(valid), [true, false, false, false]);
    fake.with(|state| state.refuse = None);
    stage1.attach(0, STREAM, 2, domain).unwrap();
    fake.with(|state| state.refuse = Some(Function::VsmmuInvalidate));
    assert!(stage1.detach(0, STREAM, 2, Idle::Aborts).is_err());
    assert_eq!([0, 1, 2, 3].map(valid), [true, false, true, false], "V was cleared, and is set again");
}

#[test]
fn an_attach_that_is_refused_leaves_nothing() {
    let fake = Fake::default();
    let mut stage1 = start(&fake);
    let domain = stage1.create().unwrap();
    fake.with(|state| state.refuse = Some(Function::StreamAttach));
    let refused = Refused { code: Status::Hardware.to_register(), detail: 0 };
    assert_eq!(stage1.attach(1, STREAM, 0, domain), Err(Error::Call(refused)));
    assert_eq!((stage1.asids_in_use(), stage1.asid(domain, 1)), (0, Ok(None)));
    fake.with(|state| state.refuse = None);
    stage1.attach(1, STREAM, 0, domain).unwrap();
    stage1.detach(1, STREAM, 0, Idle::HostDomain).unwrap();
    assert_eq!(fake.with(|state| state.attached[&(1, STREAM.into())]), 0, "the host's domain");
    for smmu in 0..2 {
        stage1.remove_stream(smmu, STREAM).unwrap();
    }
    stage1.destroy(domain).unwrap();
    stage1.stop().unwrap();
}

#[test]
fn commands_go_in_calls_of_64_at_the_most() {
    let fake = Fake::default();
    let stage1 = start(&fake);
    let queues = HostQueues { memory: &stage1.memory, smmus: &stage1.smmus };
    let mut batch = queues.open(1).unwrap();
    let command = |asid| Command::tlbi_nh_asid(0, asid);
    fake.take();
    (0..130).for_each(|asid| batch.push(command(asid)));
    batch.close().unwrap();
    assert_eq!(fake.with(|state| state.batches.clone()), [64, 64, 2]);
    assert!(fake.commands().into_iter().eq((0..130).map(|asid| (1, command(asid).0))));
}

#[test]
fn memory_that_is_out_of_reach_is_an_error() {
    let fake = Fake::default();
    let outside = Stage1::start(&fake, RAM + RAM_BYTES, RAM_BYTES).map(drop);
    assert_eq!(outside, Err(Error::Memory { address: RAM + RAM_BYTES }));
    let memory = HostMemory::new(&fake);
    let mut pages = Pages::new(RAM + RAM_BYTES - 0x1000, 0x2000);
    assert!(Contexts::new(&memory, &mut pages, 0).is_ok() && memory.check().is_ok());
    let _ = Contexts::new(&memory, &mut pages, 0);
    assert_eq!(memory.check(), Err(Error::Memory { address: RAM + RAM_BYTES }));
    assert_eq!(memory.check(), Ok(()), "said once");
    assert_eq!(Contexts::new(&memory, &mut pages, 0).map(drop), Err(Error::NoMemory));
}

#[test]
fn pages_are_used_again_by_order() {
    let fake = Fake::default();
    let memory = HostMemory::new(&fake);
    let mut pages = Pages::new(RAM, RAM_BYTES);
    let runs = [0, 2, 0].map(|order| pages.take(&memory, order).unwrap());
    assert_eq!(runs, [RAM, RAM + 0x4000, RAM + 0x8000].map(PhysAddr));
    pages.give(&memory, runs[0], 0);
    pages.give(&memory, runs[1], 2);
    assert_eq!([2, 0].map(|order| pages.take(&memory, order).unwrap()), [runs[1], runs[0]]);
    assert_eq!([1, 4096, 4097, 16384].map(pages::order_of), [0, 0, 1, 2]);
    assert_eq!(pages.take(&memory, 8), None);
}
