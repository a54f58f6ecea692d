//! Hypercalls a second of the fuzzers on this machine: random steps on the model machine, with the oracle in part after each step, and whole after
//! each thousand.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput};
use tests::fuzz;

/// Inputs of a measurement, of as many steps each as are made until the oracle looks at everything.
const INPUTS: usize = 8;
const STEPS: usize = 1000;
const STEP_BYTES: usize = 32;

/// Bytes that are the same in each run (xorshift64).
fn inputs() -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..INPUTS).map(|_| (0..STEPS * STEP_BYTES).map(|_| next()).collect()).collect()
}

fn main() {
    let inputs = inputs();
    let make_all = || inputs.iter().map(|input| fuzz::count_hypercalls(input)).sum::<u64>();
    let mut criterion =
        Criterion::default().sample_size(30).measurement_time(Duration::from_secs(20)).configure_from_args();
    let mut group = criterion.benchmark_group("fuzzers");
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(make_all()));
    group.bench_function("hypercalls with their oracle", |bencher| bencher.iter(|| black_box(make_all())));
    group.finish();
    criterion.final_summary();
}
