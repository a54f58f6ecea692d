//! Where a stream stands: what a call attached it to, or what its driver's STE says.

use super::View;
use super::tags::Holder;
use crate::record::{Attached, Domain};

/// What a stream is translated by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Who said so.
    pub by: By,
    /// The stage-2 domain.
    pub stage2: u64,
    /// Words 0 and 1 of the STE as the owner wrote them, where there is one for stage 1.
    pub nested: Option<[u64; 2]>,
}

/// Who attached a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// STREAM_ATTACH.
    Call {
        /// The domain.
        domain: u64,
        /// The vSMMU that it stands on.
        vsmmu: Option<u64>,
        /// The call asked for ATS.
        ats: bool,
        /// It may be off nevertheless.
        may_lack_ats: bool,
    },
    /// The driver of the emulated SMMU.
    Driver,
}

impl Standing {
    /// Whether a VMID of this holder is the one that the stream has.
    pub fn has(&self, holder: Holder) -> bool {
        match (self.by, holder) {
            (By::Call { vsmmu: None, .. }, Holder::Domain(domain)) => domain == self.stage2,
            (By::Call { vsmmu, .. }, Holder::Vsmmu { vsmmu: of, .. }) => vsmmu == Some(of),
            (By::Driver, Holder::Driver) => true,
            _ => false,
        }
    }
}

impl View<'_> {
    /// Where a stream stands; `None` if it aborts.
    pub fn standing(&self, smmu: usize, stream: u32) -> Option<Standing> {
        if let Some(attached) = self.record.streams.get(&(smmu, stream)) {
            let (stage2, vsmmu) = self.record.below(attached.domain)?;
            let nested = match self.record.domain(attached.domain) {
                Some(Domain::Nested { words, .. }) => Some(*words),
                _ => None,
            };
            let Attached { domain, ats, may_lack_ats } = *attached;
            let by = By::Call { domain, vsmmu, ats, may_lack_ats };
            return Some(Standing { by, stage2, nested });
        }
        let words = self.bench.driven(smmu).streams.get(&stream).copied()?;
        Some(Standing { by: By::Driver, stage2: 0, nested: Some(words) })
    }
}
