//! Which invalidations no cache could need.
//!
//! Each SMMU keeps a ledger of what may be in its caches, judges each command by it when it is consumed, and says in
//! [`Smmu::needless`] which ones were for nothing. It only records: what is needless may still be right to send. The rules:
//!
//! - A **TLBI** is needless when no STE (for a VMID) or CD (for an ASID) that was in memory or in the configuration cache since the
//!   last unsized flush of that tag could have brought anything into a TLB that the command names. Stage-1 commands (`NH_*`) need an
//!   STE with stage 1, `S2_IPA` one with stage 2, `S12_VMALL` either. A flush is unsized if it names a tag and no address: `NH_ASID` for
//!   an ASID; `NH_ALL` for a VMID's stage 1 and its ASIDs; `S12_VMALL`, and `NSNH_ALL`, for everything of a VMID. It counts once its SYNC is
//!   complete, and an STE or CD that still names the tag brings it back at once.
//! - An **ATC_INV** is needless when EATS was 0 for its stream, in memory and in the configuration cache, ever since the last completed
//!   ATC_INV of everything.
//! - A **CFGI** is needless when, since the last CFGI that named the same thing, neither the bytes that it names nor the tables on the
//!   way changed, and, for CDs and STEs of nested streams, no TLBI of the stream's stage 2 was consumed: stage-2 memory that is taken away
//!   may hold CDs, and is always invalidated. Bytes that changed and changed back count as changed. A CFGI_STE counts for its CDs too.
//! - What is sent before SMMUEN is set is exempt, and so are `CFGI_ALL`, `CFGI_STE_RANGE`, `EL2_ALL` and `NSNH_ALL` at any time.
//!
//! Stores of EL2 to STEs are seen one by one. CDs are the host's, which stores without telling: they are looked at when they are fetched and when
//! a command is judged, so a CD that came and went in between without a fetch is not counted, and can be in no cache either.

use super::super::violation::Violations;
use super::ats::invalidates_all;
use super::context::{Choice, Setup};
use super::ste::{Eats, Meaning};
use super::stream::Fetched;
use super::tlbi::tags;
use super::{Bus, Smmu};
use std::collections::{HashMap, HashSet};

/// A flush that has had no SYNC yet.
#[derive(Clone, Copy, Debug)]
enum Flush {
    Asid(u16, u16),
    Stage1(u16),
    Vmid(u16),
    Everything,
    Atc(u32),
}

/// What may be in an SMMU's caches.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    stage2: HashSet<u16>,
    stage1: HashSet<u16>,
    asids: HashSet<(u16, u16)>,
    ats: HashSet<u32>,
    flushes: Vec<Flush>,
    /// When the last CFGI that named the STE was consumed, by the clock of memory and the count of TLBIs.
    stes: HashMap<u32, Seen>,
    cds: HashMap<(u32, u32), Seen>,
    all_cds: HashMap<u32, Seen>,
    baseline: Option<Seen>,
    /// Stage-2 TLBIs so far, and the number of the last one of each VMID.
    tlbis: u64,
    last_tlbi: HashMap<u16, u64>,
}

/// A point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    clock: u64,
    tlbis: u64,
}

impl Ledger {
    pub(crate) fn note_asid(&mut self, vmid: u16, asid: u16) {
        self.asids.insert((vmid, asid));
    }

    fn note_meaning(&mut self, stream: u32, meaning: &Meaning, eats: Eats) {
        if let Some(vmid) = meaning.vmid() {
            if meaning.stage2().is_some() {
                self.stage2.insert(vmid);
            }
            if meaning.contexts().is_some() {
                self.stage1.insert(vmid);
            }
        }
        if eats != Eats::Off {
            self.ats.insert(stream);
        }
    }

    fn flush(&mut self, flush: Flush) {
        match flush {
            Flush::Asid(vmid, asid) => {
                self.asids.remove(&(vmid, asid));
            }
            Flush::Stage1(vmid) => {
                self.stage1.remove(&vmid);
                self.asids.retain(|&(tag, _)| tag != vmid);
            }
            Flush::Vmid(vmid) => {
                self.stage2.remove(&vmid);
                self.flush(Flush::Stage1(vmid));
            }
            Flush::Everything => {
                self.stage2.clear();
                self.stage1.clear();
                self.asids.clear();
            }
            Flush::Atc(stream) => {
                self.ats.remove(&stream);
            }
        }
    }
}

impl Smmu {
    /// Notes what an STE that was read, or stored, may bring into caches.
    pub(crate) fn note_ste(&mut self, bus: &mut Bus, stream: u32, fetched: Fetched) {
        let Some(decoded) = fetched.ste().and_then(|ste| self.decode_whole_ste(&ste).ok()) else { return };
        // 3.9.1: what an ATC kept while ATS was off comes alive when ATS is on again.
        let stale = self.atc.entries.iter().any(|entry| entry.origin.stream == stream && entry.outlived);
        if decoded.eats == Eats::Full && stale {
            self.violation(
                bus,
                format_args!("ATS of {stream:#x} is on while its ATC holds memory that changed hands"),
            );
        }
        self.ledger.note_meaning(stream, &decoded.meaning, decoded.eats);
    }

    /// Learns where the STEs of the devices are, so that a store to one is seen even if it was never fetched.
    pub(crate) fn learn_places(&mut self, bus: &mut Bus) {
        for stream in self.streams.clone() {
            if let Some(place) = self.ste_place(bus, stream) {
                self.ste_places.entry(place).or_insert(stream);
            }
        }
    }

    /// Looks at every STE and CD that is cached, or that a device of this SMMU, or a stream that a CFGI_STE named, has in memory.
    fn take_stock(&mut self, bus: &mut Bus) {
        let mut streams = self.streams.clone();
        let known = self.configuration.stes.keys().chain(self.ledger.stes.keys());
        streams.extend(known.filter(|stream| !self.streams.contains(stream)));
        for &stream in &streams {
            if let Some(cached) = self.configuration.stes.get(&stream).map(|entry| entry.fetched) {
                self.note_ste(bus, stream, cached);
            }
            let fetched = self.ste_in_memory(bus, stream);
            self.note_ste(bus, stream, fetched);
        }
        let cached: Vec<_> = self.configuration.cds.iter().map(|(key, entry)| (*key, entry.cd)).collect();
        let mut wanted: Vec<(u32, u32)> = cached.iter().map(|(key, _)| *key).collect();
        for (key, cd) in cached {
            if let Some(setup) = self.cached_setup(key.0)
                && let Ok(context) = self.decode_cd(&cd, &setup.contexts)
            {
                self.ledger.note_asid(setup.vmid, context.asid);
            }
        }
        for stream in streams {
            if let Some(setup) = self.setup_in_memory(bus, stream)
                && let Ok(Choice::Cd(ssid)) = setup.contexts.choose(None)
            {
                wanted.push((stream, ssid));
            }
        }
        for (stream, ssid) in wanted {
            if let Some((vmid, context)) = self.context_in_memory(bus, stream, ssid) {
                self.ledger.note_asid(vmid, context.asid);
            }
        }
    }

    /// What an SSID's CD says in memory now, past all caches, and the VMID that goes with it.
    pub(crate) fn context_in_memory(
        &self,
        bus: &mut Bus,
        stream: u32,
        ssid: u32,
    ) -> Option<(u16, super::cd::Context)> {
        let mut probe = self.without_caches();
        let mut unheard = Violations::default();
        let mut bus = Bus { memory: bus.memory, violations: &mut unheard, now_ns: bus.now_ns };
        let setup = probe.setup_in_memory(&mut bus, stream)?;
        let context = probe.context_of(&mut bus, stream, ssid, &setup).ok()?;
        Some((setup.vmid, context))
    }

    fn setup_in_memory(&mut self, bus: &mut Bus, stream: u32) -> Option<Setup> {
        let ste = self.ste_in_memory(bus, stream).ste()?;
        Setup::of(&self.decode_ste(&ste).ok()?)
    }

    fn now(&self, bus: &Bus) -> Seen {
        Seen { clock: bus.memory.clock(), tlbis: self.ledger.tlbis }
    }

    /// Judges a command that is consumed now, and notes what it changes.
    pub(crate) fn judge(&mut self, bus: &mut Bus, low: u64, high: u64) {
        let opcode = low as u8;
        let stream = (low >> 32) as u32;
        if self.translating() && matches!(opcode, 0x03 | 0x05 | 0x06 | 0x10..=0x13 | 0x28 | 0x2a | 0x40) {
            if !matches!(opcode, 0x03 | 0x05 | 0x06) {
                self.take_stock(bus);
            }
            if let Some(reason) = self.reason(bus, low) {
                self.needless.push(format!("command {low:#018x} {high:#018x}: {reason}"));
            }
        }
        if matches!(opcode, 0x03 | 0x04) && self.translating() {
            self.learn_places(bus);
        }
        if opcode == 0x03 && self.translating() {
            // A stream without a device may be read ahead as well.
            let fetched = self.ste_in_memory(bus, stream);
            self.note_ste(bus, stream, fetched);
        }
        let now = self.now(bus);
        let (vmid, asid) = tags(low);
        let ledger = &mut self.ledger;
        match opcode {
            0x03 => {
                ledger.stes.insert(stream, now);
                ledger.all_cds.insert(stream, now);
            }
            // 4.3.2: StreamIDs that agree above bit Range; 31 is CFGI_ALL.
            0x04 if high & 31 == 31 => {
                ledger.stes.clear();
                ledger.cds.clear();
                ledger.all_cds.clear();
                ledger.baseline = Some(now);
            }
            0x04 => {
                let known = self.streams.iter().chain(self.configuration.stes.keys());
                for &stream in known.filter(|&&at| (at ^ stream) >> ((high & 31) + 1) == 0) {
                    ledger.stes.insert(stream, now);
                    ledger.all_cds.insert(stream, now);
                }
            }
            0x05 => {
                ledger.cds.insert((stream, (low >> 12) as u32 & 0xf_ffff), now);
            }
            0x06 => {
                ledger.all_cds.insert(stream, now);
            }
            0x10 => ledger.flushes.push(Flush::Stage1(vmid)),
            0x11 => ledger.flushes.push(Flush::Asid(vmid, asid)),
            0x28 | 0x2a => {
                ledger.tlbis += 1;
                ledger.last_tlbi.insert(vmid, ledger.tlbis);
                if opcode == 0x28 {
                    ledger.flushes.push(Flush::Vmid(vmid));
                }
            }
            0x30 => {
                ledger.tlbis += 1;
                let tlbis = ledger.tlbis;
                ledger.last_tlbi.values_mut().for_each(|last| *last = tlbis);
                ledger.flushes.push(Flush::Everything);
            }
            0x40 if invalidates_all(low, high) => ledger.flushes.push(Flush::Atc(stream)),
            _ => {}
        }
    }

    /// Why no cache could need a command; `None` if one could.
    fn reason(&mut self, bus: &mut Bus, low: u64) -> Option<String> {
        let (vmid, asid) = tags(low);
        let stream = (low >> 32) as u32;
        let ledger = &self.ledger;
        let (stage1, stage2) = (ledger.stage1.contains(&vmid), ledger.stage2.contains(&vmid));
        let (needed, what) = match low as u8 {
            0x03 => (self.ste_may_be_old(bus, stream), format!("nothing of stream {stream:#x} changed")),
            0x05 => {
                let ssid = (low >> 12) as u32 & 0xf_ffff;
                let needed = self.cd_may_be_old(bus, stream, ssid, false);
                (needed, format!("nothing of SSID {ssid:#x} of stream {stream:#x} changed"))
            }
            0x06 => (self.cds_may_be_old(bus, stream, false), format!("no CD of stream {stream:#x} changed")),
            0x11 | 0x12 => {
                let needed = ledger.asids.contains(&(vmid, asid));
                (needed, format!("no CD had ASID {asid:#x} under VMID {vmid:#x}"))
            }
            0x10 | 0x13 => (stage1, format!("no STE had stage 1 with VMID {vmid:#x}")),
            0x28 => (stage1 || stage2, format!("no STE had VMID {vmid:#x}")),
            0x2a => (stage2, format!("no STE had stage 2 with VMID {vmid:#x}")),
            _ => (ledger.ats.contains(&stream), format!("ATS of stream {stream:#x} was off")),
        };
        (!needed).then_some(what)
    }

    fn ste_may_be_old(&mut self, bus: &mut Bus, stream: u32) -> bool {
        let last = self.ledger.stes.get(&stream).copied().or(self.ledger.baseline).unwrap_or_default();
        self.ste_changed(bus, stream) > last.clock || self.cds_may_be_old(bus, stream, true)
    }

    /// Whether something of a stream's stage 2 was invalidated since.
    fn parent_may_be_old(&mut self, bus: &mut Bus, stream: u32, since: Seen) -> bool {
        let Some(Setup { vmid, parent: Some(_), .. }) = self.setup_in_memory(bus, stream) else {
            return false;
        };
        self.ledger.last_tlbi.get(&vmid).is_some_and(|last| *last > since.tlbis)
    }

    fn cd_may_be_old(&mut self, bus: &mut Bus, stream: u32, ssid: u32, all: bool) -> bool {
        let own = if all { None } else { self.ledger.cds.get(&(stream, ssid)) };
        let whole = self.ledger.all_cds.get(&stream);
        let last = own.copied().max(whole.copied()).or(self.ledger.baseline).unwrap_or_default();
        // The STE names the tables: a CFGI_STE for its change takes the CDs too, so `last` is later than that.
        if self.ste_changed(bus, stream) > last.clock || self.parent_may_be_old(bus, stream, last) {
            return true;
        }
        let mut probe = self.without_caches();
        let mut unheard = Violations::default();
        let mut bus = Bus { memory: bus.memory, violations: &mut unheard, now_ns: bus.now_ns };
        let Some(setup) = probe.setup_in_memory(&mut bus, stream) else { return false };
        let _ = probe.cd_of(&mut bus, stream, ssid, &setup);
        let places = probe.configuration.cds.values().map(|entry| entry.address);
        let tables = probe.configuration.cd_tables.values().map(|entry| entry.address);
        places.chain(tables).any(|address| bus.memory.changed_at(address) > last.clock)
    }

    /// CFGI_CD_ALL: any of the CDs that were ever read, and the one that transactions without an SSID use.
    fn cds_may_be_old(&mut self, bus: &mut Bus, stream: u32, of_ste: bool) -> bool {
        let Some(setup) = self.setup_in_memory(bus, stream) else {
            return !of_ste && self.ste_may_be_old(bus, stream);
        };
        if setup.contexts.max_log2 == 0 {
            return self.cd_may_be_old(bus, stream, 0, false);
        }
        let mut ssids: Vec<u32> = self
            .configuration
            .cds
            .keys()
            .chain(self.ledger.cds.keys())
            .filter(|(at, _)| *at == stream)
            .map(|(_, ssid)| *ssid)
            .collect();
        if let Ok(Choice::Cd(ssid)) = setup.contexts.choose(None) {
            ssids.push(ssid);
        }
        let since = self.ledger.all_cds.get(&stream).copied().or(self.ledger.baseline).unwrap_or_default();
        self.parent_may_be_old(bus, stream, since)
            || ssids.into_iter().any(|ssid| self.cd_may_be_old(bus, stream, ssid, true))
    }

    /// When the STE of a stream, or the level-1 descriptor on the way to it, changed last.
    fn ste_changed(&mut self, bus: &mut Bus, stream: u32) -> u64 {
        let level1 = self.level1_place(stream).map_or(0, |at| bus.memory.changed_at(at));
        let ste = self.ste_place(bus, stream).map_or(0, |at| bus.memory.changed_at(at));
        level1.max(ste)
    }

    /// A SYNC is complete: what the flushes before it named is forgotten, and what is still in use comes back.
    pub(crate) fn complete_flushes(&mut self, bus: &mut Bus) {
        let flushes = std::mem::take(&mut self.ledger.flushes);
        if flushes.is_empty() {
            return;
        }
        for flush in flushes {
            self.ledger.flush(flush);
        }
        if self.translating() {
            self.take_stock(bus);
        }
    }
}
