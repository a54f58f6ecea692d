//! Base Address Registers and the Expansion ROM (7.5.1.2).

use super::PciError;
use super::config::{COMMAND, COMMAND_DECODE, Config};
use crate::devicetree::PcieNode;
use crate::list::List;
use crate::platform::Platform;
use smmuv3::address::{PhysAddr, PhysRange};

const BAR0: u16 = 0x10;
/// Expansion ROM Base Address of a type 0 header, which has six BARs.
const ROM: u16 = 0x30;
/// That of a type 1 header, which has two.
const BRIDGE_ROM: u16 = 0x38;
/// Expansion ROM Enable.
const ROM_ENABLE: u32 = 1;
const PAGE_BYTES: u64 = 0x1000;

/// What the CPU can reach of a function through its BARs: up to six and the ROM.
pub type Ranges = List<PhysRange, 7>;

/// Value of a register, and which of its bits can be written.
#[derive(Clone, Copy, Default)]
struct Register {
    value: u32,
    mask: u32,
}

/// The BARs and the ROM of a function, sized.
#[derive(Clone, Copy)]
struct Registers<const BARS: usize> {
    bars: [Register; BARS],
    rom: Register,
}

/// How large the BARs and the ROM of a bridge are.
#[derive(Clone, Copy)]
pub struct BridgeBars(Registers<2>);

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
    Registers::<6>::size(config, rid, ROM)?.ranges(node)
}

impl BridgeBars {
    /// Sizes those of a bridge. It decodes nothing meanwhile, and what is behind it gets no request: to be done before the host runs.
    pub fn size<P: Platform>(config: &mut Config<'_, P>, rid: u16) -> Result<Self, PciError> {
        if config.has_bridge_bars(rid)? {
            Registers::size(config, rid, BRIDGE_ROM).map(Self)
        } else {
            Ok(Self(Registers::NONE))
        }
    }

    /// What the CPU can reach of this bridge through them, now that its configuration page is held.
    pub fn ranges<P: Platform>(
        &self,
        config: &mut Config<'_, P>,
        node: &PcieNode,
        rid: u16,
    ) -> Result<Ranges, PciError> {
        let Self(mut now) = *self;
        now.read_values(config, rid)?;
        now.ranges(node)
    }

    /// The most that the CPU can reach of a bridge that is not sized and whose configuration page is held: a BAR is aligned to its size,
    /// so that is at most the lowest bit of the address that is set. One at 0 has no address.
    pub fn most<P: Platform>(
        config: &mut Config<'_, P>,
        node: &PcieNode,
        rid: u16,
    ) -> Result<Ranges, PciError> {
        let mut most = Registers::NONE;
        if config.has_bridge_bars(rid)? {
            most.read_values(config, rid)?;
        }
        for register in most.bars.iter_mut().chain([&mut most.rom]) {
            register.mask = register.value;
        }
        most.ranges(node)
    }
}

impl Registers<2> {
    const NONE: Self =
        Self { bars: [Register { value: 0, mask: 0 }; 2], rom: Register { value: 0, mask: 0 } };

    /// Reads the registers of a bridge again. What it does not decode is as if it were not there.
    fn read_values<P: Platform>(&mut self, config: &mut Config<'_, P>, rid: u16) -> Result<(), PciError> {
        if config.read(rid, COMMAND)? & COMMAND_DECODE == 0 {
            *self = Self::NONE;
            return Ok(());
        }
        for (at, bar) in (BAR0..).step_by(4).zip(&mut self.bars) {
            bar.value = config.read(rid, at)?;
        }
        self.rom.value = config.read(rid, BRIDGE_ROM)?;
        if self.rom.value & ROM_ENABLE == 0 {
            self.rom = Register::default();
        }
        Ok(())
    }
}

impl<const BARS: usize> Registers<BARS> {
    /// Decoding is off meanwhile; on return each register is as before.
    fn size<P: Platform>(config: &mut Config<'_, P>, rid: u16, rom: u16) -> Result<Self, PciError> {
        let command = config.read(rid, COMMAND)?;
        config.write_command(rid, command & !COMMAND_DECODE);
        let sized = Self::size_all(config, rid, rom);
        config.write_command(rid, command);
        sized
    }

    fn size_all<P: Platform>(config: &mut Config<'_, P>, rid: u16, rom: u16) -> Result<Self, PciError> {
        let mut bars = [Register::default(); BARS];
        for (at, bar) in (BAR0..).step_by(4).zip(&mut bars) {
            *bar = size_one(config, rid, at, u32::MAX)?;
        }
        // The ROM stays off while it is sized.
        Ok(Self { bars, rom: size_one(config, rid, rom, !ROM_ENABLE)? })
    }

    /// The pages that the CPU can reach through them.
    fn ranges(&self, node: &PcieNode) -> Result<Ranges, PciError> {
        let mut ranges = Ranges::new();
        let mut bars = self.bars.iter();
        while let Some(low) = bars.next() {
            let io = low.value & 1 != 0;
            let flags = if io { 0b11 } else { 0b1111 };
            let high = if low.value & 0b111 == 0b100 { bars.next() } else { None };
            let high = high.copied().unwrap_or_default();
            let wide = |low: u32, high: u32| u64::from(low & !flags) | u64::from(high) << 32;
            add(&mut ranges, node, io, wide(low.value, high.value), wide(low.mask, high.mask))?;
        }
        // The bits below 11 are none of the ROM's address.
        add(&mut ranges, node, false, u64::from(self.rom.value & !0x7ff), u64::from(self.rom.mask & !0x7ff))?;
        Ok(ranges)
    }
}

fn size_one<P: Platform>(
    config: &mut Config<'_, P>,
    rid: u16,
    at: u16,
    pattern: u32,
) -> Result<Register, PciError> {
    let value = config.read(rid, at)?;
    config.write(rid, at, pattern);
    let mask = config.read(rid, at);
    config.write(rid, at, value);
    Ok(Register { value, mask: mask? })
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
