//! Steps as bytes: what a run of the host program takes from its ramdisk.

use std::fmt;
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

/// The end of a file's name: `-s3-c1.steps` is for three SMMUs and one CPU.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-s{}-c{}.steps", self.smmus, self.cpus)
    }
}

/// Steps for a machine, those of its CPUs in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// The machine.
    pub shape: Shape,
    /// The steps.
    pub steps: Vec<Step>,
}

impl Recording {
    /// What each CPU that takes steps does in the attack with this seed, up to so many steps each.
    pub fn of_seed(shape: Shape, seed: u64, count: u64) -> Self {
        let cpus = u32::from(shape.attackers());
        let steps = (0..count).flat_map(|n| (0..cpus).map(move |cpu| Step::seeded(seed, cpu, n))).collect();
        Self { shape, steps }
    }

    /// The bytes of a file.
    pub fn bytes(&self) -> Vec<u8> {
        self.steps.iter().flat_map(|step| step.0).collect()
    }

    /// Reads a file, whose name says for which machine it is.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is no recording.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let shape = shape_of(name)
            .with_context(|| format!("{} does not end in -sN-cN.steps (SMMUs and CPUs)", path.display()))?;
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        if bytes.is_empty() || bytes.len() % STEP_BYTES != 0 {
            bail!("{} has {} bytes, which are no steps of {STEP_BYTES}", path.display(), bytes.len());
        }
        Ok(Self { shape, steps: steps(&bytes).collect() })
    }
}

fn shape_of(name: &str) -> Option<Shape> {
    let (rest, cpus) = name.strip_suffix(".steps")?.rsplit_once("-c")?;
    let (_, smmus) = rest.rsplit_once("-s")?;
    Some(Shape { smmus: smmus.parse().ok()?, cpus: cpus.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_the_machine() {
        let shape = Shape { smmus: 3, cpus: 4 };
        assert_eq!(shape_of(&format!("some-thing{shape}")), Some(shape));
        assert_eq!(shape_of("x-s3.steps"), None);
        assert_eq!(shape_of("x-s3-c1"), None);
        assert_eq!([shape.attackers(), Shape { smmus: 1, cpus: 1 }.attackers()], [3, 1]);
    }

    #[test]
    fn a_recording_of_a_seed_has_the_steps_of_all_cpus_in_turn() {
        let recording = Recording::of_seed(Shape { smmus: 1, cpus: 3 }, 7, 2);
        let expected = [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(cpu, n)| Step::seeded(7, cpu, n));
        assert_eq!(recording.steps, expected);
        assert_eq!(steps(&recording.bytes()).collect::<Vec<_>>(), expected);
    }
}
