//! What must hold of pages, page tables and guests between calls: the frame table is the truth, and every table agrees with it.

use abi::oracle::Wrong;
use abi::{DomainHandle, GuestHandle, Recipient};
use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::invalidation::DomainIndex;
use smmuv3::memory::Memory;
use smmuv3::pgtable::{Attributes, Found, PageTable};

use super::frame::{Owner, PageState};
use super::guest::root_order;
use super::host_stage2::for_each_gap;
use super::pool::PAGE_LOG2;
use super::{CPU_ORDER, HOST_DEVICE, HOST_RAM, Ownership};
use crate::iommu::{HOST, memory_domain};
use crate::oracle::{Digest, Finding, Runs, mix};
use crate::platform::Platform;

/// Places for guests by the value of their handle; place 0 is nobody's.
const GUESTS: usize = GuestHandle::MAX as usize + 1;
/// What stands for the CPUs where a finding names a domain.
const CPUS: u64 = u64::MAX;

/// How many units are whose.
#[derive(Clone, Copy)]
pub(crate) struct Census {
    hosts: u64,
    nobodys: u64,
    /// Pins of all units.
    pins: u64,
    guests: [OfGuest; GUESTS],
}

impl Census {
    fn of(&self, guest: GuestHandle) -> OfGuest {
        self.guests.get(guest.index() + 1).copied().unwrap_or_default()
    }
}

/// The units of a guest.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct OfGuest {
    owned: u64,
    shared: u64,
    mapped: Mapped,
}

/// How often units are mapped in domains that calls made, and which: a sum over them, so that two that were exchanged do not go unseen.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Mapped {
    count: u64,
    which: u64,
}

impl Mapped {
    fn add(&mut self, unit: u64, times: u64) {
        self.count = self.count.wrapping_add(times);
        self.which = self.which.wrapping_add(mix(unit).wrapping_mul(times));
    }
}

/// Whose table is looked at.
#[derive(Clone, Copy)]
enum Reach {
    Cpus,
    HostDevices,
    Guest(GuestHandle),
}

impl Reach {
    fn allows(self, state: PageState) -> bool {
        match self {
            Self::Cpus | Self::HostDevices => state.is_hosts(),
            Self::Guest(guest) => {
                state.owner() == Owner::Guest(guest) || state.sharer() == Some(Recipient::Guest(guest))
            }
        }
    }

    const fn name(self) -> u64 {
        match self {
            Self::Cpus => CPUS,
            Self::HostDevices => HOST.0 as u64,
            Self::Guest(guest) => memory_domain(guest).0 as u64,
        }
    }
}

/// How the memory part is looked at.
pub(crate) struct Look<'a, P: Platform> {
    pub p: &'a P,
    /// No SMMU has failed since boot, so nothing is quarantined and every mapping that is counted is there.
    pub exact: bool,
}

impl Ownership {
    /// Reads the frame table from one end to the other.
    pub(crate) fn census(&self, p: &impl Memory) -> Result<Census, Finding> {
        let mut census = Census { hosts: 0, nobodys: 0, pins: 0, guests: [OfGuest::default(); GUESTS] };
        let unit_bytes = self.unit_bytes();
        for (bank, words) in self.frames.banks() {
            let units = bank.size_bytes() / unit_bytes;
            for word in 0..units.div_ceil(4) {
                let states = p.read_u64(words.offset(word * 8));
                let here = (units - word * 4).min(4);
                // All four are the host's and unshared, by far the most frequent word.
                if states == 0 {
                    census.hosts += here;
                    continue;
                }
                for lane in 0..here {
                    let page = bank.start().offset((word * 4 + lane) * unit_bytes);
                    self.count(&mut census, page, PageState::of_bits((states >> (16 * lane)) as u16))?;
                }
            }
        }
        for guest in GuestHandle::all() {
            let Some(counted) = self.guests.units(guest) else { continue };
            let of = census.of(guest);
            let found = of.owned + of.shared;
            if found != counted {
                return Err(Finding::new(Wrong::GuestPages, [guest.to_register(), counted, found]));
            }
        }
        Ok(census)
    }

    /// Counts one unit, if it is in a state that there is.
    fn count(&self, census: &mut Census, page: PhysAddr, state: PageState) -> Result<(), Finding> {
        let [owner, detail] = state.bits().to_le_bytes();
        let finding = |wrong| Err(Finding::new(wrong, [page.0, state.bits().into(), 0]));
        if !state.is_defined() {
            return finding(Wrong::PageState);
        }
        let sharer = match state.sharer() {
            Some(Recipient::Guest(guest)) => Some(guest),
            Some(Recipient::Hypervisor) | None => None,
        };
        let guest = match state.owner() {
            Owner::Guest(guest) => Some(guest),
            Owner::Host => {
                census.hosts += 1;
                census.pins += state.pins();
                sharer
            }
            Owner::Hypervisor => None,
            Owner::Nobody => {
                census.nobodys += 1;
                None
            }
        };
        let Some(guest) = guest else { return Ok(()) };
        if self.guests.table(guest).is_none() {
            return finding(Wrong::PageOwner);
        }
        if let Some(of) = census.guests.get_mut(guest.index() + 1) {
            if owner == 0 {
                of.shared += 1;
            } else {
                of.owned += 1;
                of.mapped.add(page.0, detail.into());
            }
        }
        Ok(())
    }

    /// Pages of 4 KiB that are nobody's, and those of tables that are never used again.
    pub(crate) fn lost_tables(&self, census: &Census) -> u64 {
        self.quarantined_pages.saturating_sub(census.nobodys * (self.unit_bytes() >> PAGE_LOG2))
    }

    /// Whether pages are pinned as often as the interrupt controller uses them: `pinned` are the ranges that it uses.
    pub(crate) fn check_pins(
        &self,
        census: &Census,
        pinned: impl Iterator<Item = PhysRange>,
    ) -> Result<(), Finding> {
        let found: u64 = pinned.filter_map(|range| Some(self.whole_units(range)?.units())).sum();
        if census.pins == found {
            return Ok(());
        }
        Err(Finding::new(Wrong::Pins, [census.pins, found, 0]))
    }

    /// What the hypervisor keeps is its own: image, pool, and what the firmware reserved.
    fn check_kept(&self, p: &impl Memory) -> Result<(), Finding> {
        for (bank, _) in self.frames.banks() {
            for kept in self.holds.absent.iter().filter(|kept| kept.overlaps(bank)) {
                let (mut at, last) = (kept.start().max(bank.start()), kept.last().min(bank.last()));
                while at <= last {
                    let state = self.frames.state(p, at).map_or(0, PageState::bits);
                    if state != PageState::HYPERVISOR.bits() {
                        return Err(Finding::new(Wrong::Kept, [at.0, state.into(), 0]));
                    }
                    at = at.offset(self.unit_bytes());
                }
            }
        }
        Ok(())
    }

    /// Every table, of the CPUs, of the host's devices and of guests', against the census. `runs` is told of the pages of all tables.
    pub(crate) fn check_tables<P: Platform>(
        &self,
        look: &Look<'_, P>,
        census: &Census,
        runs: &mut Runs<'_>,
    ) -> Result<(), Finding> {
        self.check_kept(look.p)?;
        let of_cpus = self.check_table(look, &self.cpu, CPU_ORDER, Reach::Cpus, census.hosts, runs)?;
        let of_host =
            self.check_table(look, &self.io, self.io_order, Reach::HostDevices, census.hosts, runs)?;
        let mut of_guests = 0;
        for guest in GuestHandle::all() {
            let Some(table) = self.guests.table(guest) else { continue };
            let of = census.of(guest);
            let reach = Reach::Guest(guest);
            of_guests += self.check_table(look, table, self.io_order, reach, of.owned + of.shared, runs)?;
        }
        of_guests += self.check_created(look, census, runs)?;
        let counted = [self.host_table_pages, self.guest_table_pages];
        for (counted, found) in counted.into_iter().zip([of_cpus + of_host, of_guests]) {
            if counted != found && look.exact {
                return Err(Finding::new(Wrong::TablePages, [counted, found, 0]));
            }
        }
        Ok(())
    }

    /// An identity map of what `reach` says, `should` units of RAM, and nothing else but device space or doorbells; its pages.
    fn check_table<P: Platform>(
        &self,
        look: &Look<'_, P>,
        table: &PageTable,
        order: u8,
        reach: Reach,
        should: u64,
        runs: &mut Runs<'_>,
    ) -> Result<u64, Finding> {
        let name = reach.name();
        let mut ram_bytes = 0;
        let mut device_bytes = 0;
        // The last that was looked for: most leaves are beside each other.
        let mut devices = None;
        let mut pages = 1 << root_order(table);
        runs.add(table.root(), root_order(table), name)?;
        let mut visit = |found: Found| match found {
            Found::Table { table, says, holds, uniform } => {
                pages += 1 << order;
                check_count(table, says, holds, uniform)?;
                runs.add(table, order, name)
            }
            Found::Leaf { input, size_bytes, output, attributes } => {
                let finding = |wrong| Err(Finding::new(wrong, [name, input, output.0]));
                let Some(range) = PhysRange::new(output, size_bytes).filter(|_| output.0 == input) else {
                    return finding(Wrong::Leaf);
                };
                let expected = match self.frames.run(range) {
                    Some(run) => {
                        // A page of the CPUs may be a part of a unit.
                        let first =
                            self.frames.state(look.p, output).is_some_and(|state| reach.allows(state));
                        if !first || !self.frames.each(look.p, &run, |state| reach.allows(state)) {
                            return finding(Wrong::Extra);
                        }
                        ram_bytes += size_bytes;
                        if matches!(reach, Reach::Cpus) { HOST_RAM } else { Attributes::io_stage2_normal() }
                    }
                    None => {
                        if !devices.is_some_and(|around: PhysRange| around.encloses(range)) {
                            devices = self.devices_around(reach, range);
                        }
                        if devices.is_none() {
                            return finding(Wrong::Extra);
                        }
                        device_bytes += size_bytes;
                        if matches!(reach, Reach::Cpus) {
                            HOST_DEVICE
                        } else {
                            Attributes::io_stage2_device()
                        }
                    }
                };
                if attributes == expected { Ok(()) } else { finding(Wrong::Leaf) }
            }
        };
        table.inspect(look.p, &mut visit)?;
        let pages_of = |bytes: u64| bytes >> PAGE_LOG2;
        let should = should * self.unit_bytes();
        if ram_bytes != should && look.exact {
            return Err(Finding::new(Wrong::Missing, [name, pages_of(ram_bytes), pages_of(should)]));
        }
        let (least, most) = self.device_bytes(reach);
        if !(least..=most).contains(&device_bytes) && look.exact {
            return Err(Finding::new(Wrong::Missing, [name, pages_of(device_bytes), pages_of(most)]));
        }
        Ok(pages)
    }

    /// All that may be reached around a range that is not RAM: by the CPUs what no one holds, by devices the doorbells. `None` if a part of
    /// the range may not be.
    fn devices_around(&self, reach: Reach, range: PhysRange) -> Option<PhysRange> {
        if !matches!(reach, Reach::Cpus) {
            let doorbell = self.doorbells.iter().find(|doorbell| doorbell.encloses(range)).copied();
            return doorbell.filter(|_| !self.frames.overlaps_ram(range));
        }
        let (mut first, mut last) = (0, u64::MAX);
        for away in self.frames.ranges().chain(self.holds.away(true)) {
            if away.last() < range.start() {
                first = first.max(away.last().0 + 1);
            } else if range.last() < away.start() {
                last = last.min(away.start().0 - 1);
            } else {
                return None;
            }
        }
        PhysRange::inclusive(PhysAddr(first), PhysAddr(last))
    }

    /// How many bytes that are not RAM must be reached, and may be at most: a range that is held without users may be on its way back.
    fn device_bytes(&self, reach: Reach) -> (u64, u64) {
        if !matches!(reach, Reach::Cpus) {
            let bytes = self.doorbells.iter().map(|doorbell| doorbell.size_bytes()).sum();
            return (bytes, bytes);
        }
        let space = PhysRange::new(PhysAddr(0), 1 << self.cpu.geometry().ia_bits());
        let bytes = |in_use_only: bool| {
            let mut bytes = 0;
            let away = || self.frames.ranges().chain(self.holds.away(in_use_only));
            let _ = space.map(|space| {
                for_each_gap(space, away, |gap| {
                    bytes += gap.size_bytes();
                    Ok::<(), ()>(())
                })
            });
            bytes
        };
        (bytes(false), bytes(true))
    }

    /// The tables of domains that calls made: they lead to pages of their guest, each as often as is counted; their pages.
    fn check_created<P: Platform>(
        &self,
        look: &Look<'_, P>,
        census: &Census,
        runs: &mut Runs<'_>,
    ) -> Result<u64, Finding> {
        let mut found = [Mapped::default(); GUESTS];
        let mut pages = 0;
        for index in (DomainHandle::FIRST_CREATED..DomainHandle::MAX).map(DomainIndex) {
            let Ok(domain) = self.domains.get(index) else { continue };
            let name = u64::from(index.0);
            let Some(mapped) = found.get_mut(domain.guest.index() + 1) else { continue };
            let before = mapped.count;
            pages += 1 << root_order(&domain.table);
            runs.add(domain.table.root(), root_order(&domain.table), name)?;
            let mut visit = |found: Found| match found {
                Found::Table { table, says, holds, uniform } => {
                    pages += 1 << self.io_order;
                    check_count(table, says, holds, uniform)?;
                    runs.add(table, self.io_order, name)
                }
                Found::Leaf { input, size_bytes, output, attributes } => {
                    let finding = |wrong| Err(Finding::new(wrong, [name, input, output.0]));
                    let Some(range) = PhysRange::new(output, size_bytes) else { return finding(Wrong::Leaf) };
                    let expected = match self.frames.run(range) {
                        None => {
                            let doorbell = self.devices_around(Reach::HostDevices, range);
                            if output.0 != input || doorbell.is_none() {
                                return finding(Wrong::Extra);
                            }
                            Attributes::io_stage2_device()
                        }
                        Some(run) => {
                            let guests = |state: PageState| {
                                state.owner() == Owner::Guest(domain.guest) && state.mappings() != 0
                            };
                            if !self.frames.each(look.p, &run, guests) {
                                return finding(Wrong::Extra);
                            }
                            for unit in 0..run.units() {
                                mapped.add(output.0 + unit * self.unit_bytes(), 1);
                            }
                            Attributes::io_stage2_normal()
                        }
                    };
                    if attributes == expected { Ok(()) } else { finding(Wrong::Leaf) }
                }
            };
            domain.table.inspect(look.p, &mut visit)?;
            let units = mapped.count - before;
            if units != domain.units && look.exact {
                return Err(Finding::new(Wrong::DomainPages, [name, domain.units, units]));
            }
        }
        for (guest, (of, found)) in (0u64..).zip(census.guests.iter().zip(&found)) {
            if of.mapped != *found && look.exact {
                return Err(Finding::new(Wrong::Mappings, [guest, of.mapped.count, found.count]));
            }
        }
        Ok(pages)
    }

    /// One address against every table that maps memory at its own address. Of a few thousand instructions.
    pub(crate) fn check_page<P: Platform>(
        &self,
        look: &Look<'_, P>,
        address: PhysAddr,
    ) -> Result<(), Finding> {
        let p = look.p;
        let page = PhysAddr(address.0 & !(self.unit_bytes() - 1));
        let state = self.frames.state(p, page);
        if let Some(state) = state.filter(|state| !state.is_defined()) {
            return Err(Finding::new(Wrong::PageState, [page.0, state.bits().into(), 0]));
        }
        let guests = GuestHandle::all();
        let tables = guests.filter_map(|guest| Some((Reach::Guest(guest), *self.guests.table(guest)?)));
        let hosts = [(Reach::Cpus, self.cpu), (Reach::HostDevices, self.io)];
        for (reach, table) in hosts.into_iter().chain(tables) {
            let leaf = table.lookup(p, page.0);
            let output = leaf.map_or(0, |leaf| leaf.output.0);
            let finding = |wrong| Err(Finding::new(wrong, [reach.name(), page.0, output]));
            if leaf.is_some() && output != page.0 {
                return finding(Wrong::Leaf);
            }
            let may = match (state, PhysRange::new(page, 1 << PAGE_LOG2)) {
                (Some(state), _) => reach.allows(state),
                (None, Some(range)) => self.devices_around(reach, range).is_some(),
                (None, None) => false,
            };
            match (may, leaf) {
                (false, Some(_)) => return finding(Wrong::Extra),
                // What is not RAM may be on its way back to the host.
                (true, None) if state.is_some() && look.exact => {
                    return Err(Finding::new(Wrong::Missing, [reach.name(), 0, 1]));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds who owns what, and what every table maps, whatever the sizes of its leaves: a call that fails may leave a table split. How far a guest
    /// is taken apart is no part of it: the step that fails has begun it.
    pub(crate) fn digest(&self, p: &impl Memory, digest: &mut Digest) {
        for (bank, words) in self.frames.banks() {
            let units = bank.size_bytes() / self.unit_bytes();
            for word in 0..units.div_ceil(4) {
                let states = p.read_u64(words.offset(word * 8));
                // All four are the host's and unshared, by far the most frequent word.
                if states != 0 {
                    digest.add_all([bank.start().0 + word, states]);
                }
            }
        }
        let mut add = |table: &PageTable| {
            // Addresses that lead to neighbours: where they begin and end, where they lead, and their attributes.
            let mut last: Option<(u64, u64, u64, u64)> = None;
            let mut done = |extent: Option<(u64, u64, u64, u64)>| {
                if let Some((start, end, output, attributes)) = extent {
                    digest.add_all([start, end, output, attributes]);
                }
            };
            let _ = table.inspect(p, &mut |found| {
                if let Found::Leaf { input, size_bytes, output, attributes } = found {
                    let (end, attributes) = (input + size_bytes, attributes.bits());
                    match &mut last {
                        Some((start, until, to, same))
                            if (*until, *to + (*until - *start), *same) == (input, output.0, attributes) =>
                        {
                            *until = end;
                        }
                        _ => done(last.replace((input, end, output.0, attributes))),
                    }
                }
                Ok::<(), ()>(())
            });
            done(last);
        };
        add(&self.cpu);
        add(&self.io);
        for guest in GuestHandle::all() {
            self.guests.table(guest).map(&mut add);
        }
        for index in (DomainHandle::FIRST_CREATED..DomainHandle::MAX).map(DomainIndex) {
            if let Ok(domain) = self.domains.get(index) {
                add(&domain.table);
            }
        }
    }

    /// The table of a domain that a call made.
    #[cfg(test)]
    pub(crate) fn created_table(&self, index: u16) -> PageTable {
        self.domains.get(DomainIndex(index)).expect("there is none").table
    }

    /// Pages of 4 KiB that all RAM has.
    pub(crate) fn ram_pages(&self) -> u64 {
        self.frames.ranges().map(|bank| bank.size_bytes() >> PAGE_LOG2).sum()
    }

    /// The number of a page of RAM, below [`Self::ram_pages`], if it is the hypervisor's.
    pub(crate) fn own_page(&self, p: &impl Memory, page: PhysAddr) -> Option<u64> {
        if self.frames.state(p, page)?.owner() != Owner::Hypervisor {
            return None;
        }
        let mut before = 0;
        for bank in self.frames.ranges() {
            if bank.contains(page) {
                return Some(before + ((page.0 - bank.start().0) >> PAGE_LOG2));
            }
            before += bank.size_bytes() >> PAGE_LOG2;
        }
        None
    }
}

/// What a descriptor says of the table below it is what is in it.
fn check_count(table: PhysAddr, says: u64, holds: u64, uniform: bool) -> Result<(), Finding> {
    if says == holds && uniform {
        return Ok(());
    }
    Err(Finding::new(Wrong::Table, [table.0, says, holds]))
}
