//! When a replaced array goes back. `tests/loom.rs` has the same with real concurrency.

use super::super::NotThere;
use super::*;

/// A machine of two CPUs, a published array, and `count` replacements of it.
fn replaced<'a>(memory: &'a TestMemory, rig: &mut Rig<'a>, count: u16) {
    for id in 0..count {
        let old = CELL.load(memory);
        let new = Array::merge(memory, old, &of(&[entry(0, vmid(id + 1))]), &mut rig.pages).unwrap();
        rig.retired.replace(memory, &rig.readers, CELL, Some(new));
    }
}

#[test]
fn an_array_goes_back_when_every_reader_that_began_before_has_left() {
    let memory = TestMemory::default();
    let mut rig = Rig::new(&memory);
    rig.readers = Readers::new(&memory, READERS, 2);
    replaced(&memory, &mut rig, 1);
    let collect = |rig: &mut Rig<'_>| {
        rig.retired.collect(&memory, &rig.readers, &mut rig.pages);
        rig.pages.out.len()
    };
    rig.readers.enter(&memory, 0, DomainIndex(7));
    replaced(&memory, &mut rig, 2);
    assert_eq!(collect(&mut rig), 3, "CPU 0 may read the two that were replaced");
    rig.readers.enter(&memory, 1, DomainIndex(7));
    replaced(&memory, &mut rig, 1);
    rig.readers.leave(&memory, 0);
    assert_eq!(collect(&mut rig), 2, "CPU 1 began after the first two were replaced, before the third");
    rig.readers.leave(&memory, 1);
    assert_eq!(collect(&mut rig), 1, "only the published one is left");
    rig.retired.replace(&memory, &rig.readers, CELL, None);
    assert_eq!(collect(&mut rig), 0);
    assert_eq!(CELL.load(&memory), None);
}

#[test]
fn only_readers_of_the_domain_that_began_before_are_awaited() {
    let memory = TestMemory::default();
    let readers = Readers::new(&memory, READERS, 3);
    readers.enter(&memory, 0, DomainIndex(1));
    readers.enter(&memory, 1, DomainIndex(2));
    let mut looks = 0;
    readers.await_readers(&memory, DomainIndex(2), || {
        looks += 1;
        if looks == 3 {
            readers.leave(&memory, 1);
            readers.enter(&memory, 1, DomainIndex(2));
        }
    });
    assert_eq!(looks, 3, "CPU 0 reads another domain, and CPU 1 has begun anew");
    readers.await_readers(&memory, DomainIndex(9), || panic!("nobody reads it"));
}

#[test]
fn an_edit_that_is_refused_leaves_readers_alone() {
    let memory = TestMemory::default();
    let rig = Rig::with(&memory, &[entry(0, vmid(1))], &[]);
    let before = memory.snapshot();
    assert_eq!(rig.array().unref(&memory, &of(&[entry(0, vmid(2))]), |_| {}), Err(NotThere));
    assert_eq!(
        rig.array().unref(&memory, &of(&[entry(0, vmid(1)), entry(1, vmid(1))]), |_| {}),
        Err(NotThere)
    );
    assert!(memory.snapshot() == before);
}

#[test]
fn an_array_that_is_mostly_trash_is_replaced_and_one_without_entries_too() {
    let memory = TestMemory::default();
    let entries: Vec<Entry> = (1..=4).map(|id| entry(0, vmid(id))).collect();
    let mut rig = Rig::with(&memory, &entries, &[]);
    // The last one lives, so what becomes trash stays in between.
    for (gone, expected) in [(1, (4, 1)), (2, (4, 2)), (3, (1, 0))] {
        rig.array().unref(&memory, &of(&[entry(0, vmid(gone))]), |_| {}).unwrap();
        rig.retired.tidy(&memory, &rig.readers, CELL, &mut rig.pages);
        assert_eq!((rig.array().len(&memory), rig.array().trash(&memory)), expected, "without {gone}");
    }
    rig.array().unref(&memory, &of(&entries[3..]), |_| {}).unwrap();
    rig.retired.tidy(&memory, &rig.readers, CELL, &mut rig.pages);
    assert_eq!(CELL.load(&memory), None);
}
