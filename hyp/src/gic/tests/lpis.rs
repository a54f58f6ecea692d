extern crate std;

use std::vec::Vec;

use abi::{Function, Status};
use proptest::prelude::*;

use smmuv3::address::PhysAddr;

use super::model::{GICR, GICR_1, POOL, Scene};
use crate::gic::GicError;
use crate::hypervisor::BootError;
use crate::memory::tests::platform::RAM;

const PROPERTIES: u64 = RAM + 0x10_0000;
const PENDING: u64 = RAM + 0x20_0000;
/// IDbits, less one: INTIDs of 16 bits.
const ID_BITS: u64 = 15;

fn enable(scene: &Scene, properties: u64, pending: u64) -> bool {
    enable_one(scene, GICR, properties, pending)
}

fn enable_one(scene: &Scene, base: u64, properties: u64, pending: u64) -> bool {
    scene.store(base + 0x70, 8, properties | ID_BITS);
    scene.store(base + 0x78, 8, pending);
    scene.store(base, 4, 1);
    scene.load(base, 4) & 1 == 1
}

fn donate(scene: &Scene, page: u64) -> Result<u64, Status> {
    scene.call(Function::MemDonate, [page, 4096, 1, 0])
}

#[test]
fn tables_of_the_hosts_are_used_and_cannot_be_donated_meanwhile() {
    let scene = Scene::new(|gic| gic.lpis_can_end = true);
    scene.call(Function::GuestCreate, [0; 4]).unwrap();
    assert_eq!(scene.load(GICR + 8, 4) & 1, 1, "GICR_TYPER.PLPIS");
    assert!(enable(&scene, PROPERTIES, PENDING));
    scene.assert_lpi_tables_stay();
    for page in [PROPERTIES, PROPERTIES + 0xd000, PENDING, PENDING + 0x1000] {
        assert_eq!(donate(&scene, page), Err(Status::WrongState));
        assert_eq!(scene.call(Function::MemUnshare, [page, 4096, 0, 0]), Err(Status::WrongState));
        assert_eq!(scene.call(Function::MemShare, [page, 4096, 1, 0]), Err(Status::WrongState));
    }
    donate(&scene, PENDING + 0x2000).unwrap();
    // While they are in use the registers say where they are, whatever is written.
    scene.store(GICR + 0x70, 8, POOL | ID_BITS);
    assert_eq!(scene.load(GICR + 0x70, 8) & 0x000f_ffff_ffff_f000, PROPERTIES);
    scene.store(GICR, 4, 0);
    for page in [PROPERTIES, PENDING] {
        donate(&scene, page).unwrap();
    }
}

#[test]
fn lpis_that_cannot_be_turned_off_keep_their_tables() {
    let scene = Scene::new(|_| {});
    scene.call(Function::GuestCreate, [0; 4]).unwrap();
    assert!(enable(&scene, PROPERTIES, PENDING));
    scene.store(GICR, 4, 0);
    assert_eq!(scene.load(GICR, 4) & 1, 1);
    scene.assert_lpi_tables_stay();
}

/// IHI 0069, 12.11.3: until GICR_CTLR.RWP is 0 the Redistributor may use the tables.
#[test]
fn tables_stay_until_the_hardware_has_turned_lpis_off() {
    let scene = Scene::new(|gic| (gic.lpis_can_end, gic.write_pending) = (true, 5));
    scene.call(Function::GuestCreate, [0; 4]).unwrap();
    assert!(enable(&scene, PROPERTIES, PENDING));
    scene.store(GICR, 4, 0);
    let mut polls = 0;
    while scene.load(GICR, 4) & 1 << 3 != 0 {
        scene.assert_lpi_tables_stay();
        assert!(donate(&scene, PENDING).is_err(), "the hardware uses it still");
        polls += 1;
    }
    assert!(polls > 1, "{polls} polls");
    donate(&scene, PENDING).unwrap();
    donate(&scene, PROPERTIES).unwrap();
}

/// More bits of INTIDs than the GIC has are not for the hardware to see: it would read beyond what is pinned.
#[test]
fn the_hardware_gets_the_bits_that_are_pinned() {
    for bits in [15, 16, 19, 31] {
        let scene = Scene::new(|_| {});
        scene.call(Function::GuestCreate, [0; 4]).unwrap();
        scene.store(GICR + 0x70, 8, PROPERTIES | bits);
        scene.store(GICR + 0x78, 8, PENDING);
        scene.store(GICR, 4, 1);
        assert_eq!(scene.load(GICR, 4) & 1, 1, "{bits}");
        scene.assert_lpi_tables_stay();
    }
}

#[test]
fn tables_that_are_not_the_hosts_alone_leave_lpis_off() {
    let scene = Scene::new(|_| {});
    scene.call(Function::GuestCreate, [0; 4]).unwrap();
    let (guests, shared) = (RAM + 0x30_0000, RAM + 0x31_0000);
    donate(&scene, guests + 0x1000).unwrap();
    scene.call(Function::MemShare, [shared, 4096, 1, 0]).unwrap();
    for bad in [POOL, guests, shared, 0, 0x0c00_0000, 0x000f_ffff_ffff_0000] {
        assert!(!enable(&scene, bad, PENDING), "properties at {bad:#x}");
        assert!(!enable(&scene, PROPERTIES, bad), "pending bits at {bad:#x}");
        assert!(scene.platform().gic.lock().unwrap().lpi_tables.is_empty());
    }
    // Nothing is left pinned, and the control.
    donate(&scene, PROPERTIES + 0x1000).unwrap();
    assert!(enable(&scene, PROPERTIES + 0x8_0000, PENDING));
}

/// As Linux does that another Linux has started in its place: it finds LPIs on everywhere.
#[test]
fn a_kernel_in_the_place_of_another_gives_each_redistributor_its_own_tables() {
    let scene = Scene::new(|gic| gic.lpis_can_end = true);
    scene.call(Function::GuestCreate, [0; 4]).unwrap();
    let (new_properties, new_pending) = (PROPERTIES + 0x100_0000, PENDING + 0x100_0000);
    for (base, pending) in [(GICR, PENDING), (GICR_1, PENDING + 0x1_0000)] {
        assert!(enable_one(&scene, base, PROPERTIES, pending));
    }
    for (base, pending) in [(GICR, new_pending), (GICR_1, new_pending + 0x1_0000)] {
        scene.store(base, 4, 0);
        assert_eq!(scene.load(base, 4) & 1, 0);
        assert!(enable_one(&scene, base, new_properties, pending));
        scene.assert_lpi_tables_stay();
    }
    // The hardware may still read the old configuration, but neither pending table of the old kernel's.
    assert_eq!(donate(&scene, PROPERTIES), Err(Status::WrongState));
    donate(&scene, PENDING).unwrap();
    donate(&scene, PENDING + 0x1_0000).unwrap();
    for base in [GICR, GICR_1] {
        assert_eq!(donate(&scene, new_properties), Err(Status::WrongState));
        scene.store(base, 4, 0);
    }
    for page in [PROPERTIES, new_properties, new_pending] {
        donate(&scene, page).unwrap();
    }
}

/// IHI 0069, 12.11.32: where Redistributors have their configuration table in common, all must have the same IDbits.
#[test]
fn redistributors_with_lpis_on_have_as_many_bits() {
    let scene = Scene::new(|gic| gic.lpis_can_end = true);
    let enable_with = |base, pending, bits| {
        scene.store(base + 0x70, 8, PROPERTIES | bits);
        scene.store(base + 0x78, 8, pending);
        scene.store(base, 4, 1);
        scene.load(base, 4) & 1 == 1
    };
    let other = PENDING + 0x1_0000;
    assert!(enable_with(GICR, PENDING, 14));
    assert!(!enable_with(GICR_1, other, 13), "one that reads more than is pinned for it");
    assert!(!enable_with(GICR_1, other, 15), "or writes");
    assert!(enable_with(GICR_1, other, 14));
    for base in [GICR, GICR_1] {
        scene.store(base, 4, 0);
    }
    // Above those of the Distributor they are those of the Distributor.
    assert!(enable_with(GICR, PENDING, 15) && enable_with(GICR_1, other, 31));
}

#[test]
fn boot_waits_until_lpis_are_off() {
    let scene = Scene::new(|gic| gic.leave_lpis_on(20));
    assert!(scene.platform().gic.lock().unwrap().lpi_tables.is_empty());
    assert!(enable(&scene, PROPERTIES, PENDING), "the control");
    let result = Scene::try_new(|gic| gic.leave_lpis_on(u32::MAX));
    let expected = BootError::Gic(GicError::LpisEnabled(PhysAddr(GICR)));
    assert_eq!(result.map(|_| ()), Err(expected));
    // A write that is not complete, of firmware that turned them off itself.
    let scene = Scene::new(|gic| gic.pending_reads = 20);
    assert_eq!(scene.platform().gic.lock().unwrap().pending_reads, 0);
}

#[test]
fn there_is_an_end_to_configuration_tables() {
    let scene = Scene::new(|gic| gic.lpis_can_end = true);
    scene.call(Function::GuestCreate, [0; 4]).unwrap();
    assert!(enable_one(&scene, GICR_1, PROPERTIES, PENDING));
    let other = |n: u64| PROPERTIES + 0x100_0000 + n * 0x1_0000;
    for n in 0..15 {
        assert!(enable(&scene, other(n), PENDING + 0x1_0000), "{n}");
        scene.store(GICR, 4, 0);
    }
    assert!(!enable(&scene, other(15), PENDING + 0x1_0000));
    // Nothing of it is pinned, one that was there is there still, and when all are off there may be others again.
    donate(&scene, other(15)).unwrap();
    donate(&scene, PENDING + 0x1_0000).unwrap();
    assert!(enable(&scene, other(3), PENDING + 0x2_0000));
    for base in [GICR, GICR_1] {
        scene.store(base, 4, 0);
    }
    assert!(enable(&scene, other(16), PENDING));
}

/// Offset, log2 of the bytes, whether it is the second Redistributor, value.
type Store = (u64, u8, bool, u64);

fn stores() -> impl Strategy<Value = Vec<Store>> {
    let offset = prop_oneof![Just(0u64), Just(0x70), Just(0x78), Just(0x74), Just(0x7c), 0u64..0x1000];
    let value = prop_oneof![
        any::<u64>(),
        Just(1),
        Just(0),
        Just(PROPERTIES | ID_BITS),
        Just(PENDING),
        Just(POOL | ID_BITS),
        (0u64..64).prop_map(|n| (RAM + n * 0x10_0000) | n)
    ];
    prop::collection::vec((offset, 0u8..4, any::<bool>(), value), 1..40)
}

fn tables_in_use_are_the_hosts((stores, can_end): (Vec<Store>, bool)) -> Result<(), TestCaseError> {
    let scene = Scene::new(|gic| gic.lpis_can_end = can_end);
    scene.call(Function::GuestCreate, [0; 4]).unwrap();
    for (offset, size_log2, second, value) in stores {
        scene.store(if second { GICR_1 } else { GICR } + offset, 1 << size_log2, value);
        scene.assert_lpi_tables_stay();
    }
    Ok(())
}

/// What a host writes to two Redistributors.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    use smmuv3::fuzzing::{Choices, must_hold};
    let mut choices = Choices::of_bytes(bytes);
    let can_end = choices.coin();
    let offset = |choices: &mut Choices<'_>| match choices.below(4) {
        0..3 => choices.one_of(&[0, 0x70, 0x78, 0x74, 0x7c]),
        _ => choices.half() & 0xfff,
    };
    let value = |choices: &mut Choices<'_>| match choices.below(4) {
        0 | 1 => choices.one_of(&[1, 0, PROPERTIES | ID_BITS, PENDING, POOL | ID_BITS]),
        2 => {
            let n = choices.below(64);
            (RAM + n * 0x10_0000) | n
        }
        _ => choices.word(),
    };
    let stores =
        choices.repeat(40, |choices| (offset(choices), choices.byte() % 4, choices.coin(), value(choices)));
    must_hold(tables_in_use_are_the_hosts((stores, can_end)));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_host_writes_the_tables_in_use_are_its_own(attempt in (stores(), any::<bool>())) {
        tables_in_use_are_the_hosts(attempt)?;
    }
}
