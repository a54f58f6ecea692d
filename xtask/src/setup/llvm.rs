//! `llvm-profdata` and `llvm-cov` of the compiler's own LLVM version: they read no other's profiles.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::debian;
use super::toolchain::{rustc, rustc_field, rustup};
use crate::{progress, workspace};

/// The two programs.
#[derive(Clone, Debug)]
pub struct Llvm {
    /// Where they are.
    directory: PathBuf,
    /// What starts those of a private prefix.
    loader: Option<[PathBuf; 3]>,
}

impl Llvm {
    /// A command that starts one of them.
    pub fn command(&self, program: &str) -> Command {
        let program = self.directory.join(program);
        match &self.loader {
            None => Command::new(program),
            Some([loader, arguments @ ..]) => {
                let mut command = Command::new(loader);
                command.args(arguments).arg(program);
                command
            }
        }
    }

    fn works(&self) -> bool {
        ["llvm-profdata", "llvm-cov"].iter().all(|program| {
            let mut command = self.command(program);
            let status = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        })
    }
}

/// The toolchain's own, which rustup installs, else Debian's.
///
/// # Errors
///
/// Neither could be had.
pub fn find_or_fetch() -> Result<Llvm> {
    let toolchain = of_the_toolchain()?;
    if toolchain.works() {
        return Ok(toolchain);
    }
    let version = rustc_field("LLVM version")?;
    let major = version.split('.').next().unwrap_or_default();
    let prefix = workspace::cache().join(format!("llvm-{major}"));
    let platform = debian::Platform::of_this_machine()?;
    let of_debian = Llvm {
        directory: prefix.join("usr/lib").join(format!("llvm-{major}/bin")),
        loader: Some(platform.loader(&prefix)),
    };
    if prefix.join(debian::STAMP).exists() && of_debian.works() {
        return Ok(of_debian);
    }
    let spinner = progress::spinner("rustup component add llvm-tools");
    let added = rustup(&["component", "add", "llvm-tools"]).is_ok();
    spinner.finish_and_clear();
    if added && toolchain.works() {
        println!("llvm-cov: from rustup");
        return Ok(toolchain);
    }
    println!("llvm-cov: rustup has none; fetching Debian's LLVM {major} into {}", prefix.display());
    let package = format!("llvm-{major}");
    let origin = debian::unpack(platform.architectures, &[&package], &prefix).with_context(|| {
        format!("llvm-cov {major} could be had neither from rustup nor from Debian: type `rustup component add llvm-tools`")
    })?;
    if !of_debian.works() {
        bail!("{origin} gave an llvm-cov that does not start");
    }
    println!("llvm-cov: Debian's, from {origin}");
    Ok(of_debian)
}

/// Where rustup puts a toolchain's `llvm-tools`.
fn of_the_toolchain() -> Result<Llvm> {
    let sysroot = rustc(&["--print", "sysroot"])?;
    let directory = Path::new(&sysroot).join("lib/rustlib").join(rustc_field("host")?).join("bin");
    Ok(Llvm { directory, loader: None })
}
