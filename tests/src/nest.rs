//! A vSMMU with streams and the stage 1 of its owner: what scenarios about nested streams begin with.

use crate::bench::{Bench, SCRATCH};
use crate::model::device::Dma;
use crate::model::smmu::translate::Origin;
use crate::owner::Stage1;
use abi::{Function, Status};

/// Where a guest's tables are in the domains that [`Bench::guest_domain`] makes.
pub const ARENA: u64 = 0x2000_0000;

/// A vSMMU, and the tables of its owner.
#[derive(Clone, Copy, Debug)]
pub struct Nest {
    /// The SMMU.
    pub smmu: usize,
    /// The vSMMU.
    pub vsmmu: u64,
    /// The stage-2 domain that it stands on.
    pub parent: u64,
    /// The tables.
    pub stage1: Stage1,
}

impl Bench {
    /// A vSMMU with both devices of an SMMU, whose StreamIDs in it are 0 and 1, and tables of the owner's at `base` of the parent with this ASID.
    ///
    /// # Errors
    /// What a call answered.
    pub fn nest(&self, smmu: usize, parent: u64, base: u64, asid: u64) -> Result<Nest, Status> {
        let vsmmu = self.vsmmu(smmu, parent)?;
        for device in 0..2 {
            self.add_stream(vsmmu, device as u64, smmu, device)?;
        }
        let stage1 = Stage1::new(self, base);
        if !stage1.write(self, parent, asid) {
            return Err(Status::WrongState);
        }
        Ok(Nest { smmu, vsmmu, parent, stage1 })
    }

    /// A domain of a guest with the units of the guest's from `place` of the scratch memory on, which are donated first, at [`ARENA`]: each
    /// at a place that is not that of memory.
    ///
    /// # Errors
    /// What a call answered.
    pub fn guest_domain(&self, guest: u64, place: u64, units: u64) -> Result<u64, Status> {
        let unit = self.unit();
        let domain = self.domain(guest, 0)?;
        self.whole(Function::MemDonate, SCRATCH + place * unit, units * unit, guest)?;
        for n in 0..units {
            self.map(domain, ARENA + n * unit, SCRATCH + (place + units - 1 - n) * unit, unit)?;
        }
        Ok(domain)
    }

    /// Where a write of a device gets to.
    pub fn dma(&self, smmu: usize, device: usize, address: u64) -> Option<u64> {
        self.dma_with(smmu, device, None, address)
    }

    /// Where a write of a device with a SubstreamID gets to.
    pub fn dma_with(&self, smmu: usize, device: usize, ssid: Option<u32>, address: u64) -> Option<u64> {
        let origin: Origin = (self.devices[smmu][device].stream, ssid).into();
        match self.machine().dma_write(smmu, origin, address, 0x5555_aaaa_5555_aaaa) {
            Dma::Reached(target) => Some(target),
            Dma::Aborted => None,
        }
    }
}

impl Nest {
    /// A nested domain with one CD.
    ///
    /// # Errors
    /// What the call answered.
    pub fn domain(&self, bench: &Bench) -> Result<u64, Status> {
        bench.nested(self.vsmmu, self.stage1.words()).map_err(|(status, _)| status)
    }

    /// Where the owner's `n`-th page of data is in memory.
    pub fn page(&self, bench: &Bench, n: u64) -> Option<u64> {
        bench.query(self.parent, self.stage1.page(n))
    }
}
