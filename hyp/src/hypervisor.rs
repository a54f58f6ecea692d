//! The hypervisor as one object: what the image builds at boot and calls on every exception.
//!
//! Locks, outermost first: that of an emulated SMMU, or of an ITS and then of the Redistributors' LPIs; `streams`; the attach lock inside
//! `iommu`, or `memory`; the event queue of an SMMU, the event ring, the events of a driver; and then the leaves, of which at most
//! one is held: a command queue's, or the pool's. [`Rank`] has them all.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::{DomainHandle, GuestHandle, Statistic, Status};
use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::gather::Gather;
use smmuv3::invalidation::DomainIndex;
use smmuv3::pgtable::{Blocks, PageTable};

use crate::devicetree::Machine;
use crate::esr::{DataAccess, HostAbort};
use crate::gic::{self, Access, Answer, Gic, GicError};
use crate::host_smmus::HostSmmus;
use crate::iommu::{Iommu, Refused, TrustedStreams};
use crate::list::List;
use crate::memory::pool::{PAGE_LOG2, Pool};
use crate::memory::{
    CachesFailed, Context, Failure, HeldSet, IoCaches, Layout, LayoutError, Ownership, Progress,
};
use crate::pci::RootBridges;
use crate::platform::Platform;
use crate::smmu::{self, StartError};
use crate::sync::{Guarded, Mutex, Rank};

/// The most streams that guests have at once.
pub(crate) const MAX_GUEST_STREAMS: usize = 64;

/// A stream that is attached to a guest, and what is out of the host's stage 2 for its sake.
#[derive(Clone, Copy)]
pub(crate) struct GuestStream {
    pub(crate) guest: GuestHandle,
    pub(crate) smmu: usize,
    pub(crate) stream: u32,
    pub(crate) held: HeldSet,
}

impl Guarded for List<GuestStream, MAX_GUEST_STREAMS> {
    const RANK: Rank = Rank::Streams;
}

/// What the image hands over at boot.
#[derive(Clone, Copy)]
pub struct Boot<'a> {
    /// What the device tree says.
    pub machine: &'a Machine,
    /// Physical address bits of every CPU (ID_AA64MMFR0_EL1.PARange).
    pub pa_bits: u8,
    /// All memory that the hypervisor keeps besides the pool: image, stacks, its device tree.
    pub image: &'a [PhysRange],
    /// Memory for tables, queues and the pool: 1 to 4 ranges, multiples of 64 KiB.
    pub pool: &'a [PhysRange],
}

/// Why the hypervisor cannot start. One sentence when displayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootError {
    /// An SMMU cannot be owned.
    Smmu(StartError),
    /// There is none: no device would be kept from anything.
    NoSmmu,
    /// The Redistributors cannot be mediated, or an ITS cannot be turned off.
    Gic(GicError),
    /// The host's address space cannot be laid out.
    Layout(LayoutError),
    /// The streams trusted with full ATS are said to be behind an SMMU, by its phandle, that there is not.
    TrustedStreams(u32),
}

impl From<StartError> for BootError {
    fn from(error: StartError) -> Self {
        Self::Smmu(error)
    }
}

impl From<GicError> for BootError {
    fn from(error: GicError) -> Self {
        Self::Gic(error)
    }
}

impl From<LayoutError> for BootError {
    fn from(error: LayoutError) -> Self {
        Self::Layout(error)
    }
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Smmu(error) => fmt::Display::fmt(error, f),
            Self::NoSmmu => f.write_str(
                "the device tree describes no SMMUv3, so nothing would keep devices from any memory",
            ),
            Self::Gic(error) => fmt::Display::fmt(error, f),
            Self::Layout(error) => fmt::Display::fmt(error, f),
            Self::TrustedStreams(phandle) => write!(
                f,
                "/chosen ats-trusted-streams names phandle {phandle:#x}, which is no SMMUv3 of the device tree"
            ),
        }
    }
}

impl core::error::Error for BootError {}

/// What the image does about a stage-2 abort of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortAction {
    /// The host runs the instruction again: the mapping was only away while a block was split or joined, or the store started more
    /// than one step of work.
    Retry,
    /// The access is done: the image goes on after the instruction.
    Emulated {
        /// For a load, the general-purpose register (31 is XZR) and what it gets, all 64 bits.
        register: Option<(u8, u64)>,
    },
    /// The host gets a synchronous External abort.
    Inject,
}

impl AbortAction {
    /// What follows from the answer to an emulated access.
    #[inline]
    fn of(access: DataAccess, answer: Answer) -> Self {
        match answer {
            Answer::Done(read) => {
                Self::Emulated { register: (!access.write).then(|| (access.register, access.loaded(read))) }
            }
            Answer::Again => Self::Retry,
        }
    }
}

/// The hypervisor.
pub struct Hypervisor<P: Platform> {
    pub(crate) platform: P,
    machine: Option<Machine>,
    gic: Option<Gic>,
    root_bridges: RootBridges,
    pub(crate) pool: Pool,
    pub(crate) iommu: Iommu,
    pub(crate) memory: Mutex<Ownership>,
    /// Streams of guests. Held by whoever attaches or detaches a stream or makes or ends a guest.
    pub(crate) streams: Mutex<List<GuestStream, MAX_GUEST_STREAMS>>,
    pub(crate) host_smmus: HostSmmus,
    io_blocks: bool,
    /// Bits of an address of a stage-2 domain.
    io_address_bits: u8,
    range_invalidation: bool,
    ending: AtomicBool,
    injected_aborts: AtomicU64,
    gic_accesses: AtomicU64,
    boot_ticks: AtomicU64,
}

impl<P: Platform> Hypervisor<P> {
    /// A hypervisor that owns nothing. It refuses every call until it is started; some 100 KiB, so build it where it stays.
    pub const fn new(platform: P) -> Self {
        Self {
            platform,
            machine: None,
            gic: None,
            root_bridges: RootBridges::new(),
            pool: Pool::new(),
            iommu: Iommu::new(),
            memory: Mutex::new(Ownership::new()),
            streams: Mutex::new(List::new()),
            host_smmus: HostSmmus::new(),
            io_blocks: false,
            io_address_bits: 0,
            range_invalidation: false,
            ending: AtomicBool::new(false),
            injected_aborts: AtomicU64::new(0),
            gic_accesses: AtomicU64::new(0),
            boot_ticks: AtomicU64::new(0),
        }
    }

    /// Takes the machine over: from the first step on no device reaches memory that is not its owner's.
    ///
    /// First every SMMU aborts everything. Then they are looked at, the host's address space is laid out and its tables
    /// made, and at last the SMMUs translate, with every stream parked. Called once, on one CPU, before the host
    /// runs.
    ///
    /// # Errors
    /// [`BootError`]: the host must not be started. SMMUs that were not started abort every transaction.
    pub fn start(&mut self, boot: Boot<'_>) -> Result<(), BootError> {
        let Self { platform: p, iommu, pool, .. } = self;
        let p = &*p;
        let bases = || boot.machine.smmus.iter().map(|smmu| smmu.registers.start());
        smmu::abort_all(p, bases())?;
        if boot.machine.smmus.is_empty() {
            return Err(BootError::NoSmmu);
        }
        let mut gic = Gic::find(p, boot.machine)?;
        let format =
            iommu.probe(p, boot.machine.smmus.iter().map(|smmu| (smmu.registers.start(), smmu.part)))?;

        let own = boot.image.iter().chain(boot.pool.iter()).copied();
        let layout = Layout::new(boot.machine, format.granule, own.chain(gic.pages()))?;
        let frame_words = add_pool(p, pool, boot.pool, layout.frame_table_bytes())?;
        let memory = self.memory.get_mut();
        layout.build(memory, p, pool, frame_words, boot.pa_bits, format.oas_bits, format.blocks)?;

        let io = *memory.host_io_table();
        let mut trusted = List::new();
        for node in boot.machine.ats_trusted.iter() {
            let Some(smmu) = boot.machine.smmu_by_phandle(node.phandle) else {
                return Err(BootError::TrustedStreams(node.phandle));
            };
            let last = node.first.saturating_add(node.count.saturating_sub(1));
            // As many fit as the device tree can name.
            let _ = trusted.push(TrustedStreams { smmu: smmu as u8, first: node.first, last });
            log::warn!("SMMU {smmu}: StreamIDs {:#x} to {last:#x} are trusted with full ATS", node.first);
        }
        iommu.start(p, io.geometry(), trusted, &mut PoolPages { p, pool, missing: 0 })?;
        log::info!(
            "{} SMMUs share the I/O page table at {}: granule {} KiB, {} bits in, {} bits out, {}",
            boot.machine.smmus.len(),
            io.root(),
            format.granule.bytes() >> 10,
            io.geometry().ia_bits(),
            io.geometry().oa_bits(),
            if format.blocks == Blocks::Never { "pages only" } else { "blocks" }
        );
        // A new service has no domains, so it cannot refuse.
        let _ = iommu.create_domain(DomainHandle::Host, io);
        self.host_smmus.start(p, iommu, boot.machine);
        self.range_invalidation = iommu.set().features().all(|features| features.range_invalidation);
        self.io_blocks = format.blocks != Blocks::Never;
        self.io_address_bits = io.geometry().ia_bits();
        self.root_bridges = RootBridges::find(p, boot.machine);
        if self.root_bridges.are_too_many() {
            log::warn!("the root buses have too many PCI bridges: no guest can have a stream");
        }
        gic.take_its(p, pool, boot.machine);
        self.gic = Some(gic);
        self.machine = Some(boot.machine.clone());
        Ok(())
    }

    /// The machine that the hypervisor runs on.
    pub const fn platform(&self) -> &P {
        &self.platform
    }

    /// The host's stage 2, for VTTBR_EL2 and VTCR_EL2. It stays where it is.
    pub fn host_stage2(&self) -> PageTable {
        *self.memory.lock().host_stage2()
    }

    /// Whether the host's stage 2 maps this IPA now. Without meaning once the host runs on, other than for a claim.
    pub fn host_reaches(&self, ipa: PhysAddr) -> bool {
        self.memory.lock().host_reaches(&self.platform, ipa)
    }

    /// Whether the host may know of the ITSs: all of them are mediated.
    pub fn host_has_its(&self) -> bool {
        let count = self.machine().map_or(0, |machine| machine.its.len());
        self.gic.as_ref().is_some_and(|gic| gic.mediated_its().count() == count)
    }

    /// What the device tree said, once started.
    pub(crate) const fn machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }

    /// The interrupt controller, once started.
    #[cfg(feature = "oracle")]
    pub(crate) const fn gic(&self) -> Option<&Gic> {
        self.gic.as_ref()
    }

    /// The bridges on the root buses, as they were before the host ran.
    pub(crate) const fn root_bridges(&self) -> &RootBridges {
        &self.root_bridges
    }

    /// The short way of [`Hypervisor::host_abort`] for what drivers of SMMUs do all the time. `None` for anything else, of which nothing is
    /// done.
    #[inline]
    pub fn usual_host_abort(&self, abort: &HostAbort) -> Option<AbortAction> {
        let access = abort.syndrome.access().filter(|_| abort.syndrome.fault().is_translation())?;
        let answer = self.usual_host_smmu_access(abort.ipa(), Access::of(access, abort.stored))?;
        Some(AbortAction::of(access, answer))
    }

    /// Deals with a stage-2 abort of the host. Bounded, and never fails: what cannot be helped is injected.
    pub fn host_abort(&self, abort: &HostAbort) -> AbortAction {
        let fault = abort.syndrome.fault();
        if fault.is_tlb_conflict() {
            // HPFAR_EL2 is UNKNOWN (DDI 0487, D24.2.63), so it can be anywhere.
            if let Some(everything) = PhysRange::new(PhysAddr(0), 1 << 48) {
                self.platform.invalidate_host_stage2(everything);
            }
            return AbortAction::Retry;
        }
        let ipa = abort.ipa();
        if fault.is_translation()
            && let Some(access) = abort.syndrome.access()
            && let Some(answer) = self.emulate(ipa, Access::of(access, abort.stored))
        {
            return AbortAction::of(access, answer);
        }
        // Under the lock nobody is between the break and the make.
        if fault.is_translation() && self.memory.lock().host_reaches(&self.platform, ipa) {
            return AbortAction::Retry;
        }
        self.injected_aborts.fetch_add(1, Ordering::Relaxed);
        AbortAction::Inject
    }

    /// An access of the host's to an emulated register; `None` if there is none at the address.
    #[inline]
    pub(crate) fn emulate(&self, address: PhysAddr, access: Access) -> Option<Answer> {
        if let Some(answer) = self.host_smmu_access(address, access) {
            return Some(answer);
        }
        let services = gic::Services { platform: &self.platform, pool: &self.pool, memory: &self.memory };
        let answer = self.gic.as_ref()?.access(services, address, access)?;
        self.gic_accesses.fetch_add(1, Ordering::Relaxed);
        Some(answer)
    }

    /// One bounded step of what comes before the machine is reset or turned off: guests' streams are detached and
    /// their memory, and quarantined memory, is wiped. From the first step on every other call answers `BUSY`. Once it
    /// has answered [`Progress::Done`] it does so always.
    pub fn end_step(&self) -> Progress {
        self.ending.store(true, Ordering::SeqCst);
        {
            let mut streams = self.streams.lock();
            for _ in 0..DETACHES_PER_STEP {
                let Some(stream) = streams.pop() else { break };
                self.detach_at_end(&stream);
            }
            if !streams.is_empty() {
                return Progress::Again;
            }
        }
        let mut memory = self.memory.lock();
        memory.begin_end();
        memory.wipe_step(&self.platform)
    }

    /// Detaches a stream of a guest for good. A command that is refused leaves the stream where it was, and the SMMU goes on: then it is tried
    /// once more, and an SMMU that fails again is off, or is turned off. One that does not let itself be turned off cannot be helped.
    fn detach_at_end(&self, stream: &GuestStream) {
        let GuestStream { smmu, stream, .. } = *stream;
        let detach = || self.iommu.detach(&self.platform, smmu, stream, &mut self.pages());
        if detach().or_else(|_| detach()).is_err() {
            self.iommu.set().shut_down(&self.platform, smmu);
        }
    }

    /// Whether the machine is being reset or turned off.
    #[inline]
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Moves events from the hardware queues to the ring; bounded.
    pub fn drain_events(&self) {
        self.iommu.set().drain_events(&self.platform);
    }

    /// Records the generic timer ticks from EL2's entry on the first CPU to its first exception return to EL1.
    pub fn set_boot_ticks(&self, ticks: u64) {
        self.boot_ticks.store(ticks, Ordering::Relaxed);
    }

    /// A counter.
    pub fn statistic(&self, statistic: Statistic) -> u64 {
        match statistic {
            Statistic::QuarantinedPages => self.memory.lock().quarantined_pages(),
            Statistic::Commands => self.iommu.counters().commands,
            Statistic::Syncs => self.iommu.counters().syncs,
            Statistic::Events => self.iommu.counters().events,
            Statistic::EventsLost => self.iommu.counters().events_lost,
            Statistic::GlobalErrors => self.iommu.counters().global_errors,
            Statistic::DeadSmmus => self.iommu.counters().dead,
            Statistic::InjectedAborts => self.injected_aborts.load(Ordering::Relaxed),
            Statistic::BootTicks => self.boot_ticks.load(Ordering::Relaxed),
            Statistic::TablePages => {
                // Everything of the pool that is in use is a table or a queue.
                let state = self.pool.state();
                state.total.saturating_sub(state.free)
            }
            Statistic::EmulatedAccesses => {
                self.gic_accesses.load(Ordering::Relaxed).wrapping_add(self.driver_counters().accesses)
            }
            Statistic::DriverAccesses => self.driver_counters().accesses,
            Statistic::DriverQueueStores => self.driver_counters().queue_stores,
            Statistic::DriverSyncs => self.driver_counters().syncs,
            Statistic::HostTableBytes => self.memory.lock().host_table_bytes(),
        }
    }

    /// Bits of [`abi::features`].
    pub(crate) const fn features(&self) -> u64 {
        let mut bits = (self.io_address_bits as u64) << abi::features::ADDRESS_BITS_SHIFT;
        if self.range_invalidation {
            bits |= abi::features::RANGE_INVALIDATION;
        }
        if self.io_blocks {
            bits |= abi::features::IO_BLOCKS;
        }
        bits
    }

    pub(crate) const fn caches(&self) -> Caches<'_, P> {
        Caches { p: &self.platform, iommu: &self.iommu }
    }

    /// The pool, for the IOMMU service.
    #[inline]
    pub(crate) const fn pages(&self) -> PoolPages<'_, P> {
        PoolPages { p: &self.platform, pool: &self.pool, missing: 0 }
    }

    /// What a change of ownership needs besides the memory lock.
    #[inline]
    pub(crate) const fn context<'a>(&'a self, caches: &'a Caches<'a, P>) -> Context<'a, P, Caches<'a, P>> {
        Context { platform: &self.platform, pool: &self.pool, caches }
    }
}

/// Streams that one step of the machine's end detaches at most.
const DETACHES_PER_STEP: usize = 4;

/// Adds `ranges` to the pool but for `table_bytes` bytes at the start of the first that is large enough; where
/// these are.
fn add_pool<P: Platform>(
    p: &P,
    pool: &Pool,
    ranges: &[PhysRange],
    table_bytes: u64,
) -> Result<PhysAddr, LayoutError> {
    let too_small = LayoutError::PoolTooSmall(table_bytes >> PAGE_LOG2);
    let mut table = None;
    for range in ranges {
        let rest = if table.is_none() && range.size_bytes() > table_bytes {
            table = Some(range.start());
            PhysRange::inclusive(range.start().offset(table_bytes), range.last())
        } else {
            Some(*range)
        };
        if let Some(rest) = rest
            && !pool.add_boot(p, rest)
        {
            return Err(LayoutError::TooManyRanges);
        }
    }
    table.ok_or(too_small)
}

/// The IOMMU service's view of the pool.
pub(crate) struct PoolPages<'a, P: Platform> {
    pub(crate) p: &'a P,
    pub(crate) pool: &'a Pool,
    /// Pages that were missing when a run could not be taken.
    pub(crate) missing: u64,
}

impl<P: Platform> PoolPages<'_, P> {
    /// What a caller is told of a refusal: without memory, how many pages the pool needs, which knows what it has in pieces.
    pub(crate) fn failure(&self, refused: Refused) -> Failure {
        match refused {
            Refused::NoMemory { .. } => Failure { status: Status::NoMemory, detail: self.missing },
            other => other.into(),
        }
    }
}

impl<P: Platform> smmu::Pages for PoolPages<'_, P> {
    fn take_run(&mut self, order: u8) -> Option<PhysAddr> {
        match self.pool.take(self.p, order) {
            Ok(run) => Some(run),
            Err(error) => {
                self.missing = error.missing;
                None
            }
        }
    }

    fn give_run(&mut self, run: PhysAddr, order: u8) {
        self.pool.give(self.p, run, order);
    }
}

/// The ownership part's view of the IOMMU service.
pub(crate) struct Caches<'a, P: Platform> {
    p: &'a P,
    iommu: &'a Iommu,
}

impl<P: Platform> IoCaches for Caches<'_, P> {
    #[inline]
    fn forget(&self, domain: DomainIndex, gather: &Gather) -> Result<(), CachesFailed> {
        self.iommu.invalidate(self.p, domain, gather).map_err(|_| CachesFailed)
    }
}
