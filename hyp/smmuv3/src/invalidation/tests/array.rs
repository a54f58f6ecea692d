//! Edits of the array against a plain multiset, and lookups in it. What is in memory is read word by word.

extern crate std;

use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::super::{BadEntries, ENTRY_BYTES, NotThere, Tag};
use super::*;
use crate::memory::Memory;
use crate::tags::{self, TagKind};

/// SMMU, rank of the type, id, SubstreamID: what an entry is found by, in the order of the array.
type Name = (u64, u64, u64, u64);

/// The name that the array must give to an entry.
fn name(smmu: u8, target: Target) -> Name {
    let (rank, id, substream) = match target {
        Target::S1Asid { asid, .. } => (0, u32::from(asid), 0),
        Target::S2Vmid { vmid } => (1, u32::from(vmid), 0),
        Target::S2VmidVsmmu { vmid } => (2, u32::from(vmid), 0),
        Target::S2VmidS1Clear { vmid } => (3, u32::from(vmid), 0),
        Target::NestedCds { stream } => (4, stream, 0),
        Target::Ats { stream, substream } => (5, stream, substream),
        Target::AtsFull { stream } => (6, stream, 0),
    };
    (u64::from(smmu), rank, u64::from(id), u64::from(substream))
}

/// The second word of an entry without its users: opcodes, log2 of the page, broadcast.
fn fields(target: Target, granule: Granule) -> u64 {
    let (sized, unsized_, broadcast) = match target {
        Target::S1Asid { world: World::El1, hears_broadcast, .. } => (0x12, 0x11, hears_broadcast),
        Target::S1Asid { world: World::El2, hears_broadcast, .. } => (0x22, 0x21, hears_broadcast),
        Target::S2Vmid { .. } | Target::S2VmidVsmmu { .. } => (0x2a, 0x28, false),
        Target::S2VmidS1Clear { .. } => (0x10, 0x10, false),
        Target::NestedCds { .. } => (0x06, 0x06, false),
        Target::Ats { .. } | Target::AtsFull { .. } => (0x40, 0x40, false),
    };
    let page = match target {
        Target::Ats { .. } | Target::AtsFull { .. } => 0,
        _ => u64::from(granule.log2()),
    };
    sized | unsized_ << 8 | page << 16 | u64::from(broadcast) << 31
}

/// An entry in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Raw {
    name: Name,
    fields: u64,
    users: u64,
}

/// Length, trash and entries of an array as they are in memory.
fn read(memory: &TestMemory, array: Array) -> (u64, u64, Vec<Raw>) {
    let header = memory.read_u64(array.0);
    let length = header & 0xffff_ffff;
    let entry = |index| {
        let [key, detail] = memory.read_pair(array.0.offset(32 + 16 * index));
        Raw {
            name: (key >> 56, key >> 52 & 0xf, key >> 20 & 0xffff_ffff, key & 0xf_ffff),
            fields: detail >> 32,
            users: detail & 0xffff_ffff,
        }
    };
    (length, header >> 32, (0..length).map(entry).collect())
}

/// What the array must hold, in order, trash included.
#[derive(Clone, Default)]
struct Model(Vec<Raw>);

impl Model {
    fn live(&self) -> Vec<Raw> {
        self.0.iter().copied().filter(|raw| raw.users != 0).collect()
    }

    fn trash(&self) -> u64 {
        (self.0.len() - self.live().len()) as u64
    }

    fn merge(&mut self, added: &[Raw]) {
        let mut all: BTreeMap<Name, Raw> = self.live().into_iter().map(|raw| (raw.name, raw)).collect();
        for raw in added {
            all.entry(raw.name).or_insert(Raw { users: 0, ..*raw }).users += 1;
        }
        self.0 = all.into_values().collect();
    }

    /// The names that have no users left, or `None` where the caller is wrong.
    fn unref(&mut self, removed: &[Raw]) -> Option<Vec<Name>> {
        let mut after = self.0.clone();
        let mut last = Vec::new();
        for raw in removed {
            let there = after.iter_mut().find(|there| there.name == raw.name && there.users != 0)?;
            there.users -= 1;
            if there.users == 0 {
                last.push(raw.name);
            }
        }
        while after.last().is_some_and(|raw| raw.users == 0) {
            after.pop();
        }
        last.sort_unstable();
        self.0 = after;
        Some(last)
    }

    /// The first live entry of these types on an SMMU.
    fn find(&self, smmu: u64, ranks: &[u64]) -> Option<Raw> {
        self.live().into_iter().find(|raw| raw.name.0 == smmu && ranks.contains(&raw.name.1))
    }

    fn assert_is(&self, memory: &TestMemory, array: Array) {
        let (length, trash, entries) = read(memory, array);
        assert_eq!(entries, self.0);
        assert!(entries.is_sorted_by(|a, b| a.name < b.name));
        assert_eq!((length, trash), (self.0.len() as u64, self.trash()));
        assert_eq!((array.len(memory), array.trash(memory)), (length, trash));
    }
}

/// A step of a history. Numbers choose among what is there.
#[derive(Clone, Debug)]
enum Step {
    Merge(Vec<Choice>),
    /// Of entries that live.
    Unref(Vec<usize>),
    /// Of any.
    UnrefAny(Vec<Choice>),
    Purge,
}

/// SMMU, target, granule.
type Choice = (u8, usize, bool);

fn choice() -> impl Strategy<Value = Choice> {
    (0u8..3, any::<usize>(), any::<bool>())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(choice(), 0..=StreamEntries::MAX).prop_map(Step::Merge),
        4 => prop::collection::vec(any::<usize>(), 1..=StreamEntries::MAX).prop_map(Step::Unref),
        1 => prop::collection::vec(choice(), 1..=3).prop_map(Step::UnrefAny),
        1 => Just(Step::Purge),
    ]
}

/// The entries of a choice, none twice, as both sides see them.
fn chosen(choices: &[Choice]) -> (StreamEntries, Vec<Raw>) {
    let (mut entries, mut raws) = (StreamEntries::new(), Vec::<Raw>::new());
    let targets = targets();
    for &(smmu, which, large) in choices {
        let target = targets[which % targets.len()];
        let granule = if large { Granule::Size64K } else { Granule::Size4K };
        let raw = Raw { name: name(smmu, target), fields: fields(target, granule), users: 0 };
        let twice = raws.iter().any(|other| other.name == raw.name);
        assert_eq!(
            entries.add(Entry::new(smmu, target, granule)),
            if twice { Err(BadEntries) } else { Ok(()) }
        );
        if !twice {
            raws.push(raw);
        }
    }
    assert!(entries.iter().is_sorted_by(|a, b| a.key < b.key));
    (entries, raws)
}

/// Live entries of the model by number, as the caller of `unref` names them.
fn chosen_live(model: &Model, numbers: &[usize]) -> (StreamEntries, Vec<Raw>) {
    let (live, mut entries, mut raws) = (model.live(), StreamEntries::new(), Vec::new());
    let targets = targets();
    for number in numbers.iter().filter(|_| !live.is_empty()) {
        let raw = live[number % live.len()];
        let target = targets.iter().find(|target| name(raw.name.0 as u8, **target) == raw.name).unwrap();
        if entries.add(entry(raw.name.0 as u8, *target)).is_ok() {
            raws.push(raw);
        }
    }
    (entries, raws)
}

/// Lookups say what the model says, and change nothing.
fn assert_lookups(memory: &TestMemory, model: &Model) {
    let before = (memory.snapshot(), memory.writes.get());
    for smmu in 0..4 {
        let number_and_users = |raw: Raw| (raw.name.2 as u16, raw.users as u32);
        for (kind, rank) in [(TagKind::Asid, 0), (TagKind::Vmid, 1)] {
            let found = tags::find(memory, CELL, smmu, kind);
            assert_eq!(found, model.find(u64::from(smmu), &[rank]).map(number_and_users));
        }
        let tag = |raw: Raw| {
            let (number, users) = number_and_users(raw);
            ([Tag::Asid(number), Tag::Vmid(number), Tag::VsmmuVmid(number)][raw.name.1 as usize], users)
        };
        let found = CELL.find_tag(memory, smmu, |_| true);
        assert_eq!(found, model.find(u64::from(smmu), &[0, 1, 2]).map(tag));
        for target in targets() {
            let live = model.live().into_iter().find(|raw| raw.name == name(smmu, target));
            let users = CELL.users(memory, &entry(smmu, target));
            assert_eq!(u64::from(users), live.map_or(0, |raw| raw.users));
        }
    }
    assert_eq!(CELL.is_idle(memory), model.live().is_empty());
    assert!(before == (memory.snapshot(), memory.writes.get()), "a lookup wrote");
}

/// Steps of a history, and at which of them there is no memory.
fn history() -> impl Strategy<Value = Vec<(Step, bool)>> {
    prop::collection::vec((step(), any::<bool>()), 1..40)
}

/// After each step the array holds what a multiset does, and lookups say the same.
fn is_a_multiset(steps: Vec<(Step, bool)>) -> Result<(), TestCaseError> {
    let memory = TestMemory::default();
    let mut rig = Rig::new(&memory);
    rig.attach(&StreamEntries::new()).unwrap();
    let mut model = Model::default();
    for (step, out_of_memory) in steps {
        let old = rig.array();
        let before = memory.snapshot();
        match step {
            Step::Merge(choices) => {
                let (entries, raws) = chosen(&choices);
                rig.pages.exhausted = out_of_memory;
                match Array::merge(&memory, Some(old), &entries, &mut rig.pages) {
                    Err(OutOfMemory { bytes }) => {
                        prop_assert!(out_of_memory);
                        prop_assert!(bytes >= 32 + 16 * (model.live().len() + raws.len()) as u64);
                        prop_assert!(memory.snapshot() == before);
                    }
                    Ok(new) => {
                        prop_assert!(!out_of_memory);
                        model.assert_is(&memory, old);
                        model.merge(&raws);
                        model.assert_is(&memory, new);
                        prop_assert!(new.bytes(&memory) >= 32 + 16 * model.0.len() as u64);
                        rig.publish(new);
                    }
                }
            }
            Step::Unref(_) | Step::UnrefAny(_) => {
                let (entries, raws) = match step {
                    Step::Unref(numbers) => chosen_live(&model, &numbers),
                    Step::UnrefAny(choices) => chosen(&choices),
                    Step::Merge(_) | Step::Purge => unreachable!(),
                };
                let mut last = Vec::new();
                let done = old.unref(&memory, &entries, |entry| {
                    let users = CELL.users(&memory, &entry);
                    assert_eq!(users, 1, "told after it is trash for readers");
                    let key = entry.key;
                    last.push((
                        key.smmu() as u64,
                        u64::from(key.kind()),
                        u64::from(key.id()),
                        key.0 & 0xf_ffff,
                    ));
                });
                match model.unref(&raws) {
                    Some(expected) => prop_assert_eq!((done, last), (Ok(()), expected)),
                    None => {
                        prop_assert_eq!((done, last), (Err(NotThere), Vec::new()));
                        prop_assert!(memory.snapshot() == before);
                    }
                }
            }
            Step::Purge => {
                rig.pages.exhausted = out_of_memory;
                match old.purge(&memory, &mut rig.pages) {
                    Ok(None) => prop_assert_eq!(model.trash(), 0),
                    Err(_) => {
                        prop_assert!(out_of_memory && model.trash() != 0);
                        prop_assert!(memory.snapshot() == before);
                    }
                    Ok(Some(new)) => {
                        prop_assert!(!out_of_memory && model.trash() != 0);
                        model.assert_is(&memory, old);
                        model.merge(&[]);
                        model.assert_is(&memory, new);
                        rig.publish(new);
                    }
                }
            }
        }
        rig.pages.exhausted = false;
        model.assert_is(&memory, rig.array());
        assert_lookups(&memory, &model);
    }
    Ok(())
}

/// A history of edits.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzzing::{Choices, must_hold};
    let choice =
        |choices: &mut Choices<'_>| (choices.byte() % 3, usize::from(choices.byte()), choices.coin());
    let several =
        |choices: &mut Choices<'_>, most: u64| (0..choices.below(most + 1)).map(|_| ()).collect::<Vec<_>>();
    let steps = Choices::of_bytes(bytes).repeat(40, |choices| {
        let step = match choices.below(10) {
            0..4 => Step::Merge(
                several(choices, StreamEntries::MAX as u64).iter().map(|()| choice(choices)).collect(),
            ),
            4..8 => Step::Unref(
                several(choices, StreamEntries::MAX as u64)
                    .iter()
                    .map(|()| usize::from(choices.byte()))
                    .collect(),
            ),
            8 => Step::UnrefAny(several(choices, 3).iter().map(|()| choice(choices)).collect()),
            _ => Step::Purge,
        };
        (step, choices.byte() >= 224)
    });
    must_hold(is_a_multiset(steps));
}

proptest! {
    #[test]
    fn edits_are_those_of_a_multiset(steps in history()) {
        is_a_multiset(steps)?;
    }
}

#[test]
fn an_entry_is_16_bytes() {
    assert_eq!(ENTRY_BYTES, 16);
}

#[test]
fn of_fields_that_differ_those_of_the_old_array_stay_unless_they_are_trash() {
    let memory = TestMemory::default();
    let (old, new) = (Entry::new(0, vmid(1), Granule::Size4K), Entry::new(0, vmid(1), Granule::Size64K));
    let mut rig = Rig::with(&memory, &[old, entry(0, ats(1, 0))], &[]);
    rig.attach(&of(&[new])).unwrap();
    assert_eq!(read(&memory, rig.array()).2[0].fields, fields(vmid(1), Granule::Size4K));
    for _ in 0..2 {
        rig.array().unref(&memory, &of(&[old]), |_| {}).unwrap();
    }
    assert_eq!((rig.array().len(&memory), rig.array().trash(&memory)), (2, 1));
    rig.attach(&of(&[new])).unwrap();
    assert_eq!(read(&memory, rig.array()).2[0].fields, fields(vmid(1), Granule::Size64K));
}

#[test]
fn the_length_ends_with_the_last_live_entry() {
    let memory = TestMemory::default();
    let entries = [1, 2, 3, 4].map(|id| entry(0, vmid(id)));
    let rig = Rig::with(&memory, &entries, &[]);
    let after = |removed: Entry| {
        rig.array().unref(&memory, &of(&[removed]), |_| {}).unwrap();
        (rig.array().len(&memory), rig.array().trash(&memory))
    };
    assert_eq!(after(entries[1]), (4, 1), "in the middle");
    assert_eq!(after(entries[2]), (4, 2));
    assert_eq!(after(entries[3]), (1, 0), "all trash at the end is cut off");
    assert_eq!(after(entries[0]), (0, 0));
    assert_eq!(rig.array().purge(&memory, &mut TestPages::new(&memory)), Ok(None));
    assert!(CELL.is_idle(&memory));
}

#[test]
fn the_largest_key_is_found() {
    let memory = TestMemory::default();
    let last = entry(255, ats_full(u32::MAX));
    let rig = Rig::with(&memory, &[entry(255, vmid(u16::MAX)), last], &[]);
    assert_eq!(CELL.users(&memory, &last), 1);
    assert_eq!(tags::find(&memory, CELL, 255, TagKind::Vmid), Some((u16::MAX, 1)));
    rig.array().unref(&memory, &of(&[last]), |_| {}).unwrap();
    assert_eq!(rig.array().len(&memory), 1);
}

#[test]
fn a_stream_has_few_entries_and_none_twice() {
    let entries = [3, 1, 2, 4].map(|id| entry(0, vmid(id)));
    let mut list = of(&entries);
    assert_eq!((list.len(), list.is_empty()), (StreamEntries::MAX, false));
    assert!(list.iter().map(Entry::tag).eq([1, 2, 3, 4].map(|id| Some(Tag::Vmid(id)))));
    assert_eq!(list.add(entry(1, vmid(1))), Err(BadEntries), "too many");
    assert_eq!(list.len(), StreamEntries::MAX);
    let mut list = of(&entries[..2]);
    let other_fields = Entry::new(0, vmid(3), Granule::Size64K);
    assert_eq!(list.add(other_fields), Err(BadEntries), "twice");
    assert!(list.iter().eq([entries[1], entries[0]].iter()));
    assert!(StreamEntries::default().is_empty());
}
