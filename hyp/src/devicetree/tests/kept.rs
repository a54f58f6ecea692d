//! Invariant: what can write memory past the SMMUs, though it does not look like it, is not the host's either.

use super::*;

#[test]
fn a_disabled_root_bus_is_an_unprotected_one() {
    let mut tree = machine_tree();
    tree.find_node_mut("/pcie@10000001").unwrap().add_property(property("status", "disabled"));
    let dtb = tree.to_dtb();
    let machine = read_machine(&dtb).unwrap();
    let expected = [
        range(0x40_1080_0000, 0x80_0000),
        range(0x3eff_8000, 0x8000),
        range(0x1000_0000, 0x1000_0000),
        range(0x80_0000_0000, 0x40_0000_0000),
    ];
    assert!(machine.unprotected().eq(expected));
    let out = host_tree(&dtb, &HostTree::default());
    let fdt = Fdt::new(&out).unwrap();
    assert!(fdt.find_node("/pcie@10000000").is_some() && fdt.find_node("/pcie@10000001").is_none());
}

#[test]
fn performance_monitors_of_smmus_are_not_the_hosts() {
    let mut tree = machine_tree();
    let mut pmcg = node("pmu@2b420000", vec![reg(&[0, 0x2b42_0000, 0, 0x1000, 0, 0x2b43_0000, 0, 0x1000])]);
    pmcg.add_property(property("compatible", &["arm,mmu-600-pmcg", "arm,smmu-v3-pmcg"][..]));
    pmcg.add_property(property("status", "disabled"));
    tree.root.add_child(pmcg);
    let dtb = tree.to_dtb();
    let reserved = read_machine(&dtb).unwrap().reserved;
    assert!(reserved.iter().copied().eq([range(0x2b42_0000, 0x1000), range(0x2b43_0000, 0x1000)]));
    let out = host_tree(&dtb, &HostTree::default());
    assert!(Fdt::new(&out).unwrap().find_node("/pmu@2b420000").is_none());
}

#[test]
fn the_gic_offers_no_msis() {
    let mut tree = machine_tree();
    let gic = tree.find_node_mut("/intc@8000000").unwrap();
    gic.add_property(property("msi-controller", [0_u8; 0]));
    gic.add_property(property("mbi-ranges", [256_u32, 128]));
    gic.add_property(property("mbi-alias", 0x810_0000_u64));
    gic.add_property(property("#interrupt-cells", 3_u32));
    gic.add_child(node(
        "v2m@8020000",
        vec![compatible("arm,gic-v2m-frame"), property("phandle", 0x8010_u32)],
    ));
    tree.root.add_child(node("a", vec![property("msi-parent", 0x8005_u32)]));
    tree.root.add_child(node("b", vec![property("msi-parent", 0x8010_u32)]));
    let out = host_tree(&tree.to_dtb(), &HostTree::default());
    let fdt = Fdt::new(&out).unwrap();
    let gic = fdt.find_node("/intc@8000000").unwrap();
    let names: Vec<_> = gic.properties().map(|property| property.name().to_string()).collect();
    assert!(!names.iter().any(|name| name.starts_with("mbi") || name.starts_with("msi")), "{names:?}");
    assert!(["#interrupt-cells", "reg", "phandle"].iter().all(|kept| names.iter().any(|name| name == kept)));
    assert_eq!(gic.children().count(), 0);
    for path in ["/a", "/b"] {
        assert!(fdt.find_node(path).unwrap().property("msi-parent").is_none());
    }
}
