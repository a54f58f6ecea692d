//! The fixed addresses of QEMU's `virt` machine, and how the PCIe windows are shared out between root buses.

/// A physical address range in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Address of the first byte.
    pub start: u64,
    /// Size in bytes.
    pub size: u64,
}

impl Range {
    /// The range of `size` bytes at `start`.
    pub const fn new(start: u64, size: u64) -> Self {
        Self { start, size }
    }

    /// Address after the last byte.
    pub const fn end(&self) -> u64 {
        self.start + self.size
    }
}

/// NOR flash, two banks.
pub const FLASH: [Range; 2] = [Range::new(0, 0x0400_0000), Range::new(0x0400_0000, 0x0400_0000)];
/// GICv3 distributor.
pub const GICD: Range = Range::new(0x0800_0000, 0x1_0000);
/// GICv3 redistributors.
pub const GICR: Range = Range::new(0x080a_0000, 0xf6_0000);
/// GICv3 ITS: control frame, then the frame with GITS_TRANSLATER.
pub const ITS: Range = Range::new(0x0808_0000, 0x2_0000);
/// PL011 UART.
pub const UART: Range = Range::new(0x0900_0000, 0x1000);
/// SPI of the UART.
pub const UART_SPI: u32 = 1;
/// PL031 real-time clock.
pub const RTC: Range = Range::new(0x0901_0000, 0x1000);
/// SPI of the clock.
pub const RTC_SPI: u32 = 2;
/// QEMU's firmware configuration device: it does DMA and has no SMMU in front of it.
pub const FW_CFG: Range = Range::new(0x0902_0000, 0x18);
/// PL061 GPIO controller.
pub const GPIO: Range = Range::new(0x0903_0000, 0x1000);
/// SPI of the GPIO controller.
pub const GPIO_SPI: u32 = 7;
/// First virtio-mmio transport; they do DMA and have no SMMU in front of them.
pub const VIRTIO_MMIO: Range = Range::new(0x0a00_0000, 0x200);
/// Number of virtio-mmio transports, one after the other.
pub const VIRTIO_MMIO_COUNT: u32 = 32;
/// SPI of the first virtio-mmio transport.
pub const VIRTIO_MMIO_SPI: u32 = 16;
/// Start of RAM.
pub const RAM_START: u64 = 0x4000_0000;
/// PCIe 32-bit memory window.
pub const PCIE_32: Range = Range::new(0x1000_0000, 0x2eff_0000);
/// PCIe I/O window; PCI I/O address 0 is its first byte.
pub const PCIE_IO: Range = Range::new(0x3eff_0000, 0x1_0000);
/// PCIe configuration space, 256 buses.
pub const ECAM: Range = Range::new(0x40_1000_0000, 0x1000_0000);
/// log2 of the bytes of configuration space for each bus.
pub const ECAM_BUS_SHIFT: u32 = 20;
/// PCIe 64-bit memory window.
pub const PCIE_64: Range = Range::new(0x80_0000_0000, 0x80_0000_0000);
/// SPI of PCIe INTA of device 0; the next three follow.
pub const PCIE_SPI: u32 = 3;
/// First SPI of the first SMMU.
pub const SMMU_SPI: u32 = 0x70;
/// SMMUs are on QEMU's platform bus, one after the other.
const SMMU: Range = Range::new(0x0c00_0000, 0x2_0000);

/// Registers of an SMMU.
pub const fn smmu(index: u8) -> Range {
    Range::new(SMMU.start + index as u64 * SMMU.size, SMMU.size)
}

/// The address windows of one root bus.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Part of [`PCIE_IO`].
    pub io: Range,
    /// Part of [`PCIE_32`].
    pub memory_32: Range,
    /// Part of [`PCIE_64`].
    pub memory_64: Range,
}

/// The share of root bus `index` when there are `count`: a power of two, so that BARs and bridge windows align.
pub fn windows(index: u8, count: u8) -> Windows {
    let share = |whole: Range| {
        let size = 1 << (whole.size / u64::from(count)).ilog2();
        Range::new(whole.start + u64::from(index) * size, size)
    };
    Windows { io: share(PCIE_IO), memory_32: share(PCIE_32), memory_64: share(PCIE_64) }
}
