//! Where inputs are: those that are kept in `fuzz/`, and those of this machine in the target directory.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace::Workspace;

/// The directories of a target.
pub struct Corpus {
    /// Inputs in the tree that together reach what is known to be reached; `cargo test` replays them.
    pub kept: PathBuf,
    /// Inputs in the tree that once found something; `cargo test` replays them.
    pub regressions: PathBuf,
    /// What was found on this machine.
    pub found: PathBuf,
    /// Inputs that made the target fail.
    pub findings: PathBuf,
}

impl Corpus {
    /// Those of a target; the ones of this machine are made.
    pub fn of(workspace: &Workspace, target: &str) -> Result<Self> {
        let (tree, machine) = (workspace.root().join("fuzz"), workspace.target().join("fuzz"));
        let corpus = Self {
            kept: tree.join("corpus").join(target),
            regressions: tree.join("regressions").join(target),
            found: machine.join("corpus").join(target),
            findings: machine.join("findings").join(target),
        };
        for directory in [&corpus.found, &corpus.findings] {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        Ok(corpus)
    }

    /// All directories of inputs that there are, that of this machine first.
    pub fn directories(&self) -> Vec<PathBuf> {
        let there = [&self.kept, &self.regressions].into_iter().filter(|directory| directory.exists());
        [&self.found].into_iter().chain(there).cloned().collect()
    }

    /// Keeps an input that found something, by a name made of its bytes. Says where.
    pub fn keep_finding(&self, input: &Path) -> Result<PathBuf> {
        let bytes = fs::read(input).with_context(|| format!("cannot read {}", input.display()))?;
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        fs::create_dir_all(&self.regressions)?;
        let place = self.regressions.join(format!("{:016x}", hasher.finish()));
        fs::write(&place, bytes).with_context(|| format!("cannot write {}", place.display()))?;
        Ok(place)
    }

    /// Puts the files of a directory in the place of the kept ones. Says how many there are, and how many bytes.
    pub fn replace_kept(&self, by: &Path) -> Result<(usize, u64)> {
        if self.kept.exists() {
            fs::remove_dir_all(&self.kept)?;
        }
        fs::create_dir_all(&self.kept)?;
        let (mut files, mut bytes) = (0, 0);
        for entry in fs::read_dir(by)? {
            let entry = entry?;
            bytes += fs::copy(entry.path(), self.kept.join(entry.file_name()))?;
            files += 1;
        }
        Ok((files, bytes))
    }
}

/// Files of a directory; none if there is no such directory.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}
