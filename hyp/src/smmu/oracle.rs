//! The SMMUs' structures, for whoever checks them.

use smmuv3::ste::{STE_BYTES, StreamTableEntry};

use super::device::Smmu;
use super::stream_table::read_entry;
use super::vmids::VmidTable;
use super::{Set, order_of};
use crate::oracle::{Finding, Runs, what};
use crate::platform::Platform;

impl Smmu {
    /// Calls `visit` with every STE that is a stream's own.
    pub(crate) fn for_each_entry<P: Platform>(
        &self,
        p: &P,
        mut visit: impl FnMut(u32, StreamTableEntry) -> Result<(), Finding>,
    ) -> Result<(), Finding> {
        let streams = u64::from(self.stream_table().shape().count());
        for (first, table) in self.stream_table().own_tables(p) {
            for index in 0..streams {
                visit((first + index) as u32, read_entry(p, table.offset(index * STE_BYTES)))?;
            }
        }
        Ok(())
    }
}

impl Set {
    /// Tells of every run of the pool that SMMUs have. `root_order` is that of the table of parked streams.
    pub(crate) fn add_runs<P: Platform>(
        &self,
        p: &P,
        root_order: u8,
        runs: &mut Runs<'_>,
    ) -> Result<(), Finding> {
        runs.add(self.parked.root(), root_order, what::SMMU)?;
        let shared = self.iter().filter_map(|smmu| smmu.stream_table().shared());
        // One for all, as large as the largest needs.
        if let Some((table, split)) = shared.max_by_key(|(_, split)| *split) {
            runs.add(table, order_of(STE_BYTES << split), what::SMMU)?;
        }
        for smmu in self.iter() {
            let table = smmu.stream_table();
            runs.add(table.base(), order_of(table.shape().base_bytes()), what::SMMU)?;
            if table.shape().split.is_some() {
                for (_, level2) in table.own_tables(p) {
                    runs.add(level2, table.level2_order(), what::SMMU)?;
                }
            }
            // One lock at a time.
            let commands = smmu.commands.lock().base();
            let events = smmu.events.lock().base();
            let of_driver = smmu.driver_events.lock().page();
            for page in [commands, events, of_driver] {
                runs.add(page, 0, what::SMMU)?;
            }
            runs.add(smmu.vmids().words(), VmidTable::ORDER, what::SMMU)?;
        }
        Ok(())
    }
}
