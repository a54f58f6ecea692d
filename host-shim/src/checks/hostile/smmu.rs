//! The registers of an emulated SMMU (IHI 0070, 6.3), as a driver that means harm uses them.

use super::super::Stop;
use super::super::support::{cpu_store, good};
use crate::call::Calls;
use crate::host::{Abort, Host};
use crate::{fail, text};

pub(super) const IDR1: u64 = 0x4;
pub(super) const CR0: u64 = 0x20;
pub(super) const CR0ACK: u64 = 0x24;
pub(super) const IRQ_CTRL: u64 = 0x50;
pub(super) const GERROR: u64 = 0x60;
pub(super) const GERRORN: u64 = 0x64;
pub(super) const GERROR_IRQ_CFG0: u64 = 0x68;
pub(super) const STRTAB_BASE: u64 = 0x80;
pub(super) const STRTAB_BASE_CFG: u64 = 0x88;
pub(super) const CMDQ_BASE: u64 = 0x90;
pub(super) const CMDQ_PROD: u64 = 0x98;
pub(super) const CMDQ_CONS: u64 = 0x9c;
pub(super) const EVENTQ_BASE: u64 = 0xa0;
pub(super) const EVENTQ_IRQ_CFG0: u64 = 0xb0;
pub(super) const EVENTQ_PROD: u64 = 0x1_00a8;
pub(super) const EVENTQ_CONS: u64 = 0x1_00ac;

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
        if host.cpu_read_u32(base + IDR1).is_err() {
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
        self.write(CR0, value)?;
        let seen = self.read(CR0ACK)?;
        if seen != value {
            fail!("CR0 {value:#x} is acknowledged as {seen:#x}");
        }
        Ok(())
    }

    /// The global errors that are active.
    pub(super) fn errors(&self) -> Result<u32, Stop> {
        Ok(self.read(GERROR)? ^ self.read(GERRORN)?)
    }

    pub(super) fn acknowledge(&self) -> Result<(), Stop> {
        self.write(GERRORN, self.read(GERROR)?)
    }

    /// Starts an empty command queue of `1 << log2` entries at `queue`, without translation.
    pub(super) fn start_queue(&self, queue: u64, log2: u32) -> Result<(), Stop> {
        self.set_cr0(0)?;
        self.write_u64(CMDQ_BASE, queue | u64::from(log2))?;
        self.write(CMDQ_PROD, 0)?;
        self.write(CMDQ_CONS, 0)?;
        self.set_cr0(CMDQEN)
    }

    /// Puts one command at the start of the queue, which is empty, and has it consumed.
    pub(super) fn run_first(&self, queue: u64, [low, high]: [u64; 2]) -> Result<(), Stop> {
        cpu_store(self.host, queue, low)?;
        cpu_store(self.host, queue + 8, high)?;
        self.write(CMDQ_PROD, 1)
    }
}
