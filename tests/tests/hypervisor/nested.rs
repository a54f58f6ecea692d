//! Nested domains: stage 1 of the owner of a vSMMU, on the stage 2 of its parent.

use crate::{boot, good};
use abi::{Function, Reason, Status, attach};
use tests::bench::{Bench, SCRATCH, Shape};
use tests::calls::incompatible;
use tests::model::inspect::Cached;
use tests::model::smmu::config::SmmuConfig;
use tests::nest::{ARENA, Nest};
use tests::owner::{ABORT, BYPASS, SHCFG, Stage1};

/// A nested stream of the host's with warm caches, device 0 behind SMMU 0.
fn host_nest(config: SmmuConfig) -> (Bench, Nest) {
    let bench = boot(&Shape::of(2, config));
    let nest = bench.nest(0, 0, SCRATCH, 1).unwrap();
    let domain = nest.domain(&bench).unwrap();
    bench.attach(0, 0, domain).unwrap();
    for n in 0..4 {
        assert_eq!(bench.dma(0, 0, nest.stage1.va(n)), Some(nest.stage1.page(n)));
    }
    good(&bench, "warm");
    (bench, nest)
}

fn kinds() -> [SmmuConfig; 4] {
    let qemu = SmmuConfig::qemu().ssid_bits(4).two_level_cds();
    [
        qemu,
        qemu.without_ril().bbml(0).lazy(),
        qemu.granules(false, false, true),
        qemu.slow(700).sync_delay(900),
    ]
}

#[test]
fn a_donation_under_a_nested_stream_reaches_combined_entries() {
    for config in kinds() {
        let (bench, nest) = host_nest(config);
        let guest = bench.guest().unwrap();
        bench.whole(Function::MemDonate, nest.stage1.page(1), bench.unit(), guest).unwrap();
        assert_eq!(bench.dma(0, 0, nest.stage1.va(1)), None, "the guest's");
        assert_eq!(bench.dma(0, 0, nest.stage1.va(2)), Some(nest.stage1.page(2)), "the control");
        good(&bench, "donated");
    }
}

#[test]
fn a_donation_of_the_owners_tables_and_cds_ends_their_use() {
    for config in kinds() {
        for table in 0..3 {
            let (bench, nest) = host_nest(config);
            let guest = bench.guest().unwrap();
            let page = nest.stage1.base + table * bench.unit();
            let unit = bench.unit();
            let cached = bench.machine().smmus[0]
                .cached()
                .any(|cached| cached.structure().is_some_and(|place| place.start & !(unit - 1) == page));
            assert!(cached, "the control: table {table} is cached");
            bench.whole(Function::MemDonate, page, bench.unit(), guest).unwrap();
            for n in 0..4 {
                assert_eq!(bench.dma(0, 0, nest.stage1.va(n)), None, "table {table} is the guest's");
            }
            good(&bench, "donated");
            // The owner gets it back, wiped, and fills it again.
            bench.whole(Function::MemReclaim, page, bench.unit(), guest).unwrap();
            assert!(nest.stage1.write(&bench, 0, 1));
            bench.invalidate(nest.vsmmu, &[[0x06, 0], [0x10, 0]]).unwrap();
            assert_eq!(bench.dma(0, 0, nest.stage1.va(1)), Some(nest.stage1.page(1)), "the control");
            good(&bench, "written again");
        }
    }
}

#[test]
fn a_guests_domain_that_changes_under_a_nested_stream_takes_it_along() {
    for config in kinds() {
        let bench = boot(&Shape::of(2, config));
        let (unit, guest) = (bench.unit(), bench.guest().unwrap());
        let parent = bench.guest_domain(guest, 16, Stage1::UNITS).unwrap();
        let nests = [0, 1].map(|smmu| bench.nest(smmu, parent, ARENA, 1).unwrap());
        for (smmu, nest) in nests.iter().enumerate() {
            let domain = nest.domain(&bench).unwrap();
            bench.attach(smmu, 0, domain).unwrap();
            // A stream straight in the parent, whose tag is not the vSMMU's.
            bench.attach(smmu, 1, parent).unwrap();
        }
        let [nest, _] = nests;
        let old = nest.page(&bench, 1).unwrap();
        let reach = |wanted: Option<u64>, when: &str| {
            for smmu in 0..2 {
                assert_eq!(bench.dma(smmu, 0, nest.stage1.va(1)), wanted, "{when}: nested");
                assert_eq!(bench.dma(smmu, 1, nest.stage1.page(1)), wanted, "{when}: stage 2 alone");
                assert!(bench.dma(smmu, 0, nest.stage1.va(2)).is_some(), "{when}: the control");
            }
        };
        reach(Some(old), "mapped");
        good(&bench, "warm");
        bench.unmap(parent, nest.stage1.page(1), unit).unwrap();
        reach(None, "unmapped");
        good(&bench, "unmapped");
        bench.map(parent, nest.stage1.page(1), SCRATCH + 16 * unit, unit).unwrap();
        reach(Some(SCRATCH + 16 * unit), "mapped to another page");
        good(&bench, "mapped again");
        bench.call(Function::MemReclaim, [old, unit, guest, 0]).unwrap();
        good(&bench, "reclaimed");
    }
}

#[test]
fn each_ssid_has_a_cd_of_its_own() {
    for (config, format) in [(kinds()[0], 0), (kinds()[0], 1), (kinds()[1], 0), (kinds()[2], 0)] {
        let bench = boot(&Shape::of(1, config));
        let unit = bench.unit();
        let nest = bench.nest(0, 0, SCRATCH, 1).unwrap();
        let stage1 = nest.stage1;
        // The tables of another address space, for SSID 1.
        let other = Stage1::new(&bench, SCRATCH + 16 * unit);
        assert!(other.write(&bench, 0, 2));
        let cds = if format == 0 { stage1.cds() } else { stage1.leaf_cds() };
        if format == 1 {
            assert!(stage1.write_two_levels(&bench, 0, 1));
        }
        assert!(stage1.write_cd_at(&bench, 0, cds + 64, other.cd(2)));
        let domain = bench.nested(nest.vsmmu, stage1.words_with(2, format, 0b10)).unwrap();
        bench.attach(0, 0, domain).unwrap();
        let dma = |ssid: Option<u32>| bench.dma_with(0, 0, ssid, stage1.va(3));
        assert_eq!(dma(None), Some(stage1.page(3)), "CD 0");
        assert_eq!(dma(Some(1)), Some(other.page(3)), "CD 1");
        assert_eq!((dma(Some(0)), dma(Some(2)), dma(Some(4))), (None, None, None), "no CD");
        good(&bench, "two SSIDs");
        // One of them ends: its owner says so, and the other goes on.
        assert!(stage1.write_cd_at(&bench, 0, cds + 64, [0; 8]));
        assert_eq!(dma(Some(1)), Some(other.page(3)), "the control: nothing was invalidated");
        bench.invalidate(nest.vsmmu, &[[0x05 | 1 << 12, 1], [0x11 | 2 << 48, 0]]).unwrap();
        assert_eq!((dma(Some(1)), dma(None)), (None, Some(stage1.page(3))));
        good(&bench, "one SSID");
        // Memory that only the other SSID reached goes, and then that of its CDs.
        let guest = bench.guest().unwrap();
        assert!(stage1.write_cd_at(&bench, 0, cds + 64, other.cd(2)));
        bench.invalidate(nest.vsmmu, &[[0x06, 0]]).unwrap();
        assert_eq!(dma(Some(1)), Some(other.page(3)));
        bench.whole(Function::MemDonate, other.page(3), unit, guest).unwrap();
        assert_eq!((dma(Some(1)), dma(None)), (None, Some(stage1.page(3))));
        bench.whole(Function::MemDonate, cds & !(unit - 1), unit, guest).unwrap();
        assert_eq!((dma(Some(1)), dma(None)), (None, None));
        good(&bench, "donated");
    }
}

#[test]
fn a_transaction_without_an_ssid_does_what_the_owner_says() {
    let bench = boot(&Shape::of(1, kinds()[0]));
    let nest = bench.nest(0, 0, SCRATCH, 1).unwrap();
    let stage1 = nest.stage1;
    let page = SCRATCH + 0x20_0000;
    for (dss, through_stage1, past_it) in
        [(0, None, None), (1, None, Some(page)), (2, Some(stage1.page(0)), None)]
    {
        let domain = bench.nested(nest.vsmmu, stage1.words_with(2, 0, dss)).unwrap();
        bench.attach(0, 0, domain).unwrap();
        assert_eq!(
            (bench.dma(0, 0, stage1.va(0)), bench.dma(0, 0, page)),
            (through_stage1, past_it),
            "S1DSS {dss}"
        );
        good(&bench, "attached");
        bench.detach(0, 0).unwrap();
    }
    for (words, reached) in [(BYPASS, Some(page)), (ABORT, None), ([0, 0], None)] {
        let domain = bench.nested(nest.vsmmu, words).unwrap();
        bench.attach(0, 0, domain).unwrap();
        assert_eq!(bench.dma(0, 0, page), reached, "{words:x?}");
        good(&bench, "attached");
        bench.detach(0, 0).unwrap();
    }
}

#[test]
fn what_the_owner_changes_is_seen_once_it_invalidates() {
    for config in kinds() {
        let (bench, nest) = host_nest(config);
        let stage1 = nest.stage1;
        assert!(stage1.write_entry(&bench, 0, 0, Some(stage1.page(3))));
        assert_eq!(
            bench.dma(0, 0, stage1.va(0)),
            Some(stage1.page(0)),
            "the control: nothing was invalidated"
        );
        good(&bench, "the owner's business");
        // A VMID of the owner's fancy is replaced.
        bench.invalidate(nest.vsmmu, &[[0x12 | 0x77 << 32 | 1 << 48, stage1.va(0) | 1]]).unwrap();
        assert_eq!(bench.dma(0, 0, stage1.va(0)), Some(stage1.page(3)));
        assert_eq!(bench.machine().stale(0), vec![], "all is as the owner's tables say");
        good(&bench, "invalidated");
    }
}

#[test]
fn each_command_that_an_owner_may_send_reaches_its_own_entries() {
    let (bench, nest) = host_nest(kinds()[0]);
    let stage1 = nest.stage1;
    let va = stage1.va(0);
    // NH_ALL, NH_ASID, NH_VA, NH_VAA and NSNH_ALL, with VMIDs of the owner's fancy.
    let commands: [[u64; 2]; 5] =
        [[0x10 | 9 << 32, 0], [0x11 | 9 << 32 | 1 << 48, 0], [0x12 | 1 << 48, va], [0x13, va], [0x30, 0]];
    for (command, page) in commands.into_iter().zip([1, 2, 1, 2, 1]) {
        assert!(stage1.write_entry(&bench, 0, 0, Some(stage1.page(page))));
        assert_ne!(bench.dma(0, 0, va), Some(stage1.page(page)), "the control: nothing was invalidated");
        bench.invalidate(nest.vsmmu, &[command]).unwrap();
        assert_eq!(bench.dma(0, 0, va), Some(stage1.page(page)), "{command:x?}");
    }
    // CFGI_CD and CFGI_CD_ALL: another ASID, so that no translation of the old one is found.
    for (command, asid) in [([0x05, 1], 5), ([0x05, 0], 6), ([0x06, 0], 7)] {
        let asid_in_use = |bench: &Bench| {
            bench.dma(0, 0, stage1.va(2));
            bench.machine().smmus[0].cached().any(|cached: Cached| cached.asid() == Some(asid))
        };
        assert!(stage1.write_cd(&bench, 0, 0, stage1.cd(u64::from(asid))));
        assert!(!asid_in_use(&bench), "the control");
        bench.invalidate(nest.vsmmu, &[command]).unwrap();
        assert!(asid_in_use(&bench), "{command:x?}");
    }
    good(&bench, "invalidated");
}

#[test]
fn no_command_is_sent_unless_all_are_legal() {
    let (bench, nest) = host_nest(kinds()[0]);
    let commands = || bench.machine().smmus.iter().map(|smmu| smmu.commands).collect::<Vec<_>>();
    let before = commands();
    let illegal: [[u64; 2]; 9] = [
        [0x06 | 2 << 32, 0],
        [0x03, 1],
        [0x04, 31],
        [0x28, 0],
        [0x2a, 0x1000],
        [0x20, 0],
        [0x10 | 1 << 10, 0],
        [0x46 | 1 << 12, 0],
        [0x40, 52],
    ];
    for command in illegal {
        let answer = bench.invalidate(nest.vsmmu, &[[0x10, 0], command, [0x10, 0]]);
        assert_eq!(answer, Err((Status::Illegal, 1)), "{command:x?}");
    }
    for (count, status) in [(0, Status::Invalid), (65, Status::Invalid)] {
        let call = [nest.vsmmu, tests::bench::COMMANDS, count, 0];
        assert_eq!(bench.call(Function::VsmmuInvalidate, call), Err(status));
    }
    for (start, status) in [
        (tests::bench::COMMANDS + 8, Status::Unaligned),
        (tests::bench::POOL, Status::WrongState),
        (0, Status::NotRam),
    ] {
        assert_eq!(bench.call(Function::VsmmuInvalidate, [nest.vsmmu, start, 1, 0]), Err(status));
    }
    assert_eq!(commands(), before, "none was sent");
    assert_eq!(bench.invalidate(nest.vsmmu, &[[0x10, 0], [0x30, 0]]), Ok(2), "the control");
    assert_ne!(commands(), before);
    good(&bench, "sent");
}

#[test]
fn words_that_are_not_the_owners_are_refused() {
    let (bench, nest) = host_nest(kinds()[0]);
    let [word0, word1] = nest.stage1.words();
    for (words, word) in [
        ([word0 | 1 << 2, word1], 0),
        ([word0 | 5 << 59, word1], 0),
        ([word0 & !0xe | 0b110 << 1, word1], 0),
        ([word0 | 1 << 55, word1], 0),
        ([word0, word1 | 1 << 30], 1),
        ([word0, word1 | 1 << 25], 1),
        ([word0, word1 | 1 << 28], 1),
        ([word0, word1 | 1 << 27], 1),
        ([word0, word1 | 1 << 19], 1),
    ] {
        assert_eq!(bench.nested(nest.vsmmu, words), Err((Status::Illegal, word)), "{words:x?}");
    }
    assert!(bench.nested(nest.vsmmu, [word0, word1]).is_ok(), "the control");
    assert!(bench.nested(nest.vsmmu, [word0, SHCFG]).is_ok());
    good(&bench, "refused");
}

/// CFGI_CD and CFGI_CD_ALL (4.3.3, 4.3.4), and ATC_INV (4.5.1).
#[test]
fn commands_about_a_stream_that_another_principal_has_are_left_out() {
    let bench = boot(&Shape::of(1, SmmuConfig::qemu().with_ats().ssid_bits(4)));
    let guest = bench.guest().unwrap();
    let nest = bench.nest(0, 0, SCRATCH, 1).unwrap();
    let domain = nest.domain(&bench).unwrap();
    let tell = || {
        let count = |opcode| bench.machine().smmus[0].count(opcode);
        let before = [0x05, 0x06, 0x40].map(count);
        bench.invalidate(nest.vsmmu, &[[0x05, 1], [0x06, 0], [0x40, 52], [0x46, 0]]).unwrap();
        let after = [0x05, 0x06, 0x40].map(count);
        [0, 1, 2].map(|n| after[n] - before[n])
    };
    bench.attach(0, 0, guest).unwrap();
    assert_eq!(tell(), [0; 3], "the guest has it");
    bench.detach(0, 0).unwrap();
    assert_eq!(tell(), [0; 3], "nobody has it");
    bench.attach(0, 0, domain).unwrap();
    assert_eq!(tell(), [1; 3], "the control");
}

#[test]
fn a_nested_domain_is_for_streams_of_its_vsmmu() {
    let qemu = kinds()[0];
    let bench = boot(&Shape::mixed(&[qemu, qemu, qemu.with(0, 1, 1, 0)]));
    let guest = bench.guest().unwrap();
    let nest = bench.nest(0, 0, SCRATCH, 1).unwrap();
    let domain = nest.domain(&bench).unwrap();
    assert_eq!(bench.attach_with(1, 0, domain, 0), incompatible(Reason::Vsmmu), "of another SMMU");
    let vsmmu = bench.vsmmu(1, guest).unwrap();
    bench.add_stream(vsmmu, 7, 1, 0).unwrap();
    assert_eq!(bench.attach_with(1, 0, domain, 0), incompatible(Reason::Vsmmu), "of another vSMMU");
    assert_eq!(bench.add_stream(vsmmu, 8, 1, 0), Err(Status::Busy), "twice");
    assert_eq!(bench.add_stream(vsmmu, 7, 1, 1), Err(Status::Busy), "the number is taken");
    let no_stage1 = bench.call_detail(Function::VsmmuCreate, [2, 0, 0, 0]);
    assert_eq!(no_stage1, incompatible(Reason::Nesting));
    // A stream of somebody else's.
    bench.attach(0, 0, domain).unwrap();
    let theirs = bench.vsmmu(0, guest).unwrap();
    assert_eq!(bench.add_stream(theirs, 0, 0, 0), Err(Status::UnknownStream));
    assert_eq!(bench.attach_with(0, 0, guest, attach::REPLACE), Err((Status::UnknownDomain, 0)));
    assert_eq!(bench.dma(0, 0, nest.stage1.va(0)), Some(nest.stage1.page(0)), "the control");
    // What is in use stays.
    let remove = |id: u64| bench.call(Function::VsmmuRemoveStream, [nest.vsmmu, id, 0, 0]).map(drop);
    let destroy = || bench.call(Function::VsmmuDestroy, [nest.vsmmu, 0, 0, 0]).map(drop);
    assert_eq!(
        (remove(0), destroy(), bench.destroy(domain)),
        (Err(Status::Busy), Err(Status::Busy), Err(Status::Busy))
    );
    bench.detach(0, 0).unwrap();
    assert_eq!(destroy(), Err(Status::Busy), "it has a nested domain");
    assert_eq!((bench.destroy(domain), remove(0), remove(1)), (Ok(()), Ok(()), Ok(())));
    assert_eq!((remove(0), destroy()), (Err(Status::UnknownStream), Ok(())));
    assert_eq!(destroy(), Err(Status::UnknownVsmmu));
    good(&bench, "gone");
}

#[test]
fn a_tag_of_a_vsmmu_is_clean_when_its_last_stream_leaves() {
    for config in kinds() {
        let (bench, nest) = host_nest(config);
        let domain = bench.attached_to(0, 0).unwrap();
        bench.attach(0, 1, domain).unwrap();
        assert!(bench.dma(0, 1, nest.stage1.va(0)).is_some());
        let vmid = bench.record().vsmmu(nest.vsmmu).map(|vsmmu| vsmmu.vmid);
        let cached =
            || bench.machine().smmus[0].cached().filter(|cached: &Cached| cached.vmid() == vmid).count();
        bench.detach(0, 0).unwrap();
        good(&bench, "one left");
        assert_ne!(cached(), 0, "the control: the other stream uses it");
        bench.detach(0, 1).unwrap();
        assert_eq!(cached(), 0);
        good(&bench, "both left");
    }
}

/// Who keeps the vSMMU's tag in use, without a stage 1, while the nested stream is away.
#[derive(Clone, Copy, Debug)]
enum Keeper {
    /// The stream itself, which changes over to a bypass and back.
    Itself,
    /// Another stream, while the nested one is detached.
    Another,
}

#[test]
fn a_stage_1_that_comes_back_does_not_find_what_went_meanwhile() {
    for config in kinds() {
        for keeper in [Keeper::Itself, Keeper::Another] {
            let (bench, nest) = host_nest(config);
            let (nested, bypass) = (nest.domain(&bench).unwrap(), bench.nested(nest.vsmmu, BYPASS).unwrap());
            let guest = bench.guest().unwrap();
            match keeper {
                Keeper::Itself => bench.replace(0, 0, bypass).unwrap(),
                Keeper::Another => {
                    bench.attach(0, 1, bypass).unwrap();
                    bench.detach(0, 0).unwrap();
                }
            }
            good(&bench, "away");
            bench.whole(Function::MemDonate, nest.stage1.page(1), bench.unit(), guest).unwrap();
            match keeper {
                Keeper::Itself => bench.replace(0, 0, nested).unwrap(),
                Keeper::Another => bench.attach(0, 0, nested).unwrap(),
            }
            assert_eq!(bench.dma(0, 0, nest.stage1.va(1)), None, "{keeper:?}: the guest's");
            assert_eq!(bench.dma(0, 0, nest.stage1.va(2)), Some(nest.stage1.page(2)), "the control");
            good(&bench, "back");
        }
    }
}
