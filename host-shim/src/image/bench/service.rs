//! What the calls of the IOMMU service cost where everything that they need is there already: arrays of as many entries as there
//! are SMMUs.

use super::super::machine::Machine;
use super::{Cost, line, measure, report};
use abi::{DomainHandle, Function, GuestHandle};
use host_shim::call::{Caller, Calls, Refused};
use host_shim::host::{Device, Host};

/// Attaches a stream to the host's domain, which is used on that SMMU, and detaches it; then again, with the STE in a table of its
/// own.
pub fn attach_again(machine: &Machine, smmu: usize, stream: u32) -> Result<(), Refused> {
    let stream = [smmu as u64, u64::from(stream), 0, 0];
    let mut last = None;
    for _ in 0..2 {
        let attach = measure(machine, Function::StreamAttach, stream)?;
        let detach = measure(machine, Function::StreamDetach, stream)?;
        last = Some((attach, detach));
    }
    if let Some((attach, detach)) = last {
        report("attach-again", attach);
        report("detach-again", detach);
        line("attach-detach-again", attach.ticks + detach.ticks, "instructions");
    }
    Ok(())
}

/// Maps and unmaps a page, and 2 MiB less a page, in a domain of a guest that has a stream behind every SMMU.
pub fn guest_domain(machine: &Machine, guest: GuestHandle) -> Result<(), Refused> {
    let [domain, ..] = machine.call(Function::DomainCreate, [guest.to_register(), 0, 0, 0])?;
    let Some(handle) = DomainHandle::from_register(domain) else { return Ok(()) };
    let streams =
        || (0..machine.smmus()).filter_map(|smmu| Some((smmu, machine.stream(smmu, Device::Immediate)?)));
    for (smmu, stream) in streams() {
        machine.attach(smmu, stream, handle)?;
    }
    let unit = machine.features()?.unit;
    let memory = machine.scratch();
    machine.donate(memory, 2 << 20, guest)?;
    // A page beside it, so that the tables are there.
    let ipa = 0x1000_0000;
    map(machine, domain, ipa, memory, unit)?;
    let mut pair = None;
    for _ in 0..2 {
        let mapped = map(machine, domain, ipa + unit, memory + unit, unit)?;
        pair = Some((mapped, unmap(machine, domain, ipa + unit, unit)?));
    }
    if let Some((mapped, unmapped)) = pair {
        report("domain-map-page", mapped);
        report("domain-unmap-page", unmapped);
        line("domain-map-unmap-page", mapped.ticks + unmapped.ticks, "instructions");
    }
    let rest = (2 << 20) - unit;
    report("domain-map-range", map(machine, domain, ipa + unit, memory + unit, rest)?);
    report("domain-unmap-range", unmap(machine, domain, ipa + unit, rest)?);
    unmap(machine, domain, ipa, unit)?;
    // A page further on than the memory: nothing becomes a block.
    commands(machine, domain, ipa + unit, memory)?;
    for (smmu, stream) in streams() {
        machine.detach(smmu, stream)?;
    }
    machine.call(Function::DomainDestroy, [domain, 0, 0, 0])?;
    machine.reclaim(memory, 2 << 20, guest)?;
    Ok(())
}

/// What unmapping 1 to 509 pages sends, beside what range invalidation and one SYNC need on every SMMU.
fn commands(machine: &Machine, domain: u64, ipa: u64, memory: u64) -> Result<(), Refused> {
    let unit = machine.features()?.unit;
    let smmus = machine.smmus() as u64;
    let mut beyond = Cost { ticks: 0, commands: 0, syncs: 0 };
    // The last page stays, and so the table does.
    map(machine, domain, ipa + 510 * unit, memory + 511 * unit, unit)?;
    for pages in 1..510 {
        map(machine, domain, ipa, memory, pages * unit)?;
        let cost = unmap(machine, domain, ipa, pages * unit)?;
        let needed = smmus * (range_commands(pages) + 1);
        beyond.commands += cost.commands.abs_diff(needed);
        beyond.syncs += cost.syncs.abs_diff(smmus);
        if pages == 341 {
            report("unmap-341-pages", cost);
        }
    }
    unmap(machine, domain, ipa + 510 * unit, unit)?;
    line("unmap-pages-beyond", beyond.commands + beyond.syncs, "commands");
    Ok(())
}

/// The commands of IHI 0070, 4.4.1.1 that cover so many pages, when each takes as many as it can from the low end: five bits of the
/// number from its lowest set bit on.
fn range_commands(pages: u64) -> u64 {
    let (mut left, mut commands) = (pages, 0);
    while left != 0 {
        let window = 31 << left.trailing_zeros();
        left &= !window;
        commands += 1;
    }
    commands
}

fn map(machine: &Machine, domain: u64, ipa: u64, memory: u64, size: u64) -> Result<Cost, Refused> {
    measure(machine, Function::DomainMap, [domain, ipa, memory, size])
}

fn unmap(machine: &Machine, domain: u64, ipa: u64, size: u64) -> Result<Cost, Refused> {
    measure(machine, Function::DomainUnmap, [domain, ipa, size, 0])
}
