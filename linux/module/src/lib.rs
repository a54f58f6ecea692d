//! The part of the Linux module `hyp_iommu` that decides: what a program may ask, and which calls are made for it.
//!
//! `glue.c` is the part that Linux's headers are needed for. Everything here but [`kernel`] is ordinary code that is tested on the build
//! machine.

#![no_std]

#[cfg(target_os = "none")]
mod kernel;
pub mod pages;
pub mod service;
