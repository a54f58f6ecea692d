//! The hypervisor's end: what happened, where, who called, and the machine is off.
//!
//! The first CPU that gets here reports; the others stop here, or when they next leave EL1 (`vectors` looks at
//! [`REPORTING`]).

use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU64, Ordering};

use hyp::esr::{Class, Syndrome};

use super::console::{self, Uart};
use super::cpu::{self, symbol};
use super::registers::read_sysreg;
use super::vectors::Frame;
use super::{entry, psci};

/// Not 0: the CPU that reports, as its TPIDR_EL2 with bit 0 set.
pub static REPORTING: AtomicU64 = AtomicU64::new(0);

/// The deepest backtrace.
const MAX_CALLERS: usize = 24;

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
}

/// The address for which the image is linked minus the one at which it runs.
fn link_offset() -> u64 {
    const LINK_BASE: u64 = 0x4020_0000;
    LINK_BASE.wrapping_sub(symbol!(__image_start))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let own = read_sysreg!("tpidr_el2") | 1;
    match REPORTING.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(reporter) if reporter == own => psci::system_off(),
        // SAFETY: `park` never returns and touches nothing.
        Err(_) => unsafe { entry::park() },
    }
    let out = &mut console::take_over();
    let _ = writeln!(out, "\nhyp: panic on CPU {:#x}: {}", cpu::own_affinity(), info.message());
    if let Some(place) = info.location() {
        let _ = writeln!(out, "hyp: at {place}");
    }
    let frame_pointer: u64;
    // SAFETY: reads a general-purpose register.
    unsafe {
        core::arch::asm!("mov {}, x29", out(reg) frame_pointer, options(nomem, nostack, preserves_flags))
    };
    backtrace(out, frame_pointer);
    end(out)
}

/// Reports an exception that EL2 took from itself. `kind` is its vector, 0 to 15.
pub extern "C" fn report_exception(frame: &Frame, kind: u64) -> ! {
    let out = &mut console::take_over();
    let syndrome = Syndrome(read_sysreg!("esr_el2"));
    let source = match kind / 4 {
        0 => "EL2 with SP_EL0",
        1 => "EL2",
        2 => "a lower Exception level in AArch64 state",
        _ => "a lower Exception level in AArch32 state",
    };
    let name = ["synchronous exception", "IRQ", "FIQ", "SError"];
    let name = name.get(kind as usize % 4).unwrap_or(&"exception");
    let _ = writeln!(out, "\nhyp: unexpected {name} from {source} on CPU {:#x}", cpu::own_affinity());
    let _ = writeln!(out, "hyp: {syndrome}");
    let far = read_sysreg!("far_el2");
    let _ = writeln!(out, "hyp: FAR_EL2 {far:#x}  HPFAR_EL2 {:#x}", read_sysreg!("hpfar_el2"));
    if syndrome.class() == Class::DATA_ABORT_SAME && cpu::guard_pages().any(|guard| guard.0 == far & !0xfff) {
        let _ = writeln!(out, "hyp: FAR_EL2 is in the guard page below a stack: the stack overflowed");
    }
    let _ = writeln!(
        out,
        "hyp: ELR_EL2 {:#x} (linked at {:#x})  SPSR_EL2 {:#x}  SP {:#x}",
        frame.elr,
        frame.elr.wrapping_add(link_offset()),
        frame.spsr,
        frame.sp
    );
    for (row, values) in frame.x.chunks(4).enumerate() {
        let _ = write!(out, "hyp:");
        for (column, value) in values.iter().enumerate() {
            let _ = write!(out, "  x{:<2} {value:016x}", 4 * row + column);
        }
        let _ = writeln!(out);
    }
    backtrace(out, frame.x[29]);
    end(out)
}

/// Prints the return addresses of the chain of frame records (AAPCS64, 6.4.6) that begins at `record`, as far as it
/// stays in one stack and goes up.
fn backtrace(out: &mut Uart, mut record: u64) {
    let _ = writeln!(out, "hyp: called from (addresses as linked):");
    let Some((_, end)) = cpu::stack_of(record) else {
        let _ = writeln!(out, "hyp:   X29 is {record:#x}, which is in no stack");
        return;
    };
    let text = symbol!(__image_start)..symbol!(__text_end);
    for _ in 0..MAX_CALLERS {
        if !record.is_multiple_of(8) || record.saturating_add(16) > end {
            return;
        }
        // SAFETY: `record` and the 16 bytes from it are in a stack, which is mapped; it is aligned to 8.
        let [next, caller] = unsafe { (record as *const [u64; 2]).read_volatile() };
        if !text.contains(&caller) {
            return;
        }
        let _ = writeln!(out, "hyp:   {:#x}", caller.wrapping_add(link_offset()));
        if next <= record {
            return;
        }
        record = next;
    }
}

/// Turns the machine off after a report.
fn end(out: &mut Uart) -> ! {
    let _ = writeln!(out, "hyp: turning the machine off");
    psci::system_off()
}
