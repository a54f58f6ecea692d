//! What the streams of an emulated SMMU should do, by what its driver has done: read from the driver's registers, queue and table, each rule
//! with its section of IHI 0070, and from nothing that the emulation keeps to itself.
//!
//! A stream does what its STE said when it was looked at last: when SMMUEN went to 1, when a CFGI_STE, CFGI_STE_RANGE or CFGI_ALL about it was
//! consumed, or when a call gave it back.

use crate::bench::Bench;
use crate::driver::reg;
use crate::model::{SMMU_BASE, SMMU_BYTES};
use abi::Function;
use host_shim::host::Host;
use std::collections::BTreeMap;

/// The streams that an emulated SMMU lets something through for, with words 0 and 1 of the STE of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Driven {
    /// By StreamID. What is not here aborts.
    pub streams: BTreeMap<u32, [u64; 2]>,
    /// CR0ACK.SMMUEN was 1 after the last store.
    pub on: bool,
    /// CMDQ_CONS after the last store.
    cons: u32,
    /// CMDQ_PROD after the last store.
    prod: u32,
}

/// What a store to an emulated SMMU finds in memory.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// Commands of the queue that it may begin with, from CMDQ_CONS on.
    commands: Vec<[u64; 2]>,
    /// The STEs that it may look at. The driver's own event queue and completions may lie over its table, so that they are others when it is done.
    entries: BTreeMap<u32, Option<[u64; 2]>>,
}

fn bits(word: u64, high: u32, low: u32) -> u64 {
    word >> low & (u64::MAX >> (63 - (high - low)))
}

impl Bench {
    fn load(&self, smmu: usize, offset: u64) -> u64 {
        let address = SMMU_BASE + SMMU_BYTES * smmu as u64 + offset;
        self.cpu_read_u32(address).map_or(0, u64::from)
    }

    fn load_u64(&self, smmu: usize, offset: u64) -> u64 {
        self.load(smmu, offset) | self.load(smmu, offset + 4) << 32
    }

    /// Words of memory, if it is the host's.
    fn words_of_host<const N: usize>(&self, address: u64) -> Option<[u64; N]> {
        match self.call(Function::MemQuery, [address & !(self.unit() - 1), 0, 0, 0]) {
            Ok([0, ..]) => {
                let machine = self.machine();
                let words = [0; N].iter().zip((address..).step_by(8));
                let read: Option<Vec<u64>> = words.map(|(_, at)| machine.memory.read(at)).collect();
                read?.try_into().ok()
            }
            _ => None,
        }
    }

    /// What is to be kept of an emulated SMMU before a store to it.
    pub(crate) fn before_store(&self, smmu: usize, offset: u64, value: u64) -> Waiting {
        let Driven { cons, mut prod, .. } = self.driven(smmu);
        // 6.3.27, also as the low half of a store of 8 bytes.
        if offset == reg::CMDQ_PROD {
            prod = value as u32;
        }
        let log2 = self.queue_log2(smmu);
        let mask = (2u32 << log2) - 1;
        let count = prod.wrapping_sub(cons) & mask;
        if count > 1 << log2 {
            return Waiting::default();
        }
        let base = self.load_u64(smmu, reg::CMDQ_BASE) & 0x000f_ffff_ffff_ffe0 & !((16 << log2) - 1);
        let command = |n: u32| {
            let slot = base + u64::from(cons.wrapping_add(n) & (mask >> 1)) * 16;
            self.words_of_host(slot).unwrap_or_default()
        };
        let looks = offset == reg::CR0 || offset == reg::CMDQ_PROD;
        let streams = self.mapped_streams(smmu).filter(|_| looks);
        Waiting {
            commands: (0..count).map(command).collect(),
            entries: streams.map(|stream| (stream, self.entry_of(smmu, stream))).collect(),
        }
    }

    /// CMDQ_BASE.LOG2SIZE, as far as IDR1.CMDQS allows (6.3.26).
    fn queue_log2(&self, smmu: usize) -> u32 {
        let most = bits(self.load(smmu, reg::IDR1), 25, 21);
        bits(self.load(smmu, reg::CMDQ_BASE), 4, 0).min(most) as u32
    }

    /// Takes in what a store to an emulated SMMU has done.
    pub(crate) fn after_store(&self, smmu: usize, waiting: &Waiting) {
        let mut driven = self.driven(smmu);
        let (was_on, was) = (driven.on, driven.cons);
        driven.on = self.load(smmu, reg::CR0ACK) & 1 == 1;
        driven.cons = self.load(smmu, reg::CMDQ_CONS) as u32 & 0xf_ffff;
        driven.prod = self.load(smmu, reg::CMDQ_PROD) as u32;
        // CMDQ_CONS is the driver's to write while CMDQEN is 0 (6.3.28).
        let consumes = self.load(smmu, reg::CR0ACK) >> 3 & 1 == 1;
        let consumed = driven.cons.wrapping_sub(was) & ((2 << self.queue_log2(smmu)) - 1);
        let consumed = if consumes && driven.on { consumed } else { 0 };
        if !driven.on {
            driven.streams.clear();
        } else if !was_on {
            self.look_at_all(smmu, &mut driven, waiting, |_| true);
        }
        for command in waiting.commands.iter().take(consumed as usize) {
            let (stream, range) = (bits(command[0], 63, 32) as u32, bits(command[1], 4, 0));
            // 4.3.1, 4.3.2: CFGI_STE; CFGI_STE_RANGE of the aligned 2^(Range + 1) streams, 31 for CFGI_ALL.
            let apart = match bits(command[0], 7, 0) {
                0x03 => 0,
                0x04 => u32::MAX >> (31 - range),
                _ => continue,
            };
            self.look_at_all(smmu, &mut driven, waiting, |other| (other ^ stream) & !apart == 0);
        }
        self.set_driven(smmu, driven);
    }

    /// Takes in that a call may have given streams back: the SMMU looks at those that the driver can have and that are nobody's.
    pub(crate) fn after_return(&self, smmu: usize, stream: u32) {
        let mut driven = self.driven(smmu);
        if driven.on {
            self.look_at_all(smmu, &mut driven, &Waiting::default(), |mapped| mapped == stream);
        }
        self.set_driven(smmu, driven);
    }

    /// The SMMU looks at the STEs of these streams, of all that devices can have.
    fn look_at_all(&self, smmu: usize, driven: &mut Driven, waiting: &Waiting, these: impl Fn(u32) -> bool) {
        for stream in self.mapped_streams(smmu).filter(|stream| these(*stream)) {
            self.look(smmu, driven, stream, waiting.entries.get(&stream).copied().flatten());
        }
    }

    /// The SMMU looks at an STE: what it says is what the stream does from now on, unless the stream is not the driver's. Where what looked
    /// has changed the STE too, it may have seen it as it was `before`.
    fn look(&self, smmu: usize, driven: &mut Driven, stream: u32, before: Option<[u64; 2]>) {
        if self.is_taken(smmu, stream) {
            return;
        }
        let passing = |words: &[u64; 2]| self.passes(smmu, stream, *words);
        let now = self.entry_of(smmu, stream);
        let mut words = now.filter(passing);
        if let Some(before) = before.filter(|before| now != Some(*before)) {
            let said = self.call(Function::StreamQuery, [smmu as u64, u64::from(stream), 0, 0]);
            words = match said {
                Ok([1, ..]) => Some(before).filter(passing).or(words),
                _ if passing(&before) && words.is_some() => words,
                _ => None,
            };
        }
        match words {
            Some(words) => driven.streams.insert(stream, words),
            None => driven.streams.remove(&stream),
        };
    }

    /// Whether a call has attached a stream, or it is in a vSMMU.
    pub(crate) fn is_taken(&self, smmu: usize, stream: u32) -> bool {
        let record = self.record();
        let mut vsmmus = record.vsmmus.iter().filter(|(_, vsmmu)| vsmmu.smmu == smmu);
        record.streams.contains_key(&(smmu, stream))
            || vsmmus.any(|(_, vsmmu)| vsmmu.streams.values().any(|of| *of == stream))
    }

    /// Words 0 and 1 of the STE of a stream in the driver's table (3.3.1, 5.1, 6.3.24 and 6.3.25); `None` if there is none that can be read.
    fn entry_of(&self, smmu: usize, stream: u32) -> Option<[u64; 2]> {
        let cfg = self.load(smmu, reg::STRTAB_BASE_CFG);
        let (log2, split, format) = (bits(cfg, 5, 0), bits(cfg, 10, 6), bits(cfg, 17, 16));
        let base = self.load_u64(smmu, reg::STRTAB_BASE) & 0x000f_ffff_ffff_ffc0;
        let sid_size = bits(self.load(smmu, reg::IDR1), 5, 0);
        if u64::from(stream) >> log2.min(sid_size) != 0 {
            return None;
        }
        // The base is aligned to the size of the table, and to 64 bytes at the least.
        let aligned =
            |size_log2: u64| base & !(u64::MAX.checked_shr(64 - size_log2.min(63) as u32).unwrap_or(0));
        if format != 1 {
            return self.words_of_host(aligned(log2 + 6) + u64::from(stream) * 64);
        }
        // A reserved SPLIT behaves as 6.
        let split = if split == 8 || split == 10 { split } else { 6 };
        let table = aligned(log2.saturating_sub(split) + 3);
        let [descriptor] = self.words_of_host(table + (u64::from(stream) >> split) * 8)?;
        let (span, index) = (bits(descriptor, 4, 0), u64::from(stream) & ((1 << split) - 1));
        if span == 0 || span > split + 1 || index >> (span - 1) != 0 {
            return None;
        }
        let level2 = (bits(descriptor, 55, 6) << 6) & !((64 << (span - 1)) - 1);
        self.words_of_host(level2 + index * 64)
    }

    /// Whether anything passes by an STE (5.2): it is valid, asks for bypass or stage 1, and has no bit and no value that is ILLEGAL, or not the host's.
    fn passes(&self, smmu: usize, stream: u32, [word0, word1]: [u64; 2]) -> bool {
        let config = self.machine().smmus[smmu].config;
        // V, Config, S1Fmt, S1ContextPtr, S1CDMax; S1DSS, S1CIR, S1COR, S1CSH, S1STALLD, EATS, SHCFG.
        let known = [0xf8ff_ffff_ffff_ffff, 0xff | 1 << 27 | 3 << 28 | 3 << 44];
        if word0 & 1 == 0 || word0 & !known[0] != 0 || word1 & !known[1] != 0 {
            return false;
        }
        // No driver finds IDR1.ATTR_TYPES_OVR: SHCFG is RES0, and 0b01 is taken for what it means.
        let incoming = bits(word1, 45, 44) <= 1;
        let (format, cd_max, dss) = (bits(word0, 5, 4), bits(word0, 63, 59), bits(word1, 1, 0));
        match bits(word0, 3, 1) {
            0b100 => incoming,
            0b101 => {
                let trusted = self
                    .trusted
                    .iter()
                    .any(|&(at, device)| at == smmu && self.devices[smmu][device].stream == stream);
                let ats = match bits(word1, 29, 28) {
                    0 => true,
                    1 => config.ats() && (trusted || config.split_ats()),
                    _ => false,
                };
                let bypasses = cd_max != 0 && dss == 1;
                bits(word0, 55, 6) << 6 < 1 << self.address_bits()
                    && cd_max <= u64::from(config.ssid_size())
                    && format != 3
                    && (format == 0 || cd_max == 0 || config.cd2l())
                    && dss != 3
                    && bits(word1, 7, 6) != 1
                    // Every driver finds STALL_MODEL = 0b01.
                    && bits(word1, 27, 27) == 0
                    && ats
                    && (incoming || !bypasses)
            }
            _ => false,
        }
    }

    /// Bits of an address of a stage-2 domain.
    fn address_bits(&self) -> u32 {
        let bits = self.call(Function::Features, [0; 4]).map_or(0, |[bits, ..]| bits);
        (bits >> abi::features::ADDRESS_BITS_SHIFT & 0xff) as u32
    }
}
