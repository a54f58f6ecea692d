//! Memory that a device reaches, and registers of a device.

use core::arch::asm;

use alloc::format;
use alloc::string::String;
use host_shim::bus::Bus;
use host_shim::host::Abort;

use super::calls::{Number, call};
use super::file::{Access, File};
use crate::device::Errno;

/// Bytes of a page of this kernel.
pub const PAGE_BYTES: u64 = 4096;

const READ_WRITE: u64 = 1 | 2;
const SHARED: u64 = 1;
const ANONYMOUS: u64 = 0x20;
const LOCKED: u64 = 0x2000;

/// Maps a page: at this offset of a file, or anonymous memory.
fn map(file: Option<(&File, u64)>) -> Result<u64, Errno> {
    let arguments = match file {
        Some((file, offset)) => [0, PAGE_BYTES, READ_WRITE, SHARED, file.descriptor(), offset],
        None => [0, PAGE_BYTES, READ_WRITE, SHARED | ANONYMOUS | LOCKED, u64::MAX, 0],
    };
    // SAFETY: Linux chooses where, so that nothing else is there.
    unsafe { call(Number::Mmap, arguments) }
}

/// Maps zeroed memory that stays the same memory in processes that are started later.
pub fn map_shared(bytes: u64) -> Result<u64, Errno> {
    // SAFETY: as in `map`.
    unsafe { call(Number::Mmap, [0, bytes, READ_WRITE, SHARED | ANONYMOUS, u64::MAX, 0]) }
}

/// A page of this program's own memory. It stays where it is in physical memory: it is locked, and this kernel moves no locked page that is
/// not asked to move.
#[derive(Debug)]
pub struct Own {
    at: u64,
    physical: u64,
}

impl Own {
    /// A page, and where it is in physical memory.
    ///
    /// # Errors
    ///
    /// Linux has no page, or does not tell this user where it is.
    pub fn new() -> Result<Self, String> {
        let at = map(None).map_err(|Errno(number)| format!("no page of memory: Linux's error {number}"))?;
        let mut own = Self { at, physical: 0 };
        own.set(0, 0);
        let pagemap = File::open("/proc/self/pagemap", Access::Read)?;
        let mut entry = [0; 8];
        let known = pagemap.read_at(at / PAGE_BYTES * 8, &mut entry);
        // Documentation/admin-guide/mm/pagemap.rst: bit 63 present, bits 54:0 the number of the frame, zero for who is not root.
        let entry = u64::from_le_bytes(entry);
        let frame = entry & ((1 << 55) - 1);
        if known != Ok(true) || entry >> 63 == 0 || frame == 0 {
            return Err("Linux does not tell where a page is in memory: be root (CAP_SYS_ADMIN)".into());
        }
        own.physical = frame * PAGE_BYTES;
        Ok(own)
    }

    /// The virtual address.
    pub const fn address(&self) -> u64 {
        self.at
    }

    /// The physical address.
    pub const fn physical(&self) -> u64 {
        self.physical
    }

    /// The 32-bit word with this index.
    pub fn get(&self, index: usize) -> u32 {
        assert!(index < PAGE_BYTES as usize / 4);
        // SAFETY: the page is mapped as long as this lives, and the index is inside it; a device may write to it, hence volatile.
        unsafe { (self.at as *const u32).add(index).read_volatile() }
    }

    /// Writes it.
    pub fn set(&mut self, index: usize, value: u32) {
        assert!(index < PAGE_BYTES as usize / 4);
        // SAFETY: as in `get`.
        unsafe { (self.at as *mut u32).add(index).write_volatile(value) }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        unmap(self.at);
    }
}

/// The first page of a device's registers, or of what else a file has at an offset.
#[derive(Debug)]
pub struct Registers {
    at: u64,
}

impl Registers {
    /// Those at an offset of a file.
    ///
    /// # Errors
    ///
    /// The error number.
    pub fn new(file: &File, offset: u64) -> Result<Self, Errno> {
        map(Some((file, offset))).map(|at| Self { at })
    }

    /// Where they are mapped.
    pub const fn address(&self) -> u64 {
        self.at
    }

    fn at(&self, offset: u64) -> u64 {
        assert!(offset.is_multiple_of(4) && offset < PAGE_BYTES);
        self.at + offset
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        unmap(self.at);
    }
}

fn unmap(at: u64) {
    // SAFETY: the page was mapped by `map`, and whoever could use it is gone.
    let _ = unsafe { call(Number::Munmap, [at, PAGE_BYTES, 0, 0, 0, 0]) };
}

/// Addresses are offsets. Nothing refuses an access: Linux would end the program.
impl Bus for Registers {
    fn read_u32(&self, address: u64) -> Result<u32, Abort> {
        let value: u32;
        // SAFETY: the address is in the page that is mapped; one load of 32 bits, as devices need it, after all stores before it.
        unsafe {
            asm!("dsb sy", "ldr {0:w}, [{1}]", "dsb sy", out(reg) value, in(reg) self.at(address), options(nostack))
        };
        Ok(value)
    }

    fn write_u32(&self, address: u64, value: u32) -> Result<(), Abort> {
        // SAFETY: as in `read_u32`.
        unsafe {
            asm!("dsb sy", "str {0:w}, [{1}]", in(reg) value, in(reg) self.at(address), options(nostack))
        };
        Ok(())
    }

    fn read_u64(&self, address: u64) -> Result<u64, Abort> {
        Ok(u64::from(self.read_u32(address)?) | u64::from(self.read_u32(address + 4)?) << 32)
    }

    fn write_u64(&self, address: u64, value: u64) -> Result<(), Abort> {
        self.write_u32(address, value as u32)?;
        self.write_u32(address + 4, (value >> 32) as u32)
    }

    fn now_ns(&self) -> u64 {
        now_ns()
    }
}

/// A clock in nanoseconds.
pub fn now_ns() -> u64 {
    let (ticks, frequency): (u64, u64);
    // SAFETY: Linux lets programs read the counter and its frequency.
    unsafe {
        asm!("isb", "mrs {0}, cntvct_el0", "mrs {1}, cntfrq_el0", out(reg) ticks, out(reg) frequency, options(nostack))
    };
    (u128::from(ticks) * 1_000_000_000 / u128::from(frequency.max(1))) as u64
}
