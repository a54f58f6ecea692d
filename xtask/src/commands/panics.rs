//! `cargo xtask panics`.

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{image, panics, setup};

/// Builds the hypervisor and prints every place where the host might make it panic, and what `panics.toml` has not or too much. Whether
/// they agree.
///
/// # Errors
///
/// The image does not build or cannot be read.
pub fn run() -> Result<bool> {
    let image = image::hypervisor(&Workspace::current(), setup::standard_library(false)?)?;
    let report = panics::examine(&image)?;
    report.print();
    let complaints = report.complaints();
    complaints.iter().for_each(|complaint| println!("{complaint}"));
    Ok(complaints.is_empty())
}
