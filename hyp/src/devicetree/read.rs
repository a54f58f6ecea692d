//! Reads the machine out of the device tree.

use super::cells::{Level, entries, number, u32_property};
use super::tokens::{Node, Token, Tokens, cut_off};
use super::{
    DeviceTreeError, IommuMap, Machine, PcieNode, PcieWindow, Problem, SmmuInterrupts, SmmuNode,
    TrustedStreamsNode, compatible,
};
use crate::list::{Full, List};
use dtoolkit::fdt::Fdt;
use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::features::Part;

/// How deep nodes may be nested: the walk is recursive.
const MAX_DEPTH: usize = 12;
/// Where GITS_TRANSLATER's page is in an ITS (IHI 0069, 12.18).
const ITS_TRANSLATION_PAGE: u64 = 0x1_0000;

/// Reads the machine out of a device tree; `dtb` may be longer than the tree.
///
/// # Errors
/// [`DeviceTreeError`] names the node and the property that are missing or wrong. Memory, the GIC's
/// Distributor and a Redistributor region, a CPU and PSCI's conduit must be there; no SMMU, UART or payload
/// is not an error here.
pub fn read_machine(dtb: &[u8]) -> Result<Machine, DeviceTreeError> {
    let fdt = parse(dtb)?;
    let mut tokens = Tokens::new(fdt.data())?;
    let root = tokens.root()?;
    let mut reader = Reader {
        machine: Machine {
            memory: List::new(),
            reserved: List::new(),
            uart: None,
            gicd: PhysRange::inclusive(PhysAddr(0), PhysAddr(0)).ok_or(missing("/", "arm,gic-v3"))?,
            redistributors: List::new(),
            its: List::new(),
            doorbells: List::new(),
            smmus: List::new(),
            ats_trusted: List::new(),
            fw_cfg: List::new(),
            virtio_mmio: List::new(),
            pcie: List::new(),
            cpus: List::new(),
            kernel: None,
            ramdisk: None,
            psci_smc: false,
        },
        stdout: stdout_node_name(root),
        uart_is_stdout: false,
        psci: false,
    };
    for reservation in fdt.memory_reservations() {
        let (start, size_bytes) = (reservation.address(), reservation.size());
        if size_bytes == 0 {
            continue;
        }
        let error = |problem| DeviceTreeError::new("/", "/memreserve/", problem);
        let range = PhysRange::new(PhysAddr(start), size_bytes).ok_or(error(Problem::Value(start)))?;
        reader.machine.reserved.push(range).map_err(|full| error(too_many(full)))?;
    }
    let level = Level::new(root, None)?;
    // The root node begins, and what is in it follows.
    tokens.next()?;
    reader.read_children(&mut tokens, root, &level)?;
    reader.finish()
}

/// The interrupts of an SMMU by their names; an unknown name, or an interrupt that is no SPI of three cells or more, is nobody's.
fn smmu_interrupts(node: Node<'_>) -> SmmuInterrupts {
    /// SPIs have INTIDs from here on (IHI 0069, 2.2), and the first cell 0.
    const FIRST_SPI: u32 = 32;
    let names = node.strings("interrupt-names");
    let specifiers = node.find("interrupts").unwrap_or_default();
    let count = node.strings("interrupt-names").count().max(1);
    let intid = |specifier: &[u8]| {
        let mut cells = specifier.chunks_exact(4).map(number);
        let is_spi = cells.next() == Some(0);
        let spi = u32::try_from(cells.next()?).ok().filter(|spi| is_spi && *spi < 988)?;
        Some(FIRST_SPI + spi)
    };
    let mut found = SmmuInterrupts::default();
    for (name, specifier) in names.zip(specifiers.chunks_exact((specifiers.len() / count).max(4))) {
        match name {
            "eventq" => found.events = intid(specifier),
            "cmdq-sync" => found.sync = intid(specifier),
            "gerror" => found.errors = intid(specifier),
            "combined" => {
                let all = intid(specifier);
                found = SmmuInterrupts { events: all, sync: all, errors: all };
            }
            _ => {}
        }
    }
    found
}

/// The tree at the start of `dtb`.
pub(super) fn parse(dtb: &[u8]) -> Result<Fdt<'_>, DeviceTreeError> {
    let tree = super::total_size_bytes(dtb).and_then(|size| dtb.get(..size));
    Ok(Fdt::new(tree.ok_or(DeviceTreeError::new("/", "", Problem::NoTree))?)?)
}

fn too_many(full: Full) -> Problem {
    Problem::TooMany { limit: full.capacity }
}

fn missing(node: &str, property: &'static str) -> DeviceTreeError {
    DeviceTreeError::new(node, property, Problem::Missing)
}

/// The last part of the path in `/chosen`, `stdout-path` (3.6), which may begin with an alias (3.3).
fn stdout_node_name(root: Node<'_>) -> Option<&str> {
    let path = root.child("chosen")?.find_string("stdout-path")?.split(':').next()?;
    let path = if path.starts_with('/') { path } else { root.child("aliases")?.find_string(path)? };
    path.rsplit('/').next()
}

/// What to do with the children of a node that was read.
enum Below {
    Read,
    Skip,
}

struct Reader<'a> {
    machine: Machine,
    stdout: Option<&'a str>,
    uart_is_stdout: bool,
    psci: bool,
}

impl<'a> Reader<'a> {
    fn read_root_child(&mut self, root: &Level<'a, '_>, node: Node<'a>) -> Result<(), DeviceTreeError> {
        match node.base_name() {
            "cpus" => self.read_cpus(root, node),
            "chosen" => {
                self.read_trusted(node)?;
                self.read_modules(root, node)
            }
            "reserved-memory" => self.read_reserved(root, node),
            "memory" if node.find_string("device_type") == Some("memory") && node.is_okay() => {
                for range in root.reg(node)? {
                    if let Some(range) = range? {
                        add_joined(&mut self.machine.memory, node, range)?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn read_cpus(&mut self, root: &Level<'a, '_>, node: Node<'a>) -> Result<(), DeviceTreeError> {
        let level = Level::new(node, Some(root))?;
        for cpu in node.children() {
            if cpu.find_string("device_type") != Some("cpu") {
                continue;
            }
            // A CPU that is "disabled" is one that is not started yet (3.8.1); a failed one stays off.
            if cpu.find_string("status").is_some_and(|status| status.starts_with("fail")) {
                continue;
            }
            let [mpidr] =
                entries(cpu, "reg", [level.address_cells])?.next().ok_or(missing(cpu.name, "reg"))?;
            let pushed = self.machine.cpus.push(number(mpidr));
            pushed.map_err(|full| DeviceTreeError::new(cpu.name, "", too_many(full)))?;
        }
        Ok(())
    }

    fn read_trusted(&mut self, chosen: Node<'a>) -> Result<(), DeviceTreeError> {
        const PROPERTY: &str = "ats-trusted-streams";
        if chosen.find(PROPERTY).is_none() {
            return Ok(());
        }
        for [phandle, first, count] in entries(chosen, PROPERTY, [1, 1, 1])? {
            let (phandle, first, count) =
                (number(phandle) as u32, number(first) as u32, number(count) as u32);
            if count == 0 || first.checked_add(count - 1).is_none() {
                return Err(DeviceTreeError::new(chosen.name, PROPERTY, Problem::Value(u64::from(count))));
            }
            let pushed = self.machine.ats_trusted.push(TrustedStreamsNode { phandle, first, count });
            pushed.map_err(|full| DeviceTreeError::new(chosen.name, PROPERTY, too_many(full)))?;
        }
        Ok(())
    }

    fn read_modules(&mut self, root: &Level<'a, '_>, chosen: Node<'a>) -> Result<(), DeviceTreeError> {
        // Module addresses are those of the CPU: `/chosen` is no bus and has no `ranges`, but its own cell
        // counts.
        let mut level = Level::new(chosen, None)?;
        if chosen.find("#address-cells").is_none() {
            (level.address_cells, level.size_cells) = (root.address_cells, root.size_cells);
        }
        for module in chosen.children() {
            let slot = if module.compatible().any(|name| name == compatible::KERNEL) {
                &mut self.machine.kernel
            } else if module.compatible().any(|name| name == compatible::RAMDISK) {
                &mut self.machine.ramdisk
            } else {
                continue;
            };
            let range = one_range(&level, module)?;
            if slot.replace(range).is_some() {
                return Err(DeviceTreeError::new(module.name, "", Problem::TooMany { limit: 1 }));
            }
        }
        Ok(())
    }

    fn read_reserved(&mut self, root: &Level<'a, '_>, node: Node<'a>) -> Result<(), DeviceTreeError> {
        let level = Level::new(node, Some(root))?;
        // A child without `reg` is a wish for memory that the operating system grants (3.5.1), and nothing is
        // there yet.
        for child in node.children().filter(|child| child.find("reg").is_some() && child.is_okay()) {
            self.reserve(&level, child)?;
        }
        Ok(())
    }

    /// Keeps all that is in `reg` of a node from everybody.
    fn reserve(&mut self, bus: &Level<'a, '_>, node: Node<'a>) -> Result<(), DeviceTreeError> {
        for range in bus.reg(node)? {
            let Some(range) = range? else { continue };
            let pushed = self.machine.reserved.push(range);
            pushed.map_err(|full| DeviceTreeError::new(node.name, "reg", too_many(full)))?;
        }
        Ok(())
    }

    /// Reads a node that has just begun and is a child of `bus`, and all below it.
    fn read_node(
        &mut self,
        tokens: &mut Tokens<'a>,
        bus: &Level<'a, '_>,
        node: Node<'a>,
    ) -> Result<(), DeviceTreeError> {
        if bus.depth() == 0 {
            self.read_root_child(bus, node)?;
        }
        match node.compatible().find_map(|name| self.read_device(bus, node, name).transpose()) {
            Some(Err(error)) => Err(error),
            // PCI functions have addresses of another kind.
            Some(Ok(Below::Skip)) => tokens.skip_node(),
            Some(Ok(Below::Read)) | None => self.read_children(tokens, node, bus),
        }
    }

    /// Reads what follows the beginning of `node`, up to its end. `level` is that of `node` if it is the
    /// root, else of its parent.
    fn read_children(
        &mut self,
        tokens: &mut Tokens<'a>,
        node: Node<'a>,
        level: &Level<'a, '_>,
    ) -> Result<(), DeviceTreeError> {
        let mut own = None;
        loop {
            let child = match tokens.next()? {
                Token::Property(_) => continue,
                Token::EndNode => return Ok(()),
                Token::End => return Err(cut_off()),
                Token::BeginNode(child) => child,
            };
            if node.name.is_empty() {
                self.read_node(tokens, level, child)?;
                continue;
            }
            let own = match &own {
                Some(own) => own,
                None => own.insert(Level::new(node, Some(level))?),
            };
            if own.depth() > MAX_DEPTH {
                return Err(DeviceTreeError::new(node.name, "", Problem::TooDeep { limit: MAX_DEPTH }));
            }
            self.read_node(tokens, own, child)?;
        }
    }

    /// Reads a device that is compatible with `name`; `None` when that is no device of interest.
    fn read_device(
        &mut self,
        bus: &Level<'a, '_>,
        node: Node<'a>,
        name: &str,
    ) -> Result<Option<Below>, DeviceTreeError> {
        match name {
            compatible::SMMU => self.read_smmu(bus, node)?,
            compatible::PMCG => self.reserve(bus, node)?,
            compatible::GIC => self.read_gic(bus, node)?,
            compatible::ITS => self.read_its(bus, node)?,
            compatible::FW_CFG => add_joined(&mut self.machine.fw_cfg, node, one_range(bus, node)?)?,
            compatible::VIRTIO_MMIO => {
                add_joined(&mut self.machine.virtio_mmio, node, one_range(bus, node)?)?;
            }
            compatible::PCIE => {
                self.read_pcie(bus, node)?;
                return Ok(Some(Below::Skip));
            }
            name if compatible::UARTS.contains(&name) => {
                if node.is_okay() {
                    self.read_uart(bus, node)?;
                }
            }
            name if compatible::PSCI.contains(&name) => {
                self.psci = true;
                self.machine.psci_smc = node.find_string("method") == Some("smc");
            }
            _ => return Ok(None),
        }
        Ok(Some(Below::Read))
    }

    fn read_smmu(&mut self, bus: &Level<'a, '_>, node: Node<'a>) -> Result<(), DeviceTreeError> {
        if !node.is_okay() {
            return Err(DeviceTreeError::new(node.name, "", Problem::Disabled));
        }
        let phandle = u32_property(node, "phandle")?.unwrap_or(0);
        let registers = one_range(bus, node)?;
        // Page 0 and page 1, 64 KiB each (IHI 0070, 6.1).
        if registers.size_bytes() < 0x2_0000 {
            return Err(DeviceTreeError::new(node.name, "reg", Problem::Value(registers.size_bytes())));
        }
        if self.machine.smmus.iter().any(|smmu| smmu.registers.overlaps(registers)) {
            return Err(DeviceTreeError::new(node.name, "reg", Problem::Value(registers.start().0)));
        }
        if self.machine.smmu_by_phandle(phandle).is_some() {
            return Err(DeviceTreeError::new(node.name, "phandle", Problem::Value(u64::from(phandle))));
        }
        let pushed = self.machine.smmus.push(SmmuNode {
            registers,
            phandle,
            part: node.compatible().find_map(Part::named),
            interrupts: smmu_interrupts(node),
        });
        pushed.map_err(|full| DeviceTreeError::new(node.name, "", too_many(full)))
    }

    fn read_gic(&mut self, bus: &Level<'a, '_>, node: Node<'a>) -> Result<(), DeviceTreeError> {
        let error = |property, problem| DeviceTreeError::new(node.name, property, problem);
        if !self.machine.redistributors.is_empty() {
            return Err(error("", Problem::TooMany { limit: 1 }));
        }
        // With a stride, frames are not where their GICR_TYPERs say.
        match node.find("redistributor-stride").map(number) {
            None | Some(0 | 0x2_0000) => {}
            Some(stride) => return Err(error("redistributor-stride", Problem::Value(stride))),
        }
        let regions = u32_property(node, "#redistributor-regions")?.unwrap_or(1);
        let mut ranges = bus.reg(node)?;
        let mut next = || ranges.next().transpose()?.flatten().ok_or(error("reg", Problem::Missing));
        self.machine.gicd = next()?;
        if regions == 0 {
            return Err(error("#redistributor-regions", Problem::Value(0)));
        }
        for _ in 0..regions {
            let pushed = self.machine.redistributors.push(next()?);
            pushed.map_err(|full| error("#redistributor-regions", too_many(full)))?;
        }
        Ok(())
    }

    fn read_its(&mut self, bus: &Level<'a, '_>, node: Node<'a>) -> Result<(), DeviceTreeError> {
        let error = |problem| DeviceTreeError::new(node.name, "reg", problem);
        let range = one_range(bus, node)?;
        let doorbell = PhysRange::new(range.start().offset(ITS_TRANSLATION_PAGE), 0x1000)
            .filter(|page| range.encloses(*page) && page.is_aligned(0x1000))
            .ok_or(error(Problem::Value(range.size_bytes())))?;
        self.machine.its.push(range).map_err(|full| error(too_many(full)))?;
        self.machine.doorbells.push(doorbell.start()).map_err(|full| error(too_many(full)))
    }

    fn read_uart(&mut self, bus: &Level<'a, '_>, node: Node<'a>) -> Result<(), DeviceTreeError> {
        let is_stdout = self.stdout.is_some_and(|name| name == node.name || name == node.base_name());
        if self.machine.uart.is_none() || (is_stdout && !self.uart_is_stdout) {
            self.machine.uart = Some(one_range(bus, node)?);
            self.uart_is_stdout = is_stdout;
        }
        Ok(())
    }

    fn read_pcie(&mut self, bus: &Level<'a, '_>, node: Node<'a>) -> Result<(), DeviceTreeError> {
        let error = |property, problem| DeviceTreeError::new(node.name, property, problem);
        let ecam = one_range(bus, node)?;
        let buses = ecam.size_bytes() >> 20;
        if buses == 0 || !ecam.start().is_aligned(0x1000) {
            return Err(error("reg", Problem::Value(ecam.size_bytes())));
        }
        let (first_bus, mut last_bus) = (0, 255);
        let (first_bus, last) = match node.find("bus-range") {
            None => (first_bus, last_bus),
            Some(_) => {
                let [first, last] =
                    entries(node, "bus-range", [1, 1])?.next().ok_or(missing(node.name, "bus-range"))?;
                (number(first), number(last))
            }
        };
        last_bus = last.min(first_bus.saturating_add(buses - 1));
        let (Ok(first_bus), Ok(last_bus), true) =
            (u8::try_from(first_bus), u8::try_from(last_bus), first_bus <= last)
        else {
            return Err(error("bus-range", Problem::Value(first_bus << 32 | last)));
        };
        let mut pcie = PcieNode {
            ecam,
            first_bus,
            last_bus,
            domain: u32_property(node, "linux,pci-domain")?.unwrap_or(0),
            windows: List::new(),
            iommu_map: List::new(),
            iommu_map_mask: u32_property(node, "iommu-map-mask")?.unwrap_or(0xffff),
        };
        self.read_windows(bus, node, &mut pcie)?;
        // A disabled root bus may work all the same, and nobody vouches for what its map says.
        if node.is_okay() && node.find("iommu-map").is_some() {
            for [rid_base, phandle, stream_base, length] in entries(node, "iommu-map", [1; 4])? {
                let field = |bytes| number(bytes) as u32;
                let map = IommuMap {
                    rid_base: field(rid_base),
                    phandle: field(phandle),
                    stream_base: field(stream_base),
                    length: field(length),
                };
                if map.rid_base.checked_add(map.length).is_none_or(|end| end > 0x1_0000) {
                    return Err(error("iommu-map", Problem::Value(number(rid_base))));
                }
                if map.stream_base.checked_add(map.length).is_none() {
                    return Err(error("iommu-map", Problem::Value(number(stream_base))));
                }
                pcie.iommu_map.push(map).map_err(|full| error("iommu-map", too_many(full)))?;
            }
        }
        self.machine.pcie.push(pcie).map_err(|full| error("", too_many(full)))
    }

    fn read_windows(
        &mut self,
        bus: &Level<'a, '_>,
        node: Node<'a>,
        pcie: &mut PcieNode,
    ) -> Result<(), DeviceTreeError> {
        let error = |problem| DeviceTreeError::new(node.name, "ranges", problem);
        let level = Level::new(node, Some(bus))?;
        if level.address_cells != 3 || bus.address_cells > 2 {
            return Err(DeviceTreeError::new(
                node.name,
                "#address-cells",
                Problem::Value(level.address_cells as u64),
            ));
        }
        for [flags, address, cpu, size] in
            entries(node, "ranges", [1, 2, bus.address_cells, level.size_cells])?
        {
            let range = PhysRange::new(PhysAddr(number(cpu)), number(size))
                .ok_or(error(Problem::Value(number(cpu))))?;
            // Bits 25:24 of the first cell (PCI Bus Binding, 2.2.1.1): 0 configuration, 1 I/O, 2 and 3
            // memory.
            let space = number(flags) >> 24 & 0b11;
            if space == 0 {
                continue;
            }
            let cpu = bus.translate(node, range)?;
            let window = PcieWindow { cpu, bus_address: number(address), io: space == 1 };
            if window.bus_address.checked_add(cpu.size_bytes() - 1).is_none() {
                return Err(error(Problem::Value(window.bus_address)));
            }
            pcie.windows.push(window).map_err(|full| error(too_many(full)))?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Machine, DeviceTreeError> {
        let Self { machine, psci, .. } = self;
        for (there, what) in [
            (!machine.memory.is_empty(), "memory"),
            (!machine.cpus.is_empty(), "cpus"),
            (!machine.redistributors.is_empty(), "arm,gic-v3"),
            (psci, "psci"),
        ] {
            if !there {
                return Err(missing("/", what));
            }
        }
        Ok(machine)
    }
}

/// The first range in a node's `reg`.
fn one_range<'a>(bus: &Level<'a, '_>, node: Node<'a>) -> Result<PhysRange, DeviceTreeError> {
    let first = bus.reg(node)?.next().transpose()?;
    first.ok_or(missing(node.name, "reg"))?.ok_or(DeviceTreeError::new(node.name, "reg", Problem::Value(0)))
}

/// Adds a range to a list that is kept ascending, joined with those that it touches.
fn add_joined<const N: usize>(
    list: &mut List<PhysRange, N>,
    node: Node<'_>,
    range: PhysRange,
) -> Result<(), DeviceTreeError> {
    let error = |problem| DeviceTreeError::new(node.name, "reg", problem);
    if list.iter().any(|other| other.overlaps(range)) {
        return Err(error(Problem::Value(range.start().0)));
    }
    let mut range = range;
    let follows = |a: PhysRange, b: PhysRange| a.last().0.checked_add(1) == Some(b.start().0);
    while let Some(other) = list
        .position(|other| follows(*other, range) || follows(range, *other))
        .and_then(|index| list.swap_remove(index))
    {
        let (first, second) = if follows(other, range) { (other, range) } else { (range, other) };
        range = PhysRange::inclusive(first.start(), second.last()).unwrap_or(range);
    }
    list.push(range).map_err(|full| error(too_many(full)))?;
    list.sort_by_key(|range| range.start());
    Ok(())
}
