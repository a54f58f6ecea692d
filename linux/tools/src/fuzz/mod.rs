//! `hyp-iommu fuzz`: the steps of [`host_shim::hostile`] by root of Linux, on all CPUs at once.
//!
//! Each CPU has a process of its own. Calls go through the module, which refuses what could hurt Linux; so this tries what root can do to the
//! hypervisor and not what it can do to Linux.

mod attack;
mod host;
mod memory;
mod options;
mod restore;
mod streams;
#[cfg(test)]
mod tests;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use host_shim::host::{Abort, Host};
use host_shim::hostile::{MAX_CPUS, oracle};
use host_shim::tree::Run;
use hyp_iommu_uapi::Request;

use crate::device::{Calling, Device, Errno};
use attack::{Attack, Shared};
use host::Linux;

pub use options::{Options, USAGE};

/// What an attack needs of the machine besides the module.
pub trait System: Sync {
    /// A load of 1, 2, 4 or 8 bytes of physical memory, in a page that [`System::map`] mapped.
    ///
    /// # Errors
    ///
    /// The access was refused, or the page is not mapped.
    fn load(&self, address: u64, bytes: u8) -> Result<u64, Abort>;
    /// A store of these.
    ///
    /// # Errors
    ///
    /// As [`System::load`].
    fn store(&self, address: u64, bytes: u8, value: u64) -> Result<(), Abort>;
    /// Maps pages of physical memory that Linux does not use: how many.
    ///
    /// # Errors
    ///
    /// None can be.
    fn map(&self, pages: &[u64]) -> Result<usize, String>;
    /// A clock in nanoseconds.
    fn now_ns(&self) -> u64;
    /// How many CPUs this program may use.
    fn cpus(&self) -> u64;
    /// Puts a value where every process sees it.
    ///
    /// # Errors
    ///
    /// There is no memory.
    fn share<T: Sync + 'static>(&self, value: T) -> Result<&'static T, String>;
    /// Runs a job on each of so many CPUs, in processes of their own, until all have ended.
    ///
    /// # Errors
    ///
    /// A process could not be started, or did not end by itself.
    fn on_each_cpu(&self, count: u64, job: &(dyn Fn(u64) + Sync)) -> Result<(), String>;
    /// Prints a line.
    fn say(&self, line: fmt::Arguments<'_>);
}

/// Which memory the machine has, and what of it the hypervisor keeps.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// All memory.
    pub memory: Vec<Run>,
    /// The hypervisor's.
    pub kept: Vec<Run>,
}

/// Attacks, and takes apart what is left: what to print.
///
/// # Errors
///
/// What was found, or why there was no attack.
pub fn run<D: Device + Sync, S: System>(
    options: &Options,
    device: &D,
    system: &S,
    layout: Layout,
) -> Result<String, String> {
    let calls = Calling(device);
    if device.request(Request::Pages, [0; 5]) != Err(Errno::NO_ENTRY) {
        return Err(
            "the module has pages, of which an attack could lose some: `hyp-iommu memory` lists them, `hyp-iommu free START` frees one"
                .into(),
        );
    }
    restore::expect_no_guest(&calls)?;
    let has_oracle = oracle::is_there(&calls);
    if options.oracle && !has_oracle {
        return Err("this hypervisor was built without its oracle: `cargo xtask fuzz --host linux` builds one that has it".into());
    }
    let shared = system.share(Shared::new())?;
    let scratch = memory::take(device)?;
    let host = Linux::new(device, system, scratch, &options.devices, layout.memory, layout.kept);
    let attacked = host.map_err(|loose| format!("{:#x} is no SMMU's address", loose.smmu)).and_then(|host| {
        let pages = host.pages();
        let mapped = system.map(&pages)?;
        let cpus = options.cpus.unwrap_or(system.cpus()).min(MAX_CPUS as u64);
        system.say(format_args!(
            "fuzz: seed {}, {cpus} CPUs, {} SMMUs, {} devices, {mapped} of {} pages past the module, {}",
            options.seed,
            host.smmus(),
            options.devices.len(),
            pages.len(),
            if has_oracle { "with the hypervisor's oracle" } else { "without an oracle" }
        ));
        let attack = Attack::new(&host, system, options, shared, cpus, has_oracle);
        let all_ended = system.on_each_cpu(cpus, &|cpu| attack.on_cpu(cpu));
        // What a device was told to do later is done before its pages are anybody else's.
        host.settle();
        attack.judge(all_ended)
    });
    let restored = restore::restore(&calls, scratch, shared.streams.noted()).and_then(|restored| {
        memory::give_back(device, scratch)?;
        Ok(restored)
    });
    let failed = |error: &String| system.say(format_args!("FAIL fuzz: at the end: {error}"));
    let _ = restored.as_ref().inspect_err(|error| failed(error));
    attacked?;
    let restore::Restored { streams, guests, shared, pooled, pages } = restored?;
    Ok(format!(
        "fuzz: nothing was found; {guests} guests taken apart, {streams} streams detached, {shared} pages unshared, {pooled} taken out of the \
         pool; all {pages} pages are the host's again\n"
    ))
}
