//! The event queue (IHI 0070, 3.5.2 and 7.2) of one SMMU, and the ring that all of them are
//! drained into.

use smmuv3::address::PhysAddr;
use smmuv3::event::{EVENT_BYTES, Event, EventRecord};
use smmuv3::registers::{EVENTQ_CONS, EVENTQ_CONS_OFFSET, EVENTQ_PROD, EVENTQ_PROD_OFFSET};

use super::registers::Registers;
use crate::platform::Platform;
use crate::sync::{Guarded, Rank};

/// log2 of the entries that a queue has where the SMMU allows it: 4 KiB.
pub(super) const LOG2_ENTRIES: u8 = 7;

/// Events that wait for the host at most; the oldest is kept when more come.
pub const RING_ENTRIES: usize = 256;

/// An event as `EVENT_READ` answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedEvent {
    /// Bits 7:0 event number (7.3), 39:8 StreamID, 47:40 index of the SMMU, 48 the address is valid, 49
    /// write, 50 stage 2.
    pub source: u64,
    /// InputAddr, or 0.
    pub address: u64,
    /// IPA of a stage-2 fault, bits 11:0 zero, or 0.
    pub ipa: u64,
}

impl RecordedEvent {
    const NONE: Self = Self { source: 0, address: 0, ipa: 0 };

    /// An event of the SMMU with that index.
    pub const fn new(smmu: u8, event: &Event) -> Self {
        Self {
            source: event.kind.0 as u64
                | (event.stream as u64) << 8
                | (smmu as u64) << 40
                | (event.address.is_some() as u64) << 48
                | (event.write as u64) << 49
                | (event.stage2 as u64) << 50,
            address: match event.address {
                Some(address) => address,
                None => 0,
            },
            ipa: match event.ipa {
                Some(ipa) => ipa,
                None => 0,
            },
        }
    }
}

/// Events of all SMMUs that the host has not read.
pub(super) struct EventRing {
    events: [RecordedEvent; RING_ENTRIES],
    /// Place of the oldest event.
    oldest: usize,
    waiting: usize,
    /// Events read from hardware queues.
    pub(super) drained: u64,
    /// Events lost, here or in hardware.
    pub(super) lost: u64,
    /// `lost` as the last [`EventRing::take`] told it.
    told: u64,
}

impl Guarded for EventRing {
    const RANK: Rank = Rank::EventRing;
}

impl EventRing {
    pub(super) const fn new() -> Self {
        Self {
            events: [RecordedEvent::NONE; RING_ENTRIES],
            oldest: 0,
            waiting: 0,
            drained: 0,
            lost: 0,
            told: 0,
        }
    }

    pub(super) fn push(&mut self, event: RecordedEvent) {
        let place = (self.oldest + self.waiting) % RING_ENTRIES;
        match self.events.get_mut(place) {
            Some(entry) if self.waiting < RING_ENTRIES => {
                *entry = event;
                self.waiting += 1;
            }
            _ => self.lost = self.lost.wrapping_add(1),
        }
    }

    /// The oldest event, and how many were lost since the last call that took one.
    pub(super) fn take(&mut self) -> Option<(RecordedEvent, u64)> {
        if self.waiting == 0 {
            return None;
        }
        let event = *self.events.get(self.oldest)?;
        self.oldest = (self.oldest + 1) % RING_ENTRIES;
        self.waiting -= 1;
        let lost = self.lost.wrapping_sub(self.told);
        self.told = self.lost;
        Some((event, lost))
    }
}

/// An event for the host's own driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainedEvent {
    /// The record, as the SMMU wrote it.
    pub record: EventRecord,
    /// When it was taken from the SMMU's queue the driver did not have the stream, or its entry was absent, aborted or was refused: what the SMMU
    /// recorded is about EL2's own way to make it abort.
    pub parked: bool,
}

/// Events of one SMMU that wait for the host's own driver, as the SMMU wrote them, in a page of EL2's.
pub(super) struct DriverEvents {
    page: PhysAddr,
    /// [`DrainedEvent::parked`] of what is in each place, a bit each.
    parked: [u64; 2],
    /// Events that came in.
    pushed: u64,
    /// Events that were taken out.
    taken: u64,
    /// Some were lost since [`DriverEvents::take_overflow`] was last asked.
    overflowed: bool,
}

impl Guarded for DriverEvents {
    const RANK: Rank = Rank::DriverEvents;
}

impl DriverEvents {
    /// More than these are lost, as an SMMU loses what does not fit into its queue.
    const MAX: u64 = 4096 / EVENT_BYTES;
    const _A_BIT_EACH: () = assert!(Self::MAX == 2 * u64::BITS as u64);

    pub(super) const fn new() -> Self {
        Self { page: PhysAddr(0), parked: [0; 2], pushed: 0, taken: 0, overflowed: false }
    }

    /// The page that events are kept in.
    #[cfg(feature = "oracle")]
    pub(super) const fn page(&self) -> PhysAddr {
        self.page
    }

    /// Takes the page that events are kept in, before there are any.
    pub(super) fn place(&mut self, page: PhysAddr) {
        self.page = page;
    }

    const fn at(&self, count: u64) -> PhysAddr {
        self.page.offset(count % Self::MAX * EVENT_BYTES)
    }

    /// Where in `parked` the bit of a place is: the word, and the bit in it.
    const fn bit(count: u64) -> (usize, u64) {
        let place = count % Self::MAX;
        ((place / 64) as usize, 1 << (place % 64))
    }

    pub(super) fn push<P: Platform>(&mut self, p: &P, EventRecord(words): EventRecord, parked: bool) {
        if self.pushed.wrapping_sub(self.taken) >= Self::MAX {
            self.overflowed = true;
            return;
        }
        for (offset, word) in (0..).step_by(8).zip(words) {
            p.write_u64(self.at(self.pushed).offset(offset), word);
        }
        let (word, bit) = Self::bit(self.pushed);
        if let Some(word) = self.parked.get_mut(word) {
            *word = if parked { *word | bit } else { *word & !bit };
        }
        self.pushed = self.pushed.wrapping_add(1);
    }

    pub(super) fn take<P: Platform>(&mut self, p: &P) -> Option<DrainedEvent> {
        if self.pushed == self.taken {
            return None;
        }
        let (word, bit) = Self::bit(self.taken);
        let (at, parked) = (self.at(self.taken), self.parked.get(word).is_some_and(|word| word & bit != 0));
        self.taken = self.taken.wrapping_add(1);
        Some(DrainedEvent { record: read_record(p, at), parked })
    }

    pub(super) fn lose(&mut self) {
        self.overflowed = true;
    }

    /// Forgets all of them, and that others were lost.
    pub(super) fn discard(&mut self) {
        self.taken = self.pushed;
        self.overflowed = false;
    }

    pub(super) fn take_overflow(&mut self) -> bool {
        core::mem::take(&mut self.overflowed)
    }
}

fn read_record<P: Platform>(p: &P, at: PhysAddr) -> EventRecord {
    EventRecord([0, 8, 16, 24].map(|offset| p.read_u64(at.offset(offset))))
}

/// Why there is no event for a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEvent {
    /// The SMMU's own queue was empty: the SMMU interrupts for the next one.
    QueueEmpty,
    /// There were events of others, and after these there may be more: for what is in the queue already there is no interrupt.
    MayBeMore,
}

/// What [`EventQueue::drain`] found besides events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Drained {
    /// Events that were read.
    pub(super) events: u64,
    /// The hardware queue was full, and lost one event or more.
    pub(super) overflowed: bool,
}

/// The event queue of one SMMU.
pub(super) struct EventQueue {
    registers: Registers,
    base: PhysAddr,
    log2_entries: u8,
    /// Events read since the queue was enabled; the register holds its low bits.
    consumed: u64,
    /// OVACKFLG, in its place.
    overflow_acknowledged: u32,
    enabled: bool,
}

impl Guarded for EventQueue {
    const RANK: Rank = Rank::EventQueue;
}

impl EventQueue {
    pub(super) const fn new(registers: Registers) -> Self {
        Self {
            registers,
            base: PhysAddr(0),
            log2_entries: 0,
            consumed: 0,
            overflow_acknowledged: 0,
            enabled: false,
        }
    }

    /// Where it is.
    #[cfg(feature = "oracle")]
    pub(super) const fn base(&self) -> PhysAddr {
        self.base
    }

    /// Takes the memory of the queue, before it is enabled: `1 << log2_entries` records at `base`.
    pub(super) fn place(&mut self, base: PhysAddr, log2_entries: u8) {
        self.base = base;
        self.log2_entries = log2_entries;
        self.enabled = true;
    }

    /// Takes at most `budget` events out of the queue and gives them to `sink`. An overflow is acknowledged.
    pub(super) fn drain<P: Platform>(
        &mut self,
        p: &P,
        budget: u64,
        mut sink: impl FnMut(EventRecord),
    ) -> Drained {
        if !self.enabled {
            return Drained::default();
        }
        let entries = 1u64 << self.log2_entries;
        let mask = entries * 2 - 1;
        let produced = self.registers.read_u32(p, EVENTQ_PROD_OFFSET);
        let waiting = u64::from(EVENTQ_PROD::WR.read(produced)).wrapping_sub(self.consumed) & mask;
        let overflow = produced & EVENTQ_PROD::OVFLG.val(1).value;
        let overflowed = overflow != self.overflow_acknowledged;
        if waiting == 0 && !overflowed {
            return Drained::default();
        }
        // A producer index that is further away than the queue is long says nothing about what is in the
        // queue.
        let (read, skipped) = if waiting > entries { (0, waiting) } else { (waiting.min(budget), 0) };
        // PROD before the records.
        p.full_barrier();
        for _ in 0..read {
            let at = self.base.offset((self.consumed & (entries - 1)) * EVENT_BYTES);
            sink(read_record(p, at));
            self.consumed = self.consumed.wrapping_add(1);
        }
        self.consumed = self.consumed.wrapping_add(skipped);
        self.overflow_acknowledged = overflow;
        // The records are read before the SMMU may overwrite them.
        p.full_barrier();
        let acknowledged = if overflow != 0 { EVENTQ_CONS::OVACKFLG.val(1).value } else { 0 };
        self.registers.write_u32(p, EVENTQ_CONS_OFFSET, (self.consumed & mask) as u32 | acknowledged);
        Drained { events: read, overflowed }
    }
}
