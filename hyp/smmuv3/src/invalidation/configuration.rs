//! What makes an SMMU forget configuration, and a device all that it translated (IHI 0070, 3.21.3, 4.3 and 4.5).

use crate::command::{ATC_INV_EVERYTHING, Command};

/// Forgets the STE of a stream and, where `leaf` is false, the level-1 descriptor above it.
pub const fn forget_ste(stream: u32, leaf: bool) -> Command {
    Command::cfgi_ste(stream, leaf)
}

/// Forgets the context descriptor of a stream's SubstreamID and, where `leaf` is false, the level-1 descriptor above it.
pub const fn forget_cd(stream: u32, substream: u32, leaf: bool) -> Command {
    Command::cfgi_cd(stream, substream, leaf)
}

/// Forgets all that an SMMU can have cached before it was taken over, each to be followed by a CMD_SYNC. `has_el2`: it has the
/// stream world EL2 (IDR0.HYP).
pub fn bring_up(has_el2: bool) -> impl Iterator<Item = Command> {
    [Some(Command::cfgi_all()), has_el2.then(Command::tlbi_el2_all), Some(Command::tlbi_nsnh_all())]
        .into_iter()
        .flatten()
}

/// Forgets all translations that the device behind a stream has. The invalidation request has no PASID, so it is about those of
/// requests with a SubstreamID as well (PCIe, ATS).
pub const fn forget_atc(stream: u32) -> Command {
    Command::atc_inv(stream, 0, ATC_INV_EVERYTHING)
}
