//! What steps are taken with: on which machine, and which of them. The name of a file of steps ends in it.

use core::fmt;

use super::{Action, Knowledge, Step};

/// The machine. With several CPUs the last one changes memory and takes no steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// SMMUs.
    pub smmus: u8,
    /// CPUs.
    pub cpus: u8,
}

impl Shape {
    /// CPUs that take steps.
    pub const fn attackers(self) -> u8 {
        if self.cpus > 1 { self.cpus - 1 } else { 1 }
    }
}

/// Which steps are taken: those that others leave out change what the steps after them find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// None that change who owns memory.
    pub calm: bool,
    /// Hypercalls alone.
    pub calls: bool,
}

impl Rules {
    /// What a step does, unless it is left out.
    pub fn action(self, step: &Step, known: &Knowledge) -> Option<Action> {
        if self.calls && !Action::is_call(step) {
            return None;
        }
        Some(Action::of(step, known)).filter(|action| !self.calm || !action.changes_owners())
    }

    /// The names of those that hold.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        [self.calm.then_some("calm"), self.calls.then_some("calls")].into_iter().flatten()
    }
}

/// Both, and the end of a file's name: `-s3-c1.steps` is for three SMMUs and one CPU, `-s3-c1-calm.steps` besides without changes of owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The machine.
    pub shape: Shape,
    /// Which of the steps are taken.
    pub rules: Rules,
}

impl Setting {
    /// What the name of a file ends in; `None` if it is no name of steps.
    pub fn of_name(name: &str) -> Option<Self> {
        let (name, calls) = cut(name.strip_suffix(".steps")?, "-calls");
        let (name, calm) = cut(name, "-calm");
        let (rest, cpus) = name.rsplit_once("-c")?;
        let (_, smmus) = rest.rsplit_once("-s")?;
        let shape = Shape { smmus: smmus.parse().ok()?, cpus: cpus.parse().ok()? };
        Some(Self { shape, rules: Rules { calm, calls } })
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-s{}-c{}", self.shape.smmus, self.shape.cpus)?;
        self.rules.names().try_for_each(|name| write!(f, "-{name}"))?;
        f.write_str(".steps")
    }
}

/// A name without this end, and whether it had it.
fn cut<'a>(name: &'a str, end: &str) -> (&'a str, bool) {
    name.strip_suffix(end).map_or((name, false), |rest| (rest, true))
}
