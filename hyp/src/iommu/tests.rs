//! Invariants: a VMID that stands in no array is in no IOTLB; whoever is refused has changed nothing; a
//! stream that counts as unattached is parked.

extern crate std;

use core::sync::atomic::{AtomicUsize, Ordering};
use std::boxed::Box;
use std::sync::Arc;
use std::vec::Vec;

use abi::{DomainHandle, GuestHandle, Reason, Status};
use smmuv3::address::PhysAddr;
use smmuv3::command::opcode::{CFGI_STE, SYNC, TLBI_S2_IPA, TLBI_S12_VMALL};
use smmuv3::invalidation::DomainIndex;
use smmuv3::memory::Memory;
use smmuv3::pgtable::{Blocks, Geometry, Granule};

use super::*;
use crate::memory::Failure;
use crate::smmu::fake::{Action, Fake, FakePages, offset};
use crate::smmu::{Condition, abort_all};

pub const HOST: DomainHandle = DomainHandle::Host;
const HOST_ROOT: PhysAddr = PhysAddr(0x4000_0000);

pub fn guest(handle: u64) -> GuestHandle {
    GuestHandle::from_register(handle).unwrap()
}

fn table(root: u64) -> PageTable {
    PageTable::new(Geometry::stage2(Granule::Size4K, 40, 44).unwrap(), Blocks::Never, PhysAddr(root))
}

/// The places of the host's domain and of guest 1's.
const HOST_INDEX: DomainIndex = DomainIndex(0);
const GUEST_INDEX: DomainIndex = DomainIndex(1);

pub struct Machine {
    pub fake: Fake,
    pub iommu: Box<Iommu>,
    pub pages: FakePages,
}

impl Machine {
    /// Three SMMUs that are up, the host's domain, and guests 1 and 2.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(prepare: impl Fn(&Fake)) -> Self {
        let fake = Fake::new(3);
        prepare(&fake);
        let mut iommu = Box::new(Iommu::new());
        let mut pages = FakePages::new();
        abort_all(&fake, fake.bases().into_iter()).unwrap();
        iommu.probe(&fake, fake.smmus()).unwrap();
        iommu.start(&fake, table(0).geometry(), List::new(), &mut pages).unwrap();
        iommu.create_domain(HOST, table(HOST_ROOT.0)).unwrap();
        for handle in 1..=2 {
            iommu.create_domain(DomainHandle::Guest(guest(handle)), table(0x5000_0000 * handle)).unwrap();
        }
        fake.take_actions();
        Self { fake, iommu, pages }
    }

    pub fn attach(&mut self, smmu: usize, stream: u32, domain: DomainHandle) -> Result<(), Refused> {
        self.iommu.attach(&self.fake, smmu, stream, domain, How::default(), &mut self.pages)
    }

    pub fn detach(&mut self, smmu: usize, stream: u32) -> Result<(), Refused> {
        self.iommu.detach(&self.fake, smmu, stream, &mut self.pages).map(drop)
    }

    pub fn query(&self, smmu: usize, stream: u32) -> StreamState {
        self.iommu.query(&self.fake, smmu, stream).unwrap()
    }

    pub fn is_idle(&self, domain: DomainIndex) -> bool {
        self.iommu.cell(domain).is_idle(&self.fake)
    }

    pub fn vmids_in_use(&self, smmu: usize) -> u16 {
        self.iommu.describe(smmu).unwrap().1
    }

    pub fn entry(&self, smmu: usize, stream: u32) -> [u64; 8] {
        let table = level2_table(&self.fake, smmu, stream);
        let memory = &self.fake.0.lock().unwrap().memory;
        core::array::from_fn(|word| memory[&(table + u64::from(stream & 63) * 64 + word as u64 * 8)])
    }
}

/// Where the STE of a stream is. Two-level, as IHI 0070, 3.3.2 says, SPLIT 6.
fn level2_table(fake: &Fake, smmu: usize, stream: u32) -> u64 {
    let state = fake.0.lock().unwrap();
    let base = state.smmus[smmu].get(offset::STRTAB_BASE) & 0x000f_ffff_ffff_ffc0;
    state.memory[&(base + u64::from(stream >> 6) * 8)] & 0x000f_ffff_ffff_ffc0
}

#[test]
fn attach_and_detach_follow_the_order_of_the_array() {
    let mut machine = Machine::new();
    let parked = machine.entry(1, 0x800);
    machine.attach(1, 0x800, HOST).unwrap();
    assert_eq!(machine.query(1, 0x800), StreamState::Attached { domain: HOST, vmid: 2 });
    let entry = machine.entry(1, 0x800);
    assert_eq!((entry[0] & 0xf, entry[2] & 0xffff, entry[3]), (0b1101, 2, HOST_ROOT.0));
    let actions = machine.fake.take_actions();
    // Every STE store is followed by CFGI_STE with Leaf = 0 and a CMD_SYNC before the next step.
    let commands: Vec<u64> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Command { smmu, command } => {
                assert_eq!(*smmu, 1);
                assert!(command[0] as u8 != CFGI_STE || *command == [0x800_0000_0003, 0]);
                Some(command[0] & 0xff)
            }
            _ => None,
        })
        .collect();
    // Two steps: S2VMID with the table that maps nothing, then S2TTB.
    assert_eq!(commands, [0x03, 0x46, 0x03, 0x46]);

    machine.detach(1, 0x800).unwrap();
    assert_eq!(machine.entry(1, 0x800), parked);
    let opcodes = machine.fake.take_opcodes(1);
    assert_eq!(opcodes, [CFGI_STE, SYNC, CFGI_STE, SYNC, TLBI_S12_VMALL, SYNC]);
    assert!(machine.is_idle(HOST_INDEX));
    assert_eq!(machine.vmids_in_use(1), 0);
    assert_eq!(machine.detach(1, 0x800), Err(Refused::WrongState));
}

#[test]
fn the_tag_is_in_the_array_and_in_the_ste_whenever_the_table_of_a_domain_is() {
    let Machine { fake, iommu, mut pages } = Machine::new();
    let (fake, iommu): (&'static Fake, &'static Iommu) = (Box::leak(Box::new(fake)), Box::leak(iommu));
    let mut round = || {
        iommu.attach(fake, 1, 8, HOST, How::default(), &mut pages).unwrap();
        iommu.detach(fake, 1, 8, &mut pages).unwrap();
    };
    round();
    // The STE's span has its own table now: of the stores below, those to it are the STE's.
    let table = level2_table(fake, 1, 8);
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let is_idle = || iommu.cell(HOST_INDEX).is_idle(fake);
    let word = move |index: u64| fake.read_u64(PhysAddr(table + 8 * 64 + index * 8));
    let parked_root = word(3);
    *fake.1.lock().unwrap() = Some(Box::new(move |at| {
        if (table..table + 4096).contains(&at) {
            assert!(!is_idle(), "an STE was stored while its tag was in no array");
            let is_parked = word(2) & 0xffff == PARKED_VMID.into();
            assert!(!is_parked || word(3) == parked_root, "the VMID of parked streams with a domain's table");
            count.fetch_add(1, Ordering::Relaxed);
        }
    }));
    round();
    assert_eq!(seen.load(Ordering::Relaxed), 4, "two words each way");
    assert!(is_idle());
}

#[test]
fn a_tag_is_shared_and_flushed_once_after_its_last_stream() {
    let mut machine = Machine::new();
    machine.attach(0, 8, HOST).unwrap();
    let left = machine.pages.left;
    machine.attach(0, 16, HOST).unwrap();
    assert_eq!(machine.pages.left, left, "the span has its table already, and the old array is back");
    machine.attach(2, 16, HOST).unwrap();
    machine.attach(0, 24, DomainHandle::Guest(guest(2))).unwrap();
    assert_eq!(machine.vmids_in_use(0), 2);
    assert_eq!(machine.query(0, 25), StreamState::Unattached);
    machine.fake.take_actions();
    machine.detach(0, 8).unwrap();
    assert!(!machine.fake.take_opcodes(0).contains(&TLBI_S12_VMALL));
    machine.detach(0, 16).unwrap();
    assert!(machine.fake.take_opcodes(0).contains(&TLBI_S12_VMALL));
    assert_eq!((machine.vmids_in_use(0), machine.vmids_in_use(2)), (1, 1));
    assert!(!machine.is_idle(HOST_INDEX));
    let domain = DomainHandle::Guest(guest(1));
    machine.attach(0, 8, domain).unwrap();
    assert_eq!(machine.query(0, 8), StreamState::Attached { domain, vmid: 2 }, "the tag is used again");
}

#[test]
fn a_refused_call_changes_nothing() {
    let mut machine = Machine::new();
    machine.attach(0, 8, HOST).unwrap();
    assert_eq!(machine.attach(0, 8, HOST), Err(Refused::Busy));
    assert_eq!(machine.attach(3, 8, HOST), Err(Refused::UnknownSmmu));
    assert_eq!(machine.attach(0, 0x1_0000, HOST), Err(Refused::UnknownStream));
    assert_eq!(machine.attach(0, 9, DomainHandle::Guest(guest(64))), Err(Refused::UnknownGuest));
    machine.pages.left = 0;
    machine.fake.take_actions();
    let memory = machine.fake.0.lock().unwrap().memory.clone();
    assert_eq!(machine.attach(0, 0x40, DomainHandle::Guest(guest(1))), Err(Refused::NoMemory { pages: 1 }));
    assert_eq!(machine.detach(0, 9), Err(Refused::WrongState));
    assert_eq!(machine.detach(0, 0x4_0000), Err(Refused::UnknownStream));
    assert_eq!(machine.fake.take_opcodes(0), []);
    assert!(machine.fake.0.lock().unwrap().memory == memory);
    assert_eq!(machine.vmids_in_use(0), 1);
    assert!(machine.is_idle(GUEST_INDEX));
    let failure = Failure::from(Refused::NoMemory { pages: 1 });
    assert_eq!((failure.status, failure.detail), (Status::NoMemory, 1));
}

#[test]
fn split_stage_ats_is_none_without_stage_1() {
    const ATS: u64 = 1 << 10;
    const BOTH_STAGES: u64 = 0b11;
    let mut machine = Machine::with(|fake| fake.with(0, |smmu| smmu.set(0, smmu.get(0) | ATS | BOTH_STAGES)));
    assert!(machine.iommu.set.get(0).unwrap().features.split_stage_ats);
    let with_ats = How { replace: false, ats: true };
    let Machine { fake, iommu, pages } = &mut machine;
    let refused = Err(Refused::Incompatible(Reason::Ats));
    assert_eq!(iommu.attach(fake, 0, 8, HOST, with_ats, pages), refused);
    assert_eq!(iommu.attach(fake, 1, 8, HOST, with_ats, pages), refused, "an SMMU without any ATS");
    assert_eq!(machine.query(0, 8), StreamState::Unattached);
    assert_eq!((machine.vmids_in_use(0), machine.is_idle(HOST_INDEX)), (0, true));
    machine.attach(0, 8, HOST).unwrap();
}

#[test]
fn a_domain_ends_only_without_streams() {
    let mut machine = Machine::new();
    let domain = DomainHandle::Guest(guest(1));
    machine.attach(0, 8, domain).unwrap();
    assert_eq!(machine.iommu.destroy_domain(DomainHandle::Guest(guest(1))), Err(Refused::Busy));
    assert_eq!(machine.iommu.create_domain(domain, table(0x1000)), Err(Refused::WrongState));
    machine.detach(0, 8).unwrap();
    machine.iommu.destroy_domain(DomainHandle::Guest(guest(1))).unwrap();
    assert_eq!(machine.iommu.destroy_domain(DomainHandle::Guest(guest(1))), Err(Refused::UnknownGuest));
    assert_eq!(machine.attach(0, 8, domain), Err(Refused::UnknownGuest));
}

#[test]
fn an_attach_whose_command_fails_is_undone_wherever_it_fails() {
    for failing in [1, 3] {
        let mut machine = Machine::new();
        let parked = machine.entry(0, 8);
        machine.fake.fail_commands(0, &[failing]);
        assert_eq!(machine.attach(0, 8, HOST), Err(Refused::Hardware));
        assert_eq!(machine.entry(0, 8), parked);
        assert_eq!((machine.vmids_in_use(0), machine.query(0, 8)), (0, StreamState::Unattached));
        assert!(machine.is_idle(HOST_INDEX));
        machine.attach(0, 8, HOST).unwrap();
    }
}

#[test]
fn an_attach_that_kills_the_smmu_is_undone_as_well() {
    // The second command that fails belongs to the undoing.
    for second in 2..=11 {
        let mut machine = Machine::new();
        machine.fake.fail_commands(0, &[1, second]);
        assert_eq!(machine.attach(0, 8, HOST), Err(Refused::Hardware));
        assert_eq!((machine.vmids_in_use(0), machine.query(0, 8)), (0, StreamState::Unattached));
        assert!(machine.is_idle(HOST_INDEX));
    }
    let mut machine = Machine::new();
    machine.fake.with(0, |smmu| {
        smmu.behaviour.hung = true;
        smmu.behaviour.deaf = true;
    });
    assert_eq!(machine.attach(0, 8, HOST), Err(Refused::Hardware));
    // A lost SMMU may translate by the new STE.
    assert_eq!(machine.query(0, 8), StreamState::Attached { domain: HOST, vmid: 2 });
    assert!(!machine.is_idle(HOST_INDEX), "the tag of a lost SMMU is never free again");
}

#[test]
fn a_detach_whose_command_fails_leaves_the_stream_attached() {
    // The two steps of the STE, then the flush.
    for failing in [1, 3, 5] {
        let mut machine = Machine::new();
        machine.attach(0, 8, HOST).unwrap();
        let attached = machine.entry(0, 8);
        machine.fake.fail_commands(0, &[failing]);
        assert_eq!(machine.detach(0, 8), Err(Refused::Hardware));
        assert_eq!(machine.entry(0, 8), attached);
        assert_eq!(machine.query(0, 8), StreamState::Attached { domain: HOST, vmid: 2 });
        assert!(!machine.is_idle(HOST_INDEX));
        machine.detach(0, 8).unwrap();
        assert!(machine.is_idle(HOST_INDEX));
    }
}

#[test]
fn a_dead_smmu_lets_go_of_its_streams_and_takes_no_new_ones() {
    let mut machine = Machine::new();
    machine.attach(0, 8, HOST).unwrap();
    machine.attach(1, 8, HOST).unwrap();
    machine.fake.with(0, |smmu| smmu.behaviour.hung = true);
    let mut gather = Gather::new();
    gather.add_leaf(0x4020_0000, 0x1000, 3);
    machine.fake.take_actions();
    assert_eq!(machine.iommu.invalidate(&machine.fake, HOST_INDEX, &gather), Err(Fault));
    assert_eq!(machine.fake.take_opcodes(1), [TLBI_S2_IPA, SYNC], "the others are invalidated all the same");
    assert_eq!(machine.iommu.describe(0).unwrap().0.condition, Condition::Dead);
    assert_eq!(machine.iommu.invalidate(&machine.fake, HOST_INDEX, &gather), Ok(()));
    assert_eq!(machine.attach(0, 9, HOST), Err(Refused::Hardware));
    machine.detach(0, 8).unwrap();
    assert_eq!(machine.query(0, 8), StreamState::Unattached);
}

#[test]
fn a_lost_smmu_keeps_its_tags() {
    let mut machine = Machine::new();
    let domain = DomainHandle::Guest(guest(1));
    machine.attach(0, 8, domain).unwrap();
    machine.fake.with(0, |smmu| {
        smmu.behaviour.hung = true;
        smmu.behaviour.deaf = true;
    });
    for _ in 0..2 {
        assert_eq!(machine.detach(0, 8), Err(Refused::Hardware));
        assert_eq!(machine.query(0, 8), StreamState::Attached { domain, vmid: 2 });
    }
    assert_eq!(machine.iommu.destroy_domain(DomainHandle::Guest(guest(1))), Err(Refused::Busy));
}

#[test]
fn a_guests_events_are_counted_and_not_shown() {
    let mut machine = Machine::new();
    let fault = |stream: u64| [stream << 32 | 0x10, 1 << 39, 0x4000 + stream, 0x4000];
    let shown = |machine: &Machine| -> Vec<u64> {
        core::iter::from_fn(|| machine.iommu.read_event(&machine.fake))
            .map(|(event, _)| event.source >> 8 & 0xffff_ffff)
            .collect()
    };
    machine.attach(0, 9, HOST).unwrap();
    machine.fake.raise_event(0, fault(8));
    machine.attach(0, 8, DomainHandle::Guest(guest(1))).unwrap();
    for stream in [8, 9, 10, 8] {
        machine.fake.raise_event(0, fault(stream));
    }
    assert_eq!(shown(&machine), [8, 9, 10], "the first is from before the stream was the guest's");
    machine.fake.raise_event(0, fault(8));
    machine.detach(0, 8).unwrap();
    assert_eq!(shown(&machine), []);
    machine.fake.raise_event(0, fault(8));
    assert_eq!(shown(&machine), [8]);
    assert_eq!(machine.iommu.counters().events, 7);
}

#[test]
fn a_linear_table_works_as_well() {
    let mut machine = Machine::with(|fake| fake.with(0, |smmu| smmu.set(0x04, 0x0273_0005)));
    let left = machine.pages.left;
    machine.attach(0, 31, HOST).unwrap();
    assert_eq!(machine.pages.left, left - 1, "the array");
    assert_eq!(machine.attach(0, 32, HOST), Err(Refused::UnknownStream));
    assert_eq!(machine.query(0, 30), StreamState::Unattached);
    machine.detach(0, 31).unwrap();
    assert_eq!(machine.pages.left, left);
}

#[test]
fn a_replace_that_loses_the_smmu_keeps_both_domains() {
    let mut machine = Machine::new();
    let from = DomainHandle::Guest(guest(1));
    let index = machine.iommu.reserve_domain().unwrap();
    let to = DomainHandle::Created(machine.iommu.create_stage2(index, guest(1), table(0x7000_0000)).unwrap());
    machine.attach(0, 8, from).unwrap();
    machine.fake.with(0, |smmu| {
        smmu.behaviour.hung = true;
        smmu.behaviour.deaf = true;
    });
    let how = How { replace: true, ats: false };
    let replaced = machine.iommu.attach(&machine.fake, 0, 8, to, how, &mut machine.pages);
    assert_eq!(replaced, Err(Refused::Hardware));
    assert_eq!(machine.iommu.describe(0).unwrap().0.condition, Condition::Lost);
    assert!(!machine.is_idle(GUEST_INDEX) && !machine.is_idle(index), "the SMMU may walk the tables of both");
    for domain in [from, to] {
        assert_eq!(machine.iommu.destroy_domain(domain), Err(Refused::Busy));
    }
}
