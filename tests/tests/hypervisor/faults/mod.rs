//! Faults below the hypervisor and inside it, at every point of every call: memory that runs out, commands that fail, are late or never done, global errors, identification registers that
//! change, and floods of events.

mod allocations;
mod commands;
mod events;
mod identification;
mod stopped;
mod world;
