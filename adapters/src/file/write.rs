//! Writes adapter files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use catelier_numerics::{atomic, tensor_file};
use serde_json::{Value, json};

use super::blocks::BlockCount;
use super::key::PEFT_PREFIX;
use super::{Disclosure, Format, Metadata, config, privacy};
use crate::adapter::Adapter;
use crate::dora::DoraFactors;
use crate::error::{Error, Result};
use crate::family::BaseFamily;
use crate::kind::UpdateKind;
use crate::module::Component;
use crate::update::LayerUpdate;

/// Name of the tensor file in a PEFT folder.
pub const PEFT_FILE: &str = "adapter_model.safetensors";

/// Name of the configuration in a PEFT folder.
pub const PEFT_CONFIG: &str = "adapter_config.json";

/// Writes an adapter file atomically; the same input gives the same bytes. Unless nothing is to be disclosed, its header
/// has a checksum over the whole file.
///
/// A PEFT adapter is a folder: `path` is created and gets `adapter_model.safetensors` and `adapter_config.json`. If
/// `path` ends in `.safetensors`, it is the tensor file and the configuration is written beside it.
///
/// # Errors
/// [`Error::NothingToWrite`]; [`Error::UnknownComponents`] for paths outside the known components;
/// [`Error::SeveralComponents`] for PEFT; [`Error::SeveralKinds`] for PEFT and diffusers; [`Error::Numerics`] and
/// [`Error::Io`] if the disk refuses.
pub fn write(path: &Path, adapter: &Adapter, format: Format, metadata: &Metadata) -> Result<()> {
    let tensors = named_tensors(adapter, format, metadata)?;
    let header = metadata.header(adapter, format, &tensors)?;
    let write = |file: &Path| {
        let written = match metadata.disclosure {
            // The checksum would tell which program wrote the file.
            Disclosure::None => tensor_file::write(file, &tensors, &header),
            Disclosure::Minimal | Disclosure::Full => tensor_file::write_checked(file, &tensors, &header),
        };
        written.map_err(Error::numerics(format!("writing `{}`", file.display())))
    };
    match format {
        Format::Kohya | Format::Diffusers => write(path),
        Format::Peft => {
            let (file, config) = peft_files(path);
            let folder = config.parent().unwrap_or(Path::new(""));
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
            // The tensors first: a configuration alone would look like an adapter.
            write(&file)?;
            write_peft_config(&config, adapter, metadata)
        }
    }
}

/// The tensors of the file by name.
fn named_tensors(adapter: &Adapter, format: Format, metadata: &Metadata) -> Result<BTreeMap<String, Tensor>> {
    refuse_unwritable(adapter, format)?;
    let kohya = KohyaNames {
        original_blocks: metadata.base.family == Some(BaseFamily::Sdxl),
        numbered_encoders: metadata.base.family == Some(BaseFamily::Sdxl)
            || adapter.components().contains_key(&Component::TextEncoder2),
    };
    let mut tensors = BTreeMap::new();
    for (path, update) in adapter.iter() {
        let Some((component, inside)) = Component::of_path(path) else {
            continue;
        };
        let stem = match format {
            Format::Kohya => kohya.stem(component, inside),
            Format::Diffusers => path.to_owned(),
            Format::Peft => format!("{PEFT_PREFIX}{inside}"),
        };
        if format == Format::Kohya {
            tensors.insert(format!("{stem}.alpha"), alpha_tensor(update)?);
        }
        let [down, up] = factor_endings(format, component, update.kind());
        tensors.insert(format!("{stem}{down}"), storable(&update.low_rank().down)?);
        tensors.insert(format!("{stem}{up}"), storable(&update.low_rank().up)?);
        if let LayerUpdate::Dora(dora) = update {
            let (ending, magnitude) = named_magnitude(format, dora)?;
            tensors.insert(format!("{stem}{ending}"), magnitude);
        }
    }
    Ok(tensors)
}

/// Endings of the names of `down` and `up`.
///
/// The upstream scripts rename only the factors of attentions. diffusers then takes the format of the first name that
/// it sees and loses the other factors, so all names have one form here. diffusers names the factors of a DoRA as PEFT
/// does.
fn factor_endings(format: Format, component: Component, kind: UpdateKind) -> [&'static str; 2] {
    match (format, kind, component) {
        (Format::Kohya, _, _) => [".lora_down.weight", ".lora_up.weight"],
        (Format::Peft, _, _) | (Format::Diffusers, UpdateKind::Dora, _) => [".lora_A.weight", ".lora_B.weight"],
        (Format::Diffusers, UpdateKind::Lora, Component::Unet) => [".lora.down.weight", ".lora.up.weight"],
        (Format::Diffusers, UpdateKind::Lora, Component::TextEncoder | Component::TextEncoder2) => {
            [".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"]
        }
    }
}

/// Ending and tensor of magnitudes. LyCORIS' `dora_scale` has the shape that multiplies a weight, PEFT's vector the
/// shape that multiplies a convolution's result.
fn named_magnitude(format: Format, dora: &DoraFactors) -> Result<(&'static str, Tensor)> {
    let out = dora.magnitude.elem_count();
    let (ending, shape) = match (format, dora.low_rank.is_convolution()) {
        (Format::Kohya, false) => (".dora_scale", vec![out, 1]),
        (Format::Kohya, true) => (".dora_scale", vec![out, 1, 1, 1]),
        (Format::Diffusers | Format::Peft, false) => (".lora_magnitude_vector", vec![out]),
        (Format::Diffusers | Format::Peft, true) => (".lora_magnitude_vector", vec![1, out, 1, 1]),
    };
    let magnitude = dora.magnitude.reshape(shape).map_err(Error::tensor("reshaping magnitudes"))?;
    Ok((ending, storable(&magnitude)?))
}

fn refuse_unwritable(adapter: &Adapter, format: Format) -> Result<()> {
    if adapter.is_empty() {
        return Err(Error::NothingToWrite);
    }
    let outside = adapter.iter().map(|(path, _)| path);
    let outside: Vec<String> = outside.filter(|path| Component::of_path(path).is_none()).map(str::to_owned).collect();
    if !outside.is_empty() {
        return Err(Error::UnknownComponents { paths: outside });
    }
    let components = adapter.components();
    if format == Format::Peft && components.len() > 1 {
        return Err(Error::SeveralComponents { components: components.keys().map(ToString::to_string).collect() });
    }
    // diffusers and PEFT have one `use_dora` for all modules of a configuration.
    if format != Format::Kohya && adapter.uniform_kind().is_none() {
        let kinds: BTreeSet<_> = adapter.iter().map(|(_, update)| update.kind().to_string()).collect();
        return Err(Error::SeveralKinds { format, kinds: kinds.into_iter().collect() });
    }
    Ok(())
}

/// kohya's names of modules, which depend on the base family.
struct KohyaNames {
    original_blocks: bool,
    numbered_encoders: bool,
}

impl KohyaNames {
    fn stem(&self, component: Component, inside: &str) -> String {
        let prefix = match component {
            Component::Unet => "lora_unet",
            Component::TextEncoder if self.numbered_encoders => "lora_te1",
            Component::TextEncoder => "lora_te",
            Component::TextEncoder2 => "lora_te2",
        };
        let original = if self.original_blocks && component == Component::Unet {
            // Only SDXL has original names, and in SDXL every block with an upsampler has attentions.
            BlockCount::default().original_name(inside, true)
        } else {
            None
        };
        let name = original.unwrap_or_else(|| inside.replace('.', "_"));
        format!("{prefix}_{name}")
    }
}

fn alpha_tensor(update: &LayerUpdate) -> Result<Tensor> {
    Tensor::new(update.alpha() as f32, &Device::Cpu).map_err(Error::tensor("writing alpha"))
}

fn storable(tensor: &Tensor) -> Result<Tensor> {
    tensor
        .detach()
        .contiguous()
        .and_then(|tensor| tensor.to_device(&Device::Cpu))
        .map_err(Error::tensor("reading an update"))
}

/// The tensor file and the configuration of a PEFT adapter at `path`: its folder, or its tensor file.
pub fn peft_files(path: &Path) -> (PathBuf, PathBuf) {
    match path.extension().is_some_and(|end| end == "safetensors") {
        true => (path.to_owned(), path.with_file_name(PEFT_CONFIG)),
        false => (path.join(PEFT_FILE), path.join(PEFT_CONFIG)),
    }
}

fn write_peft_config(config: &Path, adapter: &Adapter, metadata: &Metadata) -> Result<()> {
    let text = peft_config(adapter, metadata);
    atomic::write(config, |file| file.write_all(text.as_bytes()))
        .map_err(Error::numerics(format!("writing `{}`", config.display())))
}

fn peft_config(adapter: &Adapter, metadata: &Metadata) -> String {
    let component = adapter.components().into_keys().next();
    let mut config = component.map_or_else(Default::default, |c| config::config_of(adapter, c));
    let name = metadata.base.name.as_deref();
    let shown = name.filter(|name| !privacy::is_local_path(name));
    config.insert("base_model_name_or_path".to_owned(), json!(shown));
    config.insert("inference_mode".to_owned(), json!(true));
    config.insert("task_type".to_owned(), Value::Null);
    config.sort_keys();
    format!("{:#}\n", Value::Object(config))
}
