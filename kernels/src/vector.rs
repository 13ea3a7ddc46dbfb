//! Loops over slices: vectorised for this CPU, and cut into fixed blocks for threads.

use std::marker::PhantomData;

pub use pulp::Simd;
use rayon::prelude::*;

use super::Float;

/// Elements that one task of an element-wise loop processes.
const CHUNK: usize = 16 * 1024;
/// Independent lanes of a sum. The number does not depend on the CPU's registers, so neither do the bits of a sum.
const LANES: usize = 16;
/// Elements added in the element type before their sum is added to an f64 total.
const BLOCK: usize = 1024;

/// A loop over slices, as a type: the compiler may leave a function or closure argument out of line, where it runs with
/// the narrowest instructions.
pub trait Loop<A> {
    /// The result of the loop.
    type Output;

    /// Runs the loop with the instructions of `simd`. It and all that it calls must be marked `#[inline(always)]`.
    fn run<S: Simd>(simd: S, arguments: A) -> Self::Output;
}

/// Runs the loop `L`, compiled for the widest vector instructions of this CPU.
#[inline(always)]
pub fn vectorized<L: Loop<A>, A>(arguments: A) -> L::Output {
    pulp::Arch::new().dispatch(Call::<L, A> { arguments, body: PhantomData })
}

struct Call<L, A> {
    arguments: A,
    body: PhantomData<L>,
}

impl<A, L: Loop<A>> pulp::WithSimd for Call<L, A> {
    type Output = L::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> L::Output {
        L::run(simd, self.arguments)
    }
}

/// A new matrix of `rows` rows of `width` elements. `f(first row, rows)` fills it in blocks of about 16384 elements, in
/// parallel. An element-wise loop uses rows of width 1.
pub fn map_rows<T: Float>(rows: usize, width: usize, f: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let mut y = vec![T::ZERO; rows * width];
    if y.is_empty() {
        return y;
    }
    let per_piece = (CHUNK / width).max(1);
    y.par_chunks_mut(per_piece * width).enumerate().for_each(|(piece, y)| f(piece * per_piece, y));
    y
}

/// `Σ term(xᵢ)` in f64, in a fixed order.
#[inline(always)]
pub fn sum<T: Float>(x: &[T], term: impl Fn(T) -> T) -> f64 {
    sum_of_products(x, x, |x, _| term(x))
}

/// `Σ term(xᵢ, yᵢ)` in f64, in a fixed order.
#[inline(always)]
pub fn sum_of_products<T: Float>(x: &[T], y: &[T], term: impl Fn(T, T) -> T) -> f64 {
    // A `for` loop, because the functions behind an iterator's `sum` may stay out of line, like closures.
    let mut total = 0.0;
    for (x, y) in x.chunks(BLOCK).zip(y.chunks(BLOCK)) {
        total += block_sum(x, y, &term);
    }
    total
}

/// Replaces every `x` by `value(x)`; returns the sum of the new values in f64, in a fixed order.
#[inline(always)]
pub fn replace_and_sum<T: Float>(x: &mut [T], value: impl Fn(T) -> T) -> f64 {
    let mut total = 0.0;
    for block in x.chunks_mut(BLOCK) {
        let mut lanes = [T::ZERO; LANES];
        let (whole, rest) = block.as_chunks_mut::<LANES>();
        for x in whole {
            for lane in 0..LANES {
                x[lane] = value(x[lane]);
                lanes[lane] += x[lane];
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *x = value(*x);
            *lane += *x;
        }
        total += across(lanes);
    }
    total
}

/// The largest element that is not NaN; minus infinity if there is none.
#[inline(always)]
pub fn largest<T: Float>(x: &[T]) -> T {
    let mut lanes = [T::NEG_INFINITY; LANES];
    let (x, rest) = x.as_chunks::<LANES>();
    for x in x {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], x[lane]);
        }
    }
    let mut peak = T::NEG_INFINITY;
    for x in lanes.iter().chain(rest) {
        peak = larger(peak, *x);
    }
    peak
}

#[inline(always)]
fn larger<T: Float>(a: T, b: T) -> T {
    if b > a { b } else { a }
}

#[inline(always)]
fn block_sum<T: Float>(x: &[T], y: &[T], term: impl Fn(T, T) -> T) -> f64 {
    let mut lanes = [T::ZERO; LANES];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in x.iter().zip(y) {
        for lane in 0..LANES {
            lanes[lane] += term(x[lane], y[lane]);
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *lane += term(*x, *y);
    }
    across(lanes)
}

#[inline(always)]
fn across<T: Float>(lanes: [T; LANES]) -> f64 {
    let mut total = 0.0;
    for lane in lanes {
        total += lane.to_f64();
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_reach_every_element_once() {
        for n in [0, 1, 15, 16, 17, 1023, 1024, 1025, 5000] {
            let x: Vec<f64> = (0..n).map(f64::from).collect();
            let expected = f64::from(n) * (f64::from(n) - 1.0) / 2.0;
            assert_eq!(sum(&x, |x| x), expected, "{n} elements");
            assert_eq!(sum_of_products(&x, &x, |x, y| x + y), 2.0 * expected, "{n} elements");
        }
    }

    #[test]
    fn the_largest_is_found_wherever_it_stands() {
        for n in [1, 16, 17, 40] {
            for at in 0..n {
                let x: Vec<f32> = (0..n).map(|i| if i == at { -1.0 } else { -2.0 - i as f32 }).collect();
                assert_eq!(largest(&x), -1.0);
            }
        }
        assert_eq!(largest(&[f32::NAN, 3.0]), 3.0);
        assert_eq!(largest::<f32>(&[]), f32::NEG_INFINITY);
    }

    #[test]
    fn rows_are_cut_where_rows_end() {
        let y: Vec<f32> = map_rows(5000, 7, |first, y| {
            for (row, y) in y.chunks_exact_mut(7).enumerate() {
                y.fill((first + row) as f32);
            }
        });
        assert!(y.chunks_exact(7).enumerate().all(|(row, y)| y.iter().all(|y| *y == row as f32)));
        assert!(map_rows::<f32>(0, 7, |_, _| ()).is_empty() && map_rows::<f32>(7, 0, |_, _| ()).is_empty());
    }
}
