//! Debian's compiler for arm64, with make and the libraries that a kernel's programs need.
//!
//! Like QEMU they want a newer C library than this machine may have, so everything runs by the prefix's own loader. What starts other
//! programs (make, the compiler) is given scripts that do so.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::debian::{self, Platform};
use crate::image::write_if_changed;
use crate::workspace;

/// What the names of the compiler's programs begin with.
pub const PREFIX: &str = "aarch64-linux-gnu-";

/// The compiler, make, and the libraries of `modpost` and `fixdep`.
const PACKAGES: [&str; 5] = ["gcc-aarch64-linux-gnu", "make", "libelf1t64", "libssl3t64", "zlib1g"];

/// Programs of the compiler's that kbuild starts, besides the compiler itself.
const BINUTILS: [&str; 7] = ["ar", "as", "ld", "nm", "objcopy", "objdump", "strip"];

/// Programs in a prefix.
pub struct Cross {
    prefix: PathBuf,
    platform: Platform,
}

/// The compiler of the cache, which is fetched if it is not there.
///
/// # Errors
///
/// It could not be fetched, or does not run.
pub fn find_or_fetch(report: bool) -> Result<Cross> {
    let cross = Cross { prefix: workspace::cache().join("cross"), platform: Platform::of_this_machine()? };
    if cross.prefix.join(debian::STAMP).exists()
        && let Ok(version) = cross.version()
    {
        if report {
            println!("compiler for Linux modules: {version}, in {}", cross.prefix.display());
        }
        return Ok(cross);
    }
    println!("compiler for Linux modules: fetching Debian's into {}", cross.prefix.display());
    let origin = debian::unpack(cross.platform.architectures, &PACKAGES, &cross.prefix)
        .context("the compiler for Linux modules could not be had from Debian")?;
    println!(
        "compiler for Linux modules: {}, from {origin}, in {}",
        cross.version()?,
        cross.prefix.display()
    );
    Ok(cross)
}

impl Cross {
    /// The words before a program's path and arguments.
    fn loader(&self) -> [PathBuf; 3] {
        self.platform.loader(&self.prefix)
    }

    fn program(&self, name: &str) -> PathBuf {
        self.prefix.join("usr/bin").join(name)
    }

    /// A command that runs one of the compiler's programs that starts no other.
    pub fn command(&self, name: &str) -> Command {
        let [loader, first, second] = self.loader();
        let mut command = Command::new(loader);
        command.args([first, second]).arg(self.program(&format!("{PREFIX}{name}")));
        command
    }

    fn version(&self) -> Result<String> {
        let output =
            self.command("gcc").arg("--version").output().context("the compiler cannot be started")?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().next().map(str::to_owned).context("the compiler does not say its version")
    }

    /// Writes a script that runs a program of the packages.
    ///
    /// # Errors
    ///
    /// It cannot be written, or a path has a character that make or the compiler takes for something else.
    pub fn script(&self, script: &Path, program: &Path) -> Result<()> {
        // make starts itself again by the name that it was started by.
        self.write_script(script, &["--argv0".as_ref(), script.as_os_str(), program.as_os_str()])
    }

    fn write_script(&self, script: &Path, words: &[&OsStr]) -> Result<()> {
        let mut text = "#!/bin/sh\nexec".to_owned();
        for word in self.loader().iter().map(|path| path.as_os_str()).chain(words.iter().copied()) {
            let word = word.to_string_lossy();
            if !word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+=,~@".contains(c)) {
                bail!(
                    "'{word}' has a character that make does not take in a path: move the sources or set XTASK_CACHE"
                );
            }
            text.push(' ');
            text += &word;
        }
        text += " \"$@\"\n";
        if let Some(parent) = script.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        write_if_changed(script, text.as_bytes())?;
        fs::set_permissions(script, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} a program", script.display()))
    }

    /// Fills a directory with scripts for the compiler's programs and make, by their usual names.
    ///
    /// # Errors
    ///
    /// As [`Cross::script`].
    pub fn scripts(&self, directory: &Path) -> Result<()> {
        for name in BINUTILS {
            let name = format!("{PREFIX}{name}");
            self.script(&directory.join(&name), &self.program(&name))?;
        }
        self.script(&directory.join("make"), &self.program("make"))?;
        let [loader, first, second] = self.loader();
        if loader.display().to_string().contains(',') {
            bail!("'{}' has a comma, at which the compiler splits: set XTASK_CACHE", loader.display());
        }
        let wrapper = [loader, first, second].map(|word| word.display().to_string()).join(",");
        let gcc = format!("{PREFIX}gcc");
        let program = self.program(&gcc);
        // The compiler finds its own parts from its path, and starts them by the wrapper.
        self.write_script(
            &directory.join(&gcc),
            &[program.as_os_str(), "-wrapper".as_ref(), wrapper.as_ref()],
        )
    }
}
