//! What was done so far, by CPU.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::{Status, TABLE};

use super::action::Action;
use super::outcome::Outcome;

/// The most CPUs.
pub const MAX_CPUS: usize = 16;

/// Each is written by one CPU alone.
struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    fn add(&self) {
        self.set(self.get() + 1);
    }

    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one CPU did. It has cache lines of its own.
#[repr(align(64))]
struct OfCpu {
    steps: Counter,
    ticks: Counter,
    calls: Counter,
    statuses: [Counter; Status::ALL.len()],
    /// Calls of each function of the table, and those that succeeded.
    functions: [[Counter; 2]; TABLE.len()],
    accesses: Counter,
    transfers: Counter,
    nothings: Counter,
}

impl OfCpu {
    const fn new() -> Self {
        Self {
            steps: Counter::new(),
            ticks: Counter::new(),
            calls: Counter::new(),
            statuses: [const { Counter::new() }; Status::ALL.len()],
            functions: [const { [Counter::new(), Counter::new()] }; TABLE.len()],
            accesses: Counter::new(),
            transfers: Counter::new(),
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

    /// Says how long a step took, without what the oracle did.
    pub fn took(&self, cpu: u64, ticks: u64) {
        if let Some(of) = self.0.get(cpu as usize) {
            of.ticks.set(of.ticks.get() + ticks);
        }
    }

    /// Takes in what came of an action.
    pub fn count(&self, cpu: u64, action: &Action, outcome: &Outcome) {
        let Some(of) = self.0.get(cpu as usize) else { return };
        match outcome {
            Outcome::Answered([code, ..]) => {
                of.calls.add();
                let status =
                    Status::ALL.iter().zip(&of.statuses).find(|(status, _)| status.to_register() == *code);
                if let Some((_, counter)) = status {
                    counter.add();
                }
                let place = TABLE
                    .iter()
                    .zip(&of.functions)
                    .find(|(call, _)| Some(call.function) == action.function());
                if let Some((_, [made, succeeded])) = place {
                    made.add();
                    if *code == Status::Success.to_register() {
                        succeeded.add();
                    }
                }
            }
            Outcome::Dma(_) => of.transfers.add(),
            Outcome::Accessed(_) if matches!(action, Action::Start { .. }) => of.transfers.add(),
            Outcome::Accessed(_) => of.accesses.add(),
            Outcome::Nothing => of.nothings.add(),
        }
    }

    fn sum(&self, counter: impl Fn(&OfCpu) -> &Counter) -> u64 {
        self.0.iter().map(|of| counter(of).get()).sum()
    }

    fn rate(count: u64, ns: u64) -> u64 {
        (u128::from(count) * 1_000_000_000 / u128::from(ns.max(1))) as u64
    }

    /// How far each CPU is: what a run that dies is made again from.
    pub fn progress(&self, attackers: u64, ns: u64, log: Log<'_>) {
        let steps = self.sum(|of| &of.steps);
        let most = self.0.iter().map(|of| of.steps.get()).max().unwrap_or(0);
        let calls = Self::rate(self.sum(|of| &of.calls), ns);
        log(format_args!("fuzz: {steps} steps, {most} of one of {attackers} CPUs, {calls} calls/s"));
    }

    /// What all did in so many nanoseconds; `unit` is what [`Tally::took`] counts.
    pub fn summary(&self, attackers: u64, ns: u64, unit: &str, log: Log<'_>) {
        self.progress(attackers, ns, log);
        for (n, call) in TABLE.iter().enumerate() {
            let of = |which: usize| {
                let counters = self.0.iter().filter_map(|of| of.functions.get(n)?.get(which));
                counters.map(Counter::get).sum::<u64>()
            };
            log(format_args!("fuzz: {}: {} of {} calls succeeded", call.name, of(1), of(0)));
        }
        for (n, status) in Status::ALL.iter().enumerate() {
            let count: u64 = self.0.iter().filter_map(|of| of.statuses.get(n)).map(Counter::get).sum();
            if count != 0 {
                log(format_args!("fuzz: {count} calls answered {status:?}"));
            }
        }
        log(format_args!(
            "fuzz: {} accesses, {} transfers by devices, {} things that this host cannot do",
            self.sum(|of| &of.accesses),
            self.sum(|of| &of.transfers),
            self.sum(|of| &of.nothings)
        ));
        log(format_args!("measure: fuzz-steps {} steps", self.sum(|of| &of.steps)));
        log(format_args!("measure: fuzz-ticks-of-steps {} {unit}", self.sum(|of| &of.ticks)));
        let calls = Self::rate(self.sum(|of| &of.calls), ns);
        log(format_args!("measure: fuzz-calls-per-second {calls} calls"));
    }
}
