//! Base Address Registers and the Expansion ROM (7.5.1.2).

use super::PciError;
use super::config::{COMMAND, COMMAND_DECODE, Config};
use crate::devicetree::PcieNode;
use crate::list::List;
use crate::platform::Platform;
use smmuv3::address::{PhysAddr, PhysRange};

const BAR0: u16 = 0x10;
/// After the last BAR of a type 0 header.
const BARS_END: u16 = 0x28;
const EXPANSION_ROM: u16 = 0x30;
const PAGE_BYTES: u64 = 0x1000;

/// What the CPU can reach of a function through its BARs: up to six and the ROM.
pub type Ranges = List<PhysRange, 7>;

/// Reads where the function's BARs and ROM are, as pages in the CPU's address space. The function's
/// configuration page is held, so nobody else touches these registers. BARs that lie in no window of the root
/// bus are left out: no CPU reaches them.
///
/// Decoding is off while the BARs hold the all-ones pattern; on return each register is as before.
pub fn read_ranges<P: Platform>(
    config: &mut Config<'_, P>,
    node: &PcieNode,
    rid: u16,
) -> Result<Ranges, PciError> {
    let command = config.read(rid, COMMAND)?;
    config.write_command(rid, command & !COMMAND_DECODE);
    let ranges = size_all(config, node, rid);
    config.write_command(rid, command);
    ranges
}

fn size_all<P: Platform>(config: &mut Config<'_, P>, node: &PcieNode, rid: u16) -> Result<Ranges, PciError> {
    let mut ranges = Ranges::new();
    let mut at = BAR0;
    while at < BARS_END {
        let (low, low_mask) = size_one(config, rid, at, u32::MAX)?;
        let (io, wide) = (low & 1 != 0, low & 0b111 == 0b100 && at + 4 < BARS_END);
        let flags = if io { 0b11 } else { 0b1111 };
        let (mut value, mut mask) = (u64::from(low & !flags), u64::from(low_mask & !flags));
        at += 4;
        if wide {
            let (high, high_mask) = size_one(config, rid, at, u32::MAX)?;
            value |= u64::from(high) << 32;
            mask |= u64::from(high_mask) << 32;
            at += 4;
        }
        add(&mut ranges, node, io, value, mask)?;
    }
    // Bit 0 enables the ROM, the bits below 11 are none of its address. It stays off while it is sized.
    let (value, mask) = size_one(config, rid, EXPANSION_ROM, !1)?;
    add(&mut ranges, node, false, u64::from(value & !0x7ff), u64::from(mask & !0x7ff))?;
    Ok(ranges)
}

/// Value of a register, and which of its bits can be written.
fn size_one<P: Platform>(
    config: &mut Config<'_, P>,
    rid: u16,
    at: u16,
    pattern: u32,
) -> Result<(u32, u32), PciError> {
    let value = config.read(rid, at)?;
    config.write(rid, at, pattern);
    let mask = config.read(rid, at);
    config.write(rid, at, value);
    Ok((value, mask?))
}

/// Adds the part of a BAR that lies in windows of the root bus. Value and mask come from a device and can be
/// anything.
fn add(ranges: &mut Ranges, node: &PcieNode, io: bool, value: u64, mask: u64) -> Result<(), PciError> {
    // The lowest bit that can be written is the size.
    let size_bytes = mask & mask.wrapping_neg();
    if size_bytes == 0 {
        return Ok(());
    }
    let Some(bar) = PhysRange::new(PhysAddr(value & !(size_bytes - 1)), size_bytes) else { return Ok(()) };
    for window in node.windows.iter().filter(|window| window.io == io) {
        let Some(range) = in_cpu_space(bar, window.bus_address, window.cpu) else { continue };
        // Two windows that one BAR reaches into are a device's lie or a tree's; there is room for as many as
        // there are BARs.
        ranges.push(range).map_err(|_| PciError::TooMany)?;
    }
    Ok(())
}

/// The pages with that part of a range of PCI addresses that a window shows to the CPU.
fn in_cpu_space(bar: PhysRange, bus_address: u64, cpu: PhysRange) -> Option<PhysRange> {
    let window = PhysRange::new(PhysAddr(bus_address), cpu.size_bytes())?;
    let first = bar.start().max(window.start()).0;
    let last = bar.last().min(window.last()).0;
    // Negative when they do not meet.
    last.checked_sub(first)?;
    let to_cpu = |address: u64| cpu.start().0.checked_add(address.checked_sub(bus_address)?);
    let start = to_cpu(first)? & !(PAGE_BYTES - 1);
    let last = to_cpu(last)? | (PAGE_BYTES - 1);
    PhysRange::inclusive(PhysAddr(start), PhysAddr(last))
}
