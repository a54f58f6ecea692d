//! Streams, and the domains that they are attached to: the host's half of the order that `smmuv3::invalidation` gives.
//!
//! Which domain a SubstreamID of a stream is attached to stands in one place: its context descriptor has the ASID, and one domain has
//! that ASID on the SMMU.

use super::contexts::{Contexts, LiveContext, MAX_CD_MAX};
use super::pages::Arrays;
use super::queues::{HostQueues, Smmus};
use super::{DomainId, Error, Stage1};
use crate::call::{Calls, DomainCalls, VsmmuCalls};
use crate::host::Host;
use abi::{DomainHandle, attach};
use smmuv3::cd::ContextDescriptor;
use smmuv3::invalidation::{Array, Entry, StreamEntries, Tag, Target, World, run};
use smmuv3::tags::{self, Allocated, TagKind};

/// The most streams at once.
pub(super) const MAX_STREAMS: usize = 32;

/// What a stream's device can do, and may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// log2 of the SubstreamIDs that the device may send, [`MAX_CD_MAX`] at most; 0 for none.
    pub cd_max: u8,
    /// The device may ask for translations and keep them.
    pub ats: bool,
}

/// What becomes of a stream when its last SubstreamID is detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Its transactions abort.
    Aborts,
    /// It is attached to the host's domain: its I/O addresses are physical ones.
    HostDomain,
}

/// A stream of the host's vSMMU, where it has the StreamID that it has on the SMMU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    pub smmu: usize,
    pub id: u32,
    options: StreamOptions,
    attached: Option<Attached>,
}

/// What a stream that is attached translates by.
#[derive(Clone, Copy, Debug)]
struct Attached {
    contexts: Contexts,
    /// The hypervisor's domain that points to them.
    nested: DomainHandle,
}

impl Stream {
    pub const fn is_attached(&self) -> bool {
        self.attached.is_some()
    }

    /// Ends what the hypervisor has of a stream that is detached, as far as it lets the host.
    pub fn end<H: Host>(&self, host: &H, smmus: &Smmus) {
        if let Some(attached) = &self.attached {
            let _ = host.destroy_domain(attached.nested);
        }
        if let Ok(known) = smmus.get(self.smmu) {
            let _ = host.remove_stream(known.vsmmu, self.id);
        }
    }
}

/// A domain that a SubstreamID of a stream is attached to, or is to be.
struct Side {
    domain: DomainId,
    asid: u16,
    entries: StreamEntries,
}

impl<H: Host> Stage1<'_, H> {
    /// Makes a stream the host's vSMMU's. Attached to the host's domain or not, it stays so until [`Stage1::attach`].
    ///
    /// # Errors
    /// [`Error::UnknownSmmu`], [`Error::Substream`] if the SMMU has not so many SubstreamIDs, [`Error::Present`], [`Error::TooMany`],
    /// [`Error::Call`].
    pub fn add_stream(&mut self, smmu: usize, stream: u32, options: StreamOptions) -> Result<(), Error> {
        let vsmmu = self.smmus.get(smmu)?.vsmmu;
        if options.cd_max > MAX_CD_MAX.min(self.features(smmu)?.substream_bits) {
            return Err(Error::Substream((1 << options.cd_max.min(31)) - 1));
        }
        if self.find_stream(smmu, stream).is_ok() {
            return Err(Error::Present);
        }
        let place = self.streams.iter_mut().find(|place| place.is_none()).ok_or(Error::TooMany)?;
        self.memory.host().add_stream(vsmmu, stream, stream)?;
        *place = Some(Stream { smmu, id: stream, options, attached: None });
        Ok(())
    }

    /// Takes a stream out of the host's vSMMU.
    ///
    /// # Errors
    /// [`Error::UnknownStream`]; [`Error::Busy`] while it is attached to a domain; [`Error::Call`].
    pub fn remove_stream(&mut self, smmu: usize, stream: u32) -> Result<(), Error> {
        let index = self.find_stream(smmu, stream)?;
        let place = self.streams.get_mut(index).ok_or(Error::UnknownStream)?;
        if place.as_ref().is_some_and(Stream::is_attached) {
            return Err(Error::Busy);
        }
        self.memory.host().remove_stream(self.smmus.get(smmu)?.vsmmu, stream)?;
        *place = None;
        Ok(())
    }

    /// Attaches a SubstreamID of a stream, 0 for its transactions without one, to a domain. From another domain it changes over in
    /// one step: each transaction is translated by the old domain or the new.
    ///
    /// # Errors
    /// [`Error::UnknownStream`], [`Error::UnknownDomain`], [`Error::Substream`], [`Error::Present`] if it is attached to that domain,
    /// [`Error::NoAsid`], [`Error::NoMemory`]: nothing has changed. [`Error::Call`], [`Error::Memory`]: it is in the old domain if it
    /// could not be attached to the new one, else in the new one; a domain that could not be flushed keeps its ASID.
    pub fn attach(
        &mut self,
        smmu: usize,
        stream: u32,
        substream: u32,
        domain: DomainId,
    ) -> Result<(), Error> {
        let table = self.table(domain)?;
        let index = self.find_stream(smmu, stream)?;
        let from = self.side_of(index, substream)?;
        if from.as_ref().is_some_and(|from| from.domain == domain) {
            return Err(Error::Present);
        }
        let to = self.enter(index, substream, domain)?;
        let descriptor = self.context_of(&table, to.asid);
        let before = match self.write_context(index, substream, &descriptor) {
            Ok(before) => before,
            Err(error) => {
                // It may have been used for a moment: it is flushed, as if it had been.
                self.leave(index, substream, &to)?;
                return Err(error);
            }
        };
        let left = match from {
            Some(from) => self.leave(index, substream, &from),
            None => {
                self.collect();
                Ok(())
            }
        };
        self.end_attached(before).and(left)
    }

    /// Takes a SubstreamID of a stream out of its domain; with the last of them the stream leaves stage 1.
    ///
    /// # Errors
    /// [`Error::UnknownStream`], [`Error::Substream`], [`Error::NotAttached`]; [`Error::Call`], [`Error::Memory`] as [`Stage1::attach`].
    pub fn detach(&mut self, smmu: usize, stream: u32, substream: u32, idle: Idle) -> Result<(), Error> {
        let index = self.find_stream(smmu, stream)?;
        let from = self.side_of(index, substream)?.ok_or(Error::NotAttached)?;
        let before = self.erase_context(index, substream, idle)?;
        let left = self.leave(index, substream, &from);
        self.end_attached(before).and(left)
    }

    fn find_stream(&self, smmu: usize, stream: u32) -> Result<usize, Error> {
        let is_it = |known: &Stream| known.smmu == smmu && known.id == stream;
        self.streams.iter().position(|place| place.as_ref().is_some_and(is_it)).ok_or(Error::UnknownStream)
    }

    fn stream(&self, index: usize) -> Result<Stream, Error> {
        self.streams.get(index).copied().flatten().ok_or(Error::UnknownStream)
    }

    /// Where a SubstreamID is attached.
    fn side_of(&self, index: usize, substream: u32) -> Result<Option<Side>, Error> {
        let stream = self.stream(index)?;
        if substream >> stream.options.cd_max != 0 {
            return Err(Error::Substream(substream));
        }
        let Some(attached) = stream.attached else { return Ok(None) };
        let descriptor = attached.contexts.read(&self.memory, substream);
        if !descriptor.is_valid() {
            return Ok(None);
        }
        let asid = descriptor.asid();
        let has_it = |domain: &DomainId| {
            let tag = tags::find(&self.memory, self.cell(*domain), stream.smmu as u8, TagKind::Asid);
            tag.is_some_and(|(number, _)| number == asid)
        };
        let domain = (0..super::MAX_DOMAINS as u16).map(DomainId).find(has_it).ok_or(Error::Inconsistent)?;
        let entries = self.entries(&stream, substream, asid)?;
        Ok(Some(Side { domain, asid, entries }))
    }

    /// What a SubstreamID puts into the array of its domain.
    fn entries(&self, stream: &Stream, substream: u32, asid: u16) -> Result<StreamEntries, Error> {
        let tag = Target::S1Asid { asid, world: World::El1, hears_broadcast: false };
        let atc = Target::Ats { stream: stream.id, substream };
        let targets = [Some(tag), stream.options.ats.then_some(atc)].into_iter().flatten();
        let entry = |target| Entry::new(stream.smmu as u8, target, self.granule());
        Ok(StreamEntries::of(targets.map(entry))?)
    }

    /// Finds or takes the ASID of a domain on the stream's SMMU, and publishes the domain's array with the stream's entries, before the
    /// SMMU can walk the table.
    fn enter(&mut self, index: usize, substream: u32, domain: DomainId) -> Result<Side, Error> {
        let stream = self.stream(index)?;
        let cell = self.cell(domain);
        let smmu = stream.smmu as u8;
        let Allocated { number: asid, fresh } =
            tags::allocate(&self.memory, &mut self.asids, cell, smmu, TagKind::Asid)?;
        let merged = self.entries(&stream, substream, asid).and_then(|entries| {
            let mut arrays = Arrays { pages: &mut self.pages, memory: &self.memory };
            let array = Array::merge(&self.memory, cell.load(&self.memory), &entries, &mut arrays)?;
            self.retired.replace(&self.memory, &self.readers, cell, Some(array));
            Ok(Side { domain, asid, entries })
        });
        if merged.is_err() && fresh {
            self.asids.free(&self.memory, asid);
        }
        merged
    }

    /// Makes a SubstreamID translate by a valid descriptor; what the stream translated by before, if that is used no more.
    ///
    /// A SubstreamID without a valid descriptor gets it in place. Another one's is not overwritten, because a change of both table and
    /// ASID leads through V = 0: the stream gets a new table of descriptors instead, by one change of its STE.
    fn write_context(
        &mut self,
        index: usize,
        substream: u32,
        descriptor: &ContextDescriptor,
    ) -> Result<Option<Attached>, Error> {
        let stream = self.stream(index)?;
        if let Some(attached) = stream.attached
            && !attached.contexts.read(&self.memory, substream).is_valid()
        {
            self.live_context(&stream, &attached.contexts, substream).write(descriptor)?;
            return Ok(None);
        }
        let new = Contexts::new(&self.memory, &mut self.pages, stream.options.cd_max)?;
        if let Some(old) = &stream.attached {
            old.contexts.copy_to(&self.memory, &new);
        }
        new.store(&self.memory, substream, descriptor);
        let pointed = self.memory.check().and_then(|()| self.point_to(&stream, &new));
        match pointed {
            Ok(nested) => {
                self.set_attached(index, Some(Attached { contexts: new, nested }));
                Ok(stream.attached)
            }
            Err(error) => {
                new.free(&self.memory, &mut self.pages);
                Err(error)
            }
        }
    }

    /// Makes a SubstreamID translate by nothing. What the stream translated by before, if it leaves stage 1.
    fn erase_context(&mut self, index: usize, substream: u32, idle: Idle) -> Result<Option<Attached>, Error> {
        let stream = self.stream(index)?;
        let attached = stream.attached.ok_or(Error::NotAttached)?;
        if attached.contexts.has_others(&self.memory, substream) {
            let mut context = self.live_context(&stream, &attached.contexts, substream);
            context.write(&ContextDescriptor::INVALID)?;
            return Ok(None);
        }
        match idle {
            Idle::Aborts => self.memory.host().detach(stream.smmu, stream.id)?,
            Idle::HostDomain => self.memory.host().replace(stream.smmu, stream.id, DomainHandle::Host)?,
        }
        self.set_attached(index, None);
        Ok(stream.attached)
    }

    /// Has the stream's STE point to a table of descriptors; the hypervisor's domain for it.
    fn point_to(&self, stream: &Stream, contexts: &Contexts) -> Result<DomainHandle, Error> {
        let host = self.memory.host();
        let replace = if host.attachment(stream.smmu, stream.id)?.is_some() { attach::REPLACE } else { 0 };
        let ats = if stream.options.ats { attach::ATS } else { 0 };
        let vsmmu = self.smmus.get(stream.smmu)?.vsmmu;
        let nested = host.create_nested(vsmmu, contexts.claim(stream.options.ats))?;
        if let Err(refused) = host.attach_with(stream.smmu, stream.id, nested, replace | ats) {
            let _ = host.destroy_domain(nested);
            return Err(refused.into());
        }
        Ok(nested)
    }

    /// Ends what a stream translated by before, if anything; no SMMU reaches it.
    fn end_attached(&mut self, attached: Option<Attached>) -> Result<(), Error> {
        if let Some(attached) = attached {
            attached.contexts.free(&self.memory, &mut self.pages);
            self.memory.host().destroy_domain(attached.nested)?;
        }
        self.memory.check()
    }

    fn set_attached(&mut self, index: usize, attached: Option<Attached>) {
        if let Some(Some(stream)) = self.streams.get_mut(index) {
            stream.attached = attached;
        }
    }

    /// Makes the SMMU and the device forget what only this SubstreamID used of a domain that it has left, takes its entries out of the
    /// domain's array, and frees the ASID with the last of them.
    fn leave(&mut self, index: usize, substream: u32, side: &Side) -> Result<(), Error> {
        let stream = self.stream(index)?;
        let cell = self.cell(side.domain);
        let queues = self.queues();
        if stream.options.ats && stream.is_attached() {
            // Once the stream has left stage 1, what the device has is of no use to it: the hypervisor gave it ATS for that alone.
            let atc = Target::Ats { stream: stream.id, substream };
            let atc = Entry::new(stream.smmu as u8, atc, self.granule());
            run(&queues, stream.smmu, &[atc.flush()])?;
        }
        let is_last = |entry: &&Entry| entry.tag().is_some() && cell.users(&self.memory, entry) == 1;
        if let Some(tag) = side.entries.iter().find(is_last) {
            run(&queues, stream.smmu, &[tag.flush()])?;
        }
        let array = cell.load(&self.memory).ok_or(Error::Inconsistent)?;
        let mut freed = None;
        array.unref(&self.memory, &side.entries, |entry| {
            if let Some(Tag::Asid(asid)) = entry.tag() {
                freed = Some(asid);
            }
        })?;
        if let Some(asid) = freed {
            self.asids.free(&self.memory, asid);
        }
        let mut arrays = Arrays { pages: &mut self.pages, memory: &self.memory };
        self.retired.tidy(&self.memory, &self.readers, cell, &mut arrays);
        self.collect();
        Ok(())
    }

    /// Gives arrays back that were replaced: nobody reads any while somebody attaches.
    fn collect(&mut self) {
        let mut arrays = Arrays { pages: &mut self.pages, memory: &self.memory };
        self.retired.collect(&self.memory, &self.readers, &mut arrays);
    }

    fn queues(&self) -> HostQueues<'_, H> {
        HostQueues { memory: &self.memory, smmus: &self.smmus }
    }

    fn live_context(&self, stream: &Stream, contexts: &Contexts, substream: u32) -> LiveContext<'_, H> {
        LiveContext {
            memory: &self.memory,
            queues: self.queues(),
            contexts: *contexts,
            smmu: stream.smmu,
            stream: stream.id,
            substream,
        }
    }
}
