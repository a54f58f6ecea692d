//! Arm SMMUv3 (IHI 0070) as types, and the algorithms around it that need no hardware.
//!
//! Compiled by EL2, by the host and by the tests alike. It reaches memory and page-table pages through the small
//! traits of [`memory`], so nothing here is `unsafe` and everything runs on the build machine.

#![no_std]
#![forbid(unsafe_code)]

pub mod address;
pub mod cd;
pub mod command;
pub mod entry_writer;
pub mod event;
pub mod features;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod gather;
pub mod invalidation;
pub mod memory;
pub mod pgtable;
pub mod range;
pub mod registers;
pub mod ste;
pub mod tags;
pub mod vsmmu;
pub mod walkable;
