//! What the machine runs: the host's kernel, and the hypervisor below it.

use std::path::PathBuf;

use crate::image::Image;

/// A file that goes into memory as it is.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Where it is.
    pub path: PathBuf,
    /// How long it is.
    pub bytes: u64,
}

/// The host.
#[derive(Clone, Debug)]
pub struct Payload {
    /// What it is called.
    pub name: String,
    /// Its kernel, an arm64 `Image`.
    pub kernel: Blob,
    /// Its initial ramdisk.
    pub ramdisk: Option<Blob>,
}

/// All software of a run.
#[derive(Clone, Debug)]
pub struct Software {
    /// The hypervisor. Without one the machine starts the host's kernel itself.
    pub hypervisor: Option<Image>,
    /// The host.
    pub host: Payload,
}
