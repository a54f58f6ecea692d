//! The model's stage 2 and its rules of registers, commands and invalidation, driven with hand-encoded ones (IHI 0070, DDI 0487).

use tests::model::device::Dma;
use tests::model::smmu::Fault;
use tests::model::smmu::config::SmmuConfig;
use tests::model::{Machine, RAM_BASE, SMMU_BASE};

const STREAM: u32 = 0x10;
const STREAM_TABLE: u64 = RAM_BASE + 0x10_0000;
const COMMANDS: u64 = RAM_BASE + 0x20_0000;
const EVENTS: u64 = RAM_BASE + 0x21_0000;
const ROOT: u64 = RAM_BASE + 0x30_0000;
const LEVEL2: u64 = RAM_BASE + 0x31_0000;
const LEVEL3: u64 = RAM_BASE + 0x32_0000;
const PAGE: u64 = RAM_BASE + 0x40_0000;
/// RW, Normal WB, inner shareable, AF, XN (DDI 0487, D8.3.1).
const LEAF: u64 = 1 << 54 | 1 << 10 | 3 << 8 | 3 << 6 | 0xf << 2;
const VMID: u64 = 7;

struct Bench {
    machine: Machine,
    prod: u32,
}

/// STE: V, Config 0b110; VMID, T0SZ 25 (39 bits), SL0 1, TG 4 KiB, PS 44 bits, AA64, AFFD, R; S2TTB.
fn ste() -> [u64; 8] {
    let two = VMID | 25 << 32 | 1 << 38 | 4 << 48 | 1 << 51 | 1 << 53 | 1 << 58;
    [1 | 0b110 << 1, 0, two, ROOT, 0, 0, 0, 0]
}

impl Bench {
    fn new(config: SmmuConfig) -> Self {
        let mut machine = Machine::new(64 << 20, &[config], &[vec![STREAM]]);
        for (start, size) in [(STREAM_TABLE, 0x1_0000), (ROOT, 0x1000), (LEVEL2, 0x1000), (LEVEL3, 0x1000)] {
            machine.memory.wipe(tests::model::memory::Span::new(start, size));
        }
        let index1 = (PAGE >> 30) * 8;
        machine.write_u64(ROOT + index1, LEVEL2 | 3);
        machine.write_u64(LEVEL2 + (PAGE >> 21 & 511) * 8, LEVEL3 | 3);
        machine.write_u64(LEVEL3 + (PAGE >> 12 & 511) * 8, PAGE | LEAF | 3);
        machine.write_register_u32(SMMU_BASE + 0x44, 1 << 31 | 1 << 20);
        machine.write_register_u64(SMMU_BASE + 0x80, STREAM_TABLE);
        machine.write_register_u32(SMMU_BASE + 0x88, 8);
        machine.write_register_u64(SMMU_BASE + 0x90, COMMANDS | 4);
        machine.write_register_u64(SMMU_BASE + 0xa0, EVENTS | 3);
        machine.write_register_u32(SMMU_BASE + 0x20, 1 << 3);
        machine.advance(1_000_000);
        let mut bench = Self { machine, prod: 0 };
        bench.commands(&[[4, 31], [0x30, 0], [0x46, 0]]);
        bench.machine.advance(10_000_000);
        bench.machine.write_register_u32(SMMU_BASE + 0x20, 1 << 3 | 1 << 2 | 1);
        bench.machine.advance(1_000_000);
        bench
    }

    fn commands(&mut self, commands: &[[u64; 2]]) {
        for command in commands {
            let slot = COMMANDS + u64::from(self.prod & 15) * 16;
            self.machine.write_u64(slot, command[0]);
            self.machine.write_u64(slot + 8, command[1]);
            self.prod = (self.prod + 1) & 31;
        }
        self.machine.write_register_u32(SMMU_BASE + 0x98, self.prod);
    }

    fn attach(&mut self) {
        for (n, word) in ste().into_iter().enumerate().rev() {
            self.machine.write_u64(STREAM_TABLE + u64::from(STREAM) * 64 + n as u64 * 8, word);
        }
        self.commands(&[[3 | u64::from(STREAM) << 32, 1], [0x46, 0]]);
    }

    fn dma(&mut self) -> Dma {
        self.machine.dma_write(0, STREAM, PAGE, 0x55)
    }

    fn unmap(&mut self) {
        self.machine.write_u64(LEVEL3 + (PAGE >> 12 & 511) * 8, 0);
    }

    fn clean(&mut self) {
        assert_eq!(self.machine.violations.take(), Vec::<String>::new());
    }

    fn violates(&mut self, what: &str) {
        let all = self.machine.violations.take();
        assert!(all.iter().any(|text| text.contains(what)), "no {what:?} in {all:#?}");
    }
}

/// TLBI_S2_IPA without range fields: VMID [47:32], Leaf, address.
fn tlbi(vmid: u64, leaf: u64) -> [u64; 2] {
    [0x2a | vmid << 32, PAGE | leaf]
}

/// TLBI_S2_IPA of one 4 KiB granule with TG and a TTL hint.
fn tlbi_ttl(ttl: u64, num: u64) -> [u64; 2] {
    [0x2a | VMID << 32 | num << 12, PAGE | 1 | ttl << 8 | 1 << 10]
}

const SYNC: [u64; 2] = [0x46, 0];

#[test]
fn dma_reaches_the_page_only_once_the_stream_is_attached() {
    let mut bench = Bench::new(SmmuConfig::qemu());
    assert_eq!(bench.dma(), Dma::Aborted);
    bench.attach();
    assert_eq!(bench.dma(), Dma::Reached(PAGE));
    assert_eq!(bench.machine.memory.read(PAGE), Some(0x55));
    assert_eq!(bench.machine.dma_read(0, STREAM, PAGE), Some(0x55));
    assert_eq!(bench.machine.dma_write(0, STREAM, PAGE + 0x1000, 1), Dma::Aborted);
    bench.clean();
    // C_BAD_STE of the first access, F_TRANSLATION with InputAddr and IPA of the last (7.3.5, 7.3.13).
    let events = &bench.machine.smmus[0].events;
    assert_eq!(events[0], [0x04 | u64::from(STREAM) << 32, 0, 0, 0]);
    assert_eq!(events[1], [0x10 | u64::from(STREAM) << 32, 1 << 39 | 2 << 40, PAGE + 0x1000, PAGE + 0x1000]);
    assert_eq!(bench.machine.read_register_u32(SMMU_BASE + 0x1_00a8), 2);
}

#[test]
fn an_invalid_ste_stays_cached_without_cfgi() {
    let mut bench = Bench::new(SmmuConfig::qemu());
    for (n, word) in ste().into_iter().enumerate().rev() {
        bench.machine.write_u64(STREAM_TABLE + u64::from(STREAM) * 64 + n as u64 * 8, word);
    }
    assert_eq!(bench.dma(), Dma::Aborted);
    bench.commands(&[[3 | u64::from(STREAM + 1) << 32, 1], SYNC]);
    assert_eq!(bench.dma(), Dma::Aborted);
    bench.commands(&[[3 | u64::from(STREAM) << 32, 1]]);
    assert_eq!(bench.dma(), Dma::Aborted, "CFGI without SYNC");
    bench.commands(&[SYNC]);
    assert_eq!(bench.dma(), Dma::Reached(PAGE));
}

#[test]
fn cfgi_before_the_store_has_no_use() {
    let mut bench = Bench::new(SmmuConfig::qemu());
    bench.commands(&[[3 | u64::from(STREAM) << 32, 1]]);
    for (n, word) in ste().into_iter().enumerate().rev() {
        bench.machine.write_u64(STREAM_TABLE + u64::from(STREAM) * 64 + n as u64 * 8, word);
    }
    bench.commands(&[SYNC]);
    assert_eq!(bench.dma(), Dma::Aborted);
}

#[test]
fn a_translation_stays_until_the_right_tlbi_and_a_sync() {
    let wrong = [
        ("no command", vec![]),
        ("no SYNC", vec![tlbi(VMID, 1)]),
        ("SYNC first", vec![SYNC, tlbi(VMID, 1)]),
        ("other VMID", vec![tlbi(VMID + 1, 1), SYNC]),
        ("other page", vec![[0x2a | VMID << 32, (PAGE + 0x1000) | 1], SYNC]),
        ("TTL of level 2", vec![tlbi_ttl(2, 1), SYNC]),
        ("other granule", vec![[0x2a | VMID << 32, PAGE | 1 | 3 << 8 | 3 << 10], SYNC]),
        ("stage 1 only", vec![[0x10 | VMID << 32, 0], SYNC]),
    ];
    for (name, commands) in wrong {
        let mut bench = Bench::new(SmmuConfig::qemu());
        bench.attach();
        bench.dma();
        bench.unmap();
        bench.commands(&commands);
        assert_eq!(bench.dma(), Dma::Reached(PAGE), "{name}");
        bench.machine.wipe(tests::model::memory::Span::new(PAGE, 0x1000));
        bench.machine.violations.take();
        bench.commands(&[tlbi(VMID, 1), SYNC]);
        assert_eq!(bench.dma(), Dma::Aborted, "{name}: control");
    }
    let right =
        [tlbi(VMID, 0), tlbi(VMID, 1), tlbi_ttl(3, 0), tlbi_ttl(3, 31), [0x28 | VMID << 32, 0], [0x30, 0]];
    for command in right {
        let mut bench = Bench::new(SmmuConfig::qemu());
        bench.attach();
        bench.dma();
        bench.unmap();
        bench.commands(&[command, SYNC]);
        assert_eq!(bench.dma(), Dma::Aborted, "{command:x?}");
        bench.clean();
    }
}

#[test]
fn a_tlbi_before_the_store_has_no_use() {
    let mut bench = Bench::new(SmmuConfig::qemu());
    bench.attach();
    bench.dma();
    bench.commands(&[tlbi(VMID, 0)]);
    bench.unmap();
    bench.commands(&[SYNC]);
    assert_eq!(bench.dma(), Dma::Reached(PAGE));
}

#[test]
fn leaf_only_leaves_table_pointers() {
    let mut bench = Bench::new(SmmuConfig::qemu());
    bench.attach();
    bench.dma();
    // The level-3 table is taken out as a whole, but only leaves are invalidated: the walk goes on through it.
    bench.machine.write_u64(LEVEL2 + (PAGE >> 21 & 511) * 8, 0);
    bench.commands(&[tlbi(VMID, 1), SYNC]);
    assert_eq!(bench.dma(), Dma::Reached(PAGE));
    bench.commands(&[tlbi(VMID, 0), SYNC]);
    assert_eq!(bench.dma(), Dma::Aborted);
}

#[test]
fn a_wipe_of_cached_memory_is_a_violation() {
    let mut bench = Bench::new(SmmuConfig::qemu());
    bench.attach();
    bench.dma();
    bench.unmap();
    bench.machine.wipe(tests::model::memory::Span::new(PAGE, 0x1000));
    bench.violates("is wiped while SMMU 0 caches");
}

#[test]
fn sync_waits_for_transactions_in_flight() {
    let mut bench = Bench::new(SmmuConfig::qemu());
    bench.attach();
    bench.machine.dma_latency_ns = 50_000;
    bench.dma();
    bench.unmap();
    bench.commands(&[tlbi(VMID, 1), SYNC]);
    let cons = bench.machine.read_register_u32(SMMU_BASE + 0x9c);
    assert_eq!(cons, bench.prod.wrapping_sub(1) & 31);
    bench.machine.wipe(tests::model::memory::Span::new(PAGE, 0x1000));
    bench.violates("on its way");
    bench.machine.advance(60_000);
    assert_eq!(bench.machine.read_register_u32(SMMU_BASE + 0x9c), bench.prod);
    assert_eq!(bench.machine.memory.read(PAGE), Some(0x55));
}

#[test]
fn a_slow_queue_consumes_by_the_clock() {
    let mut bench = Bench::new(SmmuConfig::qemu().slow(10_000));
    bench.attach();
    assert_ne!(bench.machine.read_register_u32(SMMU_BASE + 0x9c), bench.prod);
    bench.machine.advance(15_000);
    bench.machine.advance(15_000);
    bench.machine.advance(15_000);
    assert_eq!(bench.machine.read_register_u32(SMMU_BASE + 0x9c), bench.prod);
    bench.clean();
}

#[test]
fn an_illegal_command_stops_the_queue_until_it_is_replaced_and_acknowledged() {
    let illegal: [[u64; 2]; 6] = [
        [0xff, 0],
        [0x46 | 3 << 12, 0],                          // SYNC with CS = 0b11
        [0x40, 0],                                    // ATC_INV without ATS
        [0x2a | VMID << 32, PAGE | 1 << 10],          // TG with TTL = NUM = SCALE = 0
        [0x2a | VMID << 32, PAGE | 1 << 8 | 2 << 10], // TTL 1 with 16 KiB
        [3 | 1 << 10, 0],                             // SSec
    ];
    for command in illegal {
        let mut bench = Bench::new(SmmuConfig::qemu());
        let at = bench.prod;
        bench.commands(&[command, SYNC]);
        assert_eq!(bench.machine.read_register_u32(SMMU_BASE + 0x9c), at | 1 << 24, "{command:x?}");
        assert_eq!(bench.machine.read_register_u32(SMMU_BASE + 0x60), 1);
        // Acknowledged without a replacement it fails again.
        bench.machine.write_register_u32(SMMU_BASE + 0x64, 1);
        assert_eq!(bench.machine.read_register_u32(SMMU_BASE + 0x60), 0);
        bench.machine.write_u64(COMMANDS + u64::from(at & 15) * 16, 0x46);
        bench.machine.write_u64(COMMANDS + u64::from(at & 15) * 16 + 8, 0);
        bench.machine.write_register_u32(SMMU_BASE + 0x64, 0);
        assert_eq!(bench.machine.read_register_u32(SMMU_BASE + 0x9c), bench.prod);
    }
}

#[test]
fn injected_faults_hit_the_command_they_are_armed_for() {
    let mut bench = Bench::new(SmmuConfig::qemu());
    bench.attach();
    bench.dma();
    bench.unmap();
    bench.machine.smmus[0].arm(0, Fault::Skip);
    bench.commands(&[tlbi(VMID, 1), SYNC]);
    assert_eq!(bench.dma(), Dma::Reached(PAGE));
    bench.machine.smmus[0].arm(1, Fault::Illegal);
    let at = bench.prod;
    bench.commands(&[tlbi(VMID, 1), SYNC]);
    assert_eq!(bench.machine.read_register_u32(SMMU_BASE + 0x9c), (at + 1) & 31 | 1 << 24);
    let mut bench = Bench::new(SmmuConfig::qemu());
    bench.machine.smmus[0].arm(0, Fault::Abort);
    let at = bench.prod;
    bench.commands(&[SYNC]);
    assert_eq!(bench.machine.read_register_u32(SMMU_BASE + 0x9c), at | 2 << 24);
    bench.machine.write_register_u32(SMMU_BASE + 0x64, 1);
    assert_eq!(bench.machine.read_register_u32(SMMU_BASE + 0x9c), bench.prod);
    bench.machine.smmus[0].arm(0, Fault::Stuck);
    bench.commands(&[SYNC]);
    bench.machine.advance(1 << 40);
    assert_ne!(bench.machine.read_register_u32(SMMU_BASE + 0x9c), bench.prod);
}

#[test]
fn writes_that_the_architecture_does_not_allow_are_seen() {
    type Write = (&'static str, fn(&mut Machine));
    let writes: [Write; 12] = [
        ("STRTAB_BASE written", |m| m.write_register_u64(SMMU_BASE + 0x80, STREAM_TABLE)),
        ("STRTAB_BASE_CFG written", |m| m.write_register_u32(SMMU_BASE + 0x88, 4)),
        ("CMDQ_BASE written", |m| m.write_register_u64(SMMU_BASE + 0x90, COMMANDS | 4)),
        ("EVENTQ_BASE written", |m| m.write_register_u64(SMMU_BASE + 0xa0, EVENTS | 3)),
        ("CMDQ_CONS written", |m| m.write_register_u32(SMMU_BASE + 0x9c, 0)),
        ("CR1.TABLE_*", |m| m.write_register_u32(SMMU_BASE + 0x28, 0xd75)),
        ("CR2", |m| m.write_register_u32(SMMU_BASE + 0x2c, 1)),
        ("without Update", |m| m.write_register_u32(SMMU_BASE + 0x44, 0)),
        ("GERRORN toggles", |m| m.write_register_u32(SMMU_BASE + 0x64, 1)),
        ("64-bit write of the 32-bit", |m| m.write_register_u64(SMMU_BASE + 0x98, 0)),
        ("MSI address", |m| m.write_register_u64(SMMU_BASE + 0x68, PAGE)),
        ("overruns", |m| m.write_register_u32(SMMU_BASE + 0x98, 25)),
    ];
    for (what, write) in writes {
        let mut bench = Bench::new(SmmuConfig::qemu());
        bench.clean();
        write(&mut bench.machine);
        bench.violates(what);
    }
}

#[test]
fn misaligned_bases_are_seen() {
    let mut machine = Machine::new(64 << 20, &[SmmuConfig::qemu()], &[vec![]]);
    machine.write_register_u64(SMMU_BASE + 0x90, (COMMANDS + 0x80) | 4);
    assert!(machine.violations.take()[0].contains("not a multiple of its 0x100 bytes"));
    machine.write_register_u64(SMMU_BASE + 0xa0, EVENTS | 20);
    assert!(machine.violations.take()[0].contains("at most"));
    machine.write_register_u64(SMMU_BASE + 0x80, STREAM_TABLE + 0x40);
    machine.write_register_u32(SMMU_BASE + 0x88, 8);
    machine.write_register_u32(SMMU_BASE + 0x20, 1 | 1 << 3);
    let all = machine.violations.take().join("\n");
    assert!(all.contains("stream table at") && all.contains("GBPA does not abort"), "{all}");
}

#[test]
fn blocks_are_split_in_place_only_with_bbml_2() {
    for (bbml, allowed) in [(0, false), (1, false), (2, true)] {
        let mut bench = Bench::new(SmmuConfig::qemu().bbml(bbml));
        let entry = LEVEL2 + (PAGE >> 21 & 511) * 8;
        bench.unmap();
        bench.machine.write_u64(entry, 0);
        bench.machine.write_u64(entry, PAGE & !0x1f_ffff | LEAF | 1);
        bench.attach();
        assert_eq!(bench.dma(), Dma::Reached(PAGE));
        bench.clean();
        for n in 0..512 {
            bench.machine.write_u64(LEVEL3 + n * 8, ((PAGE & !0x1f_ffff) + n * 0x1000) | LEAF | 3);
        }
        bench.machine.write_u64(entry, LEVEL3 | 3);
        if allowed {
            bench.clean();
            bench.commands(&[tlbi(VMID, 0), SYNC]);
            assert_eq!(bench.dma(), Dma::Reached(PAGE));
            bench.clean();
        } else {
            bench.violates("is split in place");
        }
    }
}

#[test]
fn a_full_event_queue_drops_and_says_so() {
    let mut bench = Bench::new(SmmuConfig::qemu());
    for _ in 0..9 {
        assert_eq!(bench.dma(), Dma::Aborted);
    }
    assert_eq!(bench.machine.read_register_u32(SMMU_BASE + 0x1_00a8), 1 << 31 | 8);
    bench.machine.write_register_u32(SMMU_BASE + 0x1_00ac, 1 << 31 | 8);
    assert_eq!(bench.dma(), Dma::Aborted);
    assert_eq!(bench.machine.read_register_u32(SMMU_BASE + 0x1_00a8), 1 << 31 | 9);
    bench.clean();
}

#[test]
fn an_ste_that_is_valid_and_illegal_is_seen() {
    let cases: [(usize, u64, &str); 6] = [
        (2, 1 << 51, "S2AA64"),
        (2, 1 << 52, "S2ENDI"),
        (2, 1 << 57, "S2S"),
        (2, 1 << 56, "HTTU"),
        (1, 1 << 28, "EATS"),
        (3, 1 << 46, "S2TTB"),
    ];
    for (word, flip, what) in cases {
        let mut bench = Bench::new(SmmuConfig::qemu());
        bench.attach();
        bench.clean();
        let at = STREAM_TABLE + u64::from(STREAM) * 64 + word as u64 * 8;
        let old = bench.machine.memory.read(at).unwrap();
        bench.machine.write_u64(at, old ^ flip);
        bench.violates(what);
    }
}

#[test]
fn the_cpu_tlb_forgets_nothing_until_told() {
    use tests::model::memory::Span;
    use tests::model::stage2::Stage2Config;
    let mut bench = Bench::new(SmmuConfig::qemu());
    // VTCR_EL2: T0SZ 25, SL0 1, TG0 4 KiB, PS 40 bits.
    bench.machine.cpu.stage2 = Some(Stage2Config::from_registers(25 | 1 << 6 | 2 << 16, ROOT, 44).unwrap());
    assert_eq!(bench.machine.cpu_translate(PAGE, true), Ok(PAGE));
    bench.unmap();
    assert_eq!(bench.machine.cpu_translate(PAGE, false), Ok(PAGE));
    bench.machine.wipe(Span::new(PAGE, 0x1000));
    bench.violates("CPU TLB");
    bench.machine.cpu.invalidate(Span::new(PAGE, 0x1000));
    assert!(bench.machine.cpu_translate(PAGE, false).is_err());
}
