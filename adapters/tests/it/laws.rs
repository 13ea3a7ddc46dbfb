//! Laws that hold for any adapter.

use candle_core::{Device, Tensor};
use catelier_adapters::file::{self, Format, Metadata};
use catelier_adapters::{
    Adapter, AdapterSet, DoraFactors, LoraConfig, LoraFactors, ModuleInfo, ModuleKind, Targets, UpdateKind, resize, sum,
};
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::ops::{FrozenConv2d, FrozenLinear};
use proptest::prelude::*;
use tempfile::tempdir;

use crate::base::{assert_same_adapter, values};

const PATH: &str = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";

#[derive(Debug, Clone, Copy)]
struct Case {
    inputs: usize,
    outputs: usize,
    rank: usize,
    alpha: f64,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    (1..12usize, 1..12usize, 1..6usize, 1..64u32, any::<u64>()).prop_map(|(inputs, outputs, rank, alpha, seed)| Case {
        inputs,
        outputs,
        rank,
        alpha: f64::from(alpha) / 8.0,
        seed,
    })
}

fn draw(shape: &[usize], seed: u64, sample: u64) -> Tensor {
    Noise::new(seed).normal(Stream("laws"), 0, sample, shape, &Device::Cpu).unwrap()
}

fn adapter(case: Case) -> Adapter {
    let down = draw(&[case.rank, case.inputs], case.seed, 0);
    let up = draw(&[case.outputs, case.rank], case.seed, 1);
    Adapter::from_iter([(PATH.to_owned(), LoraFactors::new(down, up, case.alpha).unwrap())])
}

fn delta(adapter: &Adapter) -> Tensor {
    adapter.get(PATH).unwrap().low_rank().delta().unwrap()
}

/// A DoRA with magnitudes between a half and one and a half.
fn dora(case: Case) -> Adapter {
    let magnitude = values(&draw(&[case.outputs], case.seed, 4)).into_iter().map(|value| 1.0 + 0.5 * value.sin());
    let magnitude = Tensor::from_vec(magnitude.collect(), case.outputs, &Device::Cpu).unwrap();
    let factors = adapter(case).get(PATH).unwrap().low_rank().clone();
    Adapter::from_iter([(PATH.to_owned(), DoraFactors::new(factors, magnitude).unwrap())])
}

/// The least share of an output's lengths in `weight` and `update` that their sum has.
fn left_of(weight: &Tensor, update: &Tensor) -> f32 {
    let lengths = |kernel: &Tensor| {
        let squares = kernel.flatten_from(1).unwrap().sqr().unwrap().sum(1).unwrap();
        values(&squares.sqrt().unwrap())
    };
    let parts = lengths(weight).into_iter().zip(lengths(update)).map(|(weight, update)| weight + update);
    let sums = lengths(&(weight + update).unwrap());
    sums.into_iter().zip(parts).map(|(sum, parts)| sum / parts).fold(1.0, f32::min)
}

/// Largest difference, relative to the largest value.
fn difference(left: &Tensor, right: &Tensor) -> f32 {
    let largest = values(right).iter().fold(1f32, |max, value| max.max(value.abs()));
    let pairs = values(left).into_iter().zip(values(right));
    pairs.fold(0f32, |max, (l, r)| max.max((l - r).abs())) / largest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn merged_and_unmerged_agree(case in cases(), decomposed: bool, strength in -2.0..2.0f64) {
        // The direction of a row of few weights is badly conditioned: their sum with the update can be almost 0.
        let case = if decomposed { Case { inputs: case.inputs + 4, ..case } } else { case };
        let adapter = if decomposed { dora(case) } else { adapter(case) };
        let weight = draw(&[case.outputs, case.inputs], case.seed, 2);
        let x = draw(&[3, case.inputs], case.seed, 3);
        let layer = |weight: &Tensor| FrozenLinear::new(weight, None).unwrap();
        let apply = |weight: &Tensor| layer(weight).forward(&x).unwrap();
        let adapted = AdapterSet::single(&adapter, strength).linear(PATH, &x, &layer(&weight), None).unwrap();
        let merged = adapter.get(PATH).unwrap().merged_into(&weight, strength).unwrap();
        prop_assert!(difference(&adapted, &apply(&merged)) < 1e-5);
    }

    #[test]
    fn merging_then_unmerging_restores(case in cases()) {
        let adapter = adapter(case);
        let update = adapter.get(PATH).unwrap();
        let weight = draw(&[case.outputs, case.inputs], case.seed, 2);
        let merged = update.merged_into(&weight, 1.0).unwrap();
        let restored = update.merged_into(&merged, -1.0).unwrap();
        let size = values(&merged).iter().fold(1f32, |max, value| max.max(value.abs()));
        prop_assert!(difference(&restored, &weight) < 1e-6 * size);
    }

    #[test]
    fn scaling_is_strength(case in cases(), strength in -2.0..2.0f64) {
        let adapter = adapter(case);
        let expected = (delta(&adapter) * strength).unwrap();
        prop_assert!(difference(&delta(&adapter.scaled(strength).unwrap()), &expected) < 1e-5);
    }

    #[test]
    fn a_sum_is_the_sum_of_updates(case in cases(), other in cases(), weight in -2.0..2.0f64) {
        let other = Case { inputs: case.inputs, outputs: case.outputs, ..other };
        let (left, right) = (adapter(case), adapter(other));
        let sum = sum(&[(&left, 1.0), (&right, weight)]).unwrap();
        let expected = (delta(&left) + (delta(&right) * weight).unwrap()).unwrap();
        prop_assert!(difference(&delta(&sum), &expected) < 1e-5);
    }

    #[test]
    fn resizing_loses_what_it_says(case in cases(), rank in 1..6usize) {
        let original = adapter(case);
        let resized = resize(&original, rank).unwrap();
        let lost = (delta(&original) - delta(&resized.adapter)).unwrap();
        let energy = |tensor: &Tensor| values(tensor).iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
        let share = energy(&lost) / energy(&delta(&original));
        prop_assert!((share - resized.discarded[PATH]).abs() < 1e-5, "{share} and {:?}", resized.discarded);
    }

    #[test]
    fn saving_and_loading_restores(case in cases(), format in 0..3usize, decomposed: bool) {
        let format = [Format::Kohya, Format::Diffusers, Format::Peft][format];
        let kind = ModuleKind::Linear { in_features: case.inputs, out_features: case.outputs };
        let modules = [ModuleInfo { path: PATH.to_owned(), kind }];
        let folder = tempdir().unwrap();
        let path = folder.path().join("adapter_model.safetensors");
        let adapter = if decomposed { dora(case) } else { adapter(case) };
        file::write(&path, &adapter, format, &Metadata::default()).unwrap();
        let loaded = file::read(&path, &modules).unwrap();
        assert_same_adapter(&loaded.adapter, &adapter);
        prop_assert_eq!(loaded.format, format);
    }

    #[test]
    fn a_fresh_dora_is_the_base(case in cases(), strength in -2.0..2.0f64) {
        let (weight, bias) = (draw(&[case.outputs, case.inputs], case.seed, 2), draw(&[case.outputs], case.seed, 5));
        let layer = FrozenLinear::new(&weight, Some(&bias)).unwrap();
        let kind = ModuleKind::Linear { in_features: case.inputs, out_features: case.outputs };
        let config = LoraConfig { rank: case.rank, alpha: case.alpha, dropout: 0.0, targets: Targets::everything() };
        let modules = [ModuleInfo { path: PATH.to_owned(), kind }];
        let (fresh, parameters) =
            Adapter::init_kind(UpdateKind::Dora, &config, &modules, |_| layer.row_norms(), 3, &Device::Cpu).unwrap();
        prop_assert_eq!(parameters.len(), 3);
        let x = draw(&[3, case.inputs], case.seed, 3);
        let adapted = AdapterSet::single(&fresh, strength).linear(PATH, &x, &layer, None).unwrap();
        prop_assert!(difference(&adapted, &layer.forward(&x).unwrap()) < 1e-6);
    }

    #[test]
    fn doubled_magnitudes_double_the_product_and_leave_the_bias(case in cases()) {
        let (weight, bias) = (draw(&[case.outputs, case.inputs], case.seed, 2), draw(&[case.outputs], case.seed, 5));
        let layer = FrozenLinear::new(&weight, Some(&bias)).unwrap();
        let dora = dora(case);
        let doubled = dora.get(PATH).unwrap().try_map(|name, t| if name == "magnitude" { t * 2.0 } else { Ok(t.clone()) });
        let doubled = Adapter::from_iter([(PATH.to_owned(), doubled.unwrap())]);
        let x = draw(&[3, case.inputs], case.seed, 3);
        let product = |adapter: &Adapter| {
            let y = AdapterSet::single(adapter, 1.0).linear(PATH, &x, &layer, None).unwrap();
            y.broadcast_sub(&bias).unwrap()
        };
        let expected = (product(&dora) * 2.0).unwrap();
        prop_assert!(difference(&product(&doubled), &expected) < 1e-5);
    }

    #[test]
    fn a_dora_on_a_convolution_is_the_merged_kernel(
        (channels, out, rank, kernel) in (1..5usize, 1..5usize, 1..4usize, 1..4usize),
        (stride, padding, strength, seed) in (1..3usize, 0..2usize, -1.0..2.0f64, any::<u64>()),
    ) {
        let factors = LoraFactors::new(
            draw(&[rank, channels, kernel, kernel], seed, 0),
            draw(&[out, rank, 1, 1], seed, 1),
            1.5,
        );
        let magnitude = draw(&[out], seed, 4).abs().unwrap();
        let dora = Adapter::from_iter([(PATH.to_owned(), DoraFactors::new(factors.unwrap(), magnitude).unwrap())]);
        let (weight, x) = (draw(&[out, channels, kernel, kernel], seed, 2), draw(&[2, channels, 6, 5], seed, 3));
        // Where update and kernel nearly cancel, dividing by what is left magnifies every rounding.
        prop_assume!(left_of(&weight, &delta(&dora)) > 0.05);
        let layer = |weight: &Tensor| FrozenConv2d::new(weight, None, stride, padding).unwrap();
        let adapted = AdapterSet::single(&dora, strength).conv2d(PATH, &x, &layer(&weight), None).unwrap();
        let merged = dora.get(PATH).unwrap().merged_into(&weight, strength).unwrap();
        prop_assert!(difference(&adapted, &layer(&merged).forward(&x).unwrap()) < 1e-4);
    }

    #[test]
    fn any_bytes_are_an_error_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        std::fs::write(&path, &bytes).unwrap();
        prop_assert!(file::read(&path, &[]).is_err());
        prop_assert!(file::inspect(&path).is_err());
    }
}
