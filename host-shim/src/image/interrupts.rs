//! Interrupts of the virtual timer at EL1, while one store is under way.

use super::machine::Machine;
use aarch64_cpu::registers::{CNTV_CTL_EL0, CNTV_CVAL_EL0, Writeable};
use abi::Statistic;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use host_shim::call::Calls;
use host_shim::host::{Abort, Host};

use super::{cpu, probe};

/// GICD_CTLR.{EnableGrp1, ARE_NS} of one Security state (IHI 0069, 12.9.4).
const DISTRIBUTOR_ON: u32 = 1 << 1 | 1 << 4;
const GICD_CTLR: u64 = 0x0;
/// GICR_WAKER.ProcessorSleep.
const ASLEEP: u32 = 1 << 1;
const GICR_WAKER: u64 = 0x14;
/// Of SGI_base, which follows RD_base.
const GICR_IGROUPR0: u64 = 0x1_0080;
const GICR_ISENABLER0: u64 = 0x1_0100;
const GICR_ICENABLER0: u64 = 0x1_0180;
/// The virtual timer's PPI (SBSA).
const TIMER: u32 = 27;

/// What [`during`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// How often EL2 had the access, which it emulates: after each time the CPU was at EL1 with interrupts on.
    pub traps: u64,
    /// Interrupts that were taken.
    pub interrupts: u32,
    /// The longest that one was taken after the handler of the one before had set the timer, in ticks.
    pub longest: u64,
    /// The handler gave the access up.
    pub given_up: bool,
}

static PERIOD: AtomicU64 = AtomicU64::new(0);
static MOST: AtomicU32 = AtomicU32::new(0);
static COUNT: AtomicU32 = AtomicU32::new(0);
static LONGEST: AtomicU64 = AtomicU64::new(0);
static SET_AT: AtomicU64 = AtomicU64::new(0);
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// Makes one access of [`probe`] with the timer's interrupt pending `period` ticks after it begins, and after each interrupt again. At
/// the `most`-th the access is given up. For the first CPU, whose Redistributor is at `redistributor`.
///
/// # Errors
/// An access to the interrupt controller, or the access itself, aborts.
pub fn during(
    machine: &Machine,
    redistributor: u64,
    period: u64,
    most: u32,
    access: impl FnOnce() -> Result<(), Abort>,
) -> Result<Taken, Abort> {
    let distributor = machine.tree().distributor;
    let before = machine.cpu_read_u32(distributor + GICD_CTLR)?;
    machine.cpu_write_u32(distributor + GICD_CTLR, before | DISTRIBUTOR_ON)?;
    let waker = machine.cpu_read_u32(redistributor + GICR_WAKER)?;
    machine.cpu_write_u32(redistributor + GICR_WAKER, waker & !ASLEEP)?;
    let groups = machine.cpu_read_u32(redistributor + GICR_IGROUPR0)?;
    machine.cpu_write_u32(redistributor + GICR_IGROUPR0, groups | 1 << TIMER)?;
    machine.cpu_write_u32(redistributor + GICR_ISENABLER0, 1 << TIMER)?;
    PERIOD.store(period, Ordering::Relaxed);
    MOST.store(most, Ordering::Relaxed);
    COUNT.store(0, Ordering::Relaxed);
    LONGEST.store(0, Ordering::Relaxed);
    GIVEN_UP.store(false, Ordering::Relaxed);
    // SAFETY: the CPU interface of EL1 (IHI 0069, 12.2): system registers on, every priority passes, group 1 on. Interrupts are
    // taken by `taken`, which leaves all registers as they were.
    unsafe {
        asm!(
            "msr S3_0_C12_C12_5, {one}", // ICC_SRE_EL1
            "isb",
            "msr S3_0_C4_C6_0, {lowest}", // ICC_PMR_EL1
            "msr S3_0_C12_C12_7, {one}", // ICC_IGRPEN1_EL1
            "isb",
            one = in(reg) 1_u64,
            lowest = in(reg) 0xff_u64,
            options(nostack),
        );
    }
    let emulated = || machine.statistic(Statistic::EmulatedAccesses).unwrap_or(0);
    let before_access = emulated();
    set_timer();
    CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::SET);
    // SAFETY: as above; the mask is back before anything else of this program runs.
    unsafe { asm!("msr daifclr, #2", "isb", options(nostack)) };
    let outcome = access();
    // SAFETY: interrupts are masked as they were.
    unsafe { asm!("msr daifset, #2", "isb", options(nostack)) };
    CNTV_CTL_EL0.set(0);
    let traps = emulated().wrapping_sub(before_access);
    // SAFETY: group 1 is off again.
    unsafe { asm!("msr S3_0_C12_C12_7, xzr", "isb", options(nostack)) };
    machine.cpu_write_u32(redistributor + GICR_ICENABLER0, 1 << TIMER)?;
    machine.cpu_write_u32(redistributor + GICR_IGROUPR0, groups)?;
    machine.cpu_write_u32(distributor + GICD_CTLR, before)?;
    outcome?;
    Ok(Taken {
        traps,
        interrupts: COUNT.load(Ordering::Relaxed),
        longest: LONGEST.load(Ordering::Relaxed),
        given_up: GIVEN_UP.load(Ordering::Relaxed),
    })
}

fn set_timer() {
    let now = cpu::ticks();
    SET_AT.store(now, Ordering::Relaxed);
    CNTV_CVAL_EL0.set(now.wrapping_add(PERIOD.load(Ordering::Relaxed)));
}

/// An IRQ at EL1, from `vectors.rs`: where to go on.
pub extern "C" fn taken(elr: u64) -> u64 {
    let late = cpu::ticks().wrapping_sub(SET_AT.load(Ordering::Relaxed));
    let intid: u64;
    // SAFETY: ICC_IAR1_EL1 acknowledges the interrupt, of which there is one kind.
    unsafe { asm!("mrs {}, S3_0_C12_C12_0", out(reg) intid, options(nostack)) };
    LONGEST.fetch_max(late, Ordering::Relaxed);
    let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    let gives_up = count >= MOST.load(Ordering::Relaxed) && probe::is_access(elr);
    if gives_up {
        GIVEN_UP.store(true, Ordering::Relaxed);
        CNTV_CTL_EL0.set(0);
    } else {
        set_timer();
    }
    // SAFETY: ICC_EOIR1_EL1 ends the interrupt that was acknowledged.
    unsafe { asm!("isb", "msr S3_0_C12_C12_1, {}", "isb", in(reg) intid, options(nostack)) };
    // The access is the first instruction of its function: the next one says that it succeeded.
    if gives_up { elr + 4 } else { elr }
}
