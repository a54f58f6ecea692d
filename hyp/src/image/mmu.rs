//! EL2's own stage 1: an identity map of the image (text executable and not writable, data writable and not executable),
//! of all other RAM, and of the device registers that EL2 touches.
//!
//! Built by the first CPU at boot, in two parts: the image and the device tree before translation is on, the rest once the
//! device tree has been read. Entries only ever go from invalid to valid, so no TLB invalidation is needed, and nothing
//! changes after boot. Descriptor formats: DDI 0487, D8.3 (VMSAv8-64, 4 KiB granule, EL2 with E2H = 0: one VA range).

use core::fmt;

use smmuv3::address::{PhysAddr, PhysRange};

use super::cpu::symbol;
use super::registers::{data_line_bytes, dsb, isb};
use super::{cpu, entry};

/// MAIR_EL2: 0 Normal, inner and outer write-back, read- and write-allocate; 1 Device-nGnRE.
pub const MAIR: u64 = 0xff | (0x04 << 8);
/// TCR_EL2 without PS: 48-bit addresses (T0SZ), walks write-back and inner shareable, 4 KiB granule, RES1 bits.
pub const TCR: u64 = 16 | (1 << 8) | (1 << 10) | (3 << 12) | (1 << 23) | (1 << 31);
/// SCTLR_EL2: RES1 bits, M, C, SA, I, WXN.
pub const SCTLR: u64 = 0x30c5_0830 | 1 | (1 << 2) | (1 << 3) | (1 << 12) | (1 << 19);

const PAGE_BYTES: u64 = 0x1000;
const ENTRIES: u64 = 512;
const VALID: u64 = 1;
/// A table at levels 0 to 2, a page at level 3.
const TABLE_OR_PAGE: u64 = 2;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const ACCESS: u64 = 1 << 10;
const INNER_SHAREABLE: u64 = 3 << 8;
/// AP[1], RES1 where a translation regime has one exception level.
const AP1: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const EXECUTE_NEVER: u64 = 1 << 54;

/// What may be done with a range.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Normal memory: read and execute.
    Text,
    /// Normal memory: read.
    ReadOnly,
    /// Normal memory: read and write.
    Data,
    /// Device-nGnRE: read and write.
    Device,
}

impl Rights {
    const fn attributes(self) -> u64 {
        let common = VALID | ACCESS | AP1 | INNER_SHAREABLE;
        match self {
            Self::Text => common | READ_ONLY,
            Self::ReadOnly => common | READ_ONLY | EXECUTE_NEVER,
            Self::Data => common | EXECUTE_NEVER,
            Self::Device => common | EXECUTE_NEVER | (1 << 2),
        }
    }
}

/// Why a range could not be mapped.
#[derive(Clone, Copy, Debug)]
pub enum MapError {
    /// The range is above the 48 bits that EL2 translates.
    TooHigh(PhysRange),
    /// Part of the range is mapped with other rights.
    Conflict(PhysAddr),
    /// There are not enough page-table pages in the image.
    NoTables(PhysRange),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooHigh(range) => write!(f, "{range} is above the 48 bits that EL2 translates"),
            Self::Conflict(at) => write!(f, "{at} is in two ranges of different kinds"),
            Self::NoTables(range) => write!(f, "no page-table page is left to map {range}"),
        }
    }
}

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __image_end: u8;
    static __tables_start: u8;
    static __tables_end: u8;
    static __boot_stack_top: u8;
}

/// The image in RAM, stacks and tables included.
pub fn image() -> Option<PhysRange> {
    PhysRange::new(PhysAddr(symbol!(__image_start)), symbol!(__image_end) - symbol!(__image_start))
}

/// The tables. There is one value of this type, and after boot none.
pub struct Mmu {
    used_bytes: u64,
}

impl Mmu {
    /// An empty root table.
    ///
    /// # Safety
    ///
    /// Called once, on the first CPU, before translation is on.
    pub unsafe fn new() -> Self {
        let mut mmu = Self { used_bytes: 0 };
        // The image has at least one table page; it is the root, which `enable_mmu` finds by its address.
        let _ = mmu.take_table();
        mmu
    }

    /// Maps the image, each part with its rights; guard pages stay unmapped.
    pub fn map_image(&mut self) -> Result<(), MapError> {
        self.map_between(symbol!(__image_start), symbol!(__text_end), Rights::Text)?;
        self.map_between(symbol!(__text_end), symbol!(__rodata_end), Rights::ReadOnly)?;
        let mut from = symbol!(__rodata_end);
        for guard in cpu::guard_pages() {
            self.map_between(from, guard.0, Rights::Data)?;
            from = guard.0 + PAGE_BYTES;
        }
        self.map_between(from, symbol!(__image_end), Rights::Data)
    }

    fn map_between(&mut self, start: u64, end: u64, rights: Rights) -> Result<(), MapError> {
        match PhysRange::new(PhysAddr(start), end.saturating_sub(start)) {
            Some(range) => self.map(range, rights),
            None => Ok(()),
        }
    }

    /// Maps all RAM of `range` that is not the image.
    pub fn map_ram(&mut self, range: PhysRange) -> Result<(), MapError> {
        let (start, end) = (symbol!(__image_start), symbol!(__image_end));
        let (first, past) = (range.start().0, range.last().0.saturating_add(1));
        self.map_between(first, past.min(start), Rights::Data)?;
        self.map_between(first.max(end), past, Rights::Data)
    }

    /// Maps a range, widened to whole pages, onto itself. What is mapped already with the same rights stays.
    pub fn map(&mut self, range: PhysRange, rights: Rights) -> Result<(), MapError> {
        let mut at = range.start().0 & !(PAGE_BYTES - 1);
        let last = range.last().0 | (PAGE_BYTES - 1);
        if last >> 48 != 0 {
            return Err(MapError::TooHigh(range));
        }
        while at <= last {
            at += self.map_one(at, last, rights, range)?;
        }
        dsb();
        isb();
        Ok(())
    }

    /// Maps the largest block or page at `at`, and returns its size in bytes.
    fn map_one(&mut self, at: u64, last: u64, rights: Rights, range: PhysRange) -> Result<u64, MapError> {
        let mut table = symbol!(__tables_start);
        let mut level = 0_u32;
        loop {
            let shift = 39 - 9 * level;
            let size = 1_u64 << shift;
            let slot = table + 8 * ((at >> shift) & (ENTRIES - 1));
            let entry = read_entry(slot);
            let fits = level > 0 && at & (size - 1) == 0 && last - at >= size - 1;
            if entry & VALID == 0 && fits {
                let kind = if level == 3 { TABLE_OR_PAGE } else { 0 };
                write_entry(slot, at | rights.attributes() | kind);
                return Ok(size);
            }
            if entry & VALID == 0 {
                let new = self.take_table().ok_or(MapError::NoTables(range))?;
                write_entry(slot, new | TABLE_OR_PAGE | VALID);
                table = new;
            } else if level < 3 && entry & TABLE_OR_PAGE != 0 {
                table = entry & ADDRESS;
            } else if entry & !(ADDRESS | TABLE_OR_PAGE) == rights.attributes() {
                return Ok(size - (at & (size - 1)));
            } else {
                return Err(MapError::Conflict(PhysAddr(at)));
            }
            level += 1;
        }
    }

    /// A table of invalid entries.
    fn take_table(&mut self) -> Option<u64> {
        let table = symbol!(__tables_start) + self.used_bytes;
        if table >= symbol!(__tables_end) {
            return None;
        }
        self.used_bytes += PAGE_BYTES;
        for index in 0..ENTRIES {
            write_entry(table + 8 * index, 0);
        }
        Some(table)
    }

    /// Turns translation on. The image must be mapped.
    ///
    /// # Safety
    ///
    /// The map is right: everything that is used from here on is mapped, with rights that allow it. Translation is off.
    pub unsafe fn enable(&self) {
        forget_stale_lines();
        // SAFETY: the caller's contract; the function keeps to the Rust ABI.
        unsafe { entry::enable_mmu() };
    }
}

/// Invalidates the cache lines of the image from its read-only data to the boot stack. What was written there with
/// caches off is in memory; lines of before these stores may be in caches still, all of them clean.
fn forget_stale_lines() {
    let line = data_line_bytes();
    // SAFETY: no dirty line can be lost: the boot protocol has the loader clean the file, `primary_entry` has
    // invalidated the rest, and EL2 has not had caches on. Stores of this function's own frame go to memory too.
    unsafe {
        core::arch::asm!(
            "2: dc ivac, {at}",
            "add {at}, {at}, {line}",
            "cmp {at}, {end}",
            "b.lo 2b",
            "dsb sy",
            at = inout(reg) symbol!(__text_end) => _,
            end = in(reg) symbol!(__boot_stack_top),
            line = in(reg) line,
            options(nostack),
        );
    }
}

fn read_entry(slot: u64) -> u64 {
    // SAFETY: `slot` is in a table of the image, aligned to 8 bytes: `map_one` makes it from table and index.
    unsafe { (slot as *const u64).read_volatile() }
}

fn write_entry(slot: u64, value: u64) {
    // SAFETY: as in `read_entry`; hardware walkers read the tables, so the store is volatile and of 64 bits.
    unsafe { (slot as *mut u64).write_volatile(value) };
}
