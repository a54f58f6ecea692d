//! The checks of `host-shim` on the model machine: what QEMU can show, shown again with caches that forget nothing.

use host_shim::checks;
use tests::bench::{Bench, Shape};
use tests::model::smmu::config::SmmuConfig;
use tests::oracle;

/// Run by `concurrency.rs` with fewer rounds.
const NOT_HERE: &[&str] = &["all CPUs at once"];

fn run(name: &str, shape: &Shape) {
    let bench = Bench::boot(shape).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut failed = Vec::new();
    for check in checks::all::<Bench>().filter(|check| !NOT_HERE.contains(&check.name)) {
        let what = check.name;
        if checks::run(&bench, std::iter::once(check)).failed != 0 {
            failed.push(what.to_string());
        }
        if let Err(text) = oracle::check(&bench) {
            failed.push(format!("after {what}: {text}"));
        }
    }
    assert!(failed.is_empty(), "{name}: {failed:#?}");
}

#[test]
fn one_smmu_as_in_qemu() {
    run("one", &Shape::of(1, SmmuConfig::qemu()));
}

#[test]
fn three_smmus_as_in_qemu() {
    run("three", &Shape::of(3, SmmuConfig::qemu()));
}

#[test]
fn smmus_that_qemu_does_not_have() {
    let qemu = SmmuConfig::qemu();
    let smmus = vec![qemu.without_ril().bbml(0), qemu.queues(3, 4).slow(1_000)];
    run("others", &Shape::mixed(&smmus));
}
