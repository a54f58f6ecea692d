//! Takes apart what an attack left, until all of its pages are the host's.

use alloc::format;
use alloc::string::String;

use abi::{Function, GuestHandle, Recipient, Status};
use host_shim::call::{Caller, Calls, Ownership, Refused};
use host_shim::host::SCRATCH_BYTES;

/// Steps of one guest's end at the most. A step does up to 2 MiB.
const MOST_STEPS: u32 = 100_000;

/// What was found and taken apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Streams that were in the host's domain without a driver.
    pub streams: u64,
    /// Guests.
    pub guests: u64,
    /// Pages that were shared with the hypervisor.
    pub shared: u64,
    /// Runs of pages that the pool had.
    pub pooled: u64,
    /// Pages, all of which are the host's now.
    pub pages: u64,
}

/// Whether there is no guest: whoever made one would lose it.
///
/// # Errors
///
/// There is one, or a call failed.
pub fn expect_no_guest(calls: &impl Caller) -> Result<(), String> {
    for guest in guests() {
        if calls.call(Function::DomainDescribe, [guest.to_register(), 0, 0, 0]).is_ok() {
            let guest = guest.to_register();
            return Err(format!(
                "there is guest {guest}, and an attack takes all guests apart: `hyp-iommu guest teardown {guest}` does that too"
            ));
        }
    }
    Ok(())
}

fn guests() -> impl Iterator<Item = GuestHandle> {
    (1..=u64::from(GuestHandle::MAX)).filter_map(GuestHandle::from_register)
}

/// Takes everything apart, with the pages from `start` on and these streams.
///
/// # Errors
///
/// What could not be taken apart, or whose a page still is.
pub fn restore(
    calls: &impl Caller,
    start: u64,
    streams: impl Iterator<Item = (usize, u32)>,
) -> Result<Restored, String> {
    let mut restored = Restored { streams: detach(calls, streams)?, ..Restored::default() };
    for guest in guests() {
        restored.guests += u64::from(teardown(calls, guest)?);
    }
    let failed = |what: &'static str| move |refused: Refused| format!("{what}: {refused}");
    let unit = calls.features().map_err(failed("FEATURES"))?.unit;
    let pages = || (start..start + SCRATCH_BYTES).step_by(unit as usize);
    for page in pages() {
        if calls.ownership(page).is_ok_and(|who| who.shared == Ownership::HYPERVISOR) {
            calls.unshare(page, unit, Recipient::Hypervisor).map_err(failed("MEM_UNSHARE"))?;
            restored.shared += 1;
        }
    }
    while restored.pooled < SCRATCH_BYTES / unit && calls.give_back(unit).is_ok() {
        restored.pooled += 1;
    }
    for page in pages() {
        let who = calls.ownership(page).map_err(failed("MEM_QUERY"))?;
        if who != Ownership::HOST {
            return Err(format!(
                "page {page:#x} is not the host's alone again: owner {:#x}, shared with {:#x}",
                who.owner, who.shared
            ));
        }
        restored.pages += 1;
    }
    Ok(restored)
}

/// Detaches those streams that are in the host's domain: those of Linux's driver are in domains of its own, and those of guests go with them.
fn detach(calls: &impl Caller, streams: impl Iterator<Item = (usize, u32)>) -> Result<u64, String> {
    let mut count = 0;
    for (smmu, stream) in streams {
        if calls.attachment(smmu, stream).is_ok_and(|found| found.is_some_and(|found| found.domain == 0)) {
            let detached = calls.detach(smmu, stream);
            detached.map_err(|refused| format!("stream {stream:#x} of SMMU {smmu} stays: {refused}"))?;
            count += 1;
        }
    }
    Ok(count)
}

/// Takes a guest apart; whether there was one.
fn teardown(calls: &impl Caller, guest: GuestHandle) -> Result<bool, String> {
    let mut there = false;
    for _ in 0..MOST_STEPS {
        match calls.teardown_step(guest) {
            Ok(true) => there = true,
            Ok(false) => return Ok(true),
            Err(refused) if refused.status() == Some(Status::UnknownGuest) => return Ok(there),
            Err(refused) => return Err(format!("guest {} stays: {refused}", guest.to_register())),
        }
    }
    Err(format!("guest {} is not gone after {MOST_STEPS} steps", guest.to_register()))
}
