//! Events of SMMUs.

use core::fmt;

/// An event of an SMMU, as EVENT_READ answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Event number (IHI 0070, 7.3).
    pub number: u8,
    /// StreamID.
    pub stream: u32,
    /// Index of the SMMU.
    pub smmu: usize,
    /// InputAddr, when the event records one.
    pub address: Option<u64>,
    /// A write.
    pub write: bool,
    /// A stage-2 fault.
    pub stage2: bool,
    /// IPA of a stage-2 fault.
    pub ipa: u64,
    /// Events lost since the one before.
    pub lost: u64,
}

impl Event {
    /// F_TRANSLATION (IHI 0070, 7.3.12).
    pub const TRANSLATION: u8 = 0x10;

    /// Decodes `X1` to `X4`.
    pub const fn decode(registers: [u64; 4]) -> Self {
        let [source, address, ipa, lost] = registers;
        Self {
            number: source as u8,
            stream: (source >> 8) as u32,
            smmu: (source >> 40) as usize & 0xff,
            address: if source >> 48 & 1 == 1 { Some(address) } else { None },
            write: source >> 49 & 1 == 1,
            stage2: source >> 50 & 1 == 1,
            ipa,
            lost,
        }
    }

    /// The event's name in IHI 0070, 7.3.
    pub const fn name(&self) -> &'static str {
        match self.number {
            0x01 => "F_UUT",
            0x02 => "C_BAD_STREAMID",
            0x03 => "F_STE_FETCH",
            0x04 => "C_BAD_STE",
            0x05 => "F_BAD_ATS_TREQ",
            0x06 => "F_STREAM_DISABLED",
            0x07 => "F_TRANSL_FORBIDDEN",
            0x08 => "C_BAD_SUBSTREAMID",
            0x09 => "F_CD_FETCH",
            0x0a => "C_BAD_CD",
            0x0b => "F_WALK_EABT",
            0x10 => "F_TRANSLATION",
            0x11 => "F_ADDR_SIZE",
            0x12 => "F_ACCESS",
            0x13 => "F_PERMISSION",
            0x20 => "F_TLB_CONFLICT",
            0x21 => "F_CFG_CONFLICT",
            _ => "an unknown event",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} SMMU {} StreamID {:#x}", self.name(), self.smmu, self.stream)?;
        if let Some(address) = self.address {
            write!(f, " {} {address:#x}", if self.write { "write" } else { "read" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_decoded_as_the_interface_packs_it() {
        let source = 0x10 | 0x1108 << 8 | 2 << 40 | 1 << 48 | 1 << 49 | 1 << 50;
        let event = Event::decode([source, 0x4000_1040, 0x4000_1000, 3]);
        assert_eq!((event.number, event.stream, event.smmu), (Event::TRANSLATION, 0x1108, 2));
        assert_eq!((event.address, event.ipa, event.lost), (Some(0x4000_1040), 0x4000_1000, 3));
        assert!(event.write && event.stage2);
        assert_eq!(Event::decode([0x04, 1, 0, 0]).address, None);
    }
}
