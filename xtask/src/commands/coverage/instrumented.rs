//! Test programs that count which regions of the source they run, and what LLVM makes of their counts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::setup::llvm::{self, Llvm};
use crate::workspace::Workspace;

/// Packages whose tests run what is measured.
const PACKAGES: [&str; 5] = ["abi", "smmuv3", "hyp", "host-shim", "tests"];

/// A test program and the directory that it is run in.
struct Program {
    name: String,
    executable: PathBuf,
    directory: PathBuf,
}

/// Built test programs.
pub struct Programs {
    llvm: Llvm,
    programs: Vec<Program>,
    profiles: PathBuf,
    root: PathBuf,
}

/// What test programs have recorded.
pub struct Recorded {
    llvm: Llvm,
    executables: Vec<PathBuf>,
    profile: PathBuf,
    root: PathBuf,
    /// How many test programs failed.
    pub failed: usize,
}

impl Programs {
    /// Builds them, with a target directory of their own: everything is compiled otherwise.
    pub fn build(workspace: &Workspace) -> Result<Self> {
        let llvm = llvm::find_or_fetch()?;
        let target = workspace.target().join("coverage");
        let mut cargo = Workspace::at(workspace.root().to_owned(), target.clone()).cargo();
        cargo
            .args(["test", "--no-run", "--lib", "--tests", "--message-format=json-render-diagnostics"])
            .args(PACKAGES.iter().flat_map(|package| ["--package", package]))
            .env("RUSTFLAGS", "-Cinstrument-coverage")
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        // What a build script or a macro counts is of no interest.
        cargo.env("LLVM_PROFILE_FILE", "/dev/null");
        let output = cargo.output().context("cargo cannot be started")?;
        if !output.status.success() {
            bail!("the tests cannot be built for coverage");
        }
        let messages = String::from_utf8_lossy(&output.stdout).into_owned();
        let programs: Vec<Program> = messages.lines().filter_map(Program::read).collect();
        Ok(Self { llvm, programs, profiles: target.join("profiles"), root: workspace.root().to_owned() })
    }

    /// Runs those that are wanted by name.
    pub fn run(self, wanted: impl Fn(&str) -> bool) -> Result<Recorded> {
        if self.profiles.exists() {
            fs::remove_dir_all(&self.profiles)?;
        }
        fs::create_dir_all(&self.profiles)?;
        let (mut executables, mut failed) = (Vec::new(), 0);
        for program in self.programs.iter().filter(|program| wanted(&program.name)) {
            println!("{} ...", program.name);
            let output = Command::new(&program.executable)
                .current_dir(&program.directory)
                .env("CARGO_MANIFEST_DIR", &program.directory)
                .env("LLVM_PROFILE_FILE", self.profiles.join(format!("{}-%p.profraw", program.name)))
                .stdin(Stdio::null())
                .output()
                .with_context(|| format!("{} cannot be started", program.executable.display()))?;
            if !output.status.success() {
                failed += 1;
                println!(
                    "{}{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            executables.push(program.executable.clone());
        }
        let profile = self.profiles.join("all.profdata");
        let mut merge = self.llvm.command("llvm-profdata");
        merge.args(["merge", "--sparse", "-o"]).arg(&profile);
        for entry in fs::read_dir(&self.profiles)? {
            merge.arg(entry?.path());
        }
        if !merge.status().context("llvm-profdata cannot be started")?.success() {
            bail!("the profiles cannot be merged");
        }
        Ok(Recorded { llvm: self.llvm, executables, profile, root: self.root, failed })
    }
}

impl Program {
    /// Reads a message of cargo's: `None` if it is not of a test program.
    fn read(message: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(message).ok()?;
        if !message["profile"]["test"].as_bool()? {
            return None;
        }
        Some(Self {
            name: message["target"]["name"].as_str()?.to_owned(),
            executable: message["executable"].as_str()?.into(),
            directory: Path::new(message["manifest_path"].as_str()?).parent()?.to_owned(),
        })
    }
}

impl Recorded {
    fn llvm_cov(&self, how: &str) -> Result<Command> {
        let (first, others) = self.executables.split_first().context("no test program was run")?;
        let mut command = self.llvm.command("llvm-cov");
        command.args([how, "--instr-profile"]).arg(&self.profile).arg(first).current_dir(&self.root);
        others.iter().for_each(|other| {
            command.arg("--object").arg(other);
        });
        Ok(command)
    }

    /// How often each line was run, in the format of lcov.
    pub fn lcov(&self) -> Result<String> {
        let mut command = self.llvm_cov("export")?;
        command.arg("--format=lcov").arg("--sources").arg(self.root.join("hyp"));
        let output = command.output().context("llvm-cov cannot be started")?;
        if !output.status.success() {
            bail!("llvm-cov: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Writes the sources with how often each line was run, as HTML; its first page.
    pub fn html(&self, into: &Path, measured: &[(&str, &str)]) -> Result<PathBuf> {
        let mut command = self.llvm_cov("show")?;
        command
            .args(["--format=html", "--show-line-counts-or-regions", "--output-dir"])
            .arg(into)
            .arg("--sources");
        command.args(measured.iter().map(|(_, sources)| self.root.join(sources)));
        if !command.status().context("llvm-cov cannot be started")?.success() {
            bail!("llvm-cov wrote no report");
        }
        Ok(into.join("index.html"))
    }
}
