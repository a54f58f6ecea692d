//! What the driver is told, in its own queue.

use super::stage1;
use crate::{boot, good};
use abi::{Function, Status};
use tests::bench::{Bench, IMAGE, POOL, SCRATCH, Shape};
use tests::driver::{ABORT, BYPASS, CMDQEN, Driver, EVENTQEN, Layout, SMMUEN, faults, reg, tlbi_asid};
use tests::model::SMMU_BASE;
use tests::model::smmu::config::SmmuConfig;
use tests::model::smmu::interrupt::{Msi, Source};

const CD_FETCH: u8 = 0x09;
const WALK_EABT: u8 = 0x0b;
const TRANSLATION: u8 = 0x10;
/// GERROR.EVENTQ_ABT_ERR.
const EVENTQ_ABT_ERR: u32 = 1 << 2;
/// Word 1: RnW, S2, CLASS = IN, CLASS = TTD.
const READ: u64 = 1 << 35;
const CLASS_IN: u64 = 2 << 40;
const CLASS_TTD: u64 = 1 << 40;

fn qemu() -> Bench {
    boot(&Shape::of(1, SmmuConfig::qemu()))
}

#[test]
fn a_fault_of_stage_2_looks_as_if_there_were_no_stage_2() {
    let bench = qemu();
    let (unit, guest) = (bench.unit(), bench.guest().unwrap());
    let stage1 = stage1(&bench, SCRATCH, 1);
    let mut driver = Driver::started(&bench, 0);
    driver.attach(0, &stage1);
    let stream = driver.stream(0);
    for foreign in [IMAGE, POOL] {
        driver.map(&stage1, 2, foreign);
        driver.run(&[tlbi_asid(1)]);
        assert_eq!(bench.dma(0, 0, stage1.va(2) + 8), None);
        assert_eq!(bench.machine().dma_read(0, stream, stage1.va(2)), None);
        let told = driver.events();
        assert_eq!(faults(&told), [(TRANSLATION, stream); 2]);
        let words: Vec<_> = told.iter().map(|fault| (fault.word1, fault.address, fault.word3)).collect();
        let va = stage1.va(2);
        assert_eq!(words, [(CLASS_IN, va + 8, 0), (CLASS_IN | READ, va, 0)], "S2 and the IPA are hidden");
    }
    assert!(stage1.write_entry(&bench, 0, 3, None));
    assert_eq!(bench.dma(0, 0, stage1.va(3)), None);
    let [told] = driver.events()[..] else { panic!("a fault of stage 1 is not told") };
    assert_eq!((told.number, told.word1, told.address), (TRANSLATION, CLASS_IN, stage1.va(3)));
    // A table, and the CD, in pages that were donated.
    for (table, number) in [(stage1.last(), WALK_EABT), (stage1.cds(), CD_FETCH)] {
        bench.whole(Function::MemDonate, table, unit, guest).unwrap();
        assert_eq!(bench.dma(0, 0, stage1.va(1)), None);
        let [told] = driver.events()[..] else { panic!("{number:#x} is not told") };
        assert_eq!((told.number, told.stream), (number, stream));
        if number == WALK_EABT {
            assert_eq!((told.word1 & !(7 << 33), told.address), (CLASS_TTD, stage1.va(1)));
            assert_eq!(told.word3, table, "the page that it could not read");
        } else {
            assert_eq!(told.word3, table);
        }
        good(&bench, "donated");
    }
}

#[test]
fn the_streams_of_others_are_not_told_of() {
    let bench = qemu();
    let guest = bench.guest().unwrap();
    let mut driver = Driver::started(&bench, 0);
    driver.write_entry(0, BYPASS);
    bench.attach(0, 1, guest).unwrap();
    assert_eq!((bench.dma(0, 1, SCRATCH), bench.dma(0, 0, IMAGE)), (None, None));
    assert_eq!(faults(&driver.events()), [(TRANSLATION, driver.stream(0))], "the guest's is nobody's to see");
    assert_eq!(bench.call(Function::EventRead, [0; 4]), Err(Status::Empty));
    bench.tear_down(guest).unwrap();
    bench.attach(0, 1, 0).unwrap();
    assert_eq!(bench.dma(0, 1, IMAGE), None);
    assert_eq!(driver.events(), [], "a call has the stream");
    let [source, ..] = bench.call(Function::EventRead, [0; 4]).unwrap();
    assert_eq!(source >> 8 & 0xffff_ffff, u64::from(driver.stream(1)));
    good(&bench, "told");
}

#[test]
fn a_queue_of_any_size_keeps_the_first_and_says_that_it_lost_others() {
    for events_log2 in [0, 1, 3, 7, 19] {
        let bench = qemu();
        let layout = Layout { events_log2, ..Layout::linux(0) };
        let layout = if events_log2 == 19 { Layout { events: SCRATCH, ..layout } } else { layout };
        let mut driver = Driver::new(&bench, 0, layout);
        driver.clear();
        driver.reset();
        if events_log2 == 19 {
            // Close to its end.
            driver.write_cr0(CMDQEN | SMMUEN);
            driver.cons = (2 << events_log2) - 3;
            driver.write(reg::EVENTQ_PROD, driver.cons);
            driver.write(reg::EVENTQ_CONS, driver.cons);
            driver.write_cr0(CMDQEN | EVENTQEN | SMMUEN);
        }
        driver.write_entry(0, BYPASS);
        let room = 1u64 << events_log2;
        for round in 1..=5 {
            let count = room.min(20) + 4;
            for n in 0..count {
                assert_eq!(bench.dma(0, 0, IMAGE + n * 8), None);
            }
            let told: Vec<_> = driver.events().iter().map(|fault| fault.address).collect();
            let kept = count.min(room);
            assert_eq!(told, (0..kept).map(|n| IMAGE + n * 8).collect::<Vec<_>>(), "2^{events_log2}");
            assert_eq!(driver.overflows, if kept < count { round } else { 0 });
        }
        good(&bench, "overflowed");
    }
}

#[test]
fn a_queue_in_a_page_that_is_not_the_hosts_is_an_external_abort() {
    let bench = qemu();
    let (unit, guest) = (bench.unit(), bench.guest().unwrap());
    let mut driver = Driver::started(&bench, 0);
    driver.write_entry(0, BYPASS);
    let page = driver.layout.events;
    bench.whole(Function::MemDonate, page, unit, guest).unwrap();
    let before = bench.machine().memory.read(page);
    assert_eq!(bench.dma(0, 0, IMAGE), None);
    let prod = driver.read(reg::EVENTQ_PROD);
    assert_eq!((driver.errors(), prod), (EVENTQ_ABT_ERR, 0));
    assert_eq!(bench.machine().memory.read(page), before, "nothing is written");
    good(&bench, "donated");
    bench.whole(Function::MemReclaim, page, unit, guest).unwrap();
    assert_eq!(bench.dma(0, 0, IMAGE + 8), None);
    assert_eq!(driver.read(reg::EVENTQ_PROD), 0, "the error is active");
    driver.acknowledge();
    assert_eq!(bench.dma(0, 0, IMAGE + 16), None);
    let told: Vec<_> = driver.events().iter().map(|fault| fault.address).collect();
    assert_eq!(told, [IMAGE + 16], "the control");
    driver.write_cr0(CMDQEN | SMMUEN);
    assert_eq!(bench.dma(0, 0, IMAGE), None);
    assert_eq!(driver.events(), [], "EVENTQEN = 0");
    good(&bench, "off");
}

/// The hardware interrupts as the driver asked, since its handler is what has EL2 look at the queue.
#[test]
fn the_interrupts_that_the_driver_enables_are_those_of_the_hardware() {
    let bench = qemu();
    let driver = Driver::started(&bench, 0);
    let hardware = || bench.machine().read_register_u32(SMMU_BASE + reg::IRQ_CTRL);
    assert_eq!(hardware(), 0b101);
    for value in [0, 1, 4, 7, u32::MAX] {
        driver.write(reg::IRQ_CTRL, value);
        assert_eq!((driver.read(reg::IRQ_CTRL), hardware()), (value & 0b101, value & 0b101));
    }
    // 6.3.17: where an MSI would go is the driver's to write, and the hardware's is not.
    driver.write(reg::IRQ_CTRL, 0);
    driver.write_u64(reg::EVENTQ_IRQ_CFG0, IMAGE);
    let cfg0 = bench.machine().read_register_u64(SMMU_BASE + reg::EVENTQ_IRQ_CFG0);
    assert_ne!(cfg0, IMAGE);
    good(&bench, "enabled");
}

/// The SMMU interrupts for an event that finds its queue empty, and it records events of parked streams before any driver is there.
#[test]
fn what_came_before_the_driver_keeps_no_interrupt_from_it() {
    for reads_at_once in [false, true] {
        let bench = qemu();
        let interrupts =
            || bench.machine().smmus[0].wired.iter().filter(|source| **source == Source::Event).count();
        let stream = bench.devices[0][0].stream;
        for n in 0..200 {
            assert_eq!(bench.machine().dma_read(0, stream, SCRATCH + n * 8), None);
        }
        let mut driver = Driver::started(&bench, 0);
        if reads_at_once {
            assert_eq!(driver.events(), []);
        }
        driver.write_entry(0, BYPASS);
        let before = interrupts();
        assert_eq!(bench.dma(0, 0, IMAGE), None);
        assert_eq!(interrupts(), before + 1);
        assert_eq!(faults(&driver.events()), [(TRANSLATION, stream)]);
        // What came while no interrupt was wanted.
        driver.write(reg::IRQ_CTRL, 0);
        assert_eq!(bench.dma(0, 0, IMAGE), None);
        assert_eq!(interrupts(), before + 1);
        driver.write(reg::IRQ_CTRL, 0b101);
        assert_eq!(bench.dma(0, 0, IMAGE + 8), None);
        assert_eq!(interrupts(), before + 2);
        assert_eq!(faults(&driver.events()), [(TRANSLATION, stream); 2]);
        good(&bench, "told");
    }
}

/// 7.2: what happens while EVENTQEN is 0 is not recorded.
#[test]
fn a_driver_is_not_told_of_what_happened_to_the_one_before() {
    for is_drained in [false, true] {
        let bench = qemu();
        let mut first = Driver::started(&bench, 0);
        first.write_entry(0, BYPASS);
        for n in 0..200 {
            assert_eq!(bench.dma(0, 0, IMAGE + n * 8), None);
            if is_drained {
                assert_eq!(bench.call(Function::EventRead, [0; 4]), Err(Status::Empty));
            }
        }
        // A kernel that is started by one that crashed.
        let mut second = Driver::started(&bench, 0);
        second.write_entry(0, BYPASS);
        assert_eq!((second.events(), second.overflows), (vec![], 0));
        second.write_cr0(CMDQEN | SMMUEN);
        assert_eq!(bench.dma(0, 0, IMAGE), None);
        second.write_cr0(CMDQEN | EVENTQEN | SMMUEN);
        assert_eq!(second.events(), []);
        assert_eq!(bench.dma(0, 0, IMAGE), None);
        assert_eq!(faults(&second.events()), [(TRANSLATION, second.stream(0))], "the control");
        good(&bench, "told");
    }
}

/// An address that firmware, an earlier kernel or the reset left in the hardware's registers is no address of an MSI.
#[test]
fn where_msis_went_before_none_goes() {
    let left = Msi { address: POOL + 0x104, data: 0x5555_aaaa };
    // With PRI (IDR0 [16]) and without.
    for config in [SmmuConfig::qemu().with_msis(), SmmuConfig::qemu().with_msis().with(0, 16, 1, 1)] {
        let bench = Bench::boot_on(&Shape::of(1, config), |machine| {
            let registers = &mut machine.smmus[0].registers;
            (registers.gerror_msi, registers.eventq_msi, registers.priq_msi) = (left, left, left);
            // And with all of them on.
            (registers.irq_ctrl, registers.irq_ctrlack) = (7, 7);
        });
        let bench = bench.unwrap_or_else(|error| panic!("{error}"));
        let mut driver = Driver::started(&bench, 0);
        driver.write_entry(0, BYPASS);
        let before = bench.machine().memory.read(left.address);
        assert_eq!(bench.dma(0, 0, IMAGE), None);
        assert_eq!(bench.machine().smmus[0].wired, [Source::Event]);
        {
            let mut machine = bench.machine();
            let (smmu, mut bus) = machine.smmu(0).unwrap();
            smmu.raise(&mut bus, EVENTQ_ABT_ERR);
            assert_eq!(smmu.wired, [Source::Event, Source::Error]);
            assert_eq!(smmu.registers.priq_msi.address, if config.pri() { 0 } else { left.address });
        }
        assert_eq!(bench.machine().memory.read(left.address), before);
        good(&bench, "interrupted");
    }
}

/// The driver has an STE abort before its handler has looked at the fault that made it do so.
#[test]
fn a_fault_is_told_as_the_table_was_when_it_happened() {
    for last in [ABORT, [0; 2]] {
        let bench = qemu();
        let mut driver = Driver::started(&bench, 0);
        let stream = driver.stream(0);
        driver.write_entry(0, BYPASS);
        assert_eq!(bench.dma(0, 0, IMAGE), None);
        driver.write_entry(0, last);
        assert_eq!(faults(&driver.events()), [(TRANSLATION, stream)], "{last:?}");
        good(&bench, "aborts");
        // And the other way round.
        driver.write_entry(0, ABORT);
        assert_eq!(bench.dma(0, 0, IMAGE), None);
        driver.write_entry(0, BYPASS);
        assert_eq!(bench.dma(0, 0, IMAGE + 8), None);
        let told: Vec<_> = driver.events().iter().map(|fault| (fault.number, fault.address)).collect();
        assert_eq!(told, [(TRANSLATION, IMAGE + 8)], "an STE that aborts is silent");
        good(&bench, "passes");
    }
}

/// A walk over all streams switches them too.
#[test]
fn a_fault_is_told_when_all_streams_are_looked_at_again() {
    let bench = qemu();
    let mut driver = Driver::started(&bench, 0);
    let stream = driver.stream(0);
    driver.write_entry(0, BYPASS);
    assert_eq!(bench.dma(0, 0, IMAGE), None);
    driver.store_words(0, ABORT);
    driver.run(&[[0x04, 31]]);
    assert_eq!(faults(&driver.events()), [(TRANSLATION, stream)]);
    good(&bench, "aborts");
}
