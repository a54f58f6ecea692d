//! System registers and instructions that `aarch64-cpu` has no name for.

/// Reads a system register by its name or its `S<op0>_<op1>_C<n>_C<m>_<op2>` form.
///
/// The register must exist on this CPU and be readable at EL2 without an effect.
macro_rules! read_sysreg {
    ($name:literal) => {{
        let value: u64;
        #[allow(unused_unsafe, reason = "also used where the surrounding block writes registers")]
        // SAFETY: reading an ID or status register changes nothing; that it exists is the caller's contract, and a fault
        // would be reported as an undefined instruction at EL2.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags));
        }
        value
    }};
}

/// Writes a system register by its name or its `S<op0>_<op1>_C<n>_C<m>_<op2>` form. The `unsafe` block around it
/// says why that is right.
macro_rules! write_sysreg {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags));
    }};
}

pub(crate) use {read_sysreg, write_sysreg};

/// A field of `width` bits, at most 32, at bit `shift` of an ID register.
pub const fn field(value: u64, shift: u32, width: u32) -> u64 {
    (value >> shift) & ((1 << width) - 1)
}

/// A 4-bit feature field at bit `shift` of an ID register.
pub const fn feature(value: u64, shift: u32) -> u64 {
    field(value, shift, 4)
}

/// ISB: later instructions see the system-register writes before it.
#[inline]
pub fn isb() {
    // SAFETY: a barrier has no effect but order.
    unsafe { core::arch::asm!("isb", options(nostack, preserves_flags)) };
}

/// DSB SY.
#[inline]
pub fn dsb() {
    // SAFETY: a barrier has no effect but order.
    unsafe { core::arch::asm!("dsb sy", options(nostack, preserves_flags)) };
}

/// CNTPCT_EL0, which EL1 cannot change or offset.
#[inline]
pub fn read_counter() -> u64 {
    let ticks: u64;
    // SAFETY: reading the counter changes nothing; the ISB keeps the read where it stands in the program.
    unsafe {
        core::arch::asm!("isb", "mrs {}, cntpct_el0", out(reg) ticks, options(nostack, preserves_flags));
    }
    ticks
}

/// Smallest data cache line of any level, in bytes (CTR_EL0.DminLine).
pub fn data_line_bytes() -> u64 {
    4 << feature(read_sysreg!("ctr_el0"), 16)
}
