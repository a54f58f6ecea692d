//! Memory that the host shares stays the host's; a guest's devices reach it while it is shared, and no longer.

use super::errands::{Errands, delayed_devices, load_buffers};
use super::support::{
    BLOCK, HOST, attach_all, block, cpu_reaches, cpu_store, cpu_value, detach_all, dma_everywhere, drain,
    good, owned, unit,
};
use super::{Check, Outcome};
use crate::call::{Calls, Ownership};
use crate::host::{Dma, Host, Transfer};
use crate::{fail, text};
use abi::{DomainHandle, Recipient};

pub(super) fn checks<H: Host>() -> [Check<H>; 2] {
    [
        Check {
            name: "share and unshare",
            expected: "shared with the hypervisor or a guest, memory stays in reach of the host's CPU and DMA, with its contents",
            run: stays,
        },
        Check {
            name: "a guest's device and shared memory",
            expected: "on every SMMU it is refused before the share, reaches memory during it, is refused after",
            run: guest_device,
        },
    ]
}

fn stays<H: Host>(host: &H) -> Outcome {
    let unit = unit(host)?;
    let guest = good("GUEST_CREATE", host.create_guest())?;
    attach_all(host, HOST)?;
    let ranges = [
        (block(host, 1) + unit, unit),
        (block(host, 2), BLOCK),
        (block(host, 3) - unit, 2 * unit),
        (block(host, 3) - unit, BLOCK + 2 * unit),
    ];
    for with in [Recipient::Hypervisor, Recipient::Guest(guest)] {
        for (start, size) in ranges {
            let last = start + size - unit;
            cpu_store(host, start + 16, 0x6b65_6570)?;
            good("MEM_SHARE", host.share(start, size, with))?;
            for page in [start, last] {
                owned(host, page, Ownership::shared(with))?;
                cpu_reaches(host, page + 8, "while shared")?;
                dma_everywhere(host, page, Dma::Landed, "while shared")?;
            }
            for page in [start - unit, start + size] {
                owned(host, page, Ownership::HOST)?;
            }
            good("MEM_UNSHARE", host.unshare(start, size, with))?;
            for page in [start, last] {
                owned(host, page, Ownership::HOST)?;
                cpu_reaches(host, page + 8, "after the unshare")?;
                dma_everywhere(host, page, Dma::Landed, "after the unshare")?;
            }
            if cpu_value(host, start + 16)? != 0x6b65_6570 {
                fail!("contents at {start:#x} changed by sharing");
            }
        }
    }
    detach_all(host)?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    Ok(text!("{} ranges, with the hypervisor and with a guest", ranges.len()))
}

fn guest_device<H: Host>(host: &H) -> Outcome {
    let devices = delayed_devices(host)?;
    let unit = unit(host)?;
    let page = block(host, 4) + 3 * unit;
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let domain = DomainHandle::Guest(guest);
    // Another stream of the guest keeps the guest's tag on every SMMU in use, so that the IOTLBs stay warm in between.
    attach_all(host, domain)?;
    let value = |smmu: usize| 0x7368_6172_6564_0000 + smmu as u64;
    load_buffers(host, value)?;
    for (shared, when) in [(false, "before"), (true, "during"), (false, "after"), (true, "during the second")]
    {
        for smmu in 0..host.smmus() {
            cpu_store(host, page + smmu as u64 * 64, 0)?;
        }
        if shared {
            good("MEM_SHARE", host.share(page, unit, Recipient::Guest(guest)))?;
        }
        Errands::each(host, |smmu| Some((domain, Transfer::ToMemory(page + smmu as u64 * 64)))).run(host)?;
        for smmu in
            (0..host.smmus()).filter(|&smmu| host.stream(smmu, crate::host::Device::Delayed).is_some())
        {
            let seen = cpu_value(host, page + smmu as u64 * 64)?;
            if seen != if shared { value(smmu) } else { 0 } {
                fail!("behind SMMU {smmu} {when} the share: {seen:#x} in memory");
            }
        }
        if shared {
            good("MEM_UNSHARE", host.unshare(page, unit, Recipient::Guest(guest)))?;
        }
    }
    detach_all(host)?;
    drain(host)?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    Ok(text!("{devices} devices: refused, reached, refused, reached"))
}
