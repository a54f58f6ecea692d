//! Typed hypercalls, over any [`Caller`].

mod answer;
mod domains;
mod event;
mod vsmmus;

pub use answer::{Attachment, Features, Ownership, PoolState, SmmuDescription, TagCount};
pub use domains::{DomainCalls, DomainDescription, DomainTag, Translation};
pub use event::Event;
pub use vsmmus::{VirtualStream, VsmmuCalls};

use abi::{DomainHandle, Function, GuestHandle, Recipient, Statistic, Status, attach};
use core::fmt;
use smmuv3::features::IdRegisters;

/// A call that did not succeed. It has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// `X0`.
    pub code: u64,
    /// `X1`: for [`Status::NoMemory`] how many more pages the pool needs, for [`Status::Incompatible`] a reason of
    /// [`abi::Reason`], for [`Status::Illegal`] the index of the word or command.
    pub detail: u64,
}

impl Refused {
    /// The status; `None` when the interface does not define the code.
    pub fn status(self) -> Option<Status> {
        Status::from_register(self.code)
    }
}

/// An answer that succeeded with something that no success has, as a refusal with code 0.
pub(crate) const fn malformed(value: u64) -> Refused {
    Refused { code: Status::Success.to_register(), detail: value }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status() {
            Some(Status::NoMemory) => write!(f, "NoMemory ({} pages)", self.detail),
            Some(status @ (Status::Incompatible | Status::Illegal)) => {
                write!(f, "{status:?} ({})", self.detail)
            }
            Some(status) => write!(f, "{status:?}"),
            None => write!(f, "undefined status {:#x}", self.code),
        }
    }
}

/// Reads `X0` to `X4` of an answer.
pub fn answer(registers: [u64; 5]) -> Result<[u64; 4], Refused> {
    let [code, x1, x2, x3, x4] = registers;
    if code == Status::Success.to_register() {
        Ok([x1, x2, x3, x4])
    } else {
        Err(Refused { code, detail: x1 })
    }
}

/// What can make a call: a host at EL1, or a program that asks the host's kernel to.
pub trait Caller {
    /// Makes a call with this function id in `W0` and these arguments in `X1` to `X4`, and gives `X0` to `X4` back.
    fn call_raw(&self, id: u32, arguments: [u64; 4]) -> [u64; 5];

    /// Makes a call: the results (`X1` to `X4`), or why it was refused.
    fn call(&self, function: Function, arguments: [u64; 4]) -> Result<[u64; 4], Refused> {
        answer(self.call_raw(function.id(), arguments))
    }
}

/// The calls, each with its arguments' types. Errors are those of [`abi::TABLE`].
pub trait Calls: Caller {
    /// VERSION.
    fn version(&self) -> Result<u64, Refused> {
        self.call(Function::Version, [0; 4]).map(|[version, ..]| version)
    }

    /// CALL_UID.
    fn uid(&self) -> [u64; 4] {
        let [x0, x1, x2, x3, _] = self.call_raw(Function::CallUid.id(), [0; 4]);
        [x0, x1, x2, x3]
    }

    /// FEATURES.
    fn features(&self) -> Result<Features, Refused> {
        let [bits, unit, step, guests] = self.call(Function::Features, [0; 4])?;
        Ok(Features { bits, unit, step, guests })
    }

    /// STATISTICS.
    fn statistic(&self, statistic: Statistic) -> Result<u64, Refused> {
        self.call(Function::Statistics, [statistic as u64, 0, 0, 0]).map(|[value, ..]| value)
    }

    /// One step of MEM_SHARE: how many bytes are done.
    fn share_step(&self, start: u64, size: u64, with: Recipient) -> Result<u64, Refused> {
        self.call(Function::MemShare, [start, size, with.to_register(), 0]).map(|[done, ..]| done)
    }

    /// MEM_SHARE of a whole range.
    fn share(&self, start: u64, size: u64, with: Recipient) -> Result<(), Refused> {
        in_steps(start, size, |start, size| self.share_step(start, size, with))
    }

    /// MEM_UNSHARE of a whole range.
    fn unshare(&self, start: u64, size: u64, with: Recipient) -> Result<(), Refused> {
        in_steps(start, size, |start, size| {
            self.call(Function::MemUnshare, [start, size, with.to_register(), 0]).map(|[done, ..]| done)
        })
    }

    /// One step of MEM_DONATE: how many bytes are done.
    fn donate_step(&self, start: u64, size: u64, guest: GuestHandle) -> Result<u64, Refused> {
        self.call(Function::MemDonate, [start, size, guest.to_register(), 0]).map(|[done, ..]| done)
    }

    /// MEM_DONATE of a whole range.
    fn donate(&self, start: u64, size: u64, guest: GuestHandle) -> Result<(), Refused> {
        in_steps(start, size, |start, size| self.donate_step(start, size, guest))
    }

    /// One step of MEM_RECLAIM: how many bytes are done.
    fn reclaim_step(&self, start: u64, size: u64, guest: GuestHandle) -> Result<u64, Refused> {
        self.call(Function::MemReclaim, [start, size, guest.to_register(), 0]).map(|[done, ..]| done)
    }

    /// MEM_RECLAIM of a whole range.
    fn reclaim(&self, start: u64, size: u64, guest: GuestHandle) -> Result<(), Refused> {
        in_steps(start, size, |start, size| self.reclaim_step(start, size, guest))
    }

    /// MEM_QUERY.
    fn ownership(&self, page: u64) -> Result<Ownership, Refused> {
        self.call(Function::MemQuery, [page, 0, 0, 0]).map(|[owner, shared, ..]| Ownership { owner, shared })
    }

    /// SMMU_COUNT.
    fn smmu_count(&self) -> Result<u64, Refused> {
        self.call(Function::SmmuCount, [0; 4]).map(|[count, ..]| count)
    }

    /// SMMU_DESCRIBE.
    fn describe_smmu(&self, smmu: usize) -> Result<SmmuDescription, Refused> {
        let [base, stream_bits, vmids, state] = self.call(Function::SmmuDescribe, [smmu as u64, 0, 0, 0])?;
        Ok(SmmuDescription {
            base,
            stream_bits,
            vmids_in_use: vmids as u16,
            last_vmid: (vmids >> 16) as u16,
            dead: state != 0,
        })
    }

    /// SMMU_TAGS.
    fn smmu_tags(&self, smmu: usize) -> Result<TagCount, Refused> {
        let [used, free, ..] = self.call(Function::SmmuTags, [smmu as u64, 0, 0, 0])?;
        Ok(TagCount { used, free })
    }

    /// SMMU_FEATURES.
    fn smmu_features(&self, smmu: usize) -> Result<IdRegisters, Refused> {
        let [idr0, idr1, idr3, idr5] =
            self.call(Function::SmmuFeatures, [smmu as u64, 0, 0, 0])?.map(|register| register as u32);
        Ok(IdRegisters { idr0, idr1, idr3, idr5, iidr: 0 })
    }

    /// STREAM_ATTACH.
    fn attach(&self, smmu: usize, stream: u32, domain: DomainHandle) -> Result<(), Refused> {
        self.attach_with(smmu, stream, domain, 0)
    }

    /// STREAM_ATTACH with `REPLACE`.
    fn replace(&self, smmu: usize, stream: u32, domain: DomainHandle) -> Result<(), Refused> {
        self.attach_with(smmu, stream, domain, attach::REPLACE)
    }

    /// STREAM_ATTACH with flags of [`abi::attach`].
    fn attach_with(&self, smmu: usize, stream: u32, domain: DomainHandle, flags: u64) -> Result<(), Refused> {
        let arguments = [smmu as u64, u64::from(stream), domain.to_register(), flags];
        self.call(Function::StreamAttach, arguments).map(|_| ())
    }

    /// STREAM_DETACH.
    fn detach(&self, smmu: usize, stream: u32) -> Result<(), Refused> {
        self.call(Function::StreamDetach, [smmu as u64, u64::from(stream), 0, 0]).map(|_| ())
    }

    /// STREAM_QUERY: `None` when the stream is unattached.
    fn attachment(&self, smmu: usize, stream: u32) -> Result<Option<Attachment>, Refused> {
        let [attached, domain, vmid, _] =
            self.call(Function::StreamQuery, [smmu as u64, u64::from(stream), 0, 0])?;
        Ok((attached != 0).then_some(Attachment { domain, vmid }))
    }

    /// EVENT_READ: `None` when no event is waiting.
    fn event(&self) -> Result<Option<Event>, Refused> {
        match self.call(Function::EventRead, [0; 4]) {
            Ok(registers) => Ok(Some(Event::decode(registers))),
            Err(refused) if refused.status() == Some(Status::Empty) => Ok(None),
            Err(refused) => Err(refused),
        }
    }

    /// POOL_STATE.
    fn pool(&self) -> Result<PoolState, Refused> {
        let [free, total, donated, free_donated] = self.call(Function::PoolState, [0; 4])?;
        Ok(PoolState { free, total, donated, free_donated })
    }

    /// POOL_TOP_UP with a whole range.
    fn top_up(&self, start: u64, size: u64) -> Result<(), Refused> {
        in_steps(start, size, |start, size| {
            self.call(Function::PoolTopUp, [start, size, 0, 0]).map(|[done, ..]| done)
        })
    }

    /// POOL_GIVE_BACK: where the pages are.
    fn give_back(&self, size: u64) -> Result<u64, Refused> {
        self.call(Function::PoolGiveBack, [size, 0, 0, 0]).map(|[start, ..]| start)
    }

    /// GUEST_CREATE.
    fn create_guest(&self) -> Result<GuestHandle, Refused> {
        let [handle, ..] = self.call(Function::GuestCreate, [0; 4])?;
        GuestHandle::from_register(handle).ok_or(malformed(handle))
    }

    /// GUEST_DESTROY.
    fn destroy_guest(&self, guest: GuestHandle) -> Result<(), Refused> {
        self.call(Function::GuestDestroy, [guest.to_register(), 0, 0, 0]).map(|_| ())
    }

    /// One step of GUEST_TEARDOWN: whether there is more to do.
    fn teardown_step(&self, guest: GuestHandle) -> Result<bool, Refused> {
        let [left, ..] = self.call(Function::GuestTeardown, [guest.to_register(), 0, 0, 0])?;
        Ok(left != 0)
    }
}

impl<C: Caller + ?Sized> Calls for C {}

/// Repeats a call until the whole range is done. A call that succeeds without progress ends the loop as a refusal
/// with code 0, so that a wrong hypervisor cannot hang its host.
pub(crate) fn in_steps(
    start: u64,
    size: u64,
    mut step: impl FnMut(u64, u64) -> Result<u64, Refused>,
) -> Result<(), Refused> {
    let mut done = 0;
    loop {
        let now = step(start.wrapping_add(done), size.wrapping_sub(done))?;
        done = done.wrapping_add(now);
        if done == size {
            return Ok(());
        }
        if now == 0 || done > size {
            return Err(malformed(now));
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_range_is_done_in_as_many_steps_as_the_call_takes() {
        let mut steps = Vec::new();
        let outcome = in_steps(0x1000, 0x5000, |start, size| {
            steps.push((start, size));
            Ok(size.min(0x2000))
        });
        assert_eq!(outcome, Ok(()));
        assert_eq!(steps, [(0x1000, 0x5000), (0x3000, 0x3000), (0x5000, 0x1000)]);
    }

    #[test]
    fn a_call_that_makes_no_progress_does_not_hang_its_caller() {
        assert_eq!(in_steps(0, 0x1000, |_, _| Ok(0)), Err(Refused { code: 0, detail: 0 }));
        assert!(in_steps(0, 0x1000, |_, _| Ok(0x2000)).is_err());
    }

    #[test]
    fn an_answer_is_results_or_a_refusal() {
        assert_eq!(answer([0, 1, 2, 3, 4]), Ok([1, 2, 3, 4]));
        let refused = answer([Status::NoMemory.to_register(), 7, 0, 0, 0]).unwrap_err();
        assert_eq!((refused.status(), refused.detail), (Some(Status::NoMemory), 7));
        assert_eq!(answer([0x1234, 0, 0, 0, 0]).unwrap_err().status(), None);
    }
}
