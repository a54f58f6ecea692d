//! Attacks of a hostile host: each tries for real to reach memory of the hypervisor's and of a guest's, or to keep the hypervisor busy.
//!
//! EL1 cannot read what an attack would have changed. So each has something else to see it by: that the device says it is done, that what it wrote
//! comes back by the same way, or that the hardware works with what is kept there. A check that sees an attack succeed says so with
//! [`attack_worked!`](crate::attack_worked): `cargo xtask mutate` builds each defence out in turn, and wants to hear just that. Attacks that only an EL1
//! program can make are in the image.

mod dma;
mod fw_cfg;
mod its;
mod lpis;
mod msi;
mod smmu;
mod tables;
mod virtio_mmio;

use super::support::{block, good, unit};
use super::{Check, Stop};
use crate::call::Calls;
use crate::host::{Host, SideDoors};
use crate::text;
use abi::GuestHandle;

/// Ends a check because the attack that it makes has succeeded, with how that was seen.
#[macro_export]
macro_rules! attack_worked {
    ($($argument:tt)*) => { $crate::fail!("attack worked: {}", format_args!($($argument)*)) };
}

pub(super) fn checks<H: Host>() -> impl Iterator<Item = Check<H>> {
    [fw_cfg::check(), virtio_mmio::check()]
        .into_iter()
        .chain(its::checks())
        .chain(lpis::checks())
        .chain(msi::checks())
        .chain([tables::check(), dma::check()])
}

/// Bytes of each place that attacks aim at, which is aligned to them.
const PREY_BYTES: u64 = 0x1_0000;

/// Places that are not the host's: what attacks aim at.
pub struct Prey<'h, H: Host> {
    host: &'h H,
    guest: GuestHandle,
    size: u64,
    /// 64 KiB of the hypervisor's.
    pub hypervisor: u64,
    /// 64 KiB that a guest was given.
    pub guests: u64,
}

impl<'h, H: Host> Prey<'h, H> {
    /// Gives a new guest its part. What [`Prey::end`] does not take back [`restore`](super::support::restore) does.
    ///
    /// # Errors
    /// A call was refused.
    pub fn new(host: &'h H) -> Result<Self, Stop> {
        let size = PREY_BYTES.max(unit(host)?);
        let (guest, guests) = (good("GUEST_CREATE", host.create_guest())?, block(host, 4));
        good("MEM_DONATE", host.donate(guests, size, guest))?;
        Ok(Self { host, guest, size, hypervisor: host.hypervisor_memory(), guests })
    }

    /// Each with whose it is.
    pub fn places(&self) -> [(&'static str, u64); 2] {
        [("the hypervisor's", self.hypervisor), ("a guest's", self.guests)]
    }

    /// Takes the guest's part back.
    ///
    /// # Errors
    /// A call was refused.
    pub fn end(self) -> Result<(), Stop> {
        good("MEM_RECLAIM", self.host.reclaim(self.guests, self.size, self.guest))?;
        good("GUEST_DESTROY", self.host.destroy_guest(self.guest))
    }
}

/// The DMA masters without an SMMU, of a machine that has them.
fn side_doors<H: Host>(host: &H) -> Result<SideDoors, Stop> {
    host.side_doors()
        .ok_or_else(|| Stop::NotApplicable(text!("the machine has no DMA masters without an SMMU that work")))
}
