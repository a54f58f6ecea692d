//! The host's own stage 1 for its devices: domains with page tables, context descriptors and ASIDs, on top of the stage 2 that the
//! hypervisor keeps for the host.
//!
//! The host has a vSMMU on every SMMU. A domain is one page table that streams behind any of them share, with one ASID an SMMU and
//! the same invalidation array as the hypervisor's domains; a change of the table is walked to commands by the same module
//! (`smmuv3::invalidation`), and what the module posts to an SMMU becomes `VSMMU_INVALIDATE` calls. A stream has a table of context
//! descriptors, one for each SubstreamID that it may send, and a nested domain of the hypervisor whose stage 1 is that table.
//!
//! A [`Stage1`] is used by one caller at a time, which `&mut self` sees to.

mod attach;
mod contexts;
mod domains;
mod error;
mod memory;
mod pages;
mod queues;
#[cfg(test)]
mod tests;

pub use attach::{Idle, StreamOptions};
pub use contexts::MAX_CD_MAX;
pub use domains::{DomainId, MAX_DOMAINS};
pub use error::Error;

use crate::call::{Calls, VsmmuCalls};
use crate::host::Host;
use abi::{DomainHandle, VsmmuHandle};
use attach::{MAX_STREAMS, Stream};
use memory::HostMemory;
use pages::Pages;
use queues::{Smmu, Smmus};
use smmuv3::address::PhysAddr;
use smmuv3::features::{CommonFormat, Features};
use smmuv3::invalidation::{Readers, Retired};
use smmuv3::pgtable::{Geometry, Granule, PageTable};
use smmuv3::tags::IdSpace;

/// The most SMMUs that a host drives.
pub const MAX_SMMUS: usize = 8;
/// Bits of an I/O address.
const IOVA_BITS: u8 = 48;
/// Whoever changes a page table is the only reader of its array.
const READERS: u16 = 1;

/// The host's stage 1 on all SMMUs.
#[derive(Debug)]
pub struct Stage1<'h, H: Host> {
    memory: HostMemory<'h, H>,
    pages: Pages,
    smmus: Smmus,
    format: CommonFormat,
    geometry: Geometry,
    /// ASIDs of all SMMUs.
    asids: IdSpace,
    /// Where the cells of the domains' arrays are.
    cells: PhysAddr,
    readers: Readers,
    retired: Retired,
    domains: [Option<PageTable>; MAX_DOMAINS],
    streams: [Option<Stream>; MAX_STREAMS],
}

impl<'h, H: Host> Stage1<'h, H> {
    /// Makes a vSMMU on every SMMU. `size` bytes at `start`, both multiples of 64 KiB, are from here on the module's, for page tables,
    /// context descriptors, arrays and commands. They must stay the host's.
    ///
    /// # Errors
    /// [`Error::NoNesting`], [`Error::NoFormat`], [`Error::NoMemory`], [`Error::TooMany`], [`Error::Call`], [`Error::Memory`]. Nothing is left.
    pub fn start(host: &'h H, start: u64, size: u64) -> Result<Self, Error> {
        let smmus = Smmus::probe(host)?;
        let format = CommonFormat::of(smmus.features()).ok_or(Error::NoFormat)?;
        let geometry = Geometry::stage1(format.granule, IOVA_BITS, format.oas_bits).ok_or(Error::NoFormat)?;
        let memory = HostMemory::new(host);
        let mut pages = Pages::new(start, size);
        let mut take = |bytes| pages.take(&memory, pages::order_of(bytes)).ok_or(Error::NoMemory);
        let asid_bits = smmus.features().map(|features| features.asid_bits).min().unwrap_or(8);
        let asids = IdSpace::new(&memory, take(IdSpace::bytes(asid_bits))?, asid_bits);
        let readers = Readers::new(&memory, take(Readers::bytes(READERS))?, READERS);
        let cells = take(MAX_DOMAINS as u64 * domains::CELL_BYTES)?;
        pages::zero(&memory, cells, MAX_DOMAINS as u64 * domains::CELL_BYTES);
        let mut stage1 = Self {
            memory,
            pages,
            smmus,
            format,
            geometry,
            asids,
            cells,
            readers,
            retired: Retired::new(),
            domains: [None; MAX_DOMAINS],
            streams: [const { None }; MAX_STREAMS],
        };
        stage1.memory.check()?;
        // What was made when one fails ends with the value.
        for smmu in 0..stage1.smmus.count() {
            let commands = stage1.pages.take(&stage1.memory, pages::PAGE_ORDER).ok_or(Error::NoMemory)?;
            let (vsmmu, vmid) = host.create_vsmmu(smmu, DomainHandle::Host)?;
            stage1.smmus.put(smmu, Smmu { vsmmu, vmid, commands });
        }
        Ok(stage1)
    }

    /// Ends what [`Stage1::start`] made.
    ///
    /// # Errors
    /// [`Error::Busy`] while there is a domain or a stream; [`Error::Call`].
    pub fn stop(mut self) -> Result<(), Error> {
        if self.streams.iter().any(Option::is_some) || self.domains.iter().any(Option::is_some) {
            return Err(Error::Busy);
        }
        for smmu in 0..self.smmus.count() {
            if let Some(known) = self.smmus.take(smmu) {
                self.memory.host().destroy_vsmmu(known.vsmmu)?;
            }
        }
        Ok(())
    }

    /// The host's vSMMU on an SMMU, and its VMID there.
    ///
    /// # Errors
    /// [`Error::UnknownSmmu`].
    pub fn vsmmu(&self, smmu: usize) -> Result<(VsmmuHandle, u64), Error> {
        self.smmus.get(smmu).map(|known| (known.vsmmu, known.vmid))
    }

    /// What an SMMU can do for the host.
    ///
    /// # Errors
    /// [`Error::UnknownSmmu`].
    pub fn features(&self, smmu: usize) -> Result<Features, Error> {
        self.smmus.features().nth(smmu).copied().ok_or(Error::UnknownSmmu)
    }

    /// The granule of the page tables: addresses and sizes of mappings are multiples of it.
    pub const fn granule(&self) -> Granule {
        self.format.granule
    }
}

impl<H: Host> Drop for Stage1<'_, H> {
    /// Ends whatever is left, as far as the hypervisor lets it: what is refused is passed over, since nobody is there to be told.
    fn drop(&mut self) {
        let host = self.memory.host();
        for stream in self.streams.iter_mut().filter_map(Option::take) {
            if stream.is_attached() {
                let _ = host.detach(stream.smmu, stream.id);
            }
            stream.end(host, &self.smmus);
        }
        for smmu in 0..self.smmus.count() {
            if let Some(known) = self.smmus.take(smmu) {
                let _ = host.destroy_vsmmu(known.vsmmu);
            }
        }
    }
}
