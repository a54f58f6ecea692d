//! The host's vSMMUs, and what the invalidation module posts to them: batches of commands that become `VSMMU_INVALIDATE` calls.

use super::memory::HostMemory;
use super::{Error, MAX_SMMUS};
use crate::call::{Calls, VsmmuCalls};
use crate::host::Host;
use abi::VsmmuHandle;
use smmuv3::address::PhysAddr;
use smmuv3::command::{COMMAND_BYTES, Command};
use smmuv3::features::Features;
use smmuv3::invalidation::{Batch, Queues, Traits};
use smmuv3::memory::Memory;

/// The host's vSMMU on one SMMU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Smmu {
    pub vsmmu: VsmmuHandle,
    pub vmid: u64,
    /// A page for the commands of one call.
    pub commands: PhysAddr,
}

/// All SMMUs: what they can do, and the vSMMUs that the host has on them.
#[derive(Debug)]
pub(super) struct Smmus {
    features: [Features; MAX_SMMUS],
    vsmmus: [Option<Smmu>; MAX_SMMUS],
    count: usize,
}

impl Smmus {
    /// Asks what every SMMU can do.
    pub fn probe<H: Host>(host: &H) -> Result<Self, Error> {
        let count = host.smmu_count()?;
        let count = usize::try_from(count).ok().filter(|&n| n <= MAX_SMMUS).ok_or(Error::TooMany)?;
        let mut features = [Features::NONE; MAX_SMMUS];
        for (smmu, place) in features.iter_mut().enumerate().take(count) {
            *place = Features::probe(&host.smmu_features(smmu)?);
            if !place.stage1 {
                return Err(Error::NoNesting { smmu });
            }
        }
        Ok(Self { features, vsmmus: [None; MAX_SMMUS], count })
    }

    pub const fn count(&self) -> usize {
        self.count
    }

    pub fn features(&self) -> impl Iterator<Item = &Features> {
        self.features.iter().take(self.count)
    }

    pub fn get(&self, smmu: usize) -> Result<&Smmu, Error> {
        self.vsmmus.get(smmu).and_then(Option::as_ref).ok_or(Error::UnknownSmmu)
    }

    pub fn put(&mut self, smmu: usize, known: Smmu) {
        if let Some(place) = self.vsmmus.get_mut(smmu) {
            *place = Some(known);
        }
    }

    pub fn take(&mut self, smmu: usize) -> Option<Smmu> {
        self.vsmmus.get_mut(smmu)?.take()
    }
}

/// The command queues of the host's vSMMUs. One batch an SMMU is open at a time: whoever walks an array has the module to itself.
pub(super) struct HostQueues<'a, H> {
    pub memory: &'a HostMemory<'a, H>,
    pub smmus: &'a Smmus,
}

impl<H: Host> Queues for HostQueues<'_, H> {
    /// A call returns when its commands are complete, so there is nothing to wait for.
    type Ticket = ();
    type Fault = Error;
    type Batch<'b>
        = HostBatch<'b, H>
    where
        Self: 'b;

    /// Range invalidation as the vSMMU has it. Errata are the hypervisor's, which makes the commands anew.
    fn traits(&self, smmu: usize) -> Traits {
        Traits::of(self.smmus.features().nth(smmu).unwrap_or(&Features::NONE))
    }

    fn open(&self, smmu: usize) -> Result<HostBatch<'_, H>, Error> {
        Ok(HostBatch { memory: self.memory, smmu: *self.smmus.get(smmu)?, count: 0, outcome: Ok(()) })
    }

    fn wait(&self, _smmu: usize, (): ()) -> Result<(), Error> {
        Ok(())
    }
}

/// Commands in host memory that are not sent yet.
pub(super) struct HostBatch<'b, H> {
    memory: &'b HostMemory<'b, H>,
    smmu: Smmu,
    count: u64,
    outcome: Result<(), Error>,
}

impl<H: Host> HostBatch<'_, H> {
    fn send(&mut self) -> Result<(), Error> {
        let count = core::mem::take(&mut self.count);
        if count == 0 {
            return Ok(());
        }
        // Commands that were not stored are not sent.
        self.memory.check()?;
        Ok(self.memory.host().invalidate(self.smmu.vsmmu, self.smmu.commands.0, count)?)
    }
}

impl<H: Host> Batch for HostBatch<'_, H> {
    type Ticket = ();
    type Fault = Error;

    fn push(&mut self, command: Command) {
        if self.count >= abi::MAX_INVALIDATIONS {
            self.issue();
        }
        self.memory.write_pair(self.smmu.commands.offset(self.count * COMMAND_BYTES), command.0);
        self.count += 1;
    }

    /// Sends the batch. After a failure nothing more is sent.
    fn issue(&mut self) {
        if self.outcome.is_ok() {
            self.outcome = self.send();
        }
    }

    /// The call ends in a CMD_SYNC of its own.
    fn close(mut self) -> Result<(), Error> {
        self.issue();
        self.outcome
    }
}
