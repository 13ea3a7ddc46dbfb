//! A check for NaN and infinity.

use candle_core::{DType, Result, Tensor};

/// Elements that are looked at together.
const PIECE: usize = 1 << 20;

/// Whether every value of `tensor` is finite.
///
/// `x - x` is 0 for a finite `x` and NaN for any other. A sum of the values is no test: it may overflow although every
/// value is finite.
pub fn is_finite(tensor: &Tensor) -> Result<bool> {
    pieces(tensor, PIECE)?.try_fold(true, |finite, piece| {
        let piece = piece?;
        let zeros = piece.sub(&piece)?.to_dtype(DType::F32)?;
        Ok(finite && zeros.sum_all()?.to_scalar::<f32>()? == 0.0)
    })
}

/// The largest magnitude among the values of `tensor`; 0 if it has none, NaN or infinity if one is not finite.
pub fn largest_magnitude(tensor: &Tensor) -> Result<f64> {
    pieces(tensor, PIECE)?.try_fold(0.0, |largest: f64, piece| {
        let values = piece?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let larger =
            |largest: f64, value: &f64| if largest.is_nan() || value.abs() <= largest { largest } else { value.abs() };
        Ok(values.iter().fold(largest, larger))
    })
}

/// The values of `tensor` as vectors of at most `size`, so that a large contiguous tensor is not copied as a whole.
pub(crate) fn pieces(tensor: &Tensor, size: usize) -> Result<impl Iterator<Item = Result<Tensor>>> {
    let flat = tensor.flatten_all()?;
    let count = flat.elem_count();
    Ok((0..count).step_by(size).map(move |start| flat.narrow(0, start, size.min(count - start))))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn largest_values_are_finite_in_every_float_type() {
        for (dtype, largest) in
            [(DType::F16, 65504.0), (DType::BF16, 3.3e38), (DType::F32, 3.4e38), (DType::F64, 1.7e308)]
        {
            let tensor = Tensor::new(&[largest, largest, -largest], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            assert!(is_finite(&tensor).unwrap(), "{dtype:?}");
        }
    }

    #[test]
    fn one_value_among_many_is_found() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 7, 11] {
                let mut values = vec![1.0f32; 12];
                values[place] = bad;
                let tensor = Tensor::from_vec(values, (3, 4), &Device::Cpu).unwrap();
                assert!(!is_finite(&tensor).unwrap() && !is_finite(&tensor.t().unwrap()).unwrap());
            }
        }
    }

    #[test]
    fn the_largest_magnitude_is_found_in_any_piece() {
        let mut values = vec![0.5f32; PIECE + 2];
        let largest = |values: &[f32]| largest_magnitude(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap();
        for (place, value) in [(3, -7.0), (PIECE + 1, 3e38), (PIECE, f32::NEG_INFINITY), (1, f32::NAN)] {
            values[place] = value;
            let found = largest(&values);
            assert!(found == f64::from(value.abs()) || found.is_nan() && value.is_nan(), "{found} for {value}");
        }
        assert_eq!(largest(&[]), 0.0);
    }

    #[test]
    fn nothing_is_finite() {
        assert!(is_finite(&Tensor::zeros(0, DType::F32, &Device::Cpu).unwrap()).unwrap());
    }
}
