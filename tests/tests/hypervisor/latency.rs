//! How long an invalidation takes on the model's clock, with ever more SMMUs whose CMD_SYNC takes a microsecond each: no timed test, since the
//! clock is the model's. A read of an SMMU's register takes 5 ns here and a write none, each look at the clock 50 ns, and a wait 2 ns.

use crate::boot;
use abi::Function;
use tests::bench::{SCRATCH, Shape};
use tests::model::smmu::config::SmmuConfig;
use tests::nest::ARENA;
use tests::oracle;

const SYNC_NS: u64 = 1_000;

/// Nanoseconds of a donation of a page, and of an unmap of one, with a stream of the host's and one of the guest's behind every SMMU.
fn measure(smmus: usize) -> [u64; 2] {
    let shape =
        Shape { relax_ns: 2, ..Shape::of(smmus, SmmuConfig::qemu().queues(6, 1).sync_delay(SYNC_NS)) };
    let bench = boot(&shape);
    let guest = bench.guest().unwrap();
    let domain = bench.guest_domain(guest, 8, 4).unwrap();
    for smmu in 0..smmus {
        bench.attach(smmu, 0, domain).unwrap();
        bench.attach(smmu, 1, 0).unwrap();
    }
    // The first page of a block costs more: the block is split.
    bench.whole(Function::MemDonate, SCRATCH + 0x2_0000, 0x1000, guest).unwrap();
    bench.warm(SCRATCH + 0x3_0000);
    bench.warm(ARENA);
    bench.machine().register_access_ns = 5;
    let start = bench.machine().now_ns;
    bench.whole(Function::MemDonate, SCRATCH + 0x3_0000, 0x1000, guest).unwrap();
    let donated = bench.machine().now_ns;
    bench.unmap(domain, ARENA, 0x1000).unwrap();
    let unmapped = bench.machine().now_ns;
    oracle::check(&bench).unwrap();
    [donated - start, unmapped - donated]
}

#[test]
fn sixty_four_smmus_take_at_most_half_as_long_again_as_one() {
    let counts = [1, 4, 16, 64];
    let latencies = counts.map(measure);
    for (count, [donate, unmap]) in counts.iter().zip(latencies) {
        println!("{count:2} SMMUs: a donation takes {donate} ns, an unmap {unmap} ns");
    }
    for call in 0..2 {
        let [one, .., all] = latencies.map(|both| both[call]);
        assert!(one >= SYNC_NS, "a CMD_SYNC was waited for");
        assert!(2 * all <= 3 * one, "64 SMMUs take {all} ns, one takes {one} ns");
    }
}
