//! Compares counted operations with a formula over the modules, and counts those of a generation with cached prompts.
//! The counter belongs to the whole process, so these tests are a process of their own and run one after the other.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{Adapter, AdapterSet, LoraConfig, ModuleInfo, ModuleKind, Targets};
use catelier_bench::{Prediction, Shape, Workload, WorkloadSizes};
use catelier_numerics::cpu::{Kernels, kernels, use_portable_kernels};
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::work;
use catelier_pipelines::generation::{GenerateRequest, Generator};
use catelier_pipelines::models::base::BaseModel;
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::models::{Condition, UNet};
use catelier_testkit::golden::Golden;

/// Held by the test that runs.
static COUNTER: Mutex<()> = Mutex::new(());

/// Runs `test` with each kind of kernels that the CPU has, while no other test runs.
fn with_all_kernels(test: impl Fn()) {
    let _turn = COUNTER.lock().unwrap_or_else(PoisonError::into_inner);
    for portable in [true, false] {
        use_portable_kernels(portable);
        test();
    }
}

/// Number of operations of `work`.
fn counted<R>(work: impl FnOnce() -> R) -> u64 {
    let before = work::flops();
    work();
    work::flops() - before
}

fn golden(model: &str) -> ModelFiles {
    ModelFiles::folder(Golden::open().model(model))
}

/// Sizes of a prediction's inputs.
#[derive(Clone, Copy)]
struct Sizes {
    latent: usize,
    batch: usize,
    /// Tokens of a prompt.
    tokens: usize,
    levels: usize,
}

#[test]
fn a_generator_reads_each_prompt_once_whatever_the_steps_images_and_batches() {
    let _turn = COUNTER.lock().unwrap_or_else(PoisonError::into_inner);
    let base = BaseModel::load(&golden("tiny-sd1"), DType::F32, &Device::Cpu).unwrap();
    let request = |steps, images| GenerateRequest {
        prompts: vec!["a red teapot".into(); images],
        seeds: (1..=images as u64).collect(),
        steps,
        width: 32,
        height: 32,
        batch: 2,
        ..GenerateRequest::default()
    };
    // The prompt and the empty negative prompt.
    let reading = counted(|| ["a red teapot", ""].map(|prompt| base.text.encode(&[prompt]).unwrap()));
    assert!(reading > 0);
    for (steps, images) in [(1, 1), (3, 1), (2, 5)] {
        let mut generator = Generator::new(&base);
        let mut draw = || {
            let request = request(steps, images);
            counted(|| generator.generate(&request, &AdapterSet::base(), &mut |_| ControlFlow::Continue(())).unwrap())
        };
        let (first, again) = (draw(), draw());
        assert_eq!(first - again, reading, "{steps} steps of {images} images");
    }
}

#[test]
fn counted_operations_of_a_forward_pass_follow_from_the_modules() {
    with_all_kernels(counted_operations_follow_from_the_modules);
}

fn counted_operations_follow_from_the_modules() {
    for (files, latent, batch) in [
        (golden("tiny-sd1"), 8, 2),
        (golden("tiny-sd2"), 8, 1),
        (golden("tiny-sdxl"), 16, 1),
        (Shape::Sd15.files(1), 8, 1),
    ] {
        let name = files.name().to_string();
        let mut work = Prediction::new(&files, WorkloadSizes { latent, batch }, DType::F32, &Device::Cpu).unwrap();
        let counted = counted(|| work.run().unwrap());
        let sizes = Sizes { latent, batch, tokens: 77, levels: work.unet().config().levels.len() };
        assert_eq!(counted, total(work.unet(), sizes, kernels()), "{name}");
    }
}

#[test]
fn a_backward_pass_ends_at_the_first_adapted_module() {
    with_all_kernels(backward_passes_end_at_the_first_adapted_module);
}

fn backward_passes_end_at_the_first_adapted_module() {
    let unet = UNet::load(&golden("tiny-sd1"), DType::F32, &Device::Cpu).unwrap();
    let modules = |ending: &str| -> Vec<&ModuleInfo> {
        unet.modules().iter().filter(|module| module.path.ends_with(ending)).collect()
    };
    let of_up_blocks = |module: &&ModuleInfo| module.path.contains(".up_blocks.");

    // The backward pass covers only the layers after the last feed-forward layer: the end of its transformer, and of
    // the UNet.
    let sizes = Sizes { latent: 8, batch: 1, tokens: 7, levels: unet.config().levels.len() };
    let last = *modules(".ff.net.2").iter().filter(|module| of_up_blocks(module)).max_by_key(|m| &m.path).unwrap();
    let proj_out = *modules(".proj_out").iter().filter(|module| of_up_blocks(module)).max_by_key(|m| &m.path).unwrap();
    let passed = [proj_out, modules("unet.conv_out")[0]].map(|module| of_module(module, sizes, kernels()));
    assert_eq!(backward(&unet, last, sizes), passed.iter().sum::<u64>() + of_update(last, sizes));

    // The earlier the module, the longer the backward pass.
    let mut queries: Vec<&ModuleInfo> = modules(".attn1.to_q").into_iter().filter(of_up_blocks).collect();
    queries.sort_by_key(|module| &module.path);
    let costs: Vec<u64> = queries.iter().map(|query| backward(&unet, query, sizes)).collect();
    assert!(costs.len() > 1 && costs.is_sorted_by(|earlier, later| earlier > later), "{costs:?}");
}

/// Operations of the backward pass for an adapter of one module.
fn backward(unet: &UNet, module: &ModuleInfo, sizes: Sizes) -> u64 {
    let lora = LoraConfig { rank: RANK, alpha: 1.0, dropout: 0.0, targets: Targets::everything() };
    let (adapter, _) = Adapter::init(&lora, std::slice::from_ref(module), 1, &Device::Cpu).unwrap();
    let normal = |stream, shape: &[usize]| Noise::new(1).normal(Stream(stream), 0, 0, shape, &Device::Cpu).unwrap();
    let latents = normal("latents", &[sizes.batch, 4, sizes.latent, sizes.latent]);
    let context = normal("context", &[sizes.batch, sizes.tokens, unet.config().context_width()]);
    let timesteps = Tensor::new(&[500u32], &Device::Cpu).unwrap();
    let condition = Condition { context, added: None };
    let noise_pred = unet.predict(&latents, &timesteps, &condition, &AdapterSet::single(&adapter, 1.0)).unwrap();
    let loss = noise_pred.sqr().unwrap().mean_all().unwrap();
    counted(|| loss.backward().unwrap())
}

const RANK: usize = 2;

/// Gradients of a linear update's factors: the activation of width `rank` again, its gradient, and the gradient of each
/// factor.
fn of_update(module: &ModuleInfo, sizes: Sizes) -> u64 {
    let ModuleKind::Linear { in_features, out_features } = module.kind else { panic!("{} is not linear", module.path) };
    4 * (rows(&module.path, sizes) * RANK * (in_features + out_features)) as u64
}

/// Operations of a forward pass of the whole UNet; a multiply-add counts as two.
fn total(unet: &UNet, sizes: Sizes, kernels: Kernels) -> u64 {
    let attentions = unet.modules().iter().filter(|module| module.path.ends_with(".to_q"));
    let modules = unet.modules().iter().map(|module| of_module(module, sizes, kernels));
    (sizes.batch as u64) * (modules.sum::<u64>() + attentions.map(|query| of_attention(query, sizes)).sum::<u64>())
}

/// Operations of one module for one sample.
fn of_module(module: &ModuleInfo, sizes: Sizes, kernels: Kernels) -> u64 {
    let side = side(&module.path, sizes);
    let (rows, products) = match module.kind {
        ModuleKind::Linear { in_features, out_features } => (rows(&module.path, sizes), in_features * out_features),
        ModuleKind::Conv2d { in_channels, out_channels, kernel, stride, padding } => {
            let rows = match kernels {
                Kernels::Portable if (kernel, stride) == (3, 1) && side.min(in_channels).min(out_channels) >= 16 => {
                    36 * side.div_ceil(4).pow(2)
                }
                // Rows have the width of the padded input; the surplus is computed and dropped.
                Kernels::Portable if stride == 1 => kernel * kernel * ((side - 1) * (side + 2 * padding) + side),
                Kernels::Wide if (kernel, stride) == (3, 1) => filtered(side).min(9 * side * side),
                _ => kernel * kernel * side * side,
            };
            (rows, in_channels * out_channels)
        }
    };
    2 * (rows * products) as u64
}

/// Products of the AVX-512 kernels for each pair of channels of a 3 × 3 convolution: tiles of 4 × 4 pixels with 36
/// products each, if there are enough tiles to be worth the transforms of the kernel.
fn filtered(side: usize) -> usize {
    let tiles = side.div_ceil(4).pow(2);
    if 36 * (tiles + 8) < 9 * side * side { 36 * tiles } else { usize::MAX }
}

/// Operations of the scores and the weighted values of one attention for one sample.
fn of_attention(query: &ModuleInfo, sizes: Sizes) -> u64 {
    let ModuleKind::Linear { out_features, .. } = query.kind else { panic!("{} is not linear", query.path) };
    let queries = side(&query.path, sizes).pow(2);
    let keys = if query.path.contains(".attn2.") { sizes.tokens } else { queries };
    4 * (queries * keys * out_features) as u64
}

/// Number of rows to which a linear layer is applied per sample.
fn rows(path: &str, sizes: Sizes) -> usize {
    if path.ends_with(".attn2.to_k") || path.ends_with(".attn2.to_v") {
        sizes.tokens
    } else if path.contains(".attentions.") {
        side(path, sizes).pow(2)
    } else {
        1
    }
}

/// Side of the map that the module at `path` returns: halved by every level on the way down but the last, doubled on
/// the way up.
fn side(path: &str, sizes: Sizes) -> usize {
    let coarsest = sizes.levels - 1;
    let place: Vec<&str> = path.split('.').collect();
    let index = || place[2].parse::<usize>().unwrap();
    let halvings = match place[1] {
        "down_blocks" => index() + usize::from(place[3] == "downsamplers"),
        "mid_block" => coarsest,
        "up_blocks" => coarsest - index() - usize::from(place[3] == "upsamplers"),
        _ => 0,
    };
    sizes.latent >> halvings
}
