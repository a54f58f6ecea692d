//! What can be looked at.

use core::fmt::Write;

use abi::{DomainHandle, GuestHandle, Statistic, Status};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use host_shim::call::{Caller, Calls, DomainCalls, DomainTag, Ownership, Refused};
use hyp_iommu_uapi::Request;

use super::domain_handle;
use crate::device::{Calling, Device, Errno, explain};

/// What a command prints, or why it could not.
type Shown = Result<String, String>;

/// Versions, features and limits.
pub fn version<D: Device + ?Sized>(device: &D) -> Shown {
    let [uapi, interface, ..] =
        device.request(Request::Version, [0; 5]).map_err(|errno| errno.to_string())?;
    let features = Calling(device).features().map_err(explain)?;
    let dotted = |version: u64| format!("{}.{}", version >> 16, version & 0xffff);
    let has = |bit| if features.bits & bit != 0 { "yes" } else { "no" };
    Ok(format!(
        "interface of the module: {}\ninterface of the hypervisor: {}\nownership unit: {:#x} bytes\nat most changed by one call: {:#x} \
         bytes\nguests at the most: {}\nrange invalidation: {}\nblocks in I/O page tables: {}\nbits of an address of a domain: {}\n",
        dotted(uapi),
        dotted(interface),
        features.unit,
        features.step,
        features.guests,
        has(abi::features::RANGE_INVALIDATION),
        has(abi::features::IO_BLOCKS),
        features.domain_end().trailing_zeros(),
    ))
}

/// A line for each SMMU.
pub fn smmus(calls: &impl Caller) -> Shown {
    let mut text = String::new();
    for smmu in 0..calls.smmu_count().map_err(explain)? as usize {
        let about = calls.describe_smmu(smmu).map_err(explain)?;
        let tags = calls.smmu_tags(smmu).map_err(explain)?;
        let ids = calls.smmu_features(smmu).map_err(explain)?;
        let state = if about.dead { "dead: it aborts everything" } else { "translating" };
        let _ = writeln!(
            text,
            "SMMU {smmu}: registers at {:#x}, StreamIDs of {} bits, {state}, VMIDs: {} in use, {} free, the largest {}; for owners: \
             IDR0 {:#010x}, IDR1 {:#010x}, IDR3 {:#010x}, IDR5 {:#010x}",
            about.base,
            about.stream_bits,
            tags.used,
            tags.free,
            about.last_vmid,
            ids.idr0,
            ids.idr1,
            ids.idr3,
            ids.idr5
        );
    }
    Ok(text)
}

/// A line for each stream that is attached.
pub fn streams(calls: &impl Caller) -> Shown {
    let mut text = String::new();
    for smmu in 0..calls.smmu_count().map_err(explain)? {
        let bits = calls.describe_smmu(smmu as usize).map_err(explain)?.stream_bits;
        // PCI has 16 bits of numbers; all of 32 bits would take hours.
        for stream in 0..1_u64 << bits.min(16) {
            if let Some(line) = attached(calls, smmu, stream)? {
                text += &line;
            }
        }
    }
    Ok(text)
}

/// One stream.
pub fn stream(calls: &impl Caller, smmu: u64, stream: u64) -> Shown {
    let unattached = || format!("SMMU {smmu}, StreamID {stream:#x}: unattached, its DMA faults\n");
    Ok(attached(calls, smmu, stream)?.unwrap_or_else(unattached))
}

/// The line of a stream that is attached.
fn attached(calls: &impl Caller, smmu: u64, stream: u64) -> Result<Option<String>, String> {
    let [attached, domain, vmid, _] =
        calls.call(abi::Function::StreamQuery, [smmu, stream, 0, 0]).map_err(explain)?;
    let line = || format!("SMMU {smmu}, StreamID {stream:#x}: domain {}, VMID {vmid}\n", name(calls, domain));
    Ok((attached != 0).then(line))
}

/// A domain's handle with what is known of it.
fn name(calls: &impl Caller, domain: u64) -> String {
    let kind = calls.call(abi::Function::DomainDescribe, [domain, 0, 0, 0]).ok();
    match (domain, kind) {
        (0, _) => "0 (the host's)".into(),
        (1..=64, _) => format!("{domain} (memory of guest {domain})"),
        (_, Some([1, vsmmu, ..])) => format!("{domain:#x} (nested on vSMMU {vsmmu:#x})"),
        (_, Some([2, ..])) => format!("{domain:#x} (of the host's driver)"),
        _ => format!("{domain:#x}"),
    }
}

/// The domains whose handles everybody knows.
pub fn domains(calls: &impl Caller) -> Shown {
    let mut text = String::new();
    for handle in 0..=u64::from(GuestHandle::MAX) {
        match describe(calls, domain_handle(handle)?) {
            Ok(lines) => text += &lines,
            Err(refused) if refused.status() == Some(Status::UnknownGuest) => {}
            Err(refused) => return Err(explain(refused)),
        }
    }
    Ok(text)
}

/// One domain.
pub fn domain(calls: &impl Caller, domain: u64) -> Shown {
    describe(calls, domain_handle(domain)?).map_err(explain)
}

/// A domain, and its tags on each SMMU.
fn describe(calls: &impl Caller, handle: DomainHandle) -> Result<String, Refused> {
    let [_, _, streams, users] =
        calls.call(abi::Function::DomainDescribe, [handle.to_register(), 0, 0, 0])?;
    let mut tags = Vec::new();
    for smmu in 0..calls.smmu_count()? as usize {
        match calls.domain_tag(handle, smmu)? {
            DomainTag::None => {}
            DomainTag::Own { vmid, users } => {
                tags.push(format!("VMID {vmid} on SMMU {smmu} ({users} streams)"))
            }
            DomainTag::Vsmmu { vmid, users } => {
                tags.push(format!("VMID {vmid} of the vSMMU on SMMU {smmu} ({users} streams)"));
            }
        }
    }
    let tags = if tags.is_empty() { "no tags".into() } else { tags.join(", ") };
    Ok(format!("domain {}: {streams} streams, {users} vSMMUs, {tags}\n", name(calls, handle.to_register())))
}

/// A line for each counter.
pub fn statistics(calls: &impl Caller) -> Shown {
    let mut text = String::new();
    for &statistic in Statistic::ALL {
        let value = calls.statistic(statistic).map_err(explain)?;
        let _ = writeln!(text, "{value:>12}  {}", statistic.doc());
    }
    Ok(text)
}

/// A line for each event that waits.
pub fn events(calls: &impl Caller) -> Shown {
    let mut text = String::new();
    while let Some(event) = calls.event().map_err(explain)? {
        if event.lost != 0 {
            let _ = writeln!(text, "{} events were lost here", event.lost);
        }
        let _ = writeln!(text, "{event}");
    }
    Ok(text)
}

/// The hypervisor's pool.
pub fn pool(calls: &impl Caller) -> Shown {
    let pool = calls.pool().map_err(explain)?;
    Ok(format!(
        "{} of {} pages of 4 KiB free; {} were given by the host, of which {} are free\n",
        pool.free, pool.total, pool.donated, pool.free_donated
    ))
}

/// The module's pages, a line for each run of neighbours in the same hands.
pub fn memory<D: Device + ?Sized>(device: &D) -> Shown {
    let calls = Calling(device);
    let unit = calls.features().map_err(explain)?.unit;
    let mut text = String::new();
    for index in 0.. {
        let (start, end) = match device.request(Request::Pages, [index, 0, 0, 0, 0]) {
            Ok([start, size, ..]) => (start, start + size),
            Err(Errno::NO_ENTRY) => break,
            Err(errno) => return Err(errno.to_string()),
        };
        let mut at = start;
        while at < end {
            let who = calls.ownership(at).map_err(explain)?;
            let mut next = at + unit;
            while next < end && calls.ownership(next).map_err(explain)? == who {
                next += unit;
            }
            let _ = writeln!(text, "{at:#x}, {:#x} bytes: {}", next - at, hands(who));
            at = next;
        }
    }
    Ok(text)
}

/// Who has a page.
pub fn owner(calls: &impl Caller, start: u64) -> Shown {
    Ok(format!("{}\n", hands(calls.ownership(start).map_err(explain)?)))
}

fn hands(who: Ownership) -> String {
    let name = |register| match register {
        0 => "the host".into(),
        Ownership::HYPERVISOR => "the hypervisor".into(),
        Ownership::NOBODY => "nobody (quarantined)".into(),
        guest => format!("guest {guest}"),
    };
    if who.shared == 0 {
        name(who.owner)
    } else {
        format!("{}, shared with {}", name(who.owner), name(who.shared))
    }
}
