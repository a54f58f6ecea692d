//! What calls about memory, SMMUs and streams answer.

use abi::{GuestHandle, Recipient};

/// What FEATURES answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Bits of [`abi::features`].
    pub bits: u64,
    /// Ownership unit in bytes.
    pub unit: u64,
    /// The most bytes that one call changes.
    pub step: u64,
    /// The most guests at once.
    pub guests: u64,
}

impl Features {
    /// The first address beyond those of a stage-2 domain.
    pub const fn domain_end(&self) -> u64 {
        1 << (self.bits >> abi::features::ADDRESS_BITS_SHIFT & 0x3f)
    }
}

/// What POOL_STATE answers, in pages of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolState {
    /// Free pages.
    pub free: u64,
    /// All pages.
    pub total: u64,
    /// Pages that the host gave.
    pub donated: u64,
    /// Pages that the host gave and that are free.
    pub free_donated: u64,
}

/// What SMMU_DESCRIBE answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmmuDescription {
    /// Physical address of its registers.
    pub base: u64,
    /// Width of a StreamID in bits.
    pub stream_bits: u64,
    /// VMIDs in use.
    pub vmids_in_use: u16,
    /// The largest VMID.
    pub last_vmid: u16,
    /// Whether it failed and aborts everything.
    pub dead: bool,
}

/// What SMMU_TAGS answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagCount {
    /// VMIDs in use, one of them for the streams that nobody attached.
    pub used: u64,
    /// VMIDs that are free.
    pub free: u64,
}

/// What STREAM_QUERY answers about an attached stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Register value of the domain's handle.
    pub domain: u64,
    /// Its tag on this SMMU.
    pub vmid: u64,
}

/// Who has a page: the register values of MEM_QUERY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// 0 the host, 1 to 64 a guest, [`Ownership::HYPERVISOR`], [`Ownership::NOBODY`].
    pub owner: u64,
    /// 0 not shared, 1 to 64 a guest, [`Ownership::HYPERVISOR`].
    pub shared: u64,
}

impl Ownership {
    /// The hypervisor, as owner or as the one a page is shared with.
    pub const HYPERVISOR: u64 = 0x100;
    /// A quarantined page has no owner.
    pub const NOBODY: u64 = 0x101;
    /// The host's, not shared.
    pub const HOST: Self = Self { owner: 0, shared: 0 };

    /// A guest's.
    pub const fn guest(guest: GuestHandle) -> Self {
        Self { owner: guest.to_register(), shared: 0 }
    }

    /// The host's, shared.
    pub const fn shared(with: Recipient) -> Self {
        match with {
            Recipient::Hypervisor => Self { owner: 0, shared: Self::HYPERVISOR },
            Recipient::Guest(guest) => Self { owner: 0, shared: guest.to_register() },
        }
    }
}
