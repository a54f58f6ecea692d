//! The SMMUs that the host's own drivers find: which access goes to which emulated SMMU, and what these ask of the rest of EL2.
//!
//! The lock of an emulated SMMU comes before all others.

use core::cell::Cell;

use smmuv3::address::PhysAddr;
use smmuv3::command::Command;
use smmuv3::event::EventRecord;
use smmuv3::invalidation::MAX_SMMUS;
use smmuv3::registers::{CMDQ_PROD_OFFSET, CR0, CR0_OFFSET, IDR1, IRQ_CTRL, IRQ_CTRL_OFFSET};
use smmuv3::ste::Stage1Claim;
use spin::Once;

use crate::devicetree::{Machine, SmmuInterrupts};
use crate::emulation::{Backend, DrainedEvent, EmulatedSmmu, Fault, Interrupt, NotHost, SetStreamError};
use crate::gic::{Access, Answer};
use crate::hypervisor::Hypervisor;
use crate::iommu::{Emulated, Iommu, StreamRefused};
use crate::list::List;
use crate::memory::{Ownership, Progress};
use crate::platform::Platform;
use crate::smmu::{Condition, NoEvent};
use crate::sync::{Guarded, Mutex, Rank};

/// GICD_ISPENDR0 (IHI 0069, 12.9), a bit for each INTID.
const GICD_ISPENDR: u64 = 0x200;
/// Bytes of the unit of ownership at the least.
const PAGE_BYTES: u64 = 0x1000;
/// Streams that one step of [`Backend::abort_all_step`] looks at, and those that it sets, at the most.
const LOOKS_PER_STEP: usize = 1024;
const ABORTS_PER_STEP: usize = 8;

/// The emulated SMMUs, by the index of the SMMU that they stand for; nothing where it cannot translate by both stages. Each is made in its
/// place: all of them together are more than a stack holds.
pub(crate) struct HostSmmus {
    smmus: [Once<HostSmmu>; MAX_SMMUS],
}

struct HostSmmu {
    base: PhysAddr,
    size_bytes: u64,
    emulation: Mutex<Emulation>,
}

pub(crate) struct Emulation {
    front: EmulatedSmmu,
    back: Back,
    accesses: u64,
    queue_stores: u64,
}

impl Guarded for Emulation {
    const RANK: Rank = Rank::EmulatedSmmu;
}

/// What the host's drivers did to all emulated SMMUs since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverCounters {
    /// Accesses of registers, each of them a trap.
    pub accesses: u64,
    /// Of these, stores to CMDQ_PROD.
    pub queue_stores: u64,
    /// CMD_SYNCs that were consumed.
    pub syncs: u64,
}

/// What belongs to an emulated SMMU behind its registers.
struct Back {
    iommu: Emulated,
    /// StreamIDs that devices behind the SMMU can have, each first and last.
    streams: List<(u32, u32), 16>,
    interrupts: SmmuInterrupts,
    gicd: PhysAddr,
    /// Where [`Backend::abort_all_step`] goes on.
    next_to_abort: Cell<u32>,
}

/// Keeps everybody from the registers of an emulated SMMU.
#[cfg(feature = "oracle")]
pub(crate) type Guard<'a> = crate::sync::MutexGuard<'a, Emulation>;

impl HostSmmus {
    /// None.
    pub(crate) const fn new() -> Self {
        Self { smmus: [const { Once::new() }; MAX_SMMUS] }
    }

    /// Those of a machine whose SMMUs are up.
    pub(crate) fn start<P: Platform>(&self, p: &P, iommu: &Iommu, machine: &Machine) {
        for ((index, node), place) in (0u8..).zip(machine.smmus.iter()).zip(&self.smmus) {
            let Some(emulated) = iommu.create_emulated(p, index) else { continue };
            let Some(ids) = iommu.driver_id_registers(usize::from(index)) else { continue };
            let front = EmulatedSmmu::new(ids, emulated.limits, emulated.vmid);
            let back = Back {
                iommu: emulated,
                streams: streams_of(machine, node.phandle, IDR1::SIDSIZE.read(ids.idr1)),
                interrupts: node.interrupts,
                gicd: machine.gicd.start(),
                next_to_abort: Cell::new(0),
            };
            place.call_once(|| HostSmmu {
                base: node.registers.start(),
                size_bytes: node.registers.size_bytes(),
                emulation: Mutex::new(Emulation { front, back, accesses: 0, queue_stores: 0 }),
            });
        }
    }

    /// Takes the locks of all of them, in the order of their indexes, which nobody else takes two of.
    #[cfg(feature = "oracle")]
    pub(crate) fn lock_all(&self) -> [Option<Guard<'_>>; MAX_SMMUS] {
        self.smmus.each_ref().map(|smmu| smmu.get().map(|smmu| crate::sync::lock_beside(&smmu.emulation)))
    }

    #[inline]
    fn at(&self, address: PhysAddr) -> Option<(&Mutex<Emulation>, u64)> {
        self.smmus.iter().filter_map(Once::get).find_map(|smmu| {
            let offset = address.0.wrapping_sub(smmu.base.0);
            (offset < smmu.size_bytes).then_some((&smmu.emulation, offset))
        })
    }
}

/// The StreamIDs that Requester IDs are mapped to, as far as an SMMU with `stream_bits` of them has them.
fn streams_of(machine: &Machine, phandle: u32, stream_bits: u32) -> List<(u32, u32), 16> {
    let mut streams = List::new();
    let most = u32::MAX.checked_shr(u32::BITS.saturating_sub(stream_bits)).unwrap_or(0);
    let maps = machine.pcie.iter().flat_map(|node| node.iommu_map.iter());
    for map in maps.filter(|map| phandle != 0 && map.phandle == phandle && map.length != 0) {
        let last = map.stream_base.saturating_add(map.length - 1).min(most);
        if map.stream_base > last {
            continue;
        }
        if streams.push((map.stream_base, last)).is_err() {
            log::warn!(
                "streams from {:#x} on stay parked: an SMMU has too many ranges of them",
                map.stream_base
            );
        }
    }
    streams
}

/// Phandles of SMMUs.
#[derive(Clone, Copy, Debug)]
pub struct SmmuPhandles {
    phandles: [u32; MAX_SMMUS],
    count: usize,
}

impl SmmuPhandles {
    /// The phandles, none of which is 0.
    pub fn as_slice(&self) -> &[u32] {
        self.phandles.get(..self.count).unwrap_or_default()
    }
}

impl<P: Platform> Hypervisor<P> {
    /// The phandles of the SMMUs that the host has, for its device tree.
    pub fn host_smmu_phandles(&self) -> SmmuPhandles {
        let mut found = SmmuPhandles { phandles: [0; MAX_SMMUS], count: 0 };
        let nodes = self.machine().into_iter().flat_map(|machine| machine.smmus.iter());
        for (node, smmu) in nodes.zip(&self.host_smmus.smmus) {
            if smmu.is_completed()
                && node.phandle != 0
                && let Some(place) = found.phandles.get_mut(found.count)
            {
                *place = node.phandle;
                found.count += 1;
            }
        }
        found
    }

    /// Has the host's driver have a stream that came back, as its stream table says now.
    #[cold]
    pub(crate) fn return_stream(&self, smmu: usize, stream: u32) {
        if let Some(smmu) = self.host_smmus.smmus.get(smmu).and_then(Once::get) {
            let Emulation { front, back, .. } = &mut *smmu.emulation.lock();
            front.refresh_stream(&HostBackend { hypervisor: self, back }, stream);
        }
    }

    /// What the host's drivers did.
    pub fn driver_counters(&self) -> DriverCounters {
        let mut sum = DriverCounters::default();
        for smmu in self.host_smmus.smmus.iter().filter_map(Once::get) {
            let Emulation { front, accesses, queue_stores, .. } = &*smmu.emulation.lock();
            sum.accesses = sum.accesses.wrapping_add(*accesses);
            sum.queue_stores = sum.queue_stores.wrapping_add(*queue_stores);
            sum.syncs = sum.syncs.wrapping_add(front.syncs());
        }
        sum
    }

    /// The short way of [`Hypervisor::host_smmu_access`] for what a driver does all the time: a load of a word that only looks, and a store
    /// of one to CMDQ_PROD. `None` for any other access, of which nothing is done.
    #[inline]
    pub(crate) fn usual_host_smmu_access(&self, address: PhysAddr, access: Access) -> Option<Answer> {
        let (emulated, offset) = self.host_smmus.at(address)?;
        let Emulation { front, back, accesses, queue_stores } = &mut *emulated.lock();
        let answer = match access.write {
            None => Answer::Done(front.peek(offset, access.size_bytes)?.into()),
            Some(value) if offset == CMDQ_PROD_OFFSET && access.size_bytes == 4 => {
                *queue_stores = queue_stores.wrapping_add(1);
                front.write_cmdq_prod(&HostBackend { hypervisor: self, back }, value as u32).into()
            }
            Some(_) => return None,
        };
        *accesses = accesses.wrapping_add(1);
        Some(answer)
    }

    /// A load or a store of the host's in the registers of an SMMU that it has; `None` if there is none at the address.
    pub(crate) fn host_smmu_access(&self, address: PhysAddr, access: Access) -> Option<Answer> {
        let (emulated, offset) = self.host_smmus.at(address)?;
        let mut emulated = emulated.lock();
        let Emulation { front, back, accesses, queue_stores } = &mut *emulated;
        *accesses = accesses.wrapping_add(1);
        let backend = HostBackend { hypervisor: self, back };
        let Some(value) = access.write else {
            return Some(Answer::Done(front.read(&backend, offset, access.size_bytes)));
        };
        *queue_stores = queue_stores.wrapping_add(u64::from(offset == CMDQ_PROD_OFFSET));
        if offset == CR0_OFFSET && value as u32 & CR0::SMMUEN::SET.value != 0 {
            // A call that gives a stream back looks whether there is a driver: it has to know before the first STE is looked at.
            self.iommu.set_driver(&back.iommu, true);
        }
        let progress = front.write(&backend, offset, access.size_bytes, value);
        if offset == IRQ_CTRL_OFFSET {
            backend.mirror_interrupts(front.read(&backend, IRQ_CTRL_OFFSET, 4) as u32);
        }
        if offset == CR0_OFFSET {
            self.iommu.set_driver(&back.iommu, front.is_active());
        }
        Some(progress.into())
    }
}

impl From<Progress> for Answer {
    #[inline]
    fn from(progress: Progress) -> Self {
        match progress {
            Progress::Done => Self::Done(0),
            Progress::Again => Self::Again,
        }
    }
}

/// The rest of EL2, as an emulated SMMU sees it.
struct HostBackend<'a, P: Platform> {
    hypervisor: &'a Hypervisor<P>,
    back: &'a Back,
}

impl<P: Platform> HostBackend<'_, P> {
    /// Has the SMMU interrupt as its driver wants it to. One that does not take it interrupts as before.
    ///
    /// It records events from before there is a driver, and interrupts for one that finds its queue empty only: so that is emptied.
    fn mirror_interrupts(&self, irq_ctrl: u32) {
        let Self { hypervisor, back } = self;
        let index = usize::from(back.iommu.smmu);
        let (events, errors) =
            (IRQ_CTRL::EVENTQ_IRQEN.is_set(irq_ctrl), IRQ_CTRL::GERROR_IRQEN.is_set(irq_ctrl));
        if let Some(device) = hypervisor.iommu.set().get(index) {
            let _ = device.set_interrupts(&hypervisor.platform, events, errors);
        }
        if events && !hypervisor.iommu.set().empty_event_queue(&hypervisor.platform, index) {
            self.raise(Interrupt::EventQueue);
        }
    }

    fn fault(&self) -> Fault {
        let device = self.hypervisor.iommu.set().get(usize::from(self.back.iommu.smmu));
        match device.map(|device| device.condition()) {
            Some(Condition::Running | Condition::Off) => Fault::Incomplete,
            Some(Condition::Dead | Condition::Lost) | None => Fault::Dead,
        }
    }

    /// Looks at or changes `size_bytes` of host memory, which lie in one page, while the host owns it.
    #[inline]
    fn with_host<T>(
        &self,
        address: PhysAddr,
        size_bytes: usize,
        act: impl FnOnce(&P) -> T,
    ) -> Result<T, NotHost> {
        debug_assert!(size_bytes as u64 <= PAGE_BYTES - address.0 % PAGE_BYTES, "{size_bytes} at {address}");
        let p = &self.hypervisor.platform;
        let memory: &Ownership = &self.hypervisor.memory.lock();
        memory.check_host_page(p, address).map_err(|_| NotHost)?;
        Ok(act(p))
    }
}

impl<P: Platform> Backend for HostBackend<'_, P> {
    fn read_host<const N: usize>(&self, address: PhysAddr) -> Result<[u64; N], NotHost> {
        self.with_host(address, N * 8, |p| {
            core::array::from_fn(|word| p.read_host_u64(address.offset(word as u64 * 8)))
        })
    }

    #[inline]
    fn read_commands(&self, address: PhysAddr, commands: &mut [Command]) -> Result<(), NotHost> {
        self.with_host(address, size_of_val(commands), |p| {
            for (at, command) in (address.0..).step_by(16).zip(commands) {
                command.0 = [p.read_host_u64(PhysAddr(at)), p.read_host_u64(PhysAddr(at.wrapping_add(8)))];
            }
        })
    }

    fn write_event(&self, address: PhysAddr, EventRecord(words): EventRecord) -> Result<(), NotHost> {
        self.with_host(address, 32, |p| {
            for (at, word) in (address.0..).step_by(8).zip(words) {
                p.write_host_u64(PhysAddr(at), word);
            }
        })
    }

    #[inline]
    fn write_host_u32(&self, address: PhysAddr, value: u32) -> Result<(), NotHost> {
        self.with_host(address, 4, |p| p.write_host_u32(address, value))
    }

    fn next_stream(&self, from: u32) -> Option<u32> {
        let ranges = self.back.streams.iter().filter(|(_, last)| from <= *last);
        ranges.map(|(first, _)| from.max(*first)).min()
    }

    fn hosts_stream(&self, stream: u32) -> Option<u32> {
        let Self { hypervisor, back } = self;
        hypervisor.iommu.is_emulated_stream(&hypervisor.platform, &back.iommu, stream).then_some(stream)
    }

    fn set_stream(&self, stream: u32, claim: Option<Stage1Claim>) -> Result<(), SetStreamError> {
        let Self { hypervisor, back } = self;
        let (iommu, p) = (&hypervisor.iommu, &hypervisor.platform);
        let set = |claim| iommu.set_emulated_stream(p, &back.iommu, stream, claim, &mut hypervisor.pages());
        let claim = claim.unwrap_or(Stage1Claim::ABORT);
        let result = match set(claim) {
            // What it was before is not what its driver wants: nothing may pass.
            Err(StreamRefused::NoMemory) => set(Stage1Claim::ABORT).and(Err(StreamRefused::NoMemory)),
            other => other,
        };
        result.map_err(|refused| match refused {
            StreamRefused::BadSte | StreamRefused::BadStreamId => SetStreamError::Refused,
            StreamRefused::NoMemory => SetStreamError::NoMemory,
            StreamRefused::Busy => SetStreamError::NotHosts,
            StreamRefused::Hardware => SetStreamError::Fault(self.fault()),
        })
    }

    #[inline]
    fn invalidate(&self, commands: &[Command]) -> Result<(), Fault> {
        let Self { hypervisor, back } = self;
        let done = hypervisor.iommu.invalidate_emulated(&hypervisor.platform, &back.iommu, commands);
        done.map_err(|_| self.fault())
    }

    fn abort_all_step(&self) -> Result<Progress, Fault> {
        let mut aborted = 0;
        for _ in 0..LOOKS_PER_STEP {
            let Some(stream) = self.next_stream(self.back.next_to_abort.get()) else {
                self.back.next_to_abort.set(0);
                return Ok(Progress::Done);
            };
            if self.hosts_stream(stream).is_some() {
                if aborted == ABORTS_PER_STEP {
                    return Ok(Progress::Again);
                }
                aborted += 1;
                let mut set = self.set_stream(stream, None);
                if set == Err(SetStreamError::Fault(Fault::Incomplete)) {
                    // What fails once may succeed the second time.
                    set = self.set_stream(stream, None);
                }
                if let Err(SetStreamError::Fault(fault)) = set {
                    return Err(fault);
                }
            }
            match stream.checked_add(1) {
                Some(next) => self.back.next_to_abort.set(next),
                None => {
                    self.back.next_to_abort.set(0);
                    return Ok(Progress::Done);
                }
            }
        }
        Ok(Progress::Again)
    }

    fn next_event(&self) -> Result<DrainedEvent, NoEvent> {
        let Self { hypervisor, back } = self;
        hypervisor.iommu.set().take_driver_event(&hypervisor.platform, usize::from(back.iommu.smmu))
    }

    fn drain_events(&self) -> u32 {
        let Self { hypervisor, back } = self;
        let set = hypervisor.iommu.set();
        set.drain_events_of(&hypervisor.platform, usize::from(back.iommu.smmu)) as u32
    }

    fn discard_events(&self) -> bool {
        let Self { hypervisor, back } = self;
        hypervisor.iommu.set().discard_driver_events(&hypervisor.platform, usize::from(back.iommu.smmu))
    }

    fn take_overflow(&self) -> bool {
        self.hypervisor.iommu.set().take_driver_overflow(usize::from(self.back.iommu.smmu))
    }

    fn look_for_errors(&self) -> Result<(), Fault> {
        let Self { hypervisor, back } = self;
        hypervisor.iommu.set().look_after_errors(&hypervisor.platform, usize::from(back.iommu.smmu));
        match self.fault() {
            Fault::Dead => Err(Fault::Dead),
            Fault::Incomplete => Ok(()),
        }
    }

    fn raise(&self, interrupt: Interrupt) {
        let interrupts = &self.back.interrupts;
        let intid = match interrupt {
            Interrupt::EventQueue => interrupts.events,
            Interrupt::CommandSync => interrupts.sync,
            Interrupt::GlobalError => interrupts.errors,
        };
        if let Some(intid) = intid {
            let register = self.back.gicd.offset(GICD_ISPENDR + u64::from(intid / 32) * 4);
            self.hypervisor.platform.write_register_u32(register, 1 << (intid % 32));
        }
    }
}
