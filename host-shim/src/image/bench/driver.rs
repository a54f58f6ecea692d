//! What the registers of an emulated SMMU cost its driver: a load, and a batch of commands with a CMD_SYNC that is told by a word in memory.

use super::super::machine::Machine;
use super::{line, overhead};
use crate::image::cpu;
use host_shim::host::{Abort, Host};

const CR0: u64 = 0x20;
const CR0ACK: u64 = 0x24;
const CMDQ_BASE: u64 = 0x90;
const CMDQ_PROD: u64 = 0x98;
const CMDQ_CONS: u64 = 0x9c;
/// CR0.CMDQEN.
const CMDQEN: u32 = 1 << 3;
/// log2 of the commands that the queue holds.
const LOG2_COMMANDS: u64 = 8;
/// CMD_TLBI_NH_VA of a page and an ASID.
const TLBI_NH_VA: [u64; 2] = [1 << 48 | 0x12, 0x4000_0001];
/// CMD_SYNC with an MSI (CS = SIG_IRQ) of MSIData 0.
const SYNC: u64 = 0x46 | 0b01 << 12;

/// Measures them on an SMMU whose driver nobody is, and leaves it as it was.
pub fn run(machine: &Machine, smmu: usize) -> Result<(), Abort> {
    let Some(base) = machine.smmu_base(smmu) else { return Ok(()) };
    let queue = machine.scratch();
    machine.cpu_write_u64(base + CMDQ_BASE, queue | LOG2_COMMANDS)?;
    machine.cpu_write_u32(base + CMDQ_PROD, 0)?;
    machine.cpu_write_u32(base + CMDQ_CONS, 0)?;
    machine.cpu_write_u32(base + CR0, CMDQEN)?;
    let mut load = u64::MAX;
    for _ in 0..8 {
        load = load.min(ticks(|| machine.cpu_read_u32(base + CR0ACK).map(drop))?);
    }
    line("emulated-load", load, "instructions");
    let mut next = 0;
    for (name, count) in [("emulated-batch-1", 1), ("emulated-batch-16", 16)] {
        let mut best = u64::MAX;
        for _ in 0..4 {
            for _ in 0..count {
                put(machine, queue, &mut next, TLBI_NH_VA)?;
            }
            let slot = queue + next % (1 << LOG2_COMMANDS) * 16;
            put(machine, queue, &mut next, [SYNC, slot])?;
            let producer = next as u32 & ((2 << LOG2_COMMANDS) - 1);
            best = best.min(ticks(|| machine.cpu_write_u32(base + CMDQ_PROD, producer))?);
        }
        line(name, best, "instructions");
    }
    machine.cpu_write_u32(base + CR0, 0)
}

fn put(machine: &Machine, queue: u64, next: &mut u64, [low, high]: [u64; 2]) -> Result<(), Abort> {
    let slot = queue + *next % (1 << LOG2_COMMANDS) * 16;
    machine.cpu_write_u64(slot, low)?;
    machine.cpu_write_u64(slot + 8, high)?;
    *next += 1;
    Ok(())
}

/// Instructions of an access, those that go around it included.
fn ticks(access: impl FnOnce() -> Result<(), Abort>) -> Result<u64, Abort> {
    let overhead = overhead();
    let begin = cpu::ticks();
    access()?;
    Ok(cpu::ticks() - begin - overhead)
}
