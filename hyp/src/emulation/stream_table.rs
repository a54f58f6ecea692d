//! The host's stream table (IHI 0070, 3.3.1, 5.1, 6.3.24 and 6.3.25): where an STE lies, and what becomes of it.

use smmuv3::address::PhysAddr;
use smmuv3::command::CommandError;
use smmuv3::event::{EventKind, EventRecord};
use smmuv3::registers::{IDR1, STRTAB_BASE, STRTAB_BASE_CFG};
use smmuv3::ste::{LEVEL1_BYTES, Level1Descriptor, STE_BYTES, Stage1Claim};

use super::{Backend, Budget, EmulatedSmmu, Fault, SET_UNITS, SetStreamError};

/// A walk over streams, as far as it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Walk {
    /// The next StreamID to look at.
    next: u32,
    /// The last.
    last: u32,
    /// All streams abort, so that those that are to abort need not be set.
    fresh: bool,
    /// An STE that could not be read was recorded.
    recorded: bool,
}

impl Walk {
    /// Over all streams, which all abort.
    pub(super) const FILL: Self = Self { next: 0, last: u32::MAX, fresh: true, recorded: false };

    /// Over the streams from `first` to `last`.
    pub(super) const fn over(first: u32, last: u32) -> Self {
        Self { next: first, last, fresh: false, recorded: false }
    }
}

/// What the table says of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// There is an STE, with these words 0 and 1, at this address.
    Entry(Stage1Claim, PhysAddr),
    /// The StreamID is out of range (C_BAD_STREAMID). So are all up to `last`.
    OutOfRange {
        /// The last StreamID of a run that the table does not have either.
        last: u32,
    },
    /// The STE, or the descriptor above it, at this address is not the host's. So it is for all up to `last`.
    Unreadable {
        /// Where it should be.
        address: PhysAddr,
        /// The last StreamID of a run that needs the same.
        last: u32,
    },
}

impl Found {
    /// Where the STE is, or the descriptor above it; 0 if there is none.
    const fn address(self) -> PhysAddr {
        match self {
            Self::Entry(_, address) | Self::Unreadable { address, .. } => address,
            Self::OutOfRange { .. } => PhysAddr(0),
        }
    }
}

impl EmulatedSmmu {
    /// Looks a stream up in the table.
    pub(super) fn look_up(&self, backend: &impl Backend, stream: u32) -> Found {
        let cfg = self.registers.strtab_base_cfg;
        let size_log2 = STRTAB_BASE_CFG::LOG2SIZE.read(cfg);
        let base = self.registers.strtab_base & (STRTAB_BASE::ADDR.mask << STRTAB_BASE::ADDR.shift);
        // The base is aligned by LOG2SIZE as it stands, the range is limited by IDR1.SIDSIZE too (6.3.24, 6.3.25).
        let range_log2 = size_log2.min(IDR1::SIDSIZE.read(self.ids.idr1));
        if u64::from(stream) >> range_log2 != 0 {
            return Found::OutOfRange { last: u32::MAX };
        }
        if STRTAB_BASE_CFG::FMT.read(cfg) != 0b01 {
            let table = base & !low_bits(size_log2.saturating_add(STE_BYTES.trailing_zeros()));
            return entry(backend, stream, table, stream);
        }
        let split = match STRTAB_BASE_CFG::SPLIT.read(cfg) {
            split @ (8 | 10) => split,
            // 6, and what is reserved.
            _ => 6,
        };
        let level1_log2 = size_log2.saturating_sub(split).saturating_add(LEVEL1_BYTES.trailing_zeros());
        let table = base & !low_bits(level1_log2);
        let within = (1 << split) - 1;
        let (index, last) = (stream & within, stream | within);
        let address = PhysAddr(table.wrapping_add(u64::from(stream >> split) * LEVEL1_BYTES));
        let Ok([descriptor]) = backend.read_host(address) else { return Found::Unreadable { address, last } };
        match Level1Descriptor(descriptor).level2(split as u8) {
            Some((table, log2)) if index >> log2 == 0 => entry(backend, stream, table.0, index),
            _ => Found::OutOfRange { last },
        }
    }

    /// Goes on with a walk: what is left of it when the budget is used up, or when a stream could not be set by a command, which is CERROR_ABT then.
    pub(super) fn walk(&mut self, backend: &impl Backend, walk: Walk, budget: &mut Budget) -> Option<Walk> {
        let Walk { mut next, last, fresh, mut recorded } = walk;
        loop {
            let stream = backend.next_stream(next).filter(|stream| *stream <= last)?;
            let found = if budget.take(1) { Some(self.look_up(backend, stream)) } else { None };
            let done = match found {
                None => return Some(Walk { next: stream, last, fresh, recorded }),
                Some(Found::OutOfRange { last }) if fresh => last,
                Some(Found::Unreadable { address, last }) if fresh => {
                    self.record_unreadable(backend, stream, address, &mut recorded);
                    last
                }
                Some(Found::Entry(claim, _)) if fresh && claim.aborts() => stream,
                Some(found) => {
                    if !budget.take(SET_UNITS) {
                        return Some(Walk { next: stream, last, fresh, recorded });
                    }
                    budget.spend(backend.drain_events());
                    if self.set(backend, stream, found, &mut recorded) == Err(Fault::Incomplete) {
                        if !fresh {
                            self.command_error(backend, CommandError::ABORT);
                            return Some(Walk { next: stream, last, fresh, recorded });
                        }
                        self.record_unreadable(backend, stream, found.address(), &mut recorded);
                    }
                    stream
                }
            };
            next = done.checked_add(1)?;
        }
    }

    /// Looks a stream up and makes it do what the table says.
    ///
    /// # Errors
    /// [`Fault`], as [`EmulatedSmmu::set`].
    pub(super) fn set_from_table(
        &mut self,
        backend: &impl Backend,
        stream: u32,
        budget: &mut Budget,
    ) -> Result<(), Fault> {
        let found = self.look_up(backend, stream);
        budget.spend(backend.drain_events());
        self.set(backend, stream, found, &mut false)
    }

    /// As [`EmulatedSmmu::set_from_table`], for a stream that aborts: one that cannot be set is recorded.
    pub(super) fn set_parked(&mut self, backend: &impl Backend, stream: u32) {
        let found = self.look_up(backend, stream);
        let mut recorded = false;
        backend.drain_events();
        if self.set(backend, stream, found, &mut recorded) == Err(Fault::Incomplete) {
            self.record_unreadable(backend, stream, found.address(), &mut recorded);
        }
    }

    /// Makes a stream do what the table says; the events of what it did before were drained. What cannot be is recorded as an event: of STEs that could not be read one, if `recorded` is
    /// false.
    ///
    /// # Errors
    /// [`Fault`]: the stream is what it was, or the SMMU is dead.
    fn set(
        &mut self,
        backend: &impl Backend,
        stream: u32,
        found: Found,
        recorded: &mut bool,
    ) -> Result<(), Fault> {
        let claim = match found {
            Found::Entry(claim, _) if claim.is_valid() => Some(claim),
            _ => None,
        };
        if let Found::Unreadable { address, .. } = found {
            self.record_unreadable(backend, stream, address, recorded);
        }
        match (backend.set_stream(stream, claim), found) {
            (Ok(()) | Err(SetStreamError::NotHosts), _) => {}
            (Err(SetStreamError::NoMemory), Found::Entry(_, address)) => {
                self.record_unreadable(backend, stream, address, recorded);
            }
            (Err(SetStreamError::Refused | SetStreamError::NoMemory), _) => {
                self.record(backend, EventRecord::configuration(EventKind::BAD_STE, stream, None));
            }
            (Err(SetStreamError::Fault(fault)), _) => {
                self.fail(backend, fault);
                return Err(fault);
            }
        }
        Ok(())
    }

    /// Records F_STE_FETCH unless that was done.
    fn record_unreadable(
        &mut self,
        backend: &impl Backend,
        stream: u32,
        address: PhysAddr,
        recorded: &mut bool,
    ) {
        if !*recorded {
            *recorded = true;
            self.record(backend, EventRecord::ste_fetch(stream, None, address.0));
        }
    }
}

/// The STE of a stream, at an index of a table.
fn entry(backend: &impl Backend, stream: u32, table: u64, index: u32) -> Found {
    let address = PhysAddr(table.wrapping_add(u64::from(index) * STE_BYTES));
    match backend.read_host(address) {
        Ok(words) => Found::Entry(Stage1Claim(words), address),
        Err(_) => Found::Unreadable { address, last: stream },
    }
}

/// A mask of the lowest `count` bits.
const fn low_bits(count: u32) -> u64 {
    match 1u64.checked_shl(count) {
        Some(bit) => bit - 1,
        None => u64::MAX,
    }
}
