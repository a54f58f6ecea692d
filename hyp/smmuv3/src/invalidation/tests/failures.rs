//! What a walk does when SMMUs fail: the others are told, and waited for, all the same.

extern crate std;

use std::vec::Vec;

use super::super::{InvalidationFailed, run};
use super::queue::{Event, Fault, Recorder};
use super::*;
use crate::command::opcode::{ATC_INV, SYNC, TLBI_S2_IPA};
use crate::gather::Gather;

const SMMUS: usize = 20;

/// Two tags and an ATC behind each SMMU, with trash in between.
fn walk(faults: &[(usize, Fault)]) -> (Recorder, Result<(), InvalidationFailed<Fault>>) {
    let memory = TestMemory::default();
    let each = |targets: &[Target]| {
        (0..SMMUS as u8)
            .flat_map(|smmu| targets.iter().map(move |target| entry(smmu, *target)))
            .collect::<Vec<_>>()
    };
    let rig = Rig::with(&memory, &each(&[vmid(1), vmid(3), ats(9, 0)]), &each(&[vmid(2), ats(8, 0)]));
    let recorder = Recorder::failing(faults);
    let mut gather = Gather::new();
    gather.add_leaf(0x4020_0000, 4096, 3);
    let result = recorder.invalidate(&memory, &rig.domain(), &gather);
    recorder.assert_posted_before_waiting();
    for smmu in 0..SMMUS {
        let fails_at = |fault| faults.contains(&(smmu, fault));
        let posted: &[u8] =
            if fails_at(Fault::Open) { &[] } else { &[TLBI_S2_IPA, TLBI_S2_IPA, SYNC, ATC_INV, SYNC] };
        assert_eq!(recorder.opcodes(smmu), posted, "SMMU {smmu}");
        let waited = !fails_at(Fault::Open) && !fails_at(Fault::Close);
        assert_eq!(recorder.at(smmu).last() == Some(&Event::Wait), waited, "SMMU {smmu}");
    }
    (recorder, result)
}

#[test]
fn any_one_smmu_may_fail() {
    assert_eq!(walk(&[]).1, Ok(()));
    for smmu in 0..SMMUS {
        for fault in [Fault::Open, Fault::Close, Fault::Wait] {
            assert_eq!(walk(&[(smmu, fault)]).1, Err(InvalidationFailed { smmu, fault }));
        }
    }
}

#[test]
fn the_first_that_failed_is_named() {
    for fault in [Fault::Open, Fault::Close, Fault::Wait] {
        let faults = [(2, fault), (5, fault), (SMMUS - 1, fault)];
        assert_eq!(walk(&faults).1, Err(InvalidationFailed { smmu: 2, fault }));
    }
    let all: Vec<_> = (0..SMMUS).map(|smmu| (smmu, Fault::Open)).collect();
    assert_eq!(walk(&all).1, Err(InvalidationFailed { smmu: 0, fault: Fault::Open }));
    // To post comes before to wait.
    let faults = [(1, Fault::Wait), (4, Fault::Close), (7, Fault::Open)];
    assert_eq!(walk(&faults).1, Err(InvalidationFailed { smmu: 4, fault: Fault::Close }));
}

#[test]
fn a_failed_walk_has_left_the_read_section() {
    let memory = TestMemory::default();
    let mut rig = Rig::with(&memory, &[entry(0, vmid(1))], &[]);
    let recorder = Recorder::failing(&[(0, Fault::Wait)]);
    recorder.invalidate(&memory, &rig.domain(), &Gather::everything()).unwrap_err();
    rig.attach(&of(&[entry(0, vmid(1))])).unwrap();
    rig.readers.await_readers(&memory, DomainIndex(3), || panic!("nobody reads"));
}

#[test]
fn commands_of_a_caller_say_where_they_failed() {
    for fault in [Fault::Open, Fault::Close, Fault::Wait] {
        let recorder = Recorder::failing(&[(0, fault)]);
        assert_eq!(run(&recorder, 0, &[entry(0, vmid(7)).flush()]), Err(fault));
    }
}
