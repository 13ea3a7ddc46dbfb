//! The kernels against candle's own operations, on shapes nobody would choose.

use candle_core::{DType, Result, Tensor};
use catelier_numerics::ops::{
    self, AttentionMask, FrozenConv2d, FrozenGroupNorm, FrozenLayerNorm, FrozenLinear, composed,
};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::material::{normal, run, values};

type Operation<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// Results and gradients agree within `1e-10` of their largest value, in f64, and within `3e-5` in f32.
fn agree(inputs: &[Tensor], kernel: Operation, oracle: Operation) -> std::result::Result<(), TestCaseError> {
    let fail = |error: candle_core::Error| TestCaseError::fail(error.to_string());
    let (found, expected) = (run(inputs, kernel).map_err(fail)?, run(inputs, oracle).map_err(fail)?);
    let tolerance = if inputs[0].dtype() == DType::F64 { 1e-10 } else { 3e-5 };
    for (position, (found, expected)) in found.iter().zip(&expected).enumerate() {
        prop_assert_eq!(found.dims(), expected.dims());
        let (found, expected) = (values(found), values(expected));
        let scale = expected.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let difference = (found - expected).abs() / scale;
            prop_assert!(difference <= tolerance, "result {} at {}: {} and {}", position, index, found, expected);
        }
    }
    Ok(())
}

fn dtype() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F64)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn linear(batch in 1..4usize, rows in 1..40usize, width in 1..70usize, out in 1..70usize, bias: bool, dtype in dtype()) {
        let (weight, b) = (normal(1, &[out, width], dtype), normal(2, &[out], dtype));
        let b = bias.then_some(&b);
        let layer = FrozenLinear::new(&weight, b).unwrap();
        let x = normal(0, &[batch, rows, width], dtype);
        agree(&[x], &|t| layer.forward(&t[0]), &|t| composed::linear(&t[0], &weight, b))?;
        let turned = normal(0, &[batch, width, rows], dtype);
        agree(&[turned], &|t| layer.forward(&t[0].transpose(1, 2)?), &|t| {
            composed::linear(&t[0].transpose(1, 2)?.contiguous()?, &weight, b)
        })?;
    }

    #[test]
    fn conv2d(
        (batch, channels, out) in (1..3usize, 1..6usize, 1..6usize),
        (height, width) in (4..12usize, 4..12usize),
        (kh, kw) in (1..5usize, 1..5usize),
        (stride, padding) in (1..4usize, 0..3usize),
        dtype in dtype(),
    ) {
        let (weight, bias) = (normal(1, &[out, channels, kh, kw], dtype), normal(2, &[out], dtype));
        let layer = FrozenConv2d::new(&weight, Some(&bias), stride, padding).unwrap();
        let x = normal(0, &[batch, channels, height, width], dtype);
        agree(&[x], &|t| layer.forward(&t[0]), &|t| composed::conv2d(&t[0], &weight, Some(&bias), stride, padding))?;
    }

    #[test]
    fn low_rank_conv2d(
        (batch, channels, rank, out) in (1..3usize, 1..6usize, 1..4usize, 1..6usize),
        (height, width, kernel) in (4..10usize, 4..10usize, 1..4usize),
        (stride, padding) in (1..3usize, 0..3usize),
        dtype in dtype(),
    ) {
        let x = normal(0, &[batch, channels, height, width], dtype);
        let (down, up) = (normal(1, &[rank, channels, kernel, kernel], dtype), normal(2, &[out, rank, 1, 1], dtype));
        agree(&[x, down, up], &|t| ops::low_rank_conv2d(&t[0], &t[1], &t[2], 0.3, stride, padding), &|t| {
            composed::low_rank_conv2d(&t[0], &t[1], &t[2], 0.3, stride, padding)
        })?;
    }

    #[test]
    fn low_rank_linear(rows in 1..40usize, width in 1..50usize, rank in 1..9usize, out in 1..50usize, dtype in dtype()) {
        let (x, down, up) = (normal(0, &[2, rows, width], dtype), normal(1, &[rank, width], dtype), normal(2, &[out, rank], dtype));
        agree(&[x, down, up], &|t| ops::low_rank_linear(&t[0], &t[1], &t[2], 0.3), &|t| {
            composed::low_rank_linear(&t[0], &t[1], &t[2], 0.3)
        })?;
    }

    #[test]
    fn attention(
        (batch, heads, width) in (1..3usize, 1..4usize, 1..9usize),
        (queries, keys) in (1..300usize, 1..50usize),
        causal: bool,
        dtype in dtype(),
    ) {
        let mask = if causal { AttentionMask::Causal } else { AttentionMask::None };
        let q = normal(0, &[batch, queries, heads * width], dtype);
        let (k, v) = (normal(1, &[batch, keys, heads * width], dtype), normal(2, &[batch, keys, heads * width], dtype));
        agree(&[q, k, v], &|t| ops::attention(&t[0], &t[1], &t[2], heads, mask), &|t| {
            composed::attention(&t[0], &t[1], &t[2], heads, mask)
        })?;
    }

    #[test]
    fn norms(batch in 1..3usize, groups in 1..5usize, per_group in 1..4usize, height in 1..9usize, width in 2..40usize, dtype in dtype()) {
        let channels = groups * per_group;
        let x = ((normal(0, &[batch, channels, height, width], dtype) * 2.0).unwrap() + 3.0).unwrap();
        let (weight, bias) = (normal(1, &[channels], dtype), normal(2, &[channels], dtype));
        let layer = FrozenGroupNorm::new(&weight, &bias, groups, 1e-2).unwrap();
        agree(std::slice::from_ref(&x), &|t| layer.forward(&t[0]), &|t| composed::group_norm(&t[0], &weight, &bias, groups, 1e-2))?;
        agree(std::slice::from_ref(&x), &|t| layer.forward_silu(&t[0]), &|t| {
            composed::silu(&composed::group_norm(&t[0], &weight, &bias, groups, 1e-2)?)
        })?;
        let (weight, bias) = (normal(3, &[width], dtype), normal(4, &[width], dtype));
        let layer = FrozenLayerNorm::new(&weight, &bias, 1e-2).unwrap();
        agree(&[x], &|t| layer.forward(&t[0]), &|t| composed::layer_norm(&t[0], &weight, &bias, 1e-2))?;
    }

    #[test]
    fn activations(rows in 1..9usize, half in 1..400usize, dtype in dtype()) {
        let x = (normal(0, &[rows, 2 * half], dtype) * 4.0).unwrap();
        let x = std::slice::from_ref(&x);
        agree(x, &|t| ops::silu(&t[0]), &|t| composed::silu(&t[0]))?;
        agree(x, &|t| ops::gelu(&t[0]), &|t| composed::gelu(&t[0]))?;
        agree(x, &|t| ops::quick_gelu(&t[0]), &|t| composed::quick_gelu(&t[0]))?;
        agree(x, &|t| ops::geglu(&t[0]), &|t| composed::geglu(&t[0]))?;
        agree(x, &|t| ops::softmax(&t[0]), &|t| composed::softmax(&t[0]))?;
    }

    #[test]
    fn upsample(planes in 1..4usize, (height, width) in (1..9usize, 1..9usize), size in (1..20usize, 1..20usize), dtype in dtype()) {
        let x = normal(0, &[2, planes, height, width], dtype);
        agree(&[x], &|t| ops::upsample_nearest(&t[0], size), &|t| composed::upsample_nearest(&t[0], size))?;
    }
}

#[test]
fn gelu_is_the_textbook_function() {
    let x = Tensor::new(&[-8.0f32, -3.0, -1.0, 0.0, 0.5, 2.0], &candle_core::Device::Cpu).unwrap();
    // x · Φ(x) from tables of the normal distribution.
    let expected = [-4.976_768e-15, -0.004_049_694, -0.158_655_25, 0.0, 0.345_731_24, 1.954_499_7];
    for (found, expected) in values(&ops::gelu(&x).unwrap()).into_iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-6 * f64::abs(expected), "expected {expected}, found {found}");
    }
}
