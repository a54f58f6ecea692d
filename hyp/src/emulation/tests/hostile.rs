extern crate std;

use std::vec::Vec;

use proptest::prelude::*;
use smmuv3::command::Command;
use smmuv3::registers::{CR0ACK_OFFSET, SPACE_BYTES};

use super::driver::{COMMANDS, Driver, EVENTS, LEVEL_1, LEVEL_2};
use super::rig::{RAM, Rig};

#[derive(Clone, Debug)]
enum Step {
    Store(u64, u8, u64),
    Load(u64, u8),
    Memory(u64, u64),
    Take(u64),
    TakeAfter(u64, u32),
    GiveBack(u64),
    StoreAfter(u64, u64, u32),
}

/// Offsets that a driver uses.
const REGISTERS: [u64; 18] = [
    0x20, 0x24, 0x28, 0x2c, 0x44, 0x50, 0x60, 0x64, 0x68, 0x80, 0x88, 0x90, 0x98, 0x9c, 0xa0, 0xb0, 0x1_00a8,
    0x1_00ac,
];
/// First words of commands and of entries.
const WORDS: [u64; 12] = [0x03, 0x04, 0x05, 0x06, 0x10, 0x12, 0x30, 0x40, 0x46, 0x1046, 0b1001, 0b1011];
/// Bytes of an access.
const SIZES: [u8; 8] = [1, 2, 4, 4, 4, 8, 8, 16];

/// Where something is that the SMMU reads or writes.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0u64..512).prop_map(|n| COMMANDS + n * 8),
        (0u64..64).prop_map(|n| EVENTS + n * 8),
        (0u64..16).prop_map(|n| LEVEL_1 + n * 8),
        (0u64..256).prop_map(|n| LEVEL_2 + 0x8_0000 + n * 8),
    ]
}

fn register() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => prop::sample::select(&REGISTERS),
        1 => (0..SPACE_BYTES / 4).prop_map(|n| n * 4),
        1 => 0..SPACE_BYTES,
    ]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..0x20,
        Just(0xd),
        (0u64..0x400).prop_map(|n| n),
        (0u64..20).prop_map(|log2| COMMANDS | log2),
        (0u64..20).prop_map(|log2| EVENTS | log2),
        Just(LEVEL_1),
        (0u64..0x40).prop_map(|n| 1 << 16 | n << 6 | n),
    ]
}

/// Words that are commands or entries rather often.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        prop::sample::select(&WORDS),
        (0u64..0x900).prop_map(|stream| stream << 32 | 0x03),
        (0u64..32).prop_map(|span| (LEVEL_2 + 0x8_0000) | span),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop::sample::select(&SIZES);
    prop_oneof![
        8 => (register(), size(), value()).prop_map(|(offset, size, value)| Step::Store(offset, size, value)),
        2 => (register(), size()).prop_map(|(offset, size)| Step::Load(offset, size)),
        6 => (place(), word()).prop_map(|(at, word)| Step::Memory(at, word)),
        1 => place().prop_map(Step::Take),
        1 => (place(), 0u32..4).prop_map(|(at, accesses)| Step::TakeAfter(at, accesses)),
        2 => place().prop_map(Step::GiveBack),
        2 => (place(), word(), 0u32..4).prop_map(|(at, word, accesses)| Step::StoreAfter(at, word, accesses)),
    ]
}

fn take(rig: &mut Rig, step: &Step) {
    match *step {
        Step::Store(offset, size, value) => rig.store(offset, size, value),
        Step::Load(offset, size) => drop(rig.smmu.read(&rig.host, offset, size)),
        Step::Memory(at, word) => rig.host.store(at, &[word]),
        Step::Take(at) => rig.host.take_page(at),
        Step::TakeAfter(at, accesses) => rig.host.take_page_after(at, accesses),
        Step::GiveBack(at) => rig.host.give_back(at),
        Step::StoreAfter(at, word, accesses) => rig.host.store_after(at, word, accesses),
    }
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..120)
}

/// The rig asserts that each access is to memory of the host's, aligned, within a page, and that steps are bounded.
fn ends_and_is_good_after_a_reset(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut driver = Driver::started();
    for step in &steps {
        take(&mut driver.rig, step);
        if driver.rig.read(CR0ACK_OFFSET) & 1 == 0 {
            prop_assert!(driver.rig.host.set.borrow().is_empty() || driver.rig.smmu.is_active());
        }
    }
    for at in [COMMANDS, COMMANDS + 0x800, EVENTS, LEVEL_1, LEVEL_2 + 0x8_0000] {
        driver.rig.host.give_back(at);
    }
    // Nothing happens in the middle any more.
    driver.rig.host.take_page_after(RAM.start, u32::MAX);
    driver.rig.host.store_after(RAM.start, 0, u32::MAX);
    driver.rig.write_cr0(0);
    prop_assert!(driver.rig.host.set.borrow().is_empty(), "all streams abort");
    driver.rig.acknowledge();
    driver.reset();
    driver.run(&[Command::cfgi_all()]);
    Ok(())
}

/// Accesses of registers, what is in the host's memory, and what of it changes or goes in the middle.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    use smmuv3::fuzzing::{Choices, must_hold};
    let place = |choices: &mut Choices<'_>| match choices.below(4) {
        0 => COMMANDS + choices.below(512) * 8,
        1 => EVENTS + choices.below(64) * 8,
        2 => LEVEL_1 + choices.below(16) * 8,
        _ => LEVEL_2 + 0x8_0000 + choices.below(256) * 8,
    };
    let register = |choices: &mut Choices<'_>| match choices.below(8) {
        0..6 => choices.one_of(&REGISTERS),
        6 => choices.below(SPACE_BYTES / 4) * 4,
        _ => choices.below(SPACE_BYTES),
    };
    let value = |choices: &mut Choices<'_>| match choices.below(8) {
        0 => choices.below(0x20),
        1 => choices.word(),
        2 => 0xd,
        3 => choices.below(0x400),
        4 => COMMANDS | choices.below(20),
        5 => EVENTS | choices.below(20),
        6 => LEVEL_1,
        _ => {
            let n = choices.below(0x40);
            1 << 16 | n << 6 | n
        }
    };
    let word = |choices: &mut Choices<'_>| match choices.below(4) {
        0 => choices.one_of(&WORDS),
        1 => choices.word(),
        2 => choices.below(0x900) << 32 | 0x03,
        _ => (LEVEL_2 + 0x8_0000) | choices.below(32),
    };
    let size = |choices: &mut Choices<'_>| choices.one_of(&SIZES);
    let steps = Choices::of_bytes(bytes).repeat(120, |choices| match choices.below(22) {
        0..8 => Step::Store(register(choices), size(choices), value(choices)),
        8..10 => Step::Load(register(choices), size(choices)),
        10..16 => Step::Memory(place(choices), word(choices)),
        16 => Step::Take(place(choices)),
        17 => Step::TakeAfter(place(choices), choices.below(4) as u32),
        18 | 19 => Step::GiveBack(place(choices)),
        _ => Step::StoreAfter(place(choices), word(choices), choices.below(4) as u32),
    });
    must_hold(ends_and_is_good_after_a_reset(steps));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_host_does_it_ends_and_a_reset_makes_it_good(steps in history()) {
        ends_and_is_good_after_a_reset(steps)?;
    }
}
