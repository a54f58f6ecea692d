//! Domains: page tables that streams behind any SMMU share.

use super::pages::{self, Tables};
use super::queues::HostQueues;
use super::{Error, HostMemory, Stage1};
use crate::host::Host;
use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::cd::ContextDescriptor;
use smmuv3::gather::Gather;
use smmuv3::invalidation::{self, Cell, Domain, DomainIndex};
use smmuv3::pgtable::{Attributes, NoBreak, PageTable};
use smmuv3::tags::{self, TagKind};

/// The most domains at once.
pub const MAX_DOMAINS: usize = 16;
/// Bytes of a cell.
pub(super) const CELL_BYTES: u64 = 8;

/// Names a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainId(pub(super) u16);

impl<'h, H: Host> Stage1<'h, H> {
    /// Makes a domain that maps nothing.
    ///
    /// # Errors
    /// [`Error::TooMany`], [`Error::NoMemory`], [`Error::Memory`].
    pub fn create(&mut self) -> Result<DomainId, Error> {
        let free = self.domains.iter().position(Option::is_none).ok_or(Error::TooMany)?;
        let root = self.pages.take_zeroed(&self.memory, pages::order_of(self.geometry.root_bytes()))?;
        self.memory.check()?;
        if let Some(place) = self.domains.get_mut(free) {
            *place = Some(PageTable::new(self.geometry, self.format.blocks, root));
        }
        Ok(DomainId(free as u16))
    }

    /// Ends a domain, with whatever it maps.
    ///
    /// # Errors
    /// [`Error::UnknownDomain`]; [`Error::Busy`] while a stream is attached to it.
    pub fn destroy(&mut self, domain: DomainId) -> Result<(), Error> {
        let table = self.table(domain)?;
        if !self.cell(domain).is_idle(&self.memory) {
            return Err(Error::Busy);
        }
        // A tag that stands in no array is in no IOTLB, so nothing knows the tables.
        let order = pages::order_of(self.geometry.root_bytes());
        let mut tables = self.tables();
        table.free_all(tables.memory, &mut tables);
        self.pages.give(&self.memory, table.root(), order);
        if let Some(place) = self.domains.get_mut(usize::from(domain.0)) {
            *place = None;
        }
        self.memory.check()
    }

    /// Maps `size` bytes of physical memory, which the host calls so and devices an IPA, at an I/O address where nothing is mapped: with
    /// blocks where they fit. On return devices of the domain reach it.
    ///
    /// # Errors
    /// [`Error::UnknownDomain`], [`Error::Range`], [`Error::Map`], [`Error::NoMemory`]. [`Error::Call`] and [`Error::Memory`]: it may be mapped.
    pub fn map(
        &mut self,
        domain: DomainId,
        iova: u64,
        physical: u64,
        size: u64,
        write: bool,
    ) -> Result<(), Error> {
        let table = self.table(domain)?;
        let range = PhysRange::new(PhysAddr(iova), size).ok_or(Error::Range)?;
        let attributes = Attributes::io_stage1_normal(write);
        let mut gather = Gather::new();
        let mut tables = self.tables();
        let memory = tables.memory;
        let output = PhysAddr(physical);
        table.map(memory, &mut tables, &mut NoBreak, range, output, attributes, true, &mut gather)?;
        // What was joined to blocks is the same translation in another shape.
        self.forget(domain, gather)
    }

    /// Takes the translation of an I/O range away, where there is one. On return no device of the domain reaches memory through it.
    ///
    /// # Errors
    /// [`Error::UnknownDomain`], [`Error::Range`], [`Error::Unmap`], [`Error::NoMemory`]. [`Error::Call`] and [`Error::Memory`]: it is unmapped,
    /// but devices may still reach the memory.
    pub fn unmap(&mut self, domain: DomainId, iova: u64, size: u64) -> Result<(), Error> {
        let table = self.table(domain)?;
        let range = PhysRange::new(PhysAddr(iova), size).ok_or(Error::Range)?;
        let mut gather = Gather::new();
        let mut tables = self.tables();
        let memory = tables.memory;
        table.unmap(memory, &mut tables, &mut NoBreak, range, &mut gather)?;
        self.forget(domain, gather)
    }

    /// The ASID of a domain on an SMMU, and how many streams use it; `None` while it has none there.
    ///
    /// # Errors
    /// [`Error::UnknownDomain`].
    pub fn asid(&self, domain: DomainId, smmu: usize) -> Result<Option<(u16, u32)>, Error> {
        self.table(domain)?;
        Ok(tags::find(&self.memory, self.cell(domain), smmu as u8, TagKind::Asid))
    }

    /// The context descriptor by which streams of a domain behind an SMMU translate; `None` while there are none.
    ///
    /// # Errors
    /// [`Error::UnknownDomain`].
    pub fn context(&self, domain: DomainId, smmu: usize) -> Result<Option<ContextDescriptor>, Error> {
        let table = self.table(domain)?;
        let tag = self.asid(domain, smmu)?;
        Ok(tag.map(|(asid, _)| self.context_of(&table, asid)))
    }

    /// The context descriptor of a domain's table and an ASID.
    pub(super) const fn context_of(&self, table: &PageTable, asid: u16) -> ContextDescriptor {
        ContextDescriptor::stage1(table.geometry(), table.root(), asid, Attributes::IO_MAIR)
    }

    /// ASIDs in use, of all domains on all SMMUs.
    pub const fn asids_in_use(&self) -> u32 {
        self.asids.taken()
    }

    /// Makes every cache forget what was gathered, and gives the tables back that only caches knew. After a failure they are never used again.
    fn forget(&mut self, domain: DomainId, mut gather: Gather) -> Result<(), Error> {
        let reader =
            Domain { readers: &self.readers, cpu: 0, index: DomainIndex(domain.0), array: self.cell(domain) };
        let queues = HostQueues { memory: &self.memory, smmus: &self.smmus };
        invalidation::invalidate(&queues, &self.memory, &reader, &gather)?;
        let mut tables = self.tables();
        gather.give_freed(tables.memory, &mut tables);
        self.memory.check()
    }

    /// The pages, as page tables take them.
    fn tables(&mut self) -> Tables<'_, HostMemory<'h, H>> {
        let order = pages::order_of(self.geometry.granule().bytes());
        Tables { pages: &mut self.pages, memory: &self.memory, order }
    }

    pub(super) fn table(&self, domain: DomainId) -> Result<PageTable, Error> {
        self.domains.get(usize::from(domain.0)).copied().flatten().ok_or(Error::UnknownDomain)
    }

    /// Where the array of a domain is.
    pub(super) const fn cell(&self, domain: DomainId) -> Cell {
        Cell(self.cells.offset(domain.0 as u64 * CELL_BYTES))
    }
}
