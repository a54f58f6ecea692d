//! The emulated SMMU against a back-end that is made of maps, and a driver that does what Linux's does.
//!
//! A test names the rule that it shows, and its section of IHI 0070 where there is one.

#![cfg_attr(not(test), allow(dead_code, unused_imports))]

mod commands;
mod driver;
pub(crate) mod hostile;
mod registers;
mod rig;
mod streams;
