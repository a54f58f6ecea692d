//! Errands of delayed devices: transfers that happen while a device is somebody's.

use super::Stop;
use super::support::{HOST, MAX_SMMUS, cpu_store, cpu_value, drain, good, staging, stream};
use crate::call::Calls;
use crate::host::{Device, Host, Transfer};
use crate::{fail, text};
use abi::DomainHandle;

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

/// How the stream of a delayed device is attached to the domain of its errand.
type Enter<'a> = &'a dyn Fn(&Errand, u32) -> Result<(), Stop>;

/// Sends delayed devices, at most one errand each, on their errands all at once. Each device is unattached before and after.
///
/// If a transfer may have happened outside the time that its device was attached, all of it is done again: an errand must
/// not mind that. An event that the host is shown says so, too: of a stream that a guest has it is shown none, and errands
/// for the host go to memory of the host's.
fn run_errands<H: Host>(host: &H, errands: &[Errand], enter: Enter<'_>) -> Result<(), Stop> {
    for _ in 0..20 {
        drain(host)?;
        for errand in errands {
            if host.start(errand.smmu, errand.transfer).is_err() {
                fail!("the delayed device behind SMMU {} cannot be reached", errand.smmu);
            }
        }
        for errand in errands {
            enter(errand, stream(host, errand.smmu, Device::Delayed)?)?;
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
        self.run_by(host, &|errand, stream| {
            good("STREAM_ATTACH", host.attach(errand.smmu, stream, errand.domain))
        })
    }

    /// Runs them all at once, each device attached to another domain first and then changed over to that of its errand.
    pub fn run_from<H: Host>(&self, host: &H, first: DomainHandle) -> Result<(), Stop> {
        self.run_by(host, &|errand, stream| {
            good("STREAM_ATTACH", host.attach(errand.smmu, stream, first))?;
            good("STREAM_ATTACH with REPLACE", host.replace(errand.smmu, stream, errand.domain))
        })
    }

    fn run_by<H: Host>(&self, host: &H, enter: Enter<'_>) -> Result<(), Stop> {
        let mut packed = [Errand { smmu: 0, domain: HOST, transfer: Transfer::FromMemory(0) }; MAX_SMMUS];
        let mut count = 0;
        for (place, errand) in packed.iter_mut().zip(self.list.iter().flatten()) {
            *place = *errand;
            count += 1;
        }
        run_errands(host, packed.get(..count).unwrap_or(&[]), enter)
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

/// A value that no other use of a device's buffer has.
pub fn mark(phase: u64, smmu: usize) -> u64 {
    0x6d61_726b_0000_0000 + (phase << 16) + smmu as u64 + 1
}

/// Where the delayed device behind an SMMU writes in a page.
pub fn slot(page: u64, smmu: usize) -> u64 {
    page + smmu as u64 * 64
}

/// Every delayed device, in a domain, writes a mark into its slot of the page at this address of the domain.
pub fn write_in<H: Host>(host: &H, domain: DomainHandle, page: u64, phase: u64) -> Result<(), Stop> {
    load_buffers(host, |smmu| mark(phase, smmu))?;
    Errands::each(host, |smmu| Some((domain, Transfer::ToMemory(slot(page, smmu))))).run(host)
}

/// Every delayed device, in a domain, reads its slot of the page at this address of the domain.
pub fn read_in<H: Host>(host: &H, domain: DomainHandle, page: u64) -> Result<[u64; MAX_SMMUS], Stop> {
    // What a refused read leaves in the buffer must not be mistaken for what is in the page.
    load_buffers(host, |_| 0)?;
    Errands::each(host, |smmu| Some((domain, Transfer::FromMemory(slot(page, smmu))))).run(host)?;
    unload_buffers(host)
}

/// What the devices read must be this.
pub fn expect<H: Host>(
    host: &H,
    seen: [u64; MAX_SMMUS],
    expected: impl Fn(usize) -> u64,
    what: &str,
) -> Result<(), Stop> {
    for (smmu, seen) in seen.into_iter().enumerate().take(host.smmus()) {
        if host.stream(smmu, Device::Delayed).is_some() && seen != expected(smmu) {
            fail!("{what}, behind SMMU {smmu}: {seen:#x}, not {:#x}", expected(smmu));
        }
    }
    Ok(())
}
