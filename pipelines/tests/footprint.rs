//! What the planner says that a step keeps, against what the graph really holds. The counter belongs to the whole process,
//! so this file has a process, and one test function, to itself.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{Adapter, AdapterDropout, AdapterSet, LoraConfig, Targets};
use catelier_numerics::noise::{Noise, Stream};
use catelier_pipelines::files::ModelFiles;
use catelier_pipelines::model::{AddedCondition, Condition, ImageSizes, Recompute, UNet};
use catelier_pipelines::plan::{Footprint, StepSizes};
use catelier_testkit::allocations::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const RANK: usize = 2;
const TOKENS: usize = 77;
const LATENT: (usize, usize) = (32, 24);

#[test]
fn the_graph_keeps_what_the_planner_says() {
    for model in ["tiny-sd1", "tiny-sd2", "tiny-sdxl"] {
        let mut unet = load(model);
        let all = [Targets::attention(), Targets::linears(), Targets::convolutions(), Targets::everything()];
        for (targets, dropout) in all.into_iter().flat_map(|targets| [(targets.clone(), false), (targets, true)]) {
            let sizes = StepSizes {
                latent: LATENT,
                batch: 2,
                tokens: TOKENS,
                rank: RANK,
                targets: targets.clone(),
                cat: false,
                dropout,
                weights: DType::F32,
            };
            let footprint = Footprint::of_step(unet.config(), &sizes);
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
                unet.recompute(recompute.clone());
                let held = held(&unet, &targets, dropout) as f64;
                let ratio = expected as f64 / held;
                assert!(
                    (0.9..1.1).contains(&ratio),
                    "{model}, {targets}, dropout {dropout}, {recompute:?}: expected {expected} bytes, the graph holds {held}"
                );
            }
        }
    }
}

/// A model of this repository, whatever models the parity tests are pointed at.
fn load(model: &str) -> UNet {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden").join(model);
    UNet::load(&ModelFiles::folder(folder), DType::F32, &Device::Cpu).unwrap()
}

/// Bytes that a prediction leaves behind for its backward pass.
fn held(unet: &UNet, targets: &Targets, dropout: bool) -> u64 {
    let lora = LoraConfig { rank: RANK, alpha: 1.0, dropout: 0.0, targets: targets.clone() };
    let (adapter, _parameters) = Adapter::init(&lora, unet.modules(), 1, &Device::Cpu).unwrap();
    let mut adapters = AdapterSet::single(&adapter, 1.0);
    if dropout {
        adapters = adapters.with_dropout(AdapterDropout { probability: 0.1, seed: 1, step: 1 });
    }
    let latents = normal(0, &[2, unet.config().in_channels, LATENT.0, LATENT.1]);
    let timesteps = Tensor::new(&[7u32, 600], &Device::Cpu).unwrap();
    let condition = condition(unet);
    let (noise_pred, allocated) =
        ALLOCATOR.measure(|| unet.predict(&latents, &timesteps, &condition, &adapters).unwrap());
    drop(noise_pred);
    allocated.held_bytes
}

fn condition(unet: &UNet) -> Condition {
    let sizes = vec![ImageSizes::uncropped(256, 192); 2];
    let added = unet.config().added.as_ref().map(|added| AddedCondition {
        pooled: normal(2, &[2, added.input_width - 6 * added.time_width]),
        time_ids: ImageSizes::time_ids(&sizes, DType::F32, &Device::Cpu).unwrap(),
    });
    Condition { context: normal(1, &[2, TOKENS, unet.config().context_width()]), added }
}

fn normal(sample: u64, shape: &[usize]) -> Tensor {
    Noise::new(1).normal(Stream("footprint"), 0, sample, shape, &Device::Cpu).unwrap()
}
