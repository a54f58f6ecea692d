//! Every bad argument of every call: the documented error, and nothing changed.

mod domains;
mod vsmmus;

use super::snapshot::Snapshot;
use super::support::{block, drain, good, stream, unit};
use super::{Check, Outcome, Stop};
use crate::call::{Calls, Refused};
use crate::host::{Device, Host};
use crate::{fail, text};
use abi::{Call, DomainHandle, Function, GuestHandle, Recipient, Statistic, Status};

pub(super) fn checks<H: Host>() -> [Check<H>; 9] {
    [
        Check {
            name: "bad arguments: ranges",
            expected: "Unaligned or NotRam from every memory call for unaligned, empty, wrapping or foreign ranges, nothing changed",
            run: ranges,
        },
        Check {
            name: "bad arguments: owners",
            expected: "WrongState for wrong owners, twice, overlaps; UnknownGuest for unknown handles; nothing changed",
            run: owners,
        },
        Check {
            name: "bad arguments: streams",
            expected: "UnknownSmmu, UnknownStream, UnknownGuest, UnknownDomain, Busy or WrongState, nothing changed",
            run: streams,
        },
        Check {
            name: "bad arguments: domains",
            expected: "the documented error for stale, foreign and wrong handles, wrong pages and addresses, what is in use; nothing changed",
            run: domains::domains,
        },
        Check {
            name: "bad arguments: vSMMUs",
            expected: "the documented error for stale, foreign and wrong handles, streams of others, what is in use; nothing changed",
            run: vsmmus::vsmmus,
        },
        Check {
            name: "bad arguments: stream table entries",
            expected: "Illegal with the index of the word for every bit and field that is not the owner's; nothing changed",
            run: vsmmus::entries,
        },
        Check {
            name: "bad arguments: commands",
            expected: "Illegal with the index of the command, also for a stream of another vSMMU, and nothing is sent",
            run: vsmmus::commands,
        },
        Check {
            name: "bad arguments: the other calls",
            expected: "the documented error of each, nothing changed",
            run: others,
        },
        Check { name: "unknown functions", expected: "NotSupported, nothing changed", run: unknown },
    ]
}

/// Makes bad calls, each against the state before all of them.
struct Bad<'a, H> {
    host: &'a H,
    before: Snapshot,
    count: u32,
}

impl<'a, H: Host> Bad<'a, H> {
    fn new(host: &'a H) -> Result<Self, Stop> {
        Ok(Self { host, before: Snapshot::take(host)?, count: 0 })
    }

    fn call(&mut self, function: Function, arguments: [u64; 4], expected: Status) -> Result<(), Stop> {
        self.refusal(function, arguments, expected).map(drop)
    }

    /// The same where the refusal says why, in `X1`.
    fn detailed(
        &mut self,
        function: Function,
        arguments: [u64; 4],
        expected: Status,
        detail: u64,
    ) -> Result<(), Stop> {
        let refusal = self.refusal(function, arguments, expected)?;
        if refusal.detail != detail {
            fail!("{function:?} {arguments:x?} answered {refusal}, not with {detail}");
        }
        Ok(())
    }

    fn refusal(
        &mut self,
        function: Function,
        arguments: [u64; 4],
        expected: Status,
    ) -> Result<Refused, Stop> {
        if Call::of(function).is_none_or(|call| !call.errors.contains(&expected)) {
            fail!("{expected:?} is not documented for {function:?}");
        }
        let refusal = match self.host.call(function, arguments) {
            Err(refusal) if refusal.status() == Some(expected) => refusal,
            Err(refusal) => fail!("{function:?} {arguments:x?} answered {refusal}, not {expected:?}"),
            Ok(_) => fail!("{function:?} {arguments:x?} succeeded, and did not answer {expected:?}"),
        };
        self.count += 1;
        self.before.unchanged(self.host, text!("{function:?} {arguments:x?}").as_str())?;
        Ok(refusal)
    }

    fn done(self) -> Outcome {
        Ok(text!("{} bad calls refused as documented, state the same after each", self.count))
    }
}

const RANGE_CALLS: [Function; 5] = [
    Function::MemShare,
    Function::MemUnshare,
    Function::MemDonate,
    Function::MemReclaim,
    Function::PoolTopUp,
];

fn ranges<H: Host>(host: &H) -> Outcome {
    let unit = unit(host)?;
    let page = block(host, 1);
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let last = 0_u64.wrapping_sub(unit);
    let mut bad = Bad::new(host)?;
    for function in RANGE_CALLS {
        let with = if function == Function::PoolTopUp { 0 } else { guest.to_register() };
        let unaligned = [
            (page + 1, unit),
            (page + unit / 2, unit),
            (page, unit + 1),
            (page, unit - 1),
            (page, unit / 2),
            (page, 0),
            (last, 2 * unit),
            (page, last),
            (page, u64::MAX),
        ];
        for (start, size) in unaligned {
            bad.call(function, [start, size, with, 0], Status::Unaligned)?;
        }
        for start in [host.not_ram(), 1 << 48, 1 << 52, 1 << 63, last] {
            bad.call(function, [start, unit, with, 0], Status::NotRam)?;
        }
        if let Some(target) =
            (0..).map_while(|index| host.forbidden(index)).find(|target| target.name == "UART")
        {
            bad.call(function, [target.address & !(unit - 1), unit, with, 0], Status::NotRam)?;
        }
    }
    for (start, status) in [
        (page + 1, Status::Unaligned),
        (page + unit - 8, Status::Unaligned),
        (host.not_ram(), Status::NotRam),
        (1 << 48, Status::NotRam),
        (last, Status::NotRam),
    ] {
        bad.call(Function::MemQuery, [start, 0, 0, 0], status)?;
    }
    let outcome = bad.done();
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    outcome
}

fn owners<H: Host>(host: &H) -> Outcome {
    let unit = unit(host)?;
    let owned = block(host, 1);
    let with_guest = owned + 2 * unit;
    let with_hypervisor = owned + 4 * unit;
    let free = owned + 6 * unit;
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let other = good("GUEST_CREATE", host.create_guest())?;
    let (g, o) = (guest.to_register(), other.to_register());
    good("MEM_DONATE", host.donate(owned, unit, guest))?;
    good("MEM_SHARE", host.share(with_guest, unit, Recipient::Guest(guest)))?;
    good("MEM_SHARE", host.share(with_hypervisor, unit, Recipient::Hypervisor))?;
    let mut bad = Bad::new(host)?;
    let wrong = Status::WrongState;
    for taken in [owned, with_guest, with_hypervisor] {
        for to in [g, o] {
            bad.call(Function::MemDonate, [taken, unit, to, 0], wrong)?;
            // Overlaps, from below, from above, and all around.
            bad.call(Function::MemDonate, [taken - unit, 2 * unit, to, 0], wrong)?;
            bad.call(Function::MemDonate, [taken, 2 * unit, to, 0], wrong)?;
            bad.call(Function::MemShare, [taken, unit, to, 0], wrong)?;
            bad.call(Function::MemShare, [taken - unit, 3 * unit, to, 0], wrong)?;
        }
        bad.call(Function::MemShare, [taken, unit, 0, 0], wrong)?;
        bad.call(Function::PoolTopUp, [taken, unit, 0, 0], wrong)?;
        bad.call(Function::PoolTopUp, [taken - unit, 2 * unit, 0, 0], wrong)?;
        bad.call(Function::MemReclaim, [taken, unit, o, 0], wrong)?;
        bad.call(Function::MemUnshare, [taken, unit, o, 0], wrong)?;
    }
    for (start, size, from) in [
        (free, unit, g),
        (free, unit, o),
        (with_guest, unit, g),
        (with_hypervisor, unit, g),
        (owned - unit, 2 * unit, g),
        (owned, 2 * unit, g),
        (owned, unit, o),
    ] {
        bad.call(Function::MemReclaim, [start, size, from, 0], wrong)?;
    }
    for (start, size, with) in [
        (free, unit, 0),
        (free, unit, g),
        (owned, unit, g),
        (owned, unit, 0),
        (with_guest, unit, 0),
        (with_guest, unit, o),
        (with_hypervisor, unit, g),
        (with_guest - unit, 2 * unit, g),
        (with_hypervisor, 2 * unit, 0),
    ] {
        bad.call(Function::MemUnshare, [start, size, with, 0], wrong)?;
    }
    if let Some(target) =
        (0..).map_while(|index| host.forbidden(index)).find(|t| t.name == "hypervisor memory")
    {
        let page = target.address & !(unit - 1);
        bad.call(Function::MemDonate, [page, unit, g, 0], wrong)?;
        bad.call(Function::MemReclaim, [page, unit, g, 0], wrong)?;
        bad.call(Function::MemShare, [page, unit, g, 0], wrong)?;
        bad.call(Function::MemUnshare, [page, unit, g, 0], wrong)?;
        bad.call(Function::PoolTopUp, [page, unit, 0, 0], wrong)?;
    }
    let nobody = (1..=u64::from(GuestHandle::MAX)).find(|&handle| handle != g && handle != o).unwrap_or(64);
    for handle in [nobody, 65, 0x100, 0x101, g + 256, g | 1 << 32, u64::MAX] {
        bad.call(Function::MemDonate, [free, unit, handle, 0], Status::UnknownGuest)?;
        bad.call(Function::MemReclaim, [owned, unit, handle, 0], Status::UnknownGuest)?;
        bad.call(Function::MemShare, [free, unit, handle, 0], Status::UnknownGuest)?;
        bad.call(Function::MemUnshare, [with_guest, unit, handle, 0], Status::UnknownGuest)?;
        bad.call(Function::GuestDestroy, [handle, 0, 0, 0], Status::UnknownGuest)?;
    }
    bad.call(Function::MemDonate, [free, unit, 0, 0], Status::UnknownGuest)?;
    bad.call(Function::MemReclaim, [owned, unit, 0, 0], Status::UnknownGuest)?;
    bad.call(Function::GuestDestroy, [0; 4], Status::UnknownGuest)?;
    bad.call(Function::GuestDestroy, [g, 0, 0, 0], Status::Busy)?;
    let outcome = bad.done();
    good("MEM_RECLAIM", host.reclaim(owned, unit, guest))?;
    good("MEM_UNSHARE", host.unshare(with_guest, unit, Recipient::Guest(guest)))?;
    good("MEM_UNSHARE", host.unshare(with_hypervisor, unit, Recipient::Hypervisor))?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    good("GUEST_DESTROY", host.destroy_guest(other))?;
    outcome
}

fn streams<H: Host>(host: &H) -> Outcome {
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let unknown_guest =
        (1..=u64::from(GuestHandle::MAX)).find(|&handle| handle != guest.to_register()).unwrap_or(64);
    let mut count = 0;
    for smmu in 0..host.smmus() {
        let id = stream(host, smmu, Device::Immediate)?;
        let bits = good("SMMU_DESCRIBE", host.describe_smmu(smmu))?.stream_bits;
        let (s, i) = (smmu as u64, u64::from(id));
        let mut bad = Bad::new(host)?;
        for stream in [1 << bits, i | 1 << 32, i | 1 << 63, u64::MAX] {
            bad.call(Function::StreamAttach, [s, stream, 0, 0], Status::UnknownStream)?;
            bad.call(Function::StreamAttach, [s, stream, guest.to_register(), 0], Status::UnknownStream)?;
            bad.call(Function::StreamDetach, [s, stream, 0, 0], Status::UnknownStream)?;
            bad.call(Function::StreamQuery, [s, stream, 0, 0], Status::UnknownStream)?;
        }
        // A StreamID that the SMMU has, but no PCI function: nothing that a guest could get.
        bad.call(
            Function::StreamAttach,
            [s, (1 << bits) - 1, guest.to_register(), 0],
            Status::UnknownStream,
        )?;
        bad.call(Function::StreamAttach, [s, i, unknown_guest, 0], Status::UnknownGuest)?;
        for domain in [65, 0x100, 1 << 32, u64::MAX] {
            bad.call(Function::StreamAttach, [s, i, domain, 0], Status::UnknownDomain)?;
        }
        bad.call(Function::StreamDetach, [s, i, 0, 0], Status::WrongState)?;
        count += bad.count;
        for domain in [DomainHandle::Host, DomainHandle::Guest(guest)] {
            good("STREAM_ATTACH", host.attach(smmu, id, domain))?;
            let mut bad = Bad::new(host)?;
            bad.call(Function::StreamAttach, [s, i, 0, 0], Status::Busy)?;
            bad.call(Function::StreamAttach, [s, i, guest.to_register(), 0], Status::Busy)?;
            count += bad.count;
            good("STREAM_DETACH", host.detach(smmu, id))?;
        }
    }
    let mut bad = Bad::new(host)?;
    let id = u64::from(stream(host, 0, Device::Immediate)?);
    for smmu in [host.smmus() as u64, 63, 64, 255, 256, 1 << 32, u64::MAX] {
        bad.call(Function::SmmuDescribe, [smmu, 0, 0, 0], Status::UnknownSmmu)?;
        bad.call(Function::StreamAttach, [smmu, id, 0, 0], Status::UnknownSmmu)?;
        bad.call(Function::StreamAttach, [smmu, id, guest.to_register(), 0], Status::UnknownSmmu)?;
        bad.call(Function::StreamDetach, [smmu, id, 0, 0], Status::UnknownSmmu)?;
        bad.call(Function::StreamQuery, [smmu, id, 0, 0], Status::UnknownSmmu)?;
    }
    bad.count += count;
    let outcome = bad.done();
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    outcome
}

fn others<H: Host>(host: &H) -> Outcome {
    let unit = unit(host)?;
    drain(host)?;
    let mut bad = Bad::new(host)?;
    for index in [Statistic::ALL.len() as u64, 1 << 32, u64::MAX] {
        bad.call(Function::Statistics, [index, 0, 0, 0], Status::Invalid)?;
    }
    for size in [0, 1, unit - 1, unit + 1, 3 * unit, 4 << 20, 1 << 63, u64::MAX] {
        bad.call(Function::PoolGiveBack, [size, 0, 0, 0], Status::Unaligned)?;
    }
    if good("POOL_STATE", host.pool())?.free_donated == 0 {
        bad.call(Function::PoolGiveBack, [unit, 0, 0, 0], Status::Empty)?;
        bad.call(Function::PoolGiveBack, [2 << 20, 0, 0, 0], Status::Empty)?;
    }
    bad.call(Function::EventRead, [0; 4], Status::Empty)?;
    bad.done()
}

fn unknown<H: Host>(host: &H) -> Outcome {
    let before = Snapshot::take(host)?;
    // Neighbours of known ids, the 32-bit forms, a yielding call, another service's range.
    let ids = [
        0xc600_0003,
        0xc600_000f,
        0xc600_0015,
        0xc600_002f,
        0xc600_0033,
        0xc600_0043,
        0xc600_0058,
        0xc600_0066,
        0xc600_00ff,
        0xc600_ff01,
        0xc601_0000,
        0x8600_0000,
        0x8600_0012,
        0x8600_0024,
        0x4600_0000,
        0x4600_0012,
        0x0600_0012,
        0xc500_0012,
        0xc700_0012,
        0xffff_fff0,
    ];
    for id in ids {
        let [answer, ..] = host.call_raw(id, [block(host, 1), 4096, 1, 0]);
        if answer as u32 != Status::NotSupported.to_register() as u32 {
            fail!("function {id:#x} answered {answer:#x}");
        }
        before.unchanged(host, "an unknown function")?;
    }
    Ok(text!("{} unknown functions", ids.len()))
}
