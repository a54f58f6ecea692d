//! PSCI (DEN 0022).

use super::calls;
use core::sync::atomic::{AtomicBool, Ordering};
use host_shim::tree::Conduit;

/// Function ids (DEN 0022, 5.1).
pub mod id {
    /// `PSCI_VERSION`.
    pub const VERSION: u32 = 0x8400_0000;
    /// `CPU_OFF`.
    pub const CPU_OFF: u32 = 0x8400_0002;
    /// `CPU_ON`, 64-bit convention.
    pub const CPU_ON: u32 = 0xc400_0003;
    /// `AFFINITY_INFO`, 64-bit convention.
    pub const AFFINITY_INFO: u32 = 0xc400_0004;
    /// `SYSTEM_OFF`.
    pub const SYSTEM_OFF: u32 = 0x8400_0008;
    /// `PSCI_FEATURES`.
    pub const FEATURES: u32 = 0x8400_000a;
}

/// `SUCCESS`, and the state ON.
pub const SUCCESS: i64 = 0;
/// `NOT_SUPPORTED`.
pub const NOT_SUPPORTED: i64 = -1;
/// `INVALID_PARAMETERS`.
pub const INVALID_PARAMETERS: i64 = -2;
/// `ALREADY_ON`.
pub const ALREADY_ON: i64 = -4;
/// `ON_PENDING`.
pub const ON_PENDING: i64 = -5;
/// `INVALID_ADDRESS`.
pub const INVALID_ADDRESS: i64 = -9;
/// AFFINITY_INFO: the CPU is off.
pub const STATE_OFF: i64 = 1;

static BY_HVC: AtomicBool = AtomicBool::new(false);

/// Says how the firmware is called.
pub fn init(conduit: Conduit) {
    BY_HVC.store(conduit == Conduit::Hvc, Ordering::Relaxed);
}

/// A call, whose answer has 32 bits that matter.
pub fn call(id: u32, arguments: [u64; 3]) -> i64 {
    let [a, b, c] = arguments;
    let answer = if BY_HVC.load(Ordering::Relaxed) {
        let [x0, ..] = calls::hvc(id, [a, b, c, 0]);
        x0
    } else {
        calls::smc(id, arguments)
    };
    i64::from(answer as i32)
}

/// Turns the machine off.
pub fn system_off() -> ! {
    call(id::SYSTEM_OFF, [0; 3]);
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// Turns this CPU off.
pub fn cpu_off() -> ! {
    call(id::CPU_OFF, [0; 3]);
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// Starts a CPU at an address with a value in X0.
pub fn cpu_on(affinity: u64, entry: u64, context: u64) -> i64 {
    call(id::CPU_ON, [affinity, entry, context])
}

/// 0 on, 1 off, 2 on its way, negative an error.
pub fn affinity_info(affinity: u64) -> i64 {
    call(id::AFFINITY_INFO, [affinity, 0, 0])
}
