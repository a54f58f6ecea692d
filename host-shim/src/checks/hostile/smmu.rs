//! The registers of an emulated SMMU (IHI 0070, 6.3), as a driver that means harm uses them.

use super::super::Stop;
use super::super::support::{cpu_store, good};
use crate::call::Calls;
use crate::host::{Abort, Host};
use crate::{fail, text};
use smmuv3::registers::{
    CMDQ_BASE_OFFSET, CMDQ_CONS_OFFSET, CMDQ_PROD_OFFSET, CR0_OFFSET, CR0ACK_OFFSET, GERROR_OFFSET,
    GERRORN_OFFSET, IDR1_OFFSET,
};

/// CR0.SMMUEN.
pub(super) const SMMUEN: u32 = 1 << 0;
/// CR0.EVENTQEN.
pub(super) const EVENTQEN: u32 = 1 << 2;
/// CR0.CMDQEN.
pub(super) const CMDQEN: u32 = 1 << 3;

/// The CMD_SYNC that writes a word when it is complete: CS = SIG_IRQ, MSH inner, MSIAttr write-back (4.7.3).
pub(super) const fn sync_to(address: u64, data: u32) -> [u64; 2] {
    [0x46 | 1 << 12 | 3 << 22 | 0xf << 24 | (data as u64) << 32, address]
}

/// An emulated SMMU.
pub(super) struct Registers<'h, H: Host> {
    pub(super) host: &'h H,
    base: u64,
}

impl<'h, H: Host> Registers<'h, H> {
    /// Those of an SMMU that the host has; off, with all errors acknowledged.
    pub(super) fn find(host: &'h H, smmu: usize) -> Result<Self, Stop> {
        let base = good("SMMU_DESCRIBE", host.describe_smmu(smmu))?.base;
        if host.cpu_read_u32(base + IDR1_OFFSET).is_err() {
            return Err(Stop::NotApplicable(text!("the host has no SMMU of its own at {base:#x}")));
        }
        let found = Self { host, base };
        found.set_cr0(0)?;
        found.acknowledge()?;
        Ok(found)
    }

    pub(super) fn read(&self, register: u64) -> Result<u32, Stop> {
        let aborted = |Abort| Stop::Failed(text!("a load of the SMMU's register {register:#x} aborted"));
        self.host.cpu_read_u32(self.base + register).map_err(aborted)
    }

    pub(super) fn write(&self, register: u64, value: u32) -> Result<(), Stop> {
        let aborted = |Abort| Stop::Failed(text!("a store to the SMMU's register {register:#x} aborted"));
        self.host.cpu_write_u32(self.base + register, value).map_err(aborted)
    }

    pub(super) fn write_u64(&self, register: u64, value: u64) -> Result<(), Stop> {
        let aborted = |Abort| Stop::Failed(text!("a store to the SMMU's register {register:#x} aborted"));
        self.host.cpu_write_u64(self.base + register, value).map_err(aborted)
    }

    /// An update of CR0, which is complete on return.
    pub(super) fn set_cr0(&self, value: u32) -> Result<(), Stop> {
        self.write(CR0_OFFSET, value)?;
        let seen = self.read(CR0ACK_OFFSET)?;
        if seen != value {
            fail!("CR0 {value:#x} is acknowledged as {seen:#x}");
        }
        Ok(())
    }

    /// CMDQ_CONS.RD: how far the queue is consumed.
    pub(super) fn consumed(&self) -> Result<u32, Stop> {
        Ok(self.read(CMDQ_CONS_OFFSET)? & 0xf_ffff)
    }

    /// The global errors that are active.
    pub(super) fn errors(&self) -> Result<u32, Stop> {
        Ok(self.read(GERROR_OFFSET)? ^ self.read(GERRORN_OFFSET)?)
    }

    pub(super) fn acknowledge(&self) -> Result<(), Stop> {
        self.write(GERRORN_OFFSET, self.read(GERROR_OFFSET)?)
    }

    /// Starts an empty command queue of `1 << log2` entries at `queue`, without translation.
    pub(super) fn start_queue(&self, queue: u64, log2: u32) -> Result<(), Stop> {
        self.set_cr0(0)?;
        self.write_u64(CMDQ_BASE_OFFSET, queue | u64::from(log2))?;
        self.write(CMDQ_PROD_OFFSET, 0)?;
        self.write(CMDQ_CONS_OFFSET, 0)?;
        self.set_cr0(CMDQEN)
    }

    /// Puts one command at the start of the queue, which is empty, and has it consumed.
    pub(super) fn run_first(&self, queue: u64, [low, high]: [u64; 2]) -> Result<(), Stop> {
        cpu_store(self.host, queue, low)?;
        cpu_store(self.host, queue + 8, high)?;
        self.write(CMDQ_PROD_OFFSET, 1)
    }
}
