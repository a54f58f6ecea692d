//! Stream tables of every shape, and such that are not the host's.

use super::stage1;
use crate::{boot, good};
use abi::Function;
use tests::bench::{IMAGE, POOL, SCRATCH, Shape};
use tests::driver::{BYPASS, Driver, Fault, Format, Layout, cfgi_ste, faults, reg};
use tests::model::smmu::config::SmmuConfig;

const BAD_STREAMID: u8 = 0x02;
const STE_FETCH: u8 = 0x03;
const BAD_STE: u8 = 0x04;

#[test]
fn a_table_of_any_shape_leads_to_the_entries() {
    let linear = (9..=16).map(|log2| Format::Linear { log2 });
    let two_level =
        [6, 8, 10].into_iter().flat_map(|split| [10, 12, 16].map(|log2| Format::TwoLevel { log2, split }));
    for format in linear.chain(two_level) {
        let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
        let stage1 = stage1(&bench, SCRATCH + (16 << 20), 1);
        let table = if let Format::Linear { .. } = format { SCRATCH } else { Layout::linux(0).table };
        let spans = if let Format::TwoLevel { split: 10, .. } = format { [10, 10] } else { [0, 6] };
        for span_log2 in spans {
            let mut driver = Driver::new(&bench, 0, Layout { table, format, span_log2, ..Layout::linux(0) });
            driver.clear();
            driver.reset();
            driver.attach(0, &stage1);
            driver.write_entry(1, BYPASS);
            let within = driver.stream(1) >> (format.word() & 63) == 0;
            assert_eq!(bench.dma(0, 0, stage1.va(1)), Some(stage1.page(1)), "{format:?}");
            assert_eq!(bench.dma(0, 1, SCRATCH).is_some(), within, "{format:?}");
            good(&bench, "attached");
            // Another driver finds everything as this one left it, and takes what is in memory.
            driver.reset();
            assert_eq!(bench.dma(0, 0, stage1.va(1)), Some(stage1.page(1)), "{format:?}, on again");
            good(&bench, "on again");
            driver.shut_down();
            assert_eq!(bench.dma(0, 0, stage1.va(1)), None);
            good(&bench, "off");
        }
    }
}

#[test]
fn a_stream_without_an_entry_is_told_of_as_the_architecture_says() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let layout = Layout { format: Format::TwoLevel { log2: 9, split: 8 }, ..Layout::linux(0) };
    let mut driver = Driver::new(&bench, 0, layout);
    driver.clear();
    driver.reset();
    let (first, second) = (driver.stream(0), driver.stream(1));
    // Stream 0x200 is out of the table, and CR2.RECINVSID is 1; 0x100 has no level-2 table yet.
    assert_eq!((bench.dma(0, 0, SCRATCH), bench.dma(0, 1, SCRATCH)), (None, None));
    assert_eq!(faults(&driver.events()), [(BAD_STREAMID, first), (BAD_STREAMID, second)]);
    driver.store_words(0, [0, 0]);
    driver.run(&[cfgi_ste(first)]);
    assert_eq!(bench.dma(0, 0, SCRATCH), None);
    assert_eq!(faults(&driver.events()), [(BAD_STE, first)], "V = 0");
    driver.write_entry(0, [1, 0]);
    assert_eq!(bench.dma(0, 0, SCRATCH), None);
    assert_eq!(driver.events(), [], "an STE that aborts is silent");
    driver.write_entry(0, [1 | 0b110 << 1, 1 << 44]);
    let told = faults(&driver.events());
    assert_eq!(told, [(BAD_STE, first)], "stage 2 is not the host's to ask for");
    assert_eq!(bench.dma(0, 0, SCRATCH), None);
    assert_eq!(faults(&driver.events()), [(BAD_STE, first)]);
    good(&bench, "no entry");
    driver.write_entry(0, BYPASS);
    assert_eq!(bench.dma(0, 0, SCRATCH), Some(SCRATCH), "the control");
    assert_eq!(driver.events(), []);
    driver.write(reg::CR2, 0);
    assert_eq!(driver.read(reg::CR2), 0b10, "CR2 is read-only while SMMUEN is 1, and has RECINVSID alone");
    driver.write_cr0(0);
    driver.write(reg::CR2, 0);
    driver.write_cr0(0b1101);
    assert_eq!(bench.dma(0, 1, SCRATCH), None);
    assert_eq!(driver.events(), [], "without RECINVSID");
    good(&bench, "without RECINVSID");
}

/// 6.3.24, 6.3.25: while SMMUEN is 1 the table stays where it is.
#[test]
fn a_table_in_use_is_not_moved() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let mut driver = Driver::started(&bench, 0);
    driver.write_u64(reg::STRTAB_BASE, SCRATCH);
    driver.write(reg::STRTAB_BASE_CFG, 4);
    driver.write_entry(0, BYPASS);
    assert_eq!(bench.dma(0, 0, SCRATCH), Some(SCRATCH));
    good(&bench, "not moved");
}

/// An SMMU whose firmware tables name StreamIDs that it does not have is not asked about them.
#[test]
fn a_look_at_the_whole_table_tells_nothing_of_streams_that_cannot_be() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let mut driver = Driver::started(&bench, 0);
    driver.store_words(0, BYPASS);
    driver.run(&[[0x04, 31]]);
    assert_eq!(driver.events(), []);
    assert_eq!(bench.dma(0, 0, SCRATCH), Some(SCRATCH), "CFGI_ALL counts");
    good(&bench, "CFGI_ALL");
}

#[test]
fn a_table_in_a_page_that_was_donated_is_an_external_abort() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
    let (unit, guest) = (bench.unit(), bench.guest().unwrap());
    let mut driver = Driver::started(&bench, 0);
    let stream = driver.stream(0);
    for level in [1, 2] {
        driver.write_entry(0, BYPASS);
        let (descriptor, _) = driver.layout.descriptor(stream).unwrap();
        let at = if level == 1 { descriptor } else { driver.layout.entry(stream) };
        bench.whole(Function::MemDonate, at & !(unit - 1), unit, guest).unwrap();
        assert_eq!(bench.dma(0, 0, SCRATCH), Some(SCRATCH), "what was looked at stays until it is told of");
        good(&bench, "donated");
        assert!(driver.send(&[cfgi_ste(stream)]));
        assert_eq!(bench.dma(0, 0, SCRATCH), None, "it cannot be read");
        let [told, ..] = driver.events()[..] else { panic!("nothing is told") };
        assert_eq!((told.number, told.stream, told.address), (STE_FETCH, stream, at & !7));
        good(&bench, "looked at");
        // An access of the stream is told of, too.
        assert_eq!(bench.dma(0, 0, SCRATCH), None);
        assert_eq!(faults(&driver.events()), [(STE_FETCH, stream)]);
        bench.whole(Function::MemReclaim, at & !(unit - 1), unit, guest).unwrap();
        driver.write_entry(0, BYPASS);
        assert_eq!(bench.dma(0, 0, SCRATCH), Some(SCRATCH), "the control");
        good(&bench, "reclaimed");
    }
}

#[test]
fn a_table_in_memory_of_el2_is_not_read() {
    for (table, level2) in [(POOL, None), (IMAGE, None), (0xdead_0000_0000, None), (0, Some(POOL))] {
        let bench = boot(&Shape::of(1, SmmuConfig::qemu()));
        // Were it read, it would let everything through.
        for word in 0..512 {
            bench.machine().memory.write(IMAGE + word * 8, if word % 8 == 0 { BYPASS[0] } else { 0 });
        }
        let mut layout = Layout { format: Format::Linear { log2: 16 }, table, ..Layout::linux(0) };
        if let Some(level2) = level2 {
            layout = Layout { level2, ..Layout::linux(0) };
        }
        let mut driver = Driver::new(&bench, 0, layout);
        if level2.is_some() {
            Driver::new(&bench, 0, Layout::linux(0)).clear();
            let (at, descriptor) = layout.descriptor(driver.stream(0)).unwrap();
            assert!(driver.store(at, descriptor));
        }
        driver.reset();
        assert_eq!(bench.dma(0, 0, SCRATCH), None);
        let told: Vec<Fault> = driver.events();
        assert!(told.iter().any(|fault| fault.number == STE_FETCH), "{told:x?}");
        good(&bench, "not read");
    }
}
