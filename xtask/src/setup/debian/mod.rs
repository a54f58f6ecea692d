//! Debian packages in a directory of their own.
//!
//! apt resolves, downloads and checks signatures as always, but with its own state directory, an empty dpkg status
//! and its own sources, so that nothing of the machine is read or changed. `dpkg -x` unpacks what it downloaded.

mod apt;
mod mirror;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

pub use apt::Apt;

/// File in the directory that says which packages it was made from.
pub const STAMP: &str = "packages.txt";

/// Key ring of Debian's archive, on Debian and (from the package of the same name) on its derivatives.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Release that the packages are taken from; what was backported to it comes first.
const SUITE: &str = "trixie";

/// Names of this machine's architecture in Debian.
pub struct Platform {
    /// Its name in Debian, alone in a list.
    pub architectures: &'static [&'static str],
    /// Directory of its libraries below `usr/lib`.
    multiarch: &'static str,
    /// Its dynamic loader in a prefix.
    loader: &'static str,
}

impl Platform {
    /// The words before the path of a program of a prefix, which starts with the libraries there: the dynamic loader and its arguments.
    pub fn loader(&self, prefix: &Path) -> [PathBuf; 3] {
        let libraries = prefix.join("usr/lib").join(self.multiarch);
        [prefix.join(self.loader), "--library-path".into(), libraries]
    }

    /// The machine that this program runs on.
    ///
    /// # Errors
    ///
    /// Debian has no such architecture, or none that was tried.
    pub fn of_this_machine() -> Result<Self> {
        Ok(match std::env::consts::ARCH {
            "x86_64" => Self {
                architectures: &["amd64"],
                multiarch: "x86_64-linux-gnu",
                loader: "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
            },
            "aarch64" => Self {
                architectures: &["arm64"],
                multiarch: "aarch64-linux-gnu",
                loader: "usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1",
            },
            other => bail!("there is no recipe for Debian packages on {other}"),
        })
    }
}

/// Unpacks packages of some architectures and all that they depend on into `prefix`, replacing what is there. Says which
/// archive it was.
///
/// # Errors
///
/// No apt, no key ring, no network, no such package; `prefix` is then as it was.
pub fn unpack(architectures: &'static [&'static str], packages: &[&str], prefix: &Path) -> Result<String> {
    let ((), origin) = with_apt(architectures, prefix, |apt| {
        apt.fetch_with_dependencies(packages)?;
        apt.unpack(prefix)
    })?;
    Ok(origin)
}

/// Lets `take` fetch packages of some architectures, the first being the usual one, with the package lists of the machine's archive and, when that fails, of
/// Debian's own. apt keeps its files beside `place` meanwhile. Says which archive it was.
///
/// # Errors
///
/// No apt, no key ring, no network, or as `take` with the last archive.
pub fn with_apt<T>(
    architectures: &'static [&'static str],
    place: &Path,
    take: impl Fn(&Apt) -> Result<T>,
) -> Result<(T, String)> {
    for (program, what) in [("apt-get", "apt"), ("dpkg", "dpkg")] {
        if Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_err()
        {
            bail!("there is no {program} on this machine: on Debian or Ubuntu it is in the package {what}");
        }
    }
    if !Path::new(KEYRING).exists() {
        bail!(
            "there is no {KEYRING} to check Debian's signatures with: type `apt-get install debian-archive-keyring`"
        );
    }
    let work = beside(place)?;
    let with = |mirror: &str| {
        let taken = take(&Apt::new(&work, architectures, mirror)?)?;
        Ok((taken, format!("{mirror} {SUITE} and {SUITE}-backports")))
    };
    let mirror = mirror::of_this_machine();
    match with(&mirror) {
        Err(error) if mirror != mirror::DEFAULT => {
            eprintln!("{mirror}: {error:#}; trying {}", mirror::DEFAULT);
            with(mirror::DEFAULT)
        }
        other => other,
    }
}

/// A directory beside `place` that no other process uses.
fn beside(place: &Path) -> Result<PathBuf> {
    let (Some(parent), Some(name)) = (place.parent(), place.file_name()) else {
        bail!("{} is no directory to unpack into", place.display());
    };
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    Ok(parent.join(format!("{}.{}.part", name.to_string_lossy(), std::process::id())))
}
