//! The exact cost of training and prediction: operations, allocations and peak memory.
//!
//! These do not depend on the machine's load, so the test compares them with exact figures ([`Kind::slack`] has the
//! exception). A change that makes a step dearer or cheaper must record it here. The counters belong to the whole
//! process, so this file is a process with one test function.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use candle_core::{DType, Device};
use catelier_bench::{Prediction, StepLoss, TrainingStep, Workload, WorkloadSizes};
use catelier_numerics::cpu::{Kernels, kernels, multiplies_bf16, use_portable_kernels};
use catelier_numerics::work;
use catelier_pipelines::models::Recompute;
use catelier_pipelines::models::files::ModelFiles;
use catelier_testkit::allocations::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

use Kernels::{Portable, Wide};
use Kind::{Cat, CatBf16, Lora, LoraAgain, LoraBf16, Predict};

/// The figures of a warm repetition on one thread, the same on every machine with these kernels. **Record an intended
/// change here**: a failing test prints the rows to insert, all of them on a CPU with 512-bit vectors and the portable
/// ones on other CPUs.
#[rustfmt::skip]
const EXPECTED: &[Cost] = &[
    //   kernels   model         work             flops  allocations  peak bytes
    cost(Portable, "tiny-sd1",   Predict,      54422528,        1595,     253632),
    cost(Portable, "tiny-sd1",   Lora,        112734208,       11673,    1226808),
    cost(Portable, "tiny-sd1",   LoraAgain,   162015744,       17848,     721488),
    cost(Portable, "tiny-sd1",   Cat,         272105472,       14816,    2436480),
    cost(Portable, "tiny-sd2",   Predict,      21800448,        2178,     133232),
    cost(Portable, "tiny-sd2",   Lora,         49116672,       16893,     944192),
    cost(Portable, "tiny-sd2",   LoraAgain,    70589696,       26048,     506648),
    cost(Portable, "tiny-sd2",   Cat,         117287936,       20686,    1838728),
    cost(Portable, "tiny-sdxl",  Predict,      31829504,        4888,      99592),
    cost(Portable, "tiny-sdxl",  Lora,         60061440,       46850,    1100536),
    cost(Portable, "tiny-sdxl",  LoraAgain,    91696384,       70016,     724028),
    cost(Portable, "tiny-sdxl",  Cat,         138866176,       56684,    2054352),
    cost(Wide,     "tiny-sd1",   Predict,      34414592,        1388,     882280),
    cost(Wide,     "tiny-sd1",   Lora,         75146752,       10939,    1523484),
    cost(Wide,     "tiny-sd1",   LoraAgain,   111562752,       16900,    1138144),
    cost(Wide,     "tiny-sd1",   Cat,         181779456,       13119,    2506932),
    cost(Wide,     "tiny-sd1",   LoraBf16,     97625600,       11583,    1183496),
    cost(Wide,     "tiny-sd1",   CatBf16,     234714112,       14584,    2352208),
    cost(Wide,     "tiny-sd2",   Predict,      14745600,        1918,     633176),
    cost(Wide,     "tiny-sd2",   Lora,         35649792,       15887,    1082172),
    cost(Wide,     "tiny-sd2",   LoraAgain,    51924992,       24803,     857728),
    cost(Wide,     "tiny-sd2",   Cat,          84584960,       18517,    1866068),
    cost(Wide,     "tiny-sd2",   LoraBf16,     43579648,       16495,     884120),
    cost(Wide,     "tiny-sd2",   CatBf16,     103552512,       19862,    1723360),
    cost(Wide,     "tiny-sdxl",  Predict,      24479744,        4491,     633240),
    cost(Wide,     "tiny-sdxl",  Lora,         46963200,       44256,    1553868),
    cost(Wide,     "tiny-sdxl",  LoraAgain,    73953280,       66965,    1045180),
    cost(Wide,     "tiny-sdxl",  Cat,         106771456,       51597,    2561780),
    cost(Wide,     "tiny-sdxl",  LoraBf16,     54223360,       46824,    1051872),
    cost(Wide,     "tiny-sdxl",  CatBf16,     124396544,       57243,    1973416),
];

/// The cost of one repetition of some work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    kernels: Kernels,
    model: &'static str,
    kind: Kind,
    /// Floating-point operations.
    flops: u64,
    /// Number of allocations.
    allocations: u64,
    /// Peak memory in bytes beyond the memory before.
    peak_bytes: u64,
}

const fn cost(
    kernels: Kernels,
    model: &'static str,
    kind: Kind,
    flops: u64,
    allocations: u64,
    peak_bytes: u64,
) -> Cost {
    Cost { kernels, model, kind, flops, allocations, peak_bytes }
}

/// The work to repeat, on the smallest latents that the model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A forward pass.
    Predict,
    /// An optimizer step of plain LoRA.
    Lora,
    /// A LoRA step with every block recomputed in the backward pass.
    LoraAgain,
    /// A LoRA step with bf16 weights.
    LoraBf16,
    /// An optimizer step with the CAT term.
    Cat,
    /// A CAT step with bf16 weights.
    CatBf16,
}

#[test]
fn a_warm_repetition_costs_what_the_table_says() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let found = pool.install(measure_all);
    let expected = |found: &Cost| {
        let same = |cost: &&Cost| (cost.kernels, cost.model, cost.kind) == (found.kernels, found.model, found.kind);
        EXPECTED.iter().find(same)
    };
    let changes: Vec<String> = found.iter().filter_map(|found| change(expected(found), found)).collect();
    let rows: Vec<String> = found.iter().map(row).collect();
    assert!(
        changes.is_empty(),
        "the cost of a step changed:\n{}\nIf that is intended, the table in `{}` becomes:\n{}\n",
        changes.join("\n"),
        file!(),
        rows.join("\n")
    );
}

/// The cost of all work with all kernels that the CPU has.
fn measure_all() -> Vec<Cost> {
    let mut costs = Vec::new();
    for portable in [true, false] {
        use_portable_kernels(portable);
        if portable == (kernels() == Portable) {
            for model in ["tiny-sd1", "tiny-sd2", "tiny-sdxl"] {
                costs.extend([Predict, Lora, LoraAgain, Cat].map(|kind| measure(model, kind)));
                let halves: &[Kind] = if multiplies_bf16() { &[LoraBf16, CatBf16] } else { &[] };
                costs.extend(halves.iter().map(|kind| measure(model, *kind)));
            }
        }
    }
    costs
}

/// The cost of the second repetition; the first one fills buffers that are kept.
fn measure(model: &'static str, kind: Kind) -> Cost {
    let mut work = kind.work(&tiny(model));
    work.run().unwrap();
    let before = work::flops();
    let (result, allocated) = ALLOCATOR.measure(|| work.run());
    result.unwrap();
    let (allocations, peak_bytes) = (allocated.count, allocated.peak_bytes);
    Cost { kernels: kernels(), model, kind, flops: work::flops() - before, allocations, peak_bytes }
}

/// A model of this repository, also if the golden tests use other models: the figures hold for its shape.
fn tiny(model: &str) -> ModelFiles {
    ModelFiles::folder(Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden").join(model))
}

impl Kind {
    /// Allowed difference of allocations and of peak bytes. candle keeps gradients in hash maps in random order: a map
    /// from which many entries were removed may grow one entry earlier or later, and each recomputed block has a map.
    fn slack(self) -> (u64, u64) {
        if self == Self::LoraAgain { (8, 4096) } else { (0, 0) }
    }

    fn work(self, files: &ModelFiles) -> Box<dyn Workload> {
        const RANK: usize = 4;
        let sizes = WorkloadSizes { latent: 8, batch: 1 };
        let step = |loss, dtype| TrainingStep::new(files, sizes, loss, RANK, dtype, &Device::Cpu).unwrap();
        match self {
            Self::Predict => Box::new(Prediction::new(files, sizes, DType::F32, &Device::Cpu).unwrap()),
            Self::Lora => Box::new(step(StepLoss::Lora, DType::F32)),
            Self::LoraAgain => {
                let mut step = step(StepLoss::Lora, DType::F32);
                step.recompute(Recompute::All);
                Box::new(step)
            }
            Self::LoraBf16 => Box::new(step(StepLoss::Lora, DType::BF16)),
            Self::Cat => Box::new(step(StepLoss::Cat, DType::F32)),
            Self::CatBf16 => Box::new(step(StepLoss::Cat, DType::BF16)),
        }
    }
}

/// The difference in words; `None` if there is none.
fn change(expected: Option<&Cost>, found: &Cost) -> Option<String> {
    let name = format!("{:?} of {} with {:?} kernels", found.kind, found.model, found.kernels);
    let Some(expected) = expected else { return Some(format!("{name}: not in the table")) };
    let (allocations, bytes) = found.kind.slack();
    let figures = [
        ("flops", 0, expected.flops, found.flops),
        ("allocations", allocations, expected.allocations, found.allocations),
        ("peak bytes", bytes, expected.peak_bytes, found.peak_bytes),
    ];
    let changed = figures.iter().filter(|(_, slack, expected, found)| expected.abs_diff(*found) > *slack);
    let changed: Vec<String> =
        changed.map(|(figure, _, expected, found)| format!("{figure} from {expected} to {found}")).collect();
    (!changed.is_empty()).then(|| format!("{name}: {}", changed.join(", ")))
}

/// `cost` as a row of the table.
fn row(cost: &Cost) -> String {
    let Cost { kernels, model, kind, flops, allocations, peak_bytes } = cost;
    let (kernels, model, kind) = (format!("{kernels:?},"), format!("{model:?},"), format!("{kind:?},"));
    let names = format!("{kernels:9} {model:13} {kind:10}");
    format!("    cost({names} {flops:11}, {allocations:11}, {peak_bytes:10}),")
}
