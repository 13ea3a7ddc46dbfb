//! Five optimizer steps of CAT training: each batch goes through the objective and the optimizer of a training run,
//! with the draws of the reference in place of the run's own.

use candle_core::{DType, Device};
use catelier_adapters::{Adapter, AdapterSet};
use catelier_numerics::params::Gradients;
use catelier_pipelines::diffusion::NoiseSchedule;
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::models::{Condition, UNet};
use catelier_pipelines::training::{Batch, Captions, CatTarget, Objective, Optimizer, TrainConfig};
use catelier_testkit::close::assert_numbers_close;
use catelier_testkit::golden::Fixture;
use catelier_testkit::tolerance::{PARAMETER, Tolerance};

use super::adapted::{assert_parameters_close, trainable};
use super::reference;

/// tiny-sd1 with the two contexts of the CAT fixtures.
struct Setting {
    unet: UNet,
    schedule: NoiseSchedule,
    instance: Condition,
    class: Condition,
    cat_weight: f64,
}

impl Setting {
    fn open(lora: &Fixture) -> Self {
        let files = ModelFiles::folder(reference().model("tiny-sd1"));
        let condition = |name: &str| Condition { context: lora.tensor(name), added: None };
        Self {
            unet: UNet::load(&files, DType::F32, &Device::Cpu).unwrap(),
            schedule: NoiseSchedule::load(&files).unwrap(),
            instance: condition("train.context"),
            class: condition("cat.context_class"),
            cat_weight: lora.facts()["lambda"].as_f64().unwrap(),
        }
    }

    /// The stored draw `prefix` under the instance's captions.
    fn batch(&self, golden: &Fixture, prefix: &str) -> Batch<'static> {
        Batch {
            targets: vec![],
            latents: golden.tensor(&format!("{prefix}.x0")),
            noise: golden.tensor(&format!("{prefix}.noise")),
            timesteps: golden.whole_numbers(&format!("{prefix}.timesteps")),
            captions: Captions { condition: self.instance.clone(), keys: None, prompts: None },
            names: vec!["first".into(), "second".into()],
        }
    }

    fn target(&self) -> CatTarget<'static> {
        let captions = Captions { condition: self.class.clone(), keys: None, prompts: None };
        CatTarget { captions, noise_pred_base: None }
    }

    /// The mean CAT objective of step `step`, and its gradient. The reference draws latents, noise and timesteps for
    /// each term separately, so each term is taken from its own batch, in which the other term has weight 0.
    fn objective(&self, golden: &Fixture, step: usize, adapter: &Adapter, optimizer: &Optimizer) -> (f64, Gradients) {
        let adapters = AdapterSet::single(adapter, 1.0);
        let Self { unet, schedule, .. } = self;
        let parameters = optimizer.parameters();
        let objective = Objective { unet, schedule, adapters: &adapters, parameters, min_snr_gamma: None };
        let [instance, class] = ["instance", "class"].map(|term| self.batch(golden, &format!("step{step}.{term}")));
        let (denoising, mut gradients) = objective.denoising(&instance, 1.0).unwrap();
        let both = objective.denoising_and_cat(&class, &self.target(), 0.0, self.cat_weight).unwrap();
        gradients.accumulate(&both.gradients).unwrap();
        (mean(&denoising) + self.cat_weight * mean(&both.cat), gradients)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Five steps of AdamW; compares loss and norm before every step, and the parameters after it.
fn five_steps(run: &str, max_grad_norm: f64) {
    let (lora, steps) = (reference().fixture("lora_sd1"), reference().fixture("adamw_sd1"));
    let setting = Setting::open(&lora);
    let number = |name: &str| steps.facts()[name].as_f64().unwrap();
    let config = TrainConfig {
        learning_rate: number("lr"),
        weight_decay: number("weight_decay"),
        max_grad_norm,
        ..TrainConfig::default()
    };
    let adamw = config.adamw();
    let betas = [&steps.facts()["betas"][0], &steps.facts()["betas"][1]].map(|beta| beta.as_f64().unwrap());
    assert_eq!(([adamw.beta1, adamw.beta2], adamw.epsilon), (betas, number("eps")), "the run's constants");
    let (adapter, parameters) = trainable(&lora, "weight.", lora.facts()["alpha"].as_f64().unwrap());
    let mut optimizer = Optimizer::new(parameters, &config).unwrap();
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..5 {
        let (loss, gradients) = setting.objective(&steps, step, &adapter, &optimizer);
        losses.push(loss);
        norms.push(optimizer.step(step, gradients).unwrap());
        let after = format!("{run}.after{}.", step + 1);
        if !steps.under(&after).is_empty() {
            assert_parameters_close(optimizer.parameters(), &steps, &after, PARAMETER);
        }
    }
    let parity = Tolerance::OfLargest(1e-5);
    assert_numbers_close("losses", &losses, &steps.values(&format!("{run}.loss")), parity);
    assert_numbers_close("norms", &norms, &steps.values(&format!("{run}.grad_norm")), parity);
}

#[test]
fn five_optimizer_steps_on_cat_agree() {
    five_steps("plain", 0.0);
}

#[test]
fn five_clipped_optimizer_steps_on_cat_agree() {
    five_steps("clip", reference().fixture("adamw_sd1").facts()["clip"].as_f64().unwrap());
}
