//! The ITS, whose device, collection and translation tables and whose command queue are memory that it reads and writes by itself (IHI 0069).
//!
//! EL2 gives the ITS tables of its own, so interrupts work whatever the host says. What tells whether the ITS keeps anything at a place is that two things
//! that the host puts at the same place get in each other's way.

use super::super::support::{block, cpu_store, cpu_value};
use super::super::{Check, Outcome, Stop};
use super::lpis::Lpis;
use super::{Prey, side_doors};
use crate::devices::gic::its::{BASER, BASERS, CBASER, COMMAND_BYTES, CREADR, CTLR, CWRITER, VALID};
use crate::devices::gic::lpis::TABLE_BYTES;
use crate::host::{Abort, Host};
use crate::{attack_worked, fail, text};

/// GITS_CREADR.Stalled.
const STALLED: u64 = 1 << 0;
/// GITS_BASER<n>.Type, bits 58:56.
const TYPE_SHIFT: u32 = 56;
const TYPE_DEVICES: u64 = 1;
const TYPE_COLLECTIONS: u64 = 4;
/// Bytes of what the checks use of a table, a queue or an ITT, each of which is a page.
const PAGE_BYTES: u64 = 0x1000;
/// The collection that interrupts go to.
const COLLECTION: u64 = 1;

/// A command (IHI 0069, 5.3).
type Command = [u64; 4];

/// MAPC of a collection to the first Redistributor, by its processor number.
const fn map_collection(collection: u64) -> Command {
    [0x09, 0, VALID | collection, 0]
}

/// MAPD of a device with 2 EventIDs.
const fn map_device(device: u64, itt: u64) -> Command {
    [0x08 | device << 32, 0, VALID | itt, 0]
}

const fn unmap_device(device: u64) -> Command {
    [0x08 | device << 32, 0, 0, 0]
}

/// MAPTI of event 1 of a device.
const fn map_event(device: u64, intid: u64) -> Command {
    [0x0a | device << 32, 1 | intid << 32, COLLECTION, 0]
}

/// INT of event 1 of a device.
const fn interrupt(device: u64) -> Command {
    [0x03 | device << 32, 1, 0, 0]
}

pub(super) fn checks<H: Host>() -> [Check<H>; 3] {
    [
        Check {
            name: "ITS tables in the hypervisor",
            expected: "the ITS keeps neither devices nor collections where the host's GITS_BASER<n> say; its interrupts come",
            run: tables,
        },
        Check {
            name: "an ITT in the hypervisor",
            expected: "the ITS keeps no event where the host's MAPD says; the events that were mapped come, and no others",
            run: translation_table,
        },
        Check {
            name: "an ITS command queue in the hypervisor",
            expected: "the queue stalls at its first command; one in the host's memory is worked off",
            run: queue,
        },
    ]
}

/// The ITS and the LPIs that it makes, with tables and a queue in block 3.
struct Its<'h, H: Host> {
    host: &'h H,
    base: u64,
    lpis: Lpis<'h, H>,
    queue: u64,
    written: u64,
}

impl<'h, H: Host> Its<'h, H> {
    fn start(host: &'h H) -> Result<Self, Stop> {
        let base = side_doors(host)?.its;
        if host.cpu_read_u32(base + CTLR).is_err() {
            return Err(Stop::NotApplicable(text!("the host has no ITS")));
        }
        let memory = block(host, 3);
        let lpis = Lpis::new(host)?;
        if !lpis.turn_on(memory, memory + TABLE_BYTES)? {
            return Err(Stop::NotApplicable(text!("the Redistributor has no LPIs")));
        }
        Ok(Self { host, base, lpis, queue: memory + 2 * TABLE_BYTES, written: 0 })
    }

    /// Where the host has tables of its own: a page for each index.
    fn own(&self, index: u64) -> u64 {
        self.queue + (1 + index) * PAGE_BYTES
    }

    fn write(&self, register: u64, value: u64) -> Result<(), Stop> {
        let aborted = |_: Abort| Stop::Failed(text!("a store to the ITS at {register:#x} aborted"));
        self.host.cpu_write_u64(self.base + register, value).map_err(aborted)
    }

    fn read(&self, register: u64) -> Result<u64, Stop> {
        let aborted = |_: Abort| Stop::Failed(text!("a load of the ITS at {register:#x} aborted"));
        self.host.cpu_read_u64(self.base + register).map_err(aborted)
    }

    fn turn(&self, on: bool) -> Result<(), Stop> {
        let aborted = |_: Abort| Stop::Failed(text!("a store to GITS_CTLR aborted"));
        self.host.cpu_write_u32(self.base + CTLR, u32::from(on)).map_err(aborted)
    }

    /// Turns the ITS off and on, with its tables and its queue here.
    fn place(&mut self, devices: u64, collections: u64, queue: u64) -> Result<(), Stop> {
        self.turn(false)?;
        for register in (0..BASERS).map(|n| BASER + 8 * n) {
            let fixed = self.read(register)?;
            let place = match fixed >> TYPE_SHIFT & 0b111 {
                TYPE_DEVICES => devices,
                TYPE_COLLECTIONS => collections,
                _ => continue,
            };
            self.write(register, VALID | place)?;
            let seen = self.read(register)?;
            if seen & (VALID | 0xffff_ffff_f000) != VALID | place {
                fail!("a table at {place:#x}, and the register reads {seen:#x}");
            }
        }
        self.write(CBASER, VALID | queue)?;
        self.written = 0;
        self.queue = queue;
        self.turn(true)
    }

    /// Writes commands to the queue and has them done. Whether all were.
    fn run(&mut self, commands: &[Command]) -> Result<bool, Stop> {
        for command in commands {
            for (word, at) in command.iter().zip((self.queue + self.written..).step_by(8)) {
                cpu_store(self.host, at, *word)?;
            }
            self.written = (self.written + COMMAND_BYTES) % PAGE_BYTES;
        }
        self.write(CWRITER, self.written)?;
        Ok(self.read(CREADR)? == self.written)
    }

    /// As [`Its::run`], which must succeed.
    fn done(&mut self, commands: &[Command]) -> Result<(), Stop> {
        if !self.run(commands)? {
            fail!("the ITS did not do its commands: GITS_CREADR {:#x}", self.read(CREADR)?);
        }
        Ok(())
    }

    fn end(self) -> Result<(), Stop> {
        self.turn(false)?;
        // A device table that moves loses its devices, and what they have goes back to the pool.
        for register in (0..BASERS).map(|n| BASER + 8 * n) {
            self.write(register, 0)?;
        }
        self.write(CBASER, 0)?;
        self.lpis.turn_off()
    }
}

/// Whether the ITS keeps its tables at `place`: a device's entry there is destroyed when a collection with the same number is mapped.
fn keeps_tables_at<H: Host>(its: &mut Its<'_, H>, place: u64, intid: u64) -> Result<bool, Stop> {
    const DEVICE: u64 = 5;
    let itt = its.own(3);
    let queue = its.queue;
    its.place(place, place, queue)?;
    its.done(&[map_collection(COLLECTION), map_device(DEVICE, itt)])?;
    its.done(&[map_event(DEVICE, intid), interrupt(DEVICE)])?;
    let control = its.lpis.is_pending(intid)?;
    its.done(&[map_collection(DEVICE), map_event(DEVICE, intid + 1), interrupt(DEVICE)])?;
    let lost = !its.lpis.is_pending(intid + 1)?;
    if !control {
        fail!("LPI {intid} did not come, with tables at {place:#x}");
    }
    Ok(lost)
}

fn tables<H: Host>(host: &H) -> Outcome {
    let mut its = Its::start(host)?;
    let prey = Prey::new(host)?;
    // In the host's own memory the tables could be seen.
    let own = its.own(0);
    for at in (own..own + PAGE_BYTES).step_by(8) {
        cpu_store(host, at, 0)?;
    }
    let follows = keeps_tables_at(&mut its, own, 8192)?;
    let mut written = 0;
    for at in (own..own + PAGE_BYTES).step_by(8) {
        written += u32::from(cpu_value(host, at)? != 0);
    }
    for ((whose, place), intid) in prey.places().into_iter().zip([8200, 8208]) {
        if keeps_tables_at(&mut its, place, intid)? {
            attack_worked!(
                "the ITS keeps devices and collections at {place:#x}, which is {whose}: mapping collection 5 lost device 5 ({written} entries of the host's own table written)"
            );
        }
    }
    if follows || written != 0 {
        fail!("the ITS keeps its tables where the host says: {written} entries at {own:#x}");
    }
    its.end()?;
    prey.end()?;
    Ok(text!("3 places named, nothing kept there, 6 interrupts came"))
}

fn translation_table<H: Host>(host: &H) -> Outcome {
    const MAPPED: u64 = 6;
    const OTHER: u64 = 7;
    let mut its = Its::start(host)?;
    let prey = Prey::new(host)?;
    let (devices, collections, queue, own) = (its.own(0), its.own(1), its.queue, its.own(2));
    let [(_, hypervisor), (_, guests)] = prey.places();
    let places =
        [("the host's", own), ("the hypervisor's", hypervisor + 0x2000), ("a guest's", guests + 0x2000)];
    for at in (own..own + PAGE_BYTES).step_by(8) {
        cpu_store(host, at, 0)?;
    }
    let mut at_own = false;
    for ((whose, place), intid) in places.into_iter().zip([8192, 8200, 8208]) {
        its.place(devices, collections, queue)?;
        its.done(&[map_collection(COLLECTION), map_device(MAPPED, place), map_device(OTHER, place)])?;
        its.done(&[map_event(MAPPED, intid), interrupt(MAPPED)])?;
        if !its.lpis.is_pending(intid)? {
            fail!("LPI {intid} did not come, with an ITT at {place:#x}");
        }
        // Mapped again, to another LPI: the event of the other device would be this one.
        its.done(&[map_event(MAPPED, intid + 1), interrupt(OTHER)])?;
        let leaks = its.lpis.is_pending(intid + 1)?;
        its.done(&[unmap_device(MAPPED), unmap_device(OTHER)])?;
        if leaks && place != own {
            attack_worked!(
                "the ITS keeps events at {place:#x}, which is {whose}: that of device 6 came for device 7, whose ITT is there too"
            );
        }
        at_own |= leaks;
    }
    let mut written = 0;
    for at in (own..own + PAGE_BYTES).step_by(8) {
        written += u32::from(cpu_value(host, at)? != 0);
    }
    if at_own || written != 0 {
        fail!("the ITS keeps events where the host says: {written} words at {own:#x}");
    }
    its.end()?;
    prey.end()?;
    Ok(text!("3 places named, nothing kept there, 3 interrupts came"))
}

fn queue<H: Host>(host: &H) -> Outcome {
    let mut its = Its::start(host)?;
    let prey = Prey::new(host)?;
    let (devices, collections, own) = (its.own(0), its.own(1), its.queue);
    its.place(devices, collections, own)?;
    its.done(&[map_collection(COLLECTION)])?;
    for (whose, place) in prey.places() {
        its.place(devices, collections, place)?;
        its.write(CWRITER, COMMAND_BYTES)?;
        match its.read(CREADR)? {
            STALLED => {}
            COMMAND_BYTES => {
                attack_worked!("the ITS took what is at {place:#x}, which is {whose}, for a command")
            }
            other => fail!("GITS_CREADR {other:#x}, with a queue at {place:#x}"),
        }
    }
    // The control: commands in the host's memory are done again, after all that.
    let itt = its.own(3);
    its.place(devices, collections, own)?;
    let intid = 8192;
    its.done(&[
        map_collection(COLLECTION),
        map_device(6, itt),
        map_event(6, intid),
        interrupt(6),
        unmap_device(6),
    ])?;
    if !its.lpis.is_pending(intid)? {
        fail!("LPI {intid} did not come, with the queue in the host's memory");
    }
    its.end()?;
    prey.end()?;
    Ok(text!("2 queues stalled, the host's own worked off before and after"))
}
