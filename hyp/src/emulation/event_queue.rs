//! The event queue (IHI 0070, 3.5, 6.3.29 to 6.3.32, 7.2 and 7.4), and what the host is told of an event.

use smmuv3::address::PhysAddr;
use smmuv3::event::{EVENT_BYTES, EventKind, EventRecord};
use smmuv3::registers::{CR2, EVENTQ_CONS, EVENTQ_PROD, GERROR, IRQ_CTRL};

use super::registers::{EVENTQEN, Queue, queue_base, queue_log2, wrap_mask};
use super::stream_table::Found;
use super::{Backend, DrainedEvent, EmulatedSmmu, Interrupt};
use crate::smmu::NoEvent;

/// Events that one call takes from the SMMU at the most.
const DELIVERIES: usize = 32;

impl EmulatedSmmu {
    /// Moves events from the SMMU to the host's queue, or discards them where the architecture does; bounded.
    ///
    /// The SMMU interrupted for them itself. For events that are left it does not do so again: they are taken by the next call, for
    /// which the driver comes back.
    pub fn deliver_events(&mut self, backend: &impl Backend) {
        let end = (0..DELIVERIES)
            .try_for_each(|_| backend.next_event().map(|drained| self.deliver(backend, &drained)));
        if end != Err(NoEvent::QueueEmpty) {
            self.call_back(backend);
        }
        // Events that the SMMU could not write are lost too.
        self.look_for_errors(backend);
        if backend.take_overflow() && self.registers.cr0 & EVENTQEN != 0 {
            self.lose_event();
        }
    }

    /// Writes an event to the host's queue as far as the host may see it.
    fn deliver(&mut self, backend: &impl Backend, drained: &DrainedEvent) {
        if let Some(record) = self.shown(backend, drained) {
            self.write_record(backend, record);
        }
    }

    /// Has the driver look at its queue again because there may be events for which the SMMU does not interrupt. It does that by itself if
    /// it finds any now.
    #[cold]
    fn call_back(&self, backend: &impl Backend) {
        if self.waiting_events() == 0 {
            self.interrupt(backend);
        }
    }

    /// Interrupts for the event queue, if the driver wants that.
    fn interrupt(&self, backend: &impl Backend) {
        if IRQ_CTRL::EVENTQ_IRQEN.is_set(self.registers.irq_ctrl) {
            backend.raise(Interrupt::EventQueue);
        }
    }

    /// Forgets what happened while the queue was not enabled: an SMMU records nothing then (7.2.1).
    #[cold]
    pub(super) fn discard_events(&self, backend: &impl Backend) {
        if !backend.discard_events() {
            self.call_back(backend);
        }
    }

    /// Says that an event was lost, unless that is said already (7.4).
    fn lose_event(&mut self) {
        let (prod, cons) = (self.registers.eventq_prod, self.registers.eventq_cons);
        if EVENTQ_PROD::OVFLG.read(prod) == EVENTQ_CONS::OVACKFLG.read(cons) {
            self.registers.eventq_prod ^= EVENTQ_PROD::OVFLG::SET.value;
        }
    }

    /// Records an event that EL2 found, not the SMMU.
    pub(super) fn record(&mut self, backend: &impl Backend, record: EventRecord) {
        let was_empty = self.waiting_events() == 0;
        let written = self.write_record(backend, record);
        if written && was_empty {
            self.interrupt(backend);
        }
    }

    /// What the host is told of an event of one of its streams; `None` if nothing.
    ///
    /// What the SMMU says of a stream that EL2 makes abort is about EL2's way to do so. An SMMU with the host's table would have found
    /// there is no STE, or one that is not valid; an STE that aborts is silent (7.3.7). A stream that passes by now had another STE then: which,
    /// nobody knows any more, but a driver lets a stream abort before it lets it pass.
    fn shown(&self, backend: &impl Backend, drained: &DrainedEvent) -> Option<EventRecord> {
        let event = drained.record.decode();
        if !self.is_active() {
            return None;
        }
        let of_el2 =
            matches!(event.kind, EventKind::BAD_STREAM_ID | EventKind::STE_FETCH | EventKind::BAD_STE);
        if !drained.parked && !of_el2 {
            return drained.record.for_owner();
        }
        let (stream, substream) = (event.stream, event.substream);
        match self.look_up(backend, stream) {
            Found::OutOfRange { .. } => CR2::RECINVSID
                .is_set(self.registers.cr2)
                .then(|| EventRecord::configuration(EventKind::BAD_STREAM_ID, stream, substream)),
            Found::Unreadable { address, .. } => Some(EventRecord::ste_fetch(stream, substream, address.0)),
            Found::Entry(claim, _) if claim.is_valid() && claim.aborts() => None,
            Found::Entry(..) if drained.parked && backend.hosts_stream(stream).is_some() => None,
            Found::Entry(..) => Some(EventRecord::configuration(EventKind::BAD_STE, stream, substream)),
        }
    }

    /// Writes a record to the queue if it is writable (7.2.1); whether it was written. One that finds the queue full is lost, and
    /// sets the overflow flag unless it is set already (7.4).
    fn write_record(&mut self, backend: &impl Backend, record: EventRecord) -> bool {
        let aborted = self.registers.active_errors() & GERROR::EVENTQ_ABT_ERR::SET.value != 0;
        if self.registers.cr0 & EVENTQEN == 0 || aborted || self.failed {
            return false;
        }
        let log2 = queue_log2(&self.ids, Queue::Events, self.registers.eventq_base);
        let prod = self.registers.eventq_prod;
        if self.waiting_events() >= 1 << log2 {
            self.lose_event();
            return false;
        }
        let mask = wrap_mask(log2);
        let index = EVENTQ_PROD::WR.read(prod) & mask;
        let base = queue_base(self.registers.eventq_base, log2, EVENT_BYTES.trailing_zeros());
        let address = PhysAddr(base.wrapping_add(u64::from(index & mask >> 1) * EVENT_BYTES));
        if backend.write_event(address, record).is_err() {
            self.activate(backend, GERROR::EVENTQ_ABT_ERR::SET.value);
            return false;
        }
        let overflow = prod & EVENTQ_PROD::OVFLG::SET.value;
        self.registers.eventq_prod = index.wrapping_add(1) & mask | overflow;
        true
    }

    /// Events in the queue, or more than it has entries if its indexes are inconsistent.
    fn waiting_events(&self) -> u32 {
        let log2 = queue_log2(&self.ids, Queue::Events, self.registers.eventq_base);
        let (prod, cons) = (self.registers.eventq_prod, self.registers.eventq_cons);
        EVENTQ_PROD::WR.read(prod).wrapping_sub(EVENTQ_CONS::RD.read(cons)) & wrap_mask(log2)
    }
}
