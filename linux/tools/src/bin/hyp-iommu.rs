//! Looks at the hypervisor, and uses it: `hyp-iommu help`.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod program {
    use alloc::string::String;

    fn main(typed: &[&str]) -> Result<String, String> {
        hyp_iommu::do_typed(typed, hyp_iommu::system::open_module)
    }

    hyp_iommu::program!(main);
}

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!(
        "This program runs in Linux above the hypervisor: `cargo xtask run --host linux` builds it for that."
    );
    std::process::ExitCode::from(2)
}
