//! One SMMU: what it can do, its bring-up (IHI 0070, 6.3 and 3.21), and the streams behind it.

use smmuv3::address::PhysAddr;
use smmuv3::command::Command;
use smmuv3::entry_writer::{EntrySink, store_entry, write_entry, write_in_order};
use smmuv3::features::{Features, IdRegisters, Part};
use smmuv3::invalidation::{self, Queues, Traits};
use smmuv3::registers::{
    CMDQ_BASE_OFFSET, CMDQ_CONS_OFFSET, CMDQ_PROD_OFFSET, CR0, CR1, CR1_OFFSET, CR2, CR2_OFFSET,
    EVENTQ_BASE_OFFSET, EVENTQ_CONS_OFFSET, EVENTQ_IRQ_CFG0_OFFSET, EVENTQ_PROD_OFFSET,
    GERROR_IRQ_CFG0_OFFSET, GERROR_OFFSET, GERRORN_OFFSET, IDR0_OFFSET, IDR1_OFFSET, IDR3_OFFSET,
    IDR5_OFFSET, IIDR_OFFSET, IRQ_CTRL, IRQ_CTRL_OFFSET, IRQ_CTRLACK_OFFSET, PRIQ_IRQ_CFG0_OFFSET,
    QUEUE_BASE, STRTAB_BASE, STRTAB_BASE_CFG_OFFSET, STRTAB_BASE_OFFSET,
};
use smmuv3::ste::StreamTableEntry;

use super::command_queue::{self, CommandQueue, Condition, Fault, OpenQueue, Ticket};
use super::event_queue::{self, DriverEvents, EventQueue};
use super::readers::{NO_STREAM, Reader, Readers};
use super::registers::Registers;
use super::stream_table::{Place, Shape, StreamTable, parking_order, read_entry, read_vmid};
use super::vmids::VmidTable;
use super::{Cause, PARKED_VMID, Pages};
use crate::platform::Platform;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU16, AtomicU64};

/// One SMMU.
pub(crate) struct Smmu {
    registers: Registers,
    pub(crate) features: Features,
    /// Its traits are [`Traits::PLAIN`].
    is_plain: bool,
    stream_table: StreamTable,
    pub(super) commands: Mutex<CommandQueue>,
    pub(super) events: Mutex<EventQueue>,
    /// Whose each VMID is, and whose the events.
    readers: Readers,
    pub(super) driver_events: Mutex<DriverEvents>,
}

impl Smmu {
    /// No SMMU: a place in a table.
    pub(super) const fn none() -> Self {
        Self::new(Registers::new(PhysAddr(0)), Features::NONE)
    }

    const fn new(registers: Registers, features: Features) -> Self {
        Self {
            registers,
            features,
            is_plain: matches!(Traits::of(&features), Traits::PLAIN),
            stream_table: StreamTable::NONE,
            commands: Mutex::new(CommandQueue::new(registers)),
            events: Mutex::new(EventQueue::new(registers)),
            readers: Readers {
                vmids: VmidTable::NONE,
                leaving: AtomicU64::new(NO_STREAM),
                driver_vmid: AtomicU16::new(0),
            },
            driver_events: Mutex::new(DriverEvents::new()),
        }
    }

    /// Reads what the SMMU at `base` can do.
    pub(super) fn probe<P: Platform>(p: &P, base: PhysAddr, part: Option<Part>) -> Result<Self, Cause> {
        let registers = Registers::new(base);
        let ids = IdRegisters {
            idr0: registers.read_u32(p, IDR0_OFFSET),
            idr1: registers.read_u32(p, IDR1_OFFSET),
            idr3: registers.read_u32(p, IDR3_OFFSET),
            idr5: registers.read_u32(p, IDR5_OFFSET),
            iidr: registers.read_u32(p, IIDR_OFFSET),
        };
        let features = Features::probe(&ids);
        let features = part.map_or(features, |part| features.with_errata_of(part));
        match features.unusable() {
            Some(unusable) => Err(Cause::Unusable(unusable)),
            None => Ok(Self::new(registers, features)),
        }
    }

    pub(super) const fn base(&self) -> PhysAddr {
        self.registers.base()
    }

    pub(super) fn shape(&self) -> Shape {
        Shape::new(self.features.stream_bits, self.features.two_level_stream_table)
    }

    /// StreamID bits that can be attached.
    pub(super) const fn stream_bits(&self) -> u8 {
        self.stream_table.shape().stream_bits
    }

    /// Brings the SMMU up with every stream parked. GBPA.ABORT is set and SMMUEN is 0 before; they stay so on
    /// an error.
    pub(super) fn start<P: Platform>(
        &mut self,
        p: &P,
        pages: &mut impl Pages,
        parked: &StreamTableEntry,
        parked_level2: PhysAddr,
    ) -> Result<(), Cause> {
        let shape = self.shape();
        if shape.stream_bits < self.features.stream_bits {
            log::warn!(
                "SMMU {}: StreamIDs of more than {} bits cannot be attached and abort",
                self.base(),
                shape.stream_bits
            );
        }
        let table = StreamTable::build(p, pages, shape, parked, parked_level2).ok_or(Cause::NoMemory)?;
        let command_log2 = self.features.command_queue_log2.min(command_queue::LOG2_ENTRIES);
        let event_log2 = self.features.event_queue_log2.min(event_queue::LOG2_ENTRIES);
        let command_base = pages.take_run(0).ok_or(Cause::NoMemory)?;
        let event_base = pages.take_run(0).ok_or(Cause::NoMemory)?;
        self.driver_events.get_mut().place(pages.take_run(0).ok_or(Cause::NoMemory)?);
        self.readers.vmids = VmidTable::new(p, pages.take_run(VmidTable::ORDER).ok_or(Cause::NoMemory)?);
        // The stream table before the SMMU can read it.
        p.full_barrier();

        let registers = self.registers;
        self.set_up(p)?;
        // STRTAB_BASE and its format are writable while SMMUEN is 0 (6.3.24).
        registers.write_u64(
            p,
            STRTAB_BASE_OFFSET,
            table.base().0 & (STRTAB_BASE::ADDR.mask << STRTAB_BASE::ADDR.shift)
                | STRTAB_BASE::RA.val(1).value,
        );
        registers.write_u32(p, STRTAB_BASE_CFG_OFFSET, shape.configuration());
        self.stream_table = table;

        // Base and indexes of a queue are writable while it is disabled (6.3.26 to 6.3.29).
        registers.write_u64(p, CMDQ_BASE_OFFSET, queue_base(command_base, command_log2));
        registers.write_u32(p, CMDQ_PROD_OFFSET, 0);
        registers.write_u32(p, CMDQ_CONS_OFFSET, 0);
        let mut cr0 = CR0::CMDQEN.val(1).value;
        registers.set_cr0(p, cr0)?;
        {
            let commands = self.commands.get_mut();
            commands.place(command_base, command_log2);
            commands.condition = Condition::Running;
        }
        self.forget_everything(p).map_err(|Fault| Cause::Commands)?;

        registers.write_u64(p, EVENTQ_BASE_OFFSET, queue_base(event_base, event_log2));
        registers.write_u32(p, EVENTQ_PROD_OFFSET, 0);
        registers.write_u32(p, EVENTQ_CONS_OFFSET, 0);
        cr0 |= CR0::EVENTQEN.val(1).value;
        registers.set_cr0(p, cr0)?;
        self.events.get_mut().place(event_base, event_log2);

        // A Translated request is believed only after a check: the host cannot turn this off.
        if self.features.ats {
            cr0 |= CR0::ATSCHK.val(1).value;
            registers.set_cr0(p, cr0)?;
        }
        cr0 |= CR0::SMMUEN.val(1).value;
        registers.set_cr0(p, cr0)?;
        Ok(())
    }

    /// Interrupts off, memory attributes, old errors acknowledged: all that is written while everything is
    /// disabled.
    fn set_up<P: Platform>(&self, p: &P) -> Result<(), Cause> {
        let registers = self.registers;
        registers.set_cr0(p, 0)?;
        registers.write_u32(p, IRQ_CTRL_OFFSET, 0);
        registers.await_u32(p, IRQ_CTRLACK_OFFSET, u32::MAX, 0)?;
        self.forget_msis(p);
        let cached = CR1::QUEUE_IC::WriteBack.value
            | CR1::QUEUE_OC::WriteBack.value
            | CR1::QUEUE_SH::Inner.value
            | CR1::TABLE_IC::WriteBack.value
            | CR1::TABLE_OC::WriteBack.value
            | CR1::TABLE_SH::Inner.value;
        registers.write_u32(p, CR1_OFFSET, cached);
        // The VMIDs of an SMMU are not those of the CPUs: their broadcast maintenance means nothing here.
        let private = CR2::PTM.val(1).value | CR2::RECINVSID.val(1).value;
        registers.write_u32(p, CR2_OFFSET, private);
        registers.write_u32(p, GERRORN_OFFSET, registers.read_u32(p, GERROR_OFFSET));
        Ok(())
    }

    /// Takes away where MSIs go, while interrupts are off: reset, firmware or an earlier kernel left any address there, and nobody translates
    /// the store of an MSI. With address 0 interrupts are wired (3.18).
    fn forget_msis<P: Platform>(&self, p: &P) {
        let Features { msi, pri, .. } = self.features;
        let offsets = [
            (GERROR_IRQ_CFG0_OFFSET, msi),
            (EVENTQ_IRQ_CFG0_OFFSET, msi),
            (PRIQ_IRQ_CFG0_OFFSET, msi && pri),
        ];
        for (offset, _) in offsets.iter().filter(|(_, is_there)| *is_there) {
            self.registers.write_u64(p, *offset, 0);
        }
    }

    /// Invalidates whatever the SMMU cached before (3.21).
    fn forget_everything<P: Platform>(&self, p: &P) -> Result<(), Fault> {
        invalidation::bring_up(self.features.el2).try_for_each(|command| self.run(p, &[command]))
    }

    /// What the walk must know of the SMMU.
    #[inline]
    pub(super) const fn traits(&self) -> Traits {
        Traits::of(&self.features)
    }

    /// Takes the command queue, to append to it.
    #[inline]
    pub(super) fn open<'a, P: Platform>(&'a self, p: &'a P) -> Result<OpenQueue<'a, P>, Fault> {
        OpenQueue::new(p, self.commands.lock())
    }

    /// As [`Smmu::open`], of an SMMU that is [`Traits::PLAIN`]; `None` for others.
    #[inline]
    pub(super) fn open_plain<'a, P: Platform>(&'a self, p: &'a P) -> Result<Option<OpenQueue<'a, P>>, Fault> {
        if self.is_plain { self.open(p).map(Some) } else { Ok(None) }
    }

    /// Waits for commands, and calls `meanwhile` each time they are not complete.
    #[inline]
    pub(super) fn wait<P: Platform>(
        &self,
        p: &P,
        ticket: Ticket,
        meanwhile: impl FnMut(),
    ) -> Result<(), Fault> {
        command_queue::wait(&self.commands, p, ticket, meanwhile)
    }

    /// Posts commands and a CMD_SYNC and waits for them.
    pub(crate) fn run<P: Platform>(&self, p: &P, commands: &[Command]) -> Result<(), Fault> {
        invalidation::run(&OneQueue { p, smmu: self }, 0, commands)
    }

    pub(crate) fn condition(&self) -> Condition {
        self.commands.lock().condition
    }

    /// VMID in the STE of a stream, `None` if the stream table does not cover it.
    pub(crate) fn vmid<P: Platform>(&self, p: &P, stream: u32) -> Option<u16> {
        Some(match self.stream_table.place(p, stream)? {
            Place::Shared => PARKED_VMID,
            Place::Own(at) => read_vmid(p, at),
        })
    }

    /// Who reads the events of a stream: see [`Readers::of`].
    pub(super) fn reader_of<P: Platform>(&self, p: &P, stream: u32) -> Reader {
        self.readers.of(p, stream, || self.vmid(p, stream))
    }

    /// Says that the host's driver has turned the SMMU on, and which VMID its streams have; 0 that it has not.
    pub(crate) fn set_driver_vmid(&self, vmid: u16) {
        self.readers.set_driver_vmid(vmid);
    }

    /// Whether the host's driver has turned the SMMU on.
    #[inline]
    pub(crate) fn has_driver(&self) -> bool {
        self.readers.has_driver()
    }

    /// Turns the wired interrupts of event queue and GERROR on or off.
    pub(crate) fn set_interrupts<P: Platform>(&self, p: &P, events: bool, errors: bool) -> Result<(), Fault> {
        let value = IRQ_CTRL::EVENTQ_IRQEN.val(events.into()) + IRQ_CTRL::GERROR_IRQEN.val(errors.into());
        self.registers.write_u32(p, IRQ_CTRL_OFFSET, value.value);
        self.registers.await_u32(p, IRQ_CTRLACK_OFFSET, u32::MAX, value.value).map_err(|_| Fault)
    }

    /// The stream table.
    #[cfg(feature = "oracle")]
    pub(super) const fn stream_table(&self) -> &StreamTable {
        &self.stream_table
    }

    /// Whose each VMID is.
    pub(crate) const fn vmids(&self) -> &VmidTable {
        &self.readers.vmids
    }

    /// The STE of a stream, `None` if the stream table does not cover it or it is the shared one.
    pub(crate) fn entry<P: Platform>(&self, p: &P, stream: u32) -> Option<StreamTableEntry> {
        match self.stream_table.place(p, stream)? {
            Place::Shared => None,
            Place::Own(at) => Some(read_entry(p, at)),
        }
    }

    /// Says which stream is leaving a guest, before anything else says so; `None` when its last events were drained.
    pub(crate) fn set_leaving(&self, stream: Option<u32>) {
        self.readers.set_leaving(stream);
    }

    /// log2 of the pages that [`Smmu::separate`] needs for the stream, `None` if its STE is its own already.
    pub(crate) fn separate_order<P: Platform>(&self, p: &P, stream: u32) -> Option<u8> {
        (self.stream_table.place(p, stream) == Some(Place::Shared)).then(|| self.stream_table.level2_order())
    }

    /// Gives the span of a stream the level-2 table `table`, all its streams parked. The SMMU may go on using
    /// the shared table, which says the same, until [`Smmu::write_entry`] for a stream of the span makes it
    /// forget.
    pub(crate) fn separate<P: Platform>(
        &self,
        p: &P,
        stream: u32,
        table: PhysAddr,
        parked: &StreamTableEntry,
    ) {
        self.stream_table.separate(p, stream, table, parked);
    }

    /// Makes `target` the STE of a stream whose STE is its own, in the order of [`parking_order`] or else of [`write_entry`]. Returns when
    /// the SMMU has forgotten the old one and no transaction that used it is under way.
    ///
    /// On an error the SMMU may go on with the old STE, and memory has anything between the two.
    pub(crate) fn write_entry<P: Platform>(
        &self,
        p: &P,
        stream: u32,
        target: &StreamTableEntry,
        parked: &StreamTableEntry,
    ) -> Result<(), Fault> {
        let Some(Place::Own(at)) = self.stream_table.place(p, stream) else { return Err(Fault) };
        let current = read_entry(p, at);
        let mut live = LiveEntry { p, smmu: self, stream, at };
        match parking_order(&current, target, parked.root()) {
            Some(order) => write_in_order(&mut live, &current, target, order),
            None => write_entry(&mut live, &current, target),
        }
    }

    /// Stores `target` as the STE of a stream of an SMMU that does not answer any more, so that memory says
    /// how the stream counts.
    pub(crate) fn store_entry<P: Platform>(&self, p: &P, stream: u32, target: &StreamTableEntry) {
        let Some(Place::Own(at)) = self.stream_table.place(p, stream) else { return };
        store_entry(&mut LiveEntry { p, smmu: self, stream, at }, target);
    }
}

/// The STE of a stream, as the entry writer changes it.
struct LiveEntry<'a, P: Platform> {
    p: &'a P,
    smmu: &'a Smmu,
    stream: u32,
    at: PhysAddr,
}

impl<P: Platform> EntrySink for LiveEntry<'_, P> {
    type Fault = Fault;

    fn store(&mut self, word: usize, value: u64) {
        self.p.write_u64(self.at.offset(word as u64 * 8), value);
        // In this order also for the SMMU.
        self.p.full_barrier();
    }

    fn sync(&mut self) -> Result<(), Fault> {
        // Not the STE alone: the descriptor above it may be from before the span had a table of its own.
        self.smmu.run(self.p, &[invalidation::forget_ste(self.stream, false)])
    }
}

/// The queue of one SMMU alone.
struct OneQueue<'a, P: Platform> {
    p: &'a P,
    smmu: &'a Smmu,
}

impl<P: Platform> Queues for OneQueue<'_, P> {
    type Ticket = Ticket;
    type Fault = Fault;
    type Batch<'a>
        = OpenQueue<'a, P>
    where
        Self: 'a;

    fn traits(&self, _: usize) -> Traits {
        self.smmu.traits()
    }

    fn open(&self, _: usize) -> Result<OpenQueue<'_, P>, Fault> {
        self.smmu.open(self.p)
    }

    fn open_plain(&self, _: usize) -> Result<Option<OpenQueue<'_, P>>, Fault> {
        self.smmu.open_plain(self.p)
    }

    fn wait(&self, _: usize, ticket: Ticket) -> Result<(), Fault> {
        self.smmu.wait(self.p, ticket, || {})
    }
}

/// Value of CMDQ_BASE or EVENTQ_BASE. The base is that of a run of pages, which no queue of ours is longer
/// than.
fn queue_base(base: PhysAddr, log2_entries: u8) -> u64 {
    base.0 & (QUEUE_BASE::ADDR.mask << QUEUE_BASE::ADDR.shift)
        | QUEUE_BASE::LOG2SIZE.val(u64::from(log2_entries)).value
        | QUEUE_BASE::ALLOCATE.val(1).value
}
