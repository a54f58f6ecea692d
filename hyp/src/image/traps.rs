//! What EL1 wants of EL2.

use hyp::esr::{Class, HostAbort, Syndrome};
use hyp::hypervisor::AbortAction;

use super::registers::{field, read_sysreg};
use super::vectors::Frame;
use super::{boot, el1, inject, psci};

/// Memory Copy and Memory Set exception (FEAT_MOPS).
const MEMORY_SET_OR_COPY: u8 = 0x27;
/// SMCCC NOT_SUPPORTED (DEN 0028, 7.1).
const NOT_SUPPORTED: u64 = u64::MAX;

/// HVC #0: X0 to X4 of the caller; the answer replaces them in `frame`, of which the rest of the volatile registers is saved.
pub extern "C" fn hypercall(x0: u64, x1: u64, x2: u64, x3: u64, x4: u64, frame: &mut Frame) {
    let answer = boot::hypervisor().hypercall(x0 as u32, [x1, x2, x3, x4]);
    if let Some(results) = frame.x.first_chunk_mut() {
        *results = answer.x;
    }
}

/// Any other synchronous exception from EL1 or EL0, with the whole `frame` saved.
pub extern "C" fn lower_synchronous(frame: &mut Frame) {
    let syndrome = Syndrome(read_sysreg!("esr_el2"));
    if syndrome.class() == Class::DATA_ABORT_LOWER {
        data_abort(frame, syndrome)
    } else {
        other(frame, syndrome)
    }
}

/// What is no data abort.
#[inline(never)]
fn other(frame: &mut Frame, syndrome: Syndrome) {
    match syndrome.class() {
        Class::SMC64 => psci::trapped_smc(frame),
        Class::INSTRUCTION_ABORT_LOWER => abort(frame, syndrome),
        // Only HVC #0 is a call (DEN 0028, 2.4); ELR is after the instruction.
        Class::HVC64 => frame.x[0] = NOT_SUPPORTED,
        Class::SYSTEM_REGISTER => system_register(frame, u64::from(syndrome.iss())),
        Class(MEMORY_SET_OR_COPY) => restart_memory_instruction(frame, syndrome),
        _ => inject::undefined(frame),
    }
}

/// An MRS or MSR; EL1 gets the ID registers, an OS Lock that is always off, and nothing else.
fn system_register(frame: &mut Frame, iss: u64) {
    match el1::id_register(iss).or_else(|| el1::os_lock(iss)) {
        Some(value) => {
            if iss & 1 != 0 {
                frame.set_register(field(iss, 5, 5) as u8, value);
            }
            frame.skip(4);
        }
        None => inject::undefined(frame),
    }
}

/// A data abort; what drivers of SMMUs do all the time is dealt with here.
#[inline]
fn data_abort(frame: &mut Frame, syndrome: Syndrome) {
    let host_abort = host_abort(frame, syndrome);
    match boot::hypervisor().usual_host_abort(&host_abort) {
        Some(action) => act(frame, &host_abort, action),
        None => abort(frame, syndrome),
    }
}

#[inline(never)]
fn abort(frame: &mut Frame, syndrome: Syndrome) {
    let abort = host_abort(frame, syndrome);
    act(frame, &abort, boot::hypervisor().host_abort(&abort));
}

#[inline]
fn host_abort(frame: &Frame, syndrome: Syndrome) -> HostAbort {
    let access = syndrome.access();
    let stored = access.filter(|access| access.write).map_or(0, |access| frame.register(access.register));
    HostAbort { syndrome, far: read_sysreg!("far_el2"), hpfar: read_sysreg!("hpfar_el2"), stored }
}

#[inline]
fn act(frame: &mut Frame, abort: &HostAbort, action: AbortAction) {
    match action {
        AbortAction::Retry => {}
        AbortAction::Emulated { register } => {
            if let Some((number, value)) = register {
                frame.set_register(number, value);
            }
            frame.skip(instruction_bytes(abort.syndrome));
        }
        AbortAction::Inject => inject::external_abort(frame, abort.syndrome.0, abort.far),
    }
}

/// Bytes of the instruction that made the exception.
#[inline]
const fn instruction_bytes(syndrome: Syndrome) -> u64 {
    if syndrome.is_32_bit() { 4 } else { 2 }
}

/// Takes a CPY* or SET* instruction back to its prologue, because this CPU's way of doing it is not the one that the registers are
/// prepared for (DDI 0487, "Memory Copy and Memory Set exceptions"; `Documentation/arch/arm64/mops.rst`).
fn restart_memory_instruction(frame: &mut Frame, syndrome: Syndrome) {
    let iss = u64::from(syndrome.iss());
    let is_set = field(iss, 24, 1) != 0;
    let from_epilogue = field(iss, 18, 1) != 0;
    // The registers are in the format of option A: WrongOption says that the CPU's own option is the other one.
    let option_a = field(iss, 17, 1) != field(iss, 16, 1);
    let [size, source, destination] = [0, 5, 10].map(|shift| field(iss, shift, 5) as u8);
    let left = frame.register(size);
    if option_a {
        // Forwards, the registers hold the ends and a negative count; backwards, they are as before the prologue.
        if is_set || left.cast_signed() < 0 {
            frame.set_register(destination, frame.register(destination).wrapping_add(left));
            if !is_set {
                frame.set_register(source, frame.register(source).wrapping_add(left));
            }
            frame.set_register(size, left.wrapping_neg());
        }
    } else if !is_set && frame.spsr >> 31 & 1 != 0 {
        // Option B, backwards (PSTATE.N): the registers hold the ends.
        frame.set_register(destination, frame.register(destination).wrapping_sub(left));
        frame.set_register(source, frame.register(source).wrapping_sub(left));
    }
    frame.end_step();
    // Prologue, main part and epilogue stand in a row.
    frame.elr = frame.elr.wrapping_sub(if from_epilogue { 8 } else { 4 });
}
