//! Configuration space through ECAM (7.2.2), with a bound on how much of it is read.

use super::PciError;
use crate::devicetree::PcieNode;
use crate::platform::Platform;
use smmuv3::address::{PhysAddr, PhysRange};

/// Vendor and Device ID.
const ID: u16 = 0x00;
/// Command in the low half, Status in the high one, whose bits are cleared by writing 1.
pub const COMMAND: u16 = 0x04;
/// Header Type in bits 23:16.
const HEADER_TYPE: u16 = 0x0c;
/// Primary, Secondary and Subordinate Bus Number of a bridge.
pub const BUS_NUMBERS: u16 = 0x18;
/// Capabilities Pointer.
const CAPABILITIES: u16 = 0x34;

/// Command: I/O Space Enable and Memory Space Enable.
pub const COMMAND_DECODE: u32 = 0b11;
/// Command: Bus Master Enable.
pub const COMMAND_BUS_MASTER: u32 = 1 << 2;
/// Status: Capabilities List.
const STATUS_CAPABILITIES: u32 = 1 << 20;
/// Capability ID of PCI Express (7.5.3).
const EXPRESS: u8 = 0x10;
/// Capability ID of Enhanced Allocation (7.8.5).
pub const ENHANCED_ALLOCATION: u8 = 0x14;
/// The most capabilities that fit into the 192 bytes they may be in.
const MAX_CAPABILITIES: usize = 48;

/// What a function's configuration space is laid out as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Type 0, or a type that is not defined.
    Endpoint,
    /// Type 1, or 2, which has bus numbers in the same place.
    Bridge,
}

/// The configuration space of one root bus.
pub struct Config<'a, P> {
    platform: &'a P,
    node: &'a PcieNode,
    reads_left: u32,
}

impl<'a, P: Platform> Config<'a, P> {
    /// The space of `node`, of which at most `reads` registers are read or written.
    pub fn new(platform: &'a P, node: &'a PcieNode, reads: u32) -> Self {
        Self { platform, node, reads_left: reads }
    }

    /// The 4 KiB page of a function; `None` if it is outside the node's buses.
    pub fn page(&self, rid: u16) -> Option<PhysRange> {
        let bus = (rid >> 8).checked_sub(u16::from(self.node.first_bus))?;
        let offset = u64::from(bus) << 20 | u64::from(rid & 0xff) << 12;
        let start = self.node.ecam.start().0.checked_add(offset)?;
        PhysRange::new(PhysAddr(start), 0x1000).filter(|page| self.node.ecam.encloses(*page))
    }

    /// Reads a register, aligned down to 4 bytes. A bus outside the node's reads as ones, like a function
    /// that is not there.
    pub fn read(&mut self, rid: u16, offset: u16) -> Result<u32, PciError> {
        self.spend()?;
        Ok(self.register(rid, offset).map_or(u32::MAX, |address| self.platform.read_register_u32(address)))
    }

    /// Writes a register, aligned down to 4 bytes.
    pub fn write(&mut self, rid: u16, offset: u16, value: u32) {
        if let Some(address) = self.register(rid, offset) {
            self.platform.write_register_u32(address, value);
        }
    }

    /// Writes the Command register and leaves Status as it is.
    pub fn write_command(&mut self, rid: u16, command: u32) {
        self.write(rid, COMMAND, command & 0xffff);
    }

    /// What is at a Requester ID; `None` when there is nothing, or a virtual function, whose Vendor ID reads
    /// as ones.
    pub fn header(&mut self, rid: u16) -> Result<Option<Header>, PciError> {
        if self.read(rid, ID)? & 0xffff == 0xffff {
            return Ok(None);
        }
        Ok(Some(match self.header_type(rid)? & 0x7f {
            1 | 2 => Header::Bridge,
            _ => Header::Endpoint,
        }))
    }

    /// Whether functions 1 to 7 may be there too; `rid` is function 0.
    pub fn is_multi_function(&mut self, rid: u16) -> Result<bool, PciError> {
        Ok(self.header_type(rid)? & 0x80 != 0)
    }

    fn header_type(&mut self, rid: u16) -> Result<u8, PciError> {
        Ok((self.read(rid, HEADER_TYPE)? >> 16) as u8)
    }

    /// Makes the function send with the number of the bus it is on now: it captures that number from each
    /// configuration write (2.2.6.2), and the last one may be from before the bus was renumbered. Its ID
    /// registers are read-only, and get their own value all the same.
    pub fn capture_bus_number(&mut self, rid: u16) -> Result<(), PciError> {
        let id = self.read(rid, ID)?;
        self.spend()?;
        self.write(rid, ID, id);
        Ok(())
    }

    /// Offset of a capability of this function.
    pub fn capability(&mut self, rid: u16, wanted: u8) -> Result<Option<u16>, PciError> {
        if self.read(rid, COMMAND)? & STATUS_CAPABILITIES == 0 {
            return Ok(None);
        }
        let mut at = self.read(rid, CAPABILITIES)? as u8;
        for _ in 0..MAX_CAPABILITIES {
            at &= !3;
            if at < 0x40 {
                break;
            }
            let [id, next, ..] = self.read(rid, u16::from(at))?.to_le_bytes();
            if id == wanted {
                return Ok(Some(u16::from(at)));
            }
            at = next;
        }
        Ok(None)
    }

    /// Whether a bridge is a root port or a port of a switch: Device/Port Type 4 to 6 of the PCI Express
    /// Capabilities register (7.5.3.2).
    pub fn is_express_port(&mut self, rid: u16) -> Result<bool, PciError> {
        let Some(at) = self.capability(rid, EXPRESS)? else { return Ok(false) };
        Ok(matches!(self.read(rid, at)? >> 20 & 0xf, 4..=6))
    }

    fn spend(&mut self) -> Result<(), PciError> {
        self.reads_left = self.reads_left.checked_sub(1).ok_or(PciError::TooMany)?;
        Ok(())
    }

    fn register(&self, rid: u16, offset: u16) -> Option<PhysAddr> {
        Some(self.page(rid)?.start().offset(u64::from(offset & 0xffc)))
    }
}
