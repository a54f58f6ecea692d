//! Dispatch against a machine in memory.
//!
//! Invariants: whatever the registers hold, the answer is one that the interface documents, and an error changes no word
//! of memory.

extern crate std;

use abi::{Function, Statistic, Status, TABLE};

use super::Answer;
use crate::hypervisor::{Boot, BootError, Hypervisor};
use crate::memory::Progress;
use crate::memory::tests::platform::{
    ECAM, POOL, POOL_BYTES, RAM, RAM_BYTES, SMMU, TestPlatform, machine, machine_with_functions, range,
};
use crate::platform::Platform;
use smmuv3::address::PhysAddr;

fn start() -> std::boxed::Box<Hypervisor<TestPlatform>> {
    let mut hypervisor = std::boxed::Box::new(Hypervisor::new(TestPlatform::default()));
    let machine = machine(hypervisor.platform());
    let pool = [range(POOL, POOL_BYTES)];
    hypervisor.start(Boot { machine: &machine, pa_bits: 48, image: &[], pool: &pool }).unwrap();
    hypervisor
}

fn call(hypervisor: &Hypervisor<TestPlatform>, function: Function, arguments: &[u64]) -> Result<u64, Status> {
    let mut registers = [0; 4];
    for (register, argument) in registers.iter_mut().zip(arguments) {
        *register = *argument;
    }
    let Answer { x: [x0, x1, ..] } = hypervisor.hypercall(function.id(), registers);
    match Status::from_register(x0).unwrap() {
        Status::Success => Ok(x1),
        status => Err(status),
    }
}

#[test]
fn every_answer_is_a_documented_one_and_errors_change_nothing() {
    let hypervisor = start();
    let guest = call(&hypervisor, Function::GuestCreate, &[]).unwrap();
    call(&hypervisor, Function::MemDonate, &[RAM + 0x1000, 0x1000, guest]).unwrap();
    call(&hypervisor, Function::MemShare, &[RAM + 0x2000, 0x1000, 0]).unwrap();
    let firsts = [0, 1, RAM, RAM + 0x1000, RAM + 1, POOL, SMMU, RAM + RAM_BYTES - 0x1000, u64::MAX];
    let seconds = [0, 0x800, 0x2000, 1 << 40, u64::MAX - 0xfff];
    let thirds = [0, guest, 64, 1 << 32 | 1];
    let mut before = hypervisor.platform().words();
    let mut check = |entry: &abi::Call, arguments: [u64; 3]| {
        let result = call(&hypervisor, entry.function, &arguments);
        let after = hypervisor.platform().words();
        if let Err(status) = result {
            assert!(entry.errors.contains(&status), "{}: {status:?}", entry.name);
            assert!(after == before, "{} {arguments:#x?} {status:?}", entry.name);
        }
        before = after;
    };
    for entry in TABLE.iter().filter(|entry| entry.function != Function::CallUid) {
        let count = |values: &[u64], needed| if entry.arguments.len() < needed { 1 } else { values.len() };
        for first in &firsts[..count(&firsts, 1)] {
            for second in &seconds[..count(&seconds, 2)] {
                for third in &thirds[..count(&thirds, 3)] {
                    check(entry, [*first, *second, *third]);
                }
            }
        }
    }
}

#[test]
fn errors_are_told_apart() {
    let hypervisor = start();
    let guest = call(&hypervisor, Function::GuestCreate, &[]).unwrap();
    let donate = |start, size, to| call(&hypervisor, Function::MemDonate, &[start, size, to]);
    assert_eq!(donate(RAM + 1, 0x1000, guest), Err(Status::Unaligned));
    assert_eq!(donate(RAM, 0, guest), Err(Status::Unaligned));
    assert_eq!(donate(0u64.wrapping_sub(0x1000), 0x2000, guest), Err(Status::Unaligned));
    assert_eq!(donate(RAM + RAM_BYTES - 0x1000, 0x2000, guest), Err(Status::NotRam));
    assert_eq!(donate(RAM, 0x1000, 65), Err(Status::UnknownGuest));
    assert_eq!(donate(RAM, 0x1000, 64), Err(Status::UnknownGuest));
    assert_eq!(donate(POOL, 0x1000, guest), Err(Status::WrongState));
    assert_eq!(donate(RAM, 4 << 20, guest), Ok(2 << 20), "one step");
    assert_eq!(donate(RAM, 0x1000, guest), Err(Status::WrongState));
    assert_eq!(call(&hypervisor, Function::GuestDestroy, &[guest]), Err(Status::Busy));
    assert_eq!(call(&hypervisor, Function::MemReclaim, &[RAM, 2 << 20, guest]), Ok(2 << 20));
    assert_eq!(call(&hypervisor, Function::GuestDestroy, &[guest]), Ok(0));
    assert_eq!(call(&hypervisor, Function::GuestDestroy, &[guest]), Err(Status::UnknownGuest));
    for size in [0, 0x800, 0x1800, 4 << 20, u64::MAX] {
        assert_eq!(call(&hypervisor, Function::PoolGiveBack, &[size]), Err(Status::Unaligned));
    }
    assert_eq!(call(&hypervisor, Function::PoolGiveBack, &[0x1000]), Err(Status::Empty));
    let count = Statistic::ALL.len() as u64;
    assert_eq!(call(&hypervisor, Function::Statistics, &[count]), Err(Status::Invalid));
    let unknown = hypervisor.hypercall(0xc600_00ff, [0; 4]);
    assert_eq!(Status::from_register(unknown.x[0]), Some(Status::NotSupported));
    let uid = hypervisor.hypercall(Function::CallUid.id(), [0; 4]);
    assert_eq!(uid.x[..4], abi::UID.map(u64::from));
}

#[test]
fn streams_of_the_host_attach_and_detach() {
    let hypervisor = start();
    let attach = |stream, domain| call(&hypervisor, Function::StreamAttach, &[0, stream, domain]);
    assert_eq!(attach(8, 0), Ok(0));
    assert_eq!(attach(8, 0), Err(Status::Busy));
    assert_eq!(call(&hypervisor, Function::StreamQuery, &[0, 8]), Ok(1));
    assert_eq!(attach(9, 1), Err(Status::UnknownGuest));
    assert_eq!(attach(1 << 16, 0), Err(Status::UnknownStream));
    assert_eq!(attach(1 << 32 | 8, 0), Err(Status::UnknownStream));
    assert_eq!(call(&hypervisor, Function::StreamAttach, &[1, 9, 0]), Err(Status::UnknownSmmu));
    let guest = call(&hypervisor, Function::GuestCreate, &[]).unwrap();
    // The machine has no PCI function, so a guest can have no stream.
    assert_eq!(attach(9, guest), Err(Status::UnknownStream));
    assert_eq!(call(&hypervisor, Function::StreamDetach, &[0, 8]), Ok(0));
    assert_eq!(call(&hypervisor, Function::StreamDetach, &[0, 8]), Err(Status::WrongState));
}

#[test]
fn a_function_stays_held_when_its_smmu_is_lost_under_the_attach() {
    let mut hypervisor = std::boxed::Box::new(Hypervisor::new(TestPlatform::default()));
    let machine = machine_with_functions(hypervisor.platform());
    let pool = [range(POOL, POOL_BYTES)];
    hypervisor.start(Boot { machine: &machine, pa_bits: 48, image: &[], pool: &pool }).unwrap();
    let guest = call(&hypervisor, Function::GuestCreate, &[]).unwrap();
    let attach = |stream| call(&hypervisor, Function::StreamAttach, &[0, stream, guest]);
    let reaches = |stream: u64| hypervisor.host_reaches(PhysAddr(ECAM + (stream << 12)));
    attach(8).unwrap();
    assert!(!reaches(8) && reaches(16));
    hypervisor.platform().0.lock().unwrap().deaf = true;
    assert_eq!(attach(16), Err(Status::Hardware));
    assert_eq!(call(&hypervisor, Function::StreamQuery, &[0, 16]), Ok(1));
    assert!(!reaches(8) && !reaches(16), "the SMMU may translate by the guest's table");
    // Nothing was under way for the next: the SMMU is known to be lost.
    assert_eq!(attach(24), Err(Status::Hardware));
    assert_eq!(call(&hypervisor, Function::StreamQuery, &[0, 24]), Ok(0));
    assert!(reaches(24));
    assert_eq!(call(&hypervisor, Function::StreamDetach, &[0, 16]), Err(Status::Hardware));
    assert_eq!(call(&hypervisor, Function::GuestDestroy, &[guest]), Err(Status::Busy));
    assert!(!reaches(16));
}

#[test]
fn the_end_refuses_all_but_discovery() {
    let hypervisor = start();
    let guest = call(&hypervisor, Function::GuestCreate, &[]).unwrap();
    call(&hypervisor, Function::MemDonate, &[RAM, 0x1000, guest]).unwrap();
    while hypervisor.end_step() == Progress::Again {}
    assert_eq!(hypervisor.end_step(), Progress::Done);
    assert_eq!(call(&hypervisor, Function::MemReclaim, &[RAM, 0x1000, guest]), Err(Status::Busy));
    assert_eq!(call(&hypervisor, Function::StreamAttach, &[0, 8, 0]), Err(Status::Busy));
    assert_eq!(call(&hypervisor, Function::Version, &[]), Ok(abi::VERSION.into()));
}

#[test]
fn without_an_smmu_or_with_one_that_cannot_be_owned_there_is_no_start() {
    let platform = TestPlatform::default();
    let mut machine = machine(&platform);
    // IDR0 without S2P.
    platform.write_register_u32(PhysAddr(SMMU), 0x0d44_101a);
    let mut hypervisor = std::boxed::Box::new(Hypervisor::new(platform));
    let pool = [range(POOL, POOL_BYTES)];
    let error =
        hypervisor.start(Boot { machine: &machine, pa_bits: 48, image: &[], pool: &pool }).unwrap_err();
    assert!(std::format!("{error}").contains("0xc000000"), "{error}");
    machine.smmus.clear();
    let error = hypervisor.start(Boot { machine: &machine, pa_bits: 48, image: &[], pool: &pool });
    assert_eq!(error, Err(BootError::NoSmmu));
}
