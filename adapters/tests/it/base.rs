//! Module lists of the golden base models, from the shapes of their weights.

use std::path::Path;

use candle_core::{DType, Tensor};
use catelier_adapters::{Adapter, LayerUpdate, ModuleInfo, ModuleKind};
use catelier_numerics::tensor_file::TensorFile;

/// Every linear layer and convolution of a component of a diffusers folder.
pub(crate) fn modules(model: &Path, component: &str) -> Vec<ModuleInfo> {
    let names = ["diffusion_pytorch_model.safetensors", "model.safetensors"];
    let file = names.iter().map(|name| model.join(component).join(name)).find(|path| path.is_file());
    let file = TensorFile::open(file.expect("the component has a weights file")).unwrap();
    let module = |name: &str| {
        let inside = name.strip_suffix(".weight")?;
        let kind = kind(inside, file.shape(name).unwrap())?;
        Some(ModuleInfo { path: format!("{component}.{inside}"), kind })
    };
    file.names().filter_map(module).collect()
}

fn kind(inside: &str, shape: &[usize]) -> Option<ModuleKind> {
    match *shape {
        _ if inside.contains("embedding.weight") || inside.ends_with("_embedding") => None,
        [out_features, in_features] => Some(ModuleKind::Linear { in_features, out_features }),
        [out_channels, in_channels, kernel, _] => Some(ModuleKind::Conv2d {
            in_channels,
            out_channels,
            kernel,
            stride: if inside.contains("downsamplers") { 2 } else { 1 },
            padding: kernel / 2,
        }),
        _ => None,
    }
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

#[track_caller]
pub(crate) fn assert_same_update(what: &str, actual: &LayerUpdate, expected: &LayerUpdate) {
    assert_eq!(actual.kind(), expected.kind(), "{what}");
    for ((name, actual), (_, expected)) in actual.tensors().zip(expected.tensors()) {
        assert_eq!(actual.dims(), expected.dims(), "{what}: {name}");
        assert_eq!(values(actual), values(expected), "{what}: {name}");
    }
    assert!((actual.alpha() - expected.alpha()).abs() < 1e-6, "{what}: alpha");
}

#[track_caller]
pub(crate) fn assert_same_adapter(actual: &Adapter, expected: &Adapter) {
    let paths = |adapter: &Adapter| adapter.iter().map(|(path, _)| path.to_owned()).collect::<Vec<_>>();
    assert_eq!(paths(actual), paths(expected));
    for ((path, actual), (_, expected)) in actual.iter().zip(expected.iter()) {
        assert_same_update(path, actual, expected);
    }
}
