//! What EL2 may do in one trap.

use super::super::interrupts::Taken;
use super::super::machine::Machine;
use host_shim::attack_worked;
use host_shim::checks::Stop;

/// Instructions.
const BOUND: u64 = 250_000;
/// Ticks from one interrupt of the timer to the next: hardly more than the way back to EL2 where ticks are instructions, and far less
/// than a trap where they are time.
pub fn period(machine: &Machine) -> u64 {
    if machine.counts_instructions() { 500 } else { 100_000 }
}

/// Whether a store that was to take `least` traps at the least left the CPU to EL1 in between, each time in time.
///
/// # Errors
/// EL2 kept the CPU.
pub fn judge(machine: &Machine, what: &str, taken: &Taken, least: u64) -> Result<(), Stop> {
    let Taken { traps, interrupts, longest, .. } = *taken;
    if traps < least || interrupts == 0 && least > 1 {
        attack_worked!(
            "{what} kept the CPU at EL2: {traps} traps were all, {interrupts} interrupts were taken, at most {longest} ticks apart"
        );
    }
    if machine.counts_instructions() && longest > BOUND {
        attack_worked!("{what} kept the CPU at EL2 for {longest} instructions");
    }
    Ok(())
}
