//! What the parts of the tests found, and how long each took.

use std::fmt;
use std::time::{Duration, Instant};

use crate::emulator::Record;

/// How many of the slowest parts are shown.
const SHOWN: usize = 12;

/// How many tests passed and failed, and the time of each part.
#[derive(Default)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    parts: Vec<(String, Duration)>,
}

impl Tally {
    /// Counts tests.
    pub fn add(&mut self, passed: u64, failed: u64) {
        self.passed += passed;
        self.failed += failed;
    }

    /// Counts the checks of a run; how many passed and failed. A run that went wrong counts, also when it could not say which of its checks did.
    pub fn add_run(&mut self, part: &str, record: &Record) -> (u64, u64) {
        let passed = record.console.passed().unwrap_or(0);
        let failed = record.console.failed().unwrap_or(0).max((!record.passed()).into());
        self.add(passed, failed);
        self.took(part, record.elapsed);
        (passed, failed)
    }

    /// Notes the time of a part.
    pub fn took(&mut self, part: &str, time: Duration) {
        self.parts.push((part.to_owned(), time));
    }

    /// Does a part, and notes its time.
    pub fn time<T>(&mut self, part: &str, work: impl FnOnce(&mut Self) -> T) -> T {
        let started = Instant::now();
        let result = work(self);
        self.took(part, started.elapsed());
        result
    }
}

/// The slowest parts, a line each, and then how many tests passed and failed.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<_> = self.parts.iter().filter(|(_, time)| time.as_secs() > 0).collect();
        parts.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        for (part, time) in parts.iter().take(SHOWN) {
            writeln!(f, "{:>6.1} seconds  {part}", time.as_secs_f64())?;
        }
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_parts_are_shown_first() {
        let mut tally = Tally::default();
        tally.add(2, 0);
        tally.add(1, 3);
        tally.took("quick", Duration::from_millis(999));
        (1..=20).for_each(|n| tally.took(&format!("part {n}"), Duration::from_millis(n * 1000 + 500)));
        let text = tally.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), SHOWN + 1);
        assert_eq!(lines[0], "  20.5 seconds  part 20");
        assert_eq!(lines[SHOWN], "3 passed, 3 failed");
    }
}
