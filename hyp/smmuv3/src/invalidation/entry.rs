//! What one cache must be told: the entries of an invalidation array.

use crate::command::{ATC_INV_EVERYTHING, Command, field, opcode};
use crate::pgtable::Granule;

/// The stream world whose translations an ASID tags (IHI 0070, 3.3.4 and STE.STRW).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// NS-EL1: `TLBI_NH_*`.
    El1,
    /// EL2 with E2H: `TLBI_EL2_*`.
    El2,
}

/// What may hold translations of a domain, on one SMMU. The order is that of the array, and that in which a walk
/// invalidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The IOTLB, for the stage-1 translations of an ASID.
    S1Asid {
        /// The ASID.
        asid: u16,
        /// Whose.
        world: World,
        /// The SMMU hears the CPUs' broadcast invalidation of this ASID, which is then enough for sized ones.
        hears_broadcast: bool,
    },
    /// The IOTLB, for the stage-2 translations of a VMID.
    S2Vmid {
        /// The VMID.
        vmid: u16,
    },
    /// The same, where the VMID is that of a vSMMU.
    S2VmidVsmmu {
        /// The VMID.
        vmid: u16,
    },
    /// The IOTLB, for what stage 1 was combined with the domain's stage 2 into, under the VMID of a vSMMU. A
    /// change of stage 2 does not say which stage-1 addresses it concerns, so all of them go.
    S2VmidS1Clear {
        /// The VMID.
        vmid: u16,
    },
    /// The configuration cache, for the context descriptors of a nested stream, which stage 2 of the domain leads to: what
    /// was fetched, and the pointer that it was found by, may be kept after their translation (3.21.3).
    NestedCds {
        /// The StreamID.
        stream: u32,
    },
    /// The ATC of a device that caches translations of the domain's own input addresses.
    Ats {
        /// The StreamID.
        stream: u32,
        /// The SubstreamID; 0 for transactions without one.
        substream: u32,
    },
    /// The ATC of a device behind a stage 1 that others own: a range of the domain's says nothing about the device's addresses, so all
    /// of it goes, that of its SubstreamIDs too.
    AtsFull {
        /// The StreamID.
        stream: u32,
    },
}

/// The types, as they stand in bits 55:52 of a key.
pub(super) mod kind {
    pub const S1_ASID: u8 = 0;
    pub const S2_VMID: u8 = 1;
    pub const S2_VMID_VSMMU: u8 = 2;
    pub const S2_VMID_S1_CLEAR: u8 = 3;
    pub const NESTED_CDS: u8 = 4;
    pub const ATS: u8 = 5;
    pub const ATS_FULL: u8 = 6;
    /// No type is above it.
    pub const LAST: u8 = 15;
}

/// SubstreamIDs have 20 bits at most (IDR1.SSIDSIZE).
const SUBSTREAM_MASK: u64 = 0xf_ffff;

/// What an entry is found by: SMMU in bits 63:56, type in 55:52, ASID, VMID or StreamID in 51:20, SubstreamID in 19:0 (0 for types that
/// cannot carry one). Keys compare as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(pub(super) u64);

impl Key {
    pub(super) const fn of(smmu: u8, kind: u8, id: u32, substream: u32) -> Self {
        let substream = substream as u64 & SUBSTREAM_MASK;
        Self((smmu as u64) << 56 | (kind as u64) << 52 | (id as u64) << 20 | substream)
    }

    /// Not below any key of these types on the SMMU, and below all that follow.
    pub(super) const fn last(smmu: usize, kind: u8) -> Self {
        Self((smmu as u64) << 56 | (kind as u64) << 52 | u64::MAX >> 12)
    }

    /// Index of the SMMU.
    #[inline]
    pub const fn smmu(self) -> usize {
        (self.0 >> 56) as usize
    }

    #[inline]
    pub(super) const fn kind(self) -> u8 {
        (self.0 >> 52) as u8 & 0xf
    }

    #[inline]
    pub(super) const fn id(self) -> u32 {
        (self.0 >> 20) as u32
    }

    #[inline]
    pub(super) const fn substream(self) -> u32 {
        (self.0 & SUBSTREAM_MASK) as u32
    }

    /// Id and SubstreamID as they stand in word 0 of a command: an ASID in bits 63:48, a VMID or StreamID from bit 32, the
    /// SubstreamID in 31:12.
    #[inline]
    pub(super) const fn operand(self) -> u64 {
        if self.kind() == kind::S1_ASID { self.asid() } else { self.vmid_or_stream() }
    }

    /// [`Key::operand`] of an ASID.
    #[inline]
    pub(super) const fn asid(self) -> u64 {
        self.0 << 28
    }

    /// [`Key::operand`] of all others.
    #[inline]
    pub(super) const fn vmid_or_stream(self) -> u64 {
        self.0 << 12
    }
}

/// The second word of an entry: users in bits 31:0, opcode of a sized invalidation in 39:32, of an unsized one in 47:40, log2 of the page
/// size in 53:48 (0 for types of ATS), and in bit 63 whether the CPUs' broadcast is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Detail(pub u64);

impl Detail {
    const HEARS_BROADCAST: u64 = 1 << 63;

    #[inline]
    pub const fn users(self) -> u32 {
        self.0 as u32
    }

    /// The same with so many users.
    #[inline]
    pub const fn with_users(self, users: u32) -> Self {
        Self(self.0 & !0xffff_ffff | users as u64)
    }

    /// The same with one user less than it has.
    #[inline]
    pub const fn one_user_less(self) -> Self {
        Self(self.0.wrapping_sub(1))
    }

    #[inline]
    pub const fn sized(self) -> u64 {
        self.0 >> 32 & 0xff
    }

    #[inline]
    pub const fn flush(self) -> u64 {
        self.0 >> 40 & 0xff
    }

    #[inline]
    pub const fn page_log2(self) -> u8 {
        (self.0 >> 48) as u8 & 0x3f
    }

    #[inline]
    pub const fn hears_broadcast(self) -> bool {
        self.0 & Self::HEARS_BROADCAST != 0
    }
}

/// One entry: 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub(super) key: Key,
    pub(super) detail: Detail,
}

impl Entry {
    /// An entry for what may hold translations of a table of this granule. `smmu` is the index of the SMMU. It has no
    /// users: an array counts them.
    pub const fn new(smmu: u8, target: Target, granule: Granule) -> Self {
        let page = (granule.log2() as u64) << 48;
        let (kind, id, substream, detail) = match target {
            Target::S1Asid { asid, world, hears_broadcast } => {
                let (sized, flush) = match world {
                    World::El1 => (opcode::TLBI_NH_VA, opcode::TLBI_NH_ASID),
                    World::El2 => (opcode::TLBI_EL2_VA, opcode::TLBI_EL2_ASID),
                };
                let heard = if hears_broadcast { Detail::HEARS_BROADCAST } else { 0 };
                (kind::S1_ASID, asid as u32, 0, pack(sized, flush) | page | heard)
            }
            Target::S2Vmid { vmid } => {
                (kind::S2_VMID, vmid as u32, 0, pack(opcode::TLBI_S2_IPA, opcode::TLBI_S12_VMALL) | page)
            }
            Target::S2VmidVsmmu { vmid } => (
                kind::S2_VMID_VSMMU,
                vmid as u32,
                0,
                pack(opcode::TLBI_S2_IPA, opcode::TLBI_S12_VMALL) | page,
            ),
            Target::S2VmidS1Clear { vmid } => (
                kind::S2_VMID_S1_CLEAR,
                vmid as u32,
                0,
                pack(opcode::TLBI_NH_ALL, opcode::TLBI_NH_ALL) | page,
            ),
            Target::NestedCds { stream } => {
                (kind::NESTED_CDS, stream, 0, pack(opcode::CFGI_CD_ALL, opcode::CFGI_CD_ALL) | page)
            }
            Target::Ats { stream, substream } => {
                (kind::ATS, stream, substream, pack(opcode::ATC_INV, opcode::ATC_INV))
            }
            Target::AtsFull { stream } => (kind::ATS_FULL, stream, 0, pack(opcode::ATC_INV, opcode::ATC_INV)),
        };
        Self { key: Key::of(smmu, kind, id, substream), detail: Detail(detail) }
    }

    /// Index of the SMMU.
    pub const fn smmu(&self) -> usize {
        self.key.smmu()
    }

    /// The tag in an IOTLB that the entry stands for; `None` for the caches of devices and configurations.
    pub const fn tag(&self) -> Option<Tag> {
        let id = self.key.id() as u16;
        match self.key.kind() {
            kind::S1_ASID => Some(Tag::Asid(id)),
            kind::S2_VMID => Some(Tag::Vmid(id)),
            kind::S2_VMID_VSMMU => Some(Tag::VsmmuVmid(id)),
            // The VMID is in the array twice; it is the entry above that stands for it.
            _ => None,
        }
    }

    /// The command that makes the SMMU, or the device, forget everything that the entry stands for (the unsized opcode).
    pub const fn flush(&self) -> Command {
        flush(self.key, self.detail)
    }
}

const fn pack(sized: u8, flush: u8) -> u64 {
    (sized as u64) << 32 | (flush as u64) << 40
}

/// A tag of an IOTLB: what distinguishes translations of different domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Of stage 1.
    Asid(u16),
    /// Of stage 2.
    Vmid(u16),
    /// Of stage 2, lent by the vSMMU that it belongs to.
    VsmmuVmid(u16),
}

/// The unsized command of an entry.
pub(super) const fn flush(key: Key, detail: Detail) -> Command {
    match key.kind() {
        kind::ATS | kind::ATS_FULL => atc_inv(key, ATC_INV_EVERYTHING as u64),
        _ => Command([detail.flush() | key.operand(), 0]),
    }
}

/// CMD_ATC_INV (4.5.1) of a range: Size in bits 5:0, and an address that is aligned to `4096 << size`.
#[inline]
pub(super) const fn atc_inv(key: Key, range: u64) -> Command {
    let valid = if key.substream() != 0 { field::SSV } else { 0 };
    Command([opcode::ATC_INV as u64 | valid | key.vmid_or_stream(), range])
}

/// What attaching one stream adds to an array: a few entries, sorted by key, none twice.
#[derive(Clone, Copy, Debug)]
pub struct StreamEntries {
    entries: [Entry; Self::MAX],
    count: usize,
}

impl StreamEntries {
    /// The most entries of one stream.
    pub const MAX: usize = 4;

    /// No entries.
    pub const fn new() -> Self {
        Self { entries: [Entry { key: Key(0), detail: Detail(0) }; Self::MAX], count: 0 }
    }

    /// One entry.
    #[inline]
    pub const fn one(entry: Entry) -> Self {
        Self { entries: [entry; Self::MAX], count: 1 }
    }

    /// These entries.
    ///
    /// # Errors
    /// [`BadEntries`] when there are more than [`Self::MAX`], or a key is there twice.
    pub fn of(entries: impl IntoIterator<Item = Entry>) -> Result<Self, BadEntries> {
        entries.into_iter().try_fold(Self::new(), |mut list, entry| {
            list.add(entry)?;
            Ok(list)
        })
    }

    /// Adds one where its key belongs.
    ///
    /// # Errors
    /// [`BadEntries`] when there are [`Self::MAX`], or the key is there; nothing is changed.
    pub fn add(&mut self, entry: Entry) -> Result<(), BadEntries> {
        // In order already, mostly.
        if self.iter().last().is_none_or(|last| last.key < entry.key) {
            *self.entries.get_mut(self.count).ok_or(BadEntries)? = entry;
            self.count += 1;
            return Ok(());
        }
        let place = self.iter().take_while(|other| other.key < entry.key).count();
        if self.count >= Self::MAX || self.iter().nth(place).is_some_and(|other| other.key == entry.key) {
            return Err(BadEntries);
        }
        let mut moved = entry;
        self.count += 1;
        for slot in self.entries.iter_mut().take(self.count).skip(place) {
            core::mem::swap(slot, &mut moved);
        }
        Ok(())
    }

    /// The entries, in order.
    #[inline]
    pub fn iter(&self) -> core::slice::Iter<'_, Entry> {
        // There are never more.
        self.entries.get(..self.count).unwrap_or_default().iter()
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl Default for StreamEntries {
    fn default() -> Self {
        Self::new()
    }
}

/// Entries that no stream can have: too many, or one twice. Nothing is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadEntries;
