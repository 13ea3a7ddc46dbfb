//! Similarity of two features.

use crate::error::{Error, Result};

/// Cosine of the angle between two features, in [-1, 1], computed in f64.
///
/// Equal features give exactly 1.
///
/// # Errors
/// If the lengths differ, or a feature is zero or not finite.
pub fn cosine(left: &[f32], right: &[f32]) -> Result<f64> {
    if left.len() != right.len() {
        return Err(Error::LengthMismatch { what: "features", expected: left.len(), found: right.len() });
    }
    // The root of the product, unlike a product of two roots, gives exactly 1 for equal features.
    let lengths = (dot(left, left) * dot(right, right)).sqrt();
    if lengths.is_normal() { Ok((dot(left, right) / lengths).clamp(-1.0, 1.0)) } else { Err(Error::NoDirection) }
}

/// `sim(a, b) = (cos(a, b) + 1) / 2`, in [0, 1]: 1 for the same direction, 0 for the opposite one.
///
/// CAT's reference code maps identity similarity this way.
///
/// # Errors
/// As [`cosine`].
pub fn similarity(left: &[f32], right: &[f32]) -> Result<f64> {
    Ok(f64::midpoint(cosine(left, right)?, 1.0))
}

/// [`similarity`] of each pair `(left[i], right[i])`.
///
/// # Errors
/// When the lists differ in length, and as [`cosine`].
pub fn paired<F: AsRef<[f32]>>(left: &[F], right: &[F]) -> Result<Vec<f64>> {
    if left.len() != right.len() {
        return Err(Error::LengthMismatch { what: "lists of features", expected: left.len(), found: right.len() });
    }
    left.iter().zip(right).map(|(left, right)| similarity(left.as_ref(), right.as_ref())).collect()
}

/// For each of `images`, its [`similarity`] to each of `references`.
///
/// # Errors
/// As [`cosine`].
pub fn against<F: AsRef<[f32]>>(images: &[F], references: &[F]) -> Result<Vec<Vec<f64>>> {
    let row = |image: &F| references.iter().map(|reference| similarity(image.as_ref(), reference.as_ref())).collect();
    images.iter().map(row).collect()
}

fn dot(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(l, r)| f64::from(*l) * f64::from(*r)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_features_have_similarity_exactly_one() {
        let feature = [0.3_f32, -1.7, 12.0, 1e-3];
        assert_eq!(similarity(&feature, &feature).unwrap(), 1.0);
    }

    #[test]
    fn opposite_features_have_similarity_zero_and_perpendicular_ones_a_half() {
        assert_eq!(similarity(&[1.0, 2.0], &[-1.0, -2.0]).unwrap(), 0.0);
        assert_eq!(similarity(&[1.0, 0.0], &[0.0, 3.0]).unwrap(), 0.5);
    }

    #[test]
    fn a_zero_feature_has_no_direction() {
        assert!(matches!(cosine(&[0.0, 0.0], &[1.0, 0.0]), Err(Error::NoDirection)));
        assert!(matches!(cosine(&[f32::NAN, 0.0], &[1.0, 0.0]), Err(Error::NoDirection)));
    }

    #[test]
    fn features_of_two_extractors_do_not_compare() {
        assert!(matches!(cosine(&[1.0], &[1.0, 0.0]), Err(Error::LengthMismatch { expected: 1, found: 2, .. })));
    }
}
