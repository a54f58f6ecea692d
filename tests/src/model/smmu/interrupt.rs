//! Interrupts of the event queue and of GERROR (IHI 0070, 3.18): an MSI where there is an address for one, else the wired one.

use super::{Bus, Smmu};

/// One of the sources, by its bit in IRQ_CTRL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// GERROR_IRQEN.
    Error = 0,
    /// EVENTQ_IRQEN.
    Event = 2,
}

/// Where the interrupt of a source goes: GERROR_IRQ_CFG0 and 1, and their like. UNKNOWN after reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msi {
    /// ADDR \[51:2]; 0: the wired interrupt.
    pub address: u64,
    /// DATA.
    pub data: u32,
}

/// ADDR of an IRQ_CFG0 register.
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_fffc;

impl Smmu {
    /// Interrupts, if that is enabled. An MSI is a store that nobody translates.
    pub(crate) fn interrupt(&mut self, bus: &mut Bus, source: Source) {
        let (enabled, msi) = match source {
            Source::Error => (self.registers.irq_ctrlack & 1 != 0, self.registers.gerror_msi),
            Source::Event => (self.registers.irq_ctrlack & 4 != 0, self.registers.eventq_msi),
        };
        let address = msi.address & ADDRESS;
        if !enabled {
            return;
        }
        if !self.config.msi() || address == 0 {
            self.wired.push(source);
            return;
        }
        self.violation(bus, format_args!("{source:?}: MSI of {:#x} to {address:#x}", msi.data));
        let (word, shift) = (address & !7, address % 8 * 8);
        let kept = bus.memory.read(word).unwrap_or(0) & !(0xffff_ffff << shift);
        bus.memory.write(word, kept | u64::from(msi.data) << shift);
    }

    /// Where the MSI of the registers at an offset goes: \[IRQ_CFG0, IRQ_CFG1], and IRQEN's bit in IRQ_CTRL.
    pub(crate) fn msi_at(&mut self, offset: u64) -> Option<(&mut Msi, u32)> {
        let r = &mut self.registers;
        match offset {
            0x68 | 0x70 => Some((&mut r.gerror_msi, 1)),
            0xb0 | 0xb8 => Some((&mut r.eventq_msi, 4)),
            0xd0 | 0xd8 => Some((&mut r.priq_msi, 2)),
            _ => None,
        }
    }
}
