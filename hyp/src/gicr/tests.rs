//! Invariants: no access makes the table registers or EnableLPIs reach the hardware, LPIs look as if they
//! were not implemented, and what a host needs besides works.

extern crate std;

use super::*;
use crate::platform::Heap;
use proptest::prelude::*;
use smmuv3::memory::Memory;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::vec::Vec;

const BASE: u64 = 0x80a_0000;

/// Registers that read as what was written, or as a pattern; EnableLPIs sticks where `sticky`.
struct Fake {
    registers: Mutex<BTreeMap<u64, u32>>,
    writes: Mutex<Vec<(u64, u32)>>,
    sticky: bool,
    /// Milliseconds, one for each pause; the ITS is quiescent from the second on.
    clock: Mutex<(u64, u64)>,
}

const ITS: u64 = BASE + 0x100_0000;

impl Fake {
    fn new(registers: &[(u64, u32)]) -> Self {
        let registers = registers.iter().map(|(offset, value)| (BASE + offset, *value)).collect();
        Self {
            registers: Mutex::new(registers),
            writes: Mutex::new(Vec::new()),
            sticky: false,
            clock: Mutex::new((0, 0)),
        }
    }
}

impl Memory for Fake {
    fn read_u64(&self, _: PhysAddr) -> u64 {
        unreachable!()
    }
    fn write_u64(&self, _: PhysAddr, _: u64) {
        unreachable!()
    }
    fn full_barrier(&self) {}
}

impl Platform for Fake {
    fn cpu(&self) -> u16 {
        0
    }

    fn cpus(&self) -> u16 {
        1
    }

    fn read_host_u64(&self, _: PhysAddr) -> u64 {
        unreachable!()
    }

    fn write_host_u64(&self, _: PhysAddr, _: u64) {
        unreachable!()
    }

    fn write_host_u32(&self, _: PhysAddr, _: u32) {
        unreachable!()
    }

    fn read_register_u32(&self, address: PhysAddr) -> u32 {
        self.registers.lock().unwrap().get(&address.0).copied().unwrap_or(u32::MAX)
    }
    fn write_register_u32(&self, address: PhysAddr, value: u32) {
        self.writes.lock().unwrap().push((address.0 - BASE, value));
        if !self.sticky {
            self.registers.lock().unwrap().insert(address.0, value);
        }
    }
    fn wipe(&self, _: PhysRange) {}
    fn read_register_u64(&self, _: PhysAddr) -> u64 {
        unreachable!()
    }
    fn write_register_u64(&self, _: PhysAddr, _: u64) {
        unreachable!()
    }
    fn invalidate_host_stage2(&self, _: PhysRange) {}
    fn now_ns(&self) -> u64 {
        self.clock.lock().unwrap().0 * 1_000_000
    }
    fn relax(&self) {
        let mut clock = self.clock.lock().unwrap();
        clock.0 += 1;
        if clock.0 == clock.1 {
            *self.registers.lock().unwrap().get_mut(&ITS).unwrap() |= GITS_CTLR_QUIESCENT;
        }
    }
    fn heap_add(&self, _: Heap, _: PhysRange) {}
    fn heap_take(&self, _: Heap, _: u8) -> Option<PhysAddr> {
        None
    }
    fn heap_give(&self, _: Heap, _: PhysAddr, _: u8) {}
}

fn regions(sizes: &[(u64, u64)]) -> Machine {
    let mut redistributors = List::new();
    for (start, size_bytes) in sizes {
        redistributors.push(PhysRange::new(PhysAddr(*start), *size_bytes).unwrap()).unwrap();
    }
    Machine {
        memory: List::new(),
        reserved: List::new(),
        uart: None,
        gicd: PhysRange::new(PhysAddr(0x800_0000), 0x1_0000).unwrap(),
        redistributors,
        its: List::new(),
        doorbells: List::new(),
        ats_trusted: List::new(),
        smmus: List::new(),
        fw_cfg: List::new(),
        virtio_mmio: List::new(),
        pcie: List::new(),
        cpus: List::new(),
        kernel: None,
        ramdisk: None,
        psci_smc: true,
    }
}

fn read(size_bytes: u8) -> Access {
    Access { size_bytes, write: None }
}

#[test]
fn every_frame_is_found() {
    // One CPU without virtual LPIs, one with them, which is the last.
    let fake = Fake::new(&[
        (TYPER, 0),
        (CTLR, 0),
        (0x2_0000 + TYPER, TYPER_VLPIS | TYPER_LAST),
        (0x2_0000 + CTLR, 0),
    ]);
    let found = Redistributors::find(&fake, &regions(&[(BASE, 0xf6_0000)])).unwrap();
    let pages: Vec<u64> = found.pages().map(|page| page.start().0 - BASE).collect();
    assert_eq!(pages, [0, 0x2_0000, 0x4_0000]);
    assert!(fake.writes.lock().unwrap().is_empty());

    assert_eq!(found.access(&fake, PhysAddr(BASE + 0x1_0000), read(4)), None);
    assert_eq!(found.access(&fake, PhysAddr(BASE + 0x1000), read(4)), None);
    assert_eq!(found.access(&fake, PhysAddr(BASE + 0x2_0000 + TYPER), read(4)), Some(0b1_0010));
    // GICR_VPROPBASER.
    let write = Access { size_bytes: 8, write: Some(u64::MAX) };
    assert_eq!(found.access(&fake, PhysAddr(BASE + 0x4_0070), write), Some(0));
    assert_eq!(found.access(&fake, PhysAddr(BASE + 0x4_0070), read(8)), Some(0));
    assert!(fake.writes.lock().unwrap().is_empty());
}

#[test]
fn a_region_that_does_not_end_is_an_error() {
    let fake = Fake::new(&[(TYPER, 0), (CTLR, 0)]);
    let error = Redistributors::find(&fake, &regions(&[(BASE, 0x3_0000)])).unwrap_err();
    assert_eq!(error, GicrError::CutOff(PhysAddr(BASE + 0x2_0000)));
    let endless: Vec<_> =
        (0..300).flat_map(|cpu| [(cpu * 0x2_0000 + TYPER, 0), (cpu * 0x2_0000 + CTLR, 0)]).collect();
    let error = Redistributors::find(&Fake::new(&endless), &regions(&[(BASE, 1 << 40)])).unwrap_err();
    assert_eq!(error, GicrError::TooMany { limit: 128 });
    let fake = Fake::new(&[(TYPER, TYPER_VLPIS | TYPER_LAST), (CTLR, 0)]);
    let error = Redistributors::find(&fake, &regions(&[(BASE, 0x2_0000)])).unwrap_err();
    assert_eq!(error, GicrError::CutOff(PhysAddr(BASE)));
}

#[test]
fn lpis_that_are_on_are_turned_off_or_refused() {
    let mut fake = Fake::new(&[(TYPER, TYPER_LAST), (CTLR, 0x0100_0001)]);
    let machine = regions(&[(BASE, 0x2_0000)]);
    Redistributors::find(&fake, &machine).unwrap();
    assert_eq!(*fake.writes.lock().unwrap(), [(CTLR, 0x0100_0000)]);
    fake.registers = Mutex::new([(BASE + TYPER, TYPER_LAST), (BASE + CTLR, 1)].into());
    fake.sticky = true;
    assert_eq!(Redistributors::find(&fake, &machine).unwrap_err(), GicrError::LpisEnabled(PhysAddr(BASE)));
}

#[test]
fn an_its_that_is_on_is_turned_off_or_refused() {
    let refused = Err(GicrError::ItsEnabled(PhysAddr(ITS)));
    let mut machine = regions(&[]);
    machine.its.push(PhysRange::new(PhysAddr(ITS), 0x2_0000).unwrap()).unwrap();
    for (ctlr, quiescent_at, writes, result) in [
        (GITS_CTLR_QUIESCENT, 0, 0, Ok(())),
        (0, 400, 0, Ok(())),
        (1, 400, 1, Ok(())),
        (0, 600, 0, refused),
        (1, 600, 1, refused),
    ] {
        let mut fake = Fake::new(&[(ITS - BASE, 0xf0 | ctlr)]);
        fake.clock = Mutex::new((0, quiescent_at));
        assert_eq!(turn_its_off(&fake, &machine), result);
        assert_eq!(*fake.writes.lock().unwrap(), [(ITS - BASE, 0xf0)][..writes]);
        assert!(fake.now_ns() <= TIMEOUT_NS + 2_000_000);
    }
    let mut fake = Fake::new(&[(ITS - BASE, GITS_CTLR_QUIESCENT | 1)]);
    fake.sticky = true;
    assert_eq!(turn_its_off(&fake, &machine), refused);
    assert_eq!(turn_its_off(&fake, &regions(&[])), Ok(()));
}

#[test]
fn lpis_look_as_if_not_implemented() {
    let fake = Fake::new(&[]);
    let base = PhysAddr(BASE);
    assert_eq!(access(&fake, base, CTLR, read(4)), Some(0xffff_fff8));
    assert_eq!(access(&fake, base, TYPER, read(4)), Some(0xffff_ff72));
    assert_eq!(access(&fake, base, TYPER, read(8)), Some(0xffff_ffff_ffff_ff72));
    assert_eq!(access(&fake, base, TYPER_HIGH, read(4)), Some(0xffff_ffff));
    assert_eq!(access(&fake, base, WAKER, read(4)), Some(0xffff_ffff));
    for (offset, size_bytes) in
        [(0x70, 8), (0x78, 8), (0x70, 4), (0xc0, 4), (TYPER, 2), (TYPER + 1, 4), (IIDR, 8)]
    {
        assert_eq!(access(&fake, base, offset, read(size_bytes)), Some(0), "{offset:#x} {size_bytes}");
    }
}

#[test]
fn what_a_host_needs_is_written() {
    let fake = Fake::new(&[]);
    for (offset, value) in [(CTLR, 0x0700_0001), (WAKER, 0), (STATUSR, 0xf)] {
        let write = Access { size_bytes: 4, write: Some(value) };
        assert_eq!(access(&fake, PhysAddr(BASE), offset, write), None);
    }
    assert_eq!(*fake.writes.lock().unwrap(), [(CTLR, 0x0700_0000), (WAKER, 0), (STATUSR, 0xf)]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_write_reaches_a_table_register(offset in 0..0x1000_u64, size in 0..16_u8, value in any::<u64>()) {
        let fake = Fake::new(&[]);
        access(&fake, PhysAddr(BASE), offset, Access { size_bytes: size, write: Some(value) });
        for (offset, value) in fake.writes.lock().unwrap().iter() {
            prop_assert!([CTLR, STATUSR, WAKER, PARTIDR].contains(offset));
            prop_assert!(*offset != CTLR || value & CTLR_ENABLE_LPIS == 0);
        }
    }
}
