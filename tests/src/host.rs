//! The checks of `host-shim`, run on the model machine.
//!
//! What QEMU runs and the model does not: the disk (there is no NVMe controller here), programs at EL1 (so no stage 1, no
//! instruction syndromes, no PSCI), bus numbers that change when bridges are written, an emulated GIC beyond the words that a
//! Redistributor's page stores, DMA masters without an SMMU that do DMA (so of the attacks those by fw_cfg, virtio-mmio, the ITS and LPI tables).
//! The check of 10,000 concurrent rounds is run by its own test with fewer rounds.
//!
//! What the model runs and QEMU cannot: everything in `tests/tests/hypervisor` but `checks.rs`. A cache that keeps entries for
//! ever, commands that take effect only with a SYNC, SYNC that waits for transactions, TTL and Leaf hints taken at their word, invalid
//! STEs in the configuration cache, SMMUs without RIL or BBML or with other granules and sizes, slow queues, failing
//! commands, failing allocations.

use crate::bench::{Bench, IMAGE, POOL, POOL_BYTES};
use crate::model::cpu::CpuFault;
use crate::model::device::Dma as Reached;
use crate::model::memory::Span;
use crate::model::stage2::WalkFault;
use crate::model::{ECAM, FW_CFG, ITS, RAM_BASE, SMMU_BASE, SMMU_BYTES, UART};
use host_shim::call::{Caller, Calls};
use host_shim::host::{Abort, DMA_VALUE, Device, Dma, Forbidden, Host, Transfer};
use hyp::esr::{HostAbort, Syndrome};
use hyp::hypervisor::AbortAction;
use std::fmt;

/// How often the host runs an instruction again before the model gives up.
const RETRIES: usize = 1000;

/// The bits of so many bytes, 8 at the most.
const fn low_bytes(bytes: u8) -> u64 {
    u64::MAX >> (64 - 8 * bytes as u32)
}

impl Bench {
    /// An access of the host's CPU: where it goes, or what EL2 answered for it. What a store to an emulated SMMU does is taken in.
    pub fn access(&self, address: u64, bytes: u8, write: Option<u64>) -> Result<Result<u64, u64>, Abort> {
        let smmus = Span::new(SMMU_BASE, SMMU_BYTES * self.devices.len() as u64);
        let Some(value) = write.filter(|_| smmus.contains(address)) else {
            return self.access_again(address, bytes, write);
        };
        let smmu = ((address - SMMU_BASE) / SMMU_BYTES) as usize;
        let before = self.needless();
        let waiting = self.before_store(smmu, (address - SMMU_BASE) % SMMU_BYTES, value);
        let answer = self.access_again(address, bytes, write);
        if answer.is_ok() {
            self.after_store(smmu, &waiting);
        }
        self.forgive_needless(&before);
        answer
    }

    /// An access of the host's CPU, made again as often as EL2 wants.
    fn access_again(&self, address: u64, bytes: u8, write: Option<u64>) -> Result<Result<u64, u64>, Abort> {
        // DDI 0487, D8.2: with more bits than a physical address has, it is an Address size fault of stage 1, which EL1 takes itself.
        if address >> 48 != 0 {
            return Err(Abort);
        }
        for _ in 0..RETRIES {
            let fault = match self.machine().cpu_translate(address, write.is_some()) {
                Ok(target) => return Ok(Ok(target)),
                Err(fault) => fault,
            };
            match self.abort(fault, address, bytes, write) {
                AbortAction::Retry => continue,
                AbortAction::Emulated { register } => return Ok(Err(register.map_or(0, |(_, value)| value))),
                AbortAction::Inject => return Err(Abort),
            }
        }
        self.machine()
            .violations
            .record(format!("EL2 lets the host run the access to {address:#x} again and again"));
        Err(Abort)
    }

    /// One step of a store of a 32-bit register that EL2 emulates: whether there are more.
    pub fn store_step(&self, address: u64, value: u32) -> bool {
        let fault = CpuFault::Walk(WalkFault::Translation(3));
        self.abort(fault, address, 4, Some(u64::from(value))) == AbortAction::Retry
    }

    /// What EL2 does about a stage-2 abort.
    fn abort(&self, fault: CpuFault, address: u64, bytes: u8, write: Option<u64>) -> AbortAction {
        // ESR_EL2 (DDI 0487, D24.2.40): data abort from EL1, ISV, SAS, SRT = 5, SF, WnR, DFSC of a stage-2 fault at level 3.
        let status = match fault {
            CpuFault::Walk(_) => 0x07,
            CpuFault::Permission(_) => 0x0f,
        };
        let sas = u64::from(bytes.trailing_zeros());
        let syndrome = 0x24 << 26 | 1 << 25 | 1 << 24 | sas << 22 | 5 << 16 | 1 << 15;
        let abort = HostAbort {
            syndrome: Syndrome(syndrome | u64::from(write.is_some()) << 6 | status),
            far: address,
            hpfar: (address >> 12) << 4,
            stored: write.unwrap_or(0),
        };
        self.entry(|hypervisor| hypervisor.host_abort(&abort))
    }

    fn behind(&self, smmu: usize, device: Device) -> Option<crate::bench::Behind> {
        let place = match device {
            Device::Immediate => 0,
            Device::Delayed => 1,
            Device::Disk => return None,
        };
        self.devices.get(smmu).and_then(|pair| pair.get(place)).copied()
    }
}

impl Caller for Bench {
    fn call_raw(&self, id: u32, arguments: [u64; 4]) -> [u64; 5] {
        Bench::call_raw(self, id, arguments)
    }
}

impl Host for Bench {
    fn smmus(&self) -> usize {
        self.devices.len()
    }

    fn stream(&self, smmu: usize, device: Device) -> Option<u32> {
        self.behind(smmu, device).map(|behind| behind.stream)
    }

    fn dma_write_at(&self, smmu: usize, address: u64, expected: u64) -> Dma {
        let Some(behind) = self.behind(smmu, Device::Immediate) else { return Dma::Unreachable };
        if self.access(behind.bar, 4, None).is_err() {
            return Dma::Unreachable;
        }
        match self.machine().dma_write_u32(smmu, behind.stream, address, DMA_VALUE) {
            Reached::Aborted => Dma::Faulted,
            Reached::Reached(target) if target == expected => Dma::Landed,
            Reached::Reached(_) => Dma::Elsewhere,
        }
    }

    fn start(&self, smmu: usize, transfer: Transfer) -> Result<(), Abort> {
        let behind = self.behind(smmu, Device::Delayed).ok_or(Abort)?;
        let _ = self.access(behind.bar, 4, Some(1))?;
        self.pending.lock().map_err(|_| Abort)?.push((smmu, transfer));
        Ok(())
    }

    fn settle(&self) {
        let Ok(mut pending) = self.pending.lock() else { return };
        let Ok(mut buffers) = self.buffers.lock() else { return };
        for (smmu, transfer) in pending.drain(..) {
            let stream = self.devices[smmu][1].stream;
            let mut machine = self.machine();
            match transfer {
                Transfer::FromMemory(address) => {
                    let value = machine.dma_read(smmu, stream, address).unwrap_or(0);
                    buffers.insert(smmu, value);
                }
                Transfer::ToMemory(address) => {
                    let value = buffers.get(&smmu).copied().unwrap_or(0);
                    let _ = machine.dma_write(smmu, stream, address, value);
                }
            }
        }
    }

    fn cpu_load(&self, address: u64, bytes: u8) -> Result<u64, Abort> {
        let target = match self.access(address, bytes, None)? {
            Ok(target) => target,
            Err(value) => return Ok(value),
        };
        let mut machine = self.machine();
        let value = match machine.memory.read(target & !7) {
            Some(word) => word >> (8 * (target & 7)),
            None if bytes == 8 => machine.read_register_u64(target),
            None => u64::from(machine.read_register_u32(target & !3)) >> (8 * (target & 3)),
        };
        Ok(value & low_bytes(bytes))
    }

    fn cpu_store(&self, address: u64, bytes: u8, value: u64) -> Result<(), Abort> {
        if let Ok(target) = self.access(address, bytes, Some(value))? {
            let mut machine = self.machine();
            match machine.memory.read(target & !7) {
                Some(old) => {
                    let shift = 8 * (target & 7);
                    let kept = old & !(low_bytes(bytes) << shift);
                    machine.memory.write(target & !7, kept | (value & low_bytes(bytes)) << shift);
                }
                None if bytes == 8 => machine.write_register_u64(target, value),
                None => machine.write_register_u32(target & !3, value as u32),
            }
        }
        Ok(())
    }

    fn scratch(&self) -> u64 {
        self.scratch
    }

    fn forbidden(&self, index: usize) -> Option<Forbidden> {
        let smmus = self.devices.len();
        let ram = self.scratch;
        let (name, address, cpu_refused, cpu_control) = match index {
            0 => ("the hypervisor's image", IMAGE, true, ram),
            1 => ("the hypervisor's pool", POOL + 0x1000, true, ram),
            2 => ("the UART", UART.start, false, UART.start),
            3 => ("fw_cfg", FW_CFG.start, true, UART.start),
            4 => ("the ITS", ITS.start, true, UART.start),
            n if n - 5 < smmus => {
                // Where it can nest, the CPU finds an SMMU of its own there.
                let nests = self.smmu_features(n - 5).is_ok_and(|ids| ids.idr0 & 1 << 1 != 0);
                ("an SMMU", SMMU_BASE + SMMU_BYTES * (n as u64 - 5), !nests, UART.start)
            }
            _ => return None,
        };
        Some(Forbidden { name, address, cpu_refused, cpu_control })
    }

    fn hypervisor_memory(&self) -> u64 {
        POOL + POOL_BYTES - 0x1_0000
    }

    fn not_ram(&self) -> u64 {
        RAM_BASE + (1 << 30)
    }

    fn config_page(&self, smmu: usize, device: Device, index: usize) -> Option<u64> {
        let rid = u64::from(self.behind(smmu, device)?.rid);
        if rid == 0 {
            return None;
        }
        let port = (rid >> 8 & 7) << 3 | (rid >> 8 & !7) << 8;
        match index {
            0 => Some(ECAM.start + (port << 12)),
            1 => Some(ECAM.start + (rid << 12)),
            _ => None,
        }
    }

    fn on_each_cpu(&self, job: &(dyn Fn(usize) + Sync)) -> usize {
        std::thread::scope(|scope| {
            for cpu in 0..4 {
                scope.spawn(move || job(cpu));
            }
        });
        4
    }

    fn ticks(&self) -> u64 {
        self.machine().now_ns
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        println!("{line}");
    }
}
