//! Invariants: the host reaches no device whose DMA goes past the SMMUs, and a step of the machine's end is bounded.

use super::platform::list;
use super::*;
use crate::devicetree::{IommuMap, PcieNode, PcieWindow};

fn pcie(index: u64, iommu_map: &[IommuMap]) -> PcieNode {
    let window =
        |start, io| PcieWindow { cpu: range(start + index * 0x100_0000, 0x10_0000), bus_address: 0, io };
    PcieNode {
        ecam: range(0x3000_0000 + index * 0x100_0000, 0x10_0000),
        first_bus: 0,
        last_bus: 0,
        domain: index as u32,
        windows: list(&[
            window(0x1000_0000, false),
            window(0x2000_0000, true),
            window(0x80_0000_0000, false),
        ]),
        iommu_map: list(iommu_map),
        iommu_map_mask: 0xffff,
    }
}

#[test]
fn the_host_reaches_no_root_bus_that_no_smmu_guards() {
    let mapped = |length| IommuMap { rid_base: 0, phandle: 1, stream_base: 0, length };
    let nodes = [pcie(0, &[mapped(0x100)]), pcie(1, &[]), pcie(2, &[mapped(0xff)])];
    let pmcg = range(0x2b42_0000, 0x1000);
    for granule in [Granule::Size4K, Granule::Size16K] {
        let mut world = World::with_devices(granule, Blocks::InPlace, |machine| {
            machine.pcie = list(&nodes);
            machine.reserved = list(&[pmcg]);
        });
        let reached = |world: &World, range: PhysRange| {
            let ends = [range.start(), PhysAddr(range.last().0 - 7)];
            ends.map(|address| world.ownership.host_reaches(&world.p, address))
        };
        for (index, node) in nodes.iter().enumerate() {
            for range in core::iter::once(node.ecam).chain(node.windows.iter().map(|window| window.cpu)) {
                assert_eq!(reached(&world, range), [index == 0; 2], "{range}");
                assert!(world.ownership.host_reaches(&world.p, range.last().offset(1)));
            }
        }
        assert_eq!(reached(&world, pmcg), [false; 2]);
        // Nor does it get them back when a stream is detached.
        let mut set = HeldSet::EMPTY;
        let refused = world.with(|o, cx| o.hold(cx, nodes[1].ecam, &mut set, &mut cx.spare()));
        assert_eq!(refused, Err(Status::Busy.into()));
    }
}

#[test]
fn a_step_of_the_end_is_bounded() {
    let mut world = World::new(Granule::Size4K, Blocks::InPlace);
    let guest = world.guest();
    let (words, bytes) = (2048, 1 << 20);
    // Far apart, so that most of a step is the way to the next one, and then more than a step wipes.
    let mut pages =
        std::vec![range(RAM, 2 * PAGE), range(RAM + 4 * 1500 * PAGE, PAGE), range(POOL - PAGE, PAGE)];
    pages.push(range(POOL + POOL_BYTES, BLOCK));
    for range in &pages {
        world.change(Change::Donate(guest), *range).unwrap();
    }
    world.ownership.begin_end();
    world.p.did();
    world.p.reads();
    let (mut wiped, mut steps) = (0, 0);
    loop {
        let progress = world.ownership.wipe_step(&world.p);
        let did = world.p.did();
        let step: u64 =
            did.iter().map(|did| if let Did::Wipe(range) = did { range.size_bytes() } else { 0 }).sum();
        assert!(step <= bytes, "{step:#x}");
        let reads = world.p.reads();
        assert!(reads <= words, "{reads}");
        (wiped, steps) = (wiped + step, steps + 1);
        if progress == Progress::Done {
            break;
        }
    }
    assert_eq!(wiped, pages.iter().map(|range| range.size_bytes()).sum::<u64>());
    assert!(steps < 10);
}
