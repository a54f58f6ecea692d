//! Tests of the device tree, read back with another crate than it was written with.

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};

use super::*;
use crate::machine::MAX_SMMUS;
use crate::machine::memory_size::MemorySize;

fn shape(smmus: u8, cpus: u8) -> Shape {
    Shape::new(smmus, cpus, MemorySize::DEFAULT).expect("a valid shape")
}

fn cells(node: &FdtNode<'_>, name: &str) -> Vec<u32> {
    let property = node.property(name).unwrap_or_else(|| panic!("{} has no {name}", node.name()));
    property
        .value()
        .chunks_exact(4)
        .map(|cell| u32::from_be_bytes([cell[0], cell[1], cell[2], cell[3]]))
        .collect()
}

fn text(node: &FdtNode<'_>, name: &str) -> String {
    let property = node.property(name).unwrap_or_else(|| panic!("{} has no {name}", node.name()));
    String::from_utf8_lossy(property.value()).trim_end_matches('\0').to_owned()
}

fn children<'a>(fdt: &Fdt<'a>, prefix: &str) -> Vec<FdtNode<'a>> {
    fdt.root().children().filter(|node| node.name().starts_with(prefix)).collect()
}

#[test]
fn every_root_bus_goes_through_its_own_smmu() {
    for smmus in 1..=MAX_SMMUS {
        let blob = build(&shape(smmus, 4), &Boot::default()).expect("a tree");
        let fdt = Fdt::new(&blob).expect("a well-formed tree");
        let (smmu_nodes, pcie_nodes) = (children(&fdt, "smmuv3@"), children(&fdt, "pcie@"));
        assert_eq!((smmu_nodes.len(), pcie_nodes.len()), (usize::from(smmus), usize::from(smmus)));
        for (index, (smmu, pcie)) in smmu_nodes.iter().zip(&pcie_nodes).enumerate() {
            let first_bus = index as u32 * 8;
            assert_eq!(cells(pcie, "bus-range"), [first_bus, first_bus + 7]);
            assert_eq!(cells(pcie, "linux,pci-domain"), [index as u32]);
            let phandle = cells(smmu, "phandle")[0];
            assert_eq!(cells(pcie, "iommu-map"), [first_bus << 8, phandle, first_bus << 8, 0x800]);
            assert_eq!(cells(pcie, "msi-map"), [first_bus << 8, ITS, first_bus << 8, 0x800]);
            assert_eq!(cells(pcie, "reg"), [0x40, 0x1000_0000 + (first_bus << 20), 0, 8 << 20]);
            assert_eq!(cells(pcie, "ranges").len(), 3 * 7);
            assert_eq!(cells(pcie, "interrupt-map").len(), 16 * 10);
            assert_eq!(cells(smmu, "reg"), [0, 0x0c00_0000 + index as u32 * 0x2_0000, 0, 0x2_0000]);
        }
    }
}

#[test]
fn cpus_are_in_clusters_of_sixteen() {
    let blob = build(&shape(1, 18), &Boot::default()).expect("a tree");
    let fdt = Fdt::new(&blob).expect("a well-formed tree");
    let cpus = fdt.find_node("/cpus").expect("cpus");
    let affinities: Vec<u32> = cpus.children().map(|cpu| cells(&cpu, "reg")[0]).collect();
    assert_eq!(affinities.len(), 18);
    assert_eq!(affinities[15..], [0x00f, 0x100, 0x101]);
    assert!(cpus.children().all(|cpu| text(&cpu, "enable-method") == "psci"));
    assert_eq!(text(&fdt.find_node("/psci").expect("psci"), "method"), "smc");
}

#[test]
fn chosen_says_what_the_boot_loader_did() {
    let module = |kind, start| Module { kind, range: Range::new(start, 0x1234) };
    let boot = Boot {
        modules: vec![module(ModuleKind::Kernel, 0x4400_0000), module(ModuleKind::Ramdisk, 0x1_0000_0000)],
        bootargs: "rounds=5 bench".into(),
    };
    let blob = build(&shape(3, 4), &boot).expect("a tree");
    let fdt = Fdt::new(&blob).expect("a well-formed tree");
    let chosen = fdt.find_node("/chosen").expect("chosen");
    assert_eq!(text(&chosen, "bootargs"), "rounds=5 bench");
    assert!(fdt.find_node(&text(&chosen, "stdout-path")).is_some());
    let modules: Vec<_> = chosen.children().collect();
    assert_eq!(cells(&modules[0], "reg"), [0, 0x4400_0000, 0, 0x1234]);
    assert_eq!(text(&modules[0], "compatible"), "multiboot,kernel\0multiboot,module");
    assert_eq!(cells(&modules[1], "reg"), [1, 0, 0, 0x1234]);
    assert!(text(&modules[1], "compatible").starts_with("multiboot,ramdisk"));
}

#[test]
fn bootargs_with_a_nul_are_refused() {
    let boot = Boot { bootargs: "a\0b".into(), ..Boot::default() };
    let message = format!("{:#}", build(&shape(1, 1), &boot).expect_err("a NUL"));
    assert!(message.contains("--bootargs"), "{message}");
}
