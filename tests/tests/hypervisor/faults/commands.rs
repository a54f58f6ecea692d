//! Every command of every call fails in turn, in every way; and every kind of global error comes up at each of them.

use super::world::{State, World, calls};
use abi::{Function, Statistic, Status, TABLE};
use tests::bench::Shape;
use tests::model::smmu::Fault;
use tests::model::smmu::config::SmmuConfig;
use tests::oracle::{self, Snapshot};

/// Commands of a call that are looked at: later ones are of the same kinds.
const MOST: u64 = 16;
/// The same for faults that do not depend on the command.
const FEW: u64 = 4;
/// TIMEOUT_NS of the hypervisor: no SMMU has longer for a batch of commands, and there are batches of it and waits for registers.
const TIMEOUT_NS: u64 = 500_000_000;
/// GERROR (6.3.17): CMDQ_ERR, SFM_ERR, and all that there are.
const CMDQ_ERR: u32 = 1;
const SFM_ERR: u32 = 1 << 8;
const GLOBAL_ERRORS: [(u32, &str); 10] = [
    (CMDQ_ERR, "CMDQ_ERR"),
    (1 << 2, "EVENTQ_ABT_ERR"),
    (1 << 3, "PRIQ_ABT_ERR"),
    (1 << 4, "MSI_CMDQ_ABT_ERR"),
    (1 << 5, "MSI_EVENTQ_ABT_ERR"),
    (1 << 6, "MSI_PRIQ_ABT_ERR"),
    (1 << 7, "MSI_GERROR_ABT_ERR"),
    (SFM_ERR, "SFM_ERR"),
    (1 << 9, "CMDQP_ERR"),
    (1 << 10, "DPT_ERR"),
];

/// What became of a call.
struct Outcome {
    name: String,
    world: World,
    before: Snapshot,
    result: Result<[u64; 4], (Status, u64)>,
    /// How long it took.
    ns: u64,
    /// It can be made again.
    function: Function,
    arguments: [u64; 4],
}

/// Makes each call once for each SMMU and each of its commands, with a fault there.
fn at_every_command(shape: &Shape, fault: Fault, most: u64, mut look: impl FnMut(Outcome)) {
    for function in TABLE.iter().map(|call| call.function) {
        for (name, arguments) in calls(function) {
            for (state, smmu) in State::ALL.into_iter().flat_map(|state| [(state, 0), (state, 1)]) {
                for at in 0..most {
                    let world = World::on(shape, state);
                    let Some(arguments) = arguments(&world) else { break };
                    let before = Snapshot::take(&world.bench).unwrap();
                    world.bench.machine().smmus[smmu].arm(at, fault);
                    let start = world.bench.machine().now_ns;
                    let result = world.call(function, arguments);
                    let ns = world.bench.machine().now_ns - start;
                    if !world.bench.machine().smmus[smmu].faults.is_empty() {
                        // It sends fewer commands.
                        world.bench.machine().smmus[smmu].faults.clear();
                        assert!(result.is_ok(), "{function:?} {name}: {result:?}, and nothing failed");
                        break;
                    }
                    let name =
                        format!("{function:?} {name}, {state:?}, SMMU {smmu}, command {at}, {fault:?}");
                    look(Outcome { name, world, before, result, ns, function, arguments });
                }
            }
        }
    }
}

/// After HARDWARE: everything is as it was, but for pages that nobody has, and those are counted.
fn check_restored(outcome: &Outcome) {
    let Outcome { name, world, before, .. } = outcome;
    oracle::check_state(&world.bench).unwrap_or_else(|text| panic!("{name}: {text}"));
    let (lost, mut differences) =
        before.unrestored(&world.bench).unwrap_or_else(|text| panic!("{name}: {text}"));
    assert_eq!(
        world.bench.statistic(Statistic::QuarantinedPages),
        lost,
        "{name}: quarantined pages are counted"
    );
    if outcome.function == Function::GuestTeardown {
        differences.retain(|text| !text.starts_with("objects"));
    }
    assert!(differences.is_empty(), "{name}: {differences:#?}");
}

/// A command that fails once: HARDWARE, and the call succeeds when it is made again.
fn once(shape: &Shape, fault: Fault) {
    let mut failures = 0;
    at_every_command(shape, fault, MOST, |outcome| {
        let Outcome { name, world, result, .. } = &outcome;
        if result.is_ok() {
            // Another CPU's, or one that was tried again.
            return oracle::check_state(&world.bench).unwrap_or_else(|text| panic!("{name}: {text}"));
        }
        failures += 1;
        assert_eq!(result.map_err(|(status, _)| status), Err(Status::Hardware), "{name}");
        check_restored(&outcome);
        if world.bench.statistic(Statistic::DeadSmmus) == 0
            && world.bench.statistic(Statistic::QuarantinedPages) == 0
        {
            let again = world.call(outcome.function, outcome.arguments);
            assert!(again.is_ok(), "{name}: {again:?} when it is made again");
            oracle::check_state(&world.bench).unwrap_or_else(|text| panic!("{name}: again: {text}"));
        }
    });
    assert!(failures > 30, "{failures} failures");
}

#[test]
fn an_illegal_command_of_any_call() {
    once(&World::shape(SmmuConfig::qemu()), Fault::Illegal);
}

#[test]
fn a_command_of_any_call_that_cannot_be_read() {
    once(&World::shape(SmmuConfig::qemu().without_ril().queues(3, 3)), Fault::Abort);
}

/// CERROR_ATC_INV_SYNC, where all streams have ATS: a device does not answer the ATC_INV that comes next.
#[test]
fn a_device_that_does_not_answer_an_atc_invalidation_of_any_call() {
    let config = SmmuConfig::qemu().with_ats().ssid_bits(4).atc_timeout(50_000);
    once(&World::shape(config).trusting(0, 0).trusting(1, 0).trusting(1, 1), Fault::NoAnswer);
}

/// The same for as long as the call goes on: what it did is undone without asking the devices.
#[test]
fn devices_that_do_not_answer_while_any_call_goes_on() {
    let config = SmmuConfig::qemu().with_ats().ssid_bits(4).atc_timeout(50_000);
    let shape = World::shape(config).trusting(0, 0).trusting(1, 0).trusting(1, 1);
    let mut failures = 0;
    for (function, state) in TABLE.iter().flat_map(|call| State::ALL.map(|state| (call.function, state))) {
        for (name, arguments) in calls(function) {
            let world = World::on(&shape, state);
            let Some(arguments) = arguments(&world) else { continue };
            let before = Snapshot::take(&world.bench).unwrap();
            let start = world.bench.machine().now_ns;
            let trusted = [(0, 0), (1, 0), (1, 1)];
            let result = world.bench.while_silent(&trusted, || world.call(function, arguments));
            let ns = world.bench.machine().now_ns - start;
            let name = format!("{function:?} {name}, {state:?}, silent devices");
            assert!(world.bench.machine().smmus.iter().all(|smmu| smmu.translating()), "{name}: SMMUs go on");
            if result.is_ok() {
                oracle::check_state(&world.bench).unwrap_or_else(|text| panic!("{name}: {text}"));
                continue;
            }
            failures += 1;
            assert_eq!(result.map_err(|(status, _)| status), Err(Status::Hardware), "{name}");
            check_restored(&Outcome { name, world, before, result, ns, function, arguments });
        }
    }
    assert!(failures > 5, "{failures} failures");
}

#[test]
fn a_command_of_any_call_that_is_late() {
    let mut late = 0;
    at_every_command(&World::shape(SmmuConfig::qemu()), Fault::Late(TIMEOUT_NS / 2), FEW, |outcome| {
        let Outcome { name, world, result, ns, .. } = outcome;
        assert!(result.is_ok(), "{name}: {result:?}");
        assert!(ns >= TIMEOUT_NS / 2, "{name}: it did not wait");
        late += 1;
        oracle::check_state(&world.bench).unwrap_or_else(|text| panic!("{name}: {text}"));
    });
    assert!(late > 30, "{late}");
}

/// It is turned off: its streams abort, everything else goes on, and what the call changed is undone.
#[test]
fn a_command_of_any_call_that_never_ends_or_comes_too_late() {
    for fault in [Fault::Stuck, Fault::IllegalForever, Fault::Late(2 * TIMEOUT_NS)] {
        let mut failures = 0;
        at_every_command(&World::shape(SmmuConfig::qemu()), fault, FEW, |outcome| {
            let Outcome { name, world, result, ns, .. } = &outcome;
            // One wait for commands, and four for registers that answer at once.
            assert!(*ns < 2 * TIMEOUT_NS, "{name}: {ns} ns");
            assert_eq!(world.bench.statistic(Statistic::DeadSmmus), 1, "{name}");
            match result {
                // What was left to be forgotten were tables that had been joined.
                Ok(_) => oracle::check_state(&world.bench).unwrap_or_else(|text| panic!("{name}: {text}")),
                Err((status, _)) => {
                    failures += 1;
                    assert_eq!(*status, Status::Hardware, "{name}");
                    check_restored(&outcome);
                }
            }
            // The other SMMU, and memory, go on.
            let guest = world.call(Function::GuestCreate, [0; 4]);
            assert!(guest.is_ok(), "{name}: next: {guest:?}");
        });
        assert!(failures > 30, "{failures}");
    }
}

/// GERROR says something at each command of each call. Only service failure mode is the SMMU's end; a CMDQ_ERR that does not say what the error
/// was fails the call that has the command.
#[test]
fn a_global_error_of_every_kind_at_any_command() {
    for (bits, name_of) in GLOBAL_ERRORS {
        let mut seen = 0;
        at_every_command(&World::shape(SmmuConfig::qemu()), Fault::Raise(bits), FEW / 2, |outcome| {
            let Outcome { name, world, result, .. } = &outcome;
            let name = format!("{name}, {name_of}");
            seen += 1;
            match bits {
                CMDQ_ERR | SFM_ERR if result.is_err() => {
                    assert_eq!(result.map_err(|(status, _)| status), Err(Status::Hardware), "{name}");
                    check_restored(&outcome);
                }
                _ => assert!(result.is_ok(), "{name}: {result:?}"),
            }
            // Whoever looks for events looks for these.
            let _ = world.call(Function::EventRead, [0; 4]);
            assert_eq!(world.bench.statistic(Statistic::GlobalErrors), 1, "{name}");
            let is_dead = world.bench.statistic(Statistic::DeadSmmus) == 1;
            assert_eq!(is_dead, bits == SFM_ERR, "{name}");
            // An event that could not be written is lost.
            assert_eq!(world.bench.statistic(Statistic::EventsLost), u64::from(bits == 1 << 2), "{name}");
            assert!(is_dead || !(0..2).any(|smmu| is_active(world, smmu)), "{name}: it is not acknowledged");
            oracle::check_state(&world.bench).unwrap_or_else(|text| panic!("{name}: {text}"));
        });
        assert!(seen > 30, "{name_of}: {seen}");
    }
}

/// Whether an SMMU has an error that nobody acknowledged.
fn is_active(world: &World, smmu: usize) -> bool {
    let machine = world.bench.machine();
    let registers = &machine.smmus[smmu].registers;
    registers.gerror != registers.gerrorn
}
