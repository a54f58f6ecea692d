//! What another CPU writes while the hypervisor reads: queues, stream tables and commands that were right a moment ago.

use super::calls;
use super::interrupts;
use super::knowledge::Knowledge;
use super::places::Places;
use super::step::Step;
use crate::host::{Abort, Host};

/// Stores to words that an emulated SMMU or a call reads, chosen by a step: two different values one after the other in the same place, so
/// that a second read of it sees another value than the first.
///
/// # Errors
/// [`Abort`] when the page is not the host's; nothing is stored then.
pub fn disturb<H: Host + ?Sized>(host: &H, known: &Knowledge, step: &Step) -> Result<(), Abort> {
    let mut choices = step.choices();
    let smmu = known.smmu(&mut choices);
    let places: &Places = known.places();
    let (what, slot) = (choices.below(9), choices.half());
    let stream = |choices: &mut super::step::Choices<'_>| known.stream(choices, smmu);
    let (address, values) = match what {
        // A command, of a driver or of a vSMMU's owner.
        0..4 => {
            let page = if what < 3 { places.command_queue(smmu) } else { places.commands() };
            let [low, high] = calls::command(&mut choices, known, stream);
            ((page + slot % 0x1000) & !7, [low, high])
        }
        // Words 0 and 1 of an STE.
        4 | 5 => {
            let words = [0, 0].map(|_: u8| calls::entry_word(&mut choices, known, (what & 1) as u8));
            let stream = known.stream(&mut choices, smmu) & 0xff;
            (places.stream_entries(smmu) + 64 * stream + 8 * (what & 1), words)
        }
        // A level-1 descriptor.
        6 => (
            (places.stream_table(smmu) + slot % 0x800) & !7,
            [places.stream_entries(smmu) | 9, choices.word()],
        ),
        // A command of the ITS.
        7 => {
            let [first, second, ..] = interrupts::command(&mut choices, known);
            ((places.its_queue() + slot % 0x1000) & !7, [first, second])
        }
        // A context descriptor, which the SMMU reads by itself.
        _ => ((places.contexts() + slot % 0x100) & !7, [choices.word(), known.page(&mut choices)]),
    };
    values.into_iter().try_for_each(|value| host.cpu_store(address, 8, value))
}
