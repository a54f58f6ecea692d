//! Debian's Linux as the host: its kernel as it is, with a file system and a command line made here.

mod dynamic;
mod initramfs;
mod kernel_module;
mod modules;
mod newc;
mod programs;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::image::write_if_changed;
use crate::machine::Shape;
use crate::payload::{Blob, Payload};
use crate::setup::StandardLibrary;
use crate::setup::cross::Cross;
use crate::setup::kexec::Kexec;
use crate::setup::linux::Linux;
use crate::workspace::Workspace;

/// What the command line always says: a console from the first line on, and an end instead of a halt after a panic.
const COMMAND_LINE: &str = "console=ttyAMA0 earlycon panic=-1";

/// What makes Linux that is started at EL2 leave it for EL1: nothing is at EL2 then but the few instructions of its own that could bring it back.
pub const AT_EL1: &str = "id_aa64mmfr1.vh=0 kvm-arm.mode=none";

/// What is built for a kernel and put into its file system.
pub use initramfs::Ours;

/// Builds the module and the programs.
///
/// # Errors
///
/// A file of the kernel's packages is missing, or they do not build.
pub fn build(
    linux: &Linux,
    cross: &Cross,
    standard_library: StandardLibrary,
    workspace: &Workspace,
) -> Result<Ours> {
    Ok(Ours {
        module: kernel_module::build(linux, cross, standard_library, workspace)?,
        programs: programs::build(standard_library, workspace)?,
    })
}

/// How Linux ends after its first checks, so that another one starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Again {
    /// The firmware resets the machine.
    Reboot,
    /// Linux starts a kernel in its own place, after its drivers were told.
    Kexec,
    /// The same after a panic: devices and SMMUs are left as they are.
    Crash,
}

impl Again {
    /// Whether kexec is needed for it.
    pub const fn is_kexec(self) -> bool {
        !matches!(self, Self::Reboot)
    }

    /// What the kernel's command line says for it.
    const fn words(self) -> &'static str {
        match self {
            Self::Reboot => "again=reboot",
            Self::Kexec => "again=kexec retain_initrd",
            // The new kernel must fit into it, with a file system that has the kernel in it.
            Self::Crash => "again=crash retain_initrd crashkernel=320M",
        }
    }
}

/// The kernel with its file system, and with `kexec` in that.
///
/// # Errors
///
/// A file of the kernel's packages is missing or malformed, or the file system cannot be written.
pub fn payload(linux: &Linux, ours: &Ours, kexec: Option<&Kexec>, workspace: &Workspace) -> Result<Payload> {
    let with = if kexec.is_some() { "-kexec" } else { "" };
    let path = workspace.images()?.join(format!("initramfs-{}{with}.cpio", linux.release()));
    write_if_changed(&path, &initramfs::build(linux, ours, kexec)?)?;
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

/// The kernel's command line on a machine, with what the user adds; with `shell` the first process starts one, and with `again` it
/// ends once in that way.
///
/// It says how many SMMUs the machine has, so that a check can tell when the hypervisor hides one.
///
/// # Errors
///
/// `checks=` names a check that there is not; the message says which there are.
pub fn command_line(shape: &Shape, added: &str, shell: bool, again: Option<Again>) -> Result<String> {
    for name in added.split_whitespace().filter_map(|word| word.strip_prefix("checks=")) {
        for name in name.split(',').filter(|name| !name.is_empty()) {
            if !initramfs::checks().any(|check| check == name) {
                let known: Vec<&str> = initramfs::checks().collect();
                bail!("there is no check '{name}' in Linux: type checks= and any of {}", known.join(","));
            }
        }
    }
    let smmus = format!("smmus={}", shape.root_buses().count());
    let again = again.map_or("", Again::words);
    let words = [COMMAND_LINE, &smmus, added.trim(), again, if shell { "shell" } else { "" }];
    Ok(words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory_size::MemorySize;

    fn shape() -> Shape {
        Shape::new(2, 1, MemorySize::DEFAULT).expect("a valid shape")
    }

    #[test]
    fn what_the_user_adds_comes_after_what_is_always_there() {
        let line = |added, shell| command_line(&shape(), added, shell, None).expect("no unknown check");
        assert_eq!(line("", false), format!("{COMMAND_LINE} smmus=2"));
        assert_eq!(line(" iommu.strict=1 ", true), format!("{COMMAND_LINE} smmus=2 iommu.strict=1 shell"));
    }

    #[test]
    fn how_linux_ends_is_said_to_it() {
        let line = |again| command_line(&shape(), "quiet", false, Some(again)).expect("no unknown check");
        assert_eq!(line(Again::Reboot), format!("{COMMAND_LINE} smmus=2 quiet again=reboot"));
        for again in Again::value_variants() {
            assert_eq!(again.is_kexec(), line(*again).contains("retain_initrd"), "{again:?}");
        }
    }

    #[test]
    fn a_check_that_there_is_not_is_refused_with_those_that_there_are() {
        assert!(command_line(&shape(), "checks=smmus,log", false, None).is_ok());
        for added in ["checks=smmu", "quiet checks=smmus,disk", "checks=smmus checks=logs"] {
            let message = command_line(&shape(), added, false, None).expect_err(added).to_string();
            assert!(message.contains("smmus,disks,"), "{message}");
        }
    }
}
