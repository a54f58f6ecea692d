//! A guest that is taken apart, while somebody else ends what it has.

use abi::{Function, Status};

use crate::bus::Actor;
use crate::explore::Model;
use crate::mistake::Mistake;
use crate::world::World;

/// How often a thread that could go on is stopped.
const PREEMPTIONS: usize = 2;

/// A stream of the guest's vSMMU, and its number there.
const GUESTS: (usize, u32) = (0, 1);
const VIRTUAL: u64 = 7;

/// The guest has a vSMMU with a stream.
fn owned(mistake: Mistake) -> World {
    let mut world = World::boot(1, mistake);
    let [vsmmu, ..] = world.call(Function::VsmmuCreate, [0, world.guest, 0, 0]).unwrap();
    world.call(Function::VsmmuAddStream, [vsmmu, VIRTUAL, GUESTS.1.into(), 0]).unwrap();
    world.vsmmu = vsmmu;
    world
}

/// A call that comes before a step of the other CPU's or after it.
fn is_fair(answer: Result<[u64; 4], Status>) {
    assert!(matches!(answer, Ok(_) | Err(Status::Busy | Status::UnknownVsmmu)), "{answer:?}");
}

const OBJECTS: Model = Model {
    prepare: owned,
    acts: &[
        |world| {
            is_fair(world.call(Function::VsmmuRemoveStream, [world.vsmmu, VIRTUAL, 0, 0]));
            is_fair(world.call(Function::VsmmuDestroy, [world.vsmmu, 0, 0, 0]));
        },
        World::take_apart,
    ],
    end: |world| {
        assert_eq!(world.dma(Actor::Host, GUESTS, crate::world::PAGES[0]), None);
        "gone"
    },
};

const ADDED: Model = Model {
    prepare: |mistake| {
        let world = owned(mistake);
        world.call(Function::VsmmuRemoveStream, [world.vsmmu, VIRTUAL, 0, 0]).unwrap();
        world
    },
    acts: &[
        |world| is_fair(world.call(Function::VsmmuAddStream, [world.vsmmu, VIRTUAL, GUESTS.1.into(), 0])),
        World::take_apart,
    ],
    end: |_| "gone",
};

#[test]
fn a_guest_is_taken_apart_while_its_vsmmu_ends() {
    OBJECTS.explore(PREEMPTIONS, &["gone"]);
}

#[test]
fn a_guest_is_taken_apart_while_its_vsmmu_gets_a_stream() {
    ADDED.explore(PREEMPTIONS, &["gone"]);
}
