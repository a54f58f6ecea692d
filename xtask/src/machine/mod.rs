//! The machine shape: how many SMMUs, CPUs and how much memory, and which devices behind which SMMU.
//!
//! This is the only definition of it. [`qemu`] makes QEMU's arguments from it and [`device_tree`] the device
//! tree, so the two cannot disagree.

pub mod check;
pub mod cpu;
pub mod device_tree;
pub mod map;
pub mod memory_size;
pub mod qemu;

use anyhow::{Result, bail};

use cpu::Cpu;
use map::{Range, Windows};
use memory_size::MemorySize;

/// The most SMMUs: each has a root bus with eight bus numbers and a share of the PCIe windows.
pub const MAX_SMMUS: u8 = 8;

/// The most CPUs: what the EL2 image has stacks for.
pub const MAX_CPUS: u8 = 32;

/// Bus numbers of one root bus, the root bus itself included.
const BUSES_PER_ROOT: u8 = 8;

/// What a machine consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    smmus: u8,
    cpus: u8,
    cpu: Cpu,
    memory: MemorySize,
    virtio_disk: bool,
    mmio_disk: bool,
}

impl Shape {
    /// A machine with EL2, `smmus` SMMUs (1 to [`MAX_SMMUS`]), `cpus` CPUs (1 to [`MAX_CPUS`]) that can all that QEMU can, and `memory`.
    ///
    /// # Errors
    ///
    /// A number outside its limits; the message says what to type.
    pub fn new(smmus: u8, cpus: u8, memory: MemorySize) -> Result<Self> {
        if !(1..=MAX_SMMUS).contains(&smmus) {
            bail!(
                "the machine can have 1 to {MAX_SMMUS} SMMUs, not {smmus}: type --smmus 1 to --smmus {MAX_SMMUS}"
            );
        }
        if !(1..=MAX_CPUS).contains(&cpus) {
            bail!(
                "the machine can have 1 to {MAX_CPUS} CPUs, not {cpus}: type --cpus 1 to --cpus {MAX_CPUS}"
            );
        }
        Ok(Self { smmus, cpus, cpu: Cpu::Max, memory, virtio_disk: false, mmio_disk: false })
    }

    /// The same with a virtio disk behind SMMU 0.
    pub const fn with_virtio_disk(self) -> Self {
        Self { virtio_disk: true, ..self }
    }

    /// The same with a disk behind the first virtio-mmio transport, which has no SMMU in front of it: what a hostile host would use.
    pub const fn with_mmio_disk(self) -> Self {
        Self { mmio_disk: true, ..self }
    }

    /// Whether there is a disk behind virtio-mmio.
    pub const fn has_mmio_disk(&self) -> bool {
        self.mmio_disk
    }

    /// The devices behind the SMMU of a root bus, in the order of their PCI device numbers.
    pub fn devices(&self, root: &RootBus) -> impl Iterator<Item = Device> + use<> {
        let virtio = (self.virtio_disk && root.index == 0).then_some(Device::VirtioDisk);
        Device::ALL.into_iter().chain(virtio)
    }

    /// The same with such CPUs.
    pub const fn with_cpu(self, cpu: Cpu) -> Self {
        Self { cpu, ..self }
    }

    /// What each CPU is.
    pub const fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// Number of CPUs.
    pub const fn cpus(&self) -> u8 {
        self.cpus
    }

    /// Size of the memory.
    pub const fn memory(&self) -> MemorySize {
        self.memory
    }

    /// The root buses, one for each SMMU.
    pub fn root_buses(&self) -> impl Iterator<Item = RootBus> + use<> {
        let count = self.smmus;
        (0..count).map(move |index| RootBus { index, windows: map::windows(index, count) })
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = |count: u8| if count == 1 { "" } else { "s" };
        let (smmus, cpus) = (self.smmus, self.cpus);
        write!(f, "{smmus} SMMU{}, {cpus} CPU{}", plural(smmus), plural(cpus))?;
        if self.cpu != Cpu::Max {
            write!(f, " ({})", self.cpu.qemu())?;
        }
        write!(f, ", {}", self.memory)
    }
}

/// A PCIe root bus with the SMMU that all functions below it go through.
#[derive(Clone, Copy, Debug)]
pub struct RootBus {
    /// Index of the SMMU; also the PCI domain.
    pub index: u8,
    /// Address windows of the functions on it.
    pub windows: Windows,
}

impl RootBus {
    /// Number of the root bus; StreamIDs behind its SMMU start at this number << 8.
    pub const fn first_bus(&self) -> u8 {
        self.index * BUSES_PER_ROOT
    }

    /// The last bus number that the host may give to a bus below it.
    pub const fn last_bus(&self) -> u8 {
        self.first_bus() + (BUSES_PER_ROOT - 1)
    }

    /// The SMMU's registers.
    pub const fn smmu(&self) -> Range {
        map::smmu(self.index)
    }

    /// The SMMU's first SPI: event queue +0, PRI queue +1, CMD_SYNC +2, GERROR +3.
    pub const fn smmu_spi(&self) -> u32 {
        map::SMMU_SPI + 4 * self.index as u32
    }

    /// Configuration space of all its buses.
    pub const fn ecam(&self) -> Range {
        Range::new(
            map::ECAM.start + ((self.first_bus() as u64) << map::ECAM_BUS_SHIFT),
            (BUSES_PER_ROOT as u64) << map::ECAM_BUS_SHIFT,
        )
    }
}

/// A device that does DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// `iommu-testdev`: one DMA write on command, with its outcome.
    IommuTest,
    /// `edu`: a copy between memory and its buffer that takes 100 ms of virtual time.
    Edu,
    /// `nvme` with a small image of its own.
    Nvme,
    /// `virtio-blk-pci` that goes through its SMMU, with a small image of its own.
    VirtioDisk,
}

impl Device {
    /// One of each is behind every SMMU, in the order of their PCI device numbers.
    pub const ALL: [Self; 3] = [Self::IommuTest, Self::Edu, Self::Nvme];

    /// PCI device number on SMMU 0's root bus, or of its root port on any other root bus.
    pub const fn slot(self) -> u8 {
        match self {
            Self::IommuTest => 1,
            Self::Edu => 2,
            Self::Nvme => 3,
            Self::VirtioDisk => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(smmus: u8) -> Shape {
        Shape::new(smmus, 4, MemorySize::DEFAULT).expect("a valid shape")
    }

    fn assert_disjoint(what: &str, ranges: &[Range]) {
        for (i, a) in ranges.iter().enumerate() {
            for b in &ranges[i + 1..] {
                assert!(a.end() <= b.start || b.end() <= a.start, "{what}: {a:x?} and {b:x?} overlap");
            }
        }
    }

    #[test]
    fn root_buses_share_nothing() {
        for smmus in 1..=MAX_SMMUS {
            let roots: Vec<RootBus> = shape(smmus).root_buses().collect();
            assert_eq!(roots.len(), usize::from(smmus));
            let all = |of: fn(&RootBus) -> Range| roots.iter().map(of).collect::<Vec<_>>();
            assert_disjoint("SMMU", &all(RootBus::smmu));
            assert_disjoint("ECAM", &all(RootBus::ecam));
            assert_disjoint("I/O", &all(|root| root.windows.io));
            assert_disjoint("32-bit", &all(|root| root.windows.memory_32));
            assert_disjoint("64-bit", &all(|root| root.windows.memory_64));
            for pair in roots.windows(2) {
                assert!(pair[0].last_bus() < pair[1].first_bus());
                assert!(pair[0].smmu_spi() + 4 <= pair[1].smmu_spi());
            }
        }
    }

    #[test]
    fn windows_stay_inside_what_qemu_forwards_and_are_naturally_aligned() {
        for smmus in 1..=MAX_SMMUS {
            for root in shape(smmus).root_buses() {
                for (window, whole) in [
                    (root.windows.io, map::PCIE_IO),
                    (root.windows.memory_32, map::PCIE_32),
                    (root.windows.memory_64, map::PCIE_64),
                    (root.ecam(), map::ECAM),
                ] {
                    assert!(whole.start <= window.start && window.end() <= whole.end(), "{window:x?}");
                    assert_eq!((window.start - whole.start) % window.size, 0);
                }
                let needed = (Device::ALL.len() as u64 + 1) << 20;
                assert!(root.windows.memory_32.size >= needed, "a bridge window is 1 MiB or more");
            }
        }
    }

    #[test]
    fn limits_are_named_in_the_message() {
        for (smmus, cpus) in [(0, 4), (9, 4), (3, 0), (3, 33)] {
            let message =
                Shape::new(smmus, cpus, MemorySize::DEFAULT).expect_err("out of limits").to_string();
            assert!(message.contains("type --"), "{message}");
        }
    }
}
