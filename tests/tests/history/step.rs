//! Random steps, and rows of steps that lead to where single ones seldom get.

use crate::driver::{Act, any_act, any_reset, entry, taken};
use abi::{Function, domain_options};
use proptest::prelude::*;
use std::ops::Range;
use tests::owner::{EATS, SHCFG};

/// Which of several objects: 0 the one made last, others those before it.
pub type Pick = usize;

/// A domain.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// The host's, or a guest's memory domain.
    Memory(u64),
    /// One that DOMAIN_CREATE made.
    Made(Pick),
    /// One that DOMAIN_CREATE_NESTED made.
    Nested(Pick),
}

/// What the owner of a vSMMU writes to its memory.
#[derive(Clone, Copy, Debug)]
pub enum Write {
    /// Tables and CD 0, with this ASID.
    All(u64),
    /// A table of CDs of two levels.
    TwoLevels(u64),
    /// A CD with this SSID and ASID.
    Cd(u64, u64),
    /// No CD with this SSID.
    NoCd(u64),
    /// An entry of the last table, for a page of data.
    Entry(u64, Option<u64>),
    /// Anything anywhere in the tables: the unit, the word.
    Anything(u64, u64, u64),
}

/// What the owner of a vSMMU sends.
#[derive(Clone, Copy, Debug)]
pub enum Send {
    /// CMD_CFGI_CD_ALL.
    AllCds(u64),
    /// CMD_CFGI_CD of an SSID.
    Cd(u64, u64),
    /// CMD_TLBI_NH_ALL.
    All,
    /// CMD_TLBI_NSNH_ALL.
    AllOfAll,
    /// CMD_TLBI_NH_ASID.
    Asid(u64),
    /// CMD_TLBI_NH_VA of an entry of the last table.
    Va(u64, u64, bool),
    /// CMD_ATC_INV of everything, of an SSID or of none.
    Atc(u64, Option<u64>),
    /// CMD_SYNC.
    Sync,
    /// Any two words.
    Anything([u64; 2]),
}

/// Where a device's access goes.
#[derive(Clone, Copy, Debug)]
pub enum Address {
    /// An entry of the owner's last table.
    Va(u64),
    /// A unit of scratch memory at its own address.
    Place(u64),
    /// A unit of a domain that a call made.
    Slot(u64),
}

/// How a device accesses memory.
#[derive(Clone, Copy, Debug)]
pub enum How {
    /// Untranslated.
    Plain,
    /// A Translation Request.
    Request,
    /// With its ATC.
    Atc,
    /// A Translated request to an address of its choice.
    Forged,
}

/// One step.
#[derive(Clone, Debug)]
pub enum Step {
    Range { function: Function, place: u64, units: u64, guest: u64 },
    Attach { smmu: usize, device: usize, domain: Target, flags: u64 },
    Detach { smmu: usize, device: usize },
    Create,
    Destroy { guest: u64 },
    TearDown { guest: u64, steps: usize },
    GiveBack { order: u32 },
    Domain { guest: u64, options: u64 },
    DestroyDomain { domain: Target },
    Map { domain: Pick, slot: u64, place: u64, units: u64 },
    Unmap { domain: Pick, slot: u64, units: u64 },
    Vsmmu { smmu: usize, parent: Target },
    DestroyVsmmu { vsmmu: Pick },
    AddStream { vsmmu: Pick, id: u64, device: usize },
    RemoveStream { vsmmu: Pick, id: u64 },
    Nested { vsmmu: Pick, cd_max: u64, format: u64, bits: [u64; 2] },
    Write { vsmmu: Pick, what: Write },
    Invalidate { vsmmu: Pick, commands: Vec<Send> },
    Device { smmu: usize, device: usize, ssid: Option<u32>, address: Address, how: How },
    Cpu { place: u64, write: bool },
    Driver { smmu: usize, what: Act },
    Events,
}

/// Places in the scratch memory, in units of the granule: those of the arenas of host and guests, and around the edges of blocks.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..64u64, 2 => 504..520u64, 1 => 1020..1030u64, 1 => Just(1536)]
}

fn units() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 1..4u64, 1 => Just(8u64), 1 => Just(512u64), 1 => 1..600u64]
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![4 => Just(0), 1 => 1..8usize]
}

fn smmu() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..4usize, 1 => 0..64usize]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        2 => (0..4u64).prop_map(Target::Memory),
        2 => pick().prop_map(Target::Made),
        3 => pick().prop_map(Target::Nested)
    ]
}

fn asid() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(1u64), 4 => Just(2), 1 => Just(0x101)]
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        2 => asid().prop_map(Write::All),
        1 => asid().prop_map(Write::TwoLevels),
        2 => (0..4u64, asid()).prop_map(|(ssid, asid)| Write::Cd(ssid, asid)),
        1 => (0..4u64).prop_map(Write::NoCd),
        4 => (0..4u64, prop::option::of(0..4u64)).prop_map(|(n, page)| Write::Entry(n, page)),
        1 => (0..4u64, 0..512u64, any::<u64>()).prop_map(|(unit, word, value)| Write::Anything(unit, word, value)),
    ]
}

fn send() -> impl Strategy<Value = Send> {
    let id = || 0..3u64;
    prop_oneof![
        2 => id().prop_map(Send::AllCds),
        2 => (id(), 0..4u64).prop_map(|(id, ssid)| Send::Cd(id, ssid)),
        1 => Just(Send::All),
        1 => Just(Send::AllOfAll),
        2 => asid().prop_map(Send::Asid),
        3 => (asid(), 0..4u64, any::<bool>()).prop_map(|(asid, n, leaf)| Send::Va(asid, n, leaf)),
        2 => (id(), prop::option::of(0..4u64)).prop_map(|(id, ssid)| Send::Atc(id, ssid)),
        1 => Just(Send::Sync),
        1 => (0..0x50u64, any::<[u64; 2]>(), any::<bool>()).prop_map(|(opcode, [low, high], plain)| {
            // Most commands with any bits at all are illegal; those with none are legal more often.
            Send::Anything(if plain { [opcode, 0] } else { [low & !0xff | opcode, high] })
        }),
    ]
}

fn device() -> impl Strategy<Value = Step> {
    let address = prop_oneof![
        4 => (0..5u64).prop_map(Address::Va), 3 => place().prop_map(Address::Place), 1 => (0..24u64).prop_map(Address::Slot)
    ];
    let ssid = prop_oneof![3 => Just(None), 1 => (0..5u32).prop_map(Some)];
    let how = prop_oneof![4 => Just(How::Plain), 1 => Just(How::Request), 2 => Just(How::Atc), 1 => Just(How::Forged)];
    (smmu(), 0..2usize, ssid, address, how).prop_map(|(smmu, device, ssid, address, how)| Step::Device {
        smmu,
        device,
        ssid,
        address,
        how,
    })
}

/// Words of what the owner asks for: mostly what is legal.
fn nested_words() -> impl Strategy<Value = (u64, u64, [u64; 2])> {
    let bits = prop_oneof![
        6 => Just([1u64 | 0b101 << 1, SHCFG]),
        2 => Just([1 | 0b101 << 1, SHCFG | EATS]),
        2 => Just([1 | 0b100 << 1, SHCFG]),
        1 => Just([1, 0]),
        1 => any::<[u64; 2]>(),
    ];
    let cd_max = prop_oneof![4 => Just(0u64), 3 => Just(2), 1 => 0..32u64];
    let format = prop_oneof![4 => Just(0u64), 1 => 0..4u64];
    (cd_max, format, bits, 0..4u64, any::<u8>()).prop_map(
        |(cd_max, format, [word0, word1], dss, attributes)| {
            // S1CSH = 0b01 is reserved.
            let attributes = u64::from(attributes & 0x3c);
            (cd_max, format, [word0, if word0 & 1 << 1 != 0 { word1 | dss | attributes } else { word1 }])
        },
    )
}

fn nested(vsmmu: impl Strategy<Value = Pick>) -> impl Strategy<Value = Step> {
    (vsmmu, nested_words()).prop_map(|(vsmmu, (cd_max, format, bits))| Step::Nested {
        vsmmu,
        cd_max,
        format,
        bits,
    })
}

/// Any one step.
fn step() -> impl Strategy<Value = Step> {
    use Function::{MemDonate, MemReclaim, MemShare, MemUnshare, PoolTopUp};
    let function = prop_oneof![
        4 => Just(MemDonate), 4 => Just(MemReclaim), 2 => Just(MemShare), 2 => Just(MemUnshare), 1 => Just(PoolTopUp)
    ];
    let flags = prop_oneof![4 => Just(0u64), 4 => Just(1), 2 => Just(3), 1 => 0..8u64];
    let options = prop_oneof![4 => Just(0u64), 2 => Just(domain_options::BLOCKS), 1 => Just(2)];
    prop_oneof![
        8 => (function, place(), units(), 0..4u64)
            .prop_map(|(function, place, units, guest)| Step::Range { function, place, units, guest }),
        6 => (smmu(), 0..2usize, target(), flags)
            .prop_map(|(smmu, device, domain, flags)| Step::Attach { smmu, device, domain, flags }),
        3 => (smmu(), 0..2usize).prop_map(|(smmu, device)| Step::Detach { smmu, device }),
        1 => Just(Step::Create),
        1 => (0..4u64).prop_map(|guest| Step::Destroy { guest }),
        1 => (1..4u64, 1..30usize).prop_map(|(guest, steps)| Step::TearDown { guest, steps }),
        1 => (0..3u32).prop_map(|order| Step::GiveBack { order }),
        2 => (0..4u64, options).prop_map(|(guest, options)| Step::Domain { guest, options }),
        1 => target().prop_map(|domain| Step::DestroyDomain { domain }),
        3 => (pick(), 0..24u64, place(), units())
            .prop_map(|(domain, slot, place, units)| Step::Map { domain, slot, place, units }),
        3 => (pick(), 0..24u64, units()).prop_map(|(domain, slot, units)| Step::Unmap { domain, slot, units }),
        2 => (smmu(), target()).prop_map(|(smmu, parent)| Step::Vsmmu { smmu, parent }),
        1 => pick().prop_map(|vsmmu| Step::DestroyVsmmu { vsmmu }),
        2 => (pick(), 0..3u64, 0..2usize).prop_map(|(vsmmu, id, device)| Step::AddStream { vsmmu, id, device }),
        1 => (pick(), 0..3u64).prop_map(|(vsmmu, id)| Step::RemoveStream { vsmmu, id }),
        3 => nested(pick()),
        4 => (pick(), write()).prop_map(|(vsmmu, what)| Step::Write { vsmmu, what }),
        4 => (pick(), prop::collection::vec(send(), 1..6))
            .prop_map(|(vsmmu, commands)| Step::Invalidate { vsmmu, commands }),
        14 => device(),
        3 => (place(), any::<bool>()).prop_map(|(place, write)| Step::Cpu { place, write }),
        1 => Just(Step::Events),
    ]
}

/// A guest with a domain whose addresses are not those of memory, and a stream of its own in it.
fn domain_row() -> impl Strategy<Value = Vec<Step>> {
    (1..3u64, smmu(), 0..2usize, any::<bool>()).prop_map(|(guest, smmu, device, blocks)| {
        let options = if blocks { domain_options::BLOCKS } else { 0 };
        let domain = Target::Made(0);
        let mut row = vec![Step::Domain { guest, options }];
        row.extend(donate(guest));
        row.extend([
            Step::Map { domain: 0, slot: 0, place: 16 * guest, units: 8 },
            Step::Detach { smmu, device },
            Step::Attach { smmu, device, domain, flags: 0 },
            Step::Device { smmu, device, ssid: None, address: Address::Slot(3), how: How::Plain },
        ]);
        row
    })
}

/// The memory of a guest's arena.
fn donate(guest: u64) -> impl Iterator<Item = Step> {
    // One by one: some of it may be the guest's already.
    (0..4).map(move |n| Step::Range {
        function: Function::MemDonate,
        place: 16 * guest + 2 * n,
        units: 2,
        guest,
    })
}

/// Takes one unit of an arena from its owner: of the tables, or of data.
fn take(parent: Option<(u64, bool)>, unit: u64) -> Step {
    match parent {
        Some((_, true)) => Step::Unmap { domain: 0, slot: unit, units: 1 },
        Some((guest, false)) => {
            Step::Range { function: Function::MemReclaim, place: 16 * guest + unit, units: 1, guest }
        }
        None => Step::Range { function: Function::MemDonate, place: unit, units: 1, guest: 1 },
    }
}

/// A stream of the host's, or of a guest's memory domain, with full ATS where it is trusted: a page that is in the ATC goes, with or without a
/// detach before.
fn ats_row() -> impl Strategy<Value = Vec<Step>> {
    (smmu(), prop_oneof![2 => Just(0u64), 1 => 1..3u64], 0..8u64, any::<bool>()).prop_map(
        |(smmu, guest, unit, detach)| {
            let device = 0;
            let detached = Step::Detach { smmu, device };
            let attach = Step::Attach { smmu, device, domain: Target::Memory(guest), flags: 2 };
            let address = Address::Place(16 * guest + unit);
            let access = Step::Device { smmu, device, ssid: None, address, how: How::Atc };
            let mut row: Vec<Step> = if guest == 0 { Vec::new() } else { donate(guest).collect() };
            row.extend([detached.clone(), attach.clone(), access.clone()]);
            row.extend(detach.then_some(detached));
            row.push(take((guest != 0).then_some((guest, false)), unit));
            row.extend(detach.then_some(attach));
            row.push(access);
            row
        },
    )
}

/// A vSMMU with one or two streams in nested domains, and warm caches; then a page of its owner's goes.
fn nested_row() -> impl Strategy<Value = Vec<Step>> {
    let parent = prop_oneof![
        2 => Just(None), 1 => (1..3u64).prop_map(|guest| Some((guest, false))), 2 => (1..3u64).prop_map(|guest| Some((guest, true)))
    ];
    let taken = prop_oneof![2 => Just(5u64), 3 => 0..8u64];
    (parent, smmu(), any::<[bool; 3]>(), asid(), nested(Just(0)), nested(Just(0)), 0..4u32, taken).prop_map(
        |(parent, smmu, [both, two_levels, replace], asid, first, second, ssid, taken)| {
            let owner = parent;
            let mut row: Vec<Step> = (0..2).map(|device| Step::Detach { smmu, device }).collect();
            let parent = match parent {
                None => Target::Memory(0),
                Some((guest, made)) => {
                    row.extend(donate(guest));
                    if made {
                        row.push(Step::Domain { guest, options: 0 });
                        row.push(Step::Map { domain: 0, slot: 0, place: 16 * guest, units: 8 });
                        Target::Made(0)
                    } else {
                        Target::Memory(guest)
                    }
                }
            };
            row.push(Step::Vsmmu { smmu, parent });
            row.extend((0..2).map(|n| Step::AddStream { vsmmu: 0, id: n as u64, device: n }));
            row.push(Step::Write { vsmmu: 0, what: Write::All(asid) });
            row.push(Step::Write { vsmmu: 0, what: Write::Cd(u64::from(ssid), asid) });
            if two_levels {
                row.push(Step::Write { vsmmu: 0, what: Write::TwoLevels(asid) });
            }
            row.push(first);
            let domain = Target::Nested(0);
            let devices = if both { 2 } else { 1 };
            row.extend((0..devices).map(|device| Step::Attach { smmu, device, domain, flags: 0 }));
            if replace {
                row.push(second);
                row.push(Step::Attach { smmu, device: 0, domain, flags: 1 });
            }
            for device in 0..devices {
                for (ssid, how) in
                    [(None, How::Plain), (Some(ssid), How::Plain), (None, How::Atc), (None, How::Forged)]
                {
                    row.push(Step::Device { smmu, device, ssid, address: Address::Va(1), how });
                }
            }
            row.push(take(owner, taken));
            row
        },
    )
}

/// An emulated SMMU whose driver has both devices, with warm caches; then a unit of its tables, queues or data goes, and comes back. The calls want the
/// streams, too.
fn driver_row() -> impl Strategy<Value = Vec<Step>> {
    let acts = prop::collection::vec(any_act(nested_words()), 0..4);
    (
        smmu(),
        any_reset(),
        asid(),
        entry(nested_words()),
        entry(nested_words()),
        0..12usize,
        acts,
        any::<[bool; 2]>(),
    )
        .prop_map(|(smmu, reset, asid, first, second, unit, acts, [attached, again])| {
            let driver = |what: Act| Step::Driver { smmu, what };
            let mut row = vec![driver(Act::Prepare(asid)), driver(reset)];
            row.extend((0..2).map(|device| Step::Detach { smmu, device }));
            row.extend([first, second].map(driver));
            for device in 0..2 {
                for (address, how) in [
                    (Address::Va(1), How::Plain),
                    (Address::Place(5), How::Plain),
                    (Address::Va(2), How::Atc),
                ] {
                    row.push(Step::Device { smmu, device, ssid: None, address, how });
                }
            }
            if attached {
                row.push(Step::Attach { smmu, device: 0, domain: Target::Memory(1), flags: 0 });
            }
            let place = taken(smmu, unit);
            row.push(Step::Range { function: Function::MemDonate, place, units: 1, guest: 1 });
            row.extend(acts.into_iter().map(driver));
            if again {
                row.push(Step::Range { function: Function::MemReclaim, place, units: 1, guest: 1 });
                row.push(driver(Act::Skip));
            }
            row
        })
}

/// Steps of every kind, between what drivers do.
pub fn driver_steps(count: Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    let act = (smmu(), any_act(nested_words())).prop_map(|(smmu, what)| vec![Step::Driver { smmu, what }]);
    let row = prop_oneof![
        6 => step().prop_map(|step| vec![step]), 6 => act, 2 => driver_row(), 1 => domain_row(), 1 => nested_row()
    ];
    (driver_row(), prop::collection::vec(row, count))
        .prop_map(|(first, rows)| first.into_iter().chain(rows.concat()).collect())
}

/// Steps of every kind.
pub fn steps(count: Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    let row = prop_oneof![
        20 => step().prop_map(|step| vec![step]), 1 => domain_row(), 1 => nested_row(), 1 => ats_row()
    ];
    prop::collection::vec(row, count).prop_map(|rows| rows.concat())
}

/// Steps of every kind, after and between rows that make nested streams.
pub fn nested_steps(count: Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    let row = prop_oneof![
        8 => step().prop_map(|step| vec![step]), 1 => domain_row(), 3 => nested_row(), 1 => ats_row()
    ];
    (nested_row(), prop::collection::vec(row, count))
        .prop_map(|(first, rows)| first.into_iter().chain(rows.concat()).collect())
}
