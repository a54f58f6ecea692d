//! Who may be reading an array, and when one that was replaced can be used again. Nobody waits for that.
//!
//! Each CPU has a word that says since which epoch, and in the arrays of which domain, it is reading: it stores the word,
//! passes the full barrier that a walk begins with, and only then loads the array's address. Who replaces an array publishes the
//! new one, passes a full barrier, moves the epoch on, and puts the old one on a list. An array of the list goes back when no CPU's
//! word has an epoch up to the array's: by the two barriers, a CPU whose word was not seen yet will see the new array.

use super::array::{Array, ArrayPages, Cell};
use crate::address::PhysAddr;
use crate::memory::Memory;

/// Bytes from one CPU's word to the next: they share no cache line.
const STRIDE: u64 = 64;

/// Header words of an array on the list.
const NEXT: u64 = 16;
const EPOCH: u64 = 24;

/// Names a domain's arrays in the words of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainIndex(pub u16);

/// The words of all CPUs and the epoch.
#[derive(Clone, Copy, Debug)]
pub struct Readers {
    base: PhysAddr,
    cpus: u16,
}

impl Readers {
    /// No CPUs.
    pub const NONE: Self = Self { base: PhysAddr(0), cpus: 0 };

    /// Bytes that the words of so many CPUs take.
    pub const fn bytes(cpus: u16) -> u64 {
        (cpus as u64 + 1) * STRIDE
    }

    /// The words of `cpus` CPUs in [`Readers::bytes`] bytes at `base`, aligned to 64. Nobody is reading, no array is retired.
    pub fn new<M: Memory>(memory: &M, base: PhysAddr, cpus: u16) -> Self {
        let readers = Self { base, cpus };
        memory.write_u64(base, 1);
        for cpu in 0..cpus {
            memory.write_u64(readers.word(cpu), 0);
        }
        readers
    }

    /// Where the words are; [`Readers::bytes`] says how many.
    pub const fn place(&self) -> PhysAddr {
        self.base
    }

    #[inline]
    const fn word(&self, cpu: u16) -> PhysAddr {
        self.base.offset((cpu as u64 + 1) * STRIDE)
    }

    /// CPU `cpu` begins to read arrays of a domain. It passes a full barrier before it loads one, and reads arrays of no other
    /// domain until [`Readers::leave`].
    #[inline]
    pub(super) fn enter<M: Memory>(&self, memory: &M, cpu: u16, domain: DomainIndex) {
        let epoch = memory.read_u64(self.base);
        // Who sees this word and not the 0 before it must still know that the CPU's last reading is over.
        memory.write_release_u64(self.word(cpu), epoch << 16 | u64::from(domain.0));
    }

    /// CPU `cpu` uses no array any more.
    #[inline]
    pub(super) fn leave<M: Memory>(&self, memory: &M, cpu: u16) {
        memory.write_release_u64(self.word(cpu), 0);
    }

    /// The oldest epoch in which a CPU that reads now began, of `domain` or of all.
    fn oldest<M: Memory>(&self, memory: &M, domain: Option<DomainIndex>) -> u64 {
        let mut oldest = u64::MAX;
        for cpu in 0..self.cpus {
            let word = memory.read_acquire_u64(self.word(cpu));
            if word != 0 && domain.is_none_or(|domain| word as u16 == domain.0) {
                oldest = oldest.min(word >> 16);
            }
        }
        oldest
    }

    /// Returns when no CPU reads an array of the domain any more that it may have loaded before the call; calls `relax` each time it
    /// looks again.
    ///
    /// Only for a stream that has left a domain with an ATC: its device may be gone when the caller returns, and no ATC
    /// invalidation must be on its way to it. Readers wait for nobody who edits, so this ends when their walks do.
    pub fn await_readers<M: Memory>(&self, memory: &M, domain: DomainIndex, mut relax: impl FnMut()) {
        memory.full_barrier();
        let epoch = self.advance(memory);
        while self.oldest(memory, Some(domain)) <= epoch {
            relax();
        }
    }

    /// Moves the epoch on, behind a full barrier of the caller's; the one that has ended.
    fn advance<M: Memory>(&self, memory: &M) -> u64 {
        let epoch = memory.read_u64(self.base);
        memory.write_u64(self.base, epoch.wrapping_add(1));
        epoch
    }
}

/// Arrays that were replaced and that somebody may be reading, oldest first: they are chained through their headers, so any number
/// fits. It belongs to whoever edits arrays.
#[derive(Debug, Default)]
pub struct Retired {
    first: Option<Array>,
    last: Option<Array>,
}

impl Retired {
    /// No arrays.
    pub const fn new() -> Self {
        Self { first: None, last: None }
    }

    /// Publishes `new` in place of what is in the cell, and retires that.
    pub fn replace<M: Memory>(&mut self, memory: &M, readers: &Readers, cell: Cell, new: Option<Array>) {
        let old = cell.load(memory);
        cell.store(memory, new);
        // The new array is published before it is looked who reads, and before hardware may use what it adds.
        memory.full_barrier();
        let Some(old) = old else { return };
        memory.write_u64(old.0.offset(NEXT), 0);
        memory.write_u64(old.0.offset(EPOCH), readers.advance(memory));
        match self.last {
            Some(last) => memory.write_u64(last.0.offset(NEXT), old.0.0),
            None => self.first = Some(old),
        }
        self.last = Some(old);
    }

    /// After [`Array::unref`]: leaves no array in the cell that has no entries, and replaces one that is mostly trash by one
    /// without, if there is memory for it. There need not be: what is trash costs readers little, and the next merge leaves it out.
    #[inline]
    pub fn tidy<M: Memory>(
        &mut self,
        memory: &M,
        readers: &Readers,
        cell: Cell,
        pages: &mut impl ArrayPages,
    ) {
        let Some(array) = cell.load(memory) else { return };
        if array.len(memory) == 0 {
            self.replace(memory, readers, cell, None);
        } else if array.trash(memory) > array.len(memory) / 2 {
            self.purge(memory, readers, cell, array, pages);
        }
    }

    #[cold]
    fn purge<M: Memory>(
        &mut self,
        memory: &M,
        readers: &Readers,
        cell: Cell,
        array: Array,
        pages: &mut impl ArrayPages,
    ) {
        if let Ok(Some(purged)) = array.purge(memory, pages) {
            self.replace(memory, readers, cell, Some(purged));
        }
    }

    /// Calls `visit` with each array on the list, until it answers `false`.
    pub fn for_each<M: Memory>(&self, memory: &M, mut visit: impl FnMut(Array) -> bool) {
        let mut next = self.first;
        while let Some(array) = next.filter(|array| visit(*array)) {
            let after = memory.read_u64(array.0.offset(NEXT));
            next = (after != 0).then_some(Array(PhysAddr(after)));
        }
    }

    /// Gives the arrays back that nobody can be reading.
    pub fn collect<M: Memory>(&mut self, memory: &M, readers: &Readers, pages: &mut impl ArrayPages) {
        if self.first.is_none() {
            return;
        }
        let oldest = readers.oldest(memory, None);
        while let Some(array) = self.first {
            if memory.read_u64(array.0.offset(EPOCH)) >= oldest {
                return;
            }
            let next = memory.read_u64(array.0.offset(NEXT));
            self.first = (next != 0).then_some(Array(PhysAddr(next)));
            if self.first.is_none() {
                self.last = None;
            }
            pages.give(array.0, array.bytes(memory));
        }
    }
}
