//! Where things are: the source tree, the target directory and the cache of what `setup` fetched.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};

/// The bare-metal target. Soft-float, because EL2 must not touch the host's FP and SIMD registers.
pub const TARGET: &str = "aarch64-unknown-none-softfloat";

/// Name of the directory in the user's cache directory.
const CACHE_NAME: &str = "hyp-xtask";

/// A source tree and where its builds go.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// The tree that this program was built from.
    pub fn current() -> Self {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().unwrap_or(manifest).to_owned();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(directory) => env::current_dir().unwrap_or_default().join(directory),
            None => root.join("target"),
        };
        Self { root, target }
    }

    /// Another tree with a target directory of its own.
    pub const fn at(root: PathBuf, target: PathBuf) -> Self {
        Self { root, target }
    }

    /// The tree's top directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target directory.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The directory of flat images, made if it is not there.
    ///
    /// # Errors
    ///
    /// The directory cannot be made.
    pub fn images(&self) -> Result<PathBuf> {
        self.made(self.target.join("images"))
    }

    /// The directory of logs, made if it is not there.
    ///
    /// # Errors
    ///
    /// The directory cannot be made.
    pub fn logs(&self) -> Result<PathBuf> {
        self.made(self.target.join("logs"))
    }

    fn made(&self, directory: PathBuf) -> Result<PathBuf> {
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(directory)
    }

    /// A cargo command in this tree, with its target directory.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        // Variables that the outer cargo set for this package would make the inner one rebuild.
        for (name, _) in env::vars_os() {
            if name
                .to_str()
                .is_some_and(|name| name.starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR")
            {
                command.env_remove(name);
            }
        }
        command
    }
}

/// Where `setup` keeps what it fetched: `$XTASK_CACHE`, else a directory in the user's cache directory.
pub fn cache() -> PathBuf {
    if let Some(directory) = env::var_os("XTASK_CACHE") {
        return env::current_dir().unwrap_or_default().join(directory);
    }
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    base.unwrap_or_else(|| Workspace::current().target).join(CACHE_NAME)
}
