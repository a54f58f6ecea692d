//! Places of QEMU's `virt` that no device may reach, and mostly no CPU of the host's either.

use crate::call::{Caller, Calls};
use crate::host::Forbidden;
use crate::tree::Run;
use smmuv3::features::Features;

/// fw_cfg.
pub const FW_CFG: u64 = 0x0902_0000;
/// The ITS.
pub const ITS: u64 = 0x0808_0000;
/// An address between the platform devices and the PCI windows, where there is nothing.
pub const NOTHING: u64 = 0x0e00_0000;

/// What is not in the host's device tree, or what no device may reach.
const DEVICES: [(&str, u64, bool); 12] = [
    ("UART", 0x0900_0000, false),
    ("RTC", 0x0901_0000, false),
    ("flash", 0x0000_0000, false),
    ("interrupt distributor", 0x0800_0000, false),
    ("redistributor", 0x080a_0000, false),
    ("ITS registers", ITS, false),
    ("fw_cfg", FW_CFG, true),
    ("fw_cfg DMA", 0x0902_0010, true),
    ("virtio-mmio, first", 0x0a00_0000, true),
    ("virtio-mmio, middle", 0x0a00_1e00, true),
    ("virtio-mmio, last", 0x0a00_3e00, true),
    ("virtio-mmio, queue ready", 0x0a00_0040, true),
];

/// The PL011's identification register: readable, no side effect.
const UART_PERIPHERAL_ID: u64 = 0x0900_0fe0;

/// Offsets into an SMMU's registers: IDR0, CR0, GBPA, STRTAB_BASE, CMDQ_BASE, CMDQ_PROD, the last of page 0, EVENTQ_PROD of page 1.
const SMMU_REGISTERS: [u64; 8] = [0x0, 0x20, 0x48, 0x80, 0x90, 0x98, 0xff8, 0x1_00a8];

/// Samples of each run of the hypervisor's memory.
const SAMPLES: u64 = 24;

/// The place with this index, from 0 until `None`: devices, registers of `smmus` SMMUs, the registers of a device behind each (`bar`), if there is one, and the
/// hypervisor's memory, run by run (`kept`). `own` is memory of the host's.
pub fn place<C: Caller + ?Sized>(
    caller: &C,
    index: usize,
    smmus: usize,
    bar: impl Fn(usize) -> Option<u64>,
    kept: impl Fn(usize) -> Option<Run>,
    own: u64,
) -> Option<Forbidden> {
    let device = |name, address, cpu_refused| {
        Some(Forbidden { name, address, cpu_refused, cpu_control: UART_PERIPHERAL_ID })
    };
    if let Some(&(name, address, cpu_refused)) = DEVICES.get(index) {
        return device(name, address, cpu_refused);
    }
    let index = index - DEVICES.len();
    if index < smmus * SMMU_REGISTERS.len() {
        let (smmu, register) = (index / SMMU_REGISTERS.len(), index % SMMU_REGISTERS.len());
        let address = caller.describe_smmu(smmu).ok()?.base + SMMU_REGISTERS.get(register)?;
        // Where it can nest, the CPU finds an SMMU of its own there.
        let nests = caller.smmu_features(smmu).is_ok_and(|ids| Features::probe(&ids).stage1);
        return device("SMMU registers", address, !nests);
    }
    let index = index - smmus * SMMU_REGISTERS.len();
    if index < smmus {
        return device("another device's BAR", bar(index).unwrap_or(NOTHING), false);
    }
    let index = index - smmus;
    let (run, sample) = (kept(index / SAMPLES as usize)?, index as u64 % SAMPLES);
    let offset = match sample {
        0 => 0,
        1 => run.size - 8,
        _ => (run.size / SAMPLES * sample) & !7,
    };
    let (name, address) = ("hypervisor memory", run.start + offset);
    Some(Forbidden { name, address, cpu_refused: true, cpu_control: own })
}

/// Where the hypervisor keeps nothing while checks run: the last 64 KiB of its memory, because its pool gives its low pages away first.
pub fn unused(kept: impl Iterator<Item = Run>) -> u64 {
    const SIZE: u64 = 0x1_0000;
    let end = kept.map(|run| run.start + run.size).max();
    end.unwrap_or(SIZE).saturating_sub(SIZE) & !(SIZE - 1)
}
