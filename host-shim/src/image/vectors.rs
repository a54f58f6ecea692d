//! Exceptions at EL1: an abort of a probe is its answer, an interrupt is counted, everything else is the end.

use super::console::{self, println};
use super::psci;
use core::arch::global_asm;

global_asm!(
    r#"
    .macro  fatal kind
    .balign 128
    mov     x0, #\kind
    b       fatal_exception
    .endm

    .text
    .balign 2048
    .global vectors
vectors:
    fatal   0                           // current EL with SP_EL0
    fatal   1
    fatal   2
    fatal   3

    .balign 128                         // current EL with SP_EL1: synchronous
    stp     x2, x3, [sp, #-16]!
    mrs     x2, elr_el1
    adrp    x3, probe_start
    add     x3, x3, :lo12:probe_start
    cmp     x2, x3
    b.lo    1f
    adrp    x3, probe_end
    add     x3, x3, :lo12:probe_end
    cmp     x2, x3
    b.hs    1f
    // A probe is a leaf: it returns (X0, X1) = (FAR, ESR), and ESR of an exception is not 0.
    mrs     x0, far_el1
    mrs     x1, esr_el1
    msr     elr_el1, x30
    ldp     x2, x3, [sp], #16
    eret
1:  mov     x0, #4
    b       fatal_exception

    .balign 128                         // current EL with SP_EL1: IRQ
    b       interrupt

    fatal   6
    fatal   7
    fatal   8                           // lower EL: there is none
    fatal   9
    fatal   10
    fatal   11
    fatal   12
    fatal   13
    fatal   14
    fatal   15

    // What a function may change is saved; the program has no floating point.
interrupt:
    sub     sp, sp, #160
    stp     x0, x1, [sp]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x30, [sp, #144]
    mrs     x0, elr_el1
    bl      {taken}
    msr     elr_el1, x0
    ldp     x0, x1, [sp]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x30, [sp, #144]
    add     sp, sp, #160
    eret

fatal_exception:
    mrs     x1, esr_el1
    mrs     x2, elr_el1
    mrs     x3, far_el1
    mov     x4, x30
    b       {report}
    "#,
    report = sym report,
    taken = sym super::interrupts::taken,
);

extern "C" fn report(vector: u64, esr: u64, elr: u64, far: u64, link: u64) -> ! {
    console::force_unlock();
    println!(
        "host-shim: exception by vector {vector}: ESR {esr:#x} (class {:#x}), ELR {elr:#x}, FAR {far:#x}, X30 {link:#x}",
        esr >> 26
    );
    println!("outcome: fail");
    psci::system_off()
}
