//! Several CPUs at once. Threads stand for CPUs; the model is behind one lock, the hypervisor's own locks are what is tested.

use crate::boot;
use abi::Function;
use tests::bench::{SCRATCH, Shape};
use tests::model::smmu::config::SmmuConfig;
use tests::oracle;

const ROUNDS: u64 = 25;

#[test]
fn four_cpus_change_ownership_and_attachments_while_devices_write() {
    for config in [SmmuConfig::qemu(), SmmuConfig::qemu().without_ril().slow(2_000).queues(2, 2)] {
        let bench = boot(&Shape::of(4, config));
        let guests: Vec<u64> = (0..4).map(|_| bench.guest().unwrap()).collect();
        std::thread::scope(|scope| {
            for (cpu, &guest) in guests.iter().enumerate() {
                let bench = &bench;
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        // Pages of all CPUs lie in one block, so that they split and join the same tables.
                        let page = SCRATCH + (4 * (round % 64) + cpu as u64) * 0x1000;
                        bench.attach(cpu, 0, 0).unwrap();
                        assert!(bench.reaches(cpu, 0, page));
                        bench.call(Function::MemDonate, [page, 0x1000, guest, 0]).unwrap();
                        assert!(!bench.reaches(cpu, 0, page));
                        bench.attach(cpu, 1, guest).unwrap();
                        assert!(bench.reaches(cpu, 1, page));
                        bench.call(Function::MemReclaim, [page, 0x1000, guest, 0]).unwrap();
                        assert!(!bench.reaches(cpu, 1, page));
                        assert!(bench.reaches(cpu, 0, page));
                        bench.detach(cpu, 0).unwrap();
                        bench.detach(cpu, 1).unwrap();
                        assert!(!bench.reaches(cpu, 0, page));
                        while bench.call(Function::EventRead, [0; 4]).is_ok() {}
                    }
                });
            }
        });
        oracle::check_state(&bench).unwrap();
    }
}
