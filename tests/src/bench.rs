//! A started hypervisor on a model machine, with its devices: what every scenario begins with.

use crate::driven::Driven;
use crate::model::memory::Span;
use crate::model::smmu::config::SmmuConfig;
use crate::model::smmu::ste::Eats;
use crate::model::stage2::Stage2Config;
use crate::model::{BARS, ECAM, FW_CFG, GICD, GICR, ITS, Machine, RAM_BASE, SMMU_BYTES, UART, pci};
use crate::platform::{MachineGuard, ModelPlatform};
use crate::record::Record;
use abi::{Function, Status};
use host_shim::host::SCRATCH_BYTES;
use hyp::devicetree::{IommuMap, PcieNode, PcieWindow, SmmuInterrupts, SmmuNode, TrustedStreamsNode};
use hyp::hypervisor::{Boot, BootError, Hypervisor};
use hyp::list::List;
use smmuv3::address::{PhysAddr, PhysRange};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of RAM, but for [`Shape::small`].
pub const RAM_BYTES: u64 = 40 << 20;
/// The hypervisor's image.
pub const IMAGE: u64 = RAM_BASE;
/// Its bytes.
pub const IMAGE_BYTES: u64 = 1 << 20;
/// The pool.
pub const POOL: u64 = RAM_BASE + IMAGE_BYTES;
/// Its bytes.
pub const POOL_BYTES: u64 = 7 << 20;
/// RAM for scenarios, a multiple of 2 MiB, of the host; but for [`Shape::small`].
pub const SCRATCH: u64 = RAM_BASE + (16 << 20);
/// Of a small machine.
const SMALL_SCRATCH: u64 = POOL + POOL_BYTES;
/// A page of the host's that scenarios leave alone: for the commands that owners of vSMMUs send.
pub const COMMANDS: u64 = RAM_BASE + (12 << 20);
/// PCIe root buses. The SMMUs beyond have one function each behind those, and a second device that is none, which no guest can get.
pub const MAX_BUSES: usize = 16;
/// A device behind an SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Its StreamID.
    pub stream: u32,
    /// Requester ID; 0 when it has no PCI function.
    pub rid: u16,
    /// Its BAR 0.
    pub bar: u64,
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The SMMUs.
    pub smmus: Vec<SmmuConfig>,
    /// Physical address bits of the CPUs.
    pub pa_bits: u8,
    /// Nanoseconds of one wait.
    pub relax_ns: u64,
    /// Devices (SMMU, and 0 or 1) that the boot configuration trusts with full ATS.
    pub trusted: Vec<(usize, usize)>,
    /// RAM.
    pub ram: Span,
    /// Where the RAM for scenarios begins.
    pub scratch: u64,
}

impl Shape {
    /// `n` SMMUs of one kind.
    pub fn of(n: usize, config: SmmuConfig) -> Self {
        Self::mixed(&vec![config; n])
    }

    /// These SMMUs.
    pub fn mixed(smmus: &[SmmuConfig]) -> Self {
        let ram = Span::new(RAM_BASE, RAM_BYTES);
        Self {
            smmus: smmus.to_vec(),
            pa_bits: 44,
            relax_ns: 2_000,
            trusted: Vec::new(),
            ram,
            scratch: SCRATCH,
        }
    }

    /// The same, with no more RAM than the hypervisor's and [`SCRATCH_BYTES`], 4,096 pages, of the host's.
    pub fn small(mut self) -> Self {
        self.scratch = SMALL_SCRATCH;
        self.ram = Span { start: RAM_BASE, end: SMALL_SCRATCH + SCRATCH_BYTES };
        self
    }

    /// The same, with a device that is trusted with full ATS.
    pub fn trusting(mut self, smmu: usize, device: usize) -> Self {
        self.trusted.push((smmu, device));
        self
    }
}

/// The machine with the hypervisor on it.
pub struct Bench {
    /// The hypervisor.
    pub hypervisor: Box<Hypervisor<ModelPlatform>>,
    /// Two devices behind each SMMU: one for writes at once, one with delayed transfers.
    pub devices: Vec<[Behind; 2]>,
    /// Devices that are trusted with full ATS.
    pub trusted: Vec<(usize, usize)>,
    /// RAM.
    pub ram: Span,
    /// Where the RAM for scenarios begins.
    pub scratch: u64,
    pub(crate) record: Mutex<Arc<Record>>,
    pub(crate) pending: Mutex<Vec<(usize, host_shim::host::Transfer)>>,
    pub(crate) buffers: Mutex<HashMap<usize, u64>>,
    driven: Mutex<Vec<Driven>>,
    entries: AtomicU64,
    most_accesses: AtomicU64,
}

impl fmt::Debug for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bench").field("devices", &self.devices).finish_non_exhaustive()
    }
}

fn range(start: u64, size: u64) -> PhysRange {
    PhysRange::new(PhysAddr(start), size).unwrap_or_else(|| unreachable!("constant ranges are not empty"))
}

fn list<T: Copy, const N: usize>(items: impl IntoIterator<Item = T>) -> List<T, N> {
    let mut list = List::new();
    for item in items {
        let _ = list.push(item);
    }
    list
}

/// The devices of the `n`-th SMMU: behind a root port each, on the buses `8 * n + 1` and `+ 2`. The first device of the SMMUs after
/// [`MAX_BUSES`] is another function of the first device of an earlier SMMU.
fn devices_of(n: usize, config: &SmmuConfig) -> [Behind; 2] {
    [1u16, 2].map(|port| {
        let bar = BARS.start + n as u64 * 0x20_0000 + u64::from(port) * 0x10_0000;
        if n >= MAX_BUSES && port == 2 {
            return Behind { stream: u32::from(port), rid: 0, bar };
        }
        let rid = (8 * (n % MAX_BUSES) as u16 + port) << 8 | (n / MAX_BUSES) as u16;
        let stream = if config.sid_size() >= 16 { u32::from(rid) } else { u32::from(port) };
        Behind { stream, rid, bar }
    })
}

/// How many StreamIDs are mapped from that of a device on, for other functions of its slots: where there is room for them.
fn streams_from(smmus: usize, device: &Behind) -> u32 {
    if smmus <= MAX_BUSES && device.stream >> 8 != 0 { 32 } else { 1 }
}

/// INTIDs as on QEMU's machine: four SPIs for each SMMU.
pub fn interrupts_of(smmu: usize) -> SmmuInterrupts {
    let first = 32 + 0x70 + 4 * smmu as u32;
    SmmuInterrupts { events: Some(first), sync: Some(first + 2), errors: Some(first + 3) }
}

fn add_functions(machine: &mut Machine, n: usize, devices: &[Behind; 2], several: bool) {
    let root = 8 * (n % MAX_BUSES) as u64;
    let page = |rid: u64| ECAM.start + (rid << 12);
    for (device, port) in devices.iter().zip(1u64..).filter(|(device, _)| device.rid != 0) {
        let bus = (root + port) as u8;
        machine.functions.insert(page(root << 8 | port << 3), pci::Function::bridge(root as u8, bus, bus));
        let kind = if port == 1 { (0x1b36, 0x0005) } else { (0x1234, 0x11e8) };
        let function = pci::Function::device(kind.0, kind.1, &[(device.bar as u32, 0x10_0000)]);
        let function = if several { function.one_of_several() } else { function };
        machine.functions.insert(page(u64::from(device.rid)), function);
    }
}

fn tree(shape: &Shape, devices: &[[Behind; 2]]) -> hyp::devicetree::Machine {
    let phandle = |n: usize| 0x100 + n as u32;
    let pcie =
        (0..devices.len().min(MAX_BUSES)).map(|root| {
            let smmus = || (root..devices.len()).step_by(MAX_BUSES);
            let maps = smmus().flat_map(|n| {
                let functions = devices[n].iter().filter(|device| device.rid != 0);
                functions.map(move |device| {
                    (u32::from(device.rid), device.stream, streams_from(devices.len(), device), phandle(n))
                })
            });
            // The last entry is for Requester IDs without a function: a root bus with one that is not mapped is not the host's.
            let rest = (0x800 * root as u32, 0x8000_0000, 0x800, phandle(root));
            PcieNode {
                ecam: range(ECAM.start + root as u64 * (8 << 20), 8 << 20),
                first_bus: 8 * root as u8,
                last_bus: 8 * root as u8 + 7,
                domain: root as u32,
                windows: list(smmus().map(|n| PcieWindow {
                    cpu: range(BARS.start + n as u64 * 0x20_0000, 0x40_0000),
                    bus_address: BARS.start + n as u64 * 0x20_0000,
                    io: false,
                })),
                iommu_map: list(maps.chain([rest]).map(|(rid_base, stream_base, length, phandle)| {
                    IommuMap { rid_base, phandle, stream_base, length }
                })),
                iommu_map_mask: 0xffff,
            }
        });
    hyp::devicetree::Machine {
        memory: list([range(shape.ram.start, shape.ram.size())]),
        reserved: List::new(),
        uart: Some(range(UART.start, UART.size())),
        gicd: range(GICD.start, GICD.size()),
        redistributors: list([range(GICR.start, GICR.size())]),
        its: list([range(ITS.start, ITS.size())]),
        doorbells: list([PhysAddr(ITS.start + 0x1_0000)]),
        ats_trusted: list(shape.trusted.iter().map(|&(smmu, device)| TrustedStreamsNode {
            phandle: phandle(smmu),
            first: devices[smmu][device].stream,
            count: 1,
        })),
        smmus: list((0..shape.smmus.len()).map(|n| SmmuNode {
            registers: range(crate::model::SMMU_BASE + SMMU_BYTES * n as u64, SMMU_BYTES),
            phandle: phandle(n),
            part: None,
            interrupts: interrupts_of(n),
        })),
        fw_cfg: list([range(FW_CFG.start, FW_CFG.size())]),
        virtio_mmio: List::new(),
        pcie: list(pcie),
        cpus: list([0, 1, 2, 3]),
        kernel: None,
        ramdisk: None,
        psci_smc: true,
    }
}

impl Bench {
    /// Boots the hypervisor on a machine of this shape. The host is at its first instruction, nothing is attached.
    pub fn boot(shape: &Shape) -> Result<Self, BootError> {
        Self::boot_on(shape, |_| {})
    }

    /// As [`Bench::boot`], on a machine that `prepare` did something to.
    pub fn boot_on(shape: &Shape, prepare: impl FnOnce(&mut Machine)) -> Result<Self, BootError> {
        let devices: Vec<[Behind; 2]> =
            shape.smmus.iter().enumerate().map(|(n, c)| devices_of(n, c)).collect();
        let streams: Vec<Vec<u32>> =
            devices.iter().map(|pair| pair.iter().map(|d| d.stream).collect()).collect();
        let mut machine = Machine::new(shape.ram.size(), &shape.smmus, &streams);
        machine.relax_ns = shape.relax_ns;
        for (n, pair) in devices.iter().enumerate() {
            add_functions(&mut machine, n, pair, devices.len() > MAX_BUSES);
        }
        // GICR_TYPER of four Redistributors: the last one says so (IHI 0069, 12.11.35).
        for cpu in 0..4u64 {
            let typer = 0x1 | if cpu == 3 { 1 << 4 } else { 0 };
            machine.registers.insert(GICR.start + cpu * 0x2_0000 + 8, typer);
        }
        // GITS_CTLR.Quiescent.
        machine.registers.insert(ITS.start, 1 << 31);
        prepare(&mut machine);
        let mut hypervisor = Box::new(Hypervisor::new(ModelPlatform::new(machine)));
        hypervisor.start(Boot {
            machine: &tree(shape, &devices),
            pa_bits: shape.pa_bits,
            image: &[range(IMAGE, IMAGE_BYTES)],
            pool: &[range(POOL, POOL_BYTES)],
        })?;
        let table = hypervisor.host_stage2();
        let geometry = *table.geometry();
        // As the image sets VTCR_EL2 up from the same fields.
        let vtcr = u64::from(geometry.t0sz())
            | u64::from(geometry.sl0()) << 6
            | u64::from(geometry.tg()) << 14
            | u64::from(geometry.ps()) << 16;
        {
            let mut machine = hypervisor.platform().machine();
            match Stage2Config::from_registers(vtcr, table.root().0, u32::from(shape.pa_bits)) {
                Ok(config) => machine.cpu.stage2 = Some(config),
                Err(text) => machine.violations.record(format!("VTCR_EL2 {vtcr:#x}: {text}")),
            }
        }
        Ok(Self {
            hypervisor,
            devices,
            trusted: shape.trusted.clone(),
            ram: shape.ram,
            scratch: shape.scratch,
            record: Mutex::default(),
            pending: Mutex::default(),
            buffers: Mutex::default(),
            driven: Mutex::new(vec![Driven::default(); shape.smmus.len()]),
            entries: AtomicU64::new(0),
            most_accesses: AtomicU64::new(0),
        })
    }

    /// The machine.
    pub fn machine(&self) -> MachineGuard<'_> {
        self.hypervisor.platform().machine()
    }

    /// StreamIDs of an SMMU that its firmware tables map Requester IDs to.
    pub fn mapped_streams(&self, smmu: usize) -> impl Iterator<Item = u32> {
        let smmus = self.devices.len();
        let functions = self.devices[smmu].iter().filter(|device| device.rid != 0);
        functions.flat_map(move |device| device.stream..device.stream + streams_from(smmus, device))
    }

    /// An entry of EL2, whose work is counted.
    pub(crate) fn entry<T>(&self, enter: impl FnOnce(&Hypervisor<ModelPlatform>) -> T) -> T {
        let before = self.machine().accesses;
        let answer = enter(&self.hypervisor);
        let accesses = self.machine().accesses - before;
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.most_accesses.fetch_max(accesses, Ordering::Relaxed);
        answer
    }

    /// Entries of EL2 so far: calls of the host's, and accesses that trapped.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// The most that EL2 did in one entry: reads and writes of memory and registers, and pages wiped.
    pub fn most_accesses(&self) -> u64 {
        self.most_accesses.load(Ordering::Relaxed)
    }

    /// A hypercall: `X0` to `X4`. What came of it is recorded.
    pub fn call_raw(&self, id: u32, arguments: [u64; 4]) -> [u64; 5] {
        let before = self.needless();
        let answer = self.entry(|hypervisor| hypervisor.hypercall(id, arguments)).x;
        let Some(function) = Function::from_id(id) else { return answer };
        match function {
            Function::VsmmuInvalidate => self.forgive_needless(&before),
            Function::StreamAttach => self.forgive_first_ats(arguments[0] as usize, arguments[1] as u32),
            _ => {}
        }
        let ask =
            |function: Function, arguments: [u64; 4]| self.hypervisor.hypercall(function.id(), arguments).x;
        let may_return = matches!(
            function,
            Function::StreamDetach | Function::VsmmuRemoveStream | Function::GuestTeardown
        );
        let taken = if may_return { self.taken() } else { Vec::new() };
        Arc::make_mut(&mut self.record_mut()).update(function, arguments, answer, ask);
        for (smmu, stream) in taken.into_iter().filter(|(smmu, stream)| !self.is_taken(*smmu, *stream)) {
            self.after_return(smmu, stream);
            self.forgive_first_ats(smmu, stream);
        }
        answer
    }

    /// Streams that calls attached, or that are in a vSMMU.
    fn taken(&self) -> Vec<(usize, u32)> {
        let record = self.record();
        let in_vsmmus = record.vsmmus.iter().flat_map(|(_, vsmmu)| {
            vsmmu.streams.values().map(|stream| (vsmmu.smmu, *stream)).collect::<Vec<_>>()
        });
        let mut taken: Vec<_> = record.streams.keys().copied().chain(in_vsmmus).collect();
        taken.sort_unstable();
        taken.dedup();
        taken
    }

    /// How many invalidations each SMMU got that no cache could need.
    pub(crate) fn needless(&self) -> Vec<usize> {
        self.machine().smmus.iter().map(|smmu| smmu.needless.len()).collect()
    }

    /// What the owner of a vSMMU, or the host's driver, sends for nothing is its own business.
    pub(crate) fn forgive_needless(&self, before: &[usize]) {
        for (smmu, length) in self.machine().smmus.iter_mut().zip(before) {
            smmu.needless.truncate(*length);
        }
    }

    /// 3.9.1: the model knows of no ATC that is filled before ATS is first on, but an owner before this one may have.
    fn forgive_first_ats(&self, smmu: usize, stream: u32) {
        let mut machine = self.machine();
        let decoded = machine.decoded_in_memory(smmu, stream);
        if decoded.is_some_and(|decoded| decoded.eats != Eats::Off)
            && let Some(smmu) = machine.smmus.get_mut(smmu)
        {
            let off = format!("ATS of stream {stream:#x} was off");
            smmu.needless.retain(|text| !text.ends_with(&off));
        }
    }

    /// What the streams of an emulated SMMU should do by what its driver has done.
    pub fn driven(&self, smmu: usize) -> Driven {
        let driven = self.driven.lock().unwrap_or_else(PoisonError::into_inner);
        driven.get(smmu).cloned().unwrap_or_default()
    }

    pub(crate) fn set_driven(&self, smmu: usize, now: Driven) {
        let mut driven = self.driven.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = driven.get_mut(smmu) {
            *place = now;
        }
    }

    /// A hypercall that answers a status; with an error comes what it has in `X1`.
    pub fn call_detail(&self, function: Function, arguments: [u64; 4]) -> Result<[u64; 4], (Status, u64)> {
        let [x0, x1, x2, x3, x4] = self.call_raw(function.id(), arguments);
        match Status::from_register(x0) {
            Some(Status::Success) => Ok([x1, x2, x3, x4]),
            Some(status) => Err((status, x1)),
            None => {
                self.machine()
                    .violations
                    .record(format!("{function:?} answered the undefined status {x0:#x}"));
                Err((Status::Invalid, 0))
            }
        }
    }

    /// A hypercall that answers a status.
    pub fn call(&self, function: Function, arguments: [u64; 4]) -> Result<[u64; 4], Status> {
        self.call_detail(function, arguments).map_err(|(status, _)| status)
    }

    /// What the calls so far have made.
    pub fn record(&self) -> Arc<Record> {
        Arc::clone(&self.record_mut())
    }

    fn record_mut(&self) -> MutexGuard<'_, Arc<Record>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A range call, repeated until all of the range is done; the error of the first step that is refused.
    pub fn whole(&self, function: Function, start: u64, size: u64, who: u64) -> Result<(), Status> {
        let mut done = 0;
        while done < size {
            let step = self.call(function, [start + done, size - done, who, 0])?[0];
            if step == 0 || done + step > size {
                self.machine()
                    .violations
                    .record(format!("{function:?} of {size:#x} bytes did {step:#x} after {done:#x}"));
                return Err(Status::Invalid);
            }
            done += step;
        }
        Ok(())
    }

    /// STREAM_ATTACH of a device: 0 the one that writes at once, 1 the delayed one.
    pub fn attach(&self, smmu: usize, device: usize, domain: u64) -> Result<(), Status> {
        let stream = u64::from(self.devices[smmu][device].stream);
        self.call(Function::StreamAttach, [smmu as u64, stream, domain, 0]).map(drop)
    }

    /// STREAM_DETACH of a device.
    pub fn detach(&self, smmu: usize, device: usize) -> Result<(), Status> {
        let stream = u64::from(self.devices[smmu][device].stream);
        self.call(Function::StreamDetach, [smmu as u64, stream, 0, 0]).map(drop)
    }

    /// GUEST_CREATE.
    pub fn guest(&self) -> Result<u64, Status> {
        self.call(Function::GuestCreate, [0; 4]).map(|[guest, ..]| guest)
    }

    /// Whether a device's write reaches the page with the same physical address.
    pub fn reaches(&self, smmu: usize, device: usize, address: u64) -> bool {
        let stream = self.devices[smmu][device].stream;
        let mut machine = self.machine();
        match machine.dma_write(smmu, stream, address, 0x1122_3344_5566_7788) {
            crate::model::device::Dma::Aborted => false,
            crate::model::device::Dma::Reached(target) => {
                if target != address {
                    machine.violations.record(format!("DMA to {address:#x} reached {target:#x}"));
                }
                true
            }
        }
    }

    /// Warms the CPU's TLB and the IOTLB of a device for a page, as far as they may reach it.
    pub fn warm(&self, address: u64) {
        for smmu in 0..self.devices.len() {
            for device in 0..2 {
                let stream = self.devices[smmu][device].stream;
                let _ = self.machine().dma_read(smmu, stream, address);
            }
        }
        let _ = self.machine().cpu_translate(address, false);
    }

    /// The ownership unit.
    pub fn unit(&self) -> u64 {
        self.call(Function::Features, [0; 4]).map_or(4096, |[_, unit, ..]| unit)
    }
}
