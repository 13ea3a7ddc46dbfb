//! A counter of floating-point operations: a measure of work that does not depend on the machine or its load.

use std::sync::atomic::{AtomicU64, Ordering};

static FLOPS: AtomicU64 = AtomicU64::new(0);

/// Floating-point operations in matrix products and convolutions on the CPU since the process started; a multiply-add
/// counts as two, element-wise work as none. The count only grows: take the difference of two readings.
pub fn flops() -> u64 {
    FLOPS.load(Ordering::Relaxed)
}

/// Counts a product of `rows × inner` by `inner × columns`.
pub fn count_product(rows: usize, columns: usize, inner: usize) {
    FLOPS.fetch_add(2 * (rows * columns * inner) as u64, Ordering::Relaxed);
}
