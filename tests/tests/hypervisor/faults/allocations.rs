//! Every allocation of every call fails in turn. Each failure leaves everything as it was, and the call succeeds when it is made again.

use super::world::{State, World, calls};
use abi::{Function, Status, TABLE};
use std::collections::BTreeSet;
use tests::model::smmu::config::SmmuConfig;
use tests::oracle::{self, Snapshot};

/// More than any call makes.
const MOST: u64 = 64;

/// What was seen of a function.
#[derive(Default)]
struct Seen {
    /// It succeeded when nothing failed.
    succeeded: bool,
    /// It answered NO_MEMORY.
    refused: bool,
}

/// Calls a function in a state with one allocation failing after the other.
fn sweep(config: SmmuConfig, state: State, function: Function, seen: &mut Seen) {
    for (name, arguments) in calls(function) {
        // Whether all of the rest fail too matters where there is more than one.
        let ways: &[bool] = if state == State::Busy { &[false, true] } else { &[false] };
        for &all in ways {
            for at in 0.. {
                assert!(at < MOST, "{function:?} {name}: it allocates without end");
                let name = format!("{function:?} {name}, {state:?}, allocation {at}, all after it: {all}");
                let world = World::new(config, state);
                let Some(arguments) = arguments(&world) else { break };
                let bench = &world.bench;
                let before = Snapshot::take(bench).unwrap();
                let base = bench.machine().allocations;
                bench.machine().failing_allocation = Some((base + at, all));
                let result = world.call(function, arguments);
                let met = bench.machine().allocations > base + at;
                bench.machine().failing_allocation = None;
                oracle::check(bench).unwrap_or_else(|text| panic!("{name}: {result:?}: {text}"));
                if !met {
                    assert!(result.is_ok(), "{name}: {result:?}, and nothing failed");
                    seen.succeeded = true;
                    break;
                }
                let Err((status, missing)) = result else { continue };
                if function == Function::PoolGiveBack && status == Status::Empty {
                    // What could not be taken is what was to be given back.
                    continue;
                }
                assert_eq!(status, Status::NoMemory, "{name}");
                assert!(missing > 0, "{name}: no pages are missing");
                seen.refused = true;
                let mut differences = before.differences(&Snapshot::take(bench).unwrap());
                if keeps(function) {
                    let used = before.free_pages - bench.call(Function::PoolState, [0; 4]).unwrap()[0];
                    assert!(used * 4096 <= 2 * world.unit.max(0x1_0000), "{name}: {used} pages are kept");
                    differences.retain(|text| !text.starts_with("free pages"));
                }
                if function == Function::GuestTeardown {
                    // The mark stays: no other call for the guest is made.
                    differences.retain(|text| !text.starts_with("objects"));
                }
                assert!(differences.is_empty(), "{name}: {differences:#?}");
                let again = world.call(function, arguments);
                assert!(again.is_ok(), "{name}: {again:?} when it is made again");
                oracle::check(bench).unwrap_or_else(|text| panic!("{name}: again: {text}"));
            }
        }
    }
}

/// Makes a call of a function when there is no page in the pool; whether one was refused.
fn without_memory(config: SmmuConfig, function: Function) -> bool {
    let mut refused = false;
    for (name, arguments) in calls(function) {
        let world = World::new(config, State::Busy);
        let bench = &world.bench;
        let Some(arguments) = arguments(&world) else { continue };
        world.empty_the_pool();
        let name = format!("{function:?} {name} without memory");
        let before = Snapshot::take(bench).unwrap();
        let result = world.call(function, arguments);
        oracle::check(bench).unwrap_or_else(|text| panic!("{name}: {result:?}: {text}"));
        let Err((status, missing)) = result else { continue };
        // Pages of one domain cannot be had twice, nor a domain ended that has some.
        if status == Status::NoMemory {
            assert!(missing > 0, "{name}: no pages are missing");
            refused = true;
        }
        let mut differences = before.differences(&Snapshot::take(bench).unwrap());
        if keeps(function) {
            differences.retain(|text| !text.starts_with("free pages"));
        }
        assert!(differences.is_empty(), "{name}: {differences:#?}");
        if status == Status::NoMemory {
            world.fill_the_pool();
            let again = world.call(function, arguments);
            assert!(again.is_ok(), "{name}: {again:?} when there is memory");
            oracle::check(bench).unwrap_or_else(|text| panic!("{name}: again: {text}"));
        }
    }
    refused
}

/// Whether a call that failed may have kept pages, which it uses when it is made again: a level-2 stream table that the SMMU may have seen; when
/// there were too few, tables for the next top up.
fn keeps(function: Function) -> bool {
    matches!(function, Function::StreamAttach | Function::PoolTopUp)
}

/// The names of those that answered NO_MEMORY.
fn every_call(config: SmmuConfig) -> BTreeSet<&'static str> {
    let mut covered = BTreeSet::new();
    for call in TABLE.iter().filter(|call| call.function != Function::CallUid) {
        let mut seen = Seen::default();
        for state in State::ALL {
            sweep(config, state, call.function, &mut seen);
        }
        let name = call.name;
        assert!(seen.succeeded, "no call of {name} succeeds here");
        let may_refuse = call.errors.contains(&Status::NoMemory);
        assert!(may_refuse || !seen.refused, "{name} answers NO_MEMORY, and its table of errors has it not");
        if seen.refused | without_memory(config, call.function) {
            covered.insert(name);
        }
    }
    covered
}

#[test]
fn every_allocation_of_every_call_can_fail() {
    let qemu = SmmuConfig::qemu();
    let configs = [qemu, qemu.bbml(0), qemu.granules(false, false, true)];
    let covered: BTreeSet<&str> = std::thread::scope(|scope| {
        let sweeps = configs.map(|config| scope.spawn(move || every_call(config)));
        sweeps.into_iter().flat_map(|sweep| sweep.join().unwrap()).collect()
    });
    let may_refuse =
        TABLE.iter().filter(|call| call.errors.contains(&Status::NoMemory)).map(|call| call.name);
    let missing: Vec<&str> = may_refuse.filter(|name| !covered.contains(name)).collect();
    assert!(missing.is_empty(), "no call answered NO_MEMORY of {missing:?}");
}
