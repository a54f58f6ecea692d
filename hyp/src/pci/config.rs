//! Configuration space through ECAM (7.2.2), with a bound on how much of it is read, and for how long.

use super::PciError;
use crate::devicetree::PcieNode;
use crate::platform::Platform;
use crate::smmu::TIMEOUT_NS;
use smmuv3::address::{PhysAddr, PhysRange};

/// Vendor and Device ID.
const ID: u16 = 0x00;
/// Command in the low half, Status in the high one, whose bits are cleared by writing 1.
pub const COMMAND: u16 = 0x04;
/// Header Type in bits 23:16.
const HEADER_TYPE: u16 = 0x0c;
/// Primary, Secondary and Subordinate Bus Number of a bridge.
const BUS_NUMBERS: u16 = 0x18;
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
/// From the PCI Express capability to Device Control 2 (7.5.3.16), which its version 2 has first.
const DEVICE_CONTROL_2: u16 = 0x28;
/// Device Control 2: ARI Forwarding Enable.
const ARI_FORWARDING: u32 = 1 << 5;
/// Capability ID of Enhanced Allocation (7.8.5).
pub const ENHANCED_ALLOCATION: u8 = 0x14;
/// Extended Capability ID of ARI (7.8.7), which each function of an ARI device has.
const ARI: u16 = 0x000e;
/// The most capabilities that fit into the 192 bytes they may be in.
const MAX_CAPABILITIES: usize = 48;
/// Where extended capabilities begin (7.6.3), and the most that fit up to the end of the 4 KiB.
const EXTENDED_CAPABILITIES: u16 = 0x100;
const MAX_EXTENDED_CAPABILITIES: usize = 480;

/// What a function's configuration space is laid out as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Type 0, or a type that is not defined.
    Endpoint,
    /// Type 1, or 2, which has bus numbers in the same place.
    Bridge,
}

/// Where on a bus there can be functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// In all 32 places.
    Any,
    /// In all 32 places, which are the functions of one device: the bus is a link, and the port above it forwards ARI (6.13).
    Functions,
    /// In the first: the bus is a link, and the port above it delivers requests for Device 0 alone (7.3.1).
    First,
}

impl Devices {
    /// The next Requester ID of the same bus at which a function can be, with what [`Config::header`] found at
    /// this one.
    pub const fn after(self, rid: u16, found: Option<(Header, bool)>) -> Option<u16> {
        // Beside a function 0 that says it is alone there is none (7.5.1.1.9), but with ARI, where a capability names others. One that is
        // silent says nothing: it may be in a reset of its own, which the others take no part in (6.6.2).
        let alone = rid & 7 == 0 && matches!(found, Some((_, false))) && !matches!(self, Self::Functions);
        let devfn = (rid & 0xff) + if alone { 8 } else { 1 };
        let last = match self {
            Self::Any | Self::Functions => 0xff,
            Self::First => 0x07,
        };
        if devfn <= last { Some(rid & 0xff00 | devfn) } else { None }
    }
}

/// The configuration space of one root bus.
pub struct Config<'a, P> {
    platform: &'a P,
    node: &'a PcieNode,
    reads_left: u32,
    start_ns: u64,
}

impl<'a, P: Platform> Config<'a, P> {
    /// The space of `node`, of which at most `reads` registers are read or written, from now on for [`TIMEOUT_NS`] at most: a device
    /// may let each of them wait.
    pub fn new(platform: &'a P, node: &'a PcieNode, reads: u32) -> Self {
        Self { platform, node, reads_left: reads, start_ns: platform.now_ns() }
    }

    /// Goes on with the space of another root bus, with what is left of the reads.
    pub const fn enter(&mut self, node: &'a PcieNode) {
        self.node = node;
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

    /// Vendor and Device ID.
    pub fn id(&mut self, rid: u16) -> Result<u32, PciError> {
        self.read(rid, ID)
    }

    /// What is at a Requester ID, and whether functions 1 to 7 may be there too if it is function 0; `None`
    /// when there is nothing, or a virtual function, whose Vendor ID reads as ones.
    pub fn header(&mut self, rid: u16) -> Result<Option<(Header, bool)>, PciError> {
        if self.id(rid)? & 0xffff == 0xffff {
            return Ok(None);
        }
        let header_type = self.read(rid, HEADER_TYPE)? >> 16;
        let header = match header_type & 0x7f {
            1 | 2 => Header::Bridge,
            _ => Header::Endpoint,
        };
        Ok(Some((header, header_type & 0x80 != 0)))
    }

    /// Whether a bridge has BARs and a ROM where a type 1 header has them: a type 2 header has other registers there.
    pub fn has_bridge_bars(&mut self, rid: u16) -> Result<bool, PciError> {
        Ok(self.read(rid, HEADER_TYPE)? >> 16 & 0x7f == 1)
    }

    /// Makes the function send with the number of the bus it is on now: it captures that number from each
    /// configuration write (2.2.6.2), and the last one may be from before the bus was renumbered. Its ID
    /// registers are read-only, and get their own value all the same.
    pub fn capture_bus_number(&mut self, rid: u16) -> Result<(), PciError> {
        let id = self.id(rid)?;
        self.spend()?;
        self.write(rid, ID, id);
        Ok(())
    }

    /// Secondary and Subordinate Bus Number of a bridge on bus `on`, whose bridges may use numbers up to
    /// `last`; `None` when it has none: then it forwards no configuration request.
    ///
    /// # Errors
    /// [`PciError::BusNumbers`] when they are reversed, or not all in `on + 1..=last`. So are a Secondary of
    /// 0 with a Subordinate above: such a bridge claims all up to there.
    pub fn bus_numbers(&mut self, rid: u16, on: u8, last: u8) -> Result<Option<(u8, u8)>, PciError> {
        let [_, secondary, subordinate, _] = self.read(rid, BUS_NUMBERS)?.to_le_bytes();
        if secondary == 0 && subordinate == 0 {
            return Ok(None);
        }
        if on < secondary && secondary <= subordinate && subordinate <= last {
            Ok(Some((secondary, subordinate)))
        } else {
            Err(PciError::BusNumbers(rid))
        }
    }

    /// Offset of a capability of this function.
    pub fn capability(&mut self, rid: u16, wanted: u8) -> Result<Option<u8>, PciError> {
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
                return Ok(Some(at));
            }
            at = next;
        }
        Ok(None)
    }

    /// Whether this function is one of an ARI device.
    pub fn is_ari(&mut self, rid: u16) -> Result<bool, PciError> {
        let mut at = EXTENDED_CAPABILITIES;
        for _ in 0..MAX_EXTENDED_CAPABILITIES {
            let capability = self.read(rid, at)?;
            if capability as u16 == ARI {
                return Ok(true);
            }
            at = (capability >> 20) as u16;
            if at < EXTENDED_CAPABILITIES {
                break;
            }
        }
        Ok(false)
    }

    /// What can be on the bus behind a bridge, if the bridge is a root port or a port of a switch: Device/Port
    /// Type 4 to 6 of the PCI Express Capabilities register (7.5.3.2).
    pub fn behind_express_port(&mut self, rid: u16) -> Result<Option<Devices>, PciError> {
        let Some(at) = self.capability(rid, EXPRESS)?.map(u16::from) else { return Ok(None) };
        let capabilities = self.read(rid, at)? >> 16;
        Ok(match capabilities >> 4 & 0xf {
            // The upstream port of a switch has its internal bus behind it.
            5 => Some(Devices::Any),
            4 | 6 => {
                // With ARI the Device Number is a part of a function's.
                let has_control_2 = capabilities & 0xf >= 2;
                let ari = has_control_2 && self.read(rid, at + DEVICE_CONTROL_2)? & ARI_FORWARDING != 0;
                Some(if ari { Devices::Functions } else { Devices::First })
            }
            _ => None,
        })
    }

    fn spend(&mut self) -> Result<(), PciError> {
        self.reads_left = self.reads_left.checked_sub(1).ok_or(PciError::TooMany)?;
        if self.platform.now_ns().saturating_sub(self.start_ns) > TIMEOUT_NS {
            return Err(PciError::TimedOut);
        }
        Ok(())
    }

    fn register(&self, rid: u16, offset: u16) -> Option<PhysAddr> {
        Some(self.page(rid)?.start().offset(u64::from(offset & 0xffc)))
    }
}
