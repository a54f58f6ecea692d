//! The host's own driver, by trapped accesses of registers, on the model machine: a device reaches what the host's stage 1 over the host's
//! stage 2 gives it, and nothing else, whatever the driver and the calls do. After each step the oracle holds every STE, table and cache
//! against what the driver's own registers, queue and table say.

mod attach;
mod calls;
mod events;
mod failures;
mod queues;
mod tables;
mod unmap;

use tests::bench::Bench;
use tests::model::smmu::config::SmmuConfig;
use tests::owner::Stage1;

/// Tables of the host's for stage 1, with CD 0 of this ASID.
fn stage1(bench: &Bench, base: u64, asid: u64) -> Stage1 {
    let stage1 = Stage1::new(bench, base);
    assert!(stage1.write(bench, 0, asid));
    stage1
}

fn kinds() -> [SmmuConfig; 5] {
    let qemu = SmmuConfig::qemu();
    [
        qemu,
        qemu.without_ril().bbml(0).lazy(),
        qemu.granules(false, false, true),
        qemu.slow(700).sync_delay(900).queues(3, 3),
        qemu.with_ats().vmid8().asid8(),
    ]
}
