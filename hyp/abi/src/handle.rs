//! Handles: what a caller names guests, domains and recipients by.

/// A guest, as [`Function::GuestCreate`](crate::Function::GuestCreate) names it: 1 to [`GuestHandle::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestHandle(u8);

impl GuestHandle {
    /// The largest handle, and the number of guests that can exist at once.
    pub const MAX: u8 = 64;

    /// Every handle that a guest can have, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=Self::MAX).map(Self)
    }

    /// The handle in a register; `None` if no guest can ever have it. It does not say that the guest exists.
    pub fn from_register(value: u64) -> Option<Self> {
        match u8::try_from(value) {
            Ok(handle @ 1..=Self::MAX) => Some(Self(handle)),
            _ => None,
        }
    }

    /// The register value of this handle.
    pub const fn to_register(self) -> u64 {
        self.0 as u64
    }

    /// 0-based place of the guest in a table of [`GuestHandle::MAX`].
    pub const fn index(self) -> usize {
        self.0 as usize - 1
    }
}

/// With whom the host shares a page: register value 0 is the hypervisor, any other a [`GuestHandle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// The hypervisor.
    Hypervisor,
    /// A guest.
    Guest(GuestHandle),
}

impl Recipient {
    /// The recipient in a register; `None` if it is neither the hypervisor nor a possible guest.
    pub fn from_register(value: u64) -> Option<Self> {
        if value == 0 { Some(Self::Hypervisor) } else { GuestHandle::from_register(value).map(Self::Guest) }
    }

    /// The register value of this recipient.
    pub const fn to_register(self) -> u64 {
        match self {
            Self::Hypervisor => 0,
            Self::Guest(guest) => guest.to_register(),
        }
    }
}

/// Whom an object belongs to: register value 0 is the host, any other a [`GuestHandle`].
///
/// No guest makes calls yet: the host makes them for the guests that it created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Principal {
    /// The host.
    Host,
    /// A guest.
    Guest(GuestHandle),
}

impl Principal {
    /// The principal in a register; `None` if it is neither the host nor a possible guest.
    pub fn from_register(value: u64) -> Option<Self> {
        if value == 0 { Some(Self::Host) } else { GuestHandle::from_register(value).map(Self::Guest) }
    }

    /// The register value of this principal.
    pub const fn to_register(self) -> u64 {
        match self {
            Self::Host => 0,
            Self::Guest(guest) => guest.to_register(),
        }
    }
}

/// An object that a call made: its owner in bits 39:32 of the register, a number that tells it from those that had its place
/// before in 31:16, its place in 15:0. A caller uses the register value as it got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectHandle {
    /// Whom it belongs to.
    pub owner: Principal,
    /// Distinguishes it from the objects that had the place before.
    pub generation: u16,
    /// Its place in the table of its kind.
    pub place: u16,
}

impl ObjectHandle {
    /// The handle in a register; `None` if no object can ever have it. It does not say that the object exists.
    pub fn from_register(value: u64) -> Option<Self> {
        Some(Self {
            owner: Principal::from_register(value >> 32)?,
            generation: (value >> 16) as u16,
            place: value as u16,
        })
    }

    /// The register value of this handle.
    pub const fn to_register(self) -> u64 {
        self.owner.to_register() << 32 | (self.generation as u64) << 16 | self.place as u64
    }
}

/// A domain: register value 0 is the host's shared domain, 1 to 64 the memory domain of that guest, any other one that a call made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainHandle {
    /// The domain that shadows the host's stage 2.
    Host,
    /// A guest's memory domain: the pages that the guest owns or that are shared with it, at their own addresses.
    Guest(GuestHandle),
    /// A domain that `DOMAIN_CREATE` or `DOMAIN_CREATE_NESTED` made. Its place is [`DomainHandle::FIRST_CREATED`] or above.
    Created(ObjectHandle),
}

impl DomainHandle {
    /// The lowest place of a domain that a call made.
    pub const FIRST_CREATED: u16 = GuestHandle::MAX as u16 + 1;
    /// The number of domains that can exist at once, the host's and the guests' memory domains included.
    pub const MAX: u16 = 256;

    /// The domain in a register; `None` if no domain can ever have that handle.
    pub fn from_register(value: u64) -> Option<Self> {
        if value == 0 {
            return Some(Self::Host);
        }
        if let Some(guest) = GuestHandle::from_register(value) {
            return Some(Self::Guest(guest));
        }
        let created = ObjectHandle::from_register(value)?;
        (Self::FIRST_CREATED..Self::MAX).contains(&created.place).then_some(Self::Created(created))
    }

    /// Whom the domain belongs to, as the handle says.
    pub const fn owner(self) -> Principal {
        match self {
            Self::Host => Principal::Host,
            Self::Guest(guest) => Principal::Guest(guest),
            Self::Created(created) => created.owner,
        }
    }

    /// The register value of this domain.
    pub const fn to_register(self) -> u64 {
        match self {
            Self::Host => 0,
            Self::Guest(guest) => guest.to_register(),
            Self::Created(created) => created.to_register(),
        }
    }
}

/// A vSMMU: what one principal sees of one SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VsmmuHandle(pub ObjectHandle);

impl VsmmuHandle {
    /// The number of vSMMUs that can exist at once.
    pub const MAX: u16 = 128;

    /// The vSMMU in a register; `None` if none can ever have that handle.
    pub fn from_register(value: u64) -> Option<Self> {
        let handle = ObjectHandle::from_register(value)?;
        (handle.place < Self::MAX).then_some(Self(handle))
    }

    /// The register value of this vSMMU.
    pub const fn to_register(self) -> u64 {
        self.0.to_register()
    }
}
