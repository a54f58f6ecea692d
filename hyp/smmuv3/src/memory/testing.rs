//! Memory for tests: a word that was never written, or was given back, cannot be read.

extern crate std;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use super::Memory;
use crate::address::PhysAddr;
use crate::invalidation::ArrayPages;

/// Words by address, and how often they were touched.
#[derive(Default)]
pub(crate) struct TestMemory {
    words: RefCell<HashMap<u64, u64>>,
    pub(crate) writes: Cell<usize>,
    pub(crate) barriers: Cell<usize>,
}

impl TestMemory {
    /// All words, for a comparison of before and after.
    pub(crate) fn snapshot(&self) -> BTreeMap<u64, u64> {
        self.words.borrow().iter().map(|(address, word)| (*address, *word)).collect()
    }

    fn forget(&self, start: u64, bytes: u64) {
        self.words.borrow_mut().retain(|address, _| *address < start || *address >= start + bytes);
    }
}

impl Memory for TestMemory {
    fn read_u64(&self, address: PhysAddr) -> u64 {
        *self.words.borrow().get(&address.0).unwrap_or_else(|| panic!("nothing was written at {address}"))
    }

    fn write_u64(&self, address: PhysAddr, value: u64) {
        assert!(address.is_aligned(8));
        self.writes.set(self.writes.get() + 1);
        self.words.borrow_mut().insert(address.0, value);
    }

    fn full_barrier(&self) {
        self.barriers.set(self.barriers.get() + 1);
    }
}

/// Memory for arrays, which never gives the same address twice.
pub(crate) struct TestPages<'a> {
    memory: &'a TestMemory,
    next: u64,
    /// Arrays that are out: address and bytes.
    pub(crate) out: BTreeMap<u64, u64>,
    /// Whether there is none left.
    pub(crate) exhausted: bool,
}

impl<'a> TestPages<'a> {
    pub(crate) fn new(memory: &'a TestMemory) -> Self {
        Self { memory, next: 0x1000, out: BTreeMap::new(), exhausted: false }
    }
}

impl ArrayPages for TestPages<'_> {
    fn take(&mut self, bytes: u64) -> Option<PhysAddr> {
        if self.exhausted {
            return None;
        }
        let address = self.next;
        self.next += bytes.next_multiple_of(16);
        self.out.insert(address, bytes);
        Some(PhysAddr(address))
    }

    fn give(&mut self, array: PhysAddr, bytes: u64) {
        assert_eq!(self.out.remove(&array.0), Some(bytes), "not what was taken");
        self.memory.forget(array.0, bytes);
    }
}
