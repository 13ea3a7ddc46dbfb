//! The kernels against candle's operations, on unusual shapes.

use candle_core::{DType, Result, Tensor};
use catelier_numerics::ops::{
    self, AttentionMask, Decomposed, FrozenConv2d, FrozenGroupNorm, FrozenLayerNorm, FrozenLinear, Fusion, Prologue,
    composed, feed_forward,
};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::material::{normal, run, values};

type Operation<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// Checks that results and gradients agree within `1e-10` of their largest value in f64, and within `3e-5` in f32.
fn agree(inputs: &[Tensor], kernel: Operation, oracle: Operation) -> std::result::Result<(), TestCaseError> {
    agree_within(if inputs[0].dtype() == DType::F64 { 1e-10 } else { 3e-5 }, inputs, kernel, oracle)
}

/// Checks that results and gradients agree within `tolerance` of their largest value.
fn agree_within(
    tolerance: f64,
    inputs: &[Tensor],
    kernel: Operation,
    oracle: Operation,
) -> std::result::Result<(), TestCaseError> {
    let fail = |error: candle_core::Error| TestCaseError::fail(error.to_string());
    let (found, expected) = (run(inputs, kernel).map_err(fail)?, run(inputs, oracle).map_err(fail)?);
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

/// The norm of each output's weights, `[out]`.
fn norms_of(weight: &Tensor) -> Result<Tensor> {
    weight.flatten_from(1)?.sqr()?.sum(1)?.sqrt()
}

/// The weights scaled to norms of `magnitude`; the norms are detached.
fn with_norms(weight: &Tensor, magnitude: &Tensor) -> Result<Tensor> {
    let gain = (magnitude / norms_of(&weight.detach())?)?;
    let shape: Vec<usize> =
        weight.dims().iter().enumerate().map(|(axis, size)| if axis == 0 { *size } else { 1 }).collect();
    weight.broadcast_mul(&gain.reshape(shape)?)
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
    fn layers_with_what_is_around_them(
        (batch, groups, per_group, out) in (1..3usize, 1..4usize, 1..4usize, 1..40usize),
        (height, width, kernel) in (2..9usize, 2..9usize, prop_oneof![Just(1usize), Just(3)]),
        dtype in dtype(),
    ) {
        let channels = groups * per_group;
        let (weight, bias) = (normal(1, &[out, channels, kernel, kernel], dtype), normal(2, &[out], dtype));
        let conv = FrozenConv2d::new(&weight, Some(&bias), 1, kernel / 2).unwrap();
        let norm = FrozenGroupNorm::new(&normal(3, &[channels], dtype), &normal(4, &[channels], dtype), groups, 1e-2).unwrap();
        let x = normal(0, &[batch, channels, height, width], dtype);
        let (residual, shift) = (normal(5, &[batch, out, height, width], dtype), normal(6, &[batch, out], dtype));
        let plain = |t: &Tensor, shift: &Tensor| {
            composed::conv2d(&norm.forward_silu(t)?, &weight, Some(&bias), 1, kernel / 2)?
                .broadcast_add(&shift.unsqueeze(2)?.unsqueeze(3)?)
        };
        agree(&[x.clone(), residual.clone()], &|t| {
            conv.forward_fused(&t[0], Some(&shift), Fusion::after(Prologue::GroupNormSilu(&norm)).onto(&t[1]))
        }, &|t| &t[1] + plain(&t[0], &shift)?)?;
        agree(&[x, shift, residual], &|t| {
            conv.forward_fused(&t[0], Some(&t[1]), Fusion::after(Prologue::GroupNormSilu(&norm)).onto(&t[2]))
        }, &|t| &t[2] + plain(&t[0], &t[1])?)?;
    }

    #[test]
    fn linear_layers_with_what_is_around_them(
        (batch, rows, width, out) in (1..3usize, 1..20usize, 2..40usize, 1..70usize),
        dtype in dtype(),
    ) {
        let norm = FrozenLayerNorm::new(&normal(1, &[width], dtype), &normal(2, &[width], dtype), 1e-2).unwrap();
        let wide = FrozenLinear::new(&normal(3, &[2 * out, width], dtype), Some(&normal(4, &[2 * out], dtype))).unwrap();
        let back = FrozenLinear::new(&normal(5, &[width, out], dtype), Some(&normal(6, &[width], dtype))).unwrap();
        let x = normal(0, &[batch, rows, width], dtype);
        let plain = |t: &[Tensor]| &t[0] + back.forward(&composed::geglu(&wide.forward(&norm.forward(&t[0])?)?)?)?;
        agree(std::slice::from_ref(&x), &|t| {
            let wide = wide.forward_fused(&t[0], Fusion::after(Prologue::LayerNorm(&norm)))?;
            back.forward_fused(&wide, Fusion::after(Prologue::Geglu).onto(&t[0]))
        }, &plain)?;
        agree(&[x], &|t| feed_forward(&t[0], &norm, &wide, &back), &plain)?;
    }

    #[test]
    fn between_maps_and_tokens(
        (batch, groups, inner, out) in (1..3usize, 1..4usize, 1..70usize, 1..40usize),
        (height, width) in (1..9usize, 1..9usize),
        convolution: bool,
        dtype in dtype(),
    ) {
        let channels = 2 * groups;
        let norm = FrozenGroupNorm::new(&normal(1, &[channels], dtype), &normal(2, &[channels], dtype), groups, 1e-2).unwrap();
        let (into, back) = (normal(3, &[inner, channels], dtype), normal(4, &[out, inner], dtype));
        let (bias, back_bias) = (normal(5, &[inner], dtype), normal(6, &[out], dtype));
        let (x, residual) = (normal(0, &[batch, channels, height, width], dtype), normal(7, &[batch, out, height, width], dtype));
        let plain = |t: &[Tensor]| {
            let tokens = norm.forward(&t[0])?.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
            let tokens = composed::linear(&composed::linear(&tokens, &into, Some(&bias))?, &back, Some(&back_bias))?;
            &t[1] + tokens.transpose(1, 2)?.contiguous()?.reshape(t[1].shape())?
        };
        let fusion = Fusion::after(Prologue::GroupNorm(&norm));
        let size = (height, width);
        if convolution {
            let pointwise = |weight: &Tensor, bias| FrozenConv2d::new(&weight.unsqueeze(2)?.unsqueeze(3)?, Some(bias), 1, 0);
            let (into, back) = (pointwise(&into, &bias).unwrap(), pointwise(&back, &back_bias).unwrap());
            agree(&[x, residual], &|t| {
                back.tokens_to_map(&into.map_to_tokens(&t[0], fusion)?, size, Fusion::default().onto(&t[1]))
            }, &plain)?;
        } else {
            let linear = |weight: &Tensor, bias| FrozenLinear::new(weight, Some(bias)).unwrap();
            let (into, back) = (linear(&into, &bias), linear(&back, &back_bias));
            agree(&[x, residual], &|t| {
                back.tokens_to_map(&into.map_to_tokens(&t[0], fusion)?, size, Fusion::default().onto(&t[1]))
            }, &plain)?;
        }
    }

    #[test]
    fn adapted_layers(
        (batch, rows, width, rank, out) in (1..3usize, 1..20usize, 1..40usize, 1..6usize, 1..70usize),
        (side, kernel, stride) in (4..8usize, 1..4usize, 1..3usize),
        (residual, dtype) in (any::<bool>(), dtype()),
    ) {
        let onto = |y: Result<Tensor>, residual: Option<&Tensor>| match residual {
            Some(residual) => residual + y?,
            None => y,
        };
        let (weight, bias) = (normal(1, &[out, width], dtype), normal(2, &[out], dtype));
        let layer = FrozenLinear::new(&weight, Some(&bias)).unwrap();
        let (down, up) = (normal(3, &[rank, width], dtype), normal(4, &[out, rank], dtype));
        let mut inputs = vec![normal(0, &[batch, rows, width], dtype), down, up];
        inputs.extend(residual.then(|| normal(5, &[batch, rows, out], dtype)));
        agree(&inputs, &|t| layer.forward_adapted(&t[0], &t[1], &t[2], 0.3, t.get(3)), &|t| {
            let update = composed::low_rank_linear(&t[0], &t[1], &t[2], 0.3)?;
            onto(composed::linear(&t[0], &weight, Some(&bias))? + update, t.get(3))
        })?;
        let weight = normal(1, &[out, width, kernel, kernel], dtype);
        let layer = FrozenConv2d::new(&weight, Some(&bias), stride, 1).unwrap();
        let (down, up) = (normal(3, &[rank, width, kernel, kernel], dtype), normal(4, &[out, rank, 1, 1], dtype));
        let mut inputs = vec![normal(0, &[batch, width, side, side + 1], dtype), down, up];
        let [height, columns] = [side, side + 1].map(|side| (side + 2 - kernel) / stride + 1);
        inputs.extend(residual.then(|| normal(5, &[batch, out, height, columns], dtype)));
        agree(&inputs, &|t| layer.forward_adapted(&t[0], &t[1], &t[2], 0.3, t.get(3)), &|t| {
            let update = composed::low_rank_conv2d(&t[0], &t[1], &t[2], 0.3, stride, 1)?;
            onto(composed::conv2d(&t[0], &weight, Some(&bias), stride, 1)? + update, t.get(3))
        })?;
    }

    #[test]
    fn decomposed_linear_layers(
        (batch, rows, width, rank, out) in (1..3usize, 1..20usize, 1..40usize, 1..6usize, 1..70usize),
        (residual, whole, strength, dtype) in (any::<bool>(), any::<bool>(), prop_oneof![Just(1.0), -1.0..2.0f64], dtype()),
    ) {
        let (weight, bias) = (normal(1, &[out, width], dtype), normal(2, &[out], dtype));
        let layer = FrozenLinear::new(&weight, Some(&bias)).unwrap();
        let (down, up) = (normal(3, &[rank, width], dtype), normal(4, &[out, rank], dtype));
        let mut inputs = vec![normal(0, &[batch, rows, width], dtype), down, up, normal(6, &[out], dtype)];
        inputs.extend((residual && whole).then(|| normal(5, &[batch, rows, out], dtype)));
        agree(&inputs, &|t| {
            let update = Decomposed { down: &t[1], up: &t[2], magnitude: &t[3], scale: 0.3, strength };
            match whole {
                true => layer.forward_decomposed(&t[0], update, t.get(4)),
                false => layer.decomposed_change(&t[0], update),
            }
        }, &|t| {
            let updated = (&weight + (t[2].matmul(&t[1])? * 0.3)?)?;
            let change = (composed::linear(&t[0], &with_norms(&updated, &t[3])?, None)? - composed::linear(&t[0], &weight, None)?)?;
            let change = (change * strength)?;
            let y = if whole { (composed::linear(&t[0], &weight, Some(&bias))? + change)? } else { change };
            match t.get(4) {
                Some(residual) => residual + y,
                None => Ok(y),
            }
        })?;
    }

    #[test]
    fn decomposed_convolutions(
        (batch, channels, rank, out) in (1..3usize, 1..6usize, 1..4usize, 1..40usize),
        (side, kernel, stride, padding) in (4..8usize, 1..4usize, 1..3usize, 0..2usize),
        (whole, strength, dtype) in (any::<bool>(), prop_oneof![Just(1.0), -1.0..2.0f64], dtype()),
    ) {
        let (weight, bias) = (normal(1, &[out, channels, kernel, kernel], dtype), normal(2, &[out], dtype));
        let layer = FrozenConv2d::new(&weight, Some(&bias), stride, padding).unwrap();
        let (down, up) = (normal(3, &[rank, channels, kernel, kernel], dtype), normal(4, &[out, rank, 1, 1], dtype));
        let inputs = [normal(0, &[batch, channels, side, side + 1], dtype), down, up, normal(6, &[out], dtype)];
        agree(&inputs, &|t| {
            let update = Decomposed { down: &t[1], up: &t[2], magnitude: &t[3], scale: 0.3, strength };
            match whole {
                true => layer.forward_decomposed(&t[0], update, None),
                false => layer.decomposed_change(&t[0], update),
            }
        }, &|t| {
            let delta = t[2].flatten_from(1)?.matmul(&t[1].flatten_from(1)?)?.reshape(weight.shape())?;
            let updated = with_norms(&(&weight + (delta * 0.3)?)?, &t[3])?;
            let conv = |weight: &Tensor, bias| composed::conv2d(&t[0], weight, bias, stride, padding);
            let change = ((conv(&updated, None)? - conv(&weight, None)?)? * strength)?;
            if whole { conv(&weight, Some(&bias))? + change } else { Ok(change) }
        })?;
    }

    #[test]
    fn norms_of_bf16_weights_are_those_of_the_weights_as_they_are_kept(
        (width, rank, out, kernel) in (1..80usize, 1..6usize, 1..70usize, 1..4usize),
    ) {
        let rounded = normal(1, &[out, width, kernel, kernel], DType::BF16);
        let weight = rounded.to_dtype(DType::F32).unwrap();
        let layer = FrozenConv2d::new(&rounded, None, 1, 0).unwrap();
        let (down, up) = (normal(3, &[rank, width, kernel, kernel], DType::F32), normal(4, &[out, rank, 1, 1], DType::F32));
        let expected = norms_of(&weight).unwrap();
        let share = |found: f64, expected: f64| (found - expected).abs() / (1.0 + expected);
        for (found, expected) in values(&layer.row_norms().unwrap()).into_iter().zip(values(&expected)) {
            prop_assert!(share(found, expected) < 1e-6, "{found} and {expected}");
        }
        // With the norms of the updated weights as magnitudes, each gain is 1 and the change is the low-rank update.
        let updated = (&weight + up.flatten_from(1).unwrap().matmul(&down.flatten_from(1).unwrap()).unwrap().reshape(weight.shape()).unwrap()).unwrap();
        let magnitude = norms_of(&updated).unwrap();
        let update = Decomposed { down: &down, up: &up, magnitude: &magnitude, scale: 1.0, strength: 1.0 };
        let x = normal(0, &[1, width, kernel, kernel], DType::F32);
        let found = values(&layer.decomposed_change(&x, update).unwrap());
        let expected = values(&ops::low_rank_conv2d(&x, &down, &up, 1.0, 1, 0).unwrap());
        let largest = expected.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
        for (found, expected) in found.into_iter().zip(expected) {
            prop_assert!((found - expected).abs() < 1e-4 * largest, "{found} and {expected}");
        }
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
    fn layers_of_bf16_weights_round_and_do_no_more(
        (batch, rows, width, rank, out) in (1..3usize, 1..40usize, 1..100usize, 1..6usize, 1..100usize),
        (height, width_of_map, kernel) in (4..20usize, 4..20usize, prop_oneof![Just(1usize), Just(3)]),
        (stride, adapted) in (1..3usize, any::<bool>()),
    ) {
        // Rounding changes a factor by at most 2^-9 of its value, on either side.
        const ROUNDING: f64 = 8e-3;
        let bias = normal(2, &[out], DType::F32);
        let half = |shape: &[usize]| (normal(1, shape, DType::BF16), normal(1, shape, DType::BF16).to_dtype(DType::F32).unwrap());
        let (rounded, weight) = half(&[out, width]);
        let layer = FrozenLinear::new(&rounded, Some(&bias)).unwrap();
        let (down, up) = (normal(3, &[rank, width], DType::F32), normal(4, &[out, rank], DType::F32));
        let x = normal(0, &[batch, rows, width], DType::F32);
        if adapted {
            agree_within(ROUNDING, &[x, down, up], &|t| layer.forward_adapted(&t[0], &t[1], &t[2], 0.3, t.get(3)), &|t| {
                composed::linear(&t[0], &weight, Some(&bias))? + composed::low_rank_linear(&t[0], &t[1], &t[2], 0.3)?
            })?;
        } else {
            agree_within(ROUNDING, &[x], &|t| layer.forward(&t[0]), &|t| composed::linear(&t[0], &weight, Some(&bias)))?;
        }
        let (rounded, weight) = half(&[out, width, kernel, kernel]);
        let layer = FrozenConv2d::new(&rounded, Some(&bias), stride, kernel / 2).unwrap();
        let x = normal(0, &[batch, width, height, width_of_map], DType::F32);
        agree_within(ROUNDING, &[x], &|t| layer.forward(&t[0]), &|t| {
            composed::conv2d(&t[0], &weight, Some(&bias), stride, kernel / 2)
        })?;
    }

    #[test]
    fn attention_over_several_blocks_of_keys(
        (heads, width) in (1..3usize, 1..50usize),
        (queries, keys) in (1..150usize, 500..1100usize),
        causal: bool,
    ) {
        let mask = if causal { AttentionMask::Causal } else { AttentionMask::None };
        let q = normal(0, &[1, queries, heads * width], DType::F32);
        let (k, v) = (normal(1, &[1, keys, heads * width], DType::F32), normal(2, &[1, keys, heads * width], DType::F32));
        agree(&[q, k, v], &|t| ops::attention(&t[0], &t[1], &t[2], heads, mask), &|t| {
            composed::attention(&t[0], &t[1], &t[2], heads, mask)
        })?;
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
    fn low_rank_linear(rows in 1..300usize, width in 1..50usize, rank in 1..9usize, out in 1..50usize, dtype in dtype()) {
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
    fn rounded_attention_is_near(
        (batch, heads, width) in (1..3usize, 1..4usize, 1..50usize),
        (queries, keys) in (1..200usize, 1..700usize),
        causal: bool,
    ) {
        let mask = if causal { AttentionMask::Causal } else { AttentionMask::None };
        let n = |sample, tokens| normal(sample, &[batch, tokens, heads * width], DType::F32);
        let inputs = [n(0, queries), n(1, keys), n(2, keys)];
        let rounded = run(&inputs, &|t| ops::attention_rounded(&t[0], &t[1], &t[2], heads, mask)).unwrap();
        let exact = run(&inputs, &|t| ops::attention(&t[0], &t[1], &t[2], heads, mask)).unwrap();
        for (rounded, exact) in rounded.iter().zip(&exact) {
            let (rounded, exact) = (values(rounded), values(exact));
            let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
            let apart = norm(&mut rounded.iter().zip(&exact).map(|(x, y)| x - y));
            // bf16 has eight bits; errors of many terms partly cancel, but so do the terms where a query sees few keys.
            // A few values may all have large errors: one random case in some thousand did.
            let scale = norm(&mut exact.iter().copied()) + (exact.len().max(64) as f64).sqrt();
            prop_assert!(apart <= 0.02 * scale, "{apart} of {scale}");
        }
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

#[test]
fn a_feed_forward_layer_in_pieces_is_the_same_bit_for_bit() {
    const ROWS: usize = 1100;
    for dtype in [DType::F32, DType::BF16] {
        let weight = |sample, shape: &[usize]| normal(sample, shape, DType::F32).to_dtype(dtype).unwrap();
        let norm = FrozenLayerNorm::new(&weight(1, &[24]), &weight(2, &[24]), 1e-5).unwrap();
        let widen = FrozenLinear::new(&weight(3, &[40, 24]), Some(&weight(4, &[40]))).unwrap();
        let narrow = FrozenLinear::new(&weight(5, &[24, 20]), Some(&weight(6, &[24]))).unwrap();
        let x = [normal(0, &[1, ROWS, 24], DType::F32)];
        let pieces = run(&x, &|t| feed_forward(&t[0], &norm, &widen, &narrow)).unwrap();
        let whole = run(&x, &|t| {
            let wide = widen.forward_fused(&t[0], Fusion::after(Prologue::LayerNorm(&norm)))?;
            narrow.forward_fused(&wide, Fusion::after(Prologue::Geglu).onto(&t[0]))
        });
        for (piece, whole) in pieces.iter().zip(&whole.unwrap()) {
            assert_eq!(values(piece), values(whole), "weights of {dtype:?}");
        }
    }
}
