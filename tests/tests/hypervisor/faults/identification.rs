//! SMMUs whose identification registers say something else when they are read again: whatever EL2 believes of an SMMU, it believes by one look.

use super::world::{State, World, calls};
use abi::{Function, Status, TABLE};
use tests::bench::{Bench, Shape};
use tests::driver::Driver;
use tests::model::smmu::config::SmmuConfig;
use tests::oracle;

/// IDR0 to IDR5, IIDR, AIDR (IHI 0070, 6.3.1 to 6.3.8), by offset.
const REGISTERS: [(u64, &str); 8] = [
    (0x00, "IDR0"),
    (0x04, "IDR1"),
    (0x08, "IDR2"),
    (0x0c, "IDR3"),
    (0x10, "IDR4"),
    (0x14, "IDR5"),
    (0x18, "IIDR"),
    (0x1c, "AIDR"),
];

fn shape() -> Shape {
    Shape { relax_ns: 200_000, ..Shape::of(2, SmmuConfig::qemu().with_ats().ssid_bits(4)) }
}

/// Everything that a host can see of the SMMUs, after it has done much.
fn history(prepare: impl Fn(&mut tests::model::Machine)) -> (String, [Vec<u64>; 2]) {
    let bench = Bench::boot_on(&shape(), prepare).unwrap_or_else(|error| panic!("{error}"));
    let mut seen = String::new();
    for smmu in 0..2 {
        for function in [Function::SmmuDescribe, Function::SmmuTags, Function::SmmuFeatures] {
            seen += &format!("{:x?} ", bench.call(function, [smmu, 0, 0, 0]));
        }
    }
    seen += &format!("{:x?} ", bench.call(Function::Features, [0; 4]));
    for smmu in 0..2 {
        let mut driver = Driver::started(&bench, smmu);
        let ids = REGISTERS.map(|(offset, _)| driver.read(offset));
        seen += &format!("{ids:x?} ");
        driver.reset();
        driver.shut_down();
    }
    let guest = bench.guest().unwrap();
    for smmu in 0..2 {
        bench.attach(smmu, 0, 0).unwrap();
        bench.attach(smmu, 1, guest).unwrap();
    }
    oracle::check(&bench).unwrap_or_else(|text| panic!("{text}"));
    let machine = bench.machine();
    let reads = [0, 1].map(|smmu| {
        let smmu = &machine.smmus[smmu];
        REGISTERS.map(|(offset, _)| smmu.id_reads.get(&offset).copied().unwrap_or(0)).to_vec()
    });
    (seen, reads)
}

#[test]
fn what_an_smmu_says_the_second_time_is_never_heard() {
    let (honest, _) = history(|_| {});
    for (offset, name) in REGISTERS {
        for bits in [u32::MAX, 1, 1 << 31, 0x0000_ffff, 0xffff_0000] {
            let (seen, reads) = history(|machine| {
                for smmu in &mut machine.smmus {
                    smmu.lies.insert(offset, bits);
                }
            });
            assert_eq!(seen, honest, "{name} is other by {bits:#x}");
            assert!(reads.iter().flatten().all(|reads| *reads <= 1), "{name}: {reads:?}");
        }
    }
}

/// The control: what is said the first time is heard, of the registers that say something that EL2 asks for.
#[test]
fn what_an_smmu_says_the_first_time_is_heard() {
    let (honest, reads) = history(|_| {});
    for smmu in reads {
        // IDR2 is of no use to EL2, IDR4 is the implementation's own, and AIDR is behind what IDR0 to IDR5 say.
        assert_eq!(smmu, [1, 1, 0, 1, 0, 1, 1, 0]);
    }
    let config = SmmuConfig::qemu().with_ats().ssid_bits(4).without_ril();
    let (other, _) = history(|machine| machine.smmus[0].config = config);
    assert_ne!(honest, other);
}

/// No call, and no trapped access, reads one again.
#[test]
fn no_call_reads_an_identification_register() {
    for call in TABLE.iter().filter(|call| call.function != Function::CallUid) {
        for (name, arguments) in calls(call.function) {
            let world = World::new(SmmuConfig::qemu(), State::Busy);
            let Some(arguments) = arguments(&world) else { continue };
            for smmu in &mut world.bench.machine().smmus {
                smmu.id_reads.clear();
            }
            let result = world.call(call.function, arguments);
            assert!(!matches!(result, Err((Status::Hardware, _))), "{} {name}: {result:?}", call.name);
            assert!(world.bench.machine().smmus.iter().all(|smmu| smmu.id_reads.is_empty()), "{}", call.name);
        }
    }
}
