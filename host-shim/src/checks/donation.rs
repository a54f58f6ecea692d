//! Memory that the host gives to a guest is out of reach of the host's CPUs and devices until it comes back empty.

use super::support::{
    BLOCK, HOST, all_zero, attach_all, block, cpu_reaches, cpu_refused, detach_all, dma_everywhere, drain,
    fill, good, owned, unit,
};
use super::{Check, Outcome, Stop};
use crate::call::{Calls, Ownership};
use crate::host::{Dma, Host};
use crate::{fail, text};

pub(super) fn checks<H: Host>() -> [Check<H>; 4] {
    [
        Check {
            name: "donate and reclaim, single pages",
            expected: "CPU and DMA on all SMMUs: reached, refused while the guest's, reached again and empty",
            run: single_pages,
        },
        Check { name: "donate and reclaim, 2 MiB", expected: "the same for a whole block", run: whole_block },
        Check {
            name: "donate and reclaim, across blocks",
            expected: "the same for ranges that begin and end inside blocks",
            run: across,
        },
        Check {
            name: "donate and reclaim, in pieces",
            expected: "a block given whole can be taken back in pieces, and one given in pieces taken back whole",
            run: in_pieces,
        },
    ]
}

/// Donates and reclaims a range, with CPU and DMA before, during and after, inside and on both sides of it.
fn round_trip<H: Host>(host: &H, start: u64, size: u64) -> Result<(), Stop> {
    let unit = unit(host)?;
    let middle = start + (size / 2) / unit * unit;
    let inside = [start, middle, start + size - unit];
    let outside = [start - unit, start + size];
    let guest = good("GUEST_CREATE", host.create_guest())?;
    attach_all(host, HOST)?;
    fill(host, start, size)?;
    for place in inside.into_iter().chain(outside) {
        cpu_reaches(host, place + 8, "before the donation")?;
        dma_everywhere(host, place, Dma::Landed, "before the donation")?;
    }
    good("MEM_DONATE", host.donate(start, size, guest))?;
    for place in inside {
        owned(host, place, Ownership::guest(guest))?;
        cpu_refused(host, place + 8, "while the guest's")?;
        dma_everywhere(host, place, Dma::Faulted, "while the guest's")?;
        dma_everywhere(host, place + unit - 4, Dma::Faulted, "while the guest's")?;
    }
    for place in outside {
        owned(host, place, Ownership::HOST)?;
        cpu_reaches(host, place + 8, "beside the donation")?;
        dma_everywhere(host, place, Dma::Landed, "beside the donation")?;
    }
    drain(host)?;
    good("MEM_RECLAIM", host.reclaim(start, size, guest))?;
    all_zero(host, start, size, "after the reclaim")?;
    for place in inside.into_iter().chain(outside) {
        owned(host, place, Ownership::HOST)?;
        cpu_reaches(host, place + 8, "after the reclaim")?;
        dma_everywhere(host, place, Dma::Landed, "after the reclaim")?;
    }
    detach_all(host)?;
    good("GUEST_DESTROY", host.destroy_guest(guest))
}

fn single_pages<H: Host>(host: &H) -> Outcome {
    let unit = unit(host)?;
    let first = block(host, 1);
    let pages = [first, first + unit, first + BLOCK / 2, first + BLOCK - unit];
    for page in pages {
        round_trip(host, page, unit)?;
    }
    Ok(text!("{} pages of {unit} bytes, behind {} SMMUs", pages.len(), host.smmus()))
}

fn whole_block<H: Host>(host: &H) -> Outcome {
    round_trip(host, block(host, 2), BLOCK)?;
    Ok(text!("2 MiB at {:#x}, behind {} SMMUs", block(host, 2), host.smmus()))
}

fn across<H: Host>(host: &H) -> Outcome {
    let unit = unit(host)?;
    let edge = block(host, 2);
    let ranges = [
        (edge - unit, 2 * unit),
        (edge - BLOCK / 2, BLOCK),
        (edge - unit, BLOCK + 2 * unit),
        (edge, 2 * BLOCK + unit),
    ];
    for (start, size) in ranges {
        round_trip(host, start, size)?;
    }
    Ok(text!(
        "{} ranges of up to {} KiB, behind {} SMMUs",
        ranges.len(),
        (2 * BLOCK + unit) >> 10,
        host.smmus()
    ))
}

fn in_pieces<H: Host>(host: &H) -> Outcome {
    let unit = unit(host)?;
    let start = block(host, 3);
    let piece = 32 * unit;
    let guest = good("GUEST_CREATE", host.create_guest())?;
    attach_all(host, HOST)?;
    fill(host, start, BLOCK)?;
    good("MEM_DONATE", host.donate(start, BLOCK, guest))?;
    for at in (start..start + BLOCK).step_by(piece as usize) {
        dma_everywhere(host, at, Dma::Faulted, "before its piece came back")?;
        good("MEM_RECLAIM", host.reclaim(at, piece, guest))?;
        all_zero(host, at, piece, "after its piece came back")?;
        dma_everywhere(host, at, Dma::Landed, "after its piece came back")?;
        if at + piece < start + BLOCK {
            cpu_refused(host, at + piece, "with the pieces before it back")?;
        }
    }
    fill(host, start, BLOCK)?;
    // Backwards, so that the parts that are left change shape the other way round.
    for at in (0..BLOCK / piece).rev().map(|index| start + index * piece) {
        good("MEM_DONATE", host.donate(at, piece, guest))?;
        dma_everywhere(host, at, Dma::Faulted, "after its piece went")?;
        if at > start {
            dma_everywhere(host, at - unit, Dma::Landed, "before its piece goes")?;
        }
    }
    if good("MEM_QUERY", host.ownership(start + BLOCK / 2))? != Ownership::guest(guest) {
        fail!("a block given in pieces is not the guest's");
    }
    good("MEM_RECLAIM", host.reclaim(start, BLOCK, guest))?;
    all_zero(host, start, BLOCK, "after it came back whole")?;
    dma_everywhere(host, start + BLOCK / 2, Dma::Landed, "after it came back whole")?;
    detach_all(host)?;
    drain(host)?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    Ok(text!("{} pieces both ways", BLOCK / piece))
}
