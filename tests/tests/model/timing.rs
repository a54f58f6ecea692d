//! The model's time: SMMUs whose CMD_SYNC takes long, out of step with each other, what a register access costs, and machines with many SMMUs.

use tests::model::smmu::config::SmmuConfig;
use tests::model::{BARS, ECAM, FW_CFG, GICD, GICR, ITS, Machine, RAM_BASE, SMMU_BASE, SMMU_BYTES, UART};
use tests::rig::*;

const QEMU: SmmuConfig = SmmuConfig::qemu();

#[test]
fn a_sync_takes_its_time() {
    let mut rig = Rig::nested(QEMU.sync_delay(1_000));
    rig.machine.advance(10_000);
    assert!(rig.reaches());
    rig.take(PAGE);
    rig.commands(&[s12_vmall(VMID), SYNC]);
    rig.machine.advance(500);
    assert!(rig.reaches());
    assert!(!rig.done(0));
    rig.machine.advance(500);
    assert!(rig.done(0));
    assert!(!rig.reaches());
    // Two in a row take two times.
    rig.commands(&[SYNC, SYNC]);
    rig.machine.advance(1_800);
    assert!(!rig.done(0));
    rig.machine.advance(200);
    assert!(rig.done(0));
    rig.clean();
}

#[test]
fn syncs_of_several_smmus_run_side_by_side() {
    let rig = |delays: &[u64]| {
        let configs: Vec<SmmuConfig> = delays.iter().map(|ns| QEMU.sync_delay(*ns)).collect();
        let mut rig = Rig::many(&configs);
        rig.machine.advance(100_000);
        rig
    };
    // Posted to all and then awaited, N SMMUs take as long as one, and a little for the registers.
    let mut latency = Vec::new();
    for n in [1, 4, 16] {
        let mut rig = rig(&vec![1_000; n]);
        let start = rig.machine.now_ns;
        (0..n).for_each(|smmu| rig.commands_on(smmu, &[SYNC]));
        for smmu in 0..n {
            while !rig.done(smmu) {}
        }
        latency.push(rig.machine.now_ns - start);
    }
    assert!(latency[0] >= 1_000 && latency[2] <= 1_000 + 17 * 100, "{latency:?}");
    // One by one they take N times that.
    let mut one_by_one = rig(&[1_000; 16]);
    let start = one_by_one.machine.now_ns;
    for smmu in 0..16 {
        one_by_one.commands_on(smmu, &[SYNC]);
        while !one_by_one.done(smmu) {}
    }
    assert!(one_by_one.machine.now_ns - start >= 16_000);
    // Out of step: each has its own time.
    let mut rig = rig(&[3_000, 1_000, 2_000]);
    (0..3).for_each(|smmu| rig.commands_on(smmu, &[SYNC]));
    let mut done = Vec::new();
    for _ in 0..6 {
        rig.machine.advance(500);
        rig.machine.register_access_ns = 0;
        done.push([0, 1, 2].map(|smmu| rig.done(smmu)));
    }
    assert_eq!(done[0], [false, false, false]);
    assert_eq!(done[1], [false, true, false]);
    assert_eq!(done[3], [false, true, true]);
    assert_eq!(done[5], [true, true, true]);
}

#[test]
fn register_accesses_cost_what_they_are_told_to() {
    let mut machine = Machine::new(1 << 20, &[QEMU], &[vec![]]);
    let cost = |machine: &mut Machine, read: bool| {
        let start = machine.now_ns;
        if read {
            let _ = machine.read_register_u32(SMMU_BASE);
        } else {
            machine.write_register_u32(SMMU_BASE + 0x98, 0);
        }
        machine.now_ns - start
    };
    assert_eq!([cost(&mut machine, true), cost(&mut machine, false)], [100, 0]);
    (machine.register_access_ns, machine.register_write_ns) = (250, 30);
    assert_eq!([cost(&mut machine, true), cost(&mut machine, false)], [250, 30]);
    // Other registers cost nothing.
    let start = machine.now_ns;
    let _ = machine.read_register_u32(UART.start);
    assert_eq!(machine.now_ns, start);
}

#[test]
fn sixty_four_smmus_have_room() {
    let mut machine = Machine::new(1 << 20, &[QEMU; 64], &[]);
    for n in 0..64u64 {
        let base = SMMU_BASE + n * SMMU_BYTES;
        assert_eq!(
            machine.smmus.iter().filter(|smmu| smmu.owns(base) && smmu.owns(base + 0x1_ffff)).count(),
            1
        );
        for device in [UART, FW_CFG, GICD, ITS, GICR, ECAM, BARS] {
            assert!(!device.overlaps(tests::model::memory::Span::new(base, SMMU_BYTES)), "{device:x?}");
        }
        assert!(base + SMMU_BYTES <= RAM_BASE);
        assert_eq!(machine.read_register_u32(base), QEMU.idr[0]);
        machine.write_register_u32(base + 0x28, n as u32);
    }
    for n in 0..64u64 {
        assert_eq!(machine.read_register_u32(SMMU_BASE + n * SMMU_BYTES + 0x28), n as u32);
    }
    assert!(machine.violations.all().is_empty());
}
