//! Every gradient agrees with finite differences in f64.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use catelier_numerics::ops::{Decomposed, FrozenConv2d, FrozenLinear, checkpoint, composed, gelu, low_rank_linear};
use catelier_testkit::finite_difference::check;

use crate::material::{every_operation, normal, run, values};

#[test]
fn kernels_have_the_gradients_of_their_functions() {
    for case in every_operation(DType::F64, 4) {
        check(case.name, &case.inputs, &case.f);
    }
}

#[test]
fn composed_operations_have_the_gradients_of_their_functions() {
    let image = normal(0, &[1, 2, 5, 4], DType::F64);
    let (weight, up) = (normal(1, &[3, 2, 3, 3], DType::F64), normal(2, &[2, 3, 1, 1], DType::F64));
    for stride in [1, 2] {
        check("composed low-rank conv", &[image.clone(), weight.clone(), up.clone()], |t| {
            composed::low_rank_conv2d(&t[0], &t[1], &t[2], 0.5, stride, 1)
        });
    }
    check("composed upsampling", std::slice::from_ref(&image), |t| composed::upsample_nearest(&t[0], (7, 8)));
    let affine = [normal(3, &[4], DType::F64), normal(4, &[4], DType::F64)];
    check("composed layer norm", &[image, affine[0].clone(), affine[1].clone()], |t| {
        composed::layer_norm(&t[0], &t[1], &t[2], 1e-5)
    });
}

const SCALE: f64 = 0.7;

fn update(t: &[Tensor]) -> Decomposed<'_> {
    Decomposed { down: &t[1], up: &t[2], magnitude: &t[3], scale: SCALE, strength: 1.0 }
}

/// The norm counts as a constant, so the finite differences are those of a layer whose norm is fixed at its first
/// value; the layer's own gradients must agree with them.
#[track_caller]
fn check_decomposed(
    what: &str,
    inputs: &[Tensor],
    layer: &dyn Fn(&[Tensor]) -> candle_core::Result<Tensor>,
    held: &dyn Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) {
    check(what, inputs, held);
    let (found, expected) = (run(inputs, layer).unwrap(), run(inputs, held).unwrap());
    for (position, (found, expected)) in found.iter().zip(&expected).enumerate() {
        for (found, expected) in values(found).into_iter().zip(values(expected)) {
            assert!((found - expected).abs() < 1e-9, "{what}, tensor {position}: {found} and {expected}");
        }
    }
}

#[test]
fn decomposed_linear_layers_have_the_gradients_of_their_functions() {
    let (weight, bias) = (normal(10, &[5, 6], DType::F64), normal(11, &[5], DType::F64));
    let layer = FrozenLinear::new(&weight, Some(&bias)).unwrap();
    let inputs = [&[2, 3, 6][..], &[2, 6], &[5, 2], &[5], &[2, 3, 5]];
    let inputs: Vec<_> = (0..).zip(inputs).map(|(sample, shape)| normal(sample, shape, DType::F64)).collect();
    let norms = (&weight + (inputs[2].matmul(&inputs[1]).unwrap() * SCALE).unwrap()).unwrap();
    let norms = norms.sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
    check_decomposed(
        "decomposed linear",
        &inputs,
        &|t| layer.forward_decomposed(&t[0], update(t), Some(&t[4])),
        &|t| {
            let y = composed::linear(&t[0], &weight, None)? + composed::low_rank_linear(&t[0], &t[1], &t[2], SCALE)?;
            let y = y?.broadcast_mul(&(&t[3] / &norms)?)?.broadcast_add(&bias)?;
            &t[4] + y
        },
    );
}

#[test]
fn decomposed_convolutions_have_the_gradients_of_their_functions() {
    let (weight, bias) = (normal(10, &[3, 2, 3, 3], DType::F64), normal(11, &[3], DType::F64));
    for stride in [1, 2] {
        let layer = FrozenConv2d::new(&weight, Some(&bias), stride, 1).unwrap();
        let inputs = [&[2, 2, 5, 4][..], &[2, 2, 3, 3], &[3, 2, 1, 1], &[3]];
        let inputs: Vec<_> = (0..).zip(inputs).map(|(sample, shape)| normal(sample, shape, DType::F64)).collect();
        let flat = |tensor: &Tensor| tensor.flatten_from(1).unwrap();
        let delta = (flat(&inputs[2]).matmul(&flat(&inputs[1])).unwrap() * SCALE).unwrap();
        let norms = (flat(&weight) + delta).unwrap().sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
        check_decomposed("decomposed conv", &inputs, &|t| layer.forward_decomposed(&t[0], update(t), None), &|t| {
            let frozen = composed::conv2d(&t[0], &weight, None, stride, 1)?;
            let y = (frozen + composed::low_rank_conv2d(&t[0], &t[1], &t[2], SCALE, stride, 1)?)?;
            let gain = (&t[3] / &norms)?.reshape((1, 3, 1, 1))?;
            y.broadcast_mul(&gain)?.broadcast_add(&bias.reshape((1, 3, 1, 1))?)
        });
    }
}

#[test]
fn an_input_used_twice_receives_both_gradients() {
    let image = normal(0, &[1, 1, 3, 2], DType::F64);
    check("upsampled and plain", &[image], |t| {
        let up = catelier_numerics::ops::upsample_nearest(&t[0], (6, 4))?;
        up.sum_all()? + (t[0].sqr()? * 10.0)?.sum_all()?
    });
}

#[test]
fn checkpoint_has_the_gradients_of_what_it_runs() {
    let layer = FrozenLinear::new(&normal(10, &[4, 3], DType::F64), None).unwrap();
    let tensors: Vec<Tensor> = [&[2, 3][..], &[2, 4], &[2, 3], &[4, 2]]
        .into_iter()
        .enumerate()
        .map(|(sample, shape)| normal(sample as u64, shape, DType::F64))
        .collect();
    check("checkpoint", &tensors, |t| {
        let layer = layer.clone();
        let constant = normal(30, &[4], DType::F64);
        let inputs = [t[0].clone(), constant, t[1].clone()];
        checkpoint(
            &inputs,
            &t[2..],
            Arc::new(move |inputs, parameters| {
                let hidden =
                    (layer.forward(&inputs[0])? + low_rank_linear(&inputs[0], &parameters[0], &parameters[1], 0.5)?)?;
                gelu(&hidden)?.broadcast_mul(&inputs[1])? * &inputs[2]
            }),
        )
    });
}
