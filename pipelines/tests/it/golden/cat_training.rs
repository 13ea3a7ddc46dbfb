//! Training on CAT end to end: latents to loss to gradient to parameters, five times over.

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{Adapter, AdapterSet};
use catelier_numerics::optim::{AdamW, AdamWConfig};
use catelier_numerics::params::{Gradients, Parameters};
use catelier_pipelines::diffusion::NoiseSchedule;
use catelier_pipelines::files::ModelFiles;
use catelier_pipelines::loss;
use catelier_pipelines::model::{Condition, UNet};
use catelier_testkit::close::assert_numbers_close;
use catelier_testkit::golden::Fixture;
use catelier_testkit::tolerance::{PARAMETER, Tolerance};

use super::adapted::{assert_parameters_close, trainable};
use super::reference;

/// Clean latents, noise and timesteps of one term.
struct Draw {
    x0: Tensor,
    noise: Tensor,
    timesteps: Vec<u32>,
}

impl Draw {
    fn of(golden: &Fixture, prefix: &str) -> Self {
        Self {
            x0: golden.tensor(&format!("{prefix}.x0")),
            noise: golden.tensor(&format!("{prefix}.noise")),
            timesteps: golden.whole_numbers(&format!("{prefix}.timesteps")),
        }
    }
}

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

    fn predict(&self, draw: &Draw, condition: &Condition, adapters: &AdapterSet) -> Tensor {
        let noisy = self.schedule.add_noise(&draw.x0, &draw.noise, &draw.timesteps).unwrap();
        let timesteps = Tensor::new(draw.timesteps.as_slice(), &Device::Cpu).unwrap();
        self.unet.predict(&noisy, &timesteps, condition, adapters).unwrap()
    }

    /// The mean CAT objective over both draws, and its gradient.
    fn objective(
        &self,
        (instance, class): (&Draw, &Draw),
        adapter: &Adapter,
        parameters: &Parameters,
    ) -> (f64, Gradients) {
        let adapters = AdapterSet::single(adapter, 1.0);
        let target = self.schedule.target(&instance.x0, &instance.noise, &instance.timesteps).unwrap();
        let denoising = loss::denoising(&self.predict(instance, &self.instance, &adapters), &target).unwrap();
        let base = self.predict(class, &self.class, &AdapterSet::base());
        let cat = loss::cat(&self.predict(class, &self.class, &adapters), &base).unwrap();
        let weighted = (cat.mean_all().unwrap() * self.cat_weight).unwrap();
        let total = (denoising.mean_all().unwrap() + weighted).unwrap();
        let gradients = parameters.collect_gradients(&total.backward().unwrap()).unwrap();
        (f64::from(total.to_scalar::<f32>().unwrap()), gradients)
    }
}

fn alpha_of(lora: &Fixture) -> f64 {
    lora.facts()["alpha"].as_f64().unwrap()
}

/// Whether a run of the fixtures clips its gradients.
#[derive(Clone, Copy, PartialEq)]
enum Clipping {
    Off,
    At(f64),
}

/// Five steps of AdamW; compares loss and norm before every step, and the parameters after it.
fn five_steps(run: &str, clipping: Clipping) {
    let (lora, steps) = (reference().fixture("lora_sd1"), reference().fixture("adamw_sd1"));
    let setting = Setting::open(&lora);
    let (adapter, parameters) = trainable(&lora, "weight.", alpha_of(&lora));
    let number = |name: &str| steps.facts()[name].as_f64().unwrap();
    let mut optimizer = AdamW::new(AdamWConfig {
        beta1: steps.facts()["betas"][0].as_f64().unwrap(),
        beta2: steps.facts()["betas"][1].as_f64().unwrap(),
        epsilon: number("eps"),
        weight_decay: number("weight_decay"),
    });
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..5 {
        let instance = Draw::of(&steps, &format!("step{step}.instance"));
        let class = Draw::of(&steps, &format!("step{step}.class"));
        let (total, mut gradients) = setting.objective((&instance, &class), &adapter, &parameters);
        losses.push(total);
        norms.push(match clipping {
            Clipping::Off => gradients.global_norm().unwrap(),
            Clipping::At(limit) => gradients.clip(limit).unwrap(),
        });
        optimizer.step(&parameters, &gradients, number("lr")).unwrap();
        let after = format!("{run}.after{}.", step + 1);
        if !steps.under(&after).is_empty() {
            assert_parameters_close(&parameters, &steps, &after, PARAMETER);
        }
    }
    let parity = Tolerance::OfLargest(1e-5);
    assert_numbers_close("losses", &losses, &steps.values(&format!("{run}.loss")), parity);
    assert_numbers_close("norms", &norms, &steps.values(&format!("{run}.grad_norm")), parity);
}

#[test]
fn five_optimizer_steps_on_cat_agree() {
    five_steps("plain", Clipping::Off);
}

#[test]
fn five_clipped_optimizer_steps_on_cat_agree() {
    let limit = reference().fixture("adamw_sd1").facts()["clip"].as_f64().unwrap();
    five_steps("clip", Clipping::At(limit));
}
