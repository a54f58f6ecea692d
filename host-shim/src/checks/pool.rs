//! Pages that the host gives to the hypervisor's pool are the hypervisor's until they come back.

use super::snapshot::Snapshot;
use super::support::{
    BLOCK, HOST, all_zero, attach_all, block, cpu_reaches, cpu_refused, detach_all, dma_everywhere, drain,
    fill, give_all_back, good, owned, refused, unit,
};
use super::{Check, Outcome, Stop};
use crate::call::{Calls, Ownership, Refused};
use crate::host::{Dma, Host};
use crate::{fail, text};
use abi::{GuestHandle, Status};

pub(super) fn checks<H: Host>() -> [Check<H>; 2] {
    [
        Check {
            name: "top up and give back",
            expected: "pages of the pool are out of reach of CPU and DMA, come back empty, and the counts agree",
            run: top_up,
        },
        Check {
            name: "out of memory",
            expected: "NoMemory with the number of pages needed, nothing changed; a top up from a whole block works, and then the call",
            run: exhaust,
        },
    ]
}

fn top_up<H: Host>(host: &H) -> Outcome {
    let unit = unit(host)?;
    let start = block(host, 4);
    let size = 16 * unit;
    attach_all(host, HOST)?;
    fill(host, start, size)?;
    let before = good("POOL_STATE", host.pool())?;
    good("POOL_TOP_UP", host.top_up(start, size))?;
    for page in [start, start + size / 2, start + size - unit] {
        owned(host, page, Ownership { owner: Ownership::HYPERVISOR, shared: 0 })?;
        cpu_refused(host, page, "in the pool")?;
        dma_everywhere(host, page, Dma::Faulted, "in the pool")?;
    }
    let during = good("POOL_STATE", host.pool())?;
    if during.donated != before.donated + size / 4096 || during.total != before.total + size / 4096 {
        fail!("{before:?} became {during:?} after {} pages", size / 4096);
    }
    for _ in 0..16 {
        let page = good("POOL_GIVE_BACK", host.give_back(unit))?;
        if page & (unit - 1) != 0 {
            fail!("{page:#x} given back");
        }
        owned(host, page, Ownership::HOST)?;
        all_zero(host, page, unit, "given back")?;
        cpu_reaches(host, page, "given back")?;
        dma_everywhere(host, page, Dma::Landed, "given back")?;
    }
    refused("POOL_GIVE_BACK with nothing left", host.give_back(unit), Status::Empty)?;
    detach_all(host)?;
    drain(host)?;
    let after = good("POOL_STATE", host.pool())?;
    if after.total != before.total || after.donated != before.donated {
        fail!("{before:?} became {after:?}");
    }
    Ok(text!("16 units there and back; pool of {} pages, {} free", after.total, after.free))
}

/// Guests that take the pool's pages, in the order in which they got theirs.
struct Crowd {
    guests: [Option<GuestHandle>; GuestHandle::MAX as usize],
    donated: usize,
    asked_for: Option<u64>,
}

fn exhaust<H: Host>(host: &H) -> Outcome {
    let unit = unit(host)?;
    let mut crowd = Crowd { guests: [None; GuestHandle::MAX as usize], donated: 0, asked_for: None };
    let outcome = crowd.gather(host, unit);
    crowd.dissolve(host, unit);
    give_all_back(host);
    outcome?;
    let donated = crowd.donated;
    match crowd.asked_for {
        Some(pages) => Ok(text!(
            "after {donated} donations NoMemory asked for {pages} pages; after top ups of the empty pool it worked"
        )),
        None => Err(Stop::NotApplicable(text!("the pool holds out for {donated} tables"))),
    }
}

impl Crowd {
    /// Every guest gets a page in every block, which costs a table for each, until the pool is empty.
    fn gather<H: Host>(&mut self, host: &H, unit: u64) -> Result<(), Stop> {
        for index in 0..self.guests.len() - 1 {
            let guest = with_rescue(host, &mut self.asked_for, "GUEST_CREATE", || host.create_guest())?;
            if let Some(place) = self.guests.get_mut(index) {
                *place = Some(guest);
            }
            for page in pages_of(host, index, unit) {
                with_rescue(host, &mut self.asked_for, "MEM_DONATE", || host.donate(page, unit, guest))?;
                self.donated += 1;
                if self.asked_for.is_some() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Takes everything back. A refusal is passed over: it shows in the checks after this one.
    fn dissolve<H: Host>(&mut self, host: &H, unit: u64) {
        let mut left = self.donated;
        for (index, guest) in self.guests.iter().enumerate() {
            let Some(guest) = *guest else {
                return;
            };
            for page in pages_of(host, index, unit).take(left) {
                let _ = host.reclaim(page, unit, guest);
                left -= 1;
            }
            let _ = host.destroy_guest(guest);
        }
    }
}

/// The pages that the `index`-th guest gets: one in each block.
fn pages_of<H: Host>(host: &H, index: usize, unit: u64) -> impl Iterator<Item = u64> {
    let (start, size) = host.spare().unwrap_or((block(host, 0), 6 * BLOCK));
    (0..size / BLOCK).map(move |number| start + number * BLOCK + (2 * index as u64 + 1) * unit % BLOCK)
}

/// Makes a call; if the pool is empty, gives it what it asks for and makes the call again.
fn with_rescue<H: Host, T>(
    host: &H,
    asked_for: &mut Option<u64>,
    what: &str,
    call: impl Fn() -> Result<T, Refused>,
) -> Result<T, Stop> {
    match call() {
        Err(full) if full.status() == Some(Status::NoMemory) && asked_for.is_none() => {
            let before = Snapshot::take(host)?;
            match call() {
                Err(again) if again == full => {}
                _ => fail!("{what} answered {full}, and something else the second time"),
            }
            before.unchanged(host, what)?;
            *asked_for = Some(full.detail);
            rescue(host, full.detail, what, call)
        }
        other => good(what, other),
    }
}

/// Gives the pool one unit of a block that is all the host's, which must be split for it, and then as many pages next to it
/// as the call says that it needs.
fn rescue<H: Host, T>(
    host: &H,
    pages: u64,
    what: &str,
    call: impl Fn() -> Result<T, Refused>,
) -> Result<T, Stop> {
    // What the top up itself takes comes on top of what was asked for, so the call may have to ask again, but not often.
    const MOST_ROUNDS: u64 = 3;
    let unit = unit(host)?;
    let bank = block(host, 6);
    let (mut size, mut given) = (unit, 0);
    if pages == 0 || pages > 64 {
        fail!("{what} answered NoMemory with {pages} pages");
    }
    for _ in 0..=MOST_ROUNDS {
        if given + size > BLOCK {
            fail!("{what} needs more than {given} bytes and {size}");
        }
        good("POOL_TOP_UP with an empty pool", host.top_up(bank + given, size))?;
        given += size;
        match call() {
            Err(more) if more.status() == Some(Status::NoMemory) => {
                size = (more.detail * 4096).next_multiple_of(unit);
            }
            other => return good(what, other),
        }
    }
    fail!("{what} still answers NoMemory with {given} bytes more, after it asked for {pages} pages")
}
