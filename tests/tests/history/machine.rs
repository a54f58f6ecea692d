//! Random machines.

use proptest::prelude::*;
use std::ops::Range;
use tests::bench::Shape;
use tests::model::smmu::config::SmmuConfig;

/// Features of an SMMU that say what it can do.
fn features() -> impl Strategy<Value = SmmuConfig> {
    (
        any::<bool>(),
        0..3u32,
        0..5usize,
        0..3usize,
        prop_oneof![Just(0u32), Just(2), Just(20)],
        any::<[bool; 4]>(),
    )
        .prop_map(|(ril, bbml, granule, ats, ssid_bits, [two_level_cds, asid8, vmid8, stalls])| {
            let qemu = SmmuConfig::qemu();
            let mut config = qemu.bbml(bbml).ssid_bits(ssid_bits);
            config = if ril { config } else { config.without_ril() };
            config = match granule {
                0 => config.granules(false, false, true),
                1 => config.granules(false, true, true),
                _ => config,
            };
            config = match ats {
                0 => config,
                1 => config.with_ats(),
                _ => config.with_ats().without_split_ats(),
            };
            config = if two_level_cds { config.two_level_cds() } else { config };
            config = if asid8 { config.asid8() } else { config };
            config = if vmid8 { config.vmid8() } else { config };
            // IDR0.STALL_MODEL: stalls can be chosen, and so disabled.
            if stalls { config.with(0, 24, 2, 0) } else { config }
        })
}

/// How an SMMU behaves, on top of what it can do.
fn temper(features: impl Strategy<Value = SmmuConfig>) -> impl Strategy<Value = SmmuConfig> {
    (features, 2..6u32, 0..3u64, prop_oneof![Just(0u64), Just(700), Just(5_000)], any::<[bool; 2]>())
        .prop_map(|(config, queue, slow, sync, [greedy, few_streams])| {
            let mut config = config.queues(queue, 2).sync_delay(sync);
            config = if slow == 0 { config.slow(1_000) } else { config };
            config = if few_streams { config.stream_bits(8) } else { config };
            if greedy { config } else { config.lazy() }
        })
}

/// A machine of these SMMUs, where some devices behind those that have ATS are trusted.
fn shape(kinds: impl Strategy<Value = Vec<SmmuConfig>>) -> impl Strategy<Value = Shape> {
    (kinds, any::<u64>())
        .prop_filter("a granule in common", |(kinds, _)| {
            [12, 14, 16].iter().any(|granule| kinds.iter().all(|kind| kind.has_granule(*granule)))
        })
        .prop_map(|(smmus, trusted)| {
            let with_ats = smmus.iter().enumerate().filter(|(_, config)| config.ats());
            let trusted =
                with_ats.filter(|(n, _)| trusted >> n & 1 == 1).map(|(n, _)| (n, 0)).take(16).collect();
            Shape { trusted, ..Shape::mixed(&smmus) }
        })
}

/// A machine of SMMUs of any kind.
pub fn of_any_kind(count: Range<usize>) -> impl Strategy<Value = Shape> {
    shape(prop::collection::vec(temper(features()), count))
}

/// A machine of SMMUs that have much.
pub fn able(count: Range<usize>) -> impl Strategy<Value = Shape> {
    let features =
        (any::<bool>(), 0..3u32, any::<[bool; 3]>()).prop_map(|(ril, ats, [cds, split, stalls])| {
            let config = SmmuConfig::qemu().ssid_bits(4);
            let config = if ril { config } else { config.without_ril() };
            let config = if cds { config.two_level_cds() } else { config };
            let config = if stalls { config.with(0, 24, 2, 0) } else { config };
            match (ats, split) {
                (0, _) => config,
                (_, true) => config.with_ats(),
                (_, false) => config.with_ats().without_split_ats(),
            }
        });
    shape(prop::collection::vec(temper(features), count))
}

/// 64 SMMUs of a few kinds.
pub fn sixty_four() -> impl Strategy<Value = Shape> {
    shape(
        prop::collection::vec(temper(features()), 1..5)
            .prop_map(|kinds| (0..64).map(|n| kinds[n % kinds.len()].queues(4, 1)).collect()),
    )
}
