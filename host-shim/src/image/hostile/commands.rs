//! The longest queue of the costliest commands, behind one store.

use super::super::interrupts::{self, Taken};
use super::super::machine::Machine;
use super::super::probe;
use super::bound;
use host_shim::call::{Calls, Refused};
use host_shim::checks::{Check, Outcome, Stop};
use host_shim::host::{Abort, Host};
use host_shim::{fail, text};
use smmuv3::registers::{
    CMDQ_BASE_OFFSET, CMDQ_CONS_OFFSET, CMDQ_PROD_OFFSET, CR0_OFFSET, CR0ACK_OFFSET, IDR1_OFFSET,
    STRTAB_BASE_CFG_OFFSET, STRTAB_BASE_OFFSET,
};

pub const CHECK: Check<Machine> = Check {
    name: "a command queue that takes for ever",
    expected: "interrupts are taken in the middle of the one store of CMDQ_PROD, each within the bound of a trap; the host can give the store up",
    run: attack,
};

/// CMDQ_CONS.RD.
const INDEX: u32 = 0xf_ffff;
const SMMUEN: u32 = 1 << 0;
const CMDQEN: u32 = 1 << 3;

/// CMD_CFGI_ALL: CFGI_STE_RANGE with a Range of 31 (4.3.4).
const CFGI_ALL: [u64; 2] = [0x04, 31];
const COMMAND_BYTES: u64 = 16;
/// log2 of the STEs of the stream table, one for each function of 8 buses.
const TABLE_LOG2: u32 = 11;
/// Words 0 and 1 of an STE that bypasses stage 1, with SHCFG = 0b01: it is valid, so EL2 makes an STE of it each time.
const BYPASS: [u64; 2] = [1 | 0b100 << 1, 1 << 44];

/// The least traps that a store takes which fills the queue.
const LEAST_TRAPS: u64 = 1000;
/// Interrupts after which the host gives the store up.
const MOST: u32 = 2000;

fn refused(call: &'static str) -> impl Fn(Refused) -> Stop {
    move |refused| Stop::Failed(text!("{call} answered {refused:?}"))
}

/// The first SMMU that the host has, with a full queue and a full stream table in the host's memory.
struct Smmu<'m> {
    machine: &'m Machine,
    redistributor: u64,
    base: u64,
    queue: u64,
    /// CMDQS: log2 of the most commands.
    log2: u32,
    table: u64,
}

impl<'m> Smmu<'m> {
    fn find(machine: &'m Machine) -> Result<Self, Stop> {
        let base = machine.describe_smmu(0).map_err(refused("SMMU_DESCRIBE"))?.base;
        let Some(redistributor) = machine.tree().redistributors.iter().next() else {
            return Err(Stop::NotApplicable(text!("no Redistributor in the device tree")));
        };
        let Ok(sizes) = machine.cpu_read_u32(base + IDR1_OFFSET) else {
            return Err(Stop::NotApplicable(text!("the host has no SMMU of its own at {base:#x}")));
        };
        let log2 = sizes >> 21 & 0x1f;
        let bytes = COMMAND_BYTES << log2;
        let queue = machine.scratch().next_multiple_of(bytes);
        let table = if queue == machine.scratch() { queue + bytes } else { machine.scratch() };
        Ok(Self { machine, redistributor: redistributor.start, base, queue, log2, table })
    }

    /// Writes the commands and the STEs.
    fn write_memory(&self) -> Result<(), Abort> {
        let end = self.queue + (COMMAND_BYTES << self.log2);
        for (at, word) in (self.queue..end).step_by(8).zip(CFGI_ALL.into_iter().cycle()) {
            self.machine.cpu_write_u64(at, word)?;
        }
        for entry in (self.table..self.table + (64 << TABLE_LOG2)).step_by(64) {
            for (index, at) in (entry..entry + 64).step_by(8).enumerate() {
                self.machine.cpu_write_u64(at, BYPASS.get(index).copied().unwrap_or(0))?;
            }
        }
        Ok(())
    }

    /// Where the table and the queue are, of an SMMU that is off; the queue is empty.
    fn set_up(&self) -> Result<(), Abort> {
        let Self { machine, base, queue, log2, table, .. } = *self;
        machine.cpu_write_u64(base + STRTAB_BASE_OFFSET, table)?;
        machine.cpu_write_u32(base + STRTAB_BASE_CFG_OFFSET, TABLE_LOG2)?;
        machine.cpu_write_u64(base + CMDQ_BASE_OFFSET, queue | u64::from(log2))?;
        machine.cpu_write_u32(base + CMDQ_PROD_OFFSET, 0)?;
        machine.cpu_write_u32(base + CMDQ_CONS_OFFSET, 0)
    }

    /// A store with interrupts on.
    fn store(&self, register: u64, value: u32) -> Result<Taken, Abort> {
        let most = MOST.max((1 << self.log2) / 64);
        interrupts::during(self.machine, self.redistributor, bound::period(self.machine), most, || {
            probe::store(self.base + register, 4, u64::from(value))
        })
    }

    fn consumed(&self) -> Result<u32, Abort> {
        Ok(self.machine.cpu_read_u32(self.base + CMDQ_CONS_OFFSET)? & INDEX)
    }
}

fn attack(machine: &Machine) -> Outcome {
    let smmu = Smmu::find(machine)?;
    let aborted =
        |Abort| Stop::Failed(text!("an access to the SMMU at {:#x}, or to own memory, aborted", smmu.base));
    let full = 1 << smmu.log2;
    smmu.write_memory()
        .and_then(|()| smmu.store(CR0_OFFSET, 0))
        .and_then(|_| smmu.set_up())
        .map_err(aborted)?;
    // Nothing is translated yet: each command is looked at, and has nothing to do.
    smmu.store(CR0_OFFSET, CMDQEN).map_err(aborted)?;
    let off = smmu.store(CMDQ_PROD_OFFSET, full).map_err(aborted)?;
    bound::judge(machine, "a full queue with the SMMU off", &off, LEAST_TRAPS)?;
    let done = smmu.consumed().map_err(aborted)?;
    if off.given_up || done != full {
        fail!("CMDQ_CONS {done:#x} of {full:#x} after {off:?}");
    }
    // Each command looks at all STEs of the SMMU: more than anybody waits for.
    smmu.store(CR0_OFFSET, 0).and_then(|_| smmu.set_up()).map_err(aborted)?;
    let enabled = smmu.store(CR0_OFFSET, CMDQEN | SMMUEN).map_err(aborted)?;
    bound::judge(machine, "SMMUEN with a full stream table", &enabled, 1)?;
    let on = smmu.store(CMDQ_PROD_OFFSET, full).map_err(aborted)?;
    bound::judge(machine, "a full queue with the SMMU on", &on, 2)?;
    let done = smmu.consumed().map_err(aborted)?;
    if !on.given_up {
        fail!("CMDQ_CONS {done:#x} of {full:#x} after {on:?}");
    }
    // The control: the SMMU is the host's to turn off.
    let disabled = smmu.store(CR0_OFFSET, 0).map_err(aborted)?;
    bound::judge(machine, "the end of SMMUEN with a full stream table", &disabled, 1)?;
    let acknowledged = machine.cpu_read_u32(smmu.base + CR0ACK_OFFSET).map_err(aborted)?;
    if acknowledged != 0 {
        fail!("CR0ACK {acknowledged:#x} of an SMMU that was turned off in the middle");
    }
    Ok(text!(
        "2^{} CFGI_ALL; SMMU off: {} traps, {} interrupts, at most {} {} apart; on: given up after {} traps and {done} commands, {} apart; SMMUEN set {} apart, cleared {}",
        smmu.log2,
        off.traps,
        off.interrupts,
        off.longest,
        machine.tick_unit(),
        on.traps,
        on.longest,
        enabled.longest,
        disabled.longest,
    ))
}
