//! Property values made of 32-bit big-endian cells (2.2.4), and addresses translated through buses.

use super::tokens::Node;
use super::{DeviceTreeError, Problem};
use smmuv3::address::{PhysAddr, PhysRange};

/// The most cells that an address has (on PCI) or a size.
const MAX_CELLS: usize = 3;

/// The number in up to two cells; of three cells, as PCI addresses have, the low two.
pub fn number(field: &[u8]) -> u64 {
    field.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The value of a property that is one cell; `None` when the node does not have it.
pub fn u32_property(node: Node<'_>, name: &'static str) -> Result<Option<u32>, DeviceTreeError> {
    let Some(value) = node.find(name) else { return Ok(None) };
    match <[u8; 4]>::try_from(value) {
        Ok(bytes) => Ok(Some(u32::from_be_bytes(bytes))),
        Err(_) => Err(DeviceTreeError::new(node.name, name, Problem::Length(value.len()))),
    }
}

/// The value of a property, cut into entries of fields with the given numbers of cells, each [`MAX_CELLS`] at
/// most.
pub fn entries<'a, const N: usize>(
    node: Node<'a>,
    name: &'static str,
    cells: [usize; N],
) -> Result<impl Iterator<Item = [&'a [u8]; N]>, DeviceTreeError> {
    let error = |problem| DeviceTreeError::new(node.name, name, problem);
    let value = node.find(name).ok_or(error(Problem::Missing))?;
    let entry_bytes = cells.iter().sum::<usize>() * 4;
    if entry_bytes == 0 || !value.len().is_multiple_of(entry_bytes) {
        return Err(error(Problem::Length(value.len())));
    }
    Ok(value.chunks_exact(entry_bytes).map(move |mut entry| {
        cells.map(|count| {
            let (field, rest) = entry.split_at_checked(count * 4).unwrap_or_default();
            entry = rest;
            field
        })
    }))
}

/// A node on the way from the root, and how addresses of its children are written.
pub struct Level<'a, 'p> {
    node: Node<'a>,
    parent: Option<&'p Level<'a, 'p>>,
    /// Cells of a child's address.
    pub address_cells: usize,
    /// Cells of a child's size.
    pub size_cells: usize,
}

impl<'a, 'p> Level<'a, 'p> {
    /// The level below `parent`, or the root's.
    pub fn new(node: Node<'a>, parent: Option<&'p Self>) -> Result<Self, DeviceTreeError> {
        // The defaults are those of 2.3.5.
        let address_cells = cell_count(node, "#address-cells", 2)?;
        let size_cells = cell_count(node, "#size-cells", 1)?;
        Ok(Self { node, parent, address_cells, size_cells })
    }

    /// How many levels there are above this one.
    pub fn depth(&self) -> usize {
        core::iter::successors(self.parent, |level| level.parent).count()
    }

    /// The ranges in `reg` of a child of this node, as the CPU sees them. An entry with size 0 is `None`.
    pub fn reg(
        &self,
        child: Node<'a>,
    ) -> Result<impl Iterator<Item = Result<Option<PhysRange>, DeviceTreeError>>, DeviceTreeError> {
        if self.address_cells > 2 {
            return Err(DeviceTreeError::new(child.name, "reg", Problem::Untranslatable));
        }
        let entries = entries(child, "reg", [self.address_cells, self.size_cells])?;
        Ok(entries.map(move |[address, size]| {
            let (address, size_bytes) = (number(address), number(size));
            if size_bytes == 0 {
                return Ok(None);
            }
            let range = PhysRange::new(PhysAddr(address), size_bytes).ok_or(DeviceTreeError::new(
                child.name,
                "reg",
                Problem::Value(address),
            ))?;
            self.translate(child, range).map(Some)
        }))
    }

    /// Translates a range in the address space of this node's children into that of the CPU (2.3.8).
    pub fn translate(&self, of: Node<'a>, range: PhysRange) -> Result<PhysRange, DeviceTreeError> {
        let mut range = range;
        let mut level = self;
        while let Some(parent) = level.parent {
            range = level.to_parent(parent, range)?.ok_or(DeviceTreeError::new(
                of.name,
                "reg",
                Problem::Untranslatable,
            ))?;
            level = parent;
        }
        Ok(range)
    }

    fn to_parent(&self, parent: &Self, range: PhysRange) -> Result<Option<PhysRange>, DeviceTreeError> {
        match self.node.find("ranges") {
            None => return Ok(None),
            Some([]) => return Ok(Some(range)),
            Some(_) if self.address_cells > 2 || parent.address_cells > 2 => return Ok(None),
            Some(_) => {}
        }
        let cells = [self.address_cells, parent.address_cells, self.size_cells];
        for [child, above, size] in entries(self.node, "ranges", cells)? {
            let (child, above) = (PhysAddr(number(child)), number(above));
            let Some(window) = PhysRange::new(child, number(size)) else { continue };
            if window.encloses(range) {
                let start = above.checked_add(range.start().0 - window.start().0);
                return Ok(start.and_then(|start| PhysRange::new(PhysAddr(start), range.size_bytes())));
            }
        }
        Ok(None)
    }
}

fn cell_count(node: Node<'_>, name: &'static str, default: usize) -> Result<usize, DeviceTreeError> {
    match u32_property(node, name)? {
        None => Ok(default),
        Some(count) if count as usize <= MAX_CELLS => Ok(count as usize),
        Some(count) => Err(DeviceTreeError::new(node.name, name, Problem::Value(u64::from(count)))),
    }
}
