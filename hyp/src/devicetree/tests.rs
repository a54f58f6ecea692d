//! Invariants: what is in the tree is in the machine; what the host may not have is not in the host's tree
//! and all else is; and no bytes make either function panic.

#![cfg_attr(not(test), allow(dead_code, unused_imports))]

extern crate std;

mod kept;

use super::*;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, Property, ToPropertyValue};
use proptest::prelude::*;
use smmuv3::address::{PhysAddr, PhysRange};
use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

fn property<T: ToPropertyValue>(name: &str, value: T) -> DeviceTreeProperty {
    DeviceTreeProperty::new(name, value).unwrap()
}

fn node(name: &str, properties: Vec<DeviceTreeProperty>) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new(name).unwrap();
    for property in properties {
        node.add_property(property);
    }
    node
}

fn compatible(value: &str) -> DeviceTreeProperty {
    property("compatible", value)
}

fn reg(cells: &[u32]) -> DeviceTreeProperty {
    property("reg", cells)
}

fn range(start: u64, size_bytes: u64) -> PhysRange {
    PhysRange::new(PhysAddr(start), size_bytes).unwrap()
}

const SMMU_PHANDLES: [u32; 2] = [0x8008, 0x8009];
const ITS_PHANDLE: u32 = 0x8006;

fn pcie(index: u32) -> DeviceTreeNode {
    let first = index * 8;
    let rid = first << 8;
    let phandle = SMMU_PHANDLES[index as usize];
    node(
        &format!("pcie@{:x}", 0x1000_0000 + index),
        vec![
            compatible("pci-host-ecam-generic"),
            property("device_type", "pci"),
            property("#address-cells", 3_u32),
            property("#size-cells", 2_u32),
            reg(&[0x40, 0x1000_0000 + (first << 20), 0, 0x80_0000]),
            property("bus-range", [first, first + 7]),
            property("linux,pci-domain", index),
            property(
                "ranges",
                [
                    0x0100_0000,
                    0,
                    0x8000 * index,
                    0,
                    0x3eff_0000 + 0x8000 * index,
                    0,
                    0x8000_u32,
                    0x0200_0000,
                    0,
                    0x1000_0000,
                    0,
                    0x1000_0000,
                    0,
                    0x1000_0000,
                    0x0300_0000,
                    0x80,
                    0,
                    0x80,
                    0,
                    0x40,
                    0,
                ],
            ),
            property("iommu-map", [rid, phandle, rid, 0x800]),
            property("iommu-map-mask", 0xffff_u32),
            property("msi-map", [rid, ITS_PHANDLE, rid, 0x800]),
            property("interrupt-map-mask", [0x1800_u32, 0, 0, 7]),
        ],
    )
}

/// The shape of QEMU's `virt` machine with two SMMUs.
fn machine_tree() -> DeviceTree {
    let mut tree = DeviceTree::new();
    let root = &mut tree.root;
    for property in
        [property("#address-cells", 2_u32), property("#size-cells", 2_u32), compatible("linux,dummy-virt")]
    {
        root.add_property(property);
    }
    root.add_child(node("psci", vec![compatible("arm,psci-1.0"), property("method", "smc")]));
    let memory = |start: u32| {
        let reg = reg(&[0, start, 0, 0x4000_0000]);
        node(&format!("memory@{start:x}"), vec![property("device_type", "memory"), reg])
    };
    root.add_child(memory(0x8000_0000));
    root.add_child(memory(0x4000_0000));
    for (index, phandle) in SMMU_PHANDLES.into_iter().enumerate() {
        let base = 0x0c00_0000 + 0x2_0000 * index as u32;
        let properties = vec![
            compatible("arm,smmu-v3"),
            reg(&[0, base, 0, 0x2_0000]),
            property("phandle", phandle),
            property("#iommu-cells", 1_u32),
            property("interrupts", [0, 0x70_u32, 1, 1, 0x71, 1, 0, 0x72, 1, 0, 0x73, 1]),
            property("interrupt-names", "eventq\0gerror\0priq\0cmdq-sync"),
        ];
        root.add_child(node(&format!("smmuv3@{base:x}"), properties));
    }
    root.add_child(node(
        "fw-cfg@9020000",
        vec![compatible("qemu,fw-cfg-mmio"), reg(&[0, 0x902_0000, 0, 0x18])],
    ));
    for index in (0..32).rev() {
        let base = 0xa00_0000 + 0x200 * index;
        let properties = vec![compatible("virtio,mmio"), reg(&[0, base, 0, 0x200])];
        root.add_child(node(&format!("virtio_mmio@{base:x}"), properties));
    }
    root.add_child(pcie(0));
    root.add_child(pcie(1));
    root.add_child(node(
        "dma@9100000",
        vec![
            compatible("arm,pl330"),
            reg(&[0, 0x910_0000, 0, 0x1000]),
            property("iommus", [SMMU_PHANDLES[1], 7]),
        ],
    ));
    root.add_child(node(
        "other@9200000",
        vec![property("iommus", [0x7777_u32, 7]), property("msi-parent", [0x7777_u32])],
    ));
    for base in [0x904_0000, 0x900_0000] {
        let mut uart = node(&format!("pl011@{base:x}"), vec![reg(&[0, base, 0, 0x1000])]);
        uart.add_property(property("compatible", &["arm,pl011", "arm,primecell"][..]));
        root.add_child(uart);
    }
    let mut gic = node(
        "intc@8000000",
        vec![
            compatible("arm,gic-v3"),
            reg(&[0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0xf6_0000]),
            property("#address-cells", 2_u32),
            property("#size-cells", 2_u32),
            property("ranges", [0_u8; 0]),
            property("phandle", 0x8005_u32),
        ],
    );
    gic.add_child(node(
        "its@8080000",
        vec![
            compatible("arm,gic-v3-its"),
            reg(&[0, 0x808_0000, 0, 0x2_0000]),
            property("phandle", ITS_PHANDLE),
        ],
    ));
    root.add_child(gic);
    let mut cpus = node("cpus", vec![property("#address-cells", 1_u32), property("#size-cells", 0_u32)]);
    for mpidr in 0..4_u32 {
        let properties = vec![property("device_type", "cpu"), property("reg", mpidr)];
        cpus.add_child(node(&format!("cpu@{mpidr}"), properties));
    }
    root.add_child(cpus);
    root.add_child(node("aliases", vec![property("serial0", "/pl011@9000000")]));
    let mut chosen = node(
        "chosen",
        vec![
            property("stdout-path", "serial0:115200"),
            property("bootargs", "console=ttyAMA0"),
            property("linux,initrd-start", 1_u64),
            property("#address-cells", 2_u32),
            property("#size-cells", 2_u32),
        ],
    );
    for (name, kind, size) in
        [("module@48000000", "multiboot,kernel", 0x20_0000), ("module@50000000", "multiboot,ramdisk", 0x1234)]
    {
        let start = u32::from_str_radix(&name[7..], 16).unwrap();
        let mut module = node(name, vec![reg(&[0, start, 0, size])]);
        module.add_property(property("compatible", &[kind, "multiboot,module"][..]));
        chosen.add_child(module);
    }
    root.add_child(chosen);
    tree
}

fn host_tree(dtb: &[u8], changes: &HostTree<'_>) -> Vec<u8> {
    let mut out = vec![0xaa; dtb.len() + 1024 + 128 * changes.reserved.len()];
    let size = write_host_tree(dtb, &mut out, changes).unwrap();
    out.truncate(size);
    out
}

fn paths(node: FdtNode<'_>, path: &str, found: &mut Vec<String>) {
    for child in node.children() {
        let path = format!("{path}/{}", child.name());
        found.push(path.clone());
        paths(child, &path, found);
    }
}

#[test]
fn the_machine_is_what_the_tree_says() {
    let mut dtb = machine_tree().to_dtb();
    dtb.extend([0xff; 16]);
    let machine = read_machine(&dtb).unwrap();
    assert!(machine.memory.iter().copied().eq([range(0x4000_0000, 0x8000_0000)]));
    assert_eq!(machine.uart, Some(range(0x900_0000, 0x1000)));
    assert_eq!(machine.gicd, range(0x800_0000, 0x1_0000));
    assert!(machine.redistributors.iter().copied().eq([range(0x80a_0000, 0xf6_0000)]));
    assert!(machine.its.iter().copied().eq([range(0x808_0000, 0x2_0000)]));
    assert!(machine.doorbells.iter().copied().eq([PhysAddr(0x809_0000)]));
    // The second interrupt is no SPI.
    let interrupts = SmmuInterrupts { events: Some(0x90), sync: Some(0x93), errors: None };
    assert!(machine.smmus.iter().copied().eq([
        SmmuNode { registers: range(0xc00_0000, 0x2_0000), phandle: 0x8008, part: None, interrupts },
        SmmuNode { registers: range(0xc02_0000, 0x2_0000), phandle: 0x8009, part: None, interrupts },
    ]));
    assert!(machine.fw_cfg.iter().copied().eq([range(0x902_0000, 0x18)]));
    assert!(machine.virtio_mmio.iter().copied().eq([range(0xa00_0000, 0x4000)]));
    assert!(machine.cpus.iter().copied().eq(0..4));
    assert_eq!(machine.kernel, Some(range(0x4800_0000, 0x20_0000)));
    assert_eq!(machine.ramdisk, Some(range(0x5000_0000, 0x1234)));
    assert!(machine.psci_smc);
    let pcie = machine.pcie.get(1).unwrap();
    assert_eq!(pcie.ecam, range(0x40_1080_0000, 0x80_0000));
    assert_eq!((pcie.first_bus, pcie.last_bus, pcie.domain), (8, 15, 1));
    let map = IommuMap { rid_base: 0x800, phandle: 0x8009, stream_base: 0x800, length: 0x800 };
    assert!(pcie.iommu_map.iter().copied().eq([map]));
    assert!(pcie.windows.iter().copied().eq([
        PcieWindow { cpu: range(0x3eff_8000, 0x8000), bus_address: 0x8000, io: true },
        PcieWindow { cpu: range(0x1000_0000, 0x1000_0000), bus_address: 0x1000_0000, io: false },
        PcieWindow { cpu: range(0x80_0000_0000, 0x40_0000_0000), bus_address: 0x80_0000_0000, io: false },
    ]));
}

#[test]
fn addresses_are_translated_through_buses() {
    let mut tree = machine_tree();
    let smmu = tree.root.remove_child("smmuv3@c000000").unwrap();
    let mut soc = node(
        "soc",
        vec![
            property("#address-cells", 2_u32),
            property("#size-cells", 2_u32),
            property("ranges", [0_u32, 0x0c00_0000, 1, 0, 0, 0x2_0000]),
        ],
    );
    soc.add_child(smmu);
    tree.root.add_child(soc);
    let machine = read_machine(&tree.to_dtb()).unwrap();
    assert_eq!(machine.smmus.get(1).unwrap().registers, range(0x1_0000_0000, 0x2_0000));

    tree.find_node_mut("/soc").unwrap().remove_property("ranges");
    let error = read_machine(&tree.to_dtb()).unwrap_err();
    assert_eq!((error.node.as_str(), &error.problem), ("smmuv3@c000000", &Problem::Untranslatable));
}

#[test]
fn an_error_names_node_and_property() {
    let check = |path: &str, changed: DeviceTreeProperty, expected: &str| {
        let mut tree = machine_tree();
        tree.find_node_mut(path).unwrap().add_property(changed);
        assert_eq!(read_machine(&tree.to_dtb()).unwrap_err().to_string(), expected);
    };
    check(
        "/smmuv3@c000000",
        reg(&[0, 1, 2]),
        "device tree: node smmuv3@c000000, reg has 12 bytes, which is not a length it can have",
    );
    check(
        "/smmuv3@c020000",
        property("status", "disabled"),
        "device tree: node smmuv3@c020000 is disabled, but an SMMU that is not owned lets every DMA through",
    );
    check(
        "/smmuv3@c020000",
        reg(&[0, 0xc01_0000, 0, 0x2_0000]),
        "device tree: node smmuv3@c020000, reg has the value 0xc010000, which it cannot have",
    );
    check(
        "/memory@40000000",
        reg(&[0, 0x4000_0000, 0, 0x8000_0000]),
        "device tree: node memory@40000000, reg has the value 0x40000000, which it cannot have",
    );
    check(
        "/pcie@10000000",
        property("iommu-map", [0xff00_u32, 0x8008, 0, 0x200]),
        "device tree: node pcie@10000000, iommu-map has the value 0xff00, which it cannot have",
    );
    check(
        "/pcie@10000000",
        property("bus-range", [7_u32, 3]),
        "device tree: node pcie@10000000, bus-range has the value 0x700000003, which it cannot have",
    );
    check(
        "/intc@8000000/its@8080000",
        reg(&[0, 0x808_0000, 0, 0x1_0000]),
        "device tree: node its@8080000, reg has the value 0x10000, which it cannot have",
    );
    let mut tree = machine_tree();
    tree.root.remove_child("psci");
    assert_eq!(read_machine(&tree.to_dtb()).unwrap_err().to_string(), "device tree: node /, psci is missing");
    assert_eq!(
        read_machine(&[0; 64]).unwrap_err().to_string(),
        "device tree: node /: there is no device tree, or it is cut off"
    );
}

/// Cavium's erratum 74: the registers of page 1 are in page 0, and nothing here looks for them there. The property that says so has a name of
/// more than 31 characters, which none may have. To make one, two names are joined that lie one after the other.
#[test]
fn an_smmu_with_page_1_in_page_0_is_refused() {
    let mut tree = machine_tree();
    let smmu = tree.find_node_mut("/smmuv3@c020000").unwrap();
    smmu.add_property(property("cavium,cn9900-broken-page1-regs", ""));
    smmu.add_property(property("ace", ""));
    let mut dtb = tree.to_dtb();
    read_machine(&dtb).unwrap();
    let at = dtb.windows(8).position(|bytes| bytes == b"regs\0ace").unwrap();
    dtb[at + 4] = b'p';
    assert!(dtb.windows(36).any(|bytes| bytes == b"cavium,cn9900-broken-page1-regspace\0"));
    assert!(matches!(read_machine(&dtb).unwrap_err().problem, Problem::Malformed(_)));
}

#[test]
fn what_is_reserved_is_known() {
    let mut tree = machine_tree();
    let mut reserved = node(
        "reserved-memory",
        vec![
            property("#address-cells", 2_u32),
            property("#size-cells", 2_u32),
            property("ranges", [0_u8; 0]),
        ],
    );
    reserved.add_child(node("secure@60000000", vec![reg(&[0, 0x6000_0000, 0, 0x1000])]));
    reserved.add_child(node("linux,cma", vec![property("size", 0x1000_u64)]));
    tree.root.add_child(reserved);
    let machine = read_machine(&tree.to_dtb()).unwrap();
    assert!(machine.reserved.iter().copied().eq([range(0x6000_0000, 0x1000)]));

    let ours = [range(0x7000_0000, 0x20_0000)];
    let out = host_tree(&tree.to_dtb(), &HostTree { reserved: &ours, ..HostTree::default() });
    let machine = read_machine(&out).unwrap();
    assert!(machine.reserved.iter().copied().eq([range(0x6000_0000, 0x1000), ours[0]]));
}

#[test]
fn the_host_tree_has_what_the_host_may_have() {
    let dtb = machine_tree().to_dtb();
    let reserved = [range(0x7000_0000, 0x20_0000), range(0xbfe0_0000, 0x20_0000)];
    let initrd = range(0x5000_0000, 0x1234);
    let out = host_tree(&dtb, &HostTree { reserved: &reserved, initrd: Some(initrd), ..HostTree::default() });

    let (before, after) = (Fdt::new(&dtb).unwrap(), Fdt::new(&out).unwrap());
    let (mut old, mut new) = (vec![], vec![]);
    paths(before.root(), "", &mut old);
    paths(after.root(), "", &mut new);
    let gone = |path: &String| {
        ["/smmuv3@", "/fw-cfg@", "/virtio_mmio@", "/intc@8000000/its@", "/chosen/module@"]
            .iter()
            .any(|start| path.starts_with(start))
    };
    old.retain(|path| !gone(path));
    old.extend(
        ["", "/hypervisor@70000000", "/hypervisor@bfe00000"]
            .iter()
            .map(|end| format!("/reserved-memory{end}")),
    );
    assert_eq!(new, old);

    let reserved_memory = after.find_node("/reserved-memory").unwrap();
    assert_eq!(reserved_memory.property("ranges").unwrap().value(), b"");
    let child = after.find_node("/reserved-memory/hypervisor@70000000").unwrap();
    assert_eq!(child.property("reg").unwrap().value(), b"\0\0\0\0\x70\0\0\0\0\0\0\0\0\x20\0\0");
    assert_eq!(child.property("no-map").unwrap().value(), b"");
    assert_eq!(read_machine(&out).unwrap().reserved.iter().copied().collect::<Vec<_>>(), reserved);

    let chosen = after.find_node("/chosen").unwrap();
    let number = |name: &str| chosen.property(name).unwrap().value_as::<u64>().unwrap();
    assert_eq!((number("linux,initrd-start"), number("linux,initrd-end")), (0x5000_0000, 0x5000_1234));
    assert_eq!(chosen.properties().filter(|property| property.name() == "linux,initrd-start").count(), 1);
    assert_eq!(chosen.property("bootargs").unwrap().value_as::<&str>().unwrap(), "console=ttyAMA0");

    for pcie in ["/pcie@10000000", "/pcie@10000001"] {
        let names: Vec<_> =
            after.find_node(pcie).unwrap().properties().map(|property| property.name().to_string()).collect();
        assert!(names.contains(&"interrupt-map-mask".to_string()), "{names:?}");
        assert!(
            !names.iter().any(|name| name.starts_with("iommu-map") || name.starts_with("msi-map")),
            "{names:?}"
        );
    }
    assert!(after.find_node("/dma@9100000").unwrap().property("iommus").is_none());
    assert!(after.find_node("/other@9200000").unwrap().property("iommus").is_some());
    assert!(after.find_node("/other@9200000").unwrap().property("msi-parent").is_some());
}

#[test]
fn a_root_bus_that_no_smmu_guards_is_not_the_hosts() {
    for map in [
        None,
        Some([0, 0x7777, 0, 0x800]),
        Some([0, SMMU_PHANDLES[0], 0, 0x7ff]),
        Some([1, SMMU_PHANDLES[0], 0, 0x7ff]),
        Some([0, SMMU_PHANDLES[0], 0, 0]),
    ] {
        let mut tree = machine_tree();
        let pcie = tree.find_node_mut("/pcie@10000000").unwrap();
        pcie.remove_property("iommu-map");
        if let Some(map) = map {
            pcie.add_property(property("iommu-map", map));
        }
        let dtb = tree.to_dtb();
        let machine = read_machine(&dtb).unwrap();
        let expected = [
            range(0x40_1000_0000, 0x80_0000),
            range(0x3eff_0000, 0x8000),
            range(0x1000_0000, 0x1000_0000),
            range(0x80_0000_0000, 0x40_0000_0000),
        ];
        assert!(machine.unprotected().eq(expected), "{map:x?}");
        let out = host_tree(&dtb, &HostTree::default());
        let fdt = Fdt::new(&out).unwrap();
        assert!(fdt.find_node("/pcie@10000000").is_none() && fdt.find_node("/pcie@10000001").is_some());
    }
    let mut tree = machine_tree();
    let halves = [0, SMMU_PHANDLES[1], 0, 0x400, 0x400, SMMU_PHANDLES[0], 0, 0x400];
    tree.find_node_mut("/pcie@10000000").unwrap().add_property(property("iommu-map", halves));
    let dtb = tree.to_dtb();
    assert_eq!(read_machine(&dtb).unwrap().unprotected().count(), 0);
    assert!(Fdt::new(&host_tree(&dtb, &HostTree::default())).unwrap().find_node("/pcie@10000000").is_some());
}

#[test]
fn the_kernel_modules_command_line_becomes_the_hosts() {
    let mut tree = machine_tree();
    let module = tree.find_node_mut("/chosen/module@48000000").unwrap();
    module.add_property(property("bootargs", "root=/dev/nvme0n1"));
    let out = host_tree(&tree.to_dtb(), &HostTree::default());
    let fdt = Fdt::new(&out).unwrap();
    let chosen = fdt.find_node("/chosen").unwrap();
    let bootargs: Vec<_> = chosen.properties().filter(|property| property.name() == "bootargs").collect();
    assert_eq!(bootargs.len(), 1);
    assert_eq!(bootargs[0].value_as::<&str>().unwrap(), "root=/dev/nvme0n1");
    // Without a RAM disk of its own, what the boot loader said is kept.
    assert_eq!(chosen.property("linux,initrd-start").unwrap().value_as::<u64>().unwrap(), 1);
    assert!(fdt.find_node("/reserved-memory").is_none());
}

#[test]
fn nodes_that_are_missing_are_made() {
    let mut tree = machine_tree();
    tree.root.remove_child("chosen");
    let reserved = [range(0x7000_0000, 0x1000)];
    let out = host_tree(
        &tree.to_dtb(),
        &HostTree { reserved: &reserved, initrd: Some(range(0x1000, 1)), ..HostTree::default() },
    );
    let fdt = Fdt::new(&out).unwrap();
    assert!(fdt.find_node("/chosen").unwrap().property("linux,initrd-end").is_some());
    assert!(fdt.find_node("/reserved-memory/hypervisor@70000000").is_some());
}

#[test]
fn a_root_that_says_it_is_an_smmu_is_not_left_out() {
    let mut tree = machine_tree();
    tree.root.add_property(property("compatible", &["linux,dummy-virt", "arm,smmu-v3"][..]));
    tree.root.add_property(property("phandle", 0x9000_u32));
    tree.root.add_child(node("device@1", vec![property("iommus", [0x9000_u32, 0])]));
    let out = host_tree(&tree.to_dtb(), &HostTree::default());
    let fdt = Fdt::new(&out).unwrap();
    assert!(fdt.find_node("/chosen").is_some() && fdt.find_node("/cpus").is_some());
    // And so does what points at it.
    assert!(fdt.find_node("/device@1").unwrap().property("iommus").is_some());
}

#[test]
fn a_buffer_that_is_too_small_is_an_error() {
    let dtb = machine_tree().to_dtb();
    let whole = host_tree(&dtb, &HostTree::default());
    for size in (0..whole.len()).step_by(61) {
        let error = write_host_tree(&dtb, &mut vec![0; size], &HostTree::default()).unwrap_err();
        assert_eq!(error.problem, Problem::NoSpace { buffer_bytes: size });
    }
    assert_eq!(write_host_tree(&dtb, &mut vec![0; whole.len()], &HostTree::default()), Ok(whole.len()));
}

#[test]
fn total_size_needs_a_header() {
    let dtb = machine_tree().to_dtb();
    assert_eq!(total_size_bytes(&dtb[..40]), Some(dtb.len()));
    assert_eq!(total_size_bytes(&dtb[..7]), None);
    assert_eq!(total_size_bytes(&[0; 40]), None);
}

/// Runs both functions; of a well-formed tree the second must make a well-formed one.
fn survives(dtb: &[u8]) {
    let reserved = [range(0x7000_0000, 0x20_0000)];
    let mut out = vec![0; 0x1_0000];
    let _ = read_machine(dtb);
    let changes = HostTree { reserved: &reserved, initrd: Some(reserved[0]), ..HostTree::default() };
    if let Ok(size) = write_host_tree(dtb, &mut out, &changes) {
        let read = total_size_bytes(dtb).and_then(|size| dtb.get(..size)).map(Fdt::new);
        assert!(!matches!(read, Some(Ok(_))) || Fdt::new(&out[..size]).is_ok());
    }
}

/// Bytes that a device tree is said to be.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    survives(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        survives(&bytes);
    }

    #[test]
    fn no_changed_words_make_it_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![
            any::<u32>(), 0..16_u32, Just(u32::MAX), Just(0x8000_0000), Just(0xffff_fff0), Just(40),
        ]), 1..8),
        from_header in any::<bool>(),
    ) {
        let mut dtb = machine_tree().to_dtb();
        let words = if from_header { 16 } else { dtb.len() / 4 };
        for (index, value) in changes {
            let at = index.index(words) * 4;
            dtb[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        survives(&dtb);
    }

    #[test]
    fn no_changed_bytes_make_it_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..16),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut dtb = machine_tree().to_dtb();
        for (index, value) in changes {
            let at = index.index(dtb.len());
            dtb[at] = value;
        }
        survives(&dtb);
        survives(&dtb[..cut.index(dtb.len())]);
    }
}
