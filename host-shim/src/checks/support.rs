//! What the checks share: probes that say what they saw, errands of delayed devices, snapshots of the state.

use super::Stop;
use crate::call::{Attachment, Calls, Event, Ownership, PoolState, Refused};
use crate::host::{Abort, DMA_VALUE, Device, Dma, Host, SCRATCH_BYTES, Transfer};
use crate::{fail, text};
use abi::{DomainHandle, GuestHandle, Recipient, Statistic, Status};

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
    match host.dma_write(smmu, address) {
        seen if seen == expected => Ok(()),
        seen => {
            let event =
                host.event().ok().flatten().map_or(text!("no event"), |event| text!("next event: {event}"));
            fail!("DMA behind SMMU {smmu} to {address:#x} {when}: {seen:?}, not {expected:?} ({event})")
        }
    }
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

/// A transfer of the delayed device behind an SMMU, that happens while the device is in a domain.
#[derive(Clone, Copy, Debug)]
pub struct Errand {
    /// Index of the SMMU.
    pub smmu: usize,
    /// The domain the device is in when the transfer happens.
    pub domain: DomainHandle,
    /// The transfer.
    pub transfer: Transfer,
}

/// Sends delayed devices, at most one errand each, on their errands all at once. Each device is unattached before and after.
///
/// If a transfer may have happened outside the time that its device was attached, all of it is done again: an errand must
/// not mind that. An event that the host is shown says so, too: of a stream that a guest has it is shown none, and errands
/// for the host go to memory of the host's.
pub fn run_errands<H: Host>(host: &H, errands: &[Errand]) -> Result<(), Stop> {
    for _ in 0..20 {
        drain(host)?;
        for errand in errands {
            if host.start(errand.smmu, errand.transfer).is_err() {
                fail!("the delayed device behind SMMU {} cannot be reached", errand.smmu);
            }
        }
        for errand in errands {
            let stream = stream(host, errand.smmu, Device::Delayed)?;
            good("STREAM_ATTACH", host.attach(errand.smmu, stream, errand.domain))?;
        }
        let mut in_time = host.certainly_ahead();
        host.settle();
        for errand in errands {
            let stream = stream(host, errand.smmu, Device::Delayed)?;
            good("STREAM_DETACH", host.detach(errand.smmu, stream))?;
        }
        while errands.iter().any(|errand| host.under_way(errand.smmu)) {
            in_time = false;
            host.settle();
        }
        if drain(host)? == 0 && in_time {
            return Ok(());
        }
    }
    fail!(
        "20 times a transfer missed the time its device was attached, or an event of a guest's was shown to the host"
    )
}

/// At most one errand for each SMMU.
pub struct Errands {
    list: [Option<Errand>; MAX_SMMUS],
}

impl Errands {
    /// The errand that `make` gives for each SMMU that has a delayed device.
    pub fn each<H: Host>(host: &H, mut make: impl FnMut(usize) -> Option<(DomainHandle, Transfer)>) -> Self {
        let mut list = [None; MAX_SMMUS];
        for (smmu, place) in list.iter_mut().enumerate().take(host.smmus()) {
            if host.stream(smmu, Device::Delayed).is_some() {
                *place = make(smmu).map(|(domain, transfer)| Errand { smmu, domain, transfer });
            }
        }
        Self { list }
    }

    /// Runs them all at once.
    pub fn run<H: Host>(&self, host: &H) -> Result<(), Stop> {
        let mut packed = [Errand { smmu: 0, domain: HOST, transfer: Transfer::FromMemory(0) }; MAX_SMMUS];
        let mut count = 0;
        for (place, errand) in packed.iter_mut().zip(self.list.iter().flatten()) {
            *place = *errand;
            count += 1;
        }
        run_errands(host, packed.get(..count).unwrap_or(&[]))
    }
}

/// How many SMMUs have a delayed device; the check does not apply when there is none.
pub fn delayed_devices<H: Host>(host: &H) -> Result<usize, Stop> {
    match (0..host.smmus()).filter(|&smmu| host.stream(smmu, Device::Delayed).is_some()).count() {
        0 => Err(Stop::NotApplicable(text!("no SMMU has a delayed device behind it"))),
        count => Ok(count),
    }
}

/// Puts a value of each SMMU's into the buffer of its delayed device, through memory of the host's.
pub fn load_buffers<H: Host>(host: &H, value: impl Fn(usize) -> u64) -> Result<(), Stop> {
    for smmu in 0..host.smmus() {
        cpu_store(host, staging(host, smmu), value(smmu))?;
    }
    Errands::each(host, |smmu| Some((HOST, Transfer::FromMemory(staging(host, smmu))))).run(host)
}

/// What is in the buffers of the delayed devices, through memory of the host's.
pub fn unload_buffers<H: Host>(host: &H) -> Result<[u64; MAX_SMMUS], Stop> {
    const NOTHING_ARRIVED: u64 = 0x0bad_0bad_0bad_0bad;
    for smmu in 0..host.smmus() {
        cpu_store(host, staging(host, smmu), NOTHING_ARRIVED)?;
    }
    Errands::each(host, |smmu| Some((HOST, Transfer::ToMemory(staging(host, smmu))))).run(host)?;
    let mut values = [0; MAX_SMMUS];
    for (smmu, value) in values.iter_mut().enumerate().take(host.smmus()) {
        if host.stream(smmu, Device::Delayed).is_none() {
            continue;
        }
        *value = cpu_value(host, staging(host, smmu))?;
        if *value == NOTHING_ARRIVED {
            fail!("the delayed device behind SMMU {smmu} did not write its buffer to the host's memory");
        }
    }
    Ok(values)
}

/// What the query calls answer about everything that a check touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pages: [Option<Ownership>; 48],
    streams: [[Option<Attachment>; 3]; MAX_SMMUS],
    vmids: [u16; MAX_SMMUS],
    pool: PoolState,
    quarantined: u64,
    dead: u64,
    table_pages: u64,
}

impl Snapshot {
    /// Asks for everything. The pages are the first and the last two of each block, and the first pages of the first.
    pub fn take<H: Host>(host: &H) -> Result<Self, Stop> {
        let unit = unit(host)?;
        let mut pages = [None; 48];
        let edges = (0..8).flat_map(|index| {
            let start = block(host, index);
            [start, start + unit, start + BLOCK - 2 * unit, start + BLOCK - unit]
        });
        let first = (0..16).map(|index| block(host, 0) + index * unit);
        for (place, page) in pages.iter_mut().zip(edges.chain(first)) {
            *place = Some(good("MEM_QUERY", host.ownership(page))?);
        }
        let mut streams = [[None; 3]; MAX_SMMUS];
        let mut vmids = [0; MAX_SMMUS];
        for (smmu, (row, vmids)) in streams.iter_mut().zip(&mut vmids).enumerate().take(host.smmus()) {
            *vmids = good("SMMU_DESCRIBE", host.describe_smmu(smmu))?.vmids_in_use;
            for (place, device) in row.iter_mut().zip(Device::ALL) {
                if let Some(stream) = host.stream(smmu, device) {
                    *place = good("STREAM_QUERY", host.attachment(smmu, stream))?;
                }
            }
        }
        Ok(Self {
            pages,
            streams,
            vmids,
            pool: good("POOL_STATE", host.pool())?,
            quarantined: good("STATISTICS", host.statistic(Statistic::QuarantinedPages))?,
            dead: good("STATISTICS", host.statistic(Statistic::DeadSmmus))?,
            table_pages: good("STATISTICS", host.statistic(Statistic::TablePages))?,
        })
    }

    /// The state must be what it was.
    pub fn unchanged<H: Host>(&self, host: &H, after: &str) -> Result<(), Stop> {
        let now = Self::take(host)?;
        if now == *self {
            return Ok(());
        }
        for (index, (before, now)) in self.pages.iter().zip(&now.pages).enumerate() {
            if before != now {
                fail!("{after} changed page {index} of the snapshot from {before:?} to {now:?}");
            }
        }
        if self.streams != now.streams {
            fail!("{after} changed a stream's attachment");
        }
        if self.vmids != now.vmids {
            fail!("{after} changed VMIDs in use from {:?} to {:?}", self.vmids, now.vmids);
        }
        fail!(
            "{after} changed {:?} with {} table pages to {:?} with {}",
            self.pool,
            self.table_pages,
            now.pool,
            now.table_pages
        )
    }
}

/// Puts everything back after a check that failed half-way: streams detached, memory the host's, guests gone, events read.
///
/// It does what it can: a refusal is passed over, since the check has failed already.
pub fn restore<H: Host>(host: &H) {
    host.settle();
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
            restore_page(host, page, features.unit);
        }
    }
    for guest in (1..=u64::from(GuestHandle::MAX)).filter_map(GuestHandle::from_register) {
        let _ = host.destroy_guest(guest);
    }
    give_all_back(host);
    let _ = drain(host);
}

/// Takes back what the pool has of the host's, as far as it is free.
pub fn give_all_back<H: Host>(host: &H) {
    const MOST: u32 = 8192;
    if let Ok(unit) = unit(host) {
        let _ = (0..MOST).take_while(|_| host.give_back(unit).is_ok()).count();
    }
}

fn restore_page<H: Host>(host: &H, page: u64, unit: u64) {
    let Ok(ownership) = host.ownership(page) else {
        return;
    };
    if let Some(guest) = GuestHandle::from_register(ownership.owner) {
        let _ = host.reclaim(page, unit, guest);
    }
    if ownership.shared == Ownership::HYPERVISOR {
        let _ = host.unshare(page, unit, Recipient::Hypervisor);
    } else if let Some(guest) = GuestHandle::from_register(ownership.shared) {
        let _ = host.unshare(page, unit, Recipient::Guest(guest));
    }
}

/// The low half of 64 bits in memory after [`Host::dma_write`] landed there.
pub fn holds_dma_value(value: u64) -> bool {
    value as u32 == DMA_VALUE
}
