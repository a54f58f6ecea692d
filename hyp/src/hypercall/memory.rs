//! Calls that change who owns memory, and calls about the pool.

use abi::{GuestHandle, Recipient, Status};
use smmuv3::address::PhysAddr;

use super::Outcome;
use crate::hypervisor::Hypervisor;
use crate::memory::frame::Owner;
use crate::memory::pool::PAGE_LOG2;
use crate::memory::{Change, Failure};
use crate::platform::Platform;

/// Register values of owners and sharers that are not guests (`MEM_QUERY`).
const HYPERVISOR: u64 = 0x100;
const NOBODY: u64 = 0x101;

impl<P: Platform> Hypervisor<P> {
    /// Makes one step of a change to the range that the caller claims; how many bytes are done.
    #[inline]
    fn change(
        &self,
        start: u64,
        size_bytes: u64,
        change: impl FnOnce() -> Result<Change, Status>,
    ) -> Outcome {
        let caches = self.caches();
        let mut memory = self.memory.lock();
        let step = memory.step(start, size_bytes)?;
        memory.change(&self.context(&caches), change()?, &step)?;
        Ok([step.range().size_bytes(), 0, 0, 0])
    }

    pub(super) fn mem_share(&self, start: u64, size: u64, with: u64) -> Outcome {
        self.change(start, size, || Ok(Change::Share(claimed_recipient(with)?)))
    }

    pub(super) fn mem_unshare(&self, start: u64, size: u64, with: u64) -> Outcome {
        self.change(start, size, || Ok(Change::Unshare(claimed_recipient(with)?)))
    }

    pub(super) fn mem_donate(&self, start: u64, size: u64, guest: u64) -> Outcome {
        self.change(start, size, || Ok(Change::Donate(claimed_guest(guest)?)))
    }

    pub(super) fn mem_reclaim(&self, start: u64, size: u64, guest: u64) -> Outcome {
        self.change(start, size, || Ok(Change::Reclaim(claimed_guest(guest)?)))
    }

    pub(super) fn mem_query(&self, start: u64) -> Outcome {
        let memory = self.memory.lock();
        if !PhysAddr(start).is_aligned(memory.unit_bytes()) {
            return Err(Status::Unaligned.into());
        }
        let (owner, sharer) = memory.query(&self.platform, PhysAddr(start))?;
        let owner = match owner {
            Owner::Host => 0,
            Owner::Guest(guest) => guest.to_register(),
            Owner::Hypervisor => HYPERVISOR,
            Owner::Nobody => NOBODY,
        };
        let sharer = match sharer {
            None => 0,
            Some(Recipient::Guest(guest)) => guest.to_register(),
            Some(Recipient::Hypervisor) => HYPERVISOR,
        };
        Ok([owner, sharer, 0, 0])
    }

    pub(super) fn pool_state(&self) -> Outcome {
        let state = self.pool.state();
        Ok([state.free, state.total, state.donated, state.free_donated])
    }

    pub(super) fn pool_top_up(&self, start: u64, size: u64) -> Outcome {
        let caches = self.caches();
        let mut memory = self.memory.lock();
        let step = memory.step(start, size)?;
        memory.top_up(&self.context(&caches), &step)?;
        Ok([step.range().size_bytes(), 0, 0, 0])
    }

    pub(super) fn pool_give_back(&self, size: u64) -> Outcome {
        let caches = self.caches();
        let mut memory = self.memory.lock();
        if !size.is_power_of_two() || size < memory.unit_bytes() || size > abi::MAX_STEP_BYTES {
            return Err(Failure::from(Status::Unaligned));
        }
        let order = (size.trailing_zeros() as u8).saturating_sub(PAGE_LOG2);
        let run = memory.give_back(&self.context(&caches), order)?;
        Ok([run.0, 0, 0, 0])
    }
}

#[inline]
fn claimed_guest(register: u64) -> Result<GuestHandle, Status> {
    GuestHandle::from_register(register).ok_or(Status::UnknownGuest)
}

#[inline]
fn claimed_recipient(register: u64) -> Result<Recipient, Status> {
    Recipient::from_register(register).ok_or(Status::UnknownGuest)
}
