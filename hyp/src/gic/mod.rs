//! The interrupt controller's DMA masters, mediated: Redistributors and ITSs (IHI 0069).
//!
//! Both read and write tables in memory by themselves, with no SMMU in front of them. So their control registers are absent from
//! the host's stage 2 and EL2 emulates them. What an ITS reads and writes is the hypervisor's own memory
//! ([`its`]); what a Redistributor reads and writes is memory of the host's that is pinned ([`redistributor`]).

mod access;
pub mod its;
#[cfg(feature = "oracle")]
pub(crate) mod oracle;
pub mod redistributor;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;

use core::fmt;

use smmuv3::address::{PhysAddr, PhysRange};

pub use access::{Access, Answer};
use its::Its;
use redistributor::Redistributors;

use crate::devicetree::Machine;
use crate::memory::Ownership;
use crate::memory::pool::Pool;
use crate::platform::Platform;
use crate::sync::Mutex;

/// The most ITSs.
const MAX_ITS: usize = 4;

/// GICD_TYPER (IHI 0069, 12.9.38).
const GICD_TYPER: u64 = 0x4;
/// GICD_TYPER.LPIS.
const GICD_TYPER_LPIS: u32 = 1 << 17;

/// The most bits of an INTID that LPIs are carried with: a configuration table of at most 1 MiB, so that pinning it is bounded.
const MAX_INTID_BITS: u8 = 20;
/// The first LPI (IHI 0069, 2.2).
const FIRST_LPI: u64 = 8192;

/// What emulation works with besides its own state.
pub struct Services<'a, P> {
    /// The machine.
    pub platform: &'a P,
    /// Where tables come from.
    pub pool: &'a Pool,
    /// Who owns memory.
    pub memory: &'a Mutex<Ownership>,
}

impl<P> Clone for Services<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Services<'_, P> {}

/// Why the Redistributors cannot be mediated, or an ITS cannot be turned off. One sentence when displayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicError {
    /// LPIs were enabled before the hypervisor started and cannot be turned off, or not in time: the tables may be anywhere.
    LpisEnabled(PhysAddr),
    /// The ITS at this address cannot be turned off: it may go on to read and write its tables.
    ItsEnabled(PhysAddr),
    /// A region ends before the Redistributor at this address does.
    CutOff(PhysAddr),
    /// There are more frames than the hypervisor has room for.
    TooMany {
        /// How many it has room for.
        limit: usize,
    },
}

impl fmt::Display for GicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LpisEnabled(frame) => {
                write!(f, "the Redistributor at {frame} has LPIs enabled and does not let go of them")
            }
            Self::ItsEnabled(base) => {
                write!(f, "the ITS at {base} is on, or not quiescent, and cannot be turned off")
            }
            Self::CutOff(frame) => write!(f, "the Redistributor at {frame} does not fit into its region"),
            Self::TooMany { limit } => write!(f, "more than {limit} Redistributor frames are not supported"),
        }
    }
}

impl core::error::Error for GicError {}

/// The Redistributors and ITSs of the machine.
pub struct Gic {
    redistributors: Redistributors,
    /// Each with the address of its control frame.
    its: [Option<(PhysAddr, Mutex<Its>)>; MAX_ITS],
}

impl Gic {
    /// Turns every ITS and all LPIs off, and finds the Redistributors. Called once, before the host runs.
    ///
    /// # Errors
    /// [`GicError`].
    pub fn find<P: Platform>(p: &P, machine: &Machine) -> Result<Self, GicError> {
        its::turn_off(p, machine)?;
        let redistributors = Redistributors::find(p, machine)?;
        Ok(Self { redistributors, its: [const { None }; MAX_ITS] })
    }

    /// The 4 KiB pages of Redistributors that are absent from the host's stage 2. All of every ITS is absent besides.
    pub fn pages(&self) -> impl Iterator<Item = PhysRange> {
        self.redistributors.pages()
    }

    /// Gives each ITS tables and a command queue from the pool, and with the first one shows the host its LPIs. An ITS that cannot be
    /// mediated stays off and hidden, and the log says why. Called once, before the host runs.
    pub fn take_its<P: Platform>(&mut self, p: &P, pool: &Pool, machine: &Machine) {
        let typer = p.read_register_u32(machine.gicd.start().offset(GICD_TYPER));
        // GICD_TYPER.IDbits is the number of bits less one.
        let intid_bits = ((typer >> 19 & 0x1f) as u8 + 1).min(MAX_INTID_BITS);
        let has_lpis = typer & GICD_TYPER_LPIS != 0 && self.redistributors.all_have_lpis();
        for (slot, range) in self.its.iter_mut().zip(machine.its.iter()) {
            let base = range.start();
            if !has_lpis {
                log::warn!("the ITS at {base} is hidden: the GIC has no LPIs");
                continue;
            }
            match its::take_over(p, pool, base, &self.redistributors, intid_bits) {
                Ok(its) => {
                    log::info!("the ITS at {base} is mediated: {its}");
                    *slot = Some((base, Mutex::new(its)));
                }
                Err(error) => log::warn!("the ITS at {base} is hidden: {error}"),
            }
        }
        if self.its.iter().any(Option::is_some) {
            self.redistributors.show_lpis(p, intid_bits);
        }
    }

    /// The ITSs that the host has, by the addresses of their control frames.
    pub fn mediated_its(&self) -> impl Iterator<Item = PhysAddr> {
        self.its.iter().flatten().map(|(base, _)| *base)
    }

    /// Emulates an access of the host's: `None` if no emulated register is at `address`.
    ///
    /// Bounded: at most [`its::BATCH`] commands of a host's queue, or 1 MiB of memory that is pinned or wiped.
    pub fn access<P: Platform>(
        &self,
        services: Services<'_, P>,
        address: PhysAddr,
        access: Access,
    ) -> Option<Answer> {
        if let Some(value) = self.redistributors.access(services, address, access) {
            return Some(Answer::Done(value));
        }
        self.its.iter().flatten().find_map(|(base, its)| {
            let offset = address.0.checked_sub(base.0).filter(|offset| *offset < its::FRAME_BYTES)?;
            Some(its.lock().access(services, &self.redistributors, offset, access))
        })
    }
}
