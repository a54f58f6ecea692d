//! Invariants: a bridge's bus numbers are read only after its page is held, and a function's BARs change only
//! after its page is held and its decoding is off; every register is afterwards as it was; whatever bridges
//! and devices answer, the walk ends with an answer, and a function is given only if no other can have its
//! Requester ID.

#![cfg_attr(not(test), allow(dead_code, unused_imports))]

extern crate std;

use super::*;
use crate::devicetree::{IommuMap, PcieWindow, SmmuInterrupts, SmmuNode};
use crate::platform::Heap;
use smmuv3::address::PhysAddr;
use smmuv3::memory::Memory;
use std::boxed::Box;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};
use std::vec;
use std::vec::Vec;

pub(crate) mod buses;

const ECAM: u64 = 0x40_1000_0000;
const BUS: u16 = 0x18;
const EXPRESS_AT: u16 = 0x40;
const ROOT_PORT: u32 = 4;
const UPSTREAM: u32 = 5;
/// The PCI Express capability of a root port, version 2.
const PORT: u32 = ROOT_PORT << 20 | 0x0002_0010;
const CONTROL_2_AT: u16 = EXPRESS_AT + 0x28;
const ARI_FORWARDING: u32 = 1 << 5;

/// One function and, if it is a bridge, what is behind it.
#[derive(Clone, Debug)]
struct Device {
    devfn: u8,
    words: Box<[u32; 65]>,
    /// Bits that a write changes.
    writable: Box<[u32; 65]>,
    behind: Vec<Device>,
    /// What the bus number of the last configuration write was.
    captured: Option<u8>,
    /// In a Function Level Reset: it does not answer. What is beside it and behind it does.
    silent: bool,
}

impl Device {
    fn new(devfn: u8) -> Self {
        let (mut words, mut writable) = (Box::new([0; 65]), Box::new([0; 65]));
        words[0] = 0x1234_5678;
        // Capabilities List, and bits of Status that a write of ones would clear.
        words[1] = 0xf010_0007;
        writable[1] = 0x0000_0547;
        words[0x34 / 4] = u32::from(EXPRESS_AT);
        words[usize::from(EXPRESS_AT) / 4] = PORT - (ROOT_PORT << 20);
        Self { devfn, words, writable, behind: Vec::new(), captured: None, silent: false }
    }

    fn bridge(device: u8, secondary: u8, subordinate: u8, behind: Vec<Device>) -> Self {
        let mut bridge = Self::new(device << 3);
        bridge.words[3] = 0x0001_0000;
        bridge.words[usize::from(EXPRESS_AT) / 4] = PORT;
        bridge.words[usize::from(BUS) / 4] = u32::from_le_bytes([0, secondary, subordinate, 0]);
        bridge.behind = behind;
        bridge
    }

    fn bar(mut self, at: u16, value: u32, writable: u32) -> Self {
        self.words[usize::from(at) / 4] = value;
        self.writable[usize::from(at) / 4] = writable;
        self
    }

    fn word(mut self, at: u16, value: u32) -> Self {
        self.words[usize::from(at) / 4] = value;
        self
    }

    /// A bridge of this Device/Port Type.
    fn port(self, kind: u32) -> Self {
        self.word(EXPRESS_AT, kind << 20 | PORT & 0xf_ffff)
    }

    fn forwards_ari(self, forwards: bool) -> Self {
        self.word(CONTROL_2_AT, if forwards { ARI_FORWARDING } else { 0 })
    }

    /// One of an ARI device.
    fn ari(self) -> Self {
        self.word(0x100, 0x0001_000e)
    }

    /// Whether requests for this device of the bus behind it are delivered: by a root port and by a downstream port of a switch without
    /// ARI Forwarding to Device 0 alone.
    fn delivers(&self, devfn: u8) -> bool {
        let [express, control_2] = [EXPRESS_AT, CONTROL_2_AT].map(|at| self.words[usize::from(at) / 4]);
        let leads_to_link = express & 0xff == 0x10 && [4, 6].contains(&(express >> 20 & 0xf));
        !leads_to_link || express >> 16 & 0xf >= 2 && control_2 & ARI_FORWARDING != 0 || devfn < 8
    }

    fn multi_function(mut self) -> Self {
        self.words[3] |= 0x0080_0000;
        self
    }

    fn silent(self) -> Self {
        Self { silent: true, ..self }
    }
}

struct State {
    root: Vec<Device>,
    /// Of the second root bus of [`two_roots`], bus 16, in the same configuration space.
    second: Vec<Device>,
    held: BTreeSet<u64>,
    accesses: u32,
    now_ns: u64,
    /// How long a read takes.
    read_ns: u64,
    /// Requester IDs of which a register was read.
    asked: BTreeSet<u16>,
    /// What the host writes when a register of this bus is read the first time: bus numbers to a bridge.
    host: Option<(u8, u16, [u8; 4])>,
    /// Before, the firmware's are all registers.
    host_runs: bool,
    /// Registers that were read before their page was held, though the host can change them.
    early: Vec<u16>,
}

struct Fake(Mutex<State>);

impl Fake {
    fn new(root: Vec<Device>) -> Self {
        Self::with_second(root, vec![])
    }

    fn with_second(root: Vec<Device>, second: Vec<Device>) -> Self {
        let (held, asked, early) = (BTreeSet::new(), BTreeSet::new(), vec![]);
        Self(Mutex::new(State {
            root,
            second,
            held,
            accesses: 0,
            now_ns: 0,
            read_ns: 0,
            asked,
            host: None,
            host_runs: false,
            early,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

/// Routes a configuration request as bridges do: the first that has the bus in its range gets it.
fn route(on: &mut [Device], number: u8, bus: u8, devfn: u8) -> Option<&mut Device> {
    if number == bus {
        return on.iter_mut().find(|device| device.devfn == devfn && !device.silent);
    }
    for device in on {
        let [_, secondary, subordinate, _] = device.words[usize::from(BUS) / 4].to_le_bytes();
        if device.words[3] >> 16 & 0x7f == 1 && subordinate != 0 && (secondary..=subordinate).contains(&bus) {
            let delivers = bus != secondary || device.delivers(devfn);
            return if delivers { route(&mut device.behind, secondary, bus, devfn) } else { None };
        }
    }
    None
}

impl State {
    /// What answers: a bridge of the first root bus that claims a bus of the second comes first.
    fn answers(&mut self, bus: u8, devfn: u8) -> Option<&mut Device> {
        let claims = |device: &Device| {
            let [_, secondary, subordinate, _] = device.words[usize::from(BUS) / 4].to_le_bytes();
            device.words[3] >> 16 & 0x7f == 1 && (secondary..=subordinate).contains(&bus)
        };
        if bus >= 16 && !self.root.iter().any(claims) {
            route(&mut self.second, 16, bus, devfn)
        } else {
            route(&mut self.root, 0, bus, devfn)
        }
    }

    fn asked(&self, bus: u8, devfn: u8) -> bool {
        self.asked.contains(&u16::from_be_bytes([bus, devfn]))
    }

    /// The host writes bus numbers, if nobody keeps it from that.
    fn renumber(&mut self, rid: u16, numbers: [u8; 4]) {
        if !self.held.contains(&(ECAM + (u64::from(rid) << 12)))
            && let Some(device) = self.answers((rid >> 8) as u8, rid as u8)
        {
            device.words[usize::from(BUS) / 4] = u32::from_le_bytes(numbers);
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
        let mut state = self.state();
        state.accesses += 1;
        state.now_ns += state.read_ns;
        let offset = address.0 - ECAM;
        let (bus, devfn, at) = ((offset >> 20) as u8, (offset >> 12) as u8, offset as u16 & 0xfff);
        state.asked.insert(u16::from_be_bytes([bus, devfn]));
        if let Some((_, rid, numbers)) = state.host.take_if(|host| host.0 == bus) {
            state.renumber(rid, numbers);
        }
        let held = !state.host_runs || state.held.contains(&(address.0 & !0xfff));
        let Some(device) = state.answers(bus, devfn) else { return u32::MAX };
        let word = device.words.get(usize::from(at) / 4).copied().unwrap_or(0);
        if ![0, 0xc].contains(&at) && !held {
            state.early.push(at);
        }
        word
    }

    fn write_register_u32(&self, address: PhysAddr, value: u32) {
        let mut state = self.state();
        state.accesses += 1;
        let offset = address.0 - ECAM;
        let (bus, devfn, at) = ((offset >> 20) as u8, (offset >> 12) as u8, offset as u16 & 0xfff);
        let held = !state.host_runs || state.held.contains(&(address.0 & !0xfff));
        let Some(device) = state.answers(bus, devfn) else { return };
        device.captured = Some(bus);
        let index = usize::from(at) / 4;
        if index == 1 {
            device.words[1] &= !(value & 0xf900_0000);
        }
        device.words[index] = device.words[index] & !device.writable[index] | value & device.writable[index];
        let is_bar = (0x10..0x3c).contains(&at);
        assert!(!is_bar || (held && device.words[1] & 0b11 == 0), "BAR {at:#x} written while live");
        assert!(at == 0 || held, "{at:#x} written while the host can write it too");
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
        self.state().now_ns
    }
    fn relax(&self) {}
    fn heap_add(&self, _: Heap, _: PhysRange) {}
    fn heap_take(&self, _: Heap, _: u8) -> Option<PhysAddr> {
        None
    }
    fn heap_give(&self, _: Heap, _: PhysAddr, _: u8) {}
}

/// As when the hypervisor starts, before the host does.
fn find_roots(fake: &Fake, machine: &Machine) -> RootBridges {
    fake.state().host_runs = false;
    let before = fake.state().root.clone();
    let roots = RootBridges::find(fake, machine);
    assert!(same(&before, &fake.state().root), "a register has changed");
    fake.state().host_runs = true;
    roots
}

fn same(before: &[Device], after: &[Device]) -> bool {
    before.iter().zip(after).all(|(a, b)| a.words == b.words && same(&a.behind, &b.behind))
}

fn range(start: u64, size_bytes: u64) -> PhysRange {
    PhysRange::new(PhysAddr(start), size_bytes).unwrap()
}

fn list<T: Copy, const N: usize>(items: impl IntoIterator<Item = T>) -> List<T, N> {
    let mut list = List::new();
    items.into_iter().for_each(|item| list.push(item).unwrap());
    list
}

/// One root bus with buses 0 to 15; SMMU 1 has phandle 9, and StreamIDs that are Requester IDs + 0x1_0000.
fn machine() -> Machine {
    let node = PcieNode {
        ecam: range(ECAM, 16 << 20),
        first_bus: 0,
        last_bus: 15,
        domain: 0,
        windows: list([
            PcieWindow { cpu: range(0x3eff_0000, 0x1_0000), bus_address: 0, io: true },
            PcieWindow { cpu: range(0x1000_0000, 0x1000_0000), bus_address: 0x1000_0000, io: false },
            PcieWindow { cpu: range(0x90_0000_0000, 0x1_0000_0000), bus_address: 0x80_0000_0000, io: false },
        ]),
        iommu_map: list([IommuMap { rid_base: 0, phandle: 9, stream_base: 0x1_0000, length: 0x1000 }]),
        iommu_map_mask: 0xffff,
    };
    Machine {
        memory: List::new(),
        reserved: List::new(),
        uart: None,
        gicd: range(0, 1),
        redistributors: List::new(),
        its: List::new(),
        doorbells: List::new(),
        ats_trusted: List::new(),
        smmus: list([8, 9].map(|phandle| SmmuNode {
            registers: range(0, 1),
            phandle,
            part: None,
            interrupts: SmmuInterrupts::default(),
        })),
        fw_cfg: List::new(),
        virtio_mmio: List::new(),
        pcie: list([node]),
        cpus: List::new(),
        kernel: None,
        ramdisk: None,
        psci_smc: true,
    }
}

fn page(rid: u64) -> PhysRange {
    range(ECAM + (rid << 12), 0x1000)
}

/// Holds a function and checks what holds whatever the outcome.
fn hold(fake: &Fake, rid: u16) -> Result<Vec<PhysRange>, HoldError<()>> {
    let before = fake.state().root.clone();
    let mut held = vec![];
    let (machine, function) = (machine(), Function { node: 0, rid });
    let roots = find_roots(fake, &machine);
    assert!(fake.state().early.is_empty(), "{:x?}", fake.state().early);
    fake.state().accesses = 0;
    let result = hold_function(fake, &machine, &roots, function, &mut |range: PhysRange| {
        assert!(range.is_aligned(0x1000));
        fake.state().held.insert(range.start().0);
        held.push(range);
        Ok(())
    });
    let state = fake.state();
    assert!(state.early.is_empty(), "read before held: {:x?}", state.early);
    assert!(
        state.accesses < MAX_READS + 64 && held.len() <= MAX_BRIDGES + 8,
        "{} {}",
        state.accesses,
        held.len()
    );
    assert!(same(&before, &state.root), "a register has changed");
    result.map(|()| held)
}

fn pci_error(root: Vec<Device>, rid: u16) -> PciError {
    match hold(&Fake::new(root), rid) {
        Err(HoldError::Pci(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// Two root ports; a switch with two ports behind the first; an endpoint with every kind of BAR behind the
/// switch.
fn tree() -> Vec<Device> {
    let endpoint = Device::new(0)
        .bar(0x10, 0x1000_0000, 0xffff_f000)
        .bar(0x14, 0x0000_0021, 0xffff_ffe0)
        .bar(0x18, 0x0010_000c, 0xfff0_0000)
        .bar(0x1c, 0x80, 0xffff_ffff)
        .bar(0x20, 0x2000_0000, 0xffff_ff00)
        .bar(0x30, 0x1234_0001, 0xfffe_0001);
    let ports = vec![Device::bridge(0, 3, 3, vec![endpoint]), Device::bridge(1, 4, 4, vec![Device::new(0)])];
    let upstream = Device::bridge(0, 2, 4, ports).port(UPSTREAM);
    vec![
        Device::new(0),
        Device::bridge(1, 1, 5, vec![upstream]).multi_function(),
        Device { devfn: 1 << 3 | 3, ..Device::bridge(0, 6, 7, vec![Device::new(0)]) },
    ]
}

#[test]
fn bridges_function_and_bars_are_held() {
    let fake = Fake::new(tree());
    let held = hold(&fake, 0x300).unwrap();
    let expected = [
        page(0x08),
        page(0x0b),
        page(0x100),
        page(0x200),
        page(0x208),
        page(0x300),
        range(0x1000_0000, 0x1000),
        range(0x3eff_0000, 0x1000),
        range(0x90_0010_0000, 0x10_0000),
        range(0x1234_0000, 0x2_0000),
    ];
    // The BAR at 0x2000_0000 is in no window.
    assert_eq!(held, expected);
}

#[test]
fn bars_of_bridges_on_root_buses_are_held() {
    let bridge = Device::bridge(1, 1, 1, vec![Device::new(0)]).bar(0x10, 0x1100_0000, 0xffff_c000).bar(
        0x38,
        0x1200_0001,
        0xffff_0001,
    );
    let held = |bridge: &Device| hold(&Fake::new(vec![bridge.clone()]), 0x100).unwrap();
    let expected = [page(0x08), range(0x1100_0000, 0x4000), range(0x1200_0000, 0x1_0000), page(0x100)];
    assert_eq!(held(&bridge), expected);
    let wide = bridge.clone().bar(0x10, 0x0010_000c, 0xfff0_0000).bar(0x14, 0x80, 0xffff_ffff);
    assert_eq!(held(&wide)[1], range(0x90_0010_0000, 0x10_0000));
    // Neither a ROM that is off, nor what is not decoded, nor an address in no window is anybody's to reach.
    assert_eq!(held(&bridge.clone().bar(0x38, 0x1200_0000, 0xffff_0001)).len(), 3);
    assert_eq!(held(&bridge.clone().word(4, 0xf010_0004)).len(), 2);
    assert_eq!(held(&bridge.clone().bar(0x10, 0x2000_0000, 0xffff_c000)).len(), 3);
    // The host has moved it since, or what is there is no BAR at all but part of a CardBus bridge.
    let fake = Fake::new(vec![bridge.clone()]);
    let roots = find_roots(&fake, &machine());
    fake.state().root[0].words[4] = 0x1500_0000;
    let mut moved = vec![];
    let function = Function { node: 0, rid: 0x100 };
    let result = hold_function(&fake, &machine(), &roots, function, &mut |range: PhysRange| {
        fake.state().held.insert(range.start().0);
        moved.push(range);
        Ok::<(), ()>(())
    });
    assert_eq!((result, moved[1]), (Ok(()), range(0x1500_0000, 0x4000)));
    let mut cardbus = vec![bridge.word(0xc, 0x0002_0000), Device::bridge(2, 1, 1, vec![Device::new(0)])];
    cardbus[0].words[usize::from(BUS) / 4] = 0x0002_0200;
    assert_eq!(hold(&Fake::new(cardbus), 0x100).unwrap().len(), 3);
}

/// Their size is not to be had: requests pass through them.
#[test]
fn a_bar_of_any_other_bridge_is_refused() {
    let behind = |bridge: Device| {
        let upstream = Device { behind: vec![Device::bridge(0, 3, 3, vec![Device::new(0)])], ..bridge };
        hold(&Fake::new(vec![Device::bridge(1, 1, 3, vec![upstream])]), 0x300).map(|held| held.len())
    };
    let bridge = || Device::bridge(0, 2, 3, vec![]).port(UPSTREAM);
    let refused = Err(HoldError::Pci(PciError::Memory(0x100)));
    assert_eq!(behind(bridge()), Ok(4));
    for (at, value) in [(0x10, 0x1100_0000), (0x14, 0x1100_0000), (0x14, 0x2321), (0x38, 0x1100_0001)] {
        assert_eq!(behind(bridge().bar(at, value, 0xffff_0000)), refused, "{at:#x} {value:#x}");
    }
    assert_eq!(behind(bridge().bar(0x10, 0x4, 0xffff_0000).bar(0x14, 0x80, !0)), refused, "64 bits");
    // No address, one in no window, a ROM that is off, and a bridge that decodes nothing.
    for (at, value) in [(0x10, 0xc), (0x10, 0x0800_0000), (0x14, 0x0001_2321), (0x38, 0x1100_0000)] {
        assert_eq!(behind(bridge().bar(at, value, 0xffff_0000)), Ok(4), "{at:#x} {value:#x}");
    }
    assert_eq!(behind(bridge().word(4, 0xf010_0004).bar(0x10, 0x1100_0000, 0xffff_0000)), Ok(4));
    assert_eq!(PciError::Memory(0x100).status(), Status::Busy);
}

/// A second root bus with buses 16 to 31, whose streams are on the first SMMU.
fn two_roots() -> Machine {
    let mut machine = machine();
    let second = PcieNode {
        ecam: range(ECAM + (16 << 20), 16 << 20),
        first_bus: 16,
        last_bus: 31,
        iommu_map: list([IommuMap { rid_base: 0x1000, phandle: 8, stream_base: 0x1000, length: 0x1000 }]),
        ..*machine.pcie.get(0).unwrap()
    };
    machine.pcie.push(second).unwrap();
    machine
}

#[test]
fn functions_send_with_the_number_of_the_bus_they_are_on() {
    let fake = Fake::new(tree());
    hold(&fake, 0x400).unwrap();
    let state = fake.state();
    let upstream = &state.root[1].behind[0];
    assert_eq!((upstream.captured, state.root[2].behind[0].captured), (Some(1), Some(6)));
    assert_eq!(
        (upstream.behind[0].behind[0].captured, upstream.behind[1].behind[0].captured),
        (Some(3), Some(4))
    );
}

#[test]
fn a_function_must_be_there_and_be_an_endpoint() {
    for rid in [0x301, 0x308, 0x500, 0x0b, 0x200, 0x1000, 0xffff] {
        assert_eq!(pci_error(tree(), rid), PciError::NotFound, "{rid:#x}");
    }
    // A virtual function's Vendor ID reads as ones.
    let mut with_virtual = tree();
    with_virtual.push(Device::new(0x10).word(0, 0x1234_ffff));
    assert_eq!(pci_error(with_virtual, 0x10), PciError::NotFound);
}

#[test]
fn memory_that_no_bar_shows_is_refused() {
    let root = vec![Device::new(0).word(EXPRESS_AT, 0x0000_0014)];
    assert_eq!(pci_error(root, 0), PciError::EnhancedAllocation);
    // A list of capabilities that loops ends.
    let root = vec![Device::new(0).word(EXPRESS_AT, 0x0000_4005)];
    assert!(hold(&Fake::new(root), 0).is_ok());
}

#[test]
fn a_refused_hold_ends_the_walk() {
    for allowed in 0..10 {
        let fake = Fake::new(tree());
        let mut count = 0;
        let (machine, function) = (machine(), Function { node: 0, rid: 0x300 });
        let roots = find_roots(&fake, &machine);
        let result = hold_function(&fake, &machine, &roots, function, &mut |range: PhysRange| {
            fake.state().held.insert(range.start().0);
            count += 1;
            if count > allowed { Err(count) } else { Ok(()) }
        });
        assert_eq!(result, Err(HoldError::Hold(allowed + 1)));
    }
}

#[test]
fn streams_are_found_through_the_map() {
    let mut machine = machine();
    assert_eq!(find_function(&machine, 1, 0x1_0300), Ok(Function { node: 0, rid: 0x300 }));
    for (smmu, stream) in [(0, 0x1_0300), (1, 0x300), (1, 0x1_1000), (1, u32::MAX), (2, 0x1_0300)] {
        assert_eq!(find_function(&machine, smmu, stream), Err(PciError::NotFound), "{smmu} {stream:#x}");
    }
    machine.pcie.get_mut(0).unwrap().last_bus = 2;
    assert_eq!(find_function(&machine, 1, 0x1_0300), Err(PciError::NotFound));
    machine.pcie.get_mut(0).unwrap().last_bus = 15;
    let again = *machine.pcie.get(0).unwrap();
    machine.pcie.push(again).unwrap();
    assert_eq!(find_function(&machine, 1, 0x1_0300), Err(PciError::Ambiguous));
    machine.pcie.pop();
    machine.pcie.get_mut(0).unwrap().iommu_map_mask = 0xff00;
    assert_eq!(find_function(&machine, 1, 0x1_0300), Err(PciError::Ambiguous));
}

#[test]
fn a_stream_that_another_root_bus_maps_is_refused() {
    let mut machine = two_roots();
    assert_eq!(find_function(&machine, 1, 0x1_0300), Ok(Function { node: 0, rid: 0x300 }));
    assert_eq!(find_function(&machine, 0, 0x1100), Ok(Function { node: 1, rid: 0x1100 }));
    // Requester IDs that are none of the second root bus's own, but that a function behind it may send with.
    let foreign = IommuMap { rid_base: 0x300, phandle: 9, stream_base: 0x1_0300, length: 1 };
    machine.pcie.get_mut(1).unwrap().iommu_map.push(foreign).unwrap();
    assert_eq!(find_function(&machine, 1, 0x1_0300), Err(PciError::Ambiguous));
    assert_eq!(find_function(&machine, 1, 0x1_0301), Ok(Function { node: 0, rid: 0x301 }));
    assert_eq!(find_function(&machine, 0, 0x1_0300), Err(PciError::NotFound));
}
