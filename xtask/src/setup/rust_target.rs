//! The standard library of the bare-metal target.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::debian;
use super::toolchain::{rustc, rustup};
use crate::progress;
use crate::workspace::{self, TARGET};

/// How the images get `core`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandardLibrary {
    /// Compiled by the Rust project, installed for the toolchain.
    Installed,
    /// Built with the images from the toolchain's source.
    FromSource,
}

impl StandardLibrary {
    /// Adds what a `cargo build` for the target needs.
    pub fn apply(self, command: &mut Command) {
        command.args(["--target", TARGET]);
        if self == Self::FromSource {
            // Stable cargo takes -Z options only with this set; the source has the toolchain's own version.
            command.env("RUSTC_BOOTSTRAP", "1").args([
                "-Zbuild-std=core,alloc,compiler_builtins",
                "-Zbuild-std-features=compiler-builtins-mem",
            ]);
        }
    }
}

/// The installed library, else one from rustup, else its source from rustup or Debian.
///
/// # Errors
///
/// None of them can be had.
pub fn find_or_fetch(report: bool) -> Result<StandardLibrary> {
    let say = |text: String| {
        if report {
            println!("{text}");
        }
    };
    if installed() {
        say(format!("{TARGET}: installed for {}", rustc(&["--version"])?));
        return Ok(StandardLibrary::Installed);
    }
    let source = PathBuf::from(rustc(&["--print", "sysroot"])?).join("lib/rustlib/src/rust");
    if source.join("library/core").exists() {
        say(format!("{TARGET}: its standard library is built from {}", source.display()));
        return Ok(StandardLibrary::FromSource);
    }

    let spinner = progress::spinner("rustup target add");
    let added = rustup(&["target", "add", TARGET]);
    spinner.finish_and_clear();
    let refusal = match added {
        Ok(()) if installed() => {
            println!("{TARGET}: from rustup");
            return Ok(StandardLibrary::Installed);
        }
        Ok(()) => "rustup added it for another toolchain than cargo uses".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    println!("{TARGET}: {refusal}; taking the standard library's source instead");

    let spinner = progress::spinner("rustup component add rust-src");
    let added = rustup(&["component", "add", "rust-src"]);
    spinner.finish_and_clear();
    if added.is_ok() && source.join("library/core").exists() {
        println!("{TARGET}: the standard library is built from source, which came from rustup");
        return Ok(StandardLibrary::FromSource);
    }
    let origin = source_from_debian(&source).with_context(|| {
        format!(
            "the target {TARGET} is missing, rustup cannot download ({refusal}), and its source could not be had from Debian.\n\
             With a network, type `rustup target add {TARGET}`"
        )
    })?;
    println!("{TARGET}: the standard library is built from source, which came from {origin}");
    Ok(StandardLibrary::FromSource)
}

/// Unpacks Debian's `rust-src` and links it into the toolchain.
fn source_from_debian(link: &Path) -> Result<String> {
    let version = rustc(&["--version"])?;
    let version = version.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let prefix = workspace::cache().join("rust-src");
    let source = prefix.join(format!("usr/src/rustc-{version}"));
    let mut origin = prefix.display().to_string();
    if !source.join("library/core").exists() {
        origin = debian::unpack(debian::Platform::of_this_machine()?.architectures, &["rust-src"], &prefix)?;
    }
    if !source.join("library/core").exists() {
        bail!("Debian's rust-src is not of version {version}, which is the compiler's");
    }
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    std::os::unix::fs::symlink(&source, link)
        .with_context(|| format!("cannot make the link {}", link.display()))?;
    Ok(origin)
}

/// Whether the toolchain has `core` for the target.
fn installed() -> bool {
    let directory = rustc(&["--print", "target-libdir", "--target", TARGET]);
    let Ok(entries) = directory.and_then(|directory| Ok(fs::read_dir(directory)?)) else {
        return false;
    };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}
