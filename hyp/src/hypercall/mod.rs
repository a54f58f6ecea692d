//! Dispatch of hypercalls: registers are claims until they are checked, and become ranges, handles and indexes here.
//!
//! Every error is one that [`abi::TABLE`] documents for the call, and has changed nothing. `BUSY` besides those is
//! the answer to every call but `CALL_UID`, `VERSION` and `FEATURES` once a reset or power-off has begun.

mod domains;
mod guests;
mod memory;
mod streams;
#[cfg(test)]
mod tests;
mod vsmmus;

use abi::{Function, Statistic, Status};

use crate::hypervisor::Hypervisor;
use crate::memory::Failure;
use crate::platform::Platform;

/// What a call leaves in `X0` to `X4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `X0` to `X4`.
    pub x: [u64; 5],
}

impl Answer {
    #[inline]
    const fn success(results: [u64; 4]) -> Self {
        let [x1, x2, x3, x4] = results;
        Self { x: [Status::Success.to_register(), x1, x2, x3, x4] }
    }

    #[inline]
    const fn failure(failure: Failure) -> Self {
        Self { x: [failure.status.to_register(), failure.detail, 0, 0, 0] }
    }
}

/// What a call answers in `X1` to `X4`, or why it failed.
type Outcome = Result<[u64; 4], Failure>;

impl<P: Platform> Hypervisor<P> {
    /// Does the call with function id `function` (`W0`) and `arguments` (`X1` to `X4`). Bounded.
    pub fn hypercall(&self, function: u32, arguments: [u64; 4]) -> Answer {
        #[cfg(feature = "oracle")]
        if function == abi::oracle::FUNCTION {
            return Answer { x: self.oracle().call(arguments) };
        }
        match self.dispatch(function, arguments) {
            Ok(Outcome::Ok(results)) => Answer::success(results),
            Ok(Outcome::Err(failure)) => Answer::failure(failure),
            Err(uid) => {
                let [x0, x1, x2, x3] = uid.map(u64::from);
                Answer { x: [x0, x1, x2, x3, 0] }
            }
        }
    }

    /// `Err` is the answer of `CALL_UID`, the one call without a status.
    #[inline]
    fn dispatch(&self, function: u32, [x1, x2, x3, x4]: [u64; 4]) -> Result<Outcome, [u32; 4]> {
        let Some(function) = Function::from_id(function) else {
            return Ok(Err(Status::NotSupported.into()));
        };
        match function {
            Function::CallUid => return Err(abi::UID),
            Function::Version => return Ok(Ok([abi::VERSION.into(), 0, 0, 0])),
            Function::Features => return Ok(self.read_features()),
            _ if self.is_ending() => return Ok(Err(Status::Busy.into())),
            _ => {}
        }
        Ok(match function {
            Function::CallUid | Function::Version | Function::Features => Err(Status::NotSupported.into()),
            Function::Statistics => self.read_statistic(x1),
            Function::MemShare => self.mem_share(x1, x2, x3),
            Function::MemUnshare => self.mem_unshare(x1, x2, x3),
            Function::MemDonate => self.mem_donate(x1, x2, x3),
            Function::MemReclaim => self.mem_reclaim(x1, x2, x3),
            Function::MemQuery => self.mem_query(x1),
            Function::SmmuCount => Ok([self.iommu.set().count() as u64, 0, 0, 0]),
            Function::SmmuDescribe => self.smmu_describe(x1),
            Function::StreamAttach => self.stream_attach(x1, x2, x3, x4),
            Function::StreamDetach => self.stream_detach(x1, x2),
            Function::StreamQuery => self.stream_query(x1, x2),
            Function::EventRead => self.event_read(),
            Function::PoolState => self.pool_state(),
            Function::PoolTopUp => self.pool_top_up(x1, x2),
            Function::PoolGiveBack => self.pool_give_back(x1),
            Function::GuestCreate => self.guest_create(),
            Function::GuestDestroy => self.guest_destroy(x1),
            Function::GuestTeardown => self.guest_teardown(x1),
            Function::SmmuTags => self.smmu_tags(x1),
            Function::SmmuFeatures => self.smmu_features(x1),
            Function::DomainCreate => self.domain_create(x1, x2),
            Function::DomainCreateNested => self.domain_create_nested(x1, x2, x3),
            Function::DomainDestroy => self.domain_destroy(x1),
            Function::DomainMap => self.domain_map(x1, x2, x3, x4),
            Function::DomainUnmap => self.domain_unmap(x1, x2, x3),
            Function::DomainQuery => self.domain_query(x1, x2),
            Function::DomainDescribe => self.domain_describe(x1),
            Function::DomainTag => self.domain_tag(x1, x2),
            Function::VsmmuCreate => self.vsmmu_create(x1, x2),
            Function::VsmmuDestroy => self.vsmmu_destroy(x1),
            Function::VsmmuAddStream => self.vsmmu_add_stream(x1, x2, x3),
            Function::VsmmuRemoveStream => self.vsmmu_remove_stream(x1, x2),
            Function::VsmmuQueryStream => self.vsmmu_query_stream(x1, x2),
            Function::VsmmuInvalidate => self.vsmmu_invalidate(x1, x2, x3),
        })
    }

    #[cold]
    fn read_features(&self) -> Outcome {
        let unit = self.memory.lock().unit_bytes();
        Ok([self.features(), unit, abi::MAX_STEP_BYTES, abi::GuestHandle::MAX.into()])
    }

    #[cold]
    fn read_statistic(&self, index: u64) -> Outcome {
        let index = usize::try_from(index).map_err(|_| Status::Invalid)?;
        let statistic = *Statistic::ALL.get(index).ok_or(Status::Invalid)?;
        Ok([self.statistic(statistic), 0, 0, 0])
    }
}
