//! The invalidation array of a domain: which caches may hold its translations.
//!
//! It lies in [`Memory`] and is reached through one word, its [`Cell`]. Who edits it (one at a time) makes a new array and
//! publishes it with one store; only users are counted down in place. So a reader, which takes no lock, sees the
//! old array or the new one whole. It skips entries without users, the *trash*, which the next new array leaves out.
//!
//! Layout: a header of 32 bytes, then the entries of 16 bytes each, sorted by key. Header word 0 is the length in bits 31:0 and
//! the trash in 63:32. Words 1 to 3 belong to whoever edits arrays: its bytes, and what `readers.rs` keeps of one that was replaced.

use super::entry::{Detail, Entry, Key, StreamEntries, kind};
use crate::address::PhysAddr;
use crate::memory::Memory;

/// Bytes of the header.
pub(super) const HEADER_BYTES: u64 = 32;
/// Bytes of an entry.
pub const ENTRY_BYTES: u64 = 16;

/// Where arrays come from and go to.
pub trait ArrayPages {
    /// Memory for an array, `bytes` long at the least and aligned to 16, with anything in it; `None` when there is none.
    fn take(&mut self, bytes: u64) -> Option<PhysAddr>;

    /// Takes back what [`ArrayPages::take`] gave, with the same `bytes`.
    fn give(&mut self, array: PhysAddr, bytes: u64);
}

/// There is no memory for a new array of so many bytes. Nothing is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// What was asked of [`ArrayPages`].
    pub bytes: u64,
}

/// An edit named an entry that the array does not hold, or that has no users. A bug of the caller; nothing is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotThere;

/// Header word 0.
#[derive(Clone, Copy)]
struct Header(u64);

impl Header {
    const fn new(length: u64, trash: u64) -> Self {
        Self(length | trash << 32)
    }

    const fn length(self) -> u64 {
        self.0 & 0xffff_ffff
    }

    const fn trash(self) -> u64 {
        self.0 >> 32
    }
}

/// An array in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array(pub(super) PhysAddr);

/// The entries of an array as a reader sees them: first byte, and first byte after the last.
#[derive(Clone, Copy)]
pub(super) struct Entries {
    pub first: PhysAddr,
    pub end: PhysAddr,
}

impl Entries {
    pub const NONE: Self = Self { first: PhysAddr(0), end: PhysAddr(0) };

    /// The last entry in `from..self.end`, which is not empty, whose key is not above `key`, or the first of all.
    ///
    /// Each step halves what is left, without a branch on what it read.
    #[inline]
    fn last_up_to<M: Memory>(&self, memory: &M, from: PhysAddr, key: Key) -> PhysAddr {
        let choose = |base: u64, probe: u64| {
            if memory.read_u64(PhysAddr(probe)) <= key.0 { probe } else { base }
        };
        // The first step leaves a power of two, so that the others have nothing to keep but it.
        let bytes = self.end.0.wrapping_sub(from.0);
        let mut left = (1 << 63) >> bytes.leading_zeros();
        let mut base = choose(from.0, self.end.0.wrapping_sub(left));
        if left >= 256 * ENTRY_BYTES {
            while left != 256 * ENTRY_BYTES {
                left /= 2;
                base = choose(base, base.wrapping_add(left));
            }
            // In an array where it counts most steps are these: unrolled, half the instructions.
            for entries in [128, 64, 32, 16, 8, 4, 2, 1] {
                base = choose(base, base.wrapping_add(entries * ENTRY_BYTES));
            }
        } else {
            while left > ENTRY_BYTES {
                left /= 2;
                base = choose(base, base.wrapping_add(left));
            }
        }
        PhysAddr(base)
    }

    /// The first entry in `from..self.end` whose key is not below `key`, or the end.
    #[inline]
    pub fn lower_bound<M: Memory>(&self, memory: &M, from: PhysAddr, key: Key) -> PhysAddr {
        if from == self.end {
            return from;
        }
        let place = self.last_up_to(memory, from, key);
        if memory.read_u64(place) < key.0 { place.offset(ENTRY_BYTES) } else { place }
    }

    /// The place of the entry with this key that has users.
    #[inline]
    pub fn find_live<M: Memory>(&self, memory: &M, from: PhysAddr, key: Key) -> Option<(PhysAddr, Detail)> {
        if from == self.end {
            return None;
        }
        let place = self.last_up_to(memory, from, key);
        let [found, detail] = memory.read_pair(place);
        (found == key.0 && Detail(detail).users() != 0).then_some((place, Detail(detail)))
    }
}

impl Array {
    const fn entry(self, index: u64) -> PhysAddr {
        self.0.offset(HEADER_BYTES.wrapping_add(index.wrapping_mul(ENTRY_BYTES)))
    }

    /// Who has the array's address from its cell sees at least the header that it was published with; a later one is only shorter.
    fn header<M: Memory>(self, memory: &M) -> Header {
        Header(memory.read_u64(self.0))
    }

    /// What the array was taken for from [`ArrayPages`]: its editor keeps it in header word 1.
    pub fn bytes<M: Memory>(self, memory: &M) -> u64 {
        memory.read_u64(self.0.offset(8))
    }

    pub(super) fn entries<M: Memory>(self, memory: &M) -> Entries {
        let header = self.header(memory);
        Entries { first: self.entry(0), end: self.entry(header.length()) }
    }

    /// Where it is.
    pub const fn place(self) -> PhysAddr {
        self.0
    }

    /// Calls `visit` with each entry that has users, and how many, in the order of the array. The caller keeps others from editing it.
    pub fn for_each_live<M: Memory>(self, memory: &M, mut visit: impl FnMut(Entry, u32)) {
        let entries = self.entries(memory);
        let mut at = entries.first;
        while at != entries.end {
            let [key, detail] = memory.read_pair(at);
            let detail = Detail(detail);
            if detail.users() != 0 {
                visit(Entry { key: Key(key), detail: detail.with_users(0) }, detail.users());
            }
            at = at.offset(ENTRY_BYTES);
        }
    }

    /// Entries, trash included.
    pub fn len<M: Memory>(self, memory: &M) -> u64 {
        self.header(memory).length()
    }

    /// Entries without users.
    pub fn trash<M: Memory>(self, memory: &M) -> u64 {
        self.header(memory).trash()
    }

    /// A new array with the live entries of `old`, and one user more for each of `added`: entries that are in both keep the fields that
    /// they have in `old`. `old` stays as it is.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn merge<M: Memory>(
        memory: &M,
        old: Option<Self>,
        added: &StreamEntries,
        pages: &mut impl ArrayPages,
    ) -> Result<Self, OutOfMemory> {
        let (entries, live) = match old {
            Some(old) => {
                let header = old.header(memory);
                (old.entries(memory), header.length().wrapping_sub(header.trash()))
            }
            None => (Entries::NONE, 0),
        };
        let mut new = NewArray::take(memory, live.wrapping_add(added.len() as u64), pages)?;
        let mut from = entries.first;
        for entry in added.iter() {
            let place = entries.lower_bound(memory, from, entry.key);
            new.copy_live(from, place);
            from = place;
            let mut detail = entry.detail.with_users(1);
            if place != entries.end {
                let [found, there] = memory.read_pair(place);
                if found == entry.key.0 {
                    from = place.offset(ENTRY_BYTES);
                    let users = Detail(there).users();
                    if users != 0 {
                        // Each user is a stream of its own, and there are at most 2^32 of them.
                        detail = Detail(there).with_users(users.wrapping_add(1));
                    }
                }
            }
            new.push(Entry { key: entry.key, detail });
        }
        new.copy_live(from, entries.end);
        Ok(new.finish())
    }

    /// Takes one user of each of `removed` away, in place. `last` is told the entries that have none left, before they are trash for
    /// readers. The array ends with its last live entry then.
    ///
    /// # Errors
    /// [`NotThere`]; nothing is changed.
    pub fn unref<M: Memory>(
        self,
        memory: &M,
        removed: &StreamEntries,
        mut last: impl FnMut(Entry),
    ) -> Result<(), NotThere> {
        let entries = self.entries(memory);
        // A reader sees no difference in entries that have other users: they are done at once. The others wait until all are found.
        let mut gone = [PhysAddr(0); StreamEntries::MAX];
        let mut trash = 0usize;
        let mut from = entries.first;
        for entry in removed.iter() {
            // A stream's entries often stand one after the other: look there before searching.
            let is_next = from != entries.end && memory.read_u64(from) == entry.key.0;
            let next = is_next.then(|| (from, Detail(memory.read_u64(from.offset(8)))));
            let next = next.filter(|(_, detail)| detail.users() != 0);
            let Some((place, detail)) = next.or_else(|| entries.find_live(memory, from, entry.key)) else {
                self.undo_unref(memory, removed, entry.key, gone.get(..trash).unwrap_or_default());
                return Err(NotThere);
            };
            let detail = detail.one_user_less();
            if detail.users() != 0 {
                memory.write_u64(place.offset(8), detail.0);
            } else if let Some(slot) = gone.get_mut(trash) {
                *slot = place;
                trash = trash.wrapping_add(1);
            }
            from = place.offset(ENTRY_BYTES);
        }
        for place in gone.iter().take(trash) {
            let [key, detail] = memory.read_pair(*place);
            let detail = Detail(detail).one_user_less();
            last(Entry { key: Key(key), detail });
            memory.write_u64(place.offset(8), detail.0);
        }
        if trash != 0 {
            self.shrink(memory, trash as u64);
        }
        Ok(())
    }

    /// Gives back what [`Array::unref`] took from the entries of `removed` below the key `end`, but those at the places `gone`.
    #[cold]
    fn undo_unref<M: Memory>(self, memory: &M, removed: &StreamEntries, end: Key, gone: &[PhysAddr]) {
        let entries = self.entries(memory);
        for entry in removed.iter().take_while(|entry| entry.key < end) {
            if let Some((place, detail)) = entries.find_live(memory, entries.first, entry.key)
                && !gone.contains(&place)
            {
                memory.write_u64(place.offset(8), detail.with_users(detail.users().wrapping_add(1)).0);
            }
        }
    }

    /// Counts `more` entries that became trash, and cuts what is trash at the end off.
    fn shrink<M: Memory>(self, memory: &M, more: u64) {
        let header = self.header(memory);
        let mut length = header.length();
        let mut trash = header.trash().wrapping_add(more);
        while length != 0 {
            let detail = memory.read_u64(self.entry(length.wrapping_sub(1)).offset(8));
            if Detail(detail).users() != 0 {
                break;
            }
            length = length.wrapping_sub(1);
            trash = trash.wrapping_sub(1);
        }
        memory.write_u64(self.0, Header::new(length, trash).0);
    }

    /// A new array without the trash of this one; `None` when it has none.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn purge<M: Memory>(
        self,
        memory: &M,
        pages: &mut impl ArrayPages,
    ) -> Result<Option<Self>, OutOfMemory> {
        let header = self.header(memory);
        if header.trash() == 0 {
            return Ok(None);
        }
        let entries = self.entries(memory);
        let mut new = NewArray::take(memory, header.length().wrapping_sub(header.trash()), pages)?;
        new.copy_live(entries.first, entries.end);
        Ok(Some(new.finish()))
    }
}

/// An array that is being filled.
struct NewArray<'a, M> {
    memory: &'a M,
    array: Array,
    bytes: u64,
    end: PhysAddr,
}

impl<'a, M: Memory> NewArray<'a, M> {
    /// Room for `capacity` entries.
    fn take(memory: &'a M, capacity: u64, pages: &mut impl ArrayPages) -> Result<Self, OutOfMemory> {
        let bytes = HEADER_BYTES.wrapping_add(capacity.wrapping_mul(ENTRY_BYTES));
        let array = Array(pages.take(bytes).ok_or(OutOfMemory { bytes })?);
        Ok(Self { memory, array, bytes, end: array.entry(0) })
    }

    #[inline]
    fn push(&mut self, entry: Entry) {
        self.memory.write_pair(self.end, [entry.key.0, entry.detail.0]);
        self.end = self.end.offset(ENTRY_BYTES);
    }

    /// Appends the entries of another array from one place to another that have users.
    #[inline]
    fn copy_live(&mut self, from: PhysAddr, to: PhysAddr) {
        let (memory, mut from, mut end) = (self.memory, from, self.end);
        // Four at a time, as long as all of them live: by far the most arrays have no trash.
        while to.0.wrapping_sub(from.0) >= 4 * ENTRY_BYTES {
            let four = memory.read_four_pairs(from);
            if four.iter().any(|[_, detail]| Detail(*detail).users() == 0) {
                for [key, detail] in four {
                    if Detail(detail).users() != 0 {
                        memory.write_pair(end, [key, detail]);
                        end = end.offset(ENTRY_BYTES);
                    }
                }
            } else {
                memory.write_four_pairs(end, four);
                end = end.offset(4 * ENTRY_BYTES);
            }
            from = from.offset(4 * ENTRY_BYTES);
        }
        while from != to {
            let [key, detail] = memory.read_pair(from);
            if Detail(detail).users() != 0 {
                memory.write_pair(end, [key, detail]);
                end = end.offset(ENTRY_BYTES);
            }
            from = from.offset(ENTRY_BYTES);
        }
        self.end = end;
    }

    /// Writes the header: the array is complete, and can be published.
    fn finish(self) -> Array {
        let length = self.end.0.wrapping_sub(self.array.entry(0).0) / ENTRY_BYTES;
        self.memory.write_u64(self.array.0.offset(8), self.bytes);
        self.memory.write_u64(self.array.0, Header::new(length, 0).0);
        self.array
    }
}

/// The word through which a domain's array is reached: its address, or 0 while there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell(pub PhysAddr);

impl Cell {
    /// The array that is published now.
    #[inline]
    pub fn load<M: Memory>(self, memory: &M) -> Option<Array> {
        match memory.read_acquire_u64(self.0) {
            0 => None,
            array => Some(Array(PhysAddr(array))),
        }
    }

    /// Publishes an array that is complete. Who let hardware or a CPU in on it passes a full barrier first.
    #[inline]
    pub(super) fn store<M: Memory>(self, memory: &M, array: Option<Array>) {
        memory.write_release_u64(self.0, array.map_or(0, |array| array.0.0));
    }

    /// The first entry of an SMMU that stands for a tag of the IOTLB that `wanted` accepts, and its users. The caller keeps
    /// others from editing the array.
    pub fn find_tag<M: Memory>(
        self,
        memory: &M,
        smmu: u8,
        wanted: impl Fn(super::Tag) -> bool,
    ) -> Option<(super::Tag, u32)> {
        let entries = self.load(memory)?.entries(memory);
        let mut at = entries.lower_bound(memory, entries.first, Key::of(smmu, 0, 0, 0));
        while at != entries.end {
            let [key, detail] = memory.read_pair(at);
            let (key, detail) = (Key(key), Detail(detail));
            if key.smmu() != usize::from(smmu) || key.kind() > kind::S2_VMID_VSMMU {
                return None;
            }
            if detail.users() != 0
                && let Some(tag) = (Entry { key, detail }).tag()
                && wanted(tag)
            {
                return Some((tag, detail.users()));
            }
            at = at.offset(ENTRY_BYTES);
        }
        None
    }

    /// Users of the entry with the key of this one; 0 when the array has none. The caller keeps others from editing it.
    pub fn users<M: Memory>(self, memory: &M, entry: &Entry) -> u32 {
        let Some(array) = self.load(memory) else { return 0 };
        let entries = array.entries(memory);
        entries.find_live(memory, entries.first, entry.key).map_or(0, |(_, detail)| detail.users())
    }

    /// Whether no entry has users: nothing of the domain's table is in any cache.
    pub fn is_idle<M: Memory>(self, memory: &M) -> bool {
        self.load(memory).is_none_or(|array| array.len(memory) == 0)
    }
}
