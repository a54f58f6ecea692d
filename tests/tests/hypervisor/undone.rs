//! Calls about domains, vSMMUs and nested streams whose allocations or commands fail, each in turn: everything is as it was, or its pages are
//! quarantined.

use crate::boot;
use abi::{Function, Statistic, Status, attach};
use tests::bench::{Bench, SCRATCH, Shape};
use tests::model::smmu::Fault;
use tests::model::smmu::config::SmmuConfig;
use tests::nest::{ARENA, Nest};
use tests::oracle::{self, Owners};
use tests::owner::{BYPASS, Stage1};

/// A host with a nested stream behind SMMU 0, and a guest with a domain, one behind SMMU 1 and a stream straight in its domain.
struct Ready {
    bench: Bench,
    guest: u64,
    domain: u64,
    host: Nest,
    theirs: Nest,
    nested: [u64; 2],
}

fn ready(config: SmmuConfig) -> Ready {
    let shape = Shape { relax_ns: 200_000, ..Shape::of(2, config) };
    let bench = boot(&shape);
    let guest = bench.guest().unwrap();
    let domain = bench.guest_domain(guest, 16, Stage1::UNITS).unwrap();
    let host = bench.nest(0, 0, SCRATCH, 1).unwrap();
    let theirs = bench.nest(1, domain, ARENA, 1).unwrap();
    let nested = [host.domain(&bench).unwrap(), theirs.domain(&bench).unwrap()];
    for (smmu, domain) in nested.into_iter().enumerate() {
        bench.attach(smmu, 0, domain).unwrap();
    }
    bench.attach(1, 1, domain).unwrap();
    for n in 0..4 {
        assert!(bench.dma(0, 0, host.stage1.va(n)).is_some());
        assert!(bench.dma(1, 0, theirs.stage1.va(n)).is_some());
        assert!(bench.dma(1, 1, theirs.stage1.page(n)).is_some());
    }
    oracle::check(&bench).unwrap_or_else(|text| panic!("{text}"));
    Ready { bench, guest, domain, host, theirs, nested }
}

type Operation = (&'static str, fn(&Ready) -> Result<(), Status>);

/// Calls that send commands.
const SENDING: &[Operation] = &[
    ("a donation under a nested stream", |r| {
        r.bench.whole(Function::MemDonate, r.host.stage1.page(1), r.bench.unit(), r.guest)
    }),
    ("a donation of tables under a nested stream", |r| {
        r.bench.whole(Function::MemDonate, r.host.stage1.last(), r.bench.unit(), r.guest)
    }),
    ("an unmap under a nested stream", |r| r.bench.unmap(r.domain, r.theirs.stage1.page(2), r.bench.unit())),
    ("an unmap of CDs", |r| r.bench.unmap(r.domain, r.theirs.stage1.cds(), r.bench.unit())),
    ("a detach from a nested domain", |r| r.bench.detach(1, 0)),
    ("a detach from a domain", |r| r.bench.detach(1, 1)),
    ("an attach to a nested domain", |r| r.bench.attach(0, 1, r.nested[0])),
    ("a replace of a nested domain", |r| r.bench.replace(1, 0, r.guest)),
    ("a replace by a nested domain", |r| r.bench.replace(1, 1, r.nested[1])),
    ("a replace within a vSMMU", |r| {
        let bypass = r.bench.nested(r.theirs.vsmmu, BYPASS).map_err(|(status, _)| status)?;
        let replaced = r.bench.replace(1, 0, bypass);
        if replaced.is_err() {
            r.bench.destroy(bypass)?;
        }
        replaced
    }),
    ("the owner's own commands", |r| {
        let commands = [[0x06, 0], [0x10, 0], [0x46, 0]];
        r.bench.invalidate(r.theirs.vsmmu, &commands).map(drop).map_err(|(status, _)| status)
    }),
];

/// Calls that take memory, and may send none.
const TAKING: &[Operation] = &[
    ("DOMAIN_CREATE", |r| r.bench.domain(r.guest, 0).map(drop)),
    ("DOMAIN_MAP", |r| r.bench.map(r.domain, 0x7000_0000, SCRATCH + 16 * r.bench.unit(), r.bench.unit())),
    ("VSMMU_CREATE", |r| r.bench.vsmmu(0, r.domain).map(drop)),
    ("VSMMU_ADD_STREAM", |r| {
        let stream = 0x40;
        r.bench.call(Function::VsmmuAddStream, [r.theirs.vsmmu, 77, stream, 0]).map(drop)
    }),
    ("VSMMU_REMOVE_STREAM", |r| r.bench.call(Function::VsmmuRemoveStream, [r.host.vsmmu, 1, 0, 0]).map(drop)),
    ("DOMAIN_CREATE_NESTED", |r| {
        r.bench.nested(r.host.vsmmu, BYPASS).map(drop).map_err(|(status, _)| status)
    }),
    ("GUEST_TEARDOWN", |r| r.bench.call(Function::GuestTeardown, [r.guest, 0, 0, 0]).map(drop)),
    ("an attach in a new span", |r| {
        let stream = 0x77;
        r.bench.call(Function::StreamAttach, [0, stream, 0, 0]).map(drop)
    }),
    ("a replace with flags", |r| {
        r.bench.attach_with(1, 1, r.guest, attach::REPLACE).map_err(|(status, _)| status)
    }),
];

/// What calls can see.
fn state(r: &Ready) -> String {
    let streams: Vec<Option<u64>> =
        [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(smmu, device)| r.bench.attached_to(smmu, device)).to_vec();
    let record = r.bench.record();
    format!(
        "{:?} {streams:x?} {:x?} {:x?}",
        [0, 1].map(|smmu| r.bench.tags(smmu)),
        record.domains,
        record.vsmmus
    )
}

#[test]
fn every_allocation_of_every_call_can_fail() {
    let qemu = SmmuConfig::qemu();
    for config in [qemu, qemu.bbml(0), qemu.granules(false, false, true)] {
        let mut failures = 0;
        for (name, operation) in TAKING.iter().chain(SENDING) {
            for all in [false, true] {
                for at in 0..8 {
                    let name = format!("{name}, allocation {at}, all after it: {all}");
                    let r = ready(config);
                    let (owners, before) = (Owners::read(&r.bench).unwrap(), state(&r));
                    let free = r.bench.call(Function::PoolState, [0; 4]).unwrap()[0];
                    let base = r.bench.machine().allocations;
                    r.bench.machine().failing_allocation = Some((base + at, all));
                    let result = operation(&r);
                    let met = r.bench.machine().allocations > base + at;
                    r.bench.machine().failing_allocation = None;
                    oracle::check(&r.bench).unwrap_or_else(|text| panic!("{name}: {result:?}: {text}"));
                    if !met {
                        assert_eq!(result, Ok(()), "{name}");
                        break;
                    }
                    if result.is_ok() {
                        continue;
                    }
                    failures += 1;
                    assert_eq!(result, Err(Status::NoMemory), "{name}");
                    assert_eq!(Owners::read(&r.bench).unwrap(), owners, "{name}");
                    assert_eq!(state(&r), before, "{name}");
                    // A level-2 stream table that the SMMU may have seen is kept.
                    if !name.contains("an attach") {
                        assert_eq!(
                            r.bench.call(Function::PoolState, [0; 4]).unwrap()[0],
                            free,
                            "{name}: leak"
                        );
                    }
                    assert_eq!(operation(&r), Ok(()), "{name}: again");
                    oracle::check(&r.bench).unwrap_or_else(|text| panic!("{name}: again: {text}"));
                }
            }
        }
        assert!(failures >= 8, "{failures}");
    }
}

/// Fails each command of each call on each SMMU in turn.
fn fail_every_command(config: SmmuConfig, fault: Fault, most: u64) {
    let mut failures = 0;
    for (name, operation) in SENDING {
        for smmu in 0..2 {
            for at in 0..most {
                let name = format!("{name}, SMMU {smmu}, command {at}, {fault:?}");
                let r = ready(config);
                let (owners, before) = (Owners::read(&r.bench).unwrap(), state(&r));
                r.bench.machine().smmus[smmu].arm(at, fault);
                let result = operation(&r);
                if !r.bench.machine().smmus[smmu].faults.is_empty() {
                    r.bench.machine().smmus[smmu].faults.clear();
                    assert_eq!(result, Ok(()), "{name}");
                    break;
                }
                oracle::check_state(&r.bench).unwrap_or_else(|text| panic!("{name}: {result:?}: {text}"));
                if result.is_ok() {
                    continue;
                }
                failures += 1;
                assert_eq!(result, Err(Status::Hardware), "{name}");
                assert_eq!(state(&r), before, "{name}");
                let after = Owners::read(&r.bench).unwrap();
                let changed = (SCRATCH..SCRATCH + (1 << 20))
                    .step_by(4096)
                    .filter(|page| after.of(*page) != owners.of(*page));
                let lost = changed
                    .inspect(|page| assert_eq!(after.of(*page), Some((0x101, 0)), "{name}"))
                    .count() as u64;
                assert_eq!(r.bench.statistic(Statistic::QuarantinedPages), lost, "{name}");
                if r.bench.machine().smmus[smmu].translating() && lost == 0 {
                    assert_eq!(operation(&r), Ok(()), "{name}: again");
                    oracle::check_state(&r.bench).unwrap_or_else(|text| panic!("{name}: again: {text}"));
                }
            }
        }
    }
    assert!(failures > 10, "{failures}");
}

#[test]
fn an_illegal_command_anywhere() {
    fail_every_command(SmmuConfig::qemu(), Fault::Illegal, 16);
    fail_every_command(SmmuConfig::qemu().without_ril().bbml(0).queues(3, 3), Fault::Illegal, 16);
}

#[test]
fn an_smmu_that_ends_anywhere() {
    fail_every_command(SmmuConfig::qemu(), Fault::IllegalForever, 3);
    fail_every_command(SmmuConfig::qemu(), Fault::Stuck, 3);
}
