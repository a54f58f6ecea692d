//! Calls out of EL1 (DEN 0028).

use core::arch::asm;

/// `HVC #0` with `id` in `W0` and arguments in `X1` to `X4`: `X0` to `X4` of the answer.
#[inline]
pub fn hvc(id: u32, arguments: [u64; 4]) -> [u64; 5] {
    let mut x0 = u64::from(id);
    let [mut x1, mut x2, mut x3, mut x4] = arguments;
    // SAFETY: SMCCC 1.1 preserves all other registers; memory that the call takes away or wipes is none of Rust's.
    unsafe {
        asm!(
            "hvc #0",
            inout("x0") x0,
            inout("x1") x1,
            inout("x2") x2,
            inout("x3") x3,
            inout("x4") x4,
            options(nostack)
        );
    }
    [x0, x1, x2, x3, x4]
}

/// `SMC #0`, the same way with three arguments: `X0` of the answer.
#[inline]
pub fn smc(id: u32, arguments: [u64; 3]) -> u64 {
    let mut x0 = u64::from(id);
    let [mut x1, mut x2, mut x3] = arguments;
    // SAFETY: as in `hvc`.
    unsafe {
        asm!(
            "smc #0",
            inout("x0") x0,
            inout("x1") x1,
            inout("x2") x2,
            inout("x3") x3,
            options(nostack)
        );
    }
    let _ = (x1, x2, x3);
    x0
}
