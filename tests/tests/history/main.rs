//! Random histories: any sequence of calls, right or wrong, on any machine, with devices, CPUs and owners of stage 1 that touch memory in between.
//! Whatever is answered, after each step the oracle must agree: nothing is cached that the tables no longer give, no free tag is unclean, no
//! invalidation was for nothing.
//!
//! `HISTORIES=10` in the environment makes ten times as many.

mod apply;
mod driver;
mod machine;
mod step;

use apply::apply;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use step::Step;
use tests::bench::{Bench, Shape};
use tests::oracle;

/// `cases` times what the environment says.
fn config(cases: u32) -> ProptestConfig {
    let times = std::env::var("HISTORIES").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    ProptestConfig {
        cases: cases * times,
        max_shrink_iters: 300,
        max_shrink_time: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Runs a history, with one guest's streams and the host's attached at its beginning.
fn run(shape: &Shape, steps: &[Step]) -> Result<(), TestCaseError> {
    let bench = Bench::boot(shape).map_err(|error| TestCaseError::fail(error.to_string()))?;
    let _ = bench.guest();
    let _ = bench.guest();
    for smmu in 0..bench.devices.len() {
        let _ = bench.attach(smmu, 0, 0);
        let _ = bench.attach(smmu, 1, 1);
    }
    for (n, step) in steps.iter().enumerate() {
        apply(&bench, step)
            .and_then(|()| oracle::check(&bench))
            .map_err(|text| TestCaseError::fail(format!("after step {n}, {step:?}: {text}")))?;
    }
    apply::tear_down_all(&bench).map_err(|text| TestCaseError::fail(format!("at the end: {text}")))
}

proptest! {
    #![proptest_config(config(40))]

    #[test]
    fn any_history_keeps_every_page_its_owners(shape in machine::of_any_kind(1..5), steps in step::steps(1..40)) {
        run(&shape, &steps)?;
    }
}

proptest! {
    #![proptest_config(config(80))]

    #[test]
    fn any_history_of_nested_streams(shape in machine::able(1..4), steps in step::nested_steps(1..16)) {
        run(&shape, &steps)?;
    }
}

proptest! {
    #![proptest_config(config(40))]

    #[test]
    fn any_history_of_the_hosts_own_drivers(shape in machine::able(1..4), steps in step::driver_steps(1..24)) {
        run(&shape, &steps)?;
    }
}

proptest! {
    #![proptest_config(config(15))]

    #[test]
    fn any_history_of_drivers_of_smmus_of_any_kind(shape in machine::of_any_kind(1..5), steps in step::driver_steps(1..24)) {
        run(&shape, &steps)?;
    }
}

proptest! {
    #![proptest_config(config(2))]

    #[test]
    fn any_history_on_sixty_four_smmus(shape in machine::sixty_four(), steps in step::nested_steps(4..8)) {
        run(&shape, &steps)?;
    }
}
