//! Per-CPU data, and the stacks that `linker/hyp.ld` reserves.

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use smmuv3::address::PhysAddr;

use super::registers::read_sysreg;

/// The most CPUs: as many stacks as the linker script has.
pub const MAX_CPUS: usize = 32;

const GUARD_BYTES: u64 = 0x1000;
const STACK_BYTES: u64 = 0x8000;
const SLOT_BYTES: u64 = GUARD_BYTES + STACK_BYTES;

/// MPIDR_EL1.Aff3 to Aff0: what PSCI calls a target CPU.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// What EL2 keeps for a CPU; its TPIDR_EL2 holds the address.
#[repr(C, align(64))]
pub struct Cpu {
    /// First address above its stack.
    pub stack_top: AtomicU64,
    /// Affinity fields of its MPIDR_EL1.
    affinity: AtomicU64,
    /// A CPU_ON is under way: `entry` and `context` belong to whoever set this.
    starting: AtomicBool,
    /// It is logged why the host cannot run on it: the host may turn it on again and again.
    pub refusal_logged: AtomicBool,
    entry: AtomicU64,
    context: AtomicU64,
}

static CPUS: [Cpu; MAX_CPUS] = [const {
    Cpu {
        stack_top: AtomicU64::new(0),
        affinity: AtomicU64::new(0),
        starting: AtomicBool::new(false),
        refusal_logged: AtomicBool::new(false),
        entry: AtomicU64::new(0),
        context: AtomicU64::new(0),
    }
}; MAX_CPUS];

/// How many entries of `CPUS` are a CPU of this machine.
static COUNT: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    static __stacks_start: u8;
    static __boot_stack_top: u8;
    static __report_stack_top: u8;
    static __cpu_stacks_start: u8;
    static __stacks_end: u8;
}

/// The address of a linker symbol.
macro_rules! symbol {
    ($name:ident) => {
        (&raw const $name) as u64
    };
}
pub(crate) use symbol;

/// The guard pages: never mapped, so that a stack that overflows faults.
pub fn guard_pages() -> impl Iterator<Item = PhysAddr> {
    let boot = [symbol!(__stacks_start), symbol!(__boot_stack_top)];
    let cpus = (symbol!(__cpu_stacks_start)..symbol!(__stacks_end)).step_by(SLOT_BYTES as usize);
    boot.into_iter().chain(cpus).map(PhysAddr)
}

/// The stack that `address` is in, as first and last-plus-one address.
pub fn stack_of(address: u64) -> Option<(u64, u64)> {
    let (start, boot, report) =
        (symbol!(__stacks_start), symbol!(__boot_stack_top), symbol!(__report_stack_top));
    let (cpus, end) = (symbol!(__cpu_stacks_start), symbol!(__stacks_end));
    if (start + GUARD_BYTES..boot).contains(&address) {
        Some((start + GUARD_BYTES, boot))
    } else if (boot + GUARD_BYTES..report).contains(&address) {
        Some((boot + GUARD_BYTES, report))
    } else if (cpus..end).contains(&address) {
        let slot = address - (address - cpus) % SLOT_BYTES;
        (address >= slot + GUARD_BYTES).then_some((slot + GUARD_BYTES, slot + SLOT_BYTES))
    } else {
        None
    }
}

/// The affinity fields of this CPU's MPIDR_EL1.
pub fn own_affinity() -> u64 {
    read_sysreg!("mpidr_el1") & AFFINITY
}

/// Takes the machine's CPUs over from the device tree. Called once, on the first CPU. The error is the number of CPUs.
pub fn register(affinities: impl Iterator<Item = u64>) -> Result<(), usize> {
    let mut count = 0;
    for affinity in affinities {
        if let Some(cpu) = CPUS.get(count) {
            let slot = symbol!(__cpu_stacks_start) + SLOT_BYTES * count as u64;
            cpu.stack_top.store(slot + SLOT_BYTES, Ordering::Relaxed);
            cpu.affinity.store(affinity & AFFINITY, Ordering::Relaxed);
        }
        count += 1;
    }
    if count > MAX_CPUS || symbol!(__stacks_end) - symbol!(__cpu_stacks_start) != SLOT_BYTES * MAX_CPUS as u64
    {
        return Err(count);
    }
    COUNT.store(count, Ordering::Release);
    Ok(())
}

/// The CPU with these affinity fields, as PSCI's `target_cpu` names it.
pub fn find(target: u64) -> Option<&'static Cpu> {
    let known = CPUS.get(..COUNT.load(Ordering::Acquire))?;
    known.iter().find(|cpu| cpu.affinity.load(Ordering::Relaxed) == target)
}

/// The number of the CPU that calls: the place of its data.
#[inline]
pub fn number() -> u16 {
    // Before its data is installed there is only the first CPU.
    let own = read_sysreg!("tpidr_el2").saturating_sub(CPUS.as_ptr() as u64);
    (own / size_of::<Cpu>() as u64) as u16
}

/// How many CPUs this machine has.
pub fn count() -> u16 {
    COUNT.load(Ordering::Relaxed).max(1) as u16
}

impl Cpu {
    /// Makes this the data of the CPU that calls.
    pub fn install(&'static self) {
        let address = ptr::from_ref(self) as u64;
        // SAFETY: TPIDR_EL2 is EL2's own and holds nothing but this.
        unsafe { core::arch::asm!("msr tpidr_el2, {}", in(reg) address, options(nostack, preserves_flags)) };
    }

    /// Where the CPU finds itself after [`super::entry::secondary_entry`].
    pub fn address(&'static self) -> u64 {
        ptr::from_ref(self) as u64
    }

    /// Claims the right to start the CPU at `entry` with X0 = `context`. `false`: another CPU is starting it.
    pub fn begin_start(&self, entry: u64, context: u64) -> bool {
        if self.starting.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        self.entry.store(entry, Ordering::Relaxed);
        self.context.store(context, Ordering::Relaxed);
        true
    }

    /// Ends a start that the firmware refused.
    pub fn cancel_start(&self) {
        self.starting.store(false, Ordering::Release);
    }

    /// What the CPU was started with, for the CPU itself; ends the start.
    pub fn take_start(&self) -> (u64, u64) {
        let start = (self.entry.load(Ordering::Relaxed), self.context.load(Ordering::Relaxed));
        self.starting.store(false, Ordering::Release);
        start
    }
}
