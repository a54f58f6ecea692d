//! `cargo xtask fuzz`: attacks that machines make up.

mod corpus;
mod libfuzzer;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::coverage;

/// Options of `fuzz`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// The target; all of them, one after the other, if none is named
    target: Option<String>,
    #[command(flatten)]
    effort: libfuzzer::Effort,
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

/// Attacks the targets; whether nothing was found.
///
/// # Errors
///
/// Set-up or build failed, or there is no such target.
pub fn run(arguments: &Arguments) -> Result<bool> {
    match &arguments.action {
        None => libfuzzer::attack(arguments.target.as_deref(), &arguments.effort),
        Some(Action::Minimise { target }) => libfuzzer::minimise(target.as_deref()),
        Some(Action::Coverage) => coverage::of_corpora(),
    }
}
