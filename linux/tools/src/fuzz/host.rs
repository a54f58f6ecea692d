//! Root of Linux as a hostile host: calls by the module, its pages by the module, the rest of memory by `/dev/mem`.

use alloc::vec::Vec;
use core::fmt;

use host_shim::bus::Bus;
use host_shim::call::{Caller, Calls, Refused};
use host_shim::devices::{edu, testdev};
use host_shim::forbidden;
use host_shim::host::{Abort, Device as Kind, Dma, Forbidden, Host, SCRATCH_BYTES, Transfer};
use host_shim::hostile::Action;
use host_shim::tree::Run;
use hyp_iommu_uapi::Request;

use super::System;
use super::options::Loose;
use crate::device::{self, Calling, Device, Errno};

/// The most SMMUs.
pub const MAX_SMMUS: usize = 8;

/// A device behind an SMMU: StreamID, and address of its registers.
#[derive(Clone, Copy, Debug)]
struct Function {
    stream: u32,
    registers: u64,
}

/// What is behind an SMMU and Linux has let go of.
#[derive(Clone, Copy, Debug, Default)]
struct Behind {
    testdev: Option<Function>,
    edu: Option<Function>,
}

/// Root, with what it may use.
pub struct Linux<'a, D: ?Sized, S> {
    device: &'a D,
    system: &'a S,
    scratch: u64,
    behind: [Behind; MAX_SMMUS],
    smmus: usize,
    forbidden: Vec<Forbidden>,
    memory: Vec<Run>,
    kept: Vec<Run>,
}

/// Physical memory as the CPU reaches it, for the drivers of devices.
struct Physical<'a, S>(&'a S);

impl<'a, D: Device + Sync + ?Sized, S: System> Linux<'a, D, S> {
    /// With this memory of the module's, these devices, the machine's memory, and what of it is the hypervisor's.
    ///
    /// # Errors
    ///
    /// The SMMU of a device is not one of the hypervisor's.
    pub fn new(
        device: &'a D,
        system: &'a S,
        scratch: u64,
        devices: &[Loose],
        memory: Vec<Run>,
        kept: Vec<Run>,
    ) -> Result<Self, Loose> {
        let calls = Calling(device);
        let mut bases = Vec::new();
        while let Ok(about) = calls.describe_smmu(bases.len()) {
            bases.push(about.base);
        }
        let mut behind = [Behind::default(); MAX_SMMUS];
        for loose in devices {
            let smmu = bases.iter().position(|base| *base == loose.smmu);
            let place = smmu.and_then(|smmu| behind.get_mut(smmu)).ok_or(*loose)?;
            let function = Some(Function { stream: loose.stream, registers: loose.registers });
            if loose.kind == Kind::Delayed { place.edu = function } else { place.testdev = function }
        }
        let smmus = bases.len().min(MAX_SMMUS);
        let bar = |smmu: usize| behind.get(smmu)?.testdev.map(|function| function.registers);
        let run = |n: usize| kept.get(n).copied();
        let forbidden = (0..).map_while(|n| forbidden::place(&calls, n, smmus, bar, run, scratch)).collect();
        Ok(Self { device, system, scratch, behind, smmus, forbidden, memory, kept })
    }

    /// The pages that are accessed past the module: registers of devices, and places that are out of the CPUs' reach.
    pub fn pages(&self) -> Vec<u64> {
        let functions = self.behind.iter().flat_map(|behind| [behind.testdev, behind.edu]).flatten();
        let registers = functions.map(|function| function.registers);
        let refused = self.forbidden.iter().filter(|place| place.cpu_refused).map(|place| place.address);
        let mut pages: Vec<u64> = registers.chain(refused).map(|address| address & !0xfff).collect();
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    /// Whether root can do this at all, and whether Linux outlives it: the registers of SMMUs and of the interrupt controller are its drivers', and a device that is
    /// in the host's domain writes to whatever memory of Linux's it is told to.
    pub fn can(&self, action: &Action) -> bool {
        match *action {
            Action::Driver(_) | Action::Interrupts(_) => false,
            Action::Load { address, .. } | Action::Store { address, .. } => {
                self.is_own(address) || self.is_refused(address)
            }
            Action::Write { smmu, address, .. } => {
                self.is_fair(address) && self.behind.get(smmu).is_some_and(|behind| behind.testdev.is_some())
            }
            Action::Start { smmu, transfer: Transfer::FromMemory(address) | Transfer::ToMemory(address) } => {
                self.is_fair(address) && self.behind.get(smmu).is_some_and(|behind| behind.edu.is_some())
            }
            Action::Call { .. } | Action::Invalidate { .. } | Action::Stage1(_) => true,
        }
    }

    fn is_own(&self, address: u64) -> bool {
        (self.scratch..self.scratch + SCRATCH_BYTES).contains(&address)
    }

    /// Whether it is a place out of the CPUs' reach.
    fn is_refused(&self, address: u64) -> bool {
        self.forbidden.iter().any(|place| place.cpu_refused && place.address & !7 == address & !7)
    }

    /// Whether no memory of Linux's is there but what this attack took.
    fn is_fair(&self, address: u64) -> bool {
        // A transfer may be of eight bytes.
        let at = Run { start: address & !7, size: 8 };
        let linux = self.memory.iter().any(|run| run.overlaps(at));
        !linux || self.is_own(address) || self.kept.iter().any(|run| run.overlaps(at))
    }

    fn word(&self, address: u64) -> Result<u64, Abort> {
        let read = self.device.request(Request::Read, [address & !7, 0, 0, 0, 0]);
        read.map(|[word, ..]| word).map_err(|_| Abort)
    }
}

/// The bits of so many bytes at an address within its word, and how far they are from the lowest.
const fn field(address: u64, bytes: u8) -> (u64, u32) {
    let mask = if bytes < 8 { (1 << (8 * bytes as u32)) - 1 } else { u64::MAX };
    (mask, 8 * (address & 7) as u32)
}

impl<D: Device + ?Sized, S> Caller for Linux<'_, D, S> {
    fn call_raw(&self, id: u32, arguments: [u64; 4]) -> [u64; 5] {
        Calling(self.device).call_raw(id, arguments)
    }
}

impl<D: Device + Sync + ?Sized, S: System> Host for Linux<'_, D, S> {
    fn try_call(&self, id: u32, arguments: [u64; 4]) -> Option<[u64; 5]> {
        let answer = self.call_raw(id, arguments);
        let [code, detail, ..] = answer;
        // Any other error is none that the module gives for a call: the judge finds that it is no status.
        let refusals = [Errno::NOT_ALLOWED, Errno::NO_ENTRY, Errno::BUSY, Errno::INVALID];
        let by_module =
            device::errno(Refused { code, detail }).is_some_and(|errno| refusals.contains(&errno));
        (!by_module).then_some(answer)
    }

    fn smmus(&self) -> usize {
        self.smmus
    }

    fn stream(&self, smmu: usize, device: Kind) -> Option<u32> {
        let behind = self.behind.get(smmu)?;
        let function = match device {
            Kind::Immediate => behind.testdev,
            Kind::Delayed => behind.edu,
            Kind::Disk => None,
        };
        function.map(|function| function.stream)
    }

    fn dma_write_at(&self, smmu: usize, address: u64, expected: u64) -> Dma {
        let Some(testdev) = self.behind.get(smmu).and_then(|behind| behind.testdev) else {
            return Dma::Unreachable;
        };
        // An old value of the same kind must not be taken for the one that is written now.
        if self.is_own(expected) {
            let _ = self.cpu_store(expected, 4, 0);
        }
        testdev::write(&Physical(self.system), testdev.registers, address, expected)
            .unwrap_or(Dma::Unreachable)
    }

    fn start(&self, smmu: usize, transfer: Transfer) -> Result<(), Abort> {
        let edu = self.behind.get(smmu).and_then(|behind| behind.edu).ok_or(Abort)?;
        edu::start(&Physical(self.system), edu.registers, transfer)
    }

    fn settle(&self) {
        // The last transfer was started before now.
        let begin = self.system.now_ns();
        while self.system.now_ns() - begin < 2 * edu::DELAY_NS {
            core::hint::spin_loop();
        }
    }

    fn cpu_load(&self, address: u64, bytes: u8) -> Result<u64, Abort> {
        if !self.is_own(address) {
            return self.system.load(address, bytes);
        }
        let (mask, shift) = field(address, bytes);
        Ok(self.word(address)? >> shift & mask)
    }

    fn cpu_store(&self, address: u64, bytes: u8, value: u64) -> Result<(), Abort> {
        if !self.is_own(address) {
            return self.system.store(address, bytes, value);
        }
        let (mask, shift) = field(address, bytes);
        let others = if bytes < 8 { self.word(address)? & !(mask << shift) } else { 0 };
        let word = others | (value & mask) << shift;
        let written = self.device.request(Request::Write, [address & !7, word, 0, 0, 0]);
        written.map(drop).map_err(|_| Abort)
    }

    fn scratch(&self) -> u64 {
        self.scratch
    }

    fn forbidden(&self, index: usize) -> Option<Forbidden> {
        self.forbidden.get(index).copied()
    }

    fn hypervisor_memory(&self) -> u64 {
        forbidden::unused(self.kept.iter().copied())
    }

    fn not_ram(&self) -> u64 {
        forbidden::NOTHING
    }

    fn on_each_cpu(&self, job: &(dyn Fn(usize) + Sync)) -> usize {
        job(0);
        1
    }

    fn ticks(&self) -> u64 {
        self.system.now_ns()
    }

    fn tick_unit(&self) -> &'static str {
        "ns"
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        self.system.say(line);
    }
}

impl<S: System> Bus for Physical<'_, S> {
    fn read_u32(&self, address: u64) -> Result<u32, Abort> {
        self.0.load(address, 4).map(|value| value as u32)
    }

    fn write_u32(&self, address: u64, value: u32) -> Result<(), Abort> {
        self.0.store(address, 4, value.into())
    }

    fn read_u64(&self, address: u64) -> Result<u64, Abort> {
        self.0.load(address, 8)
    }

    fn write_u64(&self, address: u64, value: u64) -> Result<(), Abort> {
        self.0.store(address, 8, value)
    }

    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }
}
