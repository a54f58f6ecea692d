//! Function ids.

/// A function of the interface; the value is its SMCCC function id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Function {
    /// Which hypervisor this is (SMCCC general service query).
    CallUid = 0x8600_ff01,
    /// Version of the interface.
    Version = 0xc600_0000,
    /// Features and limits.
    Features = 0xc600_0001,
    /// A counter.
    Statistics = 0xc600_0002,
    /// The host shares its memory.
    MemShare = 0xc600_0010,
    /// The host takes back a share.
    MemUnshare = 0xc600_0011,
    /// The host gives memory to a guest.
    MemDonate = 0xc600_0012,
    /// The host takes a guest's memory back.
    MemReclaim = 0xc600_0013,
    /// Who owns a page.
    MemQuery = 0xc600_0014,
    /// How many SMMUs there are.
    SmmuCount = 0xc600_0020,
    /// What an SMMU is.
    SmmuDescribe = 0xc600_0021,
    /// A stream's DMA is let into a domain.
    StreamAttach = 0xc600_0022,
    /// A stream's DMA is stopped.
    StreamDetach = 0xc600_0023,
    /// Which domain a stream is attached to.
    StreamQuery = 0xc600_0024,
    /// The oldest event not yet read.
    EventRead = 0xc600_0025,
    /// How many tags of an SMMU are in use and free.
    SmmuTags = 0xc600_0026,
    /// What an SMMU can do for the owner of a vSMMU on it.
    SmmuFeatures = 0xc600_0027,
    /// How EL2's page pool stands.
    PoolState = 0xc600_0030,
    /// The host gives pages to the pool.
    PoolTopUp = 0xc600_0031,
    /// The host takes free pages back from the pool.
    PoolGiveBack = 0xc600_0032,
    /// A new guest.
    GuestCreate = 0xc600_0040,
    /// A guest's end.
    GuestDestroy = 0xc600_0041,
    /// A step of taking a guest apart, whatever it has.
    GuestTeardown = 0xc600_0042,
    /// A new domain for memory of a guest.
    DomainCreate = 0xc600_0050,
    /// A new domain whose stage 1 the owner of a vSMMU writes.
    DomainCreateNested = 0xc600_0051,
    /// A domain's end.
    DomainDestroy = 0xc600_0052,
    /// Pages of a guest become reachable in a domain.
    DomainMap = 0xc600_0053,
    /// Pages are no longer reachable in a domain.
    DomainUnmap = 0xc600_0054,
    /// Where an address of a domain leads.
    DomainQuery = 0xc600_0055,
    /// What a domain is.
    DomainDescribe = 0xc600_0056,
    /// Which tag a domain has on an SMMU.
    DomainTag = 0xc600_0057,
    /// A new vSMMU.
    VsmmuCreate = 0xc600_0060,
    /// A vSMMU's end.
    VsmmuDestroy = 0xc600_0061,
    /// A stream becomes a vSMMU's, under a StreamID of its own.
    VsmmuAddStream = 0xc600_0062,
    /// A stream is no longer a vSMMU's.
    VsmmuRemoveStream = 0xc600_0063,
    /// Which stream a StreamID of a vSMMU is.
    VsmmuQueryStream = 0xc600_0064,
    /// The owner of a vSMMU invalidates what it changed.
    VsmmuInvalidate = 0xc600_0065,
}

impl Function {
    /// The function with this id; `None` if the interface has none.
    ///
    /// One `match`, because it stands at the head of every call.
    pub const fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0x8600_ff01 => Self::CallUid,
            0xc600_0000 => Self::Version,
            0xc600_0001 => Self::Features,
            0xc600_0002 => Self::Statistics,
            0xc600_0010 => Self::MemShare,
            0xc600_0011 => Self::MemUnshare,
            0xc600_0012 => Self::MemDonate,
            0xc600_0013 => Self::MemReclaim,
            0xc600_0014 => Self::MemQuery,
            0xc600_0020 => Self::SmmuCount,
            0xc600_0021 => Self::SmmuDescribe,
            0xc600_0022 => Self::StreamAttach,
            0xc600_0023 => Self::StreamDetach,
            0xc600_0024 => Self::StreamQuery,
            0xc600_0025 => Self::EventRead,
            0xc600_0026 => Self::SmmuTags,
            0xc600_0027 => Self::SmmuFeatures,
            0xc600_0030 => Self::PoolState,
            0xc600_0031 => Self::PoolTopUp,
            0xc600_0032 => Self::PoolGiveBack,
            0xc600_0040 => Self::GuestCreate,
            0xc600_0041 => Self::GuestDestroy,
            0xc600_0042 => Self::GuestTeardown,
            0xc600_0050 => Self::DomainCreate,
            0xc600_0051 => Self::DomainCreateNested,
            0xc600_0052 => Self::DomainDestroy,
            0xc600_0053 => Self::DomainMap,
            0xc600_0054 => Self::DomainUnmap,
            0xc600_0055 => Self::DomainQuery,
            0xc600_0056 => Self::DomainDescribe,
            0xc600_0057 => Self::DomainTag,
            0xc600_0060 => Self::VsmmuCreate,
            0xc600_0061 => Self::VsmmuDestroy,
            0xc600_0062 => Self::VsmmuAddStream,
            0xc600_0063 => Self::VsmmuRemoveStream,
            0xc600_0064 => Self::VsmmuQueryStream,
            0xc600_0065 => Self::VsmmuInvalidate,
            _ => return None,
        })
    }

    /// The SMCCC function id.
    pub const fn id(self) -> u32 {
        self as u32
    }
}
