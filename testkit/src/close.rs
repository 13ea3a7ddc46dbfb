//! Comparison of tensors; a failure says where and by how much they differ.

use candle_core::Tensor;

use crate::golden::flat_values;
use crate::tolerance::Tolerance;

/// Panics unless `actual` has the shape of `expected` and every value is within `tolerance`.
///
/// The message names `what`, the index of the worst value, both values and the largest
/// difference. A value that is not finite is never close. Types may differ: both sides are
/// compared as float64.
///
/// # Panics
/// When shapes differ or a value is too far off.
#[track_caller]
pub fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: Tolerance) {
    assert!(
        actual.dims() == expected.dims(),
        "{what}: expected shape {:?}, found {:?}",
        expected.dims(),
        actual.dims()
    );
    assert_values_close(what, &flat_values(actual), &flat_values(expected), expected.dims(), tolerance);
}

/// [`assert_close`] for scalars: losses, norms, sigmas, learning rates.
///
/// # Panics
/// When lengths differ or a value is too far off.
#[track_caller]
pub fn assert_numbers_close(what: &str, actual: &[f64], expected: &[f64], tolerance: Tolerance) {
    assert!(actual.len() == expected.len(), "{what}: expected {} values, found {}", expected.len(), actual.len());
    assert_values_close(what, actual, expected, &[expected.len()], tolerance);
}

/// The largest absolute difference of two tensors of the same shape; infinite if either has a value that is not finite.
///
/// # Panics
/// When the shapes differ.
#[must_use]
#[track_caller]
pub fn largest_difference(actual: &Tensor, expected: &Tensor) -> f64 {
    assert!(actual.dims() == expected.dims(), "shapes {:?} and {:?}", actual.dims(), expected.dims());
    worst(&flat_values(actual), &flat_values(expected)).map_or(0.0, |(_, difference)| difference)
}

/// ‖actual − expected‖ / ‖expected‖ of several tensors as one vector.
///
/// # Panics
/// When shapes differ.
#[must_use]
#[track_caller]
pub fn relative_error<'a>(pairs: impl IntoIterator<Item = (&'a Tensor, &'a Tensor)>) -> f64 {
    let (mut apart, mut whole) = (0.0, 0.0);
    for (actual, expected) in pairs {
        assert!(actual.dims() == expected.dims(), "shapes {:?} and {:?}", actual.dims(), expected.dims());
        let (actual, expected) = (flat_values(actual), flat_values(expected));
        apart += actual.iter().zip(&expected).map(|(a, e)| (a - e).powi(2)).sum::<f64>();
        whole += expected.iter().map(|value| value * value).sum::<f64>();
    }
    (apart / whole).sqrt()
}

#[track_caller]
fn assert_values_close(what: &str, actual: &[f64], expected: &[f64], dims: &[usize], tolerance: Tolerance) {
    let Some((position, difference)) = worst(actual, expected) else {
        return;
    };
    let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    let allowed = tolerance.allowed(largest);
    let beyond = actual.iter().zip(expected).filter(|(a, e)| distance(**a, **e) > allowed).count();
    assert!(
        difference <= allowed,
        "{what}: expected {} at {:?}, found {}; largest difference {difference:.3e}, allowed \
         {allowed:.3e} ({tolerance:?}, largest value {largest:.3e}), {beyond} of {} values are beyond it",
        expected[position],
        index_of(position, dims),
        actual[position],
        expected.len(),
    );
}

/// The position and size of the largest difference; `None` if there are no values.
fn worst(actual: &[f64], expected: &[f64]) -> Option<(usize, f64)> {
    let differences = actual.iter().zip(expected).map(|(a, e)| distance(*a, *e));
    differences.enumerate().max_by(|left, right| left.1.total_cmp(&right.1))
}

fn distance(actual: f64, expected: f64) -> f64 {
    let difference = (actual - expected).abs();
    if difference.is_nan() { f64::INFINITY } else { difference }
}

/// The index of a row-major position in a tensor of shape `dims`.
fn index_of(position: usize, dims: &[usize]) -> Vec<usize> {
    let mut rest = position;
    let mut index = vec![0; dims.len()];
    for (place, size) in index.iter_mut().zip(dims).rev() {
        *place = rest % size;
        rest /= size;
    }
    index
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(values: &[[f32; 2]; 2]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn equal_tensors_are_exactly_close() {
        let values = tensor(&[[1.0, 2.0], [3.0, 4.0]]);
        assert_close("the same", &values, &values, Tolerance::Exact);
    }

    #[test]
    #[should_panic(expected = "one value: expected 4 at [1, 1], found 4.5; largest difference 5.000e-1")]
    fn the_worst_value_is_reported_with_its_index() {
        let expected = tensor(&[[1.0, 2.0], [3.0, 4.0]]);
        let actual = tensor(&[[1.0, 2.1], [3.0, 4.5]]);
        assert_close("one value", &actual, &expected, Tolerance::Absolute(0.25));
    }

    #[test]
    #[should_panic(expected = "expected shape [2, 2], found [4]")]
    fn another_shape_is_not_close() {
        let expected = tensor(&[[1.0, 2.0], [3.0, 4.0]]);
        assert_close("flat", &expected.flatten_all().unwrap(), &expected, Tolerance::Exact);
    }

    #[test]
    fn a_relative_error_is_of_all_tensors_together() {
        let (zeros, values) = (tensor(&[[0.0, 0.0], [0.0, 0.0]]), tensor(&[[1.0, 2.0], [2.0, 4.0]]));
        assert_eq!(relative_error([(&values, &values), (&zeros, &zeros)]), 0.0);
        assert_eq!(relative_error([(&values, &values), (&zeros, &values)]), 0.5_f64.sqrt());
    }

    #[test]
    #[should_panic(expected = "found NaN")]
    fn a_value_that_is_not_a_number_is_never_close() {
        assert_numbers_close("loss", &[f64::NAN], &[1.0], Tolerance::Absolute(10.0));
    }
}
