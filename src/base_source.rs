//! What `--base` can name, and how it is opened.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use catelier_adapters::ModuleInfo;
use catelier_pipelines::base::{BaseConfig, BaseModel};
use catelier_pipelines::files::ModelFiles;
use catelier_pipelines::hub::{self, FetchEvent, HubId, HubSettings, WeightPrecision};

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
        let files = self.files()?;
        self.load_from(config(&files)?, &files, dtype, device)
    }

    /// The same from its `files`, where its configuration has been read already.
    pub(crate) fn load_from(
        &self,
        config: BaseConfig,
        files: &ModelFiles,
        dtype: DType,
        device: &Device,
    ) -> Outcome<BaseModel> {
        if self.is_embedded() {
            terminal::say("base: embedded (a tiny model for trying things out, not for artists' work)");
        }
        let base = BaseModel::from_config(config, files, dtype, device).request("cannot load the base")?;
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

/// The modules that an adapter for this base can have, from its configuration alone.
pub(crate) fn modules(source: &BaseSource) -> Outcome<Vec<ModuleInfo>> {
    Ok(config(&source.files()?)?.modules())
}

/// The configuration of a base, without its weights.
pub(crate) fn config(files: &ModelFiles) -> Outcome<BaseConfig> {
    BaseConfig::load(files).request("cannot read the base")
}

/// The evaluation prompts that were written for a base.
pub(crate) fn prompt_set_name(is_embedded: bool) -> &'static str {
    if is_embedded { "gallery-v1" } else { "general-v1" }
}
