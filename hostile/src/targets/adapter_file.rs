//! A safetensors file with an adapter: kohya's, diffusers' or PEFT's names.

use std::path::Path;
use std::sync::LazyLock;

use catelier_testkit::golden::Golden;
use catelier_workflows::adapters::file::{self, Format, Metadata, UnmatchedKeys};
use catelier_workflows::adapters::{Adapter, ModuleInfo};
use catelier_workflows::pipelines::models::base::BaseConfig;
use catelier_workflows::pipelines::models::files::ModelFiles;

use crate::{Verdict, folder, refused};

/// The modules of a base of the family of SD 1, and of SDXL.
pub(super) static BASES: LazyLock<[Vec<ModuleInfo>; 2]> = LazyLock::new(|| {
    ["tiny-sd1", "tiny-sdxl"].map(|model| {
        let files = ModelFiles::folder(Golden::open().model(model));
        BaseConfig::load(&files).unwrap().modules()
    })
});

pub(super) fn read(input: &[u8]) -> Verdict {
    folder::with_file("adapter", "adapter.safetensors", input, |path| {
        if let Err(error) = file::inspect(path) {
            refused(&error);
        }
        read_for_bases(path)
    })
}

/// Reads the file or folder for every base, strictly and with keys left out.
pub(super) fn read_for_bases(path: &Path) -> Verdict {
    let mut verdict = Verdict::Refused;
    for modules in &*BASES {
        match file::read(path, modules) {
            Ok(loaded) => {
                assert!(!loaded.adapter.is_empty(), "an adapter without a module was accepted");
                reads_by_module(path, &loaded.adapter, modules);
                holds_when_written(&loaded.adapter, &loaded.metadata, modules);
                verdict = Verdict::Accepted;
            }
            Err(error) => drop(refused(&error)),
        }
        if let Err(error) = file::read_with(path, modules, UnmatchedKeys::Skip) {
            refused(&error);
        }
    }
    verdict
}

/// Opened and read module by module, the file has the same tensors.
fn reads_by_module(path: &Path, adapter: &Adapter, modules: &[ModuleInfo]) {
    let opened = file::open(path, modules).unwrap_or_else(|error| panic!("read, but not opened: {error}"));
    let update = |(module, _)| (String::from(module), opened.file.read(module).unwrap().unwrap());
    assert_same(adapter, &opened.file.updates().map(update).collect(), opened.format);
}

/// Written in every format that can hold it and read again, the adapter has the same tensors.
fn holds_when_written(adapter: &Adapter, metadata: &Metadata, modules: &[ModuleInfo]) {
    folder::with(|folder| {
        for format in [Format::Kohya, Format::Diffusers, Format::Peft] {
            let path = folder.join(format!("written-{format}"));
            if let Err(error) = file::write(&path, adapter, format, metadata) {
                refused(&error);
                continue;
            }
            let again = file::read(&path, modules).unwrap_or_else(|error| panic!("written as {format}: {error}"));
            assert_same(adapter, &again.adapter, format);
        }
    });
}

fn assert_same(one: &Adapter, other: &Adapter, format: Format) {
    let paths = |adapter: &Adapter| adapter.iter().map(|(path, _)| path.to_owned()).collect::<Vec<_>>();
    assert_eq!(paths(one), paths(other), "{format}");
    for ((path, one), (_, other)) in one.iter().zip(other.iter()) {
        for ((name, one), (_, other)) in one.tensors().zip(other.tensors()) {
            let values = |tensor: &candle_core::Tensor| {
                let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert_eq!(one.dims(), other.dims(), "{format} {path}.{name}");
            assert!(values(one) == values(other), "{format} {path}.{name} has other values");
        }
    }
}
