//! GUEST_TEARDOWN: a guest that has everything is taken apart, step by step.

use crate::boot;
use abi::{Function, Statistic, Status, attach};
use tests::bench::{Bench, SCRATCH, Shape};
use tests::model::smmu::Fault;
use tests::model::smmu::config::SmmuConfig;
use tests::nest::ARENA;
use tests::oracle::{self, Owners};
use tests::owner::{BYPASS, EATS, Stage1};

/// The most accesses of memory and registers of one step: a step wipes up to 2 MiB, walks some tables, and looks at up to 8,192 words of the
/// frame table.
const BOUND: u64 = 40_000;

/// A guest with memory in pieces, shares, domains, vSMMUs, nested streams and streams of its own, on two SMMUs of three.
fn everything(config: SmmuConfig) -> (Bench, u64) {
    let shape = Shape { relax_ns: 200_000, ..Shape::of(3, config).trusting(0, 0) };
    let bench = boot(&shape);
    let unit = bench.unit();
    let [guest, other] = [bench.guest().unwrap(), bench.guest().unwrap()];
    let domain = bench.guest_domain(guest, 16, Stage1::UNITS).unwrap();
    let second = bench.guest_domain(guest, 32, 3).unwrap();
    bench.map(second, ARENA + 64 * unit, SCRATCH + 16 * unit, unit).unwrap();
    bench.whole(Function::MemDonate, SCRATCH + (4 << 20), 3 << 20, guest).unwrap();
    bench.whole(Function::MemShare, SCRATCH + 40 * unit, 2 * unit, guest).unwrap();
    bench.whole(Function::MemDonate, SCRATCH + 50 * unit, unit, other).unwrap();
    let nest = bench.nest(0, domain, ARENA, 1).unwrap();
    let [word0, word1] = nest.stage1.words();
    let nested = bench.nested(nest.vsmmu, [word0, word1 | EATS]).unwrap();
    let bypass = bench.nested(nest.vsmmu, BYPASS).unwrap();
    bench.attach(0, 0, nested).unwrap();
    bench.attach(0, 1, bypass).unwrap();
    bench.attach(1, 0, domain).unwrap();
    bench.attach(1, 1, guest).unwrap();
    bench.attach(2, 0, 0).unwrap();
    bench.attach(2, 1, other).unwrap();
    for n in 0..4 {
        assert!(bench.dma(0, 0, nest.stage1.va(n)).is_some());
        assert!(bench.dma(0, 1, ARENA + n * unit).is_some());
        assert!(bench.dma(1, 0, ARENA + n * unit).is_some());
    }
    assert!(bench.reaches(1, 1, SCRATCH + (5 << 20)));
    oracle::check(&bench).unwrap_or_else(|text| panic!("{text}"));
    (bench, guest)
}

fn kinds() -> [SmmuConfig; 3] {
    let qemu = SmmuConfig::qemu().with_ats();
    [qemu, qemu.without_ril().bbml(0).queues(3, 2), qemu.granules(false, false, true)]
}

#[test]
fn each_step_is_bounded_and_the_guest_is_gone_at_the_end() {
    for config in kinds() {
        let (bench, guest) = everything(config);
        let unit = bench.unit();
        let mut steps = 0;
        loop {
            let before = bench.machine().accesses;
            let answer = bench.hypervisor.hypercall(Function::GuestTeardown.id(), [guest, 0, 0, 0]).x;
            let accesses = bench.machine().accesses - before;
            assert!(accesses <= BOUND, "step {steps} makes {accesses} accesses");
            assert_eq!(answer[0], 0, "step {steps}");
            // The record learns of it by another step, or by that the guest is gone.
            let again = bench.call(Function::GuestTeardown, [guest, 0, 0, 0]);
            steps += 1;
            oracle::check(&bench).unwrap_or_else(|text| panic!("after step {steps}: {text}"));
            if answer[1] == 0 || again.is_ok_and(|[left, ..]| left == 0) {
                break;
            }
        }
        assert!(steps > 5, "{steps} steps");
        assert_eq!(bench.call(Function::GuestTeardown, [guest, 0, 0, 0]), Err(Status::UnknownGuest));
        let owners = Owners::read(&bench).unwrap();
        let left =
            (SCRATCH..SCRATCH + (24 << 20)).step_by(4096).filter(|page| owners.of(*page) != Some((0, 0)));
        assert_eq!(left.count(), bench.unit() as usize >> 12, "all but the other guest's page is the host's");
        assert!(bench.reaches(2, 0, SCRATCH + (5 << 20)), "the control: the host has it");
        assert_eq!(bench.machine().memory.read(SCRATCH + 16 * unit), Some(0), "wiped");
        for smmu in 0..2 {
            assert_eq!(bench.tags(smmu).0, bench.idle_vmids(smmu));
            assert_eq!((bench.dma(smmu, 0, ARENA), bench.dma(smmu, 1, ARENA)), (None, None));
        }
    }
}

#[test]
fn every_other_call_for_the_guest_answers_busy_from_the_first_step_on() {
    let (bench, guest) = everything(kinds()[0]);
    let record = bench.record();
    let made = |nested: bool| {
        let is =
            |domain: &tests::record::Domain| matches!(domain, tests::record::Domain::Nested { .. }) == nested;
        record.domains.iter().find(|(_, domain)| is(domain)).map(|(handle, _)| *handle).unwrap()
    };
    let (domain, vsmmu) = (made(false), record.vsmmus[0].0);
    let page = SCRATCH + (4 << 20);
    let free = SCRATCH + 60 * bench.unit();
    let stream = |device: usize| u64::from(bench.devices[1][device].stream);
    let calls = [
        (Function::MemDonate, [free, 0x1000, guest, 0]),
        (Function::MemReclaim, [page, 0x1000, guest, 0]),
        (Function::MemShare, [free, 0x1000, guest, 0]),
        (Function::MemUnshare, [SCRATCH + 40 * bench.unit(), 0x1000, guest, 0]),
        (Function::DomainCreate, [guest, 0, 0, 0]),
        (Function::DomainMap, [domain, ARENA + 0x10_0000, page, 0x1000]),
        (Function::DomainUnmap, [domain, ARENA, 0x1000, 0]),
        (Function::VsmmuCreate, [1, domain, 0, 0]),
        (Function::VsmmuAddStream, [vsmmu, 9, stream(0), 0]),
        (Function::DomainCreateNested, [vsmmu, BYPASS[0], BYPASS[1], 0]),
        (Function::VsmmuInvalidate, [vsmmu, tests::bench::COMMANDS, 1, 0]),
        (Function::GuestDestroy, [guest, 0, 0, 0]),
        (Function::StreamAttach, [1, stream(1), domain, attach::REPLACE]),
        (Function::StreamDetach, [1, stream(1), 0, 0]),
    ];
    assert_eq!(bench.call(Function::GuestTeardown, [guest, 0, 0, 0]).map(|[left, ..]| left), Ok(1));
    let mut step = 0;
    while bench.record().guests.contains(&guest) {
        for (function, arguments) in calls {
            let answer = bench.call(function, arguments);
            // What has gone is not known any more, and streams that are unattached are anybody's.
            let gone = matches!(
                answer,
                Err(Status::UnknownDomain
                    | Status::UnknownVsmmu
                    | Status::WrongState
                    | Status::UnknownStream)
            );
            assert!(
                answer == Err(Status::Busy) || step > 0 && gone,
                "step {step}: {function:?} answered {answer:?}"
            );
        }
        // Others are served.
        assert_eq!(bench.call(Function::MemDonate, [free, 0x1000, 2, 0]).map(drop), Ok(()));
        assert_eq!(bench.call(Function::MemReclaim, [free, 0x1000, 2, 0]).map(drop), Ok(()));
        oracle::check(&bench).unwrap_or_else(|text| panic!("step {step}: {text}"));
        bench.call(Function::GuestTeardown, [guest, 0, 0, 0]).unwrap();
        step += 1;
    }
    assert!(step > 5);
}

#[test]
fn a_step_whose_commands_fail_is_done_again() {
    for smmu in 0..2 {
        for at in 0..24 {
            let (bench, guest) = everything(kinds()[0]);
            bench.machine().smmus[smmu].arm(at, Fault::Illegal);
            let mut failed = 0;
            let mut done = false;
            for step in 0..400 {
                match bench.call(Function::GuestTeardown, [guest, 0, 0, 0]) {
                    Ok([0, ..]) => {
                        done = true;
                        break;
                    }
                    Ok(_) => {}
                    Err(Status::Hardware) => failed += 1,
                    Err(status) => panic!("SMMU {smmu}, command {at}, step {step}: {status:?}"),
                }
                oracle::check_state(&bench)
                    .unwrap_or_else(|text| panic!("SMMU {smmu}, command {at}, step {step}: {text}"));
            }
            let met = bench.machine().smmus[smmu].faults.is_empty();
            assert!(
                done && failed == u64::from(met),
                "SMMU {smmu}, command {at}: {failed} steps failed, done {done}"
            );
            assert_eq!(bench.statistic(Statistic::QuarantinedPages), 0);
            if !met {
                break;
            }
        }
    }
}

#[test]
fn a_guest_behind_an_smmu_that_died_goes_all_the_same() {
    let (bench, guest) = everything(kinds()[0]);
    bench.machine().smmus[0].arm(0, Fault::Stuck);
    let mut failed = 0;
    for _ in 0..400 {
        match bench.call(Function::GuestTeardown, [guest, 0, 0, 0]) {
            Ok([0, ..]) => break,
            Ok(_) => {}
            Err(Status::Hardware) => failed += 1,
            Err(status) => panic!("{status:?}"),
        }
        oracle::check_state(&bench).unwrap_or_else(|text| panic!("{text}"));
    }
    assert_eq!(failed, 1);
    assert!(!bench.record().guests.contains(&guest));
    assert!(bench.machine().smmus[0].aborting());
    oracle::check_state(&bench).unwrap_or_else(|text| panic!("{text}"));
}
