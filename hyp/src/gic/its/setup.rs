//! Turning ITSs off, and giving one the hypervisor's tables and queue, before the host runs.

use core::fmt;

use smmuv3::address::PhysAddr;

use super::Its;
use super::devices::{Devices, MAX_DEVICE_BITS};
use super::queue::ShadowQueue;
use super::registers::*;
use crate::devicetree::Machine;
use crate::gic::GicError;
use crate::gic::redistributor::Redistributors;
use crate::memory::pool::{OutOfPages, PAGE_LOG2, Pool};
use crate::platform::{Platform, waited_for};
use crate::smmu::TIMEOUT_NS;

/// The most bytes of a table, and of an ITT: what one trap wipes at most.
const MAX_TABLE_BYTES: u64 = 1 << 20;
/// The most bits of an EventID: an ITT of 16 bytes an entry is [`MAX_TABLE_BYTES`].
const MAX_EVENT_BITS: u8 = 16;
/// The most bits of an ICID. A host uses one collection for each CPU.
const MAX_COLLECTION_BITS: u8 = 10;
/// Log2 of the size of the queue, and of the least size of a table, in pages of 4 KiB: both are aligned to 64 KiB.
pub(super) const ORDER_64K: u8 = 4;
const BYTES_64K: u64 = 1 << 16;

/// Why an ITS cannot be mediated. One sentence when displayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It has no physical LPIs, or there is no Redistributor.
    NoLpis,
    /// It does not see what is in the CPUs' caches.
    Incoherent,
    /// It does not keep what is written to this GITS_BASER<n>.
    Table(usize),
    /// It has more than one table of devices or of collections.
    Tables,
    /// The pool has too few pages.
    NoMemory(OutOfPages),
}

impl From<OutOfPages> for Unusable {
    fn from(error: OutOfPages) -> Self {
        Self::NoMemory(error)
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLpis => f.write_str("it has no physical LPIs"),
            Self::Incoherent => f.write_str("it does not see the CPUs' caches"),
            Self::Table(n) => write!(f, "GITS_BASER{n} does not keep what is written to it"),
            Self::Tables => f.write_str("it has more than one table of a kind"),
            Self::NoMemory(error) => write!(f, "{} pages are missing for its tables", error.missing),
        }
    }
}

/// Turns every ITS off and waits for each to be quiescent, for a bounded time. Called once, before the host runs.
///
/// # Errors
/// [`GicError::ItsEnabled`]; those after it are as they were.
pub fn turn_off<P: Platform>(p: &P, machine: &Machine) -> Result<(), GicError> {
    for its in machine.its.iter() {
        let register = its.start().offset(CTLR);
        let ctlr = p.read_register_u32(register);
        if ctlr & CTLR_ENABLED != 0 {
            p.write_register_u32(register, ctlr & !CTLR_ENABLED);
        }
        if !waited_for(p, register, CTLR_ENABLED | CTLR_QUIESCENT, CTLR_QUIESCENT, TIMEOUT_NS) {
            return Err(GicError::ItsEnabled(its.start()));
        }
    }
    Ok(())
}

/// A table that an ITS was given.
#[derive(Clone, Copy)]
struct Table {
    place: PhysAddr,
    order: u8,
}

/// What setting an ITS up has taken so far, to be given back if it fails.
#[derive(Default)]
struct Taken {
    devices: Option<Table>,
    collections: Option<Table>,
    queue: Option<PhysAddr>,
}

impl Taken {
    fn give_back<P: Platform>(self, p: &P, pool: &Pool, base: PhysAddr) {
        for n in 0..BASERS as u64 {
            p.write_register_u64(base.offset(BASER + 8 * n), 0);
        }
        p.write_register_u64(base.offset(CBASER), 0);
        for table in [self.devices, self.collections].into_iter().flatten() {
            pool.give(p, table.place, table.order);
        }
        if let Some(queue) = self.queue {
            pool.give(p, queue, ORDER_64K);
        }
    }
}

/// Gives the ITS at `base`, which is off, tables and a queue from the pool. It stays off until the host turns it on.
///
/// # Errors
/// [`Unusable`]: it has no table, and nothing is taken.
pub fn take_over<P: Platform>(
    p: &P,
    pool: &Pool,
    base: PhysAddr,
    redistributors: &Redistributors,
    intid_bits: u8,
) -> Result<Its, Unusable> {
    let mut taken = Taken::default();
    let set_up = set_up(p, pool, base, redistributors, intid_bits, &mut taken);
    if set_up.is_err() {
        taken.give_back(p, pool, base);
    }
    set_up
}

fn set_up<P: Platform>(
    p: &P,
    pool: &Pool,
    base: PhysAddr,
    redistributors: &Redistributors,
    intid_bits: u8,
    taken: &mut Taken,
) -> Result<Its, Unusable> {
    let typer = p.read_register_u64(base.offset(TYPER));
    let by_address = typer & TYPER_PTA != 0;
    let target = redistributors.targets(by_address).next().ok_or(Unusable::NoLpis)?;
    if typer & TYPER_PHYSICAL == 0 {
        return Err(Unusable::NoLpis);
    }
    let five_bits = |shift| (typer >> shift & 0x1f) as u8 + 1;
    let event_bits = five_bits(TYPER_ID_BITS_SHIFT).min(MAX_EVENT_BITS);
    let mut device_bits = five_bits(TYPER_DEVBITS_SHIFT).min(MAX_DEVICE_BITS);
    let collection_bits =
        if typer & TYPER_CIL != 0 { (typer >> TYPER_CIDBITS_SHIFT & 0xf) as u8 + 1 } else { 16 };
    let collection_bits = collection_bits.min(MAX_COLLECTION_BITS);
    let mut fixed = [0; BASERS];
    for (n, fixed) in fixed.iter_mut().enumerate() {
        let register = base.offset(BASER + 8 * n as u64);
        let baser = p.read_register_u64(register) & BASER_FIXED;
        let entry_bytes = (baser >> BASER_ENTRY_SIZE_SHIFT & 0x1f) + 1;
        let (slot, entries) = match baser >> BASER_TYPE_SHIFT & 0b111 {
            TYPE_DEVICES => {
                // As many devices as a table of the largest size has room for.
                device_bits = device_bits.min((MAX_TABLE_BYTES / entry_bytes).ilog2() as u8);
                (&mut taken.devices, 1 << device_bits)
            }
            TYPE_COLLECTIONS => (&mut taken.collections, 1 << collection_bits),
            _ => {
                // What the host does not get, the ITS does not use.
                p.write_register_u64(register, 0);
                continue;
            }
        };
        if slot.is_some() {
            return Err(Unusable::Tables);
        }
        *fixed = baser;
        let table = take_table(p, pool, entry_bytes * entries)?;
        *slot = Some(table);
        give_table(p, register, n, table)?;
    }
    let collections =
        if taken.collections.is_some() { 1 << collection_bits } else { ((typer & TYPER_HCC) >> 24) as u32 };

    let queue = pool.take_zeroed(p, ORDER_64K)?;
    taken.queue = Some(queue);
    let cbaser = VALID | COHERENT | queue.0 | (BYTES_64K / 4096 - 1);
    p.write_register_u64(base.offset(CBASER), cbaser);
    p.write_register_u64(base.offset(CWRITER), 0);
    if p.read_register_u64(base.offset(CBASER)) & SHAREABILITY == 0 {
        return Err(Unusable::Incoherent);
    }
    let devices = Devices::new(p, pool)?;
    let typer = typer & (TYPER_PHYSICAL | TYPER_CCT | TYPER_ITT_ENTRY_SIZE | TYPER_PTA | TYPER_HCC)
        | u64::from(event_bits - 1) << TYPER_ID_BITS_SHIFT
        | u64::from(device_bits - 1) << TYPER_DEVBITS_SHIFT
        | u64::from(collection_bits - 1) << TYPER_CIDBITS_SHIFT
        | TYPER_CIL;
    let queue = ShadowQueue::new(base, queue, BYTES_64K, target);
    let its = Its::new(base, typer, fixed, collections, intid_bits, queue, devices);
    Ok(its)
}

/// A run of the pool, cleared, of at least `bytes` and 64 KiB.
fn take_table<P: Platform>(p: &P, pool: &Pool, bytes: u64) -> Result<Table, Unusable> {
    let order = (bytes.next_power_of_two().max(BYTES_64K).trailing_zeros() as u8).saturating_sub(PAGE_LOG2);
    Ok(Table { place: pool.take_zeroed(p, order)?, order })
}

/// Writes GITS_BASER<n>, with the largest page that the ITS has.
fn give_table<P: Platform>(p: &P, register: PhysAddr, n: usize, table: Table) -> Result<(), Unusable> {
    let bytes = 1_u64 << (PAGE_LOG2 + table.order);
    for (page_size, page_log2) in [(2, 16), (1, 14), (0, 12)] {
        let pages = bytes >> page_log2;
        let place = VALID | table.place.0 | page_size << BASER_PAGE_SIZE_SHIFT | (pages - 1);
        if pages - 1 > BASER_SIZE {
            break;
        }
        p.write_register_u64(register, place | COHERENT);
        let kept = p.read_register_u64(register);
        if kept & SHAREABILITY == 0 {
            return Err(Unusable::Incoherent);
        }
        if kept & BASER_PLACE == place {
            return Ok(());
        }
    }
    Err(Unusable::Table(n))
}
