//! The oracle against deliberate breaks: what calls leave is right, and each thing that is wrong is found.

extern crate std;

use std::boxed::Box;

use abi::oracle::{FUNCTION, Wrong, request};
use abi::{Function, GuestHandle, Status};
use smmuv3::address::PhysAddr;
use smmuv3::gather::Gather;
use smmuv3::memory::{Memory, TablePages};
use smmuv3::pgtable::{Attributes, NoBreak, PageTable};

use super::Finding;
use crate::hypervisor::{Boot, Hypervisor};
use crate::memory::pool::Direct;
use crate::memory::tests::platform::{
    POOL, POOL_BYTES, RAM, SMMU, TestPlatform, machine_with_functions, range,
};
use crate::platform::Platform;
use crate::smmu::VmidOwner;

/// The ownership unit.
const PAGE: u64 = 0x1000;
/// Pages that [`populated`] gives to its guest, shares with it, and leaves the host's.
const GIVEN: u64 = RAM + 0x10_0000;
const SHARED: u64 = RAM + 0x20_0000;
const HOSTS: u64 = RAM + 0x30_0000;
/// Where the guest's domain maps the first page that it has.
const IPA: u64 = 0x7000_0000;
/// Streams: of the host's domain, of a vSMMU on it, and of the guest.
const STREAM: u64 = 8;
const NESTED: u64 = 9;
const ABORTING: u64 = 10;
const GUESTS: u64 = 16;

type Hyp = Box<Hypervisor<TestPlatform>>;

fn call(hypervisor: &Hyp, function: Function, arguments: [u64; 4]) -> [u64; 4] {
    let [status, results @ ..] = hypervisor.hypercall(function.id(), arguments).x;
    assert_eq!(Status::from_register(status), Some(Status::Success), "{function:?} {arguments:#x?}");
    results
}

/// A machine with something of everything, and its guest.
pub(crate) fn populated() -> (Hyp, GuestHandle) {
    let mut hypervisor = Box::new(Hypervisor::new(TestPlatform::default()));
    let machine = machine_with_functions(hypervisor.platform());
    let pool = [range(POOL, POOL_BYTES)];
    hypervisor.start(Boot { machine: &machine, pa_bits: 48, image: &[], pool: &pool }).unwrap();
    assert_eq!(hypervisor.oracle().check_all(), Ok(()), "after boot");

    let call = |function, arguments| call(&hypervisor, function, arguments);
    let [guest, ..] = call(Function::GuestCreate, [0; 4]);
    call(Function::MemDonate, [GIVEN, 4 * PAGE, guest, 0]);
    call(Function::MemShare, [SHARED, 2 * PAGE, guest, 0]);
    call(Function::PoolTopUp, [RAM + 0x40_0000, 8 * PAGE, 0, 0]);
    let [domain, ..] = call(Function::DomainCreate, [guest, 0, 0, 0]);
    call(Function::DomainMap, [domain, IPA, GIVEN, 2 * PAGE]);
    call(Function::DomainMap, [domain, IPA + 16 * PAGE, GIVEN, PAGE]);
    call(Function::StreamAttach, [0, STREAM, 0, 0]);
    call(Function::StreamAttach, [0, GUESTS, guest, 0]);
    let [vsmmu, ..] = call(Function::VsmmuCreate, [0, 0, 0, 0]);
    for (stream, config) in [(NESTED, 0b1001), (ABORTING, 1)] {
        call(Function::VsmmuAddStream, [vsmmu, 0x777 + stream, stream, 0]);
        let [nested, ..] = call(Function::DomainCreateNested, [vsmmu, config, 0, 0]);
        call(Function::StreamAttach, [0, stream, nested, 0]);
    }
    assert_eq!(hypervisor.oracle().check_all(), Ok(()), "after calls");
    (hypervisor, GuestHandle::from_register(guest).unwrap())
}

/// What is found after a break.
pub(crate) fn finds(break_it: impl FnOnce(&Hyp, GuestHandle)) -> Wrong {
    let (hypervisor, guest) = populated();
    break_it(&hypervisor, guest);
    hypervisor.oracle().check_all().expect_err("nothing is found").wrong
}

/// Sets the state of a page in the frame table, which is the first thing in the pool.
fn set_state(hypervisor: &Hyp, page: u64, state: u64) {
    let unit = (page - RAM) / PAGE;
    let word = PhysAddr(POOL + unit / 4 * 8);
    let p = hypervisor.platform();
    let lane = 16 * (unit % 4);
    p.write_u64(word, p.read_u64(word) & !(0xffff << lane) | state << lane);
}

/// Pages of the pool for changes behind the hypervisor's back.
fn pages(hypervisor: &Hyp) -> Direct<'_, TestPlatform> {
    Direct::new(hypervisor.platform(), &hypervisor.pool, 0)
}

fn map(hypervisor: &Hyp, table: &PageTable, at: u64, output: u64, attributes: Attributes) {
    let (p, mut gather) = (hypervisor.platform(), Gather::new());
    let (at, output) = (range(at, PAGE), PhysAddr(output));
    table.map(p, &mut pages(hypervisor), &mut NoBreak, at, output, attributes, false, &mut gather).unwrap();
}

fn unmap(hypervisor: &Hyp, table: &PageTable, at: u64) {
    let mut gather = Gather::new();
    let p = hypervisor.platform();
    table.unmap(p, &mut pages(hypervisor), &mut NoBreak, range(at, PAGE), &mut gather).unwrap();
    while let Some(table) = gather.take_freed(p) {
        pages(hypervisor).give(table);
    }
}

/// The host's tables: stage 2 of the CPUs, and of its devices.
fn tables(hypervisor: &Hyp) -> [PageTable; 2] {
    let memory = hypervisor.memory.lock();
    [*memory.host_stage2(), *memory.host_io_table()]
}

/// Where the STE of a stream is: in the span's own table, of 64 entries, that the level-1 descriptor names.
fn entry(hypervisor: &Hyp, stream: u64) -> PhysAddr {
    let p = hypervisor.platform();
    let base = p.read_register_u64(PhysAddr(SMMU + 0x80)) & 0x000f_ffff_ffff_ffc0;
    let table = p.read_u64(PhysAddr(base + stream / 64 * 8)) & 0x000f_ffff_ffff_ffc0;
    PhysAddr(table + stream % 64 * 64)
}

/// Changes a word of an STE.
fn change_entry(hypervisor: &Hyp, stream: u64, word: u64, change: impl FnOnce(u64) -> u64) {
    let (p, at) = (hypervisor.platform(), entry(hypervisor, stream).offset(word * 8));
    p.write_u64(at, change(p.read_u64(at)));
}

fn copy_entry(hypervisor: &Hyp, from: u64, to: u64) {
    let (p, at) = (hypervisor.platform(), entry(hypervisor, from));
    for word in 0..8 {
        change_entry(hypervisor, to, word, |_| p.read_u64(at.offset(word * 8)));
    }
}

#[test]
fn a_wrong_state_of_a_page_is_found() {
    for state in [0x50, 0x4100, 0x0180, 0x0181, 0xff] {
        assert_eq!(finds(|h, _| set_state(h, HOSTS, state)), Wrong::PageState, "{state:#x}");
    }
    assert_eq!(finds(|h, _| set_state(h, HOSTS, 5)), Wrong::PageOwner);
    assert_eq!(finds(|h, _| set_state(h, HOSTS, 5 << 8)), Wrong::PageOwner);
    assert_eq!(finds(|h, _| set_state(h, GIVEN + 3 * PAGE, 0)), Wrong::GuestPages);
    assert_eq!(finds(|h, guest| set_state(h, HOSTS, guest.to_register())), Wrong::GuestPages);
    assert_eq!(finds(|h, _| set_state(h, POOL, 0)), Wrong::Kept);
    assert_eq!(finds(|h, _| set_state(h, HOSTS, 0x8100)), Wrong::Pins);
}

#[test]
fn tables_that_map_too_much_or_too_little_are_found() {
    let ram = [Attributes::stage2_normal(true), Attributes::io_stage2_normal()];
    for (index, attributes) in ram.into_iter().enumerate() {
        for page in [GIVEN, POOL, POOL + POOL_BYTES - PAGE] {
            let found = finds(|h, _| map(h, &tables(h)[index], page, page, attributes));
            assert_eq!(found, Wrong::Extra, "table {index}, {page:#x}");
        }
        assert_eq!(finds(|h, _| unmap(h, &tables(h)[index], HOSTS)), Wrong::Missing, "table {index}");
        let elsewhere = finds(|h, _| {
            unmap(h, &tables(h)[index], HOSTS);
            map(h, &tables(h)[index], HOSTS, GIVEN, attributes);
        });
        assert_eq!(elsewhere, Wrong::Leaf, "table {index}");
        let otherwise = finds(|h, _| {
            unmap(h, &tables(h)[index], HOSTS);
            map(h, &tables(h)[index], HOSTS, HOSTS, Attributes::stage2_device());
        });
        assert_eq!(otherwise, Wrong::Leaf, "table {index}");
    }
    let [device, hosts_device] = [Attributes::io_stage2_device(), Attributes::stage2_normal(false)];
    assert_eq!(
        finds(|h, _| map(h, &tables(h)[0], SMMU, SMMU, hosts_device)),
        Wrong::Extra,
        "an SMMU's registers"
    );
    assert_eq!(finds(|h, _| map(h, &tables(h)[1], SMMU, SMMU, device)), Wrong::Extra, "an SMMU's registers");
    let config_space = 0x1000_0000 + (GUESTS << 12);
    let found = finds(|h, _| map(h, &tables(h)[0], config_space, config_space, hosts_device));
    assert_eq!(found, Wrong::Extra, "what a guest's stream rests on");
    assert_eq!(finds(|h, _| unmap(h, &tables(h)[0], 0x0900_0000)), Wrong::Missing, "the UART");
}

#[test]
fn tables_of_guests_that_map_too_much_or_too_little_are_found() {
    let table = |h: &Hyp, guest| *h.memory.lock().guest_table(guest).unwrap();
    let normal = Attributes::io_stage2_normal();
    assert_eq!(finds(|h, guest| map(h, &table(h, guest), HOSTS, HOSTS, normal)), Wrong::Extra);
    assert_eq!(finds(|h, guest| unmap(h, &table(h, guest), GIVEN)), Wrong::Missing);
    assert_eq!(finds(|h, guest| unmap(h, &table(h, guest), SHARED)), Wrong::Missing);

    let domain = |h: &Hyp| h.memory.lock().created_table(abi::DomainHandle::FIRST_CREATED + 1);
    assert_eq!(finds(|h, _| map(h, &domain(h), IPA + 32 * PAGE, HOSTS, normal)), Wrong::Extra);
    assert_eq!(finds(|h, _| map(h, &domain(h), IPA + 32 * PAGE, GIVEN + 2 * PAGE, normal)), Wrong::Extra);
    assert_eq!(finds(|h, _| map(h, &domain(h), IPA + 32 * PAGE, GIVEN, normal)), Wrong::DomainPages);
    assert_eq!(finds(|h, _| unmap(h, &domain(h), IPA)), Wrong::DomainPages);
    let exchanged = finds(|h, _| {
        unmap(h, &domain(h), IPA);
        map(h, &domain(h), IPA, GIVEN + PAGE, normal);
    });
    assert_eq!(exchanged, Wrong::Mappings);
    assert_eq!(
        finds(|h, guest| set_state(h, GIVEN + 3 * PAGE, 1 << 8 | guest.to_register())),
        Wrong::Mappings
    );
}

#[test]
fn what_a_descriptor_says_wrongly_is_found() {
    // The level-2 table of the first GiB of RAM: its descriptor is in the root.
    let slot = |h: &Hyp| tables(h)[0].root().offset((RAM >> 30) * 8);
    let counts = finds(|h, _| {
        let p = h.platform();
        p.write_u64(slot(h), p.read_u64(slot(h)) - (1 << 2));
    });
    assert_eq!(counts, Wrong::Table);
    let uniform = finds(|h, _| {
        let p = h.platform();
        p.write_u64(slot(h), p.read_u64(slot(h)) & !(1 << 58));
    });
    assert_eq!(uniform, Wrong::Table);
    let table_more = finds(|h, _| {
        unmap(h, &tables(h)[1], RAM + (16 << 20));
        map(h, &tables(h)[1], RAM + (16 << 20), RAM + (16 << 20), Attributes::io_stage2_normal());
    });
    assert_eq!(table_more, Wrong::TablePages);
}

#[test]
fn pages_of_the_pool_that_are_lost_or_used_twice_are_found() {
    let lost = finds(|h, _| {
        h.pool.take(h.platform(), 0).unwrap();
    });
    assert_eq!(lost, Wrong::PoolCount);
    // The first word of this one, which now leads to the next free run, is nobody's.
    let vmids = |h: &Hyp| h.iommu.set().get(0).unwrap().vmids().words();
    assert_eq!(finds(|h, _| h.pool.give(h.platform(), vmids(h), 0)), Wrong::PoolTwice);
    let given_twice = finds(|h, _| {
        let run = h.pool.take(h.platform(), 0).unwrap();
        h.pool.give(h.platform(), run, 0);
        h.pool.give(h.platform(), run, 0);
    });
    assert_eq!(given_twice, Wrong::PoolTwice);
    let of_the_host = finds(|h, _| {
        let p = h.platform();
        let base = p.read_register_u64(PhysAddr(SMMU + 0x80)) & 0x000f_ffff_ffff_ffc0;
        p.write_u64(PhysAddr(base + 100 * 8), HOSTS | 7);
    });
    assert_eq!(of_the_host, Wrong::PoolForeign);
}

#[test]
fn wrong_entries_of_streams_are_found() {
    for stream in [STREAM, NESTED, ABORTING, GUESTS, 12] {
        for (word, bit) in [(0, 1 << 40), (1, 1 << 50), (2, 1 << 57), (3, 1 << 30), (5, 1)] {
            let found = finds(|h, _| change_entry(h, stream, word, |value| value ^ bit));
            assert_eq!(found, Wrong::Entry, "stream {stream}, word {word}");
        }
    }
    assert_eq!(finds(|h, _| change_entry(h, STREAM, 2, |value| value | 0x100)), Wrong::EntryTag);
    assert_eq!(finds(|h, _| copy_entry(h, NESTED, 12)), Wrong::EntryTag, "it is in no vSMMU");
    assert_eq!(finds(|h, _| copy_entry(h, STREAM, 12)), Wrong::ArrayUsers, "its VMID has a user more");
    assert_eq!(finds(|h, _| copy_entry(h, 12, ABORTING)), Wrong::DomainStreams);
    assert_eq!(finds(|h, _| copy_entry(h, GUESTS, 12)), Wrong::GuestStreams);
    assert_eq!(finds(|h, _| h.streams.lock().clear()), Wrong::GuestStreams);
    let not_there = finds(|h, _| {
        let known = *h.streams.lock().first().unwrap();
        h.streams.lock().push(known).unwrap();
    });
    assert_eq!(not_there, Wrong::GuestStreams);
}

#[test]
fn tags_that_are_lost_or_used_twice_are_found() {
    let set = |h: &Hyp, vmid, owner, is_guests| {
        h.iommu.set().get(0).unwrap().vmids().set(h.platform(), vmid, owner, is_guests);
    };
    let vmid = |h: &Hyp, stream| h.platform().read_u64(entry(h, stream).offset(16)) as u16;
    assert_eq!(finds(|h, _| set(h, 100, VmidOwner::Domain(0), false)), Wrong::TagOwner, "it is free");
    assert_eq!(finds(|h, guest| set(h, 100, VmidOwner::Vsmmu(guest.index() as u16), true)), Wrong::TagOwner);
    assert_eq!(
        finds(|h, _| set(h, vmid(h, STREAM), VmidOwner::Domain(0), true)),
        Wrong::TagOwner,
        "not a guest's"
    );
    assert_eq!(
        finds(|h, guest| set(h, vmid(h, GUESTS), VmidOwner::Domain(guest.to_register() as u16), false)),
        Wrong::TagOwner
    );
    // The bitmap of the first SMMU: bits for the parked, the driver's, the host's, the guest's and the vSMMU's.
    let bitmap =
        |h: &Hyp| PhysAddr(*h.platform().words().iter().find(|(_, word)| **word == 0b11_1111).unwrap().0);
    assert_eq!(finds(|h, _| h.platform().write_u64(bitmap(h), 0b111_1111)), Wrong::TagOwner, "nobody has it");
    assert_eq!(finds(|h, _| h.platform().write_u64(bitmap(h), 0b11_1101)), Wrong::TagCount);
}

#[test]
fn a_step_sees_its_page_and_its_stream() {
    let (hypervisor, _) = populated();
    let step = |page, stream| {
        hypervisor.oracle().check_step(Some(PhysAddr(page)), 0, stream as u32).map_err(|f| f.wrong)
    };
    for page in [GIVEN, GIVEN + 0x123, SHARED, HOSTS, POOL, SMMU, 0x0809_0000, 0x0900_0000, 1 << 40, u64::MAX]
    {
        for stream in [STREAM, NESTED, ABORTING, GUESTS, 12, 0x200, u64::MAX] {
            assert_eq!(step(page, stream), Ok(()), "{page:#x} {stream:#x}");
        }
    }
    let ram = Attributes::stage2_normal(true);
    map(&hypervisor, &tables(&hypervisor)[0], GIVEN, GIVEN, ram);
    assert_eq!(step(GIVEN, 12), Err(Wrong::Extra));
    unmap(&hypervisor, &tables(&hypervisor)[1], HOSTS);
    assert_eq!((step(HOSTS, 12), step(SHARED, 12)), (Err(Wrong::Missing), Ok(())));
    change_entry(&hypervisor, STREAM, 3, |value| value ^ 1 << 30);
    assert_eq!((step(SHARED, STREAM), step(SHARED, NESTED)), (Err(Wrong::Entry), Ok(())));
    set_state(&hypervisor, SHARED, 0x50);
    assert_eq!(step(SHARED, NESTED), Err(Wrong::PageState));
}

#[test]
fn a_digest_changes_with_what_calls_change_and_not_with_refusals() {
    let (hypervisor, guest) = populated();
    let guest = guest.to_register();
    let digest = || hypervisor.oracle().digest();
    let mut before = digest();
    let mut changes = |function, arguments| {
        let [status, ..] = hypervisor.hypercall(function, arguments).x;
        let after = digest();
        assert_eq!(after != before, status == 0, "{function:#x} {arguments:#x?} answers {status:#x}");
        before = after;
        status
    };
    for entry in abi::TABLE {
        let arguments = [u64::MAX - 0xfff; 4];
        if !entry.arguments.is_empty() {
            assert_ne!(changes(entry.function.id(), arguments), 0, "{}", entry.name);
        }
    }
    let done = [
        (Function::MemDonate, [HOSTS, PAGE, guest, 0]),
        (Function::MemReclaim, [HOSTS, PAGE, guest, 0]),
        (Function::MemShare, [HOSTS, PAGE, 0, 0]),
        (Function::StreamAttach, [0, 12, 0, 0]),
        (Function::StreamDetach, [0, 12, 0, 0]),
        (Function::VsmmuCreate, [0, guest, 0, 0]),
        (Function::PoolTopUp, [RAM + 0x50_0000, PAGE, 0, 0]),
        (Function::PoolGiveBack, [PAGE, 0, 0, 0]),
        (Function::StreamDetach, [0, GUESTS, 0, 0]),
    ];
    for (function, arguments) in done {
        assert_eq!(changes(function.id(), arguments), 0, "{function:?}");
        assert_eq!(hypervisor.oracle().check_all(), Ok(()), "{function:?}");
    }
}

#[test]
fn the_call_answers_what_is_found() {
    let (hypervisor, _) = populated();
    let call = |arguments| hypervisor.hypercall(FUNCTION, arguments).x;
    assert_eq!(call([request::ALL, 0, 0, 0]), [0; 5]);
    assert_eq!(call([request::STEP, HOSTS, STREAM, 0]), [0; 5]);
    assert_eq!(call([request::DIGEST, 0, 0, 0]), [0, hypervisor.oracle().digest(), 0, 0, 0]);
    assert_eq!(call([9, 0, 0, 0]), [Wrong::Request as u64, 9, 0, 0, 0]);
    set_state(&hypervisor, HOSTS, 0x50);
    assert_eq!(call([request::ALL, 0, 0, 0]), [Wrong::PageState as u64, HOSTS, 0x50, 0, 0]);
    let text = std::format!("{}", Finding::new(Wrong::PageState, [HOSTS, 0x50, 0]));
    assert!(text.contains("0x40300000") && text.contains("state"), "{text}");
}
