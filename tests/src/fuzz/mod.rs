//! The targets of the fuzzers: functions of bytes that panic when something that must hold does not.
//!
//! `fuzz/` makes a program of libFuzzer's of each. `tests/tests/corpora.rs` runs each with the inputs that are kept.

mod faults;
mod host;

pub use faults::faults;
pub use host::{count_hypercalls, host, hypercalls};
pub use hyp::fuzzing::{devicetree, emulated_smmu, its, pci_buses, redistributors};
pub use smmuv3::fuzzing::{invalidation_array, owner_commands, page_tables, ranges};

/// What a fuzzer drives.
pub type Target = fn(&[u8]);

/// Every target, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("devicetree", devicetree),
    ("emulated_smmu", emulated_smmu),
    ("faults", faults),
    ("host", host),
    ("hypercalls", hypercalls),
    ("invalidation_array", invalidation_array),
    ("its", its),
    ("owner_commands", owner_commands),
    ("page_tables", page_tables),
    ("pci_buses", pci_buses),
    ("ranges", ranges),
    ("redistributors", redistributors),
];
