//! ATS: Translation Requests, Translated requests, the devices' ATCs and CMD_ATC_INV (IHI 0070, 3.9.1 and 4.5).
//!
//! An ATC keeps what it was told until a CMD_ATC_INV that names it and a SYNC. A greedy device asks again while the invalidation
//! is under way, and gets what the SMMU's TLB has at that moment: CMD_ATC_INV is of no use before the TLB's own invalidation is complete.

use super::context::Parent;
use super::event::{Refusal, number};
use super::queue::{CommandError, Outcome};
use super::registers::ATSCHK;
use super::ste::{Eats, Meaning};
use super::translate::{Origin, Translated};
use super::{Bus, Smmu};
use std::collections::{HashSet, VecDeque};

/// What an ATC holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtcEntry {
    /// The device's StreamID, and the SSID that it asked for.
    pub origin: Origin,
    /// First input address.
    pub ia: u64,
    /// First output address: an IPA if `split`.
    pub output: u64,
    /// log2 of its size.
    pub size_log2: u32,
    /// R of the Translation Completion.
    pub readable: bool,
    /// W of the Translation Completion.
    pub writable: bool,
    /// It was got with EATS = 0b10: Translated requests go through stage 2.
    pub split: bool,
    /// An invalidation named it; it goes with the next SYNC.
    pub doomed: bool,
    /// What it leads to changed hands while ATS was off: it must be gone before ATS is on again.
    pub outlived: bool,
}

impl AtcEntry {
    /// Whether it maps the input address.
    pub fn covers(&self, ia: u64) -> bool {
        ia >> self.size_log2 == self.ia >> self.size_log2
    }

    /// Output for an input address it covers.
    pub fn translate(&self, ia: u64) -> u64 {
        self.output | ia & ((1 << self.size_log2) - 1)
    }
}

/// What a Translation Request is answered with (3.9.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtsReply {
    /// A translation, which the ATC keeps now.
    Translated(AtcEntry),
    /// Success without R or W: nothing is mapped there. No event is recorded.
    NotMapped,
    /// Unsupported Request or Completer Abort.
    Refused,
}

/// The ATCs of all devices behind an SMMU.
#[derive(Debug, Default)]
pub struct Atc {
    /// What they hold.
    pub entries: Vec<AtcEntry>,
    /// Streams whose device does not answer invalidations, and does not obey them.
    pub silent: HashSet<u32>,
    /// Streams whose device did not answer an invalidation since the last SYNC, in the order in which it was sent.
    pub(crate) unanswered: VecDeque<u32>,
    /// The next invalidation is not answered.
    pub(crate) lose_next: bool,
}

impl Atc {
    /// The oldest entry for an address, doomed or not.
    pub fn find(&self, origin: Origin, ia: u64) -> Option<&AtcEntry> {
        self.entries.iter().find(|entry| entry.origin == origin && entry.covers(ia))
    }

    pub(crate) fn forget_doomed(&mut self) {
        self.entries.retain(|entry| !entry.doomed);
    }
}

/// What a CMD_ATC_INV names (4.5.1).
struct Named {
    stream: u32,
    /// SSV: without it, entries of all SSIDs and of none go.
    ssid: Option<u32>,
    /// Global: with an SSID, entries of all SSIDs go, but not those of none.
    global: bool,
    first: u64,
    last: u64,
}

impl Named {
    fn names(&self, entry: &AtcEntry) -> bool {
        let ssid = match self.ssid {
            None => true,
            Some(_) if self.global => entry.origin.ssid.is_some(),
            Some(ssid) => entry.origin.ssid == Some(ssid),
        };
        let last = entry.ia + ((1 << entry.size_log2) - 1);
        entry.origin.stream == self.stream && ssid && self.first <= last && entry.ia <= self.last
    }
}

/// Whether a CMD_ATC_INV is for every address and SSID of its stream.
pub(crate) fn invalidates_all(low: u64, high: u64) -> bool {
    low >> 11 & 1 == 0 && high & 0x3f == 52
}

impl Smmu {
    /// 4.5.1: Global \[9], SSV \[11], SSID \[31:12], StreamID \[63:32]; Size \[69:64], Address \[127:76].
    pub(crate) fn atc_inv(&mut self, bus: &mut Bus, low: u64, high: u64) -> Outcome {
        let stream = (low >> 32) as u32;
        let ssid = (low >> 11 & 1 == 1).then_some((low >> 12) as u32 & 0xf_ffff);
        let (size, address) = (high & 0x3f, high & !0xfff);
        if size > 52 {
            return Outcome::Error(CommandError::Illegal);
        }
        if ssid.is_some_and(|ssid| ssid >> self.config.ssid_size() != 0) {
            self.needless.push(format!("ATC_INV of {ssid:x?}, SSIDSIZE is {}", self.config.ssid_size()));
        }
        // The span is 2^Size pages, and the SMMU aligns it.
        let bytes = 1u128 << (12 + size);
        let first = (u128::from(address) & !(bytes - 1)) as u64;
        if first != address {
            self.needless.push(format!("ATC_INV of {address:#x} is not a multiple of 2^{size} pages"));
        }
        let last = first + (bytes - 1) as u64;
        if self.atc.silent.contains(&stream) || std::mem::take(&mut self.atc.lose_next) {
            if !self.atc.unanswered.contains(&stream) {
                self.atc.unanswered.push_back(stream);
            }
            return Outcome::Done;
        }
        let named = Named { stream, ssid, global: low >> 9 & 1 == 1, first, last };
        let mut again = Vec::new();
        for entry in self.atc.entries.iter_mut().filter(|entry| named.names(entry) && !entry.doomed) {
            entry.doomed = true;
            again.push((entry.origin, entry.ia));
        }
        if self.config.greedy && self.translating() {
            for (origin, ia) in again {
                let _ = self.ask(bus, origin, ia);
            }
        }
        Outcome::Done
    }

    /// A Translation Request for an address. The ATC keeps what it gets.
    pub fn ats_request(&mut self, bus: &mut Bus, origin: impl Into<Origin>, address: u64) -> AtsReply {
        let origin = origin.into();
        self.step(bus);
        match self.ask(bus, origin, address) {
            Ok(entry) if entry.readable || entry.writable => AtsReply::Translated(entry),
            Ok(_) => AtsReply::NotMapped,
            // 3.9.1.2: faults of the translation are answered and not recorded; those of the configuration are.
            Err(refusal) if refusal.translation() => AtsReply::NotMapped,
            Err(refusal) => {
                self.report(bus, &refusal, origin, address, false);
                AtsReply::Refused
            }
        }
    }

    /// What a Translation Request gets, without any record of a refusal.
    pub(crate) fn ask(&mut self, bus: &mut Bus, origin: Origin, address: u64) -> Result<AtcEntry, Refusal> {
        // 3.9.1.2, 3.9.1.3: an SMMU that is off refuses both kinds.
        if !self.translating() {
            return Err(Refusal::configuration(number::F_BAD_ATS_TREQ));
        }
        let decoded = self.stream_of(bus, origin.stream)?;
        if decoded.eats == Eats::Off {
            return Err(match decoded.meaning {
                Meaning::Abort => Refusal::silent(),
                _ => Refusal::configuration(number::F_BAD_ATS_TREQ),
            });
        }
        let mapping = self.map_for_ats(bus, origin, &decoded, address)?;
        let entry = AtcEntry {
            origin,
            ia: mapping.ia,
            output: mapping.output,
            size_log2: mapping.size_log2,
            readable: mapping.readable,
            writable: mapping.writable,
            split: decoded.eats == Eats::Split,
            doomed: false,
            outlived: false,
        };
        if (entry.readable || entry.writable) && !self.atc.entries.contains(&entry) {
            self.atc.entries.push(entry);
        }
        Ok(entry)
    }

    /// A Translated request: the device says that `address` is translated already, whether it is or not (3.9.1.3).
    pub fn translated(
        &mut self,
        bus: &mut Bus,
        origin: impl Into<Origin>,
        address: u64,
        write: bool,
    ) -> Translated {
        let origin = origin.into();
        self.step(bus);
        let routed = self.route_translated(bus, origin, address, write);
        self.answer(bus, origin, address, write, routed)
    }

    /// Where a Translated request goes, without any record of a refusal.
    pub(crate) fn route_translated(
        &mut self,
        bus: &mut Bus,
        origin: Origin,
        address: u64,
        write: bool,
    ) -> Result<u64, Refusal> {
        let forbidden = || Refusal::configuration(number::F_TRANSL_FORBIDDEN);
        if !self.translating() || !self.config.ats() {
            return Err(forbidden());
        }
        // 6.3.9, ATSCHK = 0: Translated requests pass by, whatever the STE says.
        if self.registers.cr0ack & ATSCHK == 0 {
            self.violation(
                bus,
                format_args!("a Translated request of {:#x} passes unchecked: ATSCHK = 0", origin.stream),
            );
            return Ok(address);
        }
        let decoded = self.stream_of(bus, origin.stream)?;
        match (decoded.eats, decoded.meaning) {
            (_, Meaning::Abort) => Err(Refusal::silent()),
            (Eats::Full, _) => Ok(address),
            (Eats::Split, Meaning::Nested { vmid, config, record, .. }) => {
                self.route_stage2(bus, vmid, &Parent { config, record }, address, write)
            }
            (Eats::Off | Eats::Split, _) => Err(forbidden()),
        }
    }
}
