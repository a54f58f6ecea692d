//! What a host knows: the machine, and the handles that it was given.

use super::action::Action;
use super::driver;
use super::interrupts;
use super::outcome::Outcome;
use super::places::{NEAR_LOG2, Places};
use super::step::Choices;
use crate::call::Calls;
use crate::host::{Abort, Device, Forbidden, Host, SCRATCH_BYTES, SideDoors};
use crate::text::Text;
use abi::{Function, GuestHandle, Status};

/// The most SMMUs.
const MAX_SMMUS: usize = 8;
/// The most places that no device may reach.
const MAX_FORBIDDEN: usize = 64;
/// Where addresses of domains begin.
const SLOTS: u64 = 0x2000_0000;
const BLOCK: u64 = 2 << 20;

/// The things last given, the newest first. One that is taken away stays known for a while: hosts use what is gone, too.
#[derive(Clone, Copy, Debug)]
struct Recent<T, const N: usize> {
    things: [Option<T>; N],
    gone: Option<T>,
}

impl<T: Copy + PartialEq, const N: usize> Recent<T, N> {
    const fn new() -> Self {
        Self { things: [None; N], gone: None }
    }

    fn given(&mut self, thing: T) {
        self.things.rotate_right(1);
        if let Some(first) = self.things.first_mut() {
            *first = Some(thing);
        }
    }

    fn taken(&mut self, which: impl Fn(&T) -> bool) {
        let mut left = [None; N];
        let mut places = left.iter_mut();
        for thing in self.things.into_iter().flatten() {
            if which(&thing) {
                self.gone = Some(thing);
            } else if let Some(place) = places.next() {
                *place = Some(thing);
            }
        }
        self.things = left;
    }

    /// The newest half of the time.
    fn pick(&self, choices: &mut Choices<'_>) -> Option<T> {
        let byte = choices.byte();
        let count = self.things.iter().flatten().count();
        match byte {
            252.. => self.gone,
            _ if byte < 128 || count == 0 => self.things.first().copied().flatten(),
            _ => self.things.get(usize::from(byte) % count).copied().flatten(),
        }
    }
}

/// Pages that a guest was given, or that are shared with it, or where a domain maps some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Where they are: a page of RAM, or an address of the domain.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// The guest, or the domain.
    pub by: u64,
}

impl Held {
    const fn overlaps(&self, start: u64, size: u64) -> bool {
        self.start < start.saturating_add(size) && start < self.start.saturating_add(self.size)
    }
}

/// An SMMU.
#[derive(Clone, Copy, Debug, Default)]
struct Smmu {
    /// Address of its registers.
    base: u64,
    /// StreamIDs of devices.
    streams: [Option<u32>; Device::ALL.len()],
}

/// What a host knows.
#[derive(Clone, Debug)]
pub struct Knowledge {
    places: Places,
    smmus: [Smmu; MAX_SMMUS],
    smmu_count: usize,
    forbidden: [Option<Forbidden>; MAX_FORBIDDEN],
    not_ram: u64,
    doors: Option<SideDoors>,
    guests: Recent<u64, 8>,
    domains: Recent<u64, 12>,
    /// With the SMMU of each.
    vsmmus: Recent<(u64, usize), 8>,
    /// Guests that are being taken apart: calls for them are refused. As many as there can be, because one that is forgotten stays for ever.
    ending: Recent<u64, { GuestHandle::MAX as usize }>,
    /// The guest that had to go last, when there were too many.
    victim: u64,
    given: Recent<Held, 48>,
    shared: Recent<Held, 16>,
    mapped: Recent<Held, 16>,
}

impl Knowledge {
    /// What can be known before the first action.
    pub fn of<H: Host + ?Sized>(host: &H) -> Self {
        let unit = host.features().map_or(4096, |features| features.unit);
        let mut smmus = [Smmu::default(); MAX_SMMUS];
        let smmu_count = host.smmus().min(MAX_SMMUS);
        for (n, smmu) in smmus.iter_mut().enumerate().take(smmu_count) {
            smmu.base = host.describe_smmu(n).map_or(0, |description| description.base);
            smmu.streams = Device::ALL.map(|device| host.stream(n, device));
        }
        let mut forbidden = [None; MAX_FORBIDDEN];
        for (n, place) in forbidden.iter_mut().enumerate() {
            *place = host.forbidden(n);
            if place.is_none() {
                break;
            }
        }
        Self {
            places: Places { scratch: host.scratch(), unit },
            smmus,
            smmu_count,
            forbidden,
            not_ram: host.not_ram(),
            doors: host.side_doors(),
            guests: Recent::new(),
            domains: Recent::new(),
            vsmmus: Recent::new(),
            ending: Recent::new(),
            victim: 0,
            given: Recent::new(),
            shared: Recent::new(),
            mapped: Recent::new(),
        }
    }

    /// Does an action, judges what came of it and takes that in: the outcome, and what no hypervisor may let happen.
    pub fn act<H: Host + ?Sized>(&mut self, host: &H, action: &Action) -> (Outcome, Option<Text>) {
        let outcome = self.perform(host, action);
        let finding = outcome.judge(action, self);
        self.learn(action, &outcome);
        (outcome, finding)
    }

    /// Does an action.
    fn perform<H: Host + ?Sized>(&self, host: &H, action: &Action) -> Outcome {
        let call = |id, arguments| host.try_call(id, arguments).map_or(Outcome::Nothing, Outcome::Answered);
        match *action {
            Action::Call { id, arguments } => call(id, arguments),
            Action::Invalidate { vsmmu, commands } => {
                // Where no page is the host's any more, the call is the hypervisor's to refuse.
                let mut pages = self.places.command_pages();
                let at = pages.find(|at| host.cpu_store(*at, 8, 0).is_ok());
                let at = at.unwrap_or(self.places.commands());
                for (word, address) in commands.as_flattened().iter().zip((at..).step_by(8)) {
                    let _ = host.cpu_store(address, 8, *word);
                }
                let arguments = [vsmmu, at, commands.len() as u64, 0];
                call(Function::VsmmuInvalidate.id(), arguments)
            }
            Action::Load { address, bytes } => Outcome::Accessed(host.cpu_load(address, bytes)),
            Action::Store { address, bytes, value } => {
                Outcome::Accessed(host.cpu_store(address, bytes, value).map(|()| 0))
            }
            Action::Stage1(asid) => {
                let words = self.places.stage1(asid);
                let stored = |(at, word): &(u64, u64)| host.cpu_store(*at, 8, *word).is_ok();
                Outcome::Accessed(if words.iter().all(stored) { Ok(0) } else { Err(Abort) })
            }
            Action::Driver(action) => match self.smmus.get(action.smmu) {
                Some(smmu) if smmu.base != 0 => {
                    Outcome::Accessed(driver::perform(host, &self.places, smmu.base, &action))
                }
                _ => Outcome::Nothing,
            },
            Action::Interrupts(action) => self.doors.map_or(Outcome::Nothing, |doors| {
                Outcome::Accessed(interrupts::perform(host, &self.places, &doors, &action))
            }),
            Action::Write { smmu, substream: 0, address } => Outcome::Dma(host.dma_write(smmu, address)),
            Action::Write { smmu, substream, address } => host
                .dma_write_substream(smmu, substream, address, address)
                .map_or(Outcome::Nothing, Outcome::Dma),
            Action::Start { smmu, transfer } => Outcome::Accessed(host.start(smmu, transfer).map(|()| 0)),
        }
    }

    /// Takes in what came of a call.
    fn learn(&mut self, action: &Action, outcome: &Outcome) {
        let (Action::Call { arguments, .. }, Outcome::Answered([code, result, ..])) = (action, outcome)
        else {
            return;
        };
        let [x1, x2, x3, x4] = arguments;
        if *code != Status::Success.to_register() {
            self.learn_refusal(action.function(), *x1, Status::from_register(*code));
            return;
        }
        match action.function() {
            Some(Function::GuestCreate) => self.guests.given(*result),
            Some(Function::GuestDestroy) => self.guest_is_gone(*x1),
            Some(Function::GuestTeardown) if *result == 0 => self.guest_is_gone(*x1),
            Some(Function::GuestTeardown) => self.guest_ends(*x1),
            Some(Function::DomainCreate | Function::DomainCreateNested) => self.domains.given(*result),
            // What is done of a range, which may be less than was asked for.
            Some(Function::MemDonate) => self.given.given(Held { start: *x1, size: *result, by: *x3 }),
            Some(Function::MemReclaim) => self.given.taken(|held| held.overlaps(*x1, *result)),
            Some(Function::MemShare) => self.shared.given(Held { start: *x1, size: *result, by: *x3 }),
            Some(Function::MemUnshare) => self.shared.taken(|held| held.overlaps(*x1, *result)),
            Some(Function::DomainMap) => {
                self.mapped.given(Held { start: *x2, size: (*result).min(*x4), by: *x1 });
            }
            Some(Function::DomainUnmap) => {
                self.mapped.taken(|held| held.by == *x1 && held.overlaps(*x2, *result));
            }
            Some(Function::DomainDestroy) => self.domains.taken(|domain| domain == x1),
            Some(Function::VsmmuCreate) => self.vsmmus.given((*result, *x1 as usize)),
            Some(Function::VsmmuDestroy) => self.vsmmus.taken(|(vsmmu, _)| vsmmu == x1),
            _ => {}
        }
    }

    /// Takes in what a refusal says of guests: several CPUs make them and end them, and none knows what the others do.
    fn learn_refusal(&mut self, function: Option<Function>, x1: u64, status: Option<Status>) {
        match (function, status) {
            (Some(Function::GuestTeardown), Some(Status::UnknownGuest)) => self.guest_is_gone(x1),
            (Some(Function::DomainCreate), Some(Status::Busy)) => self.guest_ends(x1),
            // There are as many as can be: whichever is next has to go.
            (Some(Function::GuestCreate), Some(Status::NoSpace)) if self.ending().is_none() => {
                self.victim = self.victim % u64::from(GuestHandle::MAX) + 1;
                self.guest_ends(self.victim);
            }
            _ => {}
        }
    }

    /// A guest is being taken apart. Nothing else of it is of use, but sometimes it is tried.
    fn guest_ends(&mut self, guest: u64) {
        self.guests.taken(|known| *known == guest);
        self.ending.taken(|known| *known == guest);
        self.ending.given(guest);
    }

    /// A guest ended, with all that is its own.
    fn guest_is_gone(&mut self, guest: u64) {
        self.guests.taken(|known| *known == guest);
        self.ending.taken(|ending| *ending == guest);
        self.domains.taken(|domain| domain >> 32 == guest);
        self.given.taken(|held| held.by == guest);
        self.shared.taken(|held| held.by == guest);
        self.mapped.taken(|held| held.by >> 32 == guest);
        self.vsmmus.taken(|(vsmmu, _)| vsmmu >> 32 == guest);
    }

    /// Where things are in the host's memory.
    pub const fn places(&self) -> &Places {
        &self.places
    }

    /// Whether no device may reach an address.
    pub(super) fn is_forbidden(&self, address: u64) -> bool {
        self.forbidden.iter().flatten().any(|place| place.address == address)
    }

    /// Whether the host's CPUs may not reach an address.
    pub(super) fn is_refused_to_cpus(&self, address: u64) -> bool {
        self.forbidden.iter().flatten().any(|place| place.cpu_refused && place.address & !7 == address & !7)
    }

    /// A place that no device may reach.
    pub(super) fn forbidden(&self, choices: &mut Choices<'_>) -> Option<&Forbidden> {
        let count = self.forbidden.iter().flatten().count();
        self.forbidden.get(choices.below(count as u64) as usize)?.as_ref()
    }

    /// An address that the CPU may not reach, and how many bytes to access.
    pub(super) fn outside(&self, choices: &mut Choices<'_>) -> Option<(u64, u8)> {
        let bytes = choices.of(&[4, 8, 1, 2]).unwrap_or(4);
        let place = self.forbidden(choices)?;
        place.cpu_refused.then_some((place.address, bytes))
    }

    /// A page: mostly one of the host's or a guest's.
    pub(super) fn page(&self, choices: &mut Choices<'_>) -> u64 {
        let Places { scratch, unit } = self.places;
        match choices.byte() {
            0..160 => scratch + choices.below(1 << NEAR_LOG2) * unit,
            160..200 => {
                // Around the edges of blocks.
                let block = (1 + choices.below(SCRATCH_BYTES / BLOCK - 1)) * BLOCK;
                (scratch + block + choices.below(4) * unit).saturating_sub(2 * unit)
            }
            200..244 => scratch + choices.half() * unit % SCRATCH_BYTES,
            244..248 => scratch + choices.half() % SCRATCH_BYTES,
            248..252 => self.forbidden(choices).map_or(0, |place| place.address & !(unit - 1)),
            252 => self.not_ram,
            // Neither is RAM that a program may be in.
            253 => (choices.half() << 12) & 0x3fff_ffff,
            _ => choices.word() | 1 << 52,
        }
    }

    /// Bytes from a page on: within the memory for this, if the page is there.
    pub(super) fn size(&self, choices: &mut Choices<'_>, page: Option<u64>) -> u64 {
        let Places { scratch, unit } = self.places;
        let size = match choices.byte() {
            0..160 => (1 + choices.below(4)) * unit,
            160..192 => unit << choices.below(10),
            192..208 => BLOCK,
            208..240 => (1 + choices.half() % 600) * unit,
            240..248 => choices.half(),
            248 => 0,
            _ => choices.word(),
        };
        match page {
            Some(page) if (scratch..scratch + SCRATCH_BYTES).contains(&page) => {
                // A range that goes beyond is as long as it can be.
                size.min(scratch + SCRATCH_BYTES - page)
            }
            _ => size,
        }
    }

    /// An address in a domain.
    pub(super) fn ipa(&self, choices: &mut Choices<'_>) -> u64 {
        let unit = self.places.unit;
        match choices.byte() {
            0..160 => SLOTS + choices.below(32) * unit,
            160..208 => SLOTS + BLOCK * (1 + choices.below(3)) + choices.below(4) * unit - 2 * unit,
            208..240 => self.page(choices),
            _ => choices.word() >> choices.below(64),
        }
    }

    /// The index of an SMMU, seldom of one that there is not.
    pub(super) fn smmu(&self, choices: &mut Choices<'_>) -> usize {
        let byte = usize::from(choices.byte());
        if byte >= 252 { byte } else { byte % self.smmu_count.max(1) }
    }

    /// A StreamID on an SMMU: mostly of a device.
    pub(super) fn stream(&self, choices: &mut Choices<'_>, smmu: usize) -> u64 {
        let streams = self.smmus.get(smmu).copied().unwrap_or_default().streams;
        let count = streams.iter().flatten().count();
        let byte = usize::from(choices.byte());
        let stream = streams.iter().flatten().nth(byte % count.max(1)).copied().map_or(0, u64::from);
        match byte {
            0..240 => stream,
            240..248 => stream ^ 1 << choices.below(16),
            248..252 => choices.half(),
            _ => choices.word(),
        }
    }

    /// The handle of a guest.
    pub(super) fn guest(&self, choices: &mut Choices<'_>) -> u64 {
        if choices.seldom(8) {
            return choices.below(u64::from(GuestHandle::MAX) + 2);
        }
        self.guests.pick(choices).unwrap_or(1)
    }

    /// The handle of a domain.
    pub(super) fn domain(&self, choices: &mut Choices<'_>) -> u64 {
        match choices.byte() {
            0..64 => 0,
            64..112 => self.guests.pick(choices).unwrap_or(1),
            112..252 => self.domains.pick(choices).unwrap_or(0),
            _ => choices.word() & 0x41_ffff_ffff,
        }
    }

    /// The handle of a vSMMU, and its SMMU.
    pub(super) fn vsmmu(&self, choices: &mut Choices<'_>) -> (u64, usize) {
        if choices.seldom(4) {
            return (choices.word() & 0x41_ffff_00ff, 0);
        }
        self.vsmmus.pick(choices).unwrap_or_default()
    }

    /// The guest that is being taken apart.
    pub(super) fn ending(&self) -> Option<u64> {
        self.ending.things.first().copied().flatten()
    }

    /// How many are.
    pub(super) fn endings(&self) -> usize {
        self.ending.things.iter().flatten().count()
    }

    /// How many guests are known that are not being taken apart.
    pub(super) fn guests(&self) -> usize {
        self.guests.things.iter().flatten().count()
    }

    /// What a guest was given.
    pub(super) fn given(&self, choices: &mut Choices<'_>) -> Option<Held> {
        self.given.pick(choices)
    }

    /// What is shared.
    pub(super) fn shared(&self, choices: &mut Choices<'_>) -> Option<Held> {
        self.shared.pick(choices)
    }

    /// What a domain maps.
    pub(super) fn mapped(&self, choices: &mut Choices<'_>) -> Option<Held> {
        self.mapped.pick(choices)
    }

    /// A domain that calls made for a guest.
    pub(super) fn domain_of(&self, guest: u64) -> Option<u64> {
        self.domains.things.into_iter().flatten().find(|domain| domain >> 32 == guest)
    }

    /// A few units, far from those that donations mostly take: what the pool was given it does not give back soon.
    pub(super) fn far(&self, choices: &mut Choices<'_>) -> (u64, u64) {
        let Places { scratch, unit } = self.places;
        let place = SCRATCH_BYTES / 2 + choices.half() * unit % (SCRATCH_BYTES / 2);
        (scratch + place, (1 + choices.below(4)) * unit)
    }

    /// A register value of any kind.
    pub(super) fn anything(&self, choices: &mut Choices<'_>) -> u64 {
        match choices.below(6) {
            0 => self.page(choices),
            1 => self.domain(choices),
            2 => self.vsmmu(choices).0,
            3 => u64::MAX << choices.below(64),
            4 => 1 << choices.below(64),
            _ => choices.word(),
        }
    }
}
