//! Every two of what the host can do, at once: in whatever order, both answer and leave what they do one after the other.

use std::collections::BTreeSet;
use std::sync::Arc;

use abi::Function::{
    DomainCreate, DomainCreateNested, DomainDescribe, DomainDestroy, DomainMap, DomainQuery, DomainTag,
    DomainUnmap, GuestCreate, GuestDestroy, GuestTeardown, MemDonate, MemQuery, MemReclaim, MemShare,
    MemUnshare, PoolGiveBack, PoolTopUp, SmmuTags, StreamAttach, StreamDetach, StreamQuery, VsmmuAddStream,
    VsmmuCreate, VsmmuDestroy, VsmmuInvalidate, VsmmuQueryStream, VsmmuRemoveStream,
};
use abi::Status;
use abi::attach::REPLACE;
use tests::driver::{BYPASS, cfgi_ste, reg};

use crate::emulation;
use crate::explore::{in_every_order, spawn_other};
use crate::mistake::Mistake;
use crate::world::{GIVEN, HOSTS, IPAS, MAPPED, PAGE, PAGES, World};

/// How often a thread that could go on is stopped, beside one call and beside several, unless the environment's `PREEMPTIONS` says otherwise.
const PREEMPTIONS: usize = 1;
const PREEMPTIONS_OF_STEPS: usize = 2;

/// The guest's stream, and one that is nobody's or the driver's.
const GUESTS: u64 = 1;
const OTHER: u64 = 2;
/// The number of a stream on a vSMMU.
const VIRTUAL: u64 = 7;
/// A page that is shared with the guest, and one of the host's that may be. [`World::check`] knows of one owner for each of its pages.
const SHARED: u64 = PAGES[0] + 0x2_0000;
const SHAREABLE: u64 = SHARED + PAGE;

/// Something that the host does: a hypercall, or what it does with several.
struct Deed {
    name: &'static str,
    /// What is answered, in words that can be compared.
    run: fn(&World) -> String,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    One,
    /// Nothing is changed.
    Question,
    /// Several calls, and what comes between them is refused.
    Steps,
}

/// A hypercall, whose arguments may be handles of the world.
macro_rules! call {
    ($name:literal, $function:ident, |$world:ident| $arguments:expr) => {
        Deed {
            name: $name,
            run: |$world| format!("{:x?}", $world.call($function, $arguments)),
            kind: Kind::One,
        }
    };
}

/// A hypercall that changes nothing. `POOL_STATE` is not among them: it shows how far another call is.
macro_rules! question {
    ($name:literal, $function:ident, |$world:ident| $arguments:expr) => {
        Deed { kind: Kind::Question, ..call!($name, $function, |$world| $arguments) }
    };
}

const TAKE_APART: Deed = Deed {
    name: "take the guest apart until it is gone",
    run: |world| {
        loop {
            match world.call(GuestTeardown, [world.guest, 0, 0, 0]) {
                Ok([0, ..]) => return "gone".to_owned(),
                Ok(_) => {}
                Err(status) => return format!("{status:?}"),
            }
        }
    },
    kind: Kind::Steps,
};

/// What two deeds answered, and what they left.
type Outcome = ([String; 2], u64);

/// A state, and what may be done in it.
struct Pairs {
    prepare: fn() -> World,
    deeds: &'static [Deed],
}

impl Pairs {
    fn outcome(world: &World, answers: [String; 2]) -> Outcome {
        world.check();
        (answers, world.digest())
    }

    /// What comes of these, one after the other.
    fn in_turn(&self, deeds: [&'static Deed; 2]) -> Outcome {
        let prepare = self.prepare;
        let (_, came) = in_every_order(0, move || {
            let world = prepare();
            let answers = deeds.map(|deed| (deed.run)(&world));
            Self::outcome(&world, answers)
        });
        came.first().cloned().unwrap()
    }

    /// What comes of these at once, and in how many orders.
    fn at_once(&self, deeds: [&'static Deed; 2]) -> (u64, BTreeSet<Outcome>) {
        let prepare = self.prepare;
        let has_steps = deeds.iter().any(|deed| deed.kind == Kind::Steps);
        let asked = std::env::var("PREEMPTIONS").ok().and_then(|asked| asked.parse().ok());
        let preemptions = asked.unwrap_or(if has_steps { PREEMPTIONS_OF_STEPS } else { PREEMPTIONS });
        in_every_order(preemptions, move || {
            let world = Arc::new(prepare());
            world.explore();
            // Both on threads of their own: whoever begins, nobody was stopped for it.
            let [first, second] = [(0, deeds[0]), (1, deeds[1])].map(|(number, deed)| {
                let world = world.clone();
                spawn_other(number, move || (deed.run)(&world))
            });
            let answers = [first, second].map(|thread| thread.join().unwrap());
            Self::outcome(&world, answers)
        })
    }

    /// Tries every two.
    fn explore(&self) {
        let busy = format!("{:?}", Err::<[u64; 4], _>(Status::Busy));
        let (mut pairs, mut all, mut wrong) = (0, 0, Vec::new());
        for (place, first) in self.deeds.iter().enumerate() {
            for second in &self.deeds[place..] {
                // A question shows what is between two steps.
                if matches!(
                    [first.kind, second.kind],
                    [Kind::Question, Kind::Question | Kind::Steps] | [Kind::Steps, Kind::Question]
                ) {
                    continue;
                }
                let there = self.in_turn([first, second]);
                let ([of_second, of_first], left) = self.in_turn([second, first]);
                let back = ([of_first, of_second], left);
                let is_fair = |outcome: &Outcome| {
                    let (answers, left) = outcome;
                    // As if the one with steps had come first, but for the answer.
                    let between = (first.kind == Kind::Steps && answers[1] == busy && *left == there.1)
                        || (second.kind == Kind::Steps && answers[0] == busy && *left == back.1);
                    *outcome == there || *outcome == back || between
                };
                let (orders, came) = self.at_once([first, second]);
                (pairs, all) = (pairs + 1, all + orders);
                for unfair in came.iter().filter(|outcome| !is_fair(outcome)) {
                    let names = [first.name, second.name];
                    wrong.push(format!("{names:?} at once: {unfair:x?}; in turn: {there:x?}, {back:x?}"));
                }
            }
        }
        println!("{pairs} pairs, {all} orders");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// A guest with pages, two domains, a stream, and a vSMMU.
fn with_domains() -> World {
    let mut world = World::with_domains((0, GUESTS as u32));
    world.call(MemShare, [SHARED, PAGE, world.guest, 0]).unwrap();
    [world.vsmmu, ..] = world.call(VsmmuCreate, [0, world.guest, 0, 0]).unwrap();
    world
}

const DOMAINS: Pairs = Pairs {
    prepare: with_domains,
    deeds: &[
        call!("share", MemShare, |w| [SHAREABLE, PAGE, w.guest, 0]),
        call!("unshare", MemUnshare, |w| [SHARED, PAGE, w.guest, 0]),
        call!("donate", MemDonate, |w| [HOSTS, PAGE, w.guest, 0]),
        call!("donate what may be shared", MemDonate, |w| [SHAREABLE, PAGE, w.guest, 0]),
        call!("reclaim", MemReclaim, |w| [GIVEN, PAGE, w.guest, 0]),
        call!("reclaim what is mapped", MemReclaim, |w| [MAPPED, PAGE, w.guest, 0]),
        call!("top up", PoolTopUp, |_w| [SHAREABLE, PAGE, 0, 0]),
        call!("give back", PoolGiveBack, |_w| [PAGE, 0, 0, 0]),
        call!("create a guest", GuestCreate, |_w| [0; 4]),
        call!("destroy the guest", GuestDestroy, |w| [w.guest, 0, 0, 0]),
        TAKE_APART,
        call!("create a domain", DomainCreate, |w| [w.guest, 0, 0, 0]),
        call!("destroy a domain", DomainDestroy, |w| [w.domains[1], 0, 0, 0]),
        call!("map", DomainMap, |w| [w.domains[0], IPAS[1], GIVEN, PAGE]),
        call!("map elsewhere", DomainMap, |w| [w.domains[1], IPAS[0], GIVEN, PAGE]),
        call!("unmap", DomainUnmap, |w| [w.domains[0], IPAS[0], PAGE, 0]),
        call!("attach", StreamAttach, |w| [0, OTHER, w.domains[1], 0]),
        call!("attach to the host", StreamAttach, |_w| [0, OTHER, 0, 0]),
        call!("attach elsewhere", StreamAttach, |w| [0, GUESTS, w.domains[1], REPLACE]),
        call!("detach", StreamDetach, |_w| [0, GUESTS, 0, 0]),
        call!("create a vSMMU", VsmmuCreate, |w| [0, w.guest, 0, 0]),
        call!("destroy the vSMMU", VsmmuDestroy, |w| [w.vsmmu, 0, 0, 0]),
        call!("add a stream", VsmmuAddStream, |w| [w.vsmmu, VIRTUAL, OTHER, 0]),
        question!("ask for a page", MemQuery, |_w| [GIVEN, 0, 0, 0]),
        question!("ask for a stream", StreamQuery, |_w| [0, GUESTS, 0, 0]),
        question!("ask for an address", DomainQuery, |w| [w.domains[0], IPAS[0], 0, 0]),
        question!("ask for a domain", DomainDescribe, |w| [w.domains[1], 0, 0, 0]),
        question!("ask for a tag", DomainTag, |w| [w.domains[1], 0, 0, 0]),
        question!("ask for tags", SmmuTags, |_w| [0; 4]),
    ],
};

#[test]
fn calls_about_domains_do_not_notice_each_other() {
    DOMAINS.explore();
}

/// Words 0 and 1 of an STE without stage 1, for a nested domain (IHI 0070, 5.2).
const NESTED: [u64; 2] = [1 | 0b100 << 1, 1 << 44];

const TLBI_NH_ALL: [u64; 2] = [smmuv3::command::opcode::TLBI_NH_ALL as u64, 0];

/// A guest with a vSMMU that has one of two streams, and nested domains, of which the stream is attached to one.
fn with_vsmmu() -> World {
    let mut world = World::boot(1, Mistake::None);
    world.donate(GIVEN).unwrap();
    [world.vsmmu, ..] = world.call(VsmmuCreate, [0, world.guest, 0, 0]).unwrap();
    world.call(VsmmuAddStream, [world.vsmmu, VIRTUAL, GUESTS, 0]).unwrap();
    for _ in 0..2 {
        let nested = world.call(DomainCreateNested, [world.vsmmu, NESTED[0], NESTED[1], 0]).unwrap();
        world.domains.push(nested[0]);
    }
    world.attach((0, GUESTS as u32), world.domains[0], 0).unwrap();
    for (at, word) in (HOSTS..).step_by(8).zip([cfgi_ste(VIRTUAL as u32), TLBI_NH_ALL].into_iter().flatten())
    {
        world.fill(at, word);
    }
    world
}

const VSMMUS: Pairs = Pairs {
    prepare: with_vsmmu,
    deeds: &[
        call!("donate", MemDonate, |w| [HOSTS, PAGE, w.guest, 0]),
        call!("reclaim", MemReclaim, |w| [GIVEN, PAGE, w.guest, 0]),
        TAKE_APART,
        call!("create a nested domain", DomainCreateNested, |w| [w.vsmmu, NESTED[0], NESTED[1], 0]),
        call!("destroy a nested domain", DomainDestroy, |w| [w.domains[1], 0, 0, 0]),
        call!("attach elsewhere", StreamAttach, |w| [0, GUESTS, w.domains[1], REPLACE]),
        call!("attach to the guest's domain", StreamAttach, |w| [0, GUESTS, w.guest, REPLACE]),
        call!("attach the other to the host", StreamAttach, |_w| [0, OTHER, 0, 0]),
        call!("detach", StreamDetach, |_w| [0, GUESTS, 0, 0]),
        call!("create a vSMMU", VsmmuCreate, |w| [0, w.guest, 0, 0]),
        call!("destroy the vSMMU", VsmmuDestroy, |w| [w.vsmmu, 0, 0, 0]),
        call!("add a stream", VsmmuAddStream, |w| [w.vsmmu, VIRTUAL + 1, OTHER, 0]),
        call!("remove the stream", VsmmuRemoveStream, |w| [w.vsmmu, VIRTUAL, 0, 0]),
        question!("ask for the stream", VsmmuQueryStream, |w| [w.vsmmu, VIRTUAL, 0, 0]),
        question!("ask for the nested domain", DomainDescribe, |w| [w.domains[0], 0, 0, 0]),
        call!("invalidate", VsmmuInvalidate, |w| [w.vsmmu, HOSTS, 2, 0]),
    ],
};

#[test]
fn calls_about_vsmmus_do_not_notice_each_other() {
    VSMMUS.explore();
}

/// The guest has a vSMMU, and the driver of the emulated SMMU is about to set the STE of a stream.
fn with_driver() -> World {
    let mut world = emulation::driven(Mistake::None, &[cfgi_ste(OTHER as u32)]);
    emulation::fill_ste(&world, OTHER as u32, BYPASS);
    [world.vsmmu, ..] = world.call(VsmmuCreate, [0, world.guest, 0, 0]).unwrap();
    world.add_domain();
    world
}

const DRIVER: Pairs = Pairs {
    prepare: with_driver,
    deeds: &[
        Deed {
            name: "the driver sets the STE",
            run: |world| {
                emulation::produce(world);
                let registers = [reg::CMDQ_CONS, reg::GERROR].map(|offset| world.load_register(0, offset));
                format!("{registers:x?}")
            },
            kind: Kind::One,
        },
        Deed {
            name: "the driver turns its SMMU off",
            run: |world| {
                world.store_register(0, reg::CR0, 4, 0);
                String::new()
            },
            kind: Kind::One,
        },
        call!("donate the stream table", MemDonate, |w| [emulation::TABLE, PAGE, w.guest, 0]),
        call!("donate the queue", MemDonate, |w| [emulation::COMMANDS, PAGE, w.guest, 0]),
        call!("attach to the guest", StreamAttach, |w| [0, OTHER, w.guest, 0]),
        call!("attach to a domain of the guest's", StreamAttach, |w| [0, OTHER, w.domains[0], 0]),
        call!("attach to the host", StreamAttach, |_w| [0, OTHER, 0, 0]),
        call!("detach", StreamDetach, |_w| [0, OTHER, 0, 0]),
        call!("add the stream", VsmmuAddStream, |w| [w.vsmmu, VIRTUAL, OTHER, 0]),
        call!("create a vSMMU", VsmmuCreate, |w| [0, w.guest, 0, 0]),
        TAKE_APART,
    ],
};

#[test]
fn calls_and_a_driver_do_not_notice_each_other() {
    DRIVER.explore();
}
