//! Bus numbers: what the host claims with them, within one root bus and between several.

use super::super::config::COMMAND_BUS_MASTER;
use super::*;
use crate::smmu::TIMEOUT_NS;
use proptest::prelude::*;

/// Holds a function; what was held, in this order.
fn hold_with(
    fake: &Fake,
    machine: &Machine,
    roots: &RootBridges,
    function: Function,
) -> Result<Vec<PhysRange>, HoldError<()>> {
    let mut held = vec![];
    let result = hold_function(fake, machine, roots, function, &mut |range: PhysRange| {
        // As the memory part answers for what the host never has.
        if machine.unprotected().any(|absent| absent.overlaps(range)) {
            return Err(());
        }
        fake.state().held.insert(range.start().0);
        held.push(range);
        Ok(())
    });
    result.map(|()| held)
}

#[test]
fn bridges_on_all_root_buses_are_held_before_anything_is_read() {
    let port = |secondary| Device::bridge(1, secondary, secondary, vec![Device::new(0)]);
    let fake = Fake::with_second(vec![port(1)], vec![port(17)]);
    let machine = two_roots();
    let roots = find_roots(&fake, &machine);
    for function in [Function { node: 0, rid: 0x100 }, Function { node: 1, rid: 0x1100 }] {
        fake.state().accesses = 0;
        let mut early = vec![];
        let result = hold_function(&fake, &machine, &roots, function, &mut |range: PhysRange| {
            fake.state().held.insert(range.start().0);
            if fake.state().accesses == 0 {
                early.push(range);
            }
            Ok::<(), ()>(())
        });
        assert_eq!((result, early), (Ok(()), vec![page(0x08), page(0x1008)]));
    }
}

#[test]
fn no_root_bus_hides_another_while_the_function_is_looked_for() {
    let port = |secondary| Device::bridge(1, secondary, secondary, vec![Device::new(0)]);
    let fake = Fake::with_second(vec![port(1)], vec![port(17)]);
    let machine = two_roots();
    let roots = find_roots(&fake, &machine);
    // The first root bus's port hides the second root bus until the first is read: then the second's port
    // would stay with the host, to claim the function's bus later.
    fake.state().renumber(0x08, [0, 16, 17, 0]);
    fake.state().host = Some((0, 0x08, [0, 1, 1, 0]));
    let function = Function { node: 0, rid: 0x100 };
    assert_eq!(hold_with(&fake, &machine, &roots, function), Err(HoldError::Pci(PciError::BusNumbers(8))));
    assert!([0x08, 0x1008].iter().all(|rid| fake.state().held.contains(&page(*rid).start().0)));
    // Something that is not that port answers in its place.
    fake.state().root[0].words[usize::from(BUS) / 4] = 0x0001_0100;
    fake.state().second[0].words[0] = 0x1234_5679;
    assert_eq!(hold_with(&fake, &machine, &roots, function), Err(HoldError::Pci(PciError::Hidden(0x1008))));
    fake.state().second[0].words[0] = 0x1234_5678;
    assert!(hold_with(&fake, &machine, &roots, function).is_ok());
}

#[test]
fn an_unprotected_root_bus_is_left_alone() {
    let fake = Fake::new(vec![Device::bridge(1, 1, 1, vec![Device::new(0)])]);
    let mut machine = two_roots();
    let second = machine.pcie.get_mut(1).unwrap();
    // The machine has no register there: to read one would panic.
    second.ecam = range(ECAM - (16 << 20), 16 << 20);
    second.windows.clear();
    second.iommu_map.get_mut(0).unwrap().length -= 1;
    let roots = find_roots(&fake, &machine);
    let hold = |node, rid| hold_with(&fake, &machine, &roots, Function { node, rid });
    assert_eq!(hold(0, 0x100), Ok(vec![page(0x08), page(0x100)]));
    assert_eq!(hold(1, 0x1100), Err(HoldError::Pci(PciError::NotFound)));
}

#[test]
fn with_too_many_bridges_on_root_buses_no_function_is_given() {
    let ports = |count| (0..count).map(|device| Device::bridge(device, 0, 0, vec![]).word(4, 0)).collect();
    let with = |count| {
        let fake = Fake::with_second(ports(32), ports(count));
        fake.state().root[31] = Device::new(31 << 3);
        let roots = find_roots(&fake, &two_roots());
        let held = hold_with(&fake, &two_roots(), &roots, Function { node: 0, rid: 31 << 3 });
        (roots.are_too_many(), held.map(|held| held.len()))
    };
    assert_eq!(with(17), (false, Err(HoldError::Pci(PciError::Unnumbered(0)))));
    assert_eq!(with(18), (true, Err(HoldError::Pci(PciError::TooMany))));
    assert_eq!(PciError::TooMany.status(), Status::NoSpace);
}

#[test]
fn no_bridge_of_another_root_bus_answers_for_the_function() {
    let given = || Device::bridge(0, 17, 17, vec![Device::new(0)]);
    let decoy = |secondary, last| vec![Device::bridge(1, secondary, last, vec![Device::new(0)])];
    let hold = |fake: &Fake| {
        let machine = two_roots();
        hold_with(fake, &machine, &find_roots(fake, &machine), Function { node: 1, rid: 0x1100 })
    };
    for (secondary, last) in [(17, 17), (16, 17), (1, 17), (1, 16), (0, 17)] {
        let fake = Fake::with_second(decoy(secondary, last), vec![given()]);
        assert_eq!(hold(&fake), Err(HoldError::Pci(PciError::BusNumbers(8))), "{secondary} {last}");
    }
    // Bridges of the other root bus cannot be renumbered later, and have no say in what is behind them.
    let mut root = decoy(1, 1);
    root.push(Device::bridge(2, 0, 0, vec![]));
    let fake = Fake::with_second(root, vec![given()]);
    assert_eq!(hold(&fake), Ok(vec![page(0x08), page(0x10), page(0x1000), page(0x1100)]));
    let state = fake.state();
    assert_eq!((state.root[0].behind[0].captured, state.second[0].behind[0].captured), (None, Some(17)));
}

#[test]
fn bridges_of_all_root_buses_count() {
    let ports = |first: u8, count: u8| {
        (0..count).map(move |device| Device::bridge(device, first + device, first + device, vec![])).collect()
    };
    let with = |count| {
        let fake = Fake::with_second(ports(1, 15), ports(17, count));
        // 15 more on bus 1, the internal one of a switch.
        fake.state().root[0] = Device::bridge(0, 1, 1, vec![]).port(UPSTREAM);
        fake.state().root[0].behind = (0..32)
            .map(|device| Device::bridge(device, 0, 0, vec![]).word(4, 0))
            .take(MAX_BRIDGES - 15 - 10)
            .collect();
        let machine = two_roots();
        let roots = find_roots(&fake, &machine);
        hold_with(&fake, &machine, &roots, Function { node: 1, rid: 0x1100 }).map(|_| ())
    };
    assert_eq!(with(10), Err(HoldError::Pci(PciError::NotFound)), "nothing is behind the ports");
    assert_eq!(with(11), Err(HoldError::Pci(PciError::TooMany)));
}

/// Function 0 in a reset says nothing of the others, which may have captured the number of the guest's bus before.
#[test]
fn functions_beside_a_silent_one_are_looked_at() {
    let others = |other: Device| {
        let silent = Device::new(0).multi_function().silent();
        let behind = vec![silent, Device { captured: Some(1), ..other.multi_function() }];
        vec![Device::bridge(1, 1, 1, vec![Device::new(0)]), Device::bridge(2, 2, 3, behind)]
    };
    let fake = Fake::new(others(Device::new(1)));
    hold(&fake, 0x100).unwrap();
    assert_eq!(fake.state().root[1].behind[1].captured, Some(2));
    // One that is a bridge, and what is behind it.
    let bridge =
        |secondary| Device { devfn: 1, ..Device::bridge(0, secondary, secondary, vec![Device::new(0)]) };
    let fake = Fake::new(others(bridge(3)));
    assert!(hold(&fake, 0x100).unwrap().contains(&page(0x201)));
    assert_eq!(fake.state().root[1].behind[1].behind[0].captured, Some(3));
    assert_eq!(pci_error(others(bridge(1)), 0x100), PciError::BusNumbers(0x201));
    // On the root bus, where bridges are known.
    let mut root = vec![Device::new(1 << 3).multi_function()];
    root.push(Device { devfn: 1 << 3 | 1, ..Device::bridge(1, 1, 1, vec![Device::new(0)]) });
    root.push(Device::bridge(2, 2, 2, vec![Device::new(0)]));
    root[1].behind[0].captured = Some(2);
    let (fake, machine) = (Fake::new(root), machine());
    let roots = find_roots(&fake, &machine);
    fake.state().root[0].silent = true;
    hold_with(&fake, &machine, &roots, Function { node: 0, rid: 0x200 }).unwrap();
    assert_eq!(fake.state().root[1].behind[0].captured, Some(1));
    // With ARI there may be others beside functions that say they are alone.
    let behind = vec![Device::new(0), Device::new(8), Device { captured: Some(1), ..Device::new(9) }];
    let ari = Device::bridge(2, 2, 2, behind).forwards_ari(true);
    let fake = Fake::new(vec![Device::bridge(1, 1, 1, vec![Device::new(0)]), ari]);
    hold(&fake, 0x100).unwrap();
    assert_eq!(fake.state().root[1].behind[2].captured, Some(2));
}

#[test]
fn bus_numbers_that_form_no_tree_are_refused() {
    let check = |root: Vec<Device>, expected| assert_eq!(pci_error(root, 0), expected);
    let alone =
        |secondary, subordinate| vec![Device::new(0), Device::bridge(1, secondary, subordinate, vec![])];
    check(alone(3, 2), PciError::BusNumbers(8));
    check(alone(3, 16), PciError::BusNumbers(8));
    check(alone(200, 255), PciError::BusNumbers(8));
    check(alone(0, 3), PciError::BusNumbers(8));
    let two = |a: (u8, u8), b: (u8, u8)| {
        let port = |device, (s, e)| Device::bridge(device, s, e, vec![Device::new(0)]);
        vec![Device::new(0), port(1, a), port(2, b)]
    };
    check(two((1, 3), (3, 4)), PciError::BusNumbers(0x10));
    check(two((1, 3), (2, 2)), PciError::BusNumbers(0x10));
    check(two((2, 2), (1, 3)), PciError::BusNumbers(0x10));
    check(two((1, 1), (1, 1)), PciError::BusNumbers(0x10));
    // A bridge that leads back to its own bus, to the root bus, or beyond what its parent has.
    for (secondary, subordinate) in [(1, 2), (1, 1), (2, 9), (9, 9)] {
        let inner = Device::bridge(0, secondary, subordinate, vec![Device::new(0)]);
        check(vec![Device::new(0), Device::bridge(1, 1, 2, vec![inner])], PciError::BusNumbers(0x100));
    }
}

#[test]
fn a_bridge_without_numbers_is_harmless_only_if_nothing_behind_it_can_be_the_function() {
    let mut root = vec![Device::new(0), Device::bridge(1, 1, 1, vec![Device::new(0)])];
    root.push(Device::bridge(2, 0, 0, vec![Device::new(0)]));
    assert_eq!(pci_error(root.clone(), 0x100), PciError::Unnumbered(0x10));
    root[2].words[1] &= !COMMAND_BUS_MASTER;
    assert_eq!(pci_error(root.clone(), 0), PciError::Unnumbered(0x10));
    assert!(hold(&Fake::new(root), 0x100).is_ok());
}

#[test]
fn behind_a_conventional_bridge_functions_share_a_requester_id() {
    let conventional = |above: bool| {
        let bridge = Device::bridge(1, 1, 1, vec![Device::new(0)]).word(EXPRESS_AT, 0x0072_0010);
        let other = Device::bridge(2, 2, 2, vec![Device::new(0)]);
        (vec![bridge, other], if above { 0x100 } else { 0x200 })
    };
    let (root, rid) = conventional(true);
    assert_eq!(pci_error(root, rid), PciError::Conventional(8));
    let (root, rid) = conventional(false);
    assert!(hold(&Fake::new(root), rid).is_ok());
    let without_capabilities = vec![Device::bridge(1, 1, 1, vec![Device::new(0)]).word(4, 0x0000_0007)];
    assert_eq!(pci_error(without_capabilities, 0x100), PciError::Conventional(8));
}

/// 7.3.1: without ARI a device answers whatever the Device Number is, so the host would reach its registers through other pages.
#[test]
fn a_function_that_answers_everywhere_is_refused() {
    let behind = |forwards, device: Device| {
        hold(&Fake::new(vec![Device::bridge(1, 1, 1, vec![device]).forwards_ari(forwards)]), 0x100).map(drop)
    };
    let other = Device::new(0).word(0x100, 0x0001_0001);
    let loops = Device::new(0).word(0x100, 0x1001_0001);
    for device in [Device::new(0), other, loops] {
        assert_eq!(behind(true, device.clone()), Err(HoldError::Pci(PciError::Everywhere(0x100))));
        assert_eq!(behind(false, device), Ok(()));
    }
    assert_eq!(behind(true, Device::new(0).ari()), Ok(()));
    assert_eq!(PciError::Everywhere(0).status(), Status::Busy);
}

#[test]
fn a_link_is_asked_for_one_device() {
    // Device 0 is there eight times, device 1 once.
    let behind = |kind, ari, other| {
        let functions = (0..8).map(|devfn| Device::new(devfn).multi_function().ari());
        let port = Device::bridge(1, 1, 1, functions.chain([Device::new(8)]).collect());
        let mut root = vec![port.port(kind).forwards_ari(ari)];
        root.push(Device::bridge(2, 2, 2, vec![Device::new(0)]).port(other));
        Fake::new(root)
    };
    for (kind, ari) in [(ROOT_PORT, false), (ROOT_PORT, true), (UPSTREAM, false), (6, false), (6, true)] {
        let fake = behind(kind, ari, ROOT_PORT);
        assert!(hold(&fake, 0x107).is_ok());
        let (is_link, state) = (kind != UPSTREAM && !ari, fake.state());
        assert_eq!((state.asked(1, 7), state.asked(1, 8)), (true, !is_link), "{kind} {ari}");
        // Without capability version 2 there is no ARI to forward.
        drop(state);
        fake.state().root[0].words[usize::from(EXPRESS_AT) / 4] &= !(1 << 17);
        fake.state().root[0].words[usize::from(EXPRESS_AT) / 4] |= 1 << 16;
        fake.state().asked.clear();
        assert!(hold(&fake, 0x107).is_ok());
        assert_eq!(fake.state().asked(1, 8), kind == UPSTREAM, "{kind} {ari}");
        assert_eq!(hold(&fake, 0x108).is_ok(), kind == UPSTREAM, "{kind} {ari}");
    }
    // What is behind a bridge that is no port is looked at too, if it is not above the function.
    let fake = behind(ROOT_PORT, false, 7);
    assert!(hold(&fake, 0x107).is_ok());
    assert!(fake.state().asked(2, 8));
}

#[test]
fn a_large_machine_is_walked_within_the_bound() {
    let endpoint = |functions: u8| (0..functions).map(|devfn| Device::new(devfn).multi_function()).collect();
    let machine = || {
        let mut machine = machine();
        let node = machine.pcie.get_mut(0).unwrap();
        (node.ecam, node.last_bus) = (range(ECAM, 49 << 20), 48);
        node.iommu_map.get_mut(0).unwrap().length = 49 << 8;
        machine
    };
    // 48 ports as 6 devices, and 8 functions behind each.
    let root = (0..48_u8).map(|port| {
        let bridge = Device::bridge(0, port + 1, port + 1, endpoint(8)).multi_function();
        Device { devfn: port, ..bridge }
    });
    let fake = Fake::new(root.collect());
    let roots = find_roots(&fake, &machine());
    assert_eq!(hold_with(&fake, &machine(), &roots, Function { node: 0, rid: 0x3000 }).map(|_| ()), Ok(()));
}

#[test]
fn the_walk_is_bounded() {
    // 40 bridges on the root bus.
    let bridges = (0..32).flat_map(|device| {
        (0..2).map(move |function| {
            let mut bridge = Device::bridge(device, 0, 0, vec![]).multi_function().word(4, 0);
            bridge.devfn |= function;
            bridge
        })
    });
    assert_eq!(pci_error(bridges.collect(), 0x100), PciError::TooMany);
    // Every function of every bus answers.
    let full = |devices: Vec<Device>| {
        let taken: Vec<u8> = devices.iter().map(|device| device.devfn).collect();
        let others = (0..=255)
            .filter(move |devfn| !taken.contains(devfn))
            .map(|devfn| Device::new(devfn).multi_function());
        devices.into_iter().chain(others).collect::<Vec<_>>()
    };
    let root = (1..15).rev().fold(full(vec![]), |behind, bus| {
        full(vec![Device::bridge(0, bus + 1, 15, behind).port(UPSTREAM).multi_function()])
    });
    let error = pci_error(full(vec![Device::bridge(0, 1, 15, root).port(UPSTREAM).multi_function()]), 0xf00);
    assert_eq!(error, PciError::TooMany);
}

/// As when each read waits for a completion that does not come.
#[test]
fn reads_that_take_long_end_the_walk() {
    let fake = Fake::new(tree());
    let roots = find_roots(&fake, &machine());
    fake.state().read_ns = 50_000_000;
    let function = Function { node: 0, rid: 0x300 };
    let held = hold_with(&fake, &machine(), &roots, function);
    assert_eq!(held, Err(HoldError::Pci(PciError::TimedOut)));
    assert_eq!(PciError::TimedOut.status(), Status::Hardware);
    assert!(fake.state().now_ns < 600_000_000);
    // At any other moment too: BARs and the Command register are afterwards as they were.
    let fake = Fake::new(tree());
    hold(&fake, 0x300).unwrap();
    let accesses = u64::from(fake.state().accesses);
    let in_time = (accesses - 60..=accesses).filter(|reads| {
        let fake = Fake::new(tree());
        fake.state().read_ns = TIMEOUT_NS / reads;
        let before = tree()[1].behind[0].behind[0].behind[0].words[1];
        let result = hold(&fake, 0x300);
        assert_eq!(fake.state().root[1].behind[0].behind[0].behind[0].words[1], before);
        result.is_ok()
    });
    assert!((1..60).contains(&in_time.count()));
}

fn any_device(depth: u32) -> BoxedStrategy<Device> {
    let words = proptest::collection::vec((0..64_usize, any::<u32>(), any::<u32>()), 0..6);
    let state = (proptest::option::of(0..6_u8), any::<bool>());
    let endpoint = (prop_oneof![Just(0_u8), 0..12_u8], words, state).prop_map(|(devfn, words, state)| {
        let (captured, silent) = state;
        let mut device = Device { captured, silent, ..Device::new(devfn) };
        for (at, value, writable) in words.into_iter().filter(|(at, ..)| ![1, 3, 6].contains(at)) {
            device.words[at] = value;
            device.writable[at] = writable;
        }
        device
    });
    if depth == 0 {
        return endpoint.boxed();
    }
    let behind = proptest::collection::vec(any_device(depth - 1), 0..4);
    let bridge = (0..5_u8, behind, any::<bool>(), 4..8_u32, any::<bool>()).prop_map(
        |(device, behind, multi, kind, ari)| {
            let bridge = Device::bridge(device, 0, 0, behind).port(kind).forwards_ari(ari);
            if multi { bridge.multi_function() } else { bridge }
        },
    );
    prop_oneof![endpoint, bridge].boxed()
}

/// Requester IDs that functions behind these can send with. One in a reset sends nothing before it was written to.
fn requester_ids(on: &[Device], bus: u8, found: &mut Vec<u16>) {
    for device in on {
        let captured = device.captured.filter(|_| !device.silent).unwrap_or(bus);
        found.push(u16::from(captured) << 8 | u16::from(device.devfn));
        if device.words[3] >> 16 & 0x7f == 1 {
            let [_, secondary, ..] = device.words[usize::from(BUS) / 4].to_le_bytes();
            requester_ids(&device.behind, secondary, found);
        }
    }
}

/// Numbers bridges as an operating system does, depth first; returns the last number given.
fn number(on: &mut [Device], mut last: u8) -> u8 {
    for device in on {
        if device.words[3] >> 16 & 0x7f == 1 {
            let secondary = last + 1;
            last = number(&mut device.behind, secondary);
            device.words[usize::from(BUS) / 4] = u32::from_le_bytes([0, secondary, last, 0]);
        }
    }
    last
}

fn bridges_of<'a>(on: &'a mut [Device], found: &mut Vec<&'a mut u32>) {
    for device in on {
        if device.words[3] >> 16 & 0x7f == 1 {
            found.push(&mut device.words[usize::from(BUS) / 4]);
            bridges_of(&mut device.behind, found);
        }
    }
}

/// Functions on a root bus, bus numbers that are written to bridges, and which bridges copy those of others.
type Buses = (Vec<Device>, Vec<(usize, u8, u8)>, Vec<(usize, usize)>);

fn any_buses() -> impl Strategy<Value = Buses> {
    use proptest::collection::vec;
    let index = any::<usize>;
    (vec(any_device(2), 1..5), vec((index(), 0..6_u8, 0..6_u8), 0..3), vec((index(), index()), 0..3))
}

fn a_held_function_is_alone((mut root, hostile, copies): Buses) -> Result<(), TestCaseError> {
    // Two functions of one bus with one number are no machine, nor are two devices on one link, or a function beside one that is alone.
    fn distinct(on: &mut Vec<Device>) {
        let mut seen = BTreeSet::new();
        on.retain(|device| seen.insert(device.devfn));
        let is_alone =
            |device: &Device| device.devfn & 7 == 0 && !device.silent && device.words[3] >> 23 & 1 == 0;
        let alone: Vec<_> = on.iter().filter(|device| is_alone(device)).map(|device| device.devfn).collect();
        on.retain(|device| device.devfn & 7 == 0 || !alone.contains(&(device.devfn & !7)));
        for device in on {
            let mut behind = core::mem::take(&mut device.behind);
            behind.retain(|other| device.delivers(other.devfn));
            distinct(&mut behind);
            device.behind = behind;
        }
    }
    distinct(&mut root);
    number(&mut root, 0);
    let mut bridges = vec![];
    bridges_of(&mut root, &mut bridges);
    let count = bridges.len();
    if count > 0 {
        for (index, secondary, subordinate) in hostile {
            *bridges[index % count] = u32::from_le_bytes([0, secondary, subordinate, 0]);
        }
        for (to, from) in copies {
            *bridges[to % count] = *bridges[from % count];
        }
    }
    // A root bus has one number for ever.
    root.iter_mut().for_each(|device| device.captured = None);
    let mut found = vec![];
    requester_ids(&root, 0, &mut found);
    for rid in &found {
        let fake = Fake::new(root.clone());
        if hold(&fake, *rid).is_ok() {
            let mut found = vec![];
            requester_ids(&fake.state().root, 0, &mut found);
            prop_assert_eq!(found.iter().filter(|other| *other == rid).count(), 1);
        }
    }
    Ok(())
}

/// Functions and bridges that the host has numbered as it likes.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    use smmuv3::fuzzing::{Choices, must_hold};
    fn device(choices: &mut Choices<'_>, depth: u32) -> Device {
        if depth != 0 && choices.coin() {
            let (number, multi) = (choices.byte() % 5, choices.coin());
            let behind = (0..choices.below(4)).map(|_| device(choices, depth - 1)).collect();
            let (kind, ari) = (ROOT_PORT + u32::from(choices.byte() % 4), choices.coin());
            let bridge = Device::bridge(number, 0, 0, behind).port(kind).forwards_ari(ari);
            return if multi { bridge.multi_function() } else { bridge };
        }
        let mut device = Device::new(choices.byte() % 12);
        for _ in 0..choices.below(6) {
            let (at, value, writable) = (choices.below(64), choices.word() as u32, choices.word() as u32);
            if ![1, 3, 6].contains(&at) {
                (device.words[at as usize], device.writable[at as usize]) = (value, writable);
            }
        }
        device
    }
    let mut choices = Choices::of_bytes(bytes);
    let index = |choices: &mut Choices<'_>| usize::from(choices.byte());
    let root = (0..1 + choices.below(4)).map(|_| device(&mut choices, 2)).collect();
    let hostile = (0..choices.below(3))
        .map(|_| (index(&mut choices), choices.byte() % 6, choices.byte() % 6))
        .collect();
    let copies = (0..choices.below(3)).map(|_| (index(&mut choices), index(&mut choices))).collect();
    must_hold(a_held_function_is_alone((root, hostile, copies)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_function_that_is_given_is_alone(buses in any_buses()) {
        a_held_function_is_alone(buses)?;
    }
}
