//! `cargo xtask fuzz --in-qemu`: random steps in the machine, and what to do with a run that dies.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use host_shim::hostile::{Rules, Shape};

use super::recording::Recording;
use super::regressions;
use super::shrink::shrink;
use crate::console::Console;
use crate::emulator::{self, Entry, Outcome, Record, Run};
use crate::image::{self, Images, write_if_changed};
use crate::machine;
use crate::payload::Blob;
use crate::setup::{self, Qemu};
use crate::workspace::Workspace;

/// Time that a machine has besides its steps: to boot, and to end.
const BESIDES: Duration = Duration::from_secs(60);
/// Time without a word after which a machine hangs.
const SILENCE: Duration = Duration::from_secs(60);
/// Recordings that are replayed at the most to make one shorter.
const TRIES: usize = 250;
/// Steps that one CPU tries to find the same by, where no replay does.
const STEPS_ALONE: u64 = 20_000;
/// A replay looks at everything as often as this, or after every step.
const LOOKS: usize = 8;
/// Of a replay that is not longer than this, a digest is taken before and after every step.
const DIGESTS: usize = 300;

/// Options of `fuzz --in-qemu`, and those of `fuzz --host linux`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Steps follow from it; a new one each time unless given
    #[arg(long, requires = "in_machine", value_name = "N")]
    pub(super) seed: Option<u64>,
    /// Number of CPUs, 1 to 8; the last of several changes memory while the others call
    #[arg(long, requires = "in_machine", default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(super) cpus: u8,
    /// Number of SMMUs, 1 to 8
    #[arg(long, requires = "in_machine", default_value_t = 3, value_name = "N")]
    pub(super) smmus: u8,
    /// Count instructions: the same seed does the same each time, to the instruction; with several CPUs only devices that the host keeps do DMA then
    #[arg(long, requires = "in_machine")]
    pub(super) icount: bool,
    /// Steps of each CPU at the most
    #[arg(long, requires = "in_machine", value_name = "N")]
    pub(super) steps: Option<u64>,
    /// Without calls that change who owns memory
    #[arg(long, requires = "in_machine")]
    pub(super) calm: bool,
    /// Hypercalls alone: no accesses, nothing that drivers and devices do
    #[arg(long, requires = "in_machine")]
    pub(super) calls: bool,
    /// The steps of this file instead of those of a seed; its name says the machine, and whether they are calm or calls
    #[arg(long, requires = "in_machine", value_name = "FILE", conflicts_with_all = ["seed", "cpus", "smmus", "steps", "calm", "calls"])]
    pub(super) replay: Option<PathBuf>,
}

impl Options {
    /// Those of somebody who says how many CPUs there are, and leaves the rest as it is.
    const fn with_cpus(cpus: u8) -> Self {
        Self {
            seed: None,
            cpus,
            smmus: 3,
            icount: false,
            steps: None,
            calm: false,
            calls: false,
            replay: None,
        }
    }

    const fn shape(&self) -> Shape {
        Shape { smmus: self.smmus, cpus: self.cpus }
    }

    const fn rules(&self) -> Rules {
        Rules { calm: self.calm, calls: self.calls }
    }

    /// What to type for the same run again. `host` is the option that says who attacks.
    pub(super) fn command(&self, host: &str, seed: u64, minutes: u64) -> String {
        let Self { cpus, smmus, .. } = self;
        let steps = self.steps.map_or_else(String::new, |steps| format!(" --steps {steps}"));
        let icount = if self.icount { " --icount" } else { "" };
        let rules = names(self.rules(), " --");
        format!(
            "cargo xtask fuzz {host} --seed {seed} --minutes {minutes}{steps} --cpus {cpus} --smmus {smmus}{icount}{rules}"
        )
    }

    /// What the host program is told.
    fn bootargs(&self, seed: u64, minutes: u64) -> String {
        let steps = self.steps.map_or_else(String::new, |steps| format!(" steps={steps}"));
        format!("seed={seed} seconds={}{steps}{}", minutes * 60, names(self.rules(), " "))
    }
}

/// The names of the rules that hold, each after this: options and the host program's words have the same ones.
fn names(rules: Rules, before: &str) -> String {
    rules.names().map(|name| format!("{before}{name}")).collect()
}

/// What runs, and where.
pub struct Target {
    workspace: Workspace,
    qemu: Qemu,
    images: Images,
}

/// Little, since the oracle looks at all of it again and again.
const MEMORY: &str = "256M";

/// An instruction is this power of two in nanoseconds where several CPUs take turns. QEMU ends none of them later than after a tenth of a second of virtual
/// time by as many as there are CPUs. If a turn takes it long, its threads that wait for memory which a turn may use end that turn early, each time at another
/// instruction.
const IN_TURNS: u8 = 4;

/// What the host program says of an error that was none.
const CHANGED: &str = "has changed something";

/// One run of the host program.
struct Attempt<'a> {
    /// For its log.
    name: &'a str,
    shape: Shape,
    icount: bool,
    /// Besides `fuzz`.
    bootargs: String,
    /// Steps instead of those of a seed.
    recording: Option<&'a Recording>,
    timeout: Duration,
    show: bool,
}

/// How a run died: two with the same are taken for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death(pub(super) String);

impl Target {
    /// Builds the hypervisor with its oracle, apart from the release image.
    ///
    /// # Errors
    ///
    /// Set-up or build failed.
    pub fn prepare(workspace: &Workspace) -> Result<Self> {
        let tools = setup::run(false)?;
        let images = image::build_with_oracle(workspace, tools.standard_library)?;
        Ok(Self { workspace: workspace.clone(), qemu: tools.qemu, images })
    }

    /// Runs the host program's attack.
    ///
    /// # Errors
    ///
    /// QEMU cannot be started, or a file cannot be written.
    fn run(&self, attempt: &Attempt<'_>) -> Result<Record> {
        let mut software = self.images.software();
        if let Some(recording) = attempt.recording {
            let path = self.workspace.images()?.join(format!("{}.steps", attempt.name));
            let bytes = recording.bytes();
            write_if_changed(&path, &bytes)?;
            software.host.ramdisk = Some(Blob { path, bytes: bytes.len() as u64 });
        }
        let shape = attempt.shape;
        let log2_ns = attempt.icount.then_some(if shape.cpus > 1 { IN_TURNS } else { 0 });
        let counts = log2_ns.map_or_else(String::new, |log2_ns| format!(" icount={log2_ns}"));
        let run = Run {
            name: attempt.name,
            shape: machine::Shape::new(shape.smmus, shape.cpus, MEMORY.parse()?)?,
            entry: Entry::Image,
            bootargs: format!("fuzz {}{counts}", attempt.bootargs),
            extra: log2_ns.map_or_else(Vec::new, emulator::count_instructions),
            timeout: attempt.timeout,
            // It says how far it is every two seconds of its own clock, which is ours unless instructions are counted.
            silence: (!attempt.icount).then_some(SILENCE),
            show: attempt.show,
            logs: self.workspace.logs()?,
        };
        emulator::run(&run, &self.qemu, &software)
    }

    /// Replays a recording, and looks at everything [`LOOKS`] times; whether errors change something is looked at unless another `death` is known.
    fn run_recording(
        &self,
        name: &str,
        recording: &Recording,
        icount: bool,
        death: Option<&Death>,
        show: bool,
    ) -> Result<(Record, Duration)> {
        let steps = recording.steps.len();
        let timeout = BESIDES + Duration::from_millis(steps as u64 * 4);
        let digest = match death {
            Some(Death(text)) if !text.contains(CHANGED) => 0,
            _ if steps <= DIGESTS => 1,
            _ => 32,
        };
        let record = self.run(&Attempt {
            name,
            shape: recording.shape,
            icount,
            bootargs: format!(
                "every={} digest={digest}{}",
                (steps / LOOKS).max(1),
                names(recording.rules, " ")
            ),
            recording: Some(recording),
            timeout,
            show,
        })?;
        Ok((record, timeout))
    }

    /// Replays a recording; how it died, if it did.
    ///
    /// # Errors
    ///
    /// As [`Target::run`].
    pub fn replay(&self, name: &str, recording: &Recording, icount: bool) -> Result<Option<Death>> {
        Ok(Death::of(&self.run_recording(name, recording, icount, None, false)?.0))
    }

    /// Whether a recording dies of this.
    fn dies(&self, name: &str, recording: &Recording, icount: bool, death: &Death) -> Result<bool> {
        let (record, _) = self.run_recording(name, recording, icount, Some(death), false)?;
        Ok(Death::of(&record).as_ref() == Some(death))
    }
}

impl Death {
    /// How a run died; `None` of one that did not.
    pub fn of(record: &Record) -> Option<Self> {
        if record.passed() {
            return None;
        }
        let said = cause(&record.console).map(without_numbers);
        Some(Self(match record.outcome {
            Outcome::Hung => "hang".to_owned(),
            Outcome::Said { .. } | Outcome::Silent => said.unwrap_or_else(|| "silent end".to_owned()),
        }))
    }

    /// As a part of a file's name.
    fn slug(&self) -> String {
        let words = self.0.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        words.take(8).collect::<Vec<_>>().join("-").to_lowercase()
    }
}

/// What a run says that it died of.
fn cause(console: &Console) -> Option<&str> {
    let of_hypervisor = |line: &&str| line.starts_with("hyp: panic") || line.starts_with("hyp: unexpected");
    let mut lines = console.lines();
    // When it was found is another time each time.
    let mut found =
        lines.clone().filter_map(|line| Some(line.strip_prefix("FAIL fuzz: ")?.split_once(": ")?.1));
    lines.find(of_hypervisor).or_else(|| found.next())
}

/// A text without its numbers, by which causes are compared.
fn without_numbers(text: &str) -> String {
    let words = text.split_whitespace().filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}

/// A seed that nobody has had: the time.
pub fn new_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64 >> 10)
}

/// Runs for so many minutes of the machine's clock; whether nothing was found. What was is replayed, made shorter and stored.
///
/// # Errors
///
/// Set-up, build or QEMU failed, or the recording cannot be read.
pub fn run(options: &Options, minutes: u64) -> Result<bool> {
    let target = Target::prepare(&Workspace::current())?;
    if let Some(path) = &options.replay {
        let recording = Recording::read(path)?;
        println!("replay of {} steps, {:?}, {:?}", recording.steps.len(), recording.shape, recording.rules);
        let (record, timeout) = target.run_recording("fuzz", &recording, options.icount, None, true)?;
        println!("{}", record.sentence(timeout));
        return Ok(record.passed());
    }
    let seed = options.seed.unwrap_or_else(new_seed);
    Ok(attack(&target, seed, options, minutes)?.passed())
}

/// Attacks by the steps of a seed. What is found is replayed, made shorter and stored.
///
/// # Errors
///
/// As [`Target::run`].
fn attack(target: &Target, seed: u64, options: &Options, minutes: u64) -> Result<Record> {
    println!("seed {seed}: again with `{}`", options.command("--in-qemu", seed, minutes));
    // An instruction that is counted is a nanosecond of the machine's clock, and takes several of ours.
    let timeout = Duration::from_secs(minutes * 60) * if options.icount { 20 } else { 1 } + BESIDES;
    let attempt = Attempt {
        name: "fuzz",
        shape: options.shape(),
        icount: options.icount,
        bootargs: options.bootargs(seed, minutes),
        recording: None,
        timeout,
        show: true,
    };
    let record = target.run(&attempt)?;
    println!("{} ({:.1} seconds)", record.sentence(timeout), record.elapsed.as_secs_f64());
    if let Some(death) = Death::of(&record) {
        store(target, seed, options, &record, &death)?;
    }
    Ok(record)
}

/// The recording of a run that died, as short as it can be made, in `tests/regressions`.
fn store(target: &Target, seed: u64, options: &Options, record: &Record, death: &Death) -> Result<()> {
    println!("died of: {}", death.0);
    let done = most_steps(&record.console).unwrap_or(0);
    // A CPU that hangs says nothing more of how far it came.
    let count = done + if record.outcome == Outcome::Hung { done / 2 + 1000 } else { 1 };
    let whole = Recording::of_seed(options.shape(), options.rules(), seed, count);
    let Some((recording, icount)) = again(target, &whole, seed, options.icount, death)? else {
        println!(
            "no replay dies of the same: it depends on what CPUs did at the same time. The seed may find it again."
        );
        return Ok(());
    };
    println!("a replay of {} steps on {} CPUs dies of the same", recording.steps.len(), recording.shape.cpus);
    let mut tries = 0;
    let steps = shrink(&recording.steps, TRIES, |steps| {
        tries += 1;
        let shorter = Recording { steps: steps.to_vec(), ..recording };
        let dies = target.dies("fuzz-shrink", &shorter, icount, death)?;
        if dies {
            println!("{} steps are enough ({tries} tries)", steps.len());
        }
        Ok::<_, anyhow::Error>(dies)
    })?;
    let shortest = Recording { steps, ..recording };
    let directory = regressions::directory(&target.workspace);
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let path = directory.join(format!("{}{}", death.slug(), shortest.name_end()));
    std::fs::write(&path, shortest.bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{} steps are in {}: `cargo xtask test` replays them", shortest.steps.len(), path.display());
    Ok(())
}

/// A recording that dies of the same: best on one CPU, where instructions can be counted.
fn again(
    target: &Target,
    whole: &Recording,
    seed: u64,
    icount: bool,
    death: &Death,
) -> Result<Option<(Recording, bool)>> {
    let attackers = usize::from(whole.shape.attackers());
    let alone = Shape { cpus: 1, ..whole.shape };
    let mut candidates = Vec::new();
    if attackers == 1 && whole.shape.cpus == 1 {
        candidates.push((whole.clone(), true));
    } else {
        for cpu in 0..attackers {
            let steps = whole.steps.iter().skip(cpu).step_by(attackers).copied().collect();
            candidates.push((Recording { shape: alone, steps, ..*whole }, true));
        }
        candidates.push((Recording { shape: alone, ..whole.clone() }, true));
        // In turns, and at the same time as it was.
        candidates.push((whole.clone(), true));
        candidates.extend((!icount).then(|| (whole.clone(), false)));
        // What CPUs did at the same time does not come back, but one CPU may find the same by other steps.
        let long = |seed| (Recording::of_seed(alone, whole.rules, seed, STEPS_ALONE), true);
        candidates.extend((seed..).take(3).map(long));
    }
    for (recording, icount) in candidates {
        if target.dies("fuzz-again", &recording, icount, death)? {
            return Ok(Some((recording, icount)));
        }
    }
    Ok(None)
}

/// The most steps that a CPU said that it did.
fn most_steps(console: &Console) -> Option<u64> {
    let lines = console.lines().filter_map(|line| line.strip_prefix("fuzz: ")?.split_once(" steps, "));
    lines.filter_map(|(_, rest)| rest.split_once(" of one of ")?.0.parse().ok()).last()
}

/// What [`Options`] are in `cargo xtask test`: two minutes on four CPUs with a new seed.
///
/// # Errors
///
/// As [`Target::run`].
pub fn test(target: &Target, minutes: u64) -> Result<Record> {
    attack(target, new_seed(), &Options::with_cpus(4), minutes)
}

/// Steps of each CPU in a run that must do the same twice: so many that a device reaches memory more than once or twice.
const REPEATED_STEPS: u64 = 8000;
/// Minutes of the machine's clock that such a run has: many more than it takes.
const REPEATED_MINUTES: u64 = 2;

/// Whether a new seed does the same twice on this many CPUs, to the instruction: the digests of all answers, and the instructions. With one CPU
/// every step is judged by what only such a run can know: that an error changed nothing, and how many instructions EL2 took.
///
/// # Errors
///
/// As [`Target::run`], or a run did not say what it did.
pub fn is_repeatable(target: &Target, cpus: u8) -> Result<bool> {
    let options = Options { icount: true, steps: Some(REPEATED_STEPS), ..Options::with_cpus(cpus) };
    let seed = new_seed();
    println!("seed {seed}: again with `{}`", options.command("--in-qemu", seed, REPEATED_MINUTES));
    let mut seen = Vec::new();
    for _ in 0..2 {
        let attempt = Attempt {
            name: "fuzz-icount",
            shape: options.shape(),
            icount: true,
            bootargs: options.bootargs(seed, REPEATED_MINUTES),
            recording: None,
            timeout: BESIDES * 4,
            show: false,
        };
        let record = target.run(&attempt)?;
        if !record.passed() {
            println!("{}", record.sentence(attempt.timeout));
            if let Some(death) = Death::of(&record) {
                store(target, seed, &options, &record, &death)?;
            }
            return Ok(false);
        }
        let digest = record.console.lines().find_map(|line| line.strip_prefix("fuzz: digest "));
        let digest = digest.context("a run of `fuzz` has no digest")?.to_owned();
        let measured = |name: &str| {
            let measure = record.console.measures().iter().find(|measure| measure.name == name);
            measure.map(|measure| measure.value).with_context(|| format!("a run of `fuzz` has no {name}"))
        };
        let (ticks, landed) = (measured("fuzz-ticks")?, measured("fuzz-landed")?);
        println!("{cpus} CPUs: digest {digest}, {ticks} instructions, {landed} transfers reached memory");
        seen.push((digest, ticks, landed));
    }
    Ok(seen.iter().all(|(.., landed)| *landed > 0) && seen.windows(2).all(|pair| pair[0] == pair[1]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fuzz::Arguments;

    #[test]
    fn the_command_that_is_printed_does_the_same_run() {
        for text in [
            "--in-qemu",
            "--in-qemu --minutes 7 --steps 50 --cpus 2 --smmus 1 --icount",
            "--in-qemu --calm",
            "--in-qemu --calls --cpus 1",
            "--in-qemu --calm --calls --steps 9",
        ] {
            let first = Arguments::typed(text).expect(text);
            let command = first.machine.command("--in-qemu", 77, first.minutes);
            let words = command.strip_prefix("cargo xtask fuzz ").expect("it is a command of this kind");
            let again = Arguments::typed(words).expect(words);
            assert_eq!(again.machine.seed, Some(77));
            let run = |of: &Arguments| {
                (of.machine.bootargs(77, of.minutes), of.machine.shape(), of.machine.icount, of.in_qemu)
            };
            assert_eq!(run(&again), run(&first), "{text}");
        }
    }

    #[test]
    fn the_rules_reach_the_host_program_and_the_recording() {
        let options = Arguments::typed("--in-qemu --calm --calls --steps 9").expect("options").machine;
        assert_eq!(options.bootargs(7, 2), "seed=7 seconds=120 steps=9 calm calls");
        let recording = Recording::of_seed(options.shape(), options.rules(), 7, 1);
        assert_eq!(recording.name_end(), "-s3-c4-calm-calls.steps");
        for option in ["--calm", "--calls", "--steps 9", "--cpus 4", "--seed 1"] {
            assert!(Arguments::typed(&format!("--in-qemu --replay x {option}")).is_err(), "{option}");
        }
    }

    fn console(text: &str) -> Console {
        let mut console = Console::default();
        console.feed(text.as_bytes());
        console
    }

    #[test]
    fn the_cause_of_a_death_has_no_numbers() {
        let text = "fuzz: 12 steps, 7 of one of 3 CPUs, 9 calls/s\nFAIL fuzz: CPU 2, step 77: oracle: a page (page, state): 0x40, 0x5\n";
        let seen = console(text);
        assert_eq!(cause(&seen).map(without_numbers).unwrap(), "oracle: a page (page, state):");
        let seen_at_the_end = console("FAIL fuzz: at the end: oracle: a page (page, state): 0x77, 0x9\n");
        assert_eq!(cause(&seen_at_the_end).map(without_numbers), cause(&seen).map(without_numbers));
        assert_eq!(most_steps(&seen), Some(7));
        let seen = console("FAIL fuzz: x\nhyp: panic on CPU 0x0: index out of bounds\n");
        assert_eq!(cause(&seen).map(without_numbers).unwrap(), "hyp: panic on CPU index out of bounds");
        assert_eq!(Death("oracle: a page's state (page)".into()).slug(), "oracle-a-page-s-state-page");
    }
}
