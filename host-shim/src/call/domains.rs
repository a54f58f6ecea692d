//! Calls about domains.

use super::{Caller, Refused, in_steps, malformed};
use abi::{DomainHandle, Function, GuestHandle, VsmmuHandle};

/// What DOMAIN_QUERY answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The physical address.
    pub address: u64,
    /// Bytes of the leaf that says so.
    pub size: u64,
}

/// What DOMAIN_DESCRIBE answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainDescription {
    /// The vSMMU that it is nested on; `None` for a stage-2 domain.
    pub vsmmu: Option<u64>,
    /// Streams that are attached.
    pub streams: u64,
    /// vSMMUs on top of it.
    pub users: u64,
}

/// What DOMAIN_TAG answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainTag {
    /// The domain has no tag on the SMMU.
    None,
    /// A VMID of its own.
    Own {
        /// The VMID.
        vmid: u64,
        /// Streams that use it.
        users: u64,
    },
    /// The VMID of its vSMMU.
    Vsmmu {
        /// The VMID.
        vmid: u64,
        /// Streams of the domain that use it.
        users: u64,
    },
}

/// The calls about domains. Errors are those of [`abi::TABLE`].
pub trait DomainCalls: Caller {
    /// DOMAIN_CREATE, with options of [`abi::domain_options`].
    fn create_domain(&self, guest: GuestHandle, options: u64) -> Result<DomainHandle, Refused> {
        let [domain, ..] = self.call(Function::DomainCreate, [guest.to_register(), options, 0, 0])?;
        DomainHandle::from_register(domain).ok_or(malformed(domain))
    }

    /// DOMAIN_CREATE_NESTED, with words 0 and 1 of a stream table entry.
    fn create_nested(&self, vsmmu: VsmmuHandle, words: [u64; 2]) -> Result<DomainHandle, Refused> {
        let [word0, word1] = words;
        let [domain, ..] = self.call(Function::DomainCreateNested, [vsmmu.to_register(), word0, word1, 0])?;
        DomainHandle::from_register(domain).ok_or(malformed(domain))
    }

    /// DOMAIN_DESTROY.
    fn destroy_domain(&self, domain: DomainHandle) -> Result<(), Refused> {
        self.call(Function::DomainDestroy, [domain.to_register(), 0, 0, 0]).map(|_| ())
    }

    /// DOMAIN_MAP of a whole range: `start` is the physical address.
    fn domain_map(&self, domain: DomainHandle, ipa: u64, start: u64, size: u64) -> Result<(), Refused> {
        in_steps(ipa, size, |at, left| {
            let start = start.wrapping_add(at.wrapping_sub(ipa));
            self.call(Function::DomainMap, [domain.to_register(), at, start, left]).map(|[done, ..]| done)
        })
    }

    /// DOMAIN_UNMAP of a whole range.
    fn domain_unmap(&self, domain: DomainHandle, ipa: u64, size: u64) -> Result<(), Refused> {
        in_steps(ipa, size, |at, left| {
            self.call(Function::DomainUnmap, [domain.to_register(), at, left, 0]).map(|[done, ..]| done)
        })
    }

    /// DOMAIN_QUERY.
    fn translate(&self, domain: DomainHandle, ipa: u64) -> Result<Translation, Refused> {
        let [address, size, ..] = self.call(Function::DomainQuery, [domain.to_register(), ipa, 0, 0])?;
        Ok(Translation { address, size })
    }

    /// DOMAIN_DESCRIBE.
    fn describe_domain(&self, domain: DomainHandle) -> Result<DomainDescription, Refused> {
        let [kind, parent, streams, users] =
            self.call(Function::DomainDescribe, [domain.to_register(), 0, 0, 0])?;
        let vsmmu = match kind {
            0 => None,
            1 => Some(parent),
            other => return Err(malformed(other)),
        };
        Ok(DomainDescription { vsmmu, streams, users })
    }

    /// DOMAIN_TAG.
    fn domain_tag(&self, domain: DomainHandle, smmu: usize) -> Result<DomainTag, Refused> {
        let [kind, vmid, users, _] =
            self.call(Function::DomainTag, [domain.to_register(), smmu as u64, 0, 0])?;
        match kind {
            0 => Ok(DomainTag::None),
            1 => Ok(DomainTag::Own { vmid, users }),
            2 => Ok(DomainTag::Vsmmu { vmid, users }),
            other => Err(malformed(other)),
        }
    }
}

impl<C: Caller + ?Sized> DomainCalls for C {}
