//! What becomes of a transaction (IHI 0070, 3.3 and 3.4).

use super::super::stage2::WalkFault;
use super::event::{configuration_event, number, translation_event};
use super::stream::{Fetched, Meaning};
use super::{Bus, Smmu};

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translated {
    /// It goes to this physical address.
    To(u64),
    /// It is aborted.
    Aborted,
}

impl Smmu {
    /// Translates one untranslated access.
    pub fn translate(&mut self, bus: &mut Bus, stream: u32, address: u64, write: bool) -> Translated {
        self.step(bus);
        if !self.translating() {
            return if self.aborting() { Translated::Aborted } else { Translated::To(address) };
        }
        let ste = match self.configuration_of(bus, stream) {
            Fetched::Ste(ste) => ste,
            Fetched::BadStream => {
                // 7.3.3: recorded only with CR2.RECINVSID.
                if self.registers.cr2 & 2 != 0 {
                    self.record(bus, configuration_event(number::C_BAD_STREAMID, stream));
                }
                return Translated::Aborted;
            }
            Fetched::Abort => {
                self.record(bus, configuration_event(number::F_STE_FETCH, stream));
                return Translated::Aborted;
            }
        };
        match self.decode_ste(&ste) {
            Err(reason) => {
                if ste[0] & 1 == 1 {
                    self.violation(
                        bus,
                        format_args!("the STE of stream {stream:#x} is valid and ILLEGAL: {reason}"),
                    );
                }
                self.record(bus, configuration_event(number::C_BAD_STE, stream));
                Translated::Aborted
            }
            Ok(Meaning::Abort) => Translated::Aborted,
            Ok(Meaning::Bypass) => {
                self.violation(bus, format_args!("stream {stream:#x} bypasses translation"));
                Translated::To(address)
            }
            Ok(Meaning::Stage2 { vmid, config, record }) => {
                let found = match self.tlb.find(vmid, address) {
                    Some(entry) => Ok(entry.leaf),
                    None => self.fill(bus, vmid, &config, address),
                };
                let (event, leaf) = match found {
                    Ok(leaf) if write && !leaf.writable() || !write && !leaf.readable() => {
                        (number::F_PERMISSION, None)
                    }
                    Ok(leaf) => (0, Some(leaf)),
                    Err(WalkFault::Translation(_)) => (number::F_TRANSLATION, None),
                    Err(WalkFault::AddressSize(_)) => (number::F_ADDR_SIZE, None),
                    Err(WalkFault::Access(_)) => (number::F_ACCESS, None),
                    Err(WalkFault::ExternalAbort(_)) => (number::F_WALK_EABT, None),
                };
                if let Some(leaf) = leaf {
                    return Translated::To(leaf.translate(address));
                }
                if record {
                    self.record(bus, translation_event(event, stream, address, write));
                }
                Translated::Aborted
            }
        }
    }
}
