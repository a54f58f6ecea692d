//! The image, part by part.
//!
//! * `entry`: from the boot loader, or PSCI CPU_ON, to Rust. `mmu`: EL2's own translation.
//! * `boot`: from the device tree to the first exception return to EL1. `kernel`: the host's kernel. `carve`: who gets which RAM.
//! * `vectors`: exceptions into and out of EL2. `traps`: what EL1 wants. `inject`: exceptions given to EL1.
//! * `el1`: the system registers that a host finds. `psci`: the host's power calls.
//! * `platform`: the library's view of this machine. `cpu`: per-CPU data and stacks.
//! * `console`, `panic`: what EL2 says, and its last words.

mod boot;
mod carve;
mod console;
mod cpu;
mod el1;
mod entry;
mod inject;
mod kernel;
mod mmu;
mod panic;
mod platform;
mod psci;
mod registers;
mod traps;
mod vectors;
