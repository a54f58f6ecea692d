//! An emulated SMMU: what the host's own driver finds at the registers of an SMMU that EL2 owns (IHI 0070, chapters 3, 6 and 7).
//!
//! The driver sees an SMMU with stage 1 alone. Its command queue, event queue and stream table are memory of the host's,
//! read when needed, once. Commands are checked by the one allow list ([`smmuv3::vsmmu`]); an STE says what stage 1 does, and
//! EL2 adds stage 2. What becomes of that is behind [`Backend`].
//!
//! An access is bounded: a step does work of [`STEP_UNITS`] at the most, and answers [`Progress::Again`] when there is more. Then the same
//! store is made again. Nothing the host writes is an error of EL2's: where IHI 0070 leaves a choice, an illegal write is ignored.
//!
//! # What is chosen where IHI 0070 leaves it open
//! * Registers take aligned accesses of 4 and 8 bytes; other accesses read as zero and ignore writes (6.2). A store of 8 bytes to two
//!   registers is two stores, the lower first.
//! * Guarded registers ignore writes while they are guarded, as from SMMUv3.2 on.
//! * Writes of GERRORN change the bits of active errors alone.
//! * While queue indexes are inconsistent nothing is consumed, and an event queue counts as full (3.5.1).
//! * While SMMUEN is 0, and whatever GBPA is set to, all transactions abort, and GBPA reads so.
//! * The wired interrupt of CMD_SYNC is for SIG_IRQ without MSIAddress. MSIs of the event queue and of global errors are never sent.
//! * A command whose StreamID is none of the host's has no effect (4.1.7).
//! * An STE that the host may not have makes the stream abort, and C_BAD_STE is recorded when that is noticed, and again when a transaction of it is.
//! * An STE that cannot be read gives F_STE_FETCH, in a walk over many streams once; so does one that EL2 has no memory for: the
//!   stream aborts until the driver invalidates that STE again.
//! * A stream that the SMMU did not let be set is what it was: CERROR_ABT at the command that named it, so that it is tried again when that is
//!   acknowledged; F_STE_FETCH where it aborts, because SMMUEN goes to 1 or a call gave it back. While a stream cannot be made to abort an
//!   update of SMMUEN to 0 is not acknowledged, and the next store to CR0 tries again.
//! * Invalidations that the SMMU did not complete give CERROR_ABT at the first of them, or with an ATC_INV among them CERROR_ATC_INV_SYNC after
//!   them: acknowledged, they are tried again, or go on. An SMMU that is dead is in service failure mode (12.3).
//! * Of the SMMU's own global errors the driver is told what concerns it: SFM_ERR when it is dead, and an overflow of the event queue for events that
//!   it could not write. Its command queue is EL2's.

mod backend;
mod command_queue;
mod control;
mod event_queue;
mod global_error;
mod registers;
mod stream_table;

pub use backend::{Backend, DrainedEvent, Fault, Interrupt, NotHost, SetStreamError};

use smmuv3::command::Command;
use smmuv3::features::IdRegisters;
use smmuv3::registers::{
    CMDQ_PROD_OFFSET, CR0_OFFSET, EVENTQ_BASE_OFFSET, EVENTQ_PROD_OFFSET, GERROR_OFFSET, GERRORN_OFFSET,
    PAGE1, SPACE_BYTES,
};
use smmuv3::vsmmu::VsmmuLimits;

use crate::memory::Progress;
use control::Translation;
use registers::{EVENTQEN, RegisterFile};
use stream_table::Walk;

/// What one access may do, in units of which a command is one, a look at an STE one, an event one, and a stream that is set [`SET_UNITS`]. A unit is
/// some hundred instructions, so that a step stays below EL2's bound of 250,000.
pub const STEP_UNITS: u32 = 256;
/// Units of setting a stream.
pub const SET_UNITS: u32 = 16;
/// Commands that are read and forwarded at once: what Linux writes at once.
const BATCH: usize = 64;

/// What is left of a step.
#[derive(Debug)]
struct Budget(u32);

impl Budget {
    const fn new() -> Self {
        Self(STEP_UNITS)
    }

    /// Takes `units`; false when they are not there.
    const fn take(&mut self, units: u32) -> bool {
        match self.0.checked_sub(units) {
            Some(left) => {
                self.0 = left;
                true
            }
            None => false,
        }
    }

    /// Takes the units of what is done already.
    const fn spend(&mut self, units: u32) {
        self.0 = self.0.saturating_sub(units);
    }
}

/// One emulated SMMU. All of its streams abort when it is made.
#[derive(Debug)]
pub struct EmulatedSmmu {
    ids: IdRegisters,
    limits: VsmmuLimits,
    vmid: u16,
    registers: RegisterFile,
    translation: Translation,
    /// What is left of the CFGI_STE_RANGE that CMDQ_CONS points to.
    range: Option<Walk>,
    /// The SMMU is dead: service failure mode.
    failed: bool,
    /// CMD_SYNCs that were consumed.
    syncs: u64,
    /// Commands that were read from the queue, and what is forwarded of them.
    batch: [Command; BATCH],
}

impl EmulatedSmmu {
    /// An SMMU out of reset, with these ID registers ([`smmuv3::features::Features::for_emulation`]) and limits, whose streams have
    /// `vmid`. The back-end has all of its streams abort.
    pub const fn new(ids: IdRegisters, limits: VsmmuLimits, vmid: u16) -> Self {
        Self {
            ids,
            limits,
            vmid,
            registers: RegisterFile::new(),
            translation: Translation::Off,
            range: None,
            failed: false,
            syncs: 0,
            batch: [Command([0; 2]); BATCH],
        }
    }

    /// A load of `size_bytes` at `offset` bytes into the register space.
    ///
    /// Loads of EVENTQ_PROD first take events from the SMMU, those of GERROR look at its errors. Other offsets than those of registers read as
    /// zero.
    pub fn read(&mut self, backend: &impl Backend, offset: u64, size_bytes: u8) -> u64 {
        // With 8 bytes, or by the alias in page 0, too.
        if offset & !(PAGE1 | 4) == EVENTQ_PROD_OFFSET - PAGE1 {
            self.deliver_events(backend);
        } else if offset & !4 == GERROR_OFFSET {
            self.look_for_errors(backend);
        }
        match (size_bytes, offset % 8) {
            (4, 0 | 4) => self.word(offset).into(),
            (8, 0) => u64::from(self.word(offset | 4)) << 32 | u64::from(self.word(offset)),
            _ => 0,
        }
    }

    /// The word at `offset`, for what is not so frequent that it is worth its own copy of the register file's code.
    #[inline(never)]
    fn word(&self, offset: u64) -> u32 {
        self.registers.read(&self.ids, offset)
    }

    /// What [`EmulatedSmmu::read`] gives for an aligned load of a word that only looks; `None` for any other, of which nothing is done.
    #[inline]
    pub fn peek(&self, offset: u64, size_bytes: u8) -> Option<u32> {
        let is_word = size_bytes == 4 && offset.is_multiple_of(4);
        if is_word { self.registers.peek(&self.ids, offset) } else { None }
    }

    /// A store of `size_bytes` at `offset` bytes into the register space.
    ///
    /// With [`Progress::Again`] the same store is to be made again: the state of the SMMU is good between the two, but
    /// not all that the store asks for is done.
    #[inline]
    pub fn write(&mut self, backend: &impl Backend, offset: u64, size_bytes: u8, value: u64) -> Progress {
        match (size_bytes, offset % 8) {
            (4, 0 | 4) => self.write_u32(backend, offset, value as u32),
            (8, 0) => {
                let low = self.write_u32(backend, offset, value as u32);
                let high = self.write_u32(backend, offset | 4, (value >> 32) as u32);
                if low == Progress::Again { low } else { high }
            }
            _ => Progress::Done,
        }
    }

    /// A store of a word. What only the register itself changes by is the register file's.
    fn write_u32(&mut self, backend: &impl Backend, offset: u64, value: u32) -> Progress {
        match offset {
            CMDQ_PROD_OFFSET => self.write_cmdq_prod(backend, value),
            GERRORN_OFFSET => {
                self.registers.acknowledge(value);
                self.consume(backend)
            }
            CR0_OFFSET => {
                let enables_events = value & !self.registers.cr0 & EVENTQEN != 0;
                self.registers.set_cr0(&self.ids, value);
                if enables_events {
                    self.discard_events(backend);
                }
                self.update(backend)
            }
            _ => {
                self.registers.write(offset, value);
                Progress::Done
            }
        }
    }

    /// CMD_SYNCs that were consumed since it was made.
    pub const fn syncs(&self) -> u64 {
        self.syncs
    }

    /// Looks at the STE of a stream again: for a stream that came back to the host.
    pub fn refresh_stream(&mut self, backend: &impl Backend, stream: u32) {
        if self.is_active() && backend.next_stream(stream) == Some(stream) {
            self.set_parked(backend, stream);
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;

/// Offsets of registers are those of page 0 and page 1.
const _: () = assert!(EVENTQ_BASE_OFFSET < PAGE1 && PAGE1 < SPACE_BYTES);
