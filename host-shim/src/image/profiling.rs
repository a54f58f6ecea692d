//! What the counters of EL1 see of EL2 (DDI 0487, "Performance Monitors Extension").

#![allow(clippy::result_large_err, reason = "there is no allocator, and an error ends the check")]

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{ID_AA64DFR0_EL1, Readable};
use host_shim::call::Calls;
use host_shim::checks::{Check, Outcome, Stop};
use host_shim::{fail, text};

use super::machine::Machine;

/// The check.
pub const CHECK: Check<Machine> = Check {
    name: "event and cycle counters",
    expected: "they count at EL1, and nothing of what EL2 does",
    run: counters,
};

/// PMEVTYPER<n>_EL0 and PMCCFILTR_EL0: P, U and NSH say not at EL1, not at EL0, and at EL2.
const NOT_EL1: u64 = 1 << 31;
const NOT_EL0: u64 = 1 << 30;
const EL2: u64 = 1 << 27;
/// The event CPU_CYCLES.
const CPU_CYCLES: u64 = 0x11;
/// PMCNTENSET_EL0: the first event counter, and the cycle counter.
const ENABLED: u64 = 1 << 31 | 1;
/// PMCR_EL0: LC, C, P and E: the counters have 64 bits, are 0 and count.
const START: u64 = 1 << 6 | 0b111;

fn counters(machine: &Machine) -> Outcome {
    let version = ID_AA64DFR0_EL1.get() >> 8 & 0xf;
    if !(6..0xf).contains(&version) {
        return Err(Stop::NotApplicable(text!(
            "PMUVer {version}: the cycle counter cannot be kept from EL2"
        )));
    }
    let at_el1 = count(machine, NOT_EL0);
    if at_el1.contains(&0) {
        fail!("{at_el1:?} cycles of event and cycle counter at EL1");
    }
    let at_el2 = count(machine, NOT_EL0 | NOT_EL1 | EL2);
    if at_el2 != [0, 0] {
        fail!("{at_el2:?} cycles of event and cycle counter at EL2");
    }
    Ok(text!("PMUVer {version}, {at_el1:?} cycles at EL1 around a hundred calls, none at EL2"))
}

/// What the first event counter and the cycle counter count with this filter while calls are made.
fn count(machine: &Machine, filter: u64) -> [u64; 2] {
    // SAFETY: the counters are there (PMUVer), nobody else uses them, and they change nothing else.
    unsafe {
        asm!(
            "msr pmevtyper0_el0, {event}",
            "msr pmccfiltr_el0, {filter}",
            "msr pmcntenset_el0, {enabled}",
            "msr pmcr_el0, {start}",
            "isb",
            event = in(reg) filter | CPU_CYCLES,
            filter = in(reg) filter,
            enabled = in(reg) ENABLED,
            start = in(reg) START,
            options(nostack, preserves_flags)
        );
    }
    for _ in 0..100 {
        let _ = machine.version();
    }
    let (events, cycles): (u64, u64);
    barrier::isb(barrier::SY);
    // SAFETY: as above.
    unsafe {
        asm!(
            "mrs {events}, pmevcntr0_el0",
            "mrs {cycles}, pmccntr_el0",
            "msr pmcr_el0, xzr",
            "msr pmcntenclr_el0, {enabled}",
            events = out(reg) events,
            cycles = out(reg) cycles,
            enabled = in(reg) ENABLED,
            options(nostack, preserves_flags)
        );
    }
    [events, cycles]
}
