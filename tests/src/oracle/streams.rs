//! STEs: what memory and the configuration cache say of every stream against what it is attached to.

use super::standing::{By, Standing};
use super::tags::{Holder, Tags};
use super::{Configs, View};
use crate::model::smmu::ste::{Decoded, Eats, Meaning};
use crate::model::smmu::stream::Fetched;
use abi::{Function, Status};

/// Whether the owner of a nested domain asks for nothing to pass (5.2: V = 0, or Config = 0b0xx).
pub(super) fn aborts([word0, _]: [u64; 2]) -> bool {
    word0 & 1 == 0 || word0 & 1 << 3 == 0
}

/// Checks the STE of every stream that has a device, is attached or is let through by its driver, that no other translates, and notes by which tables domains are walked.
pub(super) fn check(view: &View, smmu: usize, tags: &Tags, configs: &mut Configs) -> Result<(), String> {
    let devices = view.bench.devices[smmu].iter().map(|device| device.stream);
    let others = view.record.streams.keys().filter(|(at, _)| *at == smmu).map(|(_, stream)| *stream);
    let driven = view.bench.driven(smmu);
    let mut streams: Vec<u32> = devices.chain(others).chain(driven.streams.keys().copied()).collect();
    streams.sort_unstable();
    streams.dedup();
    for stream in streams.iter().copied() {
        check_stream(view, smmu, stream, tags, configs)
            .map_err(|text| format!("stream {stream:#x}: {text}"))?;
    }
    for stream in view.bench.mapped_streams(smmu).filter(|stream| !streams.contains(stream)) {
        let decoded = view.bench.machine().decoded_in_memory(smmu, stream);
        check_parked(view, tags, decoded).map_err(|text| format!("stream {stream:#x}: {text}"))?;
    }
    for (stream, entry) in &view.bench.machine().smmus[smmu].configuration.stes {
        if entry.doomed {
            return Err(format!("a CFGI for {stream:#x} has had no SYNC"));
        }
    }
    Ok(())
}

fn check_stream(
    view: &View,
    smmu: usize,
    stream: u32,
    tags: &Tags,
    configs: &mut Configs,
) -> Result<(), String> {
    let said = view.bench.call(Function::StreamQuery, [smmu as u64, u64::from(stream), 0, 0]);
    let standing = view.standing(smmu, stream);
    let (memory, cached) = entries(view, smmu, stream);
    if let Some(cached) = cached
        && cached != memory
    {
        return Err(format!("the STE is {memory:x?}, and {cached:x?} is cached"));
    }
    let decoded = view.bench.machine().decoded_in_memory(smmu, stream);
    match (standing, said) {
        (None, Ok([0, 0, 0, 0])) => check_parked(view, tags, decoded),
        // 5.1: the table does not cover it.
        (None, Err(Status::UnknownStream)) if decoded.is_none() => Ok(()),
        (Some(standing), Ok([1, domain, vmid, 0])) if names(view, smmu, &standing, domain) => {
            let raw = memory.ste().ok_or("attached, and there is no STE")?;
            let decoded = decoded.ok_or("the STE of an attached stream is not valid")?;
            check_attached(view, smmu, stream, tags, &standing, (raw, decoded), configs)?;
            let tag = tags.of(|holder| standing.has(holder));
            if tag.map(u64::from) == Some(vmid) {
                Ok(())
            } else {
                Err(format!("VMID {vmid}, and not {tag:?}"))
            }
        }
        (standing, said) => Err(format!("should be {standing:x?}; STREAM_QUERY says {said:x?}")),
    }
}

/// Whether the domain that STREAM_QUERY names is the one that a stream stands in: of the host's driver DOMAIN_DESCRIBE knows the SMMU, and how many streams
/// it has.
fn names(view: &View, smmu: usize, standing: &Standing, domain: u64) -> bool {
    match standing.by {
        By::Call { domain: of, .. } => of == domain,
        By::Driver => {
            let streams = view.bench.driven(smmu).streams.len() as u64;
            let said = view.bench.call(Function::DomainDescribe, [domain, 0, 0, 0]);
            said == Ok([EMULATED, smmu as u64, streams, 0])
        }
    }
}

/// Kind of the domain of an emulated SMMU in DOMAIN_DESCRIBE.
const EMULATED: u64 = 2;

/// The STE in memory, and the one that is cached.
fn entries(view: &View, smmu: usize, stream: u32) -> (Fetched, Option<Fetched>) {
    let mut machine = view.bench.machine();
    match machine.smmu(smmu) {
        None => (Fetched::BadStream, None),
        Some((smmu, mut bus)) => {
            let cached = smmu.configuration.stes.get(&stream).map(|entry| entry.fetched);
            (smmu.ste_in_memory(&mut bus, stream), cached)
        }
    }
}

fn check_parked(view: &View, tags: &Tags, decoded: Option<Decoded>) -> Result<(), String> {
    let Some(decoded) = decoded else { return Ok(()) };
    let Meaning::Stage2 { vmid, config, .. } = decoded.meaning else {
        return match decoded.meaning {
            Meaning::Abort => Ok(()),
            other => Err(format!("unattached, and has {other:?}")),
        };
    };
    if tags.holder(vmid) != Some(Holder::Parked) || decoded.eats != Eats::Off {
        return Err(format!("unattached, and has VMID {vmid}, {:?}", decoded.eats));
    }
    let leaves = crate::model::stage2::all_leaves(&view.bench.machine().memory, &config);
    if leaves.is_empty() { Ok(()) } else { Err("unattached, and its table is not empty".into()) }
}

fn check_attached(
    view: &View,
    smmu: usize,
    stream: u32,
    tags: &Tags,
    standing: &Standing,
    (raw, decoded): ([u64; 8], Decoded),
    configs: &mut Configs,
) -> Result<(), String> {
    let Standing { stage2, nested, .. } = *standing;
    if nested.is_some_and(aborts) {
        return if decoded.meaning == Meaning::Abort { Ok(()) } else { Err("it does not abort".into()) };
    }
    let translates = nested.filter(|[word0, _]| word0 >> 1 & 1 == 1);
    let (vmid, config, record_faults) = match (decoded.meaning, translates) {
        (Meaning::Stage2 { vmid, config, record }, None) => (vmid, config, record),
        (Meaning::Nested { vmid, config, record, .. }, Some(_)) => (vmid, config, record),
        (other, _) => return Err(format!("the STE says {other:?}, the owner {nested:x?}")),
    };
    if !tags.holder(vmid).is_some_and(|holder| standing.has(holder)) {
        return Err(format!("VMID {vmid}, which is that of {:x?}", tags.holder(vmid)));
    }
    if !record_faults || !config.access_flag_fault_disabled {
        return Err(format!("S2R {record_faults}, S2AFFD {}", config.access_flag_fault_disabled));
    }
    check_fixed(&raw)?;
    check_stage1(view, smmu, &raw, translates)?;
    let wanted = wanted_eats(view, smmu, stream, standing, translates);
    let may_lack_ats = matches!(standing.by, By::Call { may_lack_ats: true, .. });
    if decoded.eats != wanted && !(may_lack_ats && decoded.eats == Eats::Off) {
        return Err(format!("ATS is {:?}, and should be {wanted:?}", decoded.eats));
    }
    let known = configs.entry(stage2).or_default();
    if known.iter().any(|other| other.root != config.root) {
        return Err(format!("domain {stage2:#x} has a table at {:#x} and others at {known:x?}", config.root));
    }
    if !known.contains(&config) {
        known.push(config);
    }
    Ok(())
}

/// The fields that are the hypervisor's alone: S2HD, S2HA and S2S are 0, StreamWorld is EL1, CONT is 0, and nothing else is set.
fn check_fixed(raw: &[u64; 8]) -> Result<(), String> {
    // DW1: stage 1's [7:0], S1STALLD [27], EATS [29:28], SHCFG [45:44] = 0b01.
    let rest = raw[1] & !(0xff | 1 << 27 | 3 << 28);
    // DW2: S2HD [55], S2HA [56], S2S [57].
    if rest != 1 << 44 || raw[2] >> 55 & 7 != 0 || raw[4..].iter().any(|word| *word != 0) {
        return Err(format!("the STE has fields that are not fixed as they should be: {raw:x?}"));
    }
    Ok(())
}

/// Stage 1's half is what the owner asked for: S1Fmt, S1ContextPtr, S1CDMax; S1DSS, S1CIR, S1COR, S1CSH; and stalls are disabled.
fn check_stage1(
    view: &View,
    smmu: usize,
    raw: &[u64; 8],
    translates: Option<[u64; 2]>,
) -> Result<(), String> {
    const WORD0: u64 = 0xf8ff_ffff_ffff_fff0;
    let Some([mut word0, mut word1]) = translates else {
        let clear = raw[0] & WORD0 == 0 && raw[1] & (0xff | 1 << 27) == 0;
        return if clear { Ok(()) } else { Err(format!("fields of stage 1 are set: {raw:x?}")) };
    };
    if word0 >> 59 == 0 {
        // One CD: S1Fmt and S1DSS are IGNORED.
        (word0, word1) = (word0 & !(3 << 4), word1 & !3);
    }
    let stalls = view.bench.machine().smmus[smmu].config.stall_model() == 0;
    let disabled = raw[1] >> 27 & 1 == 1;
    if (raw[0] ^ word0) & WORD0 != 0 || (raw[1] ^ word1) & 0xff != 0 || disabled != stalls {
        return Err(format!("the owner asked for {word0:#x} {word1:#x}, the STE is {raw:x?}"));
    }
    Ok(())
}

/// ATS as it should be: full for those that are trusted, split-stage for what is nested, if it was asked for.
fn wanted_eats(
    view: &View,
    smmu: usize,
    stream: u32,
    standing: &Standing,
    translates: Option<[u64; 2]>,
) -> Eats {
    let config = view.bench.machine().smmus[smmu].config;
    let trusted = view
        .bench
        .trusted
        .iter()
        .any(|&(at, device)| at == smmu && view.bench.devices[smmu][device].stream == stream);
    match (standing.by, translates) {
        (By::Call { vsmmu: None, ats: true, .. }, _) if trusted => Eats::Full,
        (By::Call { vsmmu: Some(_), .. } | By::Driver, Some([_, word1]))
            if word1 >> 28 & 3 == 1 && config.ats() =>
        {
            if trusted {
                Eats::Full
            } else {
                Eats::Split
            }
        }
        _ => Eats::Off,
    }
}
