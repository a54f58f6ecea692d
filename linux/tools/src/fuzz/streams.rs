//! The streams that an attack attached: who takes it apart asks for these alone.

use core::sync::atomic::{AtomicU64, Ordering};

use abi::{Function, Status};
use host_shim::hostile::{Action, Outcome};

use super::host::MAX_SMMUS;

/// StreamIDs that are noted: those of PCI, 16 bits.
const STREAMS: usize = 1 << 16;
const WORDS: usize = STREAMS / 64;

/// A bit for each stream of each SMMU.
pub struct Streams([[AtomicU64; WORDS]; MAX_SMMUS]);

impl Streams {
    /// None.
    pub const fn new() -> Self {
        Self([const { [const { AtomicU64::new(0) }; WORDS] }; MAX_SMMUS])
    }

    /// The stream that a call would attach; `None` for what is no such call.
    fn attached_by(action: &Action) -> Option<(u64, u64)> {
        match (action.function(), action) {
            (Some(Function::StreamAttach), Action::Call { arguments: [smmu, stream, ..], .. }) => {
                Some((*smmu, *stream))
            }
            _ => None,
        }
    }

    /// Whether an action attaches no stream that could not be noted.
    pub fn can_note(action: &Action) -> bool {
        // An SMMU that there is not has no streams.
        Self::attached_by(action)
            .is_none_or(|(smmu, stream)| smmu >= MAX_SMMUS as u64 || stream < STREAMS as u64)
    }

    /// Notes a stream that was attached.
    pub fn note(&self, action: &Action, outcome: &Outcome) {
        let succeeded =
            matches!(outcome, Outcome::Answered([code, ..]) if *code == Status::Success.to_register());
        if let Some((smmu, stream)) = Self::attached_by(action).filter(|_| succeeded)
            && let Some(words) = self.0.get(smmu as usize)
            && let Some(word) = words.get(stream as usize / 64)
        {
            word.fetch_or(1 << (stream % 64), Ordering::Relaxed);
        }
    }

    /// All that were noted: SMMUs and StreamIDs.
    pub fn noted(&self) -> impl Iterator<Item = (usize, u32)> {
        let words = self.0.iter().enumerate().flat_map(|(smmu, words)| {
            words.iter().enumerate().map(move |(n, word)| (smmu, n, word.load(Ordering::Relaxed)))
        });
        words.flat_map(|(smmu, n, word)| {
            (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| (smmu, 64 * n as u32 + bit))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn attach(smmu: u64, stream: u64) -> Action {
        Action::Call { id: Function::StreamAttach.id(), arguments: [smmu, stream, 0, 0] }
    }

    #[test]
    fn streams_that_were_attached_are_noted_once() {
        let streams = Streams::new();
        for (smmu, stream, status) in [
            (0, 8, Status::Success),
            (7, 0xffff, Status::Success),
            (0, 8, Status::Success),
            (1, 9, Status::Busy),
        ] {
            streams.note(&attach(smmu, stream), &Outcome::Answered([status.to_register(), 0, 0, 0, 0]));
        }
        let detach = Action::Call { id: Function::StreamDetach.id(), arguments: [2, 2, 0, 0] };
        streams.note(&detach, &Outcome::Answered([0; 5]));
        assert_eq!(streams.noted().collect::<Vec<_>>(), [(0, 8), (7, 0xffff)]);
    }

    #[test]
    fn what_cannot_be_noted_is_known_before() {
        assert!(Streams::can_note(&attach(0, 0xffff)) && Streams::can_note(&attach(u64::MAX, 1 << 40)));
        assert!(!Streams::can_note(&attach(7, 1 << 16)));
        assert!(Streams::can_note(&Action::Stage1(1)));
    }
}
