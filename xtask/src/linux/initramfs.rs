//! The first and only file system of Linux here: busybox, a few modules, and the scripts of `guest`.

use std::fs;

use anyhow::{Context, Result};

use super::newc::Archive;
use super::programs::Program;
use super::{dynamic, modules};
use crate::setup::kexec::Kexec;
use crate::setup::linux::Linux;

/// What the checks need and Debian's kernel does not have built in.
const MODULES: [&str; 3] = ["virtio_blk", "vfio_iommu_type1", "vfio-pci"];

/// The first process.
const INIT: &str = include_str!("guest/init.sh");

/// What it reads, in `/lib/guest`; a check's file is named after the check.
const SCRIPTS: [(&str, &str); 15] = [
    ("report.sh", include_str!("guest/report.sh")),
    ("devices.sh", include_str!("guest/devices.sh")),
    ("shell.sh", include_str!("guest/shell.sh")),
    ("again.sh", include_str!("guest/again.sh")),
    ("bench.sh", include_str!("guest/bench.sh")),
    ("checks/smmus.sh", include_str!("guest/checks/smmus.sh")),
    ("checks/disks.sh", include_str!("guest/checks/disks.sh")),
    ("checks/rebind.sh", include_str!("guest/checks/rebind.sh")),
    ("checks/domains.sh", include_str!("guest/checks/domains.sh")),
    ("checks/vfio.sh", include_str!("guest/checks/vfio.sh")),
    ("checks/cpus.sh", include_str!("guest/checks/cpus.sh")),
    ("checks/calls.sh", include_str!("guest/checks/calls.sh")),
    ("checks/fuzz.sh", include_str!("guest/checks/fuzz.sh")),
    ("checks/log.sh", include_str!("guest/checks/log.sh")),
    ("checks/attacks.sh", include_str!("guest/checks/attacks.sh")),
];

/// What this project adds.
pub struct Ours {
    /// The module `hyp_iommu`.
    pub module: Vec<u8>,
    /// Programs.
    pub programs: Vec<Program>,
}

/// The names of all checks.
pub fn checks() -> impl Iterator<Item = &'static str> {
    SCRIPTS.iter().filter_map(|(name, _)| name.strip_prefix("checks/")?.strip_suffix(".sh"))
}

/// Makes the archive for a kernel; with `kexec` the kernel itself is in it too.
///
/// # Errors
///
/// A file of the kernel's packages is missing or malformed.
pub fn build(linux: &Linux, ours: &Ours, kexec: Option<&Kexec>) -> Result<Vec<u8>> {
    let busybox = linux.busybox();
    let busybox = fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut archive = Archive::default();
    for directory in
        ["bin", "boot", "dev", "lib", "lib/guest", "lib/guest/checks", "lib/modules", "proc", "sys", "tmp"]
    {
        archive.directory(directory);
    }
    // The kernel opens it for the first process, before that can make anything.
    archive.character_device("dev/console", (5, 1));
    archive.program("bin/busybox", &busybox);
    archive.link("bin/sh", "busybox");
    archive.program("init", INIT.as_bytes());
    for program in &ours.programs {
        archive.program(&format!("bin/{}", program.name), &program.content);
    }
    archive.file("lib/hyp_iommu.ko", &ours.module);
    for (name, script) in SCRIPTS {
        archive.file(&format!("lib/guest/{name}"), script.as_bytes());
    }
    for (index, module) in modules::in_load_order(&linux.modules(), &MODULES)?.iter().enumerate() {
        // By the names' order they are loaded.
        archive.file(&format!("lib/modules/{index:02}-{}.ko", module.name), &module.content);
    }
    if let Some(kexec) = kexec {
        dynamic::add(&mut archive, "bin/kexec", &kexec.program(), &kexec.libraries())?;
        let image = linux.image();
        let image = fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
        archive.file("boot/Image", &image);
    }
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Write};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_first_process_runs_every_check() {
        let list = INIT.lines().find_map(|line| line.trim().strip_prefix("checks=\"")?.strip_suffix('"'));
        let mut run: Vec<&str> = list.expect("a list of checks").split(' ').collect();
        let mut known: Vec<&str> = checks().collect();
        run.sort_unstable();
        known.sort_unstable();
        assert_eq!(run, known);
    }

    #[test]
    fn every_script_is_one_to_a_shell() {
        for (name, script) in SCRIPTS.into_iter().chain([("init", INIT)]) {
            let Some((status, said)) = check_syntax(script) else { return };
            assert!(status, "{name}: {said}");
        }
        assert_eq!(check_syntax("if true; then").map(|(status, _)| status), Some(false));
    }

    /// Whether `sh -n` takes a script, and what it says; `None` on a machine without `sh`.
    fn check_syntax(script: &str) -> Option<(bool, String)> {
        let mut shell = Command::new("sh");
        shell.arg("-n").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = match shell.spawn() {
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            other => other.expect("sh can be started"),
        };
        // A shell that stops at a mistake reads no further.
        let _ = child.stdin.take().expect("it was piped").write_all(script.as_bytes());
        let output = child.wait_with_output().expect("sh ends");
        Some((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}
