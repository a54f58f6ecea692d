//! Handles: what a caller names guests, domains and recipients by.

/// A guest, as [`Function::GuestCreate`](crate::Function::GuestCreate) names it: 1 to [`GuestHandle::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestHandle(u8);

impl GuestHandle {
    /// The largest handle, and the number of guests that can exist at once.
    pub const MAX: u8 = 64;

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

/// The domain that a stream attaches to: register value 0 is the host's shared domain, any other the domain of
/// that guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainHandle {
    /// The domain that shadows the host's stage 2.
    Host,
    /// A guest's domain: the pages that the guest owns or that are shared with it.
    Guest(GuestHandle),
}

impl DomainHandle {
    /// The domain in a register; `None` if no domain can ever have that handle.
    pub fn from_register(value: u64) -> Option<Self> {
        if value == 0 { Some(Self::Host) } else { GuestHandle::from_register(value).map(Self::Guest) }
    }

    /// The register value of this domain.
    pub const fn to_register(self) -> u64 {
        match self {
            Self::Host => 0,
            Self::Guest(guest) => guest.to_register(),
        }
    }
}
