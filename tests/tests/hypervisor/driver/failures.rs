//! Hardware that fails below the driver: what it was told is done is done, and what is not done is told.

use super::stage1;
use crate::{boot, good};
use host_shim::host::Host;
use tests::bench::{Bench, SCRATCH, Shape};
use tests::driver::{ABORT, BYPASS, CMDQEN, Driver, EVENTQEN, SMMUEN, cfgi_ste, reg, tlbi_asid};
use tests::model::smmu::Fault;
use tests::model::smmu::config::SmmuConfig;
use tests::oracle;

/// GERROR.CMDQ_ERR, GERROR.EVENTQ_ABT_ERR and GERROR.SFM_ERR.
const CMDQ_ERR: u32 = 1;
const EVENTQ_ABT_ERR: u32 = 1 << 2;
const SFM_ERR: u32 = 1 << 8;
/// CERROR_ABT.
const CERROR_ABT: u32 = 2;

fn machine() -> Bench {
    let shape = Shape { relax_ns: 200_000, ..Shape::of(1, SmmuConfig::qemu()) };
    boot(&shape)
}

/// A fault for the command that the SMMU gets after `after` others.
fn arm(bench: &Bench, after: u64, fault: Fault) {
    bench.machine().smmus[0].arm(after, fault);
}

/// Whether the SMMU has failed for good, as one does that refuses even a CMD_SYNC: then nothing passes.
fn is_dead(driver: &Driver<'_>) -> bool {
    let dead = driver.errors() & SFM_ERR != 0;
    if dead {
        assert_eq!(driver.bench.dma(0, 0, SCRATCH), None, "in service failure mode");
    }
    dead
}

/// Faults that happen once, each at one of the first commands.
fn once() -> impl Iterator<Item = (u64, Fault)> {
    [Fault::Illegal, Fault::Abort].into_iter().flat_map(|fault| (0..8).map(move |after| (after, fault)))
}

#[test]
fn an_invalidation_that_is_not_done_is_an_error_and_is_tried_again() {
    for fault in [Fault::Illegal, Fault::Abort] {
        let bench = machine();
        let stage1 = stage1(&bench, SCRATCH, 1);
        let mut driver = Driver::started(&bench, 0);
        driver.attach(0, &stage1);
        assert!(bench.dma(0, 0, stage1.va(1)).is_some());
        assert!(stage1.write_entry(&bench, 0, 1, None));
        let before = driver.prod;
        arm(&bench, 0, fault);
        if driver.send(&[tlbi_asid(1)]) {
            assert_eq!(bench.dma(0, 0, stage1.va(1)), None, "it is done after all");
            continue;
        }
        assert_eq!((driver.errors(), driver.consumed()), (CMDQ_ERR, (before, CERROR_ABT)), "{fault:?}");
        driver.acknowledge();
        assert_eq!((driver.errors(), driver.consumed().0), (0, driver.prod));
        assert_eq!(bench.dma(0, 0, stage1.va(1)), None, "the control");
        good(&bench, "tried again");
    }
}

#[test]
fn an_entry_that_is_not_set_is_an_error_and_is_tried_again() {
    let mut failed = 0;
    for (after, fault) in once() {
        for range in [false, true] {
            let bench = machine();
            let mut driver = Driver::started(&bench, 0);
            driver.write_entry(0, BYPASS);
            assert_eq!(bench.dma(0, 0, SCRATCH), Some(SCRATCH));
            driver.store_words(0, ABORT);
            arm(&bench, after, fault);
            let command = if range { [0x04, 31] } else { cfgi_ste(driver.stream(0)) };
            let done = driver.send(&[command]);
            if is_dead(&driver) {
                continue;
            }
            if !done {
                failed += 1;
                assert_eq!(
                    (driver.errors(), driver.consumed().1),
                    (CMDQ_ERR, CERROR_ABT),
                    "{after} {fault:?}"
                );
                driver.acknowledge();
                assert_eq!((driver.errors(), driver.consumed().0), (0, driver.prod), "{after} {fault:?}");
            }
            assert_eq!(bench.dma(0, 0, SCRATCH), None, "told that it is done after {after} {fault:?}");
            oracle::check_state(&bench).unwrap_or_else(|text| panic!("{after} {fault:?}: {text}"));
        }
    }
    assert!(failed > 2, "{failed} of the faults hit");
}

#[test]
fn an_smmu_is_off_when_all_of_its_streams_abort() {
    let mut on_again = 0;
    for (after, fault) in once() {
        let bench = machine();
        let mut driver = Driver::started(&bench, 0);
        for device in 0..2 {
            driver.write_entry(device, BYPASS);
        }
        let pass = || (0..2).filter(|device| bench.dma(0, *device, SCRATCH).is_some()).count();
        assert_eq!(pass(), 2);
        // A second error ends the SMMU; that one is tried again at once.
        arm(&bench, after, fault);
        driver.write(reg::CR0, 0);
        if is_dead(&driver) {
            continue;
        }
        assert_eq!((driver.read(reg::CR0ACK), pass()), (0, 0), "{after} {fault:?}");
        oracle::check_state(&bench).unwrap_or_else(|text| panic!("{after} {fault:?}: {text}"));
        // The next driver finds an SMMU that does what it should.
        bench.machine().smmus[0].faults.clear();
        driver.reset();
        if is_dead(&driver) {
            continue;
        }
        on_again += 1;
        assert_eq!(pass(), 2, "the control");
        good(&bench, "on again");
    }
    assert!(on_again > 0, "every SMMU died");
}

#[test]
fn a_stream_that_cannot_be_set_when_the_smmu_comes_on_aborts_and_is_told_of() {
    let mut told = 0;
    for (after, fault) in once() {
        let bench = machine();
        let mut driver = Driver::started(&bench, 0);
        driver.shut_down();
        driver.store_words(0, BYPASS);
        let events = EVENTQEN | CMDQEN;
        driver.write_cr0(events);
        arm(&bench, after, fault);
        driver.write_cr0(events | SMMUEN);
        if is_dead(&driver) {
            continue;
        }
        let passes = bench.dma(0, 0, SCRATCH).is_some();
        let stream = driver.stream(0);
        let is_told = driver.events().iter().any(|event| (event.number, event.stream) == (0x03, stream));
        assert!(passes || is_told, "{after} {fault:?}: it aborts, and nothing is told");
        told += u32::from(is_told);
        bench.machine().smmus[0].faults.clear();
        driver.run(&[cfgi_ste(stream)]);
        assert_eq!(bench.dma(0, 0, SCRATCH), Some(SCRATCH), "the control");
        good(&bench, "set");
    }
    assert!(told > 0, "{told} of the faults hit");
}

#[test]
fn an_smmu_that_dies_is_in_service_failure_mode_and_lets_nothing_through() {
    for fault in [Fault::Stuck, Fault::IllegalForever] {
        let bench = machine();
        let mut driver = Driver::started(&bench, 0);
        driver.write_entry(0, BYPASS);
        assert_eq!(bench.dma(0, 0, SCRATCH), Some(SCRATCH), "the control");
        arm(&bench, 0, fault);
        let _ = driver.send(&[tlbi_asid(1)]);
        assert_eq!(driver.errors() & SFM_ERR, SFM_ERR, "{fault:?}");
        assert_eq!(bench.dma(0, 0, SCRATCH), None);
        // Whatever the driver does then ends.
        let _ = driver.send(&[cfgi_ste(driver.stream(0))]);
        driver.acknowledge();
        for value in [0, CMDQEN | EVENTQEN | SMMUEN, 0] {
            driver.write(reg::CR0, value);
        }
        assert_eq!(bench.dma(0, 0, SCRATCH), None);
        oracle::check_state(&bench).unwrap_or_else(|text| panic!("{fault:?}: {text}"));
    }
}

/// An error that the SMMU finds by itself, not at a command.
fn raise(bench: &Bench, error: u32) {
    let mut machine = bench.machine();
    let (smmu, mut bus) = machine.smmu(0).unwrap();
    smmu.raise(&mut bus, error);
}

/// The hardware's interrupt has the driver's handler load GERROR, and nothing else.
#[test]
fn an_smmu_that_dies_by_itself_is_told_of_at_the_next_look() {
    type Look = fn(&Driver<'_>) -> u32;
    let looks: [Look; 2] = [
        |driver| driver.errors(),
        |driver| {
            let both = driver.bench.cpu_read_u64(driver.register(reg::GERROR)).unwrap();
            both as u32 ^ (both >> 32) as u32
        },
    ];
    for look in looks {
        let bench = machine();
        let mut driver = Driver::started(&bench, 0);
        driver.write_entry(0, BYPASS);
        assert_eq!((look(&driver), bench.dma(0, 0, SCRATCH)), (0, Some(SCRATCH)), "the control");
        raise(&bench, SFM_ERR);
        assert_eq!(look(&driver), SFM_ERR);
        assert!(is_dead(&driver));
        driver.acknowledge();
        assert_eq!(look(&driver), 0, "it is told once");
        oracle::check_state(&bench).unwrap_or_else(|text| panic!("{text}"));
    }
}

/// What the SMMU could not write is lost to the driver, as what it had no room for.
#[test]
fn events_that_the_smmu_could_not_write_are_an_overflow() {
    for looks_at_errors in [false, true] {
        let bench = machine();
        let mut driver = Driver::started(&bench, 0);
        driver.write_entry(0, BYPASS);
        for round in 1..=2 {
            raise(&bench, EVENTQ_ABT_ERR);
            if looks_at_errors {
                assert_eq!(driver.errors(), 0, "the queue that failed is not the driver's");
            }
            assert_eq!(driver.events(), []);
            assert_eq!(driver.overflows, round);
        }
        assert_eq!((driver.events(), driver.overflows), (vec![], 2));
        good(&bench, "told");
    }
}
