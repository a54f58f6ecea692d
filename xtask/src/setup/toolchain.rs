//! The Rust toolchain that cargo uses.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// What rustc prints, without white space around it.
///
/// # Errors
///
/// It cannot be started, or refuses.
pub fn rustc(arguments: &[&str]) -> Result<String> {
    let directory = Workspace::current();
    let output = Command::new("rustc")
        .current_dir(directory.root())
        .args(arguments)
        .output()
        .context("rustc cannot be started: is ~/.cargo/bin in PATH?")?;
    if !output.status.success() {
        bail!("rustc {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// What `rustc -vV` says of something.
///
/// # Errors
///
/// As [`rustc`], or it says nothing of it.
pub fn rustc_field(name: &str) -> Result<String> {
    let said = rustc(&["-vV"])?;
    let found = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    found.map(str::to_owned).with_context(|| format!("rustc -vV does not say its {name}"))
}

/// Has rustup do something.
///
/// # Errors
///
/// It cannot be started, or the last thing that it said.
pub fn rustup(arguments: &[&str]) -> Result<()> {
    let output = Command::new("rustup")
        .current_dir(Workspace::current().root())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("rustup cannot be started")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let last = complaint.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it failed");
        bail!("rustup {}: {last}", arguments.join(" "));
    }
    Ok(())
}
