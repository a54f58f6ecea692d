//! Builds the images and makes flat files of them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::read::elf::{ElfFile64, ProgramHeader as _, SectionHeader as _};
use object::{Endianness, elf};

use crate::payload::{Blob, Payload, Software};
use crate::setup::StandardLibrary;
use crate::workspace::{TARGET, Workspace};

/// "ARM\x64" at this offset makes a file an arm64 `Image` (Linux, Documentation/arch/arm64/booting.rst).
const MAGIC: (usize, &[u8; 4]) = (0x38, b"ARM\x64");

/// The most bytes that a flat image may have: a gap between segments is a mistake in a linker script.
const MAX_FLAT_BYTES: u64 = 32 << 20;

/// Bytes of an image by what they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Code.
    pub text: u64,
    /// Data that is never written.
    pub rodata: u64,
    /// Data with a value at start.
    pub data: u64,
    /// Data that starts as zero, stacks included; it is not in the file.
    pub bss: u64,
}

impl Sizes {
    /// Text, read-only data and data.
    pub const fn loaded(&self) -> u64 {
        self.text + self.rodata + self.data
    }
}

/// An image in both forms.
#[derive(Clone, Debug)]
pub struct Image {
    /// The program's name.
    pub name: &'static str,
    /// The ELF, with symbols.
    pub elf: PathBuf,
    /// The flat arm64 `Image`.
    pub flat: PathBuf,
    /// Bytes of the flat file.
    pub flat_bytes: u64,
    /// Bytes by section.
    pub sizes: Sizes,
}

/// The two programs of the project.
#[derive(Clone, Debug)]
pub struct Images {
    /// The hypervisor, at EL2.
    pub hypervisor: Image,
    /// The host, at EL1.
    pub host: Image,
}

impl Images {
    /// Both, as what a machine runs.
    pub fn software(&self) -> Software {
        Software { hypervisor: Some(self.hypervisor.clone()), host: self.host.payload() }
    }
}

impl Image {
    /// The image as a host's kernel.
    fn payload(&self) -> Payload {
        let kernel = Blob { path: self.flat.clone(), bytes: self.flat_bytes };
        Payload { name: self.name.to_owned(), kernel, ramdisk: None }
    }
}

/// Builds both for the bare-metal target in release mode.
///
/// # Errors
///
/// They do not compile, or what was linked is not an arm64 `Image`.
pub fn build(workspace: &Workspace, standard_library: StandardLibrary) -> Result<Images> {
    let hypervisor = hypervisor(workspace, standard_library)?;
    let host = build_one(workspace, standard_library, "host-shim", None)?;
    Ok(Images { hypervisor, host })
}

/// Builds the hypervisor alone.
///
/// # Errors
///
/// As [`build`].
pub fn hypervisor(workspace: &Workspace, standard_library: StandardLibrary) -> Result<Image> {
    build_one(workspace, standard_library, "hyp", None)
}

/// Builds the hypervisor alone with the oracle that fuzzing asks, in a target directory of its own: the release image is not touched.
///
/// # Errors
///
/// As [`build`].
pub fn hypervisor_with_oracle(workspace: &Workspace, standard_library: StandardLibrary) -> Result<Image> {
    let apart = Workspace::at(workspace.root().to_owned(), workspace.target().join("oracle"));
    build_one(&apart, standard_library, "hyp", Some("oracle"))
}

/// Builds both, the hypervisor as [`hypervisor_with_oracle`] does.
///
/// # Errors
///
/// As [`build`].
pub fn build_with_oracle(workspace: &Workspace, standard_library: StandardLibrary) -> Result<Images> {
    let hypervisor = hypervisor_with_oracle(workspace, standard_library)?;
    let host = build_one(workspace, standard_library, "host-shim", None)?;
    Ok(Images { hypervisor, host })
}

/// Prints what was built and how large it is.
pub fn report(images: &Images) {
    println!(
        "{:<10} {:>9} {:>9} {:>9} {:>10} {:>9}   bytes",
        "", "text", "rodata", "data", "together", "bss"
    );
    for image in [&images.hypervisor, &images.host] {
        let sizes = &image.sizes;
        let Sizes { text, rodata, data, bss } = sizes;
        println!("{:<10} {text:>9} {rodata:>9} {data:>9} {:>10} {bss:>9}", image.name, sizes.loaded());
        println!("{:<10} {}\n{:<10} {}", "", image.elf.display(), "", image.flat.display());
    }
}

fn build_one(
    workspace: &Workspace,
    standard_library: StandardLibrary,
    name: &'static str,
    feature: Option<&str>,
) -> Result<Image> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--quiet", "--release", "--package", name, "--bin", name]);
    cargo.args(feature.iter().flat_map(|feature| ["--features", feature]));
    standard_library.apply(&mut cargo);
    let status = cargo.status().context("cargo cannot be started")?;
    if !status.success() {
        bail!("{name} does not build");
    }
    let elf = workspace.target().join(TARGET).join("release").join(name);
    let bytes = fs::read(&elf).with_context(|| format!("cargo left no {}", elf.display()))?;
    let file =
        ElfFile64::<Endianness>::parse(&*bytes).with_context(|| format!("{} is no ELF", elf.display()))?;
    let content = flatten(&file, &bytes).with_context(|| format!("{} cannot be made flat", elf.display()))?;
    if content.get(MAGIC.0..MAGIC.0 + MAGIC.1.len()) != Some(MAGIC.1) {
        bail!("{} does not start with an arm64 Image header", elf.display());
    }
    let flat = workspace.images()?.join(format!("{name}.img"));
    write_if_changed(&flat, &content)?;
    Ok(Image { name, sizes: sizes(&file), flat_bytes: content.len() as u64, elf, flat })
}

/// The loadable segments at their distances from each other, as a boot loader that knows no ELF needs them.
fn flatten(file: &ElfFile64<'_, Endianness>, bytes: &[u8]) -> Result<Vec<u8>> {
    let endian = file.endian();
    let loaded = || {
        let segments = file.elf_program_headers().iter();
        segments.filter(|header| header.p_type(endian) == elf::PT_LOAD && header.p_filesz(endian) != 0)
    };
    let start = loaded().map(|header| header.p_paddr(endian)).min().context("it has nothing to load")?;
    let mut flat = Vec::new();
    for header in loaded() {
        let data = header.data(endian, bytes).ok().context("a segment is outside the file")?;
        let offset = header.p_paddr(endian) - start;
        let end = offset.checked_add(data.len() as u64).filter(|&end| end <= MAX_FLAT_BYTES);
        let end = end.with_context(|| format!("its segments lie {offset:#x} bytes apart"))? as usize;
        if flat.len() < end {
            flat.resize(end, 0);
        }
        flat[offset as usize..end].copy_from_slice(data);
    }
    Ok(flat)
}

fn sizes(file: &ElfFile64<'_, Endianness>) -> Sizes {
    let endian = file.endian();
    let mut sizes = Sizes::default();
    for section in file.elf_section_table().iter() {
        let (flags, size) = (section.sh_flags(endian), section.sh_size(endian));
        let has = |flag| flags.contains(flag);
        if !has(elf::SHF_ALLOC) {
            continue;
        }
        let part = match () {
            () if section.sh_type(endian) == elf::SHT_NOBITS => &mut sizes.bss,
            () if has(elf::SHF_EXECINSTR) => &mut sizes.text,
            () if has(elf::SHF_WRITE) => &mut sizes.data,
            () => &mut sizes.rodata,
        };
        *part += size;
    }
    sizes
}

/// Writes a file, unless it has that content already.
///
/// # Errors
///
/// It cannot be written.
pub fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
