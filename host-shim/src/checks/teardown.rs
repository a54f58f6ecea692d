//! Taking a guest apart, whatever it has: in steps, and nothing of it is left.

use super::errands::{delayed_devices, expect, load_buffers, mark, read_in, slot, write_in};
use super::snapshot::Snapshot;
use super::support::{
    BLOCK, all_zero, block, cpu_store, dma, drain, fill, good, owned, refused, stream, teardown, unit,
};
use super::{Check, Outcome, Stop};
use crate::call::{Calls, DomainCalls, Ownership, VsmmuCalls};
use crate::host::{Device, Dma, Host, Transfer};
use crate::{fail, text};
use abi::{DomainHandle, GuestHandle, Recipient, Status, VsmmuHandle};
use smmuv3::features::Features;
use smmuv3::ste::Stage1Claim;

pub(super) fn checks<H: Host>() -> [Check<H>; 2] {
    [
        Check {
            name: "taking a guest apart",
            expected: "in steps, Busy for everything else meanwhile; then streams fault, memory is the host's and zero, all counts are as before",
            run: everything,
        },
        Check {
            name: "taking a guest apart that has nothing",
            expected: "in a few steps, and UnknownGuest afterwards and for all that were never there",
            run: nothing,
        },
    ]
}

const IPA: u64 = 0x40_0000;

/// What a guest of the check has.
struct Having {
    guest: GuestHandle,
    domains: [DomainHandle; 2],
    /// On SMMU 0, if it can nest.
    vsmmu: Option<VsmmuHandle>,
}

/// Memory of the guest: a whole block, two pages, and a page of the host's that is shared with it.
fn memory<H: Host>(host: &H) -> Result<[(u64, u64); 4], Stop> {
    let unit = unit(host)?;
    Ok([
        (block(host, 2), BLOCK),
        (block(host, 3) + 3 * unit, unit),
        (block(host, 3) + 9 * unit, unit),
        (block(host, 4), unit),
    ])
}

/// A guest with memory, shares, domains that map it, vSMMUs on two kinds of domains, nested domains, and a stream in a domain of each
/// kind behind every SMMU. Delayed devices have a write ahead of them.
fn make<H: Host>(host: &H) -> Result<Having, Stop> {
    let [(whole, _), (first, unit), (second, _), (shared, _)] = memory(host)?;
    let guest = good("GUEST_CREATE", host.create_guest())?;
    for (start, size) in [(whole, BLOCK), (first, unit), (second, unit), (shared, unit)] {
        fill(host, start, size.min(4 * unit))?;
        if start == shared {
            good("MEM_SHARE", host.share(start, size, Recipient::Guest(guest)))?;
        } else {
            good("MEM_DONATE", host.donate(start, size, guest))?;
        }
    }
    let domains = [
        good("DOMAIN_CREATE", host.create_domain(guest, 0))?,
        good("DOMAIN_CREATE", host.create_domain(guest, 0))?,
    ];
    let [one, other] = domains;
    good("DOMAIN_MAP", host.domain_map(one, IPA, whole, BLOCK))?;
    good("DOMAIN_MAP", host.domain_map(one, IPA + 2 * BLOCK, first, unit))?;
    good("DOMAIN_MAP", host.domain_map(other, IPA, first, unit))?;
    good("DOMAIN_MAP", host.domain_map(other, IPA + unit, second, unit))?;
    write_in(host, other, IPA, 1)?;
    expect(host, read_in(host, one, IPA + 2 * BLOCK)?, |smmu| mark(1, smmu), "through the other domain")?;
    load_buffers(host, |smmu| mark(2, smmu))?;
    let mut first_vsmmu = None;
    for smmu in 0..host.smmus() {
        let mut immediate = one;
        let id = stream(host, smmu, Device::Immediate)?;
        let features = Features::probe(&good("SMMU_FEATURES", host.smmu_features(smmu))?);
        if features.stage1 {
            // Every other one stands on the memory domain.
            let parent = if smmu % 2 == 0 { one } else { DomainHandle::Guest(guest) };
            let (vsmmu, _) = good("VSMMU_CREATE", host.create_vsmmu(smmu, parent))?;
            good("VSMMU_ADD_STREAM", host.add_stream(vsmmu, 7, id))?;
            let bypass = Stage1Claim::bypass(&features).0;
            immediate = good("DOMAIN_CREATE_NESTED", host.create_nested(vsmmu, bypass))?;
            good("DOMAIN_CREATE_NESTED", host.create_nested(vsmmu, Stage1Claim::ABORT.0))?;
            first_vsmmu = first_vsmmu.or(Some(vsmmu));
        }
        good("STREAM_ATTACH", host.attach(smmu, id, immediate))?;
        if let Some(id) = host.stream(smmu, Device::Disk) {
            good("STREAM_ATTACH", host.attach(smmu, id, DomainHandle::Guest(guest)))?;
        }
        if let Some(id) = host.stream(smmu, Device::Delayed) {
            if host.start(smmu, Transfer::ToMemory(slot(IPA, smmu))).is_err() {
                fail!("the delayed device behind SMMU {smmu} cannot be reached");
            }
            good("STREAM_ATTACH", host.attach(smmu, id, other))?;
        }
    }
    Ok(Having { guest, domains, vsmmu: first_vsmmu })
}

/// After the first step everything else is refused.
fn busy<H: Host>(host: &H, having: &Having) -> Result<(), Stop> {
    let unit = unit(host)?;
    let free = block(host, 5);
    let Having { guest, domains: [domain, _], vsmmu } = having;
    let (guest, domain) = (*guest, *domain);
    refused("MEM_DONATE", host.donate(free, unit, guest), Status::Busy)?;
    refused("MEM_SHARE", host.share(free, unit, Recipient::Guest(guest)), Status::Busy)?;
    refused("MEM_RECLAIM", host.reclaim(block(host, 2), unit, guest), Status::Busy)?;
    refused("DOMAIN_CREATE", host.create_domain(guest, 0), Status::Busy)?;
    refused("DOMAIN_MAP", host.domain_map(domain, 0, block(host, 2), unit), Status::Busy)?;
    refused("DOMAIN_UNMAP", host.domain_unmap(domain, IPA, unit), Status::Busy)?;
    refused("DOMAIN_DESTROY", host.destroy_domain(domain), Status::Busy)?;
    refused("GUEST_DESTROY", host.destroy_guest(guest), Status::Busy)?;
    refused("VSMMU_CREATE", host.create_vsmmu(0, domain), Status::Busy)?;
    if let Some(vsmmu) = *vsmmu {
        refused("VSMMU_DESTROY", host.destroy_vsmmu(vsmmu), Status::Busy)?;
        refused("VSMMU_ADD_STREAM", host.add_stream(vsmmu, 8, 0), Status::Busy)?;
        refused("VSMMU_REMOVE_STREAM", host.remove_stream(vsmmu, 7), Status::Busy)?;
        refused("VSMMU_INVALIDATE", host.invalidate(vsmmu, free, 1), Status::Busy)?;
        refused("DOMAIN_CREATE_NESTED", host.create_nested(vsmmu, [0; 2]), Status::Busy)?;
    }
    for smmu in 0..host.smmus() {
        for id in Device::ALL.into_iter().filter_map(|device| host.stream(smmu, device)) {
            match good("STREAM_QUERY", host.attachment(smmu, id))? {
                Some(_) => {
                    refused("STREAM_DETACH", host.detach(smmu, id), Status::Busy)?;
                    refused("REPLACE", host.replace(smmu, id, domain), Status::Busy)?;
                }
                None => refused("STREAM_ATTACH", host.attach(smmu, id, domain), Status::Busy)?,
            }
        }
    }
    Ok(())
}

fn everything<H: Host>(host: &H) -> Outcome {
    delayed_devices(host)?;
    let mut steps = 0;
    let mut before = None;
    // Tables of streams stay once they are there, so the counts are those after the first time.
    for _ in 0..2 {
        let having = make(host)?;
        if !good("GUEST_TEARDOWN", host.teardown_step(having.guest))? {
            fail!("a guest with memory, domains and streams is gone after one step");
        }
        busy(host, &having)?;
        steps = 1 + good("GUEST_TEARDOWN", teardown(host, having.guest))?;
        refused("GUEST_TEARDOWN again", host.teardown_step(having.guest), Status::UnknownGuest)?;
        for domain in having.domains {
            refused("DOMAIN_DESCRIBE", host.describe_domain(domain), Status::UnknownDomain)?;
        }
        if let Some(vsmmu) = having.vsmmu {
            refused("VSMMU_QUERY_STREAM", host.virtual_stream(vsmmu, 7), Status::UnknownVsmmu)?;
        }
        // What was ahead of the devices happens now, with nobody's stream.
        host.settle();
        while (0..host.smmus()).any(|smmu| host.under_way(smmu)) {
            host.settle();
        }
        let [taken @ .., (shared, unit)] = memory(host)?;
        for (start, size) in taken {
            owned(host, start, Ownership::HOST)?;
            owned(host, start + size - unit, Ownership::HOST)?;
            all_zero(host, start, size, "after the guest was taken apart")?;
        }
        owned(host, shared, Ownership::HOST)?;
        for smmu in 0..host.smmus() {
            for device in Device::ALL {
                let Some(id) = host.stream(smmu, device) else { continue };
                if good("STREAM_QUERY", host.attachment(smmu, id))?.is_some() {
                    fail!("StreamID {id:#x} behind SMMU {smmu} is still attached");
                }
            }
            let id = stream(host, smmu, Device::Immediate)?;
            let [(page, _), ..] = memory(host)?;
            dma(host, smmu, page, Dma::Faulted, "after the guest was taken apart")?;
            good("STREAM_ATTACH", host.attach(smmu, id, DomainHandle::Host))?;
            dma(host, smmu, page, Dma::Landed, "as the host's")?;
            good("STREAM_DETACH", host.detach(smmu, id))?;
            cpu_store(host, page, 0)?;
        }
        drain(host)?;
        match before {
            None => before = Some(Snapshot::take(host)?),
            Some(before) => before.unchanged(host, "a guest that came and went")?,
        }
    }
    Ok(text!("gone after {steps} steps, behind {} SMMUs", host.smmus()))
}

fn nothing<H: Host>(host: &H) -> Outcome {
    let before = Snapshot::take(host)?;
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let steps = good("GUEST_TEARDOWN", teardown(host, guest))?;
    for handle in GuestHandle::all() {
        refused("GUEST_TEARDOWN of none", host.teardown_step(handle), Status::UnknownGuest)?;
    }
    before.unchanged(host, "a guest that came and went")?;
    Ok(text!("gone after {steps} steps"))
}
