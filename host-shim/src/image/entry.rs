//! From the hypervisor's exception return, or a boot loader, to Rust.
//!
//! The image begins with the header of Linux's arm64 boot protocol (`Documentation/arch/arm64/booting.rst`): EL1, MMU off, X0 = device
//! tree. PSCI starts the other CPUs at `secondary_entry` with X0 = their index.
//!
//! With the MMU off every data access is to Device memory: no exclusives, no unaligned access. What runs before `enable_mmu`
//! keeps to that.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .text.header, "ax"
    .global _start
_start:
    b       primary_entry
    .long   0
    .quad   0                           // text_offset
    .quad   __image_size                // stacks included
    .quad   0xa                         // little endian, 4 KiB pages, anywhere in RAM
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

    // SCTLR_EL1: RES1 bits (DDI 0487, without the features that give them a meaning), MMU and caches off.
    .macro  known_state
    msr     daifset, #0xf
    movz    x9, #0x0800
    movk    x9, #0x30d0, lsl #16
    msr     sctlr_el1, x9
    isb
    msr     spsel, #1
    adrp    x9, vectors
    add     x9, x9, :lo12:vectors
    msr     vbar_el1, x9
    isb
    .endm

    .text
primary_entry:
    mov     x19, x0
    known_state

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
    cmp     x4, #1027
    b.ne    stop
    add     x5, x5, x0
    str     x5, [x3, x0]
    b       1b

2:  adrp    x1, __bss_start
    add     x1, x1, :lo12:__bss_start
    adrp    x2, __bss_end
    add     x2, x2, :lo12:__bss_end
3:  cmp     x1, x2
    b.hs    4f
    stp     xzr, xzr, [x1], #16
    b       3b

4:  adrp    x1, __stacks_start
    add     x1, x1, :lo12:__stacks_start
    add     sp, x1, #{stack_bytes}
    mov     x0, x19
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
    adrp    x1, __stacks_start
    add     x1, x1, :lo12:__stacks_start
    add     x2, x0, #1
    mov     x3, #{stack_bytes}
    madd    x1, x2, x3, x1
    mov     sp, x1
    bl      enable_mmu
    mov     x0, x19
    mov     x29, xzr
    mov     x30, xzr
    b       {boot_secondary}

    // Turns EL1's translation on with the tables that `mmu.rs` built. Clobbers X0 to X2.
    .global enable_mmu
enable_mmu:
    movz    x0, #{mair}
    msr     mair_el1, x0
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #0xf                // PARange; 48 bits are all that 4 KiB granules give here
    mov     x2, #5
    cmp     x1, x2
    csel    x1, x1, x2, lo
    movz    x0, #({tcr} & 0xffff)
    movk    x0, #({tcr} >> 16), lsl #16
    bfi     x0, x1, #32, #3             // IPS
    msr     tcr_el1, x0
    adrp    x0, {tables}
    add     x0, x0, :lo12:{tables}
    msr     ttbr0_el1, x0
    dsb     sy
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    movz    x0, #({sctlr} & 0xffff)
    movk    x0, #({sctlr} >> 16), lsl #16
    msr     sctlr_el1, x0
    isb
    ret

stop:
    wfi
    b       stop
    "#,
    stack_bytes = const super::smp::STACK_BYTES,
    boot_primary = sym super::boot_primary,
    boot_secondary = sym super::smp::boot_secondary,
    mair = const super::mmu::MAIR,
    tcr = const super::mmu::TCR,
    sctlr = const super::mmu::SCTLR,
    tables = sym super::mmu::TABLES,
);

unsafe extern "C" {
    /// Where PSCI CPU_ON starts a CPU; X0 = its index.
    pub fn secondary_entry();
    /// Turns EL1's translation on.
    pub fn enable_mmu();
}
