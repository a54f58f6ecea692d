//! Typed hypercalls, over any [`Host`].

use crate::host::Host;
use abi::{DomainHandle, Function, GuestHandle, Recipient, Statistic, Status};
use core::fmt;

/// A call that did not succeed. It has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// `X0`.
    pub code: u64,
    /// `X1`: for [`Status::NoMemory`] how many more pages the pool needs.
    pub detail: u64,
}

impl Refused {
    /// The status; `None` when the interface does not define the code.
    pub fn status(self) -> Option<Status> {
        Status::from_register(self.code)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status() {
            Some(Status::NoMemory) => write!(f, "NoMemory ({} pages)", self.detail),
            Some(status) => write!(f, "{status:?}"),
            None => write!(f, "undefined status {:#x}", self.code),
        }
    }
}

/// Reads `X0` to `X4` of an answer.
pub fn answer(registers: [u64; 5]) -> Result<[u64; 4], Refused> {
    let [code, x1, x2, x3, x4] = registers;
    if code == Status::Success.to_register() {
        Ok([x1, x2, x3, x4])
    } else {
        Err(Refused { code, detail: x1 })
    }
}

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

/// An event of an SMMU, as EVENT_READ answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Event number (IHI 0070, 7.3).
    pub number: u8,
    /// StreamID.
    pub stream: u32,
    /// Index of the SMMU.
    pub smmu: usize,
    /// InputAddr, when the event records one.
    pub address: Option<u64>,
    /// A write.
    pub write: bool,
    /// A stage-2 fault.
    pub stage2: bool,
    /// IPA of a stage-2 fault.
    pub ipa: u64,
    /// Events lost since the one before.
    pub lost: u64,
}

impl Event {
    /// F_TRANSLATION (IHI 0070, 7.3.12).
    pub const TRANSLATION: u8 = 0x10;

    /// Decodes `X1` to `X4`.
    pub const fn decode(registers: [u64; 4]) -> Self {
        let [source, address, ipa, lost] = registers;
        Self {
            number: source as u8,
            stream: (source >> 8) as u32,
            smmu: (source >> 40) as usize & 0xff,
            address: if source >> 48 & 1 == 1 { Some(address) } else { None },
            write: source >> 49 & 1 == 1,
            stage2: source >> 50 & 1 == 1,
            ipa,
            lost,
        }
    }

    /// The event's name in IHI 0070, 7.3.
    pub const fn name(&self) -> &'static str {
        match self.number {
            0x01 => "F_UUT",
            0x02 => "C_BAD_STREAMID",
            0x03 => "F_STE_FETCH",
            0x04 => "C_BAD_STE",
            0x05 => "F_BAD_ATS_TREQ",
            0x06 => "F_STREAM_DISABLED",
            0x07 => "F_TRANSL_FORBIDDEN",
            0x08 => "C_BAD_SUBSTREAMID",
            0x09 => "F_CD_FETCH",
            0x0a => "C_BAD_CD",
            0x0b => "F_WALK_EABT",
            0x10 => "F_TRANSLATION",
            0x11 => "F_ADDR_SIZE",
            0x12 => "F_ACCESS",
            0x13 => "F_PERMISSION",
            0x20 => "F_TLB_CONFLICT",
            0x21 => "F_CFG_CONFLICT",
            _ => "an unknown event",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} SMMU {} StreamID {:#x}", self.name(), self.smmu, self.stream)?;
        if let Some(address) = self.address {
            write!(f, " {} {address:#x}", if self.write { "write" } else { "read" })?;
        }
        Ok(())
    }
}

/// The calls, each with its arguments' types. Errors are those of [`abi::TABLE`].
pub trait Calls: Host {
    /// VERSION.
    fn version(&self) -> Result<u64, Refused> {
        self.call(Function::Version, [0; 4]).map(|[version, ..]| version)
    }

    /// CALL_UID.
    fn uid(&self) -> [u64; 4] {
        let [x0, x1, x2, x3, _] = self.call_raw(Function::CallUid.id(), [0; 4]);
        [x0, x1, x2, x3]
    }

    /// FEATURES.
    fn features(&self) -> Result<Features, Refused> {
        let [bits, unit, step, guests] = self.call(Function::Features, [0; 4])?;
        Ok(Features { bits, unit, step, guests })
    }

    /// STATISTICS.
    fn statistic(&self, statistic: Statistic) -> Result<u64, Refused> {
        self.call(Function::Statistics, [statistic as u64, 0, 0, 0]).map(|[value, ..]| value)
    }

    /// One step of MEM_SHARE: how many bytes are done.
    fn share_step(&self, start: u64, size: u64, with: Recipient) -> Result<u64, Refused> {
        self.call(Function::MemShare, [start, size, with.to_register(), 0]).map(|[done, ..]| done)
    }

    /// MEM_SHARE of a whole range.
    fn share(&self, start: u64, size: u64, with: Recipient) -> Result<(), Refused> {
        in_steps(start, size, |start, size| self.share_step(start, size, with))
    }

    /// MEM_UNSHARE of a whole range.
    fn unshare(&self, start: u64, size: u64, with: Recipient) -> Result<(), Refused> {
        in_steps(start, size, |start, size| {
            self.call(Function::MemUnshare, [start, size, with.to_register(), 0]).map(|[done, ..]| done)
        })
    }

    /// One step of MEM_DONATE: how many bytes are done.
    fn donate_step(&self, start: u64, size: u64, guest: GuestHandle) -> Result<u64, Refused> {
        self.call(Function::MemDonate, [start, size, guest.to_register(), 0]).map(|[done, ..]| done)
    }

    /// MEM_DONATE of a whole range.
    fn donate(&self, start: u64, size: u64, guest: GuestHandle) -> Result<(), Refused> {
        in_steps(start, size, |start, size| self.donate_step(start, size, guest))
    }

    /// One step of MEM_RECLAIM: how many bytes are done.
    fn reclaim_step(&self, start: u64, size: u64, guest: GuestHandle) -> Result<u64, Refused> {
        self.call(Function::MemReclaim, [start, size, guest.to_register(), 0]).map(|[done, ..]| done)
    }

    /// MEM_RECLAIM of a whole range.
    fn reclaim(&self, start: u64, size: u64, guest: GuestHandle) -> Result<(), Refused> {
        in_steps(start, size, |start, size| self.reclaim_step(start, size, guest))
    }

    /// MEM_QUERY.
    fn ownership(&self, page: u64) -> Result<Ownership, Refused> {
        self.call(Function::MemQuery, [page, 0, 0, 0]).map(|[owner, shared, ..]| Ownership { owner, shared })
    }

    /// SMMU_COUNT.
    fn smmu_count(&self) -> Result<u64, Refused> {
        self.call(Function::SmmuCount, [0; 4]).map(|[count, ..]| count)
    }

    /// SMMU_DESCRIBE.
    fn describe_smmu(&self, smmu: usize) -> Result<SmmuDescription, Refused> {
        let [base, stream_bits, vmids, state] = self.call(Function::SmmuDescribe, [smmu as u64, 0, 0, 0])?;
        Ok(SmmuDescription {
            base,
            stream_bits,
            vmids_in_use: vmids as u16,
            last_vmid: (vmids >> 16) as u16,
            dead: state != 0,
        })
    }

    /// STREAM_ATTACH.
    fn attach(&self, smmu: usize, stream: u32, domain: DomainHandle) -> Result<(), Refused> {
        self.call(Function::StreamAttach, [smmu as u64, u64::from(stream), domain.to_register(), 0])
            .map(|_| ())
    }

    /// STREAM_DETACH.
    fn detach(&self, smmu: usize, stream: u32) -> Result<(), Refused> {
        self.call(Function::StreamDetach, [smmu as u64, u64::from(stream), 0, 0]).map(|_| ())
    }

    /// STREAM_QUERY: `None` when the stream is unattached.
    fn attachment(&self, smmu: usize, stream: u32) -> Result<Option<Attachment>, Refused> {
        let [attached, domain, vmid, _] =
            self.call(Function::StreamQuery, [smmu as u64, u64::from(stream), 0, 0])?;
        Ok((attached != 0).then_some(Attachment { domain, vmid }))
    }

    /// EVENT_READ: `None` when no event is waiting.
    fn event(&self) -> Result<Option<Event>, Refused> {
        match self.call(Function::EventRead, [0; 4]) {
            Ok(registers) => Ok(Some(Event::decode(registers))),
            Err(refused) if refused.status() == Some(Status::Empty) => Ok(None),
            Err(refused) => Err(refused),
        }
    }

    /// POOL_STATE.
    fn pool(&self) -> Result<PoolState, Refused> {
        let [free, total, donated, free_donated] = self.call(Function::PoolState, [0; 4])?;
        Ok(PoolState { free, total, donated, free_donated })
    }

    /// POOL_TOP_UP with a whole range.
    fn top_up(&self, start: u64, size: u64) -> Result<(), Refused> {
        in_steps(start, size, |start, size| {
            self.call(Function::PoolTopUp, [start, size, 0, 0]).map(|[done, ..]| done)
        })
    }

    /// POOL_GIVE_BACK: where the pages are.
    fn give_back(&self, size: u64) -> Result<u64, Refused> {
        self.call(Function::PoolGiveBack, [size, 0, 0, 0]).map(|[start, ..]| start)
    }

    /// GUEST_CREATE.
    fn create_guest(&self) -> Result<GuestHandle, Refused> {
        let [handle, ..] = self.call(Function::GuestCreate, [0; 4])?;
        GuestHandle::from_register(handle)
            .ok_or(Refused { code: Status::Success.to_register(), detail: handle })
    }

    /// GUEST_DESTROY.
    fn destroy_guest(&self, guest: GuestHandle) -> Result<(), Refused> {
        self.call(Function::GuestDestroy, [guest.to_register(), 0, 0, 0]).map(|_| ())
    }
}

impl<H: Host + ?Sized> Calls for H {}

/// Repeats a call until the whole range is done. A call that succeeds without progress ends the loop as a refusal
/// with code 0, so that a wrong hypervisor cannot hang its host.
fn in_steps(
    start: u64,
    size: u64,
    mut step: impl FnMut(u64, u64) -> Result<u64, Refused>,
) -> Result<(), Refused> {
    let mut done = 0;
    loop {
        let now = step(start.wrapping_add(done), size.wrapping_sub(done))?;
        done = done.wrapping_add(now);
        if done == size {
            return Ok(());
        }
        if now == 0 || done > size {
            return Err(Refused { code: Status::Success.to_register(), detail: now });
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn an_event_is_decoded_as_the_interface_packs_it() {
        let source = 0x10 | 0x1108 << 8 | 2 << 40 | 1 << 48 | 1 << 49 | 1 << 50;
        let event = Event::decode([source, 0x4000_1040, 0x4000_1000, 3]);
        assert_eq!((event.number, event.stream, event.smmu), (Event::TRANSLATION, 0x1108, 2));
        assert_eq!((event.address, event.ipa, event.lost), (Some(0x4000_1040), 0x4000_1000, 3));
        assert!(event.write && event.stage2);
        assert_eq!(Event::decode([0x04, 1, 0, 0]).address, None);
    }

    #[test]
    fn a_range_is_done_in_as_many_steps_as_the_call_takes() {
        let mut steps = Vec::new();
        let outcome = in_steps(0x1000, 0x5000, |start, size| {
            steps.push((start, size));
            Ok(size.min(0x2000))
        });
        assert_eq!(outcome, Ok(()));
        assert_eq!(steps, [(0x1000, 0x5000), (0x3000, 0x3000), (0x5000, 0x1000)]);
    }

    #[test]
    fn a_call_that_makes_no_progress_does_not_hang_its_caller() {
        assert_eq!(in_steps(0, 0x1000, |_, _| Ok(0)), Err(Refused { code: 0, detail: 0 }));
        assert!(in_steps(0, 0x1000, |_, _| Ok(0x2000)).is_err());
    }

    #[test]
    fn an_answer_is_results_or_a_refusal() {
        assert_eq!(answer([0, 1, 2, 3, 4]), Ok([1, 2, 3, 4]));
        let refused = answer([Status::NoMemory.to_register(), 7, 0, 0, 0]).unwrap_err();
        assert_eq!((refused.status(), refused.detail), (Some(Status::NoMemory), 7));
        assert_eq!(answer([0x1234, 0, 0, 0, 0]).unwrap_err().status(), None);
    }
}
