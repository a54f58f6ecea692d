//! The host's power calls, carried out. What is allowed is `hyp::psci`'s to say.

use core::sync::atomic::{AtomicBool, Ordering};

use hyp::host_smmus::DriverCounters;
use hyp::memory::Progress;
use hyp::psci::{self, Firmware, SmcAction, id};
use smmuv3::address::PhysAddr;

use super::registers::dsb;
use super::vectors::Frame;
use super::{boot, cpu, entry};

/// `ON_PENDING` (DEN 0022, 5.2.2).
const ON_PENDING: i64 = -5;
/// `INVALID_ADDRESS` (DEN 0022, 5.2.2).
const INVALID_ADDRESS: i64 = -9;
/// Bytes of an SMC instruction: a trapped SMC leaves ELR_EL2 at it.
const SMC_BYTES: u64 = 4;

/// `PSCI_FEATURES` of the firmware has `SYSTEM_RESET2`.
static RESET2: AtomicBool = AtomicBool::new(false);

/// What the host's drivers did is logged.
static REPORTED: AtomicBool = AtomicBool::new(false);

/// Calls the firmware (SMCCC, 64-bit convention); the answer is X0.
fn firmware_call(function: u32, arguments: [u64; 3]) -> u64 {
    let [mut x0, x1, x2, x3] = [u64::from(function), arguments[0], arguments[1], arguments[2]];
    // SAFETY: the functions called are those that `hyp::psci` allows and PSCI's own. The firmware is trusted and, in version
    // 1.0 of SMCCC, may change X0 to X17.
    unsafe {
        core::arch::asm!(
            "smc #0",
            inout("x0") x0, inout("x1") x1 => _, inout("x2") x2 => _, inout("x3") x3 => _,
            clobber_abi("C"),
            options(nostack),
        );
    }
    x0
}

/// Finds out what the firmware has. Called once at boot. The error says what is missing.
pub fn look_at_firmware() -> Result<(), &'static str> {
    let version = firmware_call(id::PSCI_VERSION, [0; 3]);
    // Both the version and NOT_SUPPORTED are of 32 bits; what is above them means nothing.
    if (version as u32 as i32) < 1 << 16 {
        return Err("the firmware has no PSCI 1.0 or later behind SMC");
    }
    let reset2 = firmware_call(id::PSCI_FEATURES, [id::SYSTEM_RESET2.into(), 0, 0]);
    RESET2.store(reset2 as u32 as i32 >= 0, Ordering::Relaxed);
    Ok(())
}

/// Turns the machine off, or where the firmware cannot, stops this CPU.
pub fn system_off() -> ! {
    firmware_call(id::SYSTEM_OFF, [0; 3]);
    // SAFETY: `park` never returns and touches nothing.
    unsafe { entry::park() }
}

/// Turns this CPU off, or where the firmware cannot, stops it.
pub fn cpu_off() -> ! {
    firmware_call(id::CPU_OFF, [0; 3]);
    // SAFETY: `park` never returns and touches nothing.
    unsafe { entry::park() }
}

/// Does what the SMC at ELR_EL2 asks, or refuses.
pub fn trapped_smc(frame: &mut Frame) {
    let firmware = Firmware { reset2: RESET2.load(Ordering::Relaxed) };
    let arguments = [frame.x[1], frame.x[2], frame.x[3]];
    let answer = match psci::decide(frame.x[0] as u32, arguments, firmware) {
        SmcAction::Answer(answer) => answer,
        SmcAction::Forward { function, arguments } => firmware_call(function, arguments) as i64,
        SmcAction::CpuOn { target, entry, context } => cpu_on(target, entry, context),
        SmcAction::CpuOff => firmware_call(id::CPU_OFF, [0; 3]) as i64,
        SmcAction::Standby => {
            // SAFETY: WFI has no effect but time: an interrupt of the host's ends it although EL2 takes none.
            unsafe { core::arch::asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
            psci::SUCCESS
        }
        SmcAction::EndMachine { function, arguments } => {
            if boot::hypervisor().end_step() == Progress::Again {
                return; // ELR is still at the SMC: the host takes its interrupts, and traps again
            }
            let DriverCounters { accesses, queue_stores, syncs } = boot::hypervisor().driver_counters();
            // The firmware may refuse, and the host asks again.
            if accesses != 0 && !REPORTED.swap(true, Ordering::Relaxed) {
                log::info!(
                    "the host's SMMUs: {accesses} accesses, {queue_stores} of CMDQ_PROD, for {syncs} CMD_SYNCs"
                );
            }
            firmware_call(function, [arguments[0], arguments[1], 0]) as i64
        }
    };
    frame.x[0] = answer as u64;
    frame.x[1..4].fill(0);
    frame.skip(SMC_BYTES);
}

/// CPU_ON: the CPU enters EL2 first. `entry` is a claim: it is looked up here for the sake of the answer, and stage 2 holds
/// when the CPU fetches from it.
fn cpu_on(target: u64, entry: u64, context: u64) -> i64 {
    let Some(cpu) = cpu::find(target) else {
        return psci::INVALID_PARAMETERS;
    };
    if !boot::hypervisor().host_reaches(PhysAddr(entry)) {
        return INVALID_ADDRESS;
    }
    if !cpu.begin_start(entry, context) {
        return ON_PENDING;
    }
    let first_instruction = entry::secondary_entry as *const () as u64;
    // The other CPU reads its start as soon as its translation is on.
    dsb();
    let answer = firmware_call(id::CPU_ON | id::SMC64, [target, first_instruction, cpu.address()]) as i64;
    if answer != psci::SUCCESS {
        cpu.cancel_start();
    }
    answer
}
