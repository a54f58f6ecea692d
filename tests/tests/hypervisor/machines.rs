//! The same scenario on many machines: granules, address sizes, RIL and BBML, VMID widths, stream tables, queue sizes and
//! speeds, and mixtures of them. After every step the oracle compares all tables and all caches.

use crate::boot;
use abi::{Function, Status};
use tests::bench::{Bench, SCRATCH, Shape};
use tests::model::smmu::config::SmmuConfig;
use tests::oracle;

const BLOCK: u64 = 2 << 20;

fn check(bench: &Bench, name: &str, step: &str) {
    oracle::check(bench).unwrap_or_else(|text| panic!("{name}: {step}: {text}"));
}

/// Attach, donate, share, reclaim, detach: single units, a block, and a range across blocks, with warm caches.
fn scenario(name: &str, shape: &Shape) {
    let bench = Bench::boot(shape).unwrap_or_else(|error| panic!("{name}: {error}"));
    check(&bench, name, "boot");
    let unit = bench.unit();
    let smmus = bench.devices.len();
    let page = SCRATCH + 5 * unit;
    for smmu in 0..smmus {
        assert!(!bench.reaches(smmu, 0, page), "{name}: unattached");
        bench.attach(smmu, 0, 0).unwrap_or_else(|status| panic!("{name}: attach {smmu}: {status:?}"));
        assert!(bench.reaches(smmu, 0, page), "{name}: attached");
    }
    check(&bench, name, "attached");
    let guest = bench.guest().unwrap();
    if smmus <= tests::bench::MAX_BUSES {
        for smmu in 0..smmus {
            bench
                .attach(smmu, 1, guest)
                .unwrap_or_else(|status| panic!("{name}: attach to guest: {status:?}"));
        }
    }
    let ranges = [(page, unit), (SCRATCH + 2 * BLOCK, BLOCK), (SCRATCH + 5 * BLOCK - 2 * unit, 4 * unit)];
    for (start, size) in ranges {
        let mut pages =
            [start, start + size / 2, start + size - 8].map(|address| address & !(unit - 1)).to_vec();
        pages.dedup();
        let warm = || {
            pages.iter().for_each(|page| bench.warm(*page));
            bench.warm(start - unit);
            bench.warm(start + size);
        };
        warm();
        bench
            .whole(Function::MemDonate, start, size, guest)
            .unwrap_or_else(|s| panic!("{name}: donate: {s:?}"));
        for &page in &pages {
            for smmu in 0..smmus {
                assert!(!bench.reaches(smmu, 0, page), "{name}: {page:#x} is the guest's");
                let guests = smmus <= tests::bench::MAX_BUSES;
                assert_eq!(bench.reaches(smmu, 1, page), guests, "{name}: the guest's device");
            }
            assert!(bench.machine().cpu_translate(page, false).is_err(), "{name}: CPU");
        }
        check(&bench, name, "donated");
        warm();
        bench
            .whole(Function::MemReclaim, start, size, guest)
            .unwrap_or_else(|s| panic!("{name}: reclaim: {s:?}"));
        for &page in &pages {
            assert_eq!(bench.machine().memory.read(page), Some(0), "{name}: wiped");
            for smmu in 0..smmus {
                assert!(!bench.reaches(smmu, 1, page), "{name}: {page:#x} is the host's");
                assert!(bench.reaches(smmu, 0, page), "{name}: {page:#x} is the host's again");
            }
            assert_eq!(bench.machine().cpu_translate(page, true), Ok(page), "{name}: CPU");
        }
        check(&bench, name, "reclaimed");
        warm();
        bench
            .whole(Function::MemShare, start, size, guest)
            .unwrap_or_else(|s| panic!("{name}: share: {s:?}"));
        warm();
        check(&bench, name, "shared");
        bench
            .whole(Function::MemUnshare, start, size, guest)
            .unwrap_or_else(|s| panic!("{name}: unshare: {s:?}"));
        for smmu in 0..smmus {
            assert!(!bench.reaches(smmu, 1, pages[0]), "{name}: unshared");
        }
        check(&bench, name, "unshared");
    }
    for smmu in 0..smmus {
        bench.detach(smmu, 0).unwrap();
        assert!(!bench.reaches(smmu, 0, page), "{name}: detached");
        if smmus <= tests::bench::MAX_BUSES {
            bench.detach(smmu, 1).unwrap();
        }
    }
    check(&bench, name, "detached");
    assert_eq!(bench.call(Function::GuestDestroy, [guest, 0, 0, 0]), Ok([0; 4]), "{name}");
    check(&bench, name, "guest gone");
}

#[test]
fn alone() {
    let qemu = SmmuConfig::qemu();
    let machines = [
        ("as QEMU", qemu),
        ("lazy", qemu.lazy()),
        ("no RIL", qemu.without_ril()),
        ("BBML 0", qemu.bbml(0)),
        ("BBML 1", qemu.bbml(1)),
        ("no RIL, BBML 0", qemu.without_ril().bbml(0)),
        ("only 16K", qemu.granules(false, true, false)),
        ("only 64K", qemu.granules(false, false, true)),
        ("only 64K, no RIL, BBML 0", qemu.granules(false, false, true).without_ril().bbml(0)),
        ("only 16K, no RIL", qemu.granules(false, true, false).without_ril()),
        ("OAS 32", qemu.oas(0)),
        ("OAS 36", qemu.oas(1)),
        ("OAS 40", qemu.oas(2)),
        ("OAS 42", qemu.oas(3)),
        ("OAS 48", qemu.oas(5)),
        ("OAS 52", qemu.oas(6)),
        ("8-bit VMIDs", qemu.vmid8()),
        ("linear, 8-bit StreamIDs", qemu.linear_only().stream_bits(8)),
        ("linear, 16-bit StreamIDs", qemu.linear_only()),
        ("2-bit StreamIDs", qemu.stream_bits(2)),
        ("7-bit StreamIDs", qemu.stream_bits(7)),
        ("4 commands, 2 events", qemu.queues(2, 1)),
        ("8 commands, 1 event", qemu.queues(3, 0)),
        ("4 commands, no RIL", qemu.queues(2, 2).without_ril()),
        ("slow", qemu.slow(5_000)),
        ("slow, 4 commands, no RIL", qemu.slow(3_000).queues(2, 2).without_ril()),
        ("no stage 1", qemu.with(0, 1, 1, 0)),
        ("no stalls, ATS", qemu.with(0, 10, 1, 1)),
    ];
    for (name, config) in machines {
        scenario(name, &Shape::of(1, config));
    }
}

#[test]
fn together() {
    let qemu = SmmuConfig::qemu();
    let mixed = Shape::mixed;
    let k4_64 = qemu.granules(true, false, true);
    scenario("three", &Shape::of(3, qemu));
    scenario("16K and 64K, and 4K and 64K", &mixed(&[k4_64, qemu.granules(false, true, true)]));
    scenario("RIL and not", &mixed(&[qemu, qemu.without_ril(), qemu.bbml(1)]));
    scenario("fast and slow", &mixed(&[qemu, qemu.slow(20_000), qemu.queues(2, 1)]));
    scenario("address sizes", &mixed(&[qemu.oas(5), qemu.oas(0), qemu.vmid8()]));
    scenario("streams", &mixed(&[qemu.linear_only().stream_bits(6), qemu, qemu.stream_bits(9)]));
    scenario("eight", &Shape::of(8, qemu.without_ril().bbml(0)));
}

#[test]
fn sixty_four() {
    let qemu = SmmuConfig::qemu().stream_bits(8);
    let smmus = (0..64).map(|n| match n % 4 {
        0 => qemu,
        1 => qemu.without_ril(),
        2 => qemu.queues(3, 1),
        _ => qemu.slow(1_000),
    });
    scenario("64", &Shape::mixed(&smmus.collect::<Vec<_>>()));
}

#[test]
fn cpus_with_few_address_bits() {
    for pa_bits in [40, 42, 48] {
        scenario(&format!("{pa_bits} bits"), &Shape { pa_bits, ..Shape::of(1, SmmuConfig::qemu()) });
    }
}

#[test]
fn what_cannot_be_owned_stops_the_boot_with_a_sentence() {
    let qemu = SmmuConfig::qemu();
    let machines = [
        ("stage 2", qemu.with(0, 0, 1, 0)),
        ("coherent", qemu.with(0, 4, 1, 0)),
        ("granule", qemu.granules(false, false, false)),
        ("stall", qemu.with(0, 24, 2, 2)),
        ("tables", qemu.with(0, 2, 2, 1)),
    ];
    for (word, config) in machines {
        let mut aborting = true;
        let shape = Shape::mixed(&[qemu, config]);
        let error = match Bench::boot(&shape) {
            Ok(_) => panic!("{word}: booted"),
            Err(error) => error.to_string(),
        };
        aborting &= error.contains(word);
        assert!(aborting, "{word}: {error}");
        // It names the SMMU: by its base address.
        assert!(error.contains("c020000"), "{word}: {error}");
    }
    assert!(Bench::boot(&Shape::mixed(&[])).is_err());
    let apart = [qemu.granules(true, false, false), qemu.granules(false, false, true)];
    assert!(Bench::boot(&Shape::mixed(&apart)).is_err());
}

#[test]
fn a_guest_needs_a_pci_function() {
    let bench = boot(&Shape::of(17, SmmuConfig::qemu()));
    let guest = bench.guest().unwrap();
    assert_eq!(bench.attach(16, 1, guest), Err(Status::UnknownStream));
    assert_eq!(bench.attach(15, 0, guest), Ok(()));
    oracle::check(&bench).unwrap();
}

#[test]
fn two_mib_across_three_smmus_cost_one_tlbi_and_one_sync_each() {
    let bench = boot(&Shape::of(3, SmmuConfig::qemu()));
    (0..3).for_each(|smmu| bench.attach(smmu, 0, 0).unwrap());
    let guest = bench.guest().unwrap();
    let counts = |opcodes: &[u8]| -> Vec<u64> {
        let machine = bench.machine();
        machine.smmus.iter().map(|smmu| opcodes.iter().map(|&opcode| smmu.count(opcode)).sum()).collect()
    };
    let before = (counts(&[0x2a, 0x28, 0x30]), counts(&[0x46]));
    // Half a block is split off, so the table is joined no more: still one range.
    bench.whole(Function::MemDonate, SCRATCH + BLOCK / 2, BLOCK, guest).unwrap();
    let after = (counts(&[0x2a, 0x28, 0x30]), counts(&[0x46]));
    for smmu in 0..3 {
        assert_eq!(after.0[smmu] - before.0[smmu], 1, "TLBIs on SMMU {smmu}");
        assert_eq!(after.1[smmu] - before.1[smmu], 1, "SYNCs on SMMU {smmu}");
    }
    oracle::check(&bench).unwrap();
}
