//! Kernel modules, in an order in which they can be loaded.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lzma_rust2::XzReader;
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _};

/// A module as `insmod` takes it.
pub struct Module {
    /// Its name, with `-` as `_`.
    pub name: String,
    /// The ELF.
    pub content: Vec<u8>,
}

/// The modules `wanted` of those below `directory`, each after those that it depends on. One that is not there is left
/// out: the kernel has it built in, or does not have it.
///
/// # Errors
///
/// A file cannot be read, or is no module, or depends on one that is not there.
pub fn in_load_order(directory: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(directory, &mut files).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut order = Vec::new();
    for name in wanted {
        if files.contains_key(&plain(name)) {
            add(&plain(name), &files, &mut order)?;
        }
    }
    Ok(order)
}

/// Adds a module after those that it depends on.
fn add(name: &str, files: &BTreeMap<String, PathBuf>, order: &mut Vec<Module>) -> Result<()> {
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let file = files.get(name).with_context(|| format!("there is no module {name}"))?;
    let content = read(file).with_context(|| format!("cannot read {}", file.display()))?;
    for needed in dependencies(&content).with_context(|| format!("{} is no module", file.display()))? {
        add(&needed, files, order).with_context(|| format!("{name} depends on {needed}"))?;
    }
    order.push(Module { name: name.to_owned(), content });
    Ok(())
}

/// Modules by name.
fn find(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), files)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(plain(name), entry.path());
        }
    }
    Ok(())
}

/// A module's name in the form in which the kernel compares names.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(file)?;
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => Ok(bytes),
        Some("xz") => {
            let mut content = Vec::new();
            XzReader::new(&*bytes, true).read_to_end(&mut content)?;
            Ok(content)
        }
        _ => bail!("it is compressed in a way that is not known here"),
    }
}

/// What `.modinfo` says after `depends=`.
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let file = ElfFile64::<Endianness>::parse(module).context("it is no ELF")?;
    let section = file.section_by_name(".modinfo").context("it has no .modinfo")?;
    Ok(depends(section.data()?))
}

/// The names after `depends=` among strings that end with NUL.
fn depends(modinfo: &[u8]) -> Vec<String> {
    let lines = modinfo.split(|&byte| byte == 0);
    let names = lines.filter_map(|line| line.strip_prefix(b"depends="));
    names
        .flat_map(|names| names.split(|&byte| byte == b','))
        .filter(|name| !name.is_empty())
        .map(|name| plain(&String::from_utf8_lossy(name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_names_between_commas() {
        assert_eq!(
            depends(b"license=GPL\0depends=vfio-pci-core,vfio\0name=vfio_pci\0"),
            ["vfio_pci_core", "vfio"]
        );
        assert!(depends(b"depends=\0license=GPL\0").is_empty());
        assert!(depends(b"").is_empty());
    }

    #[test]
    fn what_is_not_there_is_left_out_and_what_is_no_module_is_named() {
        let directory = std::env::temp_dir().join(format!("xtask-{}-modules", std::process::id()));
        fs::create_dir_all(directory.join("deep")).expect("a directory");
        fs::write(directory.join("deep/a-b.ko"), "no ELF").expect("a file");
        assert!(in_load_order(&directory, &["other"]).expect("none").is_empty());
        let message = format!("{:#}", in_load_order(&directory, &["a_b"]).err().expect("no module"));
        assert!(message.contains("a-b.ko is no module"), "{message}");
        fs::remove_dir_all(&directory).expect("it was made above");
    }
}
