//! How many lines EL2 logs: none that the host can have written without end.

extern crate std;

use core::cell::Cell;
use std::sync::Once;
use std::thread_local;

use log::{LevelFilter, Log, Metadata, Record};

thread_local! {
    static LINES: Cell<usize> = const { Cell::new(0) };
}

struct Counter;

impl Log for Counter {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &Record<'_>) {
        LINES.set(LINES.get() + 1);
    }

    fn flush(&self) {}
}

/// The lines that are logged by this thread while it does something.
pub(crate) fn count(act: impl FnOnce()) -> usize {
    static SET: Once = Once::new();
    SET.call_once(|| {
        log::set_logger(&Counter).expect("another logger");
        log::set_max_level(LevelFilter::Trace);
    });
    LINES.set(0);
    act();
    LINES.get()
}
