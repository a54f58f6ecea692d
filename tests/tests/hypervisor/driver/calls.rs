//! Streams that go from the driver to calls and guests, and back.

use super::{kinds, stage1};
use crate::{boot, good};
use abi::{Function, Status};
use tests::bench::{Bench, SCRATCH, Shape};
use tests::driver::{ABORT, BYPASS, Driver, cfgi_ste};
use tests::model::smmu::config::SmmuConfig;

/// The most accesses of memory and registers of a call that gives a stream back.
const BOUND: u64 = 40_000;

/// A step of a teardown, which is bounded; whether there is more.
fn step(bench: &Bench, guest: u64) -> bool {
    let before = bench.machine().accesses;
    let [left, ..] = bench.call(Function::GuestTeardown, [guest, 0, 0, 0]).unwrap();
    let accesses = bench.machine().accesses - before;
    assert!(accesses <= BOUND, "{accesses} accesses");
    left == 1
}

#[test]
fn a_stream_that_a_call_lets_go_is_its_drivers_at_once() {
    for config in kinds() {
        let bench = boot(&Shape::of(1, config));
        let mut driver = Driver::started(&bench, 0);
        bench.attach(0, 0, 0).unwrap();
        driver.write_entry(0, BYPASS);
        assert_eq!(bench.driven(0).streams.len(), 0, "a call has it");
        good(&bench, "attached by a call");
        bench.detach(0, 0).unwrap();
        assert_eq!(bench.dma(0, 0, SCRATCH), Some(SCRATCH), "the driver lets it through");
        good(&bench, "detached");
        assert_eq!(bench.attach(0, 0, 0), Err(Status::Busy), "the driver has it");
        driver.write_entry(0, ABORT);
        bench.attach(0, 0, 0).unwrap();
        bench.detach(0, 0).unwrap();
        assert_eq!(bench.dma(0, 0, SCRATCH), None, "its STE aborts");
        good(&bench, "detached again");
    }
}

#[test]
fn a_stream_that_a_teardown_lets_go_is_its_drivers_at_once() {
    for config in kinds() {
        let bench = boot(&Shape::of(2, config));
        let (unit, guest) = (bench.unit(), bench.guest().unwrap());
        let stage1 = stage1(&bench, SCRATCH, 1);
        bench.whole(Function::MemDonate, SCRATCH + 16 * unit, unit, guest).unwrap();
        let mut drivers = [0, 1].map(|smmu| Driver::started(&bench, smmu));
        for (smmu, driver) in drivers.iter_mut().enumerate() {
            bench.attach(smmu, 0, guest).unwrap();
            // What the driver says meanwhile counts when the stream comes back.
            driver.attach(0, &stage1);
            assert_eq!(bench.dma(smmu, 0, stage1.va(1)), None, "the guest has it");
            assert_eq!(bench.dma(smmu, 0, SCRATCH + 16 * unit), Some(SCRATCH + 16 * unit), "the guest's");
        }
        good(&bench, "attached to the guest");
        let mut back = 0;
        while step(&bench, guest) {
            let now = (0..2).filter(|smmu| bench.dma(*smmu, 0, stage1.va(1)) == Some(stage1.page(1))).count();
            assert!(now <= back + 1, "a step lets one stream go");
            assert_eq!(bench.record().streams.len(), 2 - now, "what the guest has not is the driver's");
            back = now;
            good(&bench, "a step");
        }
        assert_eq!(back, 2);
        good(&bench, "torn down");
    }
}

#[test]
fn a_stream_that_leaves_a_vsmmu_is_its_drivers_at_once() {
    for by_teardown in [false, true] {
        let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
        let guest = bench.guest().unwrap();
        let stage1 = stage1(&bench, SCRATCH, 1);
        let mut driver = Driver::started(&bench, 0);
        let vsmmu = bench.vsmmu(0, if by_teardown { guest } else { 0 }).unwrap();
        bench.add_stream(vsmmu, 7, 0, 0).unwrap();
        driver.attach(0, &stage1);
        assert_eq!(bench.dma(0, 0, stage1.va(1)), None, "it is in a vSMMU");
        good(&bench, "in a vSMMU");
        if by_teardown {
            assert!(step(&bench, guest));
        } else {
            bench.call(Function::VsmmuRemoveStream, [vsmmu, 7, 0, 0]).unwrap();
        }
        assert_eq!(bench.dma(0, 0, stage1.va(1)), Some(stage1.page(1)));
        good(&bench, "out of it");
        assert!(bench.add_stream(vsmmu, 7, 0, 0).is_err(), "the driver has it");
        good(&bench, "refused");
    }
}

#[test]
fn a_stream_that_comes_back_to_a_driver_that_is_off_aborts() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let guest = bench.guest().unwrap();
    let mut driver = Driver::started(&bench, 0);
    bench.attach(0, 0, guest).unwrap();
    driver.write_entry(0, BYPASS);
    driver.shut_down();
    bench.tear_down(guest).unwrap();
    assert_eq!(bench.dma(0, 0, SCRATCH), None, "SMMUEN = 0");
    good(&bench, "torn down");
    driver.reset();
    assert_eq!(bench.dma(0, 0, SCRATCH), Some(SCRATCH), "the control");
    driver.run(&[cfgi_ste(driver.stream(1))]);
    good(&bench, "on again");
}
