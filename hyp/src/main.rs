//! The aarch64 image: what turns the library into a hypervisor that runs at EL2.
//!
//! Everything that touches the machine is in here, and all `unsafe` code of the project with it.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod image;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!(
        "This program is a hypervisor and runs at EL2 only: `cargo xtask run` builds it for that and starts it in QEMU."
    );
    std::process::ExitCode::from(2)
}
