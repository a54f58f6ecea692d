//! The tests of this machine on a mutated tree.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Verdict;
use crate::workspace::Workspace;

/// The tests that see a fault of the hypervisor or of the host's stage 1: those first that are quick to build and run.
const TESTS: [&[&str]; 6] = [
    &["--package", "smmuv3", "--lib"],
    &["--package", "hyp", "--lib"],
    &["--package", "host-shim", "--lib"],
    &["--package", "smmuv3", "--test", "loom"],
    &["--package", "hyp-loom"],
    &["--package", "tests"],
];

/// A line of `cargo test --no-run --message-format=json`.
#[derive(Deserialize)]
struct Message {
    manifest_path: Option<PathBuf>,
    executable: Option<PathBuf>,
}

/// Builds and runs the tests, up to the first program that fails or takes longer than `timeout`. If a test is named, that one alone, which is one
/// of the model machine's.
pub fn attempt(workspace: &Workspace, timeout: Duration, only: Option<&str>) -> Result<Verdict> {
    let wanted = if only.is_some() { &[TESTS[TESTS.len() - 1]][..] } else { &TESTS[..] };
    for tests in wanted {
        match attempt_some(workspace, timeout, tests, only)? {
            Verdict::Survived => {}
            verdict => return Ok(verdict),
        }
    }
    Ok(Verdict::Survived)
}

fn attempt_some(
    workspace: &Workspace,
    timeout: Duration,
    tests: &[&str],
    only: Option<&str>,
) -> Result<Verdict> {
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--quiet", "--no-run", "--message-format=json"]).args(tests);
    let output = cargo.stderr(Stdio::piped()).output().context("cargo cannot be started")?;
    if !output.status.success() {
        bail!("the tests do not build:\n{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let log = workspace.logs()?.join("model.log");
    let messages = String::from_utf8_lossy(&output.stdout);
    for message in messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok()) {
        let (Some(manifest), Some(executable)) = (message.manifest_path, message.executable) else {
            continue;
        };
        let directory = manifest.parent().context("a manifest without a directory")?;
        let mut child = Command::new(&executable)
            .args(only.into_iter().flat_map(|name| [name, "--exact"]))
            .current_dir(directory)
            .env("CARGO_MANIFEST_DIR", directory)
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{} cannot be started", executable.display()))?;
        let deadline = Instant::now() + timeout;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                return Ok(Verdict::Caught(format!("a test hangs for {} seconds", timeout.as_secs())));
            }
            thread::sleep(Duration::from_millis(20));
        };
        if !status.success() {
            let text = fs::read_to_string(&log)?;
            let failed =
                text.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
            let failed: Vec<&str> = failed.take(3).collect();
            let how = if failed.is_empty() { status.to_string() } else { failed.join(", ") };
            return Ok(match text.lines().find(|line| line.contains(super::ATTACK_WORKED)) {
                Some(line) if only.is_some() => Verdict::Caught(line.trim().to_owned()),
                None if only.is_some() => Verdict::Otherwise(how),
                _ => Verdict::Caught(how),
            });
        }
    }
    Ok(Verdict::Survived)
}
