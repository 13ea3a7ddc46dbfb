//! Compares a step, whose passes share computations, with the three separate passes of CAT's definition.

use candle_core::Tensor;
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::params::Gradients;
use catelier_testkit::close::{assert_close, assert_numbers_close};
use catelier_testkit::golden::Golden;
use catelier_testkit::tolerance::{GRADIENT, Tolerance};

use super::*;
use catelier_pipelines::diffusion::loss;
use catelier_pipelines::models::{Condition, UNetConfig, conditions_together};
use catelier_pipelines::training::DenoisingAndCat;

const WEIGHT: f64 = 0.7;
const CAT_WEIGHT: f64 = 1.3;

/// A step of a tiny model whose adapter has non-zero factors: with a fresh adapter the CAT term is zero.
fn step(model: &str, latent: usize, batch: usize) -> TrainingStep {
    let (files, sizes) = (ModelFiles::folder(Golden::open().model(model)), WorkloadSizes { latent, batch });
    let step = TrainingStep::new(&files, sizes, StepLoss::Cat, 2, DType::F32, &Device::Cpu).unwrap();
    for (index, (_, parameter)) in step.parameters.iter().enumerate() {
        let numbers = Noise::new(4).normal(Stream("tests/step"), index as u64, 0, parameter.shape(), &Device::Cpu);
        parameter.set(&(numbers.unwrap() * 0.1).unwrap()).unwrap();
    }
    step
}

impl TrainingStep {
    fn target(&self) -> &CatTarget<'static> {
        self.without_trigger.as_ref().unwrap()
    }

    /// Values of both terms and their gradient, as training computes them.
    fn shared(&self) -> DenoisingAndCat {
        let adapters = AdapterSet::single(&self.adapter, 1.0);
        self.objective(&adapters).denoising_and_cat(&self.batch, self.target(), WEIGHT, CAT_WEIGHT).unwrap()
    }

    /// Values of both terms and their gradient, with nothing shared between the passes.
    fn by_definition(&self) -> ([Vec<f64>; 2], Gradients) {
        let Batch { latents, noise, timesteps, captions, .. } = &self.batch;
        let noisy = self.schedule.add_noise(latents, noise, timesteps).unwrap();
        let at = Tensor::new(timesteps.as_slice(), &Device::Cpu).unwrap();
        let predict =
            |condition: &Condition, adapters: &AdapterSet| self.unet.predict(&noisy, &at, condition, adapters).unwrap();
        let (adapted, without) = (AdapterSet::single(&self.adapter, 1.0), &self.target().captions.condition);
        let target = self.schedule.target(latents, noise, timesteps).unwrap();
        let denoising = loss::denoising(&predict(&captions.condition, &adapted), &target).unwrap();
        let base = predict(without, &AdapterSet::base()).detach();
        let cat = loss::cat(&predict(without, &adapted), &base).unwrap();
        let weighted = |values: &Tensor, weight: f64| (values.mean_all().unwrap() * weight).unwrap();
        let objective = (weighted(&denoising, WEIGHT) + weighted(&cat, CAT_WEIGHT)).unwrap();
        let gradients = self.parameters.collect_gradients(&objective.backward().unwrap()).unwrap();
        let numbers = |values: &Tensor| values.to_dtype(DType::F64).unwrap().to_vec1().unwrap();
        ([numbers(&denoising), numbers(&cat)], gradients)
    }
}

fn assert_is_the_definition(model: &str, latent: usize, batch: usize) {
    let step = step(model, latent, batch);
    let shared = step.shared();
    let ([denoising, cat], gradients) = step.by_definition();
    let what = |part: &str| format!("{part} of {model}, {batch} x {latent} x {latent}");
    assert!(cat.iter().all(|value| *value > 1e-6), "the adapter changes nothing: {cat:?}");
    assert_numbers_close(&what("denoising"), &shared.denoising, &denoising, Tolerance::OfLargest(1e-5));
    assert_numbers_close(&what("CAT"), &shared.cat, &cat, Tolerance::OfLargest(1e-4));
    assert_eq!(shared.gradients.len(), gradients.len());
    for (name, expected) in gradients.iter() {
        assert_close(&what(name), shared.gradients.get(name).unwrap(), expected, GRADIENT);
    }
}

#[test]
fn conditions_in_one_batch_give_the_three_passes_of_the_definition() {
    for model in ["tiny-sd1", "tiny-sd2", "tiny-sdxl"] {
        assert!(conditions_together(2 * 16 * 16, channels(model)));
        assert_is_the_definition(model, 16, 2);
    }
}

#[test]
fn conditions_one_after_the_other_give_the_three_passes_of_the_definition() {
    for model in ["tiny-sd1", "tiny-sd2", "tiny-sdxl"] {
        assert_is_the_definition(model, 32, too_many_together(model, 32));
    }
}

/// Channels of the finest level.
fn channels(model: &str) -> usize {
    UNetConfig::load(&ModelFiles::folder(Golden::open().model(model))).unwrap().levels[0].channels
}

/// The smallest batch whose two conditions do not go through the UNet together.
fn too_many_together(model: &str, latent: usize) -> usize {
    let channels = channels(model);
    (1..).find(|batch| !conditions_together(batch * latent * latent, channels)).unwrap()
}

#[test]
fn a_known_prediction_of_the_base_changes_no_bit() {
    let mut step = step("tiny-sd1", 16, 1);
    let fresh = step.shared();
    assert!(!fresh.noise_pred_base.track_op(), "the base keeps no graph");
    step.without_trigger.as_mut().unwrap().noise_pred_base = Some(fresh.noise_pred_base.clone());
    let known = step.shared();
    assert_same_bits(&known, &fresh);
}

fn assert_same_bits(found: &DenoisingAndCat, expected: &DenoisingAndCat) {
    assert_eq!((&found.denoising, &found.cat), (&expected.denoising, &expected.cat));
    assert_eq!(found.gradients.len(), expected.gradients.len());
    for (name, expected) in expected.gradients.iter() {
        assert_close(name, found.gradients.get(name).unwrap(), expected, Tolerance::Exact);
    }
}

#[test]
fn known_keys_of_prompts_change_no_bit_where_the_adapter_leaves_those_layers_alone() {
    let many = too_many_together("tiny-sd2", 32);
    for (model, latent, batch) in [("tiny-sd1", 16, 1), ("tiny-sdxl", 16, 1), ("tiny-sd2", 32, many)] {
        let mut step = step(model, latent, batch);
        let lora = LoraConfig { rank: 2, alpha: 2.0, dropout: 0.0, targets: "*.attn1.*".parse().unwrap() };
        (step.adapter, step.parameters) = Adapter::init(&lora, step.unet.modules(), 3, &Device::Cpu).unwrap();
        for (_, parameter) in step.parameters.iter() {
            parameter.set(&(parameter.as_tensor() + 0.01).unwrap()).unwrap();
        }
        assert!(step.unet.leaves_cross_attention_unadapted(&AdapterSet::single(&step.adapter, 1.0)));
        step.without_trigger.as_mut().unwrap().captions.keys = None;
        let fresh = step.shared();
        let keys = |context| Some(step.unet.cross_attention_kv(context, &AdapterSet::base()).unwrap());
        step.batch.captions.keys = keys(&step.batch.captions.condition.context);
        step.without_trigger.as_mut().unwrap().captions.keys = keys(&step.target().captions.condition.context);
        assert_same_bits(&step.shared(), &fresh);
    }
}

#[test]
fn known_keys_of_prompts_are_not_used_where_the_adapter_changes_them() {
    let mut step = step("tiny-sd1", 16, 1);
    let adapters = AdapterSet::single(&step.adapter, 1.0);
    assert!(!step.unet.leaves_cross_attention_unadapted(&adapters));
    let run = |step: &TrainingStep| step.objective(&adapters).denoising(&step.batch, WEIGHT).unwrap();
    let fresh = run(&step);
    let keys = step.unet.cross_attention_kv(&step.batch.captions.condition.context, &AdapterSet::base()).unwrap();
    step.batch.captions.keys = Some(keys);
    assert_eq!(run(&step).0, fresh.0);
}
