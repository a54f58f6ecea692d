//! What the commands of a walk mean, by a small reading of IHI 0070, 4.3 to 4.5, of its own: exactly what the entries stand for is
//! forgotten, and nothing else, in an order in which nothing comes back.

extern crate std;

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use proptest::prelude::*;

use super::super::Traits;
use super::queue::Recorder;
use super::*;
use crate::command::Command;
use crate::gather::Gather;

/// Something that forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    /// Stage-1 translations of an ASID of NS-EL1.
    El1(u64),
    /// Those of an ASID of EL2.
    El2(u64),
    /// Stage-2 translations of a VMID.
    Ipa(u64),
    /// What stage 1 was combined with the stage 2 of a VMID into.
    Stage1(u64),
    /// Context descriptors of a stream.
    Cds(u64),
    /// The ATC of a stream, for a SubstreamID or transactions without one.
    Atc(u64, Option<u64>),
}

/// First and last address.
type Run = (u64, u64);

const ALL: Run = (0, u64::MAX);

/// What each thing has forgotten.
type Forgotten = BTreeMap<Thing, Vec<Run>>;

/// The same, sorted, and runs that touch made one.
fn joined(forgotten: Forgotten) -> Forgotten {
    let join = |mut runs: Vec<Run>| {
        runs.sort_unstable();
        let mut joined: Vec<Run> = Vec::new();
        for (first, last) in runs {
            match joined.last_mut() {
                Some(run) if run.1 == u64::MAX || first <= run.1 + 1 => run.1 = run.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        joined
    };
    forgotten.into_iter().map(|(thing, runs)| (thing, join(runs))).collect()
}

/// What changed: leaves of one level, and perhaps tables above them.
#[derive(Clone, Copy, Debug)]
struct Change {
    granule: Granule,
    level: u8,
    first: u64,
    leaves: u64,
    structural: bool,
    everything: bool,
}

impl Change {
    fn leaf_log2(&self) -> u32 {
        let page = u32::from(self.granule.log2());
        page + (page - 3) * u32::from(3 - self.level)
    }

    fn run(&self) -> Run {
        (self.first, self.first + (self.leaves << self.leaf_log2()) - 1)
    }

    fn gather(&self) -> Gather {
        if self.everything {
            return Gather::everything();
        }
        let (mut gather, size) = (Gather::new(), self.leaves << self.leaf_log2());
        gather.add_leaf(self.first, size, self.level);
        if self.structural {
            gather.add_structural(self.first, self.granule.bytes());
        }
        gather
    }

    /// What an invalidation by address must cover; `None` where it must be one of the whole tag.
    fn sized(&self, ranges: bool) -> Option<Run> {
        let (first, last) = self.run();
        let page = u32::from(self.granule.log2());
        let pages = (last - first + 1) >> page;
        if self.everything {
            None
        } else if ranges {
            // Facts of the encoding: one page without a level cannot be said.
            let pages = if self.structural && pages % 32 == 1 { pages + 1 } else { pages };
            Some((first, first + (pages << page) - 1))
        } else {
            let commands = if self.structural { pages } else { self.leaves };
            (commands < 1 << (page - 3)).then_some((first, last))
        }
    }

    /// The smallest naturally aligned power of two pages of 4 KiB that covers it, found by trying.
    fn atc(&self) -> Run {
        let (first, last) = self.run();
        if self.everything {
            return ALL;
        }
        let log2 = (12..63).find(|log2| first >> log2 == last >> log2).unwrap();
        (first >> log2 << log2, (first >> log2 << log2) + (1 << log2) - 1)
    }
}

fn bits(word: u64, high: u32, low: u32) -> u64 {
    word >> low & (u64::MAX >> (63 - (high - low)))
}

/// The addresses of a TLBI by address (4.4.1), whose reserved encodings are an error here.
fn tlbi_run(Command([low, high]): Command, change: &Change) -> Run {
    let (num, scale) = (bits(low, 16, 12), bits(low, 24, 20));
    let (leaf, ttl, tg, address) = (bits(high, 0, 0), bits(high, 9, 8), bits(high, 11, 10), high >> 12 << 12);
    assert_eq!(
        (bits(low, 11, 8), bits(low, 19, 17), bits(low, 31, 25), bits(high, 7, 1)),
        (0, 0, 0, 0),
        "RES0"
    );
    assert_eq!(leaf == 0, change.structural, "Leaf leaves out what is above the leaves");
    if tg == 0 {
        assert_eq!((num, scale, ttl), (0, 0, 0));
        // It names one address: what is cached of it is the old leaf.
        let log2 = if change.structural { u32::from(change.granule.log2()) } else { change.leaf_log2() };
        let first = address >> log2 << log2;
        return (first, first + (1 << log2) - 1);
    }
    assert!(num != 0 || scale != 0 || ttl != 0, "reserved");
    assert_eq!(tg, u64::from(change.granule.log2() - 10) / 2);
    assert_eq!(ttl, if change.structural { 0 } else { u64::from(change.level) });
    (address, address + ((num + 1) << scale << change.granule.log2()) - 1)
}

/// Lets one SMMU consume its commands.
fn consume(commands: &[Command], change: &Change) -> Forgotten {
    let mut forgotten = Forgotten::new();
    // Kinds that are not known to be done: 0 IOTLB by tag, 1 what was made from that, 2 ATCs.
    let mut pending = BTreeSet::new();
    for &command in commands {
        let Command([low, high]) = command;
        let (vmid, asid, stream) = (bits(low, 47, 32), bits(low, 63, 48), bits(low, 63, 32));
        let (kind, things) = match bits(low, 7, 0) {
            0x11 => (0, std::vec![(Thing::El1(asid), ALL)]),
            0x12 => (0, std::vec![(Thing::El1(asid), tlbi_run(command, change))]),
            0x21 => (0, std::vec![(Thing::El2(asid), ALL)]),
            0x22 => (0, std::vec![(Thing::El2(asid), tlbi_run(command, change))]),
            0x28 => (0, std::vec![(Thing::Ipa(vmid), ALL), (Thing::Stage1(vmid), ALL)]),
            0x2a => (0, std::vec![(Thing::Ipa(vmid), tlbi_run(command, change))]),
            0x10 => (1, std::vec![(Thing::Stage1(vmid), ALL)]),
            0x06 => (1, std::vec![(Thing::Cds(stream), ALL)]),
            0x40 => {
                let substream = (bits(low, 11, 11) == 1).then_some(bits(low, 31, 12));
                let (size, address) = (bits(high, 5, 0), high >> 12 << 12);
                let run = if size >= 52 { ALL } else { (address, address + (4096 << size) - 1) };
                assert_eq!(address & (run.1 - run.0), 0, "aligned to its size");
                (2, std::vec![(Thing::Atc(stream, substream), run)])
            }
            0x46 => {
                pending.clear();
                continue;
            }
            other => panic!("opcode {other:#x}"),
        };
        assert!(pending.range(..kind).next().is_none(), "{command:?} overtakes what it must wait for");
        pending.insert(kind);
        for (thing, run) in things {
            forgotten.entry(thing).or_default().push(run);
        }
    }
    assert!(pending.is_empty(), "without CMD_SYNC at the end");
    joined(forgotten)
}

/// What these live entries of one SMMU stand for.
fn wanted(live: &[Target], change: &Change, ranges: bool) -> Forgotten {
    let sized = change.sized(ranges);
    let mut wanted = Forgotten::new();
    for target in live {
        let substream = |substream: u32| (substream != 0).then_some(u64::from(substream));
        let mut forget = |thing, run| wanted.entry(thing).or_default().push(run);
        match *target {
            Target::S1Asid { hears_broadcast: true, .. } if !change.everything => {}
            Target::S1Asid { asid, world, .. } => {
                let thing = if world == World::El1 { Thing::El1 } else { Thing::El2 };
                forget(thing(asid.into()), sized.unwrap_or(ALL));
            }
            Target::S2Vmid { vmid } | Target::S2VmidVsmmu { vmid } => {
                let nested = matches!(target, Target::S2VmidVsmmu { .. })
                    && live.contains(&Target::S2VmidS1Clear { vmid });
                let sized = sized.filter(|_| !nested);
                forget(Thing::Ipa(vmid.into()), sized.unwrap_or(ALL));
                if sized.is_none() {
                    forget(Thing::Stage1(vmid.into()), ALL);
                }
            }
            Target::S2VmidS1Clear { vmid } => forget(Thing::Stage1(vmid.into()), ALL),
            Target::NestedCds { stream } => forget(Thing::Cds(stream.into()), ALL),
            Target::Ats { stream, substream: s } => {
                forget(Thing::Atc(stream.into(), substream(s)), change.atc())
            }
            Target::AtsFull { stream } => forget(Thing::Atc(stream.into(), substream(0)), ALL),
        }
    }
    joined(wanted)
}

fn change() -> impl Strategy<Value = Change> {
    let granules = prop::sample::select(std::vec![Granule::Size4K, Granule::Size16K, Granule::Size64K]);
    let leaves = prop_oneof![1u64..70, 480u64..1100, Just(2048)];
    (granules, 1u8..=3, any::<u64>(), leaves, any::<bool>(), prop::bool::weighted(0.1)).prop_map(
        |(granule, level, place, leaves, structural, everything)| {
            let mut change = Change { granule, level, first: 0, leaves, structural, everything };
            // Inside 48 bits: of the largest leaves there are few.
            change.leaves = leaves.min(1 << (48 - change.leaf_log2()));
            let places = (1u64 << (48 - change.leaf_log2())) - change.leaves + 1;
            change.first = (place % places) << change.leaf_log2();
            change
        },
    )
}

fn traits() -> impl Strategy<Value = Traits> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(range_invalidation, repeat_invalidations, sync_before_last_slot)| Traits {
            range_invalidation,
            repeat_invalidations,
            sync_before_last_slot,
        },
    )
}

/// [`targets`], but one of each key: which fields an entry has is not the matter here.
fn distinct_targets() -> Vec<Target> {
    let keep = |target: &Target| match *target {
        Target::S1Asid { asid, world, hears_broadcast } => match asid {
            1 => hears_broadcast,
            _ => world == World::El2,
        },
        _ => true,
    };
    targets().into_iter().filter(keep).chain([asid(3)]).collect()
}

proptest! {
    #[test]
    fn exactly_what_the_entries_stand_for_is_forgotten(
        change in change(),
        traits in prop::collection::vec(traits(), 3),
        // For each target on each SMMU: not there, trash or live.
        presence in prop::collection::vec(0u8..3, 3 * distinct_targets().len()),
    ) {
        let targets = distinct_targets();
        let all: Vec<(u8, Target)> =
            (0..3).flat_map(|smmu| targets.iter().map(move |target| (smmu, *target))).collect();
        let those = |wanted: u8| {
            let pairs = all.iter().zip(&presence).filter(move |(_, presence)| **presence == wanted);
            pairs.map(|((smmu, target), _)| Entry::new(*smmu, *target, change.granule)).collect::<Vec<_>>()
        };
        let memory = TestMemory::default();
        let rig = Rig::with(&memory, &those(2), &those(1));
        let recorder = Recorder::new(traits.iter().copied().enumerate());
        recorder.invalidate(&memory, &rig.domain(), &change.gather()).unwrap();
        recorder.assert_posted_before_waiting();
        for (smmu, traits) in traits.iter().enumerate() {
            let live: Vec<Target> = all
                .iter()
                .zip(&presence)
                .filter(|((at, _), presence)| usize::from(*at) == smmu && **presence == 2)
                .map(|((_, target), _)| *target)
                .collect();
            let commands = recorder.commands(smmu);
            prop_assert_eq!(consume(&commands, &change), wanted(&live, &change, traits.range_invalidation));
            prop_assert!(recorder.batches(smmu).iter().all(|batch| batch.len() <= 64));
        }
    }
}
