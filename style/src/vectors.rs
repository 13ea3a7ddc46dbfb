//! Plain vectors: products, directions and the nearest of many.

use catelier_features::Feature;

use crate::error::{Error, Result};

/// Sums that run side by side, so that a product of long vectors uses wide instructions.
const LANES: usize = 8;

/// The product of two vectors of one length; its order of additions is fixed.
pub(crate) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (left, right) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest: f32 = left.remainder().iter().zip(right.remainder()).map(|(left, right)| left * right).sum();
    for (left, right) in left.zip(right) {
        for lane in 0..LANES {
            sums[lane] += left[lane] * right[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// The length of a vector, computed in f64.
pub(crate) fn norm(vector: &[f32]) -> f64 {
    vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

/// The vector at length 1.
///
/// # Errors
/// [`Error::NoDirection`] for zero, and for values that are not finite.
pub(crate) fn unit(vector: &[f32], what: &str) -> Result<Feature> {
    let length = norm(vector);
    if !length.is_finite() || length < 1e-12 {
        return Err(Error::NoDirection { what: what.to_owned() });
    }
    Ok(vector.iter().map(|value| (f64::from(*value) / length) as f32).collect())
}

/// The mean of vectors of one length; empty for none.
pub(crate) fn mean<'v>(vectors: impl IntoIterator<Item = &'v [f32]>) -> Vec<f32> {
    let (mut sum, mut count) = (Vec::<f64>::new(), 0usize);
    for vector in vectors {
        sum.resize(vector.len(), 0.0);
        sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += f64::from(*value));
        count += 1;
    }
    sum.into_iter().map(|sum| (sum / count as f64) as f32).collect()
}

/// The mean of the `k` largest values, or of all if there are fewer; 0 for none. The order of `values` is lost.
pub(crate) fn mean_of_largest(values: &mut [f32], k: usize) -> f32 {
    if k == 0 || values.is_empty() {
        return 0.0;
    }
    let k = k.min(values.len());
    values.select_nth_unstable_by(k - 1, |left, right| right.total_cmp(left));
    let largest = &mut values[..k];
    // Added up in one order, whatever the selection did.
    largest.sort_by(|left, right| right.total_cmp(left));
    largest.iter().sum::<f32>() / k as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_agrees_with_its_definition_at_every_length() {
        for length in [0, 1, 7, 8, 9, 64, 67] {
            let left: Vec<f32> = (0..length).map(|index| (index % 5) as f32 - 2.0).collect();
            let right: Vec<f32> = (0..length).map(|index| (index % 7) as f32 - 3.0).collect();
            let expected: f32 = left.iter().zip(&right).map(|(left, right)| left * right).sum();
            assert_eq!(dot(&left, &right), expected, "{length}");
        }
    }

    #[test]
    fn what_points_nowhere_is_refused_by_name() {
        for vector in [vec![0.0, 0.0], vec![f32::NAN, 1.0], vec![f32::INFINITY, 1.0]] {
            let error = unit(&vector, "`ada`").unwrap_err();
            assert!(error.to_string().contains("`ada`"), "{error}");
        }
        let far = unit(&[3e38, 3e38], "a work").unwrap();
        assert!((norm(&far) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn the_largest_are_averaged_and_fewer_are_enough() {
        assert_eq!(mean_of_largest(&mut [1.0, 5.0, 3.0, 4.0], 2), 4.5);
        assert_eq!(mean_of_largest(&mut [1.0, 2.0], 15), 1.5);
        assert_eq!(mean_of_largest(&mut [], 15), 0.0);
    }
}
