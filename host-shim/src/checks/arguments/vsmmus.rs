//! Bad arguments of the calls about vSMMUs: handles, StreamIDs, words of stream table entries, commands.

use super::Bad;
use super::domains::not_handles;
use crate::call::Calls;
use crate::checks::objects::{Member, Nested, Vsmmu};
use crate::checks::support::{HOST, block, cpu_store, drain, good, stream, unit};
use crate::checks::{Outcome, Stop};
use crate::host::{Device, Host};
use crate::{fail, text};
use abi::{DomainHandle, Function, MAX_INVALIDATIONS, Reason, Statistic, Status, attach};
use smmuv3::address::PhysAddr;
use smmuv3::command::{COMMAND_BYTES, Command, LeafHints, TlbiRange};
use smmuv3::features::Features;
use smmuv3::ste::Stage1Claim;

/// What SMMU 0 can do for the host; the check does not apply if it cannot nest.
fn nesting<H: Host>(host: &H) -> Result<Features, Stop> {
    let features = Features::probe(&good("SMMU_FEATURES", host.smmu_features(0))?);
    if features.stage1 {
        Ok(features)
    } else {
        Err(Stop::NotApplicable(text!("SMMU 0 does not translate by both stages")))
    }
}

pub(super) fn vsmmus<H: Host>(host: &H) -> Outcome {
    use Function::{
        DomainCreateNested, StreamAttach, VsmmuAddStream, VsmmuCreate, VsmmuDestroy, VsmmuQueryStream,
        VsmmuRemoveStream,
    };
    let features = nesting(host)?;
    let bits = good("SMMU_DESCRIBE", host.describe_smmu(0))?.stream_bits;
    let [mine, guests] = [Device::Immediate, Device::Delayed].map(|device| stream(host, 0, device));
    let (mine, guests) = (mine?, guests?);
    let guest = good("GUEST_CREATE", host.create_guest())?;
    good("STREAM_ATTACH", host.attach(0, guests, DomainHandle::Guest(guest)))?;
    let vsmmu = Vsmmu::create(host, 0, HOST)?;
    let second = Vsmmu::create(host, 0, HOST)?;
    let of_guest = Vsmmu::create(host, 0, DomainHandle::Guest(guest))?;
    let stale = {
        let ended = Vsmmu::create(host, 0, HOST)?;
        ended.handle.to_register()
    };
    let member = Member::add(host, vsmmu.handle, 5, mine)?;
    let bypass = Stage1Claim::bypass(&features).0;
    let nested = Nested::create(host, vsmmu.handle, bypass)?;
    let of_second = Nested::create(host, second.handle, bypass)?;
    good("STREAM_ATTACH", host.attach(0, mine, nested.handle))?;
    drain(host)?;
    let v = vsmmu.handle.to_register();
    let (other, foreign) = (second.handle.to_register(), of_guest.handle.to_register());
    let (m, d) = (u64::from(mine), nested.handle.to_register());

    let mut bad = Bad::new(host)?;
    for smmu in [host.smmus() as u64, 64, 256, 1 << 32, u64::MAX] {
        for function in [VsmmuCreate, Function::SmmuTags, Function::SmmuFeatures] {
            bad.call(function, [smmu, 0, 0, 0], Status::UnknownSmmu)?;
        }
    }
    for handle in not_handles(v).chain([stale, 0, d]) {
        bad.call(VsmmuDestroy, [handle, 0, 0, 0], Status::UnknownVsmmu)?;
        bad.call(VsmmuAddStream, [handle, 9, m, 0], Status::UnknownVsmmu)?;
        bad.call(VsmmuRemoveStream, [handle, 5, 0, 0], Status::UnknownVsmmu)?;
        bad.call(VsmmuQueryStream, [handle, 5, 0, 0], Status::UnknownVsmmu)?;
        bad.call(Function::VsmmuInvalidate, [handle, block(host, 1), 1, 0], Status::UnknownVsmmu)?;
        bad.call(DomainCreateNested, [handle, 0, 0, 0], Status::UnknownVsmmu)?;
    }
    for virtual_stream in [1 << 32, u64::MAX] {
        bad.call(VsmmuAddStream, [other, virtual_stream, m, 0], Status::Invalid)?;
        bad.call(VsmmuRemoveStream, [v, virtual_stream, 0, 0], Status::UnknownStream)?;
        bad.call(VsmmuQueryStream, [v, virtual_stream, 0, 0], Status::UnknownStream)?;
    }
    for virtual_stream in [0, 4, 6, m, 5 | 1 << 31] {
        bad.call(VsmmuRemoveStream, [v, virtual_stream, 0, 0], Status::UnknownStream)?;
        bad.call(VsmmuQueryStream, [v, virtual_stream, 0, 0], Status::UnknownStream)?;
    }
    for stream in [1 << bits, m | 1 << 32, u64::MAX] {
        bad.call(VsmmuAddStream, [v, 9, stream, 0], Status::UnknownStream)?;
    }
    // Somebody else's stream, either way.
    bad.call(VsmmuAddStream, [v, 9, u64::from(guests), 0], Status::UnknownStream)?;
    bad.call(VsmmuAddStream, [foreign, 9, m, 0], Status::UnknownStream)?;
    bad.call(VsmmuAddStream, [v, 9, m, 0], Status::Busy)?;
    bad.call(VsmmuAddStream, [other, 9, m, 0], Status::Busy)?;
    bad.call(VsmmuAddStream, [v, 5, (1 << bits) - 1, 0], Status::Busy)?;
    bad.call(VsmmuRemoveStream, [v, 5, 0, 0], Status::Busy)?;
    bad.call(VsmmuDestroy, [v, 0, 0, 0], Status::Busy)?;
    bad.call(VsmmuDestroy, [other, 0, 0, 0], Status::Busy)?;
    bad.call(Function::DomainDestroy, [d, 0, 0, 0], Status::Busy)?;
    bad.call(Function::GuestDestroy, [guest.to_register(), 0, 0, 0], Status::Busy)?;

    // A stream goes to nested domains of its own vSMMU only.
    let vsmmu_reason = Reason::Vsmmu as u64;
    let replaced = [0, m, of_second.handle.to_register(), attach::REPLACE];
    bad.detailed(StreamAttach, replaced, Status::Incompatible, vsmmu_reason)?;
    for smmu in 1..host.smmus() {
        let id = u64::from(stream(host, smmu, Device::Immediate)?);
        bad.detailed(StreamAttach, [smmu as u64, id, d, 0], Status::Incompatible, vsmmu_reason)?;
    }
    if let Some(third) = host.stream(0, Device::Disk) {
        bad.detailed(StreamAttach, [0, third.into(), d, 0], Status::Incompatible, vsmmu_reason)?;
        if !features.ats {
            let with_ats = [0, third.into(), 0, attach::ATS];
            bad.detailed(StreamAttach, with_ats, Status::Incompatible, Reason::Ats as u64)?;
        }
        bad.call(StreamAttach, [0, third.into(), 0, attach::REPLACE], Status::WrongState)?;
        for bit in 2..64_u32 {
            bad.call(StreamAttach, [0, third.into(), 0, 1 << bit], Status::Invalid)?;
        }
    }
    bad.call(StreamAttach, [0, m, d, 0], Status::Busy)?;
    let outcome = bad.done();

    for stream in [mine, guests] {
        good("STREAM_DETACH", host.detach(0, stream))?;
    }
    for nested in [nested, of_second] {
        nested.end()?;
    }
    member.end()?;
    for vsmmu in [vsmmu, second, of_guest] {
        vsmmu.end()?;
    }
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    drain(host)?;
    outcome
}

pub(super) fn entries<H: Host>(host: &H) -> Outcome {
    let features = nesting(host)?;
    let vsmmu = Vsmmu::create(host, 0, HOST)?;
    let v = vsmmu.handle.to_register();
    let mut bad = Bad::new(host)?;
    let mut illegal = |[word0, word1]: [u64; 2], word: u64| {
        bad.detailed(Function::DomainCreateNested, [v, word0, word1, 0], Status::Illegal, word)
    };
    // Bits that are EL2's, or reserved: all but V to S1ContextPtr and S1CDMax; S1DSS to S1CSH, S1STALLD, EATS and SHCFG.
    let owners: [u64; 2] = [0x00ff_ffff_ffff_ffff | 0b1_1111 << 59, 0xff | 1 << 27 | 0b11 << 28 | 0b11 << 44];
    let bypass = Stage1Claim::bypass(&features).0;
    let translate = Stage1Claim::linear(PhysAddr(block(host, 1)), 0, false).0;
    for base in [Stage1Claim::ABORT.0, bypass, translate] {
        for bit in 0..64_u32 {
            let [word0, word1] = base;
            if owners[0] & 1 << bit == 0 {
                illegal([word0 | 1 << bit, word1], 0)?;
            }
            if owners[1] & 1 << bit == 0 {
                illegal([word0, word1 | 1 << bit], 1)?;
            }
        }
    }
    let [word0, word1] = translate;
    // Config: reserved, stage 2, both stages.
    for config in [0b001, 0b010, 0b011, 0b110, 0b111] {
        illegal([word0 & !(0b111 << 1) | config << 1, word1], 0)?;
    }
    // S1Fmt 0b11 is reserved; S1ContextPtr above what stage 2 translates.
    illegal([word0 | 0b11 << 4, word1], 0)?;
    illegal([word0 | 1 << 55, word1], 0)?;
    if features.substream_bits < 31 {
        illegal([word0 | (u64::from(features.substream_bits) + 1) << 59, word1], 0)?;
    }
    // S1DSS 0b11 and S1CSH 0b01 are reserved; EATS other than 0b01 is not the owner's.
    illegal([word0, word1 | 0b11], 1)?;
    illegal([word0, word1 & !(0b11 << 6) | 0b01 << 6], 1)?;
    for eats in [0b10, 0b11].into_iter().chain((!features.ats).then_some(0b01)) {
        illegal([word0, word1 | eats << 28], 1)?;
    }
    let [bypass0, _] = bypass;
    for shcfg in [0b10, 0b11] {
        illegal([bypass0, shcfg << 44], 1)?;
    }
    let outcome = bad.done();
    vsmmu.end()?;
    outcome
}

/// A legal command, whose place does not matter.
const LEGAL: Command = Command::tlbi_nh_all(0);

pub(super) fn commands<H: Host>(host: &H) -> Outcome {
    let features = nesting(host)?;
    let unit = unit(host)?;
    let [page, donated] = [block(host, 1), block(host, 1) + unit];
    let vsmmu = Vsmmu::create(host, 0, HOST)?;
    let second = Vsmmu::create(host, 0, HOST)?;
    let member = Member::add(host, vsmmu.handle, 5, stream(host, 0, Device::Immediate)?)?;
    let other = Member::add(host, second.handle, 6, stream(host, 0, Device::Delayed)?)?;
    let guest = good("GUEST_CREATE", host.create_guest())?;
    good("MEM_DONATE", host.donate(donated, unit, guest))?;
    let v = vsmmu.handle.to_register();
    for index in 0..MAX_INVALIDATIONS + 1 {
        store(host, page, index, LEGAL)?;
    }
    let sent = good("STATISTICS", host.statistic(Statistic::Commands))?;
    let mut bad = Bad::new(host)?;
    let mut call = |start: u64, count: u64, expected: Status| {
        bad.call(Function::VsmmuInvalidate, [v, start, count, 0], expected)
    };
    for count in [0, MAX_INVALIDATIONS + 1, 1 << 32, 1 << 60, u64::MAX] {
        call(page, count, Status::Invalid)?;
    }
    for start in [page + 1, page + 8, page + 15, 0xff8, u64::MAX] {
        call(start, 1, Status::Unaligned)?;
    }
    // In two pages.
    call(page + 4096 - COMMAND_BYTES, 2, Status::Unaligned)?;
    call(page + 4096 - 63 * COMMAND_BYTES, 64, Status::Unaligned)?;
    for start in [host.not_ram(), 1 << 52, 1 << 63] {
        call(start, 1, Status::NotRam)?;
    }
    call(donated, 1, Status::WrongState)?;
    let reserved = (0..).map_while(|index| host.forbidden(index));
    for target in reserved.filter(|target| target.name == "hypervisor memory").take(2) {
        call(target.address & !0xfff, 1, Status::WrongState)?;
    }

    let range =
        |num, scale, ttl, tg| TlbiRange { address: 0x1000, num, scale, hints: LeafHints::new(tg, ttl, true) };
    let va = |range| Command::tlbi_nh_va(0, 1, range);
    let all = [
        Command::cfgi_ste(5, true),
        Command::cfgi_all(),
        Command::tlbi_el2_all(),
        Command::tlbi_el2_asid(1),
        Command::tlbi_s12_vmall(0),
        Command::tlbi_s2_ipa(0, range(0, 0, 3, 1)),
        // PREFETCH_CONFIG, PRI_RESP, RESUME, STALL_TERM, a secure TLBI, DPTI_ALL; reserved opcodes.
        Command([0x01, 0]),
        Command([0x41, 0]),
        Command([0x44, 0]),
        Command([0x45, 0]),
        Command([0x50, 0]),
        Command([0x70, 0]),
        Command([0x00, 0]),
        Command([0x80, 0]),
        Command([0xff, 0]),
        // SSec; CS of CMD_SYNC: an interrupt, an event, reserved.
        Command([LEGAL.0[0] | 1 << 10, 0]),
        Command([0x46 | 0b01 << 12, 0]),
        Command([0x46 | 0b10 << 12, 0]),
        Command([0x46 | 0b11 << 12, 0]),
        // A stream of another vSMMU, by its StreamID there and on the SMMU; none.
        Command::cfgi_cd(6, 0, true),
        Command::cfgi_cd_all(6),
        Command::cfgi_cd_all(stream(host, 0, Device::Delayed)?),
        Command::cfgi_cd_all(stream(host, 0, Device::Immediate)?),
        Command::cfgi_cd_all(0xffff_ffff),
        Command::cfgi_cd(5, 1 << features.substream_bits.min(19), true),
        // Bits that the commands do not have.
        Command([LEGAL.0[0], 1]),
        Command([LEGAL.0[0] | 1 << 8, 0]),
        Command([LEGAL.0[0] | 1 << 63, 0]),
        Command([0x46, 1 << 63]),
        // Ranges: reserved combinations, and all of them where there are none.
        va(range(0, 0, 0, 1)),
        va(range(1, 0, 0, 0)),
        va(range(0, 0, 1, 2)),
    ];
    let ranges = (!features.range_invalidation).then_some(va(range(3, 0, 3, 1)));
    let atc = (!features.ats).then_some(Command::atc_inv(5, 0, 52));
    let asid = (features.asid_bits < 16).then_some(Command::tlbi_nh_asid(0, 1 << 8));
    let mut count = 0;
    for (command, index) in
        all.into_iter().chain(ranges).chain(atc).chain(asid).zip([0, 1, 31, 63].into_iter().cycle())
    {
        store(host, page, index, command)?;
        let arguments = [v, page, MAX_INVALIDATIONS, 0];
        bad.detailed(Function::VsmmuInvalidate, arguments, Status::Illegal, index)?;
        store(host, page, index, LEGAL)?;
        count += 1;
    }
    let now = good("STATISTICS", host.statistic(Statistic::Commands))?;
    if now != sent {
        fail!("{} commands were sent by calls that were refused", now - sent);
    }
    let outcome = bad.done();
    // The control: what is legal is sent, each kind, but for the two about a stream that nobody has attached.
    let legal = [
        LEGAL,
        Command::tlbi_nsnh_all(),
        Command::tlbi_nh_asid(0xffff, 1),
        va(TlbiRange { address: 0x1000, num: 0, scale: 0, hints: LeafHints::new(0, 0, true) }),
        Command::cfgi_cd(5, 0, false),
        Command::cfgi_cd_all(5),
        Command::sync(),
    ];
    for (index, command) in (0..).zip(legal) {
        store(host, page, index, command)?;
    }
    let invalidated = host.call(Function::VsmmuInvalidate, [v, page, MAX_INVALIDATIONS, 0]);
    good("VSMMU_INVALIDATE", invalidated)?;
    let now = good("STATISTICS", host.statistic(Statistic::Commands))?;
    if now < sent + MAX_INVALIDATIONS - 2 {
        fail!("{} commands were sent by a call with {MAX_INVALIDATIONS}", now - sent);
    }
    good("MEM_RECLAIM", host.reclaim(donated, unit, guest))?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    for member in [member, other] {
        member.end()?;
    }
    for vsmmu in [vsmmu, second] {
        vsmmu.end()?;
    }
    outcome.map(|seen| text!("{seen}; {count} illegal commands by their index, none sent; legal ones are"))
}

/// Writes the `index`-th command.
fn store<H: Host>(host: &H, page: u64, index: u64, command: Command) -> Result<(), Stop> {
    let start = page + index * COMMAND_BYTES;
    let [word0, word1] = command.0;
    cpu_store(host, start, word0)?;
    cpu_store(host, start + 8, word1)
}
