//! `cargo xtask run`, and the options of every command that starts a machine.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::emulator::{self, Entry, Run};
use crate::image::{self, Images};
use crate::machine::Shape;
use crate::machine::memory_size::MemorySize;
use crate::setup::{self, Qemu};
use crate::workspace::Workspace;

/// The program that runs at EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Host {
    /// The project's own: it runs the checks.
    Shim,
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
    /// Size of the memory, for example 512M or 2G
    #[arg(long, default_value = "1G", value_name = "SIZE")]
    pub memory: String,
    /// The program at EL1
    #[arg(long, value_enum, default_value_t = Host::Shim)]
    pub host: Host,
    /// Start the hypervisor as an ELF: no device tree in x0, but at the start of RAM
    #[arg(long)]
    pub elf: bool,
    /// Count instructions, exactly and repeatably: CPUs take turns, and each check says how many it took
    #[arg(long)]
    pub icount: bool,
    /// Command line of the host, for example "rounds=100"
    #[arg(long, default_value = "", value_name = "TEXT", allow_hyphen_values = true)]
    pub bootargs: String,
}

impl Machine {
    /// The shape that was asked for.
    ///
    /// # Errors
    ///
    /// A number or size is outside its limits.
    pub fn shape(&self) -> Result<Shape> {
        Shape::new(self.smmus, self.cpus, self.memory.parse::<MemorySize>()?)
    }

    /// A run of this machine.
    ///
    /// # Errors
    ///
    /// As [`Machine::shape`], or the directory of logs cannot be made.
    pub fn run<'a>(&self, name: &'a str, workspace: &Workspace, timeout: Duration) -> Result<Run<'a>> {
        let Host::Shim = self.host;
        Ok(Run {
            name,
            shape: self.shape()?,
            entry: if self.elf { Entry::Elf } else { Entry::Image },
            bootargs: if self.icount { format!("{} icount", self.bootargs) } else { self.bootargs.clone() },
            extra: if self.icount { emulator::count_instructions() } else { Vec::new() },
            timeout,
            show: true,
            logs: workspace.logs()?,
        })
    }
}

/// Options of `run`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    machine: Machine,
    /// Seconds after which a guest without an outcome is ended
    #[arg(long, default_value_t = 600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

/// What a machine needs: the emulator and the images.
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
    let run = arguments.machine.run("run", &workspace, timeout)?;
    let (qemu, images) = prepare(&workspace)?;
    println!(
        "machine: {}; a guest without an outcome is ended after {} seconds",
        run.shape,
        timeout.as_secs()
    );
    let record = emulator::run(&run, &qemu, &images)?;
    println!("{} ({:.1} seconds)", record.sentence(timeout), record.elapsed.as_secs_f64());
    Ok(record.passed())
}
