//! The library's view of this machine.

use core::alloc::Layout;
use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use buddy_system_allocator::Heap as Buddies;
use hyp::platform::{Heap, Platform};
use hyp::sync::Mutex;
use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::memory::Memory;

use super::cpu;
use super::registers::{self, data_line_bytes, feature, field, read_counter, read_sysreg, write_sysreg};

const PAGE_BYTES: u64 = 0x1000;
/// Above this many pages the whole VMID is invalidated: that costs refills, a loop costs instructions.
const MAX_INVALIDATED_ONE_BY_ONE: u64 = 16;
/// The largest run of the heaps is `4096 << MAX_ORDER` bytes.
const MAX_ORDER: u8 = 19;

/// CNTHCTL_EL2.EVNTEN.
const EVENT_STREAM: u64 = 1 << 2;

/// Nanoseconds in a tick of the counter, times 2^32.
static NS_PER_TICK: AtomicU64 = AtomicU64::new(0);

/// A clock that never goes back, in nanoseconds.
pub fn now_ns() -> u64 {
    let ns = u128::from(read_counter()) * u128::from(NS_PER_TICK.load(Ordering::Relaxed));
    (ns >> 32) as u64
}

/// Looks at what this CPU can do: its counter, its cache lines, its ways to clear memory. The other CPUs go by what the
/// first one has ([`compare_cpu`]). Called once, before anything else here.
pub fn look_at_cpu() {
    let ticks_per_second = read_sysreg!("cntfrq_el0").max(1);
    NS_PER_TICK.store((1_000_000_000 << 32) / ticks_per_second, Ordering::Relaxed);
    LINE_BYTES.store(data_line_bytes(), Ordering::Relaxed);
    ZEROING.store(if has_memory_set() { ZERO_BY_SET } else { zva_block_bytes() }, Ordering::Relaxed);
}

/// Has this CPU woken from WFE about every microsecond: whoever waits for a lock looks again then. Called on each CPU before it takes one.
pub fn start_event_stream() {
    // A transition of bit EVNTI, from 0 to 1, is an event: one in 2^(EVNTI + 1) ticks.
    let microsecond = read_sysreg!("cntfrq_el0") / 1_000_000;
    let bit = microsecond.checked_ilog2().unwrap_or(0).saturating_sub(1).min(15);
    // SAFETY: the host does not run on this CPU yet, and gets what else is in this register before it does.
    unsafe { write_sysreg!("cnthctl_el2", EVENT_STREAM | u64::from(bit) << 4) };
}

/// Whether another CPU can go by what [`look_at_cpu`] has found on the first one. The error says what [`Platform::wipe`] lacks.
pub fn compare_cpu() -> Result<(), &'static str> {
    if data_line_bytes() < LINE_BYTES.load(Ordering::Relaxed) {
        return Err("its data cache lines are shorter than those of the first CPU");
    }
    let can_zero = match ZEROING.load(Ordering::Relaxed) {
        ZERO_BY_STORES => true,
        ZERO_BY_SET => has_memory_set(),
        block_bytes => zva_block_bytes() == block_bytes,
    };
    can_zero.then_some(()).ok_or("it cannot clear memory in the way that the first CPU does")
}

/// ID_AA64ISAR2_EL1.MOPS.
fn has_memory_set() -> bool {
    feature(read_sysreg!("S3_0_C0_C6_2"), 16) != 0
}

/// What DC ZVA clears, in bytes; [`ZERO_BY_STORES`] where it is prohibited.
fn zva_block_bytes() -> u64 {
    let zva = read_sysreg!("dczid_el0");
    if field(zva, 4, 1) == 0 { 4 << feature(zva, 0) } else { ZERO_BY_STORES }
}

/// Reads a 32-bit device register.
///
/// The register is in a range that EL2 has mapped as Device; `address` is a multiple of 4.
#[inline]
pub fn device_read_u32(address: PhysAddr) -> u32 {
    let value: u32;
    // SAFETY: the caller's contract. A load with one destination register and no write-back has a valid syndrome everywhere.
    unsafe { asm!("ldr {:w}, [{}]", out(reg) value, in(reg) address.0, options(nostack, preserves_flags)) };
    value
}

/// Writes a 32-bit device register, as [`device_read_u32`] reads one.
#[inline]
pub fn device_write_u32(address: PhysAddr, value: u32) {
    // SAFETY: the caller's contract, as in `device_read_u32`. Device registers are no memory that Rust knows of.
    unsafe { asm!("str {:w}, [{}]", in(reg) value, in(reg) address.0, options(nostack, preserves_flags)) };
}

/// How memory is filled with zeros: one of the values below, or else the bytes that DC ZVA clears.
static ZEROING: AtomicU64 = AtomicU64::new(ZERO_BY_STORES);
/// DC ZVA is prohibited (DCZID_EL0.DZP).
const ZERO_BY_STORES: u64 = 0;
/// Memory Set instructions (FEAT_MOPS).
const ZERO_BY_SET: u64 = 1;
/// Bytes of the smallest data cache line.
static LINE_BYTES: AtomicU64 = AtomicU64::new(0);

/// This machine.
pub struct Aarch64 {
    boot: Mutex<Buddies<32>>,
    donated: Mutex<Buddies<32>>,
}

impl Aarch64 {
    /// The machine with empty heaps.
    pub const fn new() -> Self {
        Self { boot: Mutex::new(Buddies::empty()), donated: Mutex::new(Buddies::empty()) }
    }

    fn heap(&self, heap: Heap) -> &Mutex<Buddies<32>> {
        match heap {
            Heap::Boot => &self.boot,
            Heap::Donated => &self.donated,
        }
    }

    fn zero(&self, range: PhysRange) {
        let (start, size) = (range.start().0, range.size_bytes());
        // SAFETY (all three): the range is RAM that EL2 has mapped, a multiple of 4 KiB, and by the contract of `wipe` nobody's data.
        match ZEROING.load(Ordering::Relaxed) {
            // SAFETY: see above.
            ZERO_BY_SET => unsafe {
                asm!(
                    ".arch_extension mops",
                    "setp [{at}]!, {left}!, xzr",
                    "setm [{at}]!, {left}!, xzr",
                    "sete [{at}]!, {left}!, xzr",
                    at = inout(reg) start => _,
                    left = inout(reg) size => _,
                    options(nostack),
                );
            },
            // SAFETY: see above.
            ZERO_BY_STORES => unsafe {
                asm!(
                    "2: stp xzr, xzr, [{at}], #16",
                    "cmp {at}, {end}",
                    "b.lo 2b",
                    at = inout(reg) start => _,
                    end = in(reg) start + size,
                    options(nostack),
                );
            },
            // SAFETY: see above. A block of DC ZVA is at most 2 KiB, so it divides the range.
            block_bytes => unsafe {
                asm!(
                    "2: dc zva, {at}",
                    "add {at}, {at}, {block}",
                    "dc zva, {at}",
                    "add {at}, {at}, {block}",
                    "cmp {at}, {end}",
                    "b.lo 2b",
                    at = inout(reg) start => _,
                    end = in(reg) start + size,
                    block = in(reg) block_bytes,
                    options(nostack),
                );
            },
        }
    }

    /// Cleans and invalidates a range, a multiple of 4 KiB, to the point of coherency.
    pub fn clean_and_invalidate(&self, range: PhysRange) {
        let (start, size) = (range.start().0, range.size_bytes());
        // SAFETY: the range is RAM that EL2 has mapped; cleaning changes no contents. Lines are a power of two of at most 256
        // bytes on every CPU there is, so sixteen divide the range.
        unsafe {
            asm!(
                "2:",
                ".rept 16", "dc civac, {at}", "add {at}, {at}, {line}", ".endr",
                "cmp {at}, {end}",
                "b.lo 2b",
                "dsb sy",
                at = inout(reg) start => _,
                end = in(reg) start + size,
                line = in(reg) LINE_BYTES.load(Ordering::Relaxed),
                options(nostack),
            );
        }
    }
}

impl Memory for Aarch64 {
    #[inline]
    fn read_u64(&self, address: PhysAddr) -> u64 {
        // SAFETY: by the trait's contract the address is a multiple of 8 in memory of the hypervisor, which is mapped. It is accessed
        // through this trait only, always as an atomic.
        unsafe { AtomicU64::from_ptr(address.0 as *mut u64) }.load(Ordering::Relaxed)
    }

    #[inline]
    fn write_u64(&self, address: PhysAddr, value: u64) {
        // SAFETY: as in `read_u64`.
        unsafe { AtomicU64::from_ptr(address.0 as *mut u64) }.store(value, Ordering::Relaxed);
    }

    #[inline]
    fn full_barrier(&self) {
        registers::dsb();
    }

    #[inline]
    fn read_acquire_u64(&self, address: PhysAddr) -> u64 {
        // SAFETY: as in `read_u64`.
        unsafe { AtomicU64::from_ptr(address.0 as *mut u64) }.load(Ordering::Acquire)
    }

    #[inline]
    fn write_release_u64(&self, address: PhysAddr, value: u64) {
        // SAFETY: as in `read_u64`.
        unsafe { AtomicU64::from_ptr(address.0 as *mut u64) }.store(value, Ordering::Release);
    }

    #[inline]
    fn read_pair(&self, address: PhysAddr) -> [u64; 2] {
        let (low, high): (u64, u64);
        // SAFETY: as in `read_u64`, for both words. A load of a pair is two single-copy atomic accesses (DDI 0487, B2.2.1).
        unsafe {
            asm!(
                "ldp {}, {}, [{}]", out(reg) low, out(reg) high, in(reg) address.0,
                options(nostack, preserves_flags, readonly)
            );
        }
        [low, high]
    }

    #[inline]
    fn write_pair(&self, address: PhysAddr, [low, high]: [u64; 2]) {
        // SAFETY: as in `read_pair`.
        unsafe {
            asm!("stp {}, {}, [{}]", in(reg) low, in(reg) high, in(reg) address.0, options(nostack, preserves_flags));
        }
    }
}

impl Platform for Aarch64 {
    #[inline]
    fn cpu(&self) -> u16 {
        cpu::number()
    }

    fn cpus(&self) -> u16 {
        cpu::count()
    }

    fn wipe(&self, range: PhysRange) {
        self.zero(range);
        self.clean_and_invalidate(range);
    }

    fn read_host_u64(&self, address: PhysAddr) -> u64 {
        // SAFETY: by the trait's contract the address is a multiple of 8 in RAM, all of which is mapped. The host may write it meanwhile; an
        // atomic access is no data race.
        unsafe { AtomicU64::from_ptr(address.0 as *mut u64) }.load(Ordering::Relaxed)
    }

    fn write_host_u64(&self, address: PhysAddr, value: u64) {
        // SAFETY: as `read_host_u64`; the caller saw to it that the host owns the page, in which nothing of EL2's is.
        unsafe { AtomicU64::from_ptr(address.0 as *mut u64) }.store(value, Ordering::Release);
    }

    fn write_host_u32(&self, address: PhysAddr, value: u32) {
        // SAFETY: as `write_host_u64`, at a multiple of 4.
        unsafe { AtomicU32::from_ptr(address.0 as *mut u32) }.store(value, Ordering::Release);
    }

    #[inline]
    fn read_register_u32(&self, address: PhysAddr) -> u32 {
        device_read_u32(address)
    }

    #[inline]
    fn write_register_u32(&self, address: PhysAddr, value: u32) {
        device_write_u32(address, value);
    }

    #[inline]
    fn read_register_u64(&self, address: PhysAddr) -> u64 {
        let value: u64;
        // SAFETY: as in `device_read_u32`.
        unsafe { asm!("ldr {}, [{}]", out(reg) value, in(reg) address.0, options(nostack, preserves_flags)) };
        value
    }

    #[inline]
    fn write_register_u64(&self, address: PhysAddr, value: u64) {
        // SAFETY: as in `device_write_u32`.
        unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) address.0, options(nostack, preserves_flags)) };
    }

    fn invalidate_host_stage2(&self, range: PhysRange) {
        let first = range.start().0 / PAGE_BYTES;
        let pages = range.last().0 / PAGE_BYTES - first + 1;
        // SAFETY: invalidating TLBs changes no meaning of any mapping. VTTBR_EL2 is the host's on every CPU from its entry on,
        // so the current VMID is the one meant. By IPA first, then what stage 1 was combined with (DDI 0487, D8.17).
        unsafe {
            asm!("dsb ish", options(nostack, preserves_flags));
            if pages <= MAX_INVALIDATED_ONE_BY_ONE {
                for page in first..first + pages {
                    asm!("tlbi ipas2e1is, {}", in(reg) page & 0xf_ffff_ffff, options(nostack, preserves_flags));
                }
                asm!("dsb ish", "tlbi vmalle1is", options(nostack, preserves_flags));
            } else {
                asm!("tlbi vmalls12e1is", options(nostack, preserves_flags));
            }
            asm!("dsb ish", "isb", options(nostack, preserves_flags));
        }
    }

    fn now_ns(&self) -> u64 {
        now_ns()
    }

    fn relax(&self) {
        core::hint::spin_loop();
    }

    fn heap_add(&self, heap: Heap, range: PhysRange) {
        let mut buddies = self.heap(heap).lock();
        // SAFETY: by the trait's contract the range is the hypervisor's and nothing else uses it; all RAM is mapped.
        unsafe { buddies.init(range.start().0 as usize, range.size_bytes() as usize) };
    }

    fn heap_take(&self, heap: Heap, order: u8) -> Option<PhysAddr> {
        let run = self.heap(heap).lock().alloc(layout(order)?).ok()?;
        Some(PhysAddr(run.as_ptr() as u64))
    }

    fn heap_give(&self, heap: Heap, run: PhysAddr, order: u8) {
        if let (Some(layout), Some(run)) = (layout(order), NonNull::new(run.0 as *mut u8)) {
            // SAFETY: by the trait's contract `heap_take` gave the run from this heap, with this order.
            unsafe { self.heap(heap).lock().dealloc(run, layout) };
        }
    }
}

fn layout(order: u8) -> Option<Layout> {
    if order > MAX_ORDER {
        return None;
    }
    let size = (PAGE_BYTES as usize) << order;
    Layout::from_size_align(size, size).ok()
}
