//! A list with a fixed capacity.

use core::fmt;

/// The list is full; what should have been added is unchanged, and so is the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// Capacity of the list.
    pub capacity: usize,
}

/// Up to `N` items, in the order in which they were added.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct List<T, const N: usize> {
    // The first `len` are `Some`, the others `None`.
    items: [Option<T>; N],
    len: usize,
}

impl<T: Copy, const N: usize> List<T, N> {
    /// A list without items.
    pub const fn new() -> Self {
        Self { items: [None; N], len: 0 }
    }

    /// Adds an item at the end.
    ///
    /// # Errors
    /// [`Full`] when there are `N` already; the list is unchanged.
    pub fn push(&mut self, item: T) -> Result<(), Full> {
        let slot = self.items.get_mut(self.len).ok_or(Full { capacity: N })?;
        *slot = Some(item);
        self.len += 1;
        Ok(())
    }

    /// Takes the last item off.
    pub fn pop(&mut self) -> Option<T> {
        let last = self.len.checked_sub(1)?;
        self.len = last;
        self.items.get_mut(last)?.take()
    }

    /// Removes the item with this index and puts the last one in its place.
    pub fn swap_remove(&mut self, index: usize) -> Option<T> {
        if index >= self.len {
            return None;
        }
        let last = self.pop()?;
        if index == self.len {
            return Some(last);
        }
        self.items.get_mut(index)?.replace(last)
    }

    /// Sorts the items; those with equal keys in any order.
    pub fn sort_by_key<K: Ord>(&mut self, key: impl Fn(&T) -> K) {
        if let Some(items) = self.items.get_mut(..self.len) {
            items.sort_unstable_by_key(|item| item.as_ref().map(&key));
        }
    }

    /// Removes all items.
    pub fn clear(&mut self) {
        *self = Self::new();
    }
}

impl<T, const N: usize> List<T, N> {
    /// How many items there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The most items that fit.
    pub const fn capacity(&self) -> usize {
        N
    }

    /// The item with this index, 0 being the first.
    pub fn get(&self, index: usize) -> Option<&T> {
        self.items.get(index)?.as_ref()
    }

    /// The item with this index, to be changed.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.items.get_mut(index)?.as_mut()
    }

    /// The first item.
    pub fn first(&self) -> Option<&T> {
        self.get(0)
    }

    /// The last item.
    pub fn last(&self) -> Option<&T> {
        self.get(self.len.checked_sub(1)?)
    }

    /// The items, first to last.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> + Clone {
        self.items.get(..self.len).unwrap_or(&[]).iter().flatten()
    }

    /// The items, first to last, to be changed.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut T> {
        self.items.get_mut(..self.len).unwrap_or(&mut []).iter_mut().flatten()
    }

    /// The index of the first item for which `wanted` holds.
    pub fn position(&self, wanted: impl FnMut(&T) -> bool) -> Option<usize> {
        self.iter().position(wanted)
    }
}

impl<T: Copy, const N: usize> Default for List<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: fmt::Debug, const N: usize> fmt::Debug for List<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn push_stops_at_the_capacity() {
        let mut list = List::<u8, 2>::new();
        assert!(list.is_empty() && list.first().is_none() && list.last().is_none() && list.pop().is_none());
        assert_eq!(list.push(1), Ok(()));
        assert_eq!(list.push(2), Ok(()));
        assert_eq!(list.push(3), Err(Full { capacity: 2 }));
        assert!(list.iter().copied().eq([1, 2]));
        assert_eq!((list.first(), list.last(), list.len()), (Some(&1), Some(&2), 2));
    }

    #[test]
    fn swap_remove_keeps_the_others() {
        let mut list = List::<u8, 4>::new();
        for item in 0..4 {
            list.push(item).unwrap();
        }
        assert_eq!(list.swap_remove(1), Some(1));
        assert!(list.iter().copied().eq([0, 3, 2]));
        assert_eq!(list.swap_remove(2), Some(2));
        assert_eq!(list.swap_remove(2), None);
        assert!(list.iter().copied().eq([0, 3]));
        list.clear();
        assert_eq!(list.iter().next(), None);
    }
}
