//! Allocations of a piece of work, counted independently of the machine's load.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A counting wrapper of the system's allocator. A test binary makes it the global allocator:
///
/// ```
/// use catelier_testkit::allocations::CountingAllocator;
///
/// #[global_allocator]
/// static ALLOCATOR: CountingAllocator = CountingAllocator::new();
///
/// let (numbers, allocated) = ALLOCATOR.measure(|| vec![0f32; 1000]);
/// assert_eq!((allocated.count, allocated.peak_bytes), (1, 4000));
/// # assert_eq!(numbers.len(), 1000);
/// ```
///
/// Two things are not counted, so that the figures are the same on every machine. The `gemm` crate packs operands into
/// memory aligned to more than 64 bytes, and the size depends on registers and caches. The bytes of flags and text are
/// left out too, among them the crate's list of packed operands. Bounds on memory are about everything:
/// [`Allocated::peak_of_all_bytes`] leaves nothing out.
#[derive(Debug)]
pub struct CountingAllocator {
    count: AtomicU64,
    live: AtomicU64,
    peak: AtomicU64,
    live_of_all: AtomicU64,
    peak_of_all: AtomicU64,
    alone: Mutex<()>,
}

/// Our tensors are aligned to at most this many bytes, the size of a vector register.
const SCRATCH_ALIGNMENT: usize = 64;

/// Allocations of a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocated {
    /// Allocations and reallocations.
    pub count: u64,
    /// Peak bytes of elements held at the same time, beyond those held before.
    pub peak_bytes: u64,
    /// Bytes of elements that are still held, beyond those held before; 0 if there are fewer.
    pub held_bytes: u64,
    /// Peak bytes of everything held at the same time, beyond what was held before.
    pub peak_of_all_bytes: u64,
}

impl CountingAllocator {
    /// An allocator that has counted nothing.
    #[must_use]
    pub const fn new() -> Self {
        let [count, live, peak, live_of_all, peak_of_all] = [const { AtomicU64::new(0) }; 5];
        Self { count, live, peak, live_of_all, peak_of_all, alone: Mutex::new(()) }
    }

    /// Waits until no other test function of this process holds the guard, so that its allocations are not counted here.
    pub fn alone(&self) -> MutexGuard<'_, ()> {
        self.alone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` and returns its result with the allocations of all threads in the meantime.
    pub fn measure<R>(&self, work: impl FnOnce() -> R) -> (R, Allocated) {
        let (count, live) = (self.count.load(Relaxed), self.live.load(Relaxed));
        let live_of_all = self.live_of_all.load(Relaxed);
        self.peak.store(live, Relaxed);
        self.peak_of_all.store(live_of_all, Relaxed);
        let result = work();
        let (count, peak_bytes) = (self.count.load(Relaxed) - count, self.peak.load(Relaxed) - live);
        let held_bytes = self.live.load(Relaxed).saturating_sub(live);
        let peak_of_all_bytes = self.peak_of_all.load(Relaxed) - live_of_all;
        (result, Allocated { count, peak_bytes, held_bytes, peak_of_all_bytes })
    }

    fn grow(&self, layout: Layout) {
        self.count.fetch_add(u64::from(layout.align() <= SCRATCH_ALIGNMENT), Relaxed);
        let bytes = counted_bytes(layout);
        let live = self.live.fetch_add(bytes, Relaxed) + bytes;
        self.peak.fetch_max(live, Relaxed);
        let bytes = layout.size() as u64;
        let live_of_all = self.live_of_all.fetch_add(bytes, Relaxed) + bytes;
        self.peak_of_all.fetch_max(live_of_all, Relaxed);
    }

    fn shrink(&self, layout: Layout) {
        self.live.fetch_sub(counted_bytes(layout), Relaxed);
        self.live_of_all.fetch_sub(layout.size() as u64, Relaxed);
    }
}

fn counted_bytes(layout: Layout) -> u64 {
    if (2..=SCRATCH_ALIGNMENT).contains(&layout.align()) { layout.size() as u64 } else { 0 }
}

impl Default for CountingAllocator {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(unsafe_code, reason = "an allocator hands out raw memory")]
// SAFETY: every call is passed on unchanged to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.grow(layout);
        // SAFETY: the caller's promises are the ones that the system's allocator requires.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.grow(layout);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.shrink(layout);
        // SAFETY: the caller promised a size that is valid with this alignment.
        self.grow(unsafe { Layout::from_size_align_unchecked(size, layout.align()) });
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        self.shrink(layout);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_what_was_held_at_a_time_and_neither_scratch_nor_text_counts() {
        let [numbers, scratch, text] =
            [(100, 4), (4096, 128), (50, 1)].map(|(size, align)| Layout::from_size_align(size, align).unwrap());
        let allocator = CountingAllocator::new();
        allocator.grow(numbers);
        let ((), allocated) = allocator.measure(|| {
            allocator.grow(numbers);
            allocator.grow(scratch);
            allocator.grow(text);
            allocator.shrink(numbers);
            allocator.grow(numbers);
            allocator.shrink(scratch);
        });
        let peak_of_all_bytes = 100 + 4096 + 50 + 100 - 100;
        assert_eq!(allocated, Allocated { count: 3, peak_bytes: 100, held_bytes: 100, peak_of_all_bytes });
    }
}
