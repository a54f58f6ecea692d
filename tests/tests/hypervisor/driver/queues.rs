//! Command queues of every size, errors in them, and such that are not the host's.

use super::{kinds, stage1};
use crate::{boot, good};
use abi::{Function, Statistic};
use tests::bench::{Bench, IMAGE, POOL, SCRATCH, Shape, interrupts_of};
use tests::driver::{BYPASS, CMDQEN, Driver, EVENTQEN, Layout, SMMUEN, cfgi_ste, reg, sync_to, tlbi_asid};
use tests::model::GICD;
use tests::model::smmu::config::SmmuConfig;

/// GERROR.CMDQ_ERR.
const CMDQ_ERR: u32 = 1;
/// GERROR.MSI_CMDQ_ABT_ERR.
const MSI_CMDQ_ABT_ERR: u32 = 1 << 4;
/// CERROR_ILL and CERROR_ABT.
const ILLEGAL: u32 = 1;
const ABORT: u32 = 2;

/// A driver whose queues have so many entries, in memory of scenarios where they are large.
fn with_queues(bench: &Bench, commands_log2: u32, events_log2: u32) -> Driver<'_> {
    let layout = Layout { commands_log2, events_log2, ..Layout::linux(0) };
    let layout =
        if commands_log2 > 12 { Layout { commands: SCRATCH + (16 << 20), ..layout } } else { layout };
    let mut driver = Driver::new(bench, 0, layout);
    driver.clear();
    driver.reset();
    driver
}

/// Whether the interrupt of global errors was made pending since this was asked last.
fn was_raised(bench: &Bench) -> bool {
    let intid = u64::from(interrupts_of(0).errors.unwrap());
    let pending = bench.machine().registers.remove(&(GICD.start + 0x200 + intid / 32 * 4));
    pending.is_some_and(|word| word >> (intid % 32) & 1 == 1)
}

#[test]
fn a_queue_of_any_size_wraps_as_often_as_one_likes() {
    for (config, commands_log2) in [(0, 1), (1, 2), (3, 3), (0, 8), (2, 10), (0, 19)] {
        let bench = boot(&Shape::of(1, kinds()[config]));
        let stage1 = stage1(&bench, SCRATCH, 1);
        let mut driver = with_queues(&bench, commands_log2, 7);
        if commands_log2 == 19 {
            // Close to its end, with the wrap bit set.
            driver.write_cr0(0);
            driver.prod = (2 << commands_log2) - 5;
            driver.write(reg::CMDQ_PROD, driver.prod);
            driver.write(reg::CMDQ_CONS, driver.prod);
            driver.write_cr0(CMDQEN | EVENTQEN | SMMUEN);
        }
        driver.attach(0, &stage1);
        for round in 0..20 {
            driver.map(&stage1, 2, stage1.page(2));
            assert!(bench.dma(0, 0, stage1.va(2)).is_some());
            // As many pages as a queue is long, and the one that counts among them.
            let count = (round * 7) % ((1 << commands_log2.min(6)) - 1);
            driver.unmap(&stage1, 1, 2, 1 + count);
            assert_eq!(bench.dma(0, 0, stage1.va(2)), None, "round {round} of 2^{commands_log2}");
            let pages: Vec<_> = (0..count).map(|_| tlbi_asid(9)).collect();
            driver.run(&pages);
        }
        good(&bench, "wrapped");
    }
}

/// 3.5.1: a queue of one entry is full with one command.
#[test]
fn a_queue_of_one_entry_takes_one_command_after_the_other() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let mut driver = Driver::started(&bench, 0);
    driver.store_words(0, BYPASS);
    driver.write_cr0(EVENTQEN | SMMUEN);
    (driver.layout.commands_log2, driver.prod) = (0, 0);
    driver.write_u64(reg::CMDQ_BASE, driver.layout.commands);
    driver.write(reg::CMDQ_PROD, 0);
    driver.write(reg::CMDQ_CONS, 0);
    driver.write_cr0(CMDQEN | EVENTQEN | SMMUEN);
    for device in [0, 1, 0, 1] {
        for command in [cfgi_ste(driver.stream(device)), tlbi_asid(1), sync_to(SCRATCH + 0x100, 7)] {
            driver.put(&[command]);
            driver.submit();
            assert_eq!((driver.errors(), driver.consumed()), (0, (driver.prod, 0)));
        }
        assert_eq!(driver.load(SCRATCH + 0x100) as u32, 7);
        assert!(driver.store(SCRATCH + 0x100, 0));
    }
    good(&bench, "one entry");
}

#[test]
fn an_illegal_command_stops_the_queue_where_it_stands() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let mut driver = Driver::started(&bench, 0);
    let stream = driver.stream(0);
    // Reserved; of EL2's StreamWorld; stage 2; a reserved bit; CS = 0b11; an ASID is never too large here.
    for illegal in [[0xff, 0], [0x20, 0], [0x2a, 0], [0x28, 0], [0x03 | 1 << 10, 1], [0x46 | 3 << 12, 0]] {
        let _ = was_raised(&bench);
        driver.store_words(0, BYPASS);
        let place = driver.prod + 2;
        driver.put(&[tlbi_asid(1), tlbi_asid(2), illegal, cfgi_ste(stream), sync_to(SCRATCH, 5)]);
        driver.submit();
        assert_eq!(
            (driver.errors(), driver.consumed()),
            (CMDQ_ERR, (place & 0x1ff, ILLEGAL)),
            "{illegal:x?}"
        );
        assert!(was_raised(&bench), "the driver is told");
        assert_eq!(bench.dma(0, 0, SCRATCH), None, "what is after it is not done");
        driver.put(&[cfgi_ste(stream)]);
        driver.submit();
        assert_eq!(bench.dma(0, 0, SCRATCH), None, "nor is what comes then");
        good(&bench, "stopped");
        // 7.1: what is illegal is replaced, and the error is not acknowledged yet.
        let slot = driver.slot(place);
        assert!(driver.store(slot, 0x46) && driver.store(slot + 8, 0));
        driver.submit();
        assert_eq!((bench.dma(0, 0, SCRATCH), driver.consumed().0), (None, place & 0x1ff));
        driver.skip_error();
        assert_eq!((driver.errors(), driver.consumed().0), (0, driver.prod));
        assert_eq!(driver.load(SCRATCH) as u32, 5, "the SYNC is told");
        assert_eq!(bench.dma(0, 0, SCRATCH), Some(SCRATCH), "the control: acknowledged, it goes on");
        good(&bench, "went on");
        driver.write_entry(0, [1, 0]);
        let _ = driver.events();
    }
}

#[test]
fn a_queue_in_a_page_that_is_not_the_hosts_is_an_external_abort() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let (unit, guest) = (bench.unit(), bench.guest().unwrap());
    let mut driver = Driver::started(&bench, 0);
    let page = driver.layout.commands;
    driver.store_words(0, BYPASS);
    driver.put(&[cfgi_ste(driver.stream(0)), sync_to(SCRATCH, 5)]);
    bench.whole(Function::MemDonate, page, unit, guest).unwrap();
    let before = driver.consumed().0;
    driver.submit();
    assert_eq!((driver.errors(), driver.consumed()), (CMDQ_ERR, (before, ABORT)));
    assert_eq!(bench.dma(0, 0, SCRATCH), None);
    driver.acknowledge();
    assert_eq!(
        (driver.errors(), driver.consumed()),
        (CMDQ_ERR, (before, ABORT)),
        "it is not the host's still"
    );
    good(&bench, "donated");
    bench.whole(Function::MemReclaim, page, unit, guest).unwrap();
    driver.prod = before;
    driver.put(&[cfgi_ste(driver.stream(0)), sync_to(SCRATCH, 5)]);
    driver.acknowledge();
    assert_eq!((driver.errors(), driver.consumed().0), (0, driver.prod), "the control: it goes on");
    assert_eq!(bench.dma(0, 0, SCRATCH), Some(SCRATCH));
    good(&bench, "went on");
    // EL2's memory says what would let everything through.
    for foreign in [IMAGE, POOL, 0xdead_0000_0000] {
        driver.write_cr0(EVENTQEN | SMMUEN);
        driver.write_u64(reg::CMDQ_BASE, foreign | 8);
        driver.write(reg::CMDQ_CONS, 0);
        driver.write(reg::CMDQ_PROD, 3);
        driver.write_cr0(CMDQEN | EVENTQEN | SMMUEN);
        assert_eq!((driver.errors(), driver.consumed()), (CMDQ_ERR, (0, ABORT)), "{foreign:#x}");
        driver.write_cr0(EVENTQEN | SMMUEN);
        driver.acknowledge();
        good(&bench, "foreign");
    }
}

#[test]
fn the_word_of_a_sync_goes_to_memory_of_the_hosts_alone() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let (unit, guest) = (bench.unit(), bench.guest().unwrap());
    let donated = SCRATCH + 16 * unit;
    bench.whole(Function::MemDonate, donated, unit, guest).unwrap();
    let mut driver = Driver::started(&bench, 0);
    for foreign in [IMAGE + 0x40, POOL + 0x2000, donated, driver.register(reg::CR0), GICD.start] {
        let _ = was_raised(&bench);
        let before = bench.machine().memory.read(foreign);
        driver.put(&[sync_to(foreign, 0x1234_5678)]);
        driver.submit();
        assert_eq!(driver.errors(), MSI_CMDQ_ABT_ERR, "{foreign:#x}");
        assert!(was_raised(&bench));
        assert_eq!(bench.machine().memory.read(foreign), before, "{foreign:#x} is as it was");
        assert_eq!(driver.consumed(), (driver.prod, 0), "the SYNC is complete");
        driver.acknowledge();
        good(&bench, "refused");
    }
    driver.put(&[sync_to(SCRATCH + 4, 0x1234_5678)]);
    driver.submit();
    assert_eq!((driver.errors(), driver.load(SCRATCH) >> 32), (0, 0x1234_5678), "the control");
}

/// 6.3.26, 6.3.29: the SMMU aligns a queue to its size.
#[test]
fn a_base_within_its_queue_is_that_of_the_queue() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let mut driver = Driver::started(&bench, 0);
    driver.write_cr0(0);
    driver.write_u64(reg::CMDQ_BASE, driver.layout.commands | 0x7e0 | 8);
    driver.write_u64(reg::EVENTQ_BASE, driver.layout.events | 0x7e0 | 7);
    driver.write_cr0(CMDQEN | EVENTQEN | SMMUEN);
    driver.write_entry(0, BYPASS);
    assert_eq!(bench.dma(0, 0, SCRATCH), Some(SCRATCH), "its commands are where they should be");
    assert_eq!(bench.dma(0, 0, IMAGE), None);
    assert_eq!(driver.events().len(), 1);
    good(&bench, "aligned");
}

/// 4.1.7: commands about streams that are not the driver's do nothing.
#[test]
fn commands_about_the_streams_of_others_reach_no_smmu() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu().with_ats()));
    let guest = bench.guest().unwrap();
    bench.attach(0, 1, guest).unwrap();
    let mut driver = Driver::started(&bench, 0);
    let posted = || bench.call(Function::Statistics, [Statistic::Commands as u64, 0, 0, 0]).unwrap()[0];
    let about = |stream: u32| {
        let stream = u64::from(stream) << 32;
        [[0x05 | stream, 1], [0x06 | stream, 0], [0x40 | stream, 52], [0x03 | stream, 1]]
    };
    let before = posted();
    for stream in [driver.stream(1), 0x7777, u32::MAX] {
        driver.run(&about(stream));
    }
    assert_eq!(posted(), before);
    driver.write_entry(0, BYPASS);
    let before = posted();
    driver.run(&about(driver.stream(0)));
    assert!(posted() > before, "the control");
    good(&bench, "sent");
}

/// 6.3.9.3: a queue that is off does nothing, and one that comes on does what waits.
#[test]
fn a_queue_that_is_off_waits() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let mut driver = Driver::started(&bench, 0);
    driver.write_cr0(EVENTQEN | SMMUEN);
    driver.store_words(0, BYPASS);
    driver.put(&[cfgi_ste(driver.stream(0))]);
    driver.submit();
    assert_eq!(bench.dma(0, 0, SCRATCH), None);
    driver.write_cr0(CMDQEN | EVENTQEN | SMMUEN);
    assert_eq!(bench.dma(0, 0, SCRATCH), Some(SCRATCH));
    good(&bench, "on");
}
