//! What calls have made, as whoever makes them sees it: the objects that exist, and what each should do. The oracle holds what the
//! hypervisor says, tables and caches against it.

use abi::{Function, Status, attach};
use std::collections::{BTreeMap, BTreeSet};

/// The highest handle of a guest.
const MAX_GUEST: u64 = abi::GuestHandle::MAX as u64;

/// Whom a domain belongs to by its handle: 0 the host, else a guest.
pub const fn owner_of(domain: u64) -> u64 {
    if domain <= MAX_GUEST { domain } else { domain >> 32 }
}

/// A domain that a call made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Domain {
    /// By DOMAIN_CREATE: physical pages of 4 KiB by the addresses that lead to them.
    Mapping(BTreeMap<u64, u64>),
    /// By DOMAIN_CREATE_NESTED.
    Nested {
        /// Its vSMMU.
        vsmmu: u64,
        /// What its owner said.
        words: [u64; 2],
    },
}

/// A vSMMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vsmmu {
    /// The SMMU.
    pub smmu: usize,
    /// The stage-2 domain that it stands on.
    pub parent: u64,
    /// Its VMID.
    pub vmid: u16,
    /// StreamIDs of the SMMU by its own.
    pub streams: BTreeMap<u64, u32>,
}

/// Where a stream is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The domain.
    pub domain: u64,
    /// The call asked for ATS.
    pub ats: bool,
    /// A change to another domain failed since: the device may not have answered, and has no ATS then.
    pub may_lack_ats: bool,
}

/// All that exists, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Guests.
    pub guests: BTreeSet<u64>,
    /// Guests that are being taken apart.
    pub ending: BTreeSet<u64>,
    /// Domains that calls made.
    pub domains: Vec<(u64, Domain)>,
    /// vSMMUs.
    pub vsmmus: Vec<(u64, Vsmmu)>,
    /// Attached streams, by SMMU and StreamID.
    pub streams: BTreeMap<(usize, u32), Attached>,
    /// The host gave memory to the pool.
    pub topped_up: bool,
}

impl Record {
    /// A domain that a call made.
    pub fn domain(&self, handle: u64) -> Option<&Domain> {
        self.domains.iter().find(|(known, _)| *known == handle).map(|(_, domain)| domain)
    }

    /// A vSMMU.
    pub fn vsmmu(&self, handle: u64) -> Option<&Vsmmu> {
        self.vsmmus.iter().find(|(known, _)| *known == handle).map(|(_, vsmmu)| vsmmu)
    }

    /// Every stage-2 domain: the host's, the guests' memory domains, and those that calls made.
    pub fn stage2_domains(&self) -> impl Iterator<Item = u64> {
        let made = self.domains.iter().filter(|(_, domain)| matches!(domain, Domain::Mapping(_)));
        [0].into_iter().chain(self.guests.iter().copied()).chain(made.map(|(handle, _)| *handle))
    }

    /// The stage-2 domain below a domain, and the vSMMU in between.
    pub fn below(&self, domain: u64) -> Option<(u64, Option<u64>)> {
        match self.domain(domain) {
            Some(Domain::Nested { vsmmu, .. }) => Some((self.vsmmu(*vsmmu)?.parent, Some(*vsmmu))),
            Some(Domain::Mapping(_)) => Some((domain, None)),
            None => (domain <= MAX_GUEST).then_some((domain, None)),
        }
    }

    /// How many streams of an SMMU (of all, if `None`) are attached to a domain.
    pub fn users(&self, domain: u64, smmu: Option<usize>) -> u64 {
        let here = |at: &usize| smmu.is_none_or(|smmu| smmu == *at);
        self.streams.iter().filter(|((at, _), to)| to.domain == domain && here(at)).count() as u64
    }

    /// How often a page of memory is mapped.
    pub fn mappings_of(&self, page: u64) -> usize {
        let made = self.domains.iter().filter_map(|(_, domain)| match domain {
            Domain::Mapping(pages) => Some(pages),
            Domain::Nested { .. } => None,
        });
        made.flat_map(BTreeMap::values).filter(|mapped| **mapped == page).count()
    }

    fn domain_mut(&mut self, handle: u64) -> Option<&mut BTreeMap<u64, u64>> {
        match self.domains.iter_mut().find(|(known, _)| *known == handle) {
            Some((_, Domain::Mapping(pages))) => Some(pages),
            _ => None,
        }
    }

    /// Takes in what a call answered. `ask` makes calls that change nothing.
    pub(crate) fn update(
        &mut self,
        function: Function,
        [x1, x2, x3, x4]: [u64; 4],
        [x0, r1, r2, ..]: [u64; 5],
        ask: impl Fn(Function, [u64; 4]) -> [u64; 5],
    ) {
        let status = Status::from_register(x0);
        match (function, status) {
            (Function::GuestTeardown, _) => return self.after_teardown(x1, status, r1, ask),
            (Function::StreamAttach | Function::StreamDetach, Some(Status::Hardware)) => {
                // If the SMMU was lost, the stream counts as on the new side, else on the old.
                return self.ask_for_stream(x1 as usize, x2 as u32, ask);
            }
            (_, Some(Status::Success)) => {}
            _ => return,
        }
        match function {
            Function::GuestCreate => {
                self.guests.insert(r1);
            }
            Function::GuestDestroy => {
                self.guests.remove(&x1);
            }
            Function::PoolTopUp => self.topped_up = true,
            Function::DomainCreate => self.domains.push((r1, Domain::Mapping(BTreeMap::new()))),
            Function::DomainCreateNested => {
                self.domains.push((r1, Domain::Nested { vsmmu: x1, words: [x2, x3] }));
            }
            Function::DomainDestroy => self.domains.retain(|(handle, _)| *handle != x1),
            Function::DomainMap => {
                if let Some(pages) = self.domain_mut(x1) {
                    pages.extend((0..r1).step_by(4096).map(|offset| (x2 + offset, x3 + offset)));
                }
            }
            Function::DomainUnmap => {
                if let Some(pages) = self.domain_mut(x1) {
                    pages.retain(|ipa, _| *ipa < x2 || *ipa >= x2 + r1);
                }
            }
            Function::VsmmuCreate => {
                let (smmu, vmid) = (x1 as usize, r2 as u16);
                self.vsmmus.push((r1, Vsmmu { smmu, parent: x2, vmid, streams: BTreeMap::new() }));
            }
            Function::VsmmuDestroy => self.vsmmus.retain(|(handle, _)| *handle != x1),
            Function::VsmmuAddStream | Function::VsmmuRemoveStream => {
                if let Some((_, vsmmu)) = self.vsmmus.iter_mut().find(|(handle, _)| *handle == x1) {
                    if function == Function::VsmmuAddStream {
                        vsmmu.streams.insert(x2, x3 as u32);
                    } else {
                        vsmmu.streams.remove(&x2);
                    }
                }
            }
            Function::StreamAttach => {
                let ats = x4 & attach::ATS != 0;
                let attached = Attached { domain: x3, ats, may_lack_ats: false };
                self.streams.insert((x1 as usize, x2 as u32), attached);
            }
            Function::StreamDetach => {
                self.streams.remove(&(x1 as usize, x2 as u32));
            }
            _ => {}
        }
    }

    fn ask_for_stream(&mut self, smmu: usize, stream: u32, ask: impl Fn(Function, [u64; 4]) -> [u64; 5]) {
        let key = (smmu, stream);
        let old = self.streams.get(&key).copied();
        // Kind 2 is the domain of an emulated SMMU: the stream is its driver's now.
        let is_driver = |domain: u64| ask(Function::DomainDescribe, [domain, 0, 0, 0])[..2] == [0, 2];
        match ask(Function::StreamQuery, [smmu as u64, u64::from(stream), 0, 0]) {
            [0, 1, domain, ..] if is_driver(domain) => {
                self.streams.remove(&key);
            }
            [0, 1, domain, ..] if old.is_none_or(|old| old.domain != domain) => {
                self.streams.insert(key, Attached { domain, ats: false, may_lack_ats: true });
            }
            [0, 1, ..] => {
                if let Some(attached) = self.streams.get_mut(&key) {
                    attached.may_lack_ats = true;
                }
            }
            _ => {
                self.streams.remove(&key);
            }
        }
    }

    /// A step took something that is not known: asks what of the guest is left. Nothing can have been added.
    fn after_teardown(
        &mut self,
        guest: u64,
        status: Option<Status>,
        left: u64,
        ask: impl Fn(Function, [u64; 4]) -> [u64; 5],
    ) {
        if !self.guests.contains(&guest) {
            return;
        }
        self.ending.insert(guest);
        let theirs: Vec<(usize, u32)> = self
            .streams
            .iter()
            .filter(|(_, attached)| owner_of(attached.domain) == guest)
            .map(|(key, _)| *key)
            .collect();
        theirs.into_iter().for_each(|(smmu, stream)| self.ask_for_stream(smmu, stream, &ask));
        let exists = |[status, ..]: [u64; 5]| status == 0;
        self.domains.retain_mut(|(handle, domain)| {
            if owner_of(*handle) != guest {
                return true;
            }
            if let Domain::Mapping(pages) = domain {
                pages.retain(|ipa, _| exists(ask(Function::DomainQuery, [*handle, *ipa, 0, 0])));
            }
            exists(ask(Function::DomainDescribe, [*handle, 0, 0, 0]))
        });
        let unknown = Status::UnknownVsmmu.to_register();
        self.vsmmus.retain_mut(|(handle, vsmmu)| {
            if owner_of(*handle) != guest {
                return true;
            }
            vsmmu.streams.retain(|id, _| exists(ask(Function::VsmmuQueryStream, [*handle, *id, 0, 0])));
            ask(Function::VsmmuQueryStream, [*handle, 0, 0, 0])[0] != unknown
        });
        if status == Some(Status::UnknownGuest) || status == Some(Status::Success) && left == 0 {
            self.guests.remove(&guest);
            self.ending.remove(&guest);
        }
    }
}
