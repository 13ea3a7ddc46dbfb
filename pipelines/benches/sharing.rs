//! Time of a CAT step by the computations that its passes share, one more at a time. The gradients are the same.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench may panic, and criterion's macros document nothing")]

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{Adapter, AdapterSet, LoraConfig, Targets};
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::ops::backward;
use catelier_numerics::params::{Gradients, Parameters};
use catelier_numerics::work;
use catelier_pipelines::diffusion::loss::{cat, denoising};
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::models::{Condition, CrossAttentionKv, UNet};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// The allocator of the `catelier` command.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The computations that the passes of a step share.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shared {
    Nothing,
    /// The layers before the first attention.
    Prefix,
    /// Also the base's keys and values of each caption, over all steps.
    Keys,
    /// Also one batch for both adapted passes.
    Batch,
}

const ALL: [(&str, Shared); 4] = [
    ("nothing shared", Shared::Nothing),
    ("+ the prefix", Shared::Prefix),
    ("+ the base's keys", Shared::Keys),
    ("+ one adapted batch", Shared::Batch),
];

/// The inputs of a step.
struct Step {
    unet: UNet,
    adapter: Adapter,
    parameters: Parameters,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    with_trigger: Condition,
    without_trigger: Condition,
    keys: CrossAttentionKv,
}

impl Step {
    fn new(batch: usize) -> Self {
        let base = ModelFiles::folder(Path::new(env!("CARGO_MANIFEST_DIR")).join("../base"));
        let unet = UNet::load(&base, DType::F32, &Device::Cpu).unwrap();
        let lora = LoraConfig { rank: 8, alpha: 8.0, dropout: 0.0, targets: Targets::attention() };
        let (adapter, parameters) = Adapter::init(&lora, unet.modules(), 1, &Device::Cpu).unwrap();
        let side = unet.config().sample_size.unwrap();
        let map = |stream| normal(stream, &[batch, unet.config().in_channels, side, side]);
        let prompt =
            |stream| Condition { context: normal(stream, &[batch, 77, unet.config().context_width()]), added: None };
        let without_trigger = prompt("without");
        let keys = unet.cross_attention_kv(&without_trigger.context, &AdapterSet::base()).unwrap();
        let (latents, noise) = (map("latents"), map("noise"));
        let timesteps = Tensor::full(500u32, batch, &Device::Cpu).unwrap();
        let with_trigger = prompt("with");
        Self { unet, adapter, parameters, latents, noise, timesteps, with_trigger, without_trigger, keys }
    }

    fn gradients(&self, shared: Shared) -> Gradients {
        let (adapters, none) = (AdapterSet::single(&self.adapter, 1.0), AdapterSet::base());
        let shared_prefix = self.unet.shared_prefix(&self.latents, &self.timesteps, &[&adapters]).unwrap();
        let prefix = self.unet.prefix(&shared_prefix, None).unwrap();
        let predict = |condition: &Condition, keys, adapters| match shared {
            Shared::Nothing => self.unet.predict(&self.latents, &self.timesteps, condition, adapters).unwrap(),
            _ => self.unet.predict_from(&prefix, &condition.context, keys, adapters).unwrap(),
        };
        let keys = (shared >= Shared::Keys).then_some(&self.keys);
        let base = predict(&self.without_trigger, keys, &none);
        if shared == Shared::Batch {
            let contexts = [&self.with_trigger.context, &self.without_trigger.context];
            let (prefix, contexts) = (prefix.cat(&prefix).unwrap(), Tensor::cat(&contexts, 0).unwrap());
            let both = self.unet.predict_from(&prefix, &contexts, None, &adapters).unwrap();
            let rows = both.dim(0).unwrap() / 2;
            let style = denoising(&both.narrow(0, 0, rows).unwrap(), &self.noise).unwrap();
            let kept = cat(&both.narrow(0, rows, rows).unwrap(), &base).unwrap();
            return self.differentiate(&(style + kept).unwrap());
        }
        let style = denoising(&predict(&self.with_trigger, None, &adapters), &self.noise).unwrap();
        let mut gradients = self.differentiate(&style);
        let kept = cat(&predict(&self.without_trigger, None, &adapters), &base).unwrap();
        gradients.accumulate(&self.differentiate(&kept)).unwrap();
        gradients
    }

    fn differentiate(&self, values: &Tensor) -> Gradients {
        self.parameters.collect_gradients(&backward(values.mean_all().unwrap()).unwrap()).unwrap()
    }
}

fn normal(stream: &'static str, shape: &[usize]) -> Tensor {
    Noise::new(1).normal(Stream(stream), 0, 0, shape, &Device::Cpu).unwrap()
}

/// One thread, so that times are comparable between machines.
fn cat_step(criterion: &mut Criterion) {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).stack_size(64 << 20).build().unwrap();
    for batch in [1, 4] {
        let step = one.install(|| Step::new(batch));
        let mut group = criterion.benchmark_group(format!("CAT step, embedded base, {batch} in a batch"));
        group.sample_size(20).measurement_time(Duration::from_secs(8));
        for (name, shared) in ALL {
            let before = work::flops();
            one.install(|| step.gradients(shared));
            group.throughput(Throughput::Elements(work::flops() - before));
            group.bench_function(name, |bencher| {
                one.install(|| bencher.iter(|| black_box(step.gradients(shared))));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, cat_step);
criterion_main!(benches);
