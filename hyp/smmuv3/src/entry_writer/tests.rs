//! The invariants, for all pairs of a set of entries: at every store the SMMU sees the old meaning, the new one, or
//! V = 0 where two words must change; the number of syncs is the least that the procedure allows. What an SMMU uses
//! of an entry is written down here once more, field by field.

extern crate std;
use super::*;
use crate::address::PhysAddr;
use crate::cd::ContextDescriptor;
use crate::features::Features;
use crate::pgtable::{Geometry, Granule};
use crate::ste::{Ats, Stage1Claim, Stage1Config, StreamTableEntry};
use core::fmt::Debug;
use std::vec::Vec;

/// What the tests know of a kind of entry without its [`Entry`].
trait Known: Entry + Debug + PartialEq {
    fn of(words: Words) -> Self;
    /// The bits that an SMMU uses.
    fn used(words: &Words) -> Words;
    /// The bits that may change at any time between two entries that both use them.
    fn safe(one: &Words, other: &Words) -> Words;
}

/// Bits `high` to `low` of one word.
fn field(word: usize, high: u32, low: u32) -> Words {
    let mut words = [0; ENTRY_WORDS];
    words[word] = (u64::MAX >> (63 - high)) & (u64::MAX << low);
    words
}

fn union(fields: &[Words]) -> Words {
    core::array::from_fn(|word| fields.iter().fold(0, |all, field| all | field[word]))
}

fn and(one: &Words, other: &Words) -> Words {
    core::array::from_fn(|word| one[word] & other[word])
}

fn without(one: &Words, other: &Words) -> Words {
    core::array::from_fn(|word| one[word] & !other[word])
}

fn difference(one: &Words, other: &Words) -> Words {
    core::array::from_fn(|word| one[word] ^ other[word])
}

/// How many words have a bit.
fn words_in(bits: &Words) -> usize {
    bits.iter().filter(|word| **word != 0).count()
}

impl Known for StreamTableEntry {
    fn of(words: Words) -> Self {
        Self(words)
    }

    fn used(words: &Words) -> Words {
        let (v, config) = (field(0, 0, 0), field(0, 3, 1));
        let (mev, eats, shcfg, vmid) =
            (field(1, 19, 19), field(1, 29, 28), field(1, 45, 44), field(2, 15, 0));
        // S1Fmt, S1ContextPtr, S1CDMax; S1DSS, S1CIR, S1COR, S1CSH; S1STALLD; STRW.
        let stage1 = union(&[
            field(0, 55, 4),
            field(0, 63, 59),
            field(1, 7, 0),
            field(1, 27, 27),
            field(1, 31, 30),
            mev,
            eats,
            vmid,
        ]);
        // S2FWB; S2T0SZ to S2R; S2TTB.
        let stage2 = union(&[field(1, 25, 25), field(2, 58, 32), field(3, 51, 4), shcfg, mev, eats, vmid]);
        match (words[0] & 1, words[0] >> 1 & 0b111) {
            (0, _) => v,
            (_, 0b000..=0b011) => union(&[v, config]),
            (_, 0b100) => union(&[v, config, shcfg]),
            (_, 0b101) if words[1] & 0b11 == 0b01 => union(&[v, config, stage1, shcfg]),
            (_, 0b101) => union(&[v, config, stage1]),
            (_, 0b110) => union(&[v, config, stage2]),
            _ => union(&[v, config, stage1, stage2]),
        }
    }

    fn safe(one: &Words, other: &Words) -> Words {
        let split_stage = (one[1] | other[1]) >> 29 & 1 == 1;
        let stalls = (one[2] | other[2]) >> 57 & 1 == 1;
        let mev = field(1, 19, 19);
        if split_stage || stalls { mev } else { union(&[mev, field(1, 28, 28)]) }
    }
}

impl Known for ContextDescriptor {
    fn of(words: Words) -> Self {
        Self(words)
    }

    fn used(words: &Words) -> Words {
        // T0SZ to SH0, TTB0.
        let ttb0 = union(&[field(0, 13, 0), field(1, 55, 4)]);
        match (words[0] >> 31 & 1, words[0] >> 14 & 1) {
            (0, _) => field(0, 31, 31),
            (_, 0) => [!0; ENTRY_WORDS],
            _ => without(&[!0; ENTRY_WORDS], &ttb0),
        }
    }

    fn safe(_: &Words, _: &Words) -> Words {
        [0; ENTRY_WORDS]
    }
}

/// Memory that an entry is written to, with all that was seen there.
struct Watcher {
    memory: Words,
    seen: Vec<Words>,
    syncs: usize,
    unsynced: bool,
    /// The sync that fails.
    broken: Option<usize>,
}

impl Watcher {
    fn new(memory: Words) -> Self {
        Self { memory, seen: Vec::new(), syncs: 0, unsynced: false, broken: None }
    }
}

impl EntrySink for Watcher {
    type Fault = ();

    fn store(&mut self, word: usize, value: u64) {
        assert_ne!(self.memory[word], value, "a store that changes nothing");
        self.memory[word] = value;
        self.seen.push(self.memory);
        self.unsynced = true;
    }

    fn sync(&mut self) -> Result<(), ()> {
        assert!(self.unsynced, "a sync after no store");
        self.unsynced = false;
        self.syncs += 1;
        if self.broken == Some(self.syncs) { Err(()) } else { Ok(()) }
    }
}

/// The bits of the old entry that must not change before the new one is in force.
fn held<E: Known>(old: &Words, new: &Words) -> Words {
    let both = and(&E::used(old), &E::used(new));
    without(&E::used(old), &and(&E::safe(old, new), &both))
}

/// The words that must change at the very moment at which the new entry comes into force.
fn switching<E: Known>(old: &Words, new: &Words) -> Words {
    and(&difference(old, new), &and(&held::<E>(old, new), &E::used(new)))
}

/// How many syncs a change needs: one before the switch if anything is set in advance, one for the switch, one after
/// if anything is left over; three through V = 0.
fn syncs_needed<E: Known>(old: &Words, new: &Words) -> usize {
    let (changes, held, switching) = (difference(old, new), held::<E>(old, new), switching::<E>(old, new));
    match words_in(&switching) {
        0 => usize::from(old != new),
        1 => {
            let elsewhere =
                |bits: Words| (0..ENTRY_WORDS).any(|word| switching[word] == 0 && bits[word] != 0);
            let before = elsewhere(without(&changes, &held));
            let after = elsewhere(and(&changes, &held));
            usize::from(before) + 1 + usize::from(after)
        }
        _ => 3,
    }
}

fn check_pair<E: Known>(old: &E, new: &E) {
    let (old_words, new_words) = (old.words(), new.words());
    let mut watcher = Watcher::new(*old_words);
    write_entry(&mut watcher, old, new).unwrap();
    assert_eq!(E::of(watcher.memory), *new);
    assert_eq!(watcher.syncs, syncs_needed::<E>(old_words, new_words), "syncs from {old:x?} to {new:x?}");
    assert!(!watcher.unsynced);

    let safe = E::safe(old_words, new_words);
    let meaning = |words: &Words| {
        let used = E::used(words);
        (without(&used, &safe), and(words, &without(&used, &safe)))
    };
    let allowed = [meaning(old_words), meaning(new_words)];
    let hitless = words_in(&switching::<E>(old_words, new_words)) <= 1;
    for seen in &watcher.seen {
        let invalid = E::used(seen) == E::used(E::INVALID.words());
        assert!(
            allowed.contains(&meaning(seen)) || invalid && !hitless,
            "{old:x?} {new:x?}: {seen:x?} is neither"
        );
        let safe_seen = and(seen, &safe);
        assert!([old_words, new_words].iter().any(|words| and(words, &safe) == safe_seen) || invalid);
    }
}

fn check_all_pairs<E: Known>(entries: &[E], leftovers: &[E]) {
    for new in entries {
        assert_eq!(without(new.words(), &E::used(new.words())), [0; ENTRY_WORDS], "{new:x?} has unused bits");
        for old in entries.iter().chain(leftovers) {
            check_pair(old, new);
        }
    }
}

/// The first four words; the others are 0.
fn words(first: [u64; 4]) -> Words {
    core::array::from_fn(|word| first.get(word).copied().unwrap_or(0))
}

fn geometries() -> [Geometry; 2] {
    [(40, 44), (32, 40)].map(|(ia, oa)| Geometry::stage2(Granule::Size4K, ia, oa).unwrap())
}

fn stage2(root: u64, vmid: u16, ats: Ats) -> StreamTableEntry {
    StreamTableEntry::stage2(&geometries()[0], PhysAddr(root), vmid, ats)
}

/// Both stages, with the stage-1 half of a claim.
fn nested(word0: u64, word1: u64, vmid: u16, ats: Ats) -> StreamTableEntry {
    let features = Features {
        nested: true,
        ats: true,
        split_stage_ats: true,
        configurable_stalls: true,
        substream_bits: 16,
        ..Features::NONE
    };
    let claim = Stage1Claim([word0 | 0b1011, word1 | 1 << 28 | 0b01 << 44]);
    let config = claim.check(&features, &geometries()[0]).unwrap();
    assert!(matches!(config, Stage1Config::Translate(_)));
    StreamTableEntry::nested(&config, &geometries()[0], PhysAddr(0x4000_0000), vmid, ats)
}

/// An entry of stage 1 alone, which nothing in this crate makes: what a bare SMMU's driver would have.
fn stage1_only(context_ptr: u64, word1: u64) -> StreamTableEntry {
    StreamTableEntry(words([2 << 59 | context_ptr | 0b1011, word1, 0, 0]))
}

fn stream_table_entries() -> Vec<StreamTableEntry> {
    let bypass = |shcfg: u64| StreamTableEntry(words([0b1001, shcfg << 44, 0, 0]));
    let mut all = std::vec![StreamTableEntry::INVALID, StreamTableEntry::ABORT, bypass(0), bypass(1)];
    for geometry in geometries() {
        for root in [0x4000_0000, 0x4123_4000] {
            for (vmid, ats) in [(1, Ats::Off), (1, Ats::Full), (2, Ats::Off)] {
                all.push(StreamTableEntry::stage2(&geometry, PhysAddr(root), vmid, ats));
            }
        }
    }
    // MEV, and S2S without and with full ATS (which SMMUs refuse, but may be met).
    for (word, bits) in [(1, 1 << 19), (2, 1 << 57)] {
        let mut entry = stage2(0x4000_0000, 1, Ats::Off);
        entry.0[word] |= bits;
        all.push(entry);
        entry.0[1] |= 1 << 28;
        all.push(entry);
    }
    for context_ptr in [0x8000_0000, 0x8000_4000] {
        // S1DSS terminate, bypass with two SHCFG, SSID 0; STRW EL2; EATS.
        let choices = [0b00, 0b01, 1 << 44 | 0b01, 0b10, 0b10 << 30, 0b01 << 28];
        all.extend(choices.map(|word1| stage1_only(context_ptr, word1)));
        for (dss, vmid) in [(0b00, 1), (0b01, 1), (0b10, 1), (0b10, 2)] {
            let make = |ats| nested(2 << 59 | context_ptr, 0b1101_0100 | dss, vmid, ats);
            all.extend([Ats::Off, Ats::SplitStage, Ats::Full].map(make));
        }
    }
    all
}

#[test]
fn every_pair_of_stream_table_entries() {
    let entries = stream_table_entries();
    let leftovers = [
        StreamTableEntry([!1; ENTRY_WORDS]),
        StreamTableEntry([1, 2, 3, 4, 5, 6, 7, 8]),
        StreamTableEntry([0b0111, !0, !0, 0, 0, 0, 0, 9]),
    ];
    check_all_pairs(&entries, &leftovers);
}

#[test]
fn every_pair_of_context_descriptors() {
    let mut all = std::vec![ContextDescriptor::INVALID];
    for geometry in geometries() {
        for (root, asid, mair) in
            [(0x4000_0000, 1, 0xff), (0x4123_4000, 1, 0xff), (0x4000_0000, 2, 0xff), (0x4000_0000, 1, 0x04ff)]
        {
            let walked = ContextDescriptor::stage1(&geometry, PhysAddr(root), asid, mair);
            let mut not_walked = walked;
            not_walked.0[0] = walked.0[0] & !0x3fff | 1 << 14;
            not_walked.0[1] = 0;
            all.extend([walked, not_walked]);
        }
    }
    let leftovers = [ContextDescriptor([!(1 << 31); ENTRY_WORDS]), ContextDescriptor([1 << 31; ENTRY_WORDS])];
    check_all_pairs(&all, &leftovers);
}

#[test]
fn changes_that_are_made_often_cost_what_they_must() {
    let syncs = |old: &StreamTableEntry, new: &StreamTableEntry| {
        let mut watcher = Watcher::new(old.0);
        write_entry(&mut watcher, old, new).unwrap();
        let gap = watcher.seen.iter().any(|seen| seen[0] & 1 == 0) && old.is_valid() && new.is_valid();
        (watcher.syncs, gap)
    };
    let (hitless, with_gap) = (false, true);
    let (invalid, abort) = (StreamTableEntry::INVALID, StreamTableEntry::ABORT);
    let plain = stage2(0x4000_0000, 1, Ats::Off);
    let make_nested =
        |context_ptr: u64, dss: u64, ats| nested(2 << 59 | context_ptr, 0b1101_0100 | dss, 1, ats);
    let both = make_nested(0x8000_0000, 0b10, Ats::Off);
    let split = make_nested(0x8000_0000, 0b10, Ats::SplitStage);
    for (old, new, expected) in [
        (plain, plain, (0, hitless)),
        (invalid, plain, (2, hitless)),
        (plain, invalid, (2, hitless)),
        (abort, plain, (2, hitless)),
        (plain, stage2(0x4000_0000, 2, Ats::Off), (1, hitless)),
        (plain, stage2(0x4123_4000, 1, Ats::Off), (1, hitless)),
        (plain, stage2(0x4123_4000, 2, Ats::Off), (3, with_gap)),
        (plain, stage2(0x4000_0000, 1, Ats::Full), (1, hitless)),
        // ATS and another word: the one that is safe goes first.
        (plain, stage2(0x4123_4000, 1, Ats::Full), (2, hitless)),
        // The owner enables stage 1, moves its CDs, turns it off.
        (plain, both, (2, hitless)),
        (both, make_nested(0x8000_4000, 0b10, Ats::Off), (1, hitless)),
        (both, make_nested(0x8000_0000, 0b01, Ats::Off), (1, hitless)),
        (both, plain, (2, hitless)),
        (both, split, (1, hitless)),
        // Split-stage ATS and stage 1 cannot go at once.
        (split, plain, (3, with_gap)),
    ] {
        assert_eq!(syncs(&old, &new), expected, "{old:x?} {new:x?}");
    }
}

#[test]
fn nothing_is_stored_after_a_sync_that_failed() {
    let (old, new) = (stage2(0x4000_0000, 1, Ats::Off), stage2(0x4123_4000, 2, Ats::Off));
    for (broken, valid, stored) in [(1, false, 1), (2, false, 3), (3, true, 4)] {
        let mut watcher = Watcher { broken: Some(broken), ..Watcher::new(old.0) };
        assert_eq!(write_entry(&mut watcher, &old, &new), Err(()));
        assert_eq!((watcher.memory[0] & 1 == 1, watcher.seen.len()), (valid, stored));
    }
}
