//! The device tree: what the machine is, and the tree that the host gets.
//!
//! Section numbers are those of the Devicetree Specification, v0.4.

mod cells;
mod error;
mod host_tree;
mod machine;
mod read;
mod tokens;

pub use error::{DeviceTreeError, Name, Problem};
pub use host_tree::{HostTree, write_host_tree};
pub use machine::{IommuMap, Machine, PcieNode, PcieWindow, SmmuInterrupts, SmmuNode, TrustedStreamsNode};
pub use read::read_machine;

/// The compatible strings that both the reader and the writer of the host's tree look for.
mod compatible {
    pub const SMMU: &str = "arm,smmu-v3";
    pub const PMCG: &str = "arm,smmu-v3-pmcg";
    pub const GIC: &str = "arm,gic-v3";
    pub const ITS: &str = "arm,gic-v3-its";
    pub const GICV2M: &str = "arm,gic-v2m-frame";
    pub const FW_CFG: &str = "qemu,fw-cfg-mmio";
    pub const VIRTIO_MMIO: &str = "virtio,mmio";
    pub const PCIE: &str = "pci-host-ecam-generic";
    pub const UARTS: [&str; 2] = ["arm,pl011", "arm,sbsa-uart"];
    pub const PSCI: [&str; 3] = ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"];
    pub const KERNEL: &str = "multiboot,kernel";
    pub const RAMDISK: &str = "multiboot,ramdisk";
    pub const MODULE: &str = "multiboot,module";
}

/// Bytes of the device tree whose header stands at the start of `dtb` (5.2, `totalsize`), which may be longer
/// or shorter than the tree: 40 bytes are enough. `None` when there is no header, which is the magic
/// 0xd00dfeed.
pub fn total_size_bytes(dtb: &[u8]) -> Option<usize> {
    let word = |at: usize| Some(u32::from_be_bytes(*dtb.get(at..)?.first_chunk()?));
    (word(0)? == 0xd00d_feed).then_some(usize::try_from(word(4)?).ok()?).filter(|size| *size >= 40)
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;
