//! Translation tables that a CPU is using, donated.

use super::super::machine::Machine;
use super::super::{mmu, probe};
use host_shim::call::{Calls, Refused};
use host_shim::checks::{Check, Outcome, Stop};
use host_shim::host::{Abort, Host};
use host_shim::{attack_worked, fail, text};

pub const CHECK: Check<Machine> = Check {
    name: "a CPU's page tables donated",
    expected: "from the donation on each access by them aborts, for the table that TTBR1_EL1 names as for those below; by tables made anew it passes",
    run: attack,
};

const PAGE: u64 = 0x1000;
const VALUE: u64 = 0x7ab1_e5ed_7ab1_e5ed;

fn refused(call: &'static str) -> impl Fn(Refused) -> Stop {
    move |refused| Stop::Failed(text!("{call} answered {refused:?}"))
}

/// A table of each level, one page after the other, of which the first entry leads to the next, and at last to `target`.
fn build(machine: &Machine, tables: u64, target: u64) -> Result<(), Abort> {
    for level in 0..mmu::UPPER_LEVELS {
        let here = tables + level * PAGE;
        for at in (here..here + PAGE).step_by(8) {
            machine.cpu_write_u64(at, 0)?;
        }
        let is_last = level + 1 == mmu::UPPER_LEVELS;
        let entry = if is_last { mmu::page(target) } else { mmu::table(here + PAGE) };
        machine.cpu_write_u64(here, entry)?;
    }
    Ok(())
}

fn attack(machine: &Machine) -> Outcome {
    let unit = machine.features().map_err(refused("FEATURES"))?.unit;
    if unit != PAGE {
        return Err(Stop::NotApplicable(text!("units of {unit} bytes have several tables")));
    }
    let (tables, target) = (machine.scratch() + (2 << 20), machine.scratch() + 0x3000);
    let guest = machine.create_guest().map_err(refused("GUEST_CREATE"))?;
    let aborted = |Abort| Stop::Failed(text!("the host's own memory aborts"));
    machine.cpu_write_u64(target, VALUE).map_err(aborted)?;
    build(machine, tables, target).map_err(aborted)?;
    // A page beside them stays given away, so that the block is split throughout: splitting it would have the CPU forget it all.
    let beside = tables + (mmu::UPPER_LEVELS + 1) * PAGE;
    machine.donate(beside, unit, guest).map_err(refused("MEM_DONATE"))?;
    for level in 0..mmu::UPPER_LEVELS {
        let donated = tables + level * PAGE;
        let seen = mmu::with_upper_half(tables, || -> Result<_, Refused> {
            let before = probe::load(mmu::UPPER_HALF, 8);
            machine.donate(donated, unit, guest)?;
            let during = [probe::load(mmu::UPPER_HALF, 8), probe::load(mmu::UPPER_HALF + PAGE, 8)];
            let written = probe::store(mmu::UPPER_HALF, 8, 0);
            machine.reclaim(donated, unit, guest)?;
            Ok((before, during, written, probe::load(mmu::UPPER_HALF, 8)))
        });
        let (before, during, written, after) = seen.map_err(refused("MEM_DONATE or MEM_RECLAIM"))?;
        if before != Ok(VALUE) {
            fail!("the CPU reads {before:x?} by its tables at {tables:#x}");
        }
        if during != [Err(Abort); 2] || written.is_ok() {
            attack_worked!(
                "the CPU translates by the table at {donated:#x}, which is a guest's: {during:x?}, {written:?}"
            );
        }
        if after != Err(Abort) {
            fail!("the CPU reads {after:x?} by a table at {donated:#x} that was wiped");
        }
        build(machine, tables, target).map_err(aborted)?;
    }
    let again = mmu::with_upper_half(tables, || probe::load(mmu::UPPER_HALF, 8));
    if again != Ok(VALUE) {
        fail!("the CPU reads {again:x?} by tables that were made anew");
    }
    machine.reclaim(beside, unit, guest).map_err(refused("MEM_RECLAIM"))?;
    machine.destroy_guest(guest).map_err(refused("GUEST_DESTROY"))?;
    Ok(text!("{} tables, 3 aborts each", mmu::UPPER_LEVELS))
}
