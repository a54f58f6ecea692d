//! `cargo xtask run`, and the options of every command that starts a machine.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::emulator::{self, Entry, Run};
use crate::image::{self, Images};
use crate::linux::{self, Again};
use crate::machine::Shape;
use crate::machine::cpu::Cpu;
use crate::machine::memory_size::MemorySize;
use crate::payload::Software;
use crate::setup::linux::{DEFAULT, Wanted};
use crate::setup::{self, Qemu};
use crate::workspace::Workspace;

/// The program that runs at EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Host {
    /// The project's own: it runs the checks.
    Shim,
    /// Debian's Linux, unpatched, with checks of its own; fetched when it is not there.
    Linux,
}

/// Which machine, and what runs on it.
#[derive(Args, Clone, Debug)]
pub struct Machine {
    /// Number of SMMUs, 1 to 8, each with an iommu-testdev, an edu and an nvme behind it
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub smmus: u8,
    /// Number of CPUs, 1 to 32
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub cpus: u8,
    /// What each CPU is
    #[arg(long, value_enum, default_value_t, value_name = "MODEL")]
    pub cpu: Cpu,
    /// Size of the memory, for example 512M or 2G
    #[arg(long, default_value = "1G", value_name = "SIZE")]
    pub memory: String,
    /// The program at EL1
    #[arg(long, value_enum, default_value_t = Host::Shim)]
    pub host: Host,
    /// With --host linux: the newest of Debian's kernels whose version begins with this
    #[arg(long, value_name = "VERSION", default_value = DEFAULT)]
    pub linux_version: Wanted,
    /// With --host linux: without the hypervisor, for comparison; Linux runs at EL1 all the same
    #[arg(long, conflicts_with = "elf")]
    pub native: bool,
    /// With --host linux: it ends in this way when it has used its disks, and the checks are those of the Linux after it
    #[arg(long, value_enum, value_name = "HOW")]
    pub again: Option<Again>,
    /// Start the hypervisor as an ELF: no device tree in x0, but at the start of RAM
    #[arg(long)]
    pub elf: bool,
    /// Count instructions, exactly and repeatably: CPUs take turns, and each check says how many it took
    #[arg(long)]
    pub icount: bool,
    /// Command line of the host, for example "rounds=100"; with --host linux "checks=disks,vfio" or "iommu.strict=1"
    #[arg(long, default_value = "", value_name = "TEXT", allow_hyphen_values = true)]
    pub bootargs: String,
    /// The hypervisor with its oracle, which the release image does not have.
    #[arg(skip)]
    pub oracle: bool,
}

/// What a machine needs: the emulator, and what runs in it.
pub struct Prepared {
    /// The emulator.
    pub qemu: Qemu,
    /// What runs.
    pub software: Software,
    /// Programs with symbols for a debugger; the first is where it starts.
    pub symbols: Vec<PathBuf>,
}

impl Machine {
    /// A machine with 1 GiB of memory and the newest Linux of the default version above the hypervisor.
    ///
    /// # Errors
    ///
    /// None: the default version is one.
    pub fn with_linux(smmus: u8, cpus: u8, bootargs: String) -> Result<Self> {
        Ok(Self {
            smmus,
            cpus,
            cpu: Cpu::Max,
            memory: "1G".into(),
            host: Host::Linux,
            linux_version: DEFAULT.parse()?,
            native: false,
            again: None,
            elf: false,
            icount: false,
            bootargs,
            oracle: false,
        })
    }

    /// The shape that was asked for.
    ///
    /// # Errors
    ///
    /// A number or size is outside its limits.
    pub fn shape(&self) -> Result<Shape> {
        let shape = Shape::new(self.smmus, self.cpus, self.memory.parse::<MemorySize>()?)?.with_cpu(self.cpu);
        Ok(match self.host {
            Host::Shim => shape.with_mmio_disk(),
            Host::Linux => shape.with_virtio_disk(),
        })
    }

    /// A run of this machine; with `shell` Linux gives the user one instead of its checks.
    ///
    /// # Errors
    ///
    /// As [`Machine::shape`], or options that do not go together, or the directory of logs cannot be made.
    pub fn run<'a>(
        &self,
        name: &'a str,
        workspace: &Workspace,
        timeout: Duration,
        shell: bool,
    ) -> Result<Run<'a>> {
        let of_linux =
            [(self.native, "--native"), (shell, "--shell"), (self.again.is_some(), "--again reboot")];
        if self.host == Host::Shim
            && let Some((_, option)) = of_linux.iter().find(|(given, _)| *given)
        {
            bail!("{option} needs Linux: type `cargo xtask run --host linux {option}`");
        }
        let shape = self.shape()?;
        let bootargs = match self.host {
            Host::Shim => bootargs_of_shim(&self.bootargs, self.icount),
            Host::Linux => {
                let at_el1 = if self.native { linux::AT_EL1 } else { "" };
                let bootargs = format!("{at_el1} {}", self.bootargs);
                linux::command_line(&shape, &bootargs, shell, self.again)?
            }
        };
        let mut extra = if self.icount { emulator::count_instructions(0) } else { Vec::new() };
        if self.again == Some(Again::Reboot) {
            extra.extend(emulator::reset_on_reboot());
        }
        Ok(Run {
            name,
            shape,
            entry: if self.elf { Entry::Elf } else { Entry::Image },
            bootargs,
            extra,
            timeout,
            silence: None,
            show: true,
            logs: workspace.logs()?,
        })
    }

    /// Finds, fetches and builds what this machine needs.
    ///
    /// # Errors
    ///
    /// Set-up or build failed.
    pub fn prepare(&self, workspace: &Workspace) -> Result<Prepared> {
        if self.host == Host::Shim {
            let (qemu, images) = prepare(workspace)?;
            let symbols = vec![images.hypervisor.elf.clone(), images.host.elf.clone()];
            return Ok(Prepared { qemu, software: images.software(), symbols });
        }
        let tools = setup::run(false)?;
        let kernel = setup::linux::find_or_fetch(&self.linux_version, false)?;
        let cross = setup::cross::find_or_fetch(false)?;
        let kexec = self.again.is_some_and(Again::is_kexec).then(setup::kexec::find_or_fetch).transpose()?;
        let ours = linux::build(&kernel, &cross, tools.standard_library, workspace)?;
        let host = linux::payload(&kernel, &ours, kexec.as_ref(), workspace)?;
        if self.native {
            let software = Software { hypervisor: None, host };
            return Ok(Prepared { qemu: tools.qemu, software, symbols: Vec::new() });
        }
        let build = if self.oracle { image::hypervisor_with_oracle } else { image::hypervisor };
        let hypervisor = build(workspace, tools.standard_library)?;
        let symbols = vec![hypervisor.elf.clone()];
        let software = Software { hypervisor: Some(hypervisor), host };
        Ok(Prepared { qemu: tools.qemu, software, symbols })
    }
}

/// Options of `run`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    machine: Machine,
    /// With --host linux: a shell on this terminal instead of the checks; Ctrl-A X ends QEMU
    #[arg(long)]
    shell: bool,
    /// Seconds after which a guest without an outcome is ended
    #[arg(long, default_value_t = 600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

/// The command line of the project's own host, which must know whether a tick of its clock is an instruction.
pub fn bootargs_of_shim(given: &str, icount: bool) -> String {
    if icount { format!("{given} icount=0") } else { given.to_owned() }
}

/// What the project's own programs need: the emulator and the images.
///
/// # Errors
///
/// Set-up or build failed.
pub fn prepare(workspace: &Workspace) -> Result<(Qemu, Images)> {
    let tools = setup::run(false)?;
    let images = image::build(workspace, tools.standard_library)?;
    Ok((tools.qemu, images))
}

/// Boots, shows the console, and answers whether the guest said that all is well.
///
/// # Errors
///
/// A bad option, or set-up, build or QEMU failed.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let workspace = Workspace::current();
    let timeout = Duration::from_secs(arguments.timeout);
    let run = arguments.machine.run("run", &workspace, timeout, arguments.shell)?;
    let Prepared { qemu, software, .. } = arguments.machine.prepare(&workspace)?;
    let below = if software.hypervisor.is_some() { "" } else { ", no hypervisor" };
    println!("machine: {}, {}{below}", run.shape, software.host.name);
    if arguments.shell {
        println!("Ctrl-A X ends it; so does `exit` or Ctrl-D in the shell");
        emulator::attached(&run, &qemu, &software, true)?;
        return Ok(true);
    }
    println!("a guest without an outcome is ended after {} seconds", timeout.as_secs());
    let record = emulator::run(&run, &qemu, &software)?;
    println!("{} ({:.1} seconds)", record.sentence(timeout), record.elapsed.as_secs_f64());
    Ok(record.passed())
}
