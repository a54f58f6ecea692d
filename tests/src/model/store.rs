//! What a store of EL2 does to structures that hardware may be reading: break-before-make and STE checks.

use super::Machine;
use super::smmu::Bus;
use super::smmu::stream::Fetched;
use super::stage2::{Stage2Config, level_shift, walk};

impl Machine {
    /// Looks at a store that changed `old` to `new`.
    pub(super) fn check_store(&mut self, address: u64, old: u64, new: u64) {
        self.check_descriptor_store(address, old, new);
        self.check_ste_store(address);
    }

    /// DDI 0487, D8.16.1 and IHI 0070, 3.21.1.3: a valid descriptor that is live becomes another valid one.
    fn check_descriptor_store(&mut self, address: u64, old: u64, new: u64) {
        if old & 1 == 0 || new & 1 == 0 {
            return;
        }
        if let Some(config) = self.cpu.stage2
            && let Some(text) = changed_live(&self.memory, &config, address, old, new)
        {
            self.violations.record(format!("CPU stage 2: {} without break before make", text.0));
        }
        for index in 0..self.smmus.len() {
            let Some(users) = self.smmus[index].walked.get(&(address >> 12)).cloned() else { continue };
            let live = self.live_configs(index);
            let level = self.smmus[index].config.bbm_level();
            for (config, ia) in users {
                if !live.contains(&config) {
                    continue;
                }
                if let Some((text, harmless)) = changed_live_at(&self.memory, &config, ia, address, old, new)
                    && !(harmless && level >= 2)
                {
                    self.violations.record(format!("SMMU {index}: {text} in place, BBML {level}"));
                    break;
                }
            }
        }
    }

    /// The stage-2 configurations that an SMMU's streams have in memory now.
    pub fn live_configs(&mut self, index: usize) -> Vec<Stage2Config> {
        let streams = self.smmus.get(index).map(|smmu| smmu.streams.clone()).unwrap_or_default();
        let mut live = Vec::new();
        for stream in streams {
            if let Some(config) = self.meaning_in_memory(index, stream).and_then(|meaning| meaning.stage2())
                && !live.contains(&config)
            {
                live.push(config);
            }
        }
        live
    }

    /// 5.2 and 3.21.2: while V = 1 an STE may be read between any two stores, so each of them must leave a legal one.
    fn check_ste_store(&mut self, address: u64) {
        let at = address & !63;
        for index in 0..self.smmus.len() {
            let smmu = &mut self.smmus[index];
            if !smmu.ste_places.contains_key(&at) || !smmu.translating() {
                continue;
            }
            let Some(&stream) = smmu.ste_places.get(&at) else { continue };
            let mut bus =
                Bus { memory: &mut self.memory, violations: &mut self.violations, now_ns: self.now_ns };
            let fetched = smmu.ste_in_memory(&mut bus, stream);
            // It may be read, and what it names cached, before the next store.
            smmu.note_ste(&mut bus, stream, fetched);
            if let Fetched::Ste(ste) = fetched
                && ste[0] & 1 == 1
                && let Err(reason) = smmu.decode_ste(&ste)
            {
                self.violations.record(format!(
                    "SMMU {index}: the STE of stream {stream:#x} is valid and ILLEGAL for a moment: {reason}"
                ));
            }
        }
    }
}

/// As [`changed_live_at`], for a table whose input addresses are not known: tries the place of the entry in an identity map.
fn changed_live(
    memory: &super::memory::PhysMemory,
    config: &Stage2Config,
    address: u64,
    old: u64,
    new: u64,
) -> Option<(String, bool)> {
    // The stage-2 of the host is an identity map: a leaf's output is its input address.
    let output = if old & 2 == 0 { old } else { new } & 0x0000_ffff_ffff_f000;
    changed_live_at(memory, config, output, address, old, new)
}

/// If the descriptor at `address` is in the walk for `ia`: what changed there, and whether BBML 2 allows it.
fn changed_live_at(
    memory: &super::memory::PhysMemory,
    config: &Stage2Config,
    ia: u64,
    address: u64,
    old: u64,
    new: u64,
) -> Option<(String, bool)> {
    let mut tables = Vec::new();
    let _ = walk(memory, config, ia, None, &mut tables, &mut Vec::new());
    let granule = config.granule_log2;
    let level = if (config.root..config.root + config.root_bytes()).contains(&address) {
        config.start_level
    } else {
        tables.iter().find(|table| address >> granule == table.address >> granule)?.level
    };
    let output = 0x0000_ffff_ffff_ffff & !((1u64 << granule) - 1);
    let leaf = |descriptor: u64| level == 3 || descriptor & 2 == 0;
    let size = 1u64 << level_shift(granule, level);
    match (leaf(old), leaf(new)) {
        (true, true) if (old ^ new) & output != 0 => {
            Some((format!("the leaf at {address:#x} ({size:#x} bytes) changes its output"), false))
        }
        (true, true) => None,
        (false, false) if (old ^ new) & output != 0 => {
            Some((format!("the table pointer at {address:#x} changes"), false))
        }
        (false, false) => None,
        (true, false) => Some((format!("the block at {address:#x} of level {level} is split"), true)),
        (false, true) => Some((format!("the table at {address:#x} of level {level} is joined"), true)),
    }
}
