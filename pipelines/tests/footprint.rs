//! Compares the planner's memory of a step with the memory that the graph holds. The counter belongs to the whole
//! process, so this file is a process with one test function.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{Adapter, AdapterDropout, AdapterSet, LoraConfig, Targets, UpdateKind};
use catelier_numerics::cpu::{Kernels, kernels, use_portable_kernels};
use catelier_numerics::noise::{Noise, Stream};
use catelier_pipelines::models::base::{BaseConfig, BaseModel};
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::models::{AddedCondition, Condition, ImageSizes, Recompute, UNet};
use catelier_pipelines::training::plan::{Footprint, StepSizes};
use catelier_testkit::allocations::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const BATCH: usize = 2;
const RANK: usize = 2;
const TOKENS: usize = 77;
const LATENT: (usize, usize) = (32, 24);

#[test]
fn the_graph_keeps_what_the_planner_says() {
    for portable in [true, false] {
        use_portable_kernels(portable);
        if portable == (kernels() == Kernels::Wide) {
            continue;
        }
        for model in ["tiny-sd1", "tiny-sd2", "tiny-sdxl"] {
            for sizes in all_sizes() {
                check(model, &sizes);
            }
            // No convolution is a layer of a text encoder.
            for sizes in all_sizes().into_iter().filter(|sizes| sizes.targets == Targets::linears()) {
                check_with_text_encoders(model, &sizes);
            }
        }
    }
}

/// All kinds of updates and targets, with dropout and without; both adapted conditions of CAT in one batch; bf16
/// weights.
fn all_sizes() -> Vec<StepSizes> {
    let usual = StepSizes {
        latent: LATENT,
        batch: BATCH,
        tokens: TOKENS,
        kind: UpdateKind::Lora,
        rank: RANK,
        targets: Targets::attention(),
        cat: false,
        dropout: false,
        weights: DType::F32,
        trained_text_encoders: BTreeMap::new(),
    };
    let targets = [Targets::attention(), Targets::linears(), Targets::convolutions(), Targets::everything()];
    let plain = targets.map(|targets| StepSizes { targets, ..usual.clone() });
    let dropped = plain.clone().map(|sizes| StepSizes { dropout: true, ..sizes });
    let others = [StepSizes { cat: true, ..usual.clone() }, StepSizes { weights: DType::BF16, ..usual }];
    let lora: Vec<_> = plain.into_iter().chain(dropped).collect();
    let dora = lora.clone().into_iter().map(|sizes| StepSizes { kind: UpdateKind::Dora, ..sizes });
    lora.iter().cloned().chain(dora).chain(others).collect()
}

fn check(model: &str, sizes: &StepSizes) {
    let mut base = load(model, sizes.weights);
    let footprint = Footprint::of_step(base.unet.config(), sizes);
    let inside: u64 = footprint.blocks.iter().map(|block| block.inside).sum();
    let packed: u64 = footprint.blocks.iter().map(|block| block.packed).sum();
    let layers = || footprint.blocks.iter().filter(|block| block.path.ends_with(".ff"));
    let apart: u64 = layers().map(|layer| layer.inside).sum();
    let layers = Recompute::Blocks(layers().map(|layer| layer.path.clone()).collect());
    for (recompute, expected) in [
        (Recompute::Nothing, footprint.between + inside),
        (Recompute::All, footprint.between + packed),
        (layers, footprint.between + inside - apart),
    ] {
        base.unet.recompute(recompute.clone());
        compare(
            expected,
            held(&base, sizes, Held::Prediction),
            &format!("{model}, {sizes:?}, {recompute:?}, {:?} kernels", kernels()),
        );
    }
}

/// The same with trained text encoders; their targets are those of `sizes`.
fn check_with_text_encoders(model: &str, sizes: &StepSizes) {
    let base = load(model, sizes.weights);
    let config = BaseConfig::load(&files(model)).unwrap();
    let trained = StepSizes { trained_text_encoders: config.text_encoders, ..sizes.clone() };
    let [frozen, trained] = [sizes, &trained].map(|sizes| Footprint::of_step(base.unet.config(), sizes));
    assert!(trained.adapter > frozen.adapter, "{model}: the planner counts no parameters of the text encoders");
    let text = trained.between - frozen.between;
    compare(text, held(&base, sizes, Held::Captions), &format!("{model}, text encoders, {sizes:?}"));
    let inside: u64 = trained.blocks.iter().map(|block| block.inside).sum();
    let both = held(&base, sizes, Held::CaptionsAndPrediction);
    compare(trained.between + inside, both, &format!("{model} with text encoders, {sizes:?}"));
}

fn compare(expected: u64, held: u64, what: &str) {
    let ratio = expected as f64 / held as f64;
    assert!((0.9..1.1).contains(&ratio), "{what}: expected {expected} bytes, the graph holds {held}");
}

fn files(model: &str) -> ModelFiles {
    ModelFiles::folder(Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden").join(model))
}

/// A model of this repository, also if the golden tests use other models.
fn load(model: &str, weights: DType) -> BaseModel {
    BaseModel::load(&files(model), weights, &Device::Cpu).unwrap()
}

/// The part of a step whose graph is measured.
#[derive(Clone, Copy, PartialEq)]
enum Held {
    /// A prediction under a condition without gradient.
    Prediction,
    /// The encoding of the captions.
    Captions,
    /// The encoding, and a prediction under its condition.
    CaptionsAndPrediction,
}

/// Bytes that the part keeps for its backward pass.
fn held(base: &BaseModel, sizes: &StepSizes, part: Held) -> u64 {
    let lora = LoraConfig { rank: RANK, alpha: 1.0, dropout: 0.0, targets: sizes.targets.clone() };
    let modules = match part {
        Held::Prediction => base.unet.modules().to_vec(),
        _ => base.unet.modules().iter().cloned().chain(base.text.conditioning_modules()).collect(),
    };
    let norms = |path: &str| base.row_norms(path);
    let (adapter, _parameters) = Adapter::init_kind(sizes.kind, &lora, &modules, norms, 1, &Device::Cpu).unwrap();
    let mut adapters = AdapterSet::single(&adapter, 1.0);
    if sizes.dropout {
        adapters = adapters.with_dropout(AdapterDropout { probability: 0.1, seed: 1, step: 1 });
    }
    let rows = if sizes.cat { 2 * BATCH } else { BATCH };
    let latents = normal(0, &[rows, base.unet.config().in_channels, LATENT.0, LATENT.1]);
    let timesteps = Tensor::full(600u32, rows, &Device::Cpu).unwrap();
    let fixed = condition(&base.unet, rows);
    let prompts = vec!["a red house"; rows];
    let predict = |condition: &Condition| base.unet.predict(&latents, &timesteps, condition, &adapters).unwrap();
    let encode = || base.text.encode_with(&prompts, 0, &adapters).unwrap();
    let run = || match part {
        Held::Prediction => vec![predict(&fixed)],
        Held::Captions => {
            let Condition { context, added } = encode();
            [context].into_iter().chain(added.map(|added| added.pooled)).collect()
        }
        Held::CaptionsAndPrediction => vec![predict(&encode())],
    };
    if part == Held::Captions {
        // The first pass also makes what layers keep for all passes, which is much beside a text encoder.
        run();
    }
    let (_results, allocated) = ALLOCATOR.measure(run);
    allocated.held_bytes
}

fn condition(unet: &UNet, rows: usize) -> Condition {
    let sizes = vec![ImageSizes::uncropped(256, 192); rows];
    let added = unet.config().added.as_ref().map(|added| AddedCondition {
        pooled: normal(2, &[rows, added.input_width - 6 * added.time_width]),
        time_ids: ImageSizes::time_ids(&sizes, DType::F32, &Device::Cpu).unwrap(),
    });
    Condition { context: normal(1, &[rows, TOKENS, unet.config().context_width()]), added }
}

fn normal(sample: u64, shape: &[usize]) -> Tensor {
    Noise::new(1).normal(Stream("footprint"), 0, sample, shape, &Device::Cpu).unwrap()
}
