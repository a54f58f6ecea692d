//! Three actors: the host's device, a guest's device, another guest's device. A page is one's, never another's.

use super::errands::{delayed_devices, expect, mark, read_in, write_in};
use super::support::{
    HOST, MAX_SMMUS, all_zero, attach_all, block, cpu_refused, cpu_store, detach_all, dma_everywhere, drain,
    fill, good, unit,
};
use super::tags::vmids_of;
use super::{Check, Outcome, Stop};
use crate::call::Calls;
use crate::host::{Device, Dma, Host};
use crate::text;
use abi::{DomainHandle, GuestHandle};

pub(super) fn checks<H: Host>() -> [Check<H>; 3] {
    [
        Check {
            name: "three actors",
            expected: "on every SMMU a page is its guest's device's alone, and after it changed hands the other guest's",
            run: three_actors,
        },
        Check {
            name: "warm IOTLBs of a guest",
            expected: "what a guest's device reached is out of its reach after the reclaim, its tag still in use",
            run: warm,
        },
        Check {
            name: "tags used again",
            expected: "a new guest that gets an old guest's tags reaches none of its pages",
            run: tags_again,
        },
    ]
}

fn has_delayed<H: Host>(host: &H) -> impl Iterator<Item = usize> {
    (0..host.smmus()).filter(|&smmu| host.stream(smmu, Device::Delayed).is_some())
}

/// Every delayed device, as a guest's, writes a mark into its slot of the page.
fn write_as<H: Host>(host: &H, guest: GuestHandle, page: u64, phase: u64) -> Result<(), Stop> {
    write_in(host, DomainHandle::Guest(guest), page, phase)
}

/// Every delayed device, as a guest's, reads its slot of the page.
fn read_as<H: Host>(host: &H, guest: GuestHandle, page: u64) -> Result<[u64; MAX_SMMUS], Stop> {
    read_in(host, DomainHandle::Guest(guest), page)
}

/// The page is `owner`'s: its devices write and read it on every SMMU; `other`'s and the host's do neither, nor does the CPU.
fn only<H: Host>(
    host: &H,
    owner: GuestHandle,
    other: GuestHandle,
    page: u64,
    phase: u64,
) -> Result<(), Stop> {
    write_as(host, owner, page, phase)?;
    expect(host, read_as(host, owner, page)?, |smmu| mark(phase, smmu), "the owner's device reads back")?;
    expect(host, read_as(host, other, page)?, |_| 0, "the other guest's device reads")?;
    write_as(host, other, page, phase + 1)?;
    dma_everywhere(host, page, Dma::Faulted, "of the host's device to a guest's page")?;
    cpu_refused(host, page, "to a guest's page")?;
    expect(
        host,
        read_as(host, owner, page)?,
        |smmu| mark(phase, smmu),
        "after the others tried, the owner's device reads",
    )
}

fn three_actors<H: Host>(host: &H) -> Outcome {
    let devices = delayed_devices(host)?;
    let unit = unit(host)?;
    let page = block(host, 5) + 7 * unit;
    let first = good("GUEST_CREATE", host.create_guest())?;
    let second = good("GUEST_CREATE", host.create_guest())?;
    attach_all(host, HOST)?;
    dma_everywhere(host, page, Dma::Landed, "of the host's device to the host's page")?;
    let mut phase = 0;
    for (owner, other) in [(first, second), (second, first)] {
        good("MEM_DONATE", host.donate(page, unit, owner))?;
        only(host, owner, other, page, phase)?;
        phase += 2;
        good("MEM_RECLAIM", host.reclaim(page, unit, owner))?;
        all_zero(host, page, unit, "after the guest's devices wrote to it and it came back")?;
        dma_everywhere(host, page, Dma::Landed, "of the host's device after the reclaim")?;
        // It is neither guest's now.
        cpu_store(host, page, 0)?;
        for guest in [owner, other] {
            write_as(host, guest, page, phase)?;
            all_zero(host, page, unit, "after a guest's device tried to write to the host's page")?;
        }
    }
    detach_all(host)?;
    drain(host)?;
    good("GUEST_DESTROY", host.destroy_guest(first))?;
    good("GUEST_DESTROY", host.destroy_guest(second))?;
    Ok(text!("{devices} devices as each of two guests', {} as the host's, both ways", host.smmus()))
}

fn warm<H: Host>(host: &H) -> Outcome {
    let devices = delayed_devices(host)?;
    let unit = unit(host)?;
    let page = block(host, 5);
    let guest = good("GUEST_CREATE", host.create_guest())?;
    // This stream keeps the guest's tag in use while the delayed device comes and goes, so that nothing but the
    // reclaim itself takes the translation out of the IOTLB.
    attach_all(host, DomainHandle::Guest(guest))?;
    for size in [unit, super::support::BLOCK] {
        good("MEM_DONATE", host.donate(page, size, guest))?;
        write_as(host, guest, page, 1)?;
        expect(host, read_as(host, guest, page)?, |smmu| mark(1, smmu), "the guest's device reads back")?;
        good("MEM_RECLAIM", host.reclaim(page, size, guest))?;
        all_zero(host, page, unit, "after the reclaim")?;
        write_as(host, guest, page, 2)?;
        all_zero(host, page, unit, "after the guest's device wrote through a warm IOTLB")?;
        fill(host, page, unit)?;
        expect(host, read_as(host, guest, page)?, |_| 0, "the guest's device reads the host's page")?;
    }
    detach_all(host)?;
    drain(host)?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    Ok(text!("{devices} devices, a page and 2 MiB: reached, then refused"))
}

fn tags_again<H: Host>(host: &H) -> Outcome {
    delayed_devices(host)?;
    let unit = unit(host)?;
    let page = block(host, 5) + 2 * unit;
    let keeper = good("GUEST_CREATE", host.create_guest())?;
    let mut same = 0;
    for _ in 0..2 {
        let old = good("GUEST_CREATE", host.create_guest())?;
        let before = vmids_of(host, DomainHandle::Guest(old))?;
        good("MEM_DONATE", host.donate(page, unit, old))?;
        write_as(host, old, page, 1)?;
        good("MEM_RECLAIM", host.reclaim(page, unit, old))?;
        good("GUEST_DESTROY", host.destroy_guest(old))?;
        good("MEM_DONATE", host.donate(page, unit, keeper))?;
        write_as(host, keeper, page, 2)?;
        let new = good("GUEST_CREATE", host.create_guest())?;
        let now = vmids_of(host, DomainHandle::Guest(new))?;
        same += has_delayed(host).filter(|&smmu| before.get(smmu) == now.get(smmu)).count();
        expect(host, read_as(host, new, page)?, |_| 0, "the new guest's device reads")?;
        write_as(host, new, page, 3)?;
        expect(host, read_as(host, keeper, page)?, |smmu| mark(2, smmu), "the owner's device reads")?;
        good("MEM_RECLAIM", host.reclaim(page, unit, keeper))?;
        good("GUEST_DESTROY", host.destroy_guest(new))?;
    }
    good("GUEST_DESTROY", host.destroy_guest(keeper))?;
    drain(host)?;
    Ok(text!("refused; {same} VMIDs were used again"))
}
