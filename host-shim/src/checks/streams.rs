//! A stream reaches memory while it is attached, and at no other time.

use super::errands::load_buffers;
use super::support::{
    BLOCK, HOST, attach_all, block, cpu_store, cpu_value, detach_all, dma, dma_everywhere, drain,
    event_of_write, good, holds_dma_value, stream, unit,
};
use super::{Check, Outcome};
use crate::call::{Calls, Event};
use crate::host::{Device, Dma, Host, Transfer};
use crate::{fail, text};

pub(super) fn checks<H: Host>() -> [Check<H>; 6] {
    [
        Check {
            name: "unattached, attached, detached",
            expected: "on each SMMU DMA faults, lands, faults; each fault's event names SMMU, StreamID, reason, address",
            run: life,
        },
        Check {
            name: "only the stream that is attached",
            expected: "attaching a stream of one SMMU lets no device behind another SMMU in",
            run: only_that_one,
        },
        Check {
            name: "attach and detach again and again",
            expected: "32 times on each SMMU DMA lands while attached and faults when not, with warm IOTLBs",
            run: again,
        },
        Check {
            name: "everywhere in memory",
            expected: "an attached stream reaches all of the host's memory, at the edges of its blocks too",
            run: everywhere,
        },
        Check {
            name: "delayed device, unattached",
            expected: "a transfer that comes due when the stream is detached faults, with an event",
            run: delayed,
        },
        Check {
            name: "tags",
            expected: "streams of a domain share one VMID on an SMMU; it is freed with the last of them",
            run: tags,
        },
    ]
}

fn life<H: Host>(host: &H) -> Outcome {
    drain(host)?;
    for smmu in 0..host.smmus() {
        let id = stream(host, smmu, Device::Immediate)?;
        let address = block(host, 0) + 0x1040;
        for (place, when) in [(address, "unattached"), (address + 0x3000, "unattached, elsewhere")] {
            cpu_store(host, place, 0)?;
            dma(host, smmu, place, Dma::Faulted, when)?;
            event_of_write(host, smmu, id, place)?;
            drain(host)?;
            if cpu_value(host, place)? != 0 {
                fail!("memory at {place:#x} changed though the DMA faulted");
            }
        }
        good("STREAM_ATTACH", host.attach(smmu, id, HOST))?;
        dma(host, smmu, address, Dma::Landed, "attached")?;
        if !holds_dma_value(cpu_value(host, address)?) {
            fail!("the CPU does not see the value at {address:#x}");
        }
        if drain(host)? != 0 {
            fail!("an event though DMA behind SMMU {smmu} landed");
        }
        cpu_store(host, address, 0)?;
        good("STREAM_DETACH", host.detach(smmu, id))?;
        dma(host, smmu, address, Dma::Faulted, "detached")?;
        event_of_write(host, smmu, id, address)?;
        drain(host)?;
        if cpu_value(host, address)? != 0 {
            fail!("memory changed though the DMA of the detached stream faulted");
        }
    }
    Ok(text!("faulted, landed, faulted on {} SMMUs, each fault with its F_TRANSLATION event", host.smmus()))
}

fn only_that_one<H: Host>(host: &H) -> Outcome {
    let address = block(host, 0);
    for smmu in 0..host.smmus() {
        let id = stream(host, smmu, Device::Immediate)?;
        good("STREAM_ATTACH", host.attach(smmu, id, HOST))?;
        for other in 0..host.smmus() {
            let expected = if other == smmu { Dma::Landed } else { Dma::Faulted };
            dma(host, other, address, expected, "with one stream attached")?;
        }
        good("STREAM_DETACH", host.detach(smmu, id))?;
    }
    // The same number on another SMMU is another stream.
    for smmu in 0..host.smmus() {
        let id = stream(host, smmu, Device::Immediate)?;
        for other in (0..host.smmus()).filter(|&other| other != smmu) {
            good("STREAM_ATTACH", host.attach(other, id, HOST))?;
            dma(host, smmu, address, Dma::Faulted, "with its StreamID attached on another SMMU")?;
            good("STREAM_DETACH", host.detach(other, id))?;
        }
    }
    drain(host)?;
    Ok(text!("{} SMMUs keep their streams apart", host.smmus()))
}

fn again<H: Host>(host: &H) -> Outcome {
    const ROUNDS: u64 = 32;
    for round in 0..ROUNDS {
        let address = block(host, 0) + (round % 4) * 0x1000;
        attach_all(host, HOST)?;
        dma_everywhere(host, address, Dma::Landed, "attached again")?;
        detach_all(host)?;
        dma_everywhere(host, address, Dma::Faulted, "detached again")?;
        drain(host)?;
    }
    Ok(text!("{ROUNDS} rounds on {} SMMUs", host.smmus()))
}

fn everywhere<H: Host>(host: &H) -> Outcome {
    attach_all(host, HOST)?;
    let mut count = 0;
    for index in 0..8 {
        for offset in [0, 0x1ffc, BLOCK / 2 - 4, BLOCK - 4] {
            dma_everywhere(host, block(host, index) + offset, Dma::Landed, "attached")?;
            count += 1;
        }
    }
    detach_all(host)?;
    Ok(text!("landed at {count} addresses behind {} SMMUs", host.smmus()))
}

fn delayed<H: Host>(host: &H) -> Outcome {
    let count = super::errands::delayed_devices(host)?;
    load_buffers(host, |smmu| 0x1111_0000 + smmu as u64)?;
    drain(host)?;
    let target = block(host, 1);
    for smmu in 0..host.smmus() {
        let Some(id) = host.stream(smmu, Device::Delayed) else {
            continue;
        };
        cpu_store(host, target, 0)?;
        if host.start(smmu, Transfer::ToMemory(target)).is_err() {
            fail!("the delayed device behind SMMU {smmu} cannot be reached");
        }
        host.settle();
        while host.under_way(smmu) {
            host.settle();
        }
        let Some(event) = good("EVENT_READ", host.event())? else {
            fail!("no event of the delayed device behind SMMU {smmu}");
        };
        let named = event.smmu == smmu && event.stream == id && event.number == Event::TRANSLATION;
        if !named || event.address.is_none_or(|seen| seen & !0xfff != target) {
            fail!("{event}, for StreamID {id:#x} behind SMMU {smmu} at {target:#x}");
        }
        drain(host)?;
        if cpu_value(host, target)? != 0 {
            fail!("the write of the unattached device behind SMMU {smmu} landed");
        }
    }
    Ok(text!("{count} devices loaded while attached, refused when not"))
}

fn tags<H: Host>(host: &H) -> Outcome {
    unit(host)?;
    let mut shared = 0;
    for smmu in 0..host.smmus() {
        let before = good("SMMU_DESCRIBE", host.describe_smmu(smmu))?.vmids_in_use;
        let mut first = None;
        for id in Device::ALL.into_iter().filter_map(|device| host.stream(smmu, device)) {
            if good("STREAM_QUERY", host.attachment(smmu, id))?.is_some() {
                fail!("StreamID {id:#x} behind SMMU {smmu} is attached from the start");
            }
            good("STREAM_ATTACH", host.attach(smmu, id, HOST))?;
            let Some(seen) = good("STREAM_QUERY", host.attachment(smmu, id))? else {
                fail!("STREAM_QUERY says unattached after STREAM_ATTACH");
            };
            if seen.domain != 0 || seen.vmid == 0 || *first.get_or_insert(seen.vmid) != seen.vmid {
                fail!("{seen:?} of StreamID {id:#x} behind SMMU {smmu}, first VMID {first:?}");
            }
            shared += 1;
        }
        let during = good("SMMU_DESCRIBE", host.describe_smmu(smmu))?.vmids_in_use;
        for id in Device::ALL.into_iter().filter_map(|device| host.stream(smmu, device)) {
            good("STREAM_DETACH", host.detach(smmu, id))?;
        }
        let after = good("SMMU_DESCRIBE", host.describe_smmu(smmu))?.vmids_in_use;
        if during != before + 1 || after != before {
            fail!("SMMU {smmu}: {before} VMIDs in use before, {during} during, {after} after");
        }
    }
    Ok(text!("{shared} streams, one VMID on each of {} SMMUs", host.smmus()))
}
