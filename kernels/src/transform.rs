//! The transforms of Winograd's F(4 × 4, 3 × 3), lane by lane.

use std::mem::MaybeUninit;
use std::ops::{Add, Sub};

use super::Simd;

/// Side of a tile of results.
pub(crate) const SIDE: usize = 4;
/// Side of a tile's input pixels.
pub(crate) const SPAN: usize = 6;
/// Places of a transformed tile or kernel.
pub(crate) const PLACES: usize = SPAN * SPAN;
/// Elements transformed at a time.
pub(crate) const LANES: usize = 16;

/// One vector register of `S`.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<S: Simd> {
    simd: S,
    register: S::f32s,
}

impl<S: Simd> Lanes<S> {
    /// Elements of a register; it divides [`LANES`].
    pub(crate) const COUNT: usize = S::F32_LANES;

    /// A register of zeros.
    #[inline(always)]
    pub(crate) fn zeros(simd: S) -> Self {
        Self { simd, register: simd.splat_f32s(0.0) }
    }

    /// Loads the first elements of `from`; lanes beyond its end are 0.
    #[inline(always)]
    pub(crate) fn load(simd: S, from: &[f32]) -> Self {
        Self { simd, register: simd.partial_load_f32s(from) }
    }

    /// Loads the first elements of `from`, which must fill a register; this needs no mask.
    #[inline(always)]
    pub(crate) fn load_whole(simd: S, from: &[f32]) -> Self {
        Self { simd, register: S::as_simd_f32s(from).0[0] }
    }

    /// Writes all lanes to the beginning of `into`.
    #[inline(always)]
    pub(crate) fn store(self, into: &mut [f32]) {
        S::as_mut_simd_f32s(into).0[0] = self.register;
    }

    /// [`store`](Self::store) to uninitialised memory.
    #[inline(always)]
    pub(crate) fn store_new(self, into: &mut [MaybeUninit<f32>]) {
        S::as_uninit_mut_simd_f32s(into).0[0].write(self.register);
    }

    /// `self · factor`.
    #[inline(always)]
    fn times(self, factor: f32) -> Self {
        Self { register: self.simd.mul_f32s(self.register, self.simd.splat_f32s(factor)), ..self }
    }

    /// `self + factor · more`.
    #[inline(always)]
    fn plus(self, factor: f32, more: Self) -> Self {
        let factor = self.simd.splat_f32s(factor);
        Self { register: self.simd.mul_add_e_f32s(factor, more.register, self.register), ..self }
    }
}

impl<S: Simd> Add for Lanes<S> {
    type Output = Self;

    #[inline(always)]
    fn add(self, more: Self) -> Self {
        Self { register: self.simd.add_f32s(self.register, more.register), ..self }
    }
}

impl<S: Simd> Sub for Lanes<S> {
    type Output = Self;

    #[inline(always)]
    fn sub(self, less: Self) -> Self {
        Self { register: self.simd.sub_f32s(self.register, less.register), ..self }
    }
}

/// A transform in one dimension, from `I` registers to `O`.
pub(crate) trait Transform<const I: usize, const O: usize> {
    /// Transforms one column. Implementations must be marked `#[inline(always)]`.
    fn column<S: Simd>(x: [Lanes<S>; I]) -> [Lanes<S>; O];

    /// `M · x · Mᵀ`; the closures load and store the register at a row and a column, and must be marked
    /// `#[inline(always)]`.
    #[inline(always)]
    fn square<S: Simd>(
        simd: S,
        load: impl Fn(usize, usize) -> Lanes<S>,
        mut store: impl FnMut(usize, usize, Lanes<S>),
    ) {
        // The columns first, then the rows of the transformed columns.
        let mut columns = [[Lanes::zeros(simd); I]; O];
        let mut inputs = [Lanes::zeros(simd); I];
        for column in 0..I {
            for (row, input) in inputs.iter_mut().enumerate() {
                *input = load(row, column);
            }
            for (sum, columns) in Self::column(inputs).into_iter().zip(&mut columns) {
                columns[column] = sum;
            }
        }
        for (row, columns) in columns.into_iter().enumerate() {
            for (column, sum) in Self::column(columns).into_iter().enumerate() {
                store(row, column, sum);
            }
        }
    }

    /// Applies [`square`](Self::square) to every lane of arrays.
    #[inline(always)]
    fn squares<S: Simd>(simd: S, x: &[[[f32; LANES]; I]; I], into: &mut [[[f32; LANES]; O]; O]) {
        for first in (0..LANES).step_by(Lanes::<S>::COUNT) {
            Self::square(
                simd,
                #[inline(always)]
                |row, column| Lanes::load_whole(simd, &x[row][column][first..]),
                #[inline(always)]
                |row, column, lanes| lanes.store(&mut into[row][column][first..]),
            );
        }
    }
}

/// The points 0, ±[`NEAR`], ±[`FAR`] and infinity at which polynomials are multiplied. Pairs near `c` and `1 / c` have
/// the smallest rounding errors (Alam and others, "Winograd Convolution for Deep Neural Networks: Efficient Point
/// Selection", 2022): less than half of those of the usual ±1 and ±2.
const NEAR: f32 = 0.625;
const FAR: f32 = 1.5;
/// The squares of the points, exact in f32.
const NEAR_2: f32 = NEAR * NEAR;
const FAR_2: f32 = FAR * FAR;

/// `Bᵀ`, for pixels.
pub(crate) struct OfPixels;

impl Transform<SPAN, SPAN> for OfPixels {
    #[inline(always)]
    fn column<S: Simd>([a, b, c, d, e, f]: [Lanes<S>; SPAN]) -> [Lanes<S>; SPAN] {
        let (near_even, near_odd) = (e.plus(-FAR_2, c), d.plus(-FAR_2, b));
        let (far_even, far_odd) = (e.plus(-NEAR_2, c), d.plus(-NEAR_2, b));
        let at_zero = e.plus(-NEAR_2 - FAR_2, c).plus(NEAR_2 * FAR_2, a);
        let at_infinity = f.plus(-NEAR_2 - FAR_2, d).plus(NEAR_2 * FAR_2, b);
        [
            at_zero,
            near_even.plus(NEAR, near_odd),
            near_even.plus(-NEAR, near_odd),
            far_even.plus(FAR, far_odd),
            far_even.plus(-FAR, far_odd),
            at_infinity,
        ]
    }
}

/// `G`, for kernels.
pub(crate) struct OfKernels;

impl Transform<3, SPAN> for OfKernels {
    #[inline(always)]
    fn column<S: Simd>([a, b, c]: [Lanes<S>; 3]) -> [Lanes<S>; SPAN] {
        const NEAR_SCALE: f32 = 1.0 / (2.0 * NEAR_2 * (NEAR_2 - FAR_2));
        const FAR_SCALE: f32 = 1.0 / (2.0 * FAR_2 * (FAR_2 - NEAR_2));
        // Scaled at the end: the powers of the points are exact, so that equal terms cancel exactly.
        let (near, far) = (a.plus(NEAR_2, c), a.plus(FAR_2, c));
        [
            a.times(1.0 / (NEAR_2 * FAR_2)),
            near.plus(NEAR, b).times(NEAR_SCALE),
            near.plus(-NEAR, b).times(NEAR_SCALE),
            far.plus(FAR, b).times(FAR_SCALE),
            far.plus(-FAR, b).times(FAR_SCALE),
            c,
        ]
    }
}

/// `Aᵀ`, for sums.
pub(crate) struct OfSums;

impl Transform<SPAN, SIDE> for OfSums {
    #[inline(always)]
    fn column<S: Simd>([a, b, c, d, e, f]: [Lanes<S>; SPAN]) -> [Lanes<S>; SIDE] {
        let (near_even, near_odd, far_even, far_odd) = (b + c, b - c, d + e, d - e);
        [
            a + near_even + far_even,
            near_odd.times(NEAR).plus(FAR, far_odd),
            near_even.times(NEAR_2).plus(FAR_2, far_even),
            f.plus(NEAR_2 * NEAR, near_odd).plus(FAR_2 * FAR, far_odd),
        ]
    }
}
