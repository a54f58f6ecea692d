//! What the device tree says of the machine.

use crate::list::List;
use core::ops::Range;
use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::features::Part;

/// An SMMU (`arm,smmu-v3`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmmuNode {
    /// Its registers: page 0 and page 1.
    pub registers: PhysRange,
    /// What `iommu-map` names it by; 0 when the node has none.
    pub phandle: u32,
    /// The part that it is, if only the device tree can tell that it has errata.
    pub part: Option<Part>,
    /// INTIDs of its wired interrupts.
    pub interrupts: SmmuInterrupts,
}

/// The wired interrupts of an SMMU (IHI 0070, 3.18), each as an INTID of the GIC; `None` where the node names none, or one that is no SPI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SmmuInterrupts {
    /// Event queue.
    pub events: Option<u32>,
    /// CMD_SYNC.
    pub sync: Option<u32>,
    /// GERROR.
    pub errors: Option<u32>,
}

/// One entry of `iommu-map`: the Requester IDs `rid_base..rid_base + length` have the StreamIDs
/// `stream_base..` on an SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IommuMap {
    /// First Requester ID.
    pub rid_base: u32,
    /// The SMMU.
    pub phandle: u32,
    /// StreamID of the first Requester ID.
    pub stream_base: u32,
    /// How many there are.
    pub length: u32,
}

/// A window through which CPUs reach the memory or I/O space of a PCIe root complex, from `ranges`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcieWindow {
    /// Where the CPU sees it.
    pub cpu: PhysRange,
    /// The PCI address of its first byte.
    pub bus_address: u64,
    /// I/O space, not memory space.
    pub io: bool,
}

/// A PCIe root bus with memory-mapped configuration space (`pci-host-ecam-generic`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcieNode {
    /// Configuration space: 1 MiB for each bus, of which the first is `first_bus`.
    pub ecam: PhysRange,
    /// First bus number, from `bus-range`; its bus is the root bus.
    pub first_bus: u8,
    /// Last bus number.
    pub last_bus: u8,
    /// `linux,pci-domain`, 0 if absent.
    pub domain: u32,
    /// Memory and I/O windows.
    pub windows: List<PcieWindow, 6>,
    /// Which SMMU and StreamID a Requester ID has; empty for a node whose `status` is not okay, which is thereby
    /// unprotected.
    pub iommu_map: List<IommuMap, 8>,
    /// What a Requester ID is masked with before the map is looked up; 0xffff unless the node says otherwise.
    pub iommu_map_mask: u32,
}

/// Streams that the boot configuration trusts with full ATS: an entry of `/chosen` `ats-trusted-streams`, three cells each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrustedStreamsNode {
    /// Phandle of the SMMU.
    pub phandle: u32,
    /// The first StreamID.
    pub first: u32,
    /// How many StreamIDs, 1 or more.
    pub count: u32,
}

/// The machine. About 10 KiB: pass it by reference.
///
/// Addresses are those of CPUs, translated through the `ranges` of every bus above a node. Ranges that touch
/// are joined where that loses nothing (memory, fw_cfg, virtio-mmio).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// RAM, ascending, apart from one another.
    pub memory: List<PhysRange, 8>,
    /// What neither the hypervisor nor the host may use: RAM that the firmware keeps (`/memreserve/` and static
    /// children of `/reserved-memory`), and the registers of the SMMUs' performance monitors (PMCGs), which can
    /// make an SMMU write an MSI to any address without translation (IHI 0070, chapter 10).
    pub reserved: List<PhysRange, 24>,
    /// The PL011 or SBSA UART that `stdout-path` names, else the first one.
    pub uart: Option<PhysRange>,
    /// GICv3 Distributor.
    pub gicd: PhysRange,
    /// GICv3 Redistributor regions: frames of RD_base and SGI_base, and for GICv4 two more, one CPU after the
    /// other.
    pub redistributors: List<PhysRange, 4>,
    /// GICv3 ITSs: the control page and the translation page of each.
    pub its: List<PhysRange, 4>,
    /// The 4 KiB page with GITS_TRANSLATER of each ITS: where devices write their MSIs.
    pub doorbells: List<PhysAddr, 4>,
    /// SMMUs, in the order of the tree: an SMMU's place here is its index everywhere.
    pub smmus: List<SmmuNode, 64>,
    /// Streams whose devices may keep physical addresses (full ATS): `/chosen` `ats-trusted-streams`.
    pub ats_trusted: List<TrustedStreamsNode, 16>,
    /// QEMU's fw_cfg, a DMA master without SMMU.
    pub fw_cfg: List<PhysRange, 2>,
    /// virtio-mmio, DMA masters without SMMU.
    pub virtio_mmio: List<PhysRange, 32>,
    /// PCIe root buses.
    pub pcie: List<PcieNode, 16>,
    /// MPIDR_EL1 affinity fields of the CPUs, in the order of the tree.
    pub cpus: List<u64, 64>,
    /// The host's kernel: `/chosen` module `multiboot,kernel`.
    pub kernel: Option<PhysRange>,
    /// The host's initial RAM disk: `/chosen` module `multiboot,ramdisk`.
    pub ramdisk: Option<PhysRange>,
    /// PSCI's conduit is SMC (`/psci`, `method`).
    pub psci_smc: bool,
}

impl Machine {
    /// Index of the SMMU with this phandle.
    pub fn smmu_by_phandle(&self, phandle: u32) -> Option<usize> {
        if phandle == 0 {
            return None;
        }
        self.smmus.position(|smmu| smmu.phandle == phandle)
    }

    /// Whether every Requester ID of the root bus goes through an SMMU of this machine.
    pub fn is_protected(&self, node: &PcieNode) -> bool {
        maps_all(node.first_bus, node.last_bus, |rid| {
            let maps = node.iommu_map.iter().filter(|map| self.smmu_by_phandle(map.phandle).is_some());
            maps.map(|map| map.rid_base..map.rid_base.saturating_add(map.length))
                .find(|rids| rids.contains(&rid))
        })
    }

    /// ECAM and windows of the root buses with a Requester ID that no SMMU translates, and of disabled ones: their
    /// devices' DMA cannot be stopped, so the host may not reach them. `write_host_tree` leaves those nodes out.
    pub fn unprotected(&self) -> impl Iterator<Item = PhysRange> {
        let nodes = self.pcie.iter().filter(|node| !self.is_protected(node));
        nodes.flat_map(|node| core::iter::once(node.ecam).chain(node.windows.iter().map(|window| window.cpu)))
    }
}

/// Whether each Requester ID of these buses is in an entry; `entry` finds the one for a Requester ID.
pub(super) fn maps_all(first_bus: u8, last_bus: u8, entry: impl Fn(u32) -> Option<Range<u32>>) -> bool {
    let end = (u32::from(last_bus) + 1) << 8;
    let mut rid = u32::from(first_bus) << 8;
    while rid < end {
        match entry(rid) {
            Some(rids) if rids.contains(&rid) => rid = rids.end,
            _ => return false,
        }
    }
    true
}
