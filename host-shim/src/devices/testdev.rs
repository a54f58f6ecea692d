//! QEMU's `iommu-testdev`: one DMA write, now.

use crate::bus::Bus;
use crate::host::{Abort, Dma};

/// PCI vendor and device.
pub const ID: (u16, u16) = (0x1b36, 0x0005);

const TRIGGER: u64 = 0x00;
const IOVA_LOW: u64 = 0x04;
const IOVA_HIGH: u64 = 0x08;
const LENGTH: u64 = 0x0c;
const RESULT: u64 = 0x10;
const ARM: u64 = 0x14;
const ATTRIBUTES: u64 = 0x18;
const EXPECTED_LOW: u64 = 0x1c;
const EXPECTED_HIGH: u64 = 0x20;

/// Non-secure physical address space, and that field valid.
const NON_SECURE: u32 = 0xa;

/// Writes [`DMA_VALUE`](crate::host::DMA_VALUE) at an I/O address, and looks for it at the physical address `expected`.
///
/// # Errors
/// [`Abort`] if the registers at `bar` are out of reach.
pub fn write(bus: &impl Bus, bar: u64, address: u64, expected: u64) -> Result<Dma, Abort> {
    for (register, value) in [
        (IOVA_LOW, address as u32),
        (IOVA_HIGH, (address >> 32) as u32),
        (LENGTH, 4),
        (ATTRIBUTES, NON_SECURE),
        (EXPECTED_LOW, expected as u32),
        (EXPECTED_HIGH, (expected >> 32) as u32),
        (ARM, 1),
    ] {
        bus.write_u32(bar + register, value)?;
    }
    bus.read_u32(bar + TRIGGER)?;
    Ok(match bus.read_u32(bar + RESULT)? {
        0 => Dma::Landed,
        0xdead_0002 => Dma::Faulted,
        0xdead_0004 => Dma::Elsewhere,
        code => Dma::Unknown(code),
    })
}
