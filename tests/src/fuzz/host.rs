//! Sequences of anything that a hostile host can do, on a small machine.

use crate::bench::{Bench, Shape};
use crate::model::smmu::config::SmmuConfig;
use crate::oracle::Incremental;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use host_shim::hostile::{Action, Knowledge, Outcome, steps};

/// An entry of EL2 touches memory, registers and pages to be wiped less often than this, if nothing below it is late.
pub(super) const MOST_ACCESSES: u64 = 20_000;

/// The SMMU and the device that is trusted.
pub(super) const TRUSTED: (usize, usize) = (1, 0);

/// Two SMMUs, of which one has ATS, SubstreamIDs, and a device that is trusted.
pub(super) fn machine() -> Bench {
    let able = SmmuConfig::qemu().with_ats().ssid_bits(4);
    let shape = Shape::mixed(&[SmmuConfig::qemu(), able]).trusting(TRUSTED.0, TRUSTED.1).small();
    Bench::boot(&shape).unwrap_or_else(|error| panic!("the machine does not boot: {error}"))
}

/// Anything that a host does, in steps of 32 bytes: see [`host_shim::hostile`].
///
/// # Panics
/// The oracle, or whoever judges a single answer, does not agree.
pub fn host(bytes: &[u8]) {
    say_pace(run(bytes, |_| true));
}

/// As [`host`], without drivers of emulated SMMUs.
///
/// # Panics
/// As [`host`].
pub fn hypercalls(bytes: &[u8]) {
    say_pace(count_hypercalls(bytes));
}

/// As [`hypercalls`], and answers how many there were.
///
/// # Panics
/// As [`host`].
pub fn count_hypercalls(bytes: &[u8]) -> u64 {
    run(bytes, |action| !matches!(action, Action::Driver(_)))
}

/// Calls between two lines about the pace: more than the inputs that are kept make.
const A_LINE_EVERY: u64 = 1 << 18;

/// Calls of this process, with their oracle, and since when.
static CALLS: AtomicU64 = AtomicU64::new(0);
static SINCE: OnceLock<Instant> = OnceLock::new();

/// Counts calls, and says now and then how many were made a second.
fn say_pace(calls: u64) {
    let since = SINCE.get_or_init(Instant::now);
    let before = CALLS.fetch_add(calls, Ordering::Relaxed);
    if before / A_LINE_EVERY != (before + calls) / A_LINE_EVERY {
        let a_second = (before + calls) as f64 / since.elapsed().as_secs_f64();
        eprintln!("pace: {} hypercalls, {a_second:.0} a second", before + calls);
    }
}

/// Does what the bytes say as far as it is wanted, and answers how many hypercalls it made.
fn run(bytes: &[u8], wanted: impl Fn(&Action) -> bool) -> u64 {
    let bench = machine();
    let mut known = Knowledge::of(&bench);
    let mut oracle = Incremental::new(&bench);
    let mut calls = 0;
    for (n, step) in steps(bytes).enumerate() {
        let action = Action::of(&step, &known);
        if !wanted(&action) {
            continue;
        }
        oracle.begin(&bench);
        let (outcome, finding) = known.act(&bench, &action);
        let accesses = bench.most_accesses();
        assert!(accesses < MOST_ACCESSES, "step {n}, {action:x?}: {accesses} accesses in one entry of EL2");
        if let Some(finding) = finding {
            panic!("step {n}, {action:x?}: {}", finding.as_str());
        }
        calls += u64::from(matches!(outcome, Outcome::Answered(_)));
        if let Err(text) = oracle.end(&bench, &action, &outcome) {
            panic!("step {n}, {action:x?}, {outcome:x?}: {text}");
        }
    }
    if let Err(text) = oracle.finish(&bench) {
        panic!("at the end: {text}");
    }
    calls
}
