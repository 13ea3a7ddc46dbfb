//! What a base is named by, and how it is opened and loaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use catelier_adapters::{ModuleInfo, Targets};
use catelier_pipelines::base::BaseModel;
use catelier_pipelines::files::ModelFiles;
use catelier_pipelines::hub::{self, FetchEvent, HubId, HubSettings, WeightPrecision};
use catelier_pipelines::model::{Tiling, UNetConfig, VaeConfig};
use serde::Serialize;

use crate::error::{Context, Error, Result};
use crate::event::Event;
use crate::session::Session;
use crate::settings::{BaseDefaults, ResolvedSampling, TileVae};
use crate::{embedded, memory};

/// The name of the embedded base.
pub const EMBEDDED: &str = "embedded";

/// Memory that the allocator holds for each byte that is alive: `bench vae --shape sd15 --latent 64` holds 1.31 GB while
/// 1.01 GB are.
const HELD_PER_LIVE: f64 = 4.0 / 3.0;

/// A base model as the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseSource {
    /// The tiny model of [`embedded`].
    Embedded,
    /// A folder in the diffusers layout.
    Folder(PathBuf),
    /// `org/name` or `org/name@revision` on a hub.
    Hub(String),
}

impl BaseSource {
    /// Decides what `name` means: [`EMBEDDED`], then an existing folder, then a hub id.
    ///
    /// # Errors
    /// [`Error::User`] for a single file, and for a name that is none of the three.
    pub fn parse(name: &str) -> Result<Self> {
        let path = Path::new(name);
        if name == EMBEDDED {
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
        Err(Error::user(
            format!("there is no base `{name}`"),
            "use `embedded`, a diffusers folder, or a hub id such as `stable-diffusion-v1-5/stable-diffusion-v1-5`",
        ))
    }

    /// The base's files, fetched first if they are on a hub, with the configurations read.
    ///
    /// # Errors
    /// [`Error::User`] when the files cannot be had, or are no base.
    pub fn open(&self, session: &Session<'_>) -> Result<BaseFiles> {
        let files = match self {
            Self::Embedded => embedded::files(),
            Self::Folder(path) => ModelFiles::folder(path),
            Self::Hub(id) => fetch(id, session)?,
        };
        let unet = UNetConfig::load(&files).user_error("cannot read the base")?;
        let vae = VaeConfig::load(&files, "vae").user_error("cannot read the base")?;
        Ok(BaseFiles { is_embedded: *self == Self::Embedded, files, unet, vae })
    }

    /// The model, ready to predict.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`BaseFiles::load`].
    pub fn load(&self, dtype: DType, device: &Device, session: &Session<'_>) -> Result<Base> {
        self.open(session)?.load(dtype, device, session)
    }
}

fn single_file(path: &Path) -> Error {
    let name = path.display();
    let message = match path.extension().and_then(|extension| extension.to_str()) {
        Some("ckpt" | "pt" | "pth" | "bin") => {
            format!("`{name}` is a pickle checkpoint, which can run code when it is opened")
        }
        _ => format!("`{name}` is a single file, and bases are read from diffusers folders"),
    };
    Error::user(message, "convert it with diffusers' `convert_original_stable_diffusion_to_diffusers.py`")
}

/// Downloads what is missing of a hub id into the standard cache; the session's variables say where that is.
///
/// # Errors
/// [`Error::User`] when the id or the variables are wrong, or the hub refuses.
pub fn fetch(id: &str, session: &Session<'_>) -> Result<ModelFiles> {
    let settings = HubSettings::resolve(&|name| session.variable(name)).user_error("cannot use the hub settings")?;
    let hub_id: HubId = id.parse().user_error("cannot use the hub id")?;
    let mut tell = |event: FetchEvent<'_>| {
        if let FetchEvent::Started { file, bytes } = event {
            session.note(format!("fetching {file} ({:.1} MB)", bytes as f64 / 1e6));
        }
    };
    hub::fetch(&hub_id, WeightPrecision::Full, &settings, &mut tell).user_error(format!("cannot fetch `{id}`"))
}

/// A base whose files are at hand, before its weights are loaded.
#[derive(Debug)]
pub struct BaseFiles {
    /// Whether it is the tiny model of [`embedded`].
    pub is_embedded: bool,
    /// The files.
    pub files: ModelFiles,
    /// `unet/config.json`.
    pub unet: UNetConfig,
    /// `vae/config.json`.
    pub vae: VaeConfig,
}

impl BaseFiles {
    /// What the base's defaults depend on.
    pub fn defaults(&self) -> BaseDefaults {
        BaseDefaults { is_embedded: self.is_embedded, resolution: resolution(&self.unet, &self.vae) }
    }

    /// The model, its weights converted to `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::User`] for files that are no supported base.
    pub fn load(&self, dtype: DType, device: &Device, session: &Session<'_>) -> Result<Base> {
        if self.is_embedded {
            session.note("base: embedded (a tiny model for trying things out, not for artists' work)");
        }
        let model = BaseModel::load(&self.files, dtype, device).user_error("cannot load the base")?;
        session.report(Event::BaseLoaded { name: model.name.clone() });
        Ok(Base { model, is_embedded: self.is_embedded })
    }

    /// The modules that an adapter for this base can have.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn modules(&self, session: &Session<'_>) -> Result<Vec<ModuleInfo>> {
        Ok(self.load(DType::F32, &Device::Cpu, session)?.model.modules())
    }
}

/// A loaded base.
#[derive(Debug)]
pub struct Base {
    /// The model.
    pub model: BaseModel,
    /// Whether it is the tiny model of [`embedded`].
    pub is_embedded: bool,
}

impl Base {
    /// What the base's defaults depend on.
    pub fn defaults(&self) -> BaseDefaults {
        let resolution = resolution(self.model.unet.config(), self.model.vae.config());
        BaseDefaults { is_embedded: self.is_embedded, resolution }
    }

    /// The name of the built-in evaluation prompts that were written for this base.
    pub fn prompt_set(&self) -> &'static str {
        if self.is_embedded { "gallery-v1" } else { "general-v1" }
    }

    /// The base that decodes as `sampling` says; a note tells when the memory that is left decides for tiles.
    ///
    /// # Errors
    /// [`Error::Failed`] for an autoencoder whose tiles cannot be joined.
    pub fn with_tiling(self, sampling: &ResolvedSampling, session: &Session<'_>) -> Result<Self> {
        let tiling = match sampling.tile_vae {
            TileVae::On => Tiling::always(),
            TileVae::Off => Tiling::never(),
            // Memory of another device is not measured here.
            TileVae::Auto if !self.model.device().is_cpu() => Tiling::never(),
            TileVae::Auto => {
                memory::available().map_or(Tiling::never(), |left| Tiling::above((left as f64 / HELD_PER_LIVE) as u64))
            }
        };
        let model = self.model.with_tiling(tiling).failed("cannot use tiles")?;
        if sampling.tile_vae == TileVae::Auto {
            note_tiles(&model, sampling, tiling, session);
        }
        Ok(Self { model, ..self })
    }
}

fn note_tiles(model: &BaseModel, sampling: &ResolvedSampling, tiling: Tiling, session: &Session<'_>) {
    let size = sampling.size.0;
    let pixels = (size.height as usize, size.width as usize);
    if model.vae.decodes_in_tiles(pixels) {
        let gigabytes = |live: u64| live as f64 * HELD_PER_LIVE / 1e9;
        let (needed, left) = (gigabytes(model.vae.decoding_bytes(pixels)), gigabytes(tiling.above_bytes));
        session.note(format!(
            "decoding in tiles: {size} would take {needed:.1} GB whole, and {left:.1} GB are left (`--tile-vae on` does so \
             on every machine, `off` on none)"
        ));
    }
}

fn resolution(unet: &UNetConfig, vae: &VaeConfig) -> usize {
    unet.sample_size.unwrap_or(64) * vae.factor()
}

/// What a base holds, as `base inspect --json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BaseSummary {
    /// Its folder, hub id, or [`EMBEDDED`].
    pub name: String,
    /// `sd1`, `sd2` or `sdxl`.
    pub family: String,
    /// What the UNet predicts.
    pub prediction: String,
    /// Side of the images that it was trained at, in pixels.
    pub resolution_px: usize,
    /// Tokens of a prompt.
    pub tokens: usize,
    /// The hash that tells bases apart.
    pub fingerprint: String,
    /// Modules of the UNet that can be adapted.
    pub modules: usize,
    /// The same by the name of the targets.
    pub modules_by_target: BTreeMap<&'static str, usize>,
}

/// What the base of this name holds.
///
/// # Errors
/// As [`BaseSource::load`].
pub fn inspect(name: &str, session: &Session<'_>) -> Result<BaseSummary> {
    let base = BaseSource::parse(name)?.load(DType::F32, &Device::Cpu, session)?;
    let (model, resolution_px) = (&base.model, base.defaults().resolution);
    let count = |targets: Targets| targets.select(model.unet.modules()).map_or(0, |modules| modules.len());
    Ok(BaseSummary {
        name: model.name.clone(),
        family: model.family.to_string(),
        prediction: format!("{:?}", model.schedule.prediction()).to_lowercase(),
        resolution_px,
        tokens: model.text.tokenizer().max_length(),
        fingerprint: model.fingerprint.clone(),
        modules: model.unet.modules().len(),
        modules_by_target: BTreeMap::from([
            ("attention", count(Targets::attention())),
            ("linears", count(Targets::linears())),
            ("convolutions", count(Targets::convolutions())),
        ]),
    })
}
