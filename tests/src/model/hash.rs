//! Maps by small numbers, which the model looks into at every access: nobody chooses keys against it, and a run is repeatable.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map whose keys are hashed by one multiplication.
pub type Map<K, V> = HashMap<K, V, BuildHasherDefault<Multiply>>;

/// The hash of the words so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Multiply(u64);

impl Hasher for Multiply {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        // 2^64 by the golden ratio: Knuth, The Art of Computer Programming, 6.4.
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        // The low bits choose the place, and only the high ones depend on all of the word.
        self.0.rotate_left(26)
    }
}
