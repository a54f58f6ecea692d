//! Questions to the hypervisor's own oracle.

#![allow(clippy::result_large_err, reason = "there is no allocator, and a finding ends the attack")]

use abi::oracle::{FUNCTION, Wrong, request};
use abi::{Call, Kind, Status};

use super::action::Action;
use crate::call::Caller;
use crate::host::Transfer;
use crate::text;
use crate::text::Text;

fn ask<C: Caller + ?Sized>(caller: &C, arguments: [u64; 3]) -> Result<u64, Text> {
    let [what, address, stream] = arguments;
    let [code, x1, x2, x3, _] = caller.call_raw(FUNCTION, [what, address, stream, 0]);
    if code == Status::Success.to_register() {
        return Ok(x1);
    }
    Err(match Wrong::from_register(code) {
        Some(wrong) => text!("oracle: {}: {x1:#x}, {x2:#x}, {x3:#x}", wrong.doc()),
        None => text!("oracle: it answers {}: the hypervisor was built without it", code.cast_signed()),
    })
}

/// Whether the hypervisor has an oracle.
pub fn is_there<C: Caller + ?Sized>(caller: &C) -> bool {
    let [code, ..] = caller.call_raw(FUNCTION, [request::STEP, 0, 0, 0]);
    code == Status::Success.to_register() || Wrong::from_register(code).is_some()
}

/// Checks everything.
///
/// # Errors
/// What is wrong, or that the hypervisor has no oracle.
pub fn everything<C: Caller + ?Sized>(caller: &C) -> Result<(), Text> {
    ask(caller, [request::ALL, 0, 0]).map(drop)
}

/// Checks what a step was about.
///
/// # Errors
/// As [`everything`].
pub fn step<C: Caller + ?Sized>(caller: &C, page: Option<u64>, smmu: usize, stream: u32) -> Result<(), Text> {
    let page = page.unwrap_or(request::NO_PAGE);
    ask(caller, [request::STEP, page, (smmu as u64) << 32 | u64::from(stream)]).map(drop)
}

/// A digest of everything.
pub fn digest<C: Caller + ?Sized>(caller: &C) -> Option<u64> {
    ask(caller, [request::DIGEST, 0, 0]).ok()
}

/// Whether a call with this answer says that it has changed nothing.
pub fn changes_nothing(code: u64) -> bool {
    !matches!(Status::from_register(code), None | Some(Status::Success | Status::Hardware))
}

/// An address in the page that an action is about if it is about any, the SMMU and the stream.
pub fn concerns(action: &Action, n: u64) -> (Option<u64>, usize, Option<u32>) {
    match *action {
        Action::Call { arguments, .. } => {
            let call = action.function().and_then(Call::of);
            let (mut page, mut smmu, mut stream) = (None, 0, None);
            for (argument, value) in call.iter().flat_map(|call| call.arguments).zip(arguments) {
                match argument.kind {
                    Kind::Page | Kind::Commands => page = Some(value),
                    // The last page of a range, every other time.
                    Kind::Size if n % 2 == 1 => {
                        page = page.map(|start: u64| start.wrapping_add(value.wrapping_sub(8)));
                    }
                    Kind::Smmu => smmu = value as usize,
                    Kind::Stream => stream = u32::try_from(value).ok(),
                    _ => {}
                }
            }
            (page, smmu, stream)
        }
        Action::Load { address, .. } | Action::Store { address, .. } => (Some(address), 0, None),
        Action::Driver(driver) => (None, driver.smmu, None),
        Action::Write { smmu, address, .. } => (Some(address), smmu, None),
        Action::Start { smmu, transfer: Transfer::FromMemory(address) | Transfer::ToMemory(address) } => {
            (Some(address), smmu, None)
        }
        Action::Invalidate { .. } | Action::Stage1(_) | Action::Interrupts(_) => (None, 0, None),
    }
}
