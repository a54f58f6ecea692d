//! A QEMU that has several SMMUv3 instances.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, fmt};

use anyhow::{Context, Result, bail};

use super::debian;
use crate::workspace;

/// The first version with more than one SMMUv3 (`-device arm-smmuv3`, any `stage=`).
pub const NEEDED: Version = Version { major: 10, minor: 2 };

/// Name of the emulator.
const PROGRAM: &str = "qemu-system-aarch64";

/// A version of QEMU; the patch level does not matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// Reads what `--version` prints: `QEMU emulator version 11.1.3 (...)`.
    fn parse(text: &str) -> Option<Self> {
        let number = text.split_once("version ")?.1.split_whitespace().next()?;
        let mut parts = number.split('.');
        Some(Self { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// An emulator that can be started.
#[derive(Clone, Debug)]
pub struct Qemu {
    program: PathBuf,
    first_arguments: Vec<PathBuf>,
    version: Version,
}

impl Qemu {
    /// A command that starts it, without any machine argument.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.first_arguments);
        command
    }

    fn probe(program: PathBuf, first_arguments: Vec<PathBuf>) -> Result<Self> {
        let output = Command::new(&program)
            .args(&first_arguments)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = Version::parse(&text) else {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("{} --version did not say which version it is: {}", program.display(), complaint.trim());
        };
        Ok(Self { program, first_arguments, version })
    }
}

/// The user's own QEMU if it is new enough, else the one of the private prefix, which is made if it is not there.
///
/// `XTASK_QEMU` names another program; it is then the only one looked at.
///
/// # Errors
///
/// There is none, and none could be fetched.
pub fn find_or_fetch(report: bool) -> Result<Qemu> {
    if let Some(named) = env::var_os("XTASK_QEMU") {
        let qemu = Qemu::probe(PathBuf::from(&named), Vec::new()).context("XTASK_QEMU names no QEMU")?;
        if qemu.version < NEEDED {
            bail!(
                "XTASK_QEMU names QEMU {}, but several SMMUs need {NEEDED} or newer: name a newer one, or type `unset XTASK_QEMU`",
                qemu.version
            );
        }
        return Ok(qemu);
    }
    let found = match Qemu::probe(PathBuf::from(PROGRAM), Vec::new()) {
        Ok(qemu) if qemu.version >= NEEDED => {
            if report {
                println!("QEMU {}: your own {PROGRAM}", qemu.version);
            }
            return Ok(qemu);
        }
        Ok(qemu) => format!("found QEMU {}, which is too old", qemu.version),
        Err(_) => format!("found no {PROGRAM}"),
    };
    let advice = || {
        format!(
            "{found}; several SMMUs need QEMU {NEEDED} or newer, and it could not be fetched from Debian.\n\
             Install {PROGRAM} {NEEDED} or newer (from https://www.qemu.org/download/ if your system has none), or type\n    \
             XTASK_QEMU=/path/to/{PROGRAM} cargo xtask run"
        )
    };
    private(report, &found).with_context(advice)
}

/// The QEMU of the private prefix.
fn private(report: bool, found: &str) -> Result<Qemu> {
    let prefix = workspace::cache().join("qemu");
    let platform = debian::Platform::of_this_machine()?;
    let start = || {
        let [loader, option, libraries] = platform.loader(&prefix);
        let first_arguments = [
            option,
            libraries,
            prefix.join("usr/bin").join(PROGRAM),
            "-L".into(),
            prefix.join("usr/share/qemu"),
        ];
        Qemu::probe(loader, first_arguments.into())
    };
    if prefix.join(debian::STAMP).exists()
        && let Ok(qemu) = start()
    {
        if report {
            println!("QEMU {}: Debian's, in {} ({found})", qemu.version, prefix.display());
        }
        return Ok(qemu);
    }
    println!("{found}: fetching Debian's QEMU into {}", prefix.display());
    let origin = debian::unpack(platform.architectures, &["qemu-system-arm"], &prefix)?;
    let qemu = start()?;
    if qemu.version < NEEDED {
        bail!("{origin} gave QEMU {}, which is too old", qemu.version);
    }
    println!("QEMU {}: Debian's, from {origin}, in {}", qemu.version, prefix.display());
    Ok(qemu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let version = |text| Version::parse(text).expect(text);
        assert!(version("QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7)") < NEEDED);
        assert!(version("QEMU emulator version 10.0.2") < NEEDED);
        assert!(version("QEMU emulator version 10.2.0") >= NEEDED);
        assert!(version("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)\nCopyright") >= NEEDED);
        assert_eq!(Version::parse("no version here"), None);
    }
}
