//! Stream table walk, STE decode and the configuration cache (IHI 0070, 3.3, 5.1, 5.2 and 3.21.2).

use super::super::stage2::Stage2Config;
use super::{Bus, Smmu};
use std::collections::HashMap;

/// What was read of a stream's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The raw STE.
    Ste([u64; 8]),
    /// The StreamID is outside the table, or its level-1 descriptor has no STE for it (C_BAD_STREAMID).
    BadStream,
    /// The STE could not be read (F_STE_FETCH).
    Abort,
}

/// A cached STE, or the knowledge that there is none.
#[derive(Clone, Copy, Debug)]
pub struct CachedSte {
    /// What was read.
    pub fetched: Fetched,
    /// What replaces it at the next SYNC, if an invalidation named it: what was read when that was consumed.
    pub doomed: bool,
    pub(crate) next: Option<Fetched>,
}

/// The configuration cache. Invalid STEs are cached too (3.21.2).
#[derive(Debug, Default)]
pub struct ConfigurationCache {
    /// STEs by StreamID.
    pub stes: HashMap<u32, CachedSte>,
    /// Level-1 descriptors by index, and whether an invalidation named them.
    pub level1: HashMap<u32, (u64, bool)>,
}

impl ConfigurationCache {
    pub(crate) fn forget_doomed(&mut self) {
        self.level1.retain(|_, (_, doomed)| !*doomed);
        self.stes.retain(|_, entry| {
            if entry.doomed {
                let Some(next) = entry.next else { return false };
                *entry = CachedSte { fetched: next, doomed: false, next: None };
            }
            true
        });
    }
}

/// What an STE says about a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Aborted, and no event is recorded (Config = 0b0xx).
    Abort,
    /// Not translated (Config = 0b100).
    Bypass,
    /// Translated by stage 2 alone (Config = 0b110).
    Stage2 {
        /// S2VMID.
        vmid: u16,
        /// The walk.
        config: Stage2Config,
        /// S2R: faults are recorded.
        record: bool,
    },
}

fn bits(word: u64, high: u32, low: u32) -> u64 {
    word >> low & ((1u64 << (high - low + 1)) - 1)
}

impl Smmu {
    /// Decodes an STE (5.2). `Err` says why it is ILLEGAL (C_BAD_STE).
    pub fn decode_ste(&self, ste: &[u64; 8]) -> Result<Meaning, String> {
        let c = &self.config;
        if ste[0] & 1 == 0 {
            return Err("V = 0".into());
        }
        let config = bits(ste[0], 3, 1);
        // DW1: EATS [29:28], STRW [31:30], S2FWB [25], MEV [19], SHCFG [45:44].
        match config {
            0b000..=0b011 => return Ok(Meaning::Abort),
            0b100 => return Ok(Meaning::Bypass),
            0b110 => {}
            _ => return Err(format!("Config {config:#05b}: stage 1 is not part of this model")),
        }
        if !c.stage2() {
            return Err("stage 2 is not implemented".into());
        }
        if bits(ste[1], 29, 28) != 0 && !c.ats() {
            return Err("EATS without ATS".into());
        }
        if bits(ste[1], 25, 25) == 1 && !c.fwb() {
            return Err("S2FWB without FWB".into());
        }
        let two = ste[2];
        let vmid = bits(two, 15, 0) as u16;
        if u32::from(vmid) >> c.vmid_bits() != 0 {
            return Err(format!("S2VMID {vmid:#x} has more than {} bits", c.vmid_bits()));
        }
        // DW2: S2T0SZ [37:32], S2SL0 [39:38], S2IR0, S2OR0, S2SH0, S2TG [47:46], S2PS [50:48], S2AA64 [51], S2ENDI [52],
        // S2AFFD [53], S2PTW [54], S2HD [55], S2HA [56], S2S [57], S2R [58]. DW3: S2TTB [51:4].
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
        Ok(Meaning::Stage2 { vmid, config: walk, record: bits(two, 58, 58) == 1 })
    }

    /// 6.3.23, 6.3.24: the stream table's base and shape, checked when SMMUEN is set.
    pub(crate) fn check_stream_table(&self, bus: &mut Bus) {
        let cfg = self.registers.strtab_base_cfg;
        let (log2, split, fmt) = (cfg & 63, cfg >> 6 & 31, cfg >> 16 & 3);
        if log2 > self.config.sid_size() {
            self.violation(
                bus,
                format_args!("stream table of 2^{log2} streams, SIDSIZE is {}", self.config.sid_size()),
            );
        }
        let base = self.registers.strtab_base & 0x00ff_ffff_ffff_ffc0;
        let bytes = match fmt {
            0 => 64u64 << log2,
            1 if self.config.two_level() && matches!(split, 6 | 8 | 10) => {
                (8u64 << log2.saturating_sub(split)).max(64)
            }
            _ => {
                self.violation(bus, format_args!("STRTAB_BASE_CFG {cfg:#x} is reserved or not implemented"));
                return;
            }
        };
        if base & (bytes - 1) != 0 {
            self.violation(
                bus,
                format_args!("stream table at {base:#x} is not a multiple of its {bytes:#x} bytes"),
            );
        }
        if !bus.memory.is_ram(base) || !bus.memory.is_ram(base + bytes - 1) {
            self.violation(bus, format_args!("stream table at {base:#x} is not in RAM"));
        }
    }

    /// VMID and walk of every cached STE.
    pub(crate) fn cached_configs(&self) -> Vec<(u16, Stage2Config)> {
        let meanings = self.configuration.stes.values().filter_map(|entry| match entry.fetched {
            Fetched::Ste(ste) => self.decode_ste(&ste).ok(),
            Fetched::BadStream | Fetched::Abort => None,
        });
        meanings
            .filter_map(|meaning| match meaning {
                Meaning::Stage2 { vmid, config, .. } => Some((vmid, config)),
                Meaning::Abort | Meaning::Bypass => None,
            })
            .collect()
    }

    /// Where a stream's STE is, going through cached level-1 descriptors (3.3.2).
    fn ste_address(&mut self, bus: &mut Bus, stream: u32, cache: bool) -> Result<u64, Fetched> {
        let cfg = self.registers.strtab_base_cfg;
        let (log2, split, fmt) = (cfg & 63, cfg >> 6 & 31, cfg >> 16 & 3);
        if u64::from(stream) >> log2.min(self.config.sid_size()) != 0 {
            return Err(Fetched::BadStream);
        }
        let base = self.registers.strtab_base & 0x00ff_ffff_ffff_ffc0;
        if fmt == 0 {
            return Ok(base + u64::from(stream) * 64);
        }
        let index = stream >> split;
        let cached = self.configuration.level1.get(&index).copied();
        let descriptor = match cached {
            Some((descriptor, false)) => descriptor,
            _ => {
                let Some(value) = bus.memory.read(base + u64::from(index) * 8) else {
                    return Err(Fetched::Abort);
                };
                if cache {
                    self.configuration.level1.insert(index, (value, false));
                }
                value
            }
        };
        // 5.1: Span [4:0], L2Ptr [55:6]; 2^(Span - 1) STEs; Span 0, or more than the split allows, has none.
        let span = bits(descriptor, 4, 0) as u32;
        if span == 0 {
            return Err(Fetched::BadStream);
        }
        if span > split + 1 {
            self.violation(
                bus,
                format_args!("level-1 stream descriptor {descriptor:#x} spans more than SPLIT {split}"),
            );
            return Err(Fetched::BadStream);
        }
        let table = bits(descriptor, 55, 6) << 6;
        if table & ((64 << (span - 1)) - 1) != 0 {
            self.violation(
                bus,
                format_args!("level-2 stream table at {table:#x} is not a multiple of its size"),
            );
        }
        let offset = stream & ((1 << split) - 1);
        if offset >> (span - 1) != 0 {
            return Err(Fetched::BadStream);
        }
        Ok(table + u64::from(offset) * 64)
    }

    fn fetch_ste(&mut self, bus: &mut Bus, stream: u32, cache: bool) -> Fetched {
        let at = match self.ste_address(bus, stream, cache) {
            Ok(at) => at,
            Err(fetched) => return fetched,
        };
        self.ste_places.insert(at, stream);
        let mut words = [0; 8];
        for (word, offset) in words.iter_mut().zip((0..).step_by(8)) {
            match bus.memory.read(at + offset) {
                Some(value) => *word = value,
                None => return Fetched::Abort,
            }
        }
        Fetched::Ste(words)
    }

    /// A stream's configuration, from the cache if it is there.
    pub(crate) fn configuration_of(&mut self, bus: &mut Bus, stream: u32) -> Fetched {
        if let Some(entry) = self.configuration.stes.get(&stream) {
            return entry.fetched;
        }
        let fetched = self.fetch_ste(bus, stream, true);
        self.configuration.stes.insert(stream, CachedSte { fetched, doomed: false, next: None });
        fetched
    }

    /// A stream's STE as it is in memory now, past all caches.
    pub fn ste_in_memory(&mut self, bus: &mut Bus, stream: u32) -> Fetched {
        let level1 = std::mem::take(&mut self.configuration.level1);
        let fetched = self.fetch_ste(bus, stream, false);
        self.configuration.level1 = level1;
        fetched
    }

    /// 4.3.1, 4.3.2: dooms the STEs of 2^`log2` streams, and, unless `leaf`, the level-1 descriptors on the way.
    pub(crate) fn doom_configuration(&mut self, bus: &mut Bus, stream: u32, log2: u32, leaf: bool) {
        let same = |a: u32| log2 >= 32 || u64::from(a) >> log2 == u64::from(stream) >> log2;
        let split = self.registers.strtab_base_cfg >> 6 & 31;
        if !leaf {
            for (index, (_, doomed)) in &mut self.configuration.level1 {
                let (first, last) = (u64::from(*index) << split, ((u64::from(*index) + 1) << split) - 1);
                let (from, to) = if log2 >= 32 {
                    (0, u64::from(u32::MAX))
                } else {
                    (u64::from(stream) >> log2 << log2, (((u64::from(stream) >> log2) + 1) << log2) - 1)
                };
                *doomed |= first <= to && from <= last;
            }
        }
        let named: Vec<u32> = self.configuration.stes.keys().copied().filter(|&a| same(a)).collect();
        for stream in named {
            // Read again at once: the worst moment if the STE is written after the CFGI.
            let next = (self.config.greedy && self.translating()).then(|| self.fetch_ste(bus, stream, false));
            if let Some(entry) = self.configuration.stes.get_mut(&stream) {
                entry.doomed = true;
                entry.next = next;
            }
        }
    }

    /// A greedy SMMU reads the STE of every stream that has a device as soon as it may.
    pub(crate) fn read_ahead(&mut self, bus: &mut Bus) {
        if self.config.greedy && self.translating() {
            for stream in self.streams.clone() {
                self.configuration_of(bus, stream);
            }
        }
    }
}
