//! Debian's kexec for arm64: the program that has Linux start a kernel in its own place.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::debian;
use crate::workspace;

/// Name of the package.
const PACKAGE: &str = "kexec-tools";
/// The program in it.
const PROGRAM: &str = "usr/sbin/kexec";

/// The program with the libraries that it needs.
#[derive(Clone, Debug)]
pub struct Kexec {
    prefix: PathBuf,
}

impl Kexec {
    /// The program.
    pub fn program(&self) -> PathBuf {
        self.prefix.join(PROGRAM)
    }

    /// Directory of the libraries, the dynamic loader among them.
    pub fn libraries(&self) -> PathBuf {
        self.prefix.join("usr/lib/aarch64-linux-gnu")
    }
}

/// What is in the cache, else Debian's package with all that it depends on.
///
/// # Errors
///
/// It could not be fetched.
pub fn find_or_fetch() -> Result<Kexec> {
    let kexec = Kexec { prefix: workspace::cache().join("kexec") };
    let is_there = || kexec.prefix.join(debian::STAMP).exists() && kexec.program().exists();
    if is_there() {
        return Ok(kexec);
    }
    println!("kexec: fetching Debian's into {}", kexec.prefix.display());
    let origin = debian::unpack(&["arm64"], &[PACKAGE], &kexec.prefix)
        .context("kexec could not be had from Debian")?;
    is_there().then_some(()).with_context(|| format!("{PACKAGE} has no {PROGRAM}"))?;
    println!("kexec: Debian's, from {origin}");
    Ok(kexec)
}
