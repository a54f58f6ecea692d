//! Command queues that write down what they are told.

extern crate std;

use std::cell::RefCell;
use std::collections::HashMap;
use std::vec::Vec;

use super::super::{Batch, Domain, InvalidationFailed, Queues, Traits, invalidate};
use crate::command::{Command, opcode};
use crate::gather::Gather;
use crate::memory::testing::TestMemory;

/// What happened at a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Command(Command),
    Issue,
    /// The CMD_SYNC at the end.
    Close,
    Wait,
}

/// Where a queue fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    Open,
    Close,
    Wait,
}

/// An SMMU without range invalidation and without errata.
pub(super) const PLAIN: Traits =
    Traits { range_invalidation: false, repeat_invalidations: false, sync_before_last_slot: false };

/// With range invalidation.
pub(super) const RANGES: Traits = Traits { range_invalidation: true, ..PLAIN };

/// The queues of all SMMUs.
pub(super) struct Recorder {
    traits: HashMap<usize, Traits>,
    faults: Vec<(usize, Fault)>,
    pub(super) events: RefCell<Vec<(usize, Event)>>,
}

impl Recorder {
    /// SMMUs with range invalidation, but where `traits` says otherwise.
    pub(super) fn new(traits: impl IntoIterator<Item = (usize, Traits)>) -> Self {
        Self { traits: traits.into_iter().collect(), faults: Vec::new(), events: RefCell::default() }
    }

    pub(super) fn failing(faults: &[(usize, Fault)]) -> Self {
        Self { faults: faults.to_vec(), ..Self::new([]) }
    }

    fn record(&self, smmu: usize, event: Event) {
        self.events.borrow_mut().push((smmu, event));
    }

    fn check(&self, smmu: usize, fault: Fault) -> Result<(), Fault> {
        if self.faults.contains(&(smmu, fault)) { Err(fault) } else { Ok(()) }
    }

    pub(super) fn invalidate(
        &self,
        memory: &TestMemory,
        domain: &Domain<'_>,
        gather: &Gather,
    ) -> Result<(), InvalidationFailed<Fault>> {
        self.events.borrow_mut().clear();
        invalidate(self, memory, domain, gather)
    }

    /// What happened at one SMMU.
    pub(super) fn at(&self, smmu: usize) -> Vec<Event> {
        self.events.borrow().iter().filter(|(at, _)| *at == smmu).map(|(_, event)| *event).collect()
    }

    /// The commands of one SMMU, the CMD_SYNC at the end among them.
    pub(super) fn commands(&self, smmu: usize) -> Vec<Command> {
        let command = |event| match event {
            Event::Command(command) => Some(command),
            Event::Close => Some(Command([0x46, 0])),
            Event::Issue | Event::Wait => None,
        };
        self.at(smmu).into_iter().filter_map(command).collect()
    }

    /// Their opcodes.
    pub(super) fn opcodes(&self, smmu: usize) -> Vec<u8> {
        self.commands(smmu).into_iter().map(Command::opcode).collect()
    }

    /// What was issued together, the last with its CMD_SYNC.
    pub(super) fn batches(&self, smmu: usize) -> Vec<Vec<u8>> {
        let mut batches = std::vec![Vec::new()];
        for event in self.at(smmu) {
            let batch = batches.last_mut().unwrap();
            match event {
                Event::Command(command) => batch.push(command.opcode()),
                Event::Close => batch.push(opcode::SYNC),
                Event::Issue => batches.push(Vec::new()),
                Event::Wait => {}
            }
        }
        batches
    }

    /// Every SMMU's commands are posted and closed before any is waited for.
    pub(super) fn assert_posted_before_waiting(&self) {
        let events = self.events.borrow();
        let first_wait = events.iter().position(|(_, event)| *event == Event::Wait).unwrap_or(events.len());
        assert!(events[first_wait..].iter().all(|(_, event)| *event == Event::Wait), "{events:?}");
    }
}

impl Queues for Recorder {
    /// The SMMU, and how often it was closed; 0 names nothing.
    type Ticket = (usize, usize);
    type Fault = Fault;
    type Batch<'a> = Recording<'a>;

    fn traits(&self, smmu: usize) -> Traits {
        self.traits.get(&smmu).copied().unwrap_or(RANGES)
    }

    fn open(&self, smmu: usize) -> Result<Recording<'_>, Fault> {
        self.check(smmu, Fault::Open)?;
        Ok(Recording { recorder: self, smmu, unclosed: false })
    }

    fn wait(&self, smmu: usize, ticket: (usize, usize)) -> Result<(), Fault> {
        let closed = self.at(smmu).into_iter().filter(|event| *event == Event::Close).count();
        assert_eq!(ticket, (smmu, closed), "not a ticket of this SMMU");
        assert!(closed != 0);
        self.record(smmu, Event::Wait);
        self.check(smmu, Fault::Wait)
    }
}

/// Commands on their way into one queue.
pub(super) struct Recording<'a> {
    recorder: &'a Recorder,
    smmu: usize,
    unclosed: bool,
}

impl Batch for Recording<'_> {
    type Ticket = (usize, usize);
    type Fault = Fault;

    fn push(&mut self, command: Command) {
        self.unclosed = true;
        self.recorder.record(self.smmu, Event::Command(command));
    }

    fn issue(&mut self) {
        self.recorder.record(self.smmu, Event::Issue);
    }

    fn close(mut self) -> Result<(usize, usize), Fault> {
        self.unclosed = false;
        self.recorder.record(self.smmu, Event::Close);
        self.recorder.check(self.smmu, Fault::Close)?;
        let closed = self.recorder.at(self.smmu).into_iter().filter(|event| *event == Event::Close).count();
        Ok((self.smmu, closed))
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        assert!(
            !self.unclosed || std::thread::panicking(),
            "commands were posted, and nobody waits for them"
        );
    }
}
