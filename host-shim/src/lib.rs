//! The host's side of the hypervisor.
//!
//! Typed hypercalls ([`call`]), the host's own stage 1 for its devices ([`stage1`]), what a check asks of a host ([`host`]), and the
//! checks themselves ([`checks`]), which run at EL1 of the real machine and on the model machine of the tests alike.

#![no_std]
#![forbid(unsafe_code)]

pub mod bus;
pub mod call;
pub mod checks;
pub mod devices;
pub mod forbidden;
pub mod host;
pub mod hostile;
pub mod pci;
pub mod stage1;
pub mod text;
pub mod tree;
