extern crate std;

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
}

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
        6 => prop::sample::select(std::vec![
            0x20u64, 0x24, 0x28, 0x2c, 0x44, 0x50, 0x60, 0x64, 0x68, 0x80, 0x88, 0x90, 0x98, 0x9c, 0xa0, 0xb0, 0x1_00a8, 0x1_00ac
        ]),
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
        prop::sample::select(std::vec![
            0x03u64, 0x04, 0x05, 0x06, 0x10, 0x12, 0x30, 0x40, 0x46, 0x1046, 0b1001, 0b1011
        ]),
        (0u64..0x900).prop_map(|stream| stream << 32 | 0x03),
        (0u64..32).prop_map(|span| (LEVEL_2 + 0x8_0000) | span),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop::sample::select(std::vec![1u8, 2, 4, 4, 4, 8, 8, 16]);
    prop_oneof![
        8 => (register(), size(), value()).prop_map(|(offset, size, value)| Step::Store(offset, size, value)),
        2 => (register(), size()).prop_map(|(offset, size)| Step::Load(offset, size)),
        6 => (place(), word()).prop_map(|(at, word)| Step::Memory(at, word)),
        1 => place().prop_map(Step::Take),
        1 => (place(), 0u32..4).prop_map(|(at, accesses)| Step::TakeAfter(at, accesses)),
        2 => place().prop_map(Step::GiveBack),
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
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    /// The rig asserts that each access is to memory of the host's, aligned, within a page, and that steps are bounded.
    #[test]
    fn whatever_the_host_does_it_ends_and_a_reset_makes_it_good(steps in prop::collection::vec(step(), 1..120)) {
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
        // No page goes away in the middle any more.
        driver.rig.host.take_page_after(RAM.start, u32::MAX);
        driver.rig.write_cr0(0);
        prop_assert!(driver.rig.host.set.borrow().is_empty(), "all streams abort");
        driver.rig.acknowledge();
        driver.reset();
        driver.run(&[Command::cfgi_all()]);
    }
}
