//! The invariants: whatever an owner writes, what gets past names its VMID or one of its streams and nothing else,
//! and has no bit outside the fields that are written down here once more.

#![cfg_attr(not(test), allow(dead_code, unused_imports))]

extern crate std;
use super::*;
use proptest::prelude::*;
use std::string::ToString;
use std::vec::Vec;

const ALL: VsmmuLimits =
    VsmmuLimits { range_invalidation: true, ats: true, substream_bits: 20, asid_bits: 16 };
const LEAST: VsmmuLimits =
    VsmmuLimits { range_invalidation: false, ats: false, substream_bits: 0, asid_bits: 8 };

/// VMID of the virtual SMMU: no owner in these tests writes it.
const VMID: u16 = 0x5a5a;

/// Streams 0 to 15 and 1 << 31 are the owner's.
fn lookup(stream: u32) -> Option<u32> {
    (stream < 16 || stream == 1 << 31).then_some(stream % 16 + 0x8_0100)
}

fn run(word0: u64, word1: u64, limits: &VsmmuLimits) -> Result<[u64; 2], Illegal> {
    check(Command([word0, word1]), limits, VMID, lookup).map(|command| command.0)
}

/// Asserts that a command that got past reaches nothing that is not the owner's, by bit positions of chapter 4.
fn assert_confined([word0, word1]: [u64; 2]) {
    let stream = (word0 >> 32) as u32;
    let is_owners_stream = (0x8_0100..0x8_0110).contains(&stream);
    let (low, high) = (word0 as u32, word1);
    match low & 0xff {
        0x05 => assert!(is_owners_stream && low & 0xf00 == 0 && high & !1 == 0),
        0x06 => assert!(is_owners_stream && low == 0x06 && high == 0),
        0x10 => assert_eq!([word0, word1], [0x5a5a_0000_0010, 0]),
        0x11 => assert!(word0 & 0xffff_ffff_ffff == 0x5a5a_0000_0011 && high == 0),
        0x12 | 0x13 => {
            assert_eq!(word0 >> 32 & 0xffff, 0x5a5a);
            assert_eq!(low & !(0x1f << 20 | 0x1f << 12 | 0xff), 0);
            assert_eq!(high & 0xfe, 0);
            assert!(low & 0xff == 0x12 || word0 >> 48 == 0, "VAA has no ASID");
        }
        0x40 => assert!(is_owners_stream && low & (1 << 8 | 1 << 10) == 0 && high & 0xfc0 == 0),
        0x46 => assert_eq!([word0, word1], [0x46, 0]),
        other => panic!("opcode {other:#x} got past"),
    }
}

#[test]
fn every_opcode_with_every_bit_is_refused_or_confined() {
    for opcode in 0..=0xff {
        for limits in [&ALL, &LEAST] {
            for bits in (0..128).map(|bit| 1u128 << bit).chain([0]) {
                // A bit of the opcode makes another opcode.
                let word0 = opcode | bits as u64 & !0xff;
                if let Ok(translated) = run(word0, (bits >> 64) as u64, limits) {
                    assert_confined(translated);
                }
            }
        }
    }
}

#[test]
fn nothing_but_the_allow_list_gets_past() {
    let legal = [0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x30, 0x40, 0x46];
    let allowed: Vec<u64> = (0..=0xff).filter(|opcode| run(*opcode, 0, &ALL).is_ok()).collect();
    assert_eq!(allowed, legal);
    for opcode in (0..=0xff).filter(|opcode| !legal.contains(opcode)) {
        let reason = match opcode {
            0x03 | 0x04 => Illegal::StreamTable,
            _ => Illegal::Opcode(opcode as u8),
        };
        assert_eq!(run(opcode, 0, &ALL), Err(reason));
        assert_eq!(run(opcode | 1 << 40, 31, &ALL), Err(reason), "whatever else it says");
    }
}

#[test]
fn each_reserved_bit_is_named() {
    // The owner's fields, by opcode: word 0 above the opcode, word 1.
    let fields: [(u64, u64, u64); 9] = [
        (0x05, 0xffff_ffff_ffff_f000, 1),
        (0x06, 0xffff_ffff_0000_0000, 0),
        (0x10, 0x0000_ffff_0000_0000, 0),
        (0x11, 0xffff_ffff_0000_0000, 0),
        (0x12, 0xffff_ffff_01f1_f000, 0xffff_ffff_ffff_ff01),
        (0x13, 0x0000_ffff_01f1_f000, 0xffff_ffff_ffff_ff01),
        (0x30, 0, 0),
        (0x40, 0xffff_ffff_ffff_fa00, 0xffff_ffff_ffff_f03f),
        (0x46, 0xffff_ffff_0fc0_3000, 0x00ff_ffff_ffff_fffc),
    ];
    for (opcode, word0, word1) in fields {
        for bit in (8..64).filter(|bit| word0 >> bit & 1 == 0) {
            let refused = Illegal::Reserved { word: 0, bits: 1 << bit };
            assert_eq!(run(opcode | 1 << bit, 0, &ALL), Err(refused));
        }
        for bit in (0..64).filter(|bit| word1 >> bit & 1 == 0) {
            let refused = Illegal::Reserved { word: 1, bits: 1 << bit };
            assert_eq!(run(opcode, 1 << bit, &ALL), Err(refused));
        }
        for bit in 0..64 {
            let is_field = [word0 >> bit & 1 == 1, word1 >> bit & 1 == 1];
            let results = [run(opcode | (1 << bit) & !0xff, 0, &ALL), run(opcode, 1 << bit, &ALL)];
            for (is_field, result) in is_field.into_iter().zip(results) {
                let is_reserved = matches!(result, Err(Illegal::Reserved { .. }));
                assert!(!is_field || !is_reserved, "{opcode:#x} bit {bit}: {result:?}");
            }
        }
    }
}

#[test]
fn streams_and_vmids_are_exchanged() {
    assert_eq!(run(0x0000_0003_0000_5005, 1, &ALL), Ok([0x0008_0103_0000_5005, 1]));
    assert_eq!(run(0x8000_0000_0000_0006, 0, &ALL), Ok([0x0008_0100_0000_0006, 0]));
    assert_eq!(run(0x0000_0010_0000_0006, 0, &ALL), Err(Illegal::Stream(16)));
    assert_eq!(run(0x0000_0010_0000_0005, 0, &ALL), Err(Illegal::Stream(16)));
    assert_eq!(run(0x0000_0010_0000_0040, 0, &ALL), Err(Illegal::Stream(16)));
    assert_eq!(run(0x0000_0001_0000_0010, 0, &ALL), Ok([0x5a5a_0000_0010, 0]));
    assert_eq!(run(0x30, 0, &ALL), Ok([0x5a5a_0000_0010, 0]), "NSNH_ALL is NH_ALL of the VMID");
    assert_eq!(run(0x0007_0001_0000_0011, 0, &ALL), Ok([0x0007_5a5a_0000_0011, 0]));
    assert_eq!(run(0x0007_0001_0090_2012, 0x4020_0601, &ALL), Ok([0x0007_5a5a_0090_2012, 0x4020_0601]));
    assert_eq!(run(0x13, 0x4020_0001, &LEAST), Ok([0x5a5a_0000_0013, 0x4020_0001]));
}

#[test]
fn identifiers_are_as_wide_as_the_virtual_smmu_says() {
    let narrow = VsmmuLimits { substream_bits: 4, asid_bits: 8, ..ALL };
    assert!(run(0xf005, 0, &narrow).is_ok());
    assert_eq!(run(0x1_0005, 0, &narrow), Err(Illegal::Substream(16)));
    assert!(run(0x1_0840, 0, &ALL).is_ok());
    assert_eq!(run(0x1_0840, 0, &narrow), Err(Illegal::Substream(16)));
    let none = VsmmuLimits { substream_bits: 0, ..ALL };
    assert_eq!(run(0x0840, 0, &none), Err(Illegal::Substream(0)), "not even SubstreamID 0");
    assert!(run(0x05, 0, &none).is_ok(), "there it is the index of the only CD");
    for opcode in [0x11, 0x12] {
        assert!(run(0x00ff << 48 | opcode, 0, &narrow).is_ok());
        assert_eq!(run(0x0100 << 48 | opcode, 0, &narrow), Err(Illegal::Asid(0x100)));
    }
}

#[test]
fn ranges_are_those_of_4_4_1_1() {
    for opcode in [0x12, 0x13] {
        for n in 0..1u64 << 14 {
            let (num, scale, ttl, tg) = (n & 31, n >> 5 & 31, n >> 10 & 3, n >> 12);
            let (word0, word1) = (opcode | num << 12 | scale << 20, ttl << 8 | tg << 10);
            let any = num | scale | ttl;
            let is_legal = match tg {
                0 => any == 0,
                2 => any != 0 && ttl != 1,
                _ => any != 0,
            };
            assert_eq!(run(word0, word1, &ALL).is_ok(), is_legal, "{num} {scale} {ttl} {tg}");
            if !is_legal {
                assert_eq!(run(word0, word1, &ALL), Err(Illegal::ReservedRange));
            }
            let without = if any | tg == 0 {
                Ok([0x5a5a << 32 | opcode, 0])
            } else {
                Err(Illegal::NoRangeInvalidation)
            };
            assert_eq!(run(word0, word1, &LEAST), without);
        }
    }
}

#[test]
fn atc_invalidations_need_ats_and_lose_what_does_not_count() {
    assert_eq!(run(0x40, 52, &LEAST), Err(Illegal::NoAts));
    assert_eq!(run(0x40, 52, &ALL), Ok([0x8_0100_0000_0040, 52]));
    assert_eq!(run(0x40, 53, &ALL), Err(Illegal::AtcSize(53)));
    assert_eq!(run(0x1_0000_5840, 0x7003, &ALL), Ok([0x8_0101_0000_5840, 3]), "aligned to its span");
    assert_eq!(run(0x5a40, 0x1000, &ALL), Ok([0x8_0100_0000_5a40, 0x1000]));
    assert_eq!(run(0x5240, 0x1000, &ALL), Ok([0x8_0100_0000_0040, 0x1000]), "no SSV");
}

#[test]
fn a_sync_signals_nobody() {
    let msi = 0x1234_5678_0fc0_0046;
    assert_eq!(run(msi, 0x8090_0040, &ALL), Ok([0x46, 0]), "with SIG_NONE the MSI fields are ignored");
    for cs in 1..=3u64 {
        assert_eq!(run(msi | cs << 12, 0x8090_0040, &ALL), Err(Illegal::CompletionSignal(cs as u8)));
    }
}

#[test]
fn limits_follow_features_and_grant() {
    let features =
        Features { ats: true, range_invalidation: true, substream_bits: 5, asid_bits: 16, ..Features::NONE };
    let limits = VsmmuLimits { range_invalidation: true, ats: true, substream_bits: 5, asid_bits: 16 };
    assert_eq!(VsmmuLimits::new(&features, Ats::SplitStage), limits);
    assert_eq!(VsmmuLimits::new(&features, Ats::Off), VsmmuLimits { ats: false, ..limits });
    let without = Features { ats: false, ..features };
    assert_eq!(VsmmuLimits::new(&without, Ats::Full), VsmmuLimits { ats: false, ..limits });
}

#[test]
fn a_refusal_says_why() {
    let refused = run(0x405, 0, &ALL).unwrap_err();
    assert_eq!(refused.to_string(), "reserved bits 0x400 of word 0 are set", "SSec");
    assert_eq!(run(0x28, 0, &ALL).unwrap_err().to_string(), "opcode 0x28 is not the owner's to send");
}

/// Words that are legal rather often: an opcode of the list, and few bits.
fn owners_words() -> impl Strategy<Value = [u64; 2]> {
    let opcode = prop::sample::select(&[0x05u64, 0x06, 0x10, 0x11, 0x12, 0x13, 0x30, 0x40, 0x46]);
    let sparse = (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(a, b, c)| a & b & c);
    (opcode, sparse.clone(), sparse).prop_map(|(opcode, word0, word1)| [opcode | word0 & !0xff, word1])
}

fn refused_or_confined([word0, word1]: [u64; 2]) -> Result<(), TestCaseError> {
    let lookup = |stream| Some(stream % 16 + 0x8_0100);
    if let Ok(translated) = check(Command([word0, word1]), &ALL, VMID, lookup) {
        assert_confined(translated.0);
        // What got past is legal as it stands.
        prop_assert_eq!(check(translated, &ALL, VMID, Some), Ok(translated));
    }
    Ok(())
}

/// Commands of an owner, 16 bytes each.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    for command in bytes.as_chunks::<16>().0 {
        let words = u128::from_le_bytes(*command);
        crate::fuzzing::must_hold(refused_or_confined([words as u64, (words >> 64) as u64]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_words_are_refused_or_confined(words in prop_oneof![owners_words(), any::<[u64; 2]>()]) {
        refused_or_confined(words)?;
    }
}
