//! The real machine, as the checks see it.

use super::console::{self, println};
use super::{calls, cpu, mmu, probe, smp};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use host_shim::bus::Bus;
use host_shim::call::{Caller, Calls};
use host_shim::devices::{edu, nvme, testdev};
use host_shim::forbidden;
use host_shim::host::{Abort, Device, DiskError, Dma, Forbidden, Host, SCRATCH_BYTES, SideDoors, Transfer};
use host_shim::pci::{self, Function};
use host_shim::tree::{Run, Tree};

/// The most SMMUs.
const MAX_SMMUS: usize = 8;
const BLOCK: u64 = 2 << 20;
/// The least time that must be left of the delayed device's delay.
const MARGIN_NS: u64 = 5_000_000;

/// The CPU's loads and stores.
#[derive(Clone, Copy)]
pub struct Cpu;

impl Bus for Cpu {
    fn read_u32(&self, address: u64) -> Result<u32, Abort> {
        ordered(|| probe::load(address, 4)).map(|value| value as u32)
    }

    fn write_u32(&self, address: u64, value: u32) -> Result<(), Abort> {
        ordered(|| probe::store(address, 4, u64::from(value)))
    }

    fn read_u64(&self, address: u64) -> Result<u64, Abort> {
        ordered(|| probe::load(address, 8))
    }

    fn write_u64(&self, address: u64, value: u64) -> Result<(), Abort> {
        ordered(|| probe::store(address, 8, value))
    }

    fn now_ns(&self) -> u64 {
        cpu::now_ns()
    }
}

/// An access between barriers, so that memory and device registers keep program order.
fn ordered<T>(access: impl FnOnce() -> T) -> T {
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
    let value = access();
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
    value
}

/// The devices behind one SMMU.
#[derive(Clone, Copy, Default)]
struct Behind {
    immediate: Option<Function>,
    delayed: Option<Function>,
    disk: Option<Function>,
}

impl Behind {
    fn get(&self, device: Device) -> Option<&Function> {
        match device {
            Device::Immediate => self.immediate.as_ref(),
            Device::Delayed => self.delayed.as_ref(),
            Device::Disk => self.disk.as_ref(),
        }
    }
}

/// The machine.
pub struct Machine {
    tree: Tree,
    /// By the SMMU's index in hypercalls.
    behind: [Behind; MAX_SMMUS],
    count: usize,
    /// Register bases, by the same index; 0 when the hypervisor did not say.
    bases: [u64; MAX_SMMUS],
    scratch: u64,
    spare: Option<(u64, u64)>,
    rounds: u32,
    /// QEMU counts instructions: one of any CPU is this power of two in nanoseconds, which are ticks of the virtual counter.
    instruction_log2_ns: Option<u8>,
    /// When the first transfer since the last `settle` was started; 0 when none was.
    started_ns: AtomicU64,
}

impl Machine {
    /// Where the registers of an SMMU are; `None` if the hypervisor did not say.
    pub fn smmu_base(&self, smmu: usize) -> Option<u64> {
        self.bases.get(smmu).copied().filter(|base| *base != 0)
    }

    /// Enumerates the devices and finds memory for the checks.
    pub fn new(tree: &Tree, device_tree: Run, rounds: u32, instruction_log2_ns: Option<u8>) -> Option<Self> {
        let scratch = scratch(tree, device_tree)?;
        let mut machine = Self {
            tree: *tree,
            behind: [Behind::default(); MAX_SMMUS],
            count: 0,
            bases: [0; MAX_SMMUS],
            scratch,
            spare: spare(tree, device_tree, scratch),
            rounds,
            instruction_log2_ns: instruction_log2_ns.filter(|log2| u32::from(*log2) < u64::BITS),
            started_ns: AtomicU64::new(0),
        };
        let order = machine.smmus_by_base();
        for (root, index) in tree.roots.iter().zip(order) {
            let functions = pci::enumerate(&Cpu, root).ok()?;
            let Some(behind) = machine.behind.get_mut(index) else {
                continue;
            };
            for function in functions.iter() {
                match (function.vendor, function.device) {
                    testdev::ID => behind.immediate = Some(*function),
                    edu::ID => behind.delayed = Some(*function),
                    _ if function.class == nvme::CLASS => behind.disk = Some(*function),
                    _ => {}
                }
            }
            machine.count += 1;
        }
        Some(machine)
    }

    /// Indexes of the SMMUs in hypercalls, by their registers' address. Root complexes in the order of their bus numbers have
    /// SMMUs in the order of their addresses: that is how the machine is made, and what the first check of streams would disprove.
    fn smmus_by_base(&mut self) -> [usize; MAX_SMMUS] {
        for smmu in 0..MAX_SMMUS {
            if let (Ok(description), Some(base)) = (self.describe_smmu(smmu), self.bases.get_mut(smmu)) {
                *base = description.base;
            }
        }
        let mut order: [usize; MAX_SMMUS] = [0, 1, 2, 3, 4, 5, 6, 7];
        let bases = self.bases;
        order.sort_unstable_by_key(|&smmu| match bases.get(smmu) {
            None | Some(0) => u64::MAX,
            Some(&base) => base,
        });
        order
    }

    /// Whether the virtual counter counts instructions, those of all CPUs together.
    pub fn counts_instructions(&self) -> bool {
        self.instruction_log2_ns.is_some()
    }

    /// How much longer, as a power of two, everything takes on the machine's clock than if an instruction that is counted were a nanosecond.
    pub fn slowness_log2(&self) -> u8 {
        self.instruction_log2_ns.unwrap_or(0)
    }

    /// How many SMMUs have devices.
    pub fn smmu_count(&self) -> usize {
        self.count
    }

    /// The device tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Affinities of all CPUs but this one.
    pub fn other_cpus(&self) -> impl Iterator<Item = u64> + Clone + '_ {
        let this = cpu::affinity();
        let mut all = [None; smp::MAX_CPUS];
        for (place, affinity) in all.iter_mut().zip(self.tree.cpus.iter()) {
            *place = (affinity != this).then_some(affinity);
        }
        all.into_iter().flatten()
    }

    /// Lets none of these devices, by SMMU and kind, answer for the addresses in its BARs any more; one that is out of reach is as it was.
    pub fn stop_decoding(&self, these: impl Fn(usize, Device) -> bool) {
        for (smmu, behind) in self.behind.iter().enumerate() {
            for device in Device::ALL.into_iter().filter(|device| these(smmu, *device)) {
                if let Some(function) = behind.get(device) {
                    let _ = pci::stop_decoding(&Cpu, function);
                }
            }
        }
    }

    /// Prints what was found.
    pub fn describe(&self) {
        for (index, (behind, base)) in self.behind.iter().zip(self.bases).enumerate().take(self.count) {
            for device in Device::ALL {
                if let Some(function) = behind.get(device) {
                    println!(
                        "SMMU {index} at {base:#x}: {device:?} {:04x}:{:04x}, StreamID {:#x}, BAR 0 at {:#x}",
                        function.vendor, function.device, function.requester, function.bar0
                    );
                }
            }
        }
        for run in self.tree.reserved.iter() {
            println!("the hypervisor has {:#x} bytes at {:#x}", run.size, run.start);
        }
        println!("the checks have {SCRATCH_BYTES:#x} bytes at {:#x}", self.scratch);
    }

    fn bar(&self, smmu: usize, device: Device) -> Option<u64> {
        self.behind.get(smmu)?.get(device).map(|function| function.bar0)
    }
}

/// The highest 16 MiB, aligned to 2 MiB, that nothing else is in.
fn scratch(tree: &Tree, device_tree: Run) -> Option<u64> {
    let mut best = None;
    for ram in tree.memory.iter() {
        let first = ram.start.next_multiple_of(BLOCK);
        let mut at = (ram.start + ram.size).checked_sub(SCRATCH_BYTES)? / BLOCK * BLOCK;
        // A block on each side stays out of the checks' ranges too: they look beside them.
        while at > first {
            let run = Run { start: at - BLOCK, size: SCRATCH_BYTES + 2 * BLOCK };
            let taken = run.overlaps(mmu::image())
                || run.overlaps(device_tree)
                || tree.ramdisk.is_some_and(|ramdisk| run.overlaps(ramdisk))
                || tree.reserved.iter().any(|reserved| run.overlaps(reserved));
            let inside = run.start + run.size <= ram.start + ram.size;
            if !taken && inside {
                best = best.max(Some(at));
                break;
            }
            at -= BLOCK;
        }
    }
    best
}

/// The longest run of whole blocks below the checks' memory, a block away from it, that nothing else is in.
fn spare(tree: &Tree, device_tree: Run, scratch: u64) -> Option<(u64, u64)> {
    let ram = tree.memory.iter().find(|ram| ram.overlaps(Run { start: scratch, size: 1 }))?;
    let end = scratch - BLOCK;
    let taken = [Some(mmu::image()), Some(device_tree), tree.ramdisk];
    let above = taken.into_iter().flatten().chain(tree.reserved.iter());
    let above = above.map(|run| run.start + run.size).filter(|&last| last <= end);
    let start = above.max().unwrap_or(ram.start).max(ram.start).next_multiple_of(BLOCK);
    (start < end).then(|| (start, end - start))
}

/// virtio-mmio of QEMU's `virt`: the first transport, and how many there are.
const VIRTIO_MMIO: u64 = 0x0a00_0000;
const VIRTIO_MMIO_COUNT: u64 = 32;

impl Caller for Machine {
    fn call_raw(&self, id: u32, arguments: [u64; 4]) -> [u64; 5] {
        calls::hvc(id, arguments)
    }
}

impl Host for Machine {
    fn smmus(&self) -> usize {
        self.count
    }

    fn stream(&self, smmu: usize, device: Device) -> Option<u32> {
        self.behind.get(smmu)?.get(device).map(|function| u32::from(function.requester))
    }

    fn dma_write_at(&self, smmu: usize, address: u64, expected: u64) -> Dma {
        let Some(bar) = self.bar(smmu, Device::Immediate) else {
            return Dma::Unreachable;
        };
        // An old value of the same kind must not be taken for the one that is written now.
        if (self.scratch..self.scratch + SCRATCH_BYTES).contains(&expected) {
            let _ = Cpu.write_u32(expected, 0);
        }
        testdev::write(&Cpu, bar, address, expected).unwrap_or(Dma::Unreachable)
    }

    fn start(&self, smmu: usize, transfer: Transfer) -> Result<(), Abort> {
        let bar = self.bar(smmu, Device::Delayed).ok_or(Abort)?;
        let _ = self.started_ns.compare_exchange(0, cpu::now_ns(), Ordering::Relaxed, Ordering::Relaxed);
        edu::start(&Cpu, bar, transfer)
    }

    fn settle(&self) {
        // The last transfer was started before now, so it is due a delay from now at the latest.
        let begin = cpu::now_ns();
        while cpu::now_ns() - begin < edu::DELAY_NS + 2 * MARGIN_NS {
            core::hint::spin_loop();
        }
        self.started_ns.store(0, Ordering::Relaxed);
    }

    fn certainly_ahead(&self) -> bool {
        let started = self.started_ns.load(Ordering::Relaxed);
        started == 0 || cpu::now_ns() - started < edu::DELAY_NS - MARGIN_NS
    }

    fn under_way(&self, smmu: usize) -> bool {
        self.bar(smmu, Device::Delayed).is_some_and(|bar| edu::under_way(&Cpu, bar) == Ok(true))
    }

    fn disk_round_trip(&self, smmu: usize, memory: u64, pattern: u64) -> Result<(), DiskError> {
        let bar = self.bar(smmu, Device::Disk).ok_or(DiskError::Absent)?;
        nvme::round_trip(&Cpu, bar, memory, pattern)
    }

    fn cpu_load(&self, address: u64, bytes: u8) -> Result<u64, Abort> {
        ordered(|| probe::load(address, bytes))
    }

    fn cpu_store(&self, address: u64, bytes: u8, value: u64) -> Result<(), Abort> {
        ordered(|| probe::store(address, bytes, value))
    }

    fn scratch(&self) -> u64 {
        self.scratch
    }

    fn spare(&self) -> Option<(u64, u64)> {
        self.spare
    }

    fn forbidden(&self, index: usize) -> Option<Forbidden> {
        let bar = |smmu| self.bar(smmu, Device::Disk).or(self.bar(smmu, Device::Immediate));
        let kept = |run| self.tree.reserved.iter().nth(run);
        forbidden::place(self, index, self.count, bar, kept, self.scratch)
    }

    fn hypervisor_memory(&self) -> u64 {
        forbidden::unused(self.tree.reserved.iter())
    }

    fn side_doors(&self) -> Option<SideDoors> {
        Some(SideDoors {
            fw_cfg: forbidden::FW_CFG,
            virtio_mmio: VIRTIO_MMIO,
            virtio_mmio_count: VIRTIO_MMIO_COUNT,
            its: forbidden::ITS,
            redistributor: self.tree.redistributors.iter().next()?.start,
        })
    }

    fn not_ram(&self) -> u64 {
        forbidden::NOTHING
    }

    fn config_page(&self, smmu: usize, device: Device, index: usize) -> Option<u64> {
        let function = self.behind.get(smmu)?.get(device)?;
        let bridges = function.bridges.iter().flatten();
        bridges.chain([&function.config_page]).nth(index).copied()
    }

    fn on_each_cpu(&self, job: &(dyn Fn(usize) + Sync)) -> usize {
        match smp::run(self.other_cpus(), job) {
            Ok(count) => count,
            Err(smp::StartError::Refused(affinity, answer)) => {
                println!("CPU_ON of {affinity:#x} answered {answer}");
                1
            }
        }
    }

    fn rounds(&self) -> u32 {
        self.rounds
    }

    fn ticks(&self) -> u64 {
        cpu::ticks() >> self.slowness_log2()
    }

    fn tick_unit(&self) -> &'static str {
        if self.counts_instructions() { "instructions" } else { "ticks" }
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        console::line(line);
    }
}
