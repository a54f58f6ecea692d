//! Changing a live stream table entry (IHI 0070, 3.21.3.1).
//!
//! The SMMU may read an entry at any time and in pieces of 64 bits. A change is hitless when at every moment it sees
//! the old meaning or the new: that is so when only one 64-bit word differs in bits that matter to it. Otherwise the
//! entry passes through V = 0, in which the stream's transactions abort.

use crate::ste::{STE_WORDS, StreamTableEntry};

/// Where an entry is written to.
pub trait EntrySink {
    /// Why [`EntrySink::sync`] failed.
    type Fault;

    /// Stores one 64-bit word of the entry, seen by the SMMU before any later store.
    fn store(&mut self, word: usize, value: u64);

    /// Makes the SMMU forget what it cached of the entry: CMD_CFGI_STE, CMD_SYNC, and the wait.
    ///
    /// # Errors
    /// The SMMU may go on using what it had cached.
    fn sync(&mut self) -> Result<(), Self::Fault>;
}

/// Changes the entry that is `current` in memory to `target`, in 0 to 3 steps that each end in a sync.
///
/// # Errors
/// That of [`EntrySink::sync`]. The entry in memory is then `current`, or a mixture with V = 0, or the target; the
/// caller stores what it wants there.
pub fn write_entry<S: EntrySink>(
    sink: &mut S,
    current: &StreamTableEntry,
    target: &StreamTableEntry,
) -> Result<(), S::Fault> {
    let mut memory = *current;
    let (Some(used_now), Some(used_then)) = (current.used_bits(), target.used_bits()) else {
        return write_through_invalid(sink, &mut memory, target);
    };
    // What the current configuration does not use can take its new value at once.
    let mut prepared = memory;
    let mut critical = None;
    let mut critical_words = 0;
    for word in 0..STE_WORDS {
        let (now, then) = (used_now[word], used_then[word]);
        prepared.0[word] = (memory.0[word] & now) | (target.0[word] & !now);
        // Once that is done, this word still differs in a bit that matters before or after.
        if (prepared.0[word] ^ target.0[word]) & then != 0 {
            critical = Some(word);
            critical_words += 1;
        }
    }
    match critical {
        Some(word) if critical_words == 1 => {
            store_words(sink, &mut memory, &prepared, 0..STE_WORDS)?;
            let mut switched = memory;
            switched.0[word] = target.0[word];
            store_words(sink, &mut memory, &switched, 0..STE_WORDS)?;
            store_words(sink, &mut memory, target, 0..STE_WORDS)
        }
        None => store_words(sink, &mut memory, target, 0..STE_WORDS),
        Some(_) => write_through_invalid(sink, &mut memory, target),
    }
}

/// V = 0, then all other words, then word 0.
fn write_through_invalid<S: EntrySink>(
    sink: &mut S,
    memory: &mut StreamTableEntry,
    target: &StreamTableEntry,
) -> Result<(), S::Fault> {
    let mut invalid = *memory;
    invalid.0[0] = 0;
    store_words(sink, memory, &invalid, 0..1)?;
    store_words(sink, memory, target, 1..STE_WORDS)?;
    store_words(sink, memory, target, 0..1)
}

/// Stores the words that differ, and syncs if there was one.
fn store_words<S: EntrySink>(
    sink: &mut S,
    memory: &mut StreamTableEntry,
    target: &StreamTableEntry,
    words: core::ops::Range<usize>,
) -> Result<(), S::Fault> {
    let mut changed = false;
    for word in words {
        if memory.0[word] != target.0[word] {
            sink.store(word, target.0[word]);
            memory.0[word] = target.0[word];
            changed = true;
        }
    }
    if changed { sink.sync() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::address::PhysAddr;
    use crate::pgtable::{Geometry, Granule};
    use std::vec::Vec;

    /// What an SMMU makes of an entry: its used bits, or "invalid".
    fn meaning(entry: &StreamTableEntry) -> [u64; STE_WORDS] {
        let used = entry.used_bits().unwrap();
        core::array::from_fn(|word| entry.0[word] & used[word])
    }

    struct Watcher {
        entry: StreamTableEntry,
        seen: Vec<[u64; STE_WORDS]>,
        syncs: usize,
    }

    impl EntrySink for Watcher {
        type Fault = ();
        fn store(&mut self, word: usize, value: u64) {
            self.entry.0[word] = value;
            self.seen.push(meaning(&self.entry));
        }
        fn sync(&mut self) -> Result<(), ()> {
            self.syncs += 1;
            Ok(())
        }
    }

    fn entries() -> Vec<StreamTableEntry> {
        let wide = Geometry::stage2(Granule::Size4K, 40, 44).unwrap();
        let narrow = Geometry::stage2(Granule::Size4K, 32, 40).unwrap();
        let mut all = std::vec![StreamTableEntry::INVALID, StreamTableEntry::ABORT];
        for geometry in [wide, narrow] {
            for root in [0x4000_0000, 0x4123_4000] {
                all.extend([1, 2].map(|vmid| StreamTableEntry::stage2(&geometry, PhysAddr(root), vmid)));
            }
        }
        all
    }

    #[test]
    fn every_pair_passes_through_old_new_or_invalid_only() {
        for old in entries() {
            for new in entries() {
                let mut watcher = Watcher { entry: old, seen: Vec::new(), syncs: 0 };
                write_entry(&mut watcher, &old, &new).unwrap();
                assert_eq!(watcher.entry, new);
                assert!(watcher.syncs <= 3 && (watcher.syncs == 0) == (old == new), "{old:?} {new:?}");
                let both = [meaning(&old), meaning(&new)];
                let invalid = meaning(&StreamTableEntry::INVALID);
                for seen in &watcher.seen {
                    assert!(both.contains(seen) || *seen == invalid, "{old:?} {new:?} {seen:?}");
                }
                let one_word = (0..STE_WORDS).filter(|word| both[0][*word] != both[1][*word]).count() <= 1;
                let hitless = watcher.seen.iter().all(|seen| both.contains(seen));
                assert!(hitless || !one_word, "not hitless though one word differs: {old:?} {new:?}");
            }
        }
    }
}
