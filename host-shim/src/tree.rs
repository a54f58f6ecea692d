//! What the host program needs of its device tree.

use crate::pci::RootComplex;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};

/// The most of each that are kept; further ones are passed over.
pub const MAX: usize = 16;

/// A run of physical memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl Run {
    /// Whether a byte is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.start.saturating_add(other.size)
            && other.start < self.start.saturating_add(self.size)
    }
}

/// A short list.
#[derive(Clone, Copy, Debug)]
pub struct Few<T: Copy> {
    list: [Option<T>; MAX],
}

impl<T: Copy> Few<T> {
    const fn new() -> Self {
        Self { list: [None; MAX] }
    }

    fn push(&mut self, item: T) {
        if let Some(place) = self.list.iter_mut().find(|place| place.is_none()) {
            *place = Some(item);
        }
    }

    /// The items, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = T> + '_ {
        self.list.iter().flatten().copied()
    }

    /// Sorts by a key.
    fn sort_by_key(&mut self, key: impl Fn(&T) -> u64) {
        self.list.sort_unstable_by_key(|item| item.as_ref().map_or(u64::MAX, &key));
    }
}

/// How PSCI is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// SMC: always, above the hypervisor.
    Smc,
    /// HVC: on a machine without EL2.
    Hvc,
}

/// The machine that the device tree describes.
#[derive(Clone, Copy, Debug)]
pub struct Tree {
    /// RAM.
    pub memory: Few<Run>,
    /// `/reserved-memory` with `no-map`: the hypervisor's.
    pub reserved: Few<Run>,
    /// The PL011.
    pub uart: u64,
    /// The GIC's Distributor.
    pub distributor: u64,
    /// The GIC's Redistributors.
    pub redistributors: Few<Run>,
    /// MPIDR affinity of every CPU.
    pub cpus: Few<u64>,
    /// Root complexes, by bus number.
    pub roots: Few<RootComplex>,
    /// The initial ramdisk, if there is one.
    pub ramdisk: Option<Run>,
    /// The conduit of PSCI.
    pub conduit: Conduit,
}

/// Cells of a property, 32 bits each.
fn cells(node: FdtNode<'_>, name: &str) -> [u32; 64] {
    let mut cells = [0; 64];
    if let Some(property) = node.property(name) {
        for (cell, bytes) in cells.iter_mut().zip(property.value().chunks_exact(4)) {
            *cell = bytes.try_into().map_or(0, u32::from_be_bytes);
        }
    }
    cells
}

fn length(node: FdtNode<'_>, name: &str) -> usize {
    node.property(name).map_or(0, |property| property.value().len() / 4)
}

fn wide(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// The runs of `reg`, with two cells for address and size, as this machine has at its root.
fn runs(node: FdtNode<'_>) -> impl Iterator<Item = Run> {
    let count = length(node, "reg") / 4;
    let cells = cells(node, "reg");
    (0..count.min(16)).filter_map(move |index| match cells.get(4 * index..4 * index + 4) {
        Some(&[a, b, c, d]) => Some(Run { start: wide(a, b), size: wide(c, d) }),
        _ => None,
    })
}

fn is_compatible(node: FdtNode<'_>, wanted: &str) -> bool {
    node.property("compatible").is_some_and(|property| {
        property.value().split(|&byte| byte == 0).any(|word| word == wanted.as_bytes())
    })
}

fn is_type(node: FdtNode<'_>, wanted: &str) -> bool {
    node.property("device_type")
        .is_some_and(|property| property.value().strip_suffix(b"\0") == Some(wanted.as_bytes()))
}

/// A number of one or two cells.
fn number(node: FdtNode<'_>, name: &str) -> Option<u64> {
    let [a, b, ..] = cells(node, name);
    match length(node, name) {
        1 => Some(u64::from(a)),
        2 => Some(wide(a, b)),
        _ => None,
    }
}

/// The words of `/chosen`'s `bootargs`.
pub fn bootargs<'a>(fdt: &Fdt<'a>) -> &'a str {
    let chosen = fdt.root().children().find(|node| node.name() == "chosen");
    let value = chosen.and_then(|node| node.properties().find(|property| property.name() == "bootargs"));
    value.map(bootargs_value).unwrap_or("")
}

fn bootargs_value(property: dtoolkit::fdt::FdtProperty<'_>) -> &str {
    property.value_as::<&str>().unwrap_or("")
}

/// Reads the machine.
pub fn read(fdt: &Fdt<'_>) -> Tree {
    let mut tree = Tree {
        memory: Few::new(),
        reserved: Few::new(),
        uart: 0,
        distributor: 0,
        redistributors: Few::new(),
        cpus: Few::new(),
        roots: Few::new(),
        ramdisk: None,
        conduit: Conduit::Smc,
    };
    for node in fdt.root().children() {
        if is_type(node, "memory") {
            runs(node).for_each(|run| tree.memory.push(run));
        } else if is_compatible(node, "arm,pl011") {
            tree.uart = runs(node).next().map_or(tree.uart, |run| run.start);
        } else if is_compatible(node, "arm,gic-v3") {
            tree.distributor = runs(node).next().map_or(tree.distributor, |run| run.start);
            runs(node).skip(1).for_each(|run| tree.redistributors.push(run));
        } else if is_compatible(node, "pci-host-ecam-generic") {
            tree.roots.push(root_complex(node));
        } else if node.name() == "reserved-memory" {
            for child in node.children().filter(|child| child.property("no-map").is_some()) {
                runs(child).for_each(|run| tree.reserved.push(run));
            }
        } else if node.name() == "cpus" {
            node.children()
                .filter(|cpu| is_type(*cpu, "cpu"))
                .for_each(|cpu| tree.cpus.push(number(cpu, "reg").unwrap_or(0)));
        } else if node.name() == "psci" {
            let hvc = node.property("method").is_some_and(|method| method.value().starts_with(b"hvc"));
            tree.conduit = if hvc { Conduit::Hvc } else { Conduit::Smc };
        } else if node.name() == "chosen"
            && let (Some(start), Some(end)) =
                (number(node, "linux,initrd-start"), number(node, "linux,initrd-end"))
        {
            tree.ramdisk = Some(Run { start, size: end.saturating_sub(start) });
        }
    }
    tree.roots.sort_by_key(|root| u64::from(root.first_bus));
    tree
}

fn root_complex(node: FdtNode<'_>) -> RootComplex {
    let ecam = runs(node).next().unwrap_or_default();
    let [first, last, ..] = cells(node, "bus-range");
    let mut root = RootComplex {
        ecam: ecam.start,
        first_bus: first as u8,
        last_bus: last as u8,
        window: 0,
        window_size: 0,
    };
    // PCI address of three cells, CPU address of two, size of two; space code 2 is 32-bit memory
    // (IEEE 1275 PCI bus binding, 2.2.1.1).
    let ranges = cells(node, "ranges");
    for range in ranges.chunks_exact(7).take(length(node, "ranges") / 7) {
        if let &[flags, _, pci_low, high, low, size_high, size_low] = range
            && flags >> 24 & 3 == 2
            && wide(high, low) == u64::from(pci_low)
        {
            root.window = wide(high, low);
            root.window_size = wide(size_high, size_low);
        }
    }
    root
}
