//! The steps of one attack.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use core::sync::atomic::{AtomicBool, Ordering};

use host_shim::host::{Device as Kind, Host};
use host_shim::hostile::{Action, Knowledge, Outcome, Step, Tally, oracle};
use host_shim::text;
use host_shim::text::Text;
use spin::{Mutex, MutexGuard};

use super::host::{Linux, MAX_SMMUS};
use super::streams::Streams;
use super::{Options, System};
use crate::device::Device;

/// Time between two lines about how far it is.
const REPORT_NS: u64 = 10_000_000_000;
/// Time in which another CPU's transfer certainly ends.
const PATIENCE_NS: u64 = 30_000_000_000;

/// What all processes see.
pub struct Shared {
    tally: Tally,
    /// Streams that were attached.
    pub streams: Streams,
    /// One process at a time uses the devices behind an SMMU.
    pub devices: [Mutex<()>; MAX_SMMUS],
    found: AtomicBool,
}

impl Shared {
    /// Before the first step.
    pub const fn new() -> Self {
        Self {
            tally: Tally::new(),
            streams: Streams::new(),
            devices: [const { Mutex::new(()) }; MAX_SMMUS],
            found: AtomicBool::new(false),
        }
    }
}

/// An attack that is under way.
pub struct Attack<'a, D: ?Sized, S> {
    host: &'a Linux<'a, D, S>,
    system: &'a S,
    options: &'a Options,
    shared: &'a Shared,
    cpus: u64,
    has_oracle: bool,
    begun_ns: u64,
}

impl<'a, D: Device + Sync + ?Sized, S: System> Attack<'a, D, S> {
    /// Begins now.
    pub fn new(
        host: &'a Linux<'a, D, S>,
        system: &'a S,
        options: &'a Options,
        shared: &'a Shared,
        cpus: u64,
        has_oracle: bool,
    ) -> Self {
        Self { host, system, options, shared, cpus, has_oracle, begun_ns: system.now_ns() }
    }

    /// Takes the steps of a CPU until something is found, or there are no more.
    pub fn on_cpu(&self, cpu: u64) {
        let mut known = Knowledge::of(self.host);
        let mut reported_ns = self.begun_ns;
        for n in 0..self.options.steps {
            let action = Action::of(&Step::seeded(self.options.seed, cpu as u32, n), &known);
            match self.step(cpu, n, &mut known, &action) {
                Ok((outcome, ns)) => self.shared.tally.count(cpu, &action, &outcome, ns),
                Err(finding) => {
                    self.report(cpu, n, &action, &finding);
                    break;
                }
            }
            self.shared.tally.at(cpu, n + 1);
            if self.shared.found.load(Ordering::Relaxed) {
                break;
            }
            let now = self.system.now_ns();
            if now - self.begun_ns > self.options.seconds.saturating_mul(1_000_000_000) {
                break;
            }
            if cpu == 0 && now - reported_ns > REPORT_NS {
                reported_ns = now;
                self.progress();
            }
        }
    }

    /// Does one action and asks everybody about it; what came of it, and the nanoseconds that it took.
    fn step(
        &self,
        cpu: u64,
        n: u64,
        known: &mut Knowledge,
        action: &Action,
    ) -> Result<(Outcome, u64), Box<Text>> {
        if !self.host.can(action) || !Streams::can_note(action) {
            return Ok((Outcome::Nothing, 0));
        }
        let device = action.smmu_of_device().and_then(|smmu| self.shared.devices.get(smmu));
        let guard = device.map(|device| self.lock(device)).transpose()?;
        let begin = self.system.now_ns();
        let (outcome, finding) = known.act(self.host, action);
        let ns = self.system.now_ns() - begin;
        drop(guard);
        self.shared.streams.note(action, &outcome);
        if let Some(finding) = finding {
            return Err(finding.into());
        }
        if !self.has_oracle {
            return Ok((outcome, ns));
        }
        if n.is_multiple_of(self.options.look) {
            let (page, smmu, stream) = oracle::concerns(action, n);
            let stream = stream.or_else(|| self.host.stream(smmu, Kind::Immediate)).unwrap_or(0);
            oracle::step(self.host, page, smmu, stream).map_err(Box::new)?;
        }
        if cpu == 0 && n % self.options.every == self.options.every - 1 {
            oracle::everything(self.host).map_err(Box::new)?;
        }
        Ok((outcome, ns))
    }

    /// Waits for the devices behind an SMMU, but not for ever: a process that dies gives back nothing.
    fn lock(&self, device: &'a Mutex<()>) -> Result<MutexGuard<'a, ()>, Box<Text>> {
        let begin = self.system.now_ns();
        loop {
            if let Some(guard) = device.try_lock() {
                return Ok(guard);
            }
            if self.system.now_ns() - begin > PATIENCE_NS {
                return Err(Box::new(text!("another CPU does not give its devices back")));
            }
            core::hint::spin_loop();
        }
    }

    fn report(&self, cpu: u64, n: u64, action: &Action, finding: &Text) {
        // The first says it; the others of the same moment are mostly of the same cause.
        if !self.shared.found.swap(true, Ordering::AcqRel) {
            self.progress();
            self.system.say(format_args!("FAIL fuzz: CPU {cpu}, step {n}: {finding}"));
            self.system.say(format_args!("fuzz: the step was {action:x?}"));
        }
    }

    fn progress(&self) {
        let ns = self.system.now_ns() - self.begun_ns;
        self.shared.tally.progress(self.cpus, ns, &|line| self.system.say(line));
    }

    /// The last look at everything, and what was done.
    ///
    /// # Errors
    ///
    /// Something was found, or a process did not end by itself.
    pub fn judge(&self, all_ended: Result<(), String>) -> Result<(), String> {
        let ns = self.system.now_ns() - self.begun_ns;
        let found = self.shared.found.load(Ordering::Acquire);
        let mut judgement = if found { Err("something was found".into()) } else { all_ended };
        if judgement.is_ok() && self.has_oracle {
            judgement = oracle::everything(self.host).map_err(|finding| finding.to_string());
        }
        if let Err(error) = &judgement
            && !found
        {
            self.system.say(format_args!("FAIL fuzz: at the end: {error}"));
        }
        self.shared.tally.summary(self.cpus, ns, self.host.tick_unit(), &|line| self.system.say(line));
        judgement.map_err(|error| format!("fuzz: {error}"))
    }
}
