//! QEMU's `edu`: a DMA transfer between memory and a buffer of its own, a while after it was told to.

use crate::bus::Bus;
use crate::host::{Abort, Transfer};

/// PCI vendor and device.
pub const ID: (u16, u16) = (0x1234, 0x11e8);

/// How long after the command the transfer happens, in nanoseconds of virtual time.
pub const DELAY_NS: u64 = 100_000_000;

const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
const RUN: u64 = 1 << 0;
const TO_MEMORY: u64 = 1 << 1;
/// Where the device's buffer is for its DMA engine.
const BUFFER: u64 = 0x4_0000;

/// Starts a transfer of 8 bytes.
///
/// # Errors
/// [`Abort`] if the registers at `bar` are out of reach.
pub fn start(bus: &impl Bus, bar: u64, transfer: Transfer) -> Result<(), Abort> {
    let (source, destination, direction) = match transfer {
        Transfer::FromMemory(address) => (address, BUFFER, 0),
        Transfer::ToMemory(address) => (BUFFER, address, TO_MEMORY),
    };
    bus.write_u64(bar + SOURCE, source)?;
    bus.write_u64(bar + DESTINATION, destination)?;
    bus.write_u64(bar + COUNT, 8)?;
    bus.write_u64(bar + COMMAND, RUN | direction)
}

/// Whether a transfer is still ahead.
///
/// # Errors
/// [`Abort`] if the registers at `bar` are out of reach.
pub fn under_way(bus: &impl Bus, bar: u64) -> Result<bool, Abort> {
    Ok(bus.read_u64(bar + COMMAND)? & RUN != 0)
}
