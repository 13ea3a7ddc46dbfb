//! Memory that one thread holds, counted to the byte, with a limit.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// More than this at a time is refused, so that a faulty test ends and the machine stays usable.
const LIMIT_BYTES: i64 = 2 << 30;

thread_local! {
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

/// An allocator that counts what each thread holds, text and flags included. A test binary makes it the global
/// allocator, and then asks [`peak_of`]:
///
/// ```
/// use catelier_testkit::thread_memory::{ThreadAllocator, peak_of};
///
/// #[global_allocator]
/// static ALLOCATOR: ThreadAllocator = ThreadAllocator;
///
/// let (text, peak) = peak_of(|| "a".repeat(1000));
/// assert_eq!((text.len(), peak), (1000, 1000));
/// ```
///
/// Tests that run beside each other do not disturb the figures. Memory that one thread takes and another frees is
/// counted for both, so work that hands memory around is measured with
/// [`CountingAllocator`](crate::allocations::CountingAllocator) instead.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThreadAllocator;

/// Runs `work` and returns its result with the most bytes that this thread held in the meantime, beyond those before.
/// Without a [`ThreadAllocator`] it is 0.
pub fn peak_of<R>(work: impl FnOnce() -> R) -> (R, u64) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    (result, (PEAK.get() - before).unsigned_abs())
}

/// Counts `more` bytes; `false` if that is beyond the limit.
fn grow(more: usize) -> bool {
    let live = LIVE.get().saturating_add_unsigned(more as u64);
    if live > LIMIT_BYTES {
        return false;
    }
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
    true
}

fn shrink(less: usize) {
    LIVE.set(LIVE.get().saturating_sub_unsigned(less as u64));
}

#[expect(unsafe_code, reason = "an allocator hands out raw memory")]
// SAFETY: every call is passed on unchanged to the system's allocator, or refused by a null pointer; counting allocates
// nothing, because the cells are constants without destructors.
unsafe impl GlobalAlloc for ThreadAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !grow(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are the ones that the system's allocator requires.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !grow(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both count at a time: the system may have to copy.
        if !grow(size) {
            return std::ptr::null_mut();
        }
        shrink(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_counts_its_own_bytes_and_stops_at_the_limit() {
        let ((), peak) = peak_of(|| {
            assert!(grow(100));
            shrink(60);
            assert!(grow(50));
            std::thread::spawn(|| assert!(grow(1000))).join().unwrap();
            assert!(!grow(LIMIT_BYTES as usize));
            shrink(90);
        });
        assert_eq!(peak, 100);
    }
}
