//! Checks that only the real machine can run: PSCI through the hypervisor, injected aborts, the mediated GIC.

#![allow(clippy::result_large_err, reason = "there is no allocator, and an error ends the check")]

use super::machine::Machine;
use super::{calls, cpu, probe, psci, smp};
use abi::{Statistic, Status, oracle};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use host_shim::call::Calls;
use host_shim::checks::{Check, Outcome, Stop};
use host_shim::host::Host;
use host_shim::{fail, text};

/// The checks, in order.
pub fn checks() -> impl Iterator<Item = Check<Machine>> {
    [
        Check {
            name: "PSCI version and features",
            expected: "version 1.0 or newer; what is needed is there, what is not known is NOT_SUPPORTED",
            run: features,
        },
        Check {
            name: "PSCI CPU states",
            expected: "this CPU on, the others off; CPU_ON of a CPU that is on ALREADY_ON, of none INVALID_PARAMETERS",
            run: states,
        },
        Check {
            name: "PSCI CPU_OFF and on again",
            expected: "every CPU starts at the entry with its context and its own MPIDR, 8 times over",
            run: off_and_on,
        },
        Check {
            name: "PSCI CPU_ON twice",
            expected: "the second call answers ALREADY_ON or ON_PENDING, the CPU runs once",
            run: on_twice,
        },
        Check {
            name: "ownership seen by every CPU",
            expected: "after CPU 0 donates, each CPU aborts; after it reclaims, each reads zero: no stale TLB",
            run: every_cpu,
        },
        Check {
            name: "redistributors",
            expected: "accesses of its first page are emulated; SGIs, in its other frame, can be enabled",
            run: redistributors,
        },
        Check {
            name: "injected aborts",
            expected: "each was a data abort at EL1 with the right address and direction",
            run: injected,
        },
        Check {
            name: "the oracle's call",
            expected: "NOT_SUPPORTED: only an image for fuzzing answers it",
            run: no_oracle,
        },
    ]
    .into_iter()
}

fn features(_: &Machine) -> Outcome {
    let version = psci::call(psci::id::VERSION, [0; 3]);
    if version < 0x1_0000 {
        fail!("PSCI_VERSION {version:#x}");
    }
    for id in [psci::id::CPU_ON, psci::id::CPU_OFF, psci::id::AFFINITY_INFO, psci::id::SYSTEM_OFF] {
        let answer = psci::call(psci::id::FEATURES, [u64::from(id), 0, 0]);
        if answer != psci::SUCCESS {
            fail!("PSCI_FEATURES of {id:#x}: {answer}");
        }
    }
    for id in [0x8400_007f_u64, 0xc600_0000, 0] {
        let answer = psci::call(psci::id::FEATURES, [id, 0, 0]);
        if answer != psci::NOT_SUPPORTED {
            fail!("PSCI_FEATURES of {id:#x}: {answer}");
        }
    }
    Ok(text!("PSCI {}.{}", version >> 16, version & 0xffff))
}

fn no_oracle(_: &Machine) -> Outcome {
    for request in [oracle::request::STEP, oracle::request::ALL, oracle::request::DIGEST] {
        let [status, rest @ ..] = calls::hvc(oracle::FUNCTION, [request, 0, 0, 0]);
        if Status::from_register(status) != Some(Status::NotSupported) || rest != [0; 4] {
            fail!("request {request} answers {status:#x} and {rest:x?}");
        }
    }
    Ok(text!("NOT_SUPPORTED"))
}

fn states(machine: &Machine) -> Outcome {
    let this = psci::affinity_info(cpu::affinity());
    if this != psci::SUCCESS {
        fail!("AFFINITY_INFO of this CPU: {this}");
    }
    let mut off = 0;
    for affinity in machine.other_cpus() {
        let state = psci::affinity_info(affinity);
        if state != psci::STATE_OFF {
            fail!("AFFINITY_INFO of CPU {affinity:#x}: {state}");
        }
        off += 1;
    }
    for nobody in [0x00ff_ff0f, 0xff_0000_0000, u64::MAX] {
        let (state, on) = (psci::affinity_info(nobody), psci::cpu_on(nobody, machine.scratch(), 0));
        if state != psci::INVALID_PARAMETERS || on != psci::INVALID_PARAMETERS {
            fail!("CPU {nobody:#x}: AFFINITY_INFO {state}, CPU_ON {on}");
        }
    }
    let again = psci::cpu_on(cpu::affinity(), machine.scratch(), 0);
    if again != psci::ALREADY_ON {
        fail!("CPU_ON of this CPU: {again}");
    }
    Ok(text!("1 on, {off} off"))
}

fn several(machine: &Machine) -> Result<usize, Stop> {
    match machine.other_cpus().count() {
        0 => Err(Stop::NotApplicable(text!("the machine has one CPU"))),
        count => Ok(count),
    }
}

fn off_and_on(machine: &Machine) -> Outcome {
    const ROUNDS: usize = 8;
    let count = several(machine)? + 1;
    for round in 0..ROUNDS {
        let affinities: [AtomicU64; smp::MAX_CPUS] = [const { AtomicU64::new(u64::MAX) }; smp::MAX_CPUS];
        let job = |index: usize| {
            if let Some(place) = affinities.get(index) {
                place.store(cpu::affinity(), Ordering::Relaxed);
            }
        };
        let ran = smp::run(machine.other_cpus(), &job);
        if ran != Ok(count) {
            fail!("round {round}: {ran:?} of {count} CPUs");
        }
        let expected = [cpu::affinity()].into_iter().chain(machine.other_cpus());
        for (index, (seen, expected)) in affinities.into_iter().zip(expected).enumerate() {
            let seen = seen.into_inner();
            if seen != expected {
                fail!("round {round}: CPU {index} has MPIDR {seen:#x}, not {expected:#x}");
            }
        }
    }
    Ok(text!("{count} CPUs, {ROUNDS} times"))
}

fn on_twice(machine: &Machine) -> Outcome {
    several(machine)?;
    let Some(other) = machine.other_cpus().next() else {
        fail!("no other CPU");
    };
    let go_on = AtomicU32::new(0);
    let ran = AtomicU32::new(0);
    let second = AtomicU64::new(0);
    let job = |index: usize| {
        if index == 0 {
            // The other CPU is between CPU_ON and its CPU_OFF now: it waits for this.
            second.store(psci::cpu_on(other, machine.scratch(), 0).cast_unsigned(), Ordering::Relaxed);
            go_on.store(1, Ordering::Release);
        } else {
            ran.fetch_add(1, Ordering::Relaxed);
            while go_on.load(Ordering::Acquire) == 0 {
                core::hint::spin_loop();
            }
        }
    };
    let outcome = smp::run([other].into_iter(), &job);
    let (second, ran) = (second.into_inner().cast_signed(), ran.into_inner());
    if outcome != Ok(2) || ran != 1 || ![psci::ALREADY_ON, psci::ON_PENDING].contains(&second) {
        fail!("{outcome:?}, ran {ran} times, second CPU_ON {second}");
    }
    Ok(text!("CPU_ON of a CPU that was started: {second}"))
}

fn every_cpu(machine: &Machine) -> Outcome {
    several(machine)?;
    let page = machine.scratch() + (3 << 20);
    let guest = machine.create_guest().map_err(|why| Stop::Failed(text!("GUEST_CREATE answered {why}")))?;
    let unit = machine.features().map_err(|why| Stop::Failed(text!("FEATURES answered {why}")))?.unit;
    // 0: warm the TLB; 1: the page is donated; 2: reclaimed.
    let phase = AtomicU32::new(0);
    let here = AtomicU32::new(0);
    let wrong = AtomicU32::new(0);
    let refused = AtomicU64::new(0);
    let others = machine.other_cpus().count() as u32;
    let wait_for_all = |count: u32| {
        while here.load(Ordering::Acquire) < count {
            core::hint::spin_loop();
        }
    };
    let wait_for_phase = |wanted: u32| {
        while phase.load(Ordering::Acquire) < wanted {
            core::hint::spin_loop();
        }
    };
    let note = |right: bool| {
        wrong.fetch_add(u32::from(!right), Ordering::Relaxed);
        here.fetch_add(1, Ordering::AcqRel);
    };
    let job = |index: usize| {
        if index == 0 {
            wait_for_all(others);
            let donated = machine.donate(page, unit, guest);
            phase.store(1, Ordering::Release);
            wait_for_all(2 * others);
            let reclaimed = machine.reclaim(page, unit, guest);
            phase.store(2, Ordering::Release);
            wait_for_all(3 * others);
            refused.store(u64::from(donated.is_err()) + u64::from(reclaimed.is_err()), Ordering::Relaxed);
        } else {
            note(machine.cpu_write_u64(page + 8 * index as u64, !0).is_ok());
            wait_for_phase(1);
            note(machine.cpu_read_u64(page + 8 * index as u64).is_err());
            wait_for_phase(2);
            note(machine.cpu_read_u64(page + 8 * index as u64) == Ok(0));
        }
    };
    let count = machine.on_each_cpu(&job);
    let (wrong, refused) = (wrong.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    if wrong != 0 || refused != 0 || count as u32 != others + 1 {
        fail!(
            "{wrong} accesses on other CPUs went the wrong way, {refused} calls were refused, {count} CPUs"
        );
    }
    machine.destroy_guest(guest).map_err(|why| Stop::Failed(text!("GUEST_DESTROY answered {why}")))?;
    Ok(text!("{count} CPUs"))
}

const GICR_TYPER: u64 = 0x8;
const GICR_WAKER: u64 = 0x14;
const GICR_ISENABLER0: u64 = 0x1_0100;
const GICR_ICENABLER0: u64 = 0x1_0180;

fn redistributors(machine: &Machine) -> Outcome {
    let Some(run) = machine.tree().redistributors.iter().next() else {
        return Err(Stop::NotApplicable(text!("no redistributors in the device tree")));
    };
    let frame = run.start;
    let abort = |_| Stop::Failed(text!("an access to the redistributor at {frame:#x} aborted"));
    let before = machine.statistic(Statistic::EmulatedAccesses).unwrap_or(0);
    let kind = machine.cpu_read_u32(frame + GICR_TYPER).map_err(abort)?;
    machine.cpu_read_u32(frame + GICR_WAKER).map_err(abort)?;
    // The control: the frame beside it, with the SGIs' enables, is the host's own.
    machine.cpu_write_u32(frame + GICR_ISENABLER0, 1 << 3).map_err(abort)?;
    let enabled = machine.cpu_read_u32(frame + GICR_ISENABLER0).map_err(abort)?;
    machine.cpu_write_u32(frame + GICR_ICENABLER0, 1 << 3).map_err(abort)?;
    if enabled & 1 << 3 == 0 {
        fail!("SGI 3 cannot be enabled");
    }
    let emulated = machine.statistic(Statistic::EmulatedAccesses).unwrap_or(0) - before;
    if emulated != 2 {
        fail!("{emulated} accesses were emulated, not the 2 of the first page");
    }
    Ok(text!("{emulated} accesses emulated, GICR_TYPER {kind:#x}"))
}

fn injected(machine: &Machine) -> Outcome {
    if let Some(esr) = probe::odd_abort() {
        fail!("an abort with ESR {esr:#x} had the wrong class, direction or address");
    }
    let count = machine.statistic(Statistic::InjectedAborts).unwrap_or(0);
    Ok(text!("{count} aborts in all checks"))
}
