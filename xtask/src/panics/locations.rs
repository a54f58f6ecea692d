//! The places that panics name: each of `core`'s panic functions is called with a [`core::panic::Location`], which is data of the image.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _};

/// The data of an image.
pub struct Locations<'a> {
    sections: Vec<(u64, &'a [u8])>,
    /// Pointers in data: their addends, by where they are.
    pointers: HashMap<u64, u64>,
}

impl<'a> Locations<'a> {
    /// Reads the data of an ELF.
    ///
    /// # Errors
    ///
    /// It is none, or has no relocations.
    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        let file = ElfFile64::<Endianness>::parse(bytes).context("the image is no ELF")?;
        let mut sections = Vec::new();
        for section in file.sections().filter(|section| section.address() != 0) {
            sections.push((section.address(), section.data()?));
        }
        let relocations = file.section_by_name(".rela.dyn").context("the image has no relocations")?;
        // Elf64_Rela: r_offset, r_info, r_addend.
        let word = |entry: &[u8], n: usize| {
            u64::from_le_bytes(entry[8 * n..8 * n + 8].try_into().unwrap_or_default())
        };
        let entries = relocations.data()?.chunks_exact(24);
        let pointers = entries.map(|entry| (word(entry, 0), word(entry, 2))).collect();
        Ok(Self { sections, pointers })
    }

    fn bytes(&self, at: u64, size: usize) -> Option<&'a [u8]> {
        self.sections.iter().find_map(|(start, data)| {
            let offset = usize::try_from(at.checked_sub(*start)?).ok()?;
            data.get(offset..offset.checked_add(size)?)
        })
    }

    /// File and line of the location at an address; `None` if there is none.
    pub fn at(&self, address: u64) -> Option<(&'a str, usize)> {
        // Pointer and length of the file's name, line, column.
        let name = *self.pointers.get(&address)?;
        let length = u64::from_le_bytes(self.bytes(address + 8, 8)?.try_into().ok()?);
        let line = u32::from_le_bytes(self.bytes(address + 16, 4)?.try_into().ok()?);
        let name = self.bytes(name, usize::try_from(length).ok()?)?;
        let name = str::from_utf8(name).ok().filter(|name| name.ends_with(".rs"))?;
        Some((name, usize::try_from(line).ok()?))
    }
}
