//! `cargo xtask setup`.

use anyhow::Result;
use clap::Args;

use crate::setup;
use crate::setup::linux::{self, Wanted};

/// Options of `setup`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Also the newest Debian kernel whose version begins with this, for `run --host linux`, and a compiler for its modules
    #[arg(long, value_name = "VERSION", num_args = 0..=1, default_missing_value = linux::DEFAULT)]
    linux: Option<Wanted>,
}

/// Finds or fetches everything, and says what it took and from where.
///
/// # Errors
///
/// Something is missing and cannot be fetched.
pub fn run(arguments: &Arguments) -> Result<bool> {
    setup::run(true)?;
    if let Some(wanted) = &arguments.linux {
        linux::find_or_fetch(wanted, true)?;
        setup::cross::find_or_fetch(true)?;
    }
    Ok(true)
}
