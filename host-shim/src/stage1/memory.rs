//! The host's memory, as the shared algorithms reach it.

use super::Error;
use crate::host::{Abort, Host};
use core::cell::Cell;
use core::fmt;
use smmuv3::address::PhysAddr;
use smmuv3::memory::Memory;

/// Loads and stores of the host's CPU. One that is refused reads as 0 or does nothing, and is remembered until [`HostMemory::check`].
pub(super) struct HostMemory<'h, H> {
    host: &'h H,
    /// The first address that was refused.
    refused: Cell<Option<u64>>,
}

impl<H> fmt::Debug for HostMemory<'_, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostMemory").field("refused", &self.refused).finish_non_exhaustive()
    }
}

impl<'h, H: Host> HostMemory<'h, H> {
    pub const fn new(host: &'h H) -> Self {
        Self { host, refused: Cell::new(None) }
    }

    pub const fn host(&self) -> &'h H {
        self.host
    }

    /// Whether every access since the last time was let through.
    pub fn check(&self) -> Result<(), Error> {
        match self.refused.take() {
            None => Ok(()),
            Some(address) => Err(Error::Memory { address }),
        }
    }

    fn remember(&self, address: u64) {
        self.refused.set(self.refused.get().or(Some(address)));
    }
}

impl<H: Host> Memory for HostMemory<'_, H> {
    fn read_u64(&self, PhysAddr(address): PhysAddr) -> u64 {
        self.host.cpu_read_u64(address).unwrap_or_else(|Abort| {
            self.remember(address);
            0
        })
    }

    fn write_u64(&self, PhysAddr(address): PhysAddr, value: u64) {
        if self.host.cpu_write_u64(address, value).is_err() {
            self.remember(address);
        }
    }

    /// Every access of a [`Host`] is complete before the next one begins.
    fn full_barrier(&self) {}
}
