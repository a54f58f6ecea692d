//! Tells the linker how the image is laid out. Only the bare-metal build has an image.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Only `hyp-loom` builds with it.
    println!("cargo::rustc-check-cfg=cfg(loom)");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let script = package.join("..").join("linker").join("hyp.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    let script = format!("-T{}", script.display());
    // Position independent with `text` read-only: a relocation in code is an error, not a run-time patch.
    for argument in
        [script.as_str(), "-pie", "--no-dynamic-linker", "-ztext", "-znorelro", "-zmax-page-size=4096"]
    {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
