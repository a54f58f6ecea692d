//! Exceptions that EL2 gives to EL1, as the CPU would have taken them there (DDI 0487, AArch64.TakeException).

use hyp::esr::{Class, Syndrome};

use super::registers::{feature, field, isb, read_sysreg, write_sysreg};
use super::vectors::Frame;

const EC_SHIFT: u32 = 26;
const EC_UNKNOWN: u64 = 0x00;
const EC_INSTRUCTION_ABORT_LOWER: u64 = 0x20;
const EC_DATA_ABORT_LOWER: u64 = 0x24;
/// Added to an abort's class when it comes from EL1 itself.
const SAME_LEVEL: u64 = 1;
/// ESR_ELx.IL: a 32-bit instruction.
const IL: u64 = 1 << 25;
/// ISS.WnR and ISS.CM of a data abort.
const WRITE_AND_CACHE: u64 = 1 << 6 | 1 << 8;
/// DFSC, IFSC: synchronous External abort, not on a translation table walk.
const EXTERNAL_ABORT: u64 = 0x10;

const MODE_MASK: u64 = 0xf;
const MODE_AARCH32: u64 = 1 << 4;
const EL1H: u64 = 0b0101;
const DAIF: u64 = 0xf << 6;
const SSBS: u64 = 1 << 12;
const ALLINT: u64 = 1 << 13;
const PAN: u64 = 1 << 22;
const TCO: u64 = 1 << 25;
const DIT: u64 = 1 << 24;
const EXLOCK: u64 = 1 << 34;
const NZCV: u64 = 0xf << 28;

/// Gives EL1 a synchronous External abort for the data or instruction abort with syndrome `esr` at virtual address `far`.
#[inline(never)]
pub fn external_abort(frame: &mut Frame, esr: u64, far: u64) {
    let data = Syndrome(esr).class() == Class::DATA_ABORT_LOWER;
    let class = if data { EC_DATA_ABORT_LOWER } else { EC_INSTRUCTION_ABORT_LOWER };
    let class = if from_el0(frame) { class } else { class + SAME_LEVEL };
    let access = if data { esr & WRITE_AND_CACHE } else { 0 };
    // SAFETY: FAR_EL1 is the host's, which is about to take the exception that it describes.
    unsafe { write_sysreg!("far_el1", far) };
    take_synchronous(frame, class << EC_SHIFT | esr & IL | access | EXTERNAL_ABORT);
}

/// Gives EL1 an undefined-instruction exception for the instruction at ELR_EL2.
pub fn undefined(frame: &mut Frame) {
    take_synchronous(frame, EC_UNKNOWN << EC_SHIFT | IL);
}

fn from_el0(frame: &Frame) -> bool {
    frame.spsr & MODE_AARCH32 != 0 || frame.spsr & MODE_MASK == 0
}

/// Makes the return to EL1 an entry to its synchronous vector.
fn take_synchronous(frame: &mut Frame, esr: u64) {
    let offset = match frame.spsr & (MODE_AARCH32 | MODE_MASK) {
        mode if mode & MODE_AARCH32 != 0 => 0x600,
        0 => 0x400,
        mode if mode & 1 != 0 => 0x200,
        _ => 0,
    };
    // SAFETY: the three registers are the host's, and are what an exception to EL1 writes.
    unsafe {
        write_sysreg!("esr_el1", esr);
        write_sysreg!("elr_el1", frame.elr);
        write_sysreg!("spsr_el1", frame.spsr);
    }
    frame.elr = read_sysreg!("vbar_el1").wrapping_add(offset);
    frame.spsr = entry_state(frame.spsr);
    isb();
}

/// PSTATE at the entry: EL1h, all masked; what an exception keeps is kept, what it takes from SCTLR_EL1 is taken.
fn entry_state(old: u64) -> u64 {
    let sctlr = read_sysreg!("sctlr_el1");
    let kept = if old & MODE_AARCH32 == 0 { NZCV | DIT } else { NZCV };
    let mut new = EL1H | DAIF | old & kept;
    // Each bit only where the CPU has it: a bit that it has not makes the return illegal or is lost.
    if feature(read_sysreg!("id_aa64mmfr1_el1"), 20) != 0 {
        let keep = field(sctlr, 23, 1) != 0; // SPAN
        new |= if keep { old & PAN } else { PAN };
    }
    let pfr1 = read_sysreg!("id_aa64pfr1_el1");
    if feature(pfr1, 4) != 0 && sctlr >> 44 & 1 != 0 {
        new |= SSBS; // SCTLR_EL1.DSSBS
    }
    if feature(pfr1, 8) >= 2 {
        new |= TCO;
    }
    if feature(pfr1, 36) != 0 && sctlr >> 62 & 1 == 0 {
        new |= ALLINT; // not SCTLR_EL1.SPINTMASK
    }
    if feature(pfr1, 44) != 0 {
        // FEAT_GCS: entry from EL0 clears EXLOCK, from EL1 takes it from GCSCR_EL1.EXLOCKEN.
        let from_el1 = old & MODE_AARCH32 == 0 && old & MODE_MASK != 0;
        if from_el1 && field(read_sysreg!("S3_0_C2_C5_0"), 6, 1) != 0 {
            new |= EXLOCK;
        }
    }
    new
}
