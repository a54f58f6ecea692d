extern crate std;

use smmuv3::command::Command;
use smmuv3::event::{EventKind, EventRecord};
use smmuv3::registers::{CR0_OFFSET, STRTAB_BASE_CFG_OFFSET, STRTAB_BASE_OFFSET};

use super::super::{Fault, SetStreamError};
use super::driver::{CMDQEN, Driver, EVENTQEN, LEVEL_1, SMMUEN, STREAM};
use super::rig::{BYPASS, translate};
use crate::memory::Progress;

/// 3.3.1: one level, at an index.
#[test]
fn a_linear_table_is_read_up_to_its_size() {
    for log2 in [0, 4, 12, 16] {
        let mut driver = Driver::new(8, 7);
        driver.reset();
        driver.shut_down();
        let table = LEVEL_1;
        for stream in [0u64, 8, 0x801] {
            driver.rig.host.store(table + stream * 64, &BYPASS.0);
        }
        driver.rig.write_u64(STRTAB_BASE_OFFSET, table);
        driver.rig.write(STRTAB_BASE_CFG_OFFSET, log2);
        driver.rig.write_cr0(CMDQEN | EVENTQEN | SMMUEN);
        for stream in [0u32, 8, 0x801] {
            let is_there = u64::from(stream) >> log2 == 0;
            assert_eq!(driver.rig.host.stream(stream).is_some(), is_there, "{stream:#x} of 2^{log2}");
        }
    }
}

/// 6.3.24: the base and its format are read-only while SMMUEN is 1.
#[test]
fn a_table_in_use_stays_where_it_is() {
    let mut driver = Driver::started();
    driver.rig.write_u64(STRTAB_BASE_OFFSET, 0x4000_0000);
    driver.rig.write(STRTAB_BASE_CFG_OFFSET, 4);
    driver.write_entry(STREAM, BYPASS);
    assert_eq!(driver.rig.host.stream(STREAM), Some(BYPASS), "in the table as it was");
}

/// 5.1: a span that is 0, reserved or too large has no entries.
#[test]
fn a_malformed_span_has_no_entries() {
    let mut driver = Driver::started();
    driver.write_entry(STREAM, BYPASS);
    let descriptor = LEVEL_1 + u64::from(STREAM >> 8) * 8;
    let good = driver.rig.host.load(descriptor);
    for span in (0..32).filter(|span| !(2..=9).contains(span)) {
        driver.rig.host.store(descriptor, &[good & !0x1f | span]);
        driver.run(&[Command::cfgi_ste(STREAM, false)]);
        // A span of one STE has the first stream alone.
        assert_eq!(driver.rig.host.stream(STREAM), None, "span {span}");
    }
    driver.rig.host.store(descriptor, &[good]);
    driver.run(&[Command::cfgi_ste(STREAM, false)]);
    assert_eq!(driver.rig.host.stream(STREAM), Some(BYPASS));
}

/// 7.3.4: an STE, or a descriptor above it, that cannot be read is F_STE_FETCH, and the stream aborts.
#[test]
fn a_table_in_a_page_that_was_given_away_is_an_external_abort() {
    let mut driver = Driver::started();
    driver.write_entry(STREAM, BYPASS);
    let entry = driver.entry(STREAM);
    for page in [entry, LEVEL_1 + u64::from(STREAM >> 8) * 8] {
        driver.rig.host.take_page(page);
        driver.run(&[Command::cfgi_ste(STREAM, true)]);
        assert_eq!(driver.rig.host.stream(STREAM), None);
        assert_eq!(
            driver.read_events().iter().map(|event| event.decode().kind).next(),
            Some(EventKind::STE_FETCH)
        );
        driver.rig.host.give_back(page);
        driver.run(&[Command::cfgi_ste(STREAM, true)]);
        assert_eq!(driver.rig.host.stream(STREAM), Some(BYPASS));
    }
}

/// An STE that its driver may not have is C_BAD_STE, and what somebody else has is not the driver's.
#[test]
fn what_cannot_be_set_is_told() {
    let mut driver = Driver::started();
    for (error, kind) in [
        (SetStreamError::Refused, Some(EventKind::BAD_STE)),
        (SetStreamError::NoMemory, Some(EventKind::STE_FETCH)),
        (SetStreamError::NotHosts, None),
    ] {
        driver.rig.host.set_errors.borrow_mut().insert(STREAM, error);
        driver.write_entry(STREAM, translate(0x4000_0000));
        assert_eq!(driver.read_events().iter().map(|event: &EventRecord| event.decode().kind).next(), kind);
        assert_eq!(driver.rig.host.stream(STREAM), None);
    }
}

/// 6.3.9: an update of SMMUEN is acknowledged when it is done, and can be turned round half way.
#[test]
fn smmuen_is_acknowledged_when_all_streams_are_looked_at() {
    let mut driver = Driver::new(8, 7);
    *driver.rig.host.streams.borrow_mut() = [(0, 0xffff)].into();
    for stream in (0..0x1_0000).step_by(64) {
        let entry = driver.entry(stream);
        driver.rig.host.store(entry, &BYPASS.0);
    }
    driver.reset();
    assert_eq!(driver.rig.host.set.borrow().len(), 1024);
    driver.shut_down();
    assert!(driver.rig.host.set.borrow().is_empty());
    for steps in [1, 3, 20] {
        for _ in 0..steps {
            assert_eq!(driver.rig.step(CR0_OFFSET, CMDQEN | EVENTQEN | SMMUEN), Progress::Again);
        }
        assert_eq!(driver.rig.read(CR0_OFFSET + 4) & SMMUEN, 0, "not acknowledged");
        driver.rig.write_cr0(CMDQEN | EVENTQEN);
        assert!(driver.rig.host.set.borrow().is_empty(), "off after {steps} steps");
    }
    driver.rig.write_cr0(CMDQEN | EVENTQEN | SMMUEN);
    assert_eq!(driver.rig.host.set.borrow().len(), 1024);
}

/// Events that have to be taken first are work of the step too.
#[test]
fn many_events_before_an_entry_changes_take_steps_of_their_own() {
    for (late_events, steps) in [(0, 1), (128, 1), (250, 2), (u32::MAX, 2)] {
        let mut driver = Driver::started();
        driver.entry(STREAM);
        driver.rig.host.late_events.set(late_events);
        driver.run(&[Command::cfgi_ste(STREAM, true), Command::cfgi_ste(STREAM, true)]);
        assert_eq!(driver.rig.steps, steps, "{late_events} events");
    }
}

/// 6.3.9: SMMUEN is 1 to its driver while a stream may pass still; the next store tries again.
#[test]
fn an_update_that_the_smmu_does_not_complete_is_not_acknowledged() {
    let mut driver = Driver::started();
    driver.write_entry(STREAM, BYPASS);
    driver.rig.host.abort_faults.borrow_mut().push_back(Fault::Incomplete);
    driver.rig.write(CR0_OFFSET, CMDQEN);
    assert_eq!(driver.rig.read(CR0_OFFSET + 4) & SMMUEN, SMMUEN);
    assert_eq!(driver.rig.host.stream(STREAM), Some(BYPASS));
    driver.rig.write_cr0(CMDQEN);
    assert_eq!(driver.rig.host.stream(STREAM), None);
    driver.reset();
    assert_eq!(driver.rig.host.stream(STREAM), Some(BYPASS), "the control");
}

/// 7.4: what is lost before it can be written is an overflow, told once until it is acknowledged.
#[test]
fn events_that_the_hypervisor_lost_are_an_overflow() {
    let mut driver = Driver::started();
    for round in 1..=2 {
        driver.rig.host.lost_events.set(true);
        assert_eq!(driver.read_events(), []);
        driver.rig.host.lost_events.set(true);
        driver.rig.smmu.deliver_events(&driver.rig.host);
        assert_eq!(driver.read_events(), []);
        assert!(driver.overflows >= round, "{} overflows", driver.overflows);
    }
}
