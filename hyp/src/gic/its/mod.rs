//! An ITS, emulated for the host: everything that the hardware reads and writes is memory of the hypervisor's.
//!
//! An ITS reads commands from a queue, and keeps its mappings in memory: devices and collections in tables (GITS_BASER<n>), interrupts of
//! a device in an ITT that MAPD names. It trusts what is in them: a device table entry holds the address of an ITT, which it
//! then reads and writes, with no SMMU in front of it. So the control frame is absent from the host's stage 2, and of what the host
//! writes there nothing but numbers reaches the hardware:
//!
//! * the device and collection tables were given from the pool at boot. The host's GITS_BASER<n> read as written, and the memory that
//!   they name is not used. Two-level tables are not offered (Indirect is RES0), as IHI 0069, 12.19.1 allows;
//! * commands are copied once from the host's queue, checked against an allow list and made anew in a queue of the hypervisor's
//!   ([`queue`]);
//! * the ITT of MAPD comes from the pool, and goes back when the hardware has unmapped the device. The host's address is not used.
//!
//! A command that is not on the list, that names a device, event, collection, LPI or Redistributor which there is not, or that the pool has no memory
//! for is ignored, and the queue goes on, as IHI 0069 allows for a command error (5.3.2). When the hardware stops, or the host's
//! queue is not memory of the host's, the emulated queue stalls (GITS_CREADR.Stalled).

mod command;
mod devices;
#[cfg(feature = "oracle")]
mod oracle;
mod queue;
pub(super) mod registers;
mod setup;

use core::fmt;

use smmuv3::address::PhysAddr;

use super::access::{Access, Answer, Half};
use super::redistributor::Redistributors;
use super::{FIRST_LPI, Services};
use crate::list::List;
use crate::memory::pool::PAGE_LOG2;
use crate::platform::{Platform, waited_for};
use crate::smmu::TIMEOUT_NS;
use crate::sync::{Guarded, Rank};
use command::{COMMAND_BYTES, Command, Event, Words};
use devices::{Devices, Itt};
use queue::{Batch, CAPACITY, QueueFailed, ShadowQueue};
use registers::*;
pub use setup::{Unusable, take_over, turn_off};

/// Bytes of the control frame.
pub const FRAME_BYTES: u64 = 0x1_0000;

/// The most commands of the host's that one trap works off.
pub const BATCH: usize = 32;
/// The most bytes of ITTs that one trap wipes, but for one ITT that is larger alone.
const WIPE_BYTES: u64 = 1 << 20;

/// Each command of the host's becomes two at most, one of which takes an ITT away.
const _: () = assert!(2 * BATCH <= CAPACITY);

/// An ITT that goes back to the pool when the command with this index in its batch, an unmapping, is done.
#[derive(Clone, Copy)]
struct Leaving {
    command: usize,
    itt: Itt,
}

type Leavings = List<Leaving, { 2 * BATCH }>;

/// An ITS.
pub struct Its {
    base: PhysAddr,
    queue: ShadowQueue,
    devices: Devices,
    /// GITS_TYPER as the host sees it.
    typer: u64,
    /// What the host cannot write of GITS_BASER<n>; 0 for those that it does not have.
    fixed: [u64; BASERS],
    /// ICIDs are below this.
    collections: u32,
    intid_bits: u8,
    /// The host's registers.
    enabled: bool,
    cbaser: u64,
    cwriter: u64,
    creadr: u64,
    stalled: bool,
    basers: [u64; BASERS],
    /// The hardware did not do what it was told: it gets no command any more, and what it may use stays.
    failed: bool,
    refusal_logged: bool,
    stall_logged: bool,
}

impl Guarded for Its {
    const RANK: Rank = Rank::Its;
}

impl fmt::Display for Its {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (devices, events) = (self.device_bits(), self.event_bits());
        write!(f, "DeviceIDs of {devices} bits, EventIDs of {events}, {} collections", self.collections)
    }
}

impl Its {
    fn new(
        base: PhysAddr,
        typer: u64,
        fixed: [u64; BASERS],
        collections: u32,
        intid_bits: u8,
        queue: ShadowQueue,
        devices: Devices,
    ) -> Self {
        Self {
            base,
            queue,
            devices,
            typer,
            fixed,
            collections,
            intid_bits,
            enabled: false,
            cbaser: 0,
            cwriter: 0,
            creadr: 0,
            stalled: false,
            basers: fixed,
            failed: false,
            refusal_logged: false,
            stall_logged: false,
        }
    }

    const fn device_bits(&self) -> u8 {
        (self.typer >> TYPER_DEVBITS_SHIFT & 0x1f) as u8 + 1
    }

    const fn event_bits(&self) -> u8 {
        (self.typer >> TYPER_ID_BITS_SHIFT & 0x1f) as u8 + 1
    }

    const fn targets_are_addresses(&self) -> bool {
        self.typer & TYPER_PTA != 0
    }

    /// Emulates an access at `offset` bytes into the control frame. Registers of 64 bits are accessed whole or by halves, those of 32
    /// bits whole; any other access, or one of another register, reads as zero and ignores writes.
    pub fn access<P: Platform>(
        &mut self,
        services: Services<'_, P>,
        redistributors: &Redistributors,
        offset: u64,
        access: Access,
    ) -> Answer {
        let p = services.platform;
        let (register, half) = Half::at(offset);
        match (access.size_bytes, access.write) {
            (8, None) if offset == register => Answer::Done(self.read_u64(register)),
            (4, None) if offset.is_multiple_of(4) => Answer::Done(match offset {
                CTLR => {
                    let quiescent = p.read_register_u32(self.base.offset(CTLR)) & CTLR_QUIESCENT;
                    u64::from(quiescent | u32::from(self.enabled))
                }
                IIDR | IDENTIFICATION..FRAME_BYTES => p.read_register_u32(self.base.offset(offset)).into(),
                _ => half.of(self.read_u64(register)),
            }),
            (8, Some(value)) if offset == register => {
                self.write_u64(services, redistributors, register, value)
            }
            (4, Some(value)) if offset == CTLR => self.write_ctlr(services, redistributors, value as u32),
            (4, Some(value)) if offset.is_multiple_of(4) => {
                let value = half.replaced(self.read_u64(register), value);
                self.write_u64(services, redistributors, register, value)
            }
            _ => Answer::Done(0),
        }
    }

    fn read_u64(&self, register: u64) -> u64 {
        match register {
            TYPER => self.typer,
            CBASER => self.cbaser,
            CWRITER => self.cwriter,
            CREADR => self.creadr | if self.stalled { CREADR_STALLED } else { 0 },
            _ => baser_index(register).and_then(|n| self.basers.get(n)).copied().unwrap_or(0),
        }
    }

    fn write_u64<P: Platform>(
        &mut self,
        services: Services<'_, P>,
        redistributors: &Redistributors,
        register: u64,
        value: u64,
    ) -> Answer {
        match register {
            // UNPREDICTABLE while it is enabled (IHI 0069, 12.19.2): ignored.
            CBASER if !self.enabled => {
                self.cbaser = value & CBASER_FIELDS;
                self.creadr = 0;
                self.cwriter = 0;
                self.stalled = self.failed;
                Answer::Done(0)
            }
            CWRITER => {
                let offset = value & OFFSET;
                // Outside of the queue: no further commands are processed (12.19.4).
                if offset >= self.queue_bytes() {
                    return Answer::Done(0);
                }
                self.cwriter = offset;
                if value & CWRITER_RETRY != 0 {
                    self.stalled = self.failed;
                }
                self.work(services, redistributors)
            }
            _ => match baser_index(register) {
                Some(n) if !self.enabled => self.write_baser(services, n, value),
                _ => Answer::Done(0),
            },
        }
    }

    fn write_ctlr<P: Platform>(
        &mut self,
        services: Services<'_, P>,
        redistributors: &Redistributors,
        value: u32,
    ) -> Answer {
        let enabled = value & CTLR_ENABLED != 0 && !self.failed;
        if enabled && !self.enabled {
            match self.turn_on(services.platform) {
                Ok(()) => self.enabled = true,
                Err(QueueFailed) => self.fail(services.platform),
            }
        } else if !enabled && self.enabled {
            self.enabled = false;
            self.turn_off(services.platform);
        }
        self.work(services, redistributors)
    }

    /// Turns the hardware on as soon as it is quiescent: what it does else is UNPREDICTABLE (IHI 0069, GITS_CTLR.Enabled).
    fn turn_on<P: Platform>(&self, p: &P) -> Result<(), QueueFailed> {
        let register = self.base.offset(CTLR);
        if !waited_for(p, register, CTLR_QUIESCENT, CTLR_QUIESCENT, TIMEOUT_NS) {
            return Err(QueueFailed);
        }
        p.write_register_u32(register, CTLR_ENABLED);
        Ok(())
    }

    fn turn_off<P: Platform>(&self, p: &P) {
        p.write_register_u32(self.base.offset(CTLR), 0);
    }

    /// Bytes of the host's queue; 0 when it has none.
    const fn queue_bytes(&self) -> u64 {
        if self.cbaser & VALID == 0 { 0 } else { ((self.cbaser & CBASER_SIZE) + 1) << PAGE_LOG2 }
    }

    /// Whether the host says that there is a table of this type; one that the hardware does not have in memory is always there.
    fn has_table(&self, wanted: u64) -> bool {
        let is_wanted = |baser: &u64| baser & BASER_FIXED != 0 && baser >> BASER_TYPE_SHIFT & 0b111 == wanted;
        self.basers.iter().find(|baser| is_wanted(baser)).is_none_or(|baser| baser & VALID != 0)
    }

    /// A table that changes its place is a new one, and a new device table has no devices: they are unmapped first, in bounded steps.
    fn write_baser<P: Platform>(&mut self, services: Services<'_, P>, n: usize, value: u64) -> Answer {
        let (Some(baser), Some(fixed)) = (self.basers.get(n).copied(), self.fixed.get(n).copied()) else {
            return Answer::Done(0);
        };
        if fixed == 0 {
            return Answer::Done(0);
        }
        let new = value & BASER_FIELDS | fixed;
        let is_devices = fixed >> BASER_TYPE_SHIFT & 0b111 == TYPE_DEVICES;
        if is_devices && (baser ^ new) & BASER_PLACE != 0 && !self.failed {
            match self.forget_devices(services) {
                Ok(true) => {}
                Ok(false) => return Answer::Again,
                Err(QueueFailed) => self.fail(services.platform),
            }
        }
        if let Some(baser) = self.basers.get_mut(n) {
            *baser = new;
        }
        Answer::Done(0)
    }

    /// Unmaps some of the devices; whether none is left. The ITS is off, and is turned on for it: only commands unmap with certainty.
    fn forget_devices<P: Platform>(&mut self, services: Services<'_, P>) -> Result<bool, QueueFailed> {
        let p = services.platform;
        let mut batch = Batch::default();
        let mut leavings = Leavings::new();
        for _ in 0..BATCH {
            let Some(device) = self.devices.first(p) else { break };
            self.unmap(services, device, &mut batch, &mut leavings);
        }
        if batch.is_empty() {
            return Ok(true);
        }
        self.turn_on(p)?;
        let done = self.send(services, &batch, &leavings);
        self.turn_off(p);
        done?;
        Ok(self.devices.first(p).is_none())
    }

    /// Works off a part of the host's queue, if there is something to do.
    fn work<P: Platform>(&mut self, services: Services<'_, P>, redistributors: &Redistributors) -> Answer {
        if !self.enabled || self.failed || self.stalled || self.creadr == self.cwriter {
            return Answer::Done(0);
        }
        let Some(claimed) = self.copy(services) else {
            self.stalled = true;
            if !self.stall_logged {
                self.stall_logged = true;
                log::warn!("the ITS at {} stalls: its queue is not memory of the host's", self.base);
            }
            return Answer::Done(0);
        };
        let mut batch = Batch::default();
        let mut leavings = Leavings::new();
        let mut wiped_bytes = 0;
        let mut done = 0;
        for words in claimed.iter() {
            let command = Command::decode(*words);
            let itt_bytes = match command {
                Some(Command::MapDevice { event_bits, .. }) if event_bits <= self.event_bits() => {
                    self.itt_bytes(event_bits)
                }
                _ => 0,
            };
            if wiped_bytes > 0 && wiped_bytes + itt_bytes > WIPE_BYTES {
                break;
            }
            wiped_bytes += itt_bytes;
            done += COMMAND_BYTES;
            let accepted = command.and_then(|command| {
                self.translate(services, redistributors, command, &mut batch, &mut leavings)
            });
            if accepted.is_none() && !self.refusal_logged {
                self.refusal_logged = true;
                log::warn!("the ITS at {} ignores a command of the host's: {words:x?}", self.base);
            }
        }
        if !batch.is_empty() && self.send(services, &batch, &leavings).is_err() {
            self.fail(services.platform);
            return Answer::Done(0);
        }
        self.creadr = (self.creadr + done) % self.queue_bytes().max(COMMAND_BYTES);
        if self.creadr == self.cwriter { Answer::Done(0) } else { Answer::Again }
    }

    /// Copies the next commands of the host's queue; `None` when one is not in memory of the host's.
    fn copy<P: Platform>(&self, services: Services<'_, P>) -> Option<List<Words, BATCH>> {
        let p = services.platform;
        let mut copied = List::new();
        let mut at = self.creadr;
        // Under the lock the pages stay the host's, and what is copied is the host's to show.
        let memory = services.memory.lock();
        while at != self.cwriter {
            let place = PhysAddr((self.cbaser & CBASER_ADDRESS) + at);
            memory.check_host_page(p, place).ok()?;
            let words = [0, 8, 16, 24].map(|offset| p.read_host_u64(place.offset(offset)));
            if copied.push(words).is_err() {
                break;
            }
            at = (at + COMMAND_BYTES) % self.queue_bytes().max(COMMAND_BYTES);
        }
        Some(copied)
    }

    const fn itt_bytes(&self, event_bits: u8) -> u64 {
        let entry_bytes = ((self.typer & TYPER_ITT_ENTRY_SIZE) >> 4) + 1;
        entry_bytes << event_bits
    }

    /// Checks a command and appends what the hardware gets for it; `None`, and nothing is appended, if it is not accepted.
    fn translate<P: Platform>(
        &self,
        services: Services<'_, P>,
        redistributors: &Redistributors,
        command: Command,
        batch: &mut Batch,
        leavings: &mut Leavings,
    ) -> Option<()> {
        let p = services.platform;
        let is_device = |device: u32| device >> self.device_bits() == 0;
        let is_event = |Event { device, event }: Event| {
            let itt = is_device(device).then(|| self.devices.get(p, device)).flatten();
            itt.is_some_and(|itt| event >> itt.event_bits == 0)
        };
        let is_collection = |collection: u16| u32::from(collection) < self.collections;
        let is_lpi = |intid: u32| u64::from(intid) >= FIRST_LPI && u64::from(intid) >> self.intid_bits == 0;
        let by_address = self.targets_are_addresses();
        let is_target = |target: u64| redistributors.targets(by_address).any(|other| other == target);
        let is_legal = match command {
            Command::MapDevice { device, event_bits } => {
                let legal = is_device(device) && event_bits <= self.event_bits();
                if !legal || !self.has_table(TYPE_DEVICES) {
                    return None;
                }
                return self.map(services, device, event_bits, batch, leavings);
            }
            Command::UnmapDevice { device } => {
                // Of a device that is not mapped there is nothing to unmap.
                if is_device(device) {
                    self.unmap(services, device, batch, leavings);
                    return Some(());
                }
                false
            }
            Command::MapCollection { collection, target } => {
                is_collection(collection) && self.has_table(TYPE_COLLECTIONS) && target.is_none_or(is_target)
            }
            Command::MapInterrupt { event, intid, collection } => {
                is_event(event) && is_lpi(intid) && is_collection(collection)
            }
            Command::MapIdentity { event, collection } => {
                is_event(event) && is_lpi(event.event) && is_collection(collection)
            }
            Command::Move { event, collection } => is_event(event) && is_collection(collection),
            Command::Discard(event)
            | Command::Invalidate(event)
            | Command::Interrupt(event)
            | Command::Clear(event) => is_event(event),
            Command::InvalidateAll { collection } => is_collection(collection),
            // Pending interrupts move from table to table, so there must be two. Another CPU may turn LPIs off before the ITS has done it.
            // Then it does nothing there, and neither do MOVI and the others: a Redistributor whose EnableLPIs is 0 ignores commands
            // about LPIs (IHI 0069, GICR_CTLR). Its tables stay pinned until RWP says that it is done with what came before.
            Command::MoveAll { from, to } => {
                [from, to].iter().all(|target| redistributors.has_lpis_on(p, by_address, *target))
            }
            Command::Sync { target } => is_target(target),
        };
        if is_legal { batch.push(command.encode(0)).map(|_| ()) } else { None }
    }

    /// Maps a device with a new ITT. If it is mapped already that mapping ends first.
    fn map<P: Platform>(
        &self,
        services: Services<'_, P>,
        device: u32,
        event_bits: u8,
        batch: &mut Batch,
        leavings: &mut Leavings,
    ) -> Option<()> {
        let Services { platform: p, pool, .. } = services;
        let pages = self.itt_bytes(event_bits).div_ceil(1 << PAGE_LOG2).next_power_of_two();
        let order = pages.trailing_zeros() as u8;
        let place = pool.take_zeroed(p, order).ok()?;
        self.unmap(services, device, batch, leavings);
        let itt = Itt { place, order, event_bits };
        if self.devices.insert(p, pool, device, itt).is_err() {
            pool.give(p, place, order);
            return None;
        }
        // There is room: a batch has two commands for each of the host's.
        batch.push(Command::MapDevice { device, event_bits }.encode(place.0)).map(|_| ())
    }

    /// Unmaps a device, if it is mapped. Its ITT leaves when the hardware has done it.
    fn unmap<P: Platform>(
        &self,
        services: Services<'_, P>,
        device: u32,
        batch: &mut Batch,
        leavings: &mut Leavings,
    ) {
        let Services { platform: p, pool, .. } = services;
        if let Some(itt) = self.devices.remove(p, pool, device)
            && let Some(command) = batch.push(Command::UnmapDevice { device }.encode(0))
        {
            // There is room: a command of the host's takes one away at most.
            let _ = leavings.push(Leaving { command, itt });
        }
    }

    /// Sends a batch, waits for it, and gives the ITTs back that the hardware does not use any more.
    fn send<P: Platform>(
        &mut self,
        services: Services<'_, P>,
        batch: &Batch,
        leavings: &Leavings,
    ) -> Result<(), QueueFailed> {
        let Services { platform: p, pool, .. } = services;
        let rejected = self.queue.run(p, batch)?;
        for leaving in leavings.iter() {
            // If the hardware did not unmap the device, it may use the ITT for ever.
            if !rejected.contains(leaving.command) {
                pool.give(p, leaving.itt.place, leaving.itt.order);
            }
        }
        if rejected.any() && !self.refusal_logged {
            self.refusal_logged = true;
            log::warn!("the ITS at {} refuses a command of the host's", self.base);
        }
        Ok(())
    }

    /// The hardware has failed: it is turned off, the host sees a queue that stalls, and no memory that the hardware may use is given back.
    fn fail<P: Platform>(&mut self, p: &P) {
        log::error!("the ITS at {} does not do its commands, and is turned off", self.base);
        self.failed = true;
        self.stalled = true;
        self.enabled = false;
        self.turn_off(p);
    }
}

/// Which GITS_BASER<n> a register is.
fn baser_index(register: u64) -> Option<usize> {
    let index = (register.checked_sub(BASER)? / 8) as usize;
    (index < BASERS).then_some(index)
}
