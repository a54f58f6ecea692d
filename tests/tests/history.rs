//! Random histories: any sequence of calls, right or wrong, on any machine, with devices and CPUs that touch memory in between. Whatever is
//! answered, the oracle must agree.

use abi::Function;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use tests::bench::{Bench, SCRATCH, Shape};
use tests::model::smmu::config::SmmuConfig;
use tests::oracle;

#[derive(Clone, Debug)]
enum Step {
    Range { function: Function, place: u64, units: u64, guest: u64 },
    Attach { smmu: usize, device: usize, domain: u64 },
    Detach { smmu: usize, device: usize },
    Create,
    Destroy { guest: u64 },
    GiveBack { order: u32 },
    Touch { smmu: usize, device: usize, place: u64 },
    Cpu { place: u64, write: bool },
    Events,
}

/// Places in the scratch memory, in units of the granule, that lie around the edges of blocks.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![0..12u64, 504..520u64, 1020..1030u64, Just(1536)]
}

fn step() -> impl Strategy<Value = Step> {
    use Function::{MemDonate, MemReclaim, MemShare, MemUnshare, PoolTopUp};
    let function = prop_oneof![
        4 => Just(MemDonate), 4 => Just(MemReclaim), 2 => Just(MemShare), 2 => Just(MemUnshare), 1 => Just(PoolTopUp)
    ];
    let units = prop_oneof![4 => 1..4u64, 1 => Just(512u64), 1 => 1..600u64];
    prop_oneof![
        8 => (function, place(), units, 0..4u64)
            .prop_map(|(function, place, units, guest)| Step::Range { function, place, units, guest }),
        3 => (0..3usize, 0..2usize, 0..4u64).prop_map(|(smmu, device, domain)| Step::Attach { smmu, device, domain }),
        2 => (0..3usize, 0..2usize).prop_map(|(smmu, device)| Step::Detach { smmu, device }),
        1 => Just(Step::Create),
        1 => (0..4u64).prop_map(|guest| Step::Destroy { guest }),
        1 => (0..3u32).prop_map(|order| Step::GiveBack { order }),
        6 => (0..3usize, 0..2usize, place()).prop_map(|(smmu, device, place)| Step::Touch { smmu, device, place }),
        3 => (place(), any::<bool>()).prop_map(|(place, write)| Step::Cpu { place, write }),
        1 => Just(Step::Events),
    ]
}

fn machine() -> impl Strategy<Value = Shape> {
    let kind = (any::<bool>(), 0..3u32, 0..4usize, 2..5u32, any::<bool>(), any::<bool>()).prop_map(
        |(ril, bbml, granule, queue, slow, greedy)| {
            let mut config = SmmuConfig::qemu().bbml(bbml).queues(queue, 2);
            config = if ril { config } else { config.without_ril() };
            config = if slow { config.slow(1_000) } else { config };
            config = if greedy { config } else { config.lazy() };
            match granule {
                0 => config.granules(false, false, true),
                1 => config.granules(false, true, true),
                _ => config,
            }
        },
    );
    prop::collection::vec(kind, 1..4)
        .prop_filter("a granule in common", |kinds| {
            [12, 14, 16].iter().any(|granule| kinds.iter().all(|kind| kind.has_granule(*granule)))
        })
        .prop_map(|smmus| Shape { smmus, pa_bits: 44, relax_ns: 2_000 })
}

fn apply(bench: &Bench, step: &Step) {
    let unit = bench.unit();
    let at = |place: u64| SCRATCH + place * unit;
    let smmus = bench.devices.len();
    match *step {
        Step::Range { function, place, units, guest } => {
            // Ranges stay in the scratch memory, so that boot memory is not given away.
            let units = units.min(((32 << 20) / unit).saturating_sub(place));
            if units != 0 {
                let _ = bench.whole(function, at(place), units * unit, guest);
            }
        }
        Step::Attach { smmu, device, domain } => {
            let _ = bench.attach(smmu % smmus, device, domain);
        }
        Step::Detach { smmu, device } => {
            let _ = bench.detach(smmu % smmus, device);
        }
        Step::Create => {
            let _ = bench.guest();
        }
        Step::Destroy { guest } => {
            let _ = bench.call(Function::GuestDestroy, [guest, 0, 0, 0]);
        }
        Step::GiveBack { order } => {
            let _ = bench.call(Function::PoolGiveBack, [unit << order, 0, 0, 0]);
        }
        Step::Touch { smmu, device, place } => {
            let _ = bench.reaches(smmu % smmus, device, at(place));
        }
        Step::Cpu { place, write } => {
            let _ = bench.machine().cpu_translate(at(place), write);
        }
        Step::Events => {
            let _ = bench.call(Function::EventRead, [0; 4]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_every_page_its_owners(shape in machine(), steps in prop::collection::vec(step(), 1..60)) {
        let bench = Bench::boot(&shape).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let _ = bench.guest();
        let _ = bench.guest();
        for smmu in 0..bench.devices.len() {
            let _ = bench.attach(smmu, 0, 0);
            let _ = bench.attach(smmu, 1, 1);
        }
        for (n, step) in steps.iter().enumerate() {
            apply(&bench, step);
            if n % 4 == 3 || n + 1 == steps.len() {
                oracle::check(&bench).map_err(|text| TestCaseError::fail(format!("after step {n}, {step:?}: {text}")))?;
            } else {
                let violations = bench.machine().violations.take();
                prop_assert!(violations.is_empty(), "after step {n}, {step:?}: {violations:#?}");
            }
        }
    }
}
