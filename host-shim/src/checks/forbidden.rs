//! No device reaches the hypervisor, an SMMU or any other device; nor do the host's CPUs reach what is the hypervisor's.

use super::errands::{Errands, delayed_devices, load_buffers, unload_buffers};
use super::support::{
    HOST, attach_all, block, cpu_reaches, cpu_refused, detach_all, dma, drain, event_of_write, good, stream,
};
use super::{Check, Outcome, Stop};
use crate::call::Calls;
use crate::host::{Device, Dma, Host, Transfer};
use crate::{fail, text};
use abi::{DomainHandle, Statistic};

pub(super) fn checks<H: Host>() -> [Check<H>; 4] {
    [
        Check {
            name: "DMA to forbidden places",
            expected: "faults with an event on every SMMU: hypervisor memory, SMMU registers, UART and the rest",
            run: dma_refused,
        },
        Check {
            name: "DMA of a guest's device to forbidden places",
            expected: "reads nothing and faults, on every SMMU",
            run: guest_dma_refused,
        },
        Check {
            name: "CPU access to forbidden places",
            expected: "a synchronous abort at EL1 for each read and write; its neighbour can be read; the hypervisor lives on",
            run: cpu,
        },
        Check {
            name: "peer-to-peer DMA",
            expected: "DMA to a config page and to unbacked addresses faults on every SMMU",
            run: peer_to_peer,
        },
    ]
}

fn targets<H: Host>(host: &H) -> impl Iterator<Item = crate::host::Forbidden> {
    (0..4096).map_while(|index| host.forbidden(index))
}

fn some_targets<H: Host>(host: &H) -> Result<usize, Stop> {
    match targets(host).count() {
        0 => fail!("the machine names no forbidden place"),
        count => Ok(count),
    }
}

/// The hypervisor answers, every SMMU translates, and the device that was refused works where it may.
fn lives_on<H: Host>(host: &H, after: &str) -> Result<(), Stop> {
    good("VERSION", host.version())?;
    for smmu in 0..host.smmus() {
        if good("SMMU_DESCRIBE", host.describe_smmu(smmu))?.dead {
            fail!("SMMU {smmu} is dead after {after}");
        }
        dma(host, smmu, block(host, 0), Dma::Landed, "as the control")?;
    }
    Ok(())
}

fn dma_refused<H: Host>(host: &H) -> Outcome {
    let count = some_targets(host)?;
    attach_all(host, HOST)?;
    lives_on(host, "nothing")?;
    drain(host)?;
    for target in targets(host) {
        for smmu in 0..host.smmus() {
            dma(host, smmu, target.address, Dma::Faulted, target.name)?;
            event_of_write(host, smmu, stream(host, smmu, Device::Immediate)?, target.address)?;
            drain(host)?;
        }
    }
    lives_on(host, "DMA to forbidden places")?;
    detach_all(host)?;
    Ok(text!("{count} places refused behind {} SMMUs, which work on", host.smmus()))
}

fn guest_dma_refused<H: Host>(host: &H) -> Outcome {
    let devices = delayed_devices(host)?;
    let count = some_targets(host)?;
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let domain = DomainHandle::Guest(guest);
    // Each transfer takes its delay, so places are spread over devices and over a few rounds.
    let rounds = 3;
    for round in 0..rounds {
        let pick = |smmu: usize| {
            targets(host).nth((round * host.smmus() + smmu) * 7 % count).map_or(0, |target| target.address)
        };
        load_buffers(host, |_| 0x1eaf)?;
        let events = good("STATISTICS", host.statistic(Statistic::Events))?;
        Errands::each(host, |smmu| Some((domain, Transfer::FromMemory(pick(smmu))))).run(host)?;
        if good("STATISTICS", host.statistic(Statistic::Events))? < events + devices as u64 {
            fail!("fewer events than refused reads in round {round}");
        }
        for (smmu, seen) in unload_buffers(host)?.into_iter().enumerate() {
            if seen != 0 && host.stream(smmu, Device::Delayed).is_some() {
                fail!("a guest's device behind SMMU {smmu} read {seen:#x} at {:#x}", pick(smmu));
            }
        }
        let events = good("STATISTICS", host.statistic(Statistic::Events))?;
        Errands::each(host, |smmu| Some((domain, Transfer::ToMemory(pick(smmu))))).run(host)?;
        if good("STATISTICS", host.statistic(Statistic::Events))? < events + devices as u64 {
            fail!("fewer events than refused writes in round {round}");
        }
    }
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    Ok(text!("{devices} devices, {rounds} rounds of reads and writes, all refused and counted"))
}

fn cpu<H: Host>(host: &H) -> Outcome {
    let mut count = 0;
    let before = good("STATISTICS", host.statistic(Statistic::InjectedAborts))?;
    for target in targets(host).filter(|target| target.cpu_refused) {
        if host.cpu_read_u32(target.cpu_control).is_err() {
            fail!("{}: the control at {:#x} aborts too", target.name, target.cpu_control);
        }
        cpu_refused(host, target.address, target.name)?;
        if host.cpu_read_u32(target.address).is_ok() || host.cpu_write_u32(target.address, 0).is_ok() {
            fail!("{} at {:#x}: a 32-bit access passes", target.name, target.address);
        }
        count += 1;
    }
    if count == 0 {
        fail!("the machine names no place that is forbidden to the CPU");
    }
    let injected = good("STATISTICS", host.statistic(Statistic::InjectedAborts))?.wrapping_sub(before);
    if injected != 4 * count {
        fail!("{} accesses refused, but InjectedAborts went up by {injected}", 4 * count);
    }
    cpu_reaches(host, block(host, 0), "as the control")?;
    attach_all(host, HOST)?;
    lives_on(host, "CPU access to forbidden places")?;
    detach_all(host)?;
    Ok(text!("{count} places, 4 aborts each, all at EL1; the hypervisor answers"))
}

fn peer_to_peer<H: Host>(host: &H) -> Outcome {
    attach_all(host, HOST)?;
    let mut count = 0;
    for smmu in 0..host.smmus() {
        for target in (0..host.smmus()).filter_map(|other| host.config_page(other, Device::Immediate, 0)) {
            dma(host, smmu, target, Dma::Faulted, "to a config page")?;
            count += 1;
        }
        for address in [host.not_ram(), 0, 1 << 43, (1 << 47) + 0x1000] {
            dma(host, smmu, address, Dma::Faulted, "to an address without RAM")?;
            count += 1;
        }
    }
    drain(host)?;
    detach_all(host)?;
    Ok(text!("{count} addresses refused"))
}
