//! `cargo xtask setup`: the bare-metal target, a QEMU that is new enough and, where it is asked for, Linux.
//!
//! Nothing outside the user's cache directory and rustup's own changes. Both steps are idempotent: what is there
//! already is found in milliseconds, so every command that needs it calls [`run`].

pub mod cargo_fuzz;
pub mod cross;
mod debian;
pub mod kexec;
pub mod linux;
pub mod llvm;
pub mod qemu;
mod rust_target;
pub mod toolchain;

use anyhow::Result;

pub use qemu::Qemu;
pub use rust_target::StandardLibrary;

/// What a machine needs to build and run.
pub struct Tools {
    /// How the images get their standard library.
    pub standard_library: StandardLibrary,
    /// The emulator.
    pub qemu: Qemu,
}

/// Finds or fetches everything; `report` says what it took and from where even when nothing was fetched.
///
/// # Errors
///
/// Something is missing and cannot be fetched; the message says what, and what to type.
pub fn run(report: bool) -> Result<Tools> {
    let standard_library = standard_library(report)?;
    let qemu = qemu::find_or_fetch(report)?;
    Ok(Tools { standard_library, qemu })
}

/// The part of [`run`] that building needs.
///
/// # Errors
///
/// As [`run`].
pub fn standard_library(report: bool) -> Result<StandardLibrary> {
    rust_target::find_or_fetch(report)
}
