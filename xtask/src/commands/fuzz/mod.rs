//! `cargo xtask fuzz`: attacks that machines make up.

mod corpus;
mod in_linux;
pub mod in_qemu;
mod libfuzzer;
mod recording;
mod regressions;
mod shrink;

use anyhow::Result;
use clap::{ArgGroup, Args, Subcommand};

use super::coverage;
use super::run::Host;
use libfuzzer::Effort;

pub use regressions::replay_all;

/// Options of `fuzz`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, group = ArgGroup::new("in_machine"))]
pub struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// The target; all of them, one after the other, if none is named
    #[arg(conflicts_with = "in_machine")]
    target: Option<String>,
    /// Minutes, for each target
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// Processes for each target
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "in_machine")]
    jobs: u32,
    /// In the machine: a hostile host on all CPUs, devices that do DMA, and the hypervisor's own oracle
    #[arg(long, group = "in_machine")]
    in_qemu: bool,
    /// In the machine: `linux` for root of Linux by `hyp-iommu fuzz`; `shim` is --in-qemu
    #[arg(long, value_enum, group = "in_machine")]
    host: Option<Host>,
    #[command(flatten)]
    machine: in_qemu::Options,
}

/// What else can be done with the targets.
#[derive(Debug, Subcommand)]
enum Action {
    /// Replaces the inputs in fuzz/corpus by the smallest that reach as much as all that were found
    Minimise {
        /// The target; all of them if none is named
        target: Option<String>,
    },
    /// Writes what the inputs in fuzz/ reach as HTML
    Coverage,
}

#[cfg(test)]
impl Arguments {
    /// What a user means who types this after `cargo xtask fuzz`.
    fn typed(text: &str) -> Result<Self, String> {
        use clap::{Command, FromArgMatches as _};
        let command = Self::augment_args(Command::new("fuzz").no_binary_name(true));
        let matches = command.try_get_matches_from(text.split(' ')).map_err(|error| error.to_string())?;
        Self::from_arg_matches(&matches).map_err(|error| error.to_string())
    }
}

/// Attacks; whether nothing was found.
///
/// # Errors
///
/// Set-up, build or QEMU failed, or there is no such target.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let &Arguments { minutes, jobs, .. } = arguments;
    match &arguments.action {
        None if arguments.host == Some(Host::Linux) => in_linux::run(&arguments.machine, minutes),
        None if arguments.in_qemu || arguments.host.is_some() => in_qemu::run(&arguments.machine, minutes),
        None => libfuzzer::attack(arguments.target.as_deref(), &Effort { minutes, jobs }),
        Some(Action::Minimise { target }) => libfuzzer::minimise(target.as_deref()),
        Some(Action::Coverage) => coverage::of_corpora(),
    }
}
