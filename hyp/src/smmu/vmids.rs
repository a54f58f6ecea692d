//! Whose each VMID of an SMMU is, and which are free.
//!
//! A VMID is a domain's or a vSMMU's, of which there are fewer than [`VMIDS`]: higher numbers are never given out, whatever
//! the SMMU has.

use smmuv3::address::PhysAddr;
use smmuv3::memory::Memory;

/// log2 of [`VMIDS`].
pub const VMID_BITS: u8 = 9;
/// VMIDs that are given out on an SMMU that has as many, 0 included.
const VMIDS: u64 = 1 << VMID_BITS;

/// Whose a VMID is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmidOwner {
    /// Nobody's, or the streams' that nobody attached.
    Nobody,
    /// The domain's with this index.
    Domain(u16),
    /// The vSMMU's at this place.
    Vsmmu(u16),
}

/// One word for each VMID, in memory that is read without a lock: the index in bits 15:0, a kind in 17:16, and in bit 18 whether it is a guest's.
#[derive(Debug)]
pub(crate) struct VmidTable {
    words: PhysAddr,
}

const DOMAIN: u64 = 1 << 16;
const VSMMU: u64 = 2 << 16;
const KIND: u64 = 3 << 16;
const GUEST: u64 = 1 << 18;

impl VmidTable {
    /// log2 of the pages that a table takes.
    pub const ORDER: u8 = 0;

    /// A table without memory.
    pub const NONE: Self = Self { words: PhysAddr(0) };

    /// A table in one page at `words`, every VMID nobody's.
    pub fn new(memory: &impl Memory, words: PhysAddr) -> Self {
        for vmid in 0..VMIDS {
            memory.write_u64(words.offset(vmid * 8), 0);
        }
        Self::at(words)
    }

    /// The table that is at `words`.
    pub const fn at(words: PhysAddr) -> Self {
        Self { words }
    }

    /// Where it is.
    #[cfg(feature = "oracle")]
    pub const fn words(&self) -> PhysAddr {
        self.words
    }

    const fn word(&self, vmid: u16) -> Option<PhysAddr> {
        if self.words.0 != 0 && (vmid as u64) < VMIDS {
            Some(self.words.offset(vmid as u64 * 8))
        } else {
            None
        }
    }

    /// Says whose a VMID is from now on.
    pub fn set(&self, memory: &impl Memory, vmid: u16, owner: VmidOwner, guest: bool) {
        let value = match owner {
            VmidOwner::Nobody => 0,
            VmidOwner::Domain(index) => u64::from(index) | DOMAIN,
            VmidOwner::Vsmmu(place) => u64::from(place) | VSMMU,
        };
        if let Some(word) = self.word(vmid) {
            memory.write_release_u64(word, value | if guest { GUEST } else { 0 });
        }
    }

    /// Whose a VMID is.
    pub fn owner(&self, memory: &impl Memory, vmid: u16) -> VmidOwner {
        let value = self.word(vmid).map_or(0, |word| memory.read_acquire_u64(word));
        match value & KIND {
            DOMAIN => VmidOwner::Domain(value as u16),
            VSMMU => VmidOwner::Vsmmu(value as u16),
            _ => VmidOwner::Nobody,
        }
    }

    /// Whether a VMID is a guest's.
    pub fn is_guest(&self, memory: &impl Memory, vmid: u16) -> bool {
        self.word(vmid).is_some_and(|word| memory.read_acquire_u64(word) & GUEST != 0)
    }
}
