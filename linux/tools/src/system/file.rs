//! Files.

use alloc::format;
use alloc::string::String;
use hyp_iommu_uapi::{PATH, Record, Request};

use super::calls::{Number, call};
use crate::device::{Device, Errno};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// A file that is open.
#[derive(Debug)]
pub struct File {
    descriptor: u64,
}

impl File {
    /// The path is relative to nothing: it is absolute.
    const AT_CWD: u64 = (-100_i64).cast_unsigned();
    /// Stores of a device's registers are not put off.
    const SYNC: u64 = 0o4_010_000;

    /// Opens a file.
    ///
    /// # Errors
    ///
    /// The error number, with the path.
    pub fn open(path: &str, access: Access) -> Result<Self, String> {
        let terminated = format!("{path}\0");
        let flags = match access {
            Access::Read => 0,
            Access::ReadWrite => 2 | Self::SYNC,
        };
        // SAFETY: the path ends with NUL and lives until the call returns.
        let opened =
            unsafe { call(Number::OpenAt, [Self::AT_CWD, terminated.as_ptr() as u64, flags, 0, 0, 0]) };
        let descriptor =
            opened.map_err(|Errno(number)| format!("cannot open {path}: Linux's error {number}"))?;
        Ok(Self { descriptor })
    }

    /// A file of a descriptor that a system call made.
    pub const fn of(descriptor: u64) -> Self {
        Self { descriptor }
    }

    /// The descriptor.
    pub const fn descriptor(&self) -> u64 {
        self.descriptor
    }

    /// Reads bytes from an offset: whether they were all there.
    ///
    /// # Errors
    ///
    /// The error number.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<bool, Errno> {
        Ok(self.read_part(offset, bytes)? == bytes.len())
    }

    /// Reads bytes from an offset, perhaps fewer than there are: how many.
    ///
    /// # Errors
    ///
    /// The error number.
    pub fn read_part(&self, offset: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        let (pointer, length) = (bytes.as_mut_ptr() as u64, bytes.len() as u64);
        // SAFETY: the call writes into `bytes`, which is borrowed for it.
        let read = unsafe { call(Number::Pread, [self.descriptor, pointer, length, offset, 0, 0]) }?;
        Ok(read as usize)
    }

    /// Writes bytes at an offset: whether all were.
    ///
    /// # Errors
    ///
    /// The error number.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<bool, Errno> {
        let (pointer, length) = (bytes.as_ptr() as u64, bytes.len() as u64);
        // SAFETY: the call reads from `bytes`, which is borrowed for it.
        let written = unsafe { call(Number::Pwrite, [self.descriptor, pointer, length, offset, 0, 0]) }?;
        Ok(written == length)
    }

    /// An `ioctl`.
    ///
    /// # Errors
    ///
    /// The error number.
    ///
    /// # Safety
    ///
    /// If the argument of this request is a pointer, it points at what the request reads and writes.
    pub(super) unsafe fn control(&self, number: u32, argument: u64) -> Result<u64, Errno> {
        // SAFETY: the caller answers for it.
        unsafe { call(Number::Ioctl, [self.descriptor, number.into(), argument, 0, 0, 0]) }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: nobody else closes the descriptor; a mapping of the file stays.
        let _ = unsafe { call(Number::Close, [self.descriptor, 0, 0, 0, 0, 0]) };
    }
}

impl Device for File {
    fn request(&self, request: Request, mut record: Record) -> Result<Record, Errno> {
        // SAFETY: the module reads and writes one record, which lives until the call returns.
        unsafe { self.control(request.number(), (&raw mut record) as u64) }?;
        Ok(record)
    }
}

/// Opens the module's device.
///
/// # Errors
///
/// It is not there, or not for this user.
pub fn open_module() -> Result<File, String> {
    File::open(PATH, Access::ReadWrite).map_err(|error| {
        format!(
            "{error}\nBe root, and load the module with `insmod /lib/hyp_iommu.ko`: it loads only above the hypervisor (see dmesg)"
        )
    })
}
