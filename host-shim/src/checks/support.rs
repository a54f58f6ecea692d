//! What the checks share: probes that say what they saw, and putting everything back.

use super::Stop;
use crate::call::{Calls, Event, Ownership, Refused};
use crate::host::{Abort, DMA_VALUE, Device, Dma, Host, SCRATCH_BYTES};
use crate::stage1::{DomainId, Error, Idle, Stage1, StreamOptions};
use crate::{fail, text};
use abi::{DomainHandle, GuestHandle, Recipient, Status};

/// 2 MiB.
pub const BLOCK: u64 = 2 << 20;

/// The most SMMUs the checks handle.
pub const MAX_SMMUS: usize = 8;

/// The host's domain.
pub const HOST: DomainHandle = DomainHandle::Host;

/// The start of the `index`-th 2 MiB block of the scratch memory; block 7 is for staging of devices' data.
pub fn block<H: Host>(host: &H, index: u64) -> u64 {
    host.scratch() + index * BLOCK
}

/// Where the delayed device behind an SMMU exchanges its buffer with the host.
pub fn staging<H: Host>(host: &H, smmu: usize) -> u64 {
    block(host, 7) + smmu as u64 * 64
}

/// The ownership unit.
pub fn unit<H: Host>(host: &H) -> Result<u64, Stop> {
    Ok(good("FEATURES", host.features())?.unit)
}

/// The result of a call that must succeed.
pub fn good<T>(what: &str, result: Result<T, Refused>) -> Result<T, Stop> {
    result.map_err(|refused| Stop::Failed(text!("{what} answered {refused}")))
}

/// A call that must be refused with a status.
pub fn refused<T>(what: &str, result: Result<T, Refused>, status: Status) -> Result<(), Stop> {
    match result {
        Err(refused) if refused.status() == Some(status) => Ok(()),
        Err(refused) => fail!("{what} answered {refused}, not {status:?}"),
        Ok(_) => fail!("{what} succeeded, and did not answer {status:?}"),
    }
}

/// The result of an operation of the host's stage 1 that must succeed.
pub fn done<T>(what: &str, result: Result<T, Error>) -> Result<T, Stop> {
    result.map_err(|error| Stop::Failed(text!("{what}: {error}")))
}

/// The host's stage 1, in a block of its own. What a check that fails leaves of it ends with the value.
pub fn start_stage1<H: Host>(host: &H) -> Result<Stage1<'_, H>, Stop> {
    match Stage1::start(host, block(host, 6), BLOCK) {
        Err(error @ (Error::NoNesting { .. } | Error::NoFormat)) => {
            Err(Stop::NotApplicable(text!("{error}")))
        }
        started => done("start of stage 1", started),
    }
}

/// Gives the immediate device behind every SMMU to the host's stage 1.
pub fn add_all<H: Host>(host: &H, stage1: &mut Stage1<'_, H>) -> Result<(), Stop> {
    for smmu in 0..host.smmus() {
        let id = stream(host, smmu, Device::Immediate)?;
        done("adding a stream", stage1.add_stream(smmu, id, StreamOptions::default()))?;
    }
    Ok(())
}

/// Attaches the immediate device behind every SMMU to a stage-1 domain.
pub fn attach_stage1<H: Host>(host: &H, stage1: &mut Stage1<'_, H>, domain: DomainId) -> Result<(), Stop> {
    for smmu in 0..host.smmus() {
        let id = stream(host, smmu, Device::Immediate)?;
        done("attach to a stage-1 domain", stage1.attach(smmu, id, 0, domain))?;
    }
    Ok(())
}

/// Detaches the immediate device behind every SMMU from its stage-1 domain: it aborts.
pub fn detach_stage1<H: Host>(host: &H, stage1: &mut Stage1<'_, H>) -> Result<(), Stop> {
    for smmu in 0..host.smmus() {
        let id = stream(host, smmu, Device::Immediate)?;
        done("detach from a stage-1 domain", stage1.detach(smmu, id, 0, Idle::Aborts))?;
    }
    Ok(())
}

/// Ends the host's stage 1 with the streams of [`add_all`], none of which is attached.
pub fn stop_stage1<H: Host>(host: &H, mut stage1: Stage1<'_, H>, domains: &[DomainId]) -> Result<(), Stop> {
    for smmu in 0..host.smmus() {
        let id = stream(host, smmu, Device::Immediate)?;
        done("removing a stream", stage1.remove_stream(smmu, id))?;
    }
    for domain in domains {
        done("end of a stage-1 domain", stage1.destroy(*domain))?;
    }
    if stage1.asids_in_use() != 0 {
        fail!("{} ASIDs in use without a domain", stage1.asids_in_use());
    }
    done("end of stage 1", stage1.stop())
}

/// The StreamID of a device that must be there.
pub fn stream<H: Host>(host: &H, smmu: usize, device: Device) -> Result<u32, Stop> {
    host.stream(smmu, device)
        .ok_or_else(|| Stop::NotApplicable(text!("no {device:?} device behind SMMU {smmu}")))
}

/// Attaches the immediate device behind every SMMU to a domain.
pub fn attach_all<H: Host>(host: &H, domain: DomainHandle) -> Result<(), Stop> {
    for smmu in 0..host.smmus() {
        good("STREAM_ATTACH", host.attach(smmu, stream(host, smmu, Device::Immediate)?, domain))?;
    }
    Ok(())
}

/// Detaches the immediate device behind every SMMU.
pub fn detach_all<H: Host>(host: &H) -> Result<(), Stop> {
    for smmu in 0..host.smmus() {
        good("STREAM_DETACH", host.detach(smmu, stream(host, smmu, Device::Immediate)?))?;
    }
    Ok(())
}

/// The immediate device behind one SMMU must reach, or must not reach, an address.
pub fn dma<H: Host>(host: &H, smmu: usize, address: u64, expected: Dma, when: &str) -> Result<(), Stop> {
    dma_at(host, smmu, address, address, expected, when)
}

/// The immediate device behind one SMMU must reach, or must not reach, a physical address through an I/O address.
pub fn dma_at<H: Host>(
    host: &H,
    smmu: usize,
    address: u64,
    physical: u64,
    expected: Dma,
    when: &str,
) -> Result<(), Stop> {
    match host.dma_write_at(smmu, address, physical) {
        seen if seen == expected => Ok(()),
        seen => {
            let event =
                host.event().ok().flatten().map_or(text!("no event"), |event| text!("next event: {event}"));
            fail!(
                "DMA behind SMMU {smmu} through {address:#x} to {physical:#x} {when}: {seen:?}, not {expected:?} ({event})"
            )
        }
    }
}

/// The immediate device behind every SMMU must reach, or must not reach, a physical address through an I/O address.
pub fn dma_at_everywhere<H: Host>(
    host: &H,
    address: u64,
    physical: u64,
    expected: Dma,
    when: &str,
) -> Result<(), Stop> {
    (0..host.smmus()).try_for_each(|smmu| dma_at(host, smmu, address, physical, expected, when))
}

/// The immediate device behind every SMMU must reach, or must not reach, an address.
pub fn dma_everywhere<H: Host>(host: &H, address: u64, expected: Dma, when: &str) -> Result<(), Stop> {
    (0..host.smmus()).try_for_each(|smmu| dma(host, smmu, address, expected, when))
}

/// The CPU reads and writes 64 bits of memory of its own.
pub fn cpu_reaches<H: Host>(host: &H, address: u64, when: &str) -> Result<(), Stop> {
    const PATTERN: u64 = 0xc0ff_ee00_5eed_cafe;
    if host.cpu_write_u64(address, PATTERN).is_err() {
        fail!("CPU write at {address:#x} {when}: abort");
    }
    match host.cpu_read_u64(address) {
        Ok(PATTERN) => Ok(()),
        Ok(value) => fail!("CPU read at {address:#x} {when}: {value:#x}"),
        Err(Abort) => fail!("CPU read at {address:#x} {when}: abort"),
    }
}

/// The CPU must not reach an address, neither reading nor writing.
pub fn cpu_refused<H: Host>(host: &H, address: u64, when: &str) -> Result<(), Stop> {
    if let Ok(value) = host.cpu_read_u64(address) {
        fail!("CPU read at {address:#x} {when}: {value:#x}, no abort");
    }
    if host.cpu_write_u64(address, 0xbad).is_ok() {
        fail!("CPU write at {address:#x} {when}: no abort");
    }
    Ok(())
}

/// Memory must be zero from `start` on, every 8 bytes of it.
pub fn all_zero<H: Host>(host: &H, start: u64, size: u64, when: &str) -> Result<(), Stop> {
    for address in (start..start + size).step_by(8) {
        match host.cpu_read_u64(address) {
            Ok(0) => {}
            Ok(value) => fail!("{value:#x} at {address:#x} {when}"),
            Err(Abort) => fail!("abort at {address:#x} {when}"),
        }
    }
    Ok(())
}

/// The value that the CPU sees in 64 bits of memory of its own.
pub fn cpu_value<H: Host>(host: &H, address: u64) -> Result<u64, Stop> {
    host.cpu_read_u64(address).map_err(|_| Stop::Failed(text!("CPU read at {address:#x}: abort")))
}

/// A CPU write that must succeed.
pub fn cpu_store<H: Host>(host: &H, address: u64, value: u64) -> Result<(), Stop> {
    host.cpu_write_u64(address, value).map_err(|_| Stop::Failed(text!("CPU write at {address:#x}: abort")))
}

/// Fills memory of the host's with a pattern that is nowhere zero.
pub fn fill<H: Host>(host: &H, start: u64, size: u64) -> Result<(), Stop> {
    (start..start + size).step_by(8).try_for_each(|address| cpu_store(host, address, !address))
}

/// Takes all events that are waiting, for at most 4,096 of them.
pub fn drain<H: Host>(host: &H) -> Result<u32, Stop> {
    for count in 0..4096 {
        if good("EVENT_READ", host.event())?.is_none() {
            return Ok(count);
        }
    }
    fail!("EVENT_READ never answers Empty")
}

/// The next event must be the one of a refused write of the immediate device.
pub fn event_of_write<H: Host>(host: &H, smmu: usize, stream: u32, address: u64) -> Result<Event, Stop> {
    let Some(event) = good("EVENT_READ", host.event())? else {
        fail!("no event of the refused write behind SMMU {smmu}");
    };
    let right = event.smmu == smmu
        && event.stream == stream
        && event.number == Event::TRANSLATION
        && event.address.is_some_and(|seen| seen & !0xfff == address & !0xfff)
        && event.write
        && event.stage2;
    if !right {
        fail!("{event}, for a write of StreamID {stream:#x} behind SMMU {smmu} to {address:#x}");
    }
    Ok(event)
}

/// A page's owner must be this.
pub fn owned<H: Host>(host: &H, page: u64, expected: Ownership) -> Result<(), Stop> {
    let seen = good("MEM_QUERY", host.ownership(page))?;
    if seen != expected {
        fail!("MEM_QUERY of {page:#x}: {seen:?}, not {expected:?}");
    }
    Ok(())
}

/// Puts everything back after a check that failed half-way: streams detached, guests gone with all they had, memory the host's, events
/// read. The host's own vSMMUs and domains end with the values that the checks keep them in.
///
/// It does what it can: a refusal is passed over, since the check has failed already.
pub fn restore<H: Host>(host: &H) {
    host.settle();
    for guest in GuestHandle::all() {
        let _ = teardown(host, guest);
    }
    for smmu in 0..host.smmus() {
        for stream in Device::ALL.into_iter().filter_map(|device| host.stream(smmu, device)) {
            if let Ok(Some(_)) = host.attachment(smmu, stream) {
                let _ = host.detach(smmu, stream);
            }
        }
    }
    if let Ok(features) = host.features()
        && features.unit.is_power_of_two()
        && features.unit >= 4096
    {
        for page in (host.scratch()..host.scratch() + SCRATCH_BYTES).step_by(features.unit as usize) {
            if host.ownership(page) == Ok(Ownership::shared(Recipient::Hypervisor)) {
                let _ = host.unshare(page, features.unit, Recipient::Hypervisor);
            }
        }
    }
    give_all_back(host);
    let _ = drain(host);
}

/// Takes a guest apart, whatever it has; how many steps that took.
pub fn teardown<H: Host>(host: &H, guest: GuestHandle) -> Result<u32, Refused> {
    /// More than the steps of any guest with memory of the checks.
    const MOST: u32 = 1 << 16;
    for steps in 1..=MOST {
        if !host.teardown_step(guest)? {
            return Ok(steps);
        }
    }
    Err(Refused { code: Status::Success.to_register(), detail: MOST.into() })
}

/// Takes back what the pool has of the host's, as far as it is free.
pub fn give_all_back<H: Host>(host: &H) {
    const MOST: u32 = 8192;
    if let Ok(unit) = unit(host) {
        let _ = (0..MOST).take_while(|_| host.give_back(unit).is_ok()).count();
    }
}

/// The low half of 64 bits in memory after [`Host::dma_write`] landed there.
pub fn holds_dma_value(value: u64) -> bool {
    value as u32 == DMA_VALUE
}
