//! The two element types of the kernels, with elementary functions that vectorise.

use candle_core::WithDType;

use super::Simd;

/// f32, in which models run, and f64, in which tests prove gradients.
pub trait Float: WithDType + Default + std::ops::Neg<Output = Self> {
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Minus infinity.
    const NEG_INFINITY: Self;

    /// eˣ. NaN stays NaN; in f32, the result is 0 below the normal range and saturates for x above 88.
    fn exp<S: Simd>(self) -> Self;

    /// Natural logarithm.
    fn ln(self) -> Self;

    /// Distribution function and density of the standard normal distribution, accurate in the tails.
    fn normal<S: Simd>(self) -> (Self, Self);

    /// The slice, if this type is f32; else `None`.
    fn as_f32(values: &[Self]) -> Option<&[f32]>;

    /// The slice, if this type is f32; else `None`.
    fn as_f32_mut(values: &mut [Self]) -> Option<&mut [f32]>;

    /// Converts f32 values to this type: f32 moves them, f64 widens them.
    fn from_f32s(values: Vec<f32>) -> Vec<Self>;

    /// `1 / (1 + e⁻ˣ)`.
    #[inline(always)]
    fn sigmoid<S: Simd>(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp::<S>())
    }
}

const NOT_SINGLE: &str = "only kernels of f32 ask for f32 values";

/// `values` as f32, for kernels that compute only in f32.
pub(crate) fn single<T: Float>(values: &[T]) -> &[f32] {
    let Some(values) = T::as_f32(values) else { unreachable!("{NOT_SINGLE}") };
    values
}

/// [`single`] for a mutable slice.
pub(crate) fn single_mut<T: Float>(values: &mut [T]) -> &mut [f32] {
    let Some(values) = T::as_f32_mut(values) else { unreachable!("{NOT_SINGLE}") };
    values
}

impl Float for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;

    #[inline(always)]
    fn exp<S: Simd>(self) -> Self {
        libm::exp(self)
    }

    #[inline(always)]
    fn ln(self) -> Self {
        libm::log(self)
    }

    #[inline(always)]
    fn normal<S: Simd>(self) -> (Self, Self) {
        let cdf = 0.5 * libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2);
        (cdf, (1.0 / std::f64::consts::TAU.sqrt()) * libm::exp(-0.5 * self * self))
    }

    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }

    fn as_f32_mut(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }

    fn from_f32s(values: Vec<f32>) -> Vec<Self> {
        values.into_iter().map(f64::from).collect()
    }
}

impl Float for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;

    #[inline(always)]
    fn exp<S: Simd>(self) -> Self {
        exp_f32::<S>(self)
    }

    #[inline(always)]
    fn ln(self) -> Self {
        libm::logf(self)
    }

    #[inline(always)]
    fn normal<S: Simd>(self) -> (Self, Self) {
        normal_f32::<S>(self)
    }

    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }

    fn as_f32_mut(values: &mut [Self]) -> Option<&mut [f32]> {
        Some(values)
    }

    fn from_f32s(values: Vec<f32>) -> Vec<Self> {
        values
    }
}

/// `a · b + c`, rounded once where the CPU of `S` has an instruction for it.
#[inline(always)]
fn multiply_add<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::IS_SCALAR { a * b + c } else { a.mul_add(b, c) }
}

/// Evaluates a polynomial; coefficients from the highest power down.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut value = coefficients[0];
    for coefficient in &coefficients[1..] {
        value = multiply_add::<S>(value, x, *coefficient);
    }
    value
}

/// For `x` below this, eˣ is not a normal f32.
const EXP_LOWEST: f32 = -87.3;
const EXP_HIGHEST: f32 = 88.0;
/// ln 2 in two parts; the first has so few bits that its multiples are exact (Cody and Waite).
#[expect(clippy::excessive_precision, reason = "the exact decimal of a number with few bits")]
const LN_2_HIGH: f32 = 0.693_359_375;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// 1.5 · 2²³: adding it rounds a value to an integer and leaves that integer in the low bits.
const ROUNDER: f32 = 12_582_912.0;
/// Coefficients of `(e^r − 1 − r) / r²`.
const EXP_SERIES: [f32; 6] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];

/// `2ⁿ · e^r` with |r| ≤ ln 2 / 2, where a series to the seventh power gives e^r; error below 2 units in the last
/// place.
#[inline(always)]
fn exp_f32<S: Simd>(x: f32) -> f32 {
    // Comparisons, because max and min would replace NaN by a bound.
    let bounded = if x < EXP_LOWEST { EXP_LOWEST } else { x };
    let bounded = if bounded > EXP_HIGHEST { EXP_HIGHEST } else { bounded };
    let shifted = multiply_add::<S>(bounded, std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let r = multiply_add::<S>(n, -LN_2_LOW, multiply_add::<S>(n, -LN_2_HIGH, bounded));
    let fraction = multiply_add::<S>(polynomial::<S, _>(r, EXP_SERIES) * r, r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < EXP_LOWEST { 0.0 } else { fraction * power }
}

/// Factor of `|x|` in `t = 1 / (1 + SLOPE · |x|)`, the variable in which the tail is a polynomial.
const SLOPE: f32 = 0.34;
/// `Φ(−a) · exp(a²/2) / t` as a polynomial in `t`, highest power first: Chebyshev fit on `0 ≤ a ≤ 14.5`, relative
/// error 1.4e-8 before rounding (fitted with mpmath's `chebyfit`).
#[expect(clippy::excessive_precision, reason = "coefficients as they were fitted")]
const TAIL: [f32; 9] = [
    -0.027_575_921,
    0.146_153_3,
    -0.285_946_2,
    0.215_699_9,
    -0.053_222_013,
    0.118_609_69,
    0.114_463_9,
    0.136_201_26,
    0.135_616_07,
];

/// Φ and φ by the tail `exp(−a²/2) · polynomial`, so that both keep their relative accuracy far from 0.
#[inline(always)]
fn normal_f32<S: Simd>(x: f32) -> (f32, f32) {
    let a = x.abs();
    let bell = half_square_exp::<S>(a);
    let t = 1.0 / multiply_add::<S>(SLOPE, a, 1.0);
    let tail = bell * polynomial::<S, _>(t, TAIL) * t;
    let cdf = if x < 0.0 { tail } else { 1.0 - tail };
    (cdf, bell * 0.398_942_3)
}

/// `exp(−a²/2)`. The square is split in two, because rounding it would cost `a²/2` units in the last place.
#[inline(always)]
fn half_square_exp<S: Simd>(a: f32) -> f32 {
    // Beyond 14 the result is 0, and infinity minus infinity below would give NaN.
    let a = if a > 14.0 { 14.0 } else { a };
    let high = f32::from_bits(a.to_bits() & 0xffff_f000);
    let rest = -0.5 * (a - high) * (a + high);
    let small = polynomial::<S, _>(rest, [1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0]);
    exp_f32::<S>(-0.5 * high * high) * small
}

#[cfg(test)]
mod tests {
    /// `Scalar` rounds every product; `Fused` rounds every sum of products, slowly where the CPU has no instruction for
    /// it.
    use pulp::{Scalar, Scalar128b as Fused};

    use super::*;

    fn grid(low: f64, high: f64) -> impl Iterator<Item = f32> {
        (0..=100_000).map(move |i| (low + (high - low) * f64::from(i) / 100_000.0) as f32)
    }

    fn relative(found: f32, expected: f64) -> f64 {
        (f64::from(found) / expected - 1.0).abs()
    }

    #[test]
    fn exponential_is_within_two_units_in_the_last_place() {
        for x in grid(-87.2, 88.0) {
            for found in [exp_f32::<Scalar>(x), exp_f32::<Fused>(x)] {
                let error = relative(found, f64::from(x).exp());
                assert!(error < 2.4e-7, "exp({x}): relative error {error:.1e}");
            }
        }
    }

    #[test]
    fn exponential_keeps_nan_and_vanishes_at_minus_infinity() {
        for exp in [exp_f32::<Scalar>, exp_f32::<Fused>] {
            assert!(exp(f32::NAN).is_nan());
            assert_eq!(exp(f32::NEG_INFINITY), 0.0);
            assert_eq!(exp(-1e4), 0.0);
            assert_eq!(exp(0.0), 1.0);
            assert!(exp(f32::INFINITY) > 1e38);
        }
    }

    #[test]
    fn normal_distribution_keeps_its_relative_accuracy_in_the_tails() {
        for x in grid(-13.0, 13.0) {
            let (expected_cdf, expected_density) = f64::from(x).normal::<Scalar>();
            for (cdf, density) in [normal_f32::<Scalar>(x), normal_f32::<Fused>(x)] {
                let errors = (relative(cdf, expected_cdf), relative(density, expected_density));
                assert!(errors.0 < 1e-6 && errors.1 < 1e-6, "x {x}: relative errors {errors:?}");
            }
        }
    }

    #[test]
    fn normal_distribution_is_sane_at_the_ends() {
        for normal in [normal_f32::<Scalar>, normal_f32::<Fused>] {
            assert_eq!(normal(0.0).0, 0.5);
            assert_eq!(normal(f32::INFINITY), (1.0, 0.0));
            assert_eq!(normal(f32::NEG_INFINITY), (0.0, 0.0));
            assert!(normal(f32::NAN).0.is_nan());
        }
    }
}
