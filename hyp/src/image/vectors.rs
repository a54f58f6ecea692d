//! Exceptions into EL2, and back out.
//!
//! From EL1 and EL0 there is one exception to expect, the synchronous one: interrupts and SErrors stay at EL1 (HCR_EL2.{IMO,FMO,
//! AMO} = 0). An HVC that is a call takes the short way: it saves what the Rust ABI lets a callee change, and nothing of
//! EL1 is read or written but those registers. Everything else saves the whole [`Frame`].
//!
//! An exception from EL2 itself is the hypervisor's end. It is reported on a stack of its own, because the one in use may be
//! what is broken, by the first CPU that gets there.

use core::arch::global_asm;

use hyp::spsr;

/// The interrupted context: all general-purpose registers, and where to go back to.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Frame {
    /// X0 to X30.
    pub x: [u64; 31],
    /// ELR_EL2.
    pub elr: u64,
    /// SPSR_EL2.
    pub spsr: u64,
    /// For EL2's own faults SP at the exception; else not written.
    pub sp: u64,
}

const FRAME_BYTES: usize = size_of::<Frame>();
const _: () = assert!(FRAME_BYTES == 272 && FRAME_BYTES.is_multiple_of(16));

impl Frame {
    /// General-purpose register `number`, 0 to 31; 31 is the zero register, as in a load or store.
    pub fn register(&self, number: u8) -> u64 {
        self.x.get(usize::from(number)).copied().unwrap_or(0)
    }

    /// Sets general-purpose register `number`; a write of register 31 is dropped.
    pub fn set_register(&mut self, number: u8, value: u64) {
        if let Some(register) = self.x.get_mut(usize::from(number)) {
            *register = value;
        }
    }

    /// Goes on after the instruction at ELR, of `bytes` bytes, in the state that it would have left.
    pub fn skip(&mut self, bytes: u64) {
        self.elr = self.elr.wrapping_add(bytes);
        self.spsr = spsr::after_instruction(self.spsr);
    }

    /// Ends the single step of the interrupted instruction: a step exception comes before the next one.
    pub fn end_step(&mut self) {
        self.spsr = spsr::after_step(self.spsr);
    }
}

global_asm!(
    r#"
    .macro  save_volatile
    sub     sp, sp, #{frame}
    stp     x0, x1, [sp, #0]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    str     x18, [sp, #144]
    stp     x29, x30, [sp, #232]
    .endm

    .macro  save_preserved
    stp     x19, x20, [sp, #152]
    stp     x21, x22, [sp, #168]
    stp     x23, x24, [sp, #184]
    stp     x25, x26, [sp, #200]
    stp     x27, x28, [sp, #216]
    mrs     x10, elr_el2
    mrs     x11, spsr_el2
    stp     x10, x11, [sp, #248]
    .endm

    .macro  restore_volatile
    ldp     x0, x1, [sp, #0]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldr     x18, [sp, #144]
    ldp     x29, x30, [sp, #232]
    add     sp, sp, #{frame}
    .endm

    .macro  exception_return
    eret
    dsb     nsh                         // no speculation past ERET
    isb
    .endm

    .macro  fatal kind
    .balign 128
    msr     sp_el0, x0                  // EL1's SP_EL0 and TPIDR_EL1 are lost: nothing goes back to EL1 from here
    msr     tpidr_el1, x1
    mov     x0, #\kind
    b       fatal_exception
    .endm

    .section .text.vectors, "ax"
    .balign 2048
    .global vectors
vectors:
    fatal   0                           // current EL with SP_EL0
    fatal   1
    fatal   2
    fatal   3
    fatal   4                           // current EL with SP_EL2
    fatal   5
    fatal   6
    fatal   7

    .balign 128                         // lower EL, AArch64: synchronous
    save_volatile
    adrp    x9, {reporting}
    ldr     x9, [x9, #:lo12:{reporting}]
    cbnz    x9, park
    mrs     x8, esr_el2
    mov     x29, xzr                    // a backtrace ends where EL1 begins
    movz    w9, #0x5a00, lsl #16        // HVC #0 from AArch64
    cmp     x8, x9
    b.ne    lower_slow
    mov     x5, sp
    b       lower_hvc

    fatal   9
    fatal   10
    fatal   11

    .balign 128                         // lower EL, AArch32: only EL0 can be
    save_volatile
    adrp    x9, {reporting}
    ldr     x9, [x9, #:lo12:{reporting}]
    cbnz    x9, park
    mov     x29, xzr
    b       lower_slow

    fatal   13
    fatal   14
    fatal   15

    .balign 128
lower_hvc:
    bl      {hypercall}
    restore_volatile
    exception_return

lower_slow:
    save_preserved
    mov     x0, sp
    bl      {lower_synchronous}
    ldp     x10, x11, [sp, #248]
    msr     elr_el2, x10
    msr     spsr_el2, x11
    ldp     x19, x20, [sp, #152]
    ldp     x21, x22, [sp, #168]
    ldp     x23, x24, [sp, #184]
    ldp     x25, x26, [sp, #200]
    ldp     x27, x28, [sp, #216]
    restore_volatile
    exception_return

    // X0 = which vector; X0 and X1 of the fault are in SP_EL0 and TPIDR_EL1. Nothing is stored before the stack
    // is known to be good.
fatal_exception:
    msr     tpidr_el0, x2
    mrs     x2, sctlr_el2
    and     x2, x2, #1                  // SCTLR_EL2.M
    cbz     x2, park                    // translation is off: no exclusives, and no console
    msr     tpidrro_el0, x3
    adrp    x1, {reporting}
    add     x1, x1, :lo12:{reporting}
    mrs     x2, tpidr_el2
    orr     x2, x2, #1
1:  ldaxr   x3, [x1]
    cbnz    x3, 2f
    stlxr   w3, x2, [x1]
    cbnz    w3, 1b
    mov     x3, sp
    adrp    x1, __report_stack_top
    add     x1, x1, :lo12:__report_stack_top
    mov     sp, x1
    sub     sp, sp, #{frame}
    str     x3, [sp, #264]
    mrs     x1, sp_el0
    mrs     x2, tpidr_el1
    stp     x1, x2, [sp, #0]
    mrs     x1, tpidr_el0
    mrs     x2, tpidrro_el0
    stp     x1, x2, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    str     x18, [sp, #144]
    stp     x29, x30, [sp, #232]
    save_preserved
    mov     x1, x0
    mov     x0, sp
    bl      {report}
2:  cmp     x3, x2
    b.ne    park
    movz    x0, #0x8400, lsl #16        // a fault in the report: PSCI SYSTEM_OFF
    movk    x0, #0x0008
    smc     #0
    b       park
    "#,
    frame = const FRAME_BYTES,
    reporting = sym super::panic::REPORTING,
    hypercall = sym super::traps::hypercall,
    lower_synchronous = sym super::traps::lower_synchronous,
    report = sym super::panic::report_exception,
);
