//! A check for NaN and infinity.

use candle_core::{DType, Result, Tensor};

/// Whether every value of `tensor` is finite.
///
/// `x - x` is 0 for a finite `x` and NaN for any other. A sum of the values is no test: it may overflow although every
/// value is finite.
pub fn is_finite(tensor: &Tensor) -> Result<bool> {
    let zeros = tensor.sub(tensor)?.to_dtype(DType::F32)?;
    Ok(zeros.sum_all()?.to_scalar::<f32>()? == 0.0)
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
    fn nothing_is_finite() {
        assert!(is_finite(&Tensor::zeros(0, DType::F32, &Device::Cpu).unwrap()).unwrap());
    }
}
