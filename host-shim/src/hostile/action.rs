//! What a step makes a host do.

use super::calls;
use super::driver::{self, DriverAction};
use super::interrupts::{self, InterruptAction};
use super::knowledge::Knowledge;
use super::step::{Choices, Step};
use crate::host::Transfer;

/// Something that a host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A hypercall.
    Call {
        /// `W0`.
        id: u32,
        /// `X1` to `X4`.
        arguments: [u64; 4],
    },
    /// VSMMU_INVALIDATE of commands that are written first.
    Invalidate {
        /// Handle of the vSMMU.
        vsmmu: u64,
        /// The commands.
        commands: [[u64; 2]; 2],
    },
    /// A load of 1, 2, 4 or 8 bytes.
    Load {
        /// A multiple of the bytes.
        address: u64,
        /// How many.
        bytes: u8,
    },
    /// A store of 1, 2, 4 or 8 bytes.
    Store {
        /// A multiple of the bytes.
        address: u64,
        /// How many.
        bytes: u8,
        /// In the low bytes.
        value: u64,
    },
    /// Stage 1 for devices is written anew, with this ASID.
    Stage1(u64),
    /// What the driver of an SMMU does.
    Driver(DriverAction),
    /// What is done to the interrupt controller.
    Interrupts(InterruptAction),
    /// A device behind an SMMU writes, at once.
    Write {
        /// The SMMU.
        smmu: usize,
        /// SubstreamID, 0 for none.
        substream: u32,
        /// A multiple of 4.
        address: u64,
    },
    /// A device behind an SMMU is told to do a transfer later.
    Start {
        /// The SMMU.
        smmu: usize,
        /// What it does.
        transfer: Transfer,
    },
}

/// A step is a hypercall if its first byte is below.
const CALLS: u8 = 152;

impl Action {
    /// Whether a step is a hypercall, whoever takes it.
    pub const fn is_call(step: &Step) -> bool {
        let Step([first, ..]) = step;
        *first < CALLS
    }

    /// What this step is, for one who knows this.
    pub fn of(step: &Step, known: &Knowledge) -> Self {
        let mut choices = step.choices();
        match choices.byte() {
            0..136 => calls::any(&mut choices, known),
            136..CALLS => calls::invalidate(&mut choices, known),
            CALLS..168 => store(&mut choices, known),
            168..176 => load(&mut choices, known),
            176..184 => Self::Stage1(1 + choices.below(2)),
            184..228 => Self::Driver(driver::any(&mut choices, known)),
            228..246 => write(&mut choices, known),
            246..250 => start(&mut choices, known),
            _ => Self::Interrupts(interrupts::any(&mut choices, known)),
        }
    }

    /// The function of a call that the interface has.
    pub fn function(&self) -> Option<abi::Function> {
        match self {
            Self::Call { id, .. } => abi::Function::from_id(*id),
            Self::Invalidate { .. } => Some(abi::Function::VsmmuInvalidate),
            _ => None,
        }
    }

    /// The SMMU whose devices it uses.
    pub const fn smmu_of_device(&self) -> Option<usize> {
        match self {
            Self::Write { smmu, .. } | Self::Start { smmu, .. } => Some(*smmu),
            _ => None,
        }
    }

    /// The SMMU and the StreamID of a stream that it asks a guest to have.
    pub fn stream_for_guest(&self) -> Option<(u64, u64)> {
        match (self.function(), self) {
            (Some(abi::Function::StreamAttach), Self::Call { arguments: [smmu, stream, domain, _], .. }) => {
                let owner = abi::DomainHandle::from_register(*domain)?.owner();
                matches!(owner, abi::Principal::Guest(_)).then_some((*smmu, *stream))
            }
            _ => None,
        }
    }

    /// Whether memory may have another owner after it.
    pub fn changes_owners(&self) -> bool {
        use abi::Function::{
            GuestTeardown, MemDonate, MemReclaim, MemShare, MemUnshare, PoolGiveBack, PoolTopUp,
        };
        matches!(
            self.function(),
            Some(MemShare | MemUnshare | MemDonate | MemReclaim | PoolTopUp | PoolGiveBack | GuestTeardown)
        )
    }
}

const fn aligned(address: u64, bytes: u8) -> u64 {
    address & !(bytes as u64 - 1)
}

/// Memory of the host's that drivers and owners keep things in, or what it may not touch.
fn store(choices: &mut Choices<'_>, known: &Knowledge) -> Action {
    let places = known.places();
    let (address, value) = match choices.below(8) {
        // An entry of the last table of stage 1.
        0..3 => {
            let page = if choices.seldom(64) { 0 } else { known.page(choices) };
            (places.entry(choices.below(5)), if page == 0 { 0 } else { super::places::Places::leaf(page) })
        }
        // A word of a context descriptor.
        3 => (places.contexts() + 8 * choices.below(32), choices.word()),
        // A word of what is near.
        4..7 => {
            let unit = places.unit(choices.below(1 << super::places::NEAR_LOG2));
            let word = 8 * (choices.half() % (places.unit / 8));
            (unit + word, if choices.seldom(128) { choices.word() } else { known.page(choices) })
        }
        _ => {
            return known.outside(choices).map_or(Action::Stage1(1), |(address, bytes)| Action::Store {
                address: aligned(address, bytes),
                bytes,
                value: choices.word(),
            });
        }
    };
    Action::Store { address: aligned(address, 8), bytes: 8, value }
}

fn load(choices: &mut Choices<'_>, known: &Knowledge) -> Action {
    let (address, bytes) = match choices.below(3) {
        0 => (known.page(choices), 8),
        _ => known.outside(choices).unwrap_or((known.page(choices), 4)),
    };
    Action::Load { address: aligned(address, bytes), bytes }
}

/// An address for a device.
fn device_address(choices: &mut Choices<'_>, known: &Knowledge) -> u64 {
    let offset = 8 * choices.below(8);
    match choices.below(8) {
        0..3 => known.places().virtual_address(choices.below(5)) + offset,
        3..6 => known.page(choices).saturating_add(offset),
        6 => known.ipa(choices).saturating_add(offset),
        _ => known.forbidden(choices).map_or(offset, |place| place.address),
    }
}

fn write(choices: &mut Choices<'_>, known: &Knowledge) -> Action {
    Action::Write {
        smmu: known.smmu(choices),
        substream: if choices.seldom(32) { choices.below(5) as u32 } else { 0 },
        address: aligned(device_address(choices, known), 4),
    }
}

fn start(choices: &mut Choices<'_>, known: &Knowledge) -> Action {
    let (smmu, to_memory) = (known.smmu(choices), choices.below(2) == 1);
    let address = aligned(device_address(choices, known), 8);
    let transfer = if to_memory { Transfer::ToMemory(address) } else { Transfer::FromMemory(address) };
    Action::Start { smmu, transfer }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::{DomainHandle, Function, GuestHandle};

    #[test]
    fn a_stream_for_a_guest_is_told_from_one_for_the_host() {
        let attach =
            |domain: u64| Action::Call { id: Function::StreamAttach.id(), arguments: [2, 0x108, domain, 0] };
        assert_eq!(attach(DomainHandle::Host.to_register()).stream_for_guest(), None);
        assert_eq!(attach(u64::from(GuestHandle::MAX)).stream_for_guest(), Some((2, 0x108)));
        let created = |owner: u64| owner << 32 | 1 << 16 | u64::from(DomainHandle::FIRST_CREATED);
        for (owner, expected) in [(0, None), (1, Some((2, 0x108)))] {
            let domain = DomainHandle::from_register(created(owner)).expect("a handle that calls answer");
            assert_eq!(attach(domain.to_register()).stream_for_guest(), expected);
        }
        let detach = Action::Call { id: Function::StreamDetach.id(), arguments: [2, 0x108, 1, 0] };
        assert_eq!(detach.stream_for_guest(), None);
    }
}
