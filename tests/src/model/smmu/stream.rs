//! Stream table walk and the configuration cache of STEs (IHI 0070, 3.3, 5.1 and 3.21.2).

use super::super::stage2::Stage2Config;
use super::context::{CachedCd, CachedCdTable};
use super::{Bus, Smmu};
use crate::model::hash::Map;

pub use super::ste::Meaning;

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

impl Fetched {
    /// The raw STE, if there is one.
    pub fn ste(self) -> Option<[u64; 8]> {
        match self {
            Self::Ste(ste) => Some(ste),
            Self::BadStream | Self::Abort => None,
        }
    }
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

/// The configuration cache. Invalid STEs and CDs are cached too (3.21.2).
#[derive(Debug, Default)]
pub struct ConfigurationCache {
    /// STEs by StreamID.
    pub stes: Map<u32, CachedSte>,
    /// Level-1 descriptors by index, and whether an invalidation named them.
    pub level1: Map<u32, (u64, bool)>,
    /// CDs by StreamID and SSID.
    pub cds: Map<(u32, u32), CachedCd>,
    /// Level-1 CD descriptors by StreamID and index.
    pub cd_tables: Map<(u32, u32), CachedCdTable>,
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
        self.forget_doomed_cds();
    }
}

fn bits(word: u64, high: u32, low: u32) -> u64 {
    word >> low & ((1u64 << (high - low + 1)) - 1)
}

impl Smmu {
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
        self.configuration
            .stes
            .values()
            .filter_map(|entry| entry.fetched.ste())
            .filter_map(|ste| self.decode_ste(&ste).ok())
            .filter_map(|meaning| Some((meaning.vmid()?, meaning.stage2()?)))
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
        self.note_ste(bus, stream, fetched);
        fetched
    }

    /// A stream's STE as it is in memory now, past all caches.
    pub fn ste_in_memory(&mut self, bus: &mut Bus, stream: u32) -> Fetched {
        let level1 = std::mem::take(&mut self.configuration.level1);
        let fetched = self.fetch_ste(bus, stream, false);
        self.configuration.level1 = level1;
        fetched
    }

    /// Where a stream's STE is by the tables in memory.
    pub(crate) fn ste_place(&mut self, bus: &mut Bus, stream: u32) -> Option<u64> {
        let level1 = std::mem::take(&mut self.configuration.level1);
        let place = self.ste_address(bus, stream, false).ok();
        self.configuration.level1 = level1;
        place
    }

    /// Where a stream's level-1 descriptor is, if the table has two levels.
    pub(crate) fn level1_place(&self, stream: u32) -> Option<u64> {
        let cfg = self.registers.strtab_base_cfg;
        let base = self.registers.strtab_base & 0x00ff_ffff_ffff_ffc0;
        (cfg >> 16 & 3 == 1).then(|| base + u64::from(stream >> (cfg >> 6 & 31)) * 8)
    }

    /// 4.3.1, 4.3.2: dooms the STEs of 2^`log2` streams and their CDs, and, unless `leaf`, the level-1 descriptors on the way.
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
            if let Some(next) = next {
                self.note_ste(bus, stream, next);
            }
            if let Some(entry) = self.configuration.stes.get_mut(&stream) {
                entry.doomed = true;
                entry.next = next;
            }
        }
        // 4.3.1: with an STE go all CDs that were reached through it, and their level-1 descriptors.
        self.doom_contexts(bus, |(at, _)| same(at), |(at, _)| same(at));
    }

    /// A greedy SMMU reads the STE of every stream that has a device as soon as it may.
    pub(crate) fn read_ahead(&mut self, bus: &mut Bus) {
        if self.config.greedy && self.translating() {
            for stream in self.streams.clone() {
                self.configuration_of(bus, stream);
                self.read_ahead_context(bus, stream);
            }
        }
    }
}
