//! Which commands a walk makes of which entries, in which order.

extern crate std;

use std::vec::Vec;

use super::super::{BATCH_COMMANDS, MAX_SMMUS, Traits, run};
use super::queue::{Event, PLAIN, RANGES, Recorder};
use super::*;
use crate::command::{Command, opcode::*};
use crate::gather::Gather;

/// One page of 4 KiB.
fn page() -> Gather {
    leaves(0x4020_0000, 1)
}

fn leaves(first: u64, count: u64) -> Gather {
    let mut gather = Gather::new();
    gather.add_leaf(first, count << 12, 3);
    gather
}

/// The opcodes that the entries of SMMU 0 become.
fn opcodes(traits: Traits, live: &[Target], gather: &Gather) -> Vec<u8> {
    let memory = TestMemory::default();
    let live: Vec<_> = live.iter().map(|target| entry(0, *target)).collect();
    let rig = Rig::with(&memory, &live, &[]);
    let recorder = Recorder::new([(0, traits)]);
    recorder.invalidate(&memory, &rig.domain(), gather).unwrap();
    recorder.opcodes(0)
}

#[test]
fn nothing_gathered_or_nobody_there_costs_no_command() {
    let memory = TestMemory::default();
    let mut rig = Rig::with(&memory, &[entry(0, vmid(1))], &[]);
    let recorder = Recorder::new([]);
    let silent = |rig: &Rig<'_>, gather: &Gather| {
        let barriers = memory.barriers.get();
        recorder.invalidate(&memory, &rig.domain(), gather).unwrap();
        assert!(memory.barriers.get() > barriers, "descriptors that were stored must be seen");
        assert!(recorder.events.borrow().is_empty());
    };
    silent(&rig, &Gather::new());
    rig.array().unref(&memory, &of(&[entry(0, vmid(1))]), |_| {}).unwrap();
    silent(&rig, &page());
    rig.retired.replace(&memory, &rig.readers, CELL, None);
    silent(&rig, &page());
}

#[test]
fn trash_is_skipped_wherever_it_is() {
    let memory = TestMemory::default();
    let trash = [entry(0, vmid(1)), entry(1, vmid(1)), entry(2, vmid(1)), entry(2, vmid(3))];
    let rig = Rig::with(&memory, &[entry(2, vmid(2)), entry(3, vmid(1))], &trash);
    assert_eq!(rig.array().trash(&memory), 4);
    let recorder = Recorder::new([]);
    recorder.invalidate(&memory, &rig.domain(), &page()).unwrap();
    let smmus = |event| {
        recorder
            .events
            .borrow()
            .iter()
            .filter(|(_, other)| *other == event)
            .map(|(at, _)| *at)
            .collect::<Vec<_>>()
    };
    assert_eq!(smmus(Event::Close), [2, 3]);
    assert_eq!(smmus(Event::Wait), [2, 3]);
    assert_eq!(recorder.opcodes(2), [TLBI_S2_IPA, SYNC]);
}

#[test]
fn every_smmu_is_posted_to_before_any_is_waited_for() {
    // Room for tickets is made for 4, 16 and all SMMUs.
    for count in [1, 3, 4, 5, 16, 17, MAX_SMMUS] {
        let memory = TestMemory::default();
        let live: Vec<_> = (0..count as u8).map(|smmu| entry(smmu, vmid(1))).collect();
        let rig = Rig::with(&memory, &live, &[]);
        let recorder = Recorder::new([]);
        recorder.invalidate(&memory, &rig.domain(), &page()).unwrap();
        recorder.assert_posted_before_waiting();
        let waited = recorder.events.borrow().iter().filter(|(_, event)| *event == Event::Wait).count();
        assert_eq!(waited, count);
        assert!((0..count).all(|smmu| recorder.opcodes(smmu) == [TLBI_S2_IPA, SYNC]));
    }
}

#[test]
fn more_smmus_than_a_machine_has_are_waited_for_all_the_same() {
    let memory = TestMemory::default();
    let live: Vec<_> = (0..=255).map(|smmu| entry(smmu, vmid(1))).collect();
    let rig = Rig::with(&memory, &live, &[]);
    let recorder = Recorder::new([]);
    recorder.invalidate(&memory, &rig.domain(), &page()).unwrap();
    assert!((0..=255).all(|smmu| recorder.at(smmu).last() == Some(&Event::Wait)));
}

#[test]
fn one_smmu_forgets_stage_2_then_what_was_made_of_it_then_atcs() {
    let all = [asid(4), vmid(1), s1_clear(2), cds(16), ats(16, 0), ats_full(17)];
    assert_eq!(
        opcodes(RANGES, &all, &page()),
        [TLBI_NH_VA, TLBI_S2_IPA, SYNC, TLBI_NH_ALL, CFGI_CD_ALL, SYNC, ATC_INV, ATC_INV, SYNC]
    );
    assert_eq!(opcodes(RANGES, &[vmid(1), cds(16)], &page()), [TLBI_S2_IPA, SYNC, CFGI_CD_ALL, SYNC]);
    assert_eq!(opcodes(RANGES, &[vmid(1), ats(16, 0)], &page()), [TLBI_S2_IPA, SYNC, ATC_INV, SYNC]);
    assert_eq!(opcodes(RANGES, &[ats(16, 0), ats(17, 0)], &page()), [ATC_INV, ATC_INV, SYNC]);
}

#[test]
fn a_vmid_under_nested_streams_goes_whole_and_once() {
    for gather in [page(), Gather::everything()] {
        assert_eq!(opcodes(RANGES, &[vsmmu(2), s1_clear(2)], &gather), [TLBI_S12_VMALL, SYNC]);
    }
    assert_eq!(
        opcodes(RANGES, &[vsmmu(2), s1_clear(2), cds(16)], &page()),
        [TLBI_S12_VMALL, SYNC, CFGI_CD_ALL, SYNC]
    );
    // Streams that bypass stage 1 have nothing to clear.
    assert_eq!(opcodes(RANGES, &[vsmmu(2)], &page()), [TLBI_S2_IPA, SYNC]);
    // Another VMID's stage 2 does not stand for this one's.
    assert_eq!(opcodes(RANGES, &[vsmmu(1), s1_clear(2)], &page()), [TLBI_S2_IPA, SYNC, TLBI_NH_ALL, SYNC]);
    assert_eq!(opcodes(RANGES, &[s1_clear(2)], &page()), [TLBI_NH_ALL, SYNC]);
}

#[test]
fn an_entry_that_died_stands_for_nothing() {
    let memory = TestMemory::default();
    let live = [entry(0, vsmmu(2)), entry(0, ats(9, 0))];
    let rig = Rig::with(&memory, &live, &[entry(0, s1_clear(2))]);
    let recorder = Recorder::new([]);
    recorder.invalidate(&memory, &rig.domain(), &page()).unwrap();
    assert_eq!(recorder.opcodes(0), [TLBI_S2_IPA, SYNC, ATC_INV, SYNC]);

    let memory = TestMemory::default();
    let rig = Rig::with(&memory, &[entry(0, s1_clear(2))], &[entry(0, vsmmu(2))]);
    recorder.invalidate(&memory, &rig.domain(), &page()).unwrap();
    assert_eq!(recorder.opcodes(0), [TLBI_NH_ALL, SYNC]);
}

#[test]
fn broadcast_is_relied_on_for_sized_invalidations_only() {
    let heard = Target::S1Asid { asid: 4, world: World::El2, hears_broadcast: true };
    assert!(opcodes(RANGES, &[heard], &page()).is_empty(), "not even a CMD_SYNC");
    assert_eq!(opcodes(RANGES, &[heard], &Gather::everything()), [TLBI_EL2_ASID, SYNC]);
    assert_eq!(opcodes(RANGES, &[heard, ats(16, 0)], &page()), [ATC_INV, SYNC]);
}

#[test]
fn an_atc_is_told_of_the_substream_and_the_smallest_range() {
    let memory = TestMemory::default();
    let live = [entry(0, ats(0x1234, 0)), entry(0, ats(0x1234, 0xabcde)), entry(0, ats_full(0x1235))];
    let rig = Rig::with(&memory, &live, &[]);
    let recorder = Recorder::new([]);
    let commands = |gather: &Gather| {
        recorder.invalidate(&memory, &rig.domain(), gather).unwrap();
        recorder.commands(0)
    };
    let sync = Command([0x46, 0]);
    // Pages 0x40207 and 0x40208 differ in four bits.
    assert_eq!(
        commands(&leaves(0x4020_7000, 2)),
        [
            Command([0x1234_0000_0040, 0x4020_0004]),
            Command([0x1234_abcd_e840, 0x4020_0004]),
            Command([0x1235_0000_0040, 52]),
            sync
        ]
    );
    assert_eq!(commands(&page())[0], Command([0x1234_0000_0040, 0x4020_0000]));
    assert_eq!(commands(&Gather::everything())[1], Command([0x1234_abcd_e840, 52]));
}

#[test]
fn a_batch_is_issued_when_it_is_full() {
    let streams = |count| (0..count).map(|stream| ats(stream, 0)).collect::<Vec<_>>();
    let lengths = |traits, count| {
        let memory = TestMemory::default();
        let live: Vec<_> = streams(count).into_iter().map(|target| entry(0, target)).collect();
        let rig = Rig::with(&memory, &live, &[]);
        let recorder = Recorder::new([(0, traits)]);
        recorder.invalidate(&memory, &rig.domain(), &page()).unwrap();
        recorder.batches(0).iter().map(Vec::len).collect::<Vec<_>>()
    };
    assert_eq!(BATCH_COMMANDS, 64);
    assert_eq!(lengths(PLAIN, 63), [64], "with the CMD_SYNC at the end");
    assert_eq!(lengths(PLAIN, 64), [64, 1]);
    assert_eq!(lengths(PLAIN, 130), [64, 64, 3]);
}

#[test]
fn with_the_erratum_all_that_is_issued_ends_in_a_sync() {
    let traits = Traits { sync_before_last_slot: true, ..RANGES };
    for count in 1..200 {
        // CMD_SYNCs between the kinds fall into every slot.
        for first in [cds(0), vmid(1)] {
            let memory = TestMemory::default();
            let mut live = std::vec![entry(0, first)];
            live.extend(
                (0..count).map(|id| entry(0, if id % 2 == 0 { asid(id + 1) } else { ats(u32::from(id), 0) })),
            );
            let rig = Rig::with(&memory, &live, &[]);
            let recorder = Recorder::new([(0, traits)]);
            recorder.invalidate(&memory, &rig.domain(), &page()).unwrap();
            let batches = recorder.batches(0);
            assert!(
                batches.iter().all(|batch| batch.len() <= 64 && batch.last() == Some(&SYNC)),
                "{batches:?}"
            );
            // Two in a row at the very end only: the ticket needs one of its own.
            let flat: Vec<_> = batches.iter().flatten().collect();
            assert!(flat[..flat.len() - 1].windows(2).all(|two| two != [&SYNC, &SYNC]), "{batches:?}");
            let sent = batches.iter().flatten().filter(|op| **op != SYNC).count();
            assert_eq!(sent, live.len());
        }
    }
}

#[test]
fn with_the_other_erratum_invalidations_are_said_twice() {
    let traits = Traits { repeat_invalidations: true, ..RANGES };
    assert_eq!(
        opcodes(traits, &[vmid(1), ats(16, 0)], &page()),
        [TLBI_S2_IPA, SYNC, TLBI_S2_IPA, SYNC, ATC_INV, SYNC],
        "but for ATC invalidations"
    );
    assert_eq!(opcodes(traits, &[ats(16, 0)], &page()), [ATC_INV, SYNC]);
    let heard = Target::S1Asid { asid: 4, world: World::El1, hears_broadcast: true };
    assert!(opcodes(traits, &[heard], &page()).is_empty());
}

#[test]
fn commands_of_a_caller_follow_the_same_rules() {
    let flush = [entry(0, vmid(7)).flush(), entry(0, asid(9)).flush()];
    assert_eq!(flush, [Command([0x7_0000_0028, 0]), Command([0x0009_0000_0000_0011, 0])]);
    for (repeat_invalidations, times) in [(false, 1), (true, 2)] {
        let recorder = Recorder::new([(0, Traits { repeat_invalidations, ..PLAIN })]);
        run(&recorder, 0, &flush).unwrap();
        assert_eq!(recorder.opcodes(0), [TLBI_S12_VMALL, TLBI_NH_ASID, SYNC].repeat(times));
        assert_eq!(recorder.at(0).last(), Some(&Event::Wait));
    }
}

#[test]
fn every_kind_has_its_unsized_command() {
    let flush = |target| entry(3, target).flush().0;
    assert_eq!(
        flush(Target::S1Asid { asid: 9, world: World::El2, hears_broadcast: true }),
        [9 << 48 | 0x21, 0]
    );
    assert_eq!(flush(vsmmu(7)), [7 << 32 | 0x28, 0]);
    assert_eq!(flush(s1_clear(7)), [7 << 32 | 0x10, 0]);
    assert_eq!(flush(cds(0x8000_0001)), [0x8000_0001 << 32 | 0x06, 0]);
    assert_eq!(flush(ats(5, 1)), [5 << 32 | 1 << 12 | 1 << 11 | 0x40, 52]);
    assert_eq!(flush(ats_full(5)), [5 << 32 | 0x40, 52]);
}
