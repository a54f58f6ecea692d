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

/// What one CPU did. It has cache lines of its own.
#[repr(align(64))]
struct OfCpu {
    steps: Counter,
    ticks: Counter,
    calls: Counter,
    statuses: [Counter; Status::ALL.len()],
    /// Calls of each function of the table, those that succeeded, and the time that all took.
    functions: [[Counter; 3]; TABLE.len()],
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
            calls: Counter::new(),
            statuses: [const { Counter::new() }; Status::ALL.len()],
            functions: [const { [const { Counter::new() }; 3] }; TABLE.len()],
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
                of.calls.add(1);
                if let Some(counter) = Status::from_register(*code).and_then(|s| of.statuses.get(s.place())) {
                    counter.add(1);
                }
                let function = action.function().and_then(|function| of.functions.get(Call::place(function)));
                if let Some([made, succeeded, took]) = function {
                    made.add(1);
                    succeeded.add((*code == Status::Success.to_register()).into());
                    took.add(ticks);
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

    /// What all did in so many nanoseconds; `unit` is what [`Tally::count`] is told times in.
    pub fn summary(&self, attackers: u64, ns: u64, unit: &str, log: Log<'_>) {
        self.progress(attackers, ns, log);
        for (n, call) in TABLE.iter().enumerate() {
            let of = |which: usize| {
                let counters = self.0.iter().filter_map(|of| of.functions.get(n)?.get(which));
                counters.map(Counter::get).sum::<u64>()
            };
            let [made, succeeded, took] = [0, 1, 2].map(of);
            log(format_args!(
                "fuzz: {}: {succeeded} of {made} calls succeeded, {} {unit} each",
                call.name,
                took.checked_div(made).unwrap_or(0)
            ));
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
        log(format_args!("measure: fuzz-landed {} transfers", self.sum(|of| &of.landed)));
        log(format_args!("measure: fuzz-steps {} steps", self.sum(|of| &of.steps)));
        log(format_args!("measure: fuzz-ticks-of-steps {} {unit}", self.sum(|of| &of.ticks)));
        let calls = Self::rate(self.sum(|of| &of.calls), ns);
        log(format_args!("measure: fuzz-calls-per-second {calls} calls"));
    }
}
