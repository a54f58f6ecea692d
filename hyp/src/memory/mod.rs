//! Page ownership: who owns each unit of RAM, and the tables through which CPUs and devices reach it.
//!
//! Every change of ownership goes through [`Ownership::change`] (`transition.rs`); everything else here prepares
//! for it or asks. [`Ownership`] is one lock's content: its methods take the parts that have locks of their own, or
//! none, in a [`Context`].

mod domain;
pub mod frame;
mod guest;
mod hold;
mod host_stage2;
#[cfg(feature = "oracle")]
pub(crate) mod oracle;
mod pin;
pub mod pool;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;
mod transition;

use abi::{Recipient, Status};
use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::gather::Gather;
use smmuv3::invalidation::DomainIndex;
use smmuv3::pgtable::{Attributes, Blocks, BreakBlock, Geometry, Granule, PageTable};

use crate::platform::Platform;
use crate::sync::{Guarded, Rank};
use frame::{FrameRun, FrameTable, Owner, Position, Search};
pub use hold::HeldSet;
pub use host_stage2::{Layout, LayoutError};
use pool::{OutOfPages, Pool, Reserve};
pub use transition::Change;

/// Why a call failed, and what it changed: nothing, unless it says [`Status::Hardware`], where the old state is
/// restored or the pages are quarantined and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the caller gets in `X0`.
    pub status: Status,
    /// What the caller gets in `X1`: for [`Status::NoMemory`] how many pages of 4 KiB are missing, for others what the status says, or 0.
    pub detail: u64,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self { status, detail: 0 }
    }
}

impl From<OutOfPages> for Failure {
    fn from(error: OutOfPages) -> Self {
        Self { status: Status::NoMemory, detail: error.missing }
    }
}

/// The caches of an SMMU may still hold what they were told to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachesFailed;

/// The caches of all SMMUs.
pub trait IoCaches {
    /// Makes every cache that the domain's translations may be in forget what `gather` collected; complete on
    /// return. Makes the barrier between the stores to the domain's table before the call and the invalidation itself.
    ///
    /// # Errors
    /// [`CachesFailed`] when an SMMU did not do it, after all others have.
    fn forget(&self, domain: DomainIndex, gather: &Gather) -> Result<(), CachesFailed>;
}

/// What a change of ownership works with besides [`Ownership`].
pub struct Context<'a, P, I> {
    /// The machine.
    pub platform: &'a P,
    /// Where table pages come from.
    pub pool: &'a Pool,
    /// The SMMUs' caches.
    pub caches: &'a I,
}

impl<'a, P: Platform, I> Context<'a, P, I> {
    /// No table pages yet, for what has to come back to the host's stage 2.
    pub const fn spare(&self) -> Reserve<'a, P> {
        Reserve::empty(self.platform, self.pool, CPU_ORDER)
    }

    /// Takes pages from the pool until a reserve of [`Self::spare`] has `count`.
    ///
    /// # Errors
    /// `NoMemory` with the pages that are missing; the reserve is empty then.
    #[cold]
    fn fill(&self, reserve: &mut Reserve<'_, P>, count: usize) -> Result<(), Failure> {
        reserve.take(count).map_err(|_| {
            reserve.release();
            self.no_memory(count as u64)
        })
    }

    /// `NoMemory`, of one who needs so many pages.
    fn no_memory(&self, needed: u64) -> Failure {
        Failure { status: Status::NoMemory, detail: self.pool.missing(needed).max(1) }
    }
}

/// Break-before-make of the host's stage 2.
struct BreakHost<'a, P>(&'a P);

impl<P: Platform> BreakBlock for BreakHost<'_, P> {
    fn break_block(&mut self, ia: u64, size_bytes: u64) {
        if let Some(range) = PhysRange::new(PhysAddr(ia), size_bytes) {
            self.0.invalidate_host_stage2(range);
        }
    }
}

/// Host RAM in the host's stage 2.
const HOST_RAM: Attributes = Attributes::stage2_normal(true);
/// Everything else in the host's stage 2: the type is stage 1's to say, as it is for pKVM's host.
const HOST_DEVICE: Attributes = Attributes::stage2_normal(false);

/// Who can reach what.
pub struct Ownership {
    frames: FrameTable,
    /// The host's stage 2.
    cpu: PageTable,
    /// The I/O table of the host's domain.
    io: PageTable,
    /// Log2 of an I/O table's size in pages of 4 KiB.
    io_order: u8,
    guests: guest::Guests,
    domains: domain::GuestDomains,
    holds: hold::Holds,
    /// Where devices write MSIs: in every I/O table.
    doorbells: host_stage2::Doorbells,
    quarantined_pages: u64,
    /// Pages count as shared with a guest whose table lacks them, and caches may not.
    has_half_ended_shares: bool,
    host_table_pages: u64,
    guest_table_pages: u64,
    ending: bool,
    wipe_position: Position,
}

/// Log2 of the CPU's table size in pages of 4 KiB: the CPU's stage 2 uses the 4 KiB granule.
const CPU_ORDER: u8 = 0;

/// The most bytes that one step of the wipe before a reset wipes, and the most words of frame table it looks at: both
/// together are less than 250,000 instructions.
const WIPE_STEP_BYTES: u64 = 1 << 20;
const WIPE_STEP_WORDS: u64 = 2048;

impl Default for Ownership {
    fn default() -> Self {
        Self::new()
    }
}

/// How far a piece of work in steps has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is more to do: call again.
    Again,
    /// It is done.
    Done,
}

/// What a table is like before there is one.
const NO_TABLE: PageTable = match Geometry::stage2(Granule::Size4K, 32, 32) {
    Some(geometry) => PageTable::new(geometry, Blocks::Never, PhysAddr(0)),
    None => panic!("32 bits are the least that a stage-2 table has"),
};

impl Guarded for Ownership {
    const RANK: Rank = Rank::Memory;
}

impl Ownership {
    /// No RAM and no tables: [`Layout::build`] fills it in.
    pub const fn new() -> Self {
        Self {
            frames: FrameTable::new(pool::PAGE_LOG2),
            cpu: NO_TABLE,
            io: NO_TABLE,
            io_order: 0,
            guests: guest::Guests::new(),
            domains: domain::GuestDomains::new(),
            holds: hold::Holds::new(),
            doorbells: host_stage2::Doorbells::new(),
            quarantined_pages: 0,
            has_half_ended_shares: false,
            host_table_pages: 0,
            guest_table_pages: 0,
            ending: false,
            wipe_position: Position::START,
        }
    }

    /// Ownership unit in bytes: the largest granule in use by the CPU or an SMMU.
    #[inline]
    pub const fn unit_bytes(&self) -> u64 {
        self.frames.unit_bytes()
    }

    /// The host's stage 2.
    pub const fn host_stage2(&self) -> &PageTable {
        &self.cpu
    }

    /// The I/O table of the host's domain.
    pub const fn host_io_table(&self) -> &PageTable {
        &self.io
    }

    /// Checks a range that a caller claims, and cuts it to one step.
    ///
    /// A range of at most [`abi::MAX_STEP_BYTES`] is one step. The first step of a longer one ends at a multiple of
    /// that, so that the steps after it are whole blocks.
    ///
    /// # Errors
    /// [`Status::Unaligned`] or [`Status::NotRam`], for the whole range.
    #[inline]
    pub fn step(&self, start: u64, size_bytes: u64) -> Result<FrameRun, Status> {
        let range = PhysRange::new(PhysAddr(start), size_bytes).ok_or(Status::Unaligned)?;
        if !range.is_aligned(self.unit_bytes()) {
            return Err(Status::Unaligned);
        }
        let run = self.frames.run(range).ok_or(Status::NotRam)?;
        if size_bytes <= abi::MAX_STEP_BYTES {
            return Ok(run);
        }
        let into_block = start % abi::MAX_STEP_BYTES;
        let step =
            PhysRange::new(range.start(), abi::MAX_STEP_BYTES - into_block).ok_or(Status::Unaligned)?;
        self.frames.run(step).ok_or(Status::NotRam)
    }

    /// The host gives memory to the pool: [`Change::TopUp`], and then the pool has it. If that takes pages that are kept
    /// for it, they are replaced first.
    ///
    /// # Errors
    /// [`Status::NoSpace`] above [`pool::MAX_DONATED_PAGES`], else as [`Self::change`].
    pub fn top_up<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        run: &FrameRun,
    ) -> Result<(), Failure> {
        if !cx.pool.has_room_for(run.range().size_bytes()) {
            return Err(Status::NoSpace.into());
        }
        self.change(cx, Change::TopUp, run)?;
        cx.pool.add_donated(cx.platform, run.range());
        Ok(())
    }

    /// The host takes a free run of `4096 << order` bytes that it gave to the pool; where it is.
    ///
    /// # Errors
    /// [`Status::Empty`] when there is no such run, else as [`Self::change`].
    pub fn give_back<P: Platform, I: IoCaches>(
        &mut self,
        cx: &Context<'_, P, I>,
        order: u8,
    ) -> Result<PhysAddr, Failure> {
        if self.ending {
            return Err(Status::Busy.into());
        }
        let run = cx.pool.take_donated(cx.platform, order).ok_or(Status::Empty)?;
        let size_bytes = 1 << (pool::PAGE_LOG2 + order);
        let result = match PhysRange::new(run, size_bytes).and_then(|range| self.frames.run(range)) {
            Some(frames) => self.change(cx, Change::GiveBack, &frames),
            None => Err(Status::NotRam.into()),
        };
        match result {
            Ok(()) => Ok(run),
            Err(failure) => {
                // Unless the run is quarantined it is still the hypervisor's.
                if self.frames.state(cx.platform, run).is_some_and(|state| state.owner() == Owner::Hypervisor)
                {
                    cx.pool.put_back_donated(cx.platform, run, order);
                }
                Err(failure)
            }
        }
    }

    /// Who owns the unit that `address` is in and with whom the host shares it.
    ///
    /// # Errors
    /// [`Status::NotRam`].
    pub fn query(
        &self,
        platform: &impl Platform,
        address: PhysAddr,
    ) -> Result<(Owner, Option<Recipient>), Status> {
        let state = self.frames.state(platform, address).ok_or(Status::NotRam)?;
        Ok((state.owner(), state.sharer()))
    }

    /// Whether the host may show the page that an address is in: it owns it.
    ///
    /// # Errors
    /// [`Status::NotRam`]; [`Status::WrongState`].
    #[inline]
    pub fn check_host_page(&self, platform: &impl Platform, address: PhysAddr) -> Result<(), Status> {
        let state = self.frames.state(platform, address).ok_or(Status::NotRam)?;
        if state.is_hosts() { Ok(()) } else { Err(Status::WrongState) }
    }

    /// Whether the host's stage 2 translates this IPA now.
    pub fn host_reaches(&self, platform: &impl Platform, ipa: PhysAddr) -> bool {
        self.cpu.lookup(platform, ipa.0).is_some()
    }

    /// From here on every change is refused with [`Status::Busy`]: the machine ends.
    pub fn begin_end(&mut self) {
        self.ending = true;
    }

    /// Whether [`Self::begin_end`] was called.
    pub const fn is_ending(&self) -> bool {
        self.ending
    }

    /// Wipes a part, bounded, of the memory that guests own or that is quarantined. No stream of a guest is attached.
    pub fn wipe_step(&mut self, platform: &impl Platform) -> Progress {
        let mut wiped_bytes = 0;
        let mut words = WIPE_STEP_WORDS;
        while wiped_bytes < WIPE_STEP_BYTES {
            match self.frames.next_to_wipe(platform, self.wipe_position, words) {
                Search::Found(range, next, left) => {
                    platform.wipe(range);
                    wiped_bytes += range.size_bytes();
                    words = left;
                    self.wipe_position = next;
                }
                Search::Unfinished(next) => {
                    self.wipe_position = next;
                    return Progress::Again;
                }
                Search::End => return Progress::Done,
            }
        }
        Progress::Again
    }

    /// Pages of 4 KiB that are nobody's, or that a cache of a failed SMMU may still use as a table.
    pub const fn quarantined_pages(&self) -> u64 {
        self.quarantined_pages
    }

    /// Bytes of the tables that hold the host's stage 2 and the host's I/O table.
    pub const fn host_table_bytes(&self) -> u64 {
        self.host_table_pages << pool::PAGE_LOG2
    }

    /// Pages of 4 KiB that hold page tables.
    pub const fn table_pages(&self) -> u64 {
        self.host_table_pages + self.guest_table_pages
    }
}
