//! Steps as bytes: what a run of the host program takes from its ramdisk.

use std::path::Path;

use anyhow::{Context, Result, bail};
use host_shim::hostile::{Rules, STEP_BYTES, Setting, Shape, Step, steps};

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

    /// The end of a file's name.
    pub fn name_end(&self) -> String {
        Setting { shape: self.shape, rules: self.rules }.to_string()
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
        let Setting { shape, rules } = Setting::of_name(name).with_context(|| {
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
                assert_eq!(Setting::of_name(&format!("{cause}{end}")), Some(Setting { shape, rules }));
            }
        }
        for wrong in
            ["x-s3.steps", "x-s3-c1", "x-calm.steps", "x-s3-c1-quiet.steps", "x-s3-c1-calls-calm.steps"]
        {
            assert_eq!(Setting::of_name(wrong), None, "{wrong}");
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
