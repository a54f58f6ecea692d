//! Builds the programs of `linux/tools`, which need nothing of Linux but its system calls.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::setup::StandardLibrary;
use crate::workspace::{TARGET, Workspace};

/// The package, and the names of its programs.
const PACKAGE: &str = "hyp-iommu";
const PROGRAMS: [&str; 2] = ["hyp-iommu", "hyp-dma"];

/// A program as Linux starts it.
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// The ELF.
    pub content: Vec<u8>,
}

/// Builds all of them.
///
/// # Errors
///
/// They do not compile.
pub fn build(standard_library: StandardLibrary, workspace: &Workspace) -> Result<Vec<Program>> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--quiet", "--release", "--package", PACKAGE, "--bins"]);
    standard_library.apply(&mut cargo);
    if !cargo.status().context("cargo cannot be started")?.success() {
        bail!("{PACKAGE} does not build");
    }
    let directory = workspace.target().join(TARGET).join("release");
    let read = |name| {
        let path = directory.join(name);
        let content = fs::read(&path).with_context(|| format!("cargo left no {}", path.display()))?;
        Ok(Program { name, content })
    };
    PROGRAMS.into_iter().map(read).collect()
}
