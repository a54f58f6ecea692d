//! What the model calls a needless invalidation, driven by hand: each rule with the same command where a cache could need it.

use tests::model::SMMU_BASE;
use tests::model::smmu::config::SmmuConfig;
use tests::rig::*;

const ATS: SmmuConfig = SmmuConfig::qemu().with_ats().ssid_bits(8);

/// How many of the commands are needless, after what came before.
fn needless(rig: &mut Rig, commands: &[[u64; 2]]) -> usize {
    let before = rig.machine.smmus[0].needless.len();
    rig.commands(commands);
    assert!(rig.done(0));
    rig.machine.smmus[0].needless.len() - before
}

#[test]
fn bring_up_is_exempt() {
    let mut rig = Rig::new(ATS);
    assert_eq!(rig.machine.smmus[0].needless, Vec::<String>::new());
    assert_eq!(needless(&mut rig, &[[4, 31], [0x30, 0], SYNC]), 0);
}

#[test]
fn tlbis_need_an_ste_with_their_vmid() {
    for config in [ATS, ATS.lazy()] {
        let mut rig = Rig::new(config);
        for command in
            [s12_vmall(VMID), s2_ipa(VMID, PAGE), nh_all(VMID), nh_va(VMID, ASID, VA, 1), nh_asid(VMID, ASID)]
        {
            assert_eq!(needless(&mut rig, &[command, SYNC]), 1, "{command:x?}: no STE");
        }
        assert!(rig.machine.smmus[0].needless[0].contains("no STE had VMID 0x7"));
        // Stage 2 alone is of no use to stage-1 commands.
        rig.attach(STREAM, stage2());
        for (command, count) in
            [(s2_ipa(VMID, PAGE), 0), (nh_all(VMID), 1), (nh_va(VMID, ASID, VA, 1), 1), (s12_vmall(VMID), 0)]
        {
            assert_eq!(needless(&mut rig, &[command, SYNC]), count, "{command:x?}: stage 2");
        }
        // It counts until the flush after the last STE is complete.
        rig.attach(STREAM, [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(needless(&mut rig, &[s2_ipa(VMID, PAGE), SYNC, s12_vmall(VMID), SYNC]), 0);
        assert_eq!(needless(&mut rig, &[s12_vmall(VMID), SYNC]), 1);
        rig.clean();
    }
}

#[test]
fn a_flush_counts_once_its_sync_is_complete() {
    let mut rig = Rig::new(ATS);
    rig.attach(STREAM, stage2());
    // The cached STE counts too: only after CFGI_STE and SYNC a flush is the last one.
    rig.write_ste(STREAM, [0; 8]);
    assert_eq!(needless(&mut rig, &[s12_vmall(VMID), SYNC, s12_vmall(VMID), SYNC]), 0);
    assert_eq!(needless(&mut rig, &[cfgi_ste(STREAM), SYNC, s12_vmall(VMID), s12_vmall(VMID)]), 0);
    assert_eq!(needless(&mut rig, &[SYNC, s12_vmall(VMID)]), 1);
    // The STE of a stream without a device may be read ahead too.
    let mut rig = Rig::new(ATS);
    rig.attach(0x55, stage2());
    rig.attach(0x55, [0; 8]);
    assert_eq!(needless(&mut rig, &[s12_vmall(VMID), SYNC]), 0);
    assert_eq!(needless(&mut rig, &[s12_vmall(VMID), SYNC]), 1);
    // An STE that came and went without a fetch could have been fetched.
    let mut rig = Rig::new(ATS.lazy());
    rig.write_ste(STREAM, stage2());
    rig.write_ste(STREAM, [0; 8]);
    assert_eq!(needless(&mut rig, &[s12_vmall(VMID), SYNC]), 0);
}

#[test]
fn stage_1_commands_need_a_cd_with_their_asid() {
    for config in [ATS, ATS.lazy()] {
        let mut rig = Rig::nested(config);
        assert!(rig.reaches());
        let commands = [nh_va(VMID, ASID, VA, 1), nh_all(VMID), [0x13 | VMID << 32, VA], nh_asid(VMID, ASID)];
        for command in commands {
            assert_eq!(needless(&mut rig, &[command, SYNC]), 0, "{command:x?}");
        }
        assert_eq!(needless(&mut rig, &[nh_va(VMID, ASID + 1, VA, 1), SYNC]), 1);
        assert_eq!(needless(&mut rig, &[nh_va(VMID + 1, ASID, VA, 1), SYNC]), 1);
        // Another CD: the old ASID counts until its flush, the new one from now on.
        rig.write_cd(0, cd(ASID + 1, LEVEL1));
        rig.commands(&[cfgi_cd(STREAM, 0, 1), SYNC]);
        assert_eq!(needless(&mut rig, &[nh_asid(VMID, ASID + 1), nh_asid(VMID, ASID), SYNC]), 0);
        assert_eq!(needless(&mut rig, &[nh_asid(VMID, ASID), SYNC]), 1);
        assert_eq!(needless(&mut rig, &[nh_asid(VMID, ASID + 1), SYNC]), 0);
        // Without stage 1: until NH_ALL, which is for all ASIDs.
        rig.attach(STREAM, stage2());
        assert_eq!(needless(&mut rig, &[nh_all(VMID), SYNC]), 0);
        assert_eq!(needless(&mut rig, &[nh_all(VMID), SYNC]), 1);
        assert_eq!(needless(&mut rig, &[nh_asid(VMID, ASID + 1), SYNC]), 1);
        rig.clean();
    }
}

#[test]
fn atc_inv_needs_ats() {
    let mut rig = Rig::new(ATS);
    rig.host();
    assert_eq!(needless(&mut rig, &[atc_inv_all(STREAM), SYNC]), 1);
    rig.attach(STREAM, nested());
    assert_eq!(needless(&mut rig, &[atc_inv_all(STREAM), SYNC]), 1);
    rig.attach(STREAM, with_eats(nested(), 1));
    assert_eq!(needless(&mut rig, &[atc_inv_all(STREAM), SYNC, atc_inv_all(STREAM), SYNC]), 0);
    assert_eq!(needless(&mut rig, &[atc_inv_all(OTHER), SYNC]), 1);
    // Off: one more of everything is needed, and the part of it is not enough.
    rig.attach(STREAM, nested());
    let part = [0x40 | u64::from(STREAM) << 32, VA];
    assert_eq!(needless(&mut rig, &[part, SYNC, part, SYNC, atc_inv_all(STREAM), SYNC]), 0);
    assert_eq!(needless(&mut rig, &[part, SYNC]), 1);
    rig.clean();
}

#[test]
fn cfgi_needs_bytes_that_changed() {
    for config in [ATS, ATS.lazy()] {
        let mut rig = Rig::new(config);
        assert_eq!(needless(&mut rig, &[cfgi_ste(STREAM), SYNC]), 1);
        rig.write_ste(STREAM, stage2());
        assert_eq!(needless(&mut rig, &[cfgi_ste(STREAM), SYNC]), 0);
        assert_eq!(needless(&mut rig, &[cfgi_ste(STREAM), SYNC]), 1);
        // The same bytes stored again did not change; changed and changed back they did.
        rig.machine.write_u64(STREAM_TABLE + u64::from(STREAM) * 64 + 16, STAGE2);
        assert_eq!(needless(&mut rig, &[cfgi_ste(STREAM), SYNC]), 1);
        rig.write_ste(STREAM, stage2());
        assert_eq!(needless(&mut rig, &[cfgi_ste(STREAM), SYNC]), 0);
        // A TLBI does not make a stage-2 STE old.
        assert_eq!(needless(&mut rig, &[s12_vmall(VMID), SYNC, cfgi_ste(STREAM), SYNC]), 1);
        assert_eq!(needless(&mut rig, &[cfgi_cd(STREAM, 0, 1), SYNC]), 1);
        // CFGI_STE_RANGE of 2^(3 + 1) streams names STREAM, and one of 2^1 beside it does not.
        for (first, range, count) in [(STREAM, 3, 1), (STREAM + 2, 0, 0)] {
            rig.write_ste(STREAM, stage2());
            let command = [4 | u64::from(first) << 32, range];
            assert_eq!(needless(&mut rig, &[command, SYNC, cfgi_ste(STREAM), SYNC]), count);
        }
        rig.clean();
    }
}

#[test]
fn cfgi_of_cds_needs_bytes_or_a_stage_2_that_changed() {
    for config in [ATS, ATS.lazy()] {
        let mut rig = Rig::nested(config);
        assert!(rig.reaches());
        let all: [[u64; 2]; 3] = [cfgi_cd(STREAM, 0, 1), cfgi_cd_all(STREAM), cfgi_ste(STREAM)];
        for command in all {
            assert_eq!(needless(&mut rig, &[command, SYNC]), 1, "{command:x?}: nothing changed");
            rig.write_cd(0, cd(ASID + 1, LEVEL1));
            rig.write_cd(0, cd(ASID, LEVEL1));
            assert_eq!(needless(&mut rig, &[command, SYNC]), 0, "{command:x?}: bytes");
            assert_eq!(needless(&mut rig, &[command, SYNC]), 1, "{command:x?}: once is enough");
            assert_eq!(
                needless(&mut rig, &[s2_ipa(VMID, PAGE), SYNC, command, SYNC]),
                0,
                "{command:x?}: stage 2"
            );
            assert_eq!(needless(&mut rig, &[command, SYNC]), 1, "{command:x?}: stage 2, once");
        }
        // One for everything serves for each, and one for a part not for the others.
        rig.write_cd(0, cd(ASID + 1, LEVEL1));
        assert_eq!(needless(&mut rig, &[cfgi_cd_all(STREAM), SYNC]), 0);
        assert_eq!(needless(&mut rig, &[cfgi_cd(STREAM, 0, 1), SYNC]), 1);
        rig.clean();
    }
}

#[test]
fn the_way_to_a_cd_counts_too() {
    for config in [ATS.two_level_cds(), ATS.two_level_cds().lazy()] {
        let mut rig = Rig::new(config);
        rig.host();
        rig.write_cd(64, cd(ASID, LEVEL1));
        rig.attach(STREAM, nested());
        assert!(rig.reaches());
        // Another CD, as old as the first: it is the STE that changed.
        let mut ste = nested();
        ste[0] += 64 * 64;
        rig.write_ste(STREAM, ste);
        assert_eq!(needless(&mut rig, &[cfgi_cd(STREAM, 0, 1), SYNC]), 0);
        assert_eq!(needless(&mut rig, &[cfgi_ste(STREAM), SYNC, cfgi_cd(STREAM, 0, 1), SYNC]), 1);
        // A level-1 descriptor of CDs.
        rig.host_write(IPA + 0x18_0000, (IPA + 0x19_0000) | 1);
        let mut ste = nested_with(7, 1, 0b10);
        ste[0] += 0x18_0000;
        rig.attach(STREAM, ste);
        assert_eq!(needless(&mut rig, &[cfgi_cd(STREAM, 0, 0), SYNC]), 1);
        rig.host_write(IPA + 0x18_0000, (IPA + 0x1a_0000) | 1);
        assert_eq!(needless(&mut rig, &[cfgi_cd(STREAM, 0, 0), SYNC]), 0);
        assert_eq!(needless(&mut rig, &[cfgi_cd(STREAM, 0, 0), SYNC]), 1);
        rig.clean();
    }
}

#[test]
fn a_level_1_stream_descriptor_is_on_the_way_to_an_ste() {
    let mut rig = Rig::new(ATS);
    // The same STEs as a level-2 table of 64 for the first descriptor: SPLIT 6.
    const LEVEL1_STREAMS: u64 = STREAM_TABLE + 0x8000;
    rig.write_ste(STREAM, stage2());
    rig.machine.write_u64(LEVEL1_STREAMS, STREAM_TABLE | 7);
    rig.machine.write_register_u32(SMMU_BASE + 0x20, 1 << 4 | 1 << 3 | 1 << 2);
    rig.machine.write_register_u64(SMMU_BASE + 0x80, LEVEL1_STREAMS);
    rig.machine.write_register_u32(SMMU_BASE + 0x88, 1 << 16 | 6 << 6 | 8);
    rig.commands(&[[4, 31], [0x30, 0], SYNC]);
    rig.machine.write_register_u32(SMMU_BASE + 0x20, 1 << 4 | 1 << 3 | 1 << 2 | 1);
    assert!(rig.machine.dma_read(0, STREAM, PAGE).is_some());
    assert_eq!(needless(&mut rig, &[cfgi_ste(STREAM), SYNC]), 1);
    // Another table with the same bytes: the descriptor changed.
    for word in 0..8 {
        let at = STREAM_TABLE + 0x4000 + u64::from(STREAM) * 64 + word * 8;
        rig.machine.memory.write(at, stage2()[word as usize]);
    }
    let long_ago = [[3 | u64::from(STREAM) << 32, 0], SYNC];
    let _ = needless(&mut rig, &long_ago);
    rig.machine.write_u64(LEVEL1_STREAMS, (STREAM_TABLE + 0x4000) | 7);
    assert_eq!(needless(&mut rig, &long_ago), 0);
    assert_eq!(needless(&mut rig, &long_ago), 1);
    rig.clean();
}
