//! One run of QEMU: started, watched, and ended whatever happens.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::console::Console;
use crate::machine::device_tree::{self, Boot, Module, ModuleKind};
use crate::machine::map::{self, Range};
use crate::machine::{Shape, qemu};
use crate::payload::{Payload, Software};
use crate::setup::Qemu;

/// Where QEMU puts the hypervisor's `Image`, whose header has no offset: above what it keeps for itself at the start of RAM.
pub const HYPERVISOR_ADDRESS: u64 = map::RAM_START + 0x0020_0000;

/// Where the host's kernel is put: above the hypervisor, below the device tree, and a multiple of 2 MiB.
const KERNEL_ADDRESS: u64 = map::RAM_START + 0x0400_0000;

/// How long QEMU may take to leave after the guest's outcome.
const GRACE: Duration = Duration::from_secs(30);
/// The same where each instruction of EL2 is logged, of which it needs more than a million to leave.
const GRACE_WITH_LOG: Duration = Duration::from_secs(120);

/// Bytes that are kept for the device tree, which may be at most this long.
const TREE_ROOM: u64 = 2 << 20;

/// How the hypervisor is started, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// As an arm64 `Image`, with the device tree's address in x0.
    Image,
    /// As an ELF, with 0 in x0 and the device tree at the start of RAM.
    Elf,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// Name of the run, for its log.
    pub name: &'a str,
    /// The machine.
    pub shape: Shape,
    /// How the hypervisor starts.
    pub entry: Entry,
    /// The host's command line.
    pub bootargs: String,
    /// More arguments of QEMU.
    pub extra: Vec<String>,
    /// When a guest that has said nothing final is ended.
    pub timeout: Duration,
    /// When one that has said nothing at all for so long is ended, if before that: for guests that say how far they are.
    pub silence: Option<Duration>,
    /// Whether the console is shown while it runs.
    pub show: bool,
    /// Directory of the log.
    pub logs: PathBuf,
}

/// How the guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It printed `outcome: pass`, or `outcome: fail`.
    Said {
        /// Which of the two.
        pass: bool,
    },
    /// It turned the machine off without a word, or QEMU could not run it.
    Silent,
    /// It was ended when its time was over, or it had been silent for too long.
    Hung,
}

/// What is left of a run.
#[derive(Debug)]
pub struct Record {
    /// How it ended.
    pub outcome: Outcome,
    /// What it printed.
    pub console: Console,
    /// The log with all that it printed.
    pub log: PathBuf,
    /// How long it took.
    pub elapsed: Duration,
}

impl Record {
    /// Whether the guest said that all is well.
    pub fn passed(&self) -> bool {
        self.outcome == Outcome::Said { pass: true } && self.console.failed() == Some(0)
    }

    /// The outcome as a sentence, with where the log is when it is not a good one.
    pub fn sentence(&self, timeout: Duration) -> String {
        let log = self.log.display();
        match self.outcome {
            Outcome::Said { pass: true } if self.passed() => "the guest says: pass".to_owned(),
            Outcome::Said { pass: true } => {
                format!("the guest says pass, but its summary does not say `0 failed`; its log is {log}")
            }
            Outcome::Said { pass: false } => format!("the guest says: fail; its log is {log}"),
            Outcome::Silent => format!("the machine stopped without an outcome; its log is {log}"),
            Outcome::Hung if self.console.outcome().is_some() => {
                format!("the guest said its outcome, and the machine did not go off; its log is {log}")
            }
            Outcome::Hung if self.elapsed < timeout => {
                format!("the guest was ended because it said nothing any more; its log is {log}")
            }
            Outcome::Hung => format!(
                "the guest was ended after {} seconds without an outcome; its log is {log}\n\
                 If it needs longer, type --timeout SECONDS",
                timeout.as_secs()
            ),
        }
    }
}

/// A directory of one run: device tree and disk images. It goes when the run does.
struct Scratch(PathBuf);

impl Scratch {
    fn new(run: &Run<'_>) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("xtask-{}-{}", std::process::id(), run.name));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let scratch = Self(path);
        qemu::make_images(&run.shape, &scratch.0)?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a signal ends: QEMU's process, and the directory that its run left.
struct Live {
    child: Child,
    scratch: PathBuf,
}

static LIVE: Mutex<Option<Live>> = Mutex::new(None);

fn live() -> MutexGuard<'static, Option<Live>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes Ctrl-C, and the other signals that ask a program to end, end QEMU too.
///
/// # Errors
///
/// The handler cannot be installed.
pub fn end_on_signal() -> Result<()> {
    ctrlc::set_handler(|| {
        if let Some(mut live) = live().take() {
            let _ = live.child.kill();
            let _ = live.child.wait();
            let _ = fs::remove_dir_all(&live.scratch);
            eprintln!("\ninterrupted: QEMU was ended");
        }
        std::process::exit(130);
    })
    .context("the handler for Ctrl-C cannot be installed")
}

/// QEMU's whole command line, with the files in `scratch` that it names.
fn command(run: &Run<'_>, qemu: &Qemu, software: &Software, scratch: &Path) -> Result<Command> {
    let host = &software.host;
    let mut command = qemu.command();
    command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
    command.args(qemu::arguments(&run.shape, scratch));
    let modules = match &software.hypervisor {
        Some(hypervisor) => {
            command.arg("-kernel").arg(match run.entry {
                Entry::Image => &hypervisor.flat,
                Entry::Elf => &hypervisor.elf,
            });
            let modules = place(&run.shape, host)?;
            let files = [Some(&host.kernel), host.ramdisk.as_ref()].into_iter().flatten();
            for (file, module) in files.zip(&modules) {
                command.args(qemu::loader(&file.path, module.range.start));
            }
            modules
        }
        None => {
            command.arg("-kernel").arg(&host.kernel.path);
            if let Some(ramdisk) = &host.ramdisk {
                command.arg("-initrd").arg(&ramdisk.path);
            }
            Vec::new()
        }
    };
    let boot = Boot { modules, bootargs: run.bootargs.clone() };
    let tree = scratch.join("machine.dtb");
    fs::write(&tree, device_tree::build(&run.shape, &boot)?).context("cannot write the device tree")?;
    command.arg("-dtb").arg(&tree).args(&run.extra);
    Ok(command)
}

/// Where the host's files go for the hypervisor to find: the kernel below the device tree, the ramdisk above it.
fn place(shape: &Shape, host: &Payload) -> Result<Vec<Module>> {
    let memory = shape.memory();
    let kernel = Module { kind: ModuleKind::Kernel, range: Range::new(KERNEL_ADDRESS, host.kernel.bytes) };
    // QEMU puts the device tree of an `Image` half way through the memory, or 128 MiB into it.
    let tree = map::RAM_START + (memory.bytes() / 2).min(128 << 20);
    if kernel.range.end() > tree {
        bail!("{} has {} bytes: too many for {memory} of memory", host.name, host.kernel.bytes);
    }
    let mut modules = vec![kernel];
    if let Some(ramdisk) = &host.ramdisk {
        let range = Range::new(tree + TREE_ROOM, ramdisk.bytes);
        if range.end() > map::RAM_START + memory.bytes() {
            bail!("{}'s ramdisk has {} bytes: too many for {memory} of memory", host.name, ramdisk.bytes);
        }
        modules.push(Module { kind: ModuleKind::Ramdisk, range });
    }
    Ok(modules)
}

/// Arguments with which one instruction is this power of two in nanoseconds of virtual time. The generic timer counts those, so with 0 a tick is an
/// instruction, exactly and repeatably. The machine's calendar begins with the same second each time.
pub fn count_instructions(log2_ns: u8) -> Vec<String> {
    let shift = format!("shift={log2_ns},sleep=off");
    let arguments = ["-icount", &shift, "-rtc", "base=2026-01-01T00:00:00,clock=vm"];
    arguments.map(Into::into).to_vec()
}

/// Arguments with which a reset starts the machine anew; without them it ends the run, as does the end of a guest that went wrong.
pub fn reset_on_reboot() -> Vec<String> {
    vec!["-action".into(), "reboot=reset".into()]
}

/// Runs the guest until it ends, or its time is over.
///
/// # Errors
///
/// QEMU cannot be started, or a file cannot be written. A guest that fails is no error: see [`Record::outcome`].
pub fn run(run: &Run<'_>, qemu: &Qemu, software: &Software) -> Result<Record> {
    let path = run.logs.join(format!("{}.qemu.log", run.name));
    let complaints = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let record = watch(run, qemu, software, complaints.into(), GRACE, |_| ())?;
    for line in fs::read_to_string(path).unwrap_or_default().lines() {
        complain(line);
    }
    Ok(record)
}

/// As [`run`], while `read` reads QEMU's log (`-d`) from a pipe: it may be longer than a disk has room for. What QEMU complains of
/// comes the same way; see [`complain`].
///
/// # Errors
///
/// As [`run`].
pub fn run_with_log<T: Send + 'static>(
    run: &Run<'_>,
    qemu: &Qemu,
    software: &Software,
    read: impl FnOnce(ChildStderr) -> T + Send + 'static,
) -> Result<(Record, T)> {
    let mut reader = None;
    let record = watch(run, qemu, software, Stdio::piped(), GRACE_WITH_LOG, |log| {
        reader = log.map(|log| thread::spawn(move || read(log)));
    })?;
    let read = reader.and_then(|reader| reader.join().ok()).context("QEMU's log could not be read")?;
    Ok((record, read))
}

/// Shows a complaint of QEMU's, but for one that is known and of no consequence.
pub fn complain(line: &str) {
    if !line.contains("only supported with pcie.0 for DT") {
        eprintln!("{line}");
    }
}

/// Runs the guest with QEMU's standard error as it is said; `started_with` gets it if it is a pipe. QEMU has `grace` to leave after the
/// guest's outcome.
fn watch(
    run: &Run<'_>,
    qemu: &Qemu,
    software: &Software,
    stderr: Stdio,
    grace: Duration,
    started_with: impl FnOnce(Option<ChildStderr>),
) -> Result<Record> {
    let scratch = Scratch::new(run)?;
    let log_path = run.logs.join(format!("{}.log", run.name));
    let mut log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let started = Instant::now();
    let mut child = command(run, qemu, software, &scratch.0)?
        .args(["-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .context("QEMU cannot be started: type `cargo xtask setup`")?;
    let Some(mut stdout) = child.stdout.take() else { bail!("QEMU has no standard output") };
    started_with(child.stderr.take());
    *live() = Some(Live { child, scratch: scratch.0.clone() });

    let (sender, receiver) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stdout.read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut console = Console::default();
    let mut deadline = started + run.timeout;
    let mut hung = false;
    loop {
        let patience = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(run.silence.map_or(patience, |silence| patience.min(silence))) {
            Ok(bytes) => {
                log.write_all(&bytes)?;
                if run.show {
                    let mut out = std::io::stdout().lock();
                    let _ = out.write_all(&bytes).and_then(|()| out.flush());
                }
                let had_outcome = console.outcome().is_some();
                console.feed(&bytes);
                if console.outcome().is_some() && !had_outcome {
                    deadline = deadline.min(Instant::now() + grace);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                hung = true;
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if let Some(mut ended) = live().take() {
        if hung {
            let _ = ended.child.kill();
        }
        ended.child.wait()?;
    }
    let _ = reader.join();
    console.finish();
    let outcome = match console.outcome() {
        // A machine that says its outcome and then does not go off has not done what PSCI SYSTEM_OFF asks.
        Some(_) | None if hung => Outcome::Hung,
        Some(pass) => Outcome::Said { pass },
        None => Outcome::Silent,
    };
    Ok(Record { outcome, console, log: log_path, elapsed: started.elapsed() })
}

/// Runs QEMU with the terminal as the guest's console until it ends by itself or by the user. If the console is
/// `interactive` all keys go to the guest, but Ctrl-A X ends QEMU; else none do, and Ctrl-C ends it.
///
/// # Errors
///
/// QEMU cannot be started, or fails.
pub fn attached(run: &Run<'_>, qemu: &Qemu, software: &Software, interactive: bool) -> Result<()> {
    let scratch = Scratch::new(run)?;
    let (serial, stdin) =
        if interactive { ("mon:stdio", Stdio::inherit()) } else { ("stdio", Stdio::null()) };
    let child = command(run, qemu, software, &scratch.0)?
        .args(["-serial", serial])
        .stdin(stdin)
        .spawn()
        .context("QEMU cannot be started: type `cargo xtask setup`")?;
    *live() = Some(Live { child, scratch: scratch.0.clone() });
    loop {
        thread::sleep(Duration::from_millis(100));
        let mut guard = live();
        let Some(running) = guard.as_mut() else { return Ok(()) };
        if let Some(status) = running.child.try_wait()? {
            *guard = None;
            if !status.success() {
                bail!("QEMU ended with {status}");
            }
            return Ok(());
        }
    }
}
