//! fw_cfg, whose DMA interface reads and writes memory where it is told to, with no SMMU in front of it.

use super::super::support::{block, cpu_reaches, cpu_store, cpu_value};
use super::super::{Check, Outcome, Stop};
use super::{Prey, side_doors};
use crate::host::{Abort, Host};
use crate::{attack_worked, fail, text};

/// Offset of the DMA address register, 64 bits, big-endian; its low half starts the transfer (QEMU, `docs/specs/fw_cfg.rst`).
const DMA_ADDRESS: u64 = 0x10;
/// Control word: select the item whose key is in bits 31:16, and read it into memory. Key 0 is the signature, `QEMU`.
const READ_SIGNATURE: u32 = 1 << 3 | 1 << 1;
/// Control word when the transfer is over.
const DONE: u32 = 0;

pub(super) fn check<H: Host>() -> Check<H> {
    Check {
        name: "fw_cfg DMA into the hypervisor",
        expected: "each store to its registers aborts, so it writes neither the hypervisor's memory nor a guest's nor the host's",
        run: attack,
    }
}

/// Has fw_cfg write its signature to memory; the control word that it left.
fn write_signature<H: Host>(host: &H, fw_cfg: u64, target: u64) -> Result<Result<u32, Abort>, Stop> {
    let request = block(host, 1);
    // Control, length and address, big-endian: 4 bytes at the end of a run of 8.
    cpu_store(host, request, u64::from(READ_SIGNATURE.to_be()) | u64::from(4_u32.to_be()) << 32)?;
    cpu_store(host, request + 8, target.to_be())?;
    let started = host
        .cpu_write_u32(fw_cfg + DMA_ADDRESS, ((request >> 32) as u32).to_be())
        .and_then(|()| host.cpu_write_u32(fw_cfg + DMA_ADDRESS + 4, (request as u32).to_be()));
    let control = (cpu_value(host, request)? as u32).swap_bytes();
    Ok(started.map(|()| control))
}

fn attack<H: Host>(host: &H) -> Outcome {
    let doors = side_doors(host)?;
    let prey = Prey::new(host)?;
    let own = block(host, 1) + 0x800;
    cpu_reaches(host, own, "where fw_cfg would write")?;
    cpu_store(host, own, 0)?;
    // With the defence built out this is the control: the device does work.
    let at_own = write_signature(host, doors.fw_cfg, own)?;
    let signature = (cpu_value(host, own)? as u32).to_le_bytes();
    let works = at_own == Ok(DONE) && &signature == b"QEMU";
    for (whose, place) in prey.places().map(|(whose, place)| (whose, place + 0x808)) {
        match write_signature(host, doors.fw_cfg, place)? {
            Err(Abort) => {}
            Ok(DONE) if works => attack_worked!(
                "fw_cfg wrote `QEMU` to {own:#x} of the host's, and says that it did to {place:#x}, which is {whose}"
            ),
            Ok(control) => {
                fail!("fw_cfg was reached, and answered {control:#x} at {place:#x} ({at_own:x?} at {own:#x})")
            }
        }
    }
    if let Ok(control) = at_own {
        fail!("fw_cfg was reached, and answered {control:#x} at {own:#x}");
    }
    if cpu_value(host, own)? != 0 {
        fail!("{:#x} at {own:#x} though fw_cfg was not reached", cpu_value(host, own)?);
    }
    prey.end()?;
    Ok(text!("3 targets, each refused at the first store"))
}
