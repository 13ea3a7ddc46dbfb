//! Means and confidence intervals.

use crate::noise::{Noise, Stream};
use crate::{Error, Result};

const RESAMPLES: u64 = 2000;
const TAIL: f64 = 0.025;

/// A mean with a 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Mean of the values.
    pub mean: f64,
    /// Lower end, 2.5 % of the resampled means lie below.
    pub low: f64,
    /// Upper end, 2.5 % of the resampled means lie above.
    pub high: f64,
    /// Number of values.
    pub n: usize,
}

/// Arithmetic mean.
///
/// # Errors
/// [`Error::NoValues`] for an empty list.
pub fn mean(values: &[f64]) -> Result<f64> {
    if values.is_empty() {
        return Err(Error::NoValues { what: "mean" });
    }
    Ok(values.iter().sum::<f64>() / values.len() as f64)
}

/// Harmonic mean of values ≥ 0; 0 if one of them is 0.
///
/// # Errors
/// [`Error::NoValues`] for an empty list, [`Error::Number`] for a value that is negative or NaN.
pub fn harmonic_mean(values: &[f64]) -> Result<f64> {
    if values.is_empty() {
        return Err(Error::NoValues { what: "harmonic mean" });
    }
    if let Some(found) = values.iter().find(|value| value.is_nan() || **value < 0.0) {
        return Err(Error::Number { what: "value of a harmonic mean", expected: "0 or more", found: *found });
    }
    Ok(values.len() as f64 / values.iter().map(|value| 1.0 / value).sum::<f64>())
}

/// The mean, with a percentile bootstrap interval of 2000 resamples; a function of `values` and `seed`.
///
/// # Errors
/// [`Error::NoValues`] for an empty list, [`Error::Number`] for a value that is not finite.
pub fn bootstrap_interval(values: &[f64], seed: u64) -> Result<Interval> {
    let mean = mean(values)?;
    if let Some(found) = values.iter().find(|value| !value.is_finite()) {
        return Err(Error::Number { what: "value of a bootstrap", expected: "a finite number", found: *found });
    }
    let noise = Noise::new(seed);
    let mut means: Vec<f64> = (0..RESAMPLES).map(|index| resampled_mean(values, &noise, index)).collect();
    means.sort_by(f64::total_cmp);
    let (low, high) = (quantile(&means, TAIL), quantile(&means, 1.0 - TAIL));
    Ok(Interval { mean, low, high, n: values.len() })
}

fn resampled_mean(values: &[f64], noise: &Noise, index: u64) -> f64 {
    let positions = noise.uniforms(Stream("bootstrap"), 0, index, values.len());
    let drawn = positions.iter().map(|position| values[(position * values.len() as f64) as usize]);
    drawn.sum::<f64>() / values.len() as f64
}

/// The quantile at `fraction`, by linear interpolation between order statistics.
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let position = fraction * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    below + (above - below) * position.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_agree_with_hand_computed_ones() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]).unwrap(), 3.0);
        assert_eq!(harmonic_mean(&[2.0, 6.0]).unwrap(), 3.0);
        assert_eq!(harmonic_mean(&[2.0, 0.0]).unwrap(), 0.0);
    }

    #[test]
    fn impossible_statistics_are_refused() {
        assert!(matches!(mean(&[]), Err(Error::NoValues { .. })));
        assert!(matches!(harmonic_mean(&[]), Err(Error::NoValues { .. })));
        assert!(matches!(bootstrap_interval(&[], 1), Err(Error::NoValues { .. })));
        assert!(matches!(harmonic_mean(&[1.0, -1.0]), Err(Error::Number { .. })));
        assert!(matches!(harmonic_mean(&[f64::NAN]), Err(Error::Number { .. })));
        assert!(matches!(bootstrap_interval(&[f64::INFINITY], 1), Err(Error::Number { .. })));
    }

    #[test]
    fn the_interval_of_many_normals_has_the_width_of_theory() {
        let values: Vec<f64> = Noise::new(3).normals(Stream("test"), 0, 0, 400).into_iter().map(f64::from).collect();
        let Interval { mean, low, high, n } = bootstrap_interval(&values, 9).unwrap();
        let spread = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 400.0;
        let expected = 2.0 * 1.96 * (spread / 400.0).sqrt();
        assert_eq!(n, 400);
        assert!(low < mean && mean < high);
        assert!(((high - low) / expected - 1.0).abs() < 0.1, "width {} expected {expected}", high - low);
    }

    #[test]
    fn the_interval_is_a_function_of_values_and_seed() {
        let values: Vec<f64> = (0..30).map(|i| f64::from(i * i % 17)).collect();
        assert_eq!(bootstrap_interval(&values, 4).unwrap(), bootstrap_interval(&values, 4).unwrap());
        assert_ne!(bootstrap_interval(&values, 4).unwrap(), bootstrap_interval(&values, 5).unwrap());
        let one = bootstrap_interval(&[0.25], 0).unwrap();
        assert_eq!((one.low, one.mean, one.high), (0.25, 0.25, 0.25));
    }
}
