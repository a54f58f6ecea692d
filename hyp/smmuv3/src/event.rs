//! Event records (IHI 0070, 7.3).

mod owner;

use core::fmt;

/// Bytes of an event record.
pub const EVENT_BYTES: u64 = 32;

/// The number of an event (7.3). Open: an unknown number is a value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EventKind(pub u8);

impl EventKind {
    /// F_UUT (7.3.2).
    pub const UNSUPPORTED_UPSTREAM_TRANSACTION: Self = Self(0x01);
    /// C_BAD_STREAMID (7.3.3).
    pub const BAD_STREAM_ID: Self = Self(0x02);
    /// F_STE_FETCH (7.3.4).
    pub const STE_FETCH: Self = Self(0x03);
    /// C_BAD_STE (7.3.5).
    pub const BAD_STE: Self = Self(0x04);
    /// F_BAD_ATS_TREQ (7.3.6).
    pub const BAD_ATS_REQUEST: Self = Self(0x05);
    /// F_STREAM_DISABLED (7.3.7).
    pub const STREAM_DISABLED: Self = Self(0x06);
    /// F_TRANSL_FORBIDDEN (7.3.8).
    pub const TRANSLATION_FORBIDDEN: Self = Self(0x07);
    /// C_BAD_SUBSTREAMID (7.3.9).
    pub const BAD_SUBSTREAM_ID: Self = Self(0x08);
    /// F_CD_FETCH (7.3.10).
    pub const CD_FETCH: Self = Self(0x09);
    /// C_BAD_CD (7.3.11).
    pub const BAD_CD: Self = Self(0x0a);
    /// F_WALK_EABT (7.3.12).
    pub const WALK_EXTERNAL_ABORT: Self = Self(0x0b);
    /// F_TRANSLATION (7.3.13).
    pub const TRANSLATION: Self = Self(0x10);
    /// F_ADDR_SIZE (7.3.14).
    pub const ADDRESS_SIZE: Self = Self(0x11);
    /// F_ACCESS (7.3.15).
    pub const ACCESS: Self = Self(0x12);
    /// F_PERMISSION (7.3.16).
    pub const PERMISSION: Self = Self(0x13);
    /// F_TLB_CONFLICT (7.3.17).
    pub const TLB_CONFLICT: Self = Self(0x20);
    /// F_CFG_CONFLICT (7.3.18).
    pub const CONFIGURATION_CONFLICT: Self = Self(0x21);
    /// E_PAGE_REQUEST (7.3.19).
    pub const PAGE_REQUEST: Self = Self(0x24);

    /// The name in IHI 0070, or `None` for a number it does not define.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::UNSUPPORTED_UPSTREAM_TRANSACTION => "F_UUT",
            Self::BAD_STREAM_ID => "C_BAD_STREAMID",
            Self::STE_FETCH => "F_STE_FETCH",
            Self::BAD_STE => "C_BAD_STE",
            Self::BAD_ATS_REQUEST => "F_BAD_ATS_TREQ",
            Self::STREAM_DISABLED => "F_STREAM_DISABLED",
            Self::TRANSLATION_FORBIDDEN => "F_TRANSL_FORBIDDEN",
            Self::BAD_SUBSTREAM_ID => "C_BAD_SUBSTREAMID",
            Self::CD_FETCH => "F_CD_FETCH",
            Self::BAD_CD => "C_BAD_CD",
            Self::WALK_EXTERNAL_ABORT => "F_WALK_EABT",
            Self::TRANSLATION => "F_TRANSLATION",
            Self::ADDRESS_SIZE => "F_ADDR_SIZE",
            Self::ACCESS => "F_ACCESS",
            Self::PERMISSION => "F_PERMISSION",
            Self::TLB_CONFLICT => "F_TLB_CONFLICT",
            Self::CONFIGURATION_CONFLICT => "F_CFG_CONFLICT",
            Self::PAGE_REQUEST => "E_PAGE_REQUEST",
            _ => return None,
        })
    }

    /// Whether the record carries an InputAddr (7.3).
    pub const fn has_address(self) -> bool {
        matches!(
            self,
            Self::UNSUPPORTED_UPSTREAM_TRANSACTION
                | Self::TRANSLATION_FORBIDDEN
                | Self::BAD_ATS_REQUEST
                | Self::WALK_EXTERNAL_ABORT
                | Self::TRANSLATION
                | Self::ADDRESS_SIZE
                | Self::ACCESS
                | Self::PERMISSION
                | Self::TLB_CONFLICT
        )
    }

    /// Whether the record says which stage faulted, and for stage 2 the IPA (7.3.12 to 7.3.16).
    const fn has_stage(self) -> bool {
        matches!(
            self,
            Self::WALK_EXTERNAL_ABORT
                | Self::TRANSLATION
                | Self::ADDRESS_SIZE
                | Self::ACCESS
                | Self::PERMISSION
        )
    }
}

impl fmt::Debug for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "event {:#04x}", self.0),
        }
    }
}

/// An event record as the SMMU wrote it: four 64-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRecord(pub [u64; 4]);

/// An event record, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// StreamID of the transaction.
    pub stream: u32,
    /// SubstreamID, if the transaction had one.
    pub substream: Option<u32>,
    /// Input address, where the record carries one.
    pub address: Option<u64>,
    /// IPA of a stage-2 fault, bits 11:0 zero.
    pub ipa: Option<u64>,
    /// The transaction wrote.
    pub write: bool,
    /// The fault was of stage 2.
    pub stage2: bool,
}

impl EventRecord {
    /// Decodes the record. Any four words are an event; fields that the event does not carry are absent or false.
    pub const fn decode(self) -> Event {
        let kind = EventKind(self.0[0] as u8);
        let staged = kind.has_stage();
        let stage2 = staged && self.0[1] >> 39 & 1 == 1;
        Event {
            kind,
            stream: (self.0[0] >> 32) as u32,
            substream: if self.0[0] >> 11 & 1 == 1 {
                Some((self.0[0] >> 12) as u32 & 0xf_ffff)
            } else {
                None
            },
            address: if kind.has_address() { Some(self.0[2]) } else { None },
            ipa: if stage2 { Some(self.0[3] & 0x000f_ffff_ffff_f000) } else { None },
            write: staged && self.0[1] >> 35 & 1 == 0,
            stage2,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of stream {:#x}", self.kind, self.stream)?;
        if let Some(substream) = self.substream {
            write!(f, "/{substream:#x}")?;
        }
        if let Some(address) = self.address {
            write!(f, ", {} {address:#x}", if self.write { "write to" } else { "read of" })?;
        }
        if let Some(ipa) = self.ipa {
            write!(f, ", stage 2 at IPA {ipa:#x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_stage_2_write_fault_is_decoded() {
        let record = EventRecord([0x0800_0000_0010, 1 << 39, 0x4020_0123, 0x4020_0000]);
        let event = record.decode();
        assert_eq!(event.kind, EventKind::TRANSLATION);
        assert_eq!((event.stream, event.address, event.ipa), (0x800, Some(0x4020_0123), Some(0x4020_0000)));
        assert!(event.write && event.stage2);
        assert_eq!(
            event.to_string(),
            "F_TRANSLATION of stream 0x800, write to 0x40200123, stage 2 at IPA 0x40200000"
        );
    }

    #[test]
    fn an_event_without_address_shows_none() {
        let event = EventRecord([0x0800_0000_0004, u64::MAX, u64::MAX, u64::MAX]).decode();
        assert_eq!((event.kind, event.address, event.ipa), (EventKind::BAD_STE, None, None));
        assert!(!event.write && !event.stage2);
    }

    #[test]
    fn an_unknown_number_is_a_value() {
        assert_eq!(EventRecord([0xee, 0, 0, 0]).decode().kind.to_string(), "event 0xee");
    }
}
