//! Programs for Linux above the hypervisor: `hyp-iommu`, and `hyp-dma`, which tells devices to do DMA.
//!
//! They are built for the bare-metal target, like the hypervisor: a static program needs nothing of Linux but its system calls, which are
//! in [`system`], and a build machine nothing that it has not already.

#![no_std]

extern crate alloc;

mod command;
pub mod device;
pub mod fuzz;
pub mod number;
mod run;
#[cfg(target_os = "none")]
pub mod system;

use alloc::string::String;

use command::Command;
use device::Device;

/// Does what was typed after `hyp-iommu`, with a device that is opened if it is needed: what to print.
///
/// # Errors
///
/// What was wrong, and what is right.
pub fn do_typed<D: Device>(
    typed: &[&str],
    open: impl FnOnce() -> Result<D, String>,
) -> Result<String, String> {
    match command::parse(typed)? {
        Command::Help => Ok(command::help()),
        command => run::run(&command, &open()?),
    }
}
