//! Event records as the owner of a stream sees them that has stage 1 and does not know of stage 2.

use super::{EventKind, EventRecord};

/// Word 0: StreamID, SubstreamID, SSV and the number of the event.
const HEADER: u64 = 0xffff_ffff_ffff_f8ff;
/// Word 0: SSV.
const SSV: u64 = 1 << 11;
/// Word 0: SubstreamID.
const SUBSTREAM: u64 = 0xf_ffff << 12;
/// Word 0: the number of the event.
const NUMBER: u64 = 0xff;
/// Word 1: RnW, InD and PnU, bits 35 to 33.
const ATTRIBUTES: u64 = 0b111 << 33;
/// Word 1: S2.
const S2: u64 = 1 << 39;
/// Word 1: CLASS, bits 41:40.
const CLASS: u64 = 0b11 << 40;
/// CLASS of the fetch of a context descriptor.
const CLASS_CD: u64 = 0b00 << 40;
/// CLASS of the fetch of a stage-1 translation table descriptor.
const CLASS_TTD: u64 = 0b01 << 40;
/// CLASS of the input address.
const CLASS_IN: u64 = 0b10 << 40;
/// Word 3: IPA, bits 51:12.
const IPA: u64 = 0x000f_ffff_ffff_f000;
/// Word 3: FetchAddr, bits 51:3.
const FETCH_ADDRESS: u64 = 0x000f_ffff_ffff_fff8;

impl EventRecord {
    /// C_BAD_STREAMID (7.3.3), C_BAD_STE (7.3.5): an event about the configuration of a stream, without an address. A
    /// `substream` has at most 20 bits.
    pub const fn configuration(kind: EventKind, stream: u32, substream: Option<u32>) -> Self {
        let substream = match substream {
            Some(substream) => SSV | (substream as u64) << 12 & SUBSTREAM,
            None => 0,
        };
        Self([kind.0 as u64 | (stream as u64) << 32 | substream, 0, 0, 0])
    }

    /// F_STE_FETCH (7.3.4): the STE of `stream`, or the descriptor above it, at `address` could not be read.
    pub const fn ste_fetch(stream: u32, substream: Option<u32>, address: u64) -> Self {
        let Self([word0, ..]) = Self::configuration(EventKind::STE_FETCH, stream, substream);
        Self([word0, 0, 0, address & FETCH_ADDRESS])
    }

    /// What the owner of the stream is told of an event that the SMMU recorded; `None` if nothing, because it is about structures
    /// that are not the owner's, or is of a kind that this text does not know.
    ///
    /// A fault of stage 2 becomes what hardware without stage 2 would have recorded: of data, F_TRANSLATION of stage 1; of the
    /// fetch of a table descriptor, F_WALK_EABT; of a context descriptor, F_CD_FETCH. The record is made anew of the
    /// fields that the event has: StreamID, SubstreamID, RnW, InD, PnU, CLASS, InputAddr and FetchAddr. There are no stalls.
    pub const fn for_owner(self) -> Option<Self> {
        let Self([word0, word1, address, word3]) = self;
        let mut header = word0 & HEADER;
        let kind = EventKind(word0 as u8);
        let attributes = word1 & ATTRIBUTES;
        if header & SSV == 0 && kind.0 != EventKind::BAD_SUBSTREAM_ID.0 {
            header &= !SUBSTREAM;
        }
        if kind.has_stage() && word1 & S2 != 0 {
            // An external abort names the descriptor of stage 2, which is nobody's business.
            let ipa = if kind.0 == EventKind::WALK_EXTERNAL_ABORT.0 { 0 } else { word3 & IPA };
            return Some(Self(match word1 & CLASS {
                CLASS_CD => [renumbered(header, EventKind::CD_FETCH), 0, 0, ipa],
                CLASS_TTD => {
                    let number = renumbered(header, EventKind::WALK_EXTERNAL_ABORT);
                    [number, attributes | CLASS_TTD, address, ipa]
                }
                _ => [renumbered(header, EventKind::TRANSLATION), attributes | CLASS_IN, address, 0],
            }));
        }
        Some(Self(match kind {
            EventKind::UNSUPPORTED_UPSTREAM_TRANSACTION
            | EventKind::TRANSLATION_FORBIDDEN
            | EventKind::BAD_ATS_REQUEST
            | EventKind::TLB_CONFLICT => [header, attributes, address, 0],
            EventKind::STREAM_DISABLED
            | EventKind::BAD_SUBSTREAM_ID
            | EventKind::BAD_CD
            | EventKind::CONFIGURATION_CONFLICT => [header, 0, 0, 0],
            EventKind::CD_FETCH => [header, 0, 0, word3 & FETCH_ADDRESS],
            EventKind::WALK_EXTERNAL_ABORT => {
                [header, attributes | CLASS_TTD, address, word3 & FETCH_ADDRESS]
            }
            EventKind::TRANSLATION | EventKind::ADDRESS_SIZE | EventKind::ACCESS | EventKind::PERMISSION => {
                [header, attributes | word1 & CLASS, address, 0]
            }
            // C_BAD_STREAMID, F_STE_FETCH and C_BAD_STE are about EL2's stream table, E_PAGE_REQUEST is of PRI.
            _ => return None,
        }))
    }
}

/// Word 0 with another number.
const fn renumbered(header: u64, kind: EventKind) -> u64 {
    header & !NUMBER | kind.0 as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(words: [u64; 4]) -> Option<[u64; 4]> {
        EventRecord(words).for_owner().map(|record| record.0)
    }

    #[test]
    fn a_stage_2_fault_looks_as_if_there_were_no_stage_2() {
        let attributes = 0b101 << 33;
        let fault = |kind: u64, class: u64| {
            shown([
                0x1234_0000_0000 | kind,
                1 << 39 | class << 40 | attributes | 1 << 31 | 7,
                0xabc123,
                0x8000_5fff,
            ])
        };
        for kind in [0x10, 0x11, 0x12, 0x13] {
            assert_eq!(fault(kind, 0), Some([0x1234_0000_0009, 0, 0, 0x8000_5000]));
            assert_eq!(fault(kind, 1), Some([0x1234_0000_000b, 1 << 40 | attributes, 0xabc123, 0x8000_5000]));
            assert_eq!(fault(kind, 2), Some([0x1234_0000_0010, 2 << 40 | attributes, 0xabc123, 0]));
        }
        assert_eq!(fault(0x0b, 1).unwrap()[3], 0, "an address of EL2's table is not shown");
        assert_eq!(fault(0x0b, 0).unwrap(), [0x1234_0000_0009, 0, 0, 0]);
    }

    #[test]
    fn a_stage_1_fault_keeps_its_fields() {
        let words = [0x5_0000_3810, 2 << 40 | 1 << 35, 0xffff_0000_1234_5678, 0xdead_f000];
        assert_eq!(shown(words), Some([0x5_0000_3810, 2 << 40 | 1 << 35, 0xffff_0000_1234_5678, 0]));
        assert_eq!(
            shown([0x5_0000_3010, 0, 1, 0]).unwrap()[0],
            0x5_0000_0010,
            "without SSV there is no SubstreamID"
        );
        assert_eq!(shown([0x5_0000_3008, !0, !0, !0]), Some([0x5_0000_3008, 0, 0, 0]));
        assert_eq!(shown([0x5_0000_0009, !0, !0, 0x8000_0040]), Some([0x5_0000_0009, 0, 0, 0x8000_0040]));
    }

    #[test]
    fn what_is_about_the_stream_table_of_el2_is_not_shown() {
        for kind in
            (0..=0xff).filter(|kind| ![1, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 32, 33].contains(kind))
        {
            assert_eq!(shown([kind, 1 << 39, 0, 0]), None, "{kind:#x}");
        }
    }

    #[test]
    fn events_that_are_made_here_decode() {
        let event = EventRecord::configuration(EventKind::BAD_STE, 0x800, Some(3)).decode();
        assert_eq!((event.kind, event.stream, event.substream), (EventKind::BAD_STE, 0x800, Some(3)));
        let EventRecord(words) = EventRecord::ste_fetch(0x800, None, 0x4000_0047);
        assert_eq!(words, [0x800_0000_0003, 0, 0, 0x4000_0040]);
    }
}
