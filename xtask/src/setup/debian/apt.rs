//! An apt that knows nothing of the machine's: its own state, an empty dpkg status, its own sources.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, thread};

use anyhow::{Context, Result, anyhow, bail};

use super::{KEYRING, STAMP, SUITE};
use crate::progress;

/// An apt with all that it keeps in a directory, which goes when this does.
pub struct Apt {
    work: PathBuf,
    architectures: &'static [&'static str],
}

impl Apt {
    /// Makes it for `architectures`, the first of which a package has that is named without one, in the directory `work`, with
    /// `mirror` as its archive, and fetches the package lists.
    pub fn new(work: &Path, architectures: &'static [&'static str], mirror: &str) -> Result<Self> {
        // Made before anything can fail, so that whatever is left is removed.
        let apt = Self { work: work.to_owned(), architectures };
        for directory in ["state/lists/partial", "cache/archives/partial", "etc/preferences.d"] {
            let directory = work.join(directory);
            fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let sources: String = [SUITE.to_owned(), format!("{SUITE}-backports")]
            .map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))
            .concat();
        fs::write(work.join("etc/sources.list"), sources)?;
        fs::write(work.join("status"), "")?;
        let spinner = progress::spinner("Debian's package lists");
        run_watched(apt.command("apt-get").arg("update"), |line| spinner.set_message(line.to_owned()))
            .context(
                "the package lists could not be fetched: is there a network, or a proxy to set in http_proxy?",
            )?;
        spinner.finish_and_clear();
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let path = |part: &str| self.work.join(part).display().to_string();
        let mut command = Command::new(program);
        for option in [
            format!("Dir::State={}", path("state")),
            format!("Dir::State::status={}", path("status")),
            format!("Dir::Cache={}", path("cache")),
            format!("Dir::Etc={}", path("etc")),
            format!("Dir::Etc::sourcelist={}", path("etc/sources.list")),
            "Dir::Etc::sourceparts=/dev/null".into(),
            format!("APT::Architecture={}", self.architectures.first().unwrap_or(&"")),
            format!("APT::Architectures={}", self.architectures.join(",")),
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

    fn archives(&self) -> PathBuf {
        self.work.join("cache/archives")
    }

    /// Names of the archive's packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        run_watched(self.command("apt-cache").args(["pkgnames", prefix]), |line| {
            names.push(line.to_owned())
        })?;
        Ok(names)
    }

    /// Downloads packages, from the backports if they are there, and what they depend on.
    pub fn fetch_with_dependencies(&self, wanted: &[&str]) -> Result<()> {
        let install = |extra: &str| {
            let mut command = self.command("apt-get");
            command.args([
                "install",
                "--yes",
                "--no-install-recommends",
                "-t",
                &format!("{SUITE}-backports"),
            ]);
            command.arg(extra).args(wanted);
            command
        };
        let mut packages = 0;
        run_watched(&mut install("--print-uris"), |line| packages += u64::from(line.starts_with('\'')))
            .with_context(|| {
                format!("Debian's {SUITE}-backports has no {} that can be installed", wanted.join(", "))
            })?;
        let bar = progress::bar(packages, "packages fetched");
        run_watched(&mut install("--download-only"), |line| bar.inc(u64::from(line.starts_with("Get:"))))
            .with_context(|| format!("{} could not be downloaded", wanted.join(", ")))?;
        bar.finish_and_clear();
        Ok(())
    }

    /// Downloads packages and nothing that they depend on.
    pub fn fetch(&self, packages: &[String]) -> Result<()> {
        let bar = progress::bar(packages.len() as u64, "packages fetched");
        let mut command = self.command("apt-get");
        command.arg("download").args(packages).current_dir(self.archives());
        run_watched(&mut command, |line| bar.inc(u64::from(line.starts_with("Get:"))))
            .with_context(|| format!("{} could not be downloaded", packages.join(", ")))?;
        bar.finish_and_clear();
        Ok(())
    }

    /// Unpacks all that was downloaded, with a stamp that says what it was, and puts it in the place of `prefix`.
    pub fn unpack(&self, prefix: &Path) -> Result<()> {
        let archives = self.archives();
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
        // Made aside and renamed, so that an interrupted set-up leaves nothing that looks complete.
        let aside = self.work.join("prefix");
        fs::create_dir_all(&aside)?;
        let bar = progress::bar(packages.len() as u64, "packages unpacked");
        for package in &packages {
            run_watched(Command::new("dpkg").arg("-x").args([package, &aside]), |_| ())?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let names =
            packages.iter().filter_map(|path| path.file_name()).map(|name| name.to_string_lossy() + "\n");
        fs::write(aside.join(STAMP), names.collect::<String>())?;
        if prefix.exists() {
            fs::remove_dir_all(prefix).with_context(|| format!("cannot remove {}", prefix.display()))?;
        }
        fs::rename(&aside, prefix).with_context(|| format!("cannot move to {}", prefix.display()))
    }
}

impl Drop for Apt {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.work);
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
