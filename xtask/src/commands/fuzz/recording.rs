//! Steps as bytes: what a run of the host program takes from its ramdisk.

use std::path::Path;

use anyhow::{Context, Result, bail};
use host_shim::hostile::{STEP_BYTES, Step, steps};

/// The machine that a recording is for. With several CPUs the last one changes memory and takes no steps.
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
    /// The names of those that hold, each after this: the options, the host program's words and a file's name have the same ones.
    pub fn names(self, before: &str) -> String {
        let all = [(self.calm, "calm"), (self.calls, "calls")];
        all.into_iter().filter(|(holds, _)| *holds).map(|(_, name)| format!("{before}{name}")).collect()
    }
}

/// Steps for a machine, those of its CPUs in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// The machine.
    pub shape: Shape,
    /// Which of the steps are taken.
    pub rules: Rules,
    /// The steps.
    pub steps: Vec<Step>,
}

impl Recording {
    /// What each CPU that takes steps does in the attack with this seed, up to so many steps each.
    pub fn of_seed(shape: Shape, rules: Rules, seed: u64, count: u64) -> Self {
        let cpus = u32::from(shape.attackers());
        let steps = (0..count).flat_map(|n| (0..cpus).map(move |cpu| Step::seeded(seed, cpu, n))).collect();
        Self { shape, rules, steps }
    }

    /// The end of a file's name: `-s3-c1.steps` is for three SMMUs and one CPU, `-s3-c1-calm.steps` besides without changes of owners.
    pub fn name_end(&self) -> String {
        format!("-s{}-c{}{}.steps", self.shape.smmus, self.shape.cpus, self.rules.names("-"))
    }

    /// The bytes of a file.
    pub fn bytes(&self) -> Vec<u8> {
        self.steps.iter().flat_map(|step| step.0).collect()
    }

    /// Reads a file, whose name says for which machine it is, and by which rules.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is no recording.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (shape, rules) = setting_of(name).with_context(|| {
            format!(
                "{} does not end in -sN-cN.steps (SMMUs and CPUs), with -calm, -calls or -calm-calls before the dot if it has such rules",
                path.display()
            )
        })?;
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        if bytes.is_empty() || bytes.len() % STEP_BYTES != 0 {
            bail!("{} has {} bytes, which are no steps of {STEP_BYTES}", path.display(), bytes.len());
        }
        Ok(Self { shape, rules, steps: steps(&bytes).collect() })
    }
}

/// What [`Recording::name_end`] says.
fn setting_of(name: &str) -> Option<(Shape, Rules)> {
    let (name, calls) = cut(name.strip_suffix(".steps")?, "-calls");
    let (name, calm) = cut(name, "-calm");
    let (rest, cpus) = name.rsplit_once("-c")?;
    let (_, smmus) = rest.rsplit_once("-s")?;
    Some((Shape { smmus: smmus.parse().ok()?, cpus: cpus.parse().ok()? }, Rules { calm, calls }))
}

/// A name without this end, and whether it had it.
fn cut<'a>(name: &'a str, end: &str) -> (&'a str, bool) {
    name.strip_suffix(end).map_or((name, false), |rest| (rest, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_the_machine_and_the_rules() {
        let shape = Shape { smmus: 3, cpus: 4 };
        for (calm, calls, end) in [
            (false, false, "-s3-c4.steps"),
            (true, false, "-s3-c4-calm.steps"),
            (false, true, "-s3-c4-calls.steps"),
            (true, true, "-s3-c4-calm-calls.steps"),
        ] {
            let rules = Rules { calm, calls };
            assert_eq!(Recording { shape, rules, steps: Vec::new() }.name_end(), end);
            // What a run died of may end in anything.
            for cause in ["some-thing", "x-s1-c1-calm", "-calls"] {
                assert_eq!(setting_of(&format!("{cause}{end}")), Some((shape, rules)));
            }
        }
        for wrong in
            ["x-s3.steps", "x-s3-c1", "x-calm.steps", "x-s3-c1-quiet.steps", "x-s3-c1-calls-calm.steps"]
        {
            assert_eq!(setting_of(wrong), None, "{wrong}");
        }
        assert_eq!([shape.attackers(), Shape { smmus: 1, cpus: 1 }.attackers()], [3, 1]);
    }

    #[test]
    fn a_recording_of_a_seed_has_the_steps_of_all_cpus_in_turn() {
        let recording = Recording::of_seed(Shape { smmus: 1, cpus: 3 }, Rules::default(), 7, 2);
        let expected = [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(cpu, n)| Step::seeded(7, cpu, n));
        assert_eq!(recording.steps, expected);
        assert_eq!(steps(&recording.bytes()).collect::<Vec<_>>(), expected);
    }
}
