//! `cargo xtask build`.

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{image, setup};

/// Builds both images and prints their sizes.
///
/// # Errors
///
/// They do not build.
pub fn run() -> Result<bool> {
    let images = image::build(&Workspace::current(), setup::standard_library(false)?)?;
    image::report(&images);
    Ok(true)
}
