//! A hostile host on the model machine: random steps, each judged, with the oracle after every so many.

use abi::Function;
use host_shim::hostile::{Action, Knowledge, Outcome, Step};
use tests::bench::{Bench, Shape};
use tests::model::smmu::config::SmmuConfig;
use tests::oracle::{self, Incremental};

/// Runs the steps of a seed; how many calls succeeded.
fn run(seed: u64, count: u64) -> (u64, u64) {
    let bench = Bench::boot(&Shape::of(2, SmmuConfig::qemu().with_ats())).expect("the machine boots");
    let mut known = Knowledge::of(&bench);
    let mut succeeded = 0;
    let mut digest = 0;
    for n in 0..count {
        let step = Step::seeded(seed, 0, n);
        let action = Action::of(&step, &known);
        let is_call = matches!(action, Action::Call { .. } | Action::Invalidate { .. });
        assert_eq!(is_call, Action::is_call(&step), "seed {seed}, step {n}, {action:x?}");
        let (outcome, finding) = known.act(&bench, &action);
        if let Some(finding) = finding {
            panic!("seed {seed}, step {n}, {action:x?}: {}", finding.as_str());
        }
        succeeded += u64::from(matches!(outcome, Outcome::Answered([0, ..])));
        digest = outcome.digest(digest);
        if n % 50 == 49
            && let Err(text) = oracle::check(&bench)
        {
            panic!("seed {seed}, after step {n}, {action:x?}: {text}");
        }
    }
    (succeeded, digest)
}

#[test]
fn no_step_does_what_none_may() {
    for seed in 0..4 {
        let (succeeded, _) = run(seed, 2000);
        assert!(succeeded > 200, "of seed {seed} only {succeeded} calls succeeded");
    }
}

#[test]
fn a_seed_does_the_same_each_time() {
    assert_eq!(run(9, 500), run(9, 500));
}

#[test]
fn an_error_that_leaves_a_guest_behind_is_found() {
    for leaves in [false, true] {
        let bench = Bench::boot(&Shape::of(1, SmmuConfig::qemu())).expect("the machine boots");
        let mut oracle = Incremental::new(&bench);
        let action = Action::Call { id: Function::GuestDestroy.id(), arguments: [7, 0, 0, 0] };
        let step = |oracle: &mut Incremental, leaves: bool| {
            oracle.begin(&bench);
            let refused = bench.call(Function::GuestDestroy, [7, 0, 0, 0]).expect_err("there is no guest");
            if leaves {
                bench.call(Function::GuestCreate, [0; 4]).expect("there is room for a guest");
            }
            oracle.end(&bench, &action, &Outcome::Answered([refused.to_register(), 0, 0, 0, 0]))
        };
        assert_eq!(step(&mut oracle, false), Ok(()));
        assert_eq!(step(&mut oracle, leaves).is_err(), leaves);
    }
}
