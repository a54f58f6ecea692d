//! `cargo xtask clean`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;

use crate::workspace::{self, Workspace};

/// Options of `clean`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Also what `setup` fetched
    #[arg(long)]
    all: bool,
}

/// Removes the target directory, and with `--all` the cache.
///
/// # Errors
///
/// A directory cannot be removed.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let cache = workspace::cache();
    remove(Workspace::current().target())?;
    if arguments.all {
        remove(&cache)?;
    } else if cache.exists() {
        println!("kept {}: `cargo xtask clean --all` removes it too", cache.display());
    }
    Ok(true)
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))?;
        println!("removed {}", directory.display());
    }
    Ok(())
}
