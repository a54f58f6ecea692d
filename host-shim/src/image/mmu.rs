//! EL1's own translation: the identity, so that the hypervisor alone decides what can be reached.
//!
//! RAM is Normal write-back, everything else Device-nGnRE. That covers the hypervisor's memory and the SMMUs' registers too, which an
//! operating system would leave out: the checks want the abort to be the hypervisor's.

use aarch64_cpu::registers::{Readable, SCTLR_EL1, TCR_EL1, TTBR1_EL1, Writeable};
use core::cell::UnsafeCell;
use host_shim::tree::{Run, Tree};

/// Attribute 0 Normal write-back, 1 Device-nGnRE.
pub const MAIR: u64 = 0x04ff;
/// TCR_EL1: 39-bit addresses in TTBR0, 4 KiB granule, inner shareable write-back walks, TTBR1 off.
pub const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23;
/// SCTLR_EL1: RES1 bits, M, C, I.
pub const SCTLR: u64 = 0x30d0_0800 | 1 | 1 << 2 | 1 << 12;

const ENTRIES: usize = 512;
const GIB: u64 = 1 << 30;
const BLOCK: u64 = 2 << 20;
/// Level-2 tables, for the GiBs that are RAM in part or hold the image.
const PARTIAL_GIBS: usize = 16;

const VALID: u64 = 1;
const TABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 10;
const INNER_SHAREABLE: u64 = 3 << 8;
const NEVER_EXECUTE: u64 = 1 << 53 | 1 << 54;
const USER_NEVER_EXECUTES: u64 = 1 << 54;
const NORMAL: u64 = VALID | ACCESSED | INNER_SHAREABLE;
const DEVICE: u64 = VALID | ACCESSED | 1 << 2 | NEVER_EXECUTE;

/// The first address that TTBR1_EL1 translates in [`with_upper_half`].
pub const UPPER_HALF: u64 = 0xffff_ff80_0000_0000;
/// Levels of its tables, each a page.
pub const UPPER_LEVELS: u64 = 3;
/// What TCR_EL1 has besides for it: 39-bit addresses, 4 KiB granule, inner shareable write-back walks; EPD1 is what it has not.
const UPPER: u64 = 25 << 16 | 1 << 24 | 1 << 26 | 3 << 28 | 2 << 30;
const NO_UPPER: u64 = 1 << 23;

#[repr(C, align(4096))]
pub struct Tables {
    level1: UnsafeCell<[u64; ENTRIES]>,
    level2: UnsafeCell<[[u64; ENTRIES]; PARTIAL_GIBS]>,
}

// SAFETY: one CPU writes the tables, before any other is started and before translation is on; afterwards only hardware reads them.
unsafe impl Sync for Tables {}

/// The tables: level 1 first, which is what TTBR0 points to.
pub static TABLES: Tables =
    Tables { level1: UnsafeCell::new([0; ENTRIES]), level2: UnsafeCell::new([[0; ENTRIES]; PARTIAL_GIBS]) };

unsafe extern "C" {
    static __image_start: u8;
    static __image_end: u8;
}

/// Where this program is, stacks included.
pub fn image() -> Run {
    let (start, end) = (&raw const __image_start as u64, &raw const __image_end as u64);
    Run { start, size: end - start }
}

/// Whether translation is on.
pub fn is_on() -> bool {
    SCTLR_EL1.is_set(aarch64_cpu::registers::SCTLR_EL1::M)
}

/// Builds the tables. Called once, by the first CPU, with translation off.
pub fn build(tree: &Tree) {
    // SAFETY: see `Sync` for `Tables`: nobody else has a reference now, and none is kept.
    let (level1, level2) = unsafe { (&mut *TABLES.level1.get(), &mut *TABLES.level2.get()) };
    let mut free = level2.iter_mut();
    for (entry, gib) in level1.iter_mut().zip((0..).step_by(GIB as usize)) {
        let here = Run { start: gib, size: GIB };
        let is_ram = tree.memory.iter().any(|ram| ram.overlaps(here));
        let is_all_ram = tree.memory.iter().any(|ram| ram.start <= gib && gib + GIB <= ram.start + ram.size);
        *entry = if !is_ram {
            gib | DEVICE
        } else if is_all_ram && !image().overlaps(here) {
            gib | NORMAL | NEVER_EXECUTE
        } else if let Some(table) = free.next() {
            fill(table, gib, tree);
            core::ptr::from_mut(table) as u64 | TABLE | VALID
        } else {
            0
        };
    }
}

fn fill(table: &mut [u64; ENTRIES], gib: u64, tree: &Tree) {
    for (entry, block) in table.iter_mut().zip((gib..).step_by(BLOCK as usize)) {
        let here = Run { start: block, size: BLOCK };
        *entry = if !tree.memory.iter().any(|ram| ram.overlaps(here)) {
            block | DEVICE
        } else if image().overlaps(here) {
            block | NORMAL | USER_NEVER_EXECUTES
        } else {
            block | NORMAL | NEVER_EXECUTE
        };
    }
}

/// Turns translation on, on the first CPU.
pub fn enable() {
    // SAFETY: the tables map everything that is used as it is used now, at the same addresses.
    unsafe { super::entry::enable_mmu() };
}

/// A descriptor of a table.
pub const fn table(next: u64) -> u64 {
    next | TABLE | VALID
}

/// A descriptor of a page of RAM, of the last level.
pub const fn page(address: u64) -> u64 {
    address | NORMAL | NEVER_EXECUTE | 1 << 1
}

/// Runs `act` while this CPU translates the upper half of its addresses by the table at `root`. The lower half is the identity as ever.
pub fn with_upper_half<T>(root: u64, act: impl FnOnce() -> T) -> T {
    let before = TCR_EL1.get();
    TTBR1_EL1.set(root);
    TCR_EL1.set(before & !NO_UPPER | UPPER);
    forget();
    let value = act();
    TCR_EL1.set(before);
    forget();
    value
}

/// Has this CPU forget its translations.
fn forget() {
    // SAFETY: what this program uses is in the tables of the lower half, which have not changed.
    unsafe { core::arch::asm!("isb", "tlbi vmalle1", "dsb nsh", "isb", options(nostack, preserves_flags)) };
}
