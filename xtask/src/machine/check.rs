//! Whether the device tree made here and the machine that QEMU makes are the same machine.

use std::fs;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};

use super::device_tree::{self, Boot};
use super::{Shape, qemu};
use crate::setup::Qemu;

/// Properties that must be the same in a node that both trees have.
const SAME: [&str; 3] = ["reg", "interrupts", "device_type"];

/// Compares the device tree of `shape` with the one that QEMU would give its guest: every node by the same name must
/// have the same addresses and interrupts. Answers how many nodes were compared.
///
/// # Errors
///
/// They differ, or QEMU does not start.
pub fn against_qemu(shape: &Shape, emulator: &Qemu) -> Result<usize> {
    let directory = std::env::temp_dir().join(format!("xtask-{}-tree", std::process::id()));
    fs::create_dir_all(&directory)?;
    let dump = dump(shape, emulator, &directory);
    let _ = fs::remove_dir_all(&directory);
    let (dump, ours) = (dump?, device_tree::build(shape, &Boot::default())?);
    let qemus = Fdt::new(&dump).ok().context("QEMU's device tree is malformed")?;
    let ours = Fdt::new(&ours).ok().context("the device tree made here is malformed")?;
    let mut compared = 0;
    compare(&ours.root(), &qemus.root(), &mut compared)?;
    if compared < 20 + usize::from(shape.cpus()) {
        bail!("only {compared} nodes have the same names in QEMU's device tree: it has changed");
    }
    Ok(compared)
}

fn dump(shape: &Shape, emulator: &Qemu, directory: &std::path::Path) -> Result<Vec<u8>> {
    let path = directory.join("qemu.dtb");
    let mut arguments = qemu::arguments(shape, directory);
    qemu::make_images(shape, directory)?;
    for board in arguments.iter_mut().filter(|argument| argument.starts_with("virt,")) {
        *board = format!("{board},dtb-randomness=off,dumpdtb={}", path.display());
    }
    let output = emulator
        .command()
        .args(["-nodefaults", "-display", "none"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("QEMU cannot be started")?;
    fs::read(&path).with_context(|| {
        format!("QEMU refuses the machine: {}", String::from_utf8_lossy(&output.stderr).trim())
    })
}

fn compare(ours: &FdtNode<'_>, qemus: &FdtNode<'_>, compared: &mut usize) -> Result<()> {
    for child in ours.children() {
        let Some(other) = qemus.children().find(|other| other.name() == child.name()) else { continue };
        for name in SAME {
            if let (Some(a), Some(b)) = (child.property(name), other.property(name))
                && a.value() != b.value()
            {
                bail!("{}: `{name}` is {:x?}, but {:x?} in QEMU's", child.name(), a.value(), b.value());
            }
        }
        *compared += 1;
        compare(&child, &other, compared)?;
    }
    Ok(())
}
