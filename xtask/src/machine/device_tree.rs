//! From a shape to the device tree that the hypervisor boots with.
//!
//! Unlike QEMU's own tree, it describes every SMMU, and one PCIe host for each root bus (PCI Bus Binding,
//! `pci-host-ecam-generic`), each in a PCI domain of its own.

use anyhow::{Context, Result};
use vm_fdt::FdtWriter;

use super::map::{self, Range};
use super::{RootBus, Shape};

/// `GIC_SPI` and `GIC_PPI` of the `arm,gic-v3` binding.
const SPI: u32 = 0;
const PPI: u32 = 1;
/// Interrupt types of that binding.
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// Phandles. CPUs and SMMUs have one each, from the last two on.
const GIC: u32 = 1;
const ITS: u32 = 2;
const CLOCK: u32 = 3;
const SMMU: u32 = 0x10;

/// What a multiboot module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// The host's kernel, an arm64 `Image`.
    Kernel,
    /// The host's initial ramdisk.
    Ramdisk,
}

/// A file that the boot loader put into memory for the hypervisor.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// What it is.
    pub kind: ModuleKind,
    /// Where it is.
    pub range: Range,
}

/// What the boot loader says in `/chosen`.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// Modules in memory.
    pub modules: Vec<Module>,
    /// The host's command line; empty for none.
    pub bootargs: String,
}

/// The flattened device tree of the machine.
///
/// # Errors
///
/// `bootargs` with a NUL character in it.
pub fn build(shape: &Shape, boot: &Boot) -> Result<Vec<u8>> {
    let mut tree = Tree { fdt: FdtWriter::new()? };
    tree.node("", |tree| {
        tree.cells("interrupt-parent", &[GIC])?;
        tree.flag("dma-coherent")?;
        tree.strings("model", &["linux,dummy-virt"])?;
        tree.cells("#address-cells", &[2])?;
        tree.cells("#size-cells", &[2])?;
        tree.strings("compatible", &["linux,dummy-virt"])?;
        chosen(tree, boot)?;
        tree.node("aliases", |tree| tree.strings("serial0", &[&uart_path()]))?;
        memory(tree, shape)?;
        cpus(tree, shape)?;
        interrupt_controller(tree)?;
        board(tree)?;
        for root in shape.root_buses() {
            smmu(tree, &root)?;
            pcie(tree, &root)?;
        }
        Ok(())
    })?;
    tree.fdt.finish().context("the device tree could not be written")
}

fn uart_path() -> String {
    format!("/pl011@{:x}", map::UART.start)
}

fn chosen(tree: &mut Tree, boot: &Boot) -> Result<()> {
    tree.node("chosen", |tree| {
        tree.cells("#address-cells", &[2])?;
        tree.cells("#size-cells", &[2])?;
        tree.strings("stdout-path", &[&uart_path()])?;
        if !boot.bootargs.is_empty() {
            tree.strings("bootargs", &[&boot.bootargs])
                .context("--bootargs cannot be written to the device tree")?;
        }
        for module in &boot.modules {
            let kind = match module.kind {
                ModuleKind::Kernel => "multiboot,kernel",
                ModuleKind::Ramdisk => "multiboot,ramdisk",
            };
            tree.node(&format!("module@{:x}", module.range.start), |tree| {
                tree.strings("compatible", &[kind, "multiboot,module"])?;
                tree.ranges("reg", &[module.range])
            })?;
        }
        Ok(())
    })
}

fn memory(tree: &mut Tree, shape: &Shape) -> Result<()> {
    tree.node(&format!("memory@{:x}", map::RAM_START), |tree| {
        tree.strings("device_type", &["memory"])?;
        tree.ranges("reg", &[Range::new(map::RAM_START, shape.memory().bytes())])
    })
}

/// CPUs, their PSCI, timer and performance monitors.
fn cpus(tree: &mut Tree, shape: &Shape) -> Result<()> {
    tree.node("psci", |tree| {
        tree.strings("compatible", &["arm,psci-1.0", "arm,psci-0.2"])?;
        // QEMU's firmware is called from the highest Exception level below it.
        tree.strings("method", &["smc"])
    })?;
    tree.node("cpus", |tree| {
        tree.cells("#address-cells", &[1])?;
        tree.cells("#size-cells", &[0])?;
        for cpu in 0..u32::from(shape.cpus()) {
            let affinity = mpidr(cpu);
            tree.node(&format!("cpu@{affinity:x}"), |tree| {
                tree.strings("device_type", &["cpu"])?;
                tree.strings("compatible", &["arm,armv8"])?;
                tree.cells("reg", &[affinity])?;
                tree.strings("enable-method", &["psci"])
            })?;
        }
        Ok(())
    })?;
    tree.node("timer", |tree| {
        tree.strings("compatible", &["arm,armv8-timer"])?;
        tree.flag("always-on")?;
        // The last is the EL2 virtual timer's, which came with FEAT_VHE.
        let all = [13, 14, 11, 10, 12];
        let ppis = if shape.cpu().has_vhe() { &all[..] } else { &all[..4] };
        let cells: Vec<u32> = ppis.iter().flat_map(|ppi| [PPI, *ppi, LEVEL_HIGH]).collect();
        tree.cells("interrupts", &cells)
    })?;
    tree.node("pmu", |tree| {
        tree.strings("compatible", &["arm,armv8-pmuv3"])?;
        tree.cells("interrupts", &[PPI, 7, LEVEL_HIGH])
    })
}

/// MPIDR_EL1 affinity that QEMU gives to a CPU with a GICv3: clusters of 16.
const fn mpidr(cpu: u32) -> u32 {
    ((cpu / 16) << 8) | (cpu % 16)
}

fn interrupt_controller(tree: &mut Tree) -> Result<()> {
    tree.node(&format!("intc@{:x}", map::GICD.start), |tree| {
        tree.fdt.property_phandle(GIC)?;
        tree.strings("compatible", &["arm,gic-v3"])?;
        tree.flag("interrupt-controller")?;
        tree.cells("#interrupt-cells", &[3])?;
        tree.cells("#redistributor-regions", &[1])?;
        tree.cells("#address-cells", &[2])?;
        tree.cells("#size-cells", &[2])?;
        tree.flag("ranges")?;
        tree.ranges("reg", &[map::GICD, map::GICR])?;
        tree.cells("interrupts", &[PPI, 9, LEVEL_HIGH])?;
        tree.node(&format!("its@{:x}", map::ITS.start), |tree| {
            tree.fdt.property_phandle(ITS)?;
            tree.strings("compatible", &["arm,gic-v3-its"])?;
            tree.flag("msi-controller")?;
            tree.cells("#msi-cells", &[1])?;
            tree.ranges("reg", &[map::ITS])
        })
    })
}

/// The devices that are not PCI functions.
fn board(tree: &mut Tree) -> Result<()> {
    tree.node("apb-pclk", |tree| {
        tree.fdt.property_phandle(CLOCK)?;
        tree.strings("compatible", &["fixed-clock"])?;
        tree.cells("#clock-cells", &[0])?;
        tree.cells("clock-frequency", &[24_000_000])?;
        tree.strings("clock-output-names", &["clk24mhz"])
    })?;
    let primecell = |tree: &mut Tree, name: &str, registers: Range, spi: u32, clocks: &[&str]| {
        tree.node(&format!("{name}@{:x}", registers.start), |tree| {
            tree.strings("compatible", &[&format!("arm,{name}"), "arm,primecell"])?;
            tree.ranges("reg", &[registers])?;
            tree.cells("interrupts", &[SPI, spi, LEVEL_HIGH])?;
            tree.cells("clocks", &vec![CLOCK; clocks.len()])?;
            tree.strings("clock-names", clocks)?;
            if name == "pl061" {
                tree.flag("gpio-controller")?;
                tree.cells("#gpio-cells", &[2])?;
            }
            Ok(())
        })
    };
    primecell(tree, "pl011", map::UART, map::UART_SPI, &["uartclk", "apb_pclk"])?;
    primecell(tree, "pl031", map::RTC, map::RTC_SPI, &["apb_pclk"])?;
    primecell(tree, "pl061", map::GPIO, map::GPIO_SPI, &["apb_pclk"])?;
    tree.node(&format!("flash@{:x}", map::FLASH[0].start), |tree| {
        tree.strings("compatible", &["cfi-flash"])?;
        tree.ranges("reg", &map::FLASH)?;
        tree.cells("bank-width", &[4])
    })?;
    tree.node(&format!("fw-cfg@{:x}", map::FW_CFG.start), |tree| {
        tree.strings("compatible", &["qemu,fw-cfg-mmio"])?;
        tree.ranges("reg", &[map::FW_CFG])?;
        tree.flag("dma-coherent")
    })?;
    for index in 0..map::VIRTIO_MMIO_COUNT {
        let size = map::VIRTIO_MMIO.size;
        let registers = Range::new(map::VIRTIO_MMIO.start + u64::from(index) * size, size);
        tree.node(&format!("virtio_mmio@{:x}", registers.start), |tree| {
            tree.strings("compatible", &["virtio,mmio"])?;
            tree.ranges("reg", &[registers])?;
            tree.cells("interrupts", &[SPI, map::VIRTIO_MMIO_SPI + index, EDGE_RISING])?;
            tree.flag("dma-coherent")
        })?;
    }
    Ok(())
}

fn smmu_phandle(root: &RootBus) -> u32 {
    SMMU + u32::from(root.index)
}

fn smmu(tree: &mut Tree, root: &RootBus) -> Result<()> {
    tree.node(&format!("smmuv3@{:x}", root.smmu().start), |tree| {
        tree.fdt.property_phandle(smmu_phandle(root))?;
        tree.strings("compatible", &["arm,smmu-v3"])?;
        tree.ranges("reg", &[root.smmu()])?;
        let interrupts = [0, 1, 2, 3].map(|queue| [SPI, root.smmu_spi() + queue, EDGE_RISING]);
        tree.cells("interrupts", &interrupts.concat())?;
        tree.strings("interrupt-names", &["eventq", "priq", "cmdq-sync", "gerror"])?;
        tree.cells("#iommu-cells", &[1])?;
        tree.flag("dma-coherent")
    })
}

fn pcie(tree: &mut Tree, root: &RootBus) -> Result<()> {
    let first_rid = u32::from(root.first_bus()) << 8;
    let rids = u32::from(root.last_bus() - root.first_bus() + 1) << 8;
    let windows = &root.windows;
    tree.node(&format!("pcie@{:x}", root.ecam().start), |tree| {
        tree.strings("compatible", &["pci-host-ecam-generic"])?;
        tree.strings("device_type", &["pci"])?;
        tree.cells("#address-cells", &[3])?;
        tree.cells("#size-cells", &[2])?;
        tree.cells("#interrupt-cells", &[1])?;
        tree.cells("linux,pci-domain", &[u32::from(root.index)])?;
        tree.cells("bus-range", &[u32::from(root.first_bus()), u32::from(root.last_bus())])?;
        tree.ranges("reg", &[root.ecam()])?;
        let window = |space: u32, pci: u64, cpu: Range| {
            [vec![space], wide(pci), wide(cpu.start), wide(cpu.size)].concat()
        };
        let ranges = [
            window(0x0100_0000, windows.io.start - map::PCIE_IO.start, windows.io),
            window(0x0200_0000, windows.memory_32.start, windows.memory_32),
            window(0x0300_0000, windows.memory_64.start, windows.memory_64),
        ];
        tree.cells("ranges", &ranges.concat())?;
        tree.cells("iommu-map", &[first_rid, smmu_phandle(root), first_rid, rids])?;
        tree.cells("msi-map", &[first_rid, ITS, first_rid, rids])?;
        tree.cells("interrupt-map-mask", &[0x1800, 0, 0, 7])?;
        tree.cells("interrupt-map", &interrupt_map())?;
        tree.flag("dma-coherent")
    })
}

/// INTA to INTD of device 0 to 3, rotated by the device number. QEMU undoes its own rotation by the bridge's
/// device number, so that this is the map of every root bus.
fn interrupt_map() -> Vec<u32> {
    let mut map = Vec::new();
    for device in 0..4 {
        for pin in 0..4 {
            let spi = map::PCIE_SPI + (device + pin) % 4;
            map.extend([device << 11, 0, 0, pin + 1, GIC, 0, 0, SPI, spi, LEVEL_HIGH]);
        }
    }
    map
}

/// Two cells, the high one first.
fn wide(value: u64) -> Vec<u32> {
    vec![(value >> 32) as u32, value as u32]
}

/// The writer, with the property types that this tree uses.
struct Tree {
    fdt: FdtWriter,
}

impl Tree {
    fn node(&mut self, name: &str, body: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let node = self.fdt.begin_node(name)?;
        body(self)?;
        Ok(self.fdt.end_node(node)?)
    }

    fn flag(&mut self, name: &str) -> Result<()> {
        Ok(self.fdt.property_null(name)?)
    }

    fn cells(&mut self, name: &str, cells: &[u32]) -> Result<()> {
        Ok(self.fdt.property_array_u32(name, cells)?)
    }

    fn strings(&mut self, name: &str, strings: &[&str]) -> Result<()> {
        Ok(self.fdt.property_string_list(name, strings.iter().map(|&s| s.to_owned()).collect())?)
    }

    fn ranges(&mut self, name: &str, ranges: &[Range]) -> Result<()> {
        let cells: Vec<u32> =
            ranges.iter().flat_map(|range| [wide(range.start), wide(range.size)].concat()).collect();
        self.cells(name, &cells)
    }
}

#[cfg(test)]
mod tests;
