//! Words that an SMMU writes by itself: MSIs, and what a CMD_SYNC leaves. Those of an emulated SMMU would be EL2's own stores.

use super::super::support::{block, cpu_store, cpu_value, drain};
use super::super::{Check, Outcome, Stop};
use super::Prey;
use super::smmu::{CMDQEN, EVENTQEN, Registers, SMMUEN, sync_to};
use crate::host::{Device, Host};
use crate::{attack_worked, fail, text};
use smmuv3::registers::{
    CMDQ_PROD_OFFSET, CR0_OFFSET, EVENTQ_BASE_OFFSET, EVENTQ_CONS_OFFSET, EVENTQ_IRQ_CFG0_OFFSET,
    EVENTQ_PROD_OFFSET, GERROR_IRQ_CFG0_OFFSET, IRQ_CTRL_OFFSET, STRTAB_BASE_CFG_OFFSET, STRTAB_BASE_OFFSET,
};

/// GERROR.MSI_CMDQ_ABT_ERR.
const MSI_CMDQ_ABORT: u32 = 1 << 4;
/// GERROR.CMDQ_ERR.
const COMMAND_ERROR: u32 = 1 << 0;
const DATA: u32 = 0x5eed_0001;
const QUEUE_LOG2: u32 = 4;

pub(super) fn checks<H: Host>() -> [Check<H>; 2] {
    [
        Check {
            name: "the word of a CMD_SYNC in the hypervisor",
            expected: "MSI_CMDQ_ABT_ERR on every SMMU, as with a guest's memory; in the host's memory the word arrives",
            run: completion,
        },
        Check {
            name: "MSIs of an SMMU into the hypervisor",
            expected: "errors and events are recorded on every SMMU, and no MSI is sent, not even to the host's memory",
            run: interrupts,
        },
    ]
}

fn completion<H: Host>(host: &H) -> Outcome {
    let prey = Prey::new(host)?;
    let (queue, own) = (block(host, 1), block(host, 1) + 0x1000);
    for smmu in 0..host.smmus() {
        let registers = Registers::find(host, smmu)?;
        let send = |place| {
            registers.start_queue(queue, QUEUE_LOG2)?;
            registers.run_first(queue, sync_to(place, DATA))?;
            let errors = registers.errors()?;
            registers.acknowledge()?;
            if registers.consumed()? != 1 {
                fail!("the CMD_SYNC was not consumed: errors {errors:#x}");
            }
            Ok(errors)
        };
        let control = |when: &str| {
            cpu_store(host, own, 0)?;
            let errors = send(own)?;
            let word = cpu_value(host, own)?;
            if (errors, word) != (0, u64::from(DATA)) {
                fail!("a CMD_SYNC to {own:#x} {when}: errors {errors:#x}, and {word:#x} is there");
            }
            Ok(())
        };
        control("as the control")?;
        for (whose, place) in prey.places() {
            match send(place + 0x800)? {
                MSI_CMDQ_ABORT => {}
                0 => attack_worked!(
                    "EL2 wrote the word of a CMD_SYNC to {:#x}, which is {whose}",
                    place + 0x800
                ),
                errors => fail!("errors {errors:#x} of a CMD_SYNC to {place:#x}"),
            }
        }
        control("after all that")?;
        registers.set_cr0(0)?;
    }
    prey.end()?;
    Ok(text!("2 places refused and the host's own written, on {} SMMUs", host.smmus()))
}

/// Makes a global error and an event with MSIs of both to go to `error` and `event`; the errors that are active then.
fn provoke<H: Host>(registers: &Registers<'_, H>, stream: u32, error: u64, event: u64) -> Result<u32, Stop> {
    let host = registers.host;
    let (queue, events, table) = (block(host, 1), block(host, 1) + 0x2000, block(host, 2));
    // One STE, of a Config that is reserved: C_BAD_STE.
    let log2 = stream.checked_ilog2().unwrap_or(0) + 1;
    for at in (table..table + (64 << log2)).step_by(8) {
        cpu_store(host, at, 0)?;
    }
    cpu_store(host, table + u64::from(stream) * 64, 1 | 0b011 << 1)?;
    registers.write(IRQ_CTRL_OFFSET, 0)?;
    for (register, place) in [(GERROR_IRQ_CFG0_OFFSET, error), (EVENTQ_IRQ_CFG0_OFFSET, event)] {
        registers.write_u64(register, place)?;
        registers.write(register + 8, DATA)?;
        registers.write(register + 12, 3 << 4 | 0xf)?;
    }
    registers.write_u64(STRTAB_BASE_OFFSET, table)?;
    registers.write(STRTAB_BASE_CFG_OFFSET, log2)?;
    registers.write_u64(EVENTQ_BASE_OFFSET, events | u64::from(QUEUE_LOG2))?;
    registers.write(EVENTQ_PROD_OFFSET, 0)?;
    registers.write(EVENTQ_CONS_OFFSET, 0)?;
    registers.start_queue(queue, QUEUE_LOG2)?;
    registers.write(IRQ_CTRL_OFFSET, 0b101)?;
    registers.set_cr0(SMMUEN | EVENTQEN | CMDQEN)?;
    // CFGI_STE of that stream, and then a command that does not exist.
    registers.run_first(queue, [0x03 | u64::from(stream) << 32, 1])?;
    let recorded = registers.read(EVENTQ_PROD_OFFSET)?;
    cpu_store(host, queue + 16, 0xff)?;
    registers.write(CMDQ_PROD_OFFSET, 2)?;
    let errors = registers.errors()?;
    registers.write(CR0_OFFSET, 0)?;
    registers.acknowledge()?;
    registers.write(IRQ_CTRL_OFFSET, 0)?;
    if recorded == 0 || errors & COMMAND_ERROR == 0 {
        fail!(
            "EVENTQ_PROD {recorded:#x} after an STE that is ILLEGAL, errors {errors:#x} after such a command"
        );
    }
    Ok(errors)
}

fn interrupts<H: Host>(host: &H) -> Outcome {
    let prey = Prey::new(host)?;
    let own = [block(host, 1) + 0x1000, block(host, 1) + 0x1008];
    for smmu in 0..host.smmus() {
        let registers = Registers::find(host, smmu)?;
        let stream = super::super::support::stream(host, smmu, Device::Immediate)?;
        for place in own {
            cpu_store(host, place, 0)?;
        }
        let control = provoke(&registers, stream, own[0], own[1])?;
        let sent = [cpu_value(host, own[0])?, cpu_value(host, own[1])?];
        for (whose, place) in prey.places() {
            let errors = provoke(&registers, stream, place + 0x900, place + 0x908)?;
            if sent != [0; 2] && errors == control {
                attack_worked!(
                    "MSIs go where the host says ({sent:x?} at {:#x}), and one to {:#x}, which is {whose}, gives no error",
                    own[0],
                    place + 0x900
                );
            }
            if errors != COMMAND_ERROR {
                fail!("errors {errors:#x} with MSIs that go to {place:#x}");
            }
        }
        if sent != [0; 2] {
            fail!("an MSI was sent: {sent:x?} at {:#x}", own[0]);
        }
        registers.set_cr0(0)?;
        drain(host)?;
    }
    prey.end()?;
    Ok(text!("errors and events, and no MSI, on {} SMMUs", host.smmus()))
}
