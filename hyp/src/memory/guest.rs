//! Guests: owners with an I/O page table and nothing else, since no guest runs yet.

use abi::{GuestHandle, Status};
use smmuv3::gather::Gather;
use smmuv3::pgtable::{Attributes, Blocks, NoBreak, PageTable};

use super::frame::Position;
use super::pool::{Direct, PAGE_LOG2};
use super::{Context, Failure, Ownership};
use crate::platform::Platform;

#[derive(Clone, Copy)]
struct Guest {
    table: PageTable,
    /// Units that the guest owns or that are shared with it.
    units: u64,
    /// Once the guest is being taken apart, how far that has come in the frame table.
    teardown: Option<Position>,
}

/// The guests that exist.
pub(super) struct Guests {
    slots: [Option<Guest>; GuestHandle::MAX as usize],
}

impl Guests {
    pub const fn new() -> Self {
        Self { slots: [None; GuestHandle::MAX as usize] }
    }

    #[inline]
    pub fn table(&self, guest: GuestHandle) -> Option<&PageTable> {
        self.slots.get(guest.index())?.as_ref().map(|guest| &guest.table)
    }

    /// Units that the guest owns or that are shared with it; `None` if it does not exist.
    #[cfg(feature = "oracle")]
    pub fn units(&self, guest: GuestHandle) -> Option<u64> {
        self.slots.get(guest.index())?.as_ref().map(|guest| guest.units)
    }

    /// The I/O table of a guest, which is not being taken apart unless `also_ending`.
    #[inline]
    pub fn usable(&self, guest: GuestHandle, also_ending: bool) -> Result<&PageTable, Status> {
        match self.slots.get(guest.index()) {
            Some(Some(guest)) if also_ending || guest.teardown.is_none() => Ok(&guest.table),
            Some(Some(_)) => Err(Status::Busy),
            Some(None) | None => Err(Status::UnknownGuest),
        }
    }

    /// Whether the guest is being taken apart.
    #[inline]
    pub fn is_ending(&self, guest: GuestHandle) -> bool {
        self.slots.get(guest.index()).is_some_and(|slot| slot.is_some_and(|guest| guest.teardown.is_some()))
    }

    /// How far taking the guest apart has come; `None` if it does not exist.
    pub fn teardown(&self, guest: GuestHandle) -> Option<Position> {
        let guest = self.slots.get(guest.index())?.as_ref()?;
        Some(guest.teardown.unwrap_or(Position::START))
    }

    pub fn set_teardown(&mut self, guest: GuestHandle, position: Position) {
        if let Some(Some(guest)) = self.slots.get_mut(guest.index()) {
            guest.teardown = Some(position);
        }
    }

    #[inline]
    pub fn gained(&mut self, guest: GuestHandle, units: u64) {
        if let Some(Some(guest)) = self.slots.get_mut(guest.index()) {
            guest.units = guest.units.saturating_add(units);
        }
    }

    #[inline]
    pub fn lost(&mut self, guest: GuestHandle, units: u64) {
        if let Some(Some(guest)) = self.slots.get_mut(guest.index()) {
            guest.units = guest.units.saturating_sub(units);
        }
    }
}

impl Ownership {
    /// The I/O page table of a guest; `None` if the guest does not exist.
    pub fn guest_table(&self, guest: GuestHandle) -> Option<&PageTable> {
        self.guests.table(guest)
    }

    /// Makes a guest that owns nothing, with an I/O table that holds the MSI doorbells alone.
    ///
    /// # Errors
    /// `NoSpace` when there are [`GuestHandle::MAX`], `NoMemory`, or `Busy` when the machine ends. Nothing is changed.
    pub fn create_guest<P: Platform, I>(&mut self, cx: &Context<'_, P, I>) -> Result<GuestHandle, Failure> {
        if self.ending {
            return Err(Status::Busy.into());
        }
        let free = self.guests.slots.iter().position(Option::is_none).ok_or(Status::NoSpace)?;
        let handle = GuestHandle::from_register(free as u64 + 1).ok_or(Status::NoSpace)?;
        let table = self.new_io_table(cx, self.io.blocks())?;
        if let Some(slot) = self.guests.slots.get_mut(free) {
            *slot = Some(Guest { table, units: 0, teardown: None });
        }
        Ok(handle)
    }

    /// Makes an I/O table that holds the MSI doorbells alone.
    ///
    /// # Errors
    /// `NoMemory`; nothing is changed.
    pub(super) fn new_io_table<P: Platform, I>(
        &mut self,
        cx: &Context<'_, P, I>,
        blocks: Blocks,
    ) -> Result<PageTable, Failure> {
        let p = cx.platform;
        let root_order = self.root_order();
        let root = cx.pool.take_zeroed(p, root_order)?;
        let table = PageTable::new(*self.io.geometry(), blocks, root);
        let mut pages = Direct::new(p, cx.pool, self.io_order);
        let attributes = Attributes::io_stage2_device();
        for doorbell in self.doorbells.iter() {
            let (start, mut gather) = (doorbell.start(), Gather::new());
            if table
                .map(p, &mut pages, &mut NoBreak, *doorbell, start, attributes, false, &mut gather)
                .is_err()
            {
                let needed = (table.tables_for_map(p, *doorbell, start) as u64) << self.io_order;
                // No walker has seen the table.
                table.free_all(p, &mut pages);
                let failure = cx.no_memory(needed);
                cx.pool.give(p, root, root_order);
                return Err(failure);
            }
        }
        self.guest_table_pages += (pages.taken << self.io_order) + (1 << root_order);
        Ok(table)
    }

    /// Gives the pages of an I/O table back that no walker and no cache knows.
    pub(super) fn free_io_table<P: Platform, I>(&mut self, cx: &Context<'_, P, I>, table: &PageTable) {
        let root_order = self.root_order();
        let mut pages = Giving { inner: Direct::new(cx.platform, cx.pool, self.io_order), given: 0 };
        table.free_all(cx.platform, &mut pages);
        cx.pool.give(cx.platform, table.root(), root_order);
        let freed = (pages.given << self.io_order) + (1 << root_order);
        self.guest_table_pages = self.guest_table_pages.saturating_sub(freed);
    }

    /// Whether a guest can be given something.
    ///
    /// # Errors
    /// `UnknownGuest`; `Busy` if it is being taken apart, or the machine ends.
    pub fn check_alive(&self, guest: GuestHandle) -> Result<(), Status> {
        self.guests.table(guest).ok_or(Status::UnknownGuest)?;
        if self.ending || self.guests.is_ending(guest) { Err(Status::Busy) } else { Ok(()) }
    }

    /// From here on the guest can be given nothing more: it is being taken apart.
    ///
    /// # Errors
    /// `UnknownGuest`, or `Busy` when the machine ends.
    pub fn begin_teardown(&mut self, guest: GuestHandle) -> Result<(), Status> {
        let position = self.guests.teardown(guest).ok_or(Status::UnknownGuest)?;
        if self.ending {
            return Err(Status::Busy);
        }
        self.guests.set_teardown(guest, position);
        Ok(())
    }

    /// Ends a guest. No stream is attached to its domain, so no walker and no cache knows its table.
    ///
    /// # Errors
    /// `UnknownGuest`, or `Busy` while it owns memory or memory is shared with it. Nothing is changed.
    pub fn destroy_guest<P: Platform, I>(
        &mut self,
        cx: &Context<'_, P, I>,
        handle: GuestHandle,
    ) -> Result<(), Status> {
        let slot = self.guests.slots.get_mut(handle.index()).ok_or(Status::UnknownGuest)?;
        let guest = slot.as_ref().ok_or(Status::UnknownGuest)?;
        if guest.units > 0 || self.ending {
            return Err(Status::Busy);
        }
        let table = guest.table;
        *slot = None;
        self.free_io_table(cx, &table);
        Ok(())
    }

    /// Log2 of the size of an I/O table's root in pages of 4 KiB.
    pub(super) fn root_order(&self) -> u8 {
        root_order(&self.io)
    }
}

/// Log2 of the size of a table's root in pages of 4 KiB.
pub(super) fn root_order(table: &PageTable) -> u8 {
    (table.geometry().root_bytes().trailing_zeros() as u8).saturating_sub(PAGE_LOG2)
}

/// Counts the tables of a teardown.
struct Giving<'a, P: Platform> {
    inner: Direct<'a, P>,
    given: u64,
}

impl<P: Platform> smmuv3::memory::TablePages for Giving<'_, P> {
    fn take(&mut self) -> Option<smmuv3::address::PhysAddr> {
        None
    }

    fn give(&mut self, table: smmuv3::address::PhysAddr) {
        self.given += 1;
        self.inner.give(table);
    }
}
