//! What was found once, in `tests/regressions`, must not be found again.

use std::path::PathBuf;

use anyhow::Result;

use super::corpus;
use super::in_qemu::Target;
use super::recording::Recording;
use crate::workspace::Workspace;

/// Where the recordings are.
pub fn directory(workspace: &Workspace) -> PathBuf {
    workspace.root().join("tests").join("regressions")
}

/// Replays all of them in QEMU, those for one CPU with instructions counted; how many passed and failed.
///
/// # Errors
///
/// A file is no recording, or QEMU failed.
pub fn replay_all(workspace: &Workspace, target: &Target) -> Result<(u64, u64)> {
    let (mut passed, mut failed) = (0, 0);
    let mut paths = corpus::files(&directory(workspace));
    paths.retain(|path| path.extension().is_some_and(|end| end == "steps"));
    for path in paths {
        let recording = Recording::read(&path)?;
        let death = target.replay("fuzz-regression", &recording, recording.shape.cpus == 1)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match death {
            None => passed += 1,
            Some(_) => failed += 1,
        }
        println!(
            "{name}: {} steps, {}",
            recording.steps.len(),
            if death.is_some() { "dies again" } else { "passed" }
        );
    }
    Ok((passed, failed))
}
