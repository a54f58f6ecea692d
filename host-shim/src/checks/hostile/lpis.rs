//! The tables of LPIs, which a Redistributor reads and writes by itself (IHI 0069, 12.11).

use super::super::support::{block, cpu_store, cpu_value, good, refused, unit};
use super::super::{Check, Outcome, Stop};
use super::{Prey, side_doors};
use crate::call::Calls;
use crate::devices::gic::lpis::{ALL_ZEROS, CTLR, ENABLE, ID_BITS, PENDBASER, PROPBASER, TABLE_BYTES};
use crate::host::{Abort, Host};
use crate::{attack_worked, fail, text};
use abi::Status;

pub(super) fn checks<H: Host>() -> [Check<H>; 2] {
    [
        Check {
            name: "an LPI configuration table in the hypervisor",
            expected: "LPIs stay off, and so with a guest's memory; with the host's they are on, and it cannot be donated meanwhile",
            run: configuration,
        },
        Check {
            name: "an LPI pending table in the hypervisor",
            expected: "LPIs stay off, and so with a guest's memory; with the host's they are on, and it cannot be donated meanwhile",
            run: pending,
        },
    ]
}

/// The LPIs of the first CPU's Redistributor.
pub(super) struct Lpis<'h, H: Host> {
    host: &'h H,
    frame: u64,
}

impl<'h, H: Host> Lpis<'h, H> {
    pub(super) fn new(host: &'h H) -> Result<Self, Stop> {
        Ok(Self { host, frame: side_doors(host)?.redistributor })
    }

    fn on(&self, access: impl FnOnce(&H, u64) -> Result<(), Abort>) -> Result<bool, Stop> {
        access(self.host, self.frame)
            .and_then(|()| self.host.cpu_read_u32(self.frame + CTLR))
            .map(|control| control & ENABLE != 0)
            .map_err(|Abort| {
                Stop::Failed(text!("an access to the Redistributor at {:#x} aborted", self.frame))
            })
    }

    /// Turns LPIs on with these tables, if that can be; whether they are on. What is the host's of them is cleared first.
    pub(super) fn turn_on(&self, configuration: u64, pending: u64) -> Result<bool, Stop> {
        for table in [configuration, pending] {
            for at in (table..table + TABLE_BYTES).step_by(8) {
                if self.host.cpu_write_u64(at, 0).is_err() {
                    break;
                }
            }
        }
        self.on(|host, frame| {
            host.cpu_write_u64(frame + PROPBASER, configuration | ID_BITS)?;
            host.cpu_write_u64(frame + PENDBASER, pending | ALL_ZEROS)?;
            let control = host.cpu_read_u32(frame + CTLR)?;
            host.cpu_write_u32(frame + CTLR, control | ENABLE)
        })
    }

    /// Turns LPIs off.
    pub(super) fn turn_off(&self) -> Result<(), Stop> {
        let is_on = self.on(|host, frame| {
            let control = host.cpu_read_u32(frame + CTLR)?;
            host.cpu_write_u32(frame + CTLR, control & !ENABLE)
        })?;
        if is_on {
            fail!("EnableLPIs of the Redistributor at {:#x} stays set", self.frame);
        }
        Ok(())
    }

    /// Whether the pending table, which is the host's, has the LPI (IHI 0069, 5.1.2).
    pub(super) fn is_pending(&self, intid: u64) -> Result<bool, Stop> {
        let table = self
            .host
            .cpu_read_u64(self.frame + PENDBASER)
            .map_err(|_| Stop::Failed(text!("a load of GICR_PENDBASER aborted")))?
            & 0x000f_ffff_ffff_0000;
        let word = cpu_value(self.host, table + intid / 64 * 8)?;
        Ok(word >> (intid % 64) & 1 != 0)
    }
}

/// Tries each place for one of the two tables, while the other one is the host's; then one of the host's for it.
fn attack<H: Host>(host: &H, what: &str, tables: impl Fn(u64, u64) -> (u64, u64)) -> Outcome {
    let lpis = Lpis::new(host)?;
    let own = block(host, 3);
    cpu_store(host, own, 0)?;
    let prey = Prey::new(host)?;
    for (whose, place) in prey.places() {
        let (configuration, pending) = tables(place, own);
        if lpis.turn_on(configuration, pending)? {
            let off = lpis.turn_off();
            attack_worked!(
                "LPIs are on with the {what} table at {place:#x}, which is {whose}{}",
                if off.is_ok() { "" } else { ", and stay on" }
            );
        }
    }
    let mine = own + TABLE_BYTES;
    let (configuration, pending) = tables(mine, own);
    if !lpis.turn_on(configuration, pending)? {
        return Err(Stop::NotApplicable(text!("the Redistributor has no LPIs")));
    }
    let guest = good("GUEST_CREATE", host.create_guest())?;
    let size = unit(host)?;
    let donated = host.donate(mine, size, guest);
    if donated.is_ok() {
        attack_worked!("the {what} table at {mine:#x} was donated while LPIs are on");
    }
    refused("MEM_DONATE of a table in use", donated, Status::WrongState)?;
    lpis.turn_off()?;
    good("MEM_DONATE with LPIs off", host.donate(mine, size, guest))?;
    good("MEM_RECLAIM", host.reclaim(mine, size, guest))?;
    good("GUEST_DESTROY", host.destroy_guest(guest))?;
    prey.end()?;
    Ok(text!("2 places refused, the host's own taken, pinned, and let go"))
}

fn configuration<H: Host>(host: &H) -> Outcome {
    attack(host, "configuration", |place, own| (place, own))
}

fn pending<H: Host>(host: &H) -> Outcome {
    attack(host, "pending", |place, own| (own, place))
}
