//! Does a command, and says what came of it.

mod show;
#[cfg(test)]
mod tests;

use abi::{Function, GuestHandle, Recipient};
use alloc::format;
use alloc::string::{String, ToString};
use host_shim::call::{Caller, Calls, DomainCalls, Refused};
use hyp_iommu_uapi::Request;

use crate::command::{self, Command};
use crate::device::{Calling, Device, Errno, errno, explain};

/// Why the module refuses to attach.
const DRIVEN: &str = "a driver of Linux's is bound to the device: unbind it, then have Linux let go of the function with \
                      `echo 1 >/sys/bus/pci/devices/FUNCTION/remove`";

/// Does a command with a device: what to print.
///
/// # Errors
///
/// What was refused, by whom, and why.
pub fn run<D: Device + ?Sized>(command: &Command, device: &D) -> Result<String, String> {
    let calls = Calling(device);
    let request = |request, words: &[u64]| {
        let mut record = [0; 5];
        record[..words.len()].copy_from_slice(words);
        device.request(request, record).map_err(|errno| errno.to_string())
    };
    let call = |function: Function, arguments: [u64; 4]| calls.call(function, arguments).map_err(explain);
    let done = |(): ()| String::new();
    match *command {
        Command::Help => Ok(command::help()),
        Command::Version => show::version(device),
        Command::Smmus => show::smmus(&calls),
        Command::Streams => show::streams(&calls),
        Command::Domains => show::domains(&calls),
        Command::Statistics => show::statistics(&calls),
        Command::Events => show::events(&calls),
        Command::Pool => show::pool(&calls),
        Command::Memory => show::memory(device),
        Command::Stream { smmu, stream } => show::stream(&calls, smmu, stream),
        Command::Domain { domain } => show::domain(&calls, domain),
        Command::Owner { start } => show::owner(&calls, start),
        Command::Attach { smmu, stream, domain, flags } => {
            let attached = calls.call(Function::StreamAttach, [smmu, stream, domain, flags]);
            attached.map_err(|refused| match errno(refused) {
                Some(Errno::BUSY) => DRIVEN.into(),
                _ => explain(refused),
            })?;
            show::stream(&calls, smmu, stream)
        }
        Command::Detach { smmu, stream } => {
            call(Function::StreamDetach, [smmu, stream, 0, 0])?;
            show::stream(&calls, smmu, stream)
        }
        Command::Allocate { size } => {
            let [start, ..] = request(Request::Allocate, &[size])?;
            Ok(format!("{start:#x}\n"))
        }
        Command::Free { start } => request(Request::Free, &[start]).map(|_| String::new()),
        Command::Read { address } => {
            let [value, ..] = request(Request::Read, &[address])?;
            Ok(format!("{value:#018x}\n"))
        }
        Command::Write { address, value } => {
            request(Request::Write, &[address, value]).map(|_| String::new())
        }
        Command::Donate { start, size, guest } => {
            ranged(size, calls.donate(start, size, handle(guest)?)).map(done)
        }
        Command::Reclaim { start, size, guest } => {
            ranged(size, calls.reclaim(start, size, handle(guest)?)).map(done)
        }
        Command::Share { start, size, with } => {
            ranged(size, calls.share(start, size, recipient(with)?)).map(done)
        }
        Command::Unshare { start, size, with } => {
            ranged(size, calls.unshare(start, size, recipient(with)?)).map(done)
        }
        Command::TopUp { start, size } => ranged(size, calls.top_up(start, size)).map(done),
        Command::GiveBack { size } => Ok(format!("{:#x}\n", calls.give_back(size).map_err(explain)?)),
        Command::GuestCreate => {
            let guest = calls.create_guest().map_err(explain)?;
            Ok(format!("{}\n", guest.to_register()))
        }
        Command::GuestDestroy { guest } => calls.destroy_guest(handle(guest)?).map_err(explain).map(done),
        Command::GuestTeardown { guest } => {
            while calls.teardown_step(handle(guest)?).map_err(explain)? {}
            Ok(String::new())
        }
        Command::DomainCreate { guest, options } => {
            let domain = calls.create_domain(handle(guest)?, options).map_err(explain)?;
            Ok(format!("{:#x}\n", domain.to_register()))
        }
        Command::DomainDestroy { domain } => {
            call(Function::DomainDestroy, [domain, 0, 0, 0]).map(|_| String::new())
        }
        Command::DomainMap { domain, ipa, start, size } => {
            ranged(size, calls.domain_map(domain_handle(domain)?, ipa, start, size)).map(done)
        }
        Command::DomainUnmap { domain, ipa, size } => {
            ranged(size, calls.domain_unmap(domain_handle(domain)?, ipa, size)).map(done)
        }
        Command::DomainQuery { domain, ipa } => {
            let [address, size, ..] = call(Function::DomainQuery, [domain, ipa, 0, 0])?;
            Ok(format!("{address:#x}, by a leaf of {size:#x} bytes\n"))
        }
    }
}

/// A call that is done in steps may stop after some of them.
fn ranged(size: u64, result: Result<(), Refused>) -> Result<(), String> {
    result.map_err(explain).map_err(|error| {
        if size <= abi::MAX_STEP_BYTES {
            return error;
        }
        format!("{error}\nSteps of up to 2M that were done before stay done: `hyp-iommu memory` shows them.")
    })
}

fn handle(guest: u64) -> Result<GuestHandle, String> {
    GuestHandle::from_register(guest).ok_or_else(|| {
        format!(
            "{guest} is no guest: `hyp-iommu guest create` answers a number from 1 to {}",
            GuestHandle::MAX
        )
    })
}

fn recipient(with: u64) -> Result<Recipient, String> {
    if with == 0 { Ok(Recipient::Hypervisor) } else { handle(with).map(Recipient::Guest) }
}

fn domain_handle(domain: u64) -> Result<abi::DomainHandle, String> {
    abi::DomainHandle::from_register(domain)
        .ok_or_else(|| format!("{domain:#x} is no domain: write what `hyp-iommu domain create` answered"))
}
