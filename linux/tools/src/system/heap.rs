//! Memory for strings and vectors: a program that ends soon gives nothing back.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of the heap. Linux gives a page of it when it is first touched.
const BYTES: usize = 64 << 20;

#[repr(align(16))]
struct Heap {
    bytes: UnsafeCell<[u8; BYTES]>,
    used: AtomicUsize,
}

// SAFETY: each byte is given out once, by the counter.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap { bytes: UnsafeCell::new([0; BYTES]), used: AtomicUsize::new(0) };

// SAFETY: the ranges that are given out do not overlap, lie in `bytes`, and are aligned as asked: `bytes` is aligned to 16, and more is
// refused.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() > align_of::<Self>() {
            return null_mut();
        }
        let size = layout.size().next_multiple_of(align_of::<Self>());
        let start = self.used.fetch_add(size, Ordering::Relaxed);
        if start.checked_add(size).is_none_or(|end| end > BYTES) {
            return null_mut();
        }
        self.bytes.get().cast::<u8>().wrapping_add(start)
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
