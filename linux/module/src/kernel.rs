//! The boundary to `glue.c`: all `unsafe` code of the package is in here.

use core::arch::asm;
use core::panic::PanicInfo;

use host_shim::call::Caller;
use hyp_iommu_uapi::Record;
use spin::RwLock;

use crate::pages::Run;
use crate::service::{self, Kernel, Service};

// SAFETY: `glue.c` defines them so, with these types.
unsafe extern "C" {
    /// Zeroed pages, 2 to the power of `order` of 4 KiB; their physical address, or 0.
    safe fn hyp_iommu_allocate(order: u32) -> u64;
    /// Gives them back.
    fn hyp_iommu_free(start: u64, order: u32);
    /// Reads a word of RAM by its physical address.
    fn hyp_iommu_load(address: u64) -> u64;
    /// Writes one.
    fn hyp_iommu_store(address: u64, value: u64);
    /// Whether a driver is bound to the PCI function with this StreamID on the SMMU at `base`.
    safe fn hyp_iommu_has_driver(base: u64, stream: u64) -> bool;
    /// Ends the task that is running, with a report in the log.
    safe fn hyp_iommu_bug() -> !;
}

/// Linux.
struct Linux;

/// The order of Linux's allocator for so many bytes, a power of two.
const fn order(size: u64) -> u32 {
    (size >> 12).trailing_zeros()
}

impl Caller for Linux {
    fn call_raw(&self, id: u32, arguments: [u64; 4]) -> [u64; 5] {
        let mut x0 = u64::from(id);
        let [mut x1, mut x2, mut x3, mut x4] = arguments;
        // SAFETY: `glue.c` found the hypervisor before anything else was called. SMCCC 1.1 preserves all other registers; memory that the
        // call takes away or wipes is that of the module's pages, to which there is no reference.
        unsafe {
            asm!(
                "hvc #0",
                inout("x0") x0,
                inout("x1") x1,
                inout("x2") x2,
                inout("x3") x3,
                inout("x4") x4,
                options(nostack)
            );
        }
        [x0, x1, x2, x3, x4]
    }
}

impl Kernel for Linux {
    fn allocate(&self, size: u64) -> Option<u64> {
        Some(hyp_iommu_allocate(order(size))).filter(|&start| start != 0)
    }

    fn free(&self, run: Run) {
        // SAFETY: `Service` frees a run that it allocated with this size, once, when no one but the host has it.
        unsafe { hyp_iommu_free(run.start, order(run.size)) }
    }

    fn load(&self, address: u64) -> u64 {
        // SAFETY: `Service` asked whether the word is in a page that it allocated and that the host owns, and serves the request alone.
        unsafe { hyp_iommu_load(address) }
    }

    fn store(&self, address: u64, value: u64) {
        // SAFETY: as in `load`; nothing else of Linux uses the page.
        unsafe { hyp_iommu_store(address, value) }
    }

    fn has_driver(&self, base: u64, stream: u64) -> bool {
        hyp_iommu_has_driver(base, stream)
    }
}

/// Never waited for: `glue.c` has a lock of Linux's around every request, in which a task may sleep.
static SERVICE: RwLock<Service> = RwLock::new(Service::new());

/// Zero, or an error number below zero.
fn answer(result: Result<(), service::Errno>) -> i32 {
    result.err().map_or(0, |errno| -(errno as i32))
}

/// Whether the hypervisor below is the right one. `glue.c` calls it once, after it found one.
#[unsafe(no_mangle)]
extern "C" fn hyp_iommu_probe() -> i32 {
    answer(service::probe(&Linux))
}

/// Whether a request may be served while others of these are: `glue.c` has its lock shared then.
#[unsafe(no_mangle)]
extern "C" fn hyp_iommu_is_served_beside(number: u32) -> bool {
    service::is_served_beside(number)
}

/// Serves a request.
#[unsafe(no_mangle)]
extern "C" fn hyp_iommu_serve(number: u32, record: &mut Record) -> i32 {
    if service::is_served_beside(number) {
        let Some(service) = SERVICE.try_read() else { hyp_iommu_bug() };
        return answer(service.serve_beside(&Linux, number, record));
    }
    let Some(mut service) = SERVICE.try_write() else { hyp_iommu_bug() };
    answer(service.serve(&Linux, number, record))
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    hyp_iommu_bug()
}
