//! Checks that only the real machine can run: PSCI and SMCs through the hypervisor, injected aborts, the mediated GIC.

#![allow(clippy::result_large_err, reason = "there is no allocator, and an error ends the check")]

use super::machine::Machine;
use super::{calls, cpu, probe, psci, smp};
use abi::{Statistic, Status};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use host_shim::call::{Calls, Refused};
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
        Check { name: "unknown SMCs", expected: "NOT_SUPPORTED", run: unknown_smcs },
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
            expected: "LPIs only with tables of the host's own, which cannot be donated meanwhile; SGIs can be enabled",
            run: redistributors,
        },
        Check {
            name: "injected aborts",
            expected: "each was a data abort at EL1 with the right address and direction",
            run: injected,
        },
        Check {
            name: "PSCI CPU_ON into the hypervisor",
            expected: "refused, or an abort at EL1 at the first instruction; the hypervisor lives on",
            run: on_into_hypervisor,
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

fn unknown_smcs(machine: &Machine) -> Outcome {
    // Other services' ranges (DEN 0028, 6), reserved PSCI numbers, a yielding call, the hypervisor's own HVC ids.
    let ids = [
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
    for id in ids {
        let answer = calls::smc(id, [machine.scratch(), 4096, 1]) as i32;
        if i64::from(answer) != psci::NOT_SUPPORTED {
            fail!("SMC {id:#x} answered {answer}");
        }
    }
    Ok(text!("{} function ids", ids.len()))
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

/// The hypervisor may refuse the entry, or let the CPU start and abort at its first instruction, at EL1. The CPU is lost in the second
/// case, so this is the last check.
fn on_into_hypervisor(machine: &Machine) -> Outcome {
    const PATIENCE_NS: u64 = 100_000_000;
    several(machine)?;
    let (Some(other), Some(run)) = (machine.other_cpus().last(), machine.tree().reserved.iter().next())
    else {
        fail!("no memory of the hypervisor in the device tree");
    };
    let answer = psci::cpu_on(other, run.start, 0);
    if answer == psci::INVALID_ADDRESS {
        return Ok(text!("INVALID_ADDRESS"));
    }
    if answer != psci::SUCCESS {
        fail!("CPU_ON with entry {:#x} answered {answer}", run.start);
    }
    let begin = cpu::now_ns();
    while cpu::now_ns() - begin < PATIENCE_NS {
        core::hint::spin_loop();
    }
    let Ok(aborts) = machine.statistic(Statistic::InjectedAborts) else {
        fail!("the hypervisor does not answer any more");
    };
    if machine.cpu_read_u64(run.start).is_ok() {
        fail!("the CPU reads {:#x}", run.start);
    }
    Ok(text!("the CPU aborts at EL1 ({aborts} aborts so far), the hypervisor answers"))
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

const GICR_CTLR: u64 = 0x0;
const GICR_TYPER: u64 = 0x8;
/// IDbits of GICR_PROPBASER: INTIDs of 14 bits, so that both tables are within 64 KiB.
const LPI_ID_BITS: u64 = 13;
const LPI_TABLES_BYTES: u64 = 0x1_0000;
const GICR_WAKER: u64 = 0x14;
const GICR_PROPBASER: u64 = 0x70;
const GICR_PENDBASER: u64 = 0x78;
const GICR_ISENABLER0: u64 = 0x1_0100;
const GICR_ICENABLER0: u64 = 0x1_0180;

/// A call that had to succeed.
fn refused(call: &'static str) -> impl Fn(Refused) -> Stop {
    move |refused| Stop::Failed(text!("{call} answered {refused:?}"))
}

fn redistributors(machine: &Machine) -> Outcome {
    let Some(run) = machine.tree().redistributors.iter().next() else {
        return Err(Stop::NotApplicable(text!("no redistributors in the device tree")));
    };
    let frame = run.start;
    let abort = |_| Stop::Failed(text!("an access to the redistributor at {frame:#x} aborted"));
    let before = machine.statistic(Statistic::EmulatedAccesses).unwrap_or(0);
    let kind = machine.cpu_read_u32(frame + GICR_TYPER).map_err(abort)?;
    // Turns LPIs on with these tables, if that can be; whether they are on.
    let turn_on = |configuration: u64, pending: u64| {
        machine.cpu_write_u64(frame + GICR_PROPBASER, configuration | LPI_ID_BITS)?;
        machine.cpu_write_u64(frame + GICR_PENDBASER, pending)?;
        let control = machine.cpu_read_u32(frame + GICR_CTLR)?;
        machine.cpu_write_u32(frame + GICR_CTLR, control | 1)?;
        machine.cpu_read_u32(frame + GICR_CTLR).map(|control| control & 1 != 0)
    };
    let own = machine.scratch().next_multiple_of(LPI_TABLES_BYTES);
    let (configuration, pending) = (own, own + LPI_TABLES_BYTES);
    for forbidden in machine.tree().reserved.iter().map(|run| run.start.next_multiple_of(LPI_TABLES_BYTES)) {
        for (configuration, pending) in [(forbidden, pending), (configuration, forbidden)] {
            if turn_on(configuration, pending).map_err(abort)? {
                fail!("LPIs are on with tables at {configuration:#x} and {pending:#x}");
            }
        }
    }
    let lpis = turn_on(configuration, pending).map_err(abort)?;
    if lpis != (kind & 1 != 0) {
        fail!("GICR_TYPER {kind:#x}, but EnableLPIs {lpis} with tables of the host's own");
    }
    if lpis {
        let guest = machine.create_guest().map_err(refused("GUEST_CREATE"))?;
        let unit = machine.features().map_err(refused("FEATURES"))?.unit;
        for page in [configuration, pending] {
            let donated = machine.donate(page, unit, guest);
            if !donated.is_err_and(|refused| refused.status() == Some(Status::WrongState)) {
                fail!("MEM_DONATE of the LPI table at {page:#x}: {donated:?}");
            }
        }
        let control = machine.cpu_read_u32(frame + GICR_CTLR).map_err(abort)?;
        machine.cpu_write_u32(frame + GICR_CTLR, control & !1).map_err(abort)?;
        if machine.cpu_read_u32(frame + GICR_CTLR).map_err(abort)? & 1 == 0 {
            machine.donate(pending, unit, guest).map_err(refused("MEM_DONATE with LPIs off"))?;
            machine.reclaim(pending, unit, guest).map_err(refused("MEM_RECLAIM"))?;
        }
        machine.destroy_guest(guest).map_err(refused("GUEST_DESTROY"))?;
    }
    machine.cpu_read_u32(frame + GICR_WAKER).map_err(abort)?;
    // The control: the frame beside it, with the SGIs' enables, is the host's own.
    machine.cpu_write_u32(frame + GICR_ISENABLER0, 1 << 3).map_err(abort)?;
    let enabled = machine.cpu_read_u32(frame + GICR_ISENABLER0).map_err(abort)?;
    machine.cpu_write_u32(frame + GICR_ICENABLER0, 1 << 3).map_err(abort)?;
    if enabled & 1 << 3 == 0 {
        fail!("SGI 3 cannot be enabled");
    }
    let emulated = machine.statistic(Statistic::EmulatedAccesses).unwrap_or(0) - before;
    if emulated == 0 {
        fail!("no access was emulated");
    }
    Ok(text!(
        "{emulated} accesses emulated, LPIs {}",
        if lpis { "of the host's own tables alone" } else { "none" }
    ))
}

fn injected(machine: &Machine) -> Outcome {
    if let Some(esr) = probe::odd_abort() {
        fail!("an abort with ESR {esr:#x} had the wrong class, direction or address");
    }
    let count = machine.statistic(Statistic::InjectedAborts).unwrap_or(0);
    Ok(text!("{count} aborts in all checks"))
}
