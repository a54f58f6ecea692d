//! CPU accesses that may abort.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};
use host_shim::host::Abort;

global_asm!(
    r#"
    .text
    .global probe_start, probe_end, probe_read_u32, probe_read_u64, probe_write_u32, probe_write_u64
probe_start:
probe_read_u32:
    ldr     w0, [x0]
    mov     x1, #0
    ret
probe_read_u64:
    ldr     x0, [x0]
    mov     x1, #0
    ret
probe_write_u32:
    str     w1, [x0]
    mov     x1, #0
    ret
probe_write_u64:
    str     x1, [x0]
    mov     x1, #0
    ret
probe_end:
    "#
);

/// What a probe answers: (value, 0), or (FAR, ESR) of the exception.
#[repr(C)]
struct Answer {
    value: u64,
    esr: u64,
}

unsafe extern "C" {
    fn probe_read_u32(address: u64) -> Answer;
    fn probe_read_u64(address: u64) -> Answer;
    fn probe_write_u32(address: u64, value: u32) -> Answer;
    fn probe_write_u64(address: u64, value: u64) -> Answer;
}

/// Aborts that were not what DDI 0487 says of a refused load or store: the ESR of the last one.
static ODD_ABORT: AtomicU64 = AtomicU64::new(0);

/// Data Abort taken without a change of exception level (DDI 0487, ESR_EL1.EC).
const DATA_ABORT_SAME_EL: u64 = 0x25;
const WRITE_NOT_READ: u64 = 1 << 6;
const FAR_NOT_VALID: u64 = 1 << 10;

/// ESR of the last abort whose class, direction or address was wrong; `None` when all were right.
pub fn odd_abort() -> Option<u64> {
    match ODD_ABORT.load(Ordering::Relaxed) {
        0 => None,
        esr => Some(esr),
    }
}

fn result(answer: Answer, address: u64, write: bool) -> Result<u64, Abort> {
    let esr = answer.esr;
    if esr == 0 {
        return Ok(answer.value);
    }
    let right = esr >> 26 == DATA_ABORT_SAME_EL
        && (esr & WRITE_NOT_READ != 0) == write
        && (esr & FAR_NOT_VALID != 0 || answer.value == address);
    if !right {
        ODD_ABORT.store(esr, Ordering::Relaxed);
    }
    Err(Abort)
}

/// Reads 32 bits.
pub fn read_u32(address: u64) -> Result<u32, Abort> {
    // SAFETY: the access is to a device, to memory shared with devices or to memory of nobody, never to Rust's own objects, and an
    // abort comes back as the answer.
    result(unsafe { probe_read_u32(address) }, address, false).map(|value| value as u32)
}

/// Writes 32 bits.
pub fn write_u32(address: u64, value: u32) -> Result<(), Abort> {
    // SAFETY: as in `read_u32`.
    result(unsafe { probe_write_u32(address, value) }, address, true).map(|_| ())
}

/// Reads 64 bits.
pub fn read_u64(address: u64) -> Result<u64, Abort> {
    // SAFETY: as in `read_u32`.
    result(unsafe { probe_read_u64(address) }, address, false)
}

/// Writes 64 bits.
pub fn write_u64(address: u64, value: u64) -> Result<(), Abort> {
    // SAFETY: as in `read_u32`.
    result(unsafe { probe_write_u64(address, value) }, address, true).map(|_| ())
}
