//! A disk works while its stream is attached, and only then.

use super::support::{HOST, block, drain, fill, good};
use super::{Check, Outcome, Stop};
use crate::call::Calls;
use crate::host::{Device, DiskError, Host};
use crate::{fail, text};

pub(super) fn checks<H: Host>() -> [Check<H>; 1] {
    [Check {
        name: "disk",
        expected: "identify, write and read back work while attached; no command completes while not",
        run: disk,
    }]
}

fn disk<H: Host>(host: &H) -> Outcome {
    let memory = block(host, 1);
    let mut disks = 0;
    for smmu in 0..host.smmus() {
        let Some(id) = host.stream(smmu, Device::Disk) else {
            continue;
        };
        fill(host, memory, 0x8000)?;
        match host.disk_round_trip(smmu, memory, 0x5eed) {
            Err(DiskError::Absent) => continue,
            Err(DiskError::TimedOut) => {}
            seen => fail!("the unattached disk behind SMMU {smmu}: {seen:?}"),
        }
        for pattern in [0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321] {
            good("STREAM_ATTACH", host.attach(smmu, id, HOST))?;
            if let Err(seen) = host.disk_round_trip(smmu, memory, pattern) {
                fail!("the attached disk behind SMMU {smmu}: {seen:?}");
            }
            good("STREAM_DETACH", host.detach(smmu, id))?;
            match host.disk_round_trip(smmu, memory, pattern) {
                Err(DiskError::TimedOut) => {}
                seen => fail!("the detached disk behind SMMU {smmu}: {seen:?}"),
            }
        }
        disks += 1;
    }
    drain(host)?;
    if disks == 0 {
        return Err(Stop::NotApplicable(text!("no disk behind any SMMU")));
    }
    Ok(text!("{disks} disks: refused, worked, refused, worked, refused"))
}
