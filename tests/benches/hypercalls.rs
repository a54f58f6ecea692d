//! Hypercalls a second of the fuzzers on this machine: random steps on the model machine, with the oracle in part after each step, and whole after
//! each thousand.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput};
use host_shim::hostile::Step;
use tests::fuzz;

/// Inputs of a measurement, of as many steps each as are made until the oracle looks at everything.
const INPUTS: u32 = 8;
const STEPS: u64 = 1000;

/// Bytes that are the same in each run.
fn inputs() -> Vec<Vec<u8>> {
    let input = |number| (0..STEPS).flat_map(|n| Step::seeded(1, number, n).0).collect();
    (0..INPUTS).map(input).collect()
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
