//! A map from numbers to words, in pages of the pool: a sorted array that is searched by halves.

use smmuv3::address::PhysAddr;
use smmuv3::memory::Memory;

use crate::smmu::Pages;

/// Bytes of a key and its value.
const PAIR_BYTES: u64 = 16;
/// log2 of the pages of the largest map: 16,384 pairs, which can be moved within one call.
const MAX_ORDER: u8 = 6;

/// The map. Whoever uses it keeps others away from it.
#[derive(Debug)]
pub(super) struct SortedMap {
    base: PhysAddr,
    /// log2 of its pages; meaningless while it is empty.
    order: u8,
    count: u64,
}

/// Why there is no room for a pair. Nothing is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InsertError {
    /// The key is there.
    Present,
    /// The map is as large as it can be.
    Full,
    /// The pool has no run of `1 << order` pages.
    NoMemory {
        /// log2 of the pages.
        order: u8,
    },
}

/// Room for one key more.
#[derive(Debug)]
#[must_use]
pub(super) struct Room {
    key: u64,
    /// The index that it will have.
    place: u64,
    /// Pages that all pairs move to, and log2 of how many.
    taken: Option<(PhysAddr, u8)>,
}

impl Room {
    /// Gives the pages back: nothing is added.
    pub fn give_back(self, pages: &mut impl Pages) {
        if let Some((base, order)) = self.taken {
            pages.give_run(base, order);
        }
    }
}

impl SortedMap {
    pub const fn new() -> Self {
        Self { base: PhysAddr(0), order: 0, count: 0 }
    }

    const fn at(&self, index: u64) -> PhysAddr {
        self.base.offset(index * PAIR_BYTES)
    }

    const fn capacity(order: u8) -> u64 {
        (4096 << order) / PAIR_BYTES
    }

    /// The index of the first key that is not below `key`, and whether it is `key`.
    fn search(&self, memory: &impl Memory, key: u64) -> (u64, bool) {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match memory.read_u64(self.at(middle)) {
                found if found < key => low = middle + 1,
                found if found == key => return (middle, true),
                _ => high = middle,
            }
        }
        (low, false)
    }

    /// The value of a key.
    pub fn get(&self, memory: &impl Memory, key: u64) -> Option<u64> {
        match self.search(memory, key) {
            (index, true) => Some(memory.read_u64(self.at(index).offset(8))),
            (_, false) => None,
        }
    }

    /// Gives a key that is there another value; a key that is not is left alone.
    pub fn set(&self, memory: &impl Memory, key: u64, value: u64) {
        if let (index, true) = self.search(memory, key) {
            memory.write_u64(self.at(index).offset(8), value);
        }
    }

    /// Its pages, if it has any, and their order.
    #[cfg(feature = "oracle")]
    pub fn run(&self) -> Option<(PhysAddr, u8)> {
        (self.count != 0).then_some((self.base, self.order))
    }

    /// All pairs, in the order of keys.
    #[cfg(feature = "oracle")]
    pub fn pairs<M: Memory>(&self, memory: &M) -> impl Iterator<Item = (u64, u64)> {
        (0..self.count).map(|index| {
            let [key, value] = memory.read_pair(self.at(index));
            (key, value)
        })
    }

    /// The pair with the lowest key.
    pub fn first(&self, memory: &impl Memory) -> Option<(u64, u64)> {
        let [key, value] = (self.count != 0).then(|| memory.read_pair(self.base))?;
        Some((key, value))
    }

    /// Takes the pages, if any, that the map needs for a key that it has not. The map is as it was.
    ///
    /// # Errors
    /// [`InsertError`]; nothing is taken.
    pub fn make_room(
        &self,
        memory: &impl Memory,
        key: u64,
        pages: &mut impl Pages,
    ) -> Result<Room, InsertError> {
        let (place, found) = self.search(memory, key);
        if found {
            return Err(InsertError::Present);
        }
        let order = match self.count {
            0 => 0,
            count if count == Self::capacity(self.order) => self.order + 1,
            _ => return Ok(Room { key, place, taken: None }),
        };
        if order > MAX_ORDER {
            return Err(InsertError::Full);
        }
        let base = pages.take_run(order).ok_or(InsertError::NoMemory { order })?;
        Ok(Room { key, place, taken: Some((base, order)) })
    }

    /// Adds a pair where [`SortedMap::make_room`] made room, since when the map has not changed.
    pub fn insert_into(&mut self, memory: &impl Memory, room: Room, value: u64, pages: &mut impl Pages) {
        let Room { key, place, taken } = room;
        if let Some((base, order)) = taken {
            self.move_to(memory, base, order, pages);
        }
        for index in (place..self.count).rev() {
            memory.write_pair(self.at(index + 1), memory.read_pair(self.at(index)));
        }
        memory.write_pair(self.at(place), [key, value]);
        self.count += 1;
    }

    fn move_to(&mut self, memory: &impl Memory, base: PhysAddr, order: u8, pages: &mut impl Pages) {
        for index in 0..self.count {
            let offset = index * PAIR_BYTES;
            memory.write_pair(base.offset(offset), memory.read_pair(self.base.offset(offset)));
        }
        if self.count != 0 {
            pages.give_run(self.base, self.order);
        }
        (self.base, self.order) = (base, order);
    }

    /// Removes a key; its value.
    pub fn remove(&mut self, memory: &impl Memory, key: u64, pages: &mut impl Pages) -> Option<u64> {
        let (place, true) = self.search(memory, key) else { return None };
        let value = memory.read_u64(self.at(place).offset(8));
        for index in place + 1..self.count {
            memory.write_pair(self.at(index - 1), memory.read_pair(self.at(index)));
        }
        self.count -= 1;
        if self.count == 0 {
            pages.give_run(self.base, self.order);
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::smmu::fake::{Fake, FakePages};
    use std::collections::BTreeMap;

    impl SortedMap {
        fn insert(
            &mut self,
            memory: &impl Memory,
            key: u64,
            value: u64,
            pages: &mut impl Pages,
        ) -> Result<(), InsertError> {
            let room = self.make_room(memory, key, pages)?;
            self.insert_into(memory, room, value, pages);
            Ok(())
        }
    }

    #[test]
    fn it_is_a_map_that_grows_and_gives_its_pages_back() {
        let (fake, mut pages) = (Fake::new(1), FakePages::new());
        let before = pages.left;
        let mut map = SortedMap::new();
        let mut model = BTreeMap::new();
        let keys = (0..1000u64).map(|n| n * 7919 % 1009);
        for key in keys.clone() {
            assert_eq!(map.insert(&fake, key, key * 2, &mut pages), Ok(()));
            assert_eq!(map.insert(&fake, key, 0, &mut pages), Err(InsertError::Present));
            model.insert(key, key * 2);
        }
        map.set(&fake, 5, 99);
        model.insert(5, 99);
        assert!((0..1100).all(|key| map.get(&fake, key) == model.get(&key).copied()));
        for key in keys {
            assert_eq!(map.first(&fake), model.first_key_value().map(|(key, value)| (*key, *value)));
            assert_eq!(map.remove(&fake, key, &mut pages), model.remove(&key));
            assert_eq!(map.remove(&fake, key, &mut pages), None);
        }
        assert_eq!(pages.left, before);
    }

    #[test]
    fn without_memory_nothing_changes() {
        let fake = Fake::new(1);
        let mut pages = FakePages::new();
        let mut map = SortedMap::new();
        (0..256).for_each(|key| map.insert(&fake, key, key, &mut pages).unwrap());
        let left = pages.left;
        map.make_room(&fake, 256, &mut pages).unwrap().give_back(&mut pages);
        assert_eq!(pages.left, left);
        pages.left = 0;
        assert_eq!(map.insert(&fake, 256, 0, &mut pages), Err(InsertError::NoMemory { order: 1 }));
        assert!((0..256).all(|key| map.get(&fake, key) == Some(key)) && map.get(&fake, 256).is_none());
    }
}
