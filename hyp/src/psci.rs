//! Which of the host's SMCs reach the firmware, and in what form (DEN 0022 PSCI, DEN 0028 SMCCC).
//!
//! Pure policy: [`decide`] looks at the call and says what to do, the image does it. What is not on the list
//! never reaches the firmware, which is trusted and must not become a way around EL2.

/// `SUCCESS` (DEN 0022, 5.2.2).
pub const SUCCESS: i64 = 0;
/// `NOT_SUPPORTED` (DEN 0022, 5.2.2, and DEN 0028, 7.1).
pub const NOT_SUPPORTED: i64 = -1;
/// `INVALID_PARAMETERS` (DEN 0022, 5.2.2).
pub const INVALID_PARAMETERS: i64 = -2;
/// SMCCC version that EL2 answers: 1.1, major in bits 30:16, minor in bits 15:0 (DEN 0028, 7.2).
pub const SMCCC_VERSION_1_1: i64 = 0x1_0001;

/// Function ids (DEN 0022, 5.1; DEN 0028, 7), the 32-bit form where a call has both.
pub mod id {
    /// `PSCI_VERSION`.
    pub const PSCI_VERSION: u32 = 0x8400_0000;
    /// `CPU_SUSPEND`.
    pub const CPU_SUSPEND: u32 = 0x8400_0001;
    /// `CPU_OFF`.
    pub const CPU_OFF: u32 = 0x8400_0002;
    /// `CPU_ON`.
    pub const CPU_ON: u32 = 0x8400_0003;
    /// `AFFINITY_INFO`.
    pub const AFFINITY_INFO: u32 = 0x8400_0004;
    /// `MIGRATE_INFO_TYPE`.
    pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    /// `SYSTEM_OFF`.
    pub const SYSTEM_OFF: u32 = 0x8400_0008;
    /// `SYSTEM_RESET`.
    pub const SYSTEM_RESET: u32 = 0x8400_0009;
    /// `PSCI_FEATURES`.
    pub const PSCI_FEATURES: u32 = 0x8400_000a;
    /// `SYSTEM_RESET2`.
    pub const SYSTEM_RESET2: u32 = 0x8400_0012;
    /// `SMCCC_VERSION`.
    pub const SMCCC_VERSION: u32 = 0x8000_0000;
    /// `SMCCC_ARCH_FEATURES`.
    pub const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
    /// `SMCCC_ARCH_WORKAROUND_3`.
    pub const SMCCC_ARCH_WORKAROUND_3: u32 = 0x8000_3fff;
    /// `SMCCC_ARCH_WORKAROUND_2`.
    pub const SMCCC_ARCH_WORKAROUND_2: u32 = 0x8000_7fff;
    /// `SMCCC_ARCH_WORKAROUND_1`.
    pub const SMCCC_ARCH_WORKAROUND_1: u32 = 0x8000_8000;
    /// Bit 30: the call uses the 64-bit convention (DEN 0028, 2.5).
    pub const SMC64: u32 = 1 << 30;
}

/// What the image found out about the firmware at boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Firmware {
    /// `PSCI_FEATURES` says that it has `SYSTEM_RESET2`.
    pub reset2: bool,
}

/// What the image does with an SMC of the host.
///
/// Every variant but [`SmcAction::CpuOff`] and a successful [`SmcAction::EndMachine`] ends with `X1` to `X3` zero,
/// all other registers but `X0` as they were, and ELR after the SMC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmcAction {
    /// Put this in `X0`.
    Answer(i64),
    /// Make this call to the firmware and put its `X0` in the host's.
    Forward {
        /// Function id.
        function: u32,
        /// `X1` to `X3`.
        arguments: [u64; 3],
    },
    /// Start a CPU at EL2's own entry, which then enters EL1 at `entry` with `context` in `X0`.
    CpuOn {
        /// MPIDR of the CPU.
        target: u64,
        /// IPA of the first instruction at EL1.
        entry: u64,
        /// `X0` at EL1.
        context: u64,
    },
    /// Turn the calling CPU off.
    CpuOff,
    /// Wait for an interrupt as the host's own WFI would, then answer [`SUCCESS`]. A power-down state that the
    /// host asked for is thereby demoted to standby, which DEN 0022, 5.4.5 allows.
    Standby,
    /// Take reset steps until they are done, one a trap with ELR left at the SMC, then make this call. If
    /// the firmware returns, put its `X0` in the host's.
    EndMachine {
        /// Function id of `SYSTEM_OFF`, `SYSTEM_RESET` or `SYSTEM_RESET2`.
        function: u32,
        /// `X1` and `X2`.
        arguments: [u64; 2],
    },
}

/// The action for an SMC with function id `function` (`W0`) and `arguments` (`X1` to `X3`).
///
/// Arguments of a call in the 32-bit convention are cut to 32 bits (DEN 0028, 2.7). Never fails: what is unknown
/// is answered with [`NOT_SUPPORTED`].
pub fn decide(function: u32, arguments: [u64; 3], firmware: Firmware) -> SmcAction {
    let arguments = if function & id::SMC64 == 0 { arguments.map(|x| x & 0xffff_ffff) } else { arguments };
    let [x1, x2, x3] = arguments;
    match function {
        id::PSCI_VERSION => SmcAction::Forward { function, arguments: [0; 3] },
        CPU_SUSPEND_64 | id::CPU_SUSPEND => SmcAction::Standby,
        id::CPU_OFF => SmcAction::CpuOff,
        CPU_ON_64 | id::CPU_ON => SmcAction::CpuOn { target: x1, entry: x2, context: x3 },
        AFFINITY_INFO_64 | id::AFFINITY_INFO => SmcAction::Forward { function, arguments: [x1, x2, 0] },
        id::MIGRATE_INFO_TYPE => SmcAction::Answer(MIGRATION_NOT_REQUIRED),
        id::SYSTEM_OFF | id::SYSTEM_RESET => SmcAction::EndMachine { function, arguments: [0; 2] },
        SYSTEM_RESET2_64 | id::SYSTEM_RESET2 if firmware.reset2 => {
            SmcAction::EndMachine { function, arguments: [x1, x2] }
        }
        id::PSCI_FEATURES => SmcAction::Answer(psci_feature(x1 as u32, firmware)),
        id::SMCCC_VERSION => SmcAction::Answer(SMCCC_VERSION_1_1),
        id::SMCCC_ARCH_FEATURES => match x1 as u32 {
            id::SMCCC_VERSION | id::SMCCC_ARCH_FEATURES => SmcAction::Answer(SUCCESS),
            workaround if is_workaround(workaround) => SmcAction::Forward { function, arguments: [x1, 0, 0] },
            _ => SmcAction::Answer(NOT_SUPPORTED),
        },
        workaround if is_workaround(workaround) => SmcAction::Forward { function, arguments: [x1, 0, 0] },
        _ => SmcAction::Answer(NOT_SUPPORTED),
    }
}

const CPU_SUSPEND_64: u32 = id::CPU_SUSPEND | id::SMC64;
const CPU_ON_64: u32 = id::CPU_ON | id::SMC64;
const AFFINITY_INFO_64: u32 = id::AFFINITY_INFO | id::SMC64;
const SYSTEM_RESET2_64: u32 = id::SYSTEM_RESET2 | id::SMC64;
/// `MIGRATE_INFO_TYPE`: Trusted OS not present or does not need migration (DEN 0022, 5.9).
const MIGRATION_NOT_REQUIRED: i64 = 2;

fn is_workaround(function: u32) -> bool {
    matches!(
        function,
        id::SMCCC_ARCH_WORKAROUND_1 | id::SMCCC_ARCH_WORKAROUND_2 | id::SMCCC_ARCH_WORKAROUND_3
    )
}

/// `PSCI_FEATURES` (DEN 0022, 5.15): 0 for what [`decide`] does, else [`NOT_SUPPORTED`]. For `CPU_SUSPEND` 0
/// also says: original format of the power state, no OS-initiated mode.
fn psci_feature(function: u32, firmware: Firmware) -> i64 {
    match function {
        id::PSCI_VERSION
        | id::CPU_SUSPEND
        | CPU_SUSPEND_64
        | id::CPU_OFF
        | id::CPU_ON
        | CPU_ON_64
        | id::AFFINITY_INFO
        | AFFINITY_INFO_64
        | id::MIGRATE_INFO_TYPE
        | id::SYSTEM_OFF
        | id::SYSTEM_RESET
        | id::PSCI_FEATURES
        | id::SMCCC_VERSION => SUCCESS,
        id::SYSTEM_RESET2 | SYSTEM_RESET2_64 if firmware.reset2 => SUCCESS,
        _ => NOT_SUPPORTED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Firmware = Firmware { reset2: false };
    const NEW: Firmware = Firmware { reset2: true };

    #[test]
    fn arguments_of_32_bit_calls_are_cut() {
        let action = decide(id::CPU_ON, [0xffff_0000_0000_0001, 0x1_4000_0000, 7], OLD);
        assert_eq!(action, SmcAction::CpuOn { target: 1, entry: 0x4000_0000, context: 7 });
        let action = decide(CPU_ON_64, [1 << 32, 0x1_4000_0000, u64::MAX], OLD);
        assert_eq!(action, SmcAction::CpuOn { target: 1 << 32, entry: 0x1_4000_0000, context: u64::MAX });
    }

    #[test]
    fn what_is_not_listed_never_reaches_the_firmware() {
        // A secure-partition call, a SiP call, a yielding call, MEM_PROTECT, and a 64-bit form that does not exist.
        for function in [0x8400_0063, 0xc200_0001, 0x0400_0000, 0x8400_0013, id::CPU_OFF | id::SMC64] {
            assert_eq!(decide(function, [0; 3], NEW), SmcAction::Answer(NOT_SUPPORTED));
        }
    }

    #[test]
    fn reset2_only_if_the_firmware_has_it() {
        assert_eq!(decide(id::SYSTEM_RESET2, [0; 3], OLD), SmcAction::Answer(NOT_SUPPORTED));
        assert!(matches!(decide(id::SYSTEM_RESET2, [0; 3], NEW), SmcAction::EndMachine { .. }));
        let features = |f| decide(id::PSCI_FEATURES, [u64::from(id::SYSTEM_RESET2), 0, 0], f);
        assert_eq!(features(OLD), SmcAction::Answer(NOT_SUPPORTED));
        assert_eq!(features(NEW), SmcAction::Answer(SUCCESS));
    }
}
