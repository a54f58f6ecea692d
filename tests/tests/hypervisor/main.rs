//! The hypervisor's library on the model machine. One program: each links everything, and inside of one the tests run on all cores.

mod ats;
mod checks;
mod concurrency;
mod domains;
mod driver;
mod ending;
mod failures;
mod faults;
mod hostile;
mod latency;
mod leaving;
mod machines;
mod nested;
mod regressions;
mod replace;
mod teardown;
mod undone;

use tests::bench::{Bench, Shape};
use tests::oracle;

/// The machine, with the hypervisor booted.
fn boot(shape: &Shape) -> Bench {
    Bench::boot(shape).unwrap_or_else(|error| panic!("{error}"))
}

/// The oracle has nothing to say.
fn good(bench: &Bench, when: &str) {
    oracle::check(bench).unwrap_or_else(|text| panic!("{when}: {text}"));
}
