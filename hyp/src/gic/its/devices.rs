//! The devices that are mapped, and where their ITTs are: a table of two levels in pages of the pool.

use smmuv3::address::PhysAddr;

use crate::memory::pool::{OutOfPages, PAGE_LOG2, Pool};
use crate::platform::Platform;

/// Log2 of the entries of a page.
const ENTRIES_LOG2: u8 = 9;
const ENTRIES: u64 = 1 << ENTRIES_LOG2;
/// The most bits of a DeviceID.
pub const MAX_DEVICE_BITS: u8 = 2 * ENTRIES_LOG2;
const ADDRESS: u64 = !0xfff;
/// Of a root entry: how many devices of the page below are mapped.
const COUNT: u64 = 0xfff;

/// A device's interrupt translation table (ITT): memory of the hypervisor's, and of the ITS as long as the device is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Itt {
    /// Where it is: a run of the pool.
    pub place: PhysAddr,
    /// Log2 of its size in pages of 4 KiB, at most 15.
    pub order: u8,
    /// Bits of the device's EventIDs, 1 to 31.
    pub event_bits: u8,
}

impl Itt {
    const fn to_word(self) -> u64 {
        self.place.0 | (self.order as u64) << 8 | self.event_bits as u64
    }

    const fn from_word(word: u64) -> Option<Self> {
        match word {
            0 => None,
            _ => Some(Self {
                place: PhysAddr(word & ADDRESS),
                order: (word >> 8 & 0xf) as u8,
                event_bits: (word & 0xff) as u8,
            }),
        }
    }
}

/// The mapped devices of one ITS.
pub struct Devices {
    root: PhysAddr,
}

impl Devices {
    /// No devices.
    ///
    /// # Errors
    /// [`OutOfPages`].
    pub fn new<P: Platform>(p: &P, pool: &Pool) -> Result<Self, OutOfPages> {
        Ok(Self { root: pool.take_zeroed(p, 0)? })
    }

    fn root_slot(&self, device: u32) -> PhysAddr {
        self.root.offset(8 * (u64::from(device) >> ENTRIES_LOG2 & (ENTRIES - 1)))
    }

    const fn slot(page: u64, device: u32) -> PhysAddr {
        PhysAddr(page + 8 * (device as u64 & (ENTRIES - 1)))
    }

    /// The ITT of a device; `None` if it is not mapped.
    pub fn get<P: Platform>(&self, p: &P, device: u32) -> Option<Itt> {
        let page = p.read_u64(self.root_slot(device)) & ADDRESS;
        if page == 0 { None } else { Itt::from_word(p.read_u64(Self::slot(page, device))) }
    }

    /// The root, and the pages below it, each with its first device.
    #[cfg(feature = "oracle")]
    pub fn pages<P: Platform>(&self, p: &P) -> (PhysAddr, impl Iterator<Item = (u32, PhysAddr)>) {
        let entry = move |high: u64| p.read_u64(self.root.offset(8 * high)) & ADDRESS;
        let pages = (0..ENTRIES).map(move |high| ((high << ENTRIES_LOG2) as u32, PhysAddr(entry(high))));
        (self.root, pages.filter(|(_, page)| page.0 != 0))
    }

    /// Maps a device, which is not mapped.
    ///
    /// # Errors
    /// [`OutOfPages`]; nothing is changed.
    pub fn insert<P: Platform>(&self, p: &P, pool: &Pool, device: u32, itt: Itt) -> Result<(), OutOfPages> {
        let root_slot = self.root_slot(device);
        let mut entry = p.read_u64(root_slot);
        if entry == 0 {
            entry = pool.take_zeroed(p, 0)?.0;
        }
        p.write_u64(Self::slot(entry & ADDRESS, device), itt.to_word());
        p.write_u64(root_slot, entry + 1);
        Ok(())
    }

    /// Unmaps a device; the ITT that it had, which the ITS may still use.
    pub fn remove<P: Platform>(&self, p: &P, pool: &Pool, device: u32) -> Option<Itt> {
        let itt = self.get(p, device)?;
        let root_slot = self.root_slot(device);
        let entry = p.read_u64(root_slot);
        p.write_u64(Self::slot(entry & ADDRESS, device), 0);
        if entry & COUNT > 1 {
            p.write_u64(root_slot, entry - 1);
        } else {
            p.write_u64(root_slot, 0);
            pool.give(p, PhysAddr(entry & ADDRESS), 0);
        }
        Some(itt)
    }

    /// The mapped device with the lowest DeviceID; looks at two pages of entries at most.
    pub fn first<P: Platform>(&self, p: &P) -> Option<u32> {
        let high = (0..ENTRIES).find(|high| p.read_u64(self.root.offset(8 * high)) != 0)?;
        let page = p.read_u64(self.root.offset(8 * high)) & ADDRESS;
        let low = (0..ENTRIES).find(|low| p.read_u64(PhysAddr(page + 8 * low)) != 0)?;
        Some((high << ENTRIES_LOG2 | low) as u32)
    }
}

const _: () = assert!(1 << PAGE_LOG2 == 8 * ENTRIES);
