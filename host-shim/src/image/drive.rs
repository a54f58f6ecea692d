//! The drivers by themselves, on a machine with no hypervisor and its SMMUs in bypass: boot arguments `devices`.

use super::console::println;
use super::machine::Machine;
use host_shim::host::{Device, Dma, Host, Transfer};

/// Drives every device once; whether all DMA went where it should.
pub fn run(machine: &Machine) -> bool {
    let memory = machine.scratch();
    let mut right = true;
    for smmu in 0..machine.smmus() {
        if machine.stream(smmu, Device::Immediate).is_some() {
            let seen = machine.dma_write(smmu, memory + 0x100);
            println!("SMMU {smmu}: immediate device: {seen:?}");
            right &= seen == Dma::Landed;
        }
        if machine.stream(smmu, Device::Delayed).is_some() {
            let _ = machine.cpu_write_u64(memory, 0x6564_7500 + smmu as u64);
            let started = machine.start(smmu, Transfer::FromMemory(memory)).is_ok();
            machine.settle();
            let between = machine.under_way(smmu);
            let again = machine.start(smmu, Transfer::ToMemory(memory + 8)).is_ok();
            let ahead = machine.certainly_ahead() && machine.under_way(smmu);
            machine.settle();
            let value = machine.cpu_read_u64(memory + 8);
            println!("SMMU {smmu}: delayed device: {started} {between} {again} {ahead} {value:x?}");
            right &= value == Ok(0x6564_7500 + smmu as u64) && ahead;
        }
        if machine.stream(smmu, Device::Disk).is_some() {
            let seen = machine.disk_round_trip(smmu, memory, 0x0123_4567_89ab_cdef);
            println!("SMMU {smmu}: disk: {seen:?}");
            right &= seen.is_ok();
        }
    }
    right
}
