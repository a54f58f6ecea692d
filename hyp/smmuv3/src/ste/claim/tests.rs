//! The invariants: a claim gets past the check only if every bit of it is on the list that is written down here once
//! more, and what gets past has none of EL2's bits.

extern crate std;
use super::*;
use crate::pgtable::Granule;
use crate::ste::{Ats, StreamTableEntry};
use std::string::ToString;

const ALL: Features = Features {
    nested: true,
    ats: true,
    split_stage_ats: true,
    configurable_stalls: true,
    two_level_cd_table: true,
    substream_bits: 20,
    ..Features::NONE
};

/// V and Config = stage 1.
const TRANSLATE: u64 = 0b1011;

fn parent() -> Geometry {
    Geometry::stage2(Granule::Size4K, 40, 44).unwrap()
}

fn check(word0: u64, word1: u64, features: &Features) -> Result<Stage1Config, Stage1Refusal> {
    Stage1Claim([word0, word1]).check(features, &parent())
}

fn refusal(word0: u64, word1: u64, features: &Features) -> Stage1Refusal {
    check(word0, word1, features).unwrap_err()
}

#[test]
fn an_entry_that_is_not_valid_aborts_whatever_it_says() {
    assert_eq!(check(!1, !0, &ALL), Ok(Stage1Config::Abort));
    assert_eq!(check(0, 0, &Features::NONE), Ok(Stage1Config::Abort));
}

#[test]
fn each_bit_that_is_not_the_owners_is_refused_by_name() {
    // Word 0: V to S1ContextPtr, S1CDMax. Word 1: S1DSS to S1CSH, S1STALLD, EATS, SHCFG.
    let owners = [
        (0..=55u32).chain(59..=63).collect::<std::vec::Vec<_>>(),
        [0..=7, 27..=29, 44..=45].into_iter().flatten().collect(),
    ];
    for config in [0b0001, 0b1001, TRANSLATE] {
        for word in 0..2 {
            for bit in (0..64).filter(|bit| !owners[word].contains(bit)) {
                let mut claim = [config, 0];
                claim[word] |= 1 << bit;
                let refused = Stage1Refusal::Bits { word: word as u8, bits: 1 << bit };
                assert_eq!(refusal(claim[0], claim[1], &ALL), refused);
            }
        }
    }
}

#[test]
fn configurations_of_stage_2_are_not_the_owners_to_choose() {
    assert_eq!(check(0b0001, 0, &ALL), Ok(Stage1Config::Abort));
    assert_eq!(check(0b1001, 0, &ALL), Ok(Stage1Config::Bypass));
    assert!(matches!(check(TRANSLATE, 0, &ALL), Ok(Stage1Config::Translate(_))));
    for config in [0b001, 0b010, 0b011, 0b110, 0b111] {
        assert_eq!(refusal(config << 1 | 1, 0, &ALL), Stage1Refusal::Config(config as u8));
    }
    assert_eq!(check(0b1001, 0, &Features::NONE), Ok(Stage1Config::Bypass));
    assert_eq!(refusal(TRANSLATE, 0, &Features::NONE), Stage1Refusal::NoNesting);
}

#[test]
fn the_context_pointer_is_an_ipa_of_the_parent() {
    let Ok(Stage1Config::Translate(stage1)) = check(TRANSLATE | 0xff_ffff_ffc0, 0, &ALL) else { panic!() };
    assert_eq!(stage1.context_ptr(), 0xff_ffff_ffc0);
    assert_eq!(refusal(TRANSLATE | 1 << 40, 0, &ALL), Stage1Refusal::ContextPtr(1 << 40));
}

#[test]
fn substreams_are_those_of_the_smmu() {
    let few = Features { substream_bits: 4, two_level_cd_table: false, ..ALL };
    let Ok(Stage1Config::Translate(stage1)) = check(TRANSLATE | 4 << 59, 0, &few) else { panic!() };
    assert_eq!(stage1.cd_max(), 4);
    let refused = Stage1Refusal::CdMax { claimed: 5, most: 4 };
    assert_eq!(refusal(TRANSLATE | 5 << 59, 0, &few), refused);
    for format in [0b01, 0b10] {
        let claim = TRANSLATE | 4 << 59 | format << 4;
        assert!(check(claim, 0, &ALL).is_ok());
        assert_eq!(refusal(claim, 0, &few), Stage1Refusal::Format(format as u8));
    }
    assert_eq!(refusal(TRANSLATE | 0b11 << 4, 0, &ALL), Stage1Refusal::Format(0b11));
    assert_eq!(refusal(TRANSLATE, 0b11, &ALL), Stage1Refusal::DefaultSubstream(0b11));
}

#[test]
fn with_one_cd_format_and_default_substream_say_nothing() {
    let plain = check(TRANSLATE, 0, &ALL);
    let without = Features { two_level_cd_table: false, ..ALL };
    assert_eq!(check(TRANSLATE | 0b10 << 4, 0b01, &without), plain);
}

#[test]
fn reserved_and_unsupported_values_are_refused() {
    assert_eq!(refusal(TRANSLATE, 0b01 << 6, &ALL), Stage1Refusal::Shareability(0b01));
    for eats in [0b10, 0b11] {
        assert_eq!(refusal(TRANSLATE, eats << 28, &ALL), Stage1Refusal::Ats(eats as u8));
    }
    let without_ats = Features { ats: false, ..ALL };
    assert_eq!(refusal(TRANSLATE, 0b01 << 28, &without_ats), Stage1Refusal::Ats(0b01));
    for configurable_stalls in [false, true] {
        let features = Features { configurable_stalls, ..ALL };
        assert_eq!(refusal(TRANSLATE, 1 << 27, &features), Stage1Refusal::StallDisable);
    }
}

#[test]
fn stalls_are_disabled_where_they_could_be_enabled() {
    let stalld = |features: &Features| {
        let config = check(TRANSLATE, 0, features).unwrap();
        StreamTableEntry::nested(&config, &parent(), PhysAddr(0), 1, Ats::Off).0[1] >> 27 & 1
    };
    assert_eq!(stalld(&ALL), 1);
    assert_eq!(stalld(&Features { configurable_stalls: false, ..ALL }), 0, "there it is ILLEGAL");
}

#[test]
fn shareability_stays_the_incoming_one_where_stage_1_is_bypassed() {
    let overrides = Features { attribute_override: true, ..ALL };
    let (bypass, dss_bypass) = (0b1001, TRANSLATE | 1 << 59);
    for features in [&ALL, &overrides] {
        for (word0, word1) in [(bypass, 0), (dss_bypass, 0b01)] {
            for shcfg in [0b00, 0b01] {
                let config = check(word0, word1 | shcfg << 44, features).unwrap();
                let entry = StreamTableEntry::nested(&config, &parent(), PhysAddr(0), 1, Ats::Off);
                assert_eq!(entry.0[1] >> 44 & 0b11, 0b01, "the SMMU reads incoming");
            }
            for shcfg in [0b10, 0b11] {
                let refused = Stage1Refusal::IncomingShareability(shcfg);
                assert_eq!(refusal(word0, word1 | u64::from(shcfg) << 44, features), refused);
            }
        }
    }
    assert!(check(TRANSLATE, 0b10 << 44, &overrides).is_ok(), "not used");
}

#[test]
fn what_gets_past_has_none_of_el2s_bits() {
    let stage2 = StreamTableEntry::stage2(&parent(), PhysAddr(0x4000_0000), 9, Ats::Off);
    // Every single bit and every pair of bits beside V.
    for (first, second) in (1..128).flat_map(|first| (1..128).map(move |second| (first, second))) {
        let claim = (1u128 | 1 << first | 1 << second) | u128::from(TRANSLATE);
        let Ok(config) = check(claim as u64, (claim >> 64) as u64, &ALL) else { continue };
        let entry = StreamTableEntry::nested(&config, &parent(), PhysAddr(0x4000_0000), 9, Ats::SplitStage);
        assert_eq!(entry.0[2..], stage2.0[2..]);
        // S1DSS to S1CSH, S1STALLD and EATS differ at most.
        assert_eq!((entry.0[1] ^ stage2.0[1]) & !(0xff | 1 << 27 | 0b10 << 28), 0);
        assert_eq!(entry.0[0] & 0b1111, 0b1111);
    }
}

#[test]
fn a_refusal_names_word_and_bits() {
    let refused = refusal(TRANSLATE, 1 << 30, &ALL);
    assert_eq!(refused.to_string(), "bits 0x40000000 of word 1 are not the owner's");
}

#[test]
fn what_owners_build_is_what_the_check_lets_through() {
    let table = PhysAddr(0x4123_4000);
    for (cd_max, ats) in [(0, false), (0, true), (6, false), (20, true)] {
        let claim = Stage1Claim::linear(table, cd_max, ats);
        let Ok(Stage1Config::Translate(stage1)) = claim.check(&ALL, &parent()) else {
            panic!("{claim:x?}");
        };
        assert_eq!((stage1.context_ptr(), stage1.cd_max(), stage1.wants_ats()), (table.0, cd_max, ats));
        // S1DSS counts with SubstreamIDs only; S1CSH, S1COR, S1CIR.
        assert_eq!(stage1.word1() & 0xff, 0b1101_0100 | if cd_max == 0 { 0 } else { 0b10 });
    }
    for attribute_override in [false, true] {
        let features = Features { attribute_override, ..ALL };
        assert_eq!(Stage1Claim::bypass(&features).check(&features, &parent()), Ok(Stage1Config::Bypass));
    }
    assert_eq!(Stage1Claim::ABORT.check(&ALL, &parent()), Ok(Stage1Config::Abort));
}
