//! What `--base` can name, and how it is opened.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use catelier_adapters::ModuleInfo;
use catelier_pipelines::base::BaseModel;
use catelier_pipelines::files::ModelFiles;
use catelier_pipelines::hub::{self, FetchEvent, HubId, HubSettings, WeightPrecision};
use catelier_pipelines::model::{UNetConfig, VaeConfig};

use crate::cli::BaseArgs;
use crate::failure::{Blame, Failure, Outcome};
use crate::{device, embedded, memory, terminal};

/// A base model as the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BaseSource {
    /// The tiny model in this binary.
    Embedded,
    /// A folder in the diffusers layout.
    Folder(PathBuf),
    /// `org/name` or `org/name@revision` on a hub.
    Hub(String),
}

impl BaseSource {
    /// Decides what `name` means: existing paths first, then hub ids.
    pub(crate) fn parse(name: &str) -> Outcome<Self> {
        let path = Path::new(name);
        if name == "embedded" {
            return Ok(Self::Embedded);
        }
        if path.is_dir() {
            return Ok(Self::Folder(path.to_path_buf()));
        }
        if path.is_file() {
            return Err(single_file(path));
        }
        if name.parse::<HubId>().is_ok() && !name.starts_with(['.', '/']) {
            return Ok(Self::Hub(name.to_string()));
        }
        Err(Failure::request(
            format!("there is no base `{name}`"),
            "use `embedded`, a diffusers folder, or a hub id such as `stable-diffusion-v1-5/stable-diffusion-v1-5`",
        ))
    }

    /// Whether this is the tiny model in the binary.
    pub(crate) fn is_embedded(&self) -> bool {
        *self == Self::Embedded
    }

    /// The files, fetched first if they live on a hub.
    pub(crate) fn files(&self) -> Outcome<ModelFiles> {
        match self {
            Self::Embedded => Ok(embedded::base()),
            Self::Folder(path) => Ok(ModelFiles::folder(path)),
            Self::Hub(id) => fetch(id),
        }
    }

    /// The model, ready to predict.
    pub(crate) fn load(&self, dtype: DType, device: &Device) -> Outcome<BaseModel> {
        self.load_from(&self.files()?, dtype, device)
    }

    /// The same from its `files`, where they have been asked for already.
    pub(crate) fn load_from(&self, files: &ModelFiles, dtype: DType, device: &Device) -> Outcome<BaseModel> {
        if self.is_embedded() {
            terminal::say("base: embedded (a tiny model for trying things out, not for artists' work)");
        }
        let base = BaseModel::load(files, dtype, device).request("cannot load the base")?;
        memory::settle();
        Ok(base)
    }
}

/// The base that `--base`, `--device` and `--dtype` ask for.
pub(crate) fn load(args: &BaseArgs) -> Outcome<(BaseSource, BaseModel)> {
    let source = BaseSource::parse(&args.base)?;
    let model = source.load(device::dtype(&args.dtype)?, &device::parse(&args.device)?)?;
    Ok((source, model))
}

/// Downloads what is missing of a hub id into the standard cache.
pub(crate) fn fetch(id: &str) -> Outcome<ModelFiles> {
    let settings = HubSettings::resolve(&|name| std::env::var(name).ok()).request("cannot use the hub settings")?;
    let hub_id: HubId = id.parse().request("cannot use the hub id")?;
    let mut tell = |event: FetchEvent<'_>| {
        if let FetchEvent::Started { file, bytes } = event {
            terminal::say(&format!("fetching {file} ({:.1} MB)", bytes as f64 / 1e6));
        }
    };
    hub::fetch(&hub_id, WeightPrecision::Full, &settings, &mut tell).request(format!("cannot fetch `{id}`"))
}

fn single_file(path: &Path) -> Failure {
    let name = path.display();
    let message = match path.extension().and_then(|extension| extension.to_str()) {
        Some("ckpt" | "pt" | "pth" | "bin") => {
            format!("`{name}` is a pickle checkpoint, which can run code when it is opened")
        }
        _ => format!("`{name}` is a single file, and bases are read from diffusers folders"),
    };
    Failure::request(message, "convert it with diffusers' `convert_original_stable_diffusion_to_diffusers.py`")
}

/// The modules that an adapter for this base can have, without keeping the model.
pub(crate) fn modules(source: &BaseSource) -> Outcome<Vec<ModuleInfo>> {
    Ok(source.load(DType::F32, &Device::Cpu)?.modules())
}

/// The evaluation prompts that were written for a base.
pub(crate) fn prompt_set_name(is_embedded: bool) -> &'static str {
    if is_embedded { "gallery-v1" } else { "general-v1" }
}

/// The side in pixels of the pictures that the base was trained on.
pub(crate) fn resolution(model: &BaseModel) -> usize {
    resolution_of(model.unet.config(), model.vae.config())
}

/// The same from the configurations alone.
pub(crate) fn resolution_of(unet: &UNetConfig, vae: &VaeConfig) -> usize {
    unet.sample_size.unwrap_or(64) * vae.factor()
}
