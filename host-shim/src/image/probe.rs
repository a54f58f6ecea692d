//! CPU accesses that may abort.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};
use host_shim::host::Abort;

global_asm!(
    r#"
    .text
    .global probe_start, probe_end
    .global probe_read_u8, probe_read_u16, probe_read_u32, probe_read_u64
    .global probe_write_u8, probe_write_u16, probe_write_u32, probe_write_u64
probe_start:
probe_read_u8:
    ldrb    w0, [x0]
    mov     x1, #0
    ret
probe_read_u16:
    ldrh    w0, [x0]
    mov     x1, #0
    ret
probe_read_u32:
    ldr     w0, [x0]
    mov     x1, #0
    ret
probe_read_u64:
    ldr     x0, [x0]
    mov     x1, #0
    ret
probe_write_u8:
    strb    w1, [x0]
    mov     x1, #0
    ret
probe_write_u16:
    strh    w1, [x0]
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
probe_cpuectlr:
    mrs     x0, S3_1_C15_C2_1
    mov     x1, #0
    ret
probe_l2ctlr:
    mrs     x0, S3_1_C11_C0_2
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
    fn probe_read_u8(address: u64) -> Answer;
    fn probe_read_u16(address: u64) -> Answer;
    fn probe_read_u32(address: u64) -> Answer;
    fn probe_read_u64(address: u64) -> Answer;
    fn probe_write_u8(address: u64, value: u64) -> Answer;
    fn probe_write_u16(address: u64, value: u64) -> Answer;
    fn probe_write_u32(address: u64, value: u64) -> Answer;
    fn probe_write_u64(address: u64, value: u64) -> Answer;
    fn probe_cpuectlr() -> Answer;
    fn probe_l2ctlr() -> Answer;
}

/// Aborts that were not what DDI 0487 says of a refused load or store: the ESR of the last one.
static ODD_ABORT: AtomicU64 = AtomicU64::new(0);

/// Data Abort taken without a change of exception level (DDI 0487, ESR_EL1.EC).
const DATA_ABORT_SAME_EL: u64 = 0x25;
const WRITE_NOT_READ: u64 = 1 << 6;
const FAR_NOT_VALID: u64 = 1 << 10;

/// Whether an instruction of this address makes a probe's access; it is the first of its function.
pub fn is_access(address: u64) -> bool {
    let loads = [probe_read_u8, probe_read_u16, probe_read_u32, probe_read_u64].map(|load| load as *const ());
    let stores =
        [probe_write_u8, probe_write_u16, probe_write_u32, probe_write_u64].map(|store| store as *const ());
    loads.into_iter().chain(stores).any(|access| access as u64 == address)
}

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

/// Reads registers that Cortex-A53, A57 and A72 have besides the architecture, CPUECTLR_EL1 and L2CTLR_EL1: ESR of the exception of each, 0 for none.
pub fn implementation_registers() -> [u64; 2] {
    // SAFETY: the reads change nothing, and an exception comes back as the answer.
    unsafe { [probe_cpuectlr().esr, probe_l2ctlr().esr] }
}

/// Loads 1, 2, 4 or 8 bytes; any other number is 8.
pub fn load(address: u64, bytes: u8) -> Result<u64, Abort> {
    // SAFETY: the access is to a device, to memory shared with devices or to memory of nobody, never to Rust's own objects, and an
    // abort comes back as the answer.
    let answer = unsafe {
        match bytes {
            1 => probe_read_u8(address),
            2 => probe_read_u16(address),
            4 => probe_read_u32(address),
            _ => probe_read_u64(address),
        }
    };
    result(answer, address, false)
}

/// Stores the low 1, 2, 4 or 8 bytes; any other number is 8.
pub fn store(address: u64, bytes: u8, value: u64) -> Result<(), Abort> {
    // SAFETY: as in `load`.
    let answer = unsafe {
        match bytes {
            1 => probe_write_u8(address, value),
            2 => probe_write_u16(address, value),
            4 => probe_write_u32(address, value),
            _ => probe_write_u64(address, value),
        }
    };
    result(answer, address, true).map(|_| ())
}
