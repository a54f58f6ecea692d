//! The firmware as a way around EL2: calls that are not on the allow list, and CPUs started where the host may not run.

use super::super::machine::Machine;
use super::super::{calls, psci};
use super::intruder::{self, Desk, Report};
use abi::Statistic;
use host_shim::call::Calls;
use host_shim::checks::hostile::Prey;
use host_shim::checks::{Check, Outcome, Stop};
use host_shim::host::{Abort, Host};
use host_shim::{attack_worked, fail, text};

pub const CHECKS: [Check<Machine>; 2] = [
    Check {
        name: "SMCs outside the allow list",
        expected: "NOT_SUPPORTED, also of the CPU_ON of PSCI 0.1, by which the firmware would start the host's code at EL2",
        run: calls_outside,
    },
    Check {
        name: "PSCI CPU_ON into the hypervisor",
        expected: "refused, or an abort at EL1 at the first instruction, as with a guest's memory; in the host's own the CPU runs at EL1",
        run: on_into_hypervisor,
    },
];

/// Ids of other services (DEN 0028, 6), reserved PSCI numbers, a yielding call, the hypervisor's own HVC ids.
const IDS: [u32; 17] = [
    0x8400_001e,
    0x8400_007f,
    0xc400_0018,
    0x8100_0000,
    0x8200_0000,
    0xc200_0001,
    0x8300_ff01,
    0x8500_0000,
    0x8600_ff01,
    0xc600_0000,
    0xc600_0012,
    0xb200_0000,
    0xbf00_ff01,
    0xf200_0000,
    0x0200_0000,
    0x0000_0000,
    0xffff_fff0,
];
/// CPU_ON as QEMU's firmware knows it of PSCI 0.1, which leaves ids to the platform (DEN 0022A). It starts a CPU at the highest level
/// that there is.
const CPU_ON_0_1: u32 = 0x95c1_ba60;

/// The host's memory is the host's: no access to it aborts.
fn own<T>(result: Result<T, Abort>) -> Result<T, Stop> {
    result.map_err(|Abort| Stop::Failed(text!("the host's own memory aborts")))
}

fn calls_outside(machine: &Machine) -> Outcome {
    let answer = |id, arguments| i64::from(calls::smc(id, arguments) as i32);
    for id in IDS {
        let answer = answer(id, [machine.scratch(), 4096, 1]);
        if answer != psci::NOT_SUPPORTED {
            fail!("SMC {id:#x} answered {answer}");
        }
    }
    let Some(other) = machine.other_cpus().next() else {
        return Ok(text!("{} function ids; the machine has one CPU, so none was to be started", IDS.len()));
    };
    let control = own(Desk::new(machine, 0))?;
    let started = psci::cpu_on(other, intruder::entry(), control.place);
    let seen = control.wait(other);
    if seen != Some(Report { level: 1, value: 0 }) {
        fail!("CPU_ON answered {started}, and of the CPU came {seen:?}");
    }
    let prey = machine.hypervisor_memory();
    let desk = own(Desk::new(machine, prey))?;
    let started = answer(CPU_ON_0_1, [other, intruder::entry(), desk.place]);
    if started == psci::SUCCESS {
        if let Some(Report { level, value }) = desk.wait(other) {
            attack_worked!(
                "SMC {CPU_ON_0_1:#x} started the host's code on a CPU at EL{level}, which read {value:#x} at {prey:#x}, the hypervisor's"
            );
        }
        fail!("SMC {CPU_ON_0_1:#x} started a CPU, which says nothing");
    }
    if started != psci::NOT_SUPPORTED {
        fail!("SMC {CPU_ON_0_1:#x} answered {started}");
    }
    Ok(text!("{} function ids; the CPU_ON of PSCI 1.0 started the same code at EL1", IDS.len() + 1))
}

/// The hypervisor may refuse the entry, or let the CPU start and abort at its first instruction, at EL1. The CPU is lost in the second
/// case, so this is the last check.
fn on_into_hypervisor(machine: &Machine) -> Outcome {
    let Some(other) = machine.other_cpus().last() else {
        return Err(Stop::NotApplicable(text!("the machine has one CPU")));
    };
    let start = |entry| -> Result<(i64, Option<Report>), Stop> {
        let desk = own(Desk::new(machine, 0))?;
        let answer = psci::cpu_on(other, entry, desk.place);
        Ok((answer, if answer == psci::SUCCESS { desk.wait(other) } else { None }))
    };
    let mine = machine.scratch() + 0x1000;
    own(intruder::copy_to(machine, mine))?;
    let control = start(mine)?;
    if control != (psci::SUCCESS, Some(Report { level: 1, value: 0 })) {
        fail!("CPU_ON with entry {mine:#x} of the host's own: {control:?}");
    }
    let prey = Prey::new(machine)?;
    let mut answers = [0; 2];
    for ((whose, place), answer) in prey.places().into_iter().zip(&mut answers) {
        let written = intruder::copy_to(machine, place);
        match start(place)? {
            (psci::INVALID_ADDRESS, None) => *answer = psci::INVALID_ADDRESS,
            (psci::SUCCESS, Some(Report { level, .. })) => {
                attack_worked!(
                    "a CPU runs at {place:#x}, which is {whose}, at EL{level}; the code there: {written:?}"
                )
            }
            (psci::SUCCESS, None) => {}
            (refused, _) => fail!("CPU_ON with entry {place:#x} answered {refused}"),
        }
        if written.is_ok() || machine.cpu_read_u64(place).is_ok() {
            fail!("the CPU reaches {place:#x}, which is {whose}");
        }
    }
    let Ok(aborts) = machine.statistic(Statistic::InjectedAborts) else {
        fail!("the hypervisor does not answer any more");
    };
    prey.end()?;
    Ok(text!("answers {answers:?} (INVALID_ADDRESS is {}), {aborts} aborts so far", psci::INVALID_ADDRESS))
}
