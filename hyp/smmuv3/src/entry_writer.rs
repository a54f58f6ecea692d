//! Changing a live stream table entry or context descriptor (IHI 0070, 3.21.3).
//!
//! The SMMU may read an entry at any time and in pieces of at least 64 bits. A change is hitless when at every moment it sees
//! the old meaning or the new: that is so when only one 64-bit word differs in bits that matter to it. Otherwise the
//! entry passes through V = 0, in which transactions abort.

/// 64-bit words of a stream table entry and of a context descriptor.
pub const ENTRY_WORDS: usize = 8;

/// The words of an entry, or a mask for each.
type Words = [u64; ENTRY_WORDS];

/// An entry that the SMMU may be reading: a stream table entry or a context descriptor.
pub trait Entry: Copy {
    /// An entry with V = 0.
    const INVALID: Self;

    /// The entry's words, in the order of memory.
    fn words(&self) -> &Words;

    /// The bits that matter to the SMMU: V alone while it is 0, else those that the configuration uses. Which
    /// configuration that is stands in bits that are used themselves.
    fn used_bits(&self) -> Words;

    /// The bits that may change at any time, before and after the rest, on the way from this entry to `target`: the
    /// meaning of a mixture is harmless.
    fn safe_bits(&self, target: &Self) -> Words;
}

/// Where an entry is written to.
pub trait EntrySink {
    /// Why [`EntrySink::sync`] failed.
    type Fault;

    /// Stores one 64-bit word of the entry, seen by the SMMU before any later store.
    fn store(&mut self, word: usize, value: u64);

    /// Makes the SMMU forget what it cached of the entry: CMD_CFGI_STE or CMD_CFGI_CD, CMD_SYNC, and the wait.
    ///
    /// # Errors
    /// The SMMU may go on using what it had cached.
    fn sync(&mut self) -> Result<(), Self::Fault>;
}

/// Changes the entry that is `current` in memory to `target`, in 0 to 3 steps that each end in a sync.
///
/// # Errors
/// That of [`EntrySink::sync`]. The entry in memory then means what `current` or `target` means, or has V = 0; the
/// caller stores what it wants there.
#[inline]
pub fn write_entry<E: Entry, S: EntrySink>(sink: &mut S, current: &E, target: &E) -> Result<(), S::Fault> {
    // What is stored before the word that switches the meaning: the target's bits wherever the current configuration does not mind them.
    let mut prepared = [0; ENTRY_WORDS];
    // Which words that changes, in which it is not the target yet, and in which of these a bit differs that matters to the target:
    // a bit for each word.
    let (mut unprepared, mut unfinished, mut critical) = (0u8, 0u8, 0u8);
    let (used_now, used_then, safe) = (current.used_bits(), target.used_bits(), current.safe_bits(target));
    let target = target.words();
    let masks = used_now.iter().zip(&used_then).zip(&safe);
    let words = prepared.iter_mut().zip(current.words().iter().zip(target)).zip(masks);
    for (index, ((prepared, (found, wanted)), ((now, then), safe))) in words.enumerate() {
        if found == wanted {
            continue;
        }
        // What only one of the two uses has its place in the order: it is not safe.
        let fixed = now & !(safe & now & then);
        *prepared = found & fixed | wanted & !fixed;
        let left = *prepared ^ wanted;
        unprepared |= u8::from(prepared != found) << index;
        unfinished |= u8::from(left != 0) << index;
        critical |= u8::from(left & then != 0) << index;
    }
    if critical == 0 {
        return store_words(sink, target, unprepared | unfinished);
    }
    if !critical.is_power_of_two() {
        return write_through_invalid::<E, S>(sink, target, unprepared | unfinished);
    }
    // The word that switches the meaning is stored once, as a whole, after what it needs and before the rest.
    store_words(sink, &prepared, unprepared & !critical)?;
    store_words(sink, target, critical)?;
    store_words(sink, target, unfinished & !critical)
}

/// Changes the entry that is `current` in memory to `target` word by word in this order, with a sync after each word that differs: where
/// the caller knows that all that the SMMU can see on the way is harmless. All words that differ are in `order`.
///
/// # Errors
/// That of [`EntrySink::sync`]. The entry in memory is then one of those on the way.
#[inline]
pub fn write_in_order<E: Entry, S: EntrySink>(
    sink: &mut S,
    current: &E,
    target: &E,
    order: [usize; 2],
) -> Result<(), S::Fault> {
    for index in order {
        if let Some(wanted) = target.words().get(index)
            && current.words().get(index) != Some(wanted)
        {
            sink.store(index, *wanted);
            sink.sync()?;
        }
    }
    Ok(())
}

/// Stores `target` over whatever is in memory, through V = 0 and without a sync: for an entry whose change failed, so that nobody knows
/// what the SMMU has of it.
pub fn store_entry<E: Entry, S: EntrySink>(sink: &mut S, target: &E) {
    store_each(sink, E::INVALID.words(), 1);
    store_each(sink, target.words(), !1);
    store_each(sink, target.words(), 1);
}

/// V = 0, then all other words, then word 0, which has V.
fn write_through_invalid<E: Entry, S: EntrySink>(
    sink: &mut S,
    target: &Words,
    differing: u8,
) -> Result<(), S::Fault> {
    store_words(sink, E::INVALID.words(), 1)?;
    store_words(sink, target, differing & !1)?;
    store_words(sink, target, 1)
}

/// Stores the words with a bit in `mask`, and syncs if there is one.
#[inline]
fn store_words<S: EntrySink>(sink: &mut S, words: &Words, mask: u8) -> Result<(), S::Fault> {
    if mask == 0 {
        return Ok(());
    }
    store_each(sink, words, mask);
    sink.sync()
}

/// Stores the words with a bit in `mask`.
#[inline]
fn store_each<S: EntrySink>(sink: &mut S, words: &Words, mask: u8) {
    let mut left = mask;
    while left != 0 {
        let index = left.trailing_zeros() as usize;
        if let Some(word) = words.get(index) {
            sink.store(index, *word);
        }
        left &= left.wrapping_sub(1);
    }
}

#[cfg(test)]
mod tests;
