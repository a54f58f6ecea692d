//! Builds the module `hyp_iommu` for a kernel: the part in Rust by Cargo, the glue by the kernel's own makefiles.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::image::write_if_changed;
use crate::setup::StandardLibrary;
use crate::setup::cross::{Cross, PREFIX};
use crate::setup::linux::Linux;
use crate::workspace::Workspace;

/// The package with the part in Rust.
const PACKAGE: &str = "hyp-iommu-module";

/// What makes the part in Rust fit for a kernel: calls and addresses as the module loader relocates them, and x18 left alone, in which
/// kernels with a shadow call stack keep its pointer. The standard library that is installed was built without the latter; what of it
/// ends up in the module is looked through ([`uses_x18`]).
const FLAGS: &str = "-Crelocation-model=static -Zfixed-x18 -Cunsafe-allow-abi-mismatch=fixed-x18 -Cforce-frame-pointers=yes \
                     -Cforce-unwind-tables=no";

/// Programs of the kernel's packages that building a module starts.
const KBUILD_PROGRAMS: [(&str, &str); 2] =
    [("basic/fixdep", "basic/fixdep"), ("mod/modpost", "mod/modpost.real-lsb-64")];

/// Builds the module: what `insmod` takes.
///
/// # Errors
///
/// It does not compile, or a file cannot be written.
pub fn build(
    linux: &Linux,
    cross: &Cross,
    standard_library: StandardLibrary,
    workspace: &Workspace,
) -> Result<Vec<u8>> {
    let home = workspace.target().join("linux-module");
    let place = home.join(linux.release());
    let (tree, programs, build) = (place.join("tree"), place.join("bin"), place.join("build"));
    for directory in [&tree, &programs, &build] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let decides = compile(standard_library, workspace, &home.join("cargo"))?;
    if let Some(line) = uses_x18(cross, &decides)? {
        bail!("the module's part in Rust uses the register of the shadow call stack: {line}");
    }
    let sources = workspace.root().join("linux/module");
    for name in ["Kbuild", "glue.c"] {
        let source = sources.join(name);
        let content = fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
        write_if_changed(&build.join(name), &content)?;
    }
    write_if_changed(&build.join("decides.o"), &fs::read(&decides)?)?;
    // How it was made, for `modpost`: not by the makefiles.
    write_if_changed(&build.join(".decides.o.cmd"), b"")?;
    link_tree(linux, cross, &tree)?;
    cross.scripts(&programs)?;
    make(linux, &tree, &programs, &build)?;

    let module = build.join("hyp_iommu.ko");
    let stripped = place.join("hyp_iommu.ko");
    let status = cross.command("strip").arg("--strip-debug").arg("-o").args([&stripped, &module]).status()?;
    if !status.success() {
        bail!("{} cannot be stripped", module.display());
    }
    fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
}

/// Builds the part in Rust as one object.
fn compile(standard_library: StandardLibrary, workspace: &Workspace, target: &Path) -> Result<PathBuf> {
    let object = target.join("decides.o");
    let mut cargo = workspace.cargo();
    cargo.args(["rustc", "--quiet", "--release", "--package", PACKAGE, "--lib", "--crate-type", "staticlib"]);
    standard_library.apply(&mut cargo);
    // Stable compilers take -Z options only with this set.
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", FLAGS).env("CARGO_TARGET_DIR", target);
    cargo.arg("--").arg(format!("--emit=obj={}", object.display()));
    if !cargo.status().context("cargo cannot be started")?.success() {
        bail!("{PACKAGE} does not build");
    }
    Ok(object)
}

/// The first instruction of an object that names x18, if one does.
fn uses_x18(cross: &Cross, object: &Path) -> Result<Option<String>> {
    let output =
        cross.command("objdump").args(["--disassemble", "--no-show-raw-insn"]).arg(object).output()?;
    if !output.status.success() {
        bail!("{} cannot be disassembled: {}", object.display(), String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    if !text.contains("<hyp_iommu_serve>:") {
        bail!("{} does not have the module's code", object.display());
    }
    Ok(text.lines().find(|line| names_x18(line)).map(|line| line.trim().to_owned()))
}

fn names_x18(line: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == "x18" || word == "w18")
}

/// Makes a tree of links like the directory of the kernel's headers, with programs that run on this machine.
fn link_tree(linux: &Linux, cross: &Cross, tree: &Path) -> Result<()> {
    let (headers, scripts) = (linux.headers(), linux.kbuild().join("scripts"));
    link_all(&headers, tree, &["scripts", "tools"])?;
    link(&linux.kbuild().join("tools"), &tree.join("tools"))?;
    let own = tree.join("scripts");
    let directories = ["basic", "mod"];
    link_all(&scripts, &own, &directories)?;
    for directory in directories {
        let programs = KBUILD_PROGRAMS.map(|(name, _)| name.rsplit('/').next().unwrap_or(name));
        link_all(&scripts.join(directory), &own.join(directory), &programs)?;
    }
    for (name, program) in KBUILD_PROGRAMS {
        cross.script(&own.join(name), &scripts.join(program))?;
    }
    Ok(())
}

/// Links everything of a directory into another, but what is named.
fn link_all(from: &Path, to: &Path, but: &[&str]) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let name = entry?.file_name();
        if !but.iter().any(|but| name == *but) {
            link(&from.join(&name), &to.join(&name))?;
        }
    }
    Ok(())
}

fn link(to: &Path, at: &Path) -> Result<()> {
    if fs::read_link(at).is_ok_and(|old| old == to) {
        return Ok(());
    }
    if at.symlink_metadata().is_ok() {
        fs::remove_file(at).with_context(|| format!("cannot remove {}", at.display()))?;
    }
    symlink(to, at).with_context(|| format!("cannot make the link {}", at.display()))
}

/// Runs the kernel's makefiles.
fn make(linux: &Linux, tree: &Path, programs: &Path, build: &Path) -> Result<()> {
    let mut path = vec![programs.to_owned()];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let source = linux.common_headers();
    let mut make = Command::new(programs.join("make"));
    make.current_dir(build)
        .env("PATH", env::join_paths(path)?)
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .arg("-f")
        .arg(source.join("Makefile"))
        .arg("-C")
        .arg(&source)
        .arg(format!("O={}", tree.display()))
        .arg(format!("M={}", build.display()))
        .args(["ARCH=arm64", &format!("CROSS_COMPILE={PREFIX}"), &format!("CC={PREFIX}gcc")])
        // Type information for BPF would need one more program, and nothing here uses it.
        .args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"])
        .stdin(Stdio::null());
    let output = make.output().context("make cannot be started")?;
    if !output.status.success() {
        let said =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        bail!("the module does not build for Linux {}:\n{}", linux.release(), said.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_register_of_the_shadow_call_stack_is_seen_in_any_place() {
        for line in ["  10:\tmov\tx18, x0", "  14:\tldr\tw0, [x18, #8]", "  18:\tadd\tx1, x2, w18, uxtw"] {
            assert!(names_x18(line), "{line}");
        }
        for line in ["  18:\tmov\tx0, #0x18", "  1c:\tb\t118 <x180>", "  x118", ""] {
            assert!(!names_x18(line), "{line}");
        }
    }
}
