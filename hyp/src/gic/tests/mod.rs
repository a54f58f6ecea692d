//! Against a GIC that says what memory it would touch, with the hypervisor as it starts.
//!
//! Invariants: what an ITS reads and writes is the hypervisor's own, whatever the host writes to its registers, its queue and its memory; what
//! a Redistributor reads and writes is the host's, and stays so as long as LPIs are on; every wait is bounded.

#![cfg_attr(not(test), allow(dead_code, unused_imports))]

pub(crate) mod its;
pub(crate) mod lpis;
mod model;
