//! The bridges of the root buses, found before the host runs.
//!
//! A root bus has the number that its node says, so the configuration pages of these bridges have fixed
//! addresses. But a bridge that claims another root bus's number can answer there, and hide what is on it. If
//! each root bus were looked at when the host runs, bridges of two of them could hide each other in turn: so
//! their pages are known beforehand and are all held before any is read.

use super::bars::BridgeBars;
use super::config::{Config, Devices, Header};
use super::{HoldError, MAX_BRIDGES, PciError};
use crate::devicetree::{Machine, PcieNode};
use crate::list::List;
use crate::platform::Platform;
use smmuv3::address::PhysRange;

/// Two registers of each function that a root bus can have, and ten of each bridge.
const MAX_READS: u32 = 2 * 256 + 10 * MAX_BRIDGES as u32;

#[derive(Clone, Copy)]
struct RootBridge {
    /// Index into [`Machine::pcie`].
    node: usize,
    rid: u16,
    /// Vendor and Device ID.
    id: u32,
    bars: BridgeBars,
}

/// The bridges on the root buses of the machine that the host can reach.
///
/// The host reaches neither configuration space nor devices of an unprotected root bus
/// ([`Machine::unprotected`]), so these count as not there.
pub struct RootBridges {
    /// Bit N: [`Machine::pcie`] N is protected.
    nodes: u32,
    bridges: List<RootBridge, MAX_BRIDGES>,
    /// There were more than fit, or a root bus did not answer in time.
    too_many: bool,
}

impl Default for RootBridges {
    fn default() -> Self {
        Self::new()
    }
}

impl RootBridges {
    /// Those of a machine without root buses.
    pub const fn new() -> Self {
        Self { nodes: 0, bridges: List::new(), too_many: false }
    }

    /// Looks at every function of every root bus that the host can reach, some 1,000 configuration registers
    /// each at most, and sizes the BARs of bridges: later requests will pass through them, which they forward only while they decode
    /// memory. Every register is as before on return. To be called before the host runs.
    ///
    /// With more than 48 bridges every [`hold_function`](super::hold_function) answers [`PciError::TooMany`].
    pub fn find<P: Platform>(p: &P, machine: &Machine) -> Self {
        let mut found = Self::new();
        for (index, node) in machine.pcie.iter().enumerate().filter(|(_, node)| machine.is_protected(node)) {
            found.nodes |= 1 << index;
            found.too_many |= found.add(p, index, node).is_err();
        }
        found
    }

    fn add<P: Platform>(&mut self, p: &P, index: usize, node: &PcieNode) -> Result<(), PciError> {
        let mut config = Config::new(p, node, MAX_READS);
        let mut at = Some(u16::from(node.first_bus) << 8);
        while let Some(rid) = at {
            let found = config.header(rid)?;
            at = Devices::Any.after(rid, found);
            if let Some((Header::Bridge, _)) = found {
                let (id, bars) = (config.id(rid)?, BridgeBars::size(&mut config, rid)?);
                let bridge = RootBridge { node: index, rid, id, bars };
                self.bridges.push(bridge).map_err(|_| PciError::TooMany)?;
            }
        }
        Ok(())
    }

    /// Whether there are more bridges than are known, so that no function can be given to a guest.
    pub const fn are_too_many(&self) -> bool {
        self.too_many
    }

    /// How many there are.
    pub(super) const fn count(&self) -> usize {
        self.bridges.len()
    }

    /// Whether the root bus with this index is protected.
    pub(super) fn has_node(&self, node: usize) -> bool {
        u32::try_from(node).is_ok_and(|node| self.nodes.checked_shr(node).is_some_and(|bits| bits & 1 == 1))
    }

    /// Whether this is one of them.
    pub(super) fn contains(&self, node: usize, rid: u16) -> bool {
        self.bridges.iter().any(|bridge| bridge.node == node && bridge.rid == rid)
    }

    /// Holds the configuration page of every bridge, then checks that each is still the one that answers
    /// there and has no bus number outside its root bus's range, nor that of the root bus: then no root bus
    /// hides another. Then it holds what their BARs show: a port may show its configuration registers, and those of others, there too.
    /// `config` is that of any root bus afterwards.
    pub(super) fn hold<'a, P: Platform, E>(
        &self,
        machine: &'a Machine,
        config: &mut Config<'a, P>,
        hold: &mut impl FnMut(PhysRange) -> Result<(), E>,
    ) -> Result<(), HoldError<E>> {
        if self.too_many {
            return Err(PciError::TooMany.into());
        }
        for bridge in self.bridges.iter() {
            config.enter(machine.pcie.get(bridge.node).ok_or(PciError::NotFound)?);
            let page = config.page(bridge.rid).ok_or(PciError::NotFound)?;
            hold(page).map_err(HoldError::Hold)?;
        }
        for bridge in self.bridges.iter() {
            let node = machine.pcie.get(bridge.node).ok_or(PciError::NotFound)?;
            config.enter(node);
            if config.id(bridge.rid)? != bridge.id {
                return Err(PciError::Hidden(bridge.rid).into());
            }
            config.bus_numbers(bridge.rid, node.first_bus, node.last_bus)?;
        }
        for bridge in self.bridges.iter() {
            let node = machine.pcie.get(bridge.node).ok_or(PciError::NotFound)?;
            config.enter(node);
            for range in bridge.bars.ranges(config, node, bridge.rid)?.iter() {
                hold(*range).map_err(HoldError::Hold)?;
            }
        }
        Ok(())
    }
}
