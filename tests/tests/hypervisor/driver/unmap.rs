//! Unmapping, and memory that stage 2 takes away below the driver.

use super::{kinds, stage1};
use crate::{boot, good};
use abi::Function;
use tests::bench::{SCRATCH, Shape};
use tests::driver::{ABORT, BYPASS, Driver, tlbi_asid, tlbi_nsnh_all};
use tests::model::smmu::config::SmmuConfig;

/// Entries of the last table that are mapped, each to one of four pages.
const MAPPED: u64 = 64;

#[test]
fn an_unmapped_range_is_gone_after_its_tlbi_and_its_sync() {
    for config in kinds() {
        let bench = boot(&Shape::of(1, config));
        let stage1 = stage1(&bench, SCRATCH, 1);
        let mut driver = Driver::started(&bench, 0);
        driver.attach(0, &stage1);
        for (first, count) in [(3, 1), (5, 2), (1, 31), (0, 33), (7, 57), (0, 64)] {
            for n in 0..MAPPED {
                driver.map(&stage1, n, stage1.page(n % 4));
                assert_eq!(bench.dma(0, 0, stage1.va(n)), Some(stage1.page(n % 4)));
            }
            for n in first..first + count {
                assert!(stage1.write_entry(&bench, 0, n, None));
                assert!(bench.dma(0, 0, stage1.va(n)).is_some(), "the control: it is in the IOTLB");
            }
            driver.unmap(&stage1, 1, first, count);
            for n in 0..MAPPED {
                let is_mapped = !(first..first + count).contains(&n);
                assert_eq!(bench.dma(0, 0, stage1.va(n)).is_some(), is_mapped, "{n} of {first}, {count}");
            }
            good(&bench, "unmapped");
        }
    }
}

/// A driver need not invalidate anything when it turns a stage 1 off and on again: what left stage 2 meanwhile is for EL2 to see to.
#[test]
fn a_stage_1_that_is_turned_on_again_does_not_find_what_was_donated_meanwhile() {
    for config in kinds() {
        let bench = boot(&Shape::of(1, config));
        let stage1 = stage1(&bench, SCRATCH, 1);
        let mut driver = Driver::started(&bench, 0);
        driver.write_entry(1, BYPASS);
        let guest = bench.guest().unwrap();
        for (n, off) in [(1, BYPASS), (2, ABORT)] {
            driver.write_entry(0, stage1.words());
            assert_eq!(bench.dma(0, 0, stage1.va(n)), Some(stage1.page(n)));
            driver.write_entry(0, off);
            good(&bench, "off");
            bench.whole(Function::MemDonate, stage1.page(n), bench.unit(), guest).unwrap();
            driver.write_entry(0, stage1.words());
            assert_eq!(bench.dma(0, 0, stage1.va(n)), None, "the guest's");
            assert_eq!(bench.dma(0, 0, stage1.va(3)), Some(stage1.page(3)), "the control");
            good(&bench, "on again");
        }
    }
}

#[test]
fn an_asid_is_one_address_space_of_one_smmu() {
    let bench = boot(&Shape::of(2, SmmuConfig::qemu()));
    let unit = bench.unit();
    let first = stage1(&bench, SCRATCH, 1);
    let second = stage1(&bench, SCRATCH + 16 * unit, 2);
    let mut drivers = [0, 1].map(|smmu| Driver::started(&bench, smmu));
    for driver in &mut drivers {
        driver.attach(0, &first);
        driver.attach(1, &second);
    }
    let reached = || {
        [0, 1].map(|smmu| [(0, &first), (1, &second)].map(|(n, at)| bench.dma(smmu, n, at.va(2)).is_some()))
    };
    assert_eq!(reached(), [[true; 2]; 2]);
    for stage1 in [&first, &second] {
        assert!(stage1.write_entry(&bench, 0, 2, None));
    }
    assert_eq!(reached(), [[true; 2]; 2], "the control: it is in the IOTLBs");
    drivers[0].run(&[tlbi_asid(1)]);
    assert_eq!(reached(), [[false, true], [true, true]]);
    drivers[1].run(&[tlbi_nsnh_all()]);
    assert_eq!(reached(), [[false, true], [false, false]]);
    drivers[0].run(&[[0x10 | 0xffff << 32, 0]]);
    assert_eq!(reached(), [[false; 2]; 2], "NH_ALL, whose VMID is replaced");
    good(&bench, "flushed");
}

#[test]
fn a_driver_flushes_nothing_but_its_own() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let unit = bench.unit();
    let guest = bench.guest().unwrap();
    bench.whole(Function::MemDonate, SCRATCH + 16 * unit, unit, guest).unwrap();
    bench.attach(0, 1, guest).unwrap();
    let mut driver = Driver::started(&bench, 0);
    driver.write_entry(0, BYPASS);
    let others = || {
        let [.., vmid, _] = bench.call(Function::StreamQuery, [0, driver_stream(&bench), 0, 0]).unwrap();
        let machine = bench.machine();
        machine.smmus[0].cached().filter(|cached| cached.vmid().map(u64::from) == Some(vmid)).count()
    };
    assert!(bench.dma(0, 0, SCRATCH).is_some());
    assert_eq!(bench.dma(0, 1, SCRATCH + 16 * unit), Some(SCRATCH + 16 * unit));
    let warm = others();
    assert!(warm != 0, "the control: the guest's are cached");
    let [.., vmid, _] = bench.call(Function::StreamQuery, [0, driver_stream(&bench), 0, 0]).unwrap();
    driver.run(&[tlbi_nsnh_all(), [0x10 | vmid << 32, 0], [0x11 | vmid << 32, 0], [0x12 | vmid << 32, 0]]);
    assert_eq!(others(), warm, "with the guest's VMID in them");
    good(&bench, "flushed");
}

/// StreamID of the second device.
fn driver_stream(bench: &tests::bench::Bench) -> u64 {
    u64::from(bench.devices[0][1].stream)
}

#[test]
fn what_stage_2_loses_the_devices_of_the_driver_lose() {
    for config in kinds() {
        let bench = boot(&Shape::of(1, config));
        let (unit, guest) = (bench.unit(), bench.guest().unwrap());
        let stage1 = stage1(&bench, SCRATCH, 1);
        let mut driver = Driver::started(&bench, 0);
        driver.attach(0, &stage1);
        driver.write_entry(1, BYPASS);
        let warm = || (0..4).map(|n| bench.dma(0, 0, stage1.va(n)).is_some()).collect::<Vec<_>>();
        assert_eq!(warm(), [true; 4]);
        assert!(bench.dma(0, 1, stage1.page(1)).is_some());
        bench.whole(Function::MemDonate, stage1.page(1), unit, guest).unwrap();
        assert_eq!(warm(), [true, false, true, true], "a page of data");
        assert_eq!(bench.dma(0, 1, stage1.page(1)), None, "without stage 1");
        assert_eq!(bench.dma(0, 1, stage1.page(2)), Some(stage1.page(2)), "the control");
        good(&bench, "donated");
        bench.whole(Function::MemReclaim, stage1.page(1), unit, guest).unwrap();
        assert_eq!(warm(), [true; 4], "it is back");
        for table in [stage1.cds(), stage1.root(), stage1.last()] {
            bench.whole(Function::MemDonate, table, unit, guest).unwrap();
            assert_eq!(warm(), [false; 4], "{table:#x} is the guest's");
            good(&bench, "donated");
            bench.whole(Function::MemReclaim, table, unit, guest).unwrap();
            assert!(stage1.write(&bench, 0, 1));
            let stream = u64::from(driver.stream(0));
            driver.run(&[[0x06 | stream << 32, 0], tlbi_asid(1)]);
            assert_eq!(warm(), [true; 4], "the control: written again");
            good(&bench, "written again");
        }
    }
}
