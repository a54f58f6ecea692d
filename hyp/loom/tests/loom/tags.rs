//! Tags that are freed, while streams come and go, domains lose mappings and devices reach for them.

use abi::attach::REPLACE;

use crate::bus::Actor;
use crate::explore::Model;
use crate::mistake::Mistake;
use crate::world::{IPAS, PAGES, World};

/// How often a thread that could go on is stopped.
const PREEMPTIONS: usize = 2;

/// Pages of the guest's, the first mapped in its first domain, the second in its second, at one address.
const FIRST: u64 = PAGES[0];
const SECOND: u64 = PAGES[1];
const IPA: u64 = IPAS[0];
const GUESTS: (usize, u32) = (0, 1);
const HOSTS: (usize, u32) = (0, 2);

/// The guest's device is attached to its first domain, the host's to nothing.
fn attached(mistake: Mistake) -> World {
    let mut world = World::boot(1, mistake);
    for page in [FIRST, SECOND] {
        let domain = world.add_domain();
        world.donate(page).unwrap();
        world.map(domain, IPA, page).unwrap();
    }
    world.attach(GUESTS, world.domains[0], 0).unwrap();
    world
}

/// The guest's device changes over to the second domain: the tag of the first is freed.
fn change_over(world: &World) {
    world.attach(GUESTS, world.domains[1], REPLACE).unwrap();
}

fn guest_device(world: &World) {
    world.dma(Actor::Guest, GUESTS, IPA);
}

/// A stream of the host's is attached meanwhile, and may get the tag.
const REUSED: Model = Model {
    prepare: attached,
    acts: &[
        change_over,
        |world| {
            world.attach(HOSTS, 0, 0).unwrap();
            assert_eq!(world.dma(Actor::Host, HOSTS, IPA), None);
            assert_eq!(world.dma(Actor::Host, HOSTS, PAGES[2]), Some(PAGES[2]));
        },
        guest_device,
    ],
    end: |world| {
        assert_eq!(world.dma(Actor::Guest, GUESTS, IPA), Some(SECOND));
        "second"
    },
};

/// The domain loses its page meanwhile.
const UNMAPPED: Model = Model {
    prepare: attached,
    acts: &[
        change_over,
        |world| {
            world.unmap(world.domains[0], IPA).unwrap();
            assert_ne!(world.dma(Actor::Guest, GUESTS, IPA), Some(FIRST));
        },
        guest_device,
    ],
    end: |world| {
        world.reclaim(FIRST).unwrap();
        assert_eq!(world.dma(Actor::Guest, GUESTS, IPA), Some(SECOND));
        "second"
    },
};

fn host_device(world: &World) {
    world.dma(Actor::Host, HOSTS, FIRST);
}

/// The stream of the host leaves its domain, and was the last, while a page is donated.
const DETACHED: Model = Model {
    prepare: |mistake| {
        let world = World::boot(1, mistake);
        world.attach(HOSTS, 0, 0).unwrap();
        world
    },
    acts: &[|world| world.detach(HOSTS).unwrap(), |world| world.donate(FIRST).unwrap(), host_device],
    end: |world| {
        assert_eq!(world.dma(Actor::Host, HOSTS, FIRST), None);
        "donated"
    },
};

/// The first stream of the host comes while a page is donated.
const ATTACHED: Model = Model {
    prepare: |mistake| World::boot(1, mistake),
    acts: &[|world| world.attach(HOSTS, 0, 0).unwrap(), |world| world.donate(FIRST).unwrap(), host_device],
    end: |world| {
        assert_eq!(world.dma(Actor::Host, HOSTS, FIRST), None);
        "donated"
    },
};

#[test]
fn a_tag_is_freed_and_used_again() {
    REUSED.explore(PREEMPTIONS, &["second"]);
}

#[test]
fn a_tag_is_freed_while_its_domain_loses_a_page() {
    UNMAPPED.explore(PREEMPTIONS, &["second"]);
}

#[test]
fn the_last_stream_of_a_domain_leaves_or_the_first_comes_while_the_domain_loses_a_page() {
    DETACHED.explore(PREEMPTIONS, &["donated"]);
    ATTACHED.explore(PREEMPTIONS, &["donated"]);
}

/// Loom need stop a thread but once to find these.
const ONCE: usize = 1;
const CACHED: &str = "VMID 3 is free, and SMMU 0 has";

#[test]
fn a_tag_is_flushed_before_it_is_free() {
    REUSED.finds(Mistake::FlushedAfterFree, CACHED, ONCE);
    DETACHED.finds(Mistake::FlushedAfterFree, CACHED, ONCE);
}

#[test]
fn a_tag_is_flushed_when_no_ste_has_it() {
    REUSED.finds(Mistake::FlushedBeforeSte, CACHED, ONCE);
    DETACHED.finds(Mistake::FlushedBeforeSte, CACHED, ONCE);
}

#[test]
fn the_smmu_forgets_the_ste_before_the_flush() {
    DETACHED.finds(Mistake::CfgiLeftOut, "SMMU 0 caches", ONCE);
    DETACHED.finds(Mistake::SyncNotAwaited, "is wiped while SMMU 0 caches", ONCE);
}
