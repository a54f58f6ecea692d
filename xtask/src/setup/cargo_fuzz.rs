//! cargo-fuzz, which builds libFuzzer's programs.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace::{self, Workspace};

/// Where `cargo fuzz` is found.
pub struct CargoFuzz {
    /// A directory of programs besides those of `PATH`.
    programs: Option<PathBuf>,
}

impl CargoFuzz {
    /// Lets a cargo command find it.
    pub fn apply(&self, cargo: &mut Command) {
        if let Some(programs) = &self.programs {
            let path = env::var_os("PATH").unwrap_or_default();
            let paths = [programs.clone()].into_iter().chain(env::split_paths(&path));
            if let Ok(path) = env::join_paths(paths) {
                cargo.env("PATH", path);
            }
        }
    }

    fn works(&self, workspace: &Workspace) -> bool {
        let mut cargo = workspace.cargo();
        self.apply(&mut cargo);
        cargo.args(["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
        cargo.status().is_ok_and(|status| status.success())
    }
}

/// The user's own, else that of the cache, which is installed from crates.io if it is not there.
///
/// # Errors
///
/// It cannot be installed.
pub fn find_or_install(workspace: &Workspace) -> Result<CargoFuzz> {
    let own = CargoFuzz { programs: None };
    if own.works(workspace) {
        return Ok(own);
    }
    let root = workspace::cache().join("cargo-fuzz");
    let installed = CargoFuzz { programs: Some(root.join("bin")) };
    if installed.works(workspace) {
        return Ok(installed);
    }
    println!("cargo-fuzz: installing it from crates.io into {}", root.display());
    let mut cargo = workspace.cargo();
    cargo.args(["install", "--locked", "cargo-fuzz", "--root"]).arg(&root);
    let status = cargo.status().context("cargo cannot be started")?;
    if !status.success() || !installed.works(workspace) {
        bail!("cargo-fuzz could not be installed: with a network, type `cargo install cargo-fuzz`");
    }
    Ok(installed)
}
