//! Looks at the hypervisor, and uses it: `hyp-iommu help`.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod program {
    use alloc::string::String;
    use hyp_iommu::fuzz::{self, Options};
    use hyp_iommu::system::{self, Machine};

    fn main(typed: &[&str]) -> Result<String, String> {
        let Some((&"fuzz", words)) = typed.split_first() else {
            return hyp_iommu::do_typed(typed, system::open_module);
        };
        let options = Options::parse(words)?;
        fuzz::run(&options, &system::open_module()?, &Machine::new()?, system::layout()?)
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
