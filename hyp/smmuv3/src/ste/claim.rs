//! What the owner of a stream asks of stage 1: the words of an STE as it wrote them, and what is left of them after
//! a check by an allow list.

use core::fmt;

use super::{
    CONFIG, CONFIG_ABORT, CONFIG_BYPASS, CONFIG_STAGE_1, EATS, EATS_FULL, S1_CONTEXT_PTR, S1CDMAX, S1CIR,
    S1COR, S1CSH, S1DSS, S1DSS_BYPASS, S1FMT, S1STALLD, SHCFG, SHCFG_INCOMING, V,
};
use crate::address::PhysAddr;
use crate::features::Features;
use crate::pgtable::Geometry;

/// S1DSS: transactions without a SubstreamID use that of SubstreamID 0.
const S1DSS_SUBSTREAM_0: u64 = 0b10;
/// S1CIR and S1COR: write-back, read-allocate. S1CSH with both bits set is inner shareable.
const S1CIR_WRITE_BACK: u64 = 0b01 << 2;
const S1COR_WRITE_BACK: u64 = 0b01 << 4;

/// The bits of words 0 and 1 that an owner may set. What else an STE has is EL2's.
const ALLOWED: [u64; 2] =
    [V | CONFIG | S1FMT | S1_CONTEXT_PTR | S1CDMAX, S1DSS | S1CIR | S1COR | S1CSH | S1STALLD | EATS | SHCFG];

/// Words 0 and 1 of an STE as the owner of the stream wrote them: a claim, until [`Stage1Claim::check`] has looked
/// at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage1Claim(pub [u64; 2]);

/// What the owner of a stream may have: a claim that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage1Config {
    /// Nothing passes.
    Abort,
    /// Addresses of the device are IPAs.
    Bypass,
    /// Addresses of the device are VAs, or IPAs without a SubstreamID where S1DSS says so.
    Translate(Stage1),
}

/// The stage-1 half of an STE: only [`Stage1Claim::check`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage1 {
    /// S1Fmt, S1ContextPtr and S1CDMax, where they stand in word 0.
    word0: u64,
    /// S1DSS, S1CIR, S1COR, S1CSH and S1STALLD, where they stand in word 1.
    word1: u64,
    ats: bool,
}

impl Stage1 {
    /// Words 0 and 1 of an STE that was made of one.
    pub(super) const fn of(word0: u64, word1: u64) -> Self {
        Self {
            word0: word0 & (S1FMT | S1_CONTEXT_PTR | S1CDMAX),
            word1: word1 & (S1DSS | S1CIR | S1COR | S1CSH | S1STALLD),
            ats: word1 & EATS != 0,
        }
    }

    /// S1ContextPtr: the IPA of the CD, or of the table of CDs.
    pub const fn context_ptr(&self) -> u64 {
        self.word0 & S1_CONTEXT_PTR
    }

    /// S1CDMax: log2 of the CDs.
    pub const fn cd_max(&self) -> u8 {
        (self.word0 >> S1CDMAX.trailing_zeros()) as u8
    }

    /// Whether the owner asked for ATS (EATS = 0b01).
    pub const fn wants_ats(&self) -> bool {
        self.ats
    }

    pub(super) const fn word0(&self) -> u64 {
        self.word0
    }

    pub(super) const fn word1(&self) -> u64 {
        self.word1
    }
}

/// Why a claim was refused. It is the owner's fault; the offending value is given as it stood in its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage1Refusal {
    /// Bits that are not the owner's, or are reserved.
    Bits {
        /// 0 or 1.
        word: u8,
        /// Those bits, where they stand in the word.
        bits: u64,
    },
    /// Config is none of abort, bypass and stage 1.
    Config(u8),
    /// The SMMU does not translate by both stages.
    NoNesting,
    /// S1ContextPtr is no IPA of the stage 2 below.
    ContextPtr(u64),
    /// S1CDMax is more than IDR1.SSIDSIZE.
    CdMax {
        /// S1CDMax.
        claimed: u8,
        /// IDR1.SSIDSIZE.
        most: u8,
    },
    /// S1Fmt is reserved, or has two levels where IDR0.CD2L is 0.
    Format(u8),
    /// S1DSS is reserved.
    DefaultSubstream(u8),
    /// S1CSH is reserved.
    Shareability(u8),
    /// S1STALLD is ILLEGAL where IDR0.STALL_MODEL is not 0b00, as an owner finds it everywhere.
    StallDisable,
    /// EATS is neither off nor 0b01, or the SMMU has no ATS.
    Ats(u8),
    /// SHCFG is not the incoming shareability.
    IncomingShareability(u8),
}

impl Stage1Refusal {
    /// The word of the claim that is at fault: 0 or 1.
    pub const fn word(&self) -> u8 {
        match self {
            Self::Bits { word, .. } => *word,
            Self::Config(_)
            | Self::NoNesting
            | Self::ContextPtr(_)
            | Self::CdMax { .. }
            | Self::Format(_) => 0,
            Self::DefaultSubstream(_)
            | Self::Shareability(_)
            | Self::StallDisable
            | Self::Ats(_)
            | Self::IncomingShareability(_) => 1,
        }
    }
}

impl fmt::Display for Stage1Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Bits { word, bits } => write!(f, "bits {bits:#x} of word {word} are not the owner's"),
            Self::Config(config) => write!(f, "Config {config:#05b} is not abort, bypass or stage 1"),
            Self::NoNesting => f.write_str("the SMMU does not translate by both stages"),
            Self::ContextPtr(ipa) => write!(f, "S1ContextPtr {ipa:#x} is above the input size of stage 2"),
            Self::CdMax { claimed, most } => write!(f, "S1CDMax {claimed} is more than {most}"),
            Self::Format(format) => write!(f, "S1Fmt {format:#04b} is not supported"),
            Self::DefaultSubstream(dss) => write!(f, "S1DSS {dss:#04b} is reserved"),
            Self::Shareability(csh) => write!(f, "S1CSH {csh:#04b} is reserved"),
            Self::StallDisable => {
                f.write_str("S1STALLD is set, and an owner has no stalls (STALL_MODEL 0b01)")
            }
            Self::Ats(eats) => write!(f, "EATS {eats:#04b} is not supported"),
            Self::IncomingShareability(shcfg) => write!(f, "SHCFG {shcfg:#04b} is not 0b01 (incoming)"),
        }
    }
}

impl Stage1Claim {
    /// Everything aborts.
    pub const ABORT: Self = Self([V | CONFIG_ABORT, 0]);

    /// Addresses are not translated by stage 1. SHCFG is said where the SMMU of `features` reads it.
    pub const fn bypass(features: &Features) -> Self {
        Self([V | CONFIG_BYPASS, if features.attribute_override { SHCFG_INCOMING } else { 0 }])
    }

    /// Stage 1 by the `1 << cd_max` CDs of the linear table at `table`, an IPA that is aligned to its size, fetched as Normal Write-Back
    /// Inner Shareable memory. Transactions without a SubstreamID use the first CD (S1DSS = 0b10). With `ats` the device may have
    /// translations.
    pub const fn linear(table: PhysAddr, cd_max: u8, ats: bool) -> Self {
        let substreams = (cd_max as u64) << S1CDMAX.trailing_zeros() & S1CDMAX;
        let default = if cd_max == 0 { 0 } else { S1DSS_SUBSTREAM_0 };
        let eats = if ats { EATS_FULL } else { 0 };
        Self([
            V | CONFIG_STAGE_1 | table.0 & S1_CONTEXT_PTR | substreams,
            default | S1CIR_WRITE_BACK | S1COR_WRITE_BACK | S1CSH | eats,
        ])
    }

    /// Whether V is set.
    pub const fn is_valid(&self) -> bool {
        let [word0, _] = self.0;
        word0 & V != 0
    }

    /// Whether nothing passes: V is clear, or Config is abort.
    pub const fn aborts(&self) -> bool {
        let [word0, _] = self.0;
        word0 & V == 0 || word0 & CONFIG == CONFIG_ABORT
    }

    /// The field of a word that `mask` covers, as a number.
    const fn field(&self, word: usize, mask: u64) -> u8 {
        let [word0, word1] = self.0;
        let word = if word == 0 { word0 } else { word1 };
        ((word & mask) >> mask.trailing_zeros()) as u8
    }

    /// What the SMMU of `features` can do for the owner, in the address space that a stage-2 table of `parent`
    /// translates.
    ///
    /// An entry with V = 0 aborts, whatever else it says. Of any other entry every bit must be on the allow list: V,
    /// Config, S1Fmt, S1ContextPtr, S1CDMax, S1DSS, S1CIR, S1COR, S1CSH, S1STALLD, EATS and SHCFG; and every field
    /// that the configuration uses must be legal on this SMMU (5.2). S1Fmt and S1DSS count only with S1CDMax.
    ///
    /// # Errors
    /// [`Stage1Refusal`], for the first rule that is broken.
    pub fn check(&self, features: &Features, parent: &Geometry) -> Result<Stage1Config, Stage1Refusal> {
        let [word0, word1] = self.0;
        if word0 & V == 0 {
            return Ok(Stage1Config::Abort);
        }
        for ((word, value), allowed) in (0..).zip(self.0).zip(ALLOWED) {
            if value & !allowed != 0 {
                return Err(Stage1Refusal::Bits { word, bits: value & !allowed });
            }
        }
        let shareability = self.check_shareability();
        match word0 & CONFIG {
            CONFIG_ABORT => Ok(Stage1Config::Abort),
            CONFIG_BYPASS => shareability.map(|()| Stage1Config::Bypass),
            CONFIG_STAGE_1 => {
                self.check_translation(features, parent)?;
                let mut stage1 = Stage1 {
                    word0: word0 & (S1FMT | S1_CONTEXT_PTR | S1CDMAX),
                    word1: word1 & (S1DSS | S1CIR | S1COR | S1CSH),
                    ats: word1 & EATS != 0,
                };
                if word0 & S1CDMAX == 0 {
                    // One CD: the SMMU ignores both.
                    stage1.word0 &= !S1FMT;
                    stage1.word1 &= !S1DSS;
                }
                if stage1.word1 & S1DSS == S1DSS_BYPASS {
                    shareability?;
                }
                if features.configurable_stalls {
                    // A stalled transaction holds resources that other streams need.
                    stage1.word1 |= S1STALLD;
                }
                Ok(Stage1Config::Translate(stage1))
            }
            _ => Err(Stage1Refusal::Config(self.field(0, CONFIG))),
        }
    }

    /// The fields of stage 1, for Config = stage 1.
    fn check_translation(&self, features: &Features, parent: &Geometry) -> Result<(), Stage1Refusal> {
        let [word0, word1] = self.0;
        if !features.nested {
            return Err(Stage1Refusal::NoNesting);
        }
        let context_ptr = word0 & S1_CONTEXT_PTR;
        if context_ptr >> parent.ia_bits() != 0 {
            return Err(Stage1Refusal::ContextPtr(context_ptr));
        }
        let (claimed, most) = (self.field(0, S1CDMAX), features.substream_bits);
        if claimed > most {
            return Err(Stage1Refusal::CdMax { claimed, most });
        }
        let format = self.field(0, S1FMT);
        if format == 0b11 || format != 0 && claimed != 0 && !features.two_level_cd_table {
            return Err(Stage1Refusal::Format(format));
        }
        let dss = self.field(1, S1DSS);
        if dss == 0b11 {
            return Err(Stage1Refusal::DefaultSubstream(dss));
        }
        let csh = self.field(1, S1CSH);
        if csh == 0b01 {
            return Err(Stage1Refusal::Shareability(csh));
        }
        if word1 & S1STALLD != 0 {
            return Err(Stage1Refusal::StallDisable);
        }
        match word1 & EATS {
            0 => Ok(()),
            EATS_FULL if features.ats => Ok(()),
            _ => Err(Stage1Refusal::Ats(self.field(1, EATS))),
        }
    }

    /// SHCFG of a configuration in which transactions can bypass stage 1. An owner finds no IDR1.ATTR_TYPES_OVR, so software leaves it 0,
    /// or says what that means.
    const fn check_shareability(&self) -> Result<(), Stage1Refusal> {
        let [_, word1] = self.0;
        match word1 & SHCFG {
            0 | SHCFG_INCOMING => Ok(()),
            _ => Err(Stage1Refusal::IncomingShareability(self.field(1, SHCFG))),
        }
    }
}

#[cfg(test)]
mod tests;
