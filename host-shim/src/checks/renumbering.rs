//! A guest's device keeps its StreamID: the host cannot renumber the buses above it.

use super::errands::{Errands, delayed_devices, load_buffers};
use super::support::{all_zero, block, drain, good, unit};
use super::{Check, Outcome, Stop};
use crate::call::Calls;
use crate::host::{Abort, Device, Host, Transfer};
use crate::{attack_worked, fail, text};
use abi::DomainHandle;

/// Bus numbers of a bridge (PCI-to-PCI Bridge Architecture, 3.2.5.3 to 3.2.5.5), and of a function's config space the first BAR
/// is near enough: any write there must be refused.
const BUS_NUMBERS: u64 = 0x18;
/// Primary bus 0x11, secondary 0x22, subordinate 0x33.
const RENUMBERED: u32 = 0x0033_2211;

pub(super) fn checks<H: Host>() -> [Check<H>; 1] {
    [Check {
        name: "renumbering buses above a guest's device",
        expected: "config accesses to it and to every bridge above it abort while a guest has it, and to its registers; its StreamID stays",
        run: renumbering,
    }]
}

fn pages<H: Host>(host: &H, smmu: usize) -> impl Iterator<Item = u64> {
    (0..16).map_while(move |index| host.config_page(smmu, Device::Delayed, index))
}

fn renumbering<H: Host>(host: &H) -> Outcome {
    delayed_devices(host)?;
    let unit = unit(host)?;
    let page = block(host, 6);
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let domain = DomainHandle::Guest(guest);
    let mut refused = 0;
    for smmu in 0..host.smmus() {
        let Some(id) = host.stream(smmu, Device::Delayed) else {
            continue;
        };
        let mut numbers = [0; 16];
        for (config, number) in pages(host, smmu).zip(&mut numbers) {
            // The control: unattached, the same access with the value that is there passes.
            *number = config_read(host, config)?;
            if host.cpu_write_u32(config + BUS_NUMBERS, *number).is_err() {
                fail!("config write at {config:#x} aborts though no guest has the device");
            }
        }
        good("STREAM_ATTACH", host.attach(smmu, id, domain))?;
        if host.start(smmu, Transfer::ToMemory(page)).is_ok() {
            attack_worked!("the host's CPU reaches the registers of the guest's device behind SMMU {smmu}");
        }
        let mut written = None;
        for config in pages(host, smmu) {
            if host.cpu_write_u32(config + BUS_NUMBERS, RENUMBERED).is_ok() {
                let seen = config_read(host, config)?;
                if seen == RENUMBERED {
                    attack_worked!(
                        "bus numbers at {config:#x} are {seen:#x} while a guest has the device behind SMMU {smmu}"
                    );
                }
                written = Some((config, seen));
                continue;
            }
            if host.cpu_read_u32(config + BUS_NUMBERS) != Err(Abort) {
                fail!("config read at {config:#x} passes while a guest has the device behind SMMU {smmu}");
            }
            refused += 1;
        }
        if let Some((config, seen)) = written {
            fail!(
                "config write at {config:#x} passes while a guest has the device behind SMMU {smmu}; it reads {seen:#x}"
            );
        }
        good("STREAM_DETACH", host.detach(smmu, id))?;
        for (config, number) in pages(host, smmu).zip(numbers) {
            let now = config_read(host, config)?;
            if now != number {
                fail!("bus numbers at {config:#x} changed from {number:#x} to {now:#x}");
            }
        }
    }
    if refused == 0 {
        return Err(Stop::NotApplicable(text!("no config space on this machine")));
    }
    // Each device still is its StreamID: it reaches its guest's page, which comes back with what it wrote gone.
    load_buffers(host, |smmu| 0x6275_7300 + smmu as u64)?;
    good("MEM_SHARE", host.share(page, unit, abi::Recipient::Guest(guest)))?;
    Errands::each(host, |smmu| Some((domain, Transfer::ToMemory(page + smmu as u64 * 64)))).run(host)?;
    for smmu in (0..host.smmus()).filter(|&smmu| host.stream(smmu, Device::Delayed).is_some()) {
        if host.cpu_read_u64(page + smmu as u64 * 64) != Ok(0x6275_7300 + smmu as u64) {
            fail!("the guest's device behind SMMU {smmu} does not reach its page any more");
        }
        let _ = host.cpu_write_u64(page + smmu as u64 * 64, 0);
    }
    good("MEM_UNSHARE", host.unshare(page, unit, abi::Recipient::Guest(guest)))?;
    Errands::each(host, |smmu| Some((domain, Transfer::ToMemory(page + smmu as u64 * 64)))).run(host)?;
    for smmu in (0..host.smmus()).filter(|&smmu| host.stream(smmu, Device::Delayed).is_some()) {
        all_zero(host, page + smmu as u64 * 64, 8, "after the unshare")?;
    }
    drain(host)?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    Ok(text!("{refused} config pages refused, bus numbers as they were"))
}

fn config_read<H: Host>(host: &H, config: u64) -> Result<u32, Stop> {
    host.cpu_read_u32(config + BUS_NUMBERS)
        .map_err(|_| Stop::Failed(text!("config read at {config:#x} aborts though no guest has the device")))
}
