//! Emulated SMMUs that work with memory and streams of the host's, while another CPU gives them away.

use abi::Status;
use smmuv3::registers::GERROR;
use tests::driver::{BYPASS, CMDQEN, EVENTQEN, SMMUEN, cfgi_ste, reg, sync_to};

use crate::bus::Actor;
use crate::explore::Model;
use crate::mistake::Mistake;
use crate::world::{PAGES, World};

/// How often a thread that could go on is stopped.
const PREEMPTIONS: usize = 2;

/// Where the completion of a CMD_SYNC goes, and what the driver keeps in pages of their own.
const MESSAGE: u64 = PAGES[0];
pub const TABLE: u64 = PAGES[1];
pub const COMMANDS: u64 = PAGES[2];
const EVENTS: u64 = PAGES[3];
/// log2 of the entries of both queues, and of the STEs.
const LOG2: u64 = 2;
/// A stream of the host's driver.
const DRIVERS: (usize, u32) = (0, 1);
/// What the completion is.
const DONE: u32 = 0x600d_600d;

/// A driver has turned the SMMU on, no stream has an STE, and these commands are in the queue.
pub fn driven(mistake: Mistake, commands: &[[u64; 2]]) -> World {
    let world = World::boot(1, mistake);
    for words in (0..8 << LOG2).step_by(8) {
        (0..8).for_each(|word| world.fill(TABLE + (words + word) * 8, 0));
    }
    for (at, word) in (COMMANDS..).step_by(8).zip(commands.iter().flatten()) {
        world.fill(at, *word);
    }
    world.store_register(0, reg::STRTAB_BASE, 8, TABLE);
    world.store_register(0, reg::STRTAB_BASE_CFG, 4, LOG2);
    world.store_register(0, reg::CMDQ_BASE, 8, COMMANDS | LOG2);
    world.store_register(0, reg::EVENTQ_BASE, 8, EVENTS | LOG2);
    world.store_register(0, reg::CR0, 4, (CMDQEN | EVENTQEN).into());
    world.store_register(0, reg::CR0, 4, (CMDQEN | EVENTQEN | SMMUEN).into());
    world
}

/// The SMMU may take the first command.
pub fn produce(world: &World) {
    world.store_register(0, reg::CMDQ_PROD, 4, 1);
}

/// Writes words 0 and 1 of the STE of a stream, before anything goes on.
pub fn fill_ste(world: &World, stream: u32, words: [u64; 2]) {
    for (at, word) in (TABLE + 64 * u64::from(stream)..).step_by(8).zip(words) {
        world.fill(at, word);
    }
}

/// Whether the error is active; no other is.
fn has_error(world: &World, error: u32) -> bool {
    let active = world.load_register(0, reg::GERROR) ^ world.load_register(0, reg::GERRORN);
    assert_eq!(active & !error, 0, "GERROR");
    active != 0
}

const COMPLETION: Model = Model {
    prepare: |mistake| driven(mistake, &[sync_to(MESSAGE, DONE)]),
    acts: &[
        produce,
        |world| world.donate(MESSAGE).unwrap(),
        |world| {
            world.cpu_store(MESSAGE, 0);
        },
    ],
    end: |world| {
        assert_eq!(world.load(MESSAGE), 0, "the page was wiped for the guest");
        assert_eq!(world.load_register(0, reg::CMDQ_CONS), 1, "CMD_SYNC is consumed in any case");
        if has_error(world, GERROR::MSI_CMDQ_ABT_ERR::SET.value) { "refused" } else { "written" }
    },
};

const STREAM_TABLE: Model = Model {
    prepare: |mistake| {
        let world = driven(mistake, &[cfgi_ste(DRIVERS.1)]);
        fill_ste(&world, DRIVERS.1, BYPASS);
        world
    },
    acts: &[
        produce,
        |world| world.donate(TABLE).unwrap(),
        |world| {
            world.dma(Actor::Host, DRIVERS, TABLE);
        },
    ],
    end: |world| {
        assert!(!has_error(world, 0));
        assert_eq!(world.dma(Actor::Host, DRIVERS, TABLE), None);
        if world.dma(Actor::Host, DRIVERS, EVENTS).is_some() { "set" } else { "aborts" }
    },
};

const QUEUE: Model = Model {
    prepare: |mistake| driven(mistake, &[cfgi_ste(DRIVERS.1)]),
    acts: &[produce, |world| world.donate(COMMANDS).unwrap()],
    end: |world| match (world.load_register(0, reg::CMDQ_CONS), has_error(world, GERROR::CMDQ_ERR::SET.value))
    {
        (1, false) => "consumed",
        // CERROR_ABT.
        (0x0200_0000, true) => "aborted",
        other => panic!("{other:x?}"),
    },
};

const EVENT: Model = Model {
    prepare: |mistake| {
        let world = driven(mistake, &[]);
        assert_eq!(world.dma(Actor::Host, DRIVERS, PAGES[5]), None, "an event");
        world
    },
    acts: &[
        |world| {
            world.load_register(0, reg::EVENTQ_PROD);
        },
        |world| world.donate(EVENTS).unwrap(),
    ],
    end: |world| {
        assert_eq!(world.load(EVENTS), 0, "the page was wiped for the guest");
        match (world.load_register(0, reg::EVENTQ_PROD), has_error(world, GERROR::EVENTQ_ABT_ERR::SET.value))
        {
            (1, false) => "written",
            (0, true) => "refused",
            other => panic!("{other:x?}"),
        }
    },
};

/// An STE that aborts.
const ABORT: [u64; 2] = [1, 0];

/// The stream itself: whoever comes second does not get it. What only looks as if the guest had it would be in the way of the guest's end.
const STREAM: Model = Model {
    prepare: |mistake| {
        let world = driven(mistake, &[cfgi_ste(DRIVERS.1); 2]);
        fill_ste(&world, DRIVERS.1, BYPASS);
        world
    },
    acts: &[produce, |world| {
        let answer = world.attach(DRIVERS, world.guest, 0);
        assert!(matches!(answer, Ok(()) | Err(Status::Busy)), "{answer:?}");
    }],
    end: |world| {
        assert!(!has_error(world, 0));
        let came =
            if world.dma(Actor::Host, DRIVERS, EVENTS).is_some() { "the driver's" } else { "the guest's" };
        fill_ste(world, DRIVERS.1, ABORT);
        world.store_register(0, reg::CMDQ_PROD, 4, 2);
        world.take_apart();
        came
    },
};

#[test]
fn a_stream_is_attached_to_a_guest_while_the_driver_sets_its_ste() {
    STREAM.explore(PREEMPTIONS, &["the driver's", "the guest's"]);
}

#[test]
fn the_page_of_a_completion_is_given_away() {
    COMPLETION.explore(PREEMPTIONS, &["refused", "written"]);
}

#[test]
fn the_page_of_the_stream_table_is_given_away() {
    STREAM_TABLE.explore(PREEMPTIONS, &["aborts", "set"]);
}

#[test]
fn the_page_of_a_queue_is_given_away() {
    QUEUE.explore(PREEMPTIONS, &["aborted", "consumed"]);
    EVENT.explore(PREEMPTIONS, &["refused", "written"]);
}

/// Loom need stop a thread but once to find these.
const ONCE: usize = 1;
const NOT_HOSTS: &str = "for the host, which has it not";

#[test]
fn a_page_is_checked_under_the_lock() {
    for model in [COMPLETION, STREAM_TABLE, QUEUE, EVENT] {
        model.finds(Mistake::CheckedBefore, NOT_HOSTS, ONCE);
    }
}

#[test]
fn a_completion_is_written_under_the_lock() {
    COMPLETION.finds(Mistake::WrittenAfter, NOT_HOSTS, ONCE);
}
