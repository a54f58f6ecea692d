//! The portable part of the hypervisor: everything that decides, and nothing that touches the machine.
//!
//! It is written against [`platform::Platform`], so the aarch64 image and the model machine of `tests` run the same code.

// The unit tests are for the locks that `hyp` has: `hyp-loom`, which builds these sources with loom's, runs none.
#![cfg(not(all(loom, test)))]
#![no_std]
#![forbid(unsafe_code)]

pub mod devicetree;
pub mod emulation;
pub mod esr;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod gic;
pub mod host_smmus;
pub mod hypercall;
pub mod hypervisor;
pub mod iommu;
#[cfg(test)]
mod lines;
pub mod list;
pub mod memory;
#[cfg(feature = "oracle")]
pub mod oracle;
pub mod pci;
pub mod platform;
pub mod psci;
pub mod smmu;
pub mod spsr;
pub mod sync;
