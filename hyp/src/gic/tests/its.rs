extern crate std;

use std::vec::Vec;

use proptest::prelude::*;
use smmuv3::address::PhysAddr;
use smmuv3::memory::Memory;

use super::model::{ITS, POOL, POOL_BYTES, Scene};
use crate::memory::tests::platform::RAM;

const VALID: u64 = 1 << 63;
/// The host's queue of 64 KiB, its tables and an ITT: where the host's driver would have them.
const QUEUE: u64 = RAM + 0x10_0000;
const QUEUE_BYTES: u64 = 0x1_0000;
const DEVICE_TABLE: u64 = RAM + 0x20_0000;
const COLLECTIONS: u64 = RAM + 0x30_0000;
const ITT: u64 = RAM + 0x40_0000;

/// A driver of the ITS, as far as it needs one.
struct Driver {
    scene: Scene,
    next: u64,
}

impl Driver {
    fn new(scene: Scene) -> Self {
        for (n, table) in [(0, DEVICE_TABLE), (1, COLLECTIONS)] {
            let register = ITS + 0x100 + 8 * n;
            let fixed = scene.load(register, 8);
            scene.store(register, 8, VALID | 1 << 62 | table | 2 << 8 | 7 | fixed);
            let kept = scene.load(register, 8);
            assert_eq!(kept >> 62 & 1, 0, "two-level tables are not offered");
            assert_eq!(kept & 0x0000_ffff_ffff_f000, table, "reads as written");
        }
        scene.store(ITS + 0x80, 8, VALID | QUEUE | (QUEUE_BYTES / 4096 - 1));
        scene.store(ITS + 0x88, 8, 0);
        scene.store(ITS, 4, 1);
        assert_eq!(scene.load(ITS, 4) & 1, 1);
        Self { scene, next: 0 }
    }

    fn put(&mut self, words: [u64; 4]) {
        for (offset, word) in (0..).step_by(8).zip(words) {
            self.scene.platform().write_u64(PhysAddr(QUEUE + self.next + offset), word);
        }
        self.next = (self.next + 32) % QUEUE_BYTES;
    }

    /// Sends commands; how often the store trapped.
    fn send(&mut self, commands: &[[u64; 4]]) -> u32 {
        commands.iter().for_each(|command| self.put(*command));
        let times = self.scene.store(ITS + 0x88, 8, self.next);
        assert_eq!(self.scene.load(ITS + 0x90, 8), self.next, "all are consumed");
        times
    }
}

const fn mapd(device: u64, bits: u64, itt: u64) -> [u64; 4] {
    [0x08 | device << 32, bits - 1, VALID | itt, 0]
}

const fn unmap(device: u64) -> [u64; 4] {
    [0x08 | device << 32, 0, 0, 0]
}

const MAPC: [u64; 4] = [0x09, 0, VALID, 0];
const SYNC: [u64; 4] = [0x05, 0, 0, 0];

const fn mapti(device: u64, event: u64, lpi: u64) -> [u64; 4] {
    [0x0a | device << 32, event | lpi << 32, 0, 0]
}

const fn int(device: u64, event: u64) -> [u64; 4] {
    [0x03 | device << 32, event, 0, 0]
}

#[test]
fn an_interrupt_is_delivered_and_all_tables_are_the_hypervisors() {
    let mut driver = Driver::new(Scene::new(|_| {}));
    let free = driver.scene.free();
    driver.send(&[MAPC, SYNC, mapd(0x18, 5, ITT), mapti(0x18, 3, 8195), [0x0c | 0x18 << 32, 3, 0, 0], SYNC]);
    driver.send(&[int(0x18, 3)]);
    {
        let gic = driver.scene.platform().gic.lock().unwrap();
        assert_eq!(gic.delivered, [8195]);
        let (itt, log2) = gic.devices[&0x18];
        assert!((POOL..POOL + POOL_BYTES).contains(&itt) && log2 == 5);
    }
    assert!(driver.scene.free() < free);
    driver.send(&[unmap(0x18), SYNC]);
    assert_eq!(driver.scene.free(), free, "the ITT and the page of the device list are back");
    // Without a device there is no event, and the queue goes on.
    driver.send(&[int(0x18, 3), mapti(0x18, 0, 8192), MAPC]);
    assert_eq!(driver.scene.platform().gic.lock().unwrap().delivered, [8195]);
}

#[test]
fn a_full_queue_is_worked_off_in_bounded_steps_and_wraps() {
    let mut driver = Driver::new(Scene::new(|_| {}));
    driver.send(&[MAPC, mapd(1, 8, ITT), mapti(1, 200, 9000)]);
    let many = std::vec![int(1, 200); (QUEUE_BYTES / 32) as usize - 1];
    let times = driver.send(&many);
    assert!(times as usize >= many.len() / crate::gic::its::BATCH, "{times} traps");
    driver.send(&many);
    assert_eq!(driver.scene.platform().gic.lock().unwrap().delivered.len(), 2 * many.len());
}

#[test]
fn what_is_out_of_range_is_ignored() {
    let mut driver = Driver::new(Scene::new(|_| {}));
    let free = driver.scene.free();
    driver.send(&[
        mapd(1 << 16, 5, ITT),
        mapd(1, 17, ITT),
        mapd(2, 5, ITT),
        mapti(2, 32, 8192),
        mapti(2, 0, 8191),
        mapti(2, 0, 1 << 16),
        [0x09, 0, VALID | 7 << 16, 0],
        [0x05, 0, 7 << 16, 0],
        // VMAPP of GICv4, and no command.
        [0x29, 0, VALID, 0],
        [0xff, u64::MAX, u64::MAX, u64::MAX],
        int(2, 0),
        // MAPI of an event that is no LPI.
        [0x0b | 2 << 32, 3, 0, 0],
        // MAPC, MAPTI, MOVI and INVALL of a collection that there is not.
        [0x09, 0, VALID | 0xffff, 0],
        [0x0a | 2 << 32, 1 | 8192 << 32, 0xffff, 0],
        [0x01 | 2 << 32, 1, 0xffff, 0],
        [0x0d, 0, 0xffff, 0],
        // MOVALL while LPIs are off, and to a Redistributor that there is not.
        [0x0e, 0, 0, 0],
        [0x0e, 0, 0, 7 << 16],
        unmap(2),
    ]);
    {
        let gic = driver.scene.platform().gic.lock().unwrap();
        assert!(gic.devices.is_empty());
        assert_eq!(gic.delivered, []);
    }
    assert_eq!(driver.scene.free(), free);
    // The control.
    driver.send(&[mapd(2, 5, ITT), mapti(2, 31, 8192), [0x09, 0, VALID | 1023, 0], int(2, 31), unmap(2)]);
    assert_eq!(driver.scene.platform().gic.lock().unwrap().delivered, [8192]);
}

/// Each device has an ITT of its own, as large as its EventIDs make it: the model asserts that none is in another.
#[test]
fn itts_are_as_large_as_the_hardware_takes_them_for() {
    let mut driver = Driver::new(Scene::new(|_| {}));
    let free = driver.scene.free();
    for (device, bits) in (0..40).zip([16u64, 1, 9, 10, 11, 12, 13, 5].into_iter().cycle()) {
        driver.send(&[mapd(device, bits, ITT)]);
    }
    // MAPD of a device that is mapped: the old one goes when the hardware has forgotten it.
    for (device, bits) in (0..40).zip([1u64, 12, 16, 5, 9].into_iter().cycle()) {
        driver.send(&[mapd(device, bits, ITT), int(device, 1)]);
    }
    assert_eq!(driver.scene.platform().gic.lock().unwrap().devices.len(), 40);
    let all: std::vec::Vec<_> = (0..40).map(unmap).collect();
    driver.send(&all);
    assert_eq!(driver.scene.free(), free);
}

#[test]
fn a_command_that_the_hardware_stops_at_takes_nothing_away() {
    let mut driver = Driver::new(Scene::new(|_| {}));
    driver.send(&[mapd(1, 5, ITT), mapd(2, 5, ITT), mapti(2, 1, 8200)]);
    let free = driver.scene.free();
    driver.scene.platform().gic.lock().unwrap().rejects = Some(0x08);
    driver.send(&[unmap(1), int(2, 1)]);
    assert_eq!(driver.scene.platform().gic.lock().unwrap().delivered, [8200], "the queue goes on");
    assert_eq!(driver.scene.free(), free, "the hardware may use the ITT still");
    driver.scene.platform().gic.lock().unwrap().rejects = None;
    driver.send(&[unmap(2)]);
    assert!(driver.scene.free() > free, "the control");
}

#[test]
fn an_its_that_stops_at_every_command_is_turned_off() {
    let mut driver = Driver::new(Scene::new(|_| {}));
    driver.send(&[mapd(1, 5, ITT)]);
    // Not even a SYNC.
    driver.scene.platform().gic.lock().unwrap().rejects = Some(0x05);
    driver.put(int(1, 0));
    driver.scene.store(ITS + 0x88, 8, driver.next);
    assert_eq!(driver.scene.load(ITS + 0x90, 8) & 1, 1, "Stalled");
    assert_eq!(driver.scene.load(ITS, 4) & 1, 0, "off");
}

#[test]
fn a_new_device_table_has_no_devices() {
    let mut driver = Driver::new(Scene::new(|_| {}));
    let free = driver.scene.free();
    for device in 0..100 {
        driver.send(&[mapd(device, 5, ITT)]);
    }
    driver.scene.store(ITS, 4, 0);
    assert_eq!(driver.scene.load(ITS, 4) & 1, 0);
    driver.scene.store(ITS + 0x100, 8, 0);
    assert!(driver.scene.platform().gic.lock().unwrap().devices.is_empty());
    assert_eq!(driver.scene.free(), free);
}

#[test]
fn a_queue_that_is_not_the_hosts_stalls() {
    for queue in [POOL, RAM - 0x1_0000, ITS] {
        let driver = Driver::new(Scene::new(|_| {}));
        driver.scene.store(ITS, 4, 0);
        driver.scene.store(ITS + 0x80, 8, VALID | queue);
        driver.scene.store(ITS, 4, 1);
        driver.scene.store(ITS + 0x88, 8, 0x40);
        assert_eq!(driver.scene.load(ITS + 0x90, 8), 1, "Stalled, and nothing consumed");
    }
}

#[test]
fn a_queue_that_stalls_again_and_again_is_logged_once() {
    let driver = Driver::new(Scene::new(|_| {}));
    driver.scene.store(ITS, 4, 0);
    driver.scene.store(ITS + 0x80, 8, VALID | POOL);
    driver.scene.store(ITS, 4, 1);
    driver.scene.store(ITS + 0x88, 8, 0x40);
    let retry = || {
        for _ in 0..10 {
            driver.scene.store(ITS + 0x88, 8, 0x40 | 1);
            assert_eq!(driver.scene.load(ITS + 0x90, 8), 1, "Stalled");
        }
    };
    assert_eq!(crate::lines::count(retry), 0);
}

#[test]
fn hardware_that_stops_is_a_bounded_wait_and_is_left_alone() {
    let mut driver = Driver::new(Scene::new(|_| {}));
    driver.send(&[mapd(1, 5, ITT)]);
    driver.scene.platform().gic.lock().unwrap().stuck = true;
    driver.put(int(1, 0));
    driver.scene.store(ITS + 0x88, 8, driver.next);
    assert_eq!(driver.scene.load(ITS + 0x90, 8) & 1, 1, "Stalled");
    assert_eq!(driver.scene.load(ITS, 4) & 1, 0, "off");
    driver.scene.store(ITS, 4, 1);
    driver.scene.store(ITS + 0x88, 8, driver.next | 1);
    assert_eq!(driver.scene.load(ITS, 4) & 1, 0, "for good");
}

#[test]
fn without_an_its_that_has_lpis_there_is_none() {
    let scene = Scene::new(|gic| gic.hide_lpis());
    assert!(!scene.0.host_has_its());
    assert_eq!(scene.load(super::model::GICR + 8, 4) & 1, 0, "GICR_TYPER.PLPIS");
    scene.store(super::model::GICR, 4, 1);
    assert!(scene.platform().gic.lock().unwrap().lpi_tables.is_empty());
}

/// Offset, log2 of the bytes and value of stores; commands, before them.
type Attempt = (Vec<(u64, u8, u64)>, Vec<(u64, u64, u64, bool, u64)>);

/// Numbers of commands, of which there is no 0x77, and 0x29 is for virtual interrupts.
const NUMBERS: [u64; 17] = [8, 1, 3, 4, 5, 8, 8, 9, 10, 10, 11, 12, 13, 14, 15, 0x29, 0x77];

fn attempt() -> impl Strategy<Value = Attempt> {
    let offset = prop_oneof![
        Just(0u64),
        Just(0x80),
        Just(0x88),
        Just(0x100),
        Just(0x108),
        0u64..0x140,
        0u64..0x1_0000
    ];
    let value = prop_oneof![
        any::<u64>(),
        Just(1),
        Just(0),
        Just(VALID | QUEUE | 3),
        (0u64..0x800).prop_map(|n| n * 32),
        Just(VALID | POOL),
        Just(VALID | POOL | 2 << 8 | 7)
    ];
    let number = prop::sample::select(&NUMBERS);
    let command = (number, 0u64..4, 0u64..40, any::<bool>(), any::<u64>());
    (prop::collection::vec((offset, 0u8..4, value), 1..60), prop::collection::vec(command, 0..40))
}

/// The model asserts that the hardware touches nothing but the hypervisor's memory.
fn stays_in_the_hypervisors_memory((stores, commands): Attempt) -> Result<(), TestCaseError> {
    let mut driver = Driver::new(Scene::new(|_| {}));
    for (number, device, event, valid, rest) in commands {
        let third = if valid { VALID } else { 0 } | rest & 0x3f_0007;
        let words =
            [number | device << 32, event | (8190 + event) << 32, third | (POOL + (rest & 0xf000)), rest];
        driver.put(words);
    }
    for (offset, size_log2, value) in stores {
        driver.scene.store(ITS + offset, 1 << size_log2, value);
    }
    Ok(())
}

/// What a host writes to an ITS.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    use smmuv3::fuzzing::{Choices, must_hold};
    let mut choices = Choices::of_bytes(bytes);
    let offset = |choices: &mut Choices<'_>| match choices.below(4) {
        0 => choices.one_of(&[0, 0x80, 0x88, 0x100, 0x108]),
        1 => choices.below(0x100),
        2 => 0x100 + choices.below(0x40),
        _ => choices.half(),
    };
    let value = |choices: &mut Choices<'_>| match choices.below(4) {
        0 => choices.one_of(&[1, 0, VALID | QUEUE | 3, VALID | POOL, VALID | POOL | 2 << 8 | 7]),
        1 => choices.below(0x800) * 32,
        2 => choices.word(),
        _ => choices.below(0x100) * 32,
    };
    let count = choices.below(40) as usize;
    let commands = choices.repeat(count, |choices| {
        let (number, device, event) = (choices.one_of(&NUMBERS), choices.below(4), choices.below(40));
        (number, device, event, choices.coin(), choices.word())
    });
    let stores = choices.repeat(60, |choices| (offset(choices), choices.byte() % 4, value(choices)));
    must_hold(stays_in_the_hypervisors_memory((stores, commands)));
}

#[test]
fn an_its_is_quiescent_before_it_is_turned_on_again() {
    let mut driver = Driver::new(Scene::new(|gic| gic.turns_off_in = 20));
    for on in [0, 1] {
        driver.scene.store(ITS, 4, on);
    }
    assert_eq!(driver.scene.load(ITS, 4) & 1, 1);
    // More devices than are unmapped in one step, each of which turns the ITS on and off.
    for device in 0..40 {
        driver.send(&[mapd(device, 1, ITT + device * 0x1000)]);
    }
    driver.scene.store(ITS, 4, 0);
    let register = ITS + 0x100;
    let table = driver.scene.load(register, 8);
    assert!(driver.scene.store(register, 8, table + 0x1_0000) > 1, "in several steps");
}

#[test]
fn an_its_that_never_is_quiescent_stays_off() {
    let driver = Driver::new(Scene::new(|gic| gic.turns_off_in = u32::MAX));
    for on in [0, 1] {
        driver.scene.store(ITS, 4, on);
    }
    assert_eq!(driver.scene.load(ITS, 4) & 1, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_host_writes_the_hardware_stays_in_the_hypervisors_memory(attempt in attempt()) {
        stays_in_the_hypervisors_memory(attempt)?;
    }
}
