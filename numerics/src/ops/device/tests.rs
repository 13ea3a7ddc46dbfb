//! The GPU operations, run on the CPU, against the CPU kernels: results and every gradient.

use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::super::{
    self as ops, AttentionMask, Decomposed, FrozenConv2d, FrozenGroupNorm, FrozenLayerNorm, FrozenLinear,
};
use super::attention::{Blocks, in_blocks};
use crate::noise::{Noise, Stream};
use catelier_kernels::Convolution;

type Operation<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;
type Verdict = std::result::Result<(), TestCaseError>;

fn normal(sample: u64, shape: &[usize], dtype: DType) -> Tensor {
    let tensor = Noise::new(23).normal(Stream("elsewhere"), 0, sample, shape, &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The result of `f`, and the gradient of each input for a fixed, uneven gradient of the result.
fn run(inputs: &[Tensor], f: Operation) -> Result<Vec<Tensor>> {
    let variables = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tracked: Vec<_> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let y = f(&tracked)?;
    let gradients = (&y * normal(99, y.dims(), y.dtype()))?.sum_all()?.backward()?;
    let of = |input| gradients.get(input).expect("every input receives a gradient").clone();
    Ok([y.detach()].into_iter().chain(tracked.iter().map(of)).collect())
}

/// Largest difference of two sums in this type, as a fraction of the largest value.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-10,
        DType::F32 => 5e-5,
        // 2^-8 for every factor and every intermediate that is kept in bf16.
        _ => 3e-2,
    }
}

fn agree(inputs: &[Tensor], device: Operation, kernel: Operation) -> Verdict {
    let fail = |error: candle_core::Error| TestCaseError::fail(error.to_string());
    let (found, expected) = (run(inputs, device).map_err(fail)?, run(inputs, kernel).map_err(fail)?);
    for (position, (found, expected)) in found.iter().zip(&expected).enumerate() {
        prop_assert_eq!(found.dims(), expected.dims());
        prop_assert_eq!(found.dtype(), inputs[0].dtype());
        let allowed = tolerance(found.dtype());
        let (found, expected) = (values(found), values(expected));
        let scale = expected.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let difference = (found - expected).abs() / scale;
            prop_assert!(difference <= allowed, "tensor {} at {}: {} and {}", position, index, found, expected);
        }
    }
    Ok(())
}

fn exact() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F64)]
}

/// Element types, with half precision, for operations that candle supports in bf16 on the CPU.
fn any() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F64), Just(DType::BF16)]
}

fn convolution(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    FrozenConv2d::new(weight, Some(bias), stride, padding)?.on_device(weight, bias).forward(x)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decomposed_layers(
        (batch, rows, width, rank, out) in (1..3usize, 1..20usize, 1..20usize, 1..6usize, 1..20usize),
        (kernel, stride, padding) in (1..4usize, 1..3usize, 0..2usize),
        dtype in prop_oneof![Just(DType::F32), Just(DType::F64)],
    ) {
        let update = |t: &[Tensor]| -> [Tensor; 3] { [t[1].clone(), t[2].clone(), t[3].clone()] };
        fn of([down, up, magnitude]: &[Tensor; 3]) -> Decomposed<'_> {
            Decomposed { down, up, magnitude, scale: 0.3, strength: 1.0 }
        }
        let (weight, bias) = (normal(1, &[out, width], dtype), normal(2, &[out], dtype));
        let layer = FrozenLinear::new(&weight, Some(&bias)).unwrap();
        let on_device = FrozenLinear::new(&weight, Some(&bias)).unwrap().on_device(&weight, &bias);
        let (x, magnitude) = (normal(0, &[batch, rows, width], dtype), normal(5, &[out], dtype));
        let inputs = [x, normal(3, &[rank, width], dtype), normal(4, &[out, rank], dtype), magnitude.clone()];
        agree(&inputs, &|t| on_device.forward_decomposed(&t[0], of(&update(t)), None), &|t| {
            layer.forward_decomposed(&t[0], of(&update(t)), None)
        })?;
        let weight = normal(1, &[out, width, kernel, kernel], dtype);
        let layer = FrozenConv2d::new(&weight, Some(&bias), stride, padding).unwrap();
        let on_device = FrozenConv2d::new(&weight, Some(&bias), stride, padding).unwrap().on_device(&weight, &bias);
        let (down, up) = (normal(3, &[rank, width, kernel, kernel], dtype), normal(4, &[out, rank, 1, 1], dtype));
        let inputs = [normal(0, &[batch, width, 4, 5], dtype), down, up, magnitude];
        agree(&inputs, &|t| on_device.forward_decomposed(&t[0], of(&update(t)), None), &|t| {
            layer.forward_decomposed(&t[0], of(&update(t)), None)
        })?;
    }

    #[test]
    fn attention_in_blocks(
        (batch, heads, width) in (1..3usize, 1..4usize, 1..9usize),
        (queries, keys) in (1..40usize, 1..40usize),
        bytes in 1..20_000usize,
        causal: bool,
        dtype in any(),
    ) {
        let mask = if causal { AttentionMask::Causal } else { AttentionMask::None };
        let q = normal(0, &[batch, queries, heads * width], dtype);
        let (k, v) = (normal(1, &[batch, keys, heads * width], dtype), normal(2, &[batch, keys, heads * width], dtype));
        agree(&[q, k, v], &|t| in_blocks(&t[0], &t[1], &t[2], heads, mask, bytes), &|t| {
            ops::attention(&t[0], &t[1], &t[2], heads, mask)
        })?;
    }

    #[test]
    fn blocks_cover_every_query_once_within_the_budget(
        (batch, heads) in (1..4usize, 1..9usize),
        (queries, keys) in (1..300usize, 1..300usize),
        bytes in 1..1_000_000usize,
        causal: bool,
    ) {
        let mask = if causal { AttentionMask::Causal } else { AttentionMask::None };
        let zeros = |tokens| Tensor::zeros((batch, tokens, heads), DType::F32, &Device::Cpu).unwrap();
        let mut next = 0;
        for block in Blocks::new(&zeros(queries), &zeros(keys), heads, mask, bytes).unwrap().iter() {
            prop_assert_eq!(block.first, next);
            prop_assert!(block.count == 1 || block.count * block.visible * batch * heads * 4 <= bytes);
            next += block.count;
        }
        prop_assert_eq!(next, queries);
    }

    #[test]
    fn conv2d(
        (batch, channels, out) in (1..3usize, 1..6usize, 1..6usize),
        (height, width) in (4..12usize, 4..12usize),
        (kh, kw) in (1..5usize, 1..5usize),
        (stride, padding) in (1..4usize, 0..4usize),
        dtype in exact(),
    ) {
        let (weight, bias) = (normal(1, &[out, channels, kh, kw], dtype), normal(2, &[out], dtype));
        let layer = FrozenConv2d::new(&weight, Some(&bias), stride, padding).unwrap();
        let x = normal(0, &[batch, channels, height, width], dtype);
        agree(&[x], &|t| convolution(&t[0], &weight, &bias, stride, padding), &|t| layer.forward(&t[0]))?;
    }

    #[test]
    fn pointwise_conv2d((batch, channels, out) in (1..3usize, 1..9usize, 1..9usize), side in 1..9usize, dtype in any()) {
        let (weight, bias) = (normal(1, &[out, channels, 1, 1], dtype), normal(2, &[out], dtype));
        let layer = FrozenConv2d::new(&weight, Some(&bias), 1, 0).unwrap();
        let x = normal(0, &[batch, channels, side, side + 1], dtype);
        agree(&[x], &|t| convolution(&t[0], &weight, &bias, 1, 0), &|t| layer.forward(&t[0]))?;
    }

    #[test]
    fn linear(batch in 1..4usize, rows in 1..20usize, width in 1..40usize, out in 1..40usize, dtype in any()) {
        let (weight, bias) = (normal(1, &[out, width], dtype), normal(2, &[out], dtype));
        let layer = FrozenLinear::new(&weight, Some(&bias)).unwrap();
        let device = layer.clone().on_device(&weight, &bias);
        agree(&[normal(0, &[batch, rows, width], dtype)], &|t| device.forward(&t[0]), &|t| layer.forward(&t[0]))?;
        agree(&[normal(0, &[batch, width, rows], dtype)], &|t| device.forward(&t[0].transpose(1, 2)?), &|t| {
            layer.forward(&t[0].transpose(1, 2)?)
        })?;
    }

    #[test]
    fn low_rank_linear(rows in 1..20usize, width in 1..40usize, rank in 1..9usize, out in 1..40usize, dtype in any()) {
        let (down, up) = (normal(1, &[rank, width], dtype), normal(2, &[out, rank], dtype));
        agree(&[normal(0, &[2, rows, width], dtype), down, up], &|t| super::low_rank_linear(&t[0], &t[1], &t[2], 0.3), &|t| {
            ops::low_rank_linear(&t[0], &t[1], &t[2], 0.3)
        })?;
    }

    #[test]
    fn low_rank_conv2d(
        (batch, in_channels, rank, out) in (1..3usize, 1..6usize, 1..4usize, 1..6usize),
        (height, width, (kh, kw)) in (4..10usize, 4..10usize, (1..4usize, 1..4usize)),
        (stride, padding) in (1..4usize, 0..4usize),
        dtype in exact(),
    ) {
        let x = normal(0, &[batch, in_channels, height, width], dtype);
        let (down, up) = (normal(1, &[rank, in_channels, kh, kw], dtype), normal(2, &[out, rank, 1, 1], dtype));
        let sizes = Convolution { in_channels, out_channels: rank, kernel: (kh, kw), stride, padding };
        agree(&[x, down, up], &|t| super::low_rank_conv2d(&t[0], &t[1], &t[2], 0.3, sizes), &|t| {
            ops::low_rank_conv2d(&t[0], &t[1], &t[2], 0.3, stride, padding)
        })?;
    }

    #[test]
    fn norms(batch in 1..3usize, groups in 1..5usize, per_group in 1..4usize, height in 1..9usize, width in 2..40usize, dtype in any()) {
        let channels = groups * per_group;
        let x = ((normal(0, &[batch, channels, height, width], dtype) * 2.0).unwrap() + 3.0).unwrap();
        let x = std::slice::from_ref(&x);
        let (weight, bias) = (normal(1, &[channels], dtype), normal(2, &[channels], dtype));
        let layer = FrozenGroupNorm::new(&weight, &bias, groups, 1e-2).unwrap();
        let group_norm = |x: &Tensor, curve| super::group_norm(x, (&weight, &bias), groups, 1e-2, curve);
        agree(x, &|t| group_norm(&t[0], None), &|t| layer.forward(&t[0]))?;
        agree(x, &|t| group_norm(&t[0], Some(super::SILU)), &|t| layer.forward_silu(&t[0]))?;
        let (weight, bias) = (normal(3, &[width], dtype), normal(4, &[width], dtype));
        let layer = FrozenLayerNorm::new(&weight, &bias, 1e-2).unwrap();
        agree(x, &|t| super::layer_norm(&t[0], &weight, &bias, 1e-2), &|t| layer.forward(&t[0]))?;
    }

    #[test]
    fn activations(rows in 1..9usize, half in 1..100usize, dtype in any()) {
        let x = (normal(0, &[rows, 2 * half], dtype) * 4.0).unwrap();
        let x = std::slice::from_ref(&x);
        agree(x, &|t| super::pointwise(&t[0], super::SILU), &|t| ops::silu(&t[0]))?;
        agree(x, &|t| super::pointwise(&t[0], super::GELU), &|t| ops::gelu(&t[0]))?;
        agree(x, &|t| super::pointwise(&t[0], super::QUICK_GELU), &|t| ops::quick_gelu(&t[0]))?;
        agree(x, &|t| super::geglu(&t[0]), &|t| ops::geglu(&t[0]))?;
        agree(x, &|t| super::softmax(&t[0]), &|t| ops::softmax(&t[0]))?;
    }
}

/// Moments in half precision would lose the spread of values with a large mean.
#[test]
fn norms_of_half_precision_have_moments_in_f32() {
    let x = ((normal(0, &[1, 2, 64, 64], DType::F32) * 0.5).unwrap() + 40.0).unwrap().to_dtype(DType::BF16).unwrap();
    let (weight, bias) = (Tensor::ones(2, DType::F32, &Device::Cpu).unwrap(), normal(2, &[2], DType::F32));
    let layer = FrozenGroupNorm::new(&weight, &bias, 1, 1e-5).unwrap();
    agree(&[x], &|t| super::group_norm(&t[0], (&weight, &bias), 1, 1e-5, None), &|t| layer.forward(&t[0])).unwrap();
}

#[test]
fn attention_to_nothing_is_zero_with_zero_gradients() {
    let (q, k) = (normal(0, &[1, 3, 4], DType::F32), normal(1, &[1, 0, 4], DType::F32));
    let results = run(&[q, k.clone(), k], &|t| in_blocks(&t[0], &t[1], &t[2], 2, AttentionMask::None, 64)).unwrap();
    assert_eq!(values(&results[0]), [0.0; 12]);
    assert_eq!(values(&results[1]), [0.0; 12]);
}

/// Only arguments in a graph get a gradient; other gradients would stay in memory until the pass ends.
#[test]
fn constants_get_no_gradient() {
    let (x, down, up) =
        (normal(0, &[3, 4], DType::F32), normal(1, &[2, 4], DType::F32), normal(2, &[5, 2], DType::F32));
    let down = Var::from_tensor(&down).unwrap();
    let y = super::low_rank_linear(&x, &down, &up, 1.0).unwrap();
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&down).is_some());
    assert!(gradients.get(&x).is_none() && gradients.get(&up).is_none());
}
