//! Debian's arm64 Linux as it is, with a busybox to start in it.

use std::cmp::Ordering;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::debian::{self, Apt};
use crate::workspace;

/// The kernels that are taken when nothing is said.
pub const DEFAULT: &str = "7.2";

/// Debian's names of the kernel's architecture, and of the build machine's.
fn architectures() -> Result<&'static [&'static str]> {
    Ok(match debian::Platform::of_this_machine()?.architectures {
        ["amd64"] => &["arm64", "amd64"],
        _ => &["arm64"],
    })
}

/// Its kernels for virtual machines: small, and with everything that this machine has.
const FLAVOUR: &str = "-cloud-arm64";

/// The package with the kernel, before the release; an arm64 `Image`, neither compressed nor signed inside.
const KERNEL_PACKAGE: &str = "linux-binary-";
/// The package with its modules, before the release.
const MODULES_PACKAGE: &str = "linux-modules-";
/// The package with its headers, before the release, and those of all kernels of the version, before it.
const HEADERS_PACKAGE: &str = "linux-headers-";
/// What follows the version in the name of the headers of all its kernels.
const COMMON: &str = "-common";
/// The package with the programs that a module is built with, for the build machine, before the version.
const KBUILD_PACKAGE: &str = "linux-kbuild-";
/// A shell and tools in one program that needs no libraries.
const BUSYBOX_PACKAGE: &str = "busybox-static";

/// Which kernels will do: those whose version begins with this, for example `7.2`, `7.2.12` or `7.2.12+deb13`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted(String);

impl Wanted {
    /// Whether a version begins with what is wanted, and the number ends there too.
    fn takes(&self, version: &str) -> bool {
        version
            .strip_prefix(&self.0)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    }

    /// The newest of `versions` that will do.
    fn newest(&self, versions: impl IntoIterator<Item = String>) -> Option<String> {
        versions.into_iter().filter(|version| self.takes(version)).max_by(|a, b| compare(a, b))
    }
}

impl FromStr for Wanted {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim().trim_end_matches(FLAVOUR);
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".+~-".contains(c);
        if !text.starts_with(|c: char| c.is_ascii_digit()) || !text.chars().all(allowed) {
            bail!("'{text}' is no version of Linux: type for example --linux-version 7.2 or 7.2.12");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Compares versions: numbers as numbers, the rest as text.
fn compare(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        let release = text.split(['+', '~', '-']).next().unwrap_or(text);
        release.split('.').map(|part| part.parse().unwrap_or(0)).collect()
    };
    numbers(a).cmp(&numbers(b)).then_with(|| a.cmp(b))
}

/// A kernel and what goes with it.
#[derive(Clone, Debug)]
pub struct Linux {
    /// Version as in the names of its packages, for example `7.2.12+deb13`.
    pub version: String,
    prefix: PathBuf,
}

impl Linux {
    /// Name of its release, as `uname -r` says it.
    pub fn release(&self) -> String {
        format!("{}{FLAVOUR}", self.version)
    }

    fn modules_root(&self) -> PathBuf {
        self.prefix.join("usr/lib/modules").join(self.release())
    }

    /// The kernel, an arm64 `Image`.
    pub fn image(&self) -> PathBuf {
        self.modules_root().join("vmlinuz")
    }

    /// Directory with its modules.
    pub fn modules(&self) -> PathBuf {
        self.modules_root().join("kernel")
    }

    /// What modules are built against: the kernel's configuration, symbols and generated headers.
    pub fn headers(&self) -> PathBuf {
        self.prefix.join("usr/src").join(format!("{HEADERS_PACKAGE}{}", self.release()))
    }

    /// The headers and makefiles of all kernels of the version.
    pub fn common_headers(&self) -> PathBuf {
        self.prefix.join("usr/src").join(format!("{HEADERS_PACKAGE}{}{COMMON}", self.version))
    }

    /// Programs that build modules, with their directories `scripts` and `tools`.
    pub fn kbuild(&self) -> PathBuf {
        self.prefix.join("usr/lib").join(format!("{KBUILD_PACKAGE}{}", self.version))
    }

    /// The static busybox.
    pub fn busybox(&self) -> PathBuf {
        self.prefix.join("usr/bin/busybox")
    }

    /// The kernel of `version` in the cache, if it is all there.
    fn cached(home: &Path, version: &str) -> Option<Self> {
        let linux = Self { version: version.to_owned(), prefix: home.join(version) };
        let complete = linux.prefix.join(debian::STAMP).exists()
            && linux.image().exists()
            && linux.modules().exists()
            && linux.busybox().exists()
            && linux.headers().exists()
            && linux.common_headers().exists()
            && linux.kbuild().exists();
        complete.then_some(linux)
    }
}

/// The newest kernel of the cache that will do, else the newest one of Debian, which is then put into the cache.
///
/// # Errors
///
/// There is none, and none could be fetched; the message says which there are.
pub fn find_or_fetch(wanted: &Wanted, report: bool) -> Result<Linux> {
    let home = workspace::cache().join("linux");
    let names = fs::read_dir(&home).into_iter().flatten().flatten();
    let cached: Vec<Linux> =
        names.filter_map(|entry| Linux::cached(&home, &entry.file_name().to_string_lossy())).collect();
    if let Some(version) = wanted.newest(cached.into_iter().map(|linux| linux.version))
        && let Some(linux) = Linux::cached(&home, &version)
    {
        if report {
            println!("Linux {}: Debian's, in {}", linux.release(), linux.prefix.display());
        }
        return Ok(linux);
    }
    println!("Linux {wanted}: fetching Debian's into {}", home.display());
    let fetched = debian::with_apt(architectures()?, &home.join("linux"), |apt| fetch(apt, wanted, &home));
    let (linux, origin) = fetched.with_context(|| format!("Linux {wanted} could not be had from Debian"))?;
    println!("Linux {}: Debian's, from {origin}, in {}", linux.release(), linux.prefix.display());
    Ok(linux)
}

fn fetch(apt: &Apt, wanted: &Wanted, home: &Path) -> Result<Linux> {
    let versions = |package: &str| -> Result<Vec<String>> {
        let names = apt.names(package)?;
        let version = |name: &String| Some(name.strip_prefix(package)?.strip_suffix(FLAVOUR)?.to_owned());
        Ok(names
            .iter()
            .filter_map(version)
            .filter(|name| name.starts_with(|c: char| c.is_ascii_digit()))
            .collect())
    };
    let modules = versions(MODULES_PACKAGE)?;
    let mut both: Vec<String> = versions(KERNEL_PACKAGE)?;
    both.retain(|version| modules.contains(version));
    let Some(version) = wanted.newest(both.iter().cloned()) else {
        both.sort_by(|a, b| compare(a, b));
        bail!("it has {}: type for example --linux-version 7.2", both.join(", "));
    };
    let this_machine = debian::Platform::of_this_machine()?.architectures.concat();
    let packages = [KERNEL_PACKAGE, MODULES_PACKAGE, HEADERS_PACKAGE]
        .map(|package| format!("{package}{version}{FLAVOUR}"))
        .into_iter()
        .chain([
            format!("{HEADERS_PACKAGE}{version}{COMMON}"),
            format!("{KBUILD_PACKAGE}{version}:{this_machine}"),
            BUSYBOX_PACKAGE.to_owned(),
        ])
        .collect::<Vec<_>>();
    apt.fetch(&packages)?;
    apt.unpack(&home.join(&version))?;
    Linux::cached(home, &version).with_context(|| {
        format!(
            "the packages {} do not have a kernel, modules and headers where they should be",
            packages.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> Wanted {
        text.parse().expect(text)
    }

    #[test]
    fn the_newest_that_will_do_is_taken() {
        let versions = ["7.2.9+deb13", "7.2.12+deb13", "7.3.4+deb13", "7.20.1+deb13", "6.12.1+deb13"];
        let newest = |text| wanted(text).newest(versions.map(str::to_owned));
        assert_eq!(newest("7.2").as_deref(), Some("7.2.12+deb13"));
        assert_eq!(newest("7").as_deref(), Some("7.20.1+deb13"));
        assert_eq!(newest("7.2.9").as_deref(), Some("7.2.9+deb13"));
        assert_eq!(newest("7.2.12+deb13-cloud-arm64").as_deref(), Some("7.2.12+deb13"));
        assert_eq!(newest("7.2.1"), None);
        assert_eq!(newest("8"), None);
    }

    #[test]
    fn a_refusal_says_what_to_type() {
        for text in ["", "newest", "7.2; rm", "7.2/..", "../7.2", "-7"] {
            let message = text.parse::<Wanted>().expect_err(text).to_string();
            assert!(message.contains("type for example --linux-version"), "{message}");
        }
    }
}
