//! Guests begin with nothing and end only when they have nothing.

use super::support::{block, drain, good, refused, stream, unit};
use super::{Check, Outcome};
use crate::call::Calls;
use crate::host::{Device, Host};
use crate::{fail, text};
use abi::{DomainHandle, GuestHandle, Recipient, Status};

pub(super) fn checks<H: Host>() -> [Check<H>; 2] {
    [
        Check {
            name: "as many guests as there can be",
            expected: "every handle once, then NoSpace, and all again after they ended",
            run: all_handles,
        },
        Check {
            name: "ending a guest that has something",
            expected: "Busy while it owns memory, has a share, or a stream is attached to it",
            run: busy,
        },
    ]
}

fn all_handles<H: Host>(host: &H) -> Outcome {
    for _ in 0..2 {
        let mut seen = [false; GuestHandle::MAX as usize];
        for _ in 0..GuestHandle::MAX {
            let guest = good("GUEST_CREATE", host.create_guest())?;
            match seen.get_mut(guest.index()) {
                Some(place) if !*place => *place = true,
                _ => fail!("handle {} was given twice", guest.to_register()),
            }
        }
        refused("one GUEST_CREATE too many", host.create_guest(), Status::NoSpace)?;
        for guest in GuestHandle::all() {
            good("GUEST_DESTROY", host.destroy_guest(guest))?;
        }
    }
    Ok(text!("{} guests, twice", GuestHandle::MAX))
}

fn busy<H: Host>(host: &H) -> Outcome {
    let unit = unit(host)?;
    let page = block(host, 1);
    let guest = good("GUEST_CREATE", host.create_guest())?;
    good("MEM_DONATE", host.donate(page, unit, guest))?;
    refused("GUEST_DESTROY of an owner", host.destroy_guest(guest), Status::Busy)?;
    good("MEM_RECLAIM", host.reclaim(page, unit, guest))?;
    good("MEM_SHARE", host.share(page, unit, Recipient::Guest(guest)))?;
    refused("GUEST_DESTROY with a share", host.destroy_guest(guest), Status::Busy)?;
    good("MEM_UNSHARE", host.unshare(page, unit, Recipient::Guest(guest)))?;
    for smmu in 0..host.smmus() {
        let id = stream(host, smmu, Device::Immediate)?;
        good("STREAM_ATTACH", host.attach(smmu, id, DomainHandle::Guest(guest)))?;
        refused("GUEST_DESTROY with a stream", host.destroy_guest(guest), Status::Busy)?;
        good("STREAM_DETACH", host.detach(smmu, id))?;
    }
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    refused("GUEST_DESTROY again", host.destroy_guest(guest), Status::UnknownGuest)?;
    drain(host)?;
    Ok(text!("Busy three ways, then ended, then UnknownGuest"))
}
