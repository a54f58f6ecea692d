//! Debian's Linux as the host: its kernel as it is, with a file system and a command line made here.

mod initramfs;
mod kernel_module;
mod modules;
mod newc;
mod programs;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::image::write_if_changed;
use crate::payload::{Blob, Payload};
use crate::setup::StandardLibrary;
use crate::setup::cross::Cross;
use crate::setup::linux::Linux;
use crate::workspace::Workspace;

/// What the command line always says: a console from the first line on, and an end instead of a halt after a panic.
const COMMAND_LINE: &str = "console=ttyAMA0 earlycon panic=-1";

/// The kernel with its file system, in which are a module and programs that are built for it.
///
/// # Errors
///
/// A file of the kernel's packages is missing or malformed, or the module or the programs do not build, or the file system cannot be
/// written.
pub fn payload(
    linux: &Linux,
    cross: &Cross,
    standard_library: StandardLibrary,
    workspace: &Workspace,
) -> Result<Payload> {
    let ours = initramfs::Ours {
        module: kernel_module::build(linux, cross, standard_library, workspace)?,
        programs: programs::build(standard_library, workspace)?,
    };
    let path = workspace.images()?.join(format!("initramfs-{}.cpio", linux.release()));
    write_if_changed(&path, &initramfs::build(linux, &ours)?)?;
    Ok(Payload {
        name: format!("Linux {}", linux.release()),
        kernel: blob(&linux.image())?,
        ramdisk: Some(blob(&path)?),
    })
}

fn blob(path: &Path) -> Result<Blob> {
    let bytes = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    Ok(Blob { path: path.to_owned(), bytes })
}

/// The kernel's command line with what the user adds; with `shell` the first process starts one.
pub fn command_line(added: &str, shell: bool) -> String {
    let words = [COMMAND_LINE, added.trim(), if shell { "shell" } else { "" }];
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_adds_comes_after_what_is_always_there() {
        assert_eq!(command_line("", false), COMMAND_LINE);
        assert_eq!(command_line(" iommu.strict=1 ", true), format!("{COMMAND_LINE} iommu.strict=1 shell"));
    }
}
