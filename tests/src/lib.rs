//! A model machine to test the hypervisor's library on.
//!
//! [`model`] decodes every register, command, table entry and descriptor from raw bytes by itself, each rule with its
//! section of the Arm SMMUv3 specification (IHI 0070) or the Arm ARM (DDI 0487). It shares no code with the `smmuv3`
//! crate, so that a misreading there is not repeated here. [`platform`] puts the hypervisor's library on it, [`bench`]
//! boots it, [`oracle`] compares what it says with every table and every cache, and [`host`] runs the checks of `host-shim`. [`rig`] is a driver by
//! hand for tests of the model itself.
#![forbid(unsafe_code)]

pub mod bench;
pub mod calls;
pub mod driven;
pub mod driver;
pub mod fuzz;
pub mod gate;
pub mod host;
pub mod model;
pub mod nest;
pub mod oracle;
pub mod owner;
pub mod platform;
pub mod record;
pub mod rig;
mod threads;
