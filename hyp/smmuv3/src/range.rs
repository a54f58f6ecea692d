//! Range invalidation: how a gathered change becomes `TLBI` by address (IHI 0070, 4.4.1).

use crate::command::{LeafHints, TlbiRange};
use crate::gather::Gather;
use crate::pgtable::Granule;

/// The ranges that cover a change, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    address: u64,
    /// Strides still to cover.
    remaining: u64,
    /// log2 of the bytes of a stride: the granule with range invalidation, one leaf without.
    stride_log2: u8,
    /// TG 0 says that the SMMU has no range invalidation.
    hints: LeafHints,
}

/// The largest SCALE that is used: the field has five bits for every reader of IHI 0070, and 2^31 pages of 4 KiB are 8 TiB.
const MAX_SCALE: u32 = 31;

impl Ranges {
    /// Nothing to cover.
    pub(crate) const NONE: Self =
        Self { address: 0, remaining: 0, stride_log2: 0, hints: LeafHints::new(0, 0, false) };

    /// Whether there is nothing left to cover.
    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.remaining == 0
    }

    /// What covers the change that `gather` has collected in a table of `granule`, for an SMMU that has range
    /// invalidation (IDR3.RIL). The gather is not empty.
    #[inline]
    pub fn new(gather: &Gather, granule: Granule) -> Self {
        let page_log2 = granule.log2();
        let first = gather.first() & !granule.bytes().wrapping_sub(1);
        let pages = (gather.last().wrapping_sub(first) >> page_log2).wrapping_add(1);
        let leaf_level = gather.leaf_level();
        let ttl = leaf_level.unwrap_or(0);
        // NUM = SCALE = TTL = 0 is reserved: without a level one page is invalidated as two.
        let remaining = if ttl == 0 && pages % 32 == 1 { pages.wrapping_add(1) } else { pages };
        let hints = LeafHints::new(page_log2.wrapping_sub(10) / 2, ttl, leaf_level.is_some());
        Self { address: first, remaining, stride_log2: page_log2, hints }
    }

    /// As [`Ranges::new`], for an SMMU without range invalidation: one command a leaf. `None` when these would be so many
    /// that the whole tag is better invalidated.
    pub fn one_by_one(gather: &Gather, granule: Granule) -> Option<Self> {
        let page_log2 = granule.log2();
        let level_log2 = page_log2 - 3;
        let leaf_level = gather.leaf_level();
        let stride_log2 = match leaf_level {
            Some(level) => page_log2 + level_log2 * (3 - level.min(3)),
            None => page_log2,
        };
        let first = gather.first() >> stride_log2 << stride_log2;
        let strides = (gather.last().wrapping_sub(first) >> stride_log2) + 1;
        let hints = LeafHints::new(0, 0, leaf_level.is_some());
        (strides < 1 << level_log2).then_some(Self { address: first, remaining: strides, stride_log2, hints })
    }
}

impl Iterator for Ranges {
    type Item = TlbiRange;

    #[inline]
    fn next(&mut self) -> Option<TlbiRange> {
        if self.remaining == 0 {
            return None;
        }
        let mut range = TlbiRange { address: self.address, num: 0, scale: 0, hints: self.hints };
        let mut strides = 1;
        if self.hints.tg() != 0 {
            let scale = self.remaining.trailing_zeros().min(MAX_SCALE);
            let runs = self.remaining >> scale;
            let runs = if scale < MAX_SCALE { runs & 31 } else { runs.min(32) };
            range.scale = scale as u8;
            range.num = runs.wrapping_sub(1) as u8;
            strides = runs << scale;
        }
        self.remaining = self.remaining.wrapping_sub(strides);
        // The last step may lead past the end of the address space; nothing is read from there.
        self.address = self.address.wrapping_add(strides << self.stride_log2);
        Some(range)
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests {
    #![cfg_attr(not(test), allow(dead_code))]

    extern crate std;
    use super::*;
    #[cfg(feature = "fuzzing")]
    use crate::fuzzing::{Choices, must_hold};
    use proptest::prelude::*;
    use std::vec::Vec;

    fn gather(first: u64, size_bytes: u64, level: u8) -> Gather {
        let mut gather = Gather::new();
        gather.add_leaf(first, size_bytes, level);
        gather
    }

    /// What the command covers (4.4.1.1): `(NUM + 1) << SCALE` pages.
    fn pages(range: &TlbiRange) -> u64 {
        (u64::from(range.num) + 1) << range.scale
    }

    #[test]
    fn two_mebibytes_are_one_command() {
        let commands = Ranges::new(&gather(0x4020_0000, 2 << 20, 2), Granule::Size4K).collect::<Vec<_>>();
        let [command] = commands[..] else { panic!("{commands:?}") };
        assert_eq!((command.num, command.scale, command.hints.ttl(), command.hints.tg()), (0, 9, 2, 1));
    }

    #[test]
    fn one_page_without_a_level_is_two() {
        let mut change = gather(0x4020_0000, 4096, 3);
        change.add_structural(0x4020_0000, 4096);
        let commands = Ranges::new(&change, Granule::Size4K).collect::<Vec<_>>();
        let [command] = commands[..] else { panic!("{commands:?}") };
        assert!(!command.hints.leaf() && command.hints.ttl() == 0);
        assert_eq!(pages(&command), 2);
    }

    #[test]
    fn without_ril_many_pages_are_unsized_and_few_are_one_each() {
        let few = Ranges::one_by_one(&gather(0x4020_0000, 3 * 4096, 3), Granule::Size4K)
            .unwrap()
            .collect::<Vec<_>>();
        assert_eq!(
            few.iter().map(|range| range.address).collect::<Vec<_>>(),
            [0x4020_0000, 0x4020_1000, 0x4020_2000]
        );
        assert!(
            few.iter().all(|range| range.hints.tg() == 0 && range.hints.ttl() == 0 && range.hints.leaf())
        );
        assert_eq!(Ranges::one_by_one(&gather(0x4020_0000, 2 << 20, 3), Granule::Size4K), None);
        let block = Ranges::one_by_one(&gather(0x4020_0000, 2 << 20, 2), Granule::Size4K)
            .unwrap()
            .collect::<Vec<_>>();
        assert_eq!(block.len(), 1, "a block is one leaf");
    }

    #[test]
    fn the_whole_of_48_bits_is_one_command() {
        for (granule, scale) in [(Granule::Size4K, 31), (Granule::Size16K, 31), (Granule::Size64K, 31)] {
            let change = gather(0, 1 << 48, 1);
            let commands = Ranges::new(&change, granule).collect::<Vec<_>>();
            let [command] = commands[..] else { panic!("{commands:?}") };
            assert_eq!((command.scale, pages(&command) << granule.log2()), (scale, 1 << 48));
        }
    }

    #[test]
    fn the_last_page_of_all_is_covered() {
        let change = gather(0u64.wrapping_sub(3 << 12), 3 << 12, 3);
        for granule in [Granule::Size4K, Granule::Size64K] {
            let commands = Ranges::new(&change, granule).collect::<Vec<_>>();
            let [command] = commands[..] else { panic!("{commands:?}") };
            assert_eq!(command.address.wrapping_add(pages(&command) << granule.log2()), 0);
        }
        assert_eq!(Ranges::one_by_one(&change, Granule::Size4K).unwrap().count(), 3);
    }

    #[test]
    fn without_ril_a_command_names_a_leaf_by_its_first_byte() {
        // The ends of two blocks that touch, as a caller that knows no better might gather them.
        let mut change = gather(0x403f_f000, 4096, 2);
        change.add_leaf(0x4040_0000, 4096, 2);
        let leaves = Ranges::one_by_one(&change, Granule::Size4K).unwrap();
        assert_eq!(leaves.map(|range| range.address).collect::<Vec<_>>(), [0x4020_0000, 0x4040_0000]);
    }

    #[test]
    fn without_ril_the_whole_tag_is_cheaper_from_a_table_of_leaves_on() {
        for granule in [Granule::Size4K, Granule::Size16K, Granule::Size64K] {
            let entries = granule.bytes() / 8;
            let count = |leaves| {
                let change = gather(0, leaves << granule.log2(), 3);
                Ranges::one_by_one(&change, granule).map(Iterator::count)
            };
            assert_eq!(count(entries - 1), Some(entries as usize - 1));
            assert_eq!(count(entries), None);
        }
    }

    fn granule() -> impl Strategy<Value = Granule> {
        prop::sample::select(std::vec![Granule::Size4K, Granule::Size16K, Granule::Size64K])
    }

    /// A change of leaves that are all of one level: where, how many, the granule, the level, whether a table was linked too.
    type Change = (u64, u64, Granule, u8, bool);

    /// Of up to all pages of a 48-bit space, but rather often of few.
    fn pages_anywhere() -> impl Strategy<Value = Change> {
        (any::<u64>(), any::<u64>(), 0u8..48, granule(), 0u8..4, any::<bool>()).prop_map(
            |(place, count, few, granule, level, structural)| {
                pages_at(place, count, few, granule, level, structural)
            },
        )
    }

    fn pages_at(place: u64, count: u64, few: u8, granule: Granule, level: u8, structural: bool) -> Change {
        let bits = 48 - granule.log2();
        let count = count % (1 << few.min(bits)) + 1;
        let first = (place % ((1 << bits) - count + 1)) << granule.log2();
        (first, count, granule, level, structural)
    }

    /// Every page is covered, nothing reserved is built, no more than one page too many is invalidated, and a range of a
    /// 48-bit space takes 8 commands at most.
    fn covered((first, count, granule, level, structural): Change) -> Result<(), TestCaseError> {
        let mut change = gather(first, count << granule.log2(), level);
        if structural {
            change.add_structural(first, count << granule.log2());
        }
        let ranges = Ranges::new(&change, granule).collect::<Vec<_>>();
        prop_assert!(ranges.len() <= 8);
        let mut next = first;
        for range in ranges {
            prop_assert_eq!(range.address, next);
            prop_assert!(range.num <= 31 && range.scale <= 31);
            prop_assert!(range.num != 0 || range.scale != 0 || range.hints.ttl() != 0, "reserved");
            prop_assert_eq!(range.hints.leaf(), !structural);
            prop_assert_eq!(range.hints.ttl(), if structural { 0 } else { level });
            next += pages(&range) << granule.log2();
        }
        let covered = (next - first) >> granule.log2();
        let without_level = structural || level == 0;
        prop_assert_eq!(covered, if without_level && count % 32 == 1 { count + 1 } else { count });
        Ok(())
    }

    fn leaves_anywhere() -> impl Strategy<Value = Change> {
        (any::<u64>(), 1u64..3000, granule(), 1u8..4, any::<bool>()).prop_map(
            |(place, count, granule, level, structural)| leaves_at(place, count, granule, level, structural),
        )
    }

    fn leaves_at(place: u64, count: u64, granule: Granule, level: u8, structural: bool) -> Change {
        let stride = granule.log2() + (granule.log2() - 3) * (3 - level);
        let count = count.min(1 << (48 - stride));
        ((place % ((1 << (48 - stride)) - count + 1)) << stride, count, granule, level, structural)
    }

    /// One command a leaf, none twice, none missing.
    fn named_one_by_one((first, count, granule, level, structural): Change) -> Result<(), TestCaseError> {
        let stride = granule.log2() + (granule.log2() - 3) * (3 - level);
        let mut change = gather(first, count << stride, level);
        if structural {
            change.add_structural(first, granule.bytes());
        }
        let stride = if structural { granule.log2() } else { stride };
        let count = (change.last() - first + 1) >> stride;
        let Some(leaves) = Ranges::one_by_one(&change, granule) else {
            prop_assert!(count >= granule.bytes() / 8);
            return Ok(());
        };
        prop_assert!(count < granule.bytes() / 8);
        prop_assert!(leaves.map(|range| range.address).eq((0..count).map(|n| first + (n << stride))));
        for range in leaves {
            let hints = LeafHints::new(0, 0, !structural);
            prop_assert_eq!((range.num, range.scale, range.hints), (0, 0, hints));
        }
        Ok(())
    }

    /// What is invalidated of a change, with range invalidation and without.
    #[cfg(feature = "fuzzing")]
    pub fn fuzz(bytes: &[u8]) {
        let mut choices = Choices::of_bytes(bytes);
        let granule = choices.one_of(&[Granule::Size4K, Granule::Size16K, Granule::Size64K]);
        let (level, structural) = (choices.byte(), choices.coin());
        let (place, count, few) = (choices.word(), choices.word(), choices.byte() % 48);
        must_hold(covered(pages_at(place, count, few, granule, level % 4, structural)));
        must_hold(named_one_by_one(leaves_at(place, 1 + count % 3000, granule, 1 + level % 3, structural)));
    }

    proptest! {
        #[test]
        fn ranges_cover_the_change(change in pages_anywhere()) {
            covered(change)?;
        }

        #[test]
        fn leaves_are_named_one_by_one(change in leaves_anywhere()) {
            named_one_by_one(change)?;
        }
    }
}
