//! The default host: a program at EL1 that tries what the hypervisor below it promises, with real devices.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod image;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!(
        "This program runs at EL1 above the hypervisor: `cargo xtask run` builds it for that and starts both in QEMU."
    );
    std::process::ExitCode::from(2)
}
