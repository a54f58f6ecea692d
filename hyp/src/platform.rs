//! What the hypervisor asks of the machine it runs on.

use smmuv3::address::{PhysAddr, PhysRange};
use smmuv3::memory::Memory;

/// One of the two heaps that the page pool is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heap {
    /// Memory that was set aside at boot and never goes to the host.
    Boot,
    /// Memory that the host gave and can take back.
    Donated,
}

/// The machine: physical memory, device registers, CPU TLBs, time and page heaps.
///
/// No method can fail or panic on arguments that keep its contract; no method waits for anything that the host or a device controls.
pub trait Platform: Memory + Sync {
    /// The number of this CPU, below [`Platform::cpus`].
    fn cpu(&self) -> u16;

    /// How many CPUs may run at once.
    fn cpus(&self) -> u16;

    /// Fills a range of RAM, a multiple of 4 KiB, with zeros and cleans and invalidates it to the point of
    /// coherency, so that neither a non-cacheable mapping nor a no-snoop DMA reads old contents.
    fn wipe(&self, range: PhysRange);

    /// Reads 64 bits of RAM that the host owns, at a multiple of 8. The host may write them at any time: what was read is used, never read again.
    fn read_host_u64(&self, address: PhysAddr) -> u64;

    /// Writes 64 bits of RAM that the host owns, at a multiple of 8, seen by the host after every store before it.
    fn write_host_u64(&self, address: PhysAddr, value: u64);

    /// Writes 32 bits of RAM that the host owns, at a multiple of 4, as [`Platform::write_host_u64`] does.
    fn write_host_u32(&self, address: PhysAddr, value: u32);

    /// Reads a 32-bit device register.
    fn read_register_u32(&self, address: PhysAddr) -> u32;

    /// Writes a 32-bit device register.
    fn write_register_u32(&self, address: PhysAddr, value: u32);

    /// Reads a 64-bit device register.
    fn read_register_u64(&self, address: PhysAddr) -> u64;

    /// Writes a 64-bit device register.
    fn write_register_u64(&self, address: PhysAddr, value: u64);

    /// Makes every CPU forget translations of the host's stage 2 for this IPA range, of any level, and the
    /// combined stage-1 and stage-2 translations made from them. Stores to the tables before the call are seen by walkers
    /// before; the invalidation is complete on all CPUs on return.
    fn invalidate_host_stage2(&self, range: PhysRange);

    /// A clock that never goes back, in nanoseconds.
    fn now_ns(&self) -> u64;

    /// Called in every loop that waits for hardware.
    fn relax(&self);

    /// Adds a range, a multiple of 4 KiB, to a heap. The hypervisor owns the range and nothing else uses it.
    fn heap_add(&self, heap: Heap, range: PhysRange);

    /// Takes a run of `4096 << order` bytes, aligned to its size and not cleared, from a heap.
    fn heap_take(&self, heap: Heap, order: u8) -> Option<PhysAddr>;

    /// Gives a run back that [`Platform::heap_take`] gave, with the same order.
    fn heap_give(&self, heap: Heap, run: PhysAddr, order: u8);
}

/// Waits until these bits of a 32-bit device register have these values, for `timeout_ns` at most; whether they have.
pub(crate) fn waited_for<P: Platform>(
    p: &P,
    register: PhysAddr,
    bits: u32,
    values: u32,
    timeout_ns: u64,
) -> bool {
    let start = p.now_ns();
    loop {
        // The clock is read first: a CPU that was away between the two reads once more before it gives up.
        let late = p.now_ns().saturating_sub(start) > timeout_ns;
        let is_done = p.read_register_u32(register) & bits == values;
        if is_done || late {
            return is_done;
        }
        p.relax();
    }
}
