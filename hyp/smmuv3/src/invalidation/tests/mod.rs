//! Tests of the invalidation module, by subject.

#![cfg_attr(not(test), allow(dead_code, unused_imports))]

extern crate std;

pub(crate) mod array;
mod commands;
mod failures;
mod meaning;
mod queue;
mod readers;

use std::vec::Vec;

use super::readers::{DomainIndex, Readers, Retired};
use super::{Array, Cell, Domain, Entry, OutOfMemory, StreamEntries, Target, World};
use crate::address::PhysAddr;
use crate::memory::testing::{TestMemory, TestPages};
use crate::pgtable::Granule;

/// Where the word that names the array is, and those of the readers.
const CELL: Cell = Cell(PhysAddr(0x100));
const READERS: PhysAddr = PhysAddr(0x200);

/// A domain without an array, on a machine with one CPU.
struct Rig<'a> {
    memory: &'a TestMemory,
    readers: Readers,
    retired: Retired,
    pages: TestPages<'a>,
}

impl<'a> Rig<'a> {
    fn new(memory: &'a TestMemory) -> Self {
        CELL.store(memory, None);
        Self {
            memory,
            readers: Readers::new(memory, READERS, 1),
            retired: Retired::new(),
            pages: TestPages::new(memory),
        }
    }

    /// The domain as its readers see it.
    fn domain(&self) -> Domain<'_> {
        Domain { readers: &self.readers, cpu: 0, index: DomainIndex(3), array: CELL }
    }

    /// One stream more with these entries.
    fn attach(&mut self, entries: &StreamEntries) -> Result<(), OutOfMemory> {
        let new = Array::merge(self.memory, CELL.load(self.memory), entries, &mut self.pages)?;
        self.publish(new);
        Ok(())
    }

    /// Puts an array in place of the present one, which nobody reads.
    fn publish(&mut self, new: Array) {
        self.retired.replace(self.memory, &self.readers, CELL, Some(new));
        self.retired.collect(self.memory, &self.readers, &mut self.pages);
        assert_eq!(self.pages.out.len(), 1, "an array was leaked");
    }

    /// The published array.
    fn array(&self) -> Array {
        CELL.load(self.memory).expect("an array is published")
    }

    /// A domain in whose array each of `live` has one user; `trash` had one, and something behind it has not.
    fn with(memory: &'a TestMemory, live: &[Entry], trash: &[Entry]) -> Self {
        let mut rig = Self::new(memory);
        for entry in live.iter().chain(trash) {
            rig.attach(&of(&[*entry])).unwrap();
        }
        for entry in trash {
            rig.array().unref(memory, &of(&[*entry]), |_| {}).unwrap();
        }
        rig
    }
}

fn of(entries: &[Entry]) -> StreamEntries {
    StreamEntries::of(entries.iter().copied()).unwrap()
}

fn entry(smmu: u8, target: Target) -> Entry {
    Entry::new(smmu, target, Granule::Size4K)
}

const fn asid(asid: u16) -> Target {
    Target::S1Asid { asid, world: World::El1, hears_broadcast: false }
}

const fn vmid(vmid: u16) -> Target {
    Target::S2Vmid { vmid }
}

const fn vsmmu(vmid: u16) -> Target {
    Target::S2VmidVsmmu { vmid }
}

const fn s1_clear(vmid: u16) -> Target {
    Target::S2VmidS1Clear { vmid }
}

const fn cds(stream: u32) -> Target {
    Target::NestedCds { stream }
}

const fn ats(stream: u32, substream: u32) -> Target {
    Target::Ats { stream, substream }
}

const fn ats_full(stream: u32) -> Target {
    Target::AtsFull { stream }
}

/// Every target that can stand in the small arrays of the property tests.
fn targets() -> Vec<Target> {
    let mut targets = Vec::new();
    for id in [1, 2] {
        for (world, hears_broadcast) in [(World::El1, false), (World::El1, true), (World::El2, false)] {
            targets.push(Target::S1Asid { asid: id, world, hears_broadcast });
        }
        targets.extend([vmid(id), vsmmu(id), s1_clear(id), cds(u32::from(id))]);
        targets.extend([ats(u32::from(id), 0), ats(u32::from(id), 5), ats_full(u32::from(id))]);
    }
    targets
}
