//! Adapted predictions, losses and every gradient against `lora_*.safetensors`.

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{Adapter, AdapterSet};
use catelier_numerics::params::Parameters;
use catelier_pipelines::diffusion::NoiseSchedule;
use catelier_pipelines::loss;
use catelier_pipelines::model::{Condition, Recompute, TextEncoders, UNet};
use catelier_testkit::golden::Fixture;
use catelier_testkit::tolerance::GRADIENT;

use super::adapted::{adapter_of, assert_all_close, trainable};
use super::{assert_output, condition, files, load_unet, reference};

/// A model with the stored adapter as trainable parameters.
struct Lesson {
    fixture: Fixture,
    unet: UNet,
    adapter: Adapter,
    parameters: Parameters,
}

impl Lesson {
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

    fn assert_gradients(&self, loss: &Tensor, prefix: &str) {
        let gradients = self.parameters.collect_gradients(&loss.backward().unwrap()).unwrap();
        assert_all_close("unet", gradients.iter().collect(), &self.fixture, prefix, GRADIENT);
    }

    /// The CAT loss with its preservation term on the draw `draw`, checked with everything it is made of.
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
    let lesson = Lesson::open("lora_sd1", "tiny-sd1");
    let inputs = reference().fixture("unet");
    let sets = [
        ("out_base", AdapterSet::base()),
        ("out", lesson.adapted()),
        ("out_scale_0.6", AdapterSet::single(&lesson.adapter, 0.6)),
    ];
    for (name, adapters) in sets {
        let out = lesson
            .unet
            .predict(
                &inputs.tensor("sd1.latents"),
                &inputs.tensor("sd1.timesteps"),
                &condition(&inputs, "sd1."),
                &adapters,
            )
            .unwrap();
        assert_output(&lesson.fixture, name, &out);
    }
}

#[test]
fn sd1_loss_and_gradients_agree() {
    let lesson = Lesson::open("lora_sd1", "tiny-sd1");
    let loss = lesson.train_loss("train.noise");
    assert_output(&lesson.fixture, "train.loss", &loss);
    lesson.assert_gradients(&loss, "train.grad.");
}

#[test]
fn sd1_min_snr_loss_agrees() {
    const GAMMA: f64 = 5.0;
    let lesson = Lesson::open("lora_sd1", "tiny-sd1");
    let schedule = NoiseSchedule::load(&files("tiny-sd1")).unwrap();
    let timesteps = lesson.fixture.whole_numbers("train.timesteps");
    let weights: Vec<f32> =
        loss::min_snr_weight(&schedule, &timesteps, GAMMA).into_iter().map(|weight| weight as f32).collect();
    let pred = lesson.predict("train.", &condition(&lesson.fixture, "train."), &lesson.adapted());
    let rows = loss::denoising(&pred, &lesson.fixture.tensor("train.noise")).unwrap();
    let weighted = (rows * Tensor::new(weights.as_slice(), &Device::Cpu).unwrap()).unwrap();
    assert_output(&lesson.fixture, "train.loss_min_snr_5", &weighted.mean_all().unwrap());
}

#[test]
fn cat_on_the_same_draw_agrees() {
    Lesson::open("lora_sd1", "tiny-sd1").assert_cat("shared", "train.");
}

#[test]
fn cat_on_a_draw_of_its_own_agrees() {
    Lesson::open("lora_sd1", "tiny-sd1").assert_cat("own", "cat.own.");
}

#[test]
fn sd2_velocity_loss_and_gradients_agree() {
    let lesson = Lesson::open("lora_sd2", "tiny-sd2");
    let loss = lesson.train_loss("train.target");
    assert_output(&lesson.fixture, "train.loss", &loss);
    lesson.assert_gradients(&loss, "train.grad.");
}

#[test]
fn sdxl_loss_and_gradients_agree() {
    let lesson = Lesson::open("lora_sdxl", "tiny-sdxl");
    let loss = lesson.train_loss("train.target");
    assert_output(&lesson.fixture, "train.loss", &loss);
    lesson.assert_gradients(&loss, "train.grad.");
}

#[test]
fn gradients_agree_with_checkpointing_too() {
    let mut lesson = Lesson::open("lora_sd1", "tiny-sd1");
    lesson.unet.recompute(Recompute::All);
    lesson.assert_cat("shared", "train.");
}

#[test]
fn text_encoder_and_unet_train_together() {
    let lesson = Lesson::open("lora_sd1", "tiny-sd1");
    let fixture = reference().fixture("lora_text_sd1");
    let alpha = lesson.fixture.facts()["alpha"].as_f64().unwrap();
    let text_adapter = adapter_of("text_encoder", &fixture, "weight.", alpha);
    let (text_adapter, text_parameters) = text_adapter.trainable(&Device::Cpu).unwrap();
    let encoders = TextEncoders::load(&files("tiny-sd1"), DType::F32, &Device::Cpu).unwrap();
    let prompts = reference().fixture("text").facts()["prompts"].clone();
    let prompts = [prompts[0].as_str().unwrap(), prompts[1].as_str().unwrap()];
    let text_set = AdapterSet::single(&text_adapter, 1.0);
    let hidden = encoders.encode_with(&prompts, 0, &text_set).unwrap();
    assert_output(&fixture, "hidden", &hidden.context);

    let instance = lesson.fixture.facts()["train_prompt"].as_str().unwrap();
    let condition = encoders.encode_with(&[instance, instance], 0, &text_set).unwrap();
    let pred = lesson.predict("train.", &condition, &lesson.adapted());
    let target = lesson.fixture.tensor("train.noise");
    let loss = loss::denoising(&pred, &target).unwrap().mean_all().unwrap();
    assert_output(&fixture, "train.loss", &loss);
    let store = loss.backward().unwrap();
    let gradients = text_parameters.collect_gradients(&store).unwrap();
    assert_all_close("text_encoder", gradients.iter().collect(), &fixture, "train.grad.text.", GRADIENT);
    let gradients = lesson.parameters.collect_gradients(&store).unwrap();
    assert_all_close("unet", gradients.iter().collect(), &fixture, "train.grad.unet.", GRADIENT);
}
