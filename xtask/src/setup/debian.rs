//! Debian packages in a directory of their own.
//!
//! apt resolves, downloads and checks signatures as always, but with its own state directory, an empty dpkg status
//! and its own sources, so that nothing of the machine is read or changed. `dpkg -x` unpacks what it downloaded.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, thread};

use anyhow::{Context, Result, anyhow, bail};

use crate::progress;

/// File in the directory that says which packages it was made from. It is written last.
pub const STAMP: &str = "packages.txt";

/// The archive to take when the machine's own sources name none.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

/// Key ring of Debian's archive, on Debian and (from the package of the same name) on its derivatives.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Release that the packages are taken from; what was backported to it comes first.
const SUITE: &str = "trixie";

/// Names of this machine's architecture in Debian.
pub struct Platform {
    debian: &'static str,
    /// Directory of its libraries below `usr/lib`.
    pub multiarch: &'static str,
    /// Its dynamic loader in a prefix.
    pub loader: &'static str,
}

impl Platform {
    /// The machine that this program runs on.
    ///
    /// # Errors
    ///
    /// Debian has no such architecture, or none that was tried.
    pub fn of_this_machine() -> Result<Self> {
        Ok(match std::env::consts::ARCH {
            "x86_64" => Self {
                debian: "amd64",
                multiarch: "x86_64-linux-gnu",
                loader: "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
            },
            "aarch64" => Self {
                debian: "arm64",
                multiarch: "aarch64-linux-gnu",
                loader: "usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1",
            },
            other => bail!("there is no recipe for Debian packages on {other}"),
        })
    }
}

/// Unpacks a package and all that it depends on into `prefix`, replacing what is there. Says which archive it was.
///
/// # Errors
///
/// No apt, no key ring, no network, no such package; `prefix` is then as it was.
pub fn unpack(package: &str, prefix: &Path) -> Result<String> {
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
    let mirror = mirror();
    match unpack_from(&mirror, package, prefix) {
        Err(error) if mirror != DEFAULT_MIRROR => {
            eprintln!("{mirror}: {error:#}; trying {DEFAULT_MIRROR}");
            unpack_from(DEFAULT_MIRROR, package, prefix)
        }
        other => other,
    }
}

fn unpack_from(mirror: &str, package: &str, prefix: &Path) -> Result<String> {
    let (Some(parent), Some(name)) = (prefix.parent(), prefix.file_name()) else {
        bail!("{} is no directory to unpack into", prefix.display());
    };
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    // Made aside and renamed, so that an interrupted set-up leaves nothing that looks complete.
    let work = parent.join(format!("{}.{}.part", name.to_string_lossy(), std::process::id()));
    let result = Apt::new(&work, mirror).and_then(|apt| {
        let unpacked = work.join("prefix");
        apt.fetch(package)?;
        apt.unpack(&unpacked)?;
        if prefix.exists() {
            fs::remove_dir_all(prefix).with_context(|| format!("cannot remove {}", prefix.display()))?;
        }
        fs::rename(&unpacked, prefix).with_context(|| format!("cannot move to {}", prefix.display()))
    });
    let _ = fs::remove_dir_all(&work);
    result.map(|()| format!("{mirror} {SUITE} and {SUITE}-backports"))
}

/// An apt that knows nothing of the machine's.
struct Apt {
    work: PathBuf,
    platform: Platform,
}

impl Apt {
    fn new(work: &Path, mirror: &str) -> Result<Self> {
        for directory in ["state/lists/partial", "cache/archives/partial", "etc"] {
            let directory = work.join(directory);
            fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let sources: String = [SUITE.to_owned(), format!("{SUITE}-backports")]
            .map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))
            .concat();
        fs::write(work.join("etc/sources.list"), sources)?;
        fs::write(work.join("status"), "")?;
        Ok(Self { work: work.to_owned(), platform: Platform::of_this_machine()? })
    }

    fn command(&self) -> Command {
        let path = |part: &str| self.work.join(part).display().to_string();
        let mut command = Command::new("apt-get");
        for option in [
            format!("Dir::State={}", path("state")),
            format!("Dir::State::status={}", path("status")),
            format!("Dir::Cache={}", path("cache")),
            format!("Dir::Etc={}", path("etc")),
            format!("Dir::Etc::sourcelist={}", path("etc/sources.list")),
            "Dir::Etc::sourceparts=/dev/null".into(),
            format!("APT::Architecture={}", self.platform.debian),
            format!("APT::Architectures={}", self.platform.debian),
            "APT::Keep-Downloaded-Packages=true".into(),
            // The private directories belong to this user, not to apt's own one.
            "APT::Sandbox::User=".into(),
            "APT::Get::List-Cleanup=false".into(),
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            "Acquire::Retries=3".into(),
            "Debug::NoLocking=true".into(),
        ] {
            command.args(["-o", &option]);
        }
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        command
    }

    /// Downloads the package and what it depends on.
    fn fetch(&self, package: &str) -> Result<()> {
        let spinner = progress::spinner("Debian's package lists");
        run_watched(self.command().arg("update"), |line| spinner.set_message(line.to_owned())).context(
            "the package lists could not be fetched: is there a network, or a proxy to set in http_proxy?",
        )?;
        spinner.finish_and_clear();

        let install = |extra: &str| {
            let mut command = self.command();
            command.args([
                "install",
                "--yes",
                "--no-install-recommends",
                "-t",
                &format!("{SUITE}-backports"),
            ]);
            command.args([extra, package]);
            command
        };
        let mut packages = 0;
        run_watched(&mut install("--print-uris"), |line| packages += u64::from(line.starts_with('\'')))
            .with_context(|| format!("Debian's {SUITE}-backports has no {package} that can be installed"))?;
        let bar = progress::bar(packages, "packages fetched");
        run_watched(&mut install("--download-only"), |line| bar.inc(u64::from(line.starts_with("Get:"))))
            .with_context(|| format!("{package} could not be downloaded"))?;
        bar.finish_and_clear();
        Ok(())
    }

    /// Unpacks all that was downloaded and writes the stamp.
    fn unpack(&self, prefix: &Path) -> Result<()> {
        let archives = self.work.join("cache/archives");
        let mut packages: Vec<PathBuf> = fs::read_dir(&archives)?
            .map(|entry| Ok(entry?.path()))
            .filter(|path: &Result<PathBuf>| {
                !path.as_ref().is_ok_and(|path| path.extension() != Some("deb".as_ref()))
            })
            .collect::<Result<_>>()?;
        packages.sort();
        if packages.is_empty() {
            bail!("apt downloaded nothing into {}", archives.display());
        }
        fs::create_dir_all(prefix)?;
        let bar = progress::bar(packages.len() as u64, "packages unpacked");
        for package in &packages {
            run_watched(Command::new("dpkg").arg("-x").args([package.as_path(), prefix]), |_| ())?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let names =
            packages.iter().filter_map(|path| path.file_name()).map(|name| name.to_string_lossy() + "\n");
        fs::write(prefix.join(STAMP), names.collect::<String>())?;
        Ok(())
    }
}

/// Runs a command, shows `each` line of its output to a function, and fails with the last lines of its complaint.
fn run_watched(command: &mut Command, mut each: impl FnMut(&str)) -> Result<()> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(anyhow!("a pipe is missing"));
    };
    let complaint = thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    for line in BufReader::new(stdout).lines() {
        each(&line?);
    }
    let status = child.wait()?;
    let complaint = complaint.join().unwrap_or_default();
    // apt-get update succeeds although an index could not be fetched, and says so in a warning only.
    let failed_softly = complaint.lines().any(|line| line.starts_with("W: Failed to fetch"));
    if status.success() && !failed_softly {
        return Ok(());
    }
    let lines: Vec<&str> = complaint.lines().collect();
    let tail = lines[lines.len().saturating_sub(4)..].join("\n");
    bail!("{} failed: {}", command.get_program().display(), tail.trim())
}

/// The Debian archive that the machine's own apt uses, else the default one.
fn mirror() -> String {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.flat_map(|text| mirrors(&text)).next().unwrap_or_else(|| DEFAULT_MIRROR.to_owned())
}

/// Addresses of Debian archives in a sources file of either style.
fn mirrors(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"));
    lines
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with("http://") || word.starts_with("https://"))
        .map(|address| address.trim_end_matches('/'))
        .filter(|address| address.ends_with("/debian"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_archive_and_nothing_else() {
        let deb822 = "Types: deb\n# http://snapshot.debian.org/archive/debian/2025\nURIs: http://mirror.example/debian/\n\
                      Suites: bookworm\n\nTypes: deb\nURIs: http://mirror.example/debian-security\n";
        assert_eq!(mirrors(deb822), ["http://mirror.example/debian"]);
        let list = "# deb http://old.example/debian trixie main\ndeb [arch=amd64] https://a.example/debian trixie main\n\
                    deb https://packages.example/apt stable main\ndeb http://archive.ubuntu.com/ubuntu noble main\n";
        assert_eq!(mirrors(list), ["https://a.example/debian"]);
    }
}
