//! Stream table entries and level-1 stream table descriptors (IHI 0070, 5.1 and 5.2).

mod claim;

pub use claim::{Stage1, Stage1Claim, Stage1Config, Stage1Refusal};

use crate::address::PhysAddr;
use crate::entry_writer::{ENTRY_WORDS, Entry};
use crate::features::Features;
use crate::pgtable::Geometry;

/// Bytes of a stream table entry.
pub const STE_BYTES: u64 = 64;
/// 64-bit words of a stream table entry.
pub const STE_WORDS: usize = ENTRY_WORDS;

/// Word 0: V.
const V: u64 = 1;
/// Word 0: Config, bits 3:1. The upper bit lets transactions pass, the lower two enable a stage each.
const CONFIG: u64 = 0b111 << 1;
/// Config for abort.
const CONFIG_ABORT: u64 = 0b000 << 1;
/// Config for bypass of both stages.
const CONFIG_BYPASS: u64 = 0b100 << 1;
/// Config for stage-1 translation only.
const CONFIG_STAGE_1: u64 = 0b101 << 1;
/// Config for stage-2 translation only.
const CONFIG_STAGE_2: u64 = 0b110 << 1;
/// Config for both stages.
const CONFIG_NESTED: u64 = 0b111 << 1;
/// V and Config of an entry with stage 2 alone, and with both stages.
const STAGE_2: u64 = V | CONFIG_STAGE_2;
const NESTED: u64 = V | CONFIG_NESTED;
/// Word 0: S1Fmt, bits 5:4.
const S1FMT: u64 = 0b11 << 4;
/// Word 0: S1ContextPtr, bits 55:6.
const S1_CONTEXT_PTR: u64 = 0x00ff_ffff_ffff_ffc0;
/// Word 0: S1CDMax, bits 63:59.
const S1CDMAX: u64 = 0b1_1111 << 59;

/// Word 1: S1DSS, bits 1:0.
const S1DSS: u64 = 0b11;
/// S1DSS: transactions without a SubstreamID bypass stage 1.
const S1DSS_BYPASS: u64 = 0b01;
/// Word 1: S1CIR, S1COR and S1CSH, bits 3:2, 5:4 and 7:6: how CDs are fetched.
const S1CIR: u64 = 0b11 << 2;
const S1COR: u64 = 0b11 << 4;
const S1CSH: u64 = 0b11 << 6;
/// Word 1: MEV, similar events may be merged.
const MEV: u64 = 1 << 19;
/// Word 1: S2FWB.
const S2FWB: u64 = 1 << 25;
/// Word 1: S1STALLD, a CD cannot make faults stall.
const S1STALLD: u64 = 1 << 27;
/// Word 1: EATS, bits 29:28.
const EATS: u64 = 0b11 << 28;
/// EATS: Translated transactions pass unchecked.
const EATS_FULL: u64 = 0b01 << 28;
/// EATS: Translated transactions are translated by stage 2.
const EATS_SPLIT_STAGE: u64 = 0b10 << 28;
/// Word 1: STRW, bits 31:30; 0 is StreamWorld EL1.
const STRW: u64 = 0b11 << 30;
/// Word 1: SHCFG, bits 45:44.
const SHCFG: u64 = 0b11 << 44;
/// SHCFG for the incoming shareability.
const SHCFG_INCOMING: u64 = 0b01 << 44;

/// Word 2: S2VMID, bits 15:0.
const S2VMID: u64 = 0xffff;
/// Word 2: S2T0SZ to S2PS, bits 50:32, laid out as in VTCR_EL2.
const VTCR: u64 = 0x0007_ffff << 32;
/// Word 2: S2IR0 and S2OR0, bits 41:40 and 43:42: table walks are write-back cacheable.
const S2_WALK_WRITE_BACK: u64 = 0b01 << 40 | 0b01 << 42;
/// Word 2: S2SH0, bits 45:44: table walks are inner shareable.
const S2_WALK_INNER_SHAREABLE: u64 = 0b11 << 44;
/// Word 2: S2AA64: the stage-2 tables are VMSAv8-64.
const S2AA64: u64 = 1 << 51;
/// Word 2: S2AFFD: a clear access flag is no fault.
const S2AFFD: u64 = 1 << 53;
/// Word 2: S2PTW: stage-1 walks into stage-2 Device memory fault.
const S2PTW: u64 = 1 << 54;
/// Word 2: S2S: stage-2 faults stall.
const S2S: u64 = 1 << 57;
/// Word 2: S2R: stage-2 faults are recorded.
const S2R: u64 = 1 << 58;
/// Word 2: S2AA64, S2ENDI, S2AFFD, S2PTW, S2HD, S2HA, S2S and S2R, bits 58:51.
const S2_FLAGS: u64 = 0xff << 51;

/// Word 3: S2TTB, bits 51:4.
const S2TTB: u64 = 0x000f_ffff_ffff_fff0;

/// What a device's ATS requests get (3.9, EATS). CR0.ATSCHK is 1 wherever an SMMU has ATS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ats {
    /// They fail, and Translated transactions abort.
    Off,
    /// Split-stage: the device caches IPAs, and Translated transactions go through stage 2. Needs both stages and
    /// IDR0.NS1ATS = 0.
    SplitStage,
    /// Full: the device caches PAs, and Translated transactions pass unchecked. For devices that are trusted not to
    /// forge them.
    Full,
}

impl Ats {
    /// The most that an SMMU may grant a device: [`Ats::Full`] to trusted ones only.
    pub const fn most(features: &Features, trusted: bool) -> Self {
        if features.ats && trusted {
            Self::Full
        } else if features.split_stage_ats {
            Self::SplitStage
        } else {
            Self::Off
        }
    }
}

/// A stream table entry: its eight 64-bit words, in the order of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamTableEntry(pub [u64; STE_WORDS]);

impl StreamTableEntry {
    /// An entry that is not valid: the stream's transactions abort with C_BAD_STE.
    pub const INVALID: Self = Self([0; STE_WORDS]);

    /// An entry whose stream aborts without an event.
    pub const ABORT: Self = Self([V | CONFIG_ABORT, 0, 0, 0, 0, 0, 0, 0]);

    /// Stage-2 translation by the table of stage-2 `geometry` at `root`, tagged with `vmid`.
    ///
    /// Fixed besides: faults terminate and are recorded (S2S = 0, S2R = 1), the access flag is not updated and its
    /// fault is off (S2HA = S2HD = 0, S2AFFD = 1), a table of the stream's owner in Device memory faults (S2PTW = 1),
    /// StreamWorld is EL1 (STRW = 0), the entry stands for one stream (CONT = 0), events are not merged (MEV = 0).
    ///
    /// [`Ats::SplitStage`] is off here: without stage 1 it would make the entry ILLEGAL.
    pub const fn stage2(geometry: &Geometry, root: PhysAddr, vmid: u16, ats: Ats) -> Self {
        let eats = match ats {
            Ats::Full => EATS_FULL,
            Ats::Off | Ats::SplitStage => 0,
        };
        let vtcr = (geometry.t0sz() as u64) << 32
            | (geometry.sl0() as u64) << 38
            | S2_WALK_WRITE_BACK
            | S2_WALK_INNER_SHAREABLE
            | (geometry.tg() as u64) << 46
            | (geometry.ps() as u64) << 48;
        Self([
            V | CONFIG_STAGE_2,
            SHCFG_INCOMING | eats,
            vmid as u64 | vtcr | S2AA64 | S2AFFD | S2PTW | S2R,
            root.0 & S2TTB,
            0,
            0,
            0,
            0,
        ])
    }

    /// What the owner of a stream asked for, inside its address space: the table of stage-2 `geometry` at `root`,
    /// tagged with `vmid`. Bypass becomes stage 2 alone. What is fixed besides is that of [`Self::stage2`].
    ///
    /// ATS is on where the owner asked for it, and then at most `ats`.
    pub const fn nested(
        config: &Stage1Config,
        geometry: &Geometry,
        root: PhysAddr,
        vmid: u16,
        ats: Ats,
    ) -> Self {
        let stage1 = match config {
            Stage1Config::Abort => return Self::abort_of(vmid),
            // EATS of a bypass is effectively 0 (5.2).
            Stage1Config::Bypass => return Self::stage2(geometry, root, vmid, Ats::Off),
            Stage1Config::Translate(stage1) => stage1,
        };
        let eats = match ats {
            Ats::SplitStage if stage1.wants_ats() => EATS_SPLIT_STAGE,
            Ats::Full if stage1.wants_ats() => EATS_FULL,
            _ => 0,
        };
        let Self([_, word1, word2, word3, ..]) = Self::stage2(geometry, root, vmid, Ats::Off);
        Self([V | CONFIG_NESTED | stage1.word0(), word1 | stage1.word1() | eats, word2, word3, 0, 0, 0, 0])
    }

    /// An entry whose stream aborts without an event; the SMMU ignores the VMID, which says whose the stream is.
    const fn abort_of(vmid: u16) -> Self {
        let Self([word0, word1, _, rest @ ..]) = Self::ABORT;
        let [word3, word4, word5, word6, word7] = rest;
        Self([word0, word1, vmid as u64, word3, word4, word5, word6, word7])
    }

    /// What the owner of the stream has by this entry, which [`Self::stage2`] or [`Self::nested`] made.
    pub const fn stage1_config(&self) -> Stage1Config {
        let [word0, word1, ..] = self.0;
        match word0 & (V | CONFIG) {
            NESTED => Stage1Config::Translate(Stage1::of(word0, word1)),
            STAGE_2 => Stage1Config::Bypass,
            _ => Stage1Config::Abort,
        }
    }

    /// S2TTB.
    pub const fn root(&self) -> PhysAddr {
        PhysAddr(self.0[3] & S2TTB)
    }

    /// What EATS grants.
    pub const fn ats(&self) -> Ats {
        match self.0[1] & EATS {
            EATS_FULL => Ats::Full,
            EATS_SPLIT_STAGE => Ats::SplitStage,
            _ => Ats::Off,
        }
    }

    /// Whether V is set.
    pub const fn is_valid(&self) -> bool {
        self.0[0] & V != 0
    }

    /// S2VMID.
    pub const fn vmid(&self) -> u16 {
        self.0[2] as u16
    }
}

impl Entry for StreamTableEntry {
    const INVALID: Self = Self::INVALID;

    fn words(&self) -> &[u64; ENTRY_WORDS] {
        &self.0
    }

    fn used_bits(&self) -> [u64; ENTRY_WORDS] {
        let [word0, word1, ..] = self.0;
        if !self.is_valid() {
            return [V, 0, 0, 0, 0, 0, 0, 0];
        }
        let config = word0 & CONFIG;
        let mut used = [V | CONFIG, 0, 0, 0, 0, 0, 0, 0];
        if config & CONFIG_BYPASS == 0 {
            // Without the upper bit everything is an abort.
            return used;
        }
        let stage1 = config & CONFIG_STAGE_1 == CONFIG_STAGE_1;
        let stage2 = config & CONFIG_STAGE_2 == CONFIG_STAGE_2;
        if stage1 {
            used[0] |= S1FMT | S1_CONTEXT_PTR | S1CDMAX;
            used[1] |= S1DSS | S1CIR | S1COR | S1CSH | MEV | S1STALLD | EATS | STRW;
            used[2] |= S2VMID;
        }
        if stage2 {
            used[1] |= MEV | S2FWB | EATS;
            used[2] |= S2VMID | VTCR | S2_FLAGS;
            used[3] |= S2TTB;
        }
        if stage2 || !stage1 || word1 & S1DSS == S1DSS_BYPASS {
            used[1] |= SHCFG;
        }
        used
    }

    /// MEV, which changes only how many events tell of the same; and EATS between off and full, because who turns ATS
    /// off or on has it disabled at the device meanwhile. Not with split-stage ATS, where a mixture of the two bits
    /// is neither, and not with stage-2 stalls, where full ATS is ILLEGAL for a moment.
    fn safe_bits(&self, target: &Self) -> [u64; ENTRY_WORDS] {
        let either = |word: usize, bits: u64| {
            [self, target].iter().any(|entry| entry.0.get(word).is_some_and(|found| found & bits != 0))
        };
        let eats = if either(1, EATS_SPLIT_STAGE) || either(2, S2S) { 0 } else { EATS_FULL };
        [0, MEV | eats, 0, 0, 0, 0, 0, 0]
    }
}

/// Bytes of a level-1 stream table descriptor.
pub const LEVEL1_BYTES: u64 = 8;

/// A level-1 stream table descriptor (5.1): where the level-2 table of a span of StreamIDs lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level1Descriptor(pub u64);

impl Level1Descriptor {
    /// A level-2 table of `1 << split` entries at `table`, which is aligned to its size.
    pub const fn new(table: PhysAddr, split: u8) -> Self {
        Self(table.0 & 0x000f_ffff_ffff_ffc0 | (split as u64 + 1))
    }

    /// The level-2 table, aligned to its size, and log2 of its entries, where a descriptor stands for `1 << split` StreamIDs; `None` of a
    /// descriptor with a Span that is 0, reserved or too large for that.
    pub const fn level2(self, split: u8) -> Option<(PhysAddr, u8)> {
        let Some(log2) = (self.0 as u8 & 0x1f).checked_sub(1) else { return None };
        if log2 > split {
            return None;
        }
        Some((PhysAddr(self.table().0 & !((STE_BYTES << log2) - 1)), log2))
    }

    /// The level-2 table.
    pub const fn table(self) -> PhysAddr {
        PhysAddr(self.0 & 0x000f_ffff_ffff_ffc0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgtable::Granule;

    fn geometry() -> Geometry {
        Geometry::stage2(Granule::Size4K, 40, 44).unwrap()
    }

    fn assert_no_unused_bit(entry: &StreamTableEntry) {
        for (word, used) in entry.0.iter().zip(entry.used_bits()) {
            assert_eq!(word & !used, 0, "a bit is set that the configuration does not use");
        }
    }

    #[test]
    fn a_span_is_at_most_what_the_descriptor_stands_for() {
        let descriptor = |span: u64| Level1Descriptor(0xff00_0000_4002_7fc0 | span);
        assert_eq!(descriptor(0).level2(8), None);
        assert_eq!(descriptor(1).level2(8), Some((PhysAddr(0x4002_7fc0), 0)));
        assert_eq!(descriptor(9).level2(8), Some((PhysAddr(0x4002_4000), 8)));
        assert_eq!(descriptor(10).level2(8), None);
        assert_eq!(descriptor(11).level2(10), Some((PhysAddr(0x4002_0000), 10)));
        assert!((12..32).all(|span| descriptor(span).level2(10).is_none()), "reserved");
        assert_eq!(Level1Descriptor::new(PhysAddr(0x8000), 8).level2(8), Some((PhysAddr(0x8000), 8)));
    }

    #[test]
    fn a_stage_2_entry_has_the_fields_that_el2_fixes() {
        let entry = StreamTableEntry::stage2(&geometry(), PhysAddr(0x4123_4000), 0xbeef, Ats::Off);
        let [word0, word1, word2, word3, ..] = entry.0;
        assert_eq!(word0, 0b1101);
        assert_eq!(word1 >> 28 & 0b1111, 0, "EATS = 0, STRW = EL1");
        assert_eq!(word1 >> 27 & 1, 0, "S1STALLD is of stage 1");
        assert_eq!(word2 as u16, 0xbeef);
        assert_eq!(word2 >> 32 & 0x3f, 24, "S2T0SZ of 40 bits");
        assert_eq!(word2 >> 38 & 0b11, 1, "S2SL0: start at level 1");
        assert_eq!(word2 >> 46 & 0b11, 0, "S2TG 4 KiB");
        assert_eq!(word2 >> 48 & 0b111, 4, "S2PS 44 bits");
        // S2AA64, S2ENDI, S2AFFD, S2PTW, S2HD, S2HA, S2S, S2R.
        assert_eq!(word2 >> 51, 0b1000_1101);
        assert_eq!(word3, 0x4123_4000);
        assert_no_unused_bit(&entry);
    }

    #[test]
    fn a_nested_entry_is_stage_2_and_what_the_owner_may_choose() {
        let features = Features {
            nested: true,
            ats: true,
            split_stage_ats: true,
            configurable_stalls: true,
            two_level_cd_table: true,
            substream_bits: 16,
            ..Features::NONE
        };
        // S1CDMax 10, S1Fmt 64 KiB leaves, S1ContextPtr, Config stage 1, V.
        let word0 = 10 << 59 | 0x80_1234_5640 | 0b10 << 4 | 0b1011;
        // EATS 1, S1CSH inner, S1COR and S1CIR write-back, S1DSS SSID 0.
        let word1 = 1 << 28 | 0b1101_0110;
        let config = Stage1Claim([word0, word1]).check(&features, &geometry()).unwrap();
        let nested = |ats| StreamTableEntry::nested(&config, &geometry(), PhysAddr(0x4000_0000), 7, ats);
        let plain = StreamTableEntry::stage2(&geometry(), PhysAddr(0x4000_0000), 7, Ats::Off);
        let off = nested(Ats::Off);
        assert_eq!(off.0[0], 10 << 59 | 0x80_1234_5640 | 0b10 << 4 | 0b1111);
        assert_eq!(off.0[1], 0b01 << 44 | 1 << 27 | 0b1101_0110, "SHCFG incoming, S1STALLD");
        assert_eq!(off.0[2..], plain.0[2..]);
        assert_eq!(
            [nested(Ats::Full), nested(Ats::SplitStage)].map(|entry| entry.stage1_config()),
            [config; 2]
        );
        assert_eq!(nested(Ats::SplitStage).0[1] ^ off.0[1], 0b10 << 28);
        assert_eq!(nested(Ats::Full).0[1] ^ off.0[1], 0b01 << 28);
        assert_no_unused_bit(&nested(Ats::Full));

        // An owner that did not ask for ATS has none, whatever would be granted.
        let config = Stage1Claim([word0, word1 & !(0b11 << 28)]).check(&features, &geometry()).unwrap();
        let entry = StreamTableEntry::nested(&config, &geometry(), PhysAddr(0x4000_0000), 7, Ats::Full);
        assert_eq!(entry, off);
    }

    #[test]
    fn bypass_is_stage_2_alone_and_abort_aborts() {
        let nested =
            |config| StreamTableEntry::nested(&config, &geometry(), PhysAddr(0x4000_0000), 7, Ats::Full);
        let plain = StreamTableEntry::stage2(&geometry(), PhysAddr(0x4000_0000), 7, Ats::Off);
        assert_eq!(nested(Stage1Config::Bypass), plain);
        let aborting = nested(Stage1Config::Abort);
        assert_eq!(
            [plain, aborting].map(|entry| entry.stage1_config()),
            [Stage1Config::Bypass, Stage1Config::Abort]
        );
        let used = aborting.used_bits().iter().zip(aborting.0).map(|(used, word)| used & word).sum::<u64>();
        assert_eq!((used, aborting.vmid()), (V | CONFIG_ABORT, 7), "the VMID says whose it is");
    }

    #[test]
    fn split_stage_ats_needs_both_stages() {
        let eats = |ats| StreamTableEntry::stage2(&geometry(), PhysAddr(0), 1, ats).0[1] >> 28 & 0b11;
        assert_eq!([Ats::Off, Ats::SplitStage, Ats::Full].map(eats), [0, 0, 1]);
    }

    #[test]
    fn only_a_trusted_device_gets_full_ats() {
        let split = Features { ats: true, split_stage_ats: true, ..Features::NONE };
        let full_only = Features { ats: true, ..Features::NONE };
        let most = |trusted| [split, full_only, Features::NONE].map(|features| Ats::most(&features, trusted));
        assert_eq!(most(false), [Ats::SplitStage, Ats::Off, Ats::Off]);
        assert_eq!(most(true), [Ats::Full, Ats::Full, Ats::Off]);
    }

    #[test]
    fn a_level_1_descriptor_has_span_and_address() {
        let descriptor = Level1Descriptor::new(PhysAddr(0x4123_4000), 8);
        assert_eq!(descriptor.0, 0x4123_4009);
        assert_eq!(descriptor.table(), PhysAddr(0x4123_4000));
    }
}
