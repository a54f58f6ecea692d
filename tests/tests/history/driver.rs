//! What the host's own driver of an SMMU does, right and wrong: registers, queues and tables, wherever these lie at the moment.

use crate::step::Pick;
use abi::Function;
use host_shim::host::Host;
use proptest::prelude::*;
use tests::bench::{Bench, POOL, SCRATCH};
use tests::driver::{CMDQEN, EVENTQEN, Format, Layout, SMMUEN, reg, sync_to};
use tests::model::{SMMU_BASE, SMMU_BYTES};
use tests::owner::Stage1;

/// How a driver sets its SMMU up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Which of the shapes of stream tables.
    shape: usize,
    span_log2: u32,
    commands_log2: u32,
    events_log2: u32,
    /// The table is EL2's memory.
    foreign: bool,
}

/// A command.
#[derive(Clone, Copy, Debug)]
pub enum Send {
    /// CMD_CFGI_STE of a device.
    Ste(usize),
    /// CMD_CFGI_STE_RANGE around a device, CMD_CFGI_ALL with 31.
    Range(usize, u64),
    /// CMD_CFGI_CD of an SSID, or CMD_CFGI_CD_ALL.
    Cd(usize, Option<u64>),
    /// CMD_TLBI_NH_ASID.
    Asid(u64),
    /// CMD_TLBI_NH_VA of an entry of the last table.
    Va(u64, u64),
    /// CMD_TLBI_NSNH_ALL.
    All,
    /// CMD_ATC_INV of everything.
    Atc(usize),
    /// CMD_SYNC, whose MSI goes to its own slot, or to a unit of scratch memory.
    Sync(Option<u64>),
    /// Any two words.
    Anything([u64; 2]),
}

/// One thing that a driver does.
#[derive(Clone, Debug)]
pub enum Act {
    /// The host takes back what guests have of its tables and the driver's, and writes its stage 1 with this ASID.
    Prepare(u64),
    /// arm_smmu_device_reset.
    Reset(Setup),
    /// A store to CR0.
    Control(u32),
    /// Words 0 and 1 of a device's STE, and whether CFGI_STE and CMD_SYNC follow.
    Entry { device: usize, cd_max: u64, format: u64, bits: [u64; 2], tell: bool },
    /// Commands, and CMDQ_PROD.
    Send(Vec<Send>),
    /// A command that stopped the queue becomes a CMD_SYNC, and the errors are acknowledged.
    Skip,
    /// The event queue is read to its end.
    Events,
    /// A store of any size to any register.
    Register { offset: u64, bytes: u8, value: u64 },
    /// A store to a word of what it keeps in its memory.
    Memory { unit: u64, word: u64, value: u64 },
}

fn load(bench: &Bench, smmu: usize, offset: u64) -> u32 {
    bench.cpu_read_u32(SMMU_BASE + SMMU_BYTES * smmu as u64 + offset).unwrap_or_default()
}

fn store(bench: &Bench, smmu: usize, offset: u64, value: u32) {
    let _ = bench.cpu_write_u32(SMMU_BASE + SMMU_BYTES * smmu as u64 + offset, value);
}

fn store_u64(bench: &Bench, smmu: usize, offset: u64, value: u64) {
    let _ = bench.cpu_write_u64(SMMU_BASE + SMMU_BYTES * smmu as u64 + offset, value);
}

/// Where a driver keeps what, between the arenas of host and guests: a unit each for table, second level, commands and events.
fn layout(bench: &Bench, smmu: usize, setup: &Setup) -> Layout {
    let unit = bench.unit();
    let base = SCRATCH + (8 + 16 * (smmu as u64 % 4)) * unit;
    let (table, format) = match setup.shape {
        0 => (base, Format::TwoLevel { log2: 16, split: 8 }),
        1 => (base, Format::TwoLevel { log2: 16, split: 10 }),
        2 => (base, Format::TwoLevel { log2: 14, split: 6 }),
        // The entries lie in the arenas of others.
        3 => (SCRATCH, Format::Linear { log2: 14 }),
        // There are no entries for the devices.
        _ => (base, Format::Linear { log2: 4 }),
    };
    Layout {
        table: if setup.foreign { POOL } else { table },
        format,
        level2: base + unit,
        span_log2: setup.span_log2,
        commands: base + 2 * unit,
        commands_log2: setup.commands_log2,
        events: base + 3 * unit,
        events_log2: setup.events_log2,
    }
}

/// The layout that the registers say, as far as an STE has to be found.
fn layout_now(bench: &Bench, smmu: usize) -> Layout {
    let unit = bench.unit();
    let cfg = load(bench, smmu, reg::STRTAB_BASE_CFG);
    let table = u64::from(load(bench, smmu, reg::STRTAB_BASE))
        | u64::from(load(bench, smmu, reg::STRTAB_BASE + 4) & 0xf_ffff) << 32;
    let format = match cfg >> 16 & 3 {
        1 => Format::TwoLevel { log2: cfg & 63, split: (cfg >> 6 & 31).clamp(6, 10) },
        _ => Format::Linear { log2: cfg & 63 },
    };
    let level2 = SCRATCH + (9 + 16 * (smmu as u64 % 4)) * unit;
    let none = Setup { shape: 0, span_log2: 4, commands_log2: 0, events_log2: 0, foreign: false };
    Layout { table, format, level2, ..layout(bench, smmu, &none) }
}

/// Does what the driver of an SMMU does.
pub fn act(bench: &Bench, smmu: usize, what: &Act) {
    match *what {
        Act::Prepare(asid) => {
            let unit = bench.unit();
            for place in (0..8).chain((0..4).map(|unit| taken(smmu, unit))) {
                for guest in 1..4 {
                    let _ = bench.call(Function::MemReclaim, [SCRATCH + place * unit, unit, guest, 0]);
                }
            }
            let _ = Stage1::new(bench, SCRATCH).write(bench, 0, asid);
        }
        Act::Reset(ref setup) => reset(bench, smmu, setup),
        Act::Control(value) => store(bench, smmu, reg::CR0, value),
        Act::Entry { device, cd_max, format, bits: [word0, word1], tell } => {
            let stage1 = Stage1::new(bench, SCRATCH);
            let word0 = word0 | if word0 & 2 != 0 { stage1.word0(cd_max, format) & !0xf } else { 0 };
            let stream = bench.devices[smmu][device].stream;
            let layout = layout_now(bench, smmu);
            if let Some((at, descriptor)) = layout.descriptor(stream) {
                let _ = bench.cpu_write_u64(at, descriptor);
            }
            for (offset, word) in [(8, word1), (0, word0)] {
                let _ = bench.cpu_write_u64(layout.entry(stream) + offset, word);
            }
            if tell {
                send(bench, smmu, &[Send::Ste(device), Send::Sync(None)]);
            }
        }
        Act::Send(ref commands) => send(bench, smmu, commands),
        Act::Skip => {
            let cons = load(bench, smmu, reg::CMDQ_CONS);
            let (base, mask) = queue(bench, smmu);
            let slot = base + u64::from(cons & mask) * 16;
            let _ = bench.cpu_write_u64(slot, 0x46);
            let _ = bench.cpu_write_u64(slot + 8, 0);
            store(bench, smmu, reg::GERRORN, load(bench, smmu, reg::GERROR));
        }
        Act::Events => {
            let prod = load(bench, smmu, reg::EVENTQ_PROD);
            store(bench, smmu, reg::EVENTQ_CONS, prod);
        }
        Act::Register { offset, bytes, value } => {
            let offset = offset & !(u64::from(bytes) - 1);
            let _ = bench.access(SMMU_BASE + SMMU_BYTES * smmu as u64 + offset, bytes, Some(value));
        }
        Act::Memory { unit, word, value } => {
            let base = SCRATCH + (8 + 16 * (smmu as u64 % 4) + unit) * bench.unit();
            let _ = bench.cpu_write_u64(base + word * 8, value);
        }
    }
}

/// Base of the command queue, and the mask of an index.
fn queue(bench: &Bench, smmu: usize) -> (u64, u32) {
    let low = load(bench, smmu, reg::CMDQ_BASE);
    let base = u64::from(low & !0x1f) | u64::from(load(bench, smmu, reg::CMDQ_BASE + 4) & 0xf_ffff) << 32;
    let log2 = (low & 0x1f).min(19);
    (base & !((16 << log2) - 1), (1 << log2) - 1)
}

fn send(bench: &Bench, smmu: usize, commands: &[Send]) {
    let mut prod = load(bench, smmu, reg::CMDQ_PROD);
    let (base, mask) = queue(bench, smmu);
    for command in commands {
        let slot = base + u64::from(prod & mask) * 16;
        let [low, high] = words(bench, smmu, slot, *command);
        let _ = bench.cpu_write_u64(slot, low);
        let _ = bench.cpu_write_u64(slot + 8, high);
        prod = prod.wrapping_add(1) & (mask << 1 | 1);
    }
    store(bench, smmu, reg::CMDQ_PROD, prod);
}

/// A command as the driver writes it (IHI 0070, 4.3 to 4.7).
fn words(bench: &Bench, smmu: usize, slot: u64, command: Send) -> [u64; 2] {
    let stage1 = Stage1::new(bench, SCRATCH);
    // The third device is one of another SMMU.
    let stream = |device: usize| {
        let behind = if device < 2 { smmu } else { (smmu + 1) % bench.devices.len() };
        u64::from(bench.devices[behind][device % 2].stream) << 32
    };
    match command {
        Send::Ste(device) => [0x03 | stream(device), 1],
        Send::Range(device, range) => [0x04 | stream(device), range],
        Send::Cd(device, Some(ssid)) => [0x05 | ssid << 12 | stream(device), 1],
        Send::Cd(device, None) => [0x06 | stream(device), 0],
        Send::Asid(asid) => [0x11 | asid << 48 | 0x77 << 32, 0],
        Send::Va(asid, n) => [0x12 | asid << 48, stage1.va(n) | 1],
        Send::All => [0x30, 0],
        Send::Atc(device) => [0x40 | stream(device), 52],
        Send::Sync(None) => sync_to(slot, 0),
        // The last words of a unit are nobody's table, STE or command.
        Send::Sync(Some(place)) => sync_to(SCRATCH + (place + 1) * bench.unit() - 8, 0x5a5a),
        Send::Anything(words) => words,
    }
}

/// What Linux does, but for the checks.
fn reset(bench: &Bench, smmu: usize, setup: &Setup) {
    let layout = layout(bench, smmu, setup);
    store(bench, smmu, reg::CR0, 0);
    for (offset, value) in [(reg::CR1, 0xd75), (reg::CR2, 0b111)] {
        store(bench, smmu, offset, value);
    }
    if let Format::TwoLevel { .. } = layout.format {
        // A driver that forgets this has descriptors that lead anywhere.
        (0..256).for_each(|word| {
            let _ = bench.cpu_write_u64(layout.table + word * 8, 0);
        });
    }
    store_u64(bench, smmu, reg::STRTAB_BASE, 1 << 62 | layout.table);
    store(bench, smmu, reg::STRTAB_BASE_CFG, layout.format.word());
    store_u64(bench, smmu, reg::CMDQ_BASE, layout.commands | u64::from(layout.commands_log2));
    for register in [reg::CMDQ_PROD, reg::CMDQ_CONS] {
        store(bench, smmu, register, 0);
    }
    store(bench, smmu, reg::CR0, CMDQEN);
    store(bench, smmu, reg::GERRORN, load(bench, smmu, reg::GERROR));
    send(bench, smmu, &[Send::Range(0, 31)]);
    send(bench, smmu, &[Send::All]);
    store_u64(bench, smmu, reg::EVENTQ_BASE, layout.events | u64::from(layout.events_log2));
    for register in [reg::EVENTQ_PROD, reg::EVENTQ_CONS] {
        store(bench, smmu, register, 0);
    }
    store(bench, smmu, reg::CR0, CMDQEN | EVENTQEN);
    store(bench, smmu, reg::IRQ_CTRL, 0b101);
    store(bench, smmu, reg::CR0, CMDQEN | EVENTQEN | SMMUEN);
}

fn setup() -> impl Strategy<Value = Setup> {
    let shape = prop_oneof![5 => Just(0usize), 2 => Just(1), 2 => Just(2), 1 => Just(3), 1 => Just(4)];
    let span = prop_oneof![4 => Just(4u32), 1 => Just(0)];
    (shape, span, prop_oneof![4 => Just(6u32), 1 => 0..8u32], 0..7u32, prop::bool::weighted(0.05)).prop_map(
        |(shape, span_log2, commands_log2, events_log2, foreign)| {
            // An entry of level 2 is at its index, which is not small with ten bits.
            let span_log2 = if shape == 1 { 10 } else { span_log2 };
            Setup { shape, span_log2, commands_log2, events_log2, foreign }
        },
    )
}

fn command() -> impl Strategy<Value = Send> {
    let device = || 0..3usize;
    let asid = || prop_oneof![4 => Just(1u64), 4 => Just(2), 1 => Just(0x101)];
    prop_oneof![
        4 => device().prop_map(Send::Ste),
        1 => (device(), prop_oneof![Just(31u64), 0..12u64]).prop_map(|(device, range)| Send::Range(device, range)),
        2 => (device(), prop::option::of(0..4u64)).prop_map(|(device, ssid)| Send::Cd(device, ssid)),
        2 => asid().prop_map(Send::Asid),
        2 => (asid(), 0..4u64).prop_map(|(asid, n)| Send::Va(asid, n)),
        1 => Just(Send::All),
        2 => device().prop_map(Send::Atc),
        3 => Just(Send::Sync(None)),
        1 => (0..64u64).prop_map(|place| Send::Sync(Some(place))),
        1 => (0..0x50u64, any::<[u64; 2]>(), any::<bool>()).prop_map(|(opcode, [low, high], plain)| {
            // A SYNC with any address would write anywhere, and the test could not say what was read before.
            let opcode = if opcode == 0x46 { 0x47 } else { opcode };
            Send::Anything(if plain { [opcode, 0] } else { [low & !0xff | opcode, high] })
        }),
    ]
}

/// An entry of a device: mostly what is legal, as `words` says.
pub fn entry(words: impl Strategy<Value = (u64, u64, [u64; 2])>) -> impl Strategy<Value = Act> {
    (0..2usize, words, prop::bool::weighted(0.8))
        .prop_map(|(device, (cd_max, format, bits), tell)| Act::Entry { device, cd_max, format, bits, tell })
}

/// A reset.
pub fn any_reset() -> impl Strategy<Value = Act> {
    setup().prop_map(Act::Reset)
}

/// Anything that a driver does.
pub fn any_act(words: impl Strategy<Value = (u64, u64, [u64; 2])>) -> impl Strategy<Value = Act> {
    let register = prop_oneof![
        4 => prop::sample::select(vec![
            reg::CR0, reg::CR0, reg::CR0ACK, reg::CR2, reg::GBPA, reg::IRQ_CTRL, reg::GERROR, reg::GERRORN, reg::STRTAB_BASE,
            reg::STRTAB_BASE_CFG, reg::CMDQ_BASE, reg::CMDQ_PROD, reg::CMDQ_CONS, reg::EVENTQ_BASE, reg::EVENTQ_PROD,
            reg::EVENTQ_CONS,
        ]),
        1 => 0..SMMU_BYTES,
    ];
    let value = prop_oneof![
        4 => 0u64..0x20,
        2 => Just(0xdu64),
        2 => (0u64..40, 0..20u64).prop_map(|(page, log2)| (SCRATCH + (page << 12)) | log2),
        1 => (0u64..64, 0..64u64).prop_map(|(log2, split)| 1 << 16 | split << 6 | log2),
        1 => any::<u64>(),
    ];
    let bytes = prop::sample::select(vec![1u8, 2, 4, 4, 4, 4, 8, 8]);
    prop_oneof![
        3 => any_reset(),
        2 => prop_oneof![2 => Just(0u32), 2 => Just(CMDQEN | EVENTQEN | SMMUEN), 1 => 0..0x20u32].prop_map(Act::Control),
        5 => entry(words),
        5 => prop::collection::vec(command(), 1..8).prop_map(Act::Send),
        3 => Just(Act::Skip),
        1 => Just(Act::Events),
        3 => (register, bytes, value).prop_map(|(offset, bytes, value)| Act::Register { offset, bytes, value }),
        2 => (0..4u64, 0..512u64, prop_oneof![Just(0u64), Just(9), any::<u64>()])
            .prop_map(|(unit, word, value)| Act::Memory { unit, word, value }),
    ]
}

/// Which unit of a driver's memory, or of the host's tables for stage 1, goes to a guest: `place` of the scratch memory.
pub fn taken(smmu: usize, unit: Pick) -> u64 {
    if unit < 4 { 8 + 16 * (smmu as u64 % 4) + unit as u64 } else { unit as u64 - 4 }
}
