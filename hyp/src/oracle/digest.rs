//! A digest of words, in order.

/// Spreads a word over all bits (the finaliser of SplitMix64).
pub(crate) const fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// A digest of the words that were added, in their order. It tells different states apart by chance, not against an adversary.
pub(crate) struct Digest(u64);

impl Digest {
    pub const fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    #[inline]
    pub const fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    pub fn add_all<const N: usize>(&mut self, words: [u64; N]) {
        words.into_iter().for_each(|word| self.add(word));
    }

    pub const fn finish(&self) -> u64 {
        mix(self.0)
    }
}
