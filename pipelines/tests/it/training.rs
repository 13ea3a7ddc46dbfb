//! Training runs on the tiny models: text encoders, start adapters, observers, states.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{Adapter, AdapterSet, ModuleInfo, Targets, UpdateKind};
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::params::{Gradients, Parameters};
use catelier_numerics::tensor_file::{self, TensorFile};
use catelier_pipelines::data::{Frame, TrainingImage, TrainingImages};
use catelier_pipelines::diffusion::loss;
use catelier_pipelines::generation::{GenerateRequest, Generator};
use catelier_pipelines::models::base::BaseModel;
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::models::{Condition, ImageSizes, Recompute, conditions_together};
use catelier_pipelines::training::{
    Batch, Captions, CatTarget, Control, EncodedDataset, Ending, HeldOutPrompts, Objective, Prompts, Resumed,
    StartingPoint, StateFolder, StepReport, TrainConfig, TrainError, TrainObserver, Trainer,
};
use catelier_prompts::captions::{CaptionSource, pair_text};
use catelier_prompts::{CatCondition, Trigger};
use catelier_testkit::close::{assert_close, assert_numbers_close};
use catelier_testkit::golden::Golden;
use catelier_testkit::tolerance::{GRADIENT, Tolerance};
use image::{Rgb, RgbImage};

const MODELS: [&str; 3] = ["tiny-sd1", "tiny-sd2", "tiny-sdxl"];
/// Targets that select modules of the text encoders only.
const TEXT_ONLY: &str = "q_proj,k_proj,v_proj,out_proj";

fn base(model: &str) -> BaseModel {
    let files = ModelFiles::folder(Golden::open().model(model));
    BaseModel::load(&files, DType::F32, &Device::Cpu).unwrap()
}

/// Two images of 32 pixels, with captions into which the trigger `shs` is inserted.
fn images() -> TrainingImages {
    let trigger = Trigger::new("shs").unwrap();
    let image = |(number, caption): (u32, &str)| {
        let pixel = |x: u32, y: u32| Rgb([(x * 7 + number * 90) as u8, (y * 5) as u8, (x * y) as u8]);
        let sizes = ImageSizes::uncropped(32, 32);
        TrainingImage {
            name: format!("{number}.png"),
            captions: pair_text(caption, &trigger),
            source: CaptionSource::Shared,
            repeats: 1,
            frames: vec![Frame { pixels: RgbImage::from_fn(32, 32, pixel), mirrored: false, sizes }],
        }
    };
    let captions = ["a red teapot", "a painting of a clock"];
    TrainingImages { images: (0..).zip(captions).map(image).collect(), notices: vec![] }
}

fn dataset(base: &BaseModel) -> EncodedDataset {
    EncodedDataset::encode(base, &images(), CatCondition::Caption, None, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

fn config() -> TrainConfig {
    TrainConfig { steps: 3, rank: 2, alpha: 2.0, learning_rate: 1e-2, max_grad_norm: 0.0, ..TrainConfig::default() }
}

fn with_text_encoder() -> TrainConfig {
    TrainConfig { train_text_encoder: true, ..config() }
}

/// Keeps the reports and always continues.
#[derive(Default)]
struct Reports(Vec<StepReport>);

impl TrainObserver for Reports {
    fn on_step(&mut self, report: &StepReport) -> Result<Control, TrainError> {
        self.0.push(report.clone());
        Ok(Control::Continue)
    }

    fn wants_drift(&self, _: usize) -> bool {
        true
    }
}

/// Runs `config` to its end; returns the adapter and the reports.
fn train(
    base: &BaseModel,
    config: &TrainConfig,
    dataset: &EncodedDataset,
    states: &Path,
) -> (Adapter, Vec<StepReport>) {
    let mut trainer = Trainer::new(base, config.clone(), dataset, StateFolder::new(states)).unwrap();
    let mut reports = Reports::default();
    assert_eq!(trainer.run(&mut reports).unwrap(), Ending::Finished);
    (trainer.adapter().unwrap(), reports.0)
}

fn paths(adapter: &Adapter) -> Vec<&str> {
    adapter.iter().map(|(path, _)| path).collect()
}

#[track_caller]
fn assert_same(found: &Adapter, expected: &Adapter) {
    assert_eq!(paths(found), paths(expected));
    for ((path, found), (_, expected)) in found.iter().zip(expected.iter()) {
        for ((name, found), (_, expected)) in found.tensors().zip(expected.tensors()) {
            assert_close(&format!("{path}.{name}"), found, expected, Tolerance::Exact);
        }
    }
}

fn largest(tensor: &Tensor) -> f32 {
    tensor.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn text_encoders_are_trained_together_with_the_unet() {
    let folder = tempfile::tempdir().unwrap();
    for model in MODELS {
        let base = base(model);
        let (adapter, reports) = train(&base, &with_text_encoder(), &dataset(&base), &folder.path().join(model));
        let expected = base.text.conditioning_modules();
        let expected = Targets::attention().select(&expected).unwrap().len();
        let text: Vec<_> = adapter.iter().filter(|(path, _)| path.starts_with("text_encoder")).collect();
        assert_eq!(text.len(), expected, "{model}");
        assert!(
            text.iter().all(|(_, update)| largest(&update.low_rank().up) > 0.0),
            "{model}: a layer was not trained"
        );
        assert!(adapter.len() > text.len(), "{model}: the UNet is trained too");
        // Not 0 on every CPU: without 512-bit vectors, sums of a larger batch may have another order.
        let first = reports[0].cat.unwrap();
        assert!(first < 1e-10, "{model}: a fresh adapter conditions on what the base's encoders give: {first}");
        assert!(reports[2].cat.unwrap() > 0.0, "{model}");
    }
}

#[test]
fn every_kind_trains_in_the_text_encoder() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let config = TrainConfig { kind: UpdateKind::Dora, ..with_text_encoder() };
    let (adapter, _) = train(&base, &config, &dataset(&base), folder.path());
    let text = adapter.iter().filter(|(path, _)| path.starts_with("text_encoder"));
    for (path, update) in text {
        let norms = base.row_norms(path).unwrap();
        let magnitude = update.get("magnitude").unwrap();
        let change = (magnitude - norms.to_dtype(magnitude.dtype()).unwrap()).unwrap();
        assert!(largest(&change) > 0.0 && largest(&update.low_rank().up) > 0.0, "{path} was not trained");
    }
}

#[test]
fn the_last_layer_of_sdxls_first_encoder_is_left_alone() {
    let base = base("tiny-sdxl");
    let last_layers: Vec<String> = ["text_encoder", "text_encoder_2"]
        .into_iter()
        .zip(base.text.encoders())
        .map(|(name, encoder)| format!("{name}.text_model.encoder.layers.{}.", encoder.config().num_hidden_layers - 1))
        .collect();
    let has = |modules: &[ModuleInfo], layer: &str| modules.iter().any(|module| module.path.starts_with(layer));
    let (all, used) = (base.text.modules(), base.text.conditioning_modules());
    assert_eq!([has(all, &last_layers[0]), has(&used, &last_layers[0])], [true, false]);
    assert_eq!([has(all, &last_layers[1]), has(&used, &last_layers[1])], [true, true]);
}

#[test]
fn each_component_moves_at_its_own_learning_rate() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let config = TrainConfig { steps: 1, text_encoder_learning_rate: Some(1e-3), ..with_text_encoder() };
    let (adapter, reports) = train(&base, &config, &dataset(&base), folder.path());
    assert_eq!((reports[0].learning_rate, reports[0].text_encoder_learning_rate), (1e-2, Some(1e-3)));
    for (path, update) in adapter.iter() {
        let up = &update.low_rank().up;
        let rate = if path.starts_with("text_encoder") { 1e-3 } else { 1e-2 };
        // AdamW's first step is the learning rate times the sign of the gradient.
        assert!((largest(up) / rate - 1.0).abs() < 0.01, "{path} moved by {}", largest(up));
    }
}

#[test]
fn a_run_without_the_text_encoder_reports_no_rate_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let (adapter, reports) = train(&base, &config(), &dataset(&base), folder.path());
    assert!(paths(&adapter).iter().all(|path| path.starts_with("unet.")));
    assert!(!serde_json::to_string(&reports[0]).unwrap().contains("text_encoder"));
}

#[test]
fn targets_that_name_no_layer_of_the_text_encoder_are_refused() {
    let (base, folder) = (base("tiny-sd1"), tempfile::tempdir().unwrap());
    let config = TrainConfig { targets: "to_q".parse().unwrap(), ..with_text_encoder() };
    let dataset = dataset(&base);
    let error = Trainer::new(&base, config, &dataset, StateFolder::new(folder.path())).err().unwrap();
    assert!(matches!(error, TrainError::Setting { setting: "targets", .. }), "{error}");
}

/// All data that a resumed run must restore, with both components trained.
#[test]
fn resumed_training_of_both_components_gives_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let config = TrainConfig {
        steps: 4,
        accumulation: 2,
        dropout: 0.2,
        ema_decay: Some(0.5),
        cat_every: 2,
        cat_cached_draws: 2,
        text_encoder_learning_rate: Some(2e-3),
        schedule: catelier_pipelines::training::Curve::Cosine,
        ..with_text_encoder()
    };
    let dataset = dataset(&base).with_keys(&base, &config).unwrap();
    let (whole, _) = train(&base, &config, &dataset, &folder.path().join("whole"));
    let parts = StateFolder::new(folder.path().join("parts"));
    let mut first = Trainer::new(&base, config.clone(), &dataset, parts.clone()).unwrap();
    let ending = first.run(&mut StopAfter(2)).unwrap();
    assert_eq!(ending, Ending::Stopped { step: 2, reason: "enough".into() });
    let mut second = Trainer::new(&base, config, &dataset, parts).unwrap();
    assert_eq!(second.resume().unwrap(), Resumed { step: 2, unusable: vec![] });
    second.run(&mut Reports::default()).unwrap();
    assert_same(&second.adapter().unwrap(), &whole);
}

/// Stops after a step.
struct StopAfter(usize);

impl TrainObserver for StopAfter {
    fn on_step(&mut self, report: &StepReport) -> Result<Control, TrainError> {
        Ok(if report.step == self.0 { Control::Stop("enough".into()) } else { Control::Continue })
    }
}

#[test]
fn keys_and_values_of_the_base_are_not_used_for_trained_conditions() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    // No layer of the UNet is adapted, so the base's keys and values would be used if the conditions were the base's.
    let config = TrainConfig { targets: TEXT_ONLY.parse().unwrap(), ..with_text_encoder() };
    let plain = dataset(&base);
    let with_keys = plain.clone().with_keys(&base, &config).unwrap();
    assert!(with_keys.samples.iter().all(|sample| sample.with_trigger.keys.is_none()));
    assert!(with_keys.samples.iter().all(|sample| sample.without_trigger.keys.is_some()));
    let (expected, _) = train(&base, &config, &plain, &folder.path().join("plain"));
    let (found, _) = train(&base, &config, &with_keys, &folder.path().join("keys"));
    assert_same(&found, &expected);
}

#[test]
fn drift_is_measured_through_the_trained_text_encoder() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let config = TrainConfig { targets: TEXT_ONLY.parse().unwrap(), ..with_text_encoder() };
    let dataset = dataset(&base);
    let mut trainer = Trainer::new(&base, config, &dataset, StateFolder::new(folder.path())).unwrap();
    trainer.measure_drift(&HeldOutPrompts::encode(&base, &["a house", "an elephant"]).unwrap(), &|| false).unwrap();
    let mut reports = Reports::default();
    trainer.run(&mut reports).unwrap();
    assert!(reports.0[2].drift.unwrap() > 0.0, "the adapter is in the text encoder alone");
}

/// Asks to stop once the first prompt of a drift is measured.
#[derive(Default)]
struct StopInDrift {
    asked: Cell<usize>,
    reports: Reports,
}

impl TrainObserver for StopInDrift {
    fn on_step(&mut self, report: &StepReport) -> Result<Control, TrainError> {
        self.reports.on_step(report)?;
        Ok(Control::Stop("asked".into()))
    }

    fn is_stopped(&self) -> bool {
        self.asked.replace(self.asked.get() + 1) > 0
    }

    fn wants_drift(&self, _: usize) -> bool {
        true
    }
}

#[test]
fn a_stop_does_not_wait_for_the_drift_and_the_step_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let dataset = dataset(&base);
    let mut trainer = Trainer::new(&base, config(), &dataset, StateFolder::new(folder.path())).unwrap();
    let prompts = HeldOutPrompts::encode(&base, &["a house", "an elephant", "a tree"]).unwrap();
    let cancelled = trainer.measure_drift(&prompts, &|| true).unwrap_err();
    assert!(matches!(cancelled, TrainError::Pipeline(catelier_pipelines::Error::Cancelled)), "{cancelled}");
    trainer.measure_drift(&prompts, &|| false).unwrap();
    let mut observer = StopInDrift::default();
    let ending = trainer.run(&mut observer).unwrap();
    assert!(matches!(ending, Ending::Stopped { step: 1, .. }), "{ending:?}");
    assert_eq!((observer.asked.get(), observer.reports.0[0].drift), (2, None));
    assert_eq!(trainer.resume().unwrap().step, 1);
}

#[test]
fn class_images_are_denoised_under_the_trained_text_encoder() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let loss = catelier_pipelines::training::LossKind::Dreambooth;
    let config = TrainConfig { loss, targets: TEXT_ONLY.parse().unwrap(), ..with_text_encoder() };
    let images = [RgbImage::from_pixel(32, 32, Rgb([9, 200, 40]))];
    let dataset = dataset(&base).with_class_images(&base, "a teapot", &images).unwrap();
    let dataset = dataset.with_keys(&base, &config).unwrap();
    let (heavy, reports) = train(&base, &config, &dataset, &folder.path().join("heavy"));
    assert!(reports.iter().all(|report| report.prior.unwrap() > 0.0));
    let light = TrainConfig { prior_weight: 1e-3, ..config };
    let (light, _) = train(&base, &light, &dataset, &folder.path().join("light"));
    let differs = |path: &str| {
        let [heavy, light] = [&heavy, &light].map(|adapter| &adapter.get(path).unwrap().low_rank().up);
        largest(&(heavy - light).unwrap()) > 0.0
    };
    assert!(paths(&heavy).into_iter().all(differs), "class images move no text encoder");
}

#[test]
fn recomputed_blocks_change_no_bit_of_either_component() {
    let folder = tempfile::tempdir().unwrap();
    let mut base = base("tiny-sdxl");
    let dataset = dataset(&base);
    let (kept, _) = train(&base, &with_text_encoder(), &dataset, &folder.path().join("kept"));
    base.unet.recompute(Recompute::All);
    let (again, _) = train(&base, &with_text_encoder(), &dataset, &folder.path().join("again"));
    assert_same(&again, &kept);
}

#[test]
fn generation_encodes_with_the_adapter_and_the_base_without() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let config = TrainConfig { targets: TEXT_ONLY.parse().unwrap(), learning_rate: 0.3, ..with_text_encoder() };
    let (adapter, _) = train(&base, &config, &dataset(&base), folder.path());
    let request = GenerateRequest {
        prompts: vec!["a red teapot".into()],
        seeds: vec![3],
        steps: 2,
        width: 64,
        height: 32,
        ..GenerateRequest::default()
    };
    let mut generator = Generator::new(&base);
    let mut draw = |set: &AdapterSet| generator.generate(&request, set, &mut |_| ControlFlow::Continue(())).unwrap();
    let before = draw(&AdapterSet::base());
    assert_ne!(draw(&AdapterSet::single(&adapter, 1.0)), before, "the adapter is in the text encoder alone");
    assert_eq!(draw(&AdapterSet::base()), before);
}

/// One pass of the objective with an adapter that has non-zero factors in every component.
struct Step {
    base: BaseModel,
    adapter: Adapter,
    parameters: Parameters,
    latent: usize,
    batch: usize,
}

const WEIGHT: f64 = 0.7;
const CAT_WEIGHT: f64 = 1.3;

impl Step {
    fn new(model: &str, latent: usize, batch: usize) -> Self {
        let base = base(model);
        let config = with_text_encoder();
        let modules = [base.unet.modules(), &base.text.conditioning_modules()].concat();
        let (adapter, parameters) = Adapter::init(&config.lora(), &modules, 1, &Device::Cpu).unwrap();
        for (index, (_, parameter)) in parameters.iter().enumerate() {
            let values = normal("parameter", index, parameter.dims());
            parameter.set(&(values * 0.1).unwrap()).unwrap();
        }
        Self { base, adapter, parameters, latent, batch }
    }

    fn adapters(&self) -> AdapterSet {
        AdapterSet::single(&self.adapter, 1.0)
    }

    fn sizes(&self) -> Vec<ImageSizes> {
        vec![ImageSizes { original: (40, 48), crop: (4, 0), target: (32, 32) }; self.batch]
    }

    fn encode(&self, text: &str, adapters: &AdapterSet) -> Condition {
        let texts = vec![text; self.batch];
        self.base.text.encode_with(&texts, 0, adapters).unwrap().with_sizes(&self.sizes()).unwrap()
    }

    fn captions(&self, text: &str) -> Captions<'_> {
        let (encoders, texts) = (&self.base.text, vec![text.to_owned(); self.batch]);
        let prompts = Some(Prompts { encoders, texts, sizes: self.sizes() });
        Captions { condition: self.encode(text, &AdapterSet::base()), keys: None, prompts }
    }

    fn batch(&self) -> Batch<'_> {
        let shape = [self.batch, 4, self.latent, self.latent];
        Batch {
            targets: vec![],
            latents: normal("latents", 0, &shape),
            noise: normal("noise", 0, &shape),
            timesteps: (0..self.batch as u32).map(|sample| (137 + 205 * sample) % 1000).collect(),
            captions: self.captions("shs a red teapot"),
            names: vec!["sample".into(); self.batch],
        }
    }

    /// Values of both terms and their gradient, as a training step computes them.
    fn in_training(&self) -> ([Vec<f64>; 2], Gradients) {
        let (batch, adapters) = (self.batch(), self.adapters());
        let objective = Objective {
            unet: &self.base.unet,
            schedule: &self.base.schedule,
            adapters: &adapters,
            parameters: &self.parameters,
            min_snr_gamma: None,
        };
        let target = CatTarget { captions: self.captions("a red teapot"), noise_pred_base: None };
        let both = objective.denoising_and_cat(&batch, &target, WEIGHT, CAT_WEIGHT).unwrap();
        ([both.denoising, both.cat], both.gradients)
    }

    /// Values of both terms by the definition of CAT: three whole predictions; the base's uses the base's text encoder.
    fn by_definition(&self) -> [Tensor; 2] {
        let Batch { latents, noise, timesteps, .. } = self.batch();
        let noisy = self.base.schedule.add_noise(&latents, &noise, &timesteps).unwrap();
        let at = Tensor::new(timesteps.as_slice(), &Device::Cpu).unwrap();
        let predict = |text: &str, adapters: &AdapterSet| {
            self.base.unet.predict(&noisy, &at, &self.encode(text, adapters), adapters).unwrap()
        };
        let (adapted, frozen) = (self.adapters(), AdapterSet::base());
        let target = self.base.schedule.target(&latents, &noise, &timesteps).unwrap();
        let denoising = loss::denoising(&predict("shs a red teapot", &adapted), &target).unwrap();
        let cat = loss::cat(&predict("a red teapot", &adapted), &predict("a red teapot", &frozen)).unwrap();
        [denoising, cat]
    }

    fn total(&self) -> Tensor {
        let [denoising, cat] = self.by_definition().map(|values| values.mean_all().unwrap());
        ((denoising * WEIGHT).unwrap() + (cat * CAT_WEIGHT).unwrap()).unwrap()
    }
}

fn normal(name: &'static str, draw: usize, shape: &[usize]) -> Tensor {
    Noise::new(6).normal(Stream(name), draw as u64, 0, shape, &Device::Cpu).unwrap()
}

fn assert_is_the_definition(step: &Step, what: &str) {
    let ([denoising, cat], found) = step.in_training();
    let values = step.by_definition().map(|values| values.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap());
    assert!(values[1].iter().all(|value| *value > 1e-6), "the adapter changes nothing: {values:?}");
    assert_numbers_close(what, &denoising, &values[0], Tolerance::OfLargest(1e-5));
    assert_numbers_close(what, &cat, &values[1], Tolerance::OfLargest(1e-4));
    let expected = step.parameters.collect_gradients(&step.total().backward().unwrap()).unwrap();
    assert_eq!(found.len(), expected.len());
    for (name, expected) in expected.iter() {
        assert_close(name, found.get(name).unwrap(), expected, GRADIENT);
    }
}

#[test]
fn a_step_with_text_encoders_is_the_three_passes_of_the_definition() {
    for model in MODELS {
        let step = Step::new(model, 16, 2);
        assert!(conditions_together(2 * 16 * 16, step.base.unet.config().levels[0].channels));
        assert_is_the_definition(&step, model);
    }
}

#[test]
fn a_step_with_text_encoders_is_the_definition_where_conditions_go_one_after_the_other() {
    for model in ["tiny-sd1", "tiny-sdxl"] {
        let channels = base(model).unet.config().levels[0].channels;
        let batch = (1..).find(|batch| !conditions_together(batch * 32 * 32, channels)).unwrap();
        assert_is_the_definition(&Step::new(model, 32, batch), model);
    }
}

/// Along the gradient, the objective grows by the gradient's squared norm: no part of it is lost on the way through
/// both text encoders, SDXL's pooled prompt and the UNet.
#[test]
fn the_joint_gradient_agrees_with_finite_differences() {
    for model in MODELS {
        let step = Step::new(model, 8, 1);
        let (_, gradients) = step.in_training();
        for component in ["text_encoder.", "text_encoder_2.", "unet."] {
            let part: Vec<(&str, &Tensor)> = gradients.iter().filter(|(name, _)| name.starts_with(component)).collect();
            let square: f64 = part.iter().map(|(_, gradient)| sum_of_squares(gradient)).sum();
            if part.is_empty() {
                assert!(component == "text_encoder_2." && model != "tiny-sdxl");
                continue;
            }
            let length = 1e-2 / square.sqrt();
            let at = |side: f64| {
                let moved = |sign: f64| {
                    for (name, gradient) in &part {
                        let parameter = step.parameters.get(name).unwrap();
                        let offset = (*gradient * (sign * length)).unwrap();
                        parameter.set(&(parameter.as_detached_tensor() + offset).unwrap()).unwrap();
                    }
                };
                moved(side);
                let total = f64::from(step.total().to_scalar::<f32>().unwrap());
                moved(-side);
                total
            };
            let slope = (at(1.0) - at(-1.0)) / (2.0 * length);
            assert!((slope / square - 1.0).abs() < 0.02, "{model} {component}: slope {slope}, square {square}");
        }
    }
}

fn sum_of_squares(tensor: &Tensor) -> f64 {
    tensor.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar().unwrap()
}

/// An adapter with this `alpha`, trained by a run.
fn start(base: &BaseModel, dataset: &EncodedDataset, alpha: f64, seed: u64, folder: &Path) -> Adapter {
    let config = TrainConfig { alpha, seed, steps: 1, ..config() };
    train(base, &config, dataset, folder).0
}

#[test]
fn a_run_from_an_adapter_keeps_its_alpha_and_rank_with_an_average_too() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let dataset = dataset(&base);
    let start = start(&base, &dataset, 1.0, 1, &folder.path().join("start"));
    let config = TrainConfig { rank: 4, alpha: 8.0, ema_decay: Some(0.9), ..config() };
    let states = StateFolder::new(folder.path().join("run"));
    let mut trainer = Trainer::from_start(&base, config, &dataset, states, start.into()).unwrap();
    assert_eq!((trainer.config().rank, trainer.config().alpha), (2, 1.0));
    trainer.run(&mut Reports::default()).unwrap();
    let adapter = trainer.adapter().unwrap();
    assert_eq!((adapter.uniform_rank(), adapter.uniform_alpha()), (Some(2), Some(1.0)));
}

#[test]
fn a_start_with_other_modules_than_the_targets_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let dataset = dataset(&base);
    let start = start(&base, &dataset, 2.0, 1, &folder.path().join("start"));
    let from = |config: TrainConfig| {
        Trainer::from_start(&base, config, &dataset, StateFolder::new(folder.path()), start.clone().into()).err()
    };
    assert!(from(config()).is_none());
    let fewer = from(TrainConfig { targets: "to_q".parse().unwrap(), ..config() }).unwrap().to_string();
    assert!(fewer.contains("it also adapts") && fewer.contains("to_k"), "{fewer}");
    let more = from(with_text_encoder()).unwrap().to_string();
    assert!(more.contains("it lacks `text_encoder.") && more.contains("more"), "{more}");
}

#[test]
fn a_state_belongs_to_its_start_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let dataset = dataset(&base);
    let [one, other] = [1, 2].map(|seed| start(&base, &dataset, 2.0, seed, &folder.path().join(seed.to_string())));
    let states = StateFolder::new(folder.path().join("run"));
    let from =
        |start: &Adapter| Trainer::from_start(&base, config(), &dataset, states.clone(), start.clone().into()).unwrap();
    from(&one).save().unwrap();
    assert_eq!(from(&one).resume().unwrap().step, 0);
    let error = from(&other).resume().unwrap_err();
    assert!(
        error.to_string().contains("it belongs to another run: it was saved with another start adapter"),
        "{error}"
    );
    let fresh = Trainer::new(&base, config(), &dataset, states.clone()).unwrap().resume().unwrap_err();
    assert!(fresh.to_string().contains("another start adapter"), "{fresh}");
}

/// The adapter of a run from `start`, and the report of its first step.
fn run_from(
    base: &BaseModel,
    dataset: &EncodedDataset,
    config: TrainConfig,
    start: StartingPoint,
    folder: &Path,
) -> (Adapter, StepReport) {
    let mut reports = Reports::default();
    let mut trainer = Trainer::from_start(base, config, dataset, StateFolder::new(folder), start).unwrap();
    trainer.run(&mut reports).unwrap();
    (trainer.adapter().unwrap(), reports.0[0].clone())
}

fn named(adapter: &Adapter) -> BTreeMap<String, Tensor> {
    let tensors = |(path, update): (&str, &catelier_adapters::LayerUpdate)| -> Vec<(String, Tensor)> {
        update.tensors().map(|(name, tensor)| (format!("{path}.{name}"), tensor.clone())).collect()
    };
    adapter.iter().flat_map(tensors).collect()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// With no clipping, each parameter's step depends on its own gradient alone.
#[test]
fn frozen_parameters_keep_their_bits_and_the_others_train_as_if_nothing_were_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let dataset = dataset(&base);
    let start = start(&base, &dataset, 2.0, 1, &folder.path().join("start"));
    let downs = named(&start).into_keys().filter(|name| name.ends_with(".down")).collect::<BTreeSet<_>>();
    for ema_decay in [None, Some(0.5)] {
        let config = TrainConfig { steps: 1, max_grad_norm: 0.0, ema_decay, ..config() };
        let run = |frozen: BTreeSet<String>, name: &str| {
            let start = StartingPoint { frozen, ..start.clone().into() };
            run_from(&base, &dataset, config.clone(), start, &folder.path().join(name)).0
        };
        let (whole, half) = (named(&run(BTreeSet::new(), "whole")), named(&run(downs.clone(), "half")));
        for (name, before) in named(&start) {
            let (whole, half) = (&whole[&name], &half[&name]);
            assert_ne!(bits(whole), bits(&before), "{name}");
            match downs.contains(&name) {
                true => assert_eq!(bits(half), bits(&before), "{name}"),
                false => {
                    let distance = (half - whole).unwrap().abs().unwrap().max_all().unwrap();
                    assert!(distance.to_scalar::<f32>().unwrap() < 1e-6, "{name}");
                }
            }
        }
    }
}

#[test]
fn a_merged_update_acts_in_both_adapted_predictions_and_not_in_the_base() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let dataset = dataset(&base);
    let merged = start(&base, &dataset, 2.0, 1, &folder.path().join("start"));
    // Large enough to be seen in the loss.
    let merged = merged.scaled(50.0).unwrap();
    let fresh = Trainer::fresh_adapter(&base, &config()).unwrap();
    let run =
        |start: StartingPoint, name: &str| run_from(&base, &dataset, config(), start, &folder.path().join(name)).1;
    let stacked = run(StartingPoint { merged: Some(merged.clone()), ..fresh.clone().into() }, "stacked");
    let (alone, bare) = (run(merged.into(), "alone"), run(fresh.into(), "bare"));
    let near = |one: f64, other: f64| (one / other - 1.0).abs() < 1e-4;
    assert!(near(stacked.denoising, alone.denoising) && near(stacked.cat.unwrap(), alone.cat.unwrap()), "{stacked:?}");
    assert!(!near(stacked.denoising, bare.denoising), "{stacked:?}");
}

#[test]
fn a_run_with_frozen_parameters_a_merged_update_and_a_proximal_term_resumes_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let dataset = dataset(&base);
    let adapter = start(&base, &dataset, 2.0, 1, &folder.path().join("start"));
    let frozen = named(&adapter).into_keys().filter(|name| name.ends_with(".down")).collect::<BTreeSet<_>>();
    let start = StartingPoint { frozen, merged: Some(adapter.clone()), proximal: 0.5, adapter };
    let whole = run_from(&base, &dataset, config(), start.clone(), &folder.path().join("whole")).0;
    let states = StateFolder::new(folder.path().join("halves"));
    let trainer = |steps: usize, start: &StartingPoint| {
        let config = TrainConfig { steps, ..config() };
        Trainer::from_start(&base, config, &dataset, states.clone(), start.clone()).unwrap()
    };
    let mut first = trainer(1, &start);
    first.run(&mut Reports::default()).unwrap();
    first.save().unwrap();
    let mut second = trainer(config().steps, &start);
    assert_eq!(second.resume().unwrap().step, 1);
    second.run(&mut Reports::default()).unwrap();
    let (whole, halves) = (named(&whole), named(&second.adapter().unwrap()));
    assert!(whole.iter().all(|(name, tensor)| bits(tensor) == bits(&halves[name])));

    let others = [
        StartingPoint { frozen: BTreeSet::new(), ..start.clone() },
        StartingPoint { merged: None, ..start.clone() },
        StartingPoint { proximal: 0.25, ..start.clone() },
    ];
    for other in others {
        assert!(trainer(2, &other).resume().unwrap_err().to_string().contains("another part of it frozen"));
    }
}

#[test]
fn the_proximal_term_holds_a_run_near_its_start() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let dataset = dataset(&base);
    let adapter = start(&base, &dataset, 2.0, 1, &folder.path().join("start"));
    let config = TrainConfig { steps: 6, max_grad_norm: 0.0, ..config() };
    let moved = |proximal: f64| {
        let start = StartingPoint { proximal, ..adapter.clone().into() };
        let own = run_from(&base, &dataset, config.clone(), start, &folder.path().join(proximal.to_string())).0;
        let (before, after) = (named(&adapter), named(&own));
        before.iter().map(|(name, before)| sum_of_squares(&(&after[name] - before).unwrap())).sum::<f64>().sqrt()
    };
    let [free, held] = [0.0, 1e4].map(moved);
    assert!(held < 0.8 * free, "{held} of {free}");
}

#[test]
fn a_start_that_leaves_nothing_to_train_or_freezes_what_is_not_there_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let dataset = dataset(&base);
    let adapter = start(&base, &dataset, 2.0, 1, &folder.path().join("start"));
    let refused = |start: StartingPoint| {
        Trainer::from_start(&base, config(), &dataset, StateFolder::new(folder.path()), start).err().unwrap()
    };
    let all = StartingPoint { frozen: named(&adapter).into_keys().collect(), ..adapter.clone().into() };
    assert!(refused(all).to_string().contains("nothing to train"));
    let unknown = StartingPoint { frozen: ["unet.nowhere.up".to_owned()].into(), ..adapter.clone().into() };
    assert!(refused(unknown).to_string().contains("unet.nowhere.up"));
    let far = StartingPoint { proximal: f64::NAN, ..adapter.into() };
    assert!(refused(far).to_string().contains("`proximal` is NaN"));
}

/// A run of two steps with both of its states, and the folder of the states.
fn two_states(config: &TrainConfig, dataset: &EncodedDataset, base: &BaseModel, folder: &Path) -> StateFolder {
    let states = StateFolder::new(folder);
    let mut trainer = Trainer::new(base, config.clone(), dataset, states.clone()).unwrap();
    trainer.run(&mut SaveTwo).unwrap();
    states
}

/// Saves after the first step, and stops after the second.
struct SaveTwo;

impl TrainObserver for SaveTwo {
    fn on_step(&mut self, report: &StepReport) -> Result<Control, TrainError> {
        Ok(if report.step == 2 { Control::Stop("enough".into()) } else { Control::Save })
    }
}

#[test]
fn a_state_with_any_flipped_bit_gives_way_to_the_older_one() {
    let folder = tempfile::tempdir().unwrap();
    let (base, config) = (base("tiny-sd1"), TrainConfig { ema_decay: Some(0.5), ..config() });
    let dataset = dataset(&base);
    let states = two_states(&config, &dataset, &base, folder.path());
    let newest = folder.path().join("step-000002.safetensors");
    let whole = std::fs::read(&newest).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let resume = || Trainer::new(&base, config.clone(), &dataset, states.clone()).unwrap().resume().unwrap();
    assert_eq!(resume(), Resumed { step: 2, unusable: vec![] });
    let mut random = 1u64;
    for round in 0..300 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // Every other flip is in the header, which is a small part of the file.
        let bits = 8 * if round % 2 == 0 { header } else { whole.len() };
        let bit = (random >> 16) as usize % bits;
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&newest, flipped).unwrap();
        let Resumed { step, unusable } = resume();
        assert_eq!((step, unusable.len()), (1, 1), "bit {bit}");
        assert!(unusable[0].path == newest && !unusable[0].is_of_another_run, "bit {bit}: {}", unusable[0]);
    }
    for length in [0, 7, header / 2, header, whole.len() - 1] {
        std::fs::write(&newest, &whole[..length]).unwrap();
        assert_eq!(resume().step, 1, "{length} bytes");
    }
}

/// The state in `path`, written again with another content.
fn rewrite(
    path: &Path,
    change: impl FnOnce(&mut BTreeMap<String, Tensor>, &mut BTreeMap<String, String>),
    checked: bool,
) {
    let file = TensorFile::open(path).unwrap();
    let tensor = |name: &str| (name.to_owned(), file.tensor(name, &Device::Cpu).unwrap());
    let (mut tensors, mut metadata) = (file.names().map(tensor).collect(), file.metadata().clone());
    metadata.remove(tensor_file::CHECKSUM);
    change(&mut tensors, &mut metadata);
    let write = if checked { tensor_file::write_checked } else { tensor_file::write };
    write(path, &tensors, &metadata).unwrap();
}

#[test]
fn states_that_no_run_can_go_on_from_are_refused_with_the_reason() {
    type Metadata = BTreeMap<String, String>;
    type Tensors = BTreeMap<String, Tensor>;
    fn set(metadata: &mut Metadata, key: &str, value: &str) {
        metadata.insert(key.into(), value.into());
    }
    type Case = (fn(&mut Tensors, &mut Metadata), bool, &'static str);
    let cases: [Case; 7] = [
        (|_, metadata| set(metadata, "step", "999999999"), true, "its name and its step `999999999` do not agree"),
        (|_, metadata| set(metadata, "step", "18446744073709551616"), true, "do not agree"),
        (|_, metadata| set(metadata, "version", "4"), true, "version `4` is not read"),
        (|_, metadata| set(metadata, "format", "other"), true, "no saved state"),
        (|_, _| {}, false, "its checksum is missing"),
        (|_, metadata| set(metadata, "average_updates", "many"), true, "invalid digit"),
        (
            |tensors, _| {
                let (name, tensor) = tensors.iter().find(|(name, _)| name.contains("second_moment")).unwrap();
                let nan = (tensor.zeros_like().unwrap() / 0.0).unwrap();
                tensors.insert(name.clone(), nan);
            },
            true,
            "has values that are not finite",
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    let (base, config) = (base("tiny-sd1"), TrainConfig { ema_decay: Some(0.5), ..config() });
    let dataset = dataset(&base);
    let states = two_states(&config, &dataset, &base, folder.path());
    let newest = folder.path().join("step-000002.safetensors");
    let whole = std::fs::read(&newest).unwrap();
    for (change, checked, reason) in cases {
        std::fs::write(&newest, &whole).unwrap();
        rewrite(&newest, change, checked);
        let resumed = Trainer::new(&base, config.clone(), &dataset, states.clone()).unwrap().resume().unwrap();
        assert_eq!(resumed.step, 1, "{reason}");
        assert!(resumed.unusable[0].reason.contains(reason), "expected `{reason}`: {}", resumed.unusable[0]);
    }
}

#[test]
fn a_state_of_the_version_before_checksums_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let dataset = dataset(&base);
    let states = two_states(&config(), &dataset, &base, folder.path());
    let as_version_2 = |_: &mut BTreeMap<String, Tensor>, metadata: &mut BTreeMap<String, String>| {
        metadata.insert("version".into(), "2".into());
    };
    rewrite(&folder.path().join("step-000002.safetensors"), as_version_2, false);
    assert_eq!(Trainer::new(&base, config(), &dataset, states).unwrap().resume().unwrap().step, 2);
}

#[test]
fn saving_keeps_the_state_before_whatever_else_lies_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let dataset = dataset(&base);
    for step in [900, 901, 902] {
        std::fs::write(folder.path().join(format!("step-{step:06}.safetensors")), "foreign").unwrap();
    }
    two_states(&config(), &dataset, &base, folder.path());
    let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let expected = [1, 2, 900, 901, 902].map(|step| format!("step-{step:06}.safetensors"));
    assert!(names.iter().eq(expected.iter().map(|name| name.as_str())), "{names:?}");
}

/// Saves after every step, keeps the adapter of step 2, and fails or stops there.
struct Watch {
    saved: StateFolder,
    kept: Option<Adapter>,
    fails: bool,
}

impl TrainObserver for Watch {
    fn on_step(&mut self, report: &StepReport) -> Result<Control, TrainError> {
        assert_eq!(self.saved.is_empty(), report.step == 1, "saving is asked for in every step");
        Ok(Control::Save)
    }

    fn wants_adapter(&self, step: usize) -> bool {
        step == 2
    }

    fn on_adapter(&mut self, _: usize, adapter: &Adapter) -> Result<Control, TrainError> {
        self.kept = Some(adapter.clone());
        match self.fails {
            true => Err(TrainError::observer(std::io::Error::other("no paper"))),
            false => Ok(Control::Stop("best so far".into())),
        }
    }
}

#[test]
fn an_observer_saves_keeps_the_adapter_and_stops_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let dataset = dataset(&base);
    let states = StateFolder::new(folder.path());
    let mut trainer = Trainer::new(&base, config(), &dataset, states.clone()).unwrap();
    let mut watch = Watch { saved: states, kept: None, fails: false };
    let ending = trainer.run(&mut watch).unwrap();
    assert_eq!(ending, Ending::Stopped { step: 2, reason: "best so far".into() });
    assert_same(&watch.kept.unwrap(), &trainer.adapter().unwrap());
}

#[test]
fn the_failure_of_an_observer_keeps_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let base = base("tiny-sd1");
    let dataset = dataset(&base);
    let states = StateFolder::new(folder.path());
    let mut trainer = Trainer::new(&base, config(), &dataset, states.clone()).unwrap();
    let error = trainer.run(&mut Watch { saved: states, kept: None, fails: true }).unwrap_err();
    let source = error.source().unwrap();
    assert!(source.downcast_ref::<std::io::Error>().is_some(), "{source}");
    assert_eq!(source.to_string(), "no paper");
}
