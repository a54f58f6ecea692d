//! Which PCI configuration pages and BARs leave the host's stage 2 while a guest owns a function.
//!
//! A StreamID is made from a Requester ID, and a Requester ID from bus numbers that the host programs into
//! bridges. So that the stream of a guest stays that of its function, the configuration page of every bridge
//! of the root bus is taken from the host first, from the root bus down, and each is read only after it is
//! held: then nothing above a bus that is being read can change. What the host wrote there before is a claim.
//! Bus numbers that do not form a tree inside the root bus's range, or with which a second function could
//! have the same Requester ID, are refused.
//!
//! Section numbers are those of the PCI Express Base Specification, revision 5.0.

mod bars;
mod config;

use crate::devicetree::{IommuMap, Machine, PcieNode};
use crate::list::List;
use crate::platform::Platform;
use abi::Status;
use config::{Config, Header};
use core::fmt;
use smmuv3::address::PhysRange;

/// The most bridges that one root bus may have.
const MAX_BRIDGES: usize = 32;
/// The most configuration registers that one walk reads, so that a hypercall stays bounded whatever a device
/// answers.
const MAX_READS: u32 = 4096;

/// A PCI function: a root bus of the machine, and a Requester ID on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Index into [`Machine::pcie`].
    pub node: usize,
    /// Requester ID: bus in bits 15:8, device in 7:3, function in 2:0.
    pub rid: u16,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.rid >> 8, self.rid >> 3 & 0x1f, self.rid & 7)
    }
}

/// Why a function cannot be given to a guest. One sentence when displayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PciError {
    /// No PCI function has this StreamID, or it is a bridge, or a virtual function.
    NotFound,
    /// More than one Requester ID has this StreamID, or the map has a mask, so that others may have it.
    Ambiguous,
    /// The bridge with this Requester ID has bus numbers that are reversed, loop, overlap another's, or leave
    /// the root bus's range.
    BusNumbers(u16),
    /// The bridge with this Requester ID has no bus numbers, and what is behind it could send with the
    /// function's Requester ID.
    Unnumbered(u16),
    /// The bridge with this Requester ID, which is above the function, is not a PCI Express port: it sends
    /// with its own Requester ID for all that is behind it.
    Conventional(u16),
    /// The function has memory that no BAR shows (Enhanced Allocation).
    EnhancedAllocation,
    /// There are more bridges or functions than one call looks at.
    TooMany,
}

impl PciError {
    /// What a hypercall answers.
    pub const fn status(self) -> Status {
        match self {
            Self::NotFound | Self::Ambiguous | Self::Conventional(_) | Self::EnhancedAllocation => {
                Status::UnknownStream
            }
            Self::BusNumbers(_) | Self::Unnumbered(_) => Status::Busy,
            Self::TooMany => Status::NoSpace,
        }
    }
}

impl fmt::Display for PciError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("no PCI function that a guest can have has this StreamID"),
            Self::Ambiguous => f.write_str("more than one Requester ID has this StreamID"),
            Self::BusNumbers(rid) => write!(f, "the bridge {rid:#06x} has bus numbers that form no tree"),
            Self::Unnumbered(rid) => write!(f, "the bridge {rid:#06x} has no bus numbers"),
            Self::Conventional(rid) => write!(f, "the bridge {rid:#06x} is not a PCI Express port"),
            Self::EnhancedAllocation => f.write_str("the function has memory that no BAR shows"),
            Self::TooMany => f.write_str("there are more PCI bridges or functions than one call looks at"),
        }
    }
}

impl core::error::Error for PciError {}

/// Why [`hold_function`] failed: what it held until then is the caller's to release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldError<E> {
    /// The function or its bridges are not fit for it.
    Pci(PciError),
    /// The caller's `hold` refused.
    Hold(E),
}

impl<E> From<PciError> for HoldError<E> {
    fn from(error: PciError) -> Self {
        Self::Pci(error)
    }
}

/// The function that has this StreamID on the SMMU with index `smmu`, through `iommu-map`. Touches no
/// hardware: it does not say that the function is there.
///
/// # Errors
/// [`PciError::NotFound`] and [`PciError::Ambiguous`].
pub fn find_function(machine: &Machine, smmu: usize, stream: u32) -> Result<Function, PciError> {
    let smmu = machine.smmus.get(smmu).ok_or(PciError::NotFound)?;
    let mut found = None;
    for (node, pcie) in machine.pcie.iter().enumerate() {
        for map in pcie.iommu_map.iter().filter(|map| map.phandle == smmu.phandle && smmu.phandle != 0) {
            let Some(rid) = rid_of(pcie, map, stream) else { continue };
            // With a mask, several Requester IDs share a StreamID.
            if pcie.iommu_map_mask != 0xffff || found.is_some() {
                return Err(PciError::Ambiguous);
            }
            found = Some(Function { node, rid });
        }
    }
    found.ok_or(PciError::NotFound)
}

fn rid_of(pcie: &PcieNode, map: &IommuMap, stream: u32) -> Option<u16> {
    let offset = stream.checked_sub(map.stream_base).filter(|offset| *offset < map.length)?;
    let rid = u16::try_from(map.rid_base.checked_add(offset)?).ok()?;
    (pcie.first_bus..=pcie.last_bus).contains(&bus_of(rid)).then_some(rid)
}

const fn bus_of(rid: u16) -> u8 {
    (rid >> 8) as u8
}

/// Walks every bridge of the function's root bus and the function, and calls `hold` with each range that must
/// leave the host's stage 2, a multiple of 4 KiB: configuration pages before they are read for what the host
/// could change, then the function's BARs. When `hold` returns, no CPU of the host can reach the range any
/// more. A range can overlap ones that are held already, for this or for another function: `hold` counts.
///
/// The function's BARs are sized while its memory and I/O decoding is off; the BARs and the Command register
/// are as before on return. At most about 4,100 configuration registers are read, and `hold` is called 40
/// times at most.
///
/// Calls for functions of one root bus must not run at the same time.
///
/// # Errors
/// [`HoldError`]; no register has changed, and the caller releases what this call held.
pub fn hold_function<P: Platform, E>(
    p: &P,
    machine: &Machine,
    function: Function,
    hold: &mut impl FnMut(PhysRange) -> Result<(), E>,
) -> Result<(), HoldError<E>> {
    let node = machine.pcie.get(function.node).ok_or(PciError::NotFound)?;
    let mut walk =
        Walk { config: Config::new(p, node, MAX_READS), target: bus_of(function.rid), buses: List::new() };
    walk.bridges(node, hold)?;
    if !walk.buses.iter().any(|bus| bus.number == walk.target) {
        return Err(PciError::NotFound.into());
    }
    let config = &mut walk.config;
    if config.header(function.rid)? != Some(Header::Endpoint) {
        return Err(PciError::NotFound.into());
    }
    let page = config.page(function.rid).ok_or(PciError::NotFound)?;
    hold(page).map_err(HoldError::Hold)?;
    if config.capability(function.rid, config::ENHANCED_ALLOCATION)?.is_some() {
        return Err(PciError::EnhancedAllocation.into());
    }
    let ranges = bars::read_ranges(config, node, function.rid)?;
    for range in ranges.iter() {
        hold(*range).map_err(HoldError::Hold)?;
    }
    Ok(())
}

/// A bus that is part of the tree.
#[derive(Clone, Copy)]
struct Bus {
    /// Its number.
    number: u8,
    /// The last bus number that bridges on it may use.
    last: u8,
    /// The bus that its bridge is on; its own number for the root bus.
    parent: u8,
}

struct Walk<'a, P> {
    config: Config<'a, P>,
    /// The bus of the function.
    target: u8,
    /// Breadth first: the buses after the one that is being read are still to be read.
    buses: List<Bus, { MAX_BRIDGES + 1 }>,
}

impl<P: Platform> Walk<'_, P> {
    fn bridges<E>(
        &mut self,
        node: &PcieNode,
        hold: &mut impl FnMut(PhysRange) -> Result<(), E>,
    ) -> Result<(), HoldError<E>> {
        let root = Bus { number: node.first_bus, last: node.last_bus, parent: node.first_bus };
        self.buses.push(root).map_err(|_| PciError::TooMany)?;
        let mut next = 0;
        let mut bridges = 0;
        while let Some(bus) = self.buses.get(next).copied() {
            next += 1;
            for device in 0..32_u16 {
                for function in 0..8_u16 {
                    let rid = u16::from(bus.number) << 8 | device << 3 | function;
                    match self.config.header(rid)? {
                        // Without function 0 there is no device (7.5.1.1.9 of the header type).
                        None if function == 0 => break,
                        None => {}
                        Some(Header::Endpoint) => self.config.capture_bus_number(rid)?,
                        Some(Header::Bridge) => {
                            bridges += 1;
                            if bridges > MAX_BRIDGES {
                                return Err(PciError::TooMany.into());
                            }
                            let page = self.config.page(rid).ok_or(PciError::NotFound)?;
                            hold(page).map_err(HoldError::Hold)?;
                            self.config.capture_bus_number(rid)?;
                            self.bridge(bus, rid)?;
                        }
                    }
                    if function == 0 && !self.config.is_multi_function(rid)? {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks the bus numbers of a bridge that is held, and adds the bus behind it.
    fn bridge(&mut self, on: Bus, rid: u16) -> Result<(), PciError> {
        let [_, secondary, subordinate, _] = self.config.read(rid, config::BUS_NUMBERS)?.to_le_bytes();
        if secondary == 0 {
            // It forwards no configuration request, so what is behind it cannot be looked at. It may still
            // send: with the bus number that it had when it was last reached, or with 0.
            let forwards = self.config.read(rid, config::COMMAND)? & config::COMMAND_BUS_MASTER != 0;
            return if forwards || self.target == 0 { Err(PciError::Unnumbered(rid)) } else { Ok(()) };
        }
        let inside = on.number < secondary && secondary <= subordinate && subordinate <= on.last;
        let overlaps = self.buses.iter().any(|other| {
            let is_sibling = other.parent == on.number && other.number != on.number;
            is_sibling && other.number <= subordinate && secondary <= other.last
        });
        if !inside || overlaps {
            return Err(PciError::BusNumbers(rid));
        }
        if (secondary..=subordinate).contains(&self.target) && !self.config.is_express_port(rid)? {
            return Err(PciError::Conventional(rid));
        }
        let bus = Bus { number: secondary, last: subordinate, parent: on.number };
        self.buses.push(bus).map_err(|_| PciError::TooMany)
    }
}

#[cfg(test)]
mod tests;
