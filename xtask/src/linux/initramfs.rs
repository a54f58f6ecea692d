//! The first and only file system of Linux here: busybox, a few modules, and the scripts of `guest`.

use std::fs;

use anyhow::{Context, Result};

use super::modules;
use super::newc::Archive;
use super::programs::Program;
use crate::setup::linux::Linux;

/// What the checks need and Debian's kernel does not have built in.
const MODULES: [&str; 3] = ["virtio_blk", "vfio_iommu_type1", "vfio-pci"];

/// The first process.
const INIT: &str = include_str!("guest/init.sh");

/// What it reads, in `/lib/guest`; a check's file is named after the check.
const SCRIPTS: [(&str, &str); 11] = [
    ("report.sh", include_str!("guest/report.sh")),
    ("devices.sh", include_str!("guest/devices.sh")),
    ("checks/smmus.sh", include_str!("guest/checks/smmus.sh")),
    ("checks/disks.sh", include_str!("guest/checks/disks.sh")),
    ("checks/rebind.sh", include_str!("guest/checks/rebind.sh")),
    ("checks/domains.sh", include_str!("guest/checks/domains.sh")),
    ("checks/vfio.sh", include_str!("guest/checks/vfio.sh")),
    ("checks/cpus.sh", include_str!("guest/checks/cpus.sh")),
    ("checks/calls.sh", include_str!("guest/checks/calls.sh")),
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

/// Makes the archive for a kernel.
///
/// # Errors
///
/// A file of the kernel's packages is missing or malformed.
pub fn build(linux: &Linux, ours: &Ours) -> Result<Vec<u8>> {
    let busybox = linux.busybox();
    let busybox = fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut archive = Archive::default();
    for directory in
        ["bin", "dev", "lib", "lib/guest", "lib/guest/checks", "lib/modules", "proc", "sys", "tmp"]
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
    Ok(archive.finish())
}
