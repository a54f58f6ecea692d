//! A program that is linked dynamically, put into an archive with its libraries.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _};

use super::newc::Archive;

/// `DT_NEEDED`, the tag of a library's name in the dynamic section.
const NEEDED: u64 = 1;
/// Bytes of an entry of the dynamic section: a tag and a value.
const ENTRY_BYTES: usize = 16;

/// Adds a program as `path`, and the libraries that it needs, of `libraries`, in `/lib`, where its loader looks for them.
///
/// # Errors
///
/// A file cannot be read or is no ELF, or a library is not there.
pub fn add(archive: &mut Archive, path: &str, program: &Path, libraries: &Path) -> Result<()> {
    let content = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let mut missing = needed(&content).with_context(|| format!("{} is no ELF", program.display()))?;
    archive.program(path, &content);
    let mut there = BTreeSet::new();
    while let Some(name) = missing.pop() {
        if !there.insert(name.clone()) {
            continue;
        }
        let file = libraries.join(&name);
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        missing.extend(needed(&content).with_context(|| format!("{} is no ELF", file.display()))?);
        archive.program(&format!("lib/{name}"), &content);
    }
    Ok(())
}

/// The names of the libraries that an ELF needs.
fn needed(elf: &[u8]) -> Result<Vec<String>> {
    let file = ElfFile64::<Endianness>::parse(elf)?;
    let section = |name| file.section_by_name(name).with_context(|| format!("it has no {name}"));
    let strings = section(".dynstr")?.data()?;
    let mut names = Vec::new();
    for entry in section(".dynamic")?.data()?.chunks_exact(ENTRY_BYTES) {
        let word =
            |at: usize| entry[at..at + 8].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        if word(0) != NEEDED {
            continue;
        }
        let name = strings.get(word(8) as usize..).context("a name is outside of .dynstr")?;
        let name = name.split(|&byte| byte == 0).next().unwrap_or(name);
        names.push(String::from_utf8_lossy(name).into_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_needs_comes_with_it() {
        // This test is itself such a program, wherever libraries are shared.
        let own = std::env::current_exe().expect("it has a file");
        let Ok(names) = needed(&fs::read(&own).expect("it can be read")) else { return };
        if cfg!(target_env = "gnu") {
            assert!(names.iter().any(|name| name.starts_with("libc.so")), "{names:?}");
        }
        let message = format!(
            "{:#}",
            add(&mut Archive::default(), "x", &own, Path::new("/nowhere")).expect_err("none")
        );
        assert!(message.contains("/nowhere/"), "{message}");
        assert!(needed(b"no ELF").is_err());
    }
}
