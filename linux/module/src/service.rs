//! Requests of programs.

use abi::Function;
use host_shim::call::{Caller, Calls, Ownership};
use hyp_iommu_uapi::{MAX_BYTES, Record, Request, VERSION};

use crate::pages::{Pages, Run};

/// Bytes of the smallest page that Linux's allocator gives.
const PAGE_BYTES: u64 = 4096;

/// Why a request failed: Linux's error numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Errno {
    /// EPERM: the module does not make that call.
    NotAllowed = 1,
    /// ENOENT: no page that this module allocated is there.
    NoEntry = 2,
    /// EIO: the hypervisor answered what it cannot have meant.
    Io = 5,
    /// ENOMEM: Linux has no pages.
    NoMemory = 12,
    /// EBUSY: the page is not the host's now, or a driver of Linux's has the device.
    Busy = 16,
    /// ENODEV: there is no such hypervisor.
    NoDevice = 19,
    /// EINVAL: a word has a value that it may not have.
    Invalid = 22,
    /// ENOTTY: no such request.
    NoRequest = 25,
    /// ENOSPC: the module's table of pages is full.
    NoSpace = 28,
    /// EPROTO: the hypervisor has another version of its interface.
    Protocol = 71,
}

/// What Linux's kernel does for the service.
pub trait Kernel: Caller {
    /// Zeroed pages, `size` bytes aligned to `size`, a power of two: their physical address.
    fn allocate(&self, size: u64) -> Option<u64>;
    /// Gives pages back that [`Kernel::allocate`] gave.
    fn free(&self, run: Run);
    /// Reads the word at a physical address, a multiple of 8 in pages that [`Kernel::allocate`] gave and that the host owns.
    fn load(&self, address: u64) -> u64;
    /// Writes it.
    fn store(&self, address: u64, value: u64);
    /// Whether a driver of Linux's is bound to a PCI function with this StreamID on the SMMU with its registers at `base`.
    fn has_driver(&self, base: u64, stream: u64) -> bool;
}

/// Whether the hypervisor below is one that this module can talk to.
///
/// # Errors
///
/// [`Errno::NoDevice`] or [`Errno::Protocol`].
pub fn probe(kernel: &impl Kernel) -> Result<(), Errno> {
    if kernel.uid() != abi::UID.map(u64::from) {
        return Err(Errno::NoDevice);
    }
    let version = kernel.version().map_err(|_| Errno::NoDevice)?;
    // A newer minor version only adds.
    if version >> 16 != u64::from(abi::VERSION >> 16) { Err(Errno::Protocol) } else { Ok(()) }
}

/// Whether a request is served beside others of its kind ([`Service::serve_beside`]), and not alone ([`Service::serve`]).
pub fn is_served_beside(number: u32) -> bool {
    matches!(Request::from_number(number), Some(Request::Version | Request::Call | Request::Pages))
}

/// What the module keeps. Calls are made by several CPUs at once; a request that uses a page, or changes which there are, is served alone,
/// so that what the hypervisor said of the page holds until then.
#[derive(Debug, Default)]
pub struct Service {
    pages: Pages,
}

impl Service {
    /// Without pages.
    pub const fn new() -> Self {
        Self { pages: Pages::new() }
    }

    /// Serves the request with this number. The record is what the program gave, and what it gets if this succeeds.
    ///
    /// # Errors
    ///
    /// The request is not one, or was refused; nothing changed. What the hypervisor refuses is no error here: its status is in the
    /// record.
    pub fn serve(&mut self, kernel: &impl Kernel, number: u32, record: &mut Record) -> Result<(), Errno> {
        let request = asked(number, record)?;
        let [word0, word1, ..] = *record;
        *record = match request {
            Request::Version | Request::Call | Request::Pages => {
                return self.serve_beside(kernel, number, record);
            }
            Request::Allocate => {
                let run = self.allocate(kernel, word0)?;
                [run.start, run.size, 0, 0, 0]
            }
            Request::Free => {
                self.free(kernel, word0)?;
                [0; 5]
            }
            Request::Read => {
                self.check_word(kernel, word0)?;
                [kernel.load(word0), 0, 0, 0, 0]
            }
            Request::Write => {
                self.check_word(kernel, word0)?;
                kernel.store(word0, word1);
                [0; 5]
            }
        };
        Ok(())
    }

    /// Serves a request of [`is_served_beside`], with others of these meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Service::serve`]; any other request is [`Errno::NoRequest`].
    pub fn serve_beside(&self, kernel: &impl Kernel, number: u32, record: &mut Record) -> Result<(), Errno> {
        let request = asked(number, record)?;
        let [word0, ..] = *record;
        *record = match request {
            Request::Version => [VERSION.into(), kernel.version().map_err(|_| Errno::Io)?, 0, 0, 0],
            Request::Call => self.call(kernel, *record)?,
            Request::Pages => {
                let run = self.pages.nth(word0).ok_or(Errno::NoEntry)?;
                [run.start, run.size, 0, 0, 0]
            }
            Request::Allocate | Request::Free | Request::Read | Request::Write => {
                return Err(Errno::NoRequest);
            }
        };
        Ok(())
    }

    /// Makes a call, if it cannot hurt Linux: what takes memory away takes only pages that the module allocated, and no device goes
    /// that Linux drives. What needs stage-1 tables in the caller's memory is not offered. The oracle of an image for tests only looks; any
    /// other hypervisor has no such call.
    fn call(&self, kernel: &impl Kernel, record: Record) -> Result<Record, Errno> {
        let [id, arguments @ ..] = record;
        let id = u32::try_from(id).map_err(|_| Errno::NotAllowed)?;
        let [x1, x2, ..] = arguments;
        if id == abi::oracle::FUNCTION {
            return Ok(kernel.call_raw(id, arguments));
        }
        match Function::from_id(id).ok_or(Errno::NotAllowed)? {
            Function::MemShare
            | Function::MemUnshare
            | Function::MemDonate
            | Function::MemReclaim
            | Function::PoolTopUp => {
                if !self.pages.contain(x1, x2) {
                    return Err(Errno::NoEntry);
                }
            }
            Function::StreamAttach => {
                // An index that does not exist is for the hypervisor to refuse.
                if let Ok(smmu) = kernel.describe_smmu(usize::try_from(x1).map_err(|_| Errno::Invalid)?)
                    && kernel.has_driver(smmu.base, x2)
                {
                    return Err(Errno::Busy);
                }
            }
            Function::DomainCreateNested
            | Function::VsmmuCreate
            | Function::VsmmuDestroy
            | Function::VsmmuAddStream
            | Function::VsmmuRemoveStream
            | Function::VsmmuQueryStream
            | Function::VsmmuInvalidate => return Err(Errno::NotAllowed),
            Function::CallUid
            | Function::Version
            | Function::Features
            | Function::Statistics
            | Function::MemQuery
            | Function::SmmuCount
            | Function::SmmuDescribe
            | Function::SmmuTags
            | Function::SmmuFeatures
            | Function::StreamDetach
            | Function::StreamQuery
            | Function::EventRead
            | Function::PoolState
            // Only what was given can be taken back, and only this module gives.
            | Function::PoolGiveBack
            | Function::GuestCreate
            | Function::GuestDestroy
            | Function::GuestTeardown
            | Function::DomainCreate
            | Function::DomainDestroy
            // Takes pages that the guest owns.
            | Function::DomainMap
            | Function::DomainUnmap
            | Function::DomainQuery
            | Function::DomainDescribe
            | Function::DomainTag => {}
        }
        Ok(kernel.call_raw(id, arguments))
    }

    fn allocate(&mut self, kernel: &impl Kernel, size: u64) -> Result<Run, Errno> {
        let unit = unit(kernel)?;
        if !size.is_power_of_two() || size < unit || size > MAX_BYTES {
            return Err(Errno::Invalid);
        }
        if !self.pages.has_place() {
            return Err(Errno::NoSpace);
        }
        let start = kernel.allocate(size).ok_or(Errno::NoMemory)?;
        let run = Run { start, size };
        self.pages.add(run);
        Ok(run)
    }

    fn free(&mut self, kernel: &impl Kernel, start: u64) -> Result<(), Errno> {
        let run = self.pages.beginning_at(start).ok_or(Errno::NoEntry)?;
        let unit = unit(kernel)?;
        for offset in (0..run.size).step_by(usize::try_from(unit).map_err(|_| Errno::Io)?) {
            if kernel.ownership(run.start + offset) != Ok(Ownership::HOST) {
                return Err(Errno::Busy);
            }
        }
        self.pages.remove(start);
        kernel.free(run);
        Ok(())
    }

    /// Whether the CPU may access the word at an address.
    fn check_word(&self, kernel: &impl Kernel, address: u64) -> Result<(), Errno> {
        if !address.is_multiple_of(8) {
            return Err(Errno::Invalid);
        }
        if !self.pages.contain(address, 8) {
            return Err(Errno::NoEntry);
        }
        let unit = unit(kernel)?;
        match kernel.ownership(address & !(unit - 1)) {
            Ok(Ownership { owner: 0, .. }) => Ok(()),
            _ => Err(Errno::Busy),
        }
    }
}

/// The request with this number, if its record uses no other words than it has.
fn asked(number: u32, record: &Record) -> Result<Request, Errno> {
    let request = Request::from_number(number).ok_or(Errno::NoRequest)?;
    if record.iter().skip(request.words()).any(|&word| word != 0) { Err(Errno::Invalid) } else { Ok(request) }
}

/// The ownership unit, which is at least a page.
fn unit(kernel: &impl Kernel) -> Result<u64, Errno> {
    let unit = kernel.features().map_err(|_| Errno::Io)?.unit;
    if unit.is_power_of_two() && unit >= PAGE_BYTES { Ok(unit) } else { Err(Errno::Io) }
}

#[cfg(test)]
mod tests;
