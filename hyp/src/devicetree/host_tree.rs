//! Writes the host's own device tree: what EL2 keeps for itself is gone from it.

use super::machine::maps_all;
use super::tokens::{Node, Property, Token, Tokens, Writer, cut_off};
use super::{DeviceTreeError, Name, Problem, cells, compatible};
use crate::list::List;
use core::fmt::{self, Write};
use smmuv3::address::PhysRange;

/// What the host's tree says besides what the machine's says.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostTree<'a> {
    /// Memory that is the hypervisor's: becomes `no-map` children of `/reserved-memory`.
    pub reserved: &'a [PhysRange],
    /// Where the host's initial RAM disk is: becomes `linux,initrd-start` and `linux,initrd-end`. Without
    /// one, what the tree says is kept.
    pub initrd: Option<PhysRange>,
    /// Phandles of the SMMUs that the hypervisor emulates: their nodes stay, and so does what points at them.
    pub smmus: &'a [u32],
    /// The ITSs are mediated: their nodes stay, and so does what points at them.
    pub its: bool,
}

impl HostTree<'_> {
    /// Why the host does not get the node for what it says it is. Without its root a tree is none, whatever the root says.
    fn removal(&self, node: Node<'_>) -> Option<Removal> {
        Removal::of(node).filter(|_| !node.is_root() && !self.keeps(node))
    }

    fn keeps(&self, node: Node<'_>) -> bool {
        let is = |wanted| node.compatible().any(|name| name == wanted);
        let phandle = node.find("phandle").map_or(0, |value| cells::number(value) as u32);
        is(compatible::SMMU) && self.smmus.contains(&phandle) || is(compatible::ITS) && self.its
    }
}

/// Writes the host's tree into `out` and returns its size in bytes. `dtb` may be longer than the tree.
///
/// Nodes that are left out, and each is logged: SMMUs that are not emulated, all PMCGs, ITSs that are not mediated, GICv2m frames, DMA masters without an
/// SMMU (fw_cfg, virtio-mmio, PCIe root buses that are disabled or have a Requester ID that no SMMU translates),
/// and the boot loader's modules in `/chosen`. Properties that point at them go too: `iommus`, `iommu-map`,
/// `msi-parent`, `msi-map` and their masks. The GIC is no MSI controller any more. `bootargs` of the
/// `multiboot,kernel` module, if it has any, become those of `/chosen`. All else is copied.
///
/// `out.len()` of the tree's size + 1 KiB + 128 bytes for each reserved range is enough.
///
/// # Errors
/// [`DeviceTreeError`]: the tree is malformed, an address does not fit into the root's cells, or `out` is too
/// small. Then `out` holds nothing of use.
pub fn write_host_tree(dtb: &[u8], out: &mut [u8], changes: &HostTree<'_>) -> Result<usize, DeviceTreeError> {
    let tree = super::total_size_bytes(dtb).and_then(|size| dtb.get(..size)).ok_or(cut_off())?;
    let tokens = Tokens::new(tree)?;
    let root = tokens.root()?;
    let root_cells = |name, default| cells::u32_property(root, name).map(|cells| cells.unwrap_or(default));
    let mut rewriter = Rewriter {
        changes,
        strings_bytes: tokens.strings().len(),
        bootargs: kernel_bootargs(root),
        removed: removed_phandles(tokens, changes)?,
        address_cells: root_cells("#address-cells", 2)?,
        size_cells: root_cells("#size-cells", 1)?,
        writer: Writer::new(out, tokens.reservations()?)?,
        depth: 0,
        section: Section::Other,
        in_properties: false,
        seen_chosen: false,
        seen_reserved_memory: false,
        node: Name::new(""),
        is_gic: false,
        is_smmu: false,
        loses_iommu_map: false,
        loses_msi_map: false,
        run: None,
    };
    rewriter.rewrite(tokens)?;
    let strings = NEW_NAMES.iter().flat_map(|name| [name.as_bytes(), b"\0"]);
    rewriter.writer.finish(core::iter::once(tokens.strings()).chain(strings), tokens.boot_cpu())
}

/// Names that the writer needs; they follow the strings of the machine's tree.
const NEW_NAMES: [&str; 8] = [
    "reg",
    "no-map",
    "ranges",
    "#address-cells",
    "#size-cells",
    "bootargs",
    "linux,initrd-start",
    "linux,initrd-end",
];

/// Why nodes are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removal {
    Smmu,
    Pmcg,
    Its,
    MsiFrame,
    Unprotected,
    Module,
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Smmu => "the hypervisor owns the SMMUs",
            Self::Pmcg => "its MSIs go past the SMMUs",
            Self::Its => "the ITS writes memory past the SMMUs",
            Self::MsiFrame => "no device reaches it",
            Self::Unprotected => "its DMA goes past the SMMUs",
            Self::Module => "a boot module",
        })
    }
}

impl Removal {
    /// Why such a node is left out, if EL2 does not emulate what it stands for.
    fn of(node: Node<'_>) -> Option<Self> {
        node.compatible().find_map(|name| match name {
            compatible::SMMU => Some(Self::Smmu),
            compatible::PMCG => Some(Self::Pmcg),
            compatible::ITS => Some(Self::Its),
            compatible::GICV2M => Some(Self::MsiFrame),
            compatible::FW_CFG | compatible::VIRTIO_MMIO => Some(Self::Unprotected),
            compatible::KERNEL | compatible::RAMDISK | compatible::MODULE => Some(Self::Module),
            _ => None,
        })
    }
}

fn is_gic(node: Node<'_>) -> bool {
    node.compatible().any(|name| name == compatible::GIC)
}

/// What makes a Distributor an MSI controller.
const MSI_PROPERTIES: [&str; 4] = ["msi-controller", "#msi-cells", "mbi-ranges", "mbi-alias"];

/// The phandles of the nodes that are left out, and of the GIC, which is left without its MSIs.
type Phandles = List<u32, 80>;

fn removed_phandles(mut tokens: Tokens<'_>, changes: &HostTree<'_>) -> Result<Phandles, DeviceTreeError> {
    let mut phandles = List::new();
    loop {
        match tokens.next()? {
            Token::BeginNode(node) if changes.removal(node).is_some() || is_gic(node) => {
                let Some(phandle) = node.find("phandle") else { continue };
                let pushed = phandles.push(cells::number(phandle) as u32);
                pushed.map_err(|full| {
                    DeviceTreeError::new(node.name, "phandle", Problem::TooMany { limit: full.capacity })
                })?;
            }
            Token::End => return Ok(phandles),
            _ => {}
        }
    }
}

/// The command line that the boot loader gave to the kernel module alone.
fn kernel_bootargs(root: Node<'_>) -> Option<&[u8]> {
    let mut modules = root.child("chosen")?.children();
    modules.find(|module| is_kernel(*module))?.find("bootargs")
}

fn is_kernel(module: Node<'_>) -> bool {
    module.compatible().any(|name| name == compatible::KERNEL)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Chosen,
    ReservedMemory,
    Other,
}

/// Nodes left out one after the other for one reason: one line of the log.
struct Run {
    why: Removal,
    first: Name,
    last: Name,
    count: usize,
}

struct Rewriter<'a, 'b> {
    changes: &'a HostTree<'a>,
    strings_bytes: usize,
    bootargs: Option<&'a [u8]>,
    removed: Phandles,
    address_cells: u32,
    size_cells: u32,
    writer: Writer<'b>,
    /// Nodes that have begun and not ended: 1 in the root's own properties.
    depth: usize,
    /// Which child of the root we are in.
    section: Section,
    /// No child of the node that began last has begun yet.
    in_properties: bool,
    seen_chosen: bool,
    seen_reserved_memory: bool,
    /// The node that began last.
    node: Name,
    /// And whether it is the GIC's Distributor.
    is_gic: bool,
    /// Or an SMMU, which sends no MSIs of its own.
    is_smmu: bool,
    /// Its maps point at removed nodes, so that their masks go too.
    loses_iommu_map: bool,
    loses_msi_map: bool,
    run: Option<Run>,
}

impl Rewriter<'_, '_> {
    fn rewrite(&mut self, mut tokens: Tokens<'_>) -> Result<(), DeviceTreeError> {
        // Nodes that have begun since, and with, one that is left out.
        let mut left_out = 0_usize;
        loop {
            match tokens.next()? {
                Token::BeginNode(_) if left_out > 0 => left_out += 1,
                Token::EndNode if left_out > 0 => left_out -= 1,
                Token::Property(_) if left_out > 0 => {}
                Token::BeginNode(node) => {
                    self.end_properties()?;
                    let unprotected = || self.is_unprotected_pcie(node).then_some(Removal::Unprotected);
                    match self.changes.removal(node).or_else(unprotected) {
                        Some(why) => {
                            self.note(node.name, why);
                            left_out = 1;
                        }
                        None => self.begin_node(node)?,
                    }
                }
                Token::Property(property) => self.property(property)?,
                Token::EndNode => self.end_node()?,
                Token::End => break,
            }
        }
        self.log_run();
        if self.depth == 0 { Ok(()) } else { Err(cut_off()) }
    }

    fn begin_node(&mut self, node: Node<'_>) -> Result<(), DeviceTreeError> {
        self.depth += 1;
        let loses = |map| node.properties().any(|p| p.is(map) && self.points_at_removed(p));
        (self.loses_iommu_map, self.loses_msi_map) = (loses("iommu-map"), loses("msi-map"));
        if self.depth == 2 {
            self.section = match node.name {
                "chosen" => Section::Chosen,
                "reserved-memory" => Section::ReservedMemory,
                _ => Section::Other,
            };
            self.seen_chosen |= self.section == Section::Chosen;
            self.seen_reserved_memory |= self.section == Section::ReservedMemory;
        }
        self.in_properties = true;
        self.node = Name::new(node.name);
        self.is_gic = is_gic(node);
        self.is_smmu = Removal::of(node) == Some(Removal::Smmu);
        self.writer.begin_node(node.name)
    }

    fn property(&mut self, property: Property<'_>) -> Result<(), DeviceTreeError> {
        if self.depth == 2 && self.section == Section::Chosen {
            let is_initrd = property.is("linux,initrd-start") || property.is("linux,initrd-end");
            let replaced = (is_initrd && self.changes.initrd.is_some())
                || (property.is("bootargs") && self.bootargs.is_some());
            if replaced {
                return Ok(());
            }
        }
        // In no I/O table is the Distributor's page, where message-based SPIs are written to.
        let offers_msis = self.is_gic && MSI_PROPERTIES.iter().any(|name| property.is(name));
        let sends_msis = self.is_smmu && property.is("msi-parent");
        if offers_msis || sends_msis || self.points_at_removed(property) {
            log::info!("host's device tree: {} goes without {}", self.node.as_str(), property.name());
            return Ok(());
        }
        self.writer.property(property.name_offset, &[property.value])
    }

    /// Whether the node is a PCIe root bus that is disabled or has a Requester ID that none of the SMMUs translates.
    /// `Machine::is_protected` says the same of what was read.
    fn is_unprotected_pcie(&self, node: Node<'_>) -> bool {
        if node.is_root() || !node.compatible().any(|name| name == compatible::PCIE) {
            return false;
        }
        if !node.is_okay() {
            return true;
        }
        let (first_bus, last_bus) = match node.find("bus-range") {
            Some([_, _, _, first, _, _, _, last]) => (*first, *last),
            _ => (0, u8::MAX),
        };
        let map = node.find("iommu-map").unwrap_or_default();
        let cell = |entry: &[u8], index| entry.chunks_exact(4).nth(index).map_or(0, cells::number) as u32;
        !maps_all(first_bus, last_bus, |rid| {
            let is_smmu = |phandle| self.is_removed(phandle) || self.changes.smmus.contains(&phandle);
            let ours = map.chunks_exact(16).filter(|entry| is_smmu(cell(entry, 1)));
            let mut rids = ours.map(|entry| cell(entry, 0)..cell(entry, 0).saturating_add(cell(entry, 3)));
            rids.find(|rids| rids.contains(&rid))
        })
    }

    fn is_removed(&self, phandle: u32) -> bool {
        self.removed.iter().any(|removed| *removed == phandle)
    }

    /// A specifier of `iommus` and `msi-parent` has at most one cell after the phandle for the nodes that are
    /// left out; entries of maps have four cells, the phandle being the second.
    fn points_at_removed(&self, property: Property<'_>) -> bool {
        let (cells, phandle) = if property.is("iommus") || property.is("msi-parent") {
            (2, 0)
        } else if property.is("iommu-map") || property.is("msi-map") {
            (4, 1)
        } else if property.is("iommu-map-mask") {
            return self.loses_iommu_map;
        } else {
            return property.is("msi-map-mask") && self.loses_msi_map;
        };
        property.value.chunks(cells * 4).any(|entry| {
            let phandle = entry.chunks_exact(4).nth(phandle).map(cells::number);
            phandle.is_some_and(|phandle| self.is_removed(phandle as u32))
        })
    }

    fn end_node(&mut self) -> Result<(), DeviceTreeError> {
        self.end_properties()?;
        match (self.depth, self.section) {
            (2, Section::ReservedMemory) => self.reserved_ranges()?,
            (1, _) => {
                if !self.seen_reserved_memory && !self.changes.reserved.is_empty() {
                    self.writer.begin_node("reserved-memory")?;
                    self.new_property("#address-cells", &[&self.address_cells.to_be_bytes()])?;
                    self.new_property("#size-cells", &[&self.size_cells.to_be_bytes()])?;
                    self.new_property("ranges", &[])?;
                    self.reserved_ranges()?;
                    self.writer.end_node()?;
                }
                if !self.seen_chosen {
                    self.writer.begin_node("chosen")?;
                    self.chosen_properties()?;
                    self.writer.end_node()?;
                }
            }
            _ => {}
        }
        self.depth = self.depth.checked_sub(1).ok_or(cut_off())?;
        self.writer.end_node()
    }

    fn end_properties(&mut self) -> Result<(), DeviceTreeError> {
        if self.in_properties && self.depth == 2 && self.section == Section::Chosen {
            self.chosen_properties()?;
        }
        self.in_properties = false;
        Ok(())
    }

    fn chosen_properties(&mut self) -> Result<(), DeviceTreeError> {
        if let Some(bootargs) = self.bootargs {
            self.new_property("bootargs", &[bootargs])?;
        }
        if let Some(initrd) = self.changes.initrd {
            let last = initrd.last().0;
            let end = last.checked_add(1).ok_or(DeviceTreeError::new(
                "chosen",
                "linux,initrd-end",
                Problem::Value(last),
            ))?;
            self.new_property("linux,initrd-start", &[&initrd.start().0.to_be_bytes()])?;
            self.new_property("linux,initrd-end", &[&end.to_be_bytes()])?;
        }
        Ok(())
    }

    /// Children of `/reserved-memory` (3.5); its cell counts are the root's.
    fn reserved_ranges(&mut self) -> Result<(), DeviceTreeError> {
        for range in self.changes.reserved {
            let mut name = NodeName { bytes: [0; 32], len: 0 };
            let error = |problem| DeviceTreeError::new("reserved-memory", "reg", problem);
            write!(name, "hypervisor@{:x}", range.start().0)
                .map_err(|_| error(Problem::Value(range.start().0)))?;
            self.writer.begin_node(name.as_str())?;
            let (address, size) = (range.start().0.to_be_bytes(), range.size_bytes().to_be_bytes());
            let field =
                |value: u64, bytes, count: u32| cell_bytes(bytes, count).ok_or(error(Problem::Value(value)));
            let address = field(range.start().0, &address, self.address_cells)?;
            let size = field(range.size_bytes(), &size, self.size_cells)?;
            self.new_property("reg", &[address, size])?;
            self.new_property("no-map", &[])?;
            self.writer.end_node()?;
        }
        Ok(())
    }

    fn new_property(&mut self, name: &'static str, parts: &[&[u8]]) -> Result<(), DeviceTreeError> {
        let before: usize = NEW_NAMES.iter().take_while(|new| **new != name).map(|new| new.len() + 1).sum();
        self.writer.property((self.strings_bytes + before) as u32, parts)
    }

    fn note(&mut self, name: &str, why: Removal) {
        match &mut self.run {
            Some(run) if run.why == why => {
                run.last = Name::new(name);
                run.count += 1;
            }
            _ => {
                self.log_run();
                self.run = Some(Run { why, first: Name::new(name), last: Name::new(name), count: 1 });
            }
        }
    }

    fn log_run(&mut self) {
        match self.run.take() {
            None => {}
            Some(Run { why, first, count: 1, .. }) => {
                log::info!("host's device tree: without {}: {why}", first.as_str());
            }
            Some(Run { why, first, last, count }) => {
                log::info!(
                    "host's device tree: without {count} nodes, {} to {}: {why}",
                    first.as_str(),
                    last.as_str()
                );
            }
        }
    }
}

/// The low cells of a number, or as many zeros before it as it takes; `None` if the number has more.
fn cell_bytes(number: &[u8; 8], count: u32) -> Option<&[u8]> {
    match (count, number) {
        (2, _) => Some(number),
        (1, [0, 0, 0, 0, low @ ..]) => Some(low),
        _ => None,
    }
}

struct NodeName {
    bytes: [u8; 32],
    len: usize,
}

impl NodeName {
    fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

impl Write for NodeName {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len.checked_add(text.len()).ok_or(fmt::Error)?;
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}
