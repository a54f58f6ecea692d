//! Attacks that only a program at EL1 can make: by the firmware, by its own translation tables, and by stores that EL2 takes long over.
//! The others are in `host_shim::checks::hostile`.

#![allow(clippy::result_large_err, reason = "there is no allocator, and an error ends the check")]

mod bound;
mod commands;
mod firmware;
mod intruder;
mod tables;
mod wiping;

use super::machine::Machine;
use host_shim::checks::Check;

/// The checks, in order.
pub fn checks() -> impl Iterator<Item = Check<Machine>> {
    [tables::CHECK, commands::CHECK, wiping::CHECK].into_iter().chain(firmware::CHECKS)
}
