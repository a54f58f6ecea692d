//! This CPU's registers.

use aarch64_cpu::registers::{
    CNTFRQ_EL0, CNTV_CTL_EL0, CNTV_TVAL_EL0, CNTVCT_EL0, MPIDR_EL1, Readable, TPIDR_EL1, Writeable,
};

/// Says which CPU this is.
pub fn set_index(index: usize) {
    TPIDR_EL1.set(index as u64);
}

/// Affinity fields of this CPU's MPIDR.
pub fn affinity() -> u64 {
    MPIDR_EL1.get() & 0xff_00ff_ffff
}

/// The virtual counter, not before what precedes it.
#[inline]
pub fn ticks() -> u64 {
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    CNTVCT_EL0.get()
}

/// The virtual counter as time.
pub fn now_ns() -> u64 {
    let frequency = CNTFRQ_EL0.get().max(1);
    let ticks = u128::from(ticks()) * 1_000_000_000 / u128::from(frequency);
    ticks as u64
}

/// Where QEMU counts instructions one CPU runs at a time, until a timer of any CPU is due, or a tenth of a second of the machine's clock is over.
/// This sets such a timer, whose interrupt stays masked.
pub fn end_turn_within(ticks: u64) {
    CNTV_TVAL_EL0.set(ticks);
    CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::SET + CNTV_CTL_EL0::IMASK::SET);
}

/// Writes the cache line of an address back to the point of coherency, and forgets it.
pub fn clean_and_invalidate(address: u64) {
    // SAFETY: no value of memory changes by it.
    unsafe { core::arch::asm!("dc civac, {}", "dsb sy", in(reg) address, options(nostack, preserves_flags)) };
}
