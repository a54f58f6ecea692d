//! Register access of one SMMU, with the waits that IHI 0070 asks for.

use smmuv3::address::PhysAddr;
use smmuv3::registers::{CR0_OFFSET, CR0ACK_OFFSET, GBPA, GBPA_OFFSET};

use crate::platform::{Platform, waited_for};

/// The longest that a register update may take, and that an SMMU may do commands without progress, in nanoseconds.
///
/// A CMD_SYNC waits for DMA in flight, which PCIe bounds by its completion timeout (50 ms by default). After `ATC_INV` it also waits until
/// devices answer or are given up, for which PCIe allows more than a minute.
pub const TIMEOUT_NS: u64 = 500_000_000;

/// How long a transaction that was let through may take to reach memory, in nanoseconds: twice the completion timeout of PCIe.
const LANDING_NS: u64 = 100_000_000;

/// The registers of one SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    base: PhysAddr,
}

/// A register did not take a value within [`TIMEOUT_NS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAcknowledge {
    /// Offset of the register that should have shown it, in bytes.
    pub offset: u64,
}

impl Registers {
    /// The registers at `base`, the start of page 0.
    pub const fn new(base: PhysAddr) -> Self {
        Self { base }
    }

    /// The start of page 0.
    #[inline]
    pub const fn base(self) -> PhysAddr {
        self.base
    }

    /// Reads the 32-bit register at `offset` bytes.
    #[inline]
    pub fn read_u32<P: Platform>(self, p: &P, offset: u64) -> u32 {
        p.read_register_u32(self.base.offset(offset))
    }

    /// Writes the 32-bit register at `offset` bytes.
    #[inline]
    pub fn write_u32<P: Platform>(self, p: &P, offset: u64, value: u32) {
        p.write_register_u32(self.base.offset(offset), value);
    }

    /// Writes the 64-bit register at `offset` bytes.
    #[inline]
    pub fn write_u64<P: Platform>(self, p: &P, offset: u64, value: u64) {
        p.write_register_u64(self.base.offset(offset), value);
    }

    /// Waits until the register at `offset` has `value` in the bits of `mask`.
    pub fn await_u32<P: Platform>(
        self,
        p: &P,
        offset: u64,
        mask: u32,
        value: u32,
    ) -> Result<(), NoAcknowledge> {
        let is_done = waited_for(p, self.base.offset(offset), mask, value, TIMEOUT_NS);
        if is_done { Ok(()) } else { Err(NoAcknowledge { offset }) }
    }

    /// Writes CR0 and waits until CR0ACK shows all of it (6.3.9).
    pub fn set_cr0<P: Platform>(self, p: &P, value: u32) -> Result<(), NoAcknowledge> {
        self.write_u32(p, CR0_OFFSET, value);
        self.await_u32(p, CR0ACK_OFFSET, u32::MAX, value)
    }

    /// Waits until what was let through before SMMUEN was cleared has reached memory: the acknowledgement is about transactions to come (6.3.9.6).
    pub fn await_landing<P: Platform>(p: &P) {
        let start = p.now_ns();
        while p.now_ns().saturating_sub(start) <= LANDING_NS {
            p.relax();
        }
    }

    /// Sets GBPA.ABORT (6.3.14): while SMMUEN is 0, every transaction aborts.
    ///
    /// GBPA may be written only while UPDATE is 0, and the write must set UPDATE; the SMMU clears it when the
    /// new value is in force.
    pub fn abort_all<P: Platform>(self, p: &P) -> Result<(), NoAcknowledge> {
        let update = GBPA::UPDATE.val(1).value;
        self.await_u32(p, GBPA_OFFSET, update, 0)?;
        let value = self.read_u32(p, GBPA_OFFSET);
        self.write_u32(p, GBPA_OFFSET, value | update | GBPA::ABORT.val(1).value);
        self.await_u32(p, GBPA_OFFSET, update, 0)
    }
}
