//! Builds the sources of `hyp` with the locks of `sync::explored`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(loom)");
    println!("cargo::rustc-cfg=loom");
    // Features of `hyp`, which this build has not.
    println!("cargo::rustc-check-cfg=cfg(feature, values(\"fuzzing\"))");
}
