//! Context descriptors of one stream: a linear table (IHI 0070, 5.4), which a nested domain of the hypervisor points to.

use super::pages::{self, Pages};
use super::queues::HostQueues;
use super::{Error, HostMemory};
use crate::host::Host;
use smmuv3::address::PhysAddr;
use smmuv3::cd::{CD_BYTES, CD_WORDS, ContextDescriptor};
use smmuv3::entry_writer::{self, EntrySink};
use smmuv3::invalidation::{forget_cd, run};
use smmuv3::memory::Memory;
use smmuv3::ste::Stage1Claim;

/// The largest S1CDMax, log2 of the SubstreamIDs of a stream: its table is one page of 4 KiB.
pub const MAX_CD_MAX: u8 = 6;

/// The table of a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contexts {
    table: PhysAddr,
    cd_max: u8,
}

impl Contexts {
    /// A table without a valid descriptor, for a stream with `1 << cd_max` SubstreamIDs.
    pub fn new<M: Memory>(memory: &M, pages: &mut Pages, cd_max: u8) -> Result<Self, Error> {
        Ok(Self { table: pages.take_zeroed(memory, pages::PAGE_ORDER)?, cd_max })
    }

    /// Gives the table back, which no SMMU can reach any more.
    pub fn free<M: Memory>(self, memory: &M, pages: &mut Pages) {
        pages.give(memory, self.table, pages::PAGE_ORDER);
    }

    const fn place(&self, substream: u32) -> PhysAddr {
        self.table.offset(substream as u64 * CD_BYTES)
    }

    /// All SubstreamIDs of the table.
    fn substreams(&self) -> core::ops::Range<u32> {
        0..1 << self.cd_max
    }

    pub fn read<M: Memory>(&self, memory: &M, substream: u32) -> ContextDescriptor {
        let mut words = [0; CD_WORDS];
        for (word, offset) in words.iter_mut().zip((0..).step_by(8)) {
            *word = memory.read_u64(self.place(substream).offset(offset));
        }
        ContextDescriptor(words)
    }

    /// Stores a descriptor in a table that no SMMU can reach yet.
    pub fn store<M: Memory>(&self, memory: &M, substream: u32, descriptor: &ContextDescriptor) {
        for (value, offset) in descriptor.0.into_iter().zip((0..).step_by(8)) {
            memory.write_u64(self.place(substream).offset(offset), value);
        }
    }

    /// Copies all descriptors into a table that no SMMU can reach yet.
    pub fn copy_to<M: Memory>(&self, memory: &M, other: &Self) {
        for substream in self.substreams() {
            other.store(memory, substream, &self.read(memory, substream));
        }
    }

    /// Whether a descriptor other than that of `substream` is valid.
    pub fn has_others<M: Memory>(&self, memory: &M, substream: u32) -> bool {
        self.substreams().any(|other| other != substream && self.read(memory, other).is_valid())
    }

    /// What the host asks the hypervisor to put into the stream's STE.
    pub const fn claim(&self, ats: bool) -> [u64; 2] {
        Stage1Claim::linear(self.table, self.cd_max, ats).0
    }
}

/// A descriptor that the SMMU may be reading: of `stream`, as the host's vSMMU knows it.
pub(super) struct LiveContext<'a, H> {
    pub memory: &'a HostMemory<'a, H>,
    pub queues: HostQueues<'a, H>,
    pub contexts: Contexts,
    pub smmu: usize,
    pub stream: u32,
    pub substream: u32,
}

impl<H: Host> LiveContext<'_, H> {
    /// Changes the descriptor in place, by the steps of IHI 0070, 3.21.3. After a failure it is in memory as it was.
    pub fn write(&mut self, target: &ContextDescriptor) -> Result<(), Error> {
        let current = self.contexts.read(self.memory, self.substream);
        let written = entry_writer::write_entry(self, &current, target);
        if written.is_err() {
            entry_writer::store_entry(self, &current);
        }
        written
    }
}

impl<H: Host> EntrySink for LiveContext<'_, H> {
    type Fault = Error;

    fn store(&mut self, word: usize, value: u64) {
        self.memory.write_u64(self.contexts.place(self.substream).offset(word as u64 * 8), value);
    }

    fn sync(&mut self) -> Result<(), Error> {
        self.memory.full_barrier();
        run(&self.queues, self.smmu, &[forget_cd(self.stream, self.substream, true)])
    }
}
