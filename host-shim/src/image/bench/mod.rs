//! What the calls cost, in instructions: with QEMU's `-icount shift=0` and one CPU a tick of the virtual counter is one.

mod array;
mod driver;
mod service;

use super::console::println;
use super::machine::Machine;
use super::{calls, cpu};
use abi::{DomainHandle, Function, GuestHandle, Statistic};
use host_shim::call::{Calls, Refused};
use host_shim::host::{Device, Host};

const BLOCK: u64 = 2 << 20;

/// What one measured call did.
#[derive(Clone, Copy)]
struct Cost {
    ticks: u64,
    commands: u64,
    syncs: u64,
}

/// One number: what `cargo xtask bench` looks for.
fn line(name: &str, value: u64, unit: &str) {
    println!("measure: {name} {value} {unit}");
}

/// A call's instructions, and what it sent to all SMMUs: CMD_SYNCs, and commands that invalidate something.
fn report(name: &str, cost: Cost) {
    line(name, cost.ticks, "instructions");
    println!("measure: {name}-tlbi {} commands", cost.commands - cost.syncs);
    println!("measure: {name}-sync {} commands", cost.syncs);
}

/// Ticks between two readings of the counter with nothing in between.
fn overhead() -> u64 {
    (0..16)
        .map(|_| {
            let begin = cpu::ticks();
            cpu::ticks() - begin
        })
        .min()
        .unwrap_or(0)
}

fn measure(machine: &Machine, function: Function, arguments: [u64; 4]) -> Result<Cost, Refused> {
    let commands = machine.statistic(Statistic::Commands)?;
    let syncs = machine.statistic(Statistic::Syncs)?;
    let overhead = overhead();
    let begin = cpu::ticks();
    let answer = calls::hvc(function.id(), arguments);
    let end = cpu::ticks();
    host_shim::call::answer(answer)?;
    Ok(Cost {
        ticks: end - begin - overhead,
        commands: machine.statistic(Statistic::Commands)? - commands,
        syncs: machine.statistic(Statistic::Syncs)? - syncs,
    })
}

/// Measures everything; whether every call succeeded.
pub fn run(machine: &Machine) -> bool {
    if !array::run(machine.scratch()) {
        println!("an edit of an invalidation array was refused");
        return false;
    }
    match measure_all(machine) {
        Ok(()) => true,
        Err(refused) => {
            println!("a call was refused: {refused}");
            false
        }
    }
}

fn measure_all(machine: &Machine) -> Result<(), Refused> {
    let mut best = u64::MAX;
    for _ in 0..16 {
        best = best.min(measure(machine, Function::Version, [0; 4])?.ticks);
    }
    line("empty-hypercall", best, "instructions");
    line("boot", machine.statistic(Statistic::BootTicks)?, "instructions");
    line("host-table-bytes", machine.statistic(Statistic::HostTableBytes)?, "bytes");
    line("table-pages", machine.statistic(Statistic::TablePages)?, "pages");

    for smmu in 0..machine.smmus() {
        if let Some(stream) = machine.stream(smmu, Device::Immediate) {
            machine.attach(smmu, stream, DomainHandle::Host)?;
        }
    }
    line("smmus-in-use", machine.smmus() as u64, "SMMUs");
    let guest = machine.create_guest()?;
    ranges(machine, guest)?;
    pages(machine, guest)?;

    for smmu in 0..machine.smmus() {
        let (Some(stream), Some(device)) =
            (machine.stream(smmu, Device::Immediate), machine.stream(smmu, Device::Delayed))
        else {
            continue;
        };
        let attach = measure(machine, Function::StreamAttach, [smmu as u64, u64::from(device), 0, 0])?;
        let detach = measure(machine, Function::StreamDetach, [smmu as u64, u64::from(device), 0, 0])?;
        let to_guest = measure(
            machine,
            Function::StreamAttach,
            [smmu as u64, u64::from(device), guest.to_register(), 0],
        )?;
        let from_guest = measure(machine, Function::StreamDetach, [smmu as u64, u64::from(device), 0, 0])?;
        if smmu == machine.smmus() - 1 {
            report("attach-host", attach);
            report("detach-host", detach);
            report("attach-guest", to_guest);
            report("detach-guest", from_guest);
            service::attach_again(machine, smmu, device)?;
        }
        machine.detach(smmu, stream)?;
    }
    service::guest_domain(machine, guest)?;
    if let Err(abort) = driver::run(machine, 0) {
        println!("an access of an emulated SMMU aborted: {abort:?}");
    }
    machine.destroy_guest(guest)
}

fn donate(machine: &Machine, start: u64, size: u64, guest: GuestHandle) -> Result<Cost, Refused> {
    measure(machine, Function::MemDonate, [start, size, guest.to_register(), 0])
}

fn reclaim(machine: &Machine, start: u64, size: u64, guest: GuestHandle) -> Result<Cost, Refused> {
    measure(machine, Function::MemReclaim, [start, size, guest.to_register(), 0])
}

/// 2 MiB: the first takes a larger block apart, the second does not, the third lies across two blocks.
fn ranges(machine: &Machine, guest: GuestHandle) -> Result<(), Refused> {
    let start = machine.scratch();
    report("donate-2mib", donate(machine, start, BLOCK, guest)?);
    report("donate-2mib-again", donate(machine, start + BLOCK, BLOCK, guest)?);
    report("reclaim-2mib", reclaim(machine, start + BLOCK, BLOCK, guest)?);
    report("reclaim-2mib-last", reclaim(machine, start, BLOCK, guest)?);
    report("donate-2mib-across", donate(machine, start + BLOCK / 2, BLOCK, guest)?);
    report("reclaim-2mib-across", reclaim(machine, start + BLOCK / 2, BLOCK, guest)?);
    Ok(())
}

/// Single pages: with a block to take apart and to make whole, and in the middle of others.
fn pages(machine: &Machine, guest: GuestHandle) -> Result<(), Refused> {
    let unit = machine.features()?.unit;
    let start = machine.scratch() + 2 * BLOCK;
    report("donate-page-split", donate(machine, start, unit, guest)?);
    // Steady: the block is in pages already, and stays so.
    let mut donated = None;
    let mut reclaimed = None;
    for index in 1..9 {
        donated = Some(donate(machine, start + index * unit, unit, guest)?);
    }
    for index in 1..9 {
        reclaimed = Some(reclaim(machine, start + index * unit, unit, guest)?);
    }
    if let (Some(donated), Some(reclaimed)) = (donated, reclaimed) {
        report("donate-page", donated);
        report("reclaim-page", reclaimed);
    }
    report("reclaim-page-join", reclaim(machine, start, unit, guest)?);
    let with = abi::Recipient::Guest(guest).to_register();
    report("share-page", measure(machine, Function::MemShare, [start, unit, with, 0])?);
    report("unshare-page", measure(machine, Function::MemUnshare, [start, unit, with, 0])?);
    Ok(())
}
