//! Memory of an aggregation of files. The counter belongs to the whole process, so this file is a process of its own.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and writes half files on purpose"
)]

use std::path::Path;

use candle_core::Device;
use catelier_adapters::file::{self, Format, Metadata};
use catelier_adapters::{Adapter, LoraFactors, ModuleInfo, ModuleKind};
use catelier_federation::{Contributions, RoundPlan, State, StoredContribution, StoredContributions};
use catelier_numerics::noise::{Noise, Stream};
use catelier_testkit::allocations::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const SIDE: usize = 128;
const MODULES: usize = 24;
const RANK: usize = 4;

fn modules() -> Vec<ModuleInfo> {
    let kind = ModuleKind::Linear { in_features: SIDE, out_features: SIDE };
    let path = |index| format!("unet.mid_block.attentions.{index}.transformer_blocks.0.attn1.to_q");
    (0..MODULES).map(|index| ModuleInfo { path: path(index), kind }).collect()
}

fn adapter(seed: u64) -> Adapter {
    let factors = |(index, module): (usize, &ModuleInfo)| {
        let draw = |sample, shape: (usize, usize)| {
            Noise::new(seed).normal(Stream("memory"), index as u64, sample, shape, &Device::Cpu).unwrap()
        };
        (module.path.clone(), LoraFactors::new(draw(0, (RANK, SIDE)), draw(1, (SIDE, RANK)), RANK as f64).unwrap())
    };
    modules().iter().enumerate().map(factors).collect()
}

/// The peak of a round of `clients` files, in bytes.
fn peak(folder: &Path, strategy: &str, clients: usize) -> u64 {
    let plan = RoundPlan { strategy: strategy.parse().unwrap(), ..RoundPlan::default() };
    let state = if plan.strategy.needs_start() { State::starting_from(adapter(1000)) } else { State::new() };
    let roles = plan.configure(1, &state).unwrap().roles;
    let modules = modules();
    let (result, allocated) = ALLOCATOR.measure(|| {
        let mut source = StoredContributions::new();
        for client in 0..clients {
            let opened = file::open(&folder.join(format!("{client}.safetensors")), &modules).unwrap();
            let name = format!("client {client}");
            source.push(StoredContribution::adapter(name, 1.0, None, opened.file, &roles, None).unwrap().unwrap());
        }
        let contributions = Contributions::read(&source).unwrap();
        plan.aggregate_from(1, state.global(), &contributions, state.memory()).unwrap().0
    });
    assert_eq!(result.adapter.len(), MODULES);
    allocated.peak_of_all_bytes
}

/// The result, the sums of one module and its factors of all clients are in memory, and never all contributions.
#[test]
fn memory_does_not_grow_as_the_contributions_do() {
    let folder = tempfile::tempdir().unwrap();
    let (few, many) = (40, 160);
    let bytes = (8 * RANK * SIDE * MODULES) as u64;
    for client in 0..many {
        let path = folder.path().join(format!("{client}.safetensors"));
        file::write(&path, &adapter(client as u64), Format::Kohya, &Metadata::default()).unwrap();
    }
    // 98 kB a client: 16 MB of all.
    let all = bytes * many as u64;
    for strategy in ["fedavg", "product", "fair", "fedrot", "hetlora", "norm-bound", "fedadam"] {
        let (small, large) = (peak(folder.path(), strategy, few), peak(folder.path(), strategy, many));
        assert!(large < all / 2, "{strategy}: {large} bytes, of {all} in files");
        // A client more costs its name, and no more of its values than wait to be multiplied.
        assert!(large < small + all / 8, "{strategy}: {small} bytes for {few} clients, {large} for {many}");
    }
    // Those that compare all contributions hold one module of them, in f64.
    let large = peak(folder.path(), "krum:10", many);
    assert!(large < all / 2, "{large} bytes, of {all} in files");
}
