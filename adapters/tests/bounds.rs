//! Bounds on the memory that adapter files take. The counter belongs to the whole process, so this file is a process
//! whose test functions wait for each other.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and writes half files on purpose"
)]

use std::fs;
use std::path::{Path, PathBuf};

use catelier_adapters::file::{self, Format};
use catelier_adapters::{Error, ModuleInfo, ModuleKind};
use catelier_testkit::allocations::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

/// Memory beside twice the size of the file.
const BESIDE: u64 = 64 << 20;

const MODULE: &str = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
const STEM: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";

#[test]
fn a_file_of_n_bytes_takes_at_most_twice_n_and_64_mb() {
    let _alone = ALLOCATOR.alone();
    let folder = tempfile::tempdir().unwrap();
    let bomb = write(folder.path(), "bomb", &header("F32", 4, 20_000, 1, 1), 160_000);
    assert_eq!(inspected(&bomb).modules[0].norm, Some(0.0));
    let error = bounded(&bomb, || file::read(&bomb, &modules(1, 1))).unwrap_err();
    assert!(matches!(&error, Error::SurplusRanks { .. }), "{error}");
    assert!(error.to_string().contains("expected rank 1024 or less, found 20000"), "{error}");

    let of_the_base = write(folder.path(), "of-the-base", &header("F32", 4, 20_000, 64, 64), 10_240_000);
    inspected(&of_the_base);
    assert!(bounded(&of_the_base, || file::read(&of_the_base, &modules(64, 64))).is_err());

    // Large enough that a third copy would exceed the bound.
    let (inputs, outputs) = (400_000, 200_000);
    let large = write(folder.path(), "large", &header("F16", 2, 64, inputs, outputs), 2 * 64 * (inputs + outputs));
    inspected(&large);
    let modules = modules(inputs, outputs);
    assert_eq!(bounded(&large, || file::read(&large, &modules)).unwrap().adapter.len(), 1);
    let converted = folder.path().join("converted.safetensors");
    bounded(&large, || file::convert(&large, &converted, Format::Diffusers, &modules)).unwrap();
}

#[test]
fn a_header_takes_no_more() {
    let _alone = ALLOCATOR.alone();
    let folder = tempfile::tempdir().unwrap();
    let entry = |name: &str| format!(r#""{name}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
    let names =
        |of: &dyn Fn(usize) -> String| (0..99_000).map(|number| entry(&of(number))).collect::<Vec<_>>().join(",");
    let long = "x".repeat(15 << 20);
    for (what, header) in [
        ("unrecognised", format!("{{{},{}}}", names(&|number| format!("{number}")), entry("a.lora_up.weight"))),
        ("incomplete", format!("{{{}}}", names(&|number| format!("{number}.lora_up.weight")))),
        ("foreign", format!("{{{}}}", names(&|number| format!("{number}.hada_w1_a")))),
        ("metadata", format!(r#"{{"__metadata__":{{"a":"{long}"}},{}}}"#, entry("a.lora_up.weight"))),
    ] {
        let path = write(folder.path(), what, &header, 0);
        assert!(!inspected(&path).remarks.is_empty(), "{what}");
        assert!(bounded(&path, || file::read(&path, &modules(1, 1))).is_err(), "{what}");
    }
}

fn inspected(path: &Path) -> file::Inspection {
    bounded(path, || file::inspect(path)).unwrap()
}

/// The result of `work` on the file at `path`, which may take twice its size and [`BESIDE`].
#[track_caller]
fn bounded<R>(path: &Path, work: impl FnOnce() -> R) -> R {
    let bytes = fs::metadata(path).unwrap().len();
    let (result, allocated) = ALLOCATOR.measure(work);
    let (most, found) = (2 * bytes + BESIDE, allocated.peak_of_all_bytes);
    assert!(found <= most, "`{}` of {bytes} bytes takes {found}, at most {most} are allowed", path.display());
    result
}

fn modules(inputs: usize, outputs: usize) -> [ModuleInfo; 1] {
    [ModuleInfo { path: MODULE.into(), kind: ModuleKind::Linear { in_features: inputs, out_features: outputs } }]
}

/// The header of an adapter with one module.
fn header(dtype: &str, size: usize, rank: usize, inputs: usize, outputs: usize) -> String {
    let (down, all) = (size * rank * inputs, size * rank * (inputs + outputs));
    let tensor = |factor: &str, shape: [usize; 2], start: usize, end: usize| {
        format!(
            r#""{STEM}.lora_{factor}.weight":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
        )
    };
    format!("{{{},{}}}", tensor("down", [rank, inputs], 0, down), tensor("up", [outputs, rank], down, all))
}

/// A file with this header and `data` zero bytes.
fn write(folder: &Path, name: &str, header: &str, data: usize) -> PathBuf {
    let path = folder.join(format!("{name}.safetensors"));
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat();
    fs::write(&path, bytes).unwrap();
    path
}
