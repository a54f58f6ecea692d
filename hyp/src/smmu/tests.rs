//! Invariants: an SMMU that is not up aborts everything; a command that failed fails the batch that owns it
//! and no other; no wait is without a bound; no event is lost uncounted.

extern crate std;

use std::boxed::Box;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

use smmuv3::command::{Command, opcode};
use smmuv3::invalidation::{Batch, Queues};
use smmuv3::pgtable::Granule;

use super::fake::{Action, Fake, FakePages, offset};
use super::*;
use smmuv3::event::EventRecord;

fn geometry() -> Geometry {
    Geometry::stage2(Granule::Size4K, 40, 44).unwrap()
}

/// Fakes that are up, with their set.
fn started_with(smmus: usize, prepare: impl Fn(&Fake)) -> (Fake, Box<Set>) {
    let fake = Fake::new(smmus);
    prepare(&fake);
    let mut set = Box::new(Set::new());
    abort_all(&fake, fake.bases().into_iter()).unwrap();
    set.probe(&fake, fake.smmus()).unwrap();
    set.start(&fake, &geometry(), &mut FakePages::new()).unwrap();
    fake.take_actions();
    (fake, set)
}

fn started(smmus: usize) -> (Fake, Box<Set>) {
    started_with(smmus, |_| {})
}

fn flush() -> impl Iterator<Item = Command> {
    [Command::tlbi_s12_vmall(7)].into_iter()
}

/// Posts commands and a CMD_SYNC.
fn post(
    queues: &CommandQueues<'_, Fake>,
    smmu: usize,
    commands: impl Iterator<Item = Command>,
) -> Result<Ticket, Fault> {
    let mut queue = queues.open(smmu)?;
    commands.for_each(|command| queue.push(command));
    queue.close()
}

fn many(count: usize) -> impl Iterator<Item = Command> {
    core::iter::repeat_n(Command::tlbi_s12_vmall(7), count)
}

#[test]
fn every_smmu_aborts_before_anything_else_even_if_one_is_stuck() {
    let fake = Fake::new(3);
    fake.with(0, |smmu| smmu.set(offset::CR0, 0xd));
    fake.with(1, |smmu| smmu.behaviour.gbpa_stuck = true);
    let error = abort_all(&fake, fake.bases().into_iter()).unwrap_err();
    assert_eq!(error.base, Some(fake.bases()[1]));
    for smmu in [0, 2] {
        let (gbpa, cr0) = fake.with(smmu, |smmu| (smmu.get(offset::GBPA), smmu.get(offset::CR0)));
        assert_eq!((gbpa, cr0), (1 << 20, 0));
    }
    assert!(
        error.to_string().starts_with("the SMMU at 0xc020000 cannot be owned: its register at offset 0x44")
    );
}

#[test]
fn a_start_leaves_every_stream_parked_and_the_smmu_enabled() {
    let (fake, set) = started(2);
    for (index, smmu) in set.iter().enumerate() {
        assert_eq!(fake.with(index, |smmu| smmu.get(offset::CR0)), 0b1101);
        assert_eq!(smmu.vmid(&fake, 0), Some(PARKED_VMID));
        assert_eq!(smmu.vmid(&fake, 0xffff), Some(PARKED_VMID));
        assert_eq!(smmu.vmid(&fake, 0x1_0000), None);
    }
    let bases: Vec<u64> =
        (0..2).map(|index| fake.with(index, |smmu| smmu.get(offset::STRTAB_BASE))).collect();
    assert_ne!(bases[0], bases[1]);
    let first = |base: u64| fake.0.lock().unwrap().memory[&(base & 0x000f_ffff_ffff_ffc0)];
    assert_eq!(first(bases[0]), first(bases[1]), "one parked level-2 table serves both");
    let counters = set.counters();
    assert_eq!((counters.commands, counters.syncs, counters.dead), (8, 4, 0));
}

#[test]
fn an_smmu_that_cannot_be_owned_is_named() {
    let fake = Fake::new(2);
    fake.with(1, |smmu| smmu.set(0, 0x0d44_101a));
    let error = Set::new().probe(&fake, fake.smmus()).unwrap_err();
    assert_eq!(error.to_string(), "the SMMU at 0xc020000 cannot be owned: it has no stage 2 (IDR0.S2P = 0)");
    let fake = Fake::new(1);
    fake.with(0, |smmu| smmu.behaviour.deaf = true);
    let mut set = Box::new(Set::new());
    set.probe(&fake, fake.smmus()).unwrap();
    let error = set.start(&fake, &geometry(), &mut FakePages::new()).unwrap_err();
    assert_eq!(error.cause, Cause::NoAcknowledge(NoAcknowledge { offset: offset::CR0ACK }));
    let error = Set::new().start(&fake, &geometry(), &mut FakePages { next: 0, left: 0 }).unwrap_err();
    assert_eq!(error.cause, Cause::NoMemory);
}

#[test]
fn ats_requests_are_checked_where_there_is_ats() {
    let (fake, _set) = started_with(1, |fake| fake.with(0, |smmu| smmu.set(0, 0x0d44_141b)));
    assert_eq!(fake.with(0, |smmu| smmu.get(offset::CR0)), 0b1_1101);
}

#[test]
fn the_queue_wraps_many_times_whatever_its_size() {
    for log2 in [2, 3, 8] {
        for reads_per_command in [0, 1, 3] {
            let (fake, set) = started_with(1, |fake| {
                fake.with(0, |smmu| {
                    smmu.limit_command_queue(log2);
                    smmu.behaviour.reads_per_command = reads_per_command;
                });
            });
            let queues = set.queues(&fake);
            for count in (1..40).chain([300]) {
                let ticket = post(&queues, 0, many(count)).unwrap();
                queues.wait(0, ticket).unwrap();
                let mut expected = vec![opcode::TLBI_S12_VMALL; count];
                expected.push(opcode::SYNC);
                assert_eq!(fake.take_opcodes(0), expected, "2^{log2} entries, batch of {count}");
            }
        }
    }
}

#[test]
fn commands_are_stored_before_prod_and_a_ticket_can_be_waited_for_late() {
    let (fake, set) = started(1);
    let queues = set.queues(&fake);
    let early = post(&queues, 0, flush()).unwrap();
    let actions = fake.take_actions();
    let position = |wanted: &dyn Fn(&Action) -> bool| actions.iter().position(wanted).unwrap();
    let last_store = actions.iter().rposition(|action| matches!(action, Action::Store { .. })).unwrap();
    let barrier = position(&|action| *action == Action::Barrier);
    let command = position(&|action| matches!(action, Action::Command { .. }));
    assert!(last_store < barrier && barrier < command, "{actions:?}");
    for _ in 0..1000 {
        let ticket = post(&queues, 0, flush()).unwrap();
        queues.wait(0, ticket).unwrap();
    }
    queues.wait(0, early).unwrap();
}

#[test]
fn a_failed_command_fails_its_owner_and_nobody_else() {
    for reads_per_command in [0, 2] {
        let (fake, set) = started(1);
        fake.with(0, |smmu| smmu.behaviour.reads_per_command = reads_per_command);
        fake.fail_commands(0, &[4]);
        let queues = set.queues(&fake);
        let tickets: Vec<Ticket> = (0..3).map(|_| post(&queues, 0, many(2)).unwrap()).collect();
        let outcomes = [1, 2, 0].map(|index| queues.wait(0, tickets[index]).is_ok());
        assert_eq!(outcomes, [false, true, true]);
        assert_eq!(fake.take_opcodes(0), [0x28, 0x28, 0x46, 0x46, 0x28, 0x46, 0x28, 0x28, 0x46]);
        let after = post(&queues, 0, flush()).unwrap();
        queues.wait(0, after).unwrap();
        let counters = set.counters();
        assert_eq!((counters.global_errors, counters.dead), (1, 0));
        assert_eq!(queues.wait(0, tickets[1]), Err(Fault), "the owner is told as often as it asks");
    }
}

/// ATC_INV and CMD_SYNC, again and again.
fn to_devices(count: usize) -> impl Iterator<Item = Command> {
    core::iter::repeat_n([Command::atc_inv(1, 0, 52), Command::sync()], count).flatten()
}

#[test]
fn any_number_of_failures_is_heard_of_and_none_is_the_smmus_end() {
    for failures in [1, 31, 32, 33, 60] {
        let (fake, set) = started(1);
        fake.with(0, |smmu| smmu.behaviour.reads_per_command = 1);
        let queues = set.queues(&fake);
        let before = post(&queues, 0, flush()).unwrap();
        // One fetch more after each failure: the CMD_SYNC is done once more.
        let silent = (0..failures).map(|n| 8 + n * 3);
        fake.fail_syncs(0, [4].into_iter().chain(silent).chain([10 + failures * 3]));
        let first = post(&queues, 0, to_devices(1)).unwrap();
        let silent = post(&queues, 0, to_devices(failures as usize).chain(flush())).unwrap();
        let other = post(&queues, 0, to_devices(1)).unwrap();
        let after = post(&queues, 0, flush()).unwrap();
        let outcomes = [after, other, silent, first, before].map(|ticket| queues.wait(0, ticket).is_ok());
        assert_eq!(outcomes, [true, false, false, false, true], "{failures}");
        queues.wait(0, Ticket::default()).unwrap();
        assert_eq!(set.describe(0).unwrap().condition, Condition::Running);
    }
}

/// Whoever may turn a device off could fill the console otherwise.
#[test]
fn a_device_that_does_not_answer_is_logged_once() {
    let (fake, set) = started(1);
    fake.with(0, |smmu| smmu.behaviour.reads_per_command = 1);
    let queues = set.queues(&fake);
    fake.fail_syncs(0, (0..9).map(|n| 2 + n * 3));
    let ticket = post(&queues, 0, to_devices(9)).unwrap();
    let lines = crate::lines::count(|| assert_eq!(queues.wait(0, ticket), Err(Fault)));
    assert_eq!((lines, set.counters().global_errors), (1, 9));
}

#[test]
fn a_sync_that_fails_for_ever_is_the_smmus_end_after_a_bounded_wait() {
    let (fake, set) = started(1);
    let queues = set.queues(&fake);
    fake.fail_syncs(0, 2..100_000);
    let ticket = post(&queues, 0, to_devices(1)).unwrap();
    let begin = fake.now_ns();
    assert_eq!(queues.wait(0, ticket), Err(Fault));
    assert!(fake.now_ns() - begin < 2 * TIMEOUT_NS);
    assert_eq!(set.describe(0).unwrap().condition, Condition::Dead);
}

#[test]
fn an_smmu_that_goes_on_has_as_long_as_it_takes() {
    let (fake, set) = started(1);
    let queues = set.queues(&fake);
    // A command takes a fifth of the time that an SMMU without progress has.
    fake.with(0, |smmu| smmu.behaviour.reads_per_command = 1_000);
    let ticket = post(&queues, 0, many(20)).unwrap();
    let begin = fake.now_ns();
    assert_eq!(queues.wait(0, ticket), Ok(()));
    assert!(fake.now_ns() - begin > 3 * TIMEOUT_NS);
    assert_eq!(set.describe(0).unwrap().condition, Condition::Running);
}

#[test]
fn a_second_command_error_shuts_the_smmu_down() {
    let (fake, set) = started(2);
    fake.fail_commands(0, &[1, 4]);
    let queues = set.queues(&fake);
    let outcomes: Vec<bool> = (0..3)
        .map(|_| {
            let tickets = [0, 1].map(|smmu| post(&queues, smmu, flush()).unwrap());
            queues.wait(1, tickets[1]).unwrap();
            queues.wait(0, tickets[0]).is_ok()
        })
        .collect();
    assert_eq!(
        outcomes,
        [false, false, true],
        "what was under way failed, later there is nothing to invalidate"
    );
    let (gbpa, cr0) = fake.with(0, |smmu| (smmu.get(offset::GBPA), smmu.get(offset::CR0)));
    assert_eq!((gbpa, cr0), (1 << 20, 0));
    assert_eq!(set.describe(0).unwrap().condition, Condition::Dead);
    assert_eq!(set.describe(1).unwrap().condition, Condition::Running);
    assert_eq!(set.counters().dead, 1);
}

#[test]
fn a_hung_smmu_is_shut_down_after_a_bounded_wait() {
    let (fake, set) = started(1);
    let queues = set.queues(&fake);
    fake.with(0, |smmu| smmu.behaviour.hung = true);
    let ticket = post(&queues, 0, flush()).unwrap();
    let begin = fake.now_ns();
    assert_eq!(queues.wait(0, ticket), Err(Fault));
    assert!(fake.now_ns() - begin < 2 * TIMEOUT_NS);
    assert_eq!(set.describe(0).unwrap().condition, Condition::Dead);
    let ticket = post(&queues, 0, flush()).unwrap();
    assert_eq!(queues.wait(0, ticket), Ok(()));
}

#[test]
fn a_full_queue_of_a_hung_smmu_is_a_bounded_wait_too() {
    let (fake, set) = started_with(1, |fake| fake.with(0, |smmu| smmu.limit_command_queue(3)));
    let queues = set.queues(&fake);
    fake.with(0, |smmu| smmu.behaviour.hung = true);
    let ticket = post(&queues, 0, many(3)).unwrap();
    assert_eq!(post(&queues, 0, many(20)), Err(Fault));
    assert_eq!(queues.wait(0, ticket), Err(Fault));
    assert_eq!(set.describe(0).unwrap().condition, Condition::Dead);
}

#[test]
fn an_smmu_that_cannot_be_turned_off_fails_everything() {
    let (fake, set) = started(1);
    let queues = set.queues(&fake);
    fake.with(0, |smmu| {
        smmu.behaviour.hung = true;
        smmu.behaviour.deaf = true;
    });
    let ticket = post(&queues, 0, flush()).unwrap();
    assert_eq!(queues.wait(0, ticket), Err(Fault));
    assert_eq!(set.describe(0).unwrap().condition, Condition::Lost);
    assert_eq!(post(&queues, 0, flush()), Err(Fault));
    assert_eq!(set.counters().dead, 1);
}

#[test]
fn a_consumer_index_out_of_range_is_the_smmus_end() {
    let (fake, set) = started(1);
    let queues = set.queues(&fake);
    fake.with(0, |smmu| smmu.behaviour.hung = true);
    let ticket = post(&queues, 0, flush()).unwrap();
    fake.with(0, |smmu| smmu.set(offset::CMDQ_CONS, 200));
    assert_eq!(queues.wait(0, ticket), Err(Fault));
    assert_eq!(set.describe(0).unwrap().condition, Condition::Dead);
}

#[test]
fn service_failure_mode_shuts_down_and_other_errors_are_acknowledged() {
    let (fake, set) = started(2);
    fake.with(0, |smmu| smmu.set(offset::GERROR, 1 << 2 | 1 << 7));
    fake.with(1, |smmu| smmu.set(offset::GERROR, 1 << 8));
    set.drain_events(&fake);
    set.drain_events(&fake);
    let counters = set.counters();
    assert_eq!((counters.global_errors, counters.events_lost, counters.dead), (3, 1, 1));
    fake.raise_event(0, translation_fault(8, 0));
    set.drain_events(&fake);
    assert_eq!(set.take_event().unwrap().1, 1, "the reader hears of the event that could not be written");
    assert_eq!(fake.with(0, |smmu| smmu.get(offset::GERRORN)), 1 << 2 | 1 << 7);
    assert_eq!(set.describe(1).unwrap().condition, Condition::Dead);
}

/// F_TRANSLATION, stage 2, of a write.
fn translation_fault(stream: u64, address: u64) -> [u64; 4] {
    [stream << 32 | 0x10, 1 << 39, address, address & !0xfff]
}

#[test]
fn events_come_out_in_order_over_many_wraps() {
    let (fake, set) = started(2);
    for round in 0..1000u64 {
        let smmu = (round % 2) as usize;
        fake.raise_event(smmu, translation_fault(round, round << 8 | 4));
        set.drain_events(&fake);
        let (event, lost) = set.take_event().unwrap();
        let source = 0x10 | round << 8 | (smmu as u64) << 40 | 0b111 << 48;
        assert_eq!(event, RecordedEvent { source, address: round << 8 | 4, ipa: round << 8 & !0xfff });
        assert_eq!(lost, 0);
    }
    assert_eq!(set.take_event(), None);
    assert_eq!((set.counters().events, set.counters().events_lost), (1000, 0));
}

#[test]
fn an_overflow_of_the_hardware_queue_is_acknowledged_and_told_once() {
    let (fake, set) = started(1);
    for round in 1..=2u64 {
        for address in 0..140 {
            fake.raise_event(0, translation_fault(8, address));
        }
        set.drain_events(&fake);
        let (prod, cons) =
            fake.with(0, |smmu| (smmu.get(offset::EVENTQ_PROD), smmu.get(offset::EVENTQ_CONS)));
        assert_eq!(prod, cons, "all is read, and OVACKFLG is OVFLG");
        let events: Vec<_> = core::iter::from_fn(|| set.take_event()).collect();
        assert_eq!(events.len(), 128);
        assert_eq!((events[0].1, events[1].1), (1, 0));
        assert_eq!((events[0].0.address, events[127].0.address), (0, 127));
        assert_eq!(set.counters().events_lost, round);
    }
}

#[test]
fn a_full_ring_keeps_the_oldest_and_counts_the_rest() {
    let (fake, set) = started(1);
    for round in 0..3 {
        for address in 0..128 {
            fake.raise_event(0, translation_fault(8, round * 128 + address));
        }
        set.drain_events(&fake);
    }
    let events: Vec<_> = core::iter::from_fn(|| set.take_event()).collect();
    assert_eq!((events.len(), events[0].1, events[255].0.address), (256, 128, 255));
}

/// The SMMU interrupts for an event that finds its queue empty, and for no other: where one that is to be seen came behind others, it is
/// taken now or never.
#[test]
fn an_event_that_comes_while_those_of_others_are_read_is_found() {
    let (fake, set) = started(1);
    let smmu = set.get(0).unwrap();
    smmu.set_driver_vmid(2);
    smmu.set_leaving(Some(9));
    fake.raise_event(0, translation_fault(9, 0));
    fake.with(0, |smmu| smmu.behaviour.late_events.push_back(translation_fault(8, 0x1000)));
    let taken = set.take_driver_event(&fake, 0);
    assert_eq!(taken.map(|event| event.record), Ok(EventRecord(translation_fault(8, 0x1000))));
    assert_eq!(set.take_driver_event(&fake, 0), Err(NoEvent::QueueEmpty));
    // They come as fast as they are read: that has a bound, and is said.
    fake.raise_event(0, translation_fault(9, 0));
    fake.with(0, |smmu| smmu.behaviour.late_events.extend([translation_fault(9, 0); 20]));
    assert_eq!(set.take_driver_event(&fake, 0), Err(NoEvent::MayBeMore));
    assert!(!set.discard_driver_events(&fake, 0));
    fake.with(0, |smmu| smmu.behaviour.late_events.clear());
    assert!(set.discard_driver_events(&fake, 0));
    assert_eq!(set.take_driver_event(&fake, 0), Err(NoEvent::QueueEmpty));
}

/// Whether its stream was parked stays with an event, wherever in the ring of 128 it is.
#[test]
fn an_event_is_known_by_what_its_stream_was_when_it_was_drained() {
    let (fake, set) = started(1);
    let smmu = set.get(0).unwrap();
    let is_parked = |n: u64| n.is_multiple_of(3);
    for round in 0..4 {
        let numbers = round * 100..round * 100 + 100;
        for n in numbers.clone() {
            // To the driver with the VMID of parked streams this one passes.
            smmu.set_driver_vmid(if is_parked(n) { 2 } else { PARKED_VMID });
            fake.raise_event(0, translation_fault(8, n));
            assert_eq!(set.drain_events_of(&fake, 0), 1);
        }
        for n in numbers {
            let taken = set.take_driver_event(&fake, 0).unwrap();
            assert_eq!((taken.record.0[2], taken.parked), (n, is_parked(n)));
        }
    }
}

#[test]
fn cpus_that_post_at_once_each_wait_for_their_own_batch() {
    let (fake, set) = started_with(2, |fake| {
        for smmu in 0..2 {
            fake.with(smmu, |smmu| {
                smmu.limit_command_queue(4);
                smmu.behaviour.reads_per_command = 1;
            });
        }
    });
    std::thread::scope(|scope| {
        for cpu in 0..4usize {
            let (fake, set) = (&fake, &set);
            scope.spawn(move || {
                let queues = set.queues(fake);
                for round in 0..200 {
                    let commands = 1 + (cpu * 7 + round) % 20;
                    let tickets = [0, 1].map(|smmu| post(&queues, smmu, many(commands)).unwrap());
                    for (smmu, ticket) in tickets.into_iter().enumerate() {
                        queues.wait(smmu, ticket).unwrap();
                    }
                }
            });
        }
    });
    let counters = set.counters();
    assert_eq!((counters.syncs, counters.dead), (2 * 2 + 2 * 800, 0));
    assert_eq!(fake.take_opcodes(0).iter().filter(|opcode| **opcode == opcode::SYNC).count(), 800);
}
