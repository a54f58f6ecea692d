//! Devices that do DMA all the time while memory changes hands.

use super::super::support::{HOST, attach_all, block, detach_all, drain, good, unit};
use super::super::{Check, Outcome, Stop};
use crate::call::Calls;
use crate::host::{Dma, Host};
use crate::text::Text;
use crate::{attack_worked, fail, text};
use abi::GuestHandle;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use spin::Mutex;

/// The most CPUs that give and take memory, one less than a job may run on.
const MAX_PAGES: usize = 8;
/// How often each of them does, at the most.
const ROUNDS: u32 = 400;
/// Bytes between what two CPUs give, more than a unit.
const APART: u64 = 0x1_0000;

/// Phases of a page, in turn: the host's; MEM_DONATE is under way; a guest's; MEM_RECLAIM is under way.
const PHASES: u32 = 4;
const HOSTS: u32 = 0;
const GUESTS: u32 = 2;

pub(super) fn check<H: Host>() -> Check<H> {
    Check {
        name: "DMA all the time",
        expected: "while CPUs donate and reclaim, DMA that begins after a donation and ends before the reclaim faults, and all other lands",
        run: attack,
    }
}

/// What one CPU gives and takes.
struct Page {
    guest: GuestHandle,
    /// Counts up by one with each change of phase.
    phase: AtomicU32,
    /// DMA writes to it that have ended.
    writes: AtomicU32,
}

struct Arena<'a, H> {
    host: &'a H,
    unit: u64,
    rounds: u32,
    pages: [Option<Page>; MAX_PAGES],
    /// CPUs that still give and take.
    working: AtomicU32,
    stopped: AtomicBool,
    landed: AtomicU32,
    faulted: AtomicU32,
    racing: AtomicU32,
    failure: Mutex<Option<Text>>,
}

fn attack<H: Host>(host: &H) -> Outcome {
    let cpus = host.on_each_cpu(&|_| {});
    let givers = (cpus - 1).min(MAX_PAGES);
    if givers == 0 {
        return Err(Stop::NotApplicable(text!("the machine has one CPU")));
    }
    let mut pages = [const { None }; MAX_PAGES];
    for page in pages.iter_mut().take(givers) {
        let guest = good("GUEST_CREATE", host.create_guest())?;
        *page = Some(Page { guest, phase: AtomicU32::new(0), writes: AtomicU32::new(0) });
    }
    attach_all(host, HOST)?;
    let arena = Arena {
        host,
        unit: unit(host)?,
        rounds: host.rounds().min(ROUNDS),
        pages,
        working: AtomicU32::new(givers as u32),
        stopped: AtomicBool::new(false),
        landed: AtomicU32::new(0),
        faulted: AtomicU32::new(0),
        racing: AtomicU32::new(0),
        failure: Mutex::new(None),
    };
    host.on_each_cpu(&|cpu| arena.work(cpu));
    if let Some(failure) = *arena.failure.lock() {
        return Err(Stop::Failed(failure));
    }
    let [landed, faulted, racing] =
        [&arena.landed, &arena.faulted, &arena.racing].map(|count| count.load(Ordering::Relaxed));
    if landed == 0 || faulted == 0 || racing == 0 {
        fail!(
            "{landed} DMA writes landed, {faulted} faulted and {racing} raced with a call: not all of it was tried"
        );
    }
    detach_all(host)?;
    drain(host)?;
    for page in arena.pages.iter().flatten() {
        good("GUEST_DESTROY", host.destroy_guest(page.guest))?;
    }
    Ok(text!(
        "{givers} CPUs, {} rounds each; {landed} DMA writes landed, {faulted} faulted, {racing} raced with a call",
        arena.rounds
    ))
}

impl<H: Host> Arena<'_, H> {
    /// CPU 0 has the devices do DMA until all others are done.
    fn work(&self, cpu: usize) {
        let outcome = match cpu.checked_sub(1) {
            None => self.drive(),
            Some(index) => match self.pages.get(index).and_then(Option::as_ref) {
                Some(page) => {
                    let outcome = self.give_and_take(index, page);
                    self.working.fetch_sub(1, Ordering::Release);
                    outcome
                }
                None => Ok(()),
            },
        };
        if let Err(Stop::Failed(why) | Stop::NotApplicable(why)) = outcome {
            self.failure.lock().get_or_insert(text!("{why}"));
            self.stopped.store(true, Ordering::Relaxed);
        }
    }

    /// Where the device behind an SMMU writes in a page.
    fn place(&self, index: usize, smmu: usize) -> u64 {
        block(self.host, 5) + index as u64 * APART.max(self.unit) + smmu as u64 * 64
    }

    fn drive(&self) -> Result<(), Stop> {
        while self.working.load(Ordering::Acquire) != 0 && !self.stopped.load(Ordering::Relaxed) {
            // Keep the event ring from staying full: its content does not matter here.
            good("EVENT_READ", self.host.event())?;
            for smmu in 0..self.host.smmus() {
                for (index, page) in self.pages.iter().flatten().enumerate() {
                    let before = page.phase.load(Ordering::SeqCst);
                    let seen = self.host.dma_write(smmu, self.place(index, smmu));
                    let after = page.phase.load(Ordering::SeqCst);
                    page.writes.fetch_add(1, Ordering::SeqCst);
                    self.judge(smmu, index, seen, (before == after).then_some(before % PHASES))?;
                }
            }
        }
        Ok(())
    }

    /// What a DMA write must come to that began and ended in one phase.
    fn judge(&self, smmu: usize, index: usize, seen: Dma, phase: Option<u32>) -> Result<(), Stop> {
        let count = match (phase, seen) {
            (Some(GUESTS), Dma::Landed) => attack_worked!(
                "DMA behind SMMU {smmu} landed at {:#x}, which was a guest's from before it began until after it ended",
                self.place(index, smmu)
            ),
            (Some(GUESTS), Dma::Faulted) => &self.faulted,
            (Some(HOSTS), Dma::Landed) => &self.landed,
            (Some(GUESTS | HOSTS), seen) => {
                fail!(
                    "DMA behind SMMU {smmu} to {:#x}: {seen:?}, in phase {phase:?}",
                    self.place(index, smmu)
                )
            }
            (_, Dma::Landed | Dma::Faulted | Dma::Elsewhere) => &self.racing,
            (_, seen) => fail!("DMA behind SMMU {smmu} to {:#x}: {seen:?}", self.place(index, smmu)),
        };
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn give_and_take(&self, index: usize, page: &Page) -> Result<(), Stop> {
        let (start, host) = (self.place(index, 0), self.host);
        let mark = start + self.unit - 8;
        let next = || page.phase.fetch_add(1, Ordering::SeqCst);
        // Now and then a phase lasts until a device's write has begun and ended in it. The other calls follow each other at once.
        let last = |round: u32| {
            let before = page.writes.load(Ordering::SeqCst);
            while round.is_multiple_of(8)
                && page.writes.load(Ordering::SeqCst).wrapping_sub(before) < 2
                && !self.stopped.load(Ordering::Relaxed)
            {
                core::hint::spin_loop();
            }
        };
        for round in 0..self.rounds {
            last(round);
            if self.stopped.load(Ordering::Relaxed) {
                break;
            }
            if host.cpu_write_u64(mark, !0).is_err() {
                fail!("CPU write to its own page {start:#x}: abort");
            }
            next();
            good("MEM_DONATE", host.donate(start, self.unit, page.guest))?;
            next();
            last(round);
            if host.cpu_read_u64(mark).is_ok() {
                attack_worked!("the CPU reads {mark:#x}, which is a guest's");
            }
            next();
            good("MEM_RECLAIM", host.reclaim(start, self.unit, page.guest))?;
            next();
            if host.cpu_read_u64(mark) != Ok(0) {
                fail!("the CPU reads {:x?} at {mark:#x} after the reclaim", host.cpu_read_u64(mark));
            }
        }
        Ok(())
    }
}
