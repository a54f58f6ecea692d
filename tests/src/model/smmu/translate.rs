//! What becomes of a transaction (IHI 0070, 3.3, 3.4 and chapter 15).

use super::combined::Kind;
use super::context::{Choice, Parent, Setup};
use super::event::{Class, Refusal, number};
use super::ste::{Decoded, Eats, Meaning};
use super::stream::Fetched;
use super::{Bus, Smmu};

/// Where a transaction comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// StreamID.
    pub stream: u32,
    /// SubstreamID (PASID), if the transaction has one.
    pub ssid: Option<u32>,
}

impl From<u32> for Origin {
    fn from(stream: u32) -> Self {
        Self { stream, ssid: None }
    }
}

impl From<(u32, u32)> for Origin {
    fn from((stream, ssid): (u32, u32)) -> Self {
        Self { stream, ssid: Some(ssid) }
    }
}

impl From<(u32, Option<u32>)> for Origin {
    fn from((stream, ssid): (u32, Option<u32>)) -> Self {
        Self { stream, ssid }
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translated {
    /// It goes to this physical address.
    To(u64),
    /// It is aborted.
    Aborted,
}

/// A translation, with how far it holds and what it allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) ia: u64,
    pub(crate) output: u64,
    pub(crate) size_log2: u32,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}

impl Smmu {
    /// Translates one untranslated access.
    pub fn translate(
        &mut self,
        bus: &mut Bus,
        origin: impl Into<Origin>,
        address: u64,
        write: bool,
    ) -> Translated {
        let origin = origin.into();
        self.step(bus);
        let routed = self.route(bus, origin, address, write);
        self.answer(bus, origin, address, write, routed)
    }

    /// What becomes of a transaction that was routed or refused.
    pub(crate) fn answer(
        &mut self,
        bus: &mut Bus,
        origin: Origin,
        address: u64,
        write: bool,
        routed: Result<u64, Refusal>,
    ) -> Translated {
        match routed {
            Ok(target) => Translated::To(target),
            Err(refusal) => {
                self.report(bus, &refusal, origin, address, write);
                Translated::Aborted
            }
        }
    }

    /// Records the event of a refused transaction, if there is one and the configuration asks for it.
    pub(crate) fn report(
        &mut self,
        bus: &mut Bus,
        refusal: &Refusal,
        origin: Origin,
        address: u64,
        write: bool,
    ) {
        if refusal.record
            && let Some(event) = refusal.event_record(origin, address, write)
        {
            self.record(bus, event);
        }
    }

    /// Where an untranslated access goes, without any record of a refusal.
    pub(crate) fn route(
        &mut self,
        bus: &mut Bus,
        origin: Origin,
        address: u64,
        write: bool,
    ) -> Result<u64, Refusal> {
        if !self.translating() {
            return if self.aborting() { Err(Refusal::silent()) } else { Ok(address) };
        }
        let decoded = self.stream_of(bus, origin.stream)?;
        let (vmid, parent) = match decoded.meaning {
            Meaning::Abort => return Err(Refusal::silent()),
            Meaning::Bypass | Meaning::Stage2 { .. } if origin.ssid.is_some() => {
                // 3.9.2, 7.3.9: without stage 1 there are no substreams.
                return Err(Refusal::configuration(number::C_BAD_SUBSTREAMID));
            }
            Meaning::Bypass => return Ok(self.bypass(bus, origin, address)),
            Meaning::Stage2 { vmid, config, record } => (vmid, Parent { config, record }),
            Meaning::Stage1 { .. } | Meaning::Nested { .. } => {
                let Some(setup) = Setup::of(&decoded.meaning) else { return Err(Refusal::silent()) };
                match setup.contexts.choose(origin.ssid)? {
                    Choice::Cd(ssid) => {
                        return self.route_stage1(bus, origin.stream, ssid, &setup, address, write);
                    }
                    Choice::BypassStage1 => match setup.parent {
                        Some(parent) => (setup.vmid, parent),
                        None => return Ok(self.bypass(bus, origin, address)),
                    },
                }
            }
        };
        self.route_stage2(bus, vmid, &parent, address, write)
    }

    fn bypass(&self, bus: &mut Bus, origin: Origin, address: u64) -> u64 {
        self.violation(bus, format_args!("stream {:#x} bypasses translation", origin.stream));
        address
    }

    /// The decoded STE of a stream, or the event that there is none (3.3.2, 7.3.3 to 7.3.5).
    pub(crate) fn stream_of(&mut self, bus: &mut Bus, stream: u32) -> Result<Decoded, Refusal> {
        let ste = match self.configuration_of(bus, stream) {
            Fetched::Ste(ste) => ste,
            Fetched::BadStream => {
                // 7.3.3: recorded only with CR2.RECINVSID.
                let record = self.registers.cr2 & 2 != 0;
                return Err(Refusal { record, ..Refusal::configuration(number::C_BAD_STREAMID) });
            }
            Fetched::Abort => return Err(Refusal::configuration(number::F_STE_FETCH)),
        };
        self.decode_whole_ste(&ste).map_err(|reason| {
            if ste[0] & 1 == 1 {
                self.violation(
                    bus,
                    format_args!("the STE of stream {stream:#x} is valid and ILLEGAL: {reason}"),
                );
            }
            Refusal::configuration(number::C_BAD_STE)
        })
    }

    /// Stage 2 alone: for streams without stage 1, and for IPAs of split-stage ATS.
    pub(crate) fn route_stage2(
        &mut self,
        bus: &mut Bus,
        vmid: u16,
        parent: &Parent,
        address: u64,
        write: bool,
    ) -> Result<u64, Refusal> {
        let refuse = |event| Refusal::stage2(event, Class::Input, address, parent.record);
        let leaf = match self.tlb.find(vmid, address) {
            Some(entry) => entry.leaf,
            None => self
                .fill(bus, vmid, &parent.config, address)
                .map_err(|fault| refuse(number::of_walk(fault)))?,
        };
        if write && !leaf.writable() || !write && !leaf.readable() {
            return Err(refuse(number::F_PERMISSION));
        }
        Ok(leaf.translate(address))
    }

    fn route_stage1(
        &mut self,
        bus: &mut Bus,
        stream: u32,
        ssid: u32,
        setup: &Setup,
        va: u64,
        write: bool,
    ) -> Result<u64, Refusal> {
        let context = self.context_of(bus, stream, ssid, setup)?;
        let entry = self.combine(bus, (stream, ssid), setup, &context, va, Kind::of(setup))?;
        if !entry.stage1_allows(write) {
            return Err(Refusal::stage1(number::F_PERMISSION, Class::Input, context.record));
        }
        if let Some(parent) = setup.parent
            && !entry.stage2_allows(write)
        {
            let ipa = entry.ipa_of(va);
            return Err(Refusal::stage2(number::F_PERMISSION, Class::Input, ipa, parent.record));
        }
        Ok(entry.translate(va))
    }

    /// What an ATS Translation Request of a stream that may make it is answered from (3.9.1.2).
    pub(crate) fn map_for_ats(
        &mut self,
        bus: &mut Bus,
        origin: Origin,
        decoded: &Decoded,
        address: u64,
    ) -> Result<Mapping, Refusal> {
        let split = decoded.eats == Eats::Split;
        let (vmid, parent) = match decoded.meaning {
            Meaning::Abort | Meaning::Bypass => return Err(Refusal::silent()),
            Meaning::Stage2 { .. } if origin.ssid.is_some() => {
                return Err(Refusal::configuration(number::C_BAD_SUBSTREAMID));
            }
            Meaning::Stage2 { vmid, config, record } => (vmid, Parent { config, record }),
            Meaning::Stage1 { .. } | Meaning::Nested { .. } => {
                let Some(setup) = Setup::of(&decoded.meaning) else { return Err(Refusal::silent()) };
                match (setup.contexts.choose(origin.ssid)?, setup.parent) {
                    (Choice::Cd(ssid), _) => {
                        let context = self.context_of(bus, origin.stream, ssid, &setup)?;
                        let kind = if split { Kind::Split } else { Kind::of(&setup) };
                        let entry =
                            self.combine(bus, (origin.stream, ssid), &setup, &context, address, kind)?;
                        return Ok(entry.mapping());
                    }
                    (Choice::BypassStage1, Some(parent)) => (setup.vmid, parent),
                    (Choice::BypassStage1, None) => return Err(Refusal::silent()),
                }
            }
        };
        if split {
            // Stage 1 is bypassed: the IPA is the address itself.
            let (readable, writable) = (true, true);
            return Ok(Mapping {
                ia: address & !0xfff,
                output: address & !0xfff,
                size_log2: 12,
                readable,
                writable,
            });
        }
        let leaf = self.below(bus, vmid, &parent, address, Class::Input)?;
        Ok(Mapping {
            ia: leaf.ia,
            output: leaf.output,
            size_log2: leaf.size_log2,
            readable: leaf.readable(),
            writable: leaf.writable(),
        })
    }
}
