//! The invariants: the walk reaches exactly the tags with users, and posts to all SMMUs before it waits for any.

extern crate std;
use super::*;
use crate::address::PhysAddr;
use std::cell::RefCell;
use std::vec::Vec;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Post(usize, Command),
    Wait(usize),
}

/// Records what is asked of it; the SMMU `broken` fails when it is waited for.
#[derive(Default)]
struct Recorder {
    steps: RefCell<Vec<Step>>,
    broken: Option<usize>,
}

impl Queues for Recorder {
    type Ticket = usize;
    type Fault = ();

    fn range_invalidation(&self, smmu: usize) -> bool {
        smmu != 5
    }

    fn post(&self, smmu: usize, commands: impl Iterator<Item = Command>) -> Result<usize, ()> {
        self.steps.borrow_mut().extend(commands.map(|command| Step::Post(smmu, command)));
        Ok(smmu + 100)
    }

    fn wait(&self, smmu: usize, ticket: usize) -> Result<(), ()> {
        assert_eq!(ticket, smmu + 100);
        self.steps.borrow_mut().push(Step::Wait(smmu));
        if self.broken == Some(smmu) { Err(()) } else { Ok(()) }
    }
}

impl Memory for Recorder {
    fn read_u64(&self, _: PhysAddr) -> u64 {
        0
    }
    fn write_u64(&self, _: PhysAddr, _: u64) {}
    fn full_barrier(&self) {}
}

fn page() -> Gather {
    let mut gather = Gather::new();
    gather.add_leaf(0x8000_0000, 4096, 3);
    gather
}

#[test]
fn all_smmus_are_posted_to_before_any_is_waited_for() {
    let array = InvalidationArray::new();
    for (smmu, vmid) in [(5, 9), (0, 2), (63, 0xffff)] {
        array.merge(Tag { smmu, vmid }).unwrap();
    }
    let recorder = Recorder { broken: Some(0), ..Recorder::default() };
    let failed = invalidate(&recorder, &recorder, &array, &page(), Granule::Size4K).unwrap_err();
    assert_eq!(failed.smmu, 0);
    let steps = recorder.steps.borrow();
    let posts: Vec<_> = steps
        .iter()
        .take(3)
        .map(|step| match step {
            Step::Post(smmu, command) => (*smmu, (command.0[0] >> 32) as u16, command.0[1]),
            Step::Wait(_) => panic!("waited before all were posted"),
        })
        .collect();
    assert_eq!(posts, [(0, 2, 0x8000_0701), (5, 9, 0x8000_0001), (63, 0xffff, 0x8000_0701)]);
    assert_eq!(steps[3..], [Step::Wait(0), Step::Wait(5), Step::Wait(63)], "the others are waited for too");
}

#[test]
fn an_idle_domain_and_an_empty_change_cost_no_command() {
    let array = InvalidationArray::new();
    let recorder = Recorder::default();
    invalidate(&recorder, &recorder, &array, &page(), Granule::Size4K).unwrap();
    array.merge(Tag { smmu: 1, vmid: 2 }).unwrap();
    invalidate(&recorder, &recorder, &array, &Gather::new(), Granule::Size4K).unwrap();
    assert!(recorder.steps.borrow().is_empty());
}

#[test]
fn users_are_counted_and_the_last_is_told() {
    let array = InvalidationArray::new();
    let tag = Tag { smmu: 3, vmid: 7 };
    let other = Tag { smmu: 3, vmid: 8 };
    assert_eq!(array.unref(tag), Err(TagMismatch));
    array.merge(tag).unwrap();
    array.merge(tag).unwrap();
    assert_eq!(array.merge(other), Err(TagMismatch));
    assert_eq!(array.unref(other), Err(TagMismatch));
    assert_eq!(array.find(3), Some((tag, 2)));
    assert_eq!(array.unref(tag), Ok(Unref::Remaining));
    assert_eq!(array.unref(tag), Ok(Unref::Last));
    assert!(array.is_idle() && array.find(3).is_none());
    assert_eq!(array.merge(Tag { smmu: MAX_SMMUS, vmid: 1 }), Err(TagMismatch));
    array.merge(other).unwrap();
    assert_eq!(array.find(3), Some((other, 1)));
}
