//! The portable part of the hypervisor: everything that decides, and nothing that touches the machine.
//!
//! It is written against [`platform::Platform`], so the aarch64 image and the model machine of `tests` run the same code.

#![no_std]
#![forbid(unsafe_code)]

pub mod platform;
pub mod devicetree;
pub mod gicr;
pub mod list;
pub mod pci;
pub mod iommu;
pub mod smmu;
pub mod esr;
pub mod hypercall;
pub mod hypervisor;
pub mod memory;
pub mod psci;
