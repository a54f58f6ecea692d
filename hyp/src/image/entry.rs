//! From the boot loader to Rust, on the first CPU and on the others.
//!
//! The image begins with the header of Linux's arm64 boot protocol (`Documentation/arch/arm64/booting.rst`), so any
//! loader that starts Linux starts it: MMU off, X0 = device tree. PSCI starts the other CPUs at `secondary_entry` with
//! X0 = address of their [`super::cpu::Cpu`].
//!
//! With the MMU off every data access is to Device memory: no exclusives, no unaligned access. The relocation
//! loop and the page-table builder keep to that, and locks come only after `enable_mmu`.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .text.header, "ax"
    .global _start
_start:
    b       primary_entry
    .long   0
    .quad   0                           // text_offset
    .quad   __image_size                // stacks and tables included
    .quad   0xa                         // little endian, 4 KiB pages, anywhere in RAM
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

    // SCTLR_EL2: the bits that DDI 0487 gives as RES1 without FEAT_ExS, nothing else: MMU and caches off.
    .macro  known_state
    msr     daifset, #0xf
    mrs     x9, CurrentEL
    cmp     x9, #(2 << 2)
    b.ne    park
    movz    x9, #0x0830
    movk    x9, #0x30c5, lsl #16
    msr     sctlr_el2, x9
    movz    x9, #0x8000, lsl #16        // HCR_EL2: RW alone, so E2H = 0 and the registers below mean what they say
    msr     hcr_el2, x9
    isb
    .endm

    .text
primary_entry:
    isb
    mrs     x20, cntpct_el0
    mov     x19, x0
    known_state
    msr     tpidr_el2, xzr

    // Relocate: R_AARCH64_RELATIVE only (ELF for the Arm 64-bit architecture, 5.7.3).
    adrp    x0, _start
    add     x0, x0, :lo12:_start
    ldr     x1, link_base
    sub     x0, x0, x1
    adrp    x1, __rela_start
    add     x1, x1, :lo12:__rela_start
    adrp    x2, __rela_end
    add     x2, x2, :lo12:__rela_end
1:  cmp     x1, x2
    b.hs    2f
    ldp     x3, x4, [x1], #16           // r_offset, r_info
    ldr     x5, [x1], #8                // r_addend
    cmp     x4, #{relative}
    b.ne    park
    add     x5, x5, x0
    str     x5, [x3, x0]
    b       1b

    // The loader need not have cleaned what is not in its file. A line that it left dirty would be written back over
    // what is stored here with caches off, so there must be none before the first store.
2:  adrp    x1, __bss_start
    add     x1, x1, :lo12:__bss_start
    adrp    x2, __boot_stack_top
    add     x2, x2, :lo12:__boot_stack_top
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4             // DminLine: log2 of words
    mov     x4, #4
    lsl     x3, x4, x3
    mov     x4, x1
3:  dc      ivac, x4
    add     x4, x4, x3
    cmp     x4, x2
    b.lo    3b
    dsb     sy

    adrp    x2, __bss_end
    add     x2, x2, :lo12:__bss_end
3:  cmp     x1, x2
    b.hs    4f
    stp     xzr, xzr, [x1], #16
    stp     xzr, xzr, [x1], #16
    stp     xzr, xzr, [x1], #16
    stp     xzr, xzr, [x1], #16
    b       3b

4:  adrp    x1, __boot_stack_top
    add     x1, x1, :lo12:__boot_stack_top
    msr     spsel, #1
    mov     sp, x1
    adrp    x1, vectors
    add     x1, x1, :lo12:vectors
    msr     vbar_el2, x1
    isb
    mov     x0, x19
    mov     x1, x20
    mov     x29, xzr
    mov     x30, xzr
    b       {boot_primary}

    .balign 8
link_base:
    .quad   __link_base

    .global secondary_entry
secondary_entry:
    mov     x19, x0
    known_state
    msr     spsel, #1
    bl      enable_mmu
    msr     tpidr_el2, x19
    ldr     x1, [x19, #{stack_top}]
    mov     sp, x1
    adrp    x1, vectors
    add     x1, x1, :lo12:vectors
    msr     vbar_el2, x1
    isb
    mov     x0, x19
    mov     x29, xzr
    mov     x30, xzr
    b       {boot_secondary}

    // Turns EL2's translation on with the tables at __tables_start. Clobbers X0 to X2.
    .global enable_mmu
enable_mmu:
    movz    x0, #{mair}
    msr     mair_el2, x0
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #0xf                // PARange; 48 bits are all that four levels of 4 KiB tables translate
    mov     x2, #5
    cmp     x1, x2
    csel    x1, x1, x2, lo
    movz    x0, #({tcr} & 0xffff)
    movk    x0, #({tcr} >> 16), lsl #16
    bfi     x0, x1, #16, #3             // PS
    msr     tcr_el2, x0
    adrp    x0, __tables_start
    msr     ttbr0_el2, x0
    dsb     sy
    isb
    tlbi    alle2
    ic      iallu
    dsb     nsh
    isb
    movz    x0, #({sctlr} & 0xffff)
    movk    x0, #({sctlr} >> 16), lsl #16
    msr     sctlr_el2, x0
    isb
    ret

    // A CPU that cannot or must not go on.
    .global park
park:
    msr     daifset, #0xf
1:  wfi
    b       1b
    "#,
    relative = const 1027,
    boot_primary = sym super::boot::boot_primary,
    boot_secondary = sym super::boot::boot_secondary,
    stack_top = const core::mem::offset_of!(super::cpu::Cpu, stack_top),
    mair = const super::mmu::MAIR,
    tcr = const super::mmu::TCR,
    sctlr = const super::mmu::SCTLR,
);

unsafe extern "C" {
    /// Where PSCI CPU_ON starts a CPU; X0 = address of its `Cpu`.
    pub fn secondary_entry();
    /// Turns EL2's translation on.
    pub fn enable_mmu();
    /// Stops this CPU for good.
    pub fn park() -> !;
}
