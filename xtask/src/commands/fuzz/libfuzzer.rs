//! Coverage-guided attacks on the build machine: libFuzzer's programs, which `cargo fuzz` builds.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use super::corpus::{self, Corpus};
use crate::progress;
use crate::setup::{cargo_fuzz, toolchain};
use crate::workspace::Workspace;

/// Seconds after which an input is taken to hang.
const HANGS_AFTER: u32 = 60;
/// Seconds that a finding is made smaller for, at the most.
const SHRINKING: u32 = 60;
/// Bytes of an input, at the most: 512 steps of a host.
const LONGEST: u32 = 16 << 10;
/// The same of one that is kept and is a list of choices. Of longer ones the beginning is taken.
const LONGEST_KEPT: u32 = 1536;
/// The target whose inputs are no choices: the beginning of a device tree is none.
const WHOLE: &str = "devicetree";

/// How long, and with how much.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Minutes for each target.
    pub minutes: u64,
    /// Processes for each target.
    pub jobs: u32,
}

/// What libFuzzer last said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Progress {
    executions: u64,
    edges: u64,
    features: u64,
    a_second: u64,
}

/// The built programs.
struct Programs {
    workspace: Workspace,
    directory: PathBuf,
}

/// Attacks one target, or all; whether nothing was found.
///
/// # Errors
///
/// There is no such target, or it cannot be built.
pub fn attack(target: Option<&str>, effort: &Effort) -> Result<bool> {
    let workspace = Workspace::current();
    let targets = chosen(&workspace, target)?;
    let programs = Programs::build(workspace, target)?;
    let mut clean = true;
    for target in &targets {
        clean &= programs.attack(target, effort)?;
    }
    Ok(clean)
}

/// Replaces the kept inputs of one target, or of all, by the smallest that reach as much as all that were found.
///
/// # Errors
///
/// As [`attack`], or an input makes its target fail.
pub fn minimise(target: Option<&str>) -> Result<bool> {
    let workspace = Workspace::current();
    let targets = chosen(&workspace, target)?;
    let programs = Programs::build(workspace, target)?;
    for target in &targets {
        programs.minimise(target)?;
    }
    Ok(true)
}

/// The targets that `fuzz/` has programs for.
fn chosen(workspace: &Workspace, target: Option<&str>) -> Result<Vec<String>> {
    let programs = corpus::files(&workspace.root().join("fuzz/fuzz_targets"));
    let all: Vec<String> =
        programs.iter().filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect();
    match target {
        None => Ok(all),
        Some(target) if all.iter().any(|one| one == target) => Ok(vec![target.to_owned()]),
        Some(target) => bail!("there is no target {target}, but {}", all.join(", ")),
    }
}

impl Programs {
    fn build(workspace: Workspace, target: Option<&str>) -> Result<Self> {
        let mut cargo = workspace.cargo();
        cargo_fuzz::find_or_install(&workspace)?.apply(&mut cargo);
        let directory = workspace.target().join("fuzz");
        // No sanitizer: what runs is our code, which forbids `unsafe`, so there is nothing for AddressSanitizer to find. Without one no flag is
        // left that a stable compiler refuses. Comparisons are not traced: most inputs are choices, in which no constant of the code is to be
        // found, and each would be a call.
        cargo
            .args(["fuzz", "build", "--release", "--sanitizer", "none", "--no-trace-compares"])
            .args(["--codegen-units", "16", "--target-dir"])
            .arg(&directory)
            .args(target);
        if !cargo.status().context("cargo cannot be started")?.success() {
            bail!("the fuzzers were not built");
        }
        let host = toolchain::rustc_field("host")?;
        Ok(Self { directory: directory.join(host).join("release"), workspace })
    }

    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(self.directory.join(target));
        command.arg(format!("-timeout={HANGS_AFTER}")).stdin(Stdio::null());
        command
    }

    fn attack(&self, target: &str, effort: &Effort) -> Result<bool> {
        let corpus = Corpus::of(&self.workspace, target)?;
        let before = written(&corpus.findings);
        let mut command = self.command(target);
        command
            .arg(format!("-max_total_time={}", 60 * effort.minutes))
            .arg(format!("-max_len={LONGEST}"))
            .arg(format!("-artifact_prefix={}/", corpus.findings.display()))
            .args((effort.jobs > 1).then(|| format!("-fork={}", effort.jobs)))
            .args(corpus.directories());
        let (progress, said, status) = watch(&mut command, target)?;
        println!(
            "{target}: {} executions, {} a second; {} edges, {} features, {} inputs",
            progress.executions,
            progress.a_second,
            progress.edges,
            progress.features,
            corpus::files(&corpus.found).len()
        );
        if let Some(line) = said.iter().rfind(|line| line.starts_with(PACE)) {
            println!("    {line}");
        }
        let mut findings = written(&corpus.findings);
        findings.retain(|finding| !before.contains(finding) && !is_slow(&finding.0));
        if let Some(line) =
            said.iter().position(|line| line.contains("panicked at") || line.contains("ERROR:"))
        {
            said.iter().skip(line).take(4).for_each(|line| println!("    {line}"));
        }
        for (finding, _) in &findings {
            let kept = corpus.keep_finding(&self.shrink(target, finding)?)?;
            println!("    found by {}", finding.display());
            println!("    kept as {}, which `cargo test -p tests --test corpora` replays", kept.display());
        }
        if findings.is_empty() && !status.success() {
            bail!("{target} ended with {status} and left no input: {}", last_of(&said));
        }
        Ok(findings.is_empty())
    }

    /// A smaller input that fails too: as `cargo fuzz tmin` does it.
    fn shrink(&self, target: &str, finding: &Path) -> Result<PathBuf> {
        let smaller = finding.with_extension("small");
        let mut command = self.command(target);
        command
            .args(["-minimize_crash=1", &format!("-max_total_time={SHRINKING}")])
            .arg(format!("-exact_artifact_path={}", smaller.display()))
            .arg(finding);
        watch(&mut command, "a smaller input")?;
        Ok(if smaller.exists() { smaller } else { finding.to_owned() })
    }

    fn minimise(&self, target: &str) -> Result<()> {
        let corpus = Corpus::of(&self.workspace, target)?;
        let merged = corpus.found.with_extension("merged");
        let _ = fs::remove_dir_all(&merged);
        fs::create_dir_all(&merged)?;
        let mut command = self.command(target);
        let longest = if target == WHOLE { LONGEST } else { LONGEST_KEPT };
        // How often an edge is taken is for the search: inputs that together take each are enough to keep.
        command.args(["-set_cover_merge=1", "-use_counters=0", &format!("-max_len={longest}")]);
        command.arg(&merged).args(corpus.directories());
        let (_, said, _) = watch(&mut command, target)?;
        let Some(line) =
            said.iter().find(|line| line.contains("MERGE-OUTER: ") && line.contains("new files with"))
        else {
            bail!("{target}: the inputs could not be merged: {}", last_of(&said));
        };
        let (files, bytes) = corpus.replace_kept(&merged)?;
        fs::remove_dir_all(&merged)?;
        println!("{target}: {files} inputs, {bytes} bytes in {} ({})", corpus.kept.display(), line.trim());
        Ok(())
    }
}

/// How a line begins in which a target says how fast it is itself.
const PACE: &str = "pace: ";

/// Files of a directory, and when they were written: the name of a finding is made of its bytes, so one that comes back has the name that it had.
fn written(directory: &Path) -> Vec<(PathBuf, Option<SystemTime>)> {
    let when = |file: &PathBuf| fs::metadata(file).and_then(|metadata| metadata.modified()).ok();
    corpus::files(directory).into_iter().map(|file| (file.clone(), when(&file))).collect()
}

/// libFuzzer also keeps inputs that were only slow.
fn is_slow(finding: &Path) -> bool {
    finding.file_name().is_some_and(|name| name.to_string_lossy().starts_with("slow-unit"))
}

fn last_of(said: &[String]) -> &str {
    said.last().map_or("it said nothing", String::as_str)
}

/// Runs a fuzzer; where it got, what it said besides, and how it ended.
fn watch(command: &mut Command, what: &str) -> Result<(Progress, Vec<String>, ExitStatus)> {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
    let spinner = progress::spinner(what);
    let (mut progress, mut said) = (Progress::default(), Vec::new());
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            match Progress::read(&line) {
                Some(read) => {
                    spinner.set_message(format!("{what}: {line}"));
                    progress = read;
                }
                None => said.push(line),
            }
        }
    }
    let status = child.wait()?;
    spinner.finish_and_clear();
    Ok((progress, said, status))
}

impl Progress {
    /// Reads `#4096 pulse cov: 12 ft: 34 corp: 5/6b lim: 7 exec/s: 89 rss: 30Mb`, or what several processes say.
    fn read(line: &str) -> Option<Self> {
        let executions =
            line.strip_prefix('#')?.split(|sign: char| !sign.is_ascii_digit()).next()?.parse().ok()?;
        let after = |name: &str| {
            let mut words = line.split_whitespace().skip_while(|word| *word != name);
            words.nth(1)?.parse().ok()
        };
        Some(Self { executions, edges: after("cov:")?, features: after("ft:")?, a_second: after("exec/s:")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_is_read() {
        let one = "#4194304\tpulse  cov: 212 ft: 345 corp: 60/1024b lim: 4096 exec/s: 699050 rss: 45Mb";
        let wanted = Progress { executions: 4_194_304, edges: 212, features: 345, a_second: 699_050 };
        assert_eq!(Progress::read(one), Some(wanted));
        let several =
            "#1234: cov: 56 ft: 78 corp: 9 exec/s: 10 oom/timeout/crash: 0/0/0 time: 11s job: 2 dft_time: 0";
        let wanted = Progress { executions: 1234, edges: 56, features: 78, a_second: 10 };
        assert_eq!(Progress::read(several), Some(wanted));
        assert_eq!(Progress::read("#0\tREAD units: 3"), None);
        assert_eq!(Progress::read("INFO: seed corpus"), None);
    }
}
