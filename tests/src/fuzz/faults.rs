//! Sequences of anything that a hostile host can do, while what is below the hypervisor fails: commands, devices, memory.

use super::host::{MOST_ACCESSES, TRUSTED, machine};
use crate::bench::Bench;
use crate::model::smmu::Fault;
use crate::oracle::{self, Snapshot};
use abi::{Function, Status};
use host_shim::hostile::{Action, Choices, Knowledge, Outcome, STEP_BYTES, Step, steps};

/// Bytes before each step, which say what fails meanwhile.
const BELOW_BYTES: usize = 4;
/// Half of the time that an SMMU has for its commands, and more than that.
const LATE_NS: u64 = 250_000_000;
const TOO_LATE_NS: u64 = 1_000_000_000;
/// A call waits less long than this: twice the time that an SMMU has, for a batch and for a register.
const MOST_NS: u64 = 1_000_000_000;

/// What fails while a step is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Below {
    Nothing,
    /// A command of an SMMU, the first that comes being 0.
    Command {
        smmu: usize,
        at: u64,
        fault: Fault,
    },
    /// The trusted device does not answer from now on, or answers again.
    Silence(bool),
    /// An allocation, the first that comes being 0, and perhaps all after it.
    Allocation {
        at: u64,
        all: bool,
    },
}

impl Below {
    fn of(choices: &mut Choices<'_>, bench: &Bench) -> Self {
        let kind = choices.byte();
        let (smmu, at) = (choices.below(bench.devices.len() as u64) as usize, choices.below(12));
        let fault = match kind {
            0..128 => return Self::Nothing,
            128..144 => Fault::Illegal,
            144..160 => Fault::Abort,
            160..184 => Fault::NoAnswer,
            184..188 => Fault::Late(LATE_NS),
            188..192 => Fault::Raise(1 << choices.below(9)),
            192..224 => return Self::Silence(kind < 212),
            224..250 => return Self::Allocation { at: at / 2, all: kind < 236 },
            250..252 => Fault::Late(TOO_LATE_NS),
            252..254 => Fault::Stuck,
            _ => Fault::IllegalForever,
        };
        Self::Command { smmu, at, fault }
    }

    fn begin(self, bench: &Bench) {
        let mut machine = bench.machine();
        match self {
            Self::Nothing => {}
            Self::Command { smmu, at, fault } => machine.smmus[smmu].arm(at, fault),
            Self::Silence(is_silent) => {
                let (smmu, device) = TRUSTED;
                let stream = bench.devices[smmu][device].stream;
                let silent = &mut machine.smmus[smmu].atc.silent;
                let _ = if is_silent { silent.insert(stream) } else { silent.remove(&stream) };
            }
            Self::Allocation { at, all } => {
                machine.failing_allocation = Some((machine.allocations + at, all));
            }
        }
    }

    /// The step has ended; whether something failed.
    fn end(self, bench: &Bench) -> bool {
        let mut machine = bench.machine();
        let next = machine.allocations;
        let is_met = match self {
            Self::Nothing => false,
            Self::Command { smmu, .. } => machine.smmus[smmu].faults.is_empty(),
            Self::Silence(is_silent) => is_silent,
            Self::Allocation { .. } => machine.failing_allocation.is_some_and(|(at, _)| next > at),
        };
        machine.failing_allocation = None;
        for smmu in &mut machine.smmus {
            smmu.faults.clear();
        }
        is_met
    }
}

/// Anything that a host does but for drivers of emulated SMMUs, each step after what fails during it. A call that failed has changed nothing
/// but for pages that are quarantined.
///
/// # Panics
/// The oracle, or whoever judges a single answer, does not agree.
pub fn faults(bytes: &[u8]) {
    let bench = machine();
    let mut known = Knowledge::of(&bench);
    for (n, bytes) in bytes.chunks(BELOW_BYTES + STEP_BYTES).enumerate() {
        let (below, step) = bytes.split_at(bytes.len().min(BELOW_BYTES));
        // Bytes that are lacking are zero.
        let [below, step] = [below, step].map(|bytes| steps(bytes).next().unwrap_or(Step([0; STEP_BYTES])));
        let below = Below::of(&mut below.choices(), &bench);
        let action = Action::of(&step, &known);
        // What becomes of a driver's stream when its SMMU fails the driver sees, and nobody else: its tests know.
        let is_driver = match action {
            Action::Driver(_) => true,
            Action::Store { address, .. } => !bench.ram.contains(address),
            _ => false,
        };
        if is_driver {
            continue;
        }
        let failing = Failing { bench: &bench, below, action };
        if let Err(text) = failing.take(&mut known) {
            panic!("step {n}, {below:?}, {action:x?}: {text}");
        }
    }
    if let Err(text) = oracle::check_state(&bench) {
        panic!("at the end: {text}");
    }
}

/// Accesses of EL2 so far, and the time.
fn spent(bench: &Bench) -> [u64; 2] {
    let machine = bench.machine();
    [machine.accesses, machine.now_ns]
}

/// A step, and what fails.
struct Failing<'a> {
    bench: &'a Bench,
    below: Below,
    action: Action,
}

impl Failing<'_> {
    fn take(&self, known: &mut Knowledge) -> Result<(), String> {
        let Self { bench, below, action } = self;
        let is_call = matches!(action, Action::Call { .. } | Action::Invalidate { .. });
        let before = if *below == Below::Nothing || !is_call { None } else { Some(Snapshot::take(bench)?) };
        let [accesses, ns] = spent(bench);
        below.begin(bench);
        let (outcome, finding) = known.act(*bench, action);
        let [accesses, ns] = [spent(bench)[0] - accesses, spent(bench)[1] - ns];
        let is_met = below.end(bench);
        // Who waits looks often, and each look takes a while.
        let looks = ns / bench.machine().register_access_ns;
        if ns >= MOST_NS || accesses.saturating_sub(looks) >= MOST_ACCESSES {
            return Err(format!("{accesses} accesses and {ns} ns in one step"));
        }
        if let Some(finding) = finding {
            return Err(finding.as_str().into());
        }
        if is_met {
            oracle::check_state(bench)?;
        } else if let Some(text) = bench.machine().violations.all().first() {
            return Err(format!("violation: {text}"));
        }
        match (before, outcome) {
            (Some(before), Outcome::Answered([x0, ..])) if x0 != Status::Success.to_register() => {
                self.check_restored(&before)
            }
            _ => Ok(()),
        }
    }

    /// Whether everything is as it was before a call that failed.
    fn check_restored(&self, before: &Snapshot) -> Result<(), String> {
        let (_, differences) = before.unrestored(self.bench)?;
        if self.action.function() == Some(Function::GuestTeardown) {
            // What was taken apart before stays so.
            return Ok(());
        }
        if differences.is_empty() { Ok(()) } else { Err(format!("it failed, and changed {differences:#?}")) }
    }
}
