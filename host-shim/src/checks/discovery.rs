//! Which hypervisor this is and what it says about the machine.

use super::support::{good, unit};
use super::{Check, Outcome};
use crate::call::Calls;
use crate::host::{Device, Host};
use crate::{fail, text};
use abi::{GuestHandle, MAX_STEP_BYTES, Statistic, UID, VERSION};
use smmuv3::features::Features;

pub(super) fn checks<H: Host>() -> [Check<H>; 4] {
    [
        Check {
            name: "discovery",
            expected: "the UID and the version of the interface, sane limits",
            run: identity,
        },
        Check {
            name: "smmus",
            expected: "every SMMU is owned and alive, with StreamIDs wide enough",
            run: smmus,
        },
        Check {
            name: "features of SMMUs",
            expected: "stage 1 and what goes with it where the SMMU can nest; stage 2, EL2, HTTU, PRI, MSIs and stalls are hidden",
            run: features,
        },
        Check {
            name: "statistics",
            expected: "every counter can be read; none says that hardware failed",
            run: statistics,
        },
    ]
}

fn features<H: Host>(host: &H) -> Outcome {
    let mut nesting = 0;
    for smmu in 0..host.smmus() {
        let ids = good("SMMU_FEATURES", host.smmu_features(smmu))?;
        let features = Features::probe(&ids);
        let hidden = features.stage2
            || features.el2
            || features.access_flag_updates
            || features.pri
            || features.msi
            || features.configurable_stalls
            || features.forced_stalls;
        if hidden || !features.coherent || features.granules.smallest().is_none() {
            fail!("SMMU {smmu} shows {ids:x?}");
        }
        nesting += u32::from(features.stage1);
    }
    Ok(text!("{nesting} of {} SMMUs have stage 1 for the host", host.smmus()))
}

fn identity<H: Host>(host: &H) -> Outcome {
    if host.uid() != UID.map(u64::from) {
        fail!("CALL_UID answered {:x?}", host.uid());
    }
    let version = good("VERSION", host.version())?;
    if version != u64::from(VERSION) {
        fail!("version {version:#x}, built for {VERSION:#x}");
    }
    let features = good("FEATURES", host.features())?;
    let unit = features.unit;
    if ![4096, 16384, 65536].contains(&unit)
        || features.step != MAX_STEP_BYTES
        || features.guests != u64::from(GuestHandle::MAX)
    {
        fail!("{features:?}");
    }
    Ok(text!(
        "version {}.{}, unit {unit} bytes, features {:#x}",
        version >> 16,
        version & 0xffff,
        features.bits
    ))
}

fn smmus<H: Host>(host: &H) -> Outcome {
    let count = good("SMMU_COUNT", host.smmu_count())?;
    if count != host.smmus() as u64 {
        fail!("{count} SMMUs, but the machine has {}", host.smmus());
    }
    for smmu in 0..host.smmus() {
        let seen = good("SMMU_DESCRIBE", host.describe_smmu(smmu))?;
        let widest = Device::ALL.into_iter().filter_map(|device| host.stream(smmu, device)).max();
        if seen.dead
            || seen.stream_bits > 32
            || widest.is_some_and(|id| u64::from(id) >> seen.stream_bits != 0)
        {
            fail!("SMMU {smmu}: {seen:?}");
        }
    }
    Ok(text!("{count} SMMUs, all translating"))
}

fn statistics<H: Host>(host: &H) -> Outcome {
    unit(host)?;
    for &statistic in Statistic::ALL {
        let value = good("STATISTICS", host.statistic(statistic))?;
        let bad = matches!(statistic, Statistic::QuarantinedPages | Statistic::DeadSmmus);
        if bad && value != 0 {
            fail!("{statistic:?} is {value}");
        }
    }
    Ok(text!("{} counters, nothing quarantined, no SMMU dead", Statistic::ALL.len()))
}
