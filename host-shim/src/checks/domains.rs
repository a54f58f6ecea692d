//! Domains of guests: pages that a guest owns, at addresses that have nothing to do with where they are.

use super::errands::{
    Errands, delayed_devices, expect, load_buffers, mark, read_in, slot, unload_buffers, write_in,
};
use super::support::{BLOCK, all_zero, attach_all, block, detach_all, drain, good, refused, stream, unit};
use super::{Check, Outcome, Stop};
use crate::call::{Calls, DomainCalls, DomainTag, Translation};
use crate::host::{Device, Host, Transfer};
use crate::{fail, text};
use abi::{DomainHandle, Status, domain_options};

pub(super) fn checks<H: Host>() -> [Check<H>; 4] {
    [
        Check {
            name: "a domain of a guest on all SMMUs",
            expected: "its devices reach a page where it is mapped and nowhere else, refused after the unmap, in the other page after a remap",
            run: life,
        },
        Check {
            name: "a domain of a guest replaced by another",
            expected: "a device that changes over in between reaches the page of the new domain, not that of the old",
            run: replace,
        },
        Check {
            name: "blocks in a domain of a guest",
            expected: "2 MiB and a range across blocks: what is unmapped is refused, the rest is reached, and the table says so",
            run: blocks,
        },
        Check {
            name: "a page in several domains",
            expected: "reached through each; it cannot be reclaimed until the last mapping is gone, and comes back empty",
            run: several,
        },
    ]
}

/// An address of a domain that no memory has, in the reach of every table.
const IPA: u64 = 0x40_0000;

/// Where a domain leads must be this.
fn leads<H: Host>(host: &H, domain: DomainHandle, ipa: u64, expected: Option<u64>) -> Result<(), Stop> {
    match (host.translate(domain, ipa), expected) {
        (Ok(Translation { address, .. }), Some(expected)) if address == expected => Ok(()),
        (Err(refusal), None) if refusal.status() == Some(Status::WrongState) => Ok(()),
        (seen, _) => fail!("DOMAIN_QUERY of {ipa:#x}: {seen:x?}, not {expected:x?}"),
    }
}

fn life<H: Host>(host: &H) -> Outcome {
    let devices = delayed_devices(host)?;
    let unit = unit(host)?;
    let [first, second] = [block(host, 3) + unit, block(host, 4) + 3 * unit];
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let memory = DomainHandle::Guest(guest);
    let domain = good("DOMAIN_CREATE", host.create_domain(guest, 0))?;
    for page in [first, second] {
        good("MEM_DONATE", host.donate(page, unit, guest))?;
    }
    // These streams keep the domain's tags in use, so that nothing but the unmap takes translations out of the IOTLBs.
    attach_all(host, domain)?;
    let content = |page, phase, what: &str| {
        let expected = |smmu| if phase == 0 { 0 } else { mark(phase, smmu) };
        expect(host, read_in(host, memory, page)?, expected, what)
    };
    write_in(host, domain, IPA, 1)?;
    content(first, 0, "the page before it is mapped")?;
    let (mut in_first, mut in_second) = (0, 0);
    for (page, phase) in [(first, 2), (second, 5)] {
        good("DOMAIN_MAP", host.domain_map(domain, IPA, page, unit))?;
        leads(host, domain, IPA + 8, Some(page + 8))?;
        write_in(host, domain, IPA, phase)?;
        if page == first {
            in_first = phase
        } else {
            in_second = phase
        };
        content(first, in_first, "the first page")?;
        content(second, in_second, "the second page")?;
        expect(host, read_in(host, domain, IPA)?, |smmu| mark(phase, smmu), "through the domain")?;
        expect(host, read_in(host, domain, page)?, |_| 0, "at the page's own address")?;
        good("DOMAIN_UNMAP", host.domain_unmap(domain, IPA, unit))?;
        leads(host, domain, IPA, None)?;
        write_in(host, domain, IPA, phase + 1)?;
        content(page, phase, "the page after a write through a warm IOTLB")?;
        expect(host, read_in(host, domain, IPA)?, |_| 0, "unmapped, through the domain")?;
    }
    detach_all(host)?;
    for page in [first, second] {
        good("MEM_RECLAIM", host.reclaim(page, unit, guest))?;
        all_zero(host, page, unit, "after the reclaim")?;
    }
    good("DOMAIN_DESTROY", host.destroy_domain(domain))?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    drain(host)?;
    Ok(text!("{devices} devices in one domain: refused, reached, refused, reached elsewhere, refused"))
}

fn replace<H: Host>(host: &H) -> Outcome {
    let devices = delayed_devices(host)?;
    let unit = unit(host)?;
    let pages = [block(host, 3) + unit, block(host, 3) + 2 * unit];
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let memory = DomainHandle::Guest(guest);
    let old = good("DOMAIN_CREATE", host.create_domain(guest, 0))?;
    let new = good("DOMAIN_CREATE", host.create_domain(guest, 0))?;
    for (page, domain) in pages.into_iter().zip([old, new]) {
        good("MEM_DONATE", host.donate(page, unit, guest))?;
        good("DOMAIN_MAP", host.domain_map(domain, IPA, page, unit))?;
    }
    let mut phase = 1;
    for (from, to, kept, written) in [(old, new, pages[0], pages[1]), (new, old, pages[1], pages[0])] {
        write_in(host, from, IPA, phase)?;
        load_buffers(host, |smmu| mark(phase + 1, smmu))?;
        Errands::each(host, |smmu| Some((to, Transfer::ToMemory(slot(IPA, smmu))))).run_from(host, from)?;
        let seen = read_in(host, memory, kept)?;
        expect(host, seen, |smmu| mark(phase, smmu), "the page of the domain that was left")?;
        let seen = read_in(host, memory, written)?;
        expect(host, seen, |smmu| mark(phase + 1, smmu), "the page of the domain that replaced it")?;
        phase += 2;
    }
    // The memory domain of the guest, and back.
    for smmu in 0..host.smmus() {
        let id = stream(host, smmu, Device::Immediate)?;
        good("STREAM_ATTACH", host.attach(smmu, id, old))?;
        for (domain, other) in [(memory, old), (new, memory), (old, new)] {
            good("STREAM_ATTACH with REPLACE", host.replace(smmu, id, domain))?;
            let [now, before] = [domain, other].map(|domain| host.domain_tag(domain, smmu));
            if !matches!(now, Ok(DomainTag::Own { users: 1, .. })) || before != Ok(DomainTag::None) {
                fail!(
                    "tags behind SMMU {smmu} after a REPLACE: {now:?} of the new domain, {before:?} of the old"
                );
            }
        }
        good("STREAM_DETACH", host.detach(smmu, id))?;
    }
    for (page, domain) in pages.into_iter().zip([old, new]) {
        good("DOMAIN_UNMAP", host.domain_unmap(domain, IPA, unit))?;
        good("MEM_RECLAIM", host.reclaim(page, unit, guest))?;
        good("DOMAIN_DESTROY", host.destroy_domain(domain))?;
    }
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    drain(host)?;
    Ok(text!("{devices} devices changed over between call and transfer, both ways"))
}

fn blocks<H: Host>(host: &H) -> Outcome {
    let devices = delayed_devices(host)?;
    let unit = unit(host)?;
    let memory = block(host, 2);
    let size = 2 * BLOCK;
    let hole = BLOCK / 2..BLOCK + BLOCK / 2;
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let domain = good("DOMAIN_CREATE", host.create_domain(guest, domain_options::BLOCKS))?;
    good("MEM_DONATE", host.donate(memory, size, guest))?;
    let attached = (0..host.smmus()).try_for_each(|smmu| {
        let id = stream(host, smmu, Device::Immediate)?;
        match host.attach(smmu, id, domain) {
            Err(refusal) if refusal.status() == Some(Status::Incompatible) => {
                Err(Stop::NotApplicable(text!("SMMU {smmu} cannot split blocks in place")))
            }
            attached => good("STREAM_ATTACH", attached),
        }
    });
    if attached.is_err() {
        super::support::restore(host);
        return attached.map(|()| text!(""));
    }
    // Each device reads at one place, another one in each round.
    let places = [0, hole.start, size - unit, hole.end, hole.start - unit, hole.end - unit, BLOCK];
    let rounds = places.len() / host.smmus().max(1) + 1;
    let place = |round: usize, smmu: usize| {
        places.get((round * host.smmus() + smmu) % places.len()).copied().unwrap_or(0)
    };
    let reads = |round: usize| {
        load_buffers(host, |_| 0)?;
        let transfer = |smmu| Transfer::FromMemory(IPA + place(round, smmu));
        Errands::each(host, |smmu| Some((domain, transfer(smmu)))).run(host)?;
        unload_buffers(host)
    };
    good("DOMAIN_MAP", host.domain_map(domain, IPA, memory, size))?;
    let leaf = good("DOMAIN_QUERY", host.translate(domain, IPA + BLOCK))?;
    if leaf.address != memory + BLOCK || leaf.size != BLOCK && unit == 4096 {
        fail!("{leaf:x?} in the middle of 4 MiB that are aligned");
    }
    let written = 0x626c_6f63_6b00_0000;
    for round in 0..rounds {
        load_buffers(host, |smmu| written + place(round, smmu))?;
        let transfer = |smmu| Transfer::ToMemory(IPA + place(round, smmu));
        Errands::each(host, |smmu| Some((domain, transfer(smmu)))).run(host)?;
        let whole = |smmu| written + place(round, smmu);
        expect(host, reads(round)?, whole, "in whole blocks")?;
    }
    good("DOMAIN_UNMAP", host.domain_unmap(domain, IPA + hole.start, hole.end - hole.start))?;
    for at in places {
        leads(host, domain, IPA + at, (!hole.contains(&at)).then_some(memory + at))?;
    }
    for round in 0..rounds {
        let around = |smmu| {
            let at = place(round, smmu);
            if hole.contains(&at) { 0 } else { written + at }
        };
        expect(host, reads(round)?, around, "with a hole across two blocks")?;
    }
    good("DOMAIN_UNMAP", host.domain_unmap(domain, IPA, hole.start))?;
    good("DOMAIN_UNMAP", host.domain_unmap(domain, IPA + hole.end, size - hole.end))?;
    expect(host, reads(0)?, |_| 0, "all unmapped")?;
    detach_all(host)?;
    good("MEM_RECLAIM", host.reclaim(memory, size, guest))?;
    good("DOMAIN_DESTROY", host.destroy_domain(domain))?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    drain(host)?;
    Ok(text!("4 MiB, {} places, {devices} devices", places.len()))
}

fn several<H: Host>(host: &H) -> Outcome {
    let devices = delayed_devices(host)?;
    let unit = unit(host)?;
    let page = block(host, 3) + 4 * unit;
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let domains = [
        good("DOMAIN_CREATE", host.create_domain(guest, 0))?,
        good("DOMAIN_CREATE", host.create_domain(guest, 0))?,
    ];
    good("MEM_DONATE", host.donate(page, unit, guest))?;
    let mappings = [(domains[0], IPA), (domains[0], IPA + 2 * unit), (domains[1], IPA)];
    for (domain, ipa) in mappings {
        good("DOMAIN_MAP", host.domain_map(domain, ipa, page, unit))?;
    }
    for (phase, (domain, ipa)) in (1..).zip(mappings) {
        write_in(host, domain, ipa, phase)?;
        for (other, ipa) in mappings {
            expect(host, read_in(host, other, ipa)?, |smmu| mark(phase, smmu), "through another mapping")?;
        }
    }
    for (domain, ipa) in mappings {
        refused("MEM_RECLAIM of a mapped page", host.reclaim(page, unit, guest), Status::WrongState)?;
        good("DOMAIN_UNMAP", host.domain_unmap(domain, ipa, unit))?;
    }
    good("MEM_RECLAIM", host.reclaim(page, unit, guest))?;
    all_zero(host, page, unit, "after the reclaim")?;
    for domain in domains {
        good("DOMAIN_DESTROY", host.destroy_domain(domain))?;
    }
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    drain(host)?;
    Ok(text!("{} mappings, {devices} devices", mappings.len()))
}
