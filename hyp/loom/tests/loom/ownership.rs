//! Changes of ownership against maps, unmaps and each other, while devices and a CPU reach for the page.

use abi::Status;

use crate::bus::Actor;
use crate::explore::Model;
use crate::mistake::Mistake;
use crate::world::{IPAS, PAGES, World};

/// How often a thread that could go on is stopped.
const PREEMPTIONS: usize = 2;

const PAGE: u64 = PAGES[0];
const IPA: u64 = IPAS[0];
/// The guest's device, and the host's.
const GUESTS: (usize, u32) = (0, 1);
const HOSTS: (usize, u32) = (0, 2);
const ELSEWHERE: (usize, u32) = (1, 1);

/// The page is the guest's, and is not mapped in the domain that its device is attached to.
fn given(mistake: Mistake) -> World {
    let mut world = World::boot(1, mistake);
    let domain = world.add_domain();
    world.attach(GUESTS, domain, 0).unwrap();
    world.attach(HOSTS, 0, 0).unwrap();
    world.donate(PAGE).unwrap();
    world
}

/// The page is the guest's, and is mapped.
fn mapped(mistake: Mistake) -> World {
    let world = given(mistake);
    world.map(world.domains[0], IPA, PAGE).unwrap();
    world
}

/// The page is the host's, which has a device behind another SMMU, too.
fn hosts(mistake: Mistake) -> World {
    let world = World::boot(2, mistake);
    world.attach(GUESTS, world.guest, 0).unwrap();
    world.attach(HOSTS, 0, 0).unwrap();
    world.attach(ELSEWHERE, 0, 0).unwrap();
    world
}

fn guest_device(world: &World) {
    world.dma(Actor::Guest, GUESTS, IPA);
    world.dma(Actor::Guest, GUESTS, IPA);
}

fn host_cpu(world: &World) {
    world.cpu_store(PAGE, 1);
}

/// Calls that another one may have come before.
fn is_fair(answer: Result<(), Status>) {
    assert!(matches!(answer, Ok(()) | Err(Status::WrongState)), "{answer:?}");
}

fn reclaim(world: &World) {
    is_fair(world.reclaim(PAGE));
}

fn donate(world: &World) {
    is_fair(world.donate(PAGE));
}

const MAP_AGAINST_RECLAIM: Model = Model {
    prepare: given,
    acts: &[reclaim, |world| is_fair(world.map(world.domains[0], IPA, PAGE)), guest_device, host_cpu],
    end: |world| match (world.dma(Actor::Guest, GUESTS, IPA), world.owner(PAGE)) {
        (Some(PAGE), Actor::Guest) => "mapped",
        (None, Actor::Host) => "reclaimed",
        other => panic!("{other:x?}"),
    },
};

const UNMAP_AGAINST_RECLAIM: Model = Model {
    prepare: mapped,
    acts: &[reclaim, |world| world.unmap(world.domains[0], IPA).unwrap(), guest_device, host_cpu],
    end: |world| {
        assert_eq!(world.dma(Actor::Guest, GUESTS, IPA), None);
        match world.owner(PAGE) {
            Actor::Guest => "unmapped",
            Actor::Host => "reclaimed",
        }
    },
};

const DONATE_TWICE: Model = Model {
    prepare: hosts,
    acts: &[
        donate,
        donate,
        |world| {
            world.dma(Actor::Host, ELSEWHERE, PAGE);
            world.dma(Actor::Guest, GUESTS, PAGE);
        },
        host_cpu,
    ],
    end: |world| {
        assert_eq!(world.owner(PAGE), Actor::Guest);
        "donated"
    },
};

#[test]
fn a_page_is_mapped_while_it_is_reclaimed() {
    MAP_AGAINST_RECLAIM.explore(PREEMPTIONS, &["mapped", "reclaimed"]);
}

#[test]
fn a_page_is_unmapped_while_it_is_reclaimed() {
    UNMAP_AGAINST_RECLAIM.explore(PREEMPTIONS, &["reclaimed", "unmapped"]);
}

#[test]
fn a_page_is_donated_twice_at_once() {
    DONATE_TWICE.explore(PREEMPTIONS, &["donated"]);
}

/// Loom need stop a thread but once to find these.
const ONCE: usize = 1;
const CACHED: &str = "is wiped while SMMU 1 caches";
const CACHED_BY_CPU: &str = "is wiped while a CPU TLB has";

#[test]
fn the_state_is_checked_under_the_lock() {
    MAP_AGAINST_RECLAIM.finds(
        Mistake::CheckedBefore,
        "Host reaches 0x40200000, which has contents of Guest",
        ONCE,
    );
    DONATE_TWICE.finds(Mistake::CheckedBefore, "Err(Hardware)", ONCE);
}

#[test]
fn iotlbs_forget_before_the_page_is_wiped() {
    DONATE_TWICE.finds(Mistake::TlbiLeftOut, CACHED, ONCE);
    DONATE_TWICE.finds(Mistake::SyncNotAwaited, CACHED, ONCE);
    UNMAP_AGAINST_RECLAIM.finds(Mistake::TlbiLeftOut, "SMMU 0 caches", ONCE);
}

#[test]
fn cpus_forget_before_the_page_is_wiped() {
    DONATE_TWICE.finds(Mistake::CpuTlbiLate, CACHED_BY_CPU, ONCE);
}

#[test]
fn a_page_is_wiped_before_somebody_else_has_it() {
    MAP_AGAINST_RECLAIM.finds(Mistake::WipedLate, CACHED_BY_CPU, ONCE);
    DONATE_TWICE.finds(Mistake::WipedLate, "Guest reaches 0x40200000, which has contents of Host", ONCE);
}
