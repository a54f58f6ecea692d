//! The copy of the tree that mutations are made in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Mutation;
use crate::workspace::Workspace;

/// What of the tree's top level is not part of the source.
const NOT_SOURCE: [&str; 2] = ["target", ".git"];

/// A copy of the tree. It stays between runs, so that cargo builds only what changed.
pub struct Copy {
    original: PathBuf,
    workspace: Workspace,
}

impl Copy {
    /// Makes the copy equal to the tree.
    pub fn new(original: &Workspace) -> Result<Self> {
        let home = original.target().join("mutate");
        let workspace = Workspace::at(home.join("tree"), home.join("target"));
        let copy = Self { original: original.root().to_owned(), workspace };
        let mut kept = BTreeSet::new();
        copy.update(Path::new(""), &mut kept)?;
        remove_others(copy.workspace.root(), Path::new(""), &kept)?;
        Ok(copy)
    }

    /// The copy as a tree to build.
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Makes a mutation in the copy.
    pub fn apply(&self, mutation: &Mutation) -> Result<()> {
        for (file, text) in mutated(&self.original, mutation)? {
            let path = self.workspace.root().join(file);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Takes it back.
    pub fn revert(&self, mutation: &Mutation) -> Result<()> {
        for (file, ..) in mutation.edits() {
            let text = fs::read(self.original.join(file))?;
            let path = self.workspace.root().join(file);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Copies what differs; a file that is the same keeps its time, by which cargo goes.
    fn update(&self, directory: &Path, kept: &mut BTreeSet<PathBuf>) -> Result<()> {
        let to = self.workspace.root().join(directory);
        fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
        for entry in fs::read_dir(self.original.join(directory))? {
            let entry = entry?;
            let relative = directory.join(entry.file_name());
            if NOT_SOURCE.iter().any(|name| relative == Path::new(name)) {
                continue;
            }
            kept.insert(relative.clone());
            if entry.file_type()?.is_dir() {
                self.update(&relative, kept)?;
                continue;
            }
            let (content, to) = (fs::read(entry.path())?, self.workspace.root().join(&relative));
            if !fs::read(&to).is_ok_and(|old| old == content) {
                fs::write(&to, content).with_context(|| format!("cannot write {}", to.display()))?;
            }
        }
        Ok(())
    }
}

/// The files of a mutation, each with its text when the mutation is made.
pub fn mutated<'m>(root: &Path, mutation: &'m Mutation) -> Result<BTreeMap<&'m str, String>> {
    let mut texts = BTreeMap::new();
    for (file, find, replace) in mutation.edits() {
        if find.is_empty() {
            bail!("it says no text to find");
        }
        if find == replace {
            bail!("it changes nothing");
        }
        let text = match texts.remove(file) {
            Some(text) => text,
            None => {
                let path = root.join(file);
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?
            }
        };
        match text.matches(find).count() {
            1 => texts.insert(file, text.replacen(find, replace, 1)),
            times => bail!("its text is {times} times in {file}, not once"),
        };
    }
    Ok(texts)
}

fn remove_others(root: &Path, directory: &Path, kept: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(root.join(directory))? {
        let entry = entry?;
        let relative = directory.join(entry.file_name());
        let is_directory = entry.file_type()?.is_dir();
        match (kept.contains(&relative), is_directory) {
            (true, true) => remove_others(root, &relative, kept)?,
            (true, false) => {}
            // The lock file of a tree that has none is cargo's own.
            (false, false) => fs::remove_file(entry.path())?,
            (false, true) => fs::remove_dir_all(entry.path())?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{CaughtBy, Edit, LIST, List};
    use super::*;

    fn mutation(find: &str, replace: &str) -> Mutation {
        Mutation {
            name: "a".into(),
            breaks: "b".into(),
            file: "file".into(),
            find: find.into(),
            replace: replace.into(),
            also: Vec::new(),
            caught_by: CaughtBy::Model,
            check: None,
        }
    }

    #[test]
    fn a_text_must_be_there_once() {
        let root = std::env::temp_dir().join(format!("xtask-{}-mutated", std::process::id()));
        fs::create_dir_all(&root).expect("a directory");
        fs::write(root.join("file"), "one two two").expect("a file");
        let text = |mutation: &Mutation| mutated(&root, mutation).map(|mut texts| texts.remove("file"));
        assert_eq!(text(&mutation("one", "1")).expect("once").as_deref(), Some("1 two two"));
        // The second replacement finds what the first one left.
        let also = Edit { file: "file".into(), find: "1 two".into(), replace: "3".into() };
        let both = Mutation { also: vec![also], ..mutation("one", "1") };
        assert_eq!(text(&both).expect("once each").as_deref(), Some("3 two"));
        for (find, replace) in [("two", "2"), ("three", "3"), ("", "x"), ("one", "one")] {
            mutated(&root, &mutation(find, replace)).expect_err(find);
        }
        fs::remove_dir_all(&root).expect("it was made above");
    }

    #[test]
    fn every_check_that_is_named_is_in_the_source() {
        let root = Workspace::current().root().to_owned();
        let text = fs::read_to_string(root.join(LIST)).expect(LIST);
        let list: List = toml::from_str(&text).expect(LIST);
        let named: Vec<&str> =
            list.mutation.iter().filter_map(|mutation| mutation.check.as_deref()).collect();
        assert!(!named.is_empty());
        let mut sources = String::new();
        let mut directories = vec![root.join("host-shim/src"), root.join("tests/tests")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).expect("a directory") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    sources += &fs::read_to_string(path).expect("a source file");
                }
            }
        }
        for check in named {
            // A test is named with its module.
            let function = check.rsplit("::").next().unwrap_or(check);
            let is_there = sources.contains(&format!("name: \"{check}\","))
                || sources.contains(&format!("fn {function}()"));
            assert!(is_there, "no check or test is called `{check}`");
        }
    }

    #[test]
    fn every_listed_mutation_fits_the_source() {
        let root = Workspace::current().root().to_owned();
        let text = fs::read_to_string(root.join(LIST)).expect(LIST);
        let list: List = toml::from_str(&text).expect(LIST);
        assert!(list.mutation.len() >= 12);
        for mutation in &list.mutation {
            if let Err(error) = mutated(&root, mutation) {
                panic!("{}: {error:#}", mutation.name);
            }
        }
    }
}
