//! A program for a CPU that an attack starts: it says at which exception level it runs, and turns itself off.

use super::super::machine::Machine;
use super::super::{cpu, psci};
use core::arch::global_asm;
use host_shim::host::{Abort, Host};

global_asm!(
    r#"
    .text
    .balign 8
    .global intruder, intruder_end
intruder:                               // X0 = its report; translation is off
    mrs     x1, currentel
    ldr     x2, [x0, #8]
    cbz     x2, 1f
    ldr     x3, [x2]
    str     x3, [x0, #16]
1:  str     x1, [x0]
    dsb     sy
    movz    x0, #0x0002                 // CPU_OFF
    movk    x0, #0x8400, lsl #16
    smc     #0
2:  wfi
    b       2b
    .balign 8
intruder_end:
    "#
);

unsafe extern "C" {
    static intruder: u8;
    static intruder_end: u8;
}

/// How long a CPU that was started may take for its report.
const PATIENCE_NS: u64 = 500_000_000;

/// Where the program is.
pub fn entry() -> u64 {
    &raw const intruder as u64
}

/// The program's words, 8 bytes each.
fn words() -> impl Iterator<Item = u64> {
    let (start, end) = (entry(), &raw const intruder_end as u64);
    // SAFETY: the words are instructions of this program's text, which nobody writes.
    (start..end).step_by(8).map(|at| unsafe { (at as *const u64).read() })
}

/// Copies the program to `place`.
///
/// # Errors
/// The first store that aborts.
pub fn copy_to(machine: &Machine, place: u64) -> Result<(), Abort> {
    words().zip((place..).step_by(8)).try_for_each(|(word, at)| machine.cpu_write_u64(at, word))
}

/// What the program saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The exception level that it ran at.
    pub level: u64,
    /// What it read at the address that it was given.
    pub value: u64,
}

/// Memory of the host's for a report.
pub struct Desk<'m> {
    machine: &'m Machine,
    /// Where it is: X0 of the program.
    pub place: u64,
}

impl<'m> Desk<'m> {
    /// A report that is not written yet. If `target` is not 0 the program reads there.
    ///
    /// # Errors
    /// The memory is not the host's.
    pub fn new(machine: &'m Machine, target: u64) -> Result<Self, Abort> {
        let place = machine.scratch() + (5 << 20);
        for (offset, value) in [(0, 0), (8, target), (16, 0)] {
            machine.cpu_write_u64(place + offset, value)?;
        }
        // The program's loads and stores go past the caches.
        cpu::clean_and_invalidate(place);
        Ok(Self { machine, place })
    }

    /// Waits for the report of the program on this CPU, and for the CPU to be off again; `None` if there is none.
    pub fn wait(&self, affinity: u64) -> Option<Report> {
        let begin = cpu::now_ns();
        while cpu::now_ns() - begin < PATIENCE_NS {
            cpu::clean_and_invalidate(self.place);
            // CurrentEL has the level in bits 3:2.
            let level = self.machine.cpu_read_u64(self.place).ok()? >> 2 & 0b11;
            if level != 0 && psci::affinity_info(affinity) == psci::STATE_OFF {
                return Some(Report { level, value: self.machine.cpu_read_u64(self.place + 16).ok()? });
            }
            core::hint::spin_loop();
        }
        None
    }
}
