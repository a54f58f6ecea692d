//! A hostile host on all CPUs at once: boot argument `fuzz`. Steps come from a seed, or from a ramdisk that has them one after the other.
//!
//! The hypervisor must have been built with its oracle, which is asked after every step and, of everything, after every so many.

#![allow(clippy::result_large_err, reason = "there is no allocator, and a finding ends the attack")]

mod measured;

use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::console::{self, println};
use super::machine::Machine;
use super::{cpu, smp};
use host_shim::host::{Device, Host};
use host_shim::hostile::{Action, Knowledge, Outcome, Rules, STEP_BYTES, Step, Tally, disturb, oracle};
use host_shim::text;
use host_shim::text::Text;
use measured::Measured;
use spin::Mutex;

/// Steps of a CPU between two looks at everything, unless `every=` says otherwise.
const EVERY: u64 = 1000;
/// If one CPU takes steps, a digest is taken before and after one of so many, unless `digest=` says otherwise; 0 for none.
const DIGEST_EVERY: u64 = 32;
/// The same when steps are hypercalls alone, of which there should be many: a digest takes as long as a hundred.
const DIGEST_EVERY_CALLS: u64 = 1000;
/// The longest turn of CPUs that QEMU runs one after the other, in instructions of all of them.
const TURN: u64 = 64_000;
/// How often a CPU that is alone goes round before turns begin: some tenths of a second for QEMU.
const IDLE_ROUNDS: u32 = 50_000_000;
/// Time between two lines about how far it is.
const REPORT_NS: u64 = 2_000_000_000;

/// What the boot arguments ask for.
#[derive(Clone, Copy, Debug)]
struct Options {
    seed: u64,
    /// Steps of each CPU at the most.
    steps: u64,
    /// Seconds of the machine's time at the most.
    seconds: u64,
    every: u64,
    digest: Option<u64>,
    rules: Rules,
}

impl Options {
    fn of<'a>(words: impl Iterator<Item = &'a str>) -> Self {
        let mut options = Self {
            seed: 1,
            steps: u64::MAX,
            seconds: u64::MAX,
            every: EVERY,
            digest: None,
            rules: Rules::default(),
        };
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let number = value.parse().ok();
            match name {
                "seed" => options.seed = number.unwrap_or(options.seed),
                "steps" => options.steps = number.unwrap_or(options.steps),
                "seconds" => options.seconds = number.unwrap_or(options.seconds),
                "every" => options.every = number.unwrap_or(options.every).max(1),
                "digest" => options.digest = number,
                "calm" => options.rules.calm = true,
                "calls" => options.rules.calls = true,
                _ => {}
            }
        }
        options
    }

    /// Steps from one digest to the next; 0 for none.
    fn digest(&self) -> u64 {
        self.digest.unwrap_or(if self.rules.calls { DIGEST_EVERY_CALLS } else { DIGEST_EVERY })
    }
}

/// Where steps come from.
#[derive(Clone, Copy)]
enum Source {
    Seed(u64),
    /// A recording: step `n` is that of CPU `n` modulo how many there are.
    Recording {
        start: u64,
        steps: u64,
    },
}

impl Source {
    fn step(self, machine: &Machine, cpu: u64, cpus: u64, n: u64) -> Option<Step> {
        match self {
            Self::Seed(seed) => Some(Step::seeded(seed, cpu as u32, n)),
            Self::Recording { start, steps } => {
                let place = n.checked_mul(cpus)?.checked_add(cpu).filter(|place| *place < steps)?;
                let mut bytes = [0; STEP_BYTES];
                for (word, at) in
                    bytes.chunks_exact_mut(8).zip((start + place * STEP_BYTES as u64..).step_by(8))
                {
                    word.copy_from_slice(&machine.cpu_read_u64(at).ok()?.to_le_bytes());
                }
                Some(Step(bytes))
            }
        }
    }
}

/// What all CPUs did: larger than a stack.
static TALLY: Tally = Tally::new();

/// An attack that is under way.
struct Attack<'a> {
    machine: &'a Machine,
    options: Options,
    source: Source,
    /// QEMU runs one CPU at a time, and counts instructions: a seed does the same each time, to the instruction, as long as no device that decodes is
    /// given to a guest.
    in_turns: bool,
    /// CPUs that take steps.
    attackers: u64,
    begun_ns: u64,
    begun_ticks: u64,
    /// One CPU at a time uses the devices behind an SMMU.
    devices: [Mutex<()>; MAX_SMMUS],
    /// Attackers that go on.
    running: AtomicU64,
    found: AtomicBool,
    digest: AtomicU64,
}

const MAX_SMMUS: usize = 8;

/// Whether the host keeps a device, and makes it do DMA, while CPUs take turns; those that guests are given do none then.
fn is_kept(smmu: usize, device: Device) -> bool {
    smmu == 0 && device != Device::Disk
}

/// Runs what the boot arguments ask for; whether nothing was found.
pub fn run<'a>(machine: &Machine, words: impl Iterator<Item = &'a str>) -> bool {
    let options = Options::of(words);
    let source = match machine.tree().ramdisk {
        Some(run) => Source::Recording { start: run.start, steps: run.size / STEP_BYTES as u64 },
        None => Source::Seed(options.seed),
    };
    let cpus = 1 + machine.other_cpus().take(smp::MAX_CPUS - 1).count() as u64;
    let in_turns = cpus > 1 && machine.counts_instructions();
    if options.rules.calls || in_turns {
        // QEMU would make the machine's memory map anew each time that a device is given to a guest: decoding is off while BARs are sized.
        // It takes milliseconds, and threads that wait for it end a CPU's turn whenever they like. So what steps do not use does not decode.
        machine.stop_decoding(|smmu, device| options.rules.calls || !is_kept(smmu, device));
    }
    if in_turns {
        // By then its threads have done what they do after the changes that were made to the memory map.
        for round in 0..IDLE_ROUNDS {
            black_box(round);
        }
    }
    if let Err(finding) = oracle::everything(machine) {
        println!("FAIL before the first step: {}", finding.as_str());
        return false;
    }
    // The last of several changes memory while the others do their steps.
    let attackers = if cpus > 1 { cpus - 1 } else { 1 };
    let attack = Attack {
        machine,
        options,
        source,
        in_turns,
        attackers,
        begun_ns: cpu::now_ns(),
        begun_ticks: machine.ticks(),
        devices: [const { Mutex::new(()) }; MAX_SMMUS],
        running: AtomicU64::new(attackers),
        found: AtomicBool::new(false),
        digest: AtomicU64::new(0),
    };
    match source {
        Source::Seed(seed) => println!("fuzz: seed {seed}, {attackers} CPUs take steps of {cpus}"),
        Source::Recording { steps, .. } => {
            println!("fuzz: a recording of {steps} steps, {attackers} CPUs of {cpus}")
        }
    }
    let started = smp::run(machine.other_cpus(), &|index| attack.on_cpu(index as u64));
    if let Err(error) = started {
        println!("FAIL not all CPUs could be started: {error:?}");
        return false;
    }
    attack.summary()
}

impl Attack<'_> {
    fn on_cpu(&self, cpu: u64) {
        if cpu < self.attackers {
            self.attack(cpu);
            self.running.fetch_sub(1, Ordering::Release);
        } else {
            self.disturb(cpu);
        }
    }

    /// Time since the beginning: of the machine, or a nanosecond for each instruction that is counted.
    fn elapsed_ns(&self) -> u64 {
        (cpu::now_ns() - self.begun_ns) >> self.machine.slowness_log2()
    }

    /// Changes memory until the others are done.
    fn disturb(&self, cpu: u64) {
        let known = Knowledge::of(self.machine);
        let mut n = 0;
        while self.running.load(Ordering::Acquire) != 0 {
            self.limit_turn(n);
            // What is not the host's at the moment is left alone.
            let _ = disturb(self.machine, &known, &Step::seeded(self.options.seed, cpu as u32, n));
            n += 1;
        }
    }

    /// Ends this CPU's turn soon, and those of others before that: sometimes in the middle of a call.
    fn limit_turn(&self, n: u64) {
        if self.in_turns {
            cpu::end_turn_within((TURN >> (n % 4)) << self.machine.slowness_log2());
        }
    }

    /// What a step does, unless it is left out.
    fn action(&self, step: &Step, known: &Knowledge) -> Option<Action> {
        let action = self.options.rules.action(step, known)?;
        (!self.in_turns || self.is_repeatable(&action)).then_some(action)
    }

    /// Whether it may be done while CPUs take turns: it uses no device but those that are kept, and asks a guest to have none of these.
    fn is_repeatable(&self, action: &Action) -> bool {
        let kept = |smmu: usize| Device::ALL.into_iter().filter(move |device| is_kept(smmu, *device));
        if let Some(smmu) = action.smmu_of_device() {
            return kept(smmu).next().is_some();
        }
        let Some((smmu, stream)) = action.stream_for_guest() else { return true };
        let smmu = smmu as usize;
        kept(smmu).all(|device| self.machine.stream(smmu, device).map(u64::from) != Some(stream))
    }

    /// Takes steps until something is found, or there are no more.
    fn attack(&self, cpu: u64) {
        let mut known = Knowledge::of(self.machine);
        let mut digest = 0;
        let mut reported_ns = 0;
        for n in 0..self.options.steps {
            let Some(step) = self.source.step(self.machine, cpu, self.attackers, n) else { break };
            self.limit_turn(n);
            if let Some(action) = self.action(&step, &known) {
                let (outcome, ticks) = match self.step(cpu, n, &mut known, &action) {
                    Ok(done) => done,
                    Err(finding) => {
                        self.report(cpu, n, &action, &finding);
                        break;
                    }
                };
                digest = outcome.digest(digest);
                TALLY.count(cpu, &action, &outcome, ticks);
            }
            TALLY.at(cpu, n + 1);
            if self.found.load(Ordering::Relaxed) {
                break;
            }
            // Reading the time costs as much as a short call.
            if n % 64 == 63 {
                let elapsed_ns = self.elapsed_ns();
                if elapsed_ns > self.options.seconds.saturating_mul(1_000_000_000) {
                    break;
                }
                if cpu == 0 && elapsed_ns - reported_ns > REPORT_NS {
                    reported_ns = elapsed_ns;
                    TALLY.progress(self.attackers, elapsed_ns, &console::line);
                }
            }
        }
        self.digest.fetch_add(digest, Ordering::AcqRel);
    }

    /// Does one action and asks everybody about it; what came of it, and the ticks that it took.
    fn step(&self, cpu: u64, n: u64, known: &mut Knowledge, action: &Action) -> Result<(Outcome, u64), Text> {
        let guard = action.smmu_of_device().and_then(|smmu| self.devices.get(smmu)).map(Mutex::lock);
        let takes_digest = self.attackers == 1 && n.checked_rem(self.options.digest()) == Some(0);
        let before = if takes_digest { oracle::digest(self.machine) } else { None };
        let measured = Measured::new(self.machine);
        let begin = self.machine.ticks();
        let (outcome, finding) = known.act(&measured, action);
        let ticks = self.machine.ticks() - begin;
        drop(guard);
        if let Some(finding) = finding {
            return Err(finding);
        }
        measured.judge()?;
        if let (Some(before), Outcome::Answered([code, ..])) = (before, outcome)
            && oracle::changes_nothing(code)
            && oracle::digest(self.machine) != Some(before)
        {
            let (function, status) = (action.function(), abi::Status::from_register(code));
            return Err(text!("{function:?} answers {status:?}, and has changed something"));
        }
        let (page, smmu, stream) = oracle::concerns(action, n);
        let stream = stream.or_else(|| self.machine.stream(smmu, Device::Immediate)).unwrap_or(0);
        oracle::step(self.machine, page, smmu, stream)?;
        if n % self.options.every == self.options.every - 1 && cpu == 0 {
            oracle::everything(self.machine)?;
        }
        Ok((outcome, ticks))
    }

    fn report(&self, cpu: u64, n: u64, action: &Action, finding: &Text) {
        // The first says it; the others of the same moment are mostly of the same cause.
        if !self.found.swap(true, Ordering::AcqRel) {
            TALLY.progress(self.attackers, self.elapsed_ns(), &console::line);
            println!("FAIL fuzz: CPU {cpu}, step {n}: {}", finding.as_str());
            println!("fuzz: the step was {action:x?}");
        }
    }

    /// The last look at everything, and what was done; whether nothing was found.
    fn summary(&self) -> bool {
        let (ns, ticks) = (self.elapsed_ns(), self.machine.ticks() - self.begun_ticks);
        let mut found = self.found.load(Ordering::Acquire);
        if !found && let Err(finding) = oracle::everything(self.machine) {
            found = true;
            println!("FAIL fuzz: at the end: {}", finding.as_str());
        }
        let unit = if self.in_turns { "instructions of all CPUs" } else { self.machine.tick_unit() };
        TALLY.summary(self.attackers, ns, unit, &console::line);
        println!("fuzz: digest {:016x}", self.digest.load(Ordering::Acquire));
        println!("measure: fuzz-ticks {ticks} {}", self.machine.tick_unit());
        measured::summary();
        println!("{} passed, {} failed", u8::from(!found), u8::from(found));
        !found
    }
}
