//! The transforms of F(4 × 4, 3 × 3), lane by lane.

/// Side of a tile of results.
pub(crate) const SIDE: usize = 4;
/// Side of the pixels that it looks at.
pub(crate) const SPAN: usize = 6;
/// Places of a transformed tile or kernel.
pub(crate) const PLACES: usize = SPAN * SPAN;
/// Numbers that are transformed at a time.
pub(crate) const LANES: usize = 16;

/// A transform in one dimension, from `I` numbers to `O`.
pub(crate) trait Transform<const I: usize, const O: usize> {
    /// Must be marked `#[inline(always)]`.
    fn column(x: [f32; I]) -> [f32; O];

    /// `M · x · Mᵀ` in every lane.
    #[inline(always)]
    fn square<const L: usize>(x: &[[[f32; L]; I]; I], into: &mut [[[f32; L]; O]; O]) {
        let mut columns = [[[0.0; L]; I]; O];
        for column in 0..I {
            for lane in 0..L {
                let mut numbers = [0.0; I];
                (0..I).for_each(|row| numbers[row] = x[row][column][lane]);
                let sums = Self::column(numbers);
                (0..O).for_each(|row| columns[row][column][lane] = sums[row]);
            }
        }
        for (row, columns) in into.iter_mut().zip(&columns) {
            for lane in 0..L {
                let mut numbers = [0.0; I];
                (0..I).for_each(|column| numbers[column] = columns[column][lane]);
                let sums = Self::column(numbers);
                (0..O).for_each(|column| row[column][lane] = sums[column]);
            }
        }
    }
}

/// The points 0, ±[`NEAR`], ±[`FAR`] and infinity at which products of polynomials are taken. Pairs near `c` and `1 / c`
/// lose least to rounding (Alam and others, "Winograd Convolution for Deep Neural Networks: Efficient Point Selection",
/// 2022): less than half of what the usual ±1 and ±2 lose.
const NEAR: f32 = 0.625;
const FAR: f32 = 1.5;
/// Their squares, exact.
const NEAR_2: f32 = NEAR * NEAR;
const FAR_2: f32 = FAR * FAR;

/// `Bᵀ`, of pixels.
pub(crate) struct OfPixels;

impl Transform<SPAN, SPAN> for OfPixels {
    #[inline(always)]
    fn column([a, b, c, d, e, f]: [f32; SPAN]) -> [f32; SPAN] {
        let (near_even, near_odd) = (e - FAR_2 * c, NEAR * (d - FAR_2 * b));
        let (far_even, far_odd) = (e - NEAR_2 * c, FAR * (d - NEAR_2 * b));
        let at_zero = e - (NEAR_2 + FAR_2) * c + NEAR_2 * FAR_2 * a;
        let at_infinity = f - (NEAR_2 + FAR_2) * d + NEAR_2 * FAR_2 * b;
        [at_zero, near_even + near_odd, near_even - near_odd, far_even + far_odd, far_even - far_odd, at_infinity]
    }
}

/// `G`, of kernels.
pub(crate) struct OfKernels;

impl Transform<3, SPAN> for OfKernels {
    #[inline(always)]
    fn column([a, b, c]: [f32; 3]) -> [f32; SPAN] {
        const NEAR_SCALE: f32 = 1.0 / (2.0 * NEAR_2 * (NEAR_2 - FAR_2));
        const FAR_SCALE: f32 = 1.0 / (2.0 * FAR_2 * (FAR_2 - NEAR_2));
        let (near_even, near_odd) = (NEAR_SCALE * (a + NEAR_2 * c), NEAR_SCALE * NEAR * b);
        let (far_even, far_odd) = (FAR_SCALE * (a + FAR_2 * c), FAR_SCALE * FAR * b);
        let at_zero = a * (1.0 / (NEAR_2 * FAR_2));
        [at_zero, near_even + near_odd, near_even - near_odd, far_even + far_odd, far_even - far_odd, c]
    }
}

/// `Aᵀ`, of sums.
pub(crate) struct OfSums;

impl Transform<SPAN, SIDE> for OfSums {
    #[inline(always)]
    fn column([a, b, c, d, e, f]: [f32; SPAN]) -> [f32; SIDE] {
        let (near_even, near_odd, far_even, far_odd) = (b + c, NEAR * (b - c), d + e, FAR * (d - e));
        [
            a + near_even + far_even,
            near_odd + far_odd,
            NEAR_2 * near_even + FAR_2 * far_even,
            NEAR_2 * near_odd + FAR_2 * far_odd + f,
        ]
    }
}
