//! The longest queue of the costliest commands of an ITS, behind one store: each has EL2 make an ITT of the largest size.

use super::super::interrupts;
use super::super::machine::Machine;
use super::super::probe;
use super::bound;
use host_shim::checks::{Check, Outcome, Stop};
use host_shim::host::{Abort, Host};
use host_shim::{fail, text};

pub const CHECK: Check<Machine> = Check {
    name: "an ITS queue that takes for ever",
    expected: "interrupts are taken in the middle of the one store of GITS_CWRITER, each within the bound of a trap",
    run: attack,
};

// Registers of an ITS (IHI 0069, 12.19).
const CTLR: u64 = 0x0;
const TYPER: u64 = 0x8;
const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
const CREADR: u64 = 0x90;
const BASER: u64 = 0x100;
const BASERS: u64 = 8;
const VALID: u64 = 1 << 63;

const COMMAND_BYTES: u64 = 32;
/// A queue of one page, less the one place that tells full from empty.
const COMMANDS: u64 = 4096 / COMMAND_BYTES - 1;

fn attack(machine: &Machine) -> Outcome {
    let Some(doors) = machine.side_doors() else {
        return Err(Stop::NotApplicable(text!("no Redistributor in the device tree")));
    };
    let Ok(kind) = machine.cpu_read_u64(doors.its + TYPER) else {
        return Err(Stop::NotApplicable(text!("the host has no ITS")));
    };
    let aborted = |Abort| Stop::Failed(text!("an access to the ITS, or to own memory, aborted"));
    let event_bits = (kind >> 8 & 0x1f) + 1;
    let (queue, tables) = (machine.scratch(), machine.scratch() + 0x1000);
    for at in (queue..).step_by(COMMAND_BYTES as usize).take(COMMANDS as usize) {
        // MAPD of one device, with as many events as there can be.
        let words = [0x08 | 9 << 32, event_bits - 1, VALID | tables, 0];
        for (word, at) in words.into_iter().zip((at..).step_by(8)) {
            machine.cpu_write_u64(at, word).map_err(aborted)?;
        }
    }
    let set_up = || {
        machine.cpu_write_u32(doors.its + CTLR, 0)?;
        for register in (0..BASERS).map(|n| doors.its + BASER + 8 * n) {
            machine.cpu_write_u64(register, VALID | tables)?;
        }
        machine.cpu_write_u64(doors.its + CBASER, VALID | queue)?;
        machine.cpu_write_u32(doors.its + CTLR, 1)
    };
    set_up().map_err(aborted)?;
    let end = COMMANDS * COMMAND_BYTES;
    let taken = interrupts::during(machine, doors.redistributor, bound::period(machine), u32::MAX, || {
        probe::store(doors.its + CWRITER, 8, end)
    });
    let taken = taken.map_err(aborted)?;
    let done = machine.cpu_read_u64(doors.its + CREADR).map_err(aborted)?;
    machine.cpu_write_u32(doors.its + CTLR, 0).map_err(aborted)?;
    // A device table that moves loses its devices, and the ITT goes back.
    for register in (0..BASERS).map(|n| doors.its + BASER + 8 * n) {
        machine.cpu_write_u64(register, 0).map_err(aborted)?;
    }
    machine.cpu_write_u64(doors.its + CBASER, 0).map_err(aborted)?;
    bound::judge(machine, "a full queue of the ITS", &taken, COMMANDS)?;
    if done != end {
        fail!("GITS_CREADR {done:#x} of {end:#x} after {taken:?}");
    }
    Ok(text!(
        "{COMMANDS} MAPD with EventIDs of {event_bits} bits: {} traps, {} interrupts, at most {} {} apart",
        taken.traps,
        taken.interrupts,
        taken.longest,
        machine.tick_unit()
    ))
}
