//! All CPUs donate, reclaim, share, attach and detach at once while devices do DMA.

use super::errands::delayed_devices;
use super::support::{BLOCK, HOST, block, drain, good, holds_dma_value, stream, unit};
use super::{Check, Outcome, Stop};
use crate::call::Calls;
use crate::host::{Device, Dma, Host};
use crate::text::Text;
use crate::{fail, text};
use abi::{DomainHandle, GuestHandle, Recipient, Statistic, Status};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use spin::Mutex;

/// The most CPUs that have work.
const MAX_CPUS: usize = 8;

pub(super) fn checks<H: Host>() -> [Check<H>; 1] {
    [Check {
        name: "all CPUs at once",
        expected: "10,000 rounds of donate, reclaim, share, attach and detach with DMA: each does what it says, in every order",
        run: at_once,
    }]
}

/// What all CPUs share.
struct Arena<'a, H> {
    host: &'a H,
    unit: u64,
    guests: [Option<GuestHandle>; MAX_CPUS],
    /// A page that every CPU wants to donate.
    hot_page: u64,
    /// A stream behind SMMU 0 that every CPU wants to attach, if there is one.
    hot_stream: Option<u32>,
    round: AtomicU32,
    lost: AtomicU32,
    dma: AtomicU32,
    stopped: AtomicBool,
    failure: Mutex<Option<Text>>,
}

/// One CPU: its guest, its device and the pages that are its alone.
struct Worker {
    cpu: usize,
    guest: GuestHandle,
    /// The SMMU whose immediate device is this CPU's.
    smmu: Option<usize>,
    random: u64,
}

fn at_once<H: Host>(host: &H) -> Outcome {
    let unit = unit(host)?;
    let mut guests = [None; MAX_CPUS];
    for guest in &mut guests {
        *guest = Some(good("GUEST_CREATE", host.create_guest())?);
    }
    let hot_stream = delayed_devices(host).ok().and(host.stream(0, Device::Delayed));
    let arena = Arena {
        host,
        unit,
        guests,
        hot_page: block(host, 1),
        hot_stream,
        round: AtomicU32::new(0),
        lost: AtomicU32::new(0),
        dma: AtomicU32::new(0),
        stopped: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    let cpus = host.on_each_cpu(&|cpu| arena.work(cpu));
    if let Some(failure) = *arena.failure.lock() {
        return Err(Stop::Failed(failure));
    }
    drain(host)?;
    for guest in guests.into_iter().flatten() {
        good("GUEST_DESTROY", host.destroy_guest(guest))?;
    }
    for statistic in [Statistic::QuarantinedPages, Statistic::DeadSmmus] {
        let value = good("STATISTICS", host.statistic(statistic))?;
        if value != 0 {
            fail!("{statistic:?} is {value}");
        }
    }
    let (lost, dma) = (arena.lost.into_inner(), arena.dma.into_inner());
    Ok(text!(
        "{} rounds on {cpus} CPUs, {dma} DMA writes, {lost} races lost with the documented error",
        host.rounds()
    ))
}

impl<H: Host> Arena<'_, H> {
    fn work(&self, cpu: usize) {
        let Some(guest) = self.guests.get(cpu).copied().flatten() else {
            return;
        };
        let smmu = (cpu < self.host.smmus()).then_some(cpu);
        let mut worker =
            Worker { cpu, guest, smmu, random: 0x9e37_79b9_7f4a_7c15 ^ ((cpu as u64 + 1) << 17) };
        while !self.stopped.load(Ordering::Relaxed)
            && self.round.fetch_add(1, Ordering::Relaxed) < self.host.rounds()
        {
            if let Err(stop) = self.round(&mut worker) {
                let (Stop::Failed(why) | Stop::NotApplicable(why)) = stop;
                self.failure.lock().get_or_insert(text!("CPU {cpu}: {why}"));
                self.stopped.store(true, Ordering::Relaxed);
            }
        }
    }

    fn round(&self, worker: &mut Worker) -> Result<(), Stop> {
        // Keep the event ring from staying full: its content does not matter here.
        good("EVENT_READ", self.host.event())?;
        match worker.next(16) {
            0..=5 => self.give_and_take(worker),
            6..=7 => self.share(worker),
            8..=10 => self.come_and_go(worker),
            11..=12 => self.lend_device(worker),
            13..=14 => self.race_for_page(worker),
            _ => self.race_for_stream(worker),
        }
    }

    /// A range that is this CPU's alone. Four CPUs' ranges lie in one block, so that all of them split and join the
    /// same blocks; now and then it is a whole block.
    fn range(&self, worker: &mut Worker) -> (u64, u64) {
        const REGION: u64 = 512 << 10;
        if worker.cpu < 3 && worker.next(128) == 0 {
            return (block(self.host, 4 + worker.cpu as u64), BLOCK);
        }
        let most = (REGION / self.unit).max(1);
        let units = if worker.next(64) == 0 { most / 2 } else { 1 + worker.next(4) }.clamp(1, most);
        let first = worker.next(most - units + 1);
        (block(self.host, 2) + worker.cpu as u64 * REGION + first * self.unit, units * self.unit)
    }

    fn dma(&self, smmu: usize, address: u64, expected: Dma, when: &str) -> Result<(), Stop> {
        self.dma.fetch_add(1, Ordering::Relaxed);
        super::support::dma(self.host, smmu, address, expected, when)
    }

    fn give_and_take(&self, worker: &mut Worker) -> Result<(), Stop> {
        let (start, size) = self.range(worker);
        let last = start + size - self.unit;
        if self.host.cpu_write_u64(last, !0).is_err() {
            fail!("CPU write to its own page {last:#x}: abort");
        }
        good("MEM_DONATE", self.host.donate(start, size, worker.guest))?;
        if self.host.cpu_read_u64(last).is_ok() {
            fail!("CPU reads {last:#x} after donating it");
        }
        good("MEM_RECLAIM", self.host.reclaim(start, size, worker.guest))?;
        match self.host.cpu_read_u64(last) {
            Ok(0) => Ok(()),
            seen => fail!("CPU reads {seen:x?} at {last:#x} after reclaiming it"),
        }
    }

    fn share(&self, worker: &mut Worker) -> Result<(), Stop> {
        let (start, size) = self.range(worker);
        let with = if worker.next(2) == 0 { Recipient::Hypervisor } else { Recipient::Guest(worker.guest) };
        good("MEM_SHARE", self.host.share(start, size, with))?;
        good("MEM_UNSHARE", self.host.unshare(start, size, with))
    }

    /// The host's device: lands, faults while the page is away, lands again, faults when detached.
    fn come_and_go(&self, worker: &mut Worker) -> Result<(), Stop> {
        let Some(smmu) = worker.smmu else {
            return self.give_and_take(worker);
        };
        let id = stream(self.host, smmu, Device::Immediate)?;
        let (start, size) = self.range(worker);
        good("STREAM_ATTACH", self.host.attach(smmu, id, HOST))?;
        self.dma(smmu, start, Dma::Landed, "with its own page")?;
        good("MEM_DONATE", self.host.donate(start, size, worker.guest))?;
        self.dma(smmu, start, Dma::Faulted, "after the donation")?;
        good("MEM_RECLAIM", self.host.reclaim(start, size, worker.guest))?;
        self.dma(smmu, start, Dma::Landed, "after the reclaim")?;
        if !self.host.cpu_read_u64(start).is_ok_and(holds_dma_value) {
            fail!("the CPU does not see what the device wrote at {start:#x}");
        }
        good("STREAM_DETACH", self.host.detach(smmu, id))?;
        self.dma(smmu, start, Dma::Faulted, "after the detach")
    }

    fn lend_device(&self, worker: &mut Worker) -> Result<(), Stop> {
        let Some(smmu) = worker.smmu else {
            return self.share(worker);
        };
        let id = stream(self.host, smmu, Device::Immediate)?;
        good("STREAM_ATTACH", self.host.attach(smmu, id, DomainHandle::Guest(worker.guest)))?;
        let (start, size) = self.range(worker);
        good("MEM_DONATE", self.host.donate(start, size, worker.guest))?;
        good("MEM_RECLAIM", self.host.reclaim(start, size, worker.guest))?;
        good("STREAM_DETACH", self.host.detach(smmu, id))
    }

    /// Of several CPUs that donate the same page one wins; the others hear that it is not the host's.
    fn race_for_page(&self, worker: &mut Worker) -> Result<(), Stop> {
        match self.host.donate(self.hot_page, self.unit, worker.guest) {
            Ok(()) => good("MEM_RECLAIM", self.host.reclaim(self.hot_page, self.unit, worker.guest)),
            Err(refused) if refused.status() == Some(Status::WrongState) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(refused) => fail!("MEM_DONATE of the page that all want: {refused}"),
        }
    }

    fn race_for_stream(&self, worker: &mut Worker) -> Result<(), Stop> {
        let Some(id) = self.hot_stream else {
            return self.race_for_page(worker);
        };
        let domain = if worker.next(2) == 0 { HOST } else { DomainHandle::Guest(worker.guest) };
        match self.host.attach(0, id, domain) {
            Ok(()) => good("STREAM_DETACH", self.host.detach(0, id)),
            Err(refused) if refused.status() == Some(Status::Busy) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(refused) => fail!("STREAM_ATTACH of the stream that all want: {refused}"),
        }
    }
}

impl Worker {
    /// A number below `bound` (xorshift64).
    fn next(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }
}
