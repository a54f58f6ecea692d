//! CD tables and the configuration cache of CDs (IHI 0070, 3.3.3, 5.3, 5.4 and 3.21.2).
//!
//! A CD is cached with the physical address that it was read from. Below stage 2 that address came from a translation, and nothing in
//! 3.21 makes the cached CD, or the cached pointer to a table of CDs, go when that translation is invalidated: only
//! CMD_CFGI_CD, CMD_CFGI_CD_ALL, CMD_CFGI_STE and CMD_CFGI_ALL name it.

use super::super::stage2::{Leaf, Stage2Config};
use super::cd::Context;
use super::event::{Class, Refusal, number};
use super::ste::{Contexts, Meaning, WithoutSsid};
use super::stream::ConfigurationCache;
use super::{Bus, Smmu};

/// A cached CD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedCd {
    /// What was read.
    pub cd: [u64; 8],
    /// The address that the tables of CDs named: an IPA when stage 2 translates too.
    pub ipa: u64,
    /// The physical address that it was read from.
    pub address: u64,
    /// An invalidation named it; it goes with the next SYNC.
    pub doomed: bool,
    /// What replaces it then, if it was read again when the invalidation was consumed.
    pub(crate) next: Option<([u64; 8], u64, u64)>,
}

/// A cached level-1 CD descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedCdTable {
    /// What was read.
    pub descriptor: u64,
    /// The physical address that it was read from.
    pub address: u64,
    /// An invalidation named it; it goes with the next SYNC.
    pub doomed: bool,
    pub(crate) next: Option<(u64, u64)>,
}

impl ConfigurationCache {
    pub(crate) fn forget_doomed_cds(&mut self) {
        self.cds.retain(|_, entry| {
            if entry.doomed {
                let Some((cd, ipa, address)) = entry.next else { return false };
                *entry = CachedCd { cd, ipa, address, doomed: false, next: None };
            }
            true
        });
        self.cd_tables.retain(|_, entry| {
            if entry.doomed {
                let Some((descriptor, address)) = entry.next else { return false };
                *entry = CachedCdTable { descriptor, address, doomed: false, next: None };
            }
            true
        });
    }
}

/// Stage 2 below a stage 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parent {
    pub(crate) config: Stage2Config,
    pub(crate) record: bool,
}

/// A stream whose stage 1 translates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) vmid: u16,
    pub(crate) contexts: Contexts,
    pub(crate) parent: Option<Parent>,
}

impl Setup {
    pub(crate) fn of(meaning: &Meaning) -> Option<Self> {
        let parent = match *meaning {
            Meaning::Nested { config, record, .. } => Some(Parent { config, record }),
            _ => None,
        };
        Some(Self { vmid: meaning.vmid()?, contexts: meaning.contexts()?, parent })
    }
}

/// A CD that was read.
struct Read {
    cd: [u64; 8],
    ipa: u64,
    address: u64,
    /// It was found through a level-1 descriptor that an invalidation named.
    outdated: bool,
}

/// Which CD a transaction uses.
pub(crate) enum Choice {
    Cd(u32),
    BypassStage1,
}

impl Contexts {
    /// 3.9.2, 5.2 (S1CDMax, S1DSS), 7.3.7 and 7.3.9.
    pub(crate) fn choose(&self, ssid: Option<u32>) -> Result<Choice, Refusal> {
        match (ssid, self.without_ssid) {
            (Some(ssid), _) if self.max_log2 == 0 || ssid >> self.max_log2 != 0 => {
                Err(Refusal::configuration(number::C_BAD_SUBSTREAMID))
            }
            (Some(0), WithoutSsid::UseCd0) | (None, WithoutSsid::Terminate) => {
                Err(Refusal::configuration(number::F_STREAM_DISABLED))
            }
            (Some(ssid), _) => Ok(Choice::Cd(ssid)),
            (None, WithoutSsid::UseCd0) => Ok(Choice::Cd(0)),
            (None, WithoutSsid::BypassStage1) => Ok(Choice::BypassStage1),
        }
    }
}

impl Smmu {
    /// Translates the address of a CD or of a stage-1 table: through stage 2, if there is one (3.3.3, 3.4.2).
    pub(crate) fn locate(
        &mut self,
        bus: &mut Bus,
        setup: &Setup,
        ipa: u64,
        class: Class,
    ) -> Result<u64, Refusal> {
        let Some(parent) = setup.parent else { return Ok(ipa) };
        let leaf = self.below(bus, setup.vmid, &parent, ipa, class)?;
        // 5.2, S2PTW: stage-2 Device memory (MemAttr[3:2] = 0b00) refuses the fetch.
        let device = leaf.memory_attribute() >> 2 == 0;
        if !leaf.readable() || setup.contexts.protected_walks && device {
            return Err(Refusal::stage2(number::F_PERMISSION, class, ipa, parent.record));
        }
        Ok(leaf.translate(ipa))
    }

    /// The stage-2 leaf for an IPA that a nested stream needs, from the TLB if it is there.
    pub(crate) fn below(
        &mut self,
        bus: &mut Bus,
        vmid: u16,
        parent: &Parent,
        ipa: u64,
        class: Class,
    ) -> Result<Leaf, Refusal> {
        // A CD is no TLB entry: an invalidation of both stages that is under way does not take along what is read meanwhile (4.3.3, 4.4.3).
        let cached = match class {
            Class::Cd => self.tlb.find(vmid, ipa),
            Class::Table | Class::Input => self.tlb.find_for_combining(vmid, ipa),
        };
        if let Some(entry) = cached {
            return Ok(entry.leaf);
        }
        self.fill(bus, vmid, &parent.config, ipa)
            .map_err(|fault| Refusal::stage2(number::of_walk(fault), class, ipa, parent.record))
    }

    /// 5.3: finds a CD, through one or two levels of tables, and reads it.
    fn fetch_cd(
        &mut self,
        bus: &mut Bus,
        stream: u32,
        ssid: u32,
        setup: &Setup,
        again: bool,
    ) -> Result<Read, Refusal> {
        let mut outdated = false;
        let abort = || Refusal::configuration(number::F_CD_FETCH);
        let contexts = &setup.contexts;
        let ipa = match contexts.format.leaf_log2() {
            None => contexts.pointer + u64::from(ssid) * 64,
            Some(leaf_log2) => {
                let key = (stream, ssid >> leaf_log2);
                let cached = self.configuration.cd_tables.get(&key).copied();
                let descriptor = match cached {
                    Some(entry) if !(again && entry.doomed) => {
                        outdated = entry.doomed;
                        entry.descriptor
                    }
                    _ => {
                        let at =
                            self.locate(bus, setup, contexts.pointer + u64::from(key.1) * 8, Class::Cd)?;
                        let descriptor = bus.memory.read(at).ok_or_else(abort)?;
                        self.remember_cd_table(key, descriptor, at);
                        descriptor
                    }
                };
                // 5.3: V [0], L2Ptr [55:12]. An invalid one means that there is no such SSID (7.3.9).
                if descriptor & 1 == 0 {
                    return Err(Refusal::configuration(number::C_BAD_SUBSTREAMID));
                }
                let table = descriptor & 0x00ff_ffff_ffff_f000 & !((64u64 << leaf_log2) - 1);
                table + u64::from(ssid & ((1 << leaf_log2) - 1)) * 64
            }
        };
        let address = self.locate(bus, setup, ipa, Class::Cd)?;
        let mut cd = [0; 8];
        for (word, offset) in cd.iter_mut().zip((0..).step_by(8)) {
            *word = bus.memory.read(address + offset).ok_or_else(abort)?;
        }
        if let Ok(context) = self.decode_cd(&cd, contexts) {
            self.ledger.note_asid(setup.vmid, context.asid);
        }
        Ok(Read { cd, ipa, address, outdated })
    }

    fn remember_cd_table(&mut self, key: (u32, u32), descriptor: u64, address: u64) {
        match self.configuration.cd_tables.get_mut(&key) {
            Some(entry) => entry.next = Some((descriptor, address)),
            None => {
                let doomed = self.leaving(key.0);
                let entry = CachedCdTable { descriptor, address, doomed, next: None };
                self.configuration.cd_tables.insert(key, entry);
            }
        }
    }

    /// The CD of a stream and SSID, from the cache if it is there.
    pub(crate) fn cd_of(
        &mut self,
        bus: &mut Bus,
        stream: u32,
        ssid: u32,
        setup: &Setup,
    ) -> Result<[u64; 8], Refusal> {
        if let Some(entry) = self.configuration.cds.get(&(stream, ssid)) {
            return Ok(entry.cd);
        }
        let Read { cd, ipa, address, outdated } = self.fetch_cd(bus, stream, ssid, setup, false)?;
        let doomed = outdated || self.leaving(stream);
        let entry = CachedCd { cd, ipa, address, doomed, next: None };
        self.configuration.cds.insert((stream, ssid), entry);
        Ok(cd)
    }

    /// Whether the cached STE of a stream goes with the next SYNC: then what is read through it goes too.
    fn leaving(&self, stream: u32) -> bool {
        self.configuration.stes.get(&stream).is_some_and(|entry| entry.doomed)
    }

    /// The setup that a stream will have after the next SYNC.
    fn coming_setup(&self, stream: u32) -> Option<Setup> {
        let entry = self.configuration.stes.get(&stream)?;
        let fetched = if entry.doomed { entry.next? } else { entry.fetched };
        Setup::of(&self.decode_ste(&fetched.ste()?).ok()?)
    }

    /// What the CD of a stream and SSID says.
    pub(crate) fn context_of(
        &mut self,
        bus: &mut Bus,
        stream: u32,
        ssid: u32,
        setup: &Setup,
    ) -> Result<Context, Refusal> {
        let cd = self.cd_of(bus, stream, ssid, setup)?;
        self.decode_cd(&cd, &setup.contexts).map_err(|_| Refusal::configuration(number::C_BAD_CD))
    }

    /// The setup that the cached STE of a stream asks for.
    pub(crate) fn cached_setup(&self, stream: u32) -> Option<Setup> {
        let ste = self.configuration.stes.get(&stream)?.fetched.ste()?;
        Setup::of(&self.decode_ste(&ste).ok()?)
    }

    /// 4.3.3, 4.3.4: dooms the CDs, and the level-1 descriptors, whose (StreamID, SSID or index) is named.
    pub(crate) fn doom_contexts(
        &mut self,
        bus: &mut Bus,
        cd: impl Fn((u32, u32)) -> bool,
        table: impl Fn((u32, u32)) -> bool,
    ) {
        for (key, entry) in &mut self.configuration.cd_tables {
            if table(*key) {
                (entry.doomed, entry.next) = (true, None);
            }
        }
        let named: Vec<(u32, u32)> = self.configuration.cds.keys().copied().filter(|&key| cd(key)).collect();
        for key in named {
            // Read again at once, through translations that are not invalidated yet: the worst moment if the stage-2
            // invalidation, or the store of the new CD, comes after this command.
            let next = match self.coming_setup(key.0) {
                Some(setup) if self.config.greedy && self.translating() => {
                    self.fetch_cd(bus, key.0, key.1, &setup, true).ok()
                }
                _ => None,
            };
            let next = next.map(|read| (read.cd, read.ipa, read.address));
            if let Some(entry) = self.configuration.cds.get_mut(&key) {
                (entry.doomed, entry.next) = (true, next);
            }
        }
    }

    /// A greedy SMMU reads the CD that transactions without an SSID use.
    pub(crate) fn read_ahead_context(&mut self, bus: &mut Bus, stream: u32) {
        let Some(setup) = self.cached_setup(stream) else { return };
        if let Ok(Choice::Cd(ssid)) = setup.contexts.choose(None) {
            let _ = self.cd_of(bus, stream, ssid, &setup);
        }
    }
}
