//! The command queue that an ITS reads: memory of the hypervisor's, empty between batches.

use smmuv3::address::PhysAddr;

use super::command::{COMMAND_BYTES, Command, Words};
use super::registers::{CREADR, CREADR_STALLED, CWRITER, CWRITER_RETRY, OFFSET};
use crate::list::List;
use crate::platform::Platform;
use crate::smmu::TIMEOUT_NS;

/// The most commands of one batch.
pub const CAPACITY: usize = 80;

/// Commands that are sent, and waited for, together.
#[derive(Default)]
pub struct Batch {
    commands: List<Words, CAPACITY>,
}

/// Which commands of a batch the hardware refused: a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rejected(u128);

impl Rejected {
    /// Whether the command with this index in its batch was refused.
    pub const fn contains(self, index: usize) -> bool {
        index < CAPACITY && self.0 >> index & 1 == 1
    }

    /// Whether one was.
    pub const fn any(self) -> bool {
        self.0 != 0
    }
}

/// The hardware stopped reading commands, or refuses even a SYNC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFailed;

impl Batch {
    /// Appends a command; its index in the batch, `None` if the batch is full.
    pub fn push(&mut self, words: Words) -> Option<usize> {
        self.commands.push(words).ok()?;
        Some(self.commands.len() - 1)
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
}

/// The queue.
pub struct ShadowQueue {
    its: PhysAddr,
    place: PhysAddr,
    size_bytes: u64,
    /// Where the next command goes, in bytes from the start.
    next: u64,
    /// A SYNC that the hardware always accepts.
    sync: Words,
}

impl ShadowQueue {
    /// Where it is.
    #[cfg(feature = "oracle")]
    pub const fn place(&self) -> PhysAddr {
        self.place
    }

    /// The queue of the ITS at `its`, `size_bytes` at `place`, with GITS_CBASER and GITS_CWRITER = 0 written already. `target` is
    /// RDbase, bits 51:16, of a Redistributor.
    pub const fn new(its: PhysAddr, place: PhysAddr, size_bytes: u64, target: u64) -> Self {
        Self { its, place, size_bytes, next: 0, sync: Command::Sync { target }.encode(0) }
    }

    fn store<P: Platform>(&self, p: &P, offset: u64, words: Words) {
        for (index, word) in (0..).zip(words) {
            p.write_u64(self.place.offset(offset + 8 * index), word);
        }
    }

    /// Sends a batch, whose last command becomes a SYNC, and waits until the ITS has done it: at most [`TIMEOUT_NS`].
    ///
    /// An ITS may stop at a command with an error (IHI 0069, 5.3.2: GITS_CREADR.Stalled). Then the command is replaced by a SYNC and the
    /// queue goes on; which commands that happened to is the answer.
    ///
    /// # Errors
    /// [`QueueFailed`]: nobody knows which commands took effect.
    pub fn run<P: Platform>(&mut self, p: &P, batch: &Batch) -> Result<Rejected, QueueFailed> {
        let first = self.next;
        let mut rejected = Rejected::default();
        for words in batch.commands.iter().chain([&self.sync]) {
            self.store(p, self.next, *words);
            self.next = (self.next + COMMAND_BYTES) % self.size_bytes;
        }
        p.full_barrier();
        p.write_register_u64(self.its.offset(CWRITER), self.next);
        let start = p.now_ns();
        loop {
            // Read before the value, so that a last look follows a long pause.
            let late = p.now_ns().saturating_sub(start) > TIMEOUT_NS;
            let creadr = p.read_register_u64(self.its.offset(CREADR));
            let at = creadr & OFFSET;
            if at == self.next {
                return Ok(rejected);
            }
            if creadr & CREADR_STALLED != 0 {
                let index =
                    at.wrapping_add(self.size_bytes).wrapping_sub(first) % self.size_bytes / COMMAND_BYTES;
                // Not the SYNC at the end, and none a second time: so this ends.
                let index = index as usize;
                if index >= batch.commands.len() || rejected.contains(index) {
                    return Err(QueueFailed);
                }
                rejected.0 |= 1 << index;
                self.store(p, at, self.sync);
                p.full_barrier();
                p.write_register_u64(self.its.offset(CWRITER), self.next | CWRITER_RETRY);
            }
            if late {
                return Err(QueueFailed);
            }
            p.relax();
        }
    }
}
