//! ITS commands (IHI 0069, 5.3): what the host may send, decoded from its words and made anew from the fields.
//!
//! The commands of GICv4 are not on the list, and neither is anything that IHI 0069 does not define.

/// Bytes of a command.
pub const COMMAND_BYTES: u64 = 32;

/// The words of a command.
pub type Words = [u64; 4];

/// A command, with the fields that it has. Only their width is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// MAPD with V = 1: gives a device an ITT.
    MapDevice {
        /// DeviceID.
        device: u32,
        /// Bits of the device's EventIDs, Size + 1.
        event_bits: u8,
    },
    /// MAPD with V = 0.
    UnmapDevice {
        /// DeviceID.
        device: u32,
    },
    /// MAPC; without a target V = 0.
    MapCollection {
        /// ICID.
        collection: u16,
        /// RDbase, bits 51:16.
        target: Option<u64>,
    },
    /// MAPTI.
    MapInterrupt {
        /// DeviceID and EventID.
        event: Event,
        /// pINTID.
        intid: u32,
        /// ICID.
        collection: u16,
    },
    /// MAPI: MAPTI with the EventID as pINTID.
    MapIdentity {
        /// DeviceID and EventID.
        event: Event,
        /// ICID.
        collection: u16,
    },
    /// MOVI.
    Move {
        /// DeviceID and EventID.
        event: Event,
        /// ICID.
        collection: u16,
    },
    /// DISCARD.
    Discard(Event),
    /// INV.
    Invalidate(Event),
    /// INT.
    Interrupt(Event),
    /// CLEAR.
    Clear(Event),
    /// INVALL.
    InvalidateAll {
        /// ICID.
        collection: u16,
    },
    /// MOVALL.
    MoveAll {
        /// RDbase1, bits 51:16.
        from: u64,
        /// RDbase2, bits 51:16.
        to: u64,
    },
    /// SYNC.
    Sync {
        /// RDbase, bits 51:16.
        target: u64,
    },
}

/// An event of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// DeviceID.
    pub device: u32,
    /// EventID.
    pub event: u32,
}

const MOVI: u64 = 0x01;
const INT: u64 = 0x03;
const CLEAR: u64 = 0x04;
const SYNC: u64 = 0x05;
const MAPD: u64 = 0x08;
const MAPC: u64 = 0x09;
const MAPTI: u64 = 0x0a;
const MAPI: u64 = 0x0b;
const INV: u64 = 0x0c;
const INVALL: u64 = 0x0d;
const MOVALL: u64 = 0x0e;
const DISCARD: u64 = 0x0f;

/// V of MAPD and MAPC.
const VALID: u64 = 1 << 63;
/// RDbase, bits 51:16 of a word.
const TARGET: u64 = 0x000f_ffff_ffff_0000;

const fn target(word: u64) -> u64 {
    (word & TARGET) >> 16
}

impl Event {
    const fn of([first, second, ..]: Words) -> Self {
        Self { device: (first >> 32) as u32, event: second as u32 }
    }

    const fn first_word(self, command: u64) -> u64 {
        command | (self.device as u64) << 32
    }

    /// A command that has nothing but an event.
    const fn alone(self, command: u64) -> Words {
        [self.first_word(command), self.event as u64, 0, 0]
    }
}

impl Command {
    /// What these words say; `None` if it is no command of the list. Bits that are RES0 are ignored.
    pub const fn decode(words: Words) -> Option<Self> {
        let [first, second, third, fourth] = words;
        let event = Event::of(words);
        let collection = third as u16;
        Some(match first & 0xff {
            MAPD if third & VALID != 0 => {
                Self::MapDevice { device: event.device, event_bits: (second & 0x1f) as u8 + 1 }
            }
            MAPD => Self::UnmapDevice { device: event.device },
            MAPC => {
                let target = if third & VALID != 0 { Some(target(third)) } else { None };
                Self::MapCollection { collection, target }
            }
            MAPTI => Self::MapInterrupt { event, intid: (second >> 32) as u32, collection },
            MAPI => Self::MapIdentity { event, collection },
            MOVI => Self::Move { event, collection },
            DISCARD => Self::Discard(event),
            INV => Self::Invalidate(event),
            INT => Self::Interrupt(event),
            CLEAR => Self::Clear(event),
            INVALL => Self::InvalidateAll { collection },
            MOVALL => Self::MoveAll { from: target(third), to: target(fourth) },
            SYNC => Self::Sync { target: target(third) },
            _ => return None,
        })
    }

    /// The words for the hardware. `itt` is where the table of MAPD is, a multiple of 256; other commands have none.
    pub const fn encode(self, itt: u64) -> Words {
        match self {
            Self::MapDevice { device, event_bits } => {
                let size = (event_bits as u64).saturating_sub(1) & 0x1f;
                [MAPD | (device as u64) << 32, size, VALID | itt & 0x000f_ffff_ffff_ff00, 0]
            }
            Self::UnmapDevice { device } => [MAPD | (device as u64) << 32, 0, 0, 0],
            Self::MapCollection { collection, target: Some(target) } => {
                [MAPC, 0, VALID | target << 16 & TARGET | collection as u64, 0]
            }
            Self::MapCollection { collection, target: None } => [MAPC, 0, collection as u64, 0],
            Self::MapInterrupt { event, intid, collection } => {
                let second = event.event as u64 | (intid as u64) << 32;
                [event.first_word(MAPTI), second, collection as u64, 0]
            }
            Self::MapIdentity { event, collection } => {
                [event.first_word(MAPI), event.event as u64, collection as u64, 0]
            }
            Self::Move { event, collection } => {
                [event.first_word(MOVI), event.event as u64, collection as u64, 0]
            }
            Self::Discard(event) => event.alone(DISCARD),
            Self::Invalidate(event) => event.alone(INV),
            Self::Interrupt(event) => event.alone(INT),
            Self::Clear(event) => event.alone(CLEAR),
            Self::InvalidateAll { collection } => [INVALL, 0, collection as u64, 0],
            Self::MoveAll { from, to } => [MOVALL, 0, from << 16 & TARGET, to << 16 & TARGET],
            Self::Sync { target } => [SYNC, 0, target << 16 & TARGET, 0],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_are_those_of_the_specification() {
        // MAPD of device 0x10, 5 bits of EventID, ITT at 0x4567_8900.
        let mapd = [0x10_0000_0008, 4, 1 << 63 | 0x4567_8900, 0];
        let command = Command::decode(mapd).unwrap();
        assert_eq!(command, Command::MapDevice { device: 0x10, event_bits: 5 });
        assert_eq!(command.encode(0x1_2345_6700), [0x10_0000_0008, 4, 1 << 63 | 0x1_2345_6700, 0]);
        // MAPTI of event 3 as LPI 8195 in collection 2.
        let mapti = [0x10_0000_000a, 0x2003_0000_0003, 2, 0];
        let event = Event { device: 0x10, event: 3 };
        let command = Command::decode(mapti).unwrap();
        assert_eq!(command, Command::MapInterrupt { event, intid: 8195, collection: 2 });
        assert_eq!(command.encode(0), mapti);
        // MAPC of collection 2 to processor 3.
        assert_eq!(
            Command::decode([9, 0, 1 << 63 | 3 << 16 | 2, 0]),
            Some(Command::MapCollection { collection: 2, target: Some(3) })
        );
        // VMAPP, VMAPTI, VSYNC, VINVALL, INVDB, and numbers without a command.
        for number in [0x29, 0x2a, 0x25, 0x2d, 0x2e, 0, 2, 6, 7, 0x10, 0xff] {
            assert_eq!(Command::decode([number, 0, 1 << 63, 0]), None, "{number:#x}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_made_anew_means_the_same(number in 0..0x30_u64, words in any::<Words>(), itt in any::<u64>()) {
            let [first, second, third, fourth] = words;
            let words = [first & !0xff | number, second, third, fourth];
            if let Some(command) = Command::decode(words) {
                let [first, .., last] = command.encode(itt);
                prop_assert_eq!(Command::decode(command.encode(itt)), Some(command));
                prop_assert_eq!(first & 0xffff_ff00, 0);
                prop_assert!(number == MOVALL || last == 0);
            }
        }
    }
}
