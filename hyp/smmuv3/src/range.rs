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

impl Ranges {
    /// What covers the change that `gather` has collected in a table of `granule`, for an SMMU that has range
    /// invalidation (IDR3.RIL). The gather is not empty.
    #[inline]
    pub fn new(gather: &Gather, granule: Granule) -> Self {
        let page_log2 = granule.log2();
        let first = gather.first() & !(granule.bytes() - 1);
        let pages = (gather.last().wrapping_sub(first) >> page_log2) + 1;
        let leaf_level = gather.leaf_level();
        let ttl = leaf_level.unwrap_or(0);
        // NUM = SCALE = TTL = 0 is reserved: without a level one page is invalidated as two.
        let remaining = if ttl == 0 && pages % 32 == 1 { pages + 1 } else { pages };
        let hints = LeafHints::new((page_log2 - 10) / 2, ttl, leaf_level.is_some());
        Self { address: first, remaining, stride_log2: page_log2, hints }
    }

    /// As [`Ranges::new`], for an SMMU without range invalidation: one command a leaf. `None` when these would be so many
    /// that the whole tag is better invalidated.
    pub fn one_by_one(gather: &Gather, granule: Granule) -> Option<Self> {
        let page_log2 = granule.log2();
        let level_log2 = page_log2 - 3;
        let first = gather.first() & !(granule.bytes() - 1);
        let leaf_level = gather.leaf_level();
        let stride_log2 = match leaf_level {
            Some(level) => page_log2 + level_log2 * (3 - level.min(3)),
            None => page_log2,
        };
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
            let scale = self.remaining.trailing_zeros();
            let runs = self.remaining >> scale & 31;
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

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
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

    proptest! {
        /// Every page is covered, nothing reserved is built, and no more than one page too many is invalidated.
        #[test]
        fn ranges_cover_the_change(first in 0u64..1 << 34, count in 1u64..1 << 20, which in 0usize..3,
                                   structural: bool) {
            let granule = [Granule::Size4K, Granule::Size16K, Granule::Size64K][which];
            let first = first << granule.log2();
            let mut change = gather(first, count << granule.log2(), 3);
            if structural {
                change.add_structural(first, count << granule.log2());
            }
            let mut next = first;
            for range in Ranges::new(&change, granule).collect::<Vec<_>>() {
                prop_assert_eq!(range.address, next);
                prop_assert!(range.num <= 31 && range.scale <= 39);
                prop_assert!(range.num != 0 || range.scale != 0 || range.hints.ttl() != 0, "reserved");
                prop_assert_eq!(range.hints.leaf(), !structural);
                next += pages(&range) << granule.log2();
            }
            let covered = (next - first) >> granule.log2();
            prop_assert!(covered == count || structural && covered == count + 1);
        }
    }
}
