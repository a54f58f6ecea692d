//! What an STE means (IHI 0070, 5.2): stage 1, stage 2, both, and ATS.

use super::super::stage2::Stage2Config;
use super::Smmu;

/// How the CDs of a stream are arranged (5.2, S1Fmt).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CdFormat {
    /// One table.
    Linear,
    /// Two levels, with 4 KiB leaves of 64 CDs.
    Leaf4K,
    /// Two levels, with 64 KiB leaves of 1024 CDs.
    Leaf64K,
}

impl CdFormat {
    /// log2 of the CDs in a leaf table; `None` when there is only one level.
    pub fn leaf_log2(self) -> Option<u32> {
        match self {
            Self::Linear => None,
            Self::Leaf4K => Some(6),
            Self::Leaf64K => Some(10),
        }
    }
}

/// What becomes of transactions without an SSID when the stream has several CDs (5.2, S1DSS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WithoutSsid {
    /// Aborted, with F_STREAM_DISABLED.
    Terminate,
    /// They bypass stage 1.
    BypassStage1,
    /// They use CD 0, and no transaction may name SSID 0.
    UseCd0,
}

/// What an STE says about stage 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Contexts {
    /// S1ContextPtr: an IPA when stage 2 translates too.
    pub pointer: u64,
    /// S1Fmt; always linear when there is one CD.
    pub format: CdFormat,
    /// S1CDMax: log2 of the CDs.
    pub max_log2: u32,
    /// S1DSS.
    pub without_ssid: WithoutSsid,
    /// S1STALLD: no CD may ask for stalls.
    pub stalls_disabled: bool,
    /// PRIVCFG = 0b11: transactions are privileged, whatever the device says.
    pub privileged: bool,
    /// S1CIR, S1COR and S1CSH as they are: attributes of CD fetches.
    pub attributes: [u8; 3],
    /// S2PTW: a stage-1 table or CD in stage-2 Device memory is a permission fault.
    pub protected_walks: bool,
}

/// What an STE says about a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Aborted, and no event is recorded (Config = 0b0xx).
    Abort,
    /// Not translated (Config = 0b100).
    Bypass,
    /// Translated by stage 1 alone (Config = 0b101).
    Stage1 {
        /// S2VMID: TLB entries have it as a tag even without stage 2.
        vmid: u16,
        /// The CDs.
        contexts: Contexts,
    },
    /// Translated by stage 2 alone (Config = 0b110).
    Stage2 {
        /// S2VMID.
        vmid: u16,
        /// The walk.
        config: Stage2Config,
        /// S2R: faults are recorded.
        record: bool,
    },
    /// Translated by stage 1, and what comes out by stage 2 (Config = 0b111).
    Nested {
        /// S2VMID.
        vmid: u16,
        /// The stage-2 walk.
        config: Stage2Config,
        /// S2R: stage-2 faults are recorded.
        record: bool,
        /// The CDs.
        contexts: Contexts,
    },
}

impl Meaning {
    /// S2VMID, if it matters.
    pub fn vmid(&self) -> Option<u16> {
        match *self {
            Self::Abort | Self::Bypass => None,
            Self::Stage1 { vmid, .. } | Self::Stage2 { vmid, .. } | Self::Nested { vmid, .. } => Some(vmid),
        }
    }

    /// The stage-2 walk, if there is one.
    pub fn stage2(&self) -> Option<Stage2Config> {
        match *self {
            Self::Stage2 { config, .. } | Self::Nested { config, .. } => Some(config),
            Self::Abort | Self::Bypass | Self::Stage1 { .. } => None,
        }
    }

    /// The CDs, if stage 1 translates.
    pub fn contexts(&self) -> Option<Contexts> {
        match *self {
            Self::Stage1 { contexts, .. } | Self::Nested { contexts, .. } => Some(contexts),
            Self::Abort | Self::Bypass | Self::Stage2 { .. } => None,
        }
    }
}

/// What ATS may do (5.2, EATS), where there is something to translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eats {
    /// 0b00: Translation Requests and Translated requests are refused.
    Off,
    /// 0b01: Translated requests go where they say.
    Full,
    /// 0b10: the ATC holds IPAs, and Translated requests go through stage 2.
    Split,
}

/// Everything that an STE says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// What translates.
    pub meaning: Meaning,
    /// ATS: [`Eats::Off`] where nothing translates, whatever the field says (3.9.1.1).
    pub eats: Eats,
    /// MEV: events may be merged.
    pub merge_events: bool,
    /// SHCFG, as it is.
    pub shareability: u8,
}

fn bits(word: u64, high: u32, low: u32) -> u64 {
    word >> low & ((1u64 << (high - low + 1)) - 1)
}

impl Smmu {
    /// What an STE translates with. `Err` says why it is ILLEGAL (C_BAD_STE).
    pub fn decode_ste(&self, ste: &[u64; 8]) -> Result<Meaning, String> {
        self.decode_whole_ste(ste).map(|decoded| decoded.meaning)
    }

    /// Decodes an STE (5.2). `Err` says why it is ILLEGAL (C_BAD_STE).
    pub fn decode_whole_ste(&self, ste: &[u64; 8]) -> Result<Decoded, String> {
        if ste[0] & 1 == 0 {
            return Err("V = 0".into());
        }
        // DW1: MEV [19], S2FWB [25], S1STALLD [27], EATS [29:28], STRW [31:30], SHCFG [45:44], PRIVCFG [49:48].
        let merge_events = bits(ste[1], 19, 19) == 1;
        let shareability = bits(ste[1], 45, 44) as u8;
        let config = bits(ste[0], 3, 1);
        let meaning = match config {
            0b000..=0b011 => Meaning::Abort,
            0b100 => Meaning::Bypass,
            _ => {
                let vmid = self.decode_vmid(ste)?;
                let contexts = if config & 1 == 1 { Some(self.decode_contexts(ste)?) } else { None };
                let stage2 = if config & 2 == 2 { Some(self.decode_stage2(ste)?) } else { None };
                match (contexts, stage2) {
                    (Some(contexts), None) => Meaning::Stage1 { vmid, contexts },
                    (None, Some((config, record))) => Meaning::Stage2 { vmid, config, record },
                    (Some(contexts), Some((config, record))) => {
                        Meaning::Nested { vmid, config, record, contexts }
                    }
                    (None, None) => Meaning::Bypass,
                }
            }
        };
        let eats = match meaning {
            Meaning::Abort | Meaning::Bypass => Eats::Off,
            _ => self.decode_eats(ste, &meaning)?,
        };
        Ok(Decoded { meaning, eats, merge_events, shareability })
    }

    fn decode_eats(&self, ste: &[u64; 8], meaning: &Meaning) -> Result<Eats, String> {
        let eats = bits(ste[1], 29, 28);
        if eats != 0 && !self.config.ats() {
            return Err("EATS without ATS".into());
        }
        match eats {
            0b00 => Ok(Eats::Off),
            0b01 => Ok(Eats::Full),
            // 5.2, EATS: split-stage ATS needs both stages, IDR0.NS1ATS = 0, and no stalls of stage 2.
            0b10 if !matches!(meaning, Meaning::Nested { .. }) => {
                Err("EATS = 0b10 without both stages".into())
            }
            0b10 if !self.config.split_ats() => Err("EATS = 0b10 with NS1ATS = 1".into()),
            0b10 if bits(ste[2], 57, 57) == 1 => Err("EATS = 0b10 with S2S = 1".into()),
            0b10 => Ok(Eats::Split),
            _ => Err("EATS = 0b11 without DPT".into()),
        }
    }

    fn decode_vmid(&self, ste: &[u64; 8]) -> Result<u16, String> {
        let vmid = bits(ste[2], 15, 0) as u16;
        if !self.config.stage2() {
            return Ok(0);
        }
        if u32::from(vmid) >> self.config.vmid_bits() != 0 {
            return Err(format!("S2VMID {vmid:#x} has more than {} bits", self.config.vmid_bits()));
        }
        Ok(vmid)
    }

    /// DW0: S1Fmt [5:4], S1ContextPtr [55:6], S1CDMax [63:59]. DW1: S1DSS [1:0], S1CIR [3:2], S1COR [5:4], S1CSH [7:6].
    fn decode_contexts(&self, ste: &[u64; 8]) -> Result<Contexts, String> {
        let c = &self.config;
        if !c.stage1() {
            return Err("stage 1 is not implemented".into());
        }
        let nested = bits(ste[0], 2, 2) == 1;
        let max_log2 = bits(ste[0], 63, 59) as u32;
        if max_log2 > c.ssid_size() {
            return Err(format!("S1CDMax {max_log2} is above SSIDSIZE {}", c.ssid_size()));
        }
        let format = match bits(ste[0], 5, 4) {
            // With one CD, S1Fmt is IGNORED.
            _ if max_log2 == 0 => CdFormat::Linear,
            0 => CdFormat::Linear,
            1 | 2 if !c.cd2l() => return Err("S1Fmt of two levels without CD2L".into()),
            1 => CdFormat::Leaf4K,
            2 => CdFormat::Leaf64K,
            _ => return Err("S1Fmt is reserved".into()),
        };
        let without_ssid = match bits(ste[1], 1, 0) {
            _ if max_log2 == 0 => WithoutSsid::UseCd0,
            0b01 => WithoutSsid::BypassStage1,
            0b10 => WithoutSsid::UseCd0,
            // 0b11 is reserved and behaves as 0b00.
            _ => WithoutSsid::Terminate,
        };
        // Any StreamWorld but NS-EL1 is ILLEGAL with stage 2 (5.2, STRW), and of no use here without it.
        if bits(ste[1], 31, 30) != 0 {
            return Err("STRW is not EL1".into());
        }
        // 5.2: S1STALLD = 1 is ILLEGAL unless stalls can be chosen.
        let stalls_disabled = bits(ste[1], 27, 27) == 1;
        if stalls_disabled && c.stall_model() != 0b00 {
            return Err("S1STALLD does not fit STALL_MODEL".into());
        }
        // The table is a multiple of its size: lower address bits are taken as 0. With stage 2 an address above the IPA
        // size is a stage-2 fault of the fetch instead.
        let bytes_log2 = match format.leaf_log2() {
            None => 6 + max_log2,
            Some(leaf) => (3 + max_log2.saturating_sub(leaf)).max(6),
        };
        let pointer = bits(ste[0], 55, 6) << 6 >> bytes_log2 << bytes_log2;
        if !nested && pointer >> c.oa_bits().min(48) != 0 {
            return Err(format!("S1ContextPtr {pointer:#x} is above {} bits", c.oa_bits()));
        }
        Ok(Contexts {
            pointer,
            format,
            max_log2,
            without_ssid,
            stalls_disabled,
            privileged: bits(ste[1], 49, 48) == 0b11,
            attributes: [(3, 2), (5, 4), (7, 6)].map(|(high, low)| bits(ste[1], high, low) as u8),
            protected_walks: nested && bits(ste[2], 54, 54) == 1,
        })
    }

    /// DW2: S2T0SZ [37:32], S2SL0 [39:38], S2IR0, S2OR0, S2SH0, S2TG [47:46], S2PS [50:48], S2AA64 [51], S2ENDI [52],
    /// S2AFFD [53], S2PTW [54], S2HD [55], S2HA [56], S2S [57], S2R [58]. DW3: S2TTB [51:4].
    fn decode_stage2(&self, ste: &[u64; 8]) -> Result<(Stage2Config, bool), String> {
        let c = &self.config;
        let two = ste[2];
        if !c.stage2() {
            return Err("stage 2 is not implemented".into());
        }
        if bits(ste[1], 25, 25) == 1 && !c.fwb() {
            return Err("S2FWB without FWB".into());
        }
        if bits(two, 51, 51) == 0 {
            return Err("S2AA64 = 0".into());
        }
        if bits(two, 52, 52) == 1 {
            return Err("S2ENDI = 1: big-endian tables".into());
        }
        if bits(two, 56, 55) != 0 && c.httu() == 0 {
            return Err("S2HA or S2HD without HTTU".into());
        }
        // 5.2: S2S = 1 is ILLEGAL where stalls are not implemented, S2S = 0 where they are forced.
        if bits(two, 57, 57) == 1 && c.stall_model() == 0b01
            || bits(two, 57, 57) == 0 && c.stall_model() == 0b10
        {
            return Err("S2S does not fit STALL_MODEL".into());
        }
        let root = ste[3] & 0x000f_ffff_ffff_fff0;
        if root >> c.oa_bits().min(48) != 0 {
            return Err(format!("S2TTB {root:#x} is above {} bits", c.oa_bits()));
        }
        let t0sz = bits(two, 37, 32) as u32;
        if 64 - t0sz > c.ia_bits() {
            return Err(format!("S2T0SZ {t0sz}: more than {} input bits", c.ia_bits()));
        }
        let mut walk = Stage2Config::decode(
            t0sz,
            bits(two, 39, 38) as u32,
            bits(two, 47, 46) as u32,
            bits(two, 50, 48) as u32,
            root,
            c.oa_bits(),
        )?;
        if !c.has_granule(walk.granule_log2) {
            return Err(format!("granule 2^{} is not implemented", walk.granule_log2));
        }
        walk.access_flag_fault_disabled = bits(two, 53, 53) == 1;
        Ok((walk, bits(two, 58, 58) == 1))
    }
}
