//! What came of an action, and what may not come of it.

use super::action::Action;
use super::knowledge::Knowledge;
use crate::host::{Abort, Dma};
use crate::text;
use crate::text::Text;
use abi::{Call, Function, Status};

/// What came of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `X0` to `X4` of a call.
    Answered([u64; 5]),
    /// What the last access of the CPU's gave, if all were allowed.
    Accessed(Result<u64, Abort>),
    /// How a device's access ended.
    Dma(Dma),
    /// This host cannot do it: there is no such device, or who stands between it and the hypervisor does not let it.
    Nothing,
}

impl Outcome {
    /// What no hypervisor may let happen; `None` if this may.
    pub(super) fn judge(&self, action: &Action, known: &Knowledge) -> Option<Text> {
        match (*action, *self) {
            (Action::Call { id, arguments }, Self::Answered(answer)) => judge_call(id, &arguments, &answer),
            (Action::Invalidate { vsmmu, .. }, Self::Answered(answer)) => {
                judge_call(Function::VsmmuInvalidate.id(), &[vsmmu, 0, 0, 0], &answer)
            }
            (Action::Load { address, .. } | Action::Store { address, .. }, Self::Accessed(Ok(_))) => known
                .is_refused_to_cpus(address)
                .then(|| text!("the CPU reaches {address:#x}, which is not the host's")),
            (Action::Write { smmu, address, .. }, Self::Dma(Dma::Landed)) => {
                known.is_forbidden(address).then(|| {
                    text!("a device behind SMMU {smmu} writes to {address:#x}, which no device may reach")
                })
            }
            _ => None,
        }
    }

    /// Adds this to a digest of all outcomes (FNV-1a), by which two runs can be compared.
    pub fn digest(&self, before: u64) -> u64 {
        let (kind, words) = match *self {
            Self::Answered(answer) => (1, answer),
            Self::Accessed(Ok(value)) => (2, [value, 0, 0, 0, 0]),
            Self::Accessed(Err(Abort)) => (3, [0; 5]),
            Self::Dma(dma) => {
                let dma = match dma {
                    Dma::Landed => 0,
                    Dma::Faulted => 1,
                    Dma::Elsewhere => 2,
                    Dma::Unreachable => 3,
                    Dma::Unknown(code) => 4 | u64::from(code) << 32,
                };
                (4, [dma, 0, 0, 0, 0])
            }
            Self::Nothing => (5, [0; 5]),
        };
        words.into_iter().fold(step(before, kind), step)
    }
}

const fn step(digest: u64, word: u64) -> u64 {
    (digest ^ word).wrapping_mul(0x0000_0100_0000_01b3)
}

/// A status that is not among those that the table has for the function.
fn judge_call(id: u32, arguments: &[u64; 4], answer: &[u64; 5]) -> Option<Text> {
    let [code, ..] = *answer;
    let function = Function::from_id(id);
    // This one answers no status.
    if function == Some(Function::CallUid) {
        let right = answer.iter().zip(abi::UID).all(|(word, expected)| *word == u64::from(expected));
        return (!right).then(|| text!("CALL_UID answers {answer:x?}"));
    }
    let Some(status) = Status::from_register(code) else {
        return Some(text!("{id:#x} {arguments:x?} answers {code:#x}, which is no status"));
    };
    let documented = match function.and_then(Call::of) {
        None => status == Status::NotSupported,
        Some(call) => status == Status::Success || call.errors.contains(&status),
    };
    (!documented)
        .then(|| text!("{function:?} ({id:#x}) {arguments:x?} answers {status:?}, which is not documented"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_must_be_one_of_the_function() {
        let refused = |status: Status| [status.to_register(), 0, 0, 0, 0];
        let donate = Function::MemDonate.id();
        assert!(judge_call(donate, &[0; 4], &refused(Status::NotRam)).is_none());
        assert!(judge_call(donate, &[0; 4], &refused(Status::Success)).is_none());
        assert!(judge_call(donate, &[0; 4], &refused(Status::Empty)).is_some());
        assert!(judge_call(donate, &[0; 4], &[77, 0, 0, 0, 0]).is_some());
        assert!(judge_call(1, &[0; 4], &refused(Status::NotSupported)).is_none());
        assert!(judge_call(1, &[0; 4], &refused(Status::Success)).is_some());
    }

    #[test]
    fn a_digest_tells_outcomes_apart() {
        let outcomes = [
            Outcome::Answered([0; 5]),
            Outcome::Answered([0, 0, 0, 0, 1]),
            Outcome::Accessed(Ok(0)),
            Outcome::Accessed(Err(Abort)),
            Outcome::Dma(Dma::Landed),
            Outcome::Dma(Dma::Faulted),
            Outcome::Nothing,
        ];
        for (n, one) in outcomes.iter().enumerate() {
            for other in &outcomes[n + 1..] {
                assert_ne!(one.digest(0), other.digest(0));
            }
        }
        assert_ne!(outcomes[1].digest(outcomes[0].digest(0)), outcomes[0].digest(outcomes[1].digest(0)));
    }
}
