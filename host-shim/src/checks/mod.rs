//! The checks: what the hypervisor promises, tried with real devices.
//!
//! A check is a function over any [`Host`]; [`all`] registers them. Each leaves the machine as it found it: streams
//! unattached, memory the host's, no guests. After a check that failed, [`restore`](support::restore) does that.

#![allow(clippy::result_large_err, reason = "there is no allocator, and an error ends the check")]

mod actors;
mod arguments;
mod concurrency;
mod discovery;
mod disk;
mod domains;
mod donation;
mod errands;
mod forbidden;
mod guests;
pub mod hostile;
mod nested;
mod objects;
mod pool;
mod renumbering;
mod sharing;
mod snapshot;
mod stage1;
mod streams;
pub mod support;
mod tags;
mod teardown;

use crate::host::Host;
use crate::text::Text;
use core::fmt;

/// Makes a [`Text`] of a format.
#[macro_export]
macro_rules! text {
    ($($argument:tt)*) => { $crate::text::Text::of(format_args!($($argument)*)) };
}

/// Ends a check as failed, with what was seen.
#[macro_export]
macro_rules! fail {
    ($($argument:tt)*) => { return Err($crate::checks::Stop::Failed($crate::text!($($argument)*))) };
}

/// Why a check did not pass.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// What was seen is not what was expected.
    Failed(Text),
    /// The machine does not have what the check needs.
    NotApplicable(Text),
}

/// What was seen, or why the check did not pass.
pub type Outcome = Result<Text, Stop>;

/// A registered check.
pub struct Check<H: ?Sized> {
    /// Its name, unique.
    pub name: &'static str,
    /// What is expected, in words.
    pub expected: &'static str,
    /// The check.
    pub run: fn(&H) -> Outcome,
}

impl<H: ?Sized> fmt::Debug for Check<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// How many checks ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Passed.
    pub passed: u32,
    /// Failed.
    pub failed: u32,
    /// Not applicable to this machine.
    pub not_applicable: u32,
}

/// Every check that runs on any host, in order.
pub fn all<H: Host>() -> impl Iterator<Item = Check<H>> {
    discovery::checks()
        .into_iter()
        .chain(streams::checks())
        .chain(disk::checks())
        .chain(donation::checks())
        .chain(sharing::checks())
        .chain(actors::checks())
        .chain(domains::checks())
        .chain(stage1::checks())
        .chain(nested::checks())
        .chain(tags::checks())
        .chain(teardown::checks())
        .chain(forbidden::checks())
        .chain(renumbering::checks())
        .chain(hostile::checks())
        .chain(guests::checks())
        .chain(pool::checks())
        .chain(arguments::checks())
        .chain(concurrency::checks())
}

/// Runs checks, with one line for each in the log, and restores the machine after one that failed.
pub fn run<H: Host>(host: &H, checks: impl Iterator<Item = Check<H>>) -> Tally {
    let mut tally = Tally::default();
    for check in checks {
        let before = host.ticks();
        let outcome = (check.run)(host);
        let ticks = host.ticks().wrapping_sub(before);
        let (word, seen) = match outcome {
            Ok(seen) => {
                tally.passed += 1;
                ("pass", seen)
            }
            Err(Stop::Failed(seen)) => {
                tally.failed += 1;
                support::restore(host);
                ("FAIL", seen)
            }
            Err(Stop::NotApplicable(why)) => {
                tally.not_applicable += 1;
                ("n/a ", why)
            }
        };
        host.log(format_args!(
            "{word} {}: expected {}; seen: {seen}; {ticks} {}",
            check.name,
            check.expected,
            host.tick_unit()
        ));
    }
    tally
}
