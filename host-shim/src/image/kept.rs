//! System registers that EL2 keeps from EL1.

#![allow(clippy::result_large_err, reason = "there is no allocator, and an error ends the check")]

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use host_shim::checks::{Check, Outcome};
use host_shim::{fail, text};

use super::machine::Machine;
use super::probe;

/// The checks.
pub const CHECKS: [Check<Machine>; 2] = [
    Check {
        name: "registers of the core's own",
        expected: "those besides the architecture are UNDEFINED at EL1, whether the core has them or not",
        run: implementation,
    },
    Check {
        name: "OS Lock",
        expected: "it stays off when EL1 sets it, and EL1 cannot have the CPU halt (MDSCR_EL1.HDE) by it",
        run: os_lock,
    },
];

fn implementation(_: &Machine) -> Outcome {
    let exceptions = probe::implementation_registers();
    // ESR_EL1.EC 0 is an exception for an unknown reason; IL is 1 then, so that the whole is not 0.
    if exceptions.iter().any(|esr| *esr == 0 || esr >> 26 != 0) {
        fail!("reads of CPUECTLR_EL1 and L2CTLR_EL1: ESR {exceptions:x?}");
    }
    Ok(text!("UNDEFINED"))
}

fn os_lock(_: &Machine) -> Outcome {
    let (status, double): (u64, u64);
    // SAFETY: nobody debugs this program. The lock is released again, so that what comes later finds it as it was.
    unsafe {
        asm!(
            "msr oslar_el1, {one}",
            "msr osdlr_el1, {one}",
            "isb",
            "mrs {status}, oslsr_el1",
            "mrs {double}, osdlr_el1",
            "msr osdlr_el1, xzr",
            "msr oslar_el1, xzr",
            one = in(reg) 1u64,
            status = out(reg) status,
            double = out(reg) double,
            options(nostack, preserves_flags)
        );
    }
    barrier::isb(barrier::SY);
    if status & 0b10 != 0 || double & 1 != 0 {
        fail!("OSLSR_EL1 {status:#x}, OSDLR_EL1 {double:#x} after EL1 set both locks");
    }
    Ok(text!("OSLSR_EL1 {status:#x}"))
}
