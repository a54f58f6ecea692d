//! `--memory`: an amount of memory as the user types it.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, anyhow, bail};

/// Size of the machine's memory: a multiple of 2 MiB between [`MemorySize::MIN`] and [`MemorySize::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(u64);

impl MemorySize {
    /// What a machine gets when nothing is said: 1 GiB.
    pub const DEFAULT: Self = Self(1 << 30);
    /// The least that holds the images, the device tree and a host.
    pub const MIN: Self = Self(256 << 20);
    /// The most that ends below the machine's high devices.
    pub const MAX: Self = Self(128 << 30);

    /// Bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// MiB, which is what QEMU's `-m` counts in.
    pub const fn mib(self) -> u64 {
        self.0 >> 20
    }
}

impl FromStr for MemorySize {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            unit => bail!("'{unit}' is not a unit of memory: type for example --memory 512M or --memory 2G"),
        };
        let number: u64 = digits
            .parse()
            .map_err(|_| anyhow!("'{text}' is not a size: type for example --memory 512M or --memory 2G"))?;
        let bytes = number.saturating_mul(1 << shift);
        if !(Self::MIN.0..=Self::MAX.0).contains(&bytes) {
            bail!(
                "the machine can have {} to {} of memory, not {text}: type for example --memory 1G",
                Self::MIN,
                Self::MAX
            );
        }
        if !bytes.is_multiple_of(2 << 20) {
            bail!("memory comes in multiples of 2 MiB, not {text}: type for example --memory 512M");
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1 << 30) {
            write!(f, "{} GiB", self.0 >> 30)
        } else {
            write!(f, "{} MiB", self.0 >> 20)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_as_people_type_them() {
        for (text, mib) in [("512M", 512), ("512", 512), ("1G", 1024), ("2GiB", 2048), ("300mb", 300)] {
            assert_eq!(text.parse::<MemorySize>().expect(text).mib(), mib, "{text}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_type() {
        for text in
            ["", "G", "-1G", "1T", "12q", "255M", "129G", "257M", "99999999999999999999G", "1.5G", "\u{e9}"]
        {
            let message = text.parse::<MemorySize>().expect_err(text).to_string();
            assert!(message.contains("type for example --memory"), "{text}: {message}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_a_sentence(text in "\\PC{0,12}") {
            if let Ok(size) = text.parse::<MemorySize>() {
                prop_assert!((MemorySize::MIN..=MemorySize::MAX).contains(&size));
                prop_assert_eq!(size.bytes() % (2 << 20), 0);
            }
        }
    }
}
