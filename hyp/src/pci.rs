//! Which PCI configuration pages and BARs leave the host's stage 2 while a guest owns a function.
//!
//! A StreamID is made from a Requester ID, and a Requester ID from bus numbers that the host programs into
//! bridges. So that the stream of a guest stays that of its function, the configuration page of every bridge
//! of the root bus is taken from the host first, from the root bus down, and each is read only after it is
//! held: then nothing above a bus that is being read can change. What the host wrote there before is a claim.
//! Bus numbers that do not form a tree inside the root bus's range, or with which a second function could
//! have the same Requester ID, are refused. A bridge may also be programmed through its BARs: those of bridges on
//! root buses are held too, any other must be out of the host's reach.
//!
//! Root buses can share one configuration space, where a bridge of another root bus could claim the
//! function's bus and answer for it, or even a root bus, and hide the bridges that are on it. So the bridges
//! on all root buses are found before the host runs ([`RootBridges`]) and are all held before anything is
//! read, and what is behind those of the other root buses is held and checked before the function's.
//!
//! Section numbers are those of the PCI Express Base Specification, revision 5.0.

mod bars;
mod config;
mod root;

pub use root::RootBridges;

use crate::devicetree::{Machine, PcieNode};
use crate::list::List;
use crate::platform::Platform;
use abi::Status;
use bars::BridgeBars;
use config::{Config, Devices, Header};
use core::fmt;
use smmuv3::address::PhysRange;

/// The most bridges that all root buses may have. To hold one for the first time costs some 2,000
/// instructions.
const MAX_BRIDGES: usize = 48;
/// The most configuration registers that one call reads, at some 50 instructions each, so that a hypercall
/// stays bounded whatever a device answers. Enough for 48 links that are asked for 256 functions each.
const MAX_READS: u32 = 16 << 10;

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
    /// No PCI function has this StreamID, or it is a bridge, or a virtual function, or its root bus is
    /// unprotected.
    NotFound,
    /// More than one Requester ID has this StreamID, or the map has a mask, so that others may have it, or
    /// another root bus maps a Requester ID to it, be it one of a bus that is not its own.
    Ambiguous,
    /// The bridge with this Requester ID has bus numbers that are reversed, loop, overlap another's, or leave
    /// the root bus's range.
    BusNumbers(u16),
    /// Another function answers in the place of the root bus's bridge with this Requester ID.
    Hidden(u16),
    /// The bridge with this Requester ID has no bus numbers, and what is behind it could send with the
    /// function's Requester ID.
    Unnumbered(u16),
    /// The bridge with this Requester ID, which is above the function, is not a PCI Express port: it sends
    /// with its own Requester ID for all that is behind it.
    Conventional(u16),
    /// The bridge with this Requester ID, which is on no root bus, has a BAR that the host can reach. It may show the configuration
    /// registers of ports, and how large it is cannot be found while requests pass through the bridge. The host can give it the address 0.
    Memory(u16),
    /// The port above the function with this Requester ID forwards ARI, and the function is of no ARI device: it answers at every Device Number.
    Everywhere(u16),
    /// The function has memory that no BAR shows (Enhanced Allocation).
    EnhancedAllocation,
    /// There are more bridges or functions than one call looks at.
    TooMany,
    /// Configuration registers were read for [`TIMEOUT_NS`](crate::smmu::TIMEOUT_NS), and there are more.
    TimedOut,
}

impl PciError {
    /// What a hypercall answers.
    pub const fn status(self) -> Status {
        match self {
            Self::NotFound | Self::Ambiguous | Self::Conventional(_) | Self::EnhancedAllocation => {
                Status::UnknownStream
            }
            Self::BusNumbers(_)
            | Self::Hidden(_)
            | Self::Unnumbered(_)
            | Self::Memory(_)
            | Self::Everywhere(_) => Status::Busy,
            Self::TooMany => Status::NoSpace,
            Self::TimedOut => Status::Hardware,
        }
    }
}

impl fmt::Display for PciError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("no PCI function that a guest can have has this StreamID"),
            Self::Ambiguous => f.write_str("more than one Requester ID has this StreamID"),
            Self::BusNumbers(rid) => write!(f, "the bridge {rid:#06x} has bus numbers that form no tree"),
            Self::Hidden(rid) => write!(f, "another function answers for the bridge {rid:#06x}"),
            Self::Unnumbered(rid) => write!(f, "the bridge {rid:#06x} has no bus numbers"),
            Self::Conventional(rid) => write!(f, "the bridge {rid:#06x} is not a PCI Express port"),
            Self::Memory(rid) => write!(f, "the bridge {rid:#06x} has a BAR that the host can reach"),
            Self::Everywhere(rid) => {
                write!(f, "the function {rid:#06x} is of no ARI device, and the port above it forwards ARI")
            }
            Self::EnhancedAllocation => f.write_str("the function has memory that no BAR shows"),
            Self::TooMany => f.write_str("there are more PCI bridges or functions than one call looks at"),
            Self::TimedOut => f.write_str("PCI configuration registers do not answer in time"),
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
        let buses = pcie.first_bus..=pcie.last_bus;
        for rid in rids_of(pcie, smmu.phandle, stream).filter(|rid| buses.contains(&bus_of(*rid))) {
            // With a mask, several Requester IDs share a StreamID.
            if pcie.iommu_map_mask != 0xffff || found.is_some() {
                return Err(PciError::Ambiguous);
            }
            found = Some(Function { node, rid });
        }
    }
    let found = found.ok_or(PciError::NotFound)?;
    // What sends with a Requester ID of a foreign bus still goes through its own root bus's map.
    let mut others = machine.pcie.iter().enumerate().filter(|(node, _)| *node != found.node);
    if others.any(|(_, pcie)| rids_of(pcie, smmu.phandle, stream).next().is_some()) {
        return Err(PciError::Ambiguous);
    }
    Ok(found)
}

/// The Requester IDs, of any bus, that have this StreamID on an SMMU through a root bus's map.
fn rids_of(pcie: &PcieNode, phandle: u32, stream: u32) -> impl Iterator<Item = u16> {
    let maps = pcie.iommu_map.iter().filter(move |map| map.phandle == phandle && phandle != 0);
    maps.filter_map(move |map| {
        let offset = stream.checked_sub(map.stream_base).filter(|offset| *offset < map.length)?;
        u16::try_from(map.rid_base.checked_add(offset)?).ok()
    })
}

const fn bus_of(rid: u16) -> u8 {
    (rid >> 8) as u8
}

/// Walks every bridge of the machine's protected root buses, those of the function's last, and the function,
/// and calls `hold` with each range that must leave the host's stage 2, a multiple of 4 KiB: the
/// configuration pages of the bridges on all root buses (`roots`) before any register is read, their BARs, other pages before
/// they are read for what the host could change, then the function's BARs. When `hold` returns, no CPU of the
/// host can reach the range any more. A range can overlap ones that are held already, for this or for another
/// function: `hold` counts.
///
/// The function's BARs are sized while its memory and I/O decoding is off; the BARs and the Command register
/// are as before on return. At most 16,384 configuration registers are read, within [`TIMEOUT_NS`](crate::smmu::TIMEOUT_NS),
/// and `hold` is called 392 times at most, 104 if each bridge has one BAR.
///
/// Calls must not run at the same time.
///
/// # Errors
/// [`HoldError`]; no register has changed, and the caller releases what this call held.
pub fn hold_function<P: Platform, E>(
    p: &P,
    machine: &Machine,
    roots: &RootBridges,
    function: Function,
    hold: &mut impl FnMut(PhysRange) -> Result<(), E>,
) -> Result<(), HoldError<E>> {
    let node = machine.pcie.get(function.node).ok_or(PciError::NotFound)?;
    let target = bus_of(function.rid);
    if !roots.has_node(function.node) {
        return Err(PciError::NotFound.into());
    }
    let mut config = Config::new(p, node, MAX_READS);
    roots.hold(machine, &mut config, hold)?;
    let mut walk = Walk { config, roots, target: None, bridges: roots.count(), buses: List::new() };
    for (index, other) in machine.pcie.iter().enumerate() {
        // Of an unprotected root bus the host can change nothing.
        if index != function.node && roots.has_node(index) {
            walk.bridges(index, other, hold)?;
        }
    }
    walk.target = Some(target);
    walk.bridges(function.node, node, hold)?;
    let bus = walk.buses.iter().find(|bus| bus.number == target).ok_or(PciError::NotFound)?;
    let forwards_ari = bus.devices == Devices::Functions;
    let config = &mut walk.config;
    let Some((Header::Endpoint, _)) = config.header(function.rid)? else {
        return Err(PciError::NotFound.into());
    };
    let page = config.page(function.rid).ok_or(PciError::NotFound)?;
    hold(page).map_err(HoldError::Hold)?;
    if forwards_ari && !config.is_ari(function.rid)? {
        // The host would reach its registers through pages of other numbers (7.3.1).
        return Err(PciError::Everywhere(function.rid).into());
    }
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
    devices: Devices,
}

struct Walk<'a, P> {
    config: Config<'a, P>,
    /// Those that are held already.
    roots: &'a RootBridges,
    /// The bus of the function, if it is on the root bus that is walked.
    target: Option<u8>,
    /// Bridges so far, of all root buses: first those on them.
    bridges: usize,
    /// Of the root bus that is walked, breadth first: the buses after the one that is being read are still to
    /// be read.
    buses: List<Bus, { MAX_BRIDGES + 1 }>,
}

impl<'a, P: Platform> Walk<'a, P> {
    /// Holds and checks the bridges of a root bus.
    fn bridges<E>(
        &mut self,
        index: usize,
        node: &'a PcieNode,
        hold: &mut impl FnMut(PhysRange) -> Result<(), E>,
    ) -> Result<(), HoldError<E>> {
        let (number, last) = (node.first_bus, node.last_bus);
        let root = Bus { number, last, parent: number, devices: Devices::Any };
        self.config.enter(node);
        self.buses.clear();
        self.buses.push(root).map_err(|_| PciError::TooMany)?;
        let mut next = 0;
        while let Some(bus) = self.buses.get(next).copied() {
            next += 1;
            let mut at = Some(u16::from(bus.number) << 8);
            while let Some(rid) = at {
                let found = self.config.header(rid)?;
                at = bus.devices.after(rid, found);
                let Some((header, _)) = found else { continue };
                if header == Header::Bridge && !self.roots.contains(index, rid) {
                    self.bridges += 1;
                    if self.bridges > MAX_BRIDGES {
                        return Err(PciError::TooMany.into());
                    }
                    let page = self.config.page(rid).ok_or(PciError::NotFound)?;
                    hold(page).map_err(HoldError::Hold)?;
                    // To size a BAR is to stop what passes through the bridge, or to have it answer for a moment where others do.
                    if !BridgeBars::most(&mut self.config, node, rid)?.is_empty() {
                        return Err(PciError::Memory(rid).into());
                    }
                }
                // Whatever number a function of another root bus has captured, it sends through another map.
                if self.target.is_some() {
                    self.config.capture_bus_number(rid)?;
                }
                if header == Header::Bridge {
                    self.bridge(bus, rid)?;
                }
            }
        }
        Ok(())
    }

    /// Checks the bus numbers of a bridge that is held, and adds the bus behind it.
    fn bridge(&mut self, on: Bus, rid: u16) -> Result<(), PciError> {
        let Some((secondary, subordinate)) = self.config.bus_numbers(rid, on.number, on.last)? else {
            // It forwards no configuration request, so what is behind it cannot be looked at. It may still
            // send: with the bus number that it had when it was last reached, or with 0.
            // Under another root bus it sends through another map.
            let Some(target) = self.target else { return Ok(()) };
            let forwards = self.config.read(rid, config::COMMAND)? & config::COMMAND_BUS_MASTER != 0;
            return if forwards || target == 0 { Err(PciError::Unnumbered(rid)) } else { Ok(()) };
        };
        let overlaps = self.buses.iter().any(|other| {
            let is_sibling = other.parent == on.number && other.number != on.number;
            is_sibling && other.number <= subordinate && secondary <= other.last
        });
        if overlaps {
            return Err(PciError::BusNumbers(rid));
        }
        let is_above = self.target.is_some_and(|target| (secondary..=subordinate).contains(&target));
        let devices = match self.config.behind_express_port(rid)? {
            Some(devices) => devices,
            None if is_above => return Err(PciError::Conventional(rid)),
            None => Devices::Any,
        };
        let bus = Bus { number: secondary, last: subordinate, parent: on.number, devices };
        self.buses.push(bus).map_err(|_| PciError::TooMany)
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod tests;
