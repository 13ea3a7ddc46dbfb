//! The table of tolerances between results and the reference tensors.
//!
//! A tolerance is a promise about arithmetic, so each has its reason beside it. No tolerance was fitted to one set of
//! golden tensors: the same table holds for sets made with other seeds and other widths.

/// How far a value may be from the expected one.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Tolerance {
    /// No difference at all: integers, copied bytes, the same computation twice.
    Exact,
    /// At most this absolute difference.
    Absolute(f64),
    /// At most this fraction of the expected tensor's largest absolute value.
    OfLargest(f64),
}

impl Tolerance {
    /// The largest difference allowed when the expected tensor's largest absolute value is
    /// `largest`.
    #[must_use]
    pub fn allowed(self, largest: f64) -> f64 {
        match self {
            Self::Exact => 0.0,
            Self::Absolute(difference) => difference,
            Self::OfLargest(fraction) => fraction * largest,
        }
    }
}

/// Gradients: 2e-4 of the tensor's largest value. A gradient sums thousands of products of both
/// signs; the order of summation alone moves the last digits, and two layers with the same
/// largest value can differ a thousandfold in size, so the bound follows each tensor.
pub const GRADIENT: Tolerance = Tolerance::OfLargest(2e-4);

/// Parameters after five optimizer steps: 1e-4. AdamW divides by the gradient's own size, so a
/// relative error of 2e-4 in a gradient moves a parameter by about 2e-4 of the learning rate 2e-3
/// where the gradient is clear, and by up to a learning rate where it is near zero; 1e-4 leaves
/// room for the second without hiding a wrong bias correction (2e-3 at the first step).
pub const PARAMETER: Tolerance = Tolerance::Absolute(1e-4);

/// Pixels: two of 255 levels, for values in [0, 1]. Rounding to eight bits turns the smallest
/// difference into one level; the decoder adds less than one more.
pub const PIXEL: Tolerance = Tolerance::Absolute(2.0 / 255.0);

/// Pixels as eight-bit levels: two levels, for the same reason.
pub const PIXEL_LEVEL: Tolerance = Tolerance::Absolute(2.0);

/// Noise schedules and sampler steps: 1e-5 of the largest value. They are elementwise float32
/// without sums, and differ in where an implementation rounds (a dozen roundings of 6e-8 each,
/// carried through twenty steps).
pub const SCHEDULE: Tolerance = Tolerance::OfLargest(1e-5);

/// Outputs of models and losses: ten times the reference's own float32 noise. Another summation
/// order gives an error of the same size as the reference's, not the same error; ten covers the
/// tail over tens of thousands of values.
#[must_use]
pub fn output(noise: Option<f64>) -> Tolerance {
    const FLOAT32_STEP: f64 = 1.2e-7;
    Tolerance::Absolute(10.0 * noise.unwrap_or(0.0).max(FLOAT32_STEP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_bound_follows_the_tensors_largest_value() {
        assert!((GRADIENT.allowed(0.5) - 1e-4).abs() < 1e-12);
    }

    #[test]
    fn an_output_without_noise_still_has_a_float32_step() {
        assert!(output(None).allowed(1.0) > 1e-6);
        assert!((output(Some(1e-5)).allowed(100.0) - 1e-4).abs() < 1e-12);
    }
}
