//! The model's STEs and CDs, driven by hand: what is legal, tables of CDs, SubstreamIDs, and what a cached CD survives (IHI 0070, 3.3.3, 3.9.2, 4.3,
//! 5.2 to 5.4 and 7.3).

use tests::model::device::Dma;
use tests::model::smmu::config::SmmuConfig;
use tests::model::smmu::ste::{CdFormat, Eats, Meaning, WithoutSsid};
use tests::rig::*;

const QEMU: SmmuConfig = SmmuConfig::qemu();

fn ssids() -> SmmuConfig {
    QEMU.ssid_bits(16).two_level_cds()
}

#[test]
fn an_ste_says_what_translates() {
    let mut rig = Rig::new(ssids().with_ats());
    rig.host();
    rig.attach(STREAM, with_eats(nested_with(11, 2, 0b01), 0b10));
    let decoded = rig.machine.decoded_in_memory(0, STREAM).unwrap();
    assert_eq!(decoded.eats, Eats::Split);
    let Meaning::Nested { vmid, config, record, contexts } = decoded.meaning else {
        panic!("{decoded:?}");
    };
    assert_eq!((vmid, config.root, record), (VMID as u16, S2_ROOT, true));
    assert_eq!((contexts.pointer, contexts.format, contexts.max_log2), (CDS, CdFormat::Leaf64K, 11));
    assert_eq!(contexts.without_ssid, WithoutSsid::BypassStage1);
    assert_eq!(rig.machine.smmus[0].cached_meaning(STREAM), Some(decoded));
    rig.attach(STREAM, nested());
    let (vmid, context) = rig.machine.context_in_memory(0, STREAM, 0).unwrap();
    assert_eq!((vmid, context.asid, context.walk.root), (VMID as u16, ASID as u16, LEVEL1));
    rig.clean();
}

#[test]
fn an_ste_that_is_valid_and_illegal_is_seen() {
    let all = ssids().with_ats();
    let stage1 = [1 | 0b101 << 1 | physical(CDS), 0, VMID, 0, 0, 0, 0, 0];
    let with = |mut ste: [u64; 8], word: usize, bits: u64| {
        ste[word] ^= bits;
        ste
    };
    let cases: [(&str, SmmuConfig, [u64; 8]); 17] = [
        ("stage 1 is not implemented", QEMU.with(0, 1, 1, 0), nested()),
        ("stage 2 is not implemented", QEMU.with(0, 0, 1, 0), nested()),
        ("S1CDMax", QEMU, nested_with(1, 0, 0)),
        ("S1CDMax", all, nested_with(17, 0, 0)),
        ("CD2L", QEMU.ssid_bits(8), nested_with(8, 1, 0)),
        ("S1Fmt is reserved", all, nested_with(8, 3, 0)),
        ("EATS without ATS", QEMU, with_eats(nested(), 1)),
        ("without both stages", all, with_eats(stage2(), 2)),
        ("without both stages", all, with_eats(stage1, 2)),
        ("NS1ATS", all.without_split_ats(), with_eats(nested(), 2)),
        ("DPT", all, with_eats(nested(), 3)),
        ("S1STALLD", QEMU, with(nested(), 1, 1 << 27)),
        ("S1STALLD", QEMU.with(0, 24, 2, 2), with(nested(), 1, 1 << 27)),
        ("STRW", QEMU, with(nested(), 1, 0b10 << 30)),
        ("S1ContextPtr", QEMU, with(stage1, 0, 1 << 45)),
        ("S2VMID", QEMU.vmid8(), with(stage1, 2, 1 << 8)),
        ("S2S", QEMU, with(nested(), 2, 1 << 57)),
    ];
    for (what, config, ste) in cases {
        let mut rig = Rig::new(config);
        rig.host();
        rig.attach(STREAM, ste);
        rig.violates(what);
        assert!(!rig.reaches(), "{what}");
        assert_eq!(rig.event(), [0x04 | u64::from(STREAM) << 32, 0, 0, 0], "{what}: C_BAD_STE");
    }
    // The same where it is allowed.
    let allowed: [(SmmuConfig, [u64; 8]); 8] = [
        (QEMU, nested()),
        (all, nested_with(16, 0, 0b10)),
        (QEMU.ssid_bits(8), nested_with(8, 0, 0b10)),
        (all, with_eats(nested(), 1)),
        (all, with_eats(nested(), 2)),
        (all.without_split_ats(), with_eats(nested(), 1)),
        (QEMU.with(0, 24, 2, 0), with(nested(), 1, 1 << 27)),
        // S1Fmt and S1DSS do not matter with one CD.
        (QEMU, nested_with(0, 3, 3)),
    ];
    for (config, ste) in allowed {
        let mut rig = Rig::new(config);
        rig.host();
        rig.attach(STREAM, ste);
        assert!(rig.reaches(), "{ste:x?}");
        rig.clean();
    }
    // Above the IPA size, a pointer is not ILLEGAL: its fetch has a stage-2 fault.
    let mut rig = Rig::new(QEMU);
    rig.attach(STREAM, with(nested(), 0, 1 << 45));
    assert!(!rig.reaches());
    assert_eq!(rig.event(), [0x10 | u64::from(STREAM) << 32, 1 << 39, VA, CDS | 1 << 45]);
    rig.clean();
}

#[test]
fn a_cd_that_is_not_legal_gives_an_event() {
    let flip = |word: usize, bits: u64| {
        let mut cd = cd(ASID, LEVEL1);
        cd[word] ^= bits;
        cd
    };
    let cases: [(&str, SmmuConfig, [u64; 8]); 15] = [
        ("V", QEMU, flip(0, 1 << 31)),
        ("AA64", QEMU, flip(0, 1 << 41)),
        ("ENDI", QEMU, flip(0, 1 << 15)),
        ("HA", QEMU, flip(0, 1 << 43)),
        ("HD", QEMU, flip(0, 1 << 42)),
        ("S", QEMU, flip(0, 1 << 44)),
        ("S = 0 where stalls are forced", QEMU.with(0, 24, 2, 2), flip(0, 0)),
        ("A", QEMU, flip(0, 1 << 46)),
        ("ASID", QEMU.asid8(), flip(0, 1 << 60)),
        ("TG0", QEMU, flip(0, 3 << 6)),
        ("granule", QEMU.granules(true, false, false), flip(0, 1 << 6)),
        ("T0SZ 40", QEMU, flip(0, 25 ^ 40)),
        ("T0SZ 15", QEMU, flip(0, 25 ^ 15)),
        ("IPS", QEMU, flip(0, (4 ^ 7) << 32)),
        ("TTB0", QEMU, flip(1, 1 << 45)),
    ];
    for (name, config, cd) in cases {
        let mut ste = nested();
        // S2S = 1 where stalls are forced.
        if config.stall_model() == 2 {
            ste[2] |= 1 << 57;
        }
        let mut rig = Rig::new(config);
        rig.host();
        rig.write_cd(0, cd);
        rig.attach(STREAM, ste);
        assert!(!rig.reaches(), "{name}");
        assert_eq!(rig.event(), [0x0a | u64::from(STREAM) << 32, 0, 0, 0], "{name}: C_BAD_CD");
        // The host's mistake, not EL2's.
        rig.clean();
    }
    let allowed = [
        (QEMU, flip(0, 1 << 47)),
        (QEMU, flip(0, 1 << 60)),
        (QEMU.with(0, 26, 1, 0), flip(0, 1 << 46)),
        (QEMU.with(0, 6, 2, 2), flip(0, 3 << 42)),
        (QEMU, flip(0, (4 ^ 6) << 32)),
    ];
    for (config, cd) in allowed {
        let mut rig = Rig::new(config);
        rig.host();
        rig.write_cd(0, cd);
        rig.attach(STREAM, nested());
        assert!(rig.reaches(), "{cd:x?}");
        rig.clean();
    }
    // EPD0: no walks, so a translation fault; the fields of TTB0 do not matter.
    let mut rig = Rig::new(QEMU);
    rig.host();
    rig.write_cd(0, flip(0, 1 << 14 | 3 << 6));
    rig.attach(STREAM, nested());
    assert!(!rig.reaches());
    assert_eq!(rig.event()[0] & 0xff, 0x10);
    // CD.S where stalls can be chosen, and where the STE forbids them.
    for (stalld, works) in [(0, true), (1 << 27, false)] {
        let mut rig = Rig::new(QEMU.with(0, 24, 2, 0));
        rig.host();
        rig.write_cd(0, flip(0, 1 << 44));
        let mut ste = nested();
        ste[1] |= stalld;
        rig.attach(STREAM, ste);
        assert_eq!(rig.reaches(), works);
    }
}

#[test]
fn a_cd_that_cannot_be_read() {
    // Stage 2 maps the page of the CD to where no RAM is: F_CD_FETCH.
    let mut rig = Rig::new(QEMU);
    rig.host();
    rig.machine.write_u64(S2_LEVEL3, 0x0900_0000 | LEAF2);
    rig.attach(STREAM, nested());
    assert!(!rig.reaches());
    assert_eq!(rig.event(), [0x09 | u64::from(STREAM) << 32, 0, 0, 0]);
    // A stage-1 table there: F_WALK_EABT of stage 1.
    let mut rig = Rig::nested(QEMU);
    rig.machine.write_u64(S2_LEVEL3 + (LEVEL2 >> 12 & 511) * 8, 0x0900_0000 | LEAF2);
    assert!(!rig.reaches());
    assert_eq!(rig.event()[0] & 0xff, 0x0b);
    // S2PTW: a table in stage-2 Device memory is a permission fault, and only with it.
    for (protected, works) in [(0, true), (1 << 54, false)] {
        let mut rig = Rig::nested(QEMU);
        let device = physical(LEVEL2) | LEAF2 & !(0xf << 2) | 1 << 2;
        rig.machine.write_u64(S2_LEVEL3 + (LEVEL2 >> 12 & 511) * 8, device);
        let mut ste = nested();
        ste[2] |= protected;
        rig.attach(STREAM, ste);
        assert_eq!(rig.reaches(), works);
        if !works {
            assert_eq!((rig.event()[0] & 0xff, rig.event()[3]), (0x13, LEVEL2));
        }
    }
}

#[test]
fn a_cd_stays_cached_until_a_command_names_it() {
    let wrong: [(&str, Vec<[u64; 2]>); 8] = [
        ("no command", vec![]),
        ("no SYNC", vec![cfgi_cd(STREAM, 0, 1)]),
        ("SYNC first", vec![SYNC, cfgi_cd(STREAM, 0, 1)]),
        ("other stream", vec![cfgi_cd(OTHER, 0, 1), SYNC]),
        ("all of another stream", vec![cfgi_cd_all(OTHER), SYNC]),
        ("STE of another stream", vec![cfgi_ste(OTHER), SYNC]),
        ("TLBIs", vec![s12_vmall(VMID), [0x30, 0], SYNC]),
        ("other SSID", vec![cfgi_cd(STREAM, 1, 1), SYNC]),
    ];
    for (name, commands) in wrong {
        let mut rig = Rig::nested(ssids());
        assert!(rig.reaches());
        rig.write_cd(0, [0; 8]);
        rig.commands(&commands);
        rig.commands(&[nh_all(VMID), SYNC]);
        assert_eq!(rig.reaches(), !matches!(name, "no SYNC" | "SYNC first"), "{name}");
    }
    for command in
        [cfgi_cd(STREAM, 0, 1), cfgi_cd(STREAM, 0, 0), cfgi_cd_all(STREAM), cfgi_ste(STREAM), [4, 31]]
    {
        for config in [QEMU, QEMU.lazy()] {
            let mut rig = Rig::nested(config);
            assert!(rig.reaches());
            rig.write_cd(0, [0; 8]);
            rig.commands(&[command]);
            assert!(rig.reaches(), "{command:x?}: before SYNC");
            rig.commands(&[SYNC]);
            assert!(!rig.reaches(), "{command:x?}");
            rig.clean();
        }
    }
    // A command before the store has no use, for a CD that becomes valid too.
    let mut rig = Rig::nested(QEMU);
    rig.commands(&[cfgi_cd(STREAM, 0, 1)]);
    rig.write_cd(0, [0; 8]);
    rig.commands(&[SYNC]);
    assert!(rig.reaches());
    let mut rig = Rig::new(QEMU);
    rig.attach(STREAM, nested());
    assert!(!rig.reaches());
    rig.host();
    assert!(!rig.reaches(), "an invalid CD is cached");
    rig.commands(&[cfgi_cd(STREAM, 0, 1), SYNC]);
    assert!(rig.reaches());
}

/// CFGI_STE: what is read through the old STE before the SYNC goes with it.
#[test]
fn cds_of_an_old_ste_go_with_it() {
    for config in [ssids(), ssids().lazy()] {
        let mut rig = Rig::nested(config);
        assert!(rig.reaches());
        rig.write_cd(64, cd(ASID + 1, LEVEL1 + 0x8_0000));
        let mut ste = nested();
        ste[0] += 64 * 64;
        rig.write_ste(STREAM, ste);
        rig.commands(&[cfgi_ste(STREAM)]);
        assert!(rig.reaches());
        rig.commands(&[SYNC]);
        assert!(!rig.reaches(), "the new CD has no tables");
        rig.clean();
    }
}

/// What is read for the first time between the command and its SYNC goes with it, if it was found through what the command names.
#[test]
fn cds_read_before_the_sync() {
    let reached = Dma::Reached(physical(PAGE));
    let leaf = IPA + 0x18_0000;
    let dma = |rig: &mut Rig| rig.machine.dma_write(0, (STREAM, 2), VA, 1);
    for two_level in [false, true] {
        // Through the old STE: the new one has other tables, in which SSID 2 is invalid.
        let mut rig = Rig::new(ssids().lazy());
        rig.host();
        let format = if two_level {
            rig.host_write(CDS, leaf | 1);
            (0..2).for_each(|n| rig.host_write(leaf + 2 * 64 + n * 8, cd(ASID, LEVEL1)[n as usize]));
            1
        } else {
            rig.write_cd(2, cd(ASID, LEVEL1));
            0
        };
        rig.attach(STREAM, nested_with(3, format, 0b01));
        assert_eq!(rig.machine.dma_write(0, STREAM, PAGE, 1), reached, "the STE is cached");
        let mut other = nested_with(3, format, 0b01);
        other[0] += 0x1_0000;
        rig.write_ste(STREAM, other);
        rig.commands(&[cfgi_ste(STREAM)]);
        assert_eq!(dma(&mut rig), reached);
        rig.commands(&[SYNC]);
        assert_eq!(dma(&mut rig), Dma::Aborted);
        rig.clean();
    }
    // Through a level-1 descriptor that CFGI_CD_ALL names.
    let mut rig = Rig::new(ssids().lazy());
    rig.host();
    rig.host_write(CDS, leaf | 1);
    (0..2).for_each(|n| rig.host_write(leaf + 2 * 64 + n * 8, cd(ASID, LEVEL1)[n as usize]));
    rig.attach(STREAM, nested_with(3, 1, 0b01));
    assert_eq!(rig.machine.dma_write(0, (STREAM, 1), VA, 1), Dma::Aborted, "the descriptor is cached");
    rig.host_write(CDS, 0);
    rig.commands(&[cfgi_cd_all(STREAM)]);
    assert_eq!(dma(&mut rig), reached);
    rig.commands(&[SYNC]);
    assert_eq!(dma(&mut rig), Dma::Aborted);
    rig.clean();
}

#[test]
fn a_pointer_to_cds_is_a_multiple_of_their_size() {
    // 5.2, S1ContextPtr: the bits below the table's size are taken as 0.
    let mut rig = Rig::new(ssids());
    rig.host();
    let mut ste = nested_with(3, 0, 0b10);
    ste[0] |= 7 * 64;
    rig.attach(STREAM, ste);
    assert!(rig.reaches());
    let contexts = rig.machine.meaning_in_memory(0, STREAM).and_then(|meaning| meaning.contexts());
    assert_eq!(contexts.map(|contexts| contexts.pointer), Some(CDS));
    // With one CD they count.
    ste[0] &= !(0x1f << 59);
    rig.attach(STREAM, ste);
    assert!(!rig.reaches());
    rig.clean();
}

#[test]
fn ssids_choose_cds() {
    // (S1CDMax, S1DSS, SSID, outcome: a CD, or an event).
    const BAD_SSID: u8 = 0x08;
    const DISABLED: u8 = 0x06;
    type Case = (u64, u64, Option<u32>, Result<u64, u8>);
    let cases: [Case; 13] = [
        (0, 0, None, Ok(0)),
        (0, 0, Some(0), Err(BAD_SSID)),
        (0, 0, Some(1), Err(BAD_SSID)),
        (3, 0b10, None, Ok(0)),
        (3, 0b10, Some(0), Err(DISABLED)),
        (3, 0b10, Some(1), Ok(1)),
        (3, 0b10, Some(7), Ok(7)),
        (3, 0b10, Some(8), Err(BAD_SSID)),
        (3, 0b00, None, Err(DISABLED)),
        (3, 0b00, Some(0), Ok(0)),
        (3, 0b01, Some(0), Ok(0)),
        (3, 0b01, Some(1), Ok(1)),
        (3, 0b11, None, Err(DISABLED)),
    ];
    for (max, dss, ssid, outcome) in cases {
        let mut rig = Rig::new(ssids());
        rig.host();
        // Each CD has tables of its own, that map VA to another page; levels 1 and 2 are shared but for entry 0.
        for n in 0..8 {
            let (level1, level2) = (IPA + 0x10_0000 + n * 0x3000, IPA + 0x10_1000 + n * 0x3000);
            let level3 = IPA + 0x10_2000 + n * 0x3000;
            rig.host_write(level1 + (VA >> 30) * 8, level2 | 3);
            rig.host_write(level2 + (VA >> 21 & 511) * 8, level3 | 3);
            rig.host_write(level3, (PAGE + n * 0x1000) | LEAF1);
            rig.write_cd(n, cd(ASID + n, level1));
        }
        rig.attach(STREAM, nested_with(max, 0, dss));
        let got = rig.machine.dma_write(0, (STREAM, ssid), VA, 1);
        let evaluated = rig.machine.evaluate(0, (STREAM, ssid), VA, true);
        match outcome {
            Ok(n) => {
                assert_eq!(got, Dma::Reached(physical(PAGE) + n * 0x1000), "{max} {dss} {ssid:?}");
                assert_eq!(evaluated, Ok(physical(PAGE) + n * 0x1000));
            }
            Err(event) => {
                assert_eq!(got, Dma::Aborted, "{max} {dss} {ssid:?}");
                let ssv = ssid.map_or(0, |ssid| 1 << 11 | u64::from(ssid) << 12);
                let word = u64::from(event) | ssv | u64::from(STREAM) << 32;
                assert_eq!(rig.event(), [word, 0, 0, 0], "{max} {dss} {ssid:?}");
                assert_eq!(evaluated.unwrap_err().event, Some(event));
            }
        }
        rig.clean();
    }
    // S1DSS = 0b01: without an SSID, stage 2 alone.
    let mut rig = Rig::new(ssids());
    rig.host();
    rig.attach(STREAM, nested_with(3, 0, 0b01));
    assert_eq!(rig.machine.dma_write(0, STREAM, PAGE, 1), Dma::Reached(physical(PAGE)));
    assert_eq!(rig.machine.dma_write(0, STREAM, VA, 1), Dma::Aborted);
    // Without stage 1 there are no substreams (7.3.9).
    rig.attach(STREAM, stage2());
    assert_eq!(rig.machine.dma_write(0, (STREAM, 0), PAGE, 1), Dma::Aborted);
    assert_eq!(rig.event()[0] & 0xff, 0x08);
    assert_eq!(rig.machine.dma_write(0, STREAM, PAGE, 1), Dma::Reached(physical(PAGE)));
    rig.clean();
}

#[test]
fn cd_tables_of_two_levels() {
    for (format, leaf_log2) in [(1u64, 6u64), (2, 10)] {
        let ssid = (2u64 << leaf_log2) | 5;
        let leaf = IPA + 0x18_0000;
        let build = |rig: &mut Rig| {
            rig.host();
            rig.host_write(CDS + 2 * 8, leaf | 1);
            rig.host_write(CDS, 0);
            for (word, offset) in cd(ASID, LEVEL1).into_iter().zip((0..).step_by(8)) {
                rig.host_write(leaf + 5 * 64 + offset, word);
            }
            rig.attach(STREAM, nested_with(12, format, 0b00));
        };
        let reaches = |rig: &mut Rig| {
            rig.machine.dma_write(0, (STREAM, ssid as u32), VA, 1) == Dma::Reached(physical(PAGE))
        };
        let mut rig = Rig::new(ssids());
        build(&mut rig);
        assert!(reaches(&mut rig), "format {format}");
        // An invalid level-1 descriptor means that there is no such SSID.
        assert_eq!(rig.machine.dma_write(0, (STREAM, 1), VA, 1), Dma::Aborted);
        assert_eq!(rig.event()[0] & 0xff, 0x08);
        // The level-1 descriptor is cached apart from the CD: Leaf = 1 leaves it.
        rig.host_write(CDS + 2 * 8, 0);
        rig.commands(&[cfgi_cd(STREAM, ssid, 1), SYNC]);
        assert!(reaches(&mut rig), "format {format}, Leaf = 1");
        rig.commands(&[cfgi_cd(STREAM, ssid, 0), SYNC]);
        assert!(!reaches(&mut rig), "format {format}, Leaf = 0");
        rig.clean();
        for command in [cfgi_cd_all(STREAM), cfgi_ste(STREAM), [4, 31]] {
            let mut rig = Rig::new(ssids());
            build(&mut rig);
            assert!(reaches(&mut rig));
            rig.host_write(CDS + 2 * 8, 0);
            rig.commands(&[command, SYNC]);
            assert!(!reaches(&mut rig), "{command:x?}");
        }
        // Its physical address counts as reached too.
        let mut rig = Rig::new(ssids());
        build(&mut rig);
        assert!(reaches(&mut rig));
        rig.take(CDS);
        rig.commands(&[s12_vmall(VMID), SYNC, cfgi_cd(STREAM, ssid, 1), SYNC]);
        rig.wipe(CDS);
        rig.violates("the CD table 2 of stream 0x10");
        rig.commands(&[cfgi_cd_all(STREAM), SYNC]);
        rig.wipe(CDS);
        rig.clean();
    }
}

#[test]
fn what_a_freed_page_may_not_be() {
    let mut rig = Rig::nested(QEMU);
    assert!(rig.reaches());
    rig.machine.heaps[0].add(physical(LEVEL3) >> 12, 1).unwrap();
    let page = rig.machine.heap_take(0, 0).unwrap();
    rig.machine.heap_give(0, page, 0);
    rig.violates("a pointer to the stage-1 table");
    rig.host_write(LEVEL2 + (VA >> 21 & 511) * 8, 0);
    rig.commands(&[nh_all(VMID), SYNC]);
    let page = rig.machine.heap_take(0, 0).unwrap();
    rig.machine.heap_give(0, page, 0);
    rig.clean();
}

/// The stage-2 tables below a nested stream are checked for break-before-make as those of any other.
#[test]
fn blocks_below_nested_streams_are_split_only_with_bbml_2() {
    for (bbml, allowed) in [(0, false), (2, true)] {
        let mut rig = Rig::new(QEMU.bbml(bbml));
        rig.host();
        let entry = S2_LEVEL2 + (IPA >> 21 & 511) * 8;
        rig.machine.write_u64(entry, 0);
        rig.machine.write_u64(entry, HOST | LEAF2 & !2);
        rig.attach(STREAM, nested());
        assert!(rig.reaches());
        rig.clean();
        rig.machine.write_u64(entry, S2_LEVEL3 | 3);
        if allowed {
            rig.clean();
        } else {
            rig.violates("is split in place");
        }
    }
}
