//! EL2's page pool: what page tables, stream tables and queues are made of.
//!
//! Two heaps: memory set aside at boot, and memory that the host gave and may take back. In front of them stands
//! a stack of free runs for each small order, linked through the runs themselves, because the heap looks through
//! a whole free list for the buddy of what is given to it and the host can make that list long.
//!
//! Beside them stands the stock: tables that are kept back for top ups. A top up may have to split blocks of the host's
//! tables, and if that took pages that others may use up, an empty pool could never be filled again.

use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::memory::{Memory, TablePages};

use crate::list::List;
use crate::platform::{Heap, Platform};
use crate::sync::{Guarded, Mutex, Rank};

/// The most pages of 4 KiB that the host can have in the pool at once.
pub const MAX_DONATED_PAGES: u64 = 16_384;

/// Log2 of the pool's page size in bytes.
pub const PAGE_LOG2: u8 = 12;

/// There are not enough free pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfPages {
    /// How many pages of 4 KiB are missing, at least 1.
    pub missing: u64,
}

/// How the pool stands, in pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolState {
    /// Free pages, without those that are kept for top ups.
    pub free: u64,
    /// All pages of the pool: free, kept for top ups or in use.
    pub total: u64,
    /// Pages of it that the host gave.
    pub donated: u64,
    /// Pages that the host gave and that are free, without those that are kept for top ups.
    pub free_donated: u64,
}

/// Orders that have a stack: up to 64 KiB, the largest granule and the largest root table of 4 KiB tables.
const STACKS: usize = 5;
/// The most boot ranges.
const MAX_BOOT_RANGES: usize = 4;
/// What marks the end of a stack; no run starts there, since the pool never holds the first page of memory.
const NO_RUN: u64 = 0;

/// The last runs given back of each small order.
#[derive(Clone, Copy)]
struct Stacks([u64; STACKS]);

impl Stacks {
    fn push(&mut self, memory: &impl Memory, run: PhysAddr, order: u8) -> bool {
        let Some(head) = self.0.get_mut(usize::from(order)) else { return false };
        memory.write_u64(run, *head);
        *head = run.0;
        true
    }

    fn pop(&mut self, memory: &impl Memory, order: u8) -> Option<PhysAddr> {
        let head = self.0.get_mut(usize::from(order)).filter(|head| **head != NO_RUN)?;
        let run = PhysAddr(*head);
        *head = memory.read_u64(run);
        Some(run)
    }
}

struct Part {
    heap: Heap,
    free: u64,
    total: u64,
    stacks: Stacks,
}

impl Part {
    const fn new(heap: Heap) -> Self {
        Self { heap, free: 0, total: 0, stacks: Stacks([NO_RUN; STACKS]) }
    }

    fn take(&mut self, p: &impl Platform, order: u8) -> Option<PhysAddr> {
        let pages = 1 << order;
        if self.free < pages {
            return None;
        }
        let run = self.stacks.pop(p, order).or_else(|| p.heap_take(self.heap, order)).or_else(|| {
            // A stack may hold what the heap could split: one run of the next larger order that has any.
            let larger = order.saturating_add(1)..STACKS as u8;
            let (run, order_of_run) = larger.filter_map(|o| Some((self.stacks.pop(p, o)?, o))).next()?;
            p.heap_give(self.heap, run, order_of_run);
            p.heap_take(self.heap, order)
        })?;
        self.free -= pages;
        Some(run)
    }

    fn give(&mut self, p: &impl Platform, run: PhysAddr, order: u8) {
        if !self.stacks.push(p, run, order) {
            p.heap_give(self.heap, run, order);
        }
        self.free += 1 << order;
    }

    /// Gives runs of the stacks to the heap, so that it can join them, within a bound on the buddies looked at.
    fn compact(&mut self, p: &impl Platform) {
        let mut budget = COMPACTION_STEPS / self.total.max(256);
        for order in 0..STACKS as u8 {
            while budget > 0 {
                let Some(run) = self.stacks.pop(p, order) else { break };
                p.heap_give(self.heap, run, order);
                budget -= 1;
            }
        }
    }
}

/// Free-list entries that one compaction may make the heap look at.
const COMPACTION_STEPS: u64 = 16_384;

/// Tables of 4 KiB granule that the unmapping of one step takes at most: it splits a level-1 and a level-2 block at each
/// end. The larger granules have no level-1 blocks.
const TABLES_4K: usize = 4;
const TABLES_LARGER: usize = 2;

/// Tables of one size that are kept for top ups.
struct Stock {
    order: u8,
    wanted: usize,
    runs: List<PhysAddr, TABLES_4K>,
}

impl Stock {
    const EMPTY: Self = Self { order: 0, wanted: 0, runs: List::new() };

    fn pages(&self) -> u64 {
        (self.runs.len() as u64) << self.order
    }

    fn detail(&self) -> u64 {
        (self.wanted.saturating_sub(self.runs.len()) as u64) << self.order
    }
}

struct Parts {
    boot: Part,
    donated: Part,
    boot_ranges: List<PhysRange, MAX_BOOT_RANGES>,
    /// For the CPU's tables and for the I/O tables.
    stocks: [Stock; 2],
    /// The stocks are short, or have pages that the host gave.
    unsettled: bool,
}

impl Guarded for Parts {
    const RANK: Rank = Rank::Leaf;
}

impl Parts {
    fn is_boot(&self, run: PhysAddr) -> bool {
        self.boot_ranges.iter().any(|range| range.contains(run))
    }

    fn part_of(&mut self, run: PhysAddr) -> &mut Part {
        if self.is_boot(run) { &mut self.boot } else { &mut self.donated }
    }

    fn take(&mut self, p: &impl Platform, order: u8) -> Option<PhysAddr> {
        self.boot.take(p, order).or_else(|| self.donated.take(p, order))
    }

    fn take_from_stock(&mut self, order: u8) -> Option<PhysAddr> {
        let run = self.stocks.iter_mut().filter(|stock| stock.order == order).find_map(|s| s.runs.pop())?;
        self.unsettled = true;
        Some(run)
    }

    /// Fills the stocks, and exchanges pages in them that the host gave, so that the host can have its own back.
    #[cold]
    fn settle(&mut self, p: &impl Platform) {
        let mut unsettled = false;
        for stock in &mut self.stocks {
            let order = stock.order;
            for run in stock.runs.iter_mut() {
                if self.boot_ranges.iter().any(|range| range.contains(*run)) {
                    continue;
                }
                match self.boot.take(p, order) {
                    Some(own) => self.donated.give(p, core::mem::replace(run, own), order),
                    None => unsettled = true,
                }
            }
            while stock.runs.len() < stock.wanted {
                let from_boot = self.boot.take(p, order);
                unsettled |= from_boot.is_none();
                let Some(run) = from_boot.or_else(|| self.donated.take(p, order)) else { break };
                if stock.runs.push(run).is_err() {
                    break;
                }
            }
        }
        self.unsettled = unsettled;
    }

    fn compact(&mut self, p: &impl Platform) {
        self.boot.compact(p);
        self.donated.compact(p);
    }

    /// How many pages more there must be for `needed` pages to be free, when the stocks are filled first.
    fn missing(&self, needed: u64) -> u64 {
        let short: u64 = self.stocks.iter().map(Stock::detail).sum();
        needed.saturating_add(short).saturating_sub(self.boot.free + self.donated.free)
    }
}

/// The pool. Its lock is a leaf: nothing else is locked while it is held.
pub struct Pool {
    parts: Mutex<Parts>,
}

impl Pool {
    /// A pool without pages.
    pub const fn new() -> Self {
        Self {
            parts: Mutex::new(Parts {
                boot: Part::new(Heap::Boot),
                donated: Part::new(Heap::Donated),
                boot_ranges: List::new(),
                stocks: [Stock::EMPTY; 2],
                unsettled: false,
            }),
        }
    }

    /// Adds memory that was set aside at boot, a multiple of 4 KiB, that does not begin at address 0. `false`,
    /// and nothing is changed, after four of them.
    pub fn add_boot(&self, p: &impl Platform, range: PhysRange) -> bool {
        let mut parts = self.parts.lock();
        if parts.boot_ranges.push(range).is_err() {
            return false;
        }
        let pages = range.size_bytes() >> PAGE_LOG2;
        p.heap_add(Heap::Boot, range);
        parts.boot.total += pages;
        parts.boot.free += pages;
        true
    }

    /// Keeps tables for top ups from here on: as many of the CPU's 4 KiB, and of the I/O tables' `4096 << io_order` bytes,
    /// as one step of a top up takes at most.
    ///
    /// # Errors
    /// [`OutOfPages`] if there are not enough yet; those that there are are kept, and the next ones.
    pub fn keep_for_top_ups(&self, p: &impl Platform, io_order: u8) -> Result<(), OutOfPages> {
        let mut parts = self.parts.lock();
        for (stock, order) in parts.stocks.iter_mut().zip([0, io_order]) {
            stock.order = order;
            stock.wanted = if order == 0 { TABLES_4K } else { TABLES_LARGER };
        }
        parts.settle(p);
        match parts.stocks.iter().map(Stock::detail).sum() {
            0 => Ok(()),
            missing => Err(OutOfPages { missing }),
        }
    }

    /// Adds memory that the host gave, a multiple of 4 KiB, which goes to what is kept for top ups first; the caller has asked [`Self::has_room_for`] under the lock
    /// that serialises donations.
    pub fn add_donated(&self, p: &impl Platform, range: PhysRange) {
        let mut parts = self.parts.lock();
        let pages = range.size_bytes() >> PAGE_LOG2;
        p.heap_add(Heap::Donated, range);
        parts.donated.total += pages;
        parts.donated.free += pages;
        if parts.unsettled {
            parts.settle(p);
        }
    }

    /// Whether the host may give this many bytes more.
    pub fn has_room_for(&self, size_bytes: u64) -> bool {
        let donated = self.parts.lock().donated.total;
        (size_bytes >> PAGE_LOG2).checked_add(donated).is_some_and(|pages| pages <= MAX_DONATED_PAGES)
    }

    /// Takes a run of `4096 << order` bytes, aligned to its size and not cleared. Boot memory goes first, so that
    /// the host can have its own back. What is kept for top ups stays.
    ///
    /// # Errors
    /// [`OutOfPages`] with how many pages are missing, or 1 if there are enough but none of that order. Nothing
    /// is changed.
    pub fn take(&self, p: &impl Platform, order: u8) -> Result<PhysAddr, OutOfPages> {
        let mut parts = self.parts.lock();
        if let Some(run) = parts.take(p, order) {
            return Ok(run);
        }
        parts.compact(p);
        let needed = 1_u64.checked_shl(order.into()).unwrap_or(u64::MAX);
        Err(OutOfPages { missing: parts.missing(needed).max(1) })
    }

    /// Like [`Self::take`], and if there is no free run, one of those that are kept for top ups: for a top up, and to undo
    /// a change that failed.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_kept(&self, p: &impl Platform, order: u8) -> Result<PhysAddr, OutOfPages> {
        let free = self.take(p, order);
        free.or_else(|error| self.parts.lock().take_from_stock(order).ok_or(error))
    }

    /// How many pages the host must give for `needed` pages to be free.
    pub fn missing(&self, needed: u64) -> u64 {
        self.parts.lock().missing(needed)
    }

    /// Pages that are kept for top ups now.
    pub fn kept(&self) -> u64 {
        self.parts.lock().stocks.iter().map(Stock::pages).sum()
    }

    /// Like [`Self::take`], and filled with zeros.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_zeroed(&self, p: &impl Platform, order: u8) -> Result<PhysAddr, OutOfPages> {
        let run = self.take(p, order)?;
        if let Some(range) = PhysRange::new(run, 1 << (PAGE_LOG2 + order)) {
            p.wipe(range);
        }
        Ok(run)
    }

    /// Gives a run back, with the order it was taken with. It may be kept for top ups.
    pub fn give(&self, p: &impl Platform, run: PhysAddr, order: u8) {
        let mut parts = self.parts.lock();
        parts.part_of(run).give(p, run, order);
        if parts.unsettled {
            parts.settle(p);
        }
    }

    /// Takes a free run of `4096 << order` bytes that the host gave out of the pool, to be the host's again.
    pub fn take_donated(&self, p: &impl Platform, order: u8) -> Option<PhysAddr> {
        let mut parts = self.parts.lock();
        let run = match parts.donated.take(p, order) {
            Some(run) => run,
            None => {
                parts.compact(p);
                if parts.unsettled {
                    parts.settle(p);
                }
                parts.donated.take(p, order)?
            }
        };
        parts.donated.total -= 1 << order;
        Some(run)
    }

    /// Puts back what [`Self::take_donated`] took.
    pub fn put_back_donated(&self, p: &impl Platform, run: PhysAddr, order: u8) {
        let part = &mut self.parts.lock().donated;
        part.total += 1 << order;
        part.give(p, run, order);
    }

    /// Calls `visit` with each free run that is known here, and its order, until it answers `false`: those kept for top ups, and those on the
    /// stacks, not those of the heaps.
    #[cfg(feature = "oracle")]
    pub fn for_each_free(&self, p: &impl Platform, mut visit: impl FnMut(PhysAddr, u8) -> bool) {
        let parts = self.parts.lock();
        for stock in &parts.stocks {
            if !stock.runs.iter().all(|run| visit(*run, stock.order)) {
                return;
            }
        }
        for part in [&parts.boot, &parts.donated] {
            for (order, head) in (0u8..).zip(part.stacks.0) {
                let mut run = head;
                while run != NO_RUN {
                    if !visit(PhysAddr(run), order) {
                        return;
                    }
                    run = p.read_u64(PhysAddr(run));
                }
            }
        }
    }

    /// How the pool stands.
    pub fn state(&self) -> PoolState {
        let parts = self.parts.lock();
        PoolState {
            free: parts.boot.free + parts.donated.free,
            total: parts.boot.total + parts.donated.total,
            donated: parts.donated.total,
            free_donated: parts.donated.free,
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}

/// Table pages taken in advance, so that an operation that has begun cannot run out. They are linked through their first
/// words. What is left goes back to the pool when this is dropped.
pub struct Reserve<'a, P: Platform> {
    platform: &'a P,
    pool: &'a Pool,
    order: u8,
    len: usize,
    first: u64,
    /// Tables that were given to it while it was in use.
    pub given: u64,
}

impl<'a, P: Platform> Reserve<'a, P> {
    /// A reserve for tables of `4096 << order` bytes, without any.
    #[inline]
    pub const fn empty(platform: &'a P, pool: &'a Pool, order: u8) -> Self {
        Self { platform, pool, order, len: 0, first: NO_RUN, given: 0 }
    }

    /// Takes tables until it has `count`.
    ///
    /// # Errors
    /// [`OutOfPages`] if the pool has less; what was taken is still there.
    #[inline]
    pub fn take(&mut self, count: usize) -> Result<(), OutOfPages> {
        if count > 0 { self.fill(count, Pool::take) } else { Ok(()) }
    }

    /// Like [`Self::take`], and from what is kept for top ups too.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_kept(&mut self, count: usize) -> Result<(), OutOfPages> {
        self.fill(count, Pool::take_kept)
    }

    #[cold]
    fn fill(
        &mut self,
        count: usize,
        take: impl Fn(&Pool, &P, u8) -> Result<PhysAddr, OutOfPages>,
    ) -> Result<(), OutOfPages> {
        while self.len < count {
            let table = take(self.pool, self.platform, self.order)?;
            self.push(table);
        }
        Ok(())
    }

    /// Adds a table, which is the caller's to give, and is as large as the others.
    pub fn push(&mut self, table: PhysAddr) {
        self.platform.write_u64(table, self.first);
        self.first = table.0;
        self.len += 1;
    }

    fn pop(&mut self) -> Option<PhysAddr> {
        self.len = self.len.checked_sub(1)?;
        let table = PhysAddr(self.first);
        self.first = self.platform.read_u64(table);
        Some(table)
    }

    /// Gives what is left back to the pool.
    #[inline]
    pub fn release(&mut self) {
        while let Some(table) = self.pop() {
            self.pool.give(self.platform, table, self.order);
        }
    }

    /// How many tables are left.
    #[inline]
    pub const fn left(&self) -> usize {
        self.len
    }
}

impl<P: Platform> Drop for Reserve<'_, P> {
    #[inline]
    fn drop(&mut self) {
        self.release();
    }
}

impl<P: Platform> TablePages for Reserve<'_, P> {
    fn take(&mut self) -> Option<PhysAddr> {
        let table = self.pop()?;
        if let Some(range) = PhysRange::new(table, 1 << (PAGE_LOG2 + self.order)) {
            self.platform.wipe(range);
        }
        Some(table)
    }

    fn give(&mut self, table: PhysAddr) {
        self.given += 1;
        self.pool.give(self.platform, table, self.order);
    }
}

/// Table pages straight from the pool, for boot, teardown and the undoing of a change that failed.
pub struct Direct<'a, P: Platform> {
    platform: &'a P,
    pool: &'a Pool,
    order: u8,
    undoes: bool,
    /// Tables taken, less those given back.
    pub taken: u64,
}

impl<'a, P: Platform> Direct<'a, P> {
    /// Tables of `4096 << order` bytes.
    pub const fn new(platform: &'a P, pool: &'a Pool, order: u8) -> Self {
        Self { platform, pool, order, undoes: false, taken: 0 }
    }

    /// Tables of `4096 << order` bytes to undo a change that failed. What the change took of the pages that are kept for
    /// top ups has gone back to them, so it may take it again.
    pub const fn undoing(platform: &'a P, pool: &'a Pool, order: u8) -> Self {
        Self { platform, pool, order, undoes: true, taken: 0 }
    }
}

impl<P: Platform> TablePages for Direct<'_, P> {
    fn take(&mut self) -> Option<PhysAddr> {
        let (p, order) = (self.platform, self.order);
        let table =
            if self.undoes { self.pool.take_kept(p, order) } else { self.pool.take(p, order) }.ok()?;
        if let Some(range) = PhysRange::new(table, 1 << (PAGE_LOG2 + order)) {
            p.wipe(range);
        }
        self.taken += 1;
        Some(table)
    }

    fn give(&mut self, table: PhysAddr) {
        self.taken = self.taken.saturating_sub(1);
        self.pool.give(self.platform, table, self.order);
    }
}
