//! What the host's address space is made of, and the tables made from it at boot: the host's stage 2 and the I/O
//! table of its domain, both identity maps with the largest blocks.

use core::fmt;

use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::gather::Gather;
use smmuv3::pgtable::{Attributes, Blocks, Geometry, Granule, NoBreak, PageTable};

use super::frame::{FrameTable, MAX_BANKS, PageState};
use super::guest::root_order;
use super::pool::{Direct, OutOfPages, PAGE_LOG2, Pool};
use super::{BreakHost, CPU_ORDER, HOST_DEVICE, HOST_RAM, Ownership};
use crate::devicetree::Machine;
use crate::list::List;
use crate::platform::Platform;

/// The most ranges that are kept from the host.
pub(super) const MAX_ABSENT: usize = 256;

/// The pages that devices write MSIs to.
pub(super) type Doorbells = List<PhysRange, 4>;

/// Bytes of a page of the CPU's stage 2.
const PAGE_BYTES: u64 = 1 << PAGE_LOG2;

/// Why the host's address space cannot be laid out. One sentence when displayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// The device tree has no usable RAM.
    NoRam,
    /// More ranges are to be kept from the host than there is room for.
    TooManyRanges,
    /// This range ends above what the CPU's stage 2 can map, of this many address bits.
    AboveCpu(PhysRange, u8),
    /// RAM or an MSI doorbell ends above what every SMMU can reach, of this many address bits.
    AboveSmmus(PhysRange, u8),
    /// The pool set aside at boot is too small; this many pages of 4 KiB are missing.
    PoolTooSmall(u64),
    /// A mapping was refused: two parts of the layout overlap.
    Overlap(PhysRange),
}

impl From<OutOfPages> for LayoutError {
    fn from(error: OutOfPages) -> Self {
        Self::PoolTooSmall(error.missing)
    }
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRam => f.write_str("the device tree describes no RAM that the host could have"),
            Self::TooManyRanges => {
                write!(
                    f,
                    "more than {MAX_ABSENT} ranges are to be kept from the host, or more than {MAX_BANKS} banks of RAM"
                )
            }
            Self::AboveCpu(range, bits) => {
                write!(f, "{range} ends above the {bits} address bits of the CPU's stage 2")
            }
            Self::AboveSmmus(range, bits) => {
                write!(f, "{range} ends above the {bits} address bits that every SMMU has")
            }
            Self::PoolTooSmall(missing) => {
                write!(f, "the memory set aside for tables is too small by {missing} pages of 4 KiB")
            }
            Self::Overlap(range) => write!(f, "{range} is described twice in the host's address space"),
        }
    }
}

impl core::error::Error for LayoutError {}

/// Calls `visit` with each maximal part of `whole` that no range of `absent` has a byte of, in ascending order, until
/// it answers `Err`.
pub(super) fn for_each_gap<'r, I, E>(
    whole: PhysRange,
    absent: impl Fn() -> I,
    mut visit: impl FnMut(PhysRange) -> Result<(), E>,
) -> Result<(), E>
where
    I: Iterator<Item = &'r PhysRange>,
{
    let mut at = whole.start();
    loop {
        // Each turn goes past a range of `absent` for good.
        if let Some(last) = absent().filter(|range| range.contains(at)).map(|range| range.last()).max() {
            if last >= whole.last() {
                return Ok(());
            }
            at = last.offset(1);
            continue;
        }
        let next = absent().map(|range| range.start()).filter(|start| *start > at).min();
        let last = match next {
            Some(next) if next <= whole.last() => PhysAddr(next.0 - 1),
            _ => whole.last(),
        };
        if let Some(gap) = PhysRange::inclusive(at, last) {
            visit(gap)?;
        }
        if last == whole.last() {
            return Ok(());
        }
        at = last.offset(1);
    }
}

/// What the host's address space is made of.
#[derive(Clone)]
pub struct Layout {
    unit_log2: u8,
    /// RAM, aligned to the ownership unit.
    banks: List<PhysRange, MAX_BANKS>,
    /// What the host does not get: the hypervisor's memory and devices, and what the firmware keeps.
    absent: List<PhysRange, MAX_ABSENT>,
    doorbells: Doorbells,
    /// Last address that the device tree names.
    last: PhysAddr,
}

impl Layout {
    /// Collects what the device tree says, for I/O tables of this granule.
    ///
    /// `kept` are the hypervisor's own ranges, and the mediated pages of the Redistributors. The SMMUs, the ITSs, the DMA
    /// masters without SMMU (unprotected PCIe root buses too) and what is reserved come from `machine`.
    ///
    /// # Errors
    /// [`LayoutError::NoRam`] or [`LayoutError::TooManyRanges`].
    pub fn new(
        machine: &Machine,
        io_granule: Granule,
        kept: impl Iterator<Item = PhysRange>,
    ) -> Result<Self, LayoutError> {
        let unit = io_granule.bytes();
        let mut layout = Self {
            unit_log2: io_granule.log2(),
            banks: List::new(),
            absent: List::new(),
            doorbells: List::new(),
            last: PhysAddr(0),
        };
        for ram in machine.memory.iter() {
            let start = ram.start().0.next_multiple_of(unit);
            let end = (ram.last().0 / unit) * unit + if ram.last().0 % unit == unit - 1 { unit } else { 0 };
            // What is cut off is less than a unit: the host does not get it, since an I/O table could not map it.
            match end.checked_sub(start).and_then(|size| PhysRange::new(PhysAddr(start), size)) {
                Some(bank) => {
                    layout.banks.push(bank).map_err(|_| LayoutError::TooManyRanges)?;
                    layout.keep_edges(*ram, bank)?;
                }
                None => layout.keep(*ram)?,
            }
        }
        if layout.banks.is_empty() {
            return Err(LayoutError::NoRam);
        }
        let masters = machine.fw_cfg.iter().chain(machine.virtio_mmio.iter());
        let devices =
            machine.smmus.iter().map(|smmu| &smmu.registers).chain(machine.its.iter()).chain(masters);
        let devices = devices.chain(machine.reserved.iter()).copied().chain(machine.unprotected());
        for range in devices.chain(kept) {
            layout.keep(range)?;
        }
        for doorbell in machine.doorbells.iter() {
            let page = PhysRange::new(PhysAddr(doorbell.0 / unit * unit), unit);
            if let Some(page) = page.filter(|page| !layout.doorbells.iter().any(|known| known == page)) {
                layout.doorbells.push(page).map_err(|_| LayoutError::TooManyRanges)?;
            }
        }
        let buses = machine.pcie.iter();
        let windows = buses.clone().flat_map(|node| node.windows.iter().map(|window| &window.cpu));
        let gic = machine.redistributors.iter().chain(core::iter::once(&machine.gicd));
        let named = windows.chain(buses.map(|node| &node.ecam)).chain(gic).chain(machine.uart.iter());
        let named =
            named.chain(layout.banks.iter()).chain(layout.absent.iter()).chain(layout.doorbells.iter());
        layout.last = named.map(|range| range.last()).max().unwrap_or_default();
        Ok(layout)
    }

    /// Bytes of pool that the frame table needs, a multiple of 4 KiB.
    pub fn frame_table_bytes(&self) -> u64 {
        let table = FrameTable::new(self.unit_log2);
        self.banks.iter().map(|bank| table.table_bytes(*bank).next_multiple_of(PAGE_BYTES)).sum()
    }

    fn keep(&mut self, range: PhysRange) -> Result<(), LayoutError> {
        // In RAM whole units, elsewhere whole pages of the CPU.
        let in_ram = self.banks.iter().any(|bank| bank.overlaps(range));
        let align = if in_ram { 1 << self.unit_log2 } else { PAGE_BYTES };
        let start = PhysAddr(range.start().0 & !(align - 1));
        let range = PhysRange::inclusive(start, PhysAddr(range.last().0 | (align - 1))).unwrap_or(range);
        // Devices that lie side by side, like virtio-mmio's, fill one entry.
        let touches = |known: &PhysRange| {
            known.overlaps(range)
                || known.last().offset(1) == range.start()
                || range.last().offset(1) == known.start()
        };
        if let Some(known) = self.absent.iter_mut().find(|known| touches(known)) {
            let (start, last) = (known.start().min(range.start()), known.last().max(range.last()));
            if let Some(joined) = PhysRange::inclusive(start, last) {
                *known = joined;
            }
            return Ok(());
        }
        self.absent.push(range).map_err(|_| LayoutError::TooManyRanges)
    }

    fn keep_edges(&mut self, ram: PhysRange, bank: PhysRange) -> Result<(), LayoutError> {
        for_each_gap(
            ram,
            || core::iter::once(&bank),
            |edge| self.absent.push(edge).map_err(|_| LayoutError::TooManyRanges),
        )
    }

    /// Makes `ownership`, which is new, that of this layout: the frame table at `frame_words`, [`Self::frame_table_bytes`] of the hypervisor's memory, and the host's
    /// tables from pages of the pool. Nothing uses them yet.
    ///
    /// `pa_bits` is the CPU's physical address size (ID_AA64MMFR0_EL1.PARange), `io_bits` and `blocks` what every SMMU can
    /// walk.
    ///
    /// # Errors
    /// [`LayoutError`]; pages may have been taken.
    #[allow(clippy::too_many_arguments)]
    pub fn build<P: Platform>(
        &self,
        ownership: &mut Ownership,
        p: &P,
        pool: &Pool,
        frame_words: PhysAddr,
        pa_bits: u8,
        io_bits: u8,
        blocks: Blocks,
    ) -> Result<(), LayoutError> {
        let frames = self.build_frames(p, frame_words)?;
        let cpu = self.empty_cpu_table(p, pool, pa_bits)?;
        let io = self.empty_io_table(p, pool, io_bits, blocks)?;
        let io_order = self.unit_log2 - PAGE_LOG2;
        let mut cpu_pages = Direct::new(p, pool, CPU_ORDER);
        let mut io_pages = Direct::new(p, pool, io_order);
        let mut map_cpu = |range: PhysRange, attributes| {
            let (start, mut gather) = (range.start(), Gather::new());
            let breaker = &mut BreakHost(p);
            cpu.map(p, &mut cpu_pages, breaker, range, start, attributes, false, &mut gather)
                .map_err(|_| Self::refused(pool, range))
        };
        let mut map_io = |range: PhysRange, attributes| {
            let (start, mut gather) = (range.start(), Gather::new());
            io.map(p, &mut io_pages, &mut NoBreak, range, start, attributes, false, &mut gather)
                .map_err(|_| Self::refused(pool, range))
        };
        for bank in self.banks.iter() {
            for_each_gap(
                *bank,
                || self.absent.iter(),
                |ram| {
                    map_cpu(ram, HOST_RAM)?;
                    map_io(ram, Attributes::io_stage2_normal())
                },
            )?;
        }
        let last = PhysAddr((1 << cpu.geometry().ia_bits()) - 1);
        if let Some(space) = PhysRange::inclusive(PhysAddr(0), last) {
            let not_device = || self.absent.iter().chain(self.banks.iter());
            for_each_gap(space, not_device, |device| map_cpu(device, HOST_DEVICE))?;
        }
        for doorbell in self.doorbells.iter() {
            map_io(*doorbell, Attributes::io_stage2_device())?;
        }
        let roots = (1 << root_order(&cpu)) + (1 << root_order(&io));
        let below_roots = (cpu_pages.taken << CPU_ORDER) + (io_pages.taken << io_order);
        pool.keep_for_top_ups(p, io_order)?;
        ownership.frames = frames;
        ownership.cpu = cpu;
        ownership.io = io;
        ownership.io_order = io_order;
        ownership.holds.keep(&self.absent);
        ownership.doorbells = self.doorbells;
        ownership.host_table_pages = roots + below_roots;
        Ok(())
    }

    fn refused(pool: &Pool, range: PhysRange) -> LayoutError {
        if pool.state().free == 0 { LayoutError::PoolTooSmall(1) } else { LayoutError::Overlap(range) }
    }

    fn build_frames<P: Platform>(&self, p: &P, mut words: PhysAddr) -> Result<FrameTable, LayoutError> {
        let mut frames = FrameTable::new(self.unit_log2);
        for bank in self.banks.iter() {
            let table_bytes = frames.table_bytes(*bank).next_multiple_of(PAGE_BYTES);
            let Some(table) = PhysRange::new(words, table_bytes) else { return Err(LayoutError::NoRam) };
            p.wipe(table);
            if !frames.add_bank(*bank, words) {
                return Err(LayoutError::TooManyRanges);
            }
            words = words.offset(table_bytes);
            for absent in self.absent.iter().filter(|absent| absent.overlaps(*bank)) {
                let (start, last) = (absent.start().max(bank.start()), absent.last().min(bank.last()));
                if let Some(run) = PhysRange::inclusive(start, last).and_then(|part| frames.run(part)) {
                    frames.fill(p, &run, PageState::HYPERVISOR);
                }
            }
        }
        Ok(frames)
    }

    fn empty_cpu_table<P: Platform>(
        &self,
        p: &P,
        pool: &Pool,
        pa_bits: u8,
    ) -> Result<PageTable, LayoutError> {
        let oa_bits = output_bits(pa_bits);
        let ia_bits = address_bits(self.last);
        let geometry =
            (ia_bits <= oa_bits).then(|| Geometry::stage2(Granule::Size4K, ia_bits, oa_bits)).flatten();
        let geometry = geometry.ok_or_else(|| {
            let end = PhysRange::inclusive(self.last, self.last);
            end.map_or(LayoutError::NoRam, |end| LayoutError::AboveCpu(end, oa_bits))
        })?;
        Self::empty_table(p, pool, geometry, Blocks::BreakBeforeMake)
    }

    fn empty_io_table<P: Platform>(
        &self,
        p: &P,
        pool: &Pool,
        io_bits: u8,
        blocks: Blocks,
    ) -> Result<PageTable, LayoutError> {
        let oa_bits = output_bits(io_bits);
        let highest = self.banks.iter().chain(self.doorbells.iter()).max_by_key(|range| range.last());
        let highest = *highest.ok_or(LayoutError::NoRam)?;
        let ia_bits = address_bits(highest.last());
        let granule = match self.unit_log2 {
            12 => Granule::Size4K,
            14 => Granule::Size16K,
            _ => Granule::Size64K,
        };
        let geometry = (ia_bits <= oa_bits).then(|| Geometry::stage2(granule, ia_bits, oa_bits)).flatten();
        let geometry = geometry.ok_or(LayoutError::AboveSmmus(highest, oa_bits))?;
        Self::empty_table(p, pool, geometry, blocks)
    }

    fn empty_table<P: Platform>(
        p: &P,
        pool: &Pool,
        geometry: Geometry,
        blocks: Blocks,
    ) -> Result<PageTable, LayoutError> {
        let without_root = PageTable::new(geometry, blocks, PhysAddr(0));
        let root = pool.take_zeroed(p, root_order(&without_root))?;
        Ok(PageTable::new(geometry, blocks, root))
    }
}

/// Bits of an input address space that ends at or above `last`; the least that a stage-2 table can have is 32.
fn address_bits(last: PhysAddr) -> u8 {
    ((64 - last.0.leading_zeros()) as u8).max(32)
}

/// The largest output size that a stage-2 table of at most `bits` bits can have (DDI 0487, PS of VTCR_EL2).
fn output_bits(bits: u8) -> u8 {
    match bits {
        48.. => 48,
        44..=47 => 44,
        42..=43 => 42,
        40..=41 => 40,
        36..=39 => 36,
        _ => 32,
    }
}
