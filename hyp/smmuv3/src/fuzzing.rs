//! Properties that the tests try with random values, as functions of bytes that a fuzzer chooses.
//!
//! A target makes its values of the bytes from the first to the last, so that a change of some of them changes the value in one place, and then asserts
//! what the random test asserts: there is one model of each subject, whoever drives it.

extern crate std;

use proptest::test_runner::TestCaseError;
use std::vec::Vec;

pub use crate::invalidation::tests::array::fuzz as invalidation_array;
pub use crate::pgtable::tests::fuzz as page_tables;
pub use crate::range::tests::fuzz as ranges;
pub use crate::vsmmu::tests::fuzz as owner_commands;

/// Fails as an assertion does if a property does not hold.
///
/// # Panics
/// It does not.
pub fn must_hold(property: Result<(), TestCaseError>) {
    if let Err(error) = property {
        std::panic!("{error}");
    }
}

/// Bytes to choose by, from the first to the last. After those come zeros, which is the first of every choice.
#[derive(Clone, Debug)]
pub struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    /// All of these.
    pub const fn of_bytes(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// What a function makes of the bytes again and again until they end, `most` times at the most.
    pub fn repeat<T>(&mut self, most: usize, make: impl Fn(&mut Self) -> T) -> Vec<T> {
        let mut made = Vec::new();
        while !self.0.is_empty() && made.len() < most {
            made.push(make(self));
        }
        made
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&byte, rest)) => {
                self.0 = rest;
                byte
            }
            None => 0,
        }
    }

    /// Yes or no.
    pub fn coin(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// 16 bits.
    pub fn half(&mut self) -> u64 {
        u64::from(u16::from_le_bytes([self.byte(), self.byte()]))
    }

    /// 64 bits.
    pub fn word(&mut self) -> u64 {
        (0..4).fold(0, |word, n| word | self.half() << (16 * n))
    }

    /// A number below `count`, which is not 0: of one byte if that is enough.
    pub fn below(&mut self, count: u64) -> u64 {
        (if count <= 0x100 { u64::from(self.byte()) } else { self.word() }) % count
    }

    /// One of these, of which there is one at least.
    pub fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
