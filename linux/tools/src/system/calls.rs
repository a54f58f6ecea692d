//! System calls of arm64 Linux.

use core::arch::asm;

use crate::device::Errno;

/// Numbers of system calls (`include/uapi/asm-generic/unistd.h`).
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub enum Number {
    Ioctl = 29,
    OpenAt = 56,
    Close = 57,
    Write = 64,
    Pread = 67,
    Pwrite = 68,
    ExitGroup = 94,
    SchedSetAffinity = 122,
    SchedGetAffinity = 123,
    RtSigaction = 134,
    Munmap = 215,
    Clone = 220,
    Mmap = 222,
    Wait4 = 260,
}

/// Makes a system call.
///
/// # Errors
///
/// The error number that Linux answered.
///
/// # Safety
///
/// What the call does to this program's memory must be sound: pointers are valid for what the call reads and writes, and no mapping goes that
/// is still used.
pub unsafe fn call(number: Number, arguments: [u64; 6]) -> Result<u64, Errno> {
    let [mut x0, x1, x2, x3, x4, x5] = arguments;
    // SAFETY: the caller answers for the memory; Linux preserves all registers but x0.
    unsafe {
        asm!(
            "svc #0",
            inout("x0") x0,
            in("x1") x1,
            in("x2") x2,
            in("x3") x3,
            in("x4") x4,
            in("x5") x5,
            in("x8") number as u64,
            options(nostack)
        );
    }
    // The last page of addresses stands for errors.
    match x0.cast_signed() {
        error @ -4095..0 => Err(Errno(-error as i32)),
        _ => Ok(x0),
    }
}

/// Ends the program.
pub fn exit(status: u8) -> ! {
    loop {
        // SAFETY: nothing of this program is used any more.
        let _ = unsafe { call(Number::ExitGroup, [status.into(), 0, 0, 0, 0, 0]) };
    }
}
