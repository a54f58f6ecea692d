//! What a check asks of the host it runs on: the real EL1 machine, or the model machine of the tests.

use crate::call::{Caller, Refused};
use abi::Status;
use core::fmt;

/// The value that [`Host::dma_write_at`] makes a device write (`iommu-testdev` knows no other).
pub const DMA_VALUE: u32 = 0x1234_5678;

/// The least bytes of [`Host::scratch`]: eight blocks of 2 MiB.
pub const SCRATCH_BYTES: u64 = 16 << 20;

/// A CPU access that the machine refused: a synchronous external or stage-2 abort taken at EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort;

/// How a device's DMA write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dma {
    /// The value is at the physical address where it was expected.
    Landed,
    /// The SMMU refused the transaction, and memory is as it was.
    Faulted,
    /// The device was told that the write succeeded, but the value is not at that physical address.
    Elsewhere,
    /// The device answered something else, with its code.
    Unknown(u32),
    /// The device cannot be reached by the CPU (its registers are out of the host's stage 2), or is not there.
    Unreachable,
}

/// A DMA transfer of 8 bytes between memory and the buffer of a delayed device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// The device reads 8 bytes of memory at this I/O address into its buffer. If the SMMU refuses, the buffer is zero.
    FromMemory(u64),
    /// The device writes its buffer to memory at this I/O address.
    ToMemory(u64),
}

/// The devices a check knows. Behind each SMMU there is at most one of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// `iommu-testdev`: one write, at once, when the CPU says so. Behind every SMMU.
    Immediate,
    /// `edu`: transfers happen a fixed delay after the CPU asked, so they can happen while a guest has the device.
    Delayed,
    /// `nvme`: a disk.
    Disk,
}

impl Device {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Immediate, Self::Delayed, Self::Disk];
}

/// Why a disk did not do what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// There is no disk behind this SMMU.
    Absent,
    /// The controller did not become ready, or a command did not complete in time: this is also what a refused DMA looks like.
    TimedOut,
    /// A command completed with this status field.
    Command(u16),
    /// What was read back is not what was written.
    Different,
    /// Its registers are out of the host's stage 2.
    Unreachable,
}

/// An address that neither a device nor, if `cpu_refused`, the host's CPUs may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// What is there.
    pub name: &'static str,
    /// Physical address, a multiple of 8.
    pub address: u64,
    /// Whether the host's CPUs are kept out too. The UART, for one, is the host's, but no device's.
    pub cpu_refused: bool,
    /// A neighbour that the CPU may read, as the control for a refused access (the 32-bit register there has no side effect).
    pub cpu_control: u64,
}

/// DMA masters that no SMMU is in front of, by the addresses of their registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideDoors {
    /// QEMU's fw_cfg.
    pub fw_cfg: u64,
    /// The first virtio-mmio transport; others follow, 512 bytes each.
    pub virtio_mmio: u64,
    /// How many there are.
    pub virtio_mmio_count: u64,
    /// The ITS's control frame.
    pub its: u64,
    /// RD_base of the first CPU's Redistributor.
    pub redistributor: u64,
}

/// A machine with the hypervisor below and devices behind its SMMUs, seen by the host.
///
/// Addresses are physical and in bytes. Nothing here panics on a refusal: that is what the checks are about.
/// Hypercalls and CPU accesses may be made from several CPUs at once; one device is driven by one CPU at a time. A CPU access is
/// complete, and seen by devices and table walkers, before that CPU's next access or call begins.
pub trait Host: Caller + Sync {
    /// How many SMMUs the checks know devices behind, which is what `SMMU_COUNT` should answer.
    fn smmus(&self) -> usize;

    /// Makes a call of an attack, as [`Caller::call_raw`] does; `None` when who stands between this host and the hypervisor does not let
    /// it through.
    fn try_call(&self, id: u32, arguments: [u64; 4]) -> Option<[u64; 5]> {
        Some(self.call_raw(id, arguments))
    }

    /// The StreamID of a device behind an SMMU; `None` when that SMMU has no such device.
    fn stream(&self, smmu: usize, device: Device) -> Option<u32>;

    /// Makes the immediate device behind `smmu` write [`DMA_VALUE`], 4 bytes little endian, to this I/O address (a multiple of 4), looks
    /// for it at the physical address `expected`, and tells how it ended.
    fn dma_write_at(&self, smmu: usize, address: u64, expected: u64) -> Dma;

    /// The same where the I/O address is the physical one.
    fn dma_write(&self, smmu: usize, address: u64) -> Dma {
        self.dma_write_at(smmu, address, address)
    }

    /// [`Host::dma_write_at`] with a SubstreamID, 1 or more; `None` when the device cannot send one.
    fn dma_write_substream(&self, smmu: usize, substream: u32, address: u64, expected: u64) -> Option<Dma> {
        let _ = (smmu, substream, address, expected);
        None
    }

    /// Tells the delayed device behind `smmu` to do a transfer; it happens after this call, and before [`Host::settle`] returns.
    /// One transfer can be under way per device. Refused when the CPU cannot reach the device (a guest has it).
    fn start(&self, smmu: usize, transfer: Transfer) -> Result<(), Abort>;

    /// Waits until every transfer that was started has happened (or faulted), without touching the devices.
    fn settle(&self);

    /// Whether every transfer started since the last [`Host::settle`] is certainly still ahead. Asked after the device was
    /// attached to its domain: if time ran out before, the check starts over.
    fn certainly_ahead(&self) -> bool {
        true
    }

    /// Whether the delayed device still has a transfer ahead of it, after [`Host::settle`] and with its registers reachable again:
    /// then it happened too late for the check, which starts over.
    fn under_way(&self, smmu: usize) -> bool {
        let _ = smmu;
        false
    }

    /// Has the disk behind `smmu` brought up, identified, a block written with this pattern and read back, all by DMA to
    /// and from `memory`: 32 KiB of the host's, aligned to 4 KiB. The stream must be attached to a domain that has it.
    fn disk_round_trip(&self, smmu: usize, memory: u64, pattern: u64) -> Result<(), DiskError> {
        let _ = (smmu, memory, pattern);
        Err(DiskError::Absent)
    }

    /// CPU load of 1, 2, 4 or 8 bytes at a multiple of that, in the low bits.
    fn cpu_load(&self, address: u64, bytes: u8) -> Result<u64, Abort>;

    /// CPU store of the low 1, 2, 4 or 8 bytes at a multiple of that.
    fn cpu_store(&self, address: u64, bytes: u8, value: u64) -> Result<(), Abort>;

    /// CPU read of 32 bits at a multiple of 4.
    fn cpu_read_u32(&self, address: u64) -> Result<u32, Abort> {
        self.cpu_load(address, 4).map(|value| value as u32)
    }

    /// CPU write of 32 bits at a multiple of 4.
    fn cpu_write_u32(&self, address: u64, value: u32) -> Result<(), Abort> {
        self.cpu_store(address, 4, u64::from(value))
    }

    /// CPU read of 64 bits at a multiple of 8.
    fn cpu_read_u64(&self, address: u64) -> Result<u64, Abort> {
        self.cpu_load(address, 8)
    }

    /// CPU write of 64 bits at a multiple of 8.
    fn cpu_write_u64(&self, address: u64, value: u64) -> Result<(), Abort> {
        self.cpu_store(address, 8, value)
    }

    /// First byte of [`SCRATCH_BYTES`] bytes of RAM, aligned to 2 MiB, that are the host's, not shared, and used by nobody else.
    fn scratch(&self) -> u64;

    /// More RAM of the host's that nobody uses, as first byte and size, both multiples of 2 MiB: enough to need more tables for than the pool
    /// has. `None` when there is not that much.
    fn spare(&self) -> Option<(u64, u64)> {
        None
    }

    /// Places that are forbidden to all devices: the hypervisor's memory (which holds the I/O page tables), every SMMU's registers, the UART, fw_cfg, ...
    ///
    /// Asked for by index, from 0 until `None`.
    fn forbidden(&self, index: usize) -> Option<Forbidden>;

    /// First byte of 64 KiB, aligned to that, that are the hypervisor's, and where it keeps nothing while checks run: what an attack
    /// aims at.
    fn hypervisor_memory(&self) -> u64;

    /// The DMA masters without an SMMU; `None` where they are not there, or do nothing.
    fn side_doors(&self) -> Option<SideDoors> {
        None
    }

    /// An address in RAM's gaps: what no RAM and no device is at, for bad arguments. Must be a multiple of 2 MiB, below `1 << 48`.
    fn not_ram(&self) -> u64;

    /// Physical address of the config page of the `index`-th bridge above a device, or of the device itself for the index after
    /// the last bridge; `None` after that, or when the machine has no PCI config space.
    fn config_page(&self, smmu: usize, device: Device, index: usize) -> Option<u64> {
        let _ = (smmu, device, index);
        None
    }

    /// Runs a job on several CPUs at once, with the CPU's index in 0..n, until all have returned; answers n.
    /// A machine without several CPUs runs them one after the other.
    fn on_each_cpu(&self, job: &(dyn Fn(usize) + Sync)) -> usize;

    /// How many rounds the check with all CPUs at once does.
    fn rounds(&self) -> u32 {
        10_000
    }

    /// A measure of time or work since some moment.
    fn ticks(&self) -> u64;

    /// What [`Host::ticks`] counts: instructions, where the machine counts them.
    fn tick_unit(&self) -> &'static str {
        "ticks"
    }

    /// A line of the log.
    fn log(&self, line: fmt::Arguments<'_>);
}

/// Whether a refusal is this status.
pub fn refused_with<T>(result: &Result<T, Refused>, status: Status) -> bool {
    matches!(result, Err(refused) if refused.status() == Some(status))
}
