//! Hardware that fails and memory that runs out: an operation is undone, or its pages are quarantined, and never half done.

use crate::boot;
use abi::{Function, Statistic, Status};
use tests::bench::{Bench, SCRATCH, Shape};
use tests::model::smmu::Fault;
use tests::model::smmu::config::SmmuConfig;
use tests::oracle::{self, Owners};

const BLOCK: u64 = 2 << 20;

struct Ready {
    bench: Bench,
    guest: u64,
}

/// Two SMMUs with a device of the host's and one of a guest's behind each, and warm caches for what is about to move.
fn ready(config: SmmuConfig) -> Ready {
    let shape = Shape { relax_ns: 200_000, ..Shape::of(2, config) };
    let bench = boot(&shape);
    let guest = bench.guest().unwrap();
    for smmu in 0..2 {
        bench.attach(smmu, 0, 0).unwrap();
        bench.attach(smmu, 1, guest).unwrap();
    }
    bench.whole(Function::MemDonate, SCRATCH + 4 * BLOCK, 2 * bench.unit(), guest).unwrap();
    bench.whole(Function::MemShare, SCRATCH + 5 * BLOCK, 2 * bench.unit(), guest).unwrap();
    for page in [SCRATCH, SCRATCH + BLOCK, SCRATCH + 4 * BLOCK, SCRATCH + 5 * BLOCK] {
        bench.warm(page);
        bench.warm(page + bench.unit());
    }
    oracle::check(&bench).unwrap();
    Ready { bench, guest }
}

type Operation = (&'static str, fn(&Ready) -> Result<(), Status>, fn(&Ready) -> (u64, u64));

const OPERATIONS: &[Operation] = &[
    (
        "donate a page",
        |r| r.bench.whole(Function::MemDonate, SCRATCH + 0x3_0000, r.bench.unit(), r.guest),
        |r| (SCRATCH + 0x3_0000, r.bench.unit()),
    ),
    (
        "donate a block",
        |r| r.bench.whole(Function::MemDonate, SCRATCH + BLOCK, BLOCK, r.guest),
        |_| (SCRATCH + BLOCK, BLOCK),
    ),
    (
        "reclaim",
        |r| r.bench.whole(Function::MemReclaim, SCRATCH + 4 * BLOCK, r.bench.unit(), r.guest),
        |r| (SCRATCH + 4 * BLOCK, r.bench.unit()),
    ),
    (
        "unshare",
        |r| r.bench.whole(Function::MemUnshare, SCRATCH + 5 * BLOCK, r.bench.unit(), r.guest),
        |r| (SCRATCH + 5 * BLOCK, r.bench.unit()),
    ),
    (
        "top up",
        |r| r.bench.whole(Function::PoolTopUp, SCRATCH + 6 * BLOCK, r.bench.unit(), 0),
        |r| (SCRATCH + 6 * BLOCK, r.bench.unit()),
    ),
    ("detach", |r| r.bench.detach(1, 0), |_| (0, 0)),
    ("detach from a guest", |r| r.bench.detach(0, 1), |_| (0, 0)),
    (
        "attach",
        |r| {
            r.bench.detach(1, 0)?;
            r.bench.attach(1, 0, 0)
        },
        |_| (0, 0),
    ),
];

/// Commands that each SMMU consumes in an operation that nothing disturbs.
fn commands_of(config: SmmuConfig, operation: &Operation) -> [u64; 2] {
    let r = ready(config);
    let before = [0, 1].map(|smmu| r.bench.machine().smmus[smmu].commands);
    operation.1(&r).unwrap_or_else(|status| panic!("{}: {status:?}", operation.0));
    let after = [0, 1].map(|smmu| r.bench.machine().smmus[smmu].commands);
    [after[0] - before[0], after[1] - before[1]]
}

/// After a failure: everything is as it was but for pages of the range that nobody owns; what is done next works.
fn afterwards(r: &Ready, name: &str, before: &Owners, range: (u64, u64)) {
    oracle::check_state(&r.bench).unwrap_or_else(|text| panic!("{name}: {text}"));
    let after = Owners::read(&r.bench).unwrap();
    let mut quarantined = 0;
    for page in (SCRATCH..SCRATCH + 8 * BLOCK).step_by(4096) {
        let (old, new) = (before.of(page).unwrap(), after.of(page).unwrap());
        if old != new {
            let inside = (range.0..range.0 + range.1).contains(&page);
            assert!(inside && new.0 == 0x101, "{name}: {page:#x} was {old:x?} and is {new:x?}");
            quarantined += 1;
        }
    }
    let counted = r.bench.statistic(Statistic::QuarantinedPages);
    assert_eq!(counted, quarantined, "{name}: quarantined pages are counted");
    // The machine goes on: another page of another block.
    let page = SCRATCH + 7 * BLOCK;
    r.bench
        .whole(Function::MemDonate, page, r.bench.unit(), r.guest)
        .unwrap_or_else(|s| panic!("{name}: next: {s:?}"));
    r.bench
        .whole(Function::MemReclaim, page, r.bench.unit(), r.guest)
        .unwrap_or_else(|s| panic!("{name}: next: {s:?}"));
    oracle::check_state(&r.bench).unwrap_or_else(|text| panic!("{name}: next: {text}"));
}

fn inject_everywhere(config: SmmuConfig, fault: Fault) {
    for operation in OPERATIONS {
        let counts = commands_of(config, operation);
        // Failures that end the SMMU are the same wherever they happen in a batch.
        let most = if matches!(fault, Fault::IllegalForever | Fault::Stuck) { 2 } else { 8 };
        for (smmu, count) in counts.into_iter().enumerate() {
            for at in 0..count.min(most) {
                let name = format!("{}, SMMU {smmu}, command {at}, {fault:?}", operation.0);
                let r = ready(config);
                let before = Owners::read(&r.bench).unwrap();
                r.bench.machine().smmus[smmu].arm(at, fault);
                let result = operation.1(&r);
                assert!(r.bench.machine().smmus[smmu].faults.is_empty(), "{name}: the fault was not met");
                if matches!(fault, Fault::Abort) && result.is_ok() {
                    // The read of a command may be tried again; then nothing was lost.
                    oracle::check_state(&r.bench).unwrap_or_else(|text| panic!("{name}: {text}"));
                    continue;
                }
                assert_eq!(result, Err(Status::Hardware), "{name}");
                if matches!(fault, Fault::IllegalForever | Fault::Stuck) {
                    assert_eq!(r.bench.statistic(Statistic::DeadSmmus), 1, "{name}");
                    assert!(r.bench.machine().smmus[smmu].aborting(), "{name}");
                }
                let range = operation.2(&r);
                if range.1 == 0 {
                    oracle::check_state(&r.bench).unwrap_or_else(|text| panic!("{name}: {text}"));
                } else {
                    afterwards(&r, &name, &before, range);
                }
            }
        }
    }
}

#[test]
fn an_illegal_command_anywhere() {
    inject_everywhere(SmmuConfig::qemu(), Fault::Illegal);
}

#[test]
fn an_illegal_command_anywhere_without_ril() {
    inject_everywhere(SmmuConfig::qemu().without_ril().bbml(0).queues(3, 3), Fault::Illegal);
}

#[test]
fn a_queue_that_fails_again() {
    inject_everywhere(SmmuConfig::qemu(), Fault::IllegalForever);
}

#[test]
fn a_queue_that_stops() {
    inject_everywhere(SmmuConfig::qemu(), Fault::Stuck);
}

#[test]
fn a_command_that_cannot_be_read() {
    inject_everywhere(SmmuConfig::qemu(), Fault::Abort);
}

/// The control of the oracle: hardware that drops an invalidation silently is found by the check of the caches.
#[test]
fn the_oracle_sees_a_skipped_invalidation() {
    for at in 0..2 {
        let r = ready(SmmuConfig::qemu());
        r.bench.machine().smmus[1].arm(at, Fault::Skip);
        r.bench.warm(SCRATCH + 0x3_0000);
        let _ = OPERATIONS[0].1(&r);
        assert!(oracle::check(&r.bench).is_err(), "command {at}");
    }
}

/// A page that was wiped stays so for a while.
fn nothing_lands_late(bench: &Bench, page: u64, ns: u64) {
    assert_eq!(bench.machine().memory.read(page), Some(0));
    bench.machine().advance(ns);
    assert_eq!(bench.machine().memory.read(page), Some(0), "a write of the old owner's device arrives late");
}

#[test]
fn a_transaction_in_flight_lands_before_the_page_is_wiped() {
    for config in [SmmuConfig::qemu(), SmmuConfig::qemu().slow(3_000)] {
        let r = ready(config);
        let page = SCRATCH + 0x3_0000;
        r.bench.machine().dma_latency_ns = 900_000;
        assert!(r.bench.reaches(0, 0, page));
        assert!(r.bench.reaches(1, 0, page));
        r.bench.whole(Function::MemDonate, page, r.bench.unit(), r.guest).unwrap();
        nothing_lands_late(&r.bench, page, 10_000_000);
        oracle::check(&r.bench).unwrap();
    }
}

/// 6.3.9.6: SMMUEN = 0 is about transactions to come. What the SMMU translated before may still be on its way.
#[test]
fn a_transaction_in_flight_lands_before_its_smmu_is_dead() {
    let r = ready(SmmuConfig::qemu());
    let page = SCRATCH + 0x3_0000;
    // 40 ms longer than the SMMU has for its commands: as if it was sent when that time was over.
    r.bench.machine().dma_latency_ns = 540_000_000;
    assert!(r.bench.reaches(0, 0, page));
    r.bench.machine().dma_latency_ns = 0;
    r.bench.machine().smmus[0].arm(0, Fault::Stuck);
    let donate = || r.bench.whole(Function::MemDonate, page, r.bench.unit(), r.guest);
    assert_eq!(donate(), Err(Status::Hardware));
    assert_eq!(r.bench.statistic(Statistic::DeadSmmus), 1);
    assert_eq!(donate(), Ok(()), "a dead SMMU has nothing to forget");
    nothing_lands_late(&r.bench, page, 1_000_000_000);
    oracle::check_state(&r.bench).unwrap();
}

#[test]
fn every_allocation_can_fail() {
    let more: &[Operation] = &[
        ("a new guest", |r| r.bench.guest().map(drop), |_| (0, 0)),
        (
            "share",
            |r| r.bench.whole(Function::MemShare, SCRATCH + 0x3_0000, r.bench.unit(), r.guest),
            |_| (0, 0),
        ),
        (
            "a range",
            |r| r.bench.whole(Function::MemDonate, SCRATCH + 3 * BLOCK - 0x2_0000, 0x4_0000, r.guest),
            |_| (0, 0),
        ),
    ];
    for config in
        [SmmuConfig::qemu(), SmmuConfig::qemu().bbml(0), SmmuConfig::qemu().granules(false, false, true)]
    {
        for operation in OPERATIONS.iter().chain(more) {
            for all in [false, true] {
                for at in 0..8 {
                    let name = format!("{}, allocation {at}, all after it: {all}", operation.0);
                    let r = ready(config);
                    let before = Owners::read(&r.bench).unwrap();
                    let base = r.bench.machine().allocations;
                    let free = r.bench.call(Function::PoolState, [0; 4]).unwrap()[0];
                    r.bench.machine().failing_allocation = Some((base + at, all));
                    let result = operation.1(&r);
                    let met = r.bench.machine().allocations > base + at;
                    r.bench.machine().failing_allocation = None;
                    oracle::check_state(&r.bench).unwrap_or_else(|text| panic!("{name}: {result:?}: {text}"));
                    if !met {
                        assert_eq!(result, Ok(()), "{name}");
                        break;
                    }
                    if result.is_ok() {
                        continue;
                    }
                    assert_eq!(result, Err(Status::NoMemory), "{name}");
                    assert!(operation.0 == "a range" || Owners::read(&r.bench).unwrap() == before, "{name}");
                    if operation.0 != "a range" && operation.0 != "attach" {
                        assert_eq!(
                            r.bench.call(Function::PoolState, [0; 4]).unwrap()[0],
                            free,
                            "{name}: leak"
                        );
                    }
                    if operation.0 != "attach" {
                        assert_eq!(operation.1(&r), Ok(()), "{name}: again");
                    }
                    oracle::check_state(&r.bench).unwrap_or_else(|text| panic!("{name}: again: {text}"));
                }
            }
        }
    }
}

#[test]
fn a_pool_that_is_too_small_stops_the_boot() {
    for at in [0, 1, 2, 5, 10, 15, 20] {
        let shape = Shape::of(1, SmmuConfig::qemu());
        let booted = Bench::boot_on(&shape, |machine| machine.failing_allocation = Some((at, true)));
        if let Err(error) = booted {
            assert!(!error.to_string().is_empty());
        }
    }
}
