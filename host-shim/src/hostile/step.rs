//! Steps: the bytes that an attack is made of.

/// Bytes of a step.
pub const STEP_BYTES: usize = 32;

/// What one action is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step(pub [u8; STEP_BYTES]);

impl Step {
    /// Step `n` of a CPU in the attack with this seed.
    ///
    /// The mixing function is that of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    pub fn seeded(seed: u64, cpu: u32, n: u64) -> Self {
        let mut state = mix(seed ^ mix(u64::from(cpu).wrapping_add(1))).wrapping_add(mix(n));
        let mut bytes = [0; STEP_BYTES];
        for word in bytes.chunks_exact_mut(8) {
            state = state.wrapping_add(GOLDEN);
            word.copy_from_slice(&mix(state).to_le_bytes());
        }
        Self(bytes)
    }

    /// The choices of this step, from the first.
    pub const fn choices(&self) -> Choices<'_> {
        Choices { bytes: &self.0 }
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

const fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The steps of an input. Bytes that the last one lacks are zero.
pub fn steps(input: &[u8]) -> impl Iterator<Item = Step> + '_ {
    input.chunks(STEP_BYTES).map(|chunk| {
        let mut step = [0; STEP_BYTES];
        for (place, byte) in step.iter_mut().zip(chunk) {
            *place = *byte;
        }
        Step(step)
    })
}

/// What is left of a step to choose by. Never empty: after the last byte come zeros, which is the first of every choice.
#[derive(Clone, Debug)]
pub struct Choices<'a> {
    bytes: &'a [u8],
}

impl Choices<'_> {
    /// A byte.
    pub fn byte(&mut self) -> u8 {
        match self.bytes.split_first() {
            Some((&byte, rest)) => {
                self.bytes = rest;
                byte
            }
            None => 0,
        }
    }

    /// A number below `count`, which is 1 to 256; 0 is taken for 1.
    pub fn below(&mut self, count: u64) -> u64 {
        u64::from(self.byte()) % count.max(1)
    }

    /// Whether something happens that should `of_256` times of 256.
    pub fn seldom(&mut self, of_256: u8) -> bool {
        self.byte() > u8::MAX - of_256
    }

    /// 16 bits.
    pub fn half(&mut self) -> u64 {
        u64::from(self.byte()) | u64::from(self.byte()) << 8
    }

    /// 64 bits.
    pub fn word(&mut self) -> u64 {
        (0..4).fold(0, |word, n| word | self.half() << (16 * n))
    }

    /// One of these.
    pub fn of<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let n = self.below(from.len() as u64);
        from.get(n as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn steps_of_a_seed_are_the_same_each_time_and_differ_by_everything() {
        let one = Step::seeded(1, 0, 0);
        assert_eq!(one, Step::seeded(1, 0, 0));
        let all: std::collections::BTreeSet<_> = (0..4)
            .flat_map(|seed| (0..4).flat_map(move |cpu| (0..100).map(move |n| Step::seeded(seed, cpu, n).0)))
            .collect();
        assert_eq!(all.len(), 1600);
    }

    #[test]
    fn an_input_is_cut_into_steps_and_its_end_is_zeros() {
        let input: Vec<u8> = (1..=40).collect();
        let all: Vec<Step> = steps(&input).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].0[..2], [1, 2]);
        assert_eq!(all[1].0[7..9], [40, 0]);
    }

    #[test]
    fn choices_end_in_zeros() {
        let mut choices = Choices { bytes: &[7, 255] };
        assert_eq!(choices.below(5), 2);
        assert!(choices.seldom(1));
        assert_eq!((choices.word(), choices.seldom(255)), (0, false));
        assert_eq!(choices.of::<u8>(&[]), None);
    }
}
