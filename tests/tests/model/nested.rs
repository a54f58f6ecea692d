//! The model's stage 1 and nested translation, driven by hand: what a combined entry, a stage-1 table pointer and a cached CD survive, and
//! what takes them away (IHI 0070, 3.4, 3.21, 4.3 and 4.4; DDI 0487, D8).

use tests::model::device::Dma;
use tests::model::inspect::Cached;
use tests::model::smmu::config::SmmuConfig;
use tests::model::smmu::event::Class;
use tests::rig::*;

const QEMU: SmmuConfig = SmmuConfig::qemu();

/// NH_VA with TG and range fields: NUM, TTL, TG.
fn nh_va_range(va: u64, num: u64, ttl: u64, tg: u64) -> [u64; 2] {
    [0x12 | VMID << 32 | ASID << 48 | num << 12, va | 1 | ttl << 8 | tg << 10]
}

#[test]
fn both_stages_translate() {
    let mut rig = Rig::nested(QEMU);
    assert!(rig.reaches());
    assert_eq!(rig.machine.memory.read(physical(PAGE)), Some(0x55));
    assert_eq!(rig.machine.dma_read(0, STREAM, VA), Some(0x55));
    assert_eq!(rig.machine.evaluate(0, STREAM, VA + 8, true), Ok(physical(PAGE) + 8));
    // Nothing else is mapped by stage 1, and a stream without an STE has nothing.
    assert_eq!(rig.machine.dma_write(0, STREAM, PAGE, 1), Dma::Aborted);
    assert_eq!(rig.machine.dma_write(0, OTHER, VA, 1), Dma::Aborted);
    rig.clean();
}

#[test]
fn stage_1_alone_translates_to_physical_addresses() {
    let mut rig = Rig::new(QEMU);
    rig.host_without_stage2();
    rig.attach(STREAM, [1 | 0b101 << 1 | physical(CDS), 0, VMID, 0, 0, 0, 0, 0]);
    assert!(rig.reaches());
    rig.host_write(LEVEL3, 0);
    assert!(rig.reaches());
    // S2VMID is a tag without stage 2 too.
    rig.commands(&[nh_va(VMID + 1, ASID, VA, 1), SYNC]);
    assert!(rig.reaches());
    rig.commands(&[nh_va(VMID, ASID, VA, 1), SYNC]);
    assert!(!rig.reaches());
    rig.clean();
}

/// An entry of stage 1 alone has the same tags as a combined one: it must go before stage 2 comes.
#[test]
fn an_entry_from_before_stage_2_is_still_found() {
    let mut rig = Rig::new(QEMU);
    rig.host_without_stage2();
    rig.attach(STREAM, [1 | 0b101 << 1 | physical(CDS), 0, VMID, 0, 0, 0, 0, 0]);
    assert!(rig.reaches());
    rig.host();
    rig.host_write(LEVEL3, (PAGE + 0x1000) | LEAF1);
    rig.attach(STREAM, nested());
    assert!(rig.reaches());
    rig.commands(&[nh_all(VMID), SYNC]);
    assert_eq!(rig.dma(), Dma::Reached(physical(PAGE) + 0x1000));
}

#[test]
fn a_combined_entry_stays_until_a_stage_1_command_that_names_it() {
    let wrong: [(&str, Vec<[u64; 2]>); 11] = [
        ("no command", vec![]),
        ("no SYNC", vec![nh_all(VMID)]),
        ("SYNC first", vec![SYNC, nh_all(VMID)]),
        ("other VMID", vec![nh_all(VMID + 1), SYNC]),
        ("other ASID", vec![nh_asid(VMID, ASID + 1), SYNC]),
        ("ASID of another VMID", vec![nh_asid(VMID + 1, ASID), SYNC]),
        ("other VA", vec![nh_va(VMID, ASID, VA + 0x1000, 0), SYNC]),
        ("VA with another ASID", vec![nh_va(VMID, ASID + 1, VA, 0), SYNC]),
        ("the IPA", vec![s2_ipa(VMID, PAGE), SYNC]),
        ("the VA as an IPA", vec![s2_ipa(VMID, VA), SYNC]),
        ("configuration", vec![cfgi_ste(STREAM), SYNC]),
    ];
    for (name, commands) in wrong {
        let mut rig = Rig::nested(QEMU);
        assert!(rig.reaches());
        rig.host_write(LEVEL3, 0);
        rig.commands(&commands);
        assert!(rig.reaches(), "{name}");
        rig.commands(&[nh_all(VMID), SYNC]);
        assert!(!rig.reaches(), "{name}: control");
    }
    let right = [
        nh_all(VMID),
        nh_asid(VMID, ASID),
        nh_va(VMID, ASID, VA, 0),
        nh_va(VMID, ASID, VA, 1),
        [0x13 | VMID << 32, VA],
        nh_va_range(VA, 0, 3, 1),
        nh_va_range(VA - 0x1_0000, 31, 3, 1),
        s12_vmall(VMID),
        [0x30, 0],
    ];
    for command in right {
        let mut rig = Rig::nested(QEMU);
        assert!(rig.reaches());
        rig.host_write(LEVEL3, 0);
        rig.commands(&[command, SYNC]);
        assert!(!rig.reaches(), "{command:x?}");
        rig.clean();
    }
}

#[test]
fn range_hints_are_about_the_stage_1_leaf() {
    let wrong = [
        ("TTL 2", nh_va_range(VA & !0x1f_ffff, 511 & 31, 2, 1)),
        ("64 KiB", nh_va_range(VA & !0xffff, 0, 3, 3)),
        ("a range beside it", nh_va_range(VA + 0x1000, 31, 3, 1)),
    ];
    for (name, command) in wrong {
        let mut rig = Rig::nested(QEMU);
        assert!(rig.reaches());
        rig.host_write(LEVEL3, 0);
        rig.commands(&[command, SYNC]);
        assert!(rig.reaches(), "{name}");
    }
    // A 2 MiB block of stage 1 over pages of stage 2: cached in pages, each with the level of the block.
    let mut rig = Rig::nested(QEMU);
    rig.host_write(LEVEL2 + (VA >> 21 & 511) * 8, IPA | LEAF1 & !2);
    let at = VA + (PAGE - IPA);
    assert_eq!(rig.machine.dma_write(0, STREAM, at, 1), Dma::Reached(physical(PAGE)));
    rig.host_write(LEVEL2 + (VA >> 21 & 511) * 8, 0);
    rig.commands(&[nh_va_range(at, 0, 3, 1), SYNC]);
    assert_eq!(rig.machine.dma_write(0, STREAM, at, 1), Dma::Reached(physical(PAGE)));
    // 512 pages with TTL 2: SCALE 5, NUM 15.
    rig.commands(&[[0x12 | VMID << 32 | ASID << 48 | 15 << 12 | 5 << 20, VA | 1 | 2 << 8 | 1 << 10], SYNC]);
    assert_eq!(rig.machine.dma_write(0, STREAM, at, 1), Dma::Aborted);
    rig.clean();
}

#[test]
fn a_global_entry_is_for_all_asids() {
    let global = |rig: &mut Rig| rig.host_write(LEVEL3, PAGE | LEAF1 & !(1 << 11));
    for (name, command, gone) in [
        ("its ASID", nh_asid(VMID, ASID), false),
        ("VA with another ASID", nh_va(VMID, ASID + 1, VA, 1), true),
        ("VA of every ASID", [0x13 | VMID << 32, VA | 1], true),
        ("all", nh_all(VMID), true),
    ] {
        let mut rig = Rig::nested(QEMU);
        global(&mut rig);
        assert!(rig.reaches());
        rig.host_write(LEVEL3, 0);
        rig.commands(&[command, SYNC]);
        assert_eq!(rig.reaches(), !gone, "{name}");
    }
    // Another CD of the same VMID finds it, and not what is for one ASID.
    for (leaf, shared) in [(LEAF1 & !(1 << 11), true), (LEAF1, false)] {
        let mut rig = Rig::nested(QEMU);
        rig.host_write(LEVEL3, PAGE | leaf);
        assert!(rig.reaches());
        rig.host_write(LEVEL3, 0);
        rig.write_cd(8, cd(ASID + 1, LEVEL1));
        let mut ste = nested();
        ste[0] |= 8 * 64;
        rig.attach(OTHER, ste);
        assert_eq!(rig.machine.dma_write(0, OTHER, VA, 1) != Dma::Aborted, shared);
        rig.clean();
    }
}

/// The reason for S1_CLEAR: taking a page out of stage 2 is not seen by what stage 1 has a part in.
#[test]
fn taking_a_page_from_stage_2_needs_a_stage_1_command_after_a_sync() {
    let wrong: [(&str, Vec<[u64; 2]>); 5] = [
        ("S2_IPA alone", vec![s2_ipa(VMID, PAGE), SYNC]),
        ("both before one SYNC", vec![s2_ipa(VMID, PAGE), nh_all(VMID), SYNC]),
        ("the wrong way round", vec![nh_all(VMID), SYNC, s2_ipa(VMID, PAGE), SYNC]),
        ("NH_ALL alone", vec![nh_all(VMID), SYNC]),
        ("S12_VMALL of another VMID", vec![s12_vmall(VMID + 1), SYNC]),
    ];
    for (name, commands) in wrong {
        let mut rig = Rig::nested(QEMU);
        assert!(rig.reaches());
        rig.take(PAGE);
        rig.commands(&commands);
        assert!(rig.reaches(), "{name}");
        rig.wipe(PAGE);
        rig.violates("is wiped while SMMU 0 caches");
    }
    let right: [(&str, Vec<[u64; 2]>); 3] = [
        ("S2_IPA, then NH_ALL", vec![s2_ipa(VMID, PAGE), SYNC, nh_all(VMID), SYNC]),
        ("S12_VMALL", vec![s12_vmall(VMID), SYNC]),
        ("NSNH_ALL", vec![[0x30, 0], SYNC]),
    ];
    for (name, commands) in right {
        for config in [QEMU, QEMU.lazy()] {
            let mut rig = Rig::nested(config);
            assert!(rig.reaches());
            rig.take(PAGE);
            rig.commands(&commands);
            rig.wipe(PAGE);
            rig.clean();
            assert!(!rig.reaches(), "{name}");
        }
    }
}

#[test]
fn transactions_between_a_command_and_its_sync() {
    // A new entry is made from a stage-2 entry that S2_IPA named: it outlives the SYNC. After S12_VMALL nothing does.
    for (command, outlives) in [(s2_ipa(VMID, PAGE), true), (s12_vmall(VMID), false)] {
        let mut rig = Rig::nested(QEMU.lazy());
        // Only stage 2 has the page in its TLB.
        rig.attach(OTHER, stage2());
        assert_eq!(rig.machine.dma_write(0, OTHER, PAGE, 1), Dma::Reached(physical(PAGE)));
        rig.take(PAGE);
        rig.commands(&[command]);
        assert_eq!(rig.machine.dma_write(0, OTHER, PAGE, 1), Dma::Reached(physical(PAGE)));
        assert_eq!(rig.reaches(), outlives);
        rig.commands(&[SYNC]);
        assert_eq!(rig.machine.dma_write(0, OTHER, PAGE, 1), Dma::Aborted);
        assert_eq!(rig.reaches(), outlives);
    }
}

#[test]
fn a_pointer_to_a_stage_1_table_keeps_its_physical_address() {
    for table in [LEVEL1, LEVEL2, LEVEL3] {
        let mut rig = Rig::nested(QEMU);
        assert!(rig.reaches());
        rig.take(table);
        rig.commands(&[s2_ipa(VMID, table), SYNC]);
        rig.wipe(table);
        rig.violates("a pointer to the stage-1 table");
        // It is still walked: what the next owner writes there counts.
        if table == LEVEL3 {
            rig.host_write(LEVEL3 + 8, (PAGE + 0x1000) | LEAF1);
            let there = rig.machine.dma_write(0, STREAM, VA + 0x1000, 1);
            assert_eq!(there, Dma::Reached(physical(PAGE) + 0x1000));
        }
        rig.commands(&[nh_all(VMID), SYNC]);
        rig.wipe(table);
        rig.clean();
        assert!(!rig.reaches());
        assert_eq!(rig.event()[1] >> 39, 1 | 0b01 << 1 | 1 << 5, "S2, CLASS TT, TTRnW");
        assert_eq!(rig.event()[3], table);
    }
    // Leaf = 1 leaves the pointer.
    let mut rig = Rig::nested(QEMU);
    assert!(rig.reaches());
    rig.host_write(LEVEL2 + (VA >> 21 & 511) * 8, 0);
    rig.commands(&[nh_va(VMID, ASID, VA, 1), SYNC]);
    assert!(rig.reaches());
    rig.commands(&[nh_va(VMID, ASID, VA, 0), SYNC]);
    assert!(!rig.reaches());
}

#[test]
fn a_cd_stays_cached_with_the_address_it_was_read_from() {
    // Removing its page from stage 2 does not move the cached CD, whatever the TLB forgets.
    let mut rig = Rig::nested(QEMU);
    assert!(rig.reaches());
    rig.take(CDS);
    rig.commands(&[s12_vmall(VMID), SYNC, nh_all(VMID), SYNC]);
    assert!(rig.reaches());
    rig.wipe(CDS);
    rig.violates("the CD of stream 0x10");
    // The command before the TLBI is of no use: the CD is read again through the old translation.
    let mut rig = Rig::nested(QEMU);
    assert!(rig.reaches());
    rig.take(CDS);
    rig.commands(&[cfgi_cd_all(STREAM), s12_vmall(VMID), SYNC]);
    rig.wipe(CDS);
    rig.violates("the CD of stream 0x10");
    for command in [cfgi_cd(STREAM, 0, 1), cfgi_cd_all(STREAM), cfgi_ste(STREAM), [4, 31]] {
        let mut rig = Rig::nested(QEMU);
        assert!(rig.reaches());
        rig.take(CDS);
        rig.commands(&[s12_vmall(VMID), SYNC, command, SYNC]);
        rig.wipe(CDS);
        rig.clean();
        assert!(!rig.reaches());
        // A stage-2 fault of the CD's fetch: CLASS 0b00.
        assert_eq!(rig.event(), [0x10 | u64::from(STREAM) << 32, 1 << 39, VA, CDS]);
    }
}

#[test]
fn each_stage_and_fetch_has_its_own_fault() {
    let stream = u64::from(STREAM) << 32;
    type Break = fn(&mut Rig);
    let cases: [(&str, Break, [u64; 4]); 9] = [
        ("stage 1 has no leaf", |r| r.host_write(LEVEL3, 0), [0x10 | stream, 0b10 << 40, VA, 0]),
        ("AF = 0", |r| r.host_write(LEVEL3, PAGE | LEAF1 & !(1 << 10)), [0x12 | stream, 0b10 << 40, VA, 0]),
        (
            "AP[2]: read-only",
            |r| r.host_write(LEVEL3, PAGE | LEAF1 | 1 << 7),
            [0x13 | stream, 0b10 << 40, VA, 0],
        ),
        (
            "AP[1] = 0: privileged",
            |r| r.host_write(LEVEL3, PAGE | LEAF1 & !(1 << 6)),
            [0x13 | stream, 0b10 << 40, VA, 0],
        ),
        ("IPA above IPS", |r| r.host_write(LEVEL3, 1 << 45 | LEAF1), [0x11 | stream, 0b10 << 40, VA, 0]),
        ("stage 2 has no page", |r| r.take(PAGE), [0x10 | stream, 1 << 39 | 0b10 << 40, VA, PAGE]),
        (
            "stage 2 is read-only",
            |r| {
                r.machine.write_u64(S2_LEVEL3 + (PAGE >> 12 & 511) * 8, physical(PAGE) | LEAF2 & !(1 << 7));
            },
            [0x13 | stream, 1 << 39 | 0b10 << 40, VA, PAGE],
        ),
        (
            "stage 2 has no table",
            |r| r.take(LEVEL2),
            [0x10 | stream, 1 << 39 | 0b01 << 40 | 1 << 44, VA, LEVEL2],
        ),
        (
            "APTable[1]: read-only",
            |r| {
                r.host_write(LEVEL2 + (VA >> 21 & 511) * 8, LEVEL3 | 3 | 1 << 62);
            },
            [0x13 | stream, 0b10 << 40, VA, 0],
        ),
    ];
    for (name, spoil, event) in cases {
        let mut rig = Rig::nested(QEMU);
        spoil(&mut rig);
        let evaluated = rig.machine.evaluate(0, STREAM, VA, true);
        assert!(!rig.reaches(), "{name}");
        assert_eq!(rig.event(), event, "{name}");
        let refusal = evaluated.expect_err(name);
        assert_eq!(refusal.event, Some(event[0] as u8), "{name}");
        assert_eq!(refusal.stage2, event[1] >> 39 & 1 == 1, "{name}");
        rig.clean();
    }
    // Reads are not writes.
    for spoil in [cases[2].1, cases[6].1] {
        let mut rig = Rig::nested(QEMU);
        spoil(&mut rig);
        assert!(rig.machine.dma_read(0, STREAM, VA).is_some());
    }
    // HAD0 = 1: APTable does not count.
    let mut rig = Rig::nested(QEMU);
    cases[8].1(&mut rig);
    rig.write_cd(0, cd(ASID, LEVEL1 | 2));
    rig.commands(&[cfgi_cd(STREAM, 0, 1), SYNC]);
    assert!(rig.reaches());
    // PRIVCFG = 0b11 makes transactions privileged.
    let mut rig = Rig::nested(QEMU);
    cases[3].1(&mut rig);
    let mut ste = nested();
    ste[1] |= 0b11 << 48;
    rig.attach(STREAM, ste);
    assert!(rig.reaches());
    // Records are asked for by CD.R for stage 1 and S2R for stage 2.
    for (place, spoil) in [(0, cases[0].1), (1, cases[5].1)] {
        let mut rig = Rig::nested(QEMU);
        if place == 0 {
            let mut quiet = cd(ASID, LEVEL1);
            quiet[0] &= !(1 << 45);
            rig.write_cd(0, quiet);
            rig.commands(&[cfgi_cd(STREAM, 0, 1), SYNC]);
        } else {
            let mut ste = nested();
            ste[2] &= !(1 << 58);
            rig.attach(STREAM, ste);
        }
        spoil(&mut rig);
        let events = rig.machine.smmus[0].events.len();
        assert!(!rig.reaches());
        assert_eq!(rig.machine.smmus[0].events.len(), events);
        assert_eq!(rig.machine.evaluate(0, STREAM, VA, true).unwrap_err().class, Class::Input);
    }
}

#[test]
fn stage_2_alone_and_nested_share_a_vmid() {
    let mut rig = Rig::nested(QEMU.lazy());
    rig.attach(OTHER, stage2());
    assert!(rig.reaches());
    assert_eq!(rig.machine.dma_write(0, OTHER, PAGE, 1), Dma::Reached(physical(PAGE)));
    // The stage-2 entry is one for both; a stage-1 command leaves it alone.
    rig.take(PAGE);
    rig.commands(&[nh_all(VMID), SYNC]);
    assert_eq!(rig.machine.dma_write(0, OTHER, PAGE, 1), Dma::Reached(physical(PAGE)));
    rig.commands(&[s2_ipa(VMID, PAGE), SYNC]);
    assert_eq!(rig.machine.dma_write(0, OTHER, PAGE, 1), Dma::Aborted);
    let kinds = rig.machine.smmus[0].cached().filter(|cached| cached.vmid() == Some(VMID as u16)).count();
    assert!(kinds > 0);
    rig.commands(&[s12_vmall(VMID), SYNC]);
    let left: Vec<Cached> = rig.machine.smmus[0]
        .cached()
        .filter(|cached| {
            cached.vmid().is_some() && !matches!(cached, Cached::Stage2(_) | Cached::Stage2Walk(_))
        })
        .collect();
    assert_eq!(left, []);
}

#[test]
fn granules_and_input_sizes() {
    // (TG0, granule, T0SZ): the level that the walk starts at differs.
    for (tg, granule, t0sz) in
        [(1u64, 16u64, 22u64), (1, 16, 16), (2, 14, 17), (2, 14, 28), (0, 12, 16), (0, 12, 34)]
    {
        let mut rig = Rig::nested(QEMU.granules(true, true, true));
        let levels = (64 - t0sz - granule).div_ceil(granule - 3);
        let va = VA & ((1 << (64 - t0sz)) - 1);
        // Tables 64 KiB apart; the last one maps the page's granule.
        let table = |n: u64| IPA + 0x8_0000 + n * 0x1_0000;
        for n in 0..levels {
            let shift = granule + (levels - 1 - n) * (granule - 3);
            let index = va >> shift & ((1 << (granule - 3)) - 1);
            let page = PAGE & !((1 << granule) - 1);
            let entry = if n + 1 == levels { page | LEAF1 } else { table(n + 1) | 3 };
            rig.host_write(table(n) + index * 8, entry);
        }
        let mut cd = cd(ASID, table(0));
        cd[0] = cd[0] & !0xff | t0sz | tg << 6;
        rig.write_cd(0, cd);
        rig.commands(&[cfgi_cd(STREAM, 0, 1), SYNC]);
        let page = physical(PAGE) & !((1 << granule) - 1) | va & ((1 << granule) - 1);
        assert_eq!(rig.machine.dma_write(0, STREAM, va, 1), Dma::Reached(page), "{granule} {t0sz}");
        assert_eq!(rig.machine.dma_write(0, STREAM, va + (1 << granule), 1), Dma::Aborted);
        assert_eq!(rig.machine.dma_write(0, STREAM, va | 1 << 55, 1), Dma::Aborted);
        rig.clean();
    }
}

#[test]
fn table_pointers_have_an_asid_and_the_first_one_a_table() {
    // A pointer goes with its own ASID only.
    for (command, gone) in [(nh_asid(VMID, ASID + 1), false), (nh_asid(VMID, ASID), true)] {
        let mut rig = Rig::nested(QEMU.lazy());
        rig.host_write(LEVEL3 + 8, (PAGE + 0x1000) | LEAF1);
        assert!(rig.reaches());
        rig.host_write(LEVEL2 + (VA >> 21 & 511) * 8, 0);
        rig.commands(&[command, SYNC]);
        assert_eq!(rig.machine.dma_write(0, STREAM, VA + 0x1000, 1) == Dma::Aborted, gone, "{command:x?}");
        rig.clean();
    }
    // Two CDs with one ASID and two first tables: none walks from the other's.
    let mut rig = Rig::nested(QEMU);
    assert!(rig.reaches());
    rig.write_cd(8, cd(ASID, IPA + 0x3_0000));
    let mut ste = nested();
    ste[0] |= 8 * 64;
    rig.attach(OTHER, ste);
    let far = VA + (1 << 31);
    rig.host_write(LEVEL1 + (far >> 30) * 8, LEVEL2 | 3);
    assert_eq!(rig.machine.dma_write(0, OTHER, far, 1), Dma::Aborted);
    assert_eq!(rig.machine.dma_write(0, STREAM, far, 1), Dma::Reached(physical(PAGE)));
    rig.clean();
}

#[test]
fn a_block_of_stage_1_is_as_scattered_as_stage_2() {
    let mut rig = Rig::nested(QEMU);
    rig.host_write(LEVEL2 + (VA >> 21 & 511) * 8, IPA | LEAF1 & !2);
    // Two neighbours in IPA space change places in physical memory.
    for (ipa, to) in [(PAGE, PAGE + 0x1000), (PAGE + 0x1000, PAGE)] {
        rig.machine.write_u64(S2_LEVEL3 + (ipa >> 12 & 511) * 8, 0);
        rig.machine.write_u64(S2_LEVEL3 + (ipa >> 12 & 511) * 8, physical(to) | LEAF2);
    }
    let at = VA + (PAGE - IPA);
    assert_eq!(rig.machine.dma_write(0, STREAM, at, 1), Dma::Reached(physical(PAGE) + 0x1000));
    assert_eq!(rig.machine.dma_write(0, STREAM, at + 0x1000, 1), Dma::Reached(physical(PAGE)));
    rig.clean();
}

#[test]
fn tables_must_be_readable_and_may_take_permissions_away() {
    // A stage-1 table that stage 2 lets be written only.
    let mut rig = Rig::nested(QEMU);
    rig.machine.write_u64(S2_LEVEL3 + (LEVEL2 >> 12 & 511) * 8, physical(LEVEL2) | LEAF2 & !(1 << 6));
    assert!(!rig.reaches());
    let one = 1 << 39 | 0b01 << 40 | 1 << 44;
    assert_eq!(rig.event(), [0x13 | u64::from(STREAM) << 32, one, VA, LEVEL2]);
    // APTable[0]: privileged transactions only.
    for (privileged, works) in [(0, false), (0b11 << 48, true)] {
        let mut rig = Rig::nested(QEMU);
        rig.host_write(LEVEL2 + (VA >> 21 & 511) * 8, LEVEL3 | 3 | 1 << 61);
        let mut ste = nested();
        ste[1] |= privileged;
        rig.attach(STREAM, ste);
        assert_eq!(rig.reaches(), works);
    }
    // TBI0: the top byte does not count, and the TLB does not know it.
    for (ignored, works) in [(0, false), (1 << 38, true)] {
        let mut rig = Rig::nested(QEMU);
        let mut cd = cd(ASID, LEVEL1);
        cd[0] |= ignored;
        rig.write_cd(0, cd);
        rig.commands(&[cfgi_cd(STREAM, 0, 1), SYNC]);
        let tagged = VA | 0xa5 << 56;
        assert_eq!(rig.machine.dma_write(0, STREAM, tagged, 1) == Dma::Reached(physical(PAGE)), works);
        assert!(rig.reaches());
        assert_eq!(rig.machine.dma_write(0, STREAM, tagged, 1) == Dma::Reached(physical(PAGE)), works);
        rig.clean();
    }
}
