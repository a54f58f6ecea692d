//! The end of the machine, beside a call that is under way on another CPU and a guest's device: nothing of the guest's is left.

use std::sync::Arc;

use abi::Function::{DomainMap, GuestTeardown, MemDonate, MemReclaim, StreamAttach, StreamDetach};
use abi::Status;
use abi::attach::REPLACE;
use hyp_loom::memory::Progress;

use crate::bus::Actor;
use crate::explore::{in_every_order, spawn_other};
use crate::look;
use crate::world::{Device, GIVEN, HOSTS, IPAS, MAPPED, PAGE, PAGES, World};

/// How often a thread that could go on is stopped.
const PREEMPTIONS: usize = 2;

/// The guest's stream, which is in its first domain, and one that is nobody's.
const GUESTS: Device = (0, 1);
const OTHER: Device = (0, 2);

/// A guest whose device has written what nobody else may see.
fn with_a_secret() -> World {
    let world = World::with_domains(GUESTS);
    assert_eq!(world.dma(Actor::Guest, GUESTS, IPAS[0]), Some(MAPPED));
    assert_ne!(world.load(MAPPED), 0);
    world
}

/// Every step of the end, as the CPU that asked for a reset takes them.
fn end(world: &World) {
    let mut steps = 0;
    loop {
        world.bus().enter();
        let progress = world.hypervisor.end_step();
        world.bus().leave();
        if matches!(progress, Progress::Done) {
            return;
        }
        steps += 1;
        assert!(steps < 100, "the end does not come");
    }
}

/// Nobody reaches what was a guest's, and it is wiped.
fn check(world: &World) {
    assert_eq!(world.call(GuestTeardown, [world.guest, 0, 0, 0]), Err(Status::Busy));
    let machine = &mut *world.bus().machine();
    for page in PAGES {
        if look::is_hosts(machine, page) {
            continue;
        }
        for (smmu, stream) in [GUESTS, OTHER] {
            for address in PAGES.into_iter().chain(IPAS) {
                let reached = machine.evaluate(smmu, stream, address, true);
                assert_ne!(reached.ok(), Some(page), "stream {stream} at {address:#x}");
            }
        }
        let left =
            (page..page + PAGE).step_by(8).filter_map(|at| machine.memory.read(at)).find(|word| *word != 0);
        assert_eq!(left, None, "in {page:#x}");
    }
    assert_eq!(machine.violations.all(), [""; 0]);
}

/// What a deed answers that is done before the end does its part, or not at all.
const DONE_OR_BUSY: [&str; 2] = ["Err(Busy)", "Ok(())"];

/// The end beside a deed, which gives all of these answers, and no others.
fn explore(deed: fn(&World) -> Result<[u64; 4], Status>, answers: &[&str]) {
    let (orders, came) = in_every_order(PREEMPTIONS, move || {
        let world = Arc::new(with_a_secret());
        world.explore();
        // All on threads of their own: whoever begins, nobody was stopped for it.
        let [one, two, three] = [(); 3].map(|()| world.clone());
        let call = spawn_other(1, move || deed(&one).map(drop));
        let ending = spawn_other(2, move || end(&two));
        let device = spawn_other(3, move || three.dma(Actor::Guest, GUESTS, IPAS[0]));
        let answer = call.join().unwrap();
        ending.join().unwrap();
        device.join().unwrap();
        check(&world);
        format!("{answer:?}")
    });
    println!("{orders} orders");
    assert_eq!(came.into_iter().collect::<Vec<_>>(), answers);
}

#[test]
fn the_end_and_an_attach_leave_nothing() {
    explore(|world| world.call(StreamAttach, [0, OTHER.1.into(), world.domains[1], 0]), &DONE_OR_BUSY);
}

#[test]
fn the_end_and_an_attach_elsewhere_leave_nothing() {
    explore(|world| world.call(StreamAttach, [0, GUESTS.1.into(), world.domains[1], REPLACE]), &DONE_OR_BUSY);
}

/// The end may have taken the stream away when the call gets to it.
#[test]
fn the_end_and_a_detach_leave_nothing() {
    explore(
        |world| world.call(StreamDetach, [0, GUESTS.1.into(), 0, 0]),
        &["Err(Busy)", "Err(WrongState)", "Ok(())"],
    );
}

#[test]
fn the_end_and_a_donation_leave_nothing() {
    explore(|world| world.call(MemDonate, [HOSTS, PAGE, world.guest, 0]), &DONE_OR_BUSY);
}

#[test]
fn the_end_and_a_reclaim_leave_nothing() {
    explore(|world| world.call(MemReclaim, [GIVEN, PAGE, world.guest, 0]), &DONE_OR_BUSY);
}

#[test]
fn the_end_and_a_mapping_leave_nothing() {
    explore(|world| world.call(DomainMap, [world.domains[0], IPAS[1], GIVEN, PAGE]), &DONE_OR_BUSY);
}

#[test]
fn the_end_and_a_step_of_a_teardown_leave_nothing() {
    explore(|world| world.call(GuestTeardown, [world.guest, 0, 0, 0]), &DONE_OR_BUSY);
}
