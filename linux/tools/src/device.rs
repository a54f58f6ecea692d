//! The module's device, as something to make calls with.

use core::fmt;

use abi::Status;
use alloc::format;
use alloc::string::{String, ToString};
use host_shim::call::{Caller, Refused};
use hyp_iommu_uapi::{Record, Request};

/// What serves requests: `/dev/hyp-iommu`, or a test's own.
pub trait Device {
    /// Makes a request: the record that comes back, or Linux's error number.
    fn request(&self, request: Request, record: Record) -> Result<Record, Errno>;
}

/// An error number of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// EPERM.
    pub const NOT_ALLOWED: Self = Self(1);
    /// ENOENT.
    pub const NO_ENTRY: Self = Self(2);
    /// ENOMEM.
    pub const NO_MEMORY: Self = Self(12);
    /// EBUSY.
    pub const BUSY: Self = Self(16);
    /// EINVAL.
    pub const INVALID: Self = Self(22);
    /// ENOTTY.
    pub const NO_REQUEST: Self = Self(25);
    /// ENOSPC.
    pub const NO_SPACE: Self = Self(28);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::NOT_ALLOWED => "the module does not allow that: be root (CAP_SYS_RAWIO)",
            Self::NO_ENTRY => {
                "the module has no pages there: `hyp-iommu memory` lists them, `hyp-iommu allocate SIZE` makes some"
            }
            Self::NO_MEMORY => "Linux has no such pages free: take fewer",
            Self::BUSY => "a page of the range is not the host's alone: reclaim it, unshare it, or take it back from the pool",
            Self::INVALID => "a size must be a power of two from the ownership unit to 2M, an address of a word a multiple of 8",
            Self::NO_REQUEST => "the module does not know that request: it is older than this program",
            Self::NO_SPACE => "the module's table of pages is full: free some",
            Self(number) => return write!(f, "Linux's error {number}"),
        })
    }
}

/// An error number as the first word of a call's answer: no status has it.
const REFUSED_BY_LINUX: u64 = 1 << 32;

/// A device that makes calls.
pub struct Calling<'a, D: ?Sized>(pub &'a D);

impl<D: Device + ?Sized> Caller for Calling<'_, D> {
    fn call_raw(&self, id: u32, [x1, x2, x3, x4]: [u64; 4]) -> [u64; 5] {
        match self.0.request(Request::Call, [id.into(), x1, x2, x3, x4]) {
            Ok(record) => record,
            Err(Errno(number)) => [REFUSED_BY_LINUX | u64::from(number.unsigned_abs()), 0, 0, 0, 0],
        }
    }
}

/// Linux's error number, when it was the module that refused a call.
pub fn errno(refused: Refused) -> Option<Errno> {
    (refused.code >> 32 == REFUSED_BY_LINUX >> 32).then_some(Errno(refused.code as i32))
}

/// What to tell of a call that did not succeed.
pub fn explain(refused: Refused) -> String {
    if let Some(errno) = errno(refused) {
        return errno.to_string();
    }
    let Some(status) = refused.status() else { return refused.to_string() };
    let reason = abi::Reason::from_register(refused.detail);
    match (status, reason) {
        (Status::Incompatible, Some(reason)) => format!("{refused}: {}", reason.doc()),
        _ => format!("{refused}: {}", status.doc()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Refusing(i32);

    impl Device for Refusing {
        fn request(&self, _: Request, _: Record) -> Result<Record, Errno> {
            Err(Errno(self.0))
        }
    }

    #[test]
    fn it_is_told_who_refused_and_why() {
        let of_linux = |number| {
            let device = Refusing(number);
            explain(Calling(&device).call(abi::Function::Version, [0; 4]).expect_err("it refuses"))
        };
        assert!(of_linux(2).contains("hyp-iommu memory"));
        assert!(of_linux(16).contains("reclaim it"));
        assert_eq!(of_linux(5), "Linux's error 5");
        let of_the_hypervisor =
            |status: Status, detail| explain(Refused { code: status.to_register(), detail });
        assert!(of_the_hypervisor(Status::WrongState, 0).starts_with("WrongState: A page of the range"));
        assert!(of_the_hypervisor(Status::Incompatible, 4).contains("BBML"));
        assert!(of_the_hypervisor(Status::NoMemory, 3).starts_with("NoMemory (3 pages): "));
        assert_eq!(explain(Refused { code: 5, detail: 0 }), "undefined status 0x5");
    }
}
