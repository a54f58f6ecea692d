//! What can be typed after `hyp-iommu fuzz`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use host_shim::host::Device;
use host_shim::hostile::MAX_CPUS;

use crate::number;

/// The words, as `hyp-iommu help` shows them.
pub const USAGE: &str = "\
hyp-iommu fuzz [WORD ...]  attacks the hypervisor with random calls, accesses and DMA on all CPUs. Words:
  seed=N       steps follow from it, the CPU and their number: 1 unless given
  steps=N      steps of each CPU at the most; seconds=N: time at the most; 1000 steps if neither is given
  cpus=N       so many CPUs
  look=N       the hypervisor's oracle looks at what every N-th step was about: every one unless given
  every=N      it looks at everything after so many steps of the first CPU: 1000 unless given
  oracle       there must be an oracle
  testdev=SMMU,STREAM,REGISTERS, edu=SMMU,STREAM,REGISTERS   a device that Linux has let go of: the addresses of its SMMU's registers and
               of its own, and its StreamID
";

/// A device that Linux has let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loose {
    /// Which kind.
    pub kind: Device,
    /// Where the registers of its SMMU are.
    pub smmu: u64,
    /// Its StreamID.
    pub stream: u32,
    /// Where its own registers are.
    pub registers: u64,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What steps follow from.
    pub seed: u64,
    /// Steps of each CPU at the most.
    pub steps: u64,
    /// Seconds at the most.
    pub seconds: u64,
    /// CPUs; all of them unless said.
    pub cpus: Option<u64>,
    /// Steps between two looks at what a step was about, plus one.
    pub look: u64,
    /// Steps of the first CPU between two looks at everything, plus one.
    pub every: u64,
    /// Whether there must be an oracle.
    pub oracle: bool,
    /// Devices for DMA.
    pub devices: Vec<Loose>,
}

impl Options {
    /// Reads the words after `fuzz`.
    ///
    /// # Errors
    ///
    /// A word is none of these, or has no such number; the text says what is right.
    pub fn parse(typed: &[&str]) -> Result<Self, String> {
        let mut options = Self {
            seed: 1,
            steps: u64::MAX,
            seconds: u64::MAX,
            cpus: None,
            look: 1,
            every: 1000,
            oracle: false,
            devices: Vec::new(),
        };
        for word in typed {
            options.take(word).map_err(|error| format!("{error}\nIt is: {USAGE}"))?;
        }
        if options.steps == u64::MAX && options.seconds == u64::MAX {
            options.steps = 1000;
        }
        Ok(options)
    }

    fn take(&mut self, word: &str) -> Result<(), String> {
        let Some((name, value)) = word.split_once('=') else {
            if word != "oracle" {
                return Err(format!("'{word}' is no word of `hyp-iommu fuzz`"));
            }
            self.oracle = true;
            return Ok(());
        };
        let number = |least, most: u64| {
            let number = number::parse(value).map_err(|error| format!("{name}: {error}"))?;
            let fits = (least..=most).contains(&number);
            fits.then_some(number).ok_or_else(|| format!("{name}: {number} is not from {least} to {most}"))
        };
        match name {
            "seed" => self.seed = number(0, u64::MAX)?,
            "steps" => self.steps = number(1, u64::MAX)?,
            "seconds" => self.seconds = number(1, 1 << 32)?,
            "cpus" => self.cpus = Some(number(1, MAX_CPUS as u64)?),
            "look" => self.look = number(1, u64::MAX)?,
            "every" => self.every = number(1, u64::MAX)?,
            "testdev" => self.devices.push(loose(Device::Immediate, value)?),
            "edu" => self.devices.push(loose(Device::Delayed, value)?),
            _ => return Err(format!("'{name}=' is no word of `hyp-iommu fuzz`")),
        }
        Ok(())
    }
}

fn loose(kind: Device, value: &str) -> Result<Loose, String> {
    let numbers: Vec<u64> = value.split(',').map(number::parse).collect::<Result<_, _>>()?;
    let [smmu, stream, registers] = numbers[..] else {
        return Err(format!("'{value}' are not three numbers with commas between them"));
    };
    let stream = u32::try_from(stream).map_err(|_| format!("{stream:#x} is no StreamID of up to 32 bits"))?;
    Ok(Loose { kind, smmu, stream, registers })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(text: &str) -> Result<Options, String> {
        Options::parse(&text.split_whitespace().collect::<Vec<_>>())
    }

    #[test]
    fn words_come_in_any_order_and_have_values_without_them() {
        let plain = typed("").expect("nothing is needed");
        assert_eq!((plain.seed, plain.steps, plain.seconds, plain.cpus), (1, 1000, u64::MAX, None));
        let all = typed("oracle every=5 edu=0x9050000,16,0x10100000 seed=0x7 seconds=60 cpus=2 look=3")
            .expect("words");
        assert_eq!((all.seed, all.steps, all.seconds, all.cpus), (7, u64::MAX, 60, Some(2)));
        assert_eq!((all.look, all.every, all.oracle), (3, 5, true));
        let edu = Loose { kind: Device::Delayed, smmu: 0x905_0000, stream: 16, registers: 0x1010_0000 };
        assert_eq!(all.devices, [edu]);
    }

    #[test]
    fn what_is_wrong_is_shown_with_what_is_right() {
        for (text, why) in [
            ("fast", "'fast' is no word"),
            ("speed=7", "'speed=' is no word"),
            ("seed", "'seed' is no word"),
            ("seed=x", "seed: 'x' is no number"),
            ("steps=0", "steps: 0 is not from 1"),
            ("cpus=17", "cpus: 17 is not from 1 to 16"),
            ("testdev=1,2", "'1,2' are not three numbers"),
            ("testdev=1,0x100000000,3", "0x100000000 is no StreamID"),
            ("edu=1,y,3", "'y' is no number"),
        ] {
            let error = typed(text).expect_err(text);
            assert!(error.contains(why) && error.contains("seed=N"), "{error}");
        }
    }
}
