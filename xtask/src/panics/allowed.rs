//! `panics.toml`: places that could panic, and why none does.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::workspace::Workspace;

/// The list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    #[serde(default)]
    allowed: Vec<Entry>,
}

/// A function of the source with the panics that the compiler made for it, and why they cannot happen.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    function: String,
    /// With the number of places that have it.
    panics: BTreeMap<String, usize>,
    why: String,
}

impl Allowed {
    /// Reads the list.
    ///
    /// # Errors
    ///
    /// It cannot be read, or gives no reason, or names something twice.
    pub fn read() -> Result<Self> {
        let path = Workspace::current().root().join("xtask").join("panics.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads a list from its text.
    pub fn parse(text: &str) -> Result<Self> {
        let list: Self = toml::from_str(text)?;
        for entry in &list.allowed {
            ensure!(entry.why.len() > 10, "{} has no reason", entry.function);
        }
        let mut all: Vec<_> = list.all().map(|(function, panic, _)| (function, panic)).collect();
        all.sort_unstable();
        if let Some(twice) = all.windows(2).find(|pair| pair[0] == pair[1]) {
            anyhow::bail!("{} is there twice with {}", twice[0].0, twice[0].1);
        }
        Ok(list)
    }

    /// For how many places it has a reason, of a function with a panic.
    pub fn places(&self, function: &str, panic: &str) -> usize {
        self.all().find(|entry| (entry.0, entry.1) == (function, panic)).map_or(0, |(.., places)| places)
    }

    /// Every function and panic, with the number of its places.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str, usize)> {
        self.allowed.iter().flat_map(|entry| {
            entry.panics.iter().map(|(panic, places)| (entry.function.as_str(), panic.as_str(), *places))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_can_be_read() {
        assert!(Allowed::read().unwrap().all().count() > 0);
    }

    #[test]
    fn a_reason_is_needed_and_nothing_is_there_twice() {
        let entry =
            |why: &str| format!("[[allowed]]\nfunction = \"f\"\npanics = {{ panic = 1 }}\nwhy = \"{why}\"\n");
        assert!(Allowed::parse(&entry("it is below ten")).is_ok());
        assert!(Allowed::parse(&entry("")).is_err());
        assert!(Allowed::parse(&entry("it is below ten").repeat(2)).is_err());
    }
}
