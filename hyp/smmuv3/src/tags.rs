//! Tags: which ASID or VMID a domain has on an SMMU.
//!
//! A tag lives as long as an entry for it stands in the domain's invalidation array: it is made for the first stream of the domain
//! behind that SMMU, found by the ones after it, and freed, flushed, with the last. So a number that stands in no array
//! is in no IOTLB. VMIDs come from one [`IdSpace`] for each SMMU, ASIDs from one for all of them.

use crate::address::PhysAddr;
use crate::invalidation::{Cell, Tag};
use crate::memory::Memory;

/// The numbers 1 to `2^bits - 1`, each free or taken: a bit for each, in [`Memory`]. 0 is reserved (for VMIDs, to bypass).
#[derive(Debug)]
pub struct IdSpace {
    bitmap: PhysAddr,
    bits: u8,
    taken: u32,
    /// No number below it is free.
    lowest: u32,
}

/// Every number is taken. Nothing is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

const WORD_BITS: u32 = u64::BITS;

impl IdSpace {
    /// A space without numbers.
    pub const EMPTY: Self = Self { bitmap: PhysAddr(0), bits: 0, taken: 0, lowest: 1 };

    /// Bytes of the bitmap for numbers of so many bits, 1 to 16.
    pub const fn bytes(bits: u8) -> u64 {
        if bits > 6 { (1 << bits) / 8 } else { 8 }
    }

    /// All numbers of `bits` bits, 1 to 16, free but 0; [`IdSpace::bytes`] bytes at `bitmap`, aligned to 8, are the space's.
    pub fn new<M: Memory>(memory: &M, bitmap: PhysAddr, bits: u8) -> Self {
        for offset in (0..Self::bytes(bits)).step_by(8) {
            memory.write_u64(bitmap.offset(offset), 0);
        }
        memory.write_u64(bitmap, 1);
        Self { bitmap, bits, taken: 0, lowest: 1 }
    }

    const fn end(&self) -> u32 {
        1 << self.bits
    }

    const fn word(&self, number: u32) -> PhysAddr {
        self.bitmap.offset((number / WORD_BITS) as u64 * 8)
    }

    /// Word and bit of a number; `None` if there is no such number.
    const fn place(&self, number: u16) -> Option<(PhysAddr, u64)> {
        let number = number as u32;
        if number == 0 || number >= self.end() {
            return None;
        }
        Some((self.word(number), 1 << (number % WORD_BITS)))
    }

    /// Whether a number is taken; `false` of one that there is not.
    pub fn is_taken<M: Memory>(&self, memory: &M, number: u16) -> bool {
        self.place(number).is_some_and(|(word, bit)| memory.read_u64(word) & bit != 0)
    }

    /// Where the bitmap is.
    pub const fn bitmap(&self) -> PhysAddr {
        self.bitmap
    }

    /// Takes a number that is free; `false`, and nothing is changed, if it is not, or there is no such number.
    pub fn reserve<M: Memory>(&mut self, memory: &M, number: u16) -> bool {
        let Some((word, bit)) = self.place(number) else { return false };
        let there = memory.read_u64(word);
        if there & bit != 0 {
            return false;
        }
        memory.write_u64(word, there | bit);
        self.taken += 1;
        true
    }

    /// Takes the lowest number that is free.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub fn allocate<M: Memory>(&mut self, memory: &M) -> Result<u16, Exhausted> {
        let mut number = self.lowest;
        while number < self.end() {
            let free = !memory.read_u64(self.word(number)) >> (number % WORD_BITS);
            if free != 0 {
                number += free.trailing_zeros();
                break;
            }
            number = (number / WORD_BITS + 1) * WORD_BITS;
        }
        self.lowest = number.min(self.end());
        let number = u16::try_from(number).map_err(|_| Exhausted)?;
        if self.reserve(memory, number) { Ok(number) } else { Err(Exhausted) }
    }

    /// Frees a number that is taken, which the caller has flushed. Another one is left alone.
    pub fn free<M: Memory>(&mut self, memory: &M, number: u16) {
        let Some((word, bit)) = self.place(number) else { return };
        let there = memory.read_u64(word);
        if there & bit != 0 {
            memory.write_u64(word, there & !bit);
            self.taken -= 1;
            self.lowest = self.lowest.min(u32::from(number));
        }
    }

    /// How many numbers are taken.
    pub const fn taken(&self) -> u32 {
        self.taken
    }

    /// How many numbers are free.
    pub const fn available(&self) -> u32 {
        self.end().saturating_sub(1).saturating_sub(self.taken)
    }
}

/// The kinds of tags that a domain has of its own. The VMID of a vSMMU is none of them: whoever attaches to a nested domain takes
/// it from the vSMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagKind {
    /// An ASID, for a stage-1 domain.
    Asid,
    /// A VMID, for a stage-2 domain.
    Vmid,
}

/// The tag of a kind that a domain has on an SMMU, if it has one, and its users. Never allocates.
pub fn find<M: Memory>(memory: &M, array: Cell, smmu: u8, kind: TagKind) -> Option<(u16, u32)> {
    let number = |tag| match (kind, tag) {
        (TagKind::Asid, Tag::Asid(number)) | (TagKind::Vmid, Tag::Vmid(number)) => Some(number),
        (TagKind::Asid, Tag::Vmid(_) | Tag::VsmmuVmid(_))
        | (TagKind::Vmid, Tag::Asid(_) | Tag::VsmmuVmid(_)) => None,
    };
    let (tag, users) = array.find_tag(memory, smmu, |tag| number(tag).is_some())?;
    Some((number(tag)?, users))
}

/// A tag for one more user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// The number.
    pub number: u16,
    /// Whether this call took it: only then a caller that fails frees it.
    pub fresh: bool,
}

/// The tag of a kind that a domain has on an SMMU, or a new one from `space`.
///
/// # Errors
/// [`Exhausted`]; nothing is changed.
pub fn allocate<M: Memory>(
    memory: &M,
    space: &mut IdSpace,
    array: Cell,
    smmu: u8,
    kind: TagKind,
) -> Result<Allocated, Exhausted> {
    match find(memory, array, smmu, kind) {
        Some((number, _)) => Ok(Allocated { number, fresh: false }),
        None => Ok(Allocated { number: space.allocate(memory)?, fresh: true }),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::invalidation::{Array, Entry, Readers, Retired, StreamEntries, Target};
    use crate::memory::testing::{TestMemory, TestPages};
    use crate::pgtable::Granule;

    const BITMAP: PhysAddr = PhysAddr(0x10_0000);
    const CELL: Cell = Cell(PhysAddr(0x100));

    /// Publishes an array in which SMMU 2 has these targets.
    fn publish(memory: &TestMemory, targets: &[Target]) {
        let entries = targets.iter().map(|target| Entry::new(2, *target, Granule::Size4K));
        let entries = StreamEntries::of(entries).unwrap();
        let array = Array::merge(memory, None, &entries, &mut TestPages::new(memory)).unwrap();
        memory.write_u64(CELL.0, 0);
        let readers = Readers::new(memory, PhysAddr(0x200), 1);
        Retired::new().replace(memory, &readers, CELL, Some(array));
    }

    #[test]
    fn every_number_but_0_is_given_once_and_used_again() {
        for bits in [1, 7, 8, 16] {
            let memory = TestMemory::default();
            let mut space = IdSpace::new(&memory, BITMAP, bits);
            let all = (1u32 << bits) - 1;
            for number in 1..=all {
                assert_eq!((space.taken(), space.available()), (number - 1, all - number + 1));
                assert_eq!(space.allocate(&memory), Ok(number as u16), "the lowest that is free");
            }
            assert_eq!(space.available(), 0);
            for _ in 0..2 {
                assert_eq!(space.allocate(&memory), Err(Exhausted));
            }
            let some = [all, 1, all / 2 + 1].into_iter().collect::<BTreeSet<u32>>();
            for number in &some {
                space.free(&memory, *number as u16);
                space.free(&memory, *number as u16);
            }
            assert_eq!(space.available() as usize, some.len(), "freed once, however often it is said");
            for number in &some {
                assert_eq!(space.allocate(&memory), Ok(*number as u16));
            }
            assert_eq!(space.allocate(&memory), Err(Exhausted));
            let end = BITMAP.0 + IdSpace::bytes(bits);
            assert!(memory.snapshot().keys().all(|address| (BITMAP.0..end).contains(address)));
        }
    }

    #[test]
    fn what_is_no_number_of_the_space_is_left_alone() {
        let memory = TestMemory::default();
        let mut space = IdSpace::new(&memory, BITMAP, 7);
        for number in [0, 128, 255, u16::MAX] {
            assert!(!space.reserve(&memory, number));
            space.free(&memory, number);
        }
        assert_eq!((space.taken(), space.available()), (0, 127));
        let mut empty = IdSpace::EMPTY;
        assert_eq!((empty.taken(), empty.available()), (0, 0));
        assert!(!empty.reserve(&memory, 1));
        assert_eq!(empty.allocate(&memory), Err(Exhausted));
    }

    #[test]
    fn a_tag_is_found_before_one_is_made() {
        let memory = TestMemory::default();
        let mut space = IdSpace::new(&memory, BITMAP, 8);
        publish(&memory, &[Target::S2Vmid { vmid: 9 }, Target::S2VmidVsmmu { vmid: 4 }]);
        assert_eq!(find(&memory, CELL, 2, TagKind::Vmid), Some((9, 1)), "not the one that a vSMMU lends");
        assert_eq!(find(&memory, CELL, 2, TagKind::Asid), None);
        assert_eq!(find(&memory, CELL, 1, TagKind::Vmid), None);
        let mut allocate = |smmu| allocate(&memory, &mut space, CELL, smmu, TagKind::Vmid);
        assert_eq!(allocate(2), Ok(Allocated { number: 9, fresh: false }));
        assert_eq!(allocate(1), Ok(Allocated { number: 1, fresh: true }));
        while allocate(1).is_ok() {}
        assert_eq!(allocate(2), Ok(Allocated { number: 9, fresh: false }), "finding needs no number");
        assert_eq!(space.taken(), 255);
    }

    #[test]
    fn what_only_vsmmus_lend_is_no_tag_of_the_domain() {
        let memory = TestMemory::default();
        publish(&memory, &[Target::S2VmidVsmmu { vmid: 4 }, Target::S2VmidS1Clear { vmid: 5 }]);
        assert_eq!(find(&memory, CELL, 2, TagKind::Vmid), None);
        memory.write_u64(CELL.0, 0);
        assert_eq!(find(&memory, CELL, 2, TagKind::Vmid), None);
    }

    proptest! {
        /// Against a set of numbers.
        #[test]
        fn a_space_is_a_set(bits in 1u8..=9, steps in prop::collection::vec((0u8..4, any::<u16>()), 1..200)) {
            let memory = TestMemory::default();
            let mut space = IdSpace::new(&memory, BITMAP, bits);
            let all: Vec<u16> = (1..1u16 << bits).collect();
            let mut taken = BTreeSet::new();
            for (step, number) in steps {
                let number = number & ((2 << bits) - 1);
                match step {
                    0 | 1 => {
                        let lowest = all.iter().copied().find(|number| !taken.contains(number));
                        prop_assert_eq!(space.allocate(&memory).ok(), lowest);
                        taken.extend(lowest);
                    }
                    2 => {
                        let free = all.contains(&number) && taken.insert(number);
                        prop_assert_eq!(space.reserve(&memory, number), free);
                    }
                    _ => {
                        space.free(&memory, number);
                        taken.remove(&number);
                    }
                }
                prop_assert_eq!(space.taken() as usize, taken.len());
                prop_assert_eq!(space.available() as usize, all.len() - taken.len());
            }
        }
    }
}
