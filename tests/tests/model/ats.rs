//! The model's ATS, driven by hand: who may ask, where Translated requests go, what an ATC keeps, and devices that do not answer (IHI 0070, 3.9.1, 4.5
//! and 7.3.6 to 7.3.8).

use tests::model::SMMU_BASE;
use tests::model::device::Dma;
use tests::model::smmu::Fault;
use tests::model::smmu::ats::AtsReply;
use tests::model::smmu::config::SmmuConfig;
use tests::rig::*;

const ATS: SmmuConfig = SmmuConfig::qemu().with_ats().ssid_bits(8);
const FULL: u64 = 0b01;
const SPLIT: u64 = 0b10;

fn rig_with(config: SmmuConfig, ste: [u64; 8]) -> Rig {
    let mut rig = Rig::new(config);
    rig.host();
    rig.attach(STREAM, ste);
    rig
}

fn full() -> Rig {
    rig_with(ATS, with_eats(nested(), FULL))
}

fn split() -> Rig {
    rig_with(ATS, with_eats(nested(), SPLIT))
}

/// A write through the ATC to VA.
fn write(rig: &mut Rig) -> Dma {
    rig.machine.dma_through_atc(0, STREAM, VA, 0x66)
}

fn reached(ipa: u64) -> Dma {
    Dma::Reached(physical(ipa))
}

/// ATC_INV: SSID if any, Global, address, Size.
fn atc_inv(ssid: Option<u64>, global: u64, address: u64, size: u64) -> [u64; 2] {
    let ssv = ssid.map_or(0, |ssid| 1 << 11 | ssid << 12);
    [0x40 | global << 9 | ssv | u64::from(STREAM) << 32, address | size]
}

#[test]
fn full_ats_goes_where_the_device_says() {
    let mut rig = full();
    let AtsReply::Translated(entry) = rig.machine.ats_request(0, STREAM, VA + 8) else { panic!() };
    assert_eq!((entry.ia, entry.output, entry.size_log2, entry.split), (VA, physical(PAGE), 12, false));
    assert!(entry.readable && entry.writable);
    assert_eq!(write(&mut rig), reached(PAGE));
    assert_eq!(rig.machine.memory.read(physical(PAGE)), Some(0x66));
    // Nobody checks what a device calls translated: it may be any memory.
    assert_eq!(rig.machine.dma_translated(0, STREAM, S2_ROOT + 0x800, 1), Dma::Reached(S2_ROOT + 0x800));
    assert_eq!(rig.machine.dma_read_translated(0, STREAM, physical(PAGE)), Some(0x66));
    // Stage 2 alone, as well.
    let mut rig = rig_with(ATS, with_eats(stage2(), FULL));
    let AtsReply::Translated(entry) = rig.machine.ats_request(0, STREAM, PAGE) else { panic!() };
    assert_eq!((entry.ia, entry.output), (PAGE, physical(PAGE)));
    rig.clean();
}

#[test]
fn split_stage_ats_holds_ipas_and_stage_2_checks_them() {
    let mut rig = split();
    let AtsReply::Translated(entry) = rig.machine.ats_request(0, STREAM, VA) else { panic!() };
    assert_eq!((entry.ia, entry.output, entry.split), (VA, PAGE, true));
    assert_eq!(write(&mut rig), reached(PAGE));
    assert_eq!(rig.machine.dma_translated(0, STREAM, PAGE + 0x1000, 1), reached(PAGE + 0x1000));
    assert_eq!(rig.machine.evaluate_translated(0, STREAM, PAGE, true), Ok(physical(PAGE)));
    // What stage 2 does not have, the device does not reach.
    assert_eq!(rig.machine.dma_translated(0, STREAM, S2_ROOT, 1), Dma::Aborted);
    let event = [0x10 | u64::from(STREAM) << 32, 1 << 39 | 0b10 << 40, S2_ROOT, S2_ROOT];
    assert_eq!(rig.event(), event);
    // S2_IPA is enough to take a page away: nothing that holds a physical address was made by ATS.
    rig.take(PAGE);
    rig.commands(&[s2_ipa(VMID, PAGE), SYNC]);
    rig.wipe(PAGE);
    assert_eq!(write(&mut rig), Dma::Aborted);
    rig.clean();
}

#[test]
fn without_ats_both_kinds_of_request_are_refused() {
    let stream = u64::from(STREAM) << 32;
    for ste in [nested(), stage2()] {
        let mut rig = rig_with(ATS, ste);
        assert_eq!(rig.machine.ats_request(0, STREAM, VA), AtsReply::Refused);
        assert_eq!(rig.event(), [0x05 | stream, 1 << 35, VA, 0]);
        assert_eq!(rig.machine.dma_translated(0, STREAM, physical(PAGE), 1), Dma::Aborted);
        assert_eq!(rig.event(), [0x07 | stream, 0, physical(PAGE), 0]);
        rig.clean();
    }
    // Bypass: EATS is ignored (3.9.1.1).
    let mut rig = rig_with(ATS, with_eats([1 | 0b100 << 1, 0, 0, 0, 0, 0, 0, 0], FULL));
    assert_eq!(rig.machine.ats_request(0, STREAM, VA), AtsReply::Refused);
    assert_eq!(rig.machine.dma_translated(0, STREAM, physical(PAGE), 1), Dma::Aborted);
    assert_eq!(rig.event()[0], 0x07 | stream);
    // An aborting STE says nothing, an invalid one C_BAD_STE.
    let mut rig = rig_with(ATS, [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rig.machine.ats_request(0, STREAM, VA), AtsReply::Refused);
    assert_eq!(rig.machine.dma_translated(0, STREAM, physical(PAGE), 1), Dma::Aborted);
    assert_eq!(rig.machine.smmus[0].events.len(), 0);
    assert_eq!(rig.machine.dma_translated(0, OTHER, physical(PAGE), 1), Dma::Aborted);
    assert_eq!(rig.event()[0], 0x04 | u64::from(OTHER) << 32);
    rig.clean();
    // An SMMU without ATS has no use for either.
    let mut rig = Rig::nested(SmmuConfig::qemu());
    assert_eq!(rig.machine.dma_translated(0, STREAM, physical(PAGE), 1), Dma::Aborted);
    // Off: both are refused, whatever GBPA says.
    let mut rig = full();
    rig.machine.write_register_u32(SMMU_BASE + 0x20, 1 << 4 | 1 << 3 | 1 << 2);
    assert_eq!(rig.machine.ats_request(0, STREAM, VA), AtsReply::Refused);
    assert_eq!(rig.machine.dma_translated(0, STREAM, physical(PAGE), 1), Dma::Aborted);
}

#[test]
fn atschk_is_never_off() {
    let mut rig = rig_with(ATS, nested());
    rig.machine.write_register_u32(SMMU_BASE + 0x20, 1 << 3 | 1 << 2 | 1);
    rig.violates("ATSCHK = 0");
    assert_eq!(rig.machine.dma_translated(0, OTHER, S2_ROOT + 0x800, 1), Dma::Reached(S2_ROOT + 0x800));
    rig.violates("passes unchecked");
    rig.machine.write_register_u32(SMMU_BASE + 0x20, 1 << 4 | 1 << 3 | 1 << 2 | 1);
    assert_eq!(rig.machine.dma_translated(0, OTHER, S2_ROOT + 0x800, 1), Dma::Aborted);
    rig.clean();
}

#[test]
fn faults_of_a_translation_request_are_answered_and_not_recorded() {
    let mut rig = full();
    assert_eq!(rig.machine.ats_request(0, STREAM, VA + 0x1000), AtsReply::NotMapped);
    rig.take(PAGE);
    assert_eq!(rig.machine.ats_request(0, STREAM, VA), AtsReply::NotMapped);
    assert_eq!(rig.machine.smmus[0].events.len(), 0);
    // Faults of the configuration are.
    assert_eq!(rig.machine.ats_request(0, (STREAM, 1), VA), AtsReply::Refused);
    assert_eq!(rig.event()[0] & 0xff, 0x08);
    // Read-only stays read-only.
    let mut rig = full();
    rig.host_write(LEVEL3, PAGE | LEAF1 | 1 << 7);
    let AtsReply::Translated(entry) = rig.machine.ats_request(0, STREAM, VA) else { panic!() };
    assert!(entry.readable && !entry.writable);
    assert_eq!(write(&mut rig), Dma::Aborted);
    rig.clean();
}

#[test]
fn an_atc_entry_stays_until_atc_inv_and_a_sync() {
    let tlb = [s12_vmall(VMID), SYNC];
    let wrong: [(&str, Vec<[u64; 2]>); 8] = [
        ("no ATC_INV", vec![]),
        ("no SYNC", vec![atc_inv(None, 0, 0, 52)]),
        ("SYNC first", vec![SYNC, atc_inv(None, 0, 0, 52)]),
        ("other stream", vec![atc_inv_all(OTHER), SYNC]),
        ("page before", vec![atc_inv(None, 0, VA - 0x1000, 0), SYNC]),
        ("page after", vec![atc_inv(None, 0, VA + 0x1000, 0), SYNC]),
        ("with an SSID", vec![atc_inv(Some(1), 0, 0, 52), SYNC]),
        ("Global with an SSID", vec![atc_inv(Some(1), 1, 0, 52), SYNC]),
    ];
    for (name, commands) in wrong {
        let mut rig = full();
        assert_eq!(write(&mut rig), reached(PAGE));
        rig.take(PAGE);
        rig.commands(&tlb);
        rig.commands(&commands);
        assert_eq!(write(&mut rig), reached(PAGE), "{name}");
        rig.wipe(PAGE);
        rig.violates("in the ATC of stream 0x10");
        rig.commands(&[atc_inv_all(STREAM), SYNC]);
        assert_eq!(write(&mut rig), Dma::Aborted, "{name}: control");
    }
    for command in [
        atc_inv_all(STREAM),
        atc_inv(None, 0, VA, 0),
        atc_inv(None, 0, VA & !0xf_ffff, 8),
        atc_inv(None, 1, VA, 0),
    ] {
        let mut rig = full();
        assert_eq!(write(&mut rig), reached(PAGE));
        rig.take(PAGE);
        rig.commands(&tlb);
        rig.commands(&[command, SYNC]);
        rig.wipe(PAGE);
        assert_eq!(write(&mut rig), Dma::Aborted, "{command:x?}");
        rig.clean();
    }
}

#[test]
fn ssids_of_an_atc() {
    for (name, command, gone) in [
        ("one SSID", atc_inv(Some(1), 0, 0, 52), [false, true, false]),
        ("all SSIDs", atc_inv(Some(1), 1, 0, 52), [false, true, true]),
        ("SSID 0 is none of them", atc_inv(Some(0), 0, 0, 52), [false, false, false]),
        ("everything", atc_inv(None, 0, 0, 52), [true, true, true]),
    ] {
        let mut rig = rig_with(ATS.lazy(), with_eats(nested_with(3, 0, 0b10), FULL));
        for ssid in [1, 2] {
            rig.write_cd(ssid, cd(ASID + ssid, LEVEL1));
        }
        let origins = [(STREAM, None), (STREAM, Some(1)), (STREAM, Some(2))];
        for origin in origins {
            assert_eq!(rig.machine.dma_through_atc(0, origin, VA, 1), reached(PAGE));
        }
        rig.take(PAGE);
        rig.commands(&[s12_vmall(VMID), SYNC, command, SYNC]);
        for (origin, gone) in origins.into_iter().zip(gone) {
            let got = rig.machine.dma_through_atc(0, origin, VA, 1);
            assert_eq!(got == Dma::Aborted, gone, "{name}: {origin:?}");
        }
        rig.clean();
    }
}

#[test]
fn atc_inv_comes_after_the_tlb_has_forgotten() {
    // The device asks again while its invalidation is under way, and gets what the TLB has.
    let wrong: [Vec<[u64; 2]>; 3] = [
        vec![s12_vmall(VMID), atc_inv_all(STREAM), SYNC],
        vec![atc_inv_all(STREAM), SYNC, s12_vmall(VMID), SYNC],
        vec![s2_ipa(VMID, PAGE), SYNC, atc_inv_all(STREAM), SYNC],
    ];
    for commands in wrong {
        let mut rig = full();
        assert_eq!(write(&mut rig), reached(PAGE));
        rig.take(PAGE);
        rig.commands(&commands);
        rig.wipe(PAGE);
        rig.violates("in the ATC of stream 0x10");
    }
    let mut rig = full();
    assert_eq!(write(&mut rig), reached(PAGE));
    rig.take(PAGE);
    rig.commands(&[s2_ipa(VMID, PAGE), SYNC, nh_all(VMID), SYNC, atc_inv_all(STREAM), SYNC]);
    rig.wipe(PAGE);
    rig.clean();
}

#[test]
fn an_atc_that_does_not_answer_fails_the_sync() {
    for silent in [false, true] {
        let mut rig = full();
        assert_eq!(write(&mut rig), reached(PAGE));
        rig.take(PAGE);
        rig.commands(&[s12_vmall(VMID), SYNC]);
        if silent {
            rig.machine.smmus[0].atc.silent.insert(STREAM);
        } else {
            // It waits for an ATC_INV.
            rig.machine.smmus[0].arm(0, Fault::NoAnswer);
        }
        rig.commands(&[nh_all(VMID), SYNC]);
        assert!(rig.done(0));
        rig.commands(&[atc_inv_all(STREAM), SYNC]);
        assert!(!rig.done(0));
        // CERROR_ATC_INV_SYNC, at the SYNC (6.3.28, 7.1).
        assert_eq!(rig.machine.read_register_u32(SMMU_BASE + 0x9c) >> 24, 3);
        assert_eq!(rig.machine.read_register_u32(SMMU_BASE + 0x60), 1);
        // Acknowledged, the SYNC completes: the ATC has what it had.
        rig.machine.write_register_u32(SMMU_BASE + 0x64, 1);
        assert!(rig.done(0));
        rig.wipe(PAGE);
        rig.violates("in the ATC of stream 0x10");
        if silent {
            // What helps is to refuse its Translated requests.
            rig.attach(STREAM, nested());
            rig.wipe(PAGE);
            rig.clean();
            assert_eq!(rig.machine.dma_through_atc(0, STREAM, VA, 1), Dma::Aborted);
            // And not to allow them again.
            rig.attach(STREAM, with_eats(nested(), FULL));
            rig.violates("holds memory that changed hands");
        } else {
            rig.commands(&[atc_inv_all(STREAM), SYNC]);
            rig.wipe(PAGE);
            rig.clean();
        }
    }
    // The other commands before such a SYNC have completed only with the next one.
    let mut rig = full();
    assert_eq!(write(&mut rig), reached(PAGE));
    rig.take(PAGE);
    rig.machine.smmus[0].atc.silent.insert(OTHER);
    rig.commands(&[atc_inv_all(OTHER), s12_vmall(VMID), SYNC]);
    assert!(rig.reaches());
    rig.machine.write_register_u32(SMMU_BASE + 0x64, 1);
    assert!(!rig.reaches());
}

#[test]
fn an_answer_may_take_its_time() {
    let mut rig = Rig::new(ATS.atc_timeout(60_000_000));
    rig.machine.smmus[0].atc.silent.insert(STREAM);
    rig.commands(&[atc_inv_all(STREAM), SYNC]);
    rig.machine.advance(50_000_000);
    assert!(!rig.done(0));
    assert_eq!(rig.machine.read_register_u32(SMMU_BASE + 0x60), 0);
    rig.machine.advance(20_000_000);
    assert_eq!(rig.machine.read_register_u32(SMMU_BASE + 0x9c) >> 24, 3);
    // Without ATC_INV a SYNC does not wait for it.
    let mut rig = Rig::new(ATS.atc_timeout(60_000_000));
    rig.machine.smmus[0].atc.silent.insert(STREAM);
    rig.commands(&[nh_all(VMID), SYNC]);
    assert!(rig.done(0));
}

#[test]
fn commands_that_are_not_right() {
    // They may do nothing, or less than was meant.
    for (command, what) in [
        (atc_inv(None, 0, VA + 0x1000, 1), "not a multiple of 2^1 pages"),
        (atc_inv(Some(256), 0, VA, 0), "SSIDSIZE is 8"),
    ] {
        let mut rig = full();
        rig.commands(&[command, SYNC]);
        assert!(rig.machine.smmus[0].needless.iter().any(|text| text.contains(what)), "{what}");
    }
    let mut rig = full();
    rig.commands(&[[0x40 | 1 << 8 | u64::from(STREAM) << 32, 52], SYNC]);
    rig.violates("RES0");
    let mut rig = full();
    rig.commands(&[atc_inv(None, 0, 0, 53), SYNC]);
    assert_eq!(rig.machine.read_register_u32(SMMU_BASE + 0x9c) >> 24, 1);
}

#[test]
fn what_memory_no_longer_says_is_stale() {
    use tests::model::inspect::Cached;
    let mut rig = full();
    assert_eq!(write(&mut rig), reached(PAGE));
    assert!(rig.reaches());
    assert_eq!(rig.machine.stale(0), []);
    let kinds = |rig: &mut Rig| {
        let stale = rig.machine.stale(0);
        let has = |kind: fn(&Cached) -> bool| stale.iter().any(kind);
        [
            has(|cached| matches!(cached, Cached::Stage2(_))),
            has(|cached| matches!(cached, Cached::Stage2Walk(_))),
            has(|cached| matches!(cached, Cached::Combined(_))),
            has(|cached| matches!(cached, Cached::Cd(..))),
            has(|cached| matches!(cached, Cached::Atc(_))),
        ]
    };
    // A page of stage 2: each cache in its turn.
    rig.take(PAGE);
    assert_eq!(kinds(&mut rig), [true, false, true, false, true]);
    rig.commands(&[s2_ipa(VMID, PAGE), SYNC]);
    assert_eq!(kinds(&mut rig), [false, false, true, false, true]);
    rig.commands(&[nh_all(VMID), SYNC]);
    assert_eq!(kinds(&mut rig), [false, false, false, false, true]);
    rig.commands(&[atc_inv_all(STREAM), SYNC]);
    assert_eq!(rig.machine.stale(0), []);
    // The bytes of a CD, and where it is.
    let mut rig = full();
    assert!(rig.reaches());
    rig.host_write(CDS + 32, 1);
    assert_eq!(kinds(&mut rig), [false, false, false, true, false]);
    rig.host_write(CDS + 32, 0);
    assert_eq!(rig.machine.stale(0), []);
    rig.write_cd(0, cd(ASID + 1, LEVEL1));
    assert_eq!(kinds(&mut rig), [false, false, true, true, false]);
    rig.commands(&[cfgi_cd(STREAM, 0, 1), SYNC, nh_asid(VMID, ASID), SYNC]);
    assert_eq!(rig.machine.stale(0), []);
    // No STE has the VMID any more.
    rig.attach(STREAM, [1, 0, 0, 0, 0, 0, 0, 0]);
    assert!(kinds(&mut rig)[..2] == [true, true]);
    rig.commands(&[s12_vmall(VMID), SYNC]);
    assert_eq!(rig.machine.stale(0), []);
}
