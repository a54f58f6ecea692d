//! Who gets which RAM: the image and the page pool behind it are the hypervisor's, the rest is the host's.

use core::fmt;

use hyp::devicetree::Machine;
use hyp::list::List;
use smmuv3::address::{PhysAddr, PhysRange};

/// The hypervisor's share ends on a multiple of this, so that the host keeps 2 MiB blocks.
const BLOCK_BYTES: u64 = 2 << 20;
const PAGE_BYTES: u64 = 0x1000;
/// The largest granule, so that the pool serves any.
const POOL_ALIGN_BYTES: u64 = 0x1_0000;
/// Ownership records: 2 bytes for each page of RAM.
const RECORD_BYTES: u64 = 2;
/// Page tables, stream tables and queues, besides the records.
const POOL_BYTES: u64 = 4 << 20;

/// Ranges that nothing else may be put into.
pub type Taken = List<PhysRange, 32>;

/// Why the RAM behind the image cannot be the page pool.
#[derive(Clone, Copy, Debug)]
pub enum CarveError {
    /// The image is not in RAM that the device tree describes.
    NotInRam(PhysRange),
    /// The RAM that holds the image is too short: what would be needed.
    TooShort(PhysRange),
    /// Something lies where the pool should be.
    Overlaps {
        /// The hypervisor's share.
        share: PhysRange,
        /// What lies there.
        what: &'static str,
        /// And where.
        range: PhysRange,
    },
}

impl fmt::Display for CarveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInRam(image) => {
                write!(f, "the hypervisor's image at {image} is not in RAM of the device tree")
            }
            Self::TooShort(share) => write!(f, "the hypervisor needs {share}, which its RAM does not have"),
            Self::Overlaps { share, what, range } => {
                write!(f, "{what} at {range} lies in {share}, which the hypervisor needs behind its image")
            }
        }
    }
}

/// The hypervisor's RAM.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Image and pool.
    pub all: PhysRange,
    /// The image, up to the pool.
    pub image: PhysRange,
    /// What is free for the page pool: a multiple of 64 KiB, as is its start.
    pub pool: PhysRange,
}

/// The hypervisor's share for an image at `image` and a device tree at `tree`.
pub fn share(machine: &Machine, image: PhysRange, tree: PhysRange) -> Result<Share, CarveError> {
    let Some(ram) = machine.memory.iter().find(|ram| ram.encloses(image)) else {
        return Err(CarveError::NotInRam(image));
    };
    let ram_bytes: u64 = machine.memory.iter().map(|range| range.size_bytes()).sum();
    let pool_start = image.last().0.saturating_add(POOL_ALIGN_BYTES) & !(POOL_ALIGN_BYTES - 1);
    let image_start = PhysAddr(image.start().0 & !(POOL_ALIGN_BYTES - 1));
    let needed = ram_bytes / PAGE_BYTES * RECORD_BYTES + POOL_BYTES;
    let end = pool_start.saturating_add(needed).saturating_add(BLOCK_BYTES - 1) & !(BLOCK_BYTES - 1);
    let (Some(all), Some(image_part), Some(pool)) = (
        PhysRange::inclusive(image_start, PhysAddr(end - 1)),
        PhysRange::inclusive(image_start, PhysAddr(pool_start - 1)),
        PhysRange::inclusive(PhysAddr(pool_start), PhysAddr(end - 1)),
    ) else {
        return Err(CarveError::NotInRam(image));
    };
    if !ram.encloses(all) {
        return Err(CarveError::TooShort(all));
    }
    let modules =
        [("the device tree", Some(tree)), ("the kernel", machine.kernel), ("the RAM disk", machine.ramdisk)];
    let reserved = machine.reserved.iter().map(|range| ("memory of the firmware", Some(*range)));
    for (what, range) in modules.into_iter().chain(reserved) {
        if let Some(range) = range.filter(|range| range.overlaps(all)) {
            return Err(CarveError::Overlaps { share: all, what, range });
        }
    }
    Ok(Share { all, image: image_part, pool })
}

/// The lowest `size_bytes` of RAM that touch nothing of `taken` and begin `offset_bytes` behind a 2 MiB boundary.
pub fn find_room(machine: &Machine, taken: &Taken, offset_bytes: u64, size_bytes: u64) -> Option<PhysRange> {
    for ram in machine.memory.iter() {
        let mut base = ram.start().0.checked_next_multiple_of(BLOCK_BYTES)?;
        loop {
            let room = PhysRange::new(PhysAddr(base.checked_add(offset_bytes)?), size_bytes)?;
            if !ram.encloses(room) {
                break;
            }
            let in_the_way =
                taken.iter().filter(|range| range.overlaps(room)).map(|range| range.last().0).max();
            let Some(last) = in_the_way else {
                return Some(room);
            };
            base =
                last.saturating_sub(offset_bytes).saturating_add(1).checked_next_multiple_of(BLOCK_BYTES)?;
        }
    }
    None
}
