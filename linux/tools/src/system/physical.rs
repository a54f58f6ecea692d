//! Physical memory that Linux does not use, by `/dev/mem`, with accesses that may be refused.
//!
//! The hypervisor answers an access that is refused with a synchronous external abort, and Linux makes a SIGBUS of that.

use core::arch::{asm, global_asm};
use core::fmt;

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use dtoolkit::fdt::Fdt;
use host_shim::host::Abort;
use host_shim::tree;
use spin::Once;

use super::calls::{Number, call};
use super::file::{Access, File};
use super::memory::{PAGE_BYTES, Registers, now_ns};
use super::{process, start};
use crate::device::Errno;
use crate::fuzz::{Layout, System};

/// The most bytes of a device tree.
const MAX_TREE_BYTES: usize = 2 << 20;

// Each makes its access with its first instruction, and answers the value, and whether it was refused: `on_bus_error` returns for it then.
global_asm!(
    ".balign 4",
    "load_8: ldrb w0, [x0]",
    "mov x1, #0",
    "ret",
    "load_16: ldrh w0, [x0]",
    "mov x1, #0",
    "ret",
    "load_32: ldr w0, [x0]",
    "mov x1, #0",
    "ret",
    "load_64: ldr x0, [x0]",
    "mov x1, #0",
    "ret",
    "store_8: strb w1, [x0]",
    "mov x1, #0",
    "ret",
    "store_16: strh w1, [x0]",
    "mov x1, #0",
    "ret",
    "store_32: str w1, [x0]",
    "mov x1, #0",
    "ret",
    "store_64: str x1, [x0]",
    "mov x1, #0",
    "ret",
);

#[repr(C)]
struct Answer {
    value: u64,
    refused: u64,
}

unsafe extern "C" {
    fn load_8(address: u64) -> Answer;
    fn load_16(address: u64) -> Answer;
    fn load_32(address: u64) -> Answer;
    fn load_64(address: u64) -> Answer;
    fn store_8(address: u64, value: u64) -> Answer;
    fn store_16(address: u64, value: u64) -> Answer;
    fn store_32(address: u64, value: u64) -> Answer;
    fn store_64(address: u64, value: u64) -> Answer;
}

/// SIGBUS, with its context (SA_SIGINFO).
const BUS_ERROR: u64 = 7;
const WITH_CONTEXT: u64 = 4;

/// `struct sigaction` of the system call.
#[repr(C)]
struct Action {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

/// `struct ucontext` (arch/arm64/include/uapi/asm/ucontext.h and sigcontext.h), as far as it is used here.
#[repr(C)]
struct Context {
    before: [u64; 23],
    x: [u64; 31],
    sp: u64,
    pc: u64,
}

/// Whether an instruction is the access of one of the functions above.
fn is_access(pc: u64) -> bool {
    let loads = [load_8, load_16, load_32, load_64].map(|load| load as *const ());
    let stores = [store_8, store_16, store_32, store_64].map(|store| store as *const ());
    loads.into_iter().chain(stores).any(|access| access as u64 == pc)
}

/// Has the function that made the access return that it was refused. Any other bus error comes again, and ends the program.
extern "C" fn on_bus_error(_: i32, _: u64, context: &mut Context) {
    if is_access(context.pc) {
        context.x[1] = 1;
        context.pc = context.x[30];
    } else {
        let _ = set_handler(0);
    }
}

/// The handler of SIGBUS; 0 for Linux's own, which ends the program.
fn set_handler(handler: u64) -> Result<(), Errno> {
    let action = Action { handler, flags: WITH_CONTEXT, restorer: 0, mask: 0 };
    // SAFETY: the call reads one structure. The handler takes what Linux gives it, and changes nothing but where the program goes on, to where the
    // interrupted function would have returned.
    unsafe {
        call(Number::RtSigaction, [BUS_ERROR, (&raw const action) as u64, 0, size_of::<u64>() as u64, 0, 0])
    }
    .map(drop)
}

/// This machine, for an attack.
pub struct Machine {
    /// Pages by their physical address.
    pages: Once<Vec<(u64, Registers)>>,
    cpus: Vec<usize>,
}

impl Machine {
    /// Without pages.
    ///
    /// # Errors
    ///
    /// SIGBUS cannot be handled.
    pub fn new() -> Result<Self, String> {
        let refused = |Errno(number): Errno| format!("SIGBUS cannot be handled: Linux's error {number}");
        set_handler(on_bus_error as *const () as u64).map_err(refused)?;
        Ok(Self { pages: Once::new(), cpus: process::cpus() })
    }

    /// Where an address is mapped.
    fn find(&self, address: u64) -> Result<u64, Abort> {
        let page = address & !(PAGE_BYTES - 1);
        let found = self.pages.get().and_then(|pages| pages.iter().find(|(start, _)| *start == page));
        found.map(|(_, mapped)| mapped.address() + address % PAGE_BYTES).ok_or(Abort)
    }
}

/// An access between barriers, so that memory and registers of devices keep program order.
fn ordered(access: impl FnOnce() -> Answer) -> Result<u64, Abort> {
    // SAFETY: barriers have no other effect than order.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
    let Answer { value, refused } = access();
    // SAFETY: as above.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
    if refused == 0 { Ok(value) } else { Err(Abort) }
}

impl System for Machine {
    fn load(&self, address: u64, bytes: u8) -> Result<u64, Abort> {
        let at = self.find(address)?;
        // SAFETY: the address is in a page that is mapped, of a device or of memory that Linux does not use, and a refusal comes back as the
        // answer.
        ordered(|| unsafe {
            match bytes {
                1 => load_8(at),
                2 => load_16(at),
                4 => load_32(at),
                _ => load_64(at),
            }
        })
    }

    fn store(&self, address: u64, bytes: u8, value: u64) -> Result<(), Abort> {
        let at = self.find(address)?;
        // SAFETY: as in `load`.
        let stored = ordered(|| unsafe {
            match bytes {
                1 => store_8(at, value),
                2 => store_16(at, value),
                4 => store_32(at, value),
                _ => store_64(at, value),
            }
        });
        stored.map(drop)
    }

    fn map(&self, pages: &[u64]) -> Result<usize, String> {
        let memory = File::open("/dev/mem", Access::ReadWrite)?;
        let map = |&page: &u64| Some((page, Registers::new(&memory, page).ok()?));
        Ok(self.pages.call_once(|| pages.iter().filter_map(map).collect()).len())
    }

    fn now_ns(&self) -> u64 {
        now_ns()
    }

    fn cpus(&self) -> u64 {
        self.cpus.len() as u64
    }

    fn share<T: Sync + 'static>(&self, value: T) -> Result<&'static T, String> {
        process::share(value)
    }

    fn on_each_cpu(&self, count: u64, job: &(dyn Fn(u64) + Sync)) -> Result<(), String> {
        let chosen: Vec<usize> = self.cpus.iter().cycle().copied().take(count as usize).collect();
        process::on_each(&chosen, job)
    }

    fn say(&self, line: fmt::Arguments<'_>) {
        start::say(&format!("{line}\n"));
    }
}

/// The machine's memory, as the device tree has it that Linux was given.
///
/// # Errors
///
/// It cannot be read.
pub fn layout() -> Result<Layout, String> {
    const PATH: &str = "/sys/firmware/fdt";
    let file = File::open(PATH, Access::Read)?;
    let mut bytes = vec![0; MAX_TREE_BYTES];
    let failed = |Errno(number): Errno| format!("{PATH} cannot be read: Linux's error {number}");
    let mut length = 0;
    // A read of such a file ends with a page.
    loop {
        match file.read_part(length as u64, &mut bytes[length..]).map_err(failed)? {
            0 => break,
            more => length += more,
        }
    }
    let tree = Fdt::new(&bytes[..length]).map_err(|error| format!("{PATH} is malformed: {error}"))?;
    let tree = tree::read(&tree);
    Ok(Layout { memory: tree.memory.iter().collect(), kept: tree.reserved.iter().collect() })
}
