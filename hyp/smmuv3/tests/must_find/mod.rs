//! A model with a mistake in it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The model with the mistake fails, and says this.
pub fn must_find(mistake: impl fmt::Debug, complaint: &str, model: impl FnOnce()) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(model)) else {
        panic!("{mistake:?} was not found");
    };
    let said = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_default();
    assert!(said.contains(complaint), "{mistake:?}: {said}");
}
