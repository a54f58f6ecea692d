extern crate std;

use std::vec::Vec;

use smmuv3::command::{Command, CommandError, opcode};
use smmuv3::registers::{CMDQ_PROD_OFFSET, CR0_OFFSET};
use smmuv3::vsmmu::{self, Illegal};

use super::super::{Fault, Interrupt};
use super::driver::{
    CMDQ_ERR, CMDQEN, COMMANDS, Driver, EVENTQEN, MSI_CMDQ_ABT_ERR, SFM_ERR, STREAM, sync_to, tlbi_va,
};
use super::rig::{BYPASS, Call, LIMITS, RAM, VMID};

/// Puts a command between two invalidations and submits; the index of the command.
fn between(driver: &mut Driver, command: Command) -> u32 {
    driver.rig.host.take_calls();
    driver.put(&[tlbi_va(0, 1), command, tlbi_va(0, 2)]);
    let index = driver.producer.wrapping_sub(2) & 0x1ff;
    driver.submit();
    index
}

/// The queue stops at exactly the command that is not on the list; what is before it is done, what is after it is not (4.1.2, 7.1).
#[test]
fn every_opcode_is_legal_or_stops_the_queue_where_it_is() {
    // Each field of each command, in range and out of range: a bit alone, and all of them.
    let bits = (0..64).map(|bit| 1u64 << bit);
    let words: Vec<[u64; 2]> = bits
        .clone()
        .filter(|bit| bit & 0xff == 0)
        .map(|bit| [bit, 0])
        .chain(bits.map(|bit| [0, bit]))
        .chain([[0, 0], [!0xff, !0], [u64::from(STREAM) << 32, 0]])
        .collect();
    for number in 0..=0xffu8 {
        for [word0, word1] in &words {
            let command = Command([word0 | u64::from(number), *word1]);
            let mut driver = Driver::started();
            driver.write_entry(STREAM, BYPASS);
            let index = between(&mut driver, command);
            let lookup = |stream| (stream == STREAM).then_some(stream);
            let legal = match vsmmu::read(command, &LIMITS, VMID, lookup) {
                // A StreamID that the host does not have: no effect (4.1.7).
                Ok(_) | Err(Illegal::Stream(_)) => true,
                Err(_) => false,
            };
            let done = driver.rig.host.take_invalidations().concat();
            assert!(done.contains(&tlbi_va(VMID, 1)), "{command:?}: what is before it");
            assert_eq!(done.contains(&tlbi_va(VMID, 2)), legal, "{command:?}: what is after it");
            assert_eq!(driver.rig.errors() & CMDQ_ERR != 0, !legal, "{command:?}");
            if legal {
                assert_eq!(driver.rig.command_consumer().0, driver.producer, "{command:?}");
            } else {
                let illegal = u32::from(CommandError::ILLEGAL.0);
                assert_eq!(driver.rig.command_consumer(), (index, illegal), "{command:?}");
            }
            let only_the_vmid = |command: &Command| {
                let has_vmid = (opcode::TLBI_NH_ALL..=opcode::TLBI_NSNH_ALL).contains(&command.opcode());
                !has_vmid || command.0[0] >> 32 & 0xffff == VMID.into()
            };
            assert!(done.iter().all(only_the_vmid), "{command:?}: {done:?}");
        }
    }
}

/// 4.7.3: CS = SIG_IRQ with an address writes the data there, without one raises the wired interrupt; SIG_NONE and SIG_SEV do neither.
#[test]
fn a_sync_is_signalled_as_it_asks() {
    let mut driver = Driver::started();
    let place = RAM.start + 0x5_0004;
    driver.put(&[sync_to(place, 0xfeed)]);
    driver.submit();
    assert_eq!(driver.rig.host.take_calls(), [Call::WriteWord(place, 0xfeed)]);
    driver.put(&[Command([0x1046, 0])]);
    driver.submit();
    assert_eq!(driver.rig.host.take_interrupts(), [Interrupt::CommandSync]);
    driver.put(&[Command([0x46, 0]), Command([0x2046, 0])]);
    driver.submit();
    assert_eq!(driver.rig.host.take_calls(), []);
    assert_eq!(driver.rig.errors(), 0);
}

/// 3.18.4: an MSI of CMD_SYNC that aborts is GERROR.MSI_CMDQ_ABT_ERR, and the command is complete.
#[test]
fn the_word_of_a_sync_goes_to_memory_of_the_hosts_alone() {
    for place in [RAM.start - 0x1000, RAM.end, 4, 0x000f_ffff_ffff_fffc, RAM.start + 0x6_0000] {
        let mut driver = Driver::started();
        driver.rig.host.take_page(RAM.start + 0x6_0000);
        driver.put(&[sync_to(place, 1), tlbi_va(0, 1)]);
        driver.submit();
        assert_eq!(driver.rig.errors(), MSI_CMDQ_ABT_ERR);
        assert_eq!(driver.rig.command_consumer(), (driver.producer, 0), "the queue goes on");
        driver.rig.acknowledge();
        assert_eq!(driver.rig.errors(), 0);
    }
}

/// 7.1: a command that cannot be read is CERROR_ABT; acknowledged, it is read again.
#[test]
fn a_queue_in_a_page_that_was_given_away_stops_until_it_is_back() {
    let mut driver = Driver::started();
    driver.rig.host.take_page(COMMANDS);
    driver.put(&[tlbi_va(0, 1)]);
    driver.submit();
    assert_eq!(driver.rig.errors(), CMDQ_ERR);
    assert_eq!(driver.rig.command_consumer().1, u32::from(CommandError::ABORT.0));
    driver.rig.acknowledge();
    assert_eq!(driver.rig.errors(), CMDQ_ERR, "it is away still");
    driver.rig.host.give_back(COMMANDS);
    driver.rig.host.take_calls();
    driver.rig.acknowledge();
    assert_eq!(driver.rig.errors(), 0);
    assert_eq!(driver.rig.host.take_invalidations(), [[tlbi_va(VMID, 1)]]);
    assert_eq!(driver.rig.command_consumer().0, driver.producer);
}

/// What the SMMU did not complete is not told as complete, and is done again when the error is acknowledged.
#[test]
fn an_invalidation_that_fails_is_an_error_and_no_completion() {
    let mut driver = Driver::started();
    driver.rig.host.invalidate_results.borrow_mut().push_back(Err(Fault::Incomplete));
    let slot = driver.slot(driver.producer + 1);
    driver.put(&[tlbi_va(0, 1), sync_to(slot, 0)]);
    driver.submit();
    assert_eq!(driver.rig.errors(), CMDQ_ERR);
    assert!(!driver.rig.host.take_calls().iter().any(|call| matches!(call, Call::WriteWord(..))));
    driver.rig.acknowledge();
    assert_eq!(
        driver.rig.host.take_calls(),
        [Call::Invalidate([tlbi_va(VMID, 1)].into()), Call::WriteWord(slot, 0)]
    );

    driver.rig.host.invalidate_results.borrow_mut().push_back(Err(Fault::Dead));
    driver.put(&[tlbi_va(0, 1)]);
    driver.submit();
    assert_ne!(driver.rig.errors() & SFM_ERR, 0, "service failure mode");
}

/// 3.5.1: while the indexes say more commands than the queue has entries, nothing is consumed.
#[test]
fn a_producer_that_is_too_far_ahead_is_not_followed() {
    let mut driver = Driver::started();
    driver.rig.host.take_calls();
    let ahead = driver.producer.wrapping_add(0x101) & 0x1ff;
    driver.rig.write(CMDQ_PROD_OFFSET, ahead);
    assert_eq!(driver.rig.host.take_calls(), []);
    assert_eq!(driver.rig.errors(), 0);
}

/// 6.3.9.3: while CMDQEN is 0 commands wait.
#[test]
fn a_queue_that_is_off_keeps_its_commands() {
    let mut driver = Driver::started();
    driver.rig.write(CR0_OFFSET, EVENTQEN | 1);
    driver.rig.host.take_calls();
    driver.put(&[tlbi_va(0, 1)]);
    driver.submit();
    assert_eq!(driver.rig.host.take_calls(), []);
    driver.rig.write(CR0_OFFSET, EVENTQEN | CMDQEN | 1);
    assert_eq!(driver.rig.host.take_invalidations(), [[tlbi_va(VMID, 1)]]);
}
