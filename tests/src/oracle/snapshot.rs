//! Everything that a call which fails must leave as it was.

use super::Owners;
use crate::bench::{Bench, SCRATCH};
use crate::model::smmu::ste::{Eats, Meaning};
use crate::model::stage2::{Leaf, all_leaves};
use abi::{Function, Statistic};
use std::collections::BTreeMap;

/// What calls, tables and devices say at one moment, while no call is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Of each page, who owns it.
    pub owners: Owners,
    /// Of each SMMU, VMIDs in use and free.
    tags: Vec<(u64, u64)>,
    /// What STREAM_QUERY says of each stream that has a device or is attached.
    streams: BTreeMap<(usize, u32), Option<[u64; 4]>>,
    /// Domains, vSMMUs and their streams, as calls have made them, and guests.
    objects: String,
    /// Of all that the hypervisor has, by itself: what nobody asked for and nobody knows of is in it.
    digest: u64,
    /// What the STE of each stream with a device means, and what its stage-2 table maps.
    tables: BTreeMap<(usize, u32), (Option<Meaning>, Vec<Extent>)>,
    /// Whether those streams have ATS.
    ats: BTreeMap<(usize, u32), Eats>,
    /// What the CPUs' stage 2 maps.
    cpu: Vec<Extent>,
    /// Where a read of each device gets to, for some addresses.
    reached: Vec<Option<u64>>,
    /// SMMUs that failed for good.
    dead: u64,
    /// Free pages of the pool.
    pub free_pages: u64,
}

/// Addresses that a table maps to neighbours, whatever the sizes of its leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    ia: u64,
    size: u64,
    output: u64,
    /// Everything else in the descriptors: bits 63:48 and 11:2.
    attributes: u64,
}

fn extents(leaves: &[Leaf]) -> Vec<Extent> {
    let mut found: Vec<Extent> = Vec::new();
    for leaf in leaves {
        let (size, attributes) = (1 << leaf.size_log2, leaf.descriptor & 0xffff_0000_0000_0ffc);
        let Leaf { ia, output, .. } = *leaf;
        match found.last_mut() {
            Some(last)
                if last.ia + last.size == ia
                    && last.output + last.size == output
                    && last.attributes == attributes =>
            {
                last.size += size;
            }
            _ => found.push(Extent { ia, size, output, attributes }),
        }
    }
    found
}

impl Snapshot {
    /// Takes one.
    ///
    /// # Errors
    /// A page of which nothing is known.
    pub fn take(bench: &Bench) -> Result<Self, String> {
        let smmus = 0..bench.devices.len();
        let record = bench.record();
        let with_device =
            smmus.clone().flat_map(|smmu| bench.devices[smmu].map(|device| (smmu, device.stream)));
        let with_device: Vec<(usize, u32)> = with_device.collect();
        let mut streams = BTreeMap::new();
        for (smmu, stream) in with_device.iter().chain(record.streams.keys()).copied() {
            let said = bench.call(Function::StreamQuery, [smmu as u64, u64::from(stream), 0, 0]).ok();
            streams.insert((smmu, stream), said);
        }
        let mut tables = BTreeMap::new();
        let mut ats = BTreeMap::new();
        let mut reached = Vec::new();
        for (smmu, stream) in with_device {
            let decoded = bench.machine().decoded_in_memory(smmu, stream);
            ats.extend(decoded.as_ref().map(|decoded| ((smmu, stream), decoded.eats)));
            let meaning = decoded.map(|decoded| decoded.meaning);
            let config = meaning.and_then(|meaning| meaning.stage2());
            let mapped = config.map(|config| extents(&all_leaves(&bench.machine().memory, &config)));
            tables.insert((smmu, stream), (meaning, mapped.unwrap_or_default()));
            for block in 0..8 {
                for page in 0..2 {
                    let address = SCRATCH + (block << 21) + (page << 16);
                    reached.push(bench.machine().evaluate(smmu, stream, address, false).ok());
                }
            }
        }
        let cpu = bench.machine().cpu.stage2.ok_or("the CPUs have no stage 2")?;
        let cpu = extents(&all_leaves(&bench.machine().memory, &cpu));
        Ok(Self {
            owners: Owners::read(bench)?,
            tags: smmus.map(|smmu| bench.tags(smmu)).collect(),
            streams,
            objects: format!("{:x?} {:x?} {:x?}", record.guests, record.domains, record.vsmmus),
            digest: bench.hypervisor.oracle().digest(),
            tables,
            ats,
            cpu,
            reached,
            dead: bench.statistic(Statistic::DeadSmmus),
            free_pages: bench.call(Function::PoolState, [0; 4]).map_or(0, |[free, ..]| free),
        })
    }

    /// What is not as in another one, in words; nothing if they are the same.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |name: &str, is_same: bool, text: String| {
            if !is_same {
                found.push(format!("{name}{text}"));
            }
        };
        compare("owners of pages", self.owners == other.owners, String::new());
        compare("VMIDs", self.tags == other.tags, format!(": {:?}, {:?}", self.tags, other.tags));
        compare(
            "streams",
            self.streams == other.streams,
            format!(": {:x?}, {:x?}", self.streams, other.streams),
        );
        compare("objects", self.objects == other.objects, format!(": {}, {}", self.objects, other.objects));
        compare("what the hypervisor has", self.digest == other.digest, String::new());
        compare("ATS", self.ats == other.ats, format!(": {:?}, {:?}", self.ats, other.ats));
        compare("tables of devices", self.tables == other.tables, String::new());
        compare("stage 2 of the CPUs", self.cpu == other.cpu, String::new());
        compare("what devices reach", self.reached == other.reached, String::new());
        let (free, now) = (self.free_pages, other.free_pages);
        compare("free pages", free == now, format!(": {free}, {now}"));
        found
    }

    /// What a call that failed with hardware or memory below it did not leave as it was, and how many pages it left to nobody. A level-2 stream
    /// table that is new, and tables that stay split, do not count; nor does ATS that is off now, because a device did not answer.
    ///
    /// # Errors
    /// What cannot be asked, or a page that somebody else has.
    pub fn unrestored(&self, bench: &Bench) -> Result<(u64, Vec<String>), String> {
        let mut after = Self::take(bench)?;
        let lost = self.owners.lost(&after.owners)?;
        for (stream, eats) in &mut after.ats {
            if *eats == Eats::Off && self.ats.get(stream).is_some_and(|before| before != eats) {
                // ATS is in the digest, so what that alone shows is not compared: all the rest is.
                after.digest = self.digest;
                *eats = self.ats[stream];
            }
        }
        let mut differences = self.differences(&after);
        if lost > 0 || after.dead != self.dead {
            // Quarantined pages are in no table. An SMMU that is dead now translates nothing any more.
            differences
                .retain(|text| ["streams", "VMIDs", "objects"].iter().any(|what| text.starts_with(what)));
        }
        differences.retain(|text| !text.starts_with("free pages"));
        Ok((lost, differences))
    }
}
