//! What a step does.

use crate::driver::Act;
use crate::step::{Address, How, Pick, Send, Step, Target, Write};
use abi::{Function, Status};
use tests::bench::{Bench, SCRATCH};
use tests::model::ITS;
use tests::model::device::Dma;
use tests::model::smmu::translate::Origin;
use tests::owner::Stage1;
use tests::record::{Domain, Record, owner_of};

/// Where the arena is in a domain that a call made.
const ARENA: u64 = 0x2000_0000;
/// A handle that nothing has.
const NOTHING: u64 = 0xdead_0000_00ff;

fn pick<T>(of: &[T], pick: Pick) -> Option<&T> {
    of.len().checked_sub(1).and_then(|last| of.get(last - pick % of.len()))
}

fn target(record: &Record, target: Target) -> u64 {
    let of_kind = |nested: bool| {
        let kind = |(_, domain): &&(u64, Domain)| matches!(domain, Domain::Nested { .. }) == nested;
        record.domains.iter().filter(kind).map(|(handle, _)| *handle).collect::<Vec<_>>()
    };
    match target {
        Target::Memory(guest) => guest,
        Target::Made(n) => pick(&of_kind(false), n).copied().unwrap_or(NOTHING),
        Target::Nested(n) => pick(&of_kind(true), n).copied().unwrap_or(NOTHING),
    }
}

/// Handle, SMMU and parent of a vSMMU.
fn vsmmu(record: &Record, n: Pick) -> (u64, usize, u64) {
    pick(&record.vsmmus, n).map_or((NOTHING, 0, 0), |(handle, vsmmu)| (*handle, vsmmu.smmu, vsmmu.parent))
}

/// Where the owner of a stage-2 domain keeps its tables.
fn arena(bench: &Bench, parent: u64) -> Stage1 {
    let base = if parent <= 64 { SCRATCH + 16 * parent * bench.unit() } else { ARENA };
    Stage1::new(bench, base)
}

/// Does a step. The error says what it must not have done.
pub fn apply(bench: &Bench, step: &Step) -> Result<(), String> {
    let unit = bench.unit();
    let at = |place: u64| SCRATCH + place * unit;
    let record = bench.record();
    let smmus = bench.devices.len();
    match *step {
        Step::Range { function, place, units, guest } => {
            // Ranges stay in the scratch memory, so that boot memory is not given away.
            let units = units.min(((24 << 20) / unit).saturating_sub(place));
            if units != 0 {
                let result = bench.whole(function, at(place), units * unit, guest);
                let mapped =
                    (at(place)..at(place + units)).step_by(4096).any(|page| record.mappings_of(page) != 0);
                if function == Function::MemReclaim && mapped && result.is_ok() {
                    return Err("a page that is mapped was reclaimed".into());
                }
            }
        }
        Step::Attach { smmu, device, domain, flags } => {
            let _ = bench.attach_with(smmu % smmus, device, target(&record, domain), flags);
        }
        Step::Detach { smmu, device } => {
            let _ = bench.detach(smmu % smmus, device);
        }
        Step::Create => {
            let _ = bench.guest();
        }
        Step::Destroy { guest } => {
            let _ = bench.call(Function::GuestDestroy, [guest, 0, 0, 0]);
        }
        Step::TearDown { guest, steps } => {
            for _ in 0..steps {
                match bench.call(Function::GuestTeardown, [guest, 0, 0, 0]) {
                    Ok([1, ..]) => {}
                    Ok(_) | Err(Status::UnknownGuest) => break,
                    Err(status) => return Err(format!("a step of a teardown answered {status:?}")),
                }
            }
        }
        Step::GiveBack { order } => {
            let _ = bench.call(Function::PoolGiveBack, [unit << order, 0, 0, 0]);
        }
        Step::Domain { guest, options } => {
            let _ = bench.domain(guest, options);
        }
        Step::DestroyDomain { domain } => destroy_domain(bench, &record, target(&record, domain))?,
        Step::Map { domain, slot, place, units } => {
            map(bench, &record, target(&record, Target::Made(domain)), slot, place, units)?;
        }
        Step::Unmap { domain, slot, units } => {
            let domain = target(&record, Target::Made(domain));
            let _ = bench.unmap(domain, ARENA + slot * unit, units * unit);
        }
        Step::Vsmmu { smmu, parent } => {
            let _ = bench.vsmmu(smmu % smmus, target(&record, parent));
        }
        Step::DestroyVsmmu { vsmmu: n } => {
            let _ = bench.call(Function::VsmmuDestroy, [vsmmu(&record, n).0, 0, 0, 0]);
        }
        Step::AddStream { vsmmu: n, id, device } => {
            let (vsmmu, smmu, _) = vsmmu(&record, n);
            let _ = bench.add_stream(vsmmu, id, smmu, device);
        }
        Step::RemoveStream { vsmmu: n, id } => {
            let _ = bench.call(Function::VsmmuRemoveStream, [vsmmu(&record, n).0, id, 0, 0]);
        }
        Step::Nested { vsmmu: n, cd_max, format, bits: [word0, word1] } => {
            let (vsmmu, _, parent) = vsmmu(&record, n);
            // The other configurations do not use these fields: an owner may set them, or not.
            let stage1 = if word0 & 2 != 0 { arena(bench, parent).word0(cd_max, format) & !0xf } else { 0 };
            let _ = bench.nested(vsmmu, [word0 | stage1, word1]);
        }
        Step::Write { vsmmu: n, what } => write(bench, vsmmu(&record, n).2, what),
        Step::Invalidate { vsmmu: n, ref commands } => {
            let (vsmmu, _, parent) = vsmmu(&record, n);
            let commands: Vec<[u64; 2]> =
                commands.iter().map(|command| words(&arena(bench, parent), *command)).collect();
            let _ = bench.invalidate(vsmmu, &commands);
        }
        Step::Device { smmu, device, ssid, address, how } => {
            access(bench, &record, smmu % smmus, device, ssid, address, how)?;
        }
        Step::Cpu { place, write } => {
            let _ = bench.machine().cpu_translate(at(place), write);
        }
        Step::Driver { smmu, ref what } => crate::driver::act(bench, smmu % smmus, what),
        Step::Events => {
            let _ = bench.call(Function::EventRead, [0; 4]);
        }
    }
    Ok(())
}

/// Ends a domain, which is possible exactly when nothing needs it.
fn destroy_domain(bench: &Bench, record: &Record, domain: u64) -> Result<(), String> {
    let result = bench.destroy(domain);
    let in_use = match record.domain(domain) {
        None => return Ok(()),
        Some(Domain::Mapping(pages)) => !pages.is_empty(),
        Some(Domain::Nested { .. }) => false,
    };
    let in_use = in_use || record.users(domain, None) != 0;
    let in_use = in_use || record.vsmmus.iter().any(|(_, vsmmu)| vsmmu.parent == domain);
    let ending = record.ending.contains(&owner_of(domain));
    if result.is_ok() == (in_use || ending) {
        return Err(format!("DOMAIN_DESTROY answered {result:?}, in use {in_use}"));
    }
    Ok(())
}

/// Maps pages, which is possible exactly when the guest owns them and nothing is mapped there.
fn map(bench: &Bench, record: &Record, domain: u64, slot: u64, place: u64, units: u64) -> Result<(), String> {
    let unit = bench.unit();
    let (ipa, start, size) = (ARENA + slot * unit, SCRATCH + place * unit, units * unit);
    if size > 2 << 20 {
        let _ = bench.map(domain, ipa, start, size);
        return Ok(());
    }
    let owner = owner_of(domain);
    let can = match record.domain(domain) {
        Some(Domain::Mapping(pages)) => {
            let owned = |page: u64| bench.call(Function::MemQuery, [page, 0, 0, 0]) == Ok([owner, 0, 0, 0]);
            pages.range(ipa..ipa + size).next().is_none()
                && (start..start + size).step_by(unit as usize).all(owned)
                && (start..start + size).step_by(4096).all(|page| record.mappings_of(page) < 255)
                && !record.ending.contains(&owner)
        }
        _ => false,
    };
    match bench.map(domain, ipa, start, size) {
        Err(Status::NoMemory) => Ok(()),
        result if result.is_ok() == can => Ok(()),
        result => Err(format!("DOMAIN_MAP answered {result:?}, and should succeed: {can}")),
    }
}

fn write(bench: &Bench, parent: u64, what: Write) {
    let stage1 = arena(bench, parent);
    let _ = match what {
        Write::All(asid) => stage1.write(bench, parent, asid),
        Write::TwoLevels(asid) => stage1.write_two_levels(bench, parent, asid),
        Write::Cd(ssid, asid) => stage1.write_cd(bench, parent, ssid, stage1.cd(asid)),
        Write::NoCd(ssid) => stage1.write_cd(bench, parent, ssid, [0; 8]),
        Write::Entry(n, page) => stage1.write_entry(bench, parent, n, page.map(|page| stage1.page(page))),
        Write::Anything(unit, word, value) => {
            bench.owner_write(parent, stage1.base + unit * stage1.unit() + word * 8, value)
        }
    };
}

/// Commands as their owner writes them (IHI 0070, 4.3 to 4.7).
fn words(stage1: &Stage1, command: Send) -> [u64; 2] {
    match command {
        Send::AllCds(id) => [0x06 | id << 32, 0],
        Send::Cd(id, ssid) => [0x05 | ssid << 12 | id << 32, 1],
        Send::All => [0x10, 0],
        Send::AllOfAll => [0x30, 0],
        Send::Asid(asid) => [0x11 | asid << 48, 0],
        Send::Va(asid, n, leaf) => [0x12 | asid << 48, stage1.va(n) | u64::from(leaf)],
        Send::Atc(id, ssid) => [0x40 | ssid.map_or(0, |ssid| 1 << 11 | ssid << 12) | id << 32, 52],
        Send::Sync => [0x46, 0],
        Send::Anything(words) => words,
    }
}

/// An access of a device. Where it gets to must be memory of whoever has the stream.
fn access(
    bench: &Bench,
    record: &Record,
    smmu: usize,
    device: usize,
    ssid: Option<u32>,
    address: Address,
    how: How,
) -> Result<(), String> {
    let unit = bench.unit();
    let stream = bench.devices[smmu][device].stream;
    let attached = record.streams.get(&(smmu, stream));
    let parent = attached.and_then(|attached| record.below(attached.domain)).map_or(0, |(parent, _)| parent);
    let address = match address {
        Address::Va(n) => arena(bench, parent).va(n),
        Address::Place(place) => SCRATCH + place * unit,
        Address::Slot(slot) => ARENA + slot * unit,
    };
    let origin: Origin = (stream, ssid).into();
    let value = 0x1122_3344_5566_7788;
    let trusted = bench.trusted.contains(&(smmu, device));
    let dma = match how {
        How::Plain => bench.machine().dma_write(smmu, origin, address, value),
        How::Request => {
            let _ = bench.machine().ats_request(smmu, origin, address);
            return Ok(());
        }
        // A device that is trusted does not forge requests: that is what it is trusted with.
        How::Forged if !trusted => bench.machine().dma_translated(smmu, origin, address, value),
        How::Atc | How::Forged => bench.machine().dma_through_atc(smmu, origin, address, value),
    };
    let Dma::Reached(physical) = dma else { return Ok(()) };
    let owner = match attached {
        Some(attached) => owner_of(attached.domain),
        None if bench.driven(smmu).streams.contains_key(&stream) => 0,
        None => return Err(format!("a stream that aborts reaches {physical:#x}")),
    };
    if physical & !0xffff == ITS.start + 0x1_0000 {
        return Ok(());
    }
    match bench.call(Function::MemQuery, [physical & !(unit - 1), 0, 0, 0]) {
        Ok([of, ..]) if of == owner => Ok(()),
        Ok([0, with, ..]) if with == owner => Ok(()),
        said => Err(format!("a stream of {owner} reaches {physical:#x}, of which MEM_QUERY says {said:x?}")),
    }
}

/// Ends everything: nothing is left behind.
pub fn tear_down_all(bench: &Bench) -> Result<(), String> {
    let record = bench.record();
    for &guest in &record.guests {
        bench.tear_down(guest).map_err(|status| format!("teardown of guest {guest}: {status:?}"))?;
    }
    tests::oracle::check(bench)?;
    let record = bench.record();
    for (smmu, stream) in record.streams.keys() {
        bench
            .call(Function::StreamDetach, [*smmu as u64, u64::from(*stream), 0, 0])
            .map_err(|status| format!("detach of {stream:#x}: {status:?}"))?;
    }
    (0..bench.devices.len()).for_each(|smmu| crate::driver::act(bench, smmu, &Act::Control(0)));
    for (handle, domain) in &record.domains {
        bench.destroy(*handle).map_err(|status| format!("end of {domain:?}: {status:?}"))?;
    }
    for (handle, vsmmu) in &record.vsmmus {
        for id in vsmmu.streams.keys() {
            let _ = bench.call(Function::VsmmuRemoveStream, [*handle, *id, 0, 0]);
        }
        bench
            .call(Function::VsmmuDestroy, [*handle, 0, 0, 0])
            .map_err(|status| format!("end of {vsmmu:?}: {status:?}"))?;
    }
    tests::oracle::check(bench)?;
    for smmu in 0..bench.devices.len() {
        let (used, _) = bench.tags(smmu);
        if used != bench.idle_vmids(smmu) {
            return Err(format!("SMMU {smmu}: {used} VMIDs are in use, and nothing is attached"));
        }
        let left = bench.machine().smmus[smmu].cached().find(|cached| cached.vmid().is_some());
        if let Some(left) = left {
            return Err(format!("SMMU {smmu}: caches {left}, and nothing is attached"));
        }
    }
    Ok(())
}
