//! Reset, attach and detach.

use super::{kinds, stage1};
use crate::{boot, good};
use tests::bench::{Bench, IMAGE, POOL, SCRATCH, Shape};
use tests::driver::{ABORT, BYPASS, CMDQEN, Driver, EVENTQEN, SMMUEN, cfgi_ste, reg, tlbi_asid};
use tests::model::device::Dma;
use tests::model::smmu::config::SmmuConfig;
use tests::owner::Stage1;

#[test]
fn a_probe_and_an_attach_let_a_device_reach_what_both_stages_give() {
    for config in kinds() {
        let bench = boot(&Shape::of(2, config));
        let stage1 = stage1(&bench, SCRATCH, 1);
        let (va, page) = (stage1.va(1), stage1.page(1));
        for smmu in 0..2 {
            let mut driver = Driver::started(&bench, smmu);
            good(&bench, "reset");
            assert_eq!(bench.dma(smmu, 0, va), None, "no STE");
            driver.write_entry(0, ABORT);
            assert_eq!(bench.dma(smmu, 0, va), None, "an STE that aborts");
            driver.attach(0, &stage1);
            assert_eq!(bench.dma(smmu, 0, va), Some(page));
            assert_eq!(bench.dma(smmu, 1, va), None, "the other device");
            good(&bench, "attached");
            // Stage 1 maps it, and stage 2 does not.
            for foreign in [IMAGE, POOL, driver.register(0) & !0xffff] {
                driver.map(&stage1, 2, foreign & !(bench.unit() - 1));
                driver.run(&[tlbi_asid(1)]);
                assert_eq!(bench.dma(smmu, 0, stage1.va(2)), None, "{foreign:#x}");
            }
            driver.map(&stage1, 2, stage1.page(2));
            driver.run(&[tlbi_asid(1)]);
            assert_eq!(bench.dma(smmu, 0, stage1.va(2)), Some(stage1.page(2)), "the control");
            driver.write_entry(1, BYPASS);
            assert_eq!(bench.dma(smmu, 1, page), Some(page), "an IPA");
            assert_eq!(bench.dma(smmu, 1, IMAGE), None, "an IPA of EL2's");
            good(&bench, "warm");
            driver.write_entry(0, ABORT);
            assert_eq!(bench.dma(smmu, 0, va), None, "detached");
            assert_eq!(bench.dma(smmu, 1, page), Some(page), "the control");
            good(&bench, "detached");
            driver.shut_down();
            assert_eq!(bench.dma(smmu, 1, page), None, "SMMUEN = 0");
            good(&bench, "shut down");
        }
    }
}

/// 4.3.1: with an STE the context descriptors go that were read through it, whether it says something new or not.
#[test]
fn an_entry_that_says_what_it_did_has_its_context_descriptors_forgotten() {
    for config in kinds() {
        let bench = boot(&Shape::of(1, config));
        let first = stage1(&bench, SCRATCH, 1);
        let second = stage1(&bench, SCRATCH + Stage1::UNITS * first.unit(), 1);
        let mut driver = Driver::started(&bench, 0);
        driver.attach(0, &first);
        let stream = driver.stream(0);
        let range = [0x04 | u64::from(stream) << 32, 0];
        let tables = [second, first];
        for (forget, tables) in [cfgi_ste(stream), range, [0x04, 31]].into_iter().zip(tables.iter().cycle()) {
            let [_, ttb, ..] = tables.cd(1);
            assert!(driver.store(first.cds() + 8, ttb));
            driver.run(&[forget]);
            driver.run(&[tlbi_asid(1)]);
            assert_eq!(bench.dma(0, 0, tables.va(1)), Some(tables.page(1)), "{forget:x?}");
            good(&bench, "forgotten");
        }
        // One that aborts has none, and nothing is sent.
        driver.write_entry(0, ABORT);
        let commands = bench.machine().smmus[0].commands;
        driver.run(&[[0x04, 31]]);
        assert_eq!(bench.machine().smmus[0].commands, commands);
    }
}

/// A driver that is off, whose table lets every stream through that a device can have: more than one step of an update of SMMUEN works off.
fn with_all_streams(bench: &Bench) -> (Driver<'_>, Vec<u32>) {
    let driver = Driver::started(bench, 0);
    driver.shut_down();
    let streams: Vec<u32> = bench.mapped_streams(0).collect();
    assert!(streams.len() > 32, "{} streams", streams.len());
    for device in 0..2 {
        driver.store_words(device, BYPASS);
    }
    for stream in &streams {
        let entry = driver.layout.entry(*stream);
        assert!(driver.store(entry, BYPASS[0]) && driver.store(entry + 8, BYPASS[1]));
    }
    (driver, streams)
}

/// How many of these get through.
fn passing(bench: &Bench, streams: &[u32]) -> usize {
    let reach = |stream: &&u32| bench.machine().dma_write(0, **stream, SCRATCH, 1) == Dma::Reached(SCRATCH);
    streams.iter().filter(reach).count()
}

#[test]
fn all_streams_are_set_and_all_abort_with_smmuen() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let (mut driver, streams) = with_all_streams(&bench);
    let passing = || passing(&bench, &streams);
    for _ in 0..2 {
        driver.reset();
        assert_eq!(passing(), streams.len());
        good(&bench, "on");
        driver.shut_down();
        assert_eq!(passing(), 0);
        good(&bench, "off");
    }
    // CFGI_STE_RANGE of 16 streams around one.
    driver.reset();
    for stream in &streams {
        assert!(driver.store(driver.layout.entry(*stream), 0));
    }
    let within = u64::from(streams[20]) << 32;
    driver.run(&[[0x04 | within, 3]]);
    assert_eq!(passing(), streams.len() - 16);
    good(&bench, "a range");
}

#[test]
fn an_update_of_smmuen_can_be_turned_round_half_way() {
    let on = CMDQEN | EVENTQEN | SMMUEN;
    for steps in 1..5 {
        let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
        let (mut driver, streams) = with_all_streams(&bench);
        driver.write_cr0(CMDQEN | EVENTQEN);
        let step = |driver: &Driver<'_>, value| bench.store_step(driver.register(reg::CR0), value);
        for _ in 0..steps {
            assert!(step(&driver, on), "there is more to do");
        }
        assert_eq!(driver.read(reg::CR0ACK) & SMMUEN, 0, "not acknowledged");
        assert_ne!(passing(&bench, &streams), streams.len(), "not all are set");
        driver.write_cr0(0);
        assert_eq!(passing(&bench, &streams), 0, "turned round after {steps} steps");
        good(&bench, "off");
        driver.reset();
        assert_eq!(passing(&bench, &streams), streams.len(), "the control");
        good(&bench, "on");
        for _ in 0..steps {
            assert!(step(&driver, CMDQEN), "there is more to do");
        }
        assert_eq!(driver.read(reg::CR0ACK) & SMMUEN, SMMUEN, "not acknowledged");
        driver.reset();
        assert_eq!(passing(&bench, &streams), streams.len(), "the next driver finds it as it should be");
        good(&bench, "on again");
    }
}

/// 6.3.14: while SMMUEN is 0 GBPA says what happens, and that is an abort.
#[test]
fn nothing_passes_while_smmuen_is_0_whatever_gbpa_is_set_to() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let (mut driver, streams) = with_all_streams(&bench);
    for value in [0, 1 << 31, 1 << 31 | 1 << 20, 1 << 20, 1 << 31 | 1 << 12, u32::MAX] {
        driver.write(reg::GBPA, value);
        assert_eq!(driver.read(reg::GBPA) >> 20 & 0x801, 1, "ABORT is 1, UPDATE is 0");
        assert_eq!(passing(&bench, &streams), 0, "{value:#x}");
        good(&bench, "off");
    }
    driver.reset();
    assert_eq!(passing(&bench, &streams), streams.len(), "the control");
}
