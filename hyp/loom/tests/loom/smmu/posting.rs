//! Several CPUs post to one SMMU and wait for it.
//!
//! Each posts a command and a CMD_SYNC, and waits. Then its command was carried out, once, and a CMD_SYNC after it; and it heard of an error if, and only
//! if, its own command was refused. Then one thing is done wrong at a time, and loom must find a failure.

use std::sync::Arc;

use smmuv3::command::Command;
use smmuv3::invalidation::Batch;

use super::command_queue::{CommandQueue, Condition, OpenQueue, wait};
use super::machine::{Cpu, Machine, Mistake, QUEUE, REGISTERS, Step};
use super::registers::Registers;
use crate::must_find::must_find;
use crate::sync::Mutex;

/// How often a thread that could go on is stopped. With three, two CPUs that post at once pass as well, in ten times the time.
const PREEMPTIONS: usize = 2;

/// The command of a CPU: a TLBI of a VMID of its own.
const fn command_of(cpu: u64) -> Command {
    Command([0x28 | (cpu + 2) << 32, 0])
}

fn queue(machine: &Machine) -> Arc<Mutex<CommandQueue>> {
    let mut queue = CommandQueue::new(Registers::new(REGISTERS));
    queue.place(QUEUE, machine.log2);
    queue.condition = Condition::Running;
    Arc::new(Mutex::new(queue))
}

/// How a CPU hands its commands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A command, and a CMD_SYNC behind it, at once: `close_with`.
    AtOnce,
    /// One after the other, with the lock held, waiting for room: `push`, `close`.
    OneByOne,
}

fn post_and_wait(machine: &Arc<Machine>, queue: &Mutex<CommandQueue>, cpu: u64, way: Way) {
    let p = Cpu::new(machine);
    let command = command_of(cpu);
    let mut batch = OpenQueue::new(&p, queue.lock()).unwrap();
    let ticket = match way {
        Way::AtOnce => batch.close_with(command),
        Way::OneByOne => {
            batch.push(command);
            batch.close()
        }
    };
    let ticket = ticket.expect("the queue takes commands");
    p.begin(Step::Waiting);
    let outcome = wait(queue, &p, ticket, || {});
    assert_eq!(outcome.is_err(), machine.refuses(command), "CPU {cpu} heard {outcome:?}");
    if outcome.is_err() {
        return;
    }
    let truth = machine.truth();
    let done: Vec<usize> = (0..truth.done.len()).filter(|n| truth.done[*n] == command).collect();
    let synced = done.first().is_some_and(|n| truth.done[n + 1..].contains(&Command::sync()));
    let times = done.len();
    drop(truth);
    assert!(
        times == 1 && synced,
        "CPU {cpu} waited, and its command was done {times} times, synced: {synced}"
    );
}

/// Two CPUs, and an SMMU that looks at its queue once by itself, besides each time that one of them waits.
fn post(mistake: Mistake, log2: u8, refused: Option<u64>, ways: [Way; 2]) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = 10_000;
    builder.check(move || {
        let machine = Machine::new(mistake, log2, refused.map(command_of));
        let shared = queue(&machine);
        let smmu = machine.clone();
        let hardware = loom::thread::spawn(move || smmu.work());
        let (other, others) = (machine.clone(), shared.clone());
        let cpu = loom::thread::spawn(move || {
            let own = (other.mistake == Mistake::OwnPositions).then(|| queue(&other));
            post_and_wait(&other, &own.unwrap_or(others), 1, ways[1]);
        });
        post_and_wait(&machine, &shared, 0, ways[0]);
        cpu.join().unwrap();
        hardware.join().unwrap();
    });
}

/// The model with the mistake fails, and says this.
fn found(mistake: Mistake, complaint: &str, refused: Option<u64>) {
    must_find(mistake, complaint, || post(mistake, 2, refused, [Way::AtOnce; 2]));
}

#[test]
fn two_cpus_post_at_once() {
    post(Mistake::None, 2, None, [Way::AtOnce; 2]);
    post(Mistake::None, 2, None, [Way::AtOnce, Way::OneByOne]);
}

/// Half of what they post fits: one waits for room with the lock held.
#[test]
fn two_cpus_post_to_a_queue_without_room() {
    post(Mistake::None, 1, None, [Way::AtOnce; 2]);
    post(Mistake::None, 1, None, [Way::OneByOne; 2]);
}

#[test]
fn a_refused_command_is_heard_of_by_its_cpu_alone() {
    for refused in [0, 1] {
        post(Mistake::None, 2, Some(refused), [Way::AtOnce; 2]);
    }
}

#[test]
fn the_barrier_before_prod_is_needed() {
    found(Mistake::PublishBarrier, "the SMMU fetches what nobody wrote", None);
    found(Mistake::ProdFirst, "the SMMU fetches what nobody wrote", None);
}

#[test]
fn the_positions_are_one_cpus_at_a_time() {
    found(Mistake::OwnPositions, "its command was done 0 times", None);
}

#[test]
fn a_cpu_waits_until_its_command_is_done() {
    found(Mistake::SaysAllIsConsumed, "waited, and its command was done 0 times", None);
}

#[test]
fn a_refused_command_is_replaced_before_it_is_acknowledged() {
    found(Mistake::RecoverBarrier, "the SMMU finds the refused command again", Some(0));
    found(Mistake::NotReplaced, "the SMMU finds the refused command again", Some(0));
}
