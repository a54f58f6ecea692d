//! What was done so far, by CPU.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::{Call, Status, TABLE};

use super::action::Action;
use super::outcome::Outcome;
use crate::host::Dma;

/// The most CPUs.
pub const MAX_CPUS: usize = 16;

/// Each is written by one CPU alone.
struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    fn add(&self, count: u64) {
        self.set(self.get() + count);
    }

    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How the calls of one function ended.
struct OfFunction {
    calls: Counter,
    ticks: Counter,
    statuses: [Counter; Status::ALL.len()],
}

impl OfFunction {
    const fn new() -> Self {
        Self {
            calls: Counter::new(),
            ticks: Counter::new(),
            statuses: [const { Counter::new() }; Status::ALL.len()],
        }
    }

    fn count(&self, code: u64, ticks: u64) {
        self.calls.add(1);
        self.ticks.add(ticks);
        if let Some(counter) = Status::from_register(code).and_then(|s| self.statuses.get(s.place())) {
            counter.add(1);
        }
    }
}

/// What one CPU did. It has cache lines of its own.
#[repr(align(64))]
struct OfCpu {
    steps: Counter,
    ticks: Counter,
    /// Calls of each function of the table, and then those of no function.
    functions: [OfFunction; TABLE.len() + 1],
    accesses: Counter,
    transfers: Counter,
    /// Transfers that are known to have reached memory.
    landed: Counter,
    nothings: Counter,
}

impl OfCpu {
    const fn new() -> Self {
        Self {
            steps: Counter::new(),
            ticks: Counter::new(),
            functions: [const { OfFunction::new() }; TABLE.len() + 1],
            accesses: Counter::new(),
            transfers: Counter::new(),
            landed: Counter::new(),
            nothings: Counter::new(),
        }
    }
}

/// What takes a line of text.
pub type Log<'a> = &'a dyn Fn(fmt::Arguments<'_>);

/// What all CPUs did.
pub struct Tally([OfCpu; MAX_CPUS]);

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}

impl Tally {
    /// Nothing.
    pub const fn new() -> Self {
        Self([const { OfCpu::new() }; MAX_CPUS])
    }

    /// Says how many steps a CPU has done.
    pub fn at(&self, cpu: u64, steps: u64) {
        if let Some(of) = self.0.get(cpu as usize) {
            of.steps.set(steps);
        }
    }

    /// Takes in what came of an action, and how long it took without what the oracle did.
    pub fn count(&self, cpu: u64, action: &Action, outcome: &Outcome, ticks: u64) {
        let Some(of) = self.0.get(cpu as usize) else { return };
        of.ticks.add(ticks);
        match outcome {
            Outcome::Answered([code, ..]) => {
                let place = action.function().map_or(TABLE.len(), Call::place);
                if let Some(function) = of.functions.get(place) {
                    function.count(*code, ticks);
                }
            }
            Outcome::Dma(dma) => {
                of.transfers.add(1);
                of.landed.add(u64::from(*dma == Dma::Landed));
            }
            Outcome::Accessed(_) if matches!(action, Action::Start { .. }) => of.transfers.add(1),
            Outcome::Accessed(_) => of.accesses.add(1),
            Outcome::Nothing => of.nothings.add(1),
        }
    }

    fn sum(&self, counter: impl Fn(&OfCpu) -> &Counter) -> u64 {
        self.0.iter().map(|of| counter(of).get()).sum()
    }

    fn all(&self) -> Answers<impl Iterator<Item = &OfFunction> + Clone> {
        Answers(self.0.iter().flat_map(|of| &of.functions))
    }

    fn rate(count: u64, ns: u64) -> u64 {
        (u128::from(count) * 1_000_000_000 / u128::from(ns.max(1))) as u64
    }

    /// How far each CPU is: what a run that dies is made again from.
    pub fn progress(&self, attackers: u64, ns: u64, log: Log<'_>) {
        let steps = self.sum(|of| &of.steps);
        let most = self.0.iter().map(|of| of.steps.get()).max().unwrap_or(0);
        let calls = Self::rate(self.all().calls(), ns);
        log(format_args!("fuzz: {steps} steps, {most} of one of {attackers} CPUs, {calls} calls/s"));
    }

    /// What all did in so many nanoseconds; `unit` is what [`Tally::count`] is told times in.
    pub fn summary(&self, attackers: u64, ns: u64, unit: &str, log: Log<'_>) {
        self.progress(attackers, ns, log);
        for (n, name) in TABLE.iter().map(|call| call.name).chain(["no function"]).enumerate() {
            Answers(self.0.iter().filter_map(|of| of.functions.get(n))).log(name, unit, log);
        }
        self.all().log("all", unit, log);
        log(format_args!(
            "fuzz: {} accesses, {} transfers by devices, {} things that this host cannot do",
            self.sum(|of| &of.accesses),
            self.sum(|of| &of.transfers),
            self.sum(|of| &of.nothings)
        ));
        log(format_args!("measure: fuzz-landed {} transfers", self.sum(|of| &of.landed)));
        log(format_args!("measure: fuzz-steps {} steps", self.sum(|of| &of.steps)));
        log(format_args!("measure: fuzz-ticks-of-steps {} {unit}", self.sum(|of| &of.ticks)));
        let calls = Self::rate(self.all().calls(), ns);
        log(format_args!("measure: fuzz-calls-per-second {calls} calls"));
    }
}

/// What all CPUs' calls of a function, or of several, answered.
struct Answers<I>(I);

impl<'a, I: Iterator<Item = &'a OfFunction> + Clone> Answers<I> {
    fn sum(&self, counter: impl Fn(&OfFunction) -> Option<&Counter>) -> u64 {
        self.0.clone().filter_map(counter).map(Counter::get).sum()
    }

    fn of(&self, status: Status) -> u64 {
        self.sum(|function| function.statuses.get(status.place()))
    }

    fn calls(&self) -> u64 {
        self.sum(|function| Some(&function.calls))
    }

    fn log(&self, name: &str, unit: &str, log: Log<'_>) {
        let made = self.calls();
        let took = self.sum(|function| Some(&function.ticks)).checked_div(made).unwrap_or(0);
        let succeeded = self.of(Status::Success);
        log(format_args!("fuzz: {name}: {succeeded} of {made} calls succeeded, {took} {unit} each{self}"));
    }
}

/// The answers but success.
impl<'a, I: Iterator<Item = &'a OfFunction> + Clone> fmt::Display for Answers<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for status in Status::ALL.iter().filter(|status| **status != Status::Success) {
            let count = self.of(*status);
            if count != 0 {
                write!(f, ", {count} {status:?}")?;
            }
        }
        Ok(())
    }
}
