//! Which CPUs a machine has.

use clap::ValueEnum;

/// A CPU that QEMU emulates, with EL2 and addresses of at least 40 bits: [`Cpu::Max`] has all that QEMU can, the others what a core of
/// Arm's has, from Armv8.0 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Cpu {
    /// Everything that QEMU emulates
    #[default]
    Max,
    /// Armv8.0, 40-bit addresses
    CortexA53,
    /// Armv8.0, 44-bit addresses
    CortexA72,
    /// Armv8.2
    NeoverseN1,
    /// Armv8.4, with pointer authentication
    NeoverseV1,
    /// Armv9.0
    NeoverseN2,
}

impl Cpu {
    /// What QEMU's `-cpu` takes.
    pub const fn qemu(self) -> &'static str {
        match self {
            // QEMU takes many times as long for the architecture's algorithm of pointer authentication as for one of its own.
            Self::Max => "max,pauth-impdef=on",
            Self::CortexA53 => "cortex-a53",
            Self::CortexA72 => "cortex-a72",
            Self::NeoverseN1 => "neoverse-n1",
            Self::NeoverseV1 => "neoverse-v1",
            Self::NeoverseN2 => "neoverse-n2",
        }
    }

    /// Whether it is of Armv8.1 or later, with FEAT_VHE.
    pub const fn has_vhe(self) -> bool {
        !matches!(self, Self::CortexA53 | Self::CortexA72)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_is_called_what_qemu_calls_it() {
        for cpu in Cpu::value_variants() {
            let typed = cpu.to_possible_value().expect("none is hidden");
            assert_eq!(cpu.qemu().split(',').next(), Some(typed.get_name()));
        }
    }
}
