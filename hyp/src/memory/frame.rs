//! Who owns each unit of RAM: two bytes a unit, in pages of the pool.

use abi::{GuestHandle, Recipient, Status};
use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::memory::Memory;

use crate::list::List;

/// Who a unit of RAM belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The host.
    Host,
    /// A guest.
    Guest(GuestHandle),
    /// The hypervisor: image, tables, queues, pool.
    Hypervisor,
    /// Nobody: hardware failed while the unit changed owner, and it is not known who can still reach it.
    Nobody,
}

/// What the table says of one unit. Bits 7:0 say who owns it and, of the host's, bits 15:8 with whom it is shared, both as
/// 0 (host or not shared), 1 to 64 (a guest), [`Self::HYPERVISOR_CODE`] or [`Self::NOBODY_CODE`]. A pinned unit is the host's, and has
/// [`Self::HYPERVISOR_CODE`] plus the number of its pins there. Of a guest's, bits 15:8 are how often domains that a call made map it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageState(u16);

impl PageState {
    const HYPERVISOR_CODE: u16 = 0x80;
    const NOBODY_CODE: u16 = 0x81;

    /// The host's, and not shared.
    pub const HOST: Self = Self(0);
    /// The hypervisor's.
    pub const HYPERVISOR: Self = Self(Self::HYPERVISOR_CODE);
    /// Quarantined.
    pub const NOBODY: Self = Self(Self::NOBODY_CODE);

    /// A guest's.
    #[inline]
    pub const fn guest(guest: GuestHandle) -> Self {
        Self(guest.to_register() as u16)
    }

    /// The host's, and shared with `recipient`.
    #[inline]
    pub const fn shared(recipient: Recipient) -> Self {
        Self(match recipient {
            Recipient::Hypervisor => Self::HYPERVISOR_CODE << 8,
            Recipient::Guest(guest) => (guest.to_register() as u16) << 8,
        })
    }

    /// Whether it is the host's, shared or not.
    #[inline]
    pub const fn is_hosts(self) -> bool {
        self.0 & 0xff == 0
    }

    /// Who owns the unit.
    pub fn owner(self) -> Owner {
        match self.0 & 0xff {
            0 => Owner::Host,
            Self::HYPERVISOR_CODE => Owner::Hypervisor,
            code => GuestHandle::from_register(u64::from(code)).map_or(Owner::Nobody, Owner::Guest),
        }
    }

    /// With whom the host shares the unit; a pinned one counts as shared with the hypervisor.
    pub fn sharer(self) -> Option<Recipient> {
        match self.0 >> 8 {
            0 => None,
            _ if self.0 & 0xff != 0 => None,
            code => Some(
                GuestHandle::from_register(u64::from(code)).map_or(Recipient::Hypervisor, Recipient::Guest),
            ),
        }
    }

    /// The same with one mapping more; `None` when it is no guest's, or is mapped as often as can be counted.
    const fn mapped(self, guest: GuestHandle) -> Option<Self> {
        let is_guests = self.0 & 0xff == guest.to_register() as u16;
        if is_guests && self.0 >> 8 < MAX_MAPPINGS { Some(Self(self.0 + (1 << 8))) } else { None }
    }

    /// The same with one mapping less.
    const fn unmapped(self) -> Self {
        if self.0 >> 8 == 0 { self } else { Self(self.0 - (1 << 8)) }
    }

    /// The same with one pin more; `None` when it is not the host's alone.
    const fn pinned(self) -> Option<Self> {
        match (self.0 & 0xff, self.0 >> 8) {
            (0, 0) => Some(Self((Self::HYPERVISOR_CODE + 1) << 8)),
            (0, code) if code > Self::HYPERVISOR_CODE && code < 0xff => Some(Self(self.0 + (1 << 8))),
            _ => None,
        }
    }

    /// Whether it is pinned as often as can be counted.
    const fn is_full_of_pins(self) -> bool {
        self.0 == 0xff << 8
    }

    /// The same with one pin less; as it is when it has none.
    const fn unpinned(self) -> Self {
        match (self.0 & 0xff, self.0 >> 8) {
            (0, code) if code == Self::HYPERVISOR_CODE + 1 => Self::HOST,
            (0, code) if code > Self::HYPERVISOR_CODE => Self(self.0 - (1 << 8)),
            _ => self,
        }
    }

    /// What a unit's 16 bits of the table say.
    #[cfg(feature = "oracle")]
    pub const fn of_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The bits in the table.
    #[cfg(feature = "oracle")]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether it is one of those that there are.
    #[cfg(feature = "oracle")]
    pub fn is_defined(self) -> bool {
        match (self.0 & 0xff, self.0 >> 8) {
            (0, code) => code <= GuestHandle::MAX.into() || code >= Self::HYPERVISOR_CODE,
            (Self::HYPERVISOR_CODE | Self::NOBODY_CODE, code) => code == 0,
            (code, _) => code <= GuestHandle::MAX.into(),
        }
    }

    /// How often the unit is pinned.
    #[cfg(feature = "oracle")]
    pub const fn pins(self) -> u64 {
        match (self.0 & 0xff, self.0 >> 8) {
            (0, code) if code > Self::HYPERVISOR_CODE => (code - Self::HYPERVISOR_CODE) as u64,
            _ => 0,
        }
    }

    /// Of a guest's, how often domains that a call made map it.
    #[cfg(feature = "oracle")]
    pub const fn mappings(self) -> u64 {
        (self.0 >> 8) as u64
    }

    /// What a word of the table says of a unit in it.
    #[inline]
    const fn in_word(word: u64, unit: u64) -> Self {
        Self((word >> (16 * (unit % UNITS_PER_WORD))) as u16)
    }

    /// Four times this state: what a 64-bit word of the table holds when all of its units are alike.
    #[inline]
    const fn word(self) -> u64 {
        self.0 as u64 * 0x0001_0001_0001_0001
    }
}

/// Units that lie one after the other in one bank of RAM: a range that has been checked against the table.
///
/// It is only a place; what state the units are in is for [`FrameTable`] to say.
#[derive(Clone, Copy, Debug)]
pub struct FrameRun {
    range: PhysRange,
    words: PhysAddr,
    first: u64,
    units: u64,
}

impl FrameRun {
    /// The physical addresses of the run.
    #[inline]
    pub const fn range(&self) -> PhysRange {
        self.range
    }

    /// How many units the run has.
    #[inline]
    pub const fn units(&self) -> u64 {
        self.units
    }

    /// The numbers of its units in the bank's table.
    fn each(&self) -> core::ops::Range<u64> {
        self.first..self.first + self.units
    }

    /// Calls `visit` with the address of each word that holds a unit of the run and a mask of the run's units in it,
    /// until it answers `false`; whether it never did.
    #[inline]
    fn words(&self, mut visit: impl FnMut(PhysAddr, u64) -> bool) -> bool {
        let end = self.first + self.units;
        let mut unit = self.first;
        while unit < end {
            let lane = unit % UNITS_PER_WORD;
            let lanes = (UNITS_PER_WORD - lane).min(end - unit);
            let mask = (u64::MAX >> (64 - 16 * lanes)) << (16 * lane);
            if !visit(self.words.offset(unit / UNITS_PER_WORD * 8), mask) {
                return false;
            }
            unit += lanes;
        }
        true
    }
}

/// The most mappings of one unit that are counted.
const MAX_MAPPINGS: u16 = 0xff;

const UNITS_PER_WORD: u64 = 4;
const UNIT_BYTES_IN_TABLE: u64 = 2;

/// The most banks of RAM that are told apart; banks that touch count as one.
pub const MAX_BANKS: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Bank {
    range: PhysRange,
    words: PhysAddr,
}

/// The table. Its words lie in memory of the hypervisor and are reached through [`Memory`]; whoever uses it holds
/// the memory lock.
pub struct FrameTable {
    unit_log2: u8,
    banks: List<Bank, MAX_BANKS>,
}

impl FrameTable {
    /// A table with no RAM, for units of `1 << unit_log2` bytes.
    pub const fn new(unit_log2: u8) -> Self {
        Self { unit_log2, banks: List::new() }
    }

    /// Ownership unit in bytes.
    #[inline]
    pub const fn unit_bytes(&self) -> u64 {
        1 << self.unit_log2
    }

    /// Bytes of table that a bank of RAM needs.
    pub const fn table_bytes(&self, bank: PhysRange) -> u64 {
        ((bank.size_bytes() >> self.unit_log2) * UNIT_BYTES_IN_TABLE).next_multiple_of(8)
    }

    /// Adds a bank of RAM, aligned to the unit, whose table of [`Self::table_bytes`] lies at `words` and is
    /// filled with zeros: all of it is the host's. `false`, and nothing is changed, when there are [`MAX_BANKS`]
    /// already or the bank is not aligned.
    pub fn add_bank(&mut self, bank: PhysRange, words: PhysAddr) -> bool {
        bank.is_aligned(self.unit_bytes()) && self.banks.push(Bank { range: bank, words }).is_ok()
    }

    /// The run of units that `range` is made of; `None` when it is not within one bank of RAM. The caller has
    /// checked that it is aligned.
    #[inline]
    pub fn run(&self, range: PhysRange) -> Option<FrameRun> {
        let bank = self.banks.iter().find(|bank| bank.range.encloses(range))?;
        Some(FrameRun {
            range,
            words: bank.words,
            first: (range.start().0 - bank.range.start().0) >> self.unit_log2,
            units: range.size_bytes() >> self.unit_log2,
        })
    }

    /// The banks, each with where its table is.
    #[cfg(feature = "oracle")]
    pub fn banks(&self) -> impl Iterator<Item = (PhysRange, PhysAddr)> {
        self.banks.iter().map(|bank| (bank.range, bank.words))
    }

    /// The ranges of all banks.
    #[cfg(feature = "oracle")]
    pub fn ranges(&self) -> impl Iterator<Item = &PhysRange> {
        self.banks.iter().map(|bank| &bank.range)
    }

    /// Whether `wanted` accepts the state of every unit of the run.
    #[cfg(feature = "oracle")]
    pub fn each(&self, memory: &impl Memory, run: &FrameRun, wanted: impl Fn(PageState) -> bool) -> bool {
        let hosts = wanted(PageState::HOST);
        run.words(|word, mask| {
            let states = memory.read_u64(word);
            // All of them are the host's and unshared, by far the most frequent word.
            let is_plain = states & mask == 0;
            is_plain && hosts
                || (0..UNITS_PER_WORD)
                    .filter(|lane| mask >> (16 * lane) & 1 != 0)
                    .all(|lane| wanted(PageState::in_word(states, lane)))
        })
    }

    /// Whether every unit of the run is in this state.
    #[inline]
    pub fn all(&self, memory: &impl Memory, run: &FrameRun, state: PageState) -> bool {
        let wanted = state.word();
        run.words(|word, mask| (memory.read_u64(word) ^ wanted) & mask == 0)
    }

    /// Puts every unit of the run in this state.
    #[inline]
    pub fn fill(&mut self, memory: &impl Memory, run: &FrameRun, state: PageState) {
        let wanted = state.word();
        run.words(|word, mask| {
            let old = if mask == u64::MAX { 0 } else { memory.read_u64(word) & !mask };
            memory.write_u64(word, old | wanted & mask);
            true
        });
    }

    /// The state of the unit that this address is in; `None` when it is not RAM.
    #[inline]
    pub fn state(&self, memory: &impl Memory, address: PhysAddr) -> Option<PageState> {
        let bank = self.banks.iter().find(|bank| bank.range.contains(address))?;
        let unit = address.0.wrapping_sub(bank.range.start().0).wrapping_shr(self.unit_log2.into());
        let word = (unit / UNITS_PER_WORD).wrapping_mul(8);
        Some(PageState::in_word(memory.read_u64(bank.words.offset(word)), unit))
    }

    /// Counts one mapping more of every unit of the run; `false`, and nothing is changed, if the guest does not own one of them.
    /// An error says that one is mapped as often as can be counted.
    pub fn add_mapping(
        &mut self,
        memory: &impl Memory,
        run: &FrameRun,
        guest: GuestHandle,
    ) -> Result<bool, TooManyMappings> {
        let code = PageState::guest(guest).0;
        let mut owned = true;
        let mut room = true;
        for unit in run.each() {
            let state = self.unit(memory, run, unit);
            owned &= state.0 & 0xff == code;
            room &= state.mapped(guest).is_some();
        }
        if !owned {
            return Ok(false);
        }
        if !room {
            return Err(TooManyMappings);
        }
        for unit in run.each() {
            if let Some(state) = self.unit(memory, run, unit).mapped(guest) {
                self.set_unit(memory, run, unit, state);
            }
        }
        Ok(true)
    }

    /// Counts one mapping less of every unit of the run.
    pub fn remove_mapping(&mut self, memory: &impl Memory, run: &FrameRun) {
        for unit in run.each() {
            let state = self.unit(memory, run, unit);
            self.set_unit(memory, run, unit, state.unmapped());
        }
    }

    /// Counts one pin more of every unit of the run.
    ///
    /// # Errors
    /// `WrongState` when one is not the host's alone, `NoSpace` when one is pinned as often as can be counted. Nothing is changed.
    pub fn add_pin(&mut self, memory: &impl Memory, run: &FrameRun) -> Result<(), Status> {
        for unit in run.each() {
            let state = self.unit(memory, run, unit);
            if state.is_full_of_pins() {
                return Err(Status::NoSpace);
            }
            state.pinned().ok_or(Status::WrongState)?;
        }
        for unit in run.each() {
            if let Some(state) = self.unit(memory, run, unit).pinned() {
                self.set_unit(memory, run, unit, state);
            }
        }
        Ok(())
    }

    /// Counts one pin less of every unit of the run.
    pub fn remove_pin(&mut self, memory: &impl Memory, run: &FrameRun) {
        for unit in run.each() {
            let state = self.unit(memory, run, unit);
            self.set_unit(memory, run, unit, state.unpinned());
        }
    }

    fn unit(&self, memory: &impl Memory, run: &FrameRun, unit: u64) -> PageState {
        PageState::in_word(memory.read_u64(run.words.offset(unit / UNITS_PER_WORD * 8)), unit)
    }

    fn set_unit(&mut self, memory: &impl Memory, run: &FrameRun, unit: u64, state: PageState) {
        let at = run.words.offset(unit / UNITS_PER_WORD * 8);
        let lane = 16 * (unit % UNITS_PER_WORD);
        let word = memory.read_u64(at) & !(0xffff << lane);
        memory.write_u64(at, word | u64::from(state.0) << lane);
    }

    /// Looks for units that a guest owns, or that are shared with it, from `from` on, through at most `words` words of table; a run
    /// of units that lie side by side and are alike, within one step.
    pub fn next_of(
        &self,
        memory: &impl Memory,
        guest: GuestHandle,
        from: Position,
        mut words: u64,
    ) -> SearchOf {
        let owned = PageState::guest(guest).0;
        let shared = PageState::shared(Recipient::Guest(guest)).0;
        let is_wanted = |state: PageState| state.0 & 0xff == owned || state.0 == shared;
        let Position { mut bank, mut unit } = from;
        while let Some(here) = self.banks.get(bank) {
            let units = here.range.size_bytes() >> self.unit_log2;
            let word_of = |unit: u64| memory.read_u64(here.words.offset(unit / UNITS_PER_WORD * 8));
            while unit < units {
                if words == 0 {
                    return SearchOf::Unfinished(Position { bank, unit });
                }
                words -= 1;
                // All four are the host's and unshared, by far the most frequent word.
                let word = word_of(unit);
                if word == 0 {
                    unit = (unit / UNITS_PER_WORD + 1) * UNITS_PER_WORD;
                    continue;
                }
                let found = PageState::in_word(word, unit);
                if is_wanted(found) {
                    let start = here.range.start().offset(unit << self.unit_log2);
                    // Not beyond the end of a step.
                    let step_end = (start.0 / abi::MAX_STEP_BYTES + 1) * abi::MAX_STEP_BYTES;
                    let most = ((step_end - start.0) >> self.unit_log2).min(units - unit);
                    let count = (1..most)
                        .find(|more| PageState::in_word(word_of(unit + more), unit + more) != found)
                        .unwrap_or(most);
                    let Some(range) = PhysRange::new(start, count << self.unit_log2) else {
                        return SearchOf::End;
                    };
                    return SearchOf::Found {
                        range,
                        owned: found.owner() == Owner::Guest(guest),
                        at: Position { bank, unit },
                    };
                }
                unit += 1;
            }
            bank += 1;
            unit = 0;
        }
        SearchOf::End
    }

    /// Whether a byte of `range` is in a bank of RAM.
    pub fn overlaps_ram(&self, range: PhysRange) -> bool {
        self.banks.iter().any(|bank| bank.range.overlaps(range))
    }

    /// Looks for the next unit, from `from` on, that a guest or nobody owns, through at most `words` words of table.
    /// What it finds says how many of them are left.
    pub fn next_to_wipe(&self, memory: &impl Memory, from: Position, mut words: u64) -> Search {
        let Position { mut bank, mut unit } = from;
        while let Some(here) = self.banks.get(bank) {
            let units = here.range.size_bytes() >> self.unit_log2;
            while unit < units {
                if words == 0 {
                    return Search::Unfinished(Position { bank, unit });
                }
                words -= 1;
                let word = memory.read_u64(here.words.offset(unit / UNITS_PER_WORD * 8));
                let next_word = (unit / UNITS_PER_WORD + 1) * UNITS_PER_WORD;
                // All four are the host's and unshared, by far the most frequent word.
                if word == 0 {
                    unit = next_word;
                    continue;
                }
                while unit < next_word.min(units) {
                    let state = PageState::in_word(word, unit);
                    let place = here.range.start().offset(unit << self.unit_log2);
                    unit += 1;
                    if let (Owner::Guest(_) | Owner::Nobody, Some(range)) =
                        (state.owner(), PhysRange::new(place, self.unit_bytes()))
                    {
                        return Search::Found(range, Position { bank, unit }, words);
                    }
                }
            }
            bank += 1;
            unit = 0;
        }
        Search::End
    }
}

/// A place in the table for [`FrameTable::next_to_wipe`] and [`FrameTable::next_of`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    bank: usize,
    unit: u64,
}

impl Position {
    /// The beginning of the table.
    pub const START: Self = Self { bank: 0, unit: 0 };
}

/// A unit is mapped as often as can be counted. Nothing is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyMappings;

/// What [`FrameTable::next_of`] came upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchOf {
    /// Units, all alike.
    Found {
        /// Where they are.
        range: PhysRange,
        /// They are the guest's; else they are shared with it.
        owned: bool,
        /// Where they were found.
        at: Position,
    },
    /// Nothing yet; where to go on.
    Unfinished(Position),
    /// There is none.
    End,
}

/// What [`FrameTable::next_to_wipe`] came upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// A unit, where to go on, and how many words are left to go on with.
    Found(PhysRange, Position, u64),
    /// Nothing yet; where to go on.
    Unfinished(Position),
    /// There is none.
    End,
}
