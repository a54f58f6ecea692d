//! Streams that the host's own driver has: what it says of each in the stream table of an emulated SMMU comes here as a claim.
//!
//! An emulated SMMU has one domain, nested on the host's, and one VMID, as a vSMMU has: the context descriptors of all its streams are the
//! host's, and so are their ASIDs. What stage 1 a stream has stands in its STE and nowhere else. A stream that the driver lets nothing through
//! for is free: it is parked, and a call may attach it.

use abi::Principal;
use smmuv3::command::{Command, opcode};
use smmuv3::features::IdRegisters;
use smmuv3::invalidation;
use smmuv3::ste::{Ats, Stage1Claim, Stage1Config};
use smmuv3::vsmmu::VsmmuLimits;

use super::registry::{HOST, Kind};
use super::{Iommu, Refused};
use crate::platform::Platform;
use crate::smmu::{Condition, Fault, Pages, VmidOwner};

/// What an emulated SMMU is to the IOMMU service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emulated {
    /// Index of the SMMU.
    pub smmu: u8,
    /// Its domain.
    domain: u16,
    /// The VMID of its streams.
    pub vmid: u16,
    /// What its driver may send.
    pub limits: VsmmuLimits,
}

/// Why a stream is not what the host's driver wants it to be: it aborts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamRefused {
    /// The STE is ILLEGAL on the emulated SMMU, or asks for what its driver may not have (C_BAD_STE).
    BadSte,
    /// The SMMU has no such StreamID (C_BAD_STREAMID).
    BadStreamId,
    /// It is attached by a call, or is a guest's: nothing is changed.
    Busy,
    /// There is no memory for its STE or its invalidation entries: nothing is changed.
    NoMemory,
    /// The SMMU failed. The stream is as it was, or nobody knows.
    Hardware,
}

impl From<Refused> for StreamRefused {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::UnknownStream => Self::BadStreamId,
            Refused::NoMemory { .. } | Refused::NoSpace => Self::NoMemory,
            Refused::Busy => Self::Busy,
            Refused::Illegal { .. } => Self::BadSte,
            _ => Self::Hardware,
        }
    }
}

impl Iommu {
    /// Makes the domain of the host's driver on an SMMU that it turns on. `None`, and nothing is changed, where the SMMU has not both stages at
    /// once, has failed, or has no VMID left.
    pub fn create_emulated<P: Platform>(&self, p: &P, smmu: u8) -> Option<Emulated> {
        let device = self.set.get(usize::from(smmu))?;
        if !device.features.nested || device.condition() != Condition::Running {
            return None;
        }
        let mut registry = self.lock();
        let domain = registry.free_domain_place().ok()?;
        let vmid = registry.vmids.get_mut(usize::from(smmu))?.allocate(p).ok()?;
        registry.put_domain(domain, Principal::Host, Kind::Emulated { smmu, vmid }).ok()?;
        device.vmids().set(p, vmid, VmidOwner::Domain(domain), false);
        let limits = VsmmuLimits::new(&device.features, self.most_ats(usize::from(smmu), &device.features));
        Some(Emulated { smmu, domain, vmid, limits })
    }

    /// Makes a stream what its STE says, as the host's driver wrote words 0 and 1 of it. On return nothing is translated by what it said
    /// before, nor by a CD that was read before.
    ///
    /// # Errors
    /// [`StreamRefused`]. With [`StreamRefused::BadSte`] the stream aborts, or, if that cannot be done either, is as [`StreamRefused::Hardware`]
    /// says; with all others it is as it was.
    pub fn set_emulated_stream<P: Platform>(
        &self,
        p: &P,
        emulated: &Emulated,
        stream: u32,
        claim: Stage1Claim,
        pages: &mut impl Pages,
    ) -> Result<(), StreamRefused> {
        let stream = self.stream(usize::from(emulated.smmu), stream)?;
        let device = stream.device;
        let most = Ats::most(&device.features, self.is_trusted(usize::from(stream.smmu), stream.id));
        let mut registry = self.lock();
        let is_here = match registry.standing(p, stream)? {
            None => false,
            Some((domain, _)) if domain == emulated.domain => true,
            Some(_) => return Err(StreamRefused::Busy),
        };
        if registry.vsmmu_stream(p, stream.smmu, stream.id).is_some() {
            return Err(StreamRefused::Busy);
        }
        let Kind::Stage2(table) = registry.domain(HOST.0)?.kind else { return Err(StreamRefused::Hardware) };
        let checked = claim.check(&device.features, table.geometry()).map_err(|_| StreamRefused::BadSte);
        let (config, ats, verdict) = match checked {
            Ok(Stage1Config::Translate(stage1)) if stage1.wants_ats() && most == Ats::Off => {
                (Stage1Config::Abort, Ats::Off, Err(StreamRefused::BadSte))
            }
            Ok(config @ Stage1Config::Translate(stage1)) => {
                (config, if stage1.wants_ats() { most } else { Ats::Off }, Ok(()))
            }
            Ok(config) => (config, Ats::Off, Ok(())),
            Err(refused) => (Stage1Config::Abort, Ats::Off, Err(refused)),
        };
        let entry = if is_here { device.entry(p, stream.id) } else { None };
        let before = entry.map_or(Stage1Config::Abort, |entry| entry.stage1_config());
        registry.driver_configs = [before, config];
        let side = |config, ats| registry.emulated_side(emulated.domain, emulated.vmid, ats, config);
        let from = match entry {
            Some(entry) => Some(side(0, entry.ats())?),
            None => None,
        };
        let to = if config == Stage1Config::Abort { None } else { Some(side(1, ats)?) };
        if from.is_none() && to.is_none() {
            return verdict;
        }
        if to.is_some() {
            if device.condition() != Condition::Running {
                return Err(StreamRefused::Hardware);
            }
            self.separate(p, stream, pages)?;
        }
        if let (Some(entry), Some(to)) = (&entry, &to)
            && *entry == registry.entry_of(to)
        {
            // What the driver may have changed is the CDs, which go with the STE (4.3.1).
            let forgotten = device.run(p, &[invalidation::forget_ste(stream.id, true)]);
            return forgotten.map_err(|Fault| StreamRefused::Hardware);
        }
        self.switch(p, &mut registry, stream, from.as_ref(), to.as_ref(), pages)?;
        verdict
    }

    /// Says whether the host's driver has turned the SMMU on: then events of its streams, and of those that nobody has, are its to see.
    pub fn set_driver(&self, emulated: &Emulated, is_on: bool) {
        if let Some(device) = self.set.get(usize::from(emulated.smmu)) {
            device.set_driver_vmid(if is_on { emulated.vmid } else { 0 });
        }
    }

    /// The ID registers of an SMMU as the host's driver finds them; `None` if there is no such SMMU.
    pub fn driver_id_registers(&self, smmu: usize) -> Option<IdRegisters> {
        let features = &self.set.get(smmu)?.features;
        Some(features.for_emulation(self.most_ats(smmu, features)))
    }

    /// Whether the host's driver has the stream, and it is not parked.
    pub fn is_emulated_stream<P: Platform>(&self, p: &P, emulated: &Emulated, stream: u32) -> bool {
        let device = self.set.get(usize::from(emulated.smmu));
        device.is_some_and(|device| device.vmid(p, stream) == Some(emulated.vmid))
    }

    /// Sends invalidations of the host's driver, which [`smmuv3::vsmmu::check`] made, and returns when they are complete. Those about streams that
    /// the driver does not have are left out.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn invalidate_emulated<P: Platform>(
        &self,
        p: &P,
        emulated: &Emulated,
        commands: &[Command],
    ) -> Result<(), Fault> {
        let device = self.set.get(usize::from(emulated.smmu)).ok_or(Fault)?;
        if commands.iter().any(names_stream) {
            return self.invalidate_emulated_streams(p, emulated, commands);
        }
        device.run(p, commands)
    }

    /// The part of [`Iommu::invalidate_emulated`] that looks whose streams are named.
    #[inline(never)]
    fn invalidate_emulated_streams<P: Platform>(
        &self,
        p: &P,
        emulated: &Emulated,
        commands: &[Command],
    ) -> Result<(), Fault> {
        let device = self.set.get(usize::from(emulated.smmu)).ok_or(Fault)?;
        // An ATC invalidation must not reach a device that has left meanwhile.
        let _registry = self.lock();
        let is_foreign = |command: &Command| {
            names_stream(command) && !self.is_emulated_stream(p, emulated, command.stream())
        };
        // A driver sends commands about streams of its own: this is one batch nearly always.
        let mut batches = commands.split(is_foreign).filter(|batch| !batch.is_empty());
        batches.try_for_each(|batch| device.run(p, batch))
    }

    /// Ends what [`Iommu::create_emulated`] made; the driver has no stream any more. Its VMID was flushed when the last one left.
    ///
    /// # Errors
    /// [`Refused::Busy`] while it has a stream; nothing is changed.
    pub fn destroy_emulated<P: Platform>(&self, p: &P, emulated: &Emulated) -> Result<(), Refused> {
        let mut registry = self.lock();
        registry.remove_domain(emulated.domain)?;
        let device = self.set.get(usize::from(emulated.smmu)).ok_or(Refused::UnknownSmmu)?;
        device.set_driver_vmid(0);
        device.vmids().set(p, emulated.vmid, VmidOwner::Nobody, false);
        if let Some(space) = registry.vmids.get_mut(usize::from(emulated.smmu)) {
            space.free(p, emulated.vmid);
        }
        Ok(())
    }
}

/// Whether a command of a driver, or of a vSMMU's owner, is about a stream.
#[inline]
pub(super) const fn names_stream(command: &Command) -> bool {
    matches!(command.opcode(), opcode::CFGI_CD | opcode::CFGI_CD_ALL | opcode::ATC_INV)
}

#[cfg(test)]
mod tests;
