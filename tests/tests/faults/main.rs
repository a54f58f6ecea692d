//! Faults below the hypervisor and inside it, at every point of every call: memory that runs out, commands that fail, are late or never done, global errors, identification registers that
//! change, floods of events, and CPUs that stop between two operations.

mod allocations;
mod commands;
mod events;
mod identification;
mod stopped;
mod world;
