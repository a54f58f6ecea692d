//! The commands. Each answers whether what it was asked for went well, or why it could not be tried.

pub mod bench;
pub mod build;
pub mod clean;
pub mod coverage;
pub mod fuzz;
pub mod gdb;
pub mod hypercalls;
pub mod mutate;
pub mod panics;
pub mod run;
pub mod setup;
pub mod test;
pub mod trace;
