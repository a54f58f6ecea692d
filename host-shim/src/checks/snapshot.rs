//! Snapshots of the state that calls answer questions about.

use super::Stop;
use super::support::{BLOCK, MAX_SMMUS, block, good, unit};
use crate::call::{Attachment, Calls, Ownership, PoolState};
use crate::fail;
use crate::host::{Device, Host};
use abi::Statistic;

/// What the query calls answer about everything that a check touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pages: [Option<Ownership>; 48],
    streams: [[Option<Attachment>; 3]; MAX_SMMUS],
    vmids: [u16; MAX_SMMUS],
    pool: PoolState,
    quarantined: u64,
    dead: u64,
    table_pages: u64,
}

impl Snapshot {
    /// Asks for everything. The pages are the first and the last two of each block, and the first pages of the first.
    pub fn take<H: Host>(host: &H) -> Result<Self, Stop> {
        let unit = unit(host)?;
        let mut pages = [None; 48];
        let edges = (0..8).flat_map(|index| {
            let start = block(host, index);
            [start, start + unit, start + BLOCK - 2 * unit, start + BLOCK - unit]
        });
        let first = (0..16).map(|index| block(host, 0) + index * unit);
        for (place, page) in pages.iter_mut().zip(edges.chain(first)) {
            *place = Some(good("MEM_QUERY", host.ownership(page))?);
        }
        let mut streams = [[None; 3]; MAX_SMMUS];
        let mut vmids = [0; MAX_SMMUS];
        for (smmu, (row, vmids)) in streams.iter_mut().zip(&mut vmids).enumerate().take(host.smmus()) {
            *vmids = good("SMMU_DESCRIBE", host.describe_smmu(smmu))?.vmids_in_use;
            for (place, device) in row.iter_mut().zip(Device::ALL) {
                if let Some(stream) = host.stream(smmu, device) {
                    *place = good("STREAM_QUERY", host.attachment(smmu, stream))?;
                }
            }
        }
        Ok(Self {
            pages,
            streams,
            vmids,
            pool: good("POOL_STATE", host.pool())?,
            quarantined: good("STATISTICS", host.statistic(Statistic::QuarantinedPages))?,
            dead: good("STATISTICS", host.statistic(Statistic::DeadSmmus))?,
            table_pages: good("STATISTICS", host.statistic(Statistic::TablePages))?,
        })
    }

    /// The state must be what it was.
    pub fn unchanged<H: Host>(&self, host: &H, after: &str) -> Result<(), Stop> {
        let now = Self::take(host)?;
        if now == *self {
            return Ok(());
        }
        for (index, (before, now)) in self.pages.iter().zip(&now.pages).enumerate() {
            if before != now {
                fail!("{after} changed page {index} of the snapshot from {before:?} to {now:?}");
            }
        }
        if self.streams != now.streams {
            fail!("{after} changed a stream's attachment");
        }
        if self.vmids != now.vmids {
            fail!("{after} changed VMIDs in use from {:?} to {:?}", self.vmids, now.vmids);
        }
        fail!(
            "{after} changed {:?} with {} table pages to {:?} with {}",
            self.pool,
            self.table_pages,
            now.pool,
            now.table_pages
        )
    }
}
