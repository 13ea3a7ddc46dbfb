//! Predictions, losses and all gradients of LoRAs against `lora_*.safetensors`.

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{Adapter, AdapterSet};
use catelier_numerics::params::Parameters;
use catelier_pipelines::diffusion::NoiseSchedule;
use catelier_pipelines::diffusion::loss;
use catelier_pipelines::models::{Condition, ImageSizes, Recompute, TextEncoders, UNet};
use catelier_pipelines::training::{Batch, Captions, CatTarget, Objective, Prompts};
use catelier_testkit::golden::Fixture;
use catelier_testkit::tolerance::GRADIENT;

use super::adapted::{adapter_of, assert_all_close, trainable};
use super::{assert_output, condition, files, load_unet, reference};

/// A model with the stored adapter as parameters in training.
struct Trained {
    fixture: Fixture,
    unet: UNet,
    adapter: Adapter,
    parameters: Parameters,
}

impl Trained {
    fn open(topic: &str, model: &str) -> Self {
        let fixture = reference().fixture(topic);
        let (adapter, parameters) = trainable(&fixture, "weight.", fixture.facts()["alpha"].as_f64().unwrap());
        Self { unet: load_unet(model), adapter, parameters, fixture }
    }

    fn adapted(&self) -> AdapterSet {
        AdapterSet::single(&self.adapter, 1.0)
    }

    /// A prediction on the stored draw `<prefix>noisy`, `<prefix>timesteps`.
    fn predict(&self, prefix: &str, condition: &Condition, adapters: &AdapterSet) -> Tensor {
        let noisy = self.fixture.tensor(&format!("{prefix}noisy"));
        let timesteps = self.fixture.tensor(&format!("{prefix}timesteps"));
        self.unet.predict(&noisy, &timesteps, condition, adapters).unwrap()
    }

    /// The adapted prediction on `train.*` and its loss.
    fn train_loss(&self, target: &str) -> Tensor {
        let pred = self.predict("train.", &condition(&self.fixture, "train."), &self.adapted());
        if self.fixture.try_tensor("train.pred").is_some() {
            assert_output(&self.fixture, "train.pred", &pred);
        }
        loss::denoising(&pred, &self.fixture.tensor(target)).unwrap().mean_all().unwrap()
    }

    /// The stored draw under `captions`, as a batch of a training step.
    fn batch<'a>(&self, captions: Captions<'a>) -> Batch<'a> {
        Batch {
            targets: vec![],
            latents: self.fixture.tensor("train.x0"),
            noise: self.fixture.tensor("train.noise"),
            timesteps: self.fixture.whole_numbers("train.timesteps"),
            captions,
            names: vec!["first".into(), "second".into()],
        }
    }

    fn objective<'a>(
        &'a self,
        schedule: &'a NoiseSchedule,
        adapters: &'a AdapterSet,
        parameters: &'a Parameters,
    ) -> Objective<'a> {
        Objective { unet: &self.unet, schedule, adapters, parameters, min_snr_gamma: None }
    }

    fn assert_gradients(&self, loss: &Tensor, prefix: &str) {
        let gradients = self.parameters.collect_gradients(&loss.backward().unwrap()).unwrap();
        assert_all_close("unet", gradients.iter().collect(), &self.fixture, prefix, GRADIENT);
    }

    /// Checks the CAT loss on the draw `draw`, and every part of it.
    fn assert_cat(&self, form: &str, draw: &str) {
        let name = |tail: &str| format!("cat.{form}.{tail}");
        let class = Condition { context: self.fixture.tensor("cat.context_class"), added: None };
        let base = self.predict(draw, &class, &AdapterSet::base());
        assert_output(&self.fixture, &name("base_pred"), &base);
        let adapted = self.predict(draw, &class, &self.adapted());
        assert_output(&self.fixture, &name("class_pred"), &adapted);
        let instance = self.train_loss("train.noise");
        let preserve = loss::cat(&adapted, &base).unwrap().mean_all().unwrap();
        assert_output(&self.fixture, &name("loss_instance"), &instance);
        assert_output(&self.fixture, &name("loss_preserve"), &preserve);
        let weight = self.fixture.facts()["lambda"].as_f64().unwrap();
        let total = (instance + (preserve * weight).unwrap()).unwrap();
        assert_output(&self.fixture, &name("loss"), &total);
        self.assert_gradients(&total, &name("grad."));
    }
}

#[test]
fn the_adapter_changes_outputs_by_its_strength() {
    let trained = Trained::open("lora_sd1", "tiny-sd1");
    let inputs = reference().fixture("unet");
    let sets = [
        ("out_base", AdapterSet::base()),
        ("out", trained.adapted()),
        ("out_scale_0.6", AdapterSet::single(&trained.adapter, 0.6)),
    ];
    for (name, adapters) in sets {
        let out = trained
            .unet
            .predict(
                &inputs.tensor("sd1.latents"),
                &inputs.tensor("sd1.timesteps"),
                &condition(&inputs, "sd1."),
                &adapters,
            )
            .unwrap();
        assert_output(&trained.fixture, name, &out);
    }
}

#[test]
fn sd1_loss_and_gradients_agree() {
    let trained = Trained::open("lora_sd1", "tiny-sd1");
    let loss = trained.train_loss("train.noise");
    assert_output(&trained.fixture, "train.loss", &loss);
    trained.assert_gradients(&loss, "train.grad.");
}

#[test]
fn sd1_min_snr_loss_agrees() {
    const GAMMA: f64 = 5.0;
    let trained = Trained::open("lora_sd1", "tiny-sd1");
    let schedule = NoiseSchedule::load(&files("tiny-sd1")).unwrap();
    let timesteps = trained.fixture.whole_numbers("train.timesteps");
    let weights: Vec<f32> =
        loss::min_snr_weight(&schedule, &timesteps, GAMMA).into_iter().map(|weight| weight as f32).collect();
    let pred = trained.predict("train.", &condition(&trained.fixture, "train."), &trained.adapted());
    let rows = loss::denoising(&pred, &trained.fixture.tensor("train.noise")).unwrap();
    let weighted = (rows * Tensor::new(weights.as_slice(), &Device::Cpu).unwrap()).unwrap();
    assert_output(&trained.fixture, "train.loss_min_snr_5", &weighted.mean_all().unwrap());
}

#[test]
fn cat_on_the_same_draw_agrees() {
    Trained::open("lora_sd1", "tiny-sd1").assert_cat("shared", "train.");
}

#[test]
fn cat_on_a_draw_of_its_own_agrees() {
    Trained::open("lora_sd1", "tiny-sd1").assert_cat("own", "cat.own.");
}

#[test]
fn sd2_velocity_loss_and_gradients_agree() {
    let trained = Trained::open("lora_sd2", "tiny-sd2");
    let loss = trained.train_loss("train.target");
    assert_output(&trained.fixture, "train.loss", &loss);
    trained.assert_gradients(&loss, "train.grad.");
}

#[test]
fn sdxl_loss_and_gradients_agree() {
    let trained = Trained::open("lora_sdxl", "tiny-sdxl");
    let loss = trained.train_loss("train.target");
    assert_output(&trained.fixture, "train.loss", &loss);
    trained.assert_gradients(&loss, "train.grad.");
}

#[test]
fn gradients_agree_with_checkpointing_too() {
    let mut trained = Trained::open("lora_sd1", "tiny-sd1");
    trained.unet.recompute(Recompute::All);
    trained.assert_cat("shared", "train.");
}

/// The objective of a training step: both terms on one draw, with both conditions of the fixture.
#[test]
fn the_objective_of_a_cat_step_agrees() {
    let trained = Trained::open("lora_sd1", "tiny-sd1");
    let weight = trained.fixture.facts()["lambda"].as_f64().unwrap();
    let class = Condition { context: trained.fixture.tensor("cat.context_class"), added: None };
    let captions = |condition| Captions { condition, keys: None, prompts: None };
    let target = CatTarget { captions: captions(class), noise_pred_base: None };
    let batch = trained.batch(captions(condition(&trained.fixture, "train.")));
    let schedule = NoiseSchedule::load(&files("tiny-sd1")).unwrap();
    let adapters = trained.adapted();
    let both = trained.objective(&schedule, &adapters, &trained.parameters);
    let both = both.denoising_and_cat(&batch, &target, 1.0, weight).unwrap();
    assert_output(&trained.fixture, "cat.shared.base_pred", &both.noise_pred_base);
    for (name, values) in [("loss_instance", &both.denoising), ("loss_preserve", &both.cat)] {
        assert_mean(&trained.fixture, &format!("cat.shared.{name}"), values);
    }
    assert_all_close("unet", both.gradients.iter().collect(), &trained.fixture, "cat.shared.grad.", GRADIENT);
}

/// A training step that trains the text encoder: conditions are encoded from captions inside the step.
#[test]
fn text_encoder_and_unet_train_together() {
    let trained = Trained::open("lora_sd1", "tiny-sd1");
    let fixture = reference().fixture("lora_text_sd1");
    let alpha = trained.fixture.facts()["alpha"].as_f64().unwrap();
    let text = adapter_of("text_encoder", &fixture, "weight.", alpha);
    let both = text.iter().chain(trained.adapter.iter());
    let both: Adapter = both.map(|(path, factors)| (path.to_owned(), factors.clone())).collect();
    let (adapter, parameters) = both.trainable(&Device::Cpu).unwrap();
    let adapters = AdapterSet::single(&adapter, 1.0);

    let encoders = TextEncoders::load(&files("tiny-sd1"), DType::F32, &Device::Cpu).unwrap();
    let prompts = reference().fixture("text").facts()["prompts"].clone();
    let prompts = [prompts[0].as_str().unwrap(), prompts[1].as_str().unwrap()];
    assert_output(&fixture, "hidden", &encoders.encode_with(&prompts, 0, &adapters).unwrap().context);

    let caption = trained.fixture.facts()["train_prompt"].as_str().unwrap();
    let prompts =
        Prompts { encoders: &encoders, texts: vec![caption.into(); 2], sizes: vec![ImageSizes::uncropped(64, 64); 2] };
    // An adapted prediction must not depend on the base's condition.
    let condition = encoders.encode(&["", ""]).unwrap();
    let batch = trained.batch(Captions { condition, keys: None, prompts: Some(prompts) });
    let schedule = NoiseSchedule::load(&files("tiny-sd1")).unwrap();
    let (losses, gradients) = trained.objective(&schedule, &adapters, &parameters).denoising(&batch, 1.0).unwrap();
    assert_mean(&fixture, "train.loss", &losses);
    for (component, prefix) in [("text_encoder", "train.grad.text."), ("unet", "train.grad.unet.")] {
        let of_component = |(path, _): &(&str, &Tensor)| path.split('.').next() == Some(component);
        let found = gradients.iter().filter(of_component).collect();
        assert_all_close(component, found, &fixture, prefix, GRADIENT);
    }
}

/// Asserts that the mean of `values` is the fixture's scalar `name`.
fn assert_mean(fixture: &Fixture, name: &str, values: &[f64]) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    assert_output(fixture, name, &Tensor::new(mean as f32, &Device::Cpu).unwrap());
}
