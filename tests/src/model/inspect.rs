//! Questions about a machine: what an STE in memory means, what is cached, and where an access would go without any cache.

use super::Machine;
use super::memory::Span;
use super::smmu::ats::AtcEntry;
use super::smmu::combined::{Combined, Kind, Stage1Step};
use super::smmu::context::{CachedCd, CachedCdTable};
use super::smmu::event::Refusal;
use super::smmu::ste::{Decoded, Eats, Meaning};
use super::smmu::stream::Fetched;
use super::smmu::tlb::{Translation, WalkStep};
use super::smmu::translate::Origin;
use super::smmu::{Bus, Smmu};
use super::violation::Violations;
use std::fmt;

/// Something that an SMMU, or the ATC of a device behind it, caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// A translation of stage 2 alone: tagged with a VMID.
    Stage2(Translation),
    /// A pointer to a stage-2 table: tagged with a VMID.
    Stage2Walk(WalkStep),
    /// A translation that stage 1 has a part in: tagged with a VMID and an ASID.
    Combined(Combined),
    /// A pointer to a stage-1 table: tagged with a VMID and an ASID.
    Stage1Walk(Stage1Step),
    /// A CD, by StreamID and SSID.
    Cd((u32, u32), CachedCd),
    /// A level-1 CD descriptor, by StreamID and index.
    CdTable((u32, u32), CachedCdTable),
    /// An entry of an ATC.
    Atc(AtcEntry),
}

impl Cached {
    /// The VMID it is tagged with.
    pub fn vmid(&self) -> Option<u16> {
        match self {
            Self::Stage2(entry) => Some(entry.vmid),
            Self::Stage2Walk(step) => Some(step.vmid),
            Self::Combined(entry) => Some(entry.vmid),
            Self::Stage1Walk(step) => Some(step.vmid),
            Self::Cd(..) | Self::CdTable(..) | Self::Atc(_) => None,
        }
    }

    /// The ASID it is tagged with: none if it is for all ASIDs, or has nothing to do with stage 1.
    pub fn asid(&self) -> Option<u16> {
        match self {
            Self::Combined(entry) => (!entry.global).then_some(entry.asid),
            Self::Stage1Walk(step) => Some(step.asid),
            Self::Stage2(_) | Self::Stage2Walk(_) | Self::Cd(..) | Self::CdTable(..) | Self::Atc(_) => None,
        }
    }

    /// The StreamID it belongs to, if it is not tagged.
    pub fn stream(&self) -> Option<u32> {
        match self {
            Self::Cd((stream, _), _) | Self::CdTable((stream, _), _) => Some(*stream),
            Self::Atc(entry) => Some(entry.origin.stream),
            Self::Stage2(_) | Self::Stage2Walk(_) | Self::Combined(_) | Self::Stage1Walk(_) => None,
        }
    }

    /// An invalidation named it, and the SYNC is still to come.
    pub fn doomed(&self) -> bool {
        match self {
            Self::Stage2(entry) => entry.doomed,
            Self::Stage2Walk(step) => step.doomed,
            Self::Combined(entry) => entry.doomed,
            Self::Stage1Walk(step) => step.doomed,
            Self::Cd(_, entry) => entry.doomed,
            Self::CdTable(_, entry) => entry.doomed,
            Self::Atc(entry) => entry.doomed,
        }
    }

    /// The physical memory that a device's access ends in through it: of translations only, and not of those that put out IPAs.
    pub fn output(&self) -> Option<Span> {
        match self {
            Self::Stage2(entry) => Some(Span::new(entry.leaf.output, 1 << entry.leaf.size_log2)),
            Self::Combined(entry) if entry.kind != Kind::Split => {
                Some(Span::new(entry.output, 1 << entry.size_log2))
            }
            Self::Atc(entry) if !entry.split => Some(Span::new(entry.output, 1 << entry.size_log2)),
            _ => None,
        }
    }

    /// The physical memory that the SMMU itself reads, or has read, through it: tables and CDs that belong to whoever drives stage 1.
    pub fn structure(&self) -> Option<Span> {
        match self {
            // A table below 4 KiB in size is inside one page, and its neighbours are not read.
            Self::Stage1Walk(step) => Some(Span::new(step.table.address, 8)),
            Self::Cd(_, entry) => Some(Span::new(entry.address, 64)),
            Self::CdTable(_, entry) => Some(Span::new(entry.address, 8)),
            _ => None,
        }
    }
}

impl fmt::Display for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage2(entry) => write!(
                f,
                "{:#x} -> {:#x} (level {}) for VMID {}",
                entry.leaf.ia, entry.leaf.output, entry.leaf.level, entry.vmid
            ),
            Self::Stage2Walk(step) => write!(
                f,
                "a pointer to the table at {:#x} (VMID {}, level {})",
                step.table.address, step.vmid, step.table.level
            ),
            Self::Combined(entry) => write!(
                f,
                "{:#x} -> {:#x} ({:?}, 2^{} bytes) for VMID {}, ASID {}{}",
                entry.ia,
                entry.output,
                entry.kind,
                entry.size_log2,
                entry.vmid,
                entry.asid,
                if entry.global { " (global)" } else { "" }
            ),
            Self::Stage1Walk(step) => write!(
                f,
                "a pointer to the stage-1 table at {:#x} (VMID {}, ASID {}, level {})",
                step.table.address, step.vmid, step.asid, step.table.level
            ),
            Self::Cd((stream, ssid), entry) => {
                write!(f, "the CD of stream {stream:#x}, SSID {ssid:#x}, from {:#x}", entry.address)
            }
            Self::CdTable((stream, index), entry) => {
                write!(f, "the CD table {index} of stream {stream:#x}, from {:#x}", entry.address)
            }
            Self::Atc(entry) => write!(
                f,
                "{:#x} -> {:#x} in the ATC of stream {:#x}, SSID {:x?}",
                entry.ia, entry.output, entry.origin.stream, entry.origin.ssid
            ),
        }
    }
}

impl Smmu {
    /// Everything that is cached, but for STEs, which are in [`Smmu::configuration`].
    pub fn cached(&self) -> impl Iterator<Item = Cached> {
        let tlb = &self.tlb;
        let translations = tlb.translations.iter().map(|entry| Cached::Stage2(*entry));
        let walks = tlb.walks.iter().map(|step| Cached::Stage2Walk(*step));
        let combined = tlb.combined.iter().map(|entry| Cached::Combined(*entry));
        let stage1_walks = tlb.stage1_walks.iter().map(|step| Cached::Stage1Walk(*step));
        let cds = self.configuration.cds.iter().map(|(key, entry)| Cached::Cd(*key, *entry));
        let tables = self.configuration.cd_tables.iter().map(|(key, entry)| Cached::CdTable(*key, *entry));
        let atc = self.atc.entries.iter().map(|entry| Cached::Atc(*entry));
        translations.chain(walks).chain(combined).chain(stage1_walks).chain(cds).chain(tables).chain(atc)
    }

    /// What the cached STE of a stream says; `None` if none is cached, or it is not a legal one.
    pub fn cached_meaning(&self, stream: u32) -> Option<Decoded> {
        let ste = self.configuration.stes.get(&stream)?.fetched.ste()?;
        self.decode_whole_ste(&ste).ok()
    }
}

impl Machine {
    /// What translates a stream now by its STE in memory; `None` if that is not valid, or the SMMU does not translate.
    pub fn meaning_in_memory(&mut self, index: usize, stream: u32) -> Option<Meaning> {
        self.decoded_in_memory(index, stream).map(|decoded| decoded.meaning)
    }

    /// What the STE of a stream says now, in memory; `None` if it is not valid, or the SMMU does not translate.
    pub fn decoded_in_memory(&mut self, index: usize, stream: u32) -> Option<Decoded> {
        let (smmu, mut bus) = self.smmu(index)?;
        if !smmu.translating() {
            return None;
        }
        match smmu.ste_in_memory(&mut bus, stream) {
            Fetched::Ste(ste) => smmu.decode_whole_ste(&ste).ok(),
            Fetched::BadStream | Fetched::Abort => None,
        }
    }

    /// VMID and decoded CD of a stream and SSID by what is in memory now, past all caches; `None` if there is no legal one.
    pub fn context_in_memory(
        &mut self,
        index: usize,
        stream: u32,
        ssid: u32,
    ) -> Option<(u16, super::smmu::cd::Context)> {
        let (smmu, mut bus) = self.smmu(index)?;
        smmu.context_in_memory(&mut bus, stream, ssid)
    }

    /// Where an untranslated access would go by what is in memory now, past all caches. Nothing is cached, recorded or consumed.
    pub fn evaluate(
        &mut self,
        index: usize,
        origin: impl Into<Origin>,
        address: u64,
        write: bool,
    ) -> Result<u64, Refusal> {
        let origin = origin.into();
        self.probe(index, |smmu, bus| smmu.route(bus, origin, address, write))
    }

    /// As [`Machine::evaluate`], for a Translated request.
    pub fn evaluate_translated(
        &mut self,
        index: usize,
        origin: impl Into<Origin>,
        address: u64,
        write: bool,
    ) -> Result<u64, Refusal> {
        let origin = origin.into();
        self.probe(index, |smmu, bus| smmu.route_translated(bus, origin, address, write))
    }

    fn probe(
        &mut self,
        index: usize,
        ask: impl FnOnce(&mut Smmu, &mut Bus) -> Result<u64, Refusal>,
    ) -> Result<u64, Refusal> {
        let Some(smmu) = self.smmus.get(index) else { return Err(Refusal::silent()) };
        let mut unheard = Violations::default();
        let mut bus = Bus { memory: &mut self.memory, violations: &mut unheard, now_ns: self.now_ns };
        ask(&mut smmu.without_caches(), &mut bus)
    }

    /// Whether a device's Translated requests go where they say, by its STE in memory or in the cache.
    pub(super) fn has_full_ats(&mut self, index: usize, stream: u32) -> bool {
        let full = |decoded: Option<Decoded>| decoded.is_some_and(|decoded| decoded.eats == Eats::Full);
        full(self.decoded_in_memory(index, stream))
            || self.smmus.get(index).is_some_and(|smmu| full(smmu.cached_meaning(stream)))
    }
}
