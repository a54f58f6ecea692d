//! A stream that changes over from one domain to another: what becomes of its transactions at every store and command in between, and when a command fails.

use crate::boot;
use abi::{Function, Status};
use std::collections::BTreeSet;
use tests::bench::{Bench, SCRATCH, Shape};
use tests::model::smmu::Fault;
use tests::model::smmu::config::SmmuConfig;
use tests::model::smmu::translate::Origin;
use tests::model::watch::Watch;
use tests::nest::{ARENA, Nest};
use tests::oracle;
use tests::owner::{ABORT, BYPASS, Stage1};

/// A bench with all domains of one principal that device 0 behind SMMU 0 can be in.
struct Scene {
    bench: Bench,
    domains: Vec<Place>,
    probes: Vec<(Origin, u64)>,
}

/// A domain, and the vSMMU that it is nested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    domain: u64,
    name: &'static str,
    vsmmu: Option<u64>,
}

/// Nested domains on a vSMMU: two stage 1s, several CDs, bypass, abort.
fn nested(bench: &Bench, nest: &Nest, other: Stage1) -> Vec<Place> {
    assert!(other.write(bench, nest.parent, 2));
    let words = [
        ("stage 1", nest.stage1.words()),
        ("another stage 1", other.words()),
        ("several CDs", other.words_with(2, 0, 2)),
        ("bypass", BYPASS),
        ("abort", ABORT),
    ];
    let place = |(name, words)| {
        let domain = bench.nested(nest.vsmmu, words).unwrap();
        Place { domain, name, vsmmu: Some(nest.vsmmu) }
    };
    words.map(place).to_vec()
}

/// The domains of a guest, or of the host.
fn scene(config: SmmuConfig, guests: bool) -> Scene {
    let shape = Shape { relax_ns: 400, ..Shape::of(2, config) };
    let bench = boot(&shape);
    let unit = bench.unit();
    let guest = bench.guest().unwrap();
    let place = |domain, name| Place { domain, name, vsmmu: None };
    let mut domains = Vec::new();
    let (parent, base) = if guests {
        let first = bench.guest_domain(guest, 16, 2 * Stage1::UNITS).unwrap();
        let second = bench.guest_domain(guest, 48, 4).unwrap();
        domains.extend([place(guest, "memory"), place(first, "a domain"), place(second, "another domain")]);
        (first, ARENA)
    } else {
        domains.push(place(0, "the host's"));
        (0, SCRATCH)
    };
    let nest = bench.nest(0, parent, base, 1).unwrap();
    let other = Stage1::new(&bench, base + Stage1::UNITS * unit);
    domains.extend(nested(&bench, &nest, other));
    let stream = bench.devices[0][0].stream;
    let addresses = [nest.stage1.va(1), nest.stage1.page(1), SCRATCH + 16 * unit, base];
    let mut probes: Vec<(Origin, u64)> = addresses.map(|address| (stream.into(), address)).to_vec();
    probes.push(((stream, 1).into(), nest.stage1.va(1)));
    oracle::check(&bench).unwrap();
    Scene { bench, domains, probes }
}

impl Scene {
    /// Where the probes would go by what is in memory.
    fn meant(&self) -> Vec<Option<u64>> {
        let mut machine = self.bench.machine();
        self.probes
            .iter()
            .map(|(origin, address)| machine.evaluate(0, *origin, *address, false).ok())
            .collect()
    }

    /// Attaches the stream afresh and fills the caches.
    fn stand_in(&self, place: Place) -> Vec<Option<u64>> {
        if self.bench.attached_to(0, 0).is_some() {
            self.bench.detach(0, 0).unwrap();
        }
        self.bench.attach(0, 0, place.domain).unwrap_or_else(|status| panic!("{}: {status:?}", place.name));
        self.warm();
        self.meant()
    }

    fn warm(&self) {
        for (origin, address) in &self.probes {
            let _ = self.bench.machine().dma_read(0, *origin, *address);
        }
    }

    fn pairs(&self) -> Vec<(Place, Place)> {
        let each = |from: &Place| self.domains.iter().map(|to| (*from, *to)).collect::<Vec<_>>();
        self.domains.iter().flat_map(each).collect()
    }

    fn good(&self, name: &str) {
        oracle::check(&self.bench).unwrap_or_else(|text| panic!("{name}: {text}"));
    }
}

/// IHI 0070, 3.21.3.1: one word that matters changes. The stage 2 is the same, and of stage 1 only what is in word 0.
fn is_hitless(from: Place, to: Place) -> bool {
    let one_word = |place: Place| place.name != "several CDs";
    from.vsmmu.is_some()
        && from.vsmmu == to.vsmmu
        && (one_word(from) && one_word(to)
            || [from, to].iter().any(|p| p.name == "bypass" || p.name == "abort"))
}

fn watch_every_pair(config: SmmuConfig, guests: bool) {
    let scene = scene(config, guests);
    let mut most = 0;
    for (from, to) in scene.pairs() {
        let name = format!("{} to {}", from.name, to.name);
        let old = scene.stand_in(from);
        scene.bench.machine().watch = Some(Watch::new(0, scene.probes.clone()));
        let result = scene.bench.replace(0, 0, to.domain);
        let watch = scene.bench.machine().watch.take().unwrap();
        assert_eq!(result, Ok(()), "{name}");
        let new = scene.meant();
        most = most.max(watch.moments);
        for ((probe, seen), (old, new)) in scene.probes.iter().zip(watch.seen).zip(old.into_iter().zip(new)) {
            let mut allowed = BTreeSet::from([old, new]);
            if !is_hitless(from, to) {
                allowed.insert(None);
            }
            assert!(
                seen.is_subset(&allowed),
                "{name}: {probe:x?} went to {seen:x?}, allowed is {allowed:x?}"
            );
        }
        assert_eq!(scene.bench.attached_to(0, 0), Some(to.domain), "{name}");
        scene.good(&name);
    }
    assert!(most > 20, "the control: there are moments in between, {most} at most");
}

#[test]
fn a_stream_is_translated_by_the_old_domain_or_the_new_or_not_at_all() {
    let qemu = SmmuConfig::qemu().ssid_bits(4);
    for config in [qemu, qemu.slow(1_000).lazy(), qemu.slow(1_000).without_ril().queues(3, 1)] {
        watch_every_pair(config, false);
        watch_every_pair(config, true);
    }
}

/// The control of the watch: a detach and an attach in a row do abort transactions, between what a replace joins without.
#[test]
fn a_detach_and_an_attach_are_not_hitless() {
    let scene = scene(SmmuConfig::qemu().ssid_bits(4), false);
    let [from, to] =
        ["stage 1", "another stage 1"].map(|name| *scene.domains.iter().find(|p| p.name == name).unwrap());
    assert!(is_hitless(from, to));
    scene.stand_in(from);
    scene.bench.machine().watch = Some(Watch::new(0, scene.probes.clone()));
    scene.bench.detach(0, 0).unwrap();
    scene.bench.attach(0, 0, to.domain).unwrap();
    let watch = scene.bench.machine().watch.take().unwrap();
    assert!(watch.seen[0].contains(&None));
}

/// Fails each command of a replace of each pair in turn.
fn fail_every_command(fault: Fault, guests: bool) {
    let config = SmmuConfig::qemu().ssid_bits(4);
    let mut scene_of = scene(config, guests);
    let mut restored = 0;
    for (from, to) in scene_of.pairs() {
        for at in 0..64 {
            let name = format!("{} to {}, command {at}, {fault:?}", from.name, to.name);
            let old = scene_of.stand_in(from);
            let tags = scene_of.bench.tags(0);
            scene_of.bench.machine().smmus[0].arm(at, fault);
            let result = scene_of.bench.replace(0, 0, to.domain);
            let met = scene_of.bench.machine().smmus[0].faults.is_empty();
            if !met {
                scene_of.bench.machine().smmus[0].faults.clear();
                assert_eq!(result, Ok(()), "{name}");
                break;
            }
            oracle::check_state(&scene_of.bench).unwrap_or_else(|text| panic!("{name}: {text}"));
            if result.is_ok() {
                // The read of a command was tried again.
                assert!(matches!(fault, Fault::Abort), "{name}");
                assert_eq!(scene_of.bench.attached_to(0, 0), Some(to.domain), "{name}");
            } else {
                assert_eq!(result, Err(Status::Hardware), "{name}");
                assert_eq!(
                    scene_of.bench.attached_to(0, 0),
                    Some(from.domain),
                    "{name}: the old one is in force"
                );
                // A CMD_SYNC that is replaced by its like is refused again: a second error, and the end of the SMMU.
                if scene_of.bench.machine().smmus[0].translating() {
                    assert_eq!(scene_of.meant(), old, "{name}");
                    restored += 1;
                } else {
                    assert!(scene_of.bench.machine().smmus[0].aborting(), "{name}");
                }
                assert_eq!(scene_of.bench.tags(0), tags, "{name}: no tag is used up");
            }
            // A second error of a queue is its end: a new machine.
            scene_of = scene(config, guests);
        }
    }
    assert!(restored > 20 || matches!(fault, Fault::Abort), "{restored}");
}

#[test]
fn a_replace_whose_commands_fail_leaves_the_old_domain_in_force() {
    fail_every_command(Fault::Illegal, false);
    fail_every_command(Fault::Illegal, true);
    fail_every_command(Fault::Abort, true);
}

#[test]
fn a_replace_on_an_smmu_that_stops_is_refused_and_aborts() {
    for fault in [Fault::Stuck, Fault::IllegalForever] {
        let shape = Shape { relax_ns: 200_000, ..Shape::of(2, SmmuConfig::qemu()) };
        let bench = boot(&shape);
        let nest = bench.nest(0, 0, SCRATCH, 1).unwrap();
        let domain = nest.domain(&bench).unwrap();
        bench.attach(0, 0, 0).unwrap();
        assert!(bench.reaches(0, 0, SCRATCH), "the control");
        bench.machine().smmus[0].arm(0, fault);
        assert_eq!(bench.replace(0, 0, domain), Err(Status::Hardware));
        assert!(bench.machine().smmus[0].aborting());
        assert_eq!(bench.dma(0, 0, SCRATCH), None);
        oracle::check_state(&bench).unwrap_or_else(|text| panic!("{fault:?}: {text}"));
        // All can be taken apart still.
        bench.detach(0, 0).unwrap();
        for id in 0..2 {
            bench.call(Function::VsmmuRemoveStream, [nest.vsmmu, id, 0, 0]).unwrap();
        }
        bench.destroy(domain).unwrap();
        bench.call(Function::VsmmuDestroy, [nest.vsmmu, 0, 0, 0]).unwrap();
        oracle::check_state(&bench).unwrap_or_else(|text| panic!("{fault:?}: {text}"));
    }
}
