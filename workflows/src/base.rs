//! What a base is named by, and how it is opened and loaded.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use catelier_adapters::{Component, ModuleInfo, Prediction, Targets};
use catelier_numerics::Error as NumericsError;
use catelier_pipelines::Error as Pipeline;
use catelier_pipelines::models::Tiling;
use catelier_pipelines::models::base::{BaseConfig, BaseModel};
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::models::hub::{self, CacheCheck, FetchEvent, HubId, HubSettings, WeightPrecision};
use serde::Serialize;

use crate::device::{DeviceChoice, WeightType};
use crate::error::{Context, Error, Result, user_error};
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
            Self::Hub(id) => fetch_with(id, CacheCheck::Size, session)?,
        };
        let hub_id = if let Self::Hub(id) = self { Some(id.clone()) } else { None };
        let config =
            BaseConfig::load(&files).map_err(|error| unusable("cannot read the base", error, hub_id.as_deref()))?;
        Ok(BaseFiles { is_embedded: *self == Self::Embedded, hub_id, files, config })
    }

    /// The model, ready to predict.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`BaseFiles::load`].
    pub fn load(&self, dtype: DType, device: &Device, session: &Session<'_>) -> Result<Base> {
        self.open(session)?.load(dtype, device, session)
    }
}

/// Which base, and where it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseRequest {
    /// [`EMBEDDED`], a diffusers folder or a hub id.
    pub base: String,
    /// Where it computes.
    pub device: DeviceChoice,
    /// The type that its weights are kept in.
    pub dtype: WeightType,
}

impl Default for BaseRequest {
    /// The embedded base in f32.
    fn default() -> Self {
        Self { base: EMBEDDED.into(), device: DeviceChoice::Auto, dtype: WeightType::F32 }
    }
}

impl BaseRequest {
    /// Loads the base.
    ///
    /// # Errors
    /// [`Error::User`] for a base or device that is not there.
    pub fn load(&self, session: &Session<'_>) -> Result<Base> {
        let source = BaseSource::parse(&self.base)?;
        source.load(self.dtype.into(), &session.open_device(self.device)?, session)
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

/// Downloads what is missing or damaged of a hub id in the standard cache; the session's variables say where that is.
///
/// # Errors
/// [`Error::User`] when the id or the variables are wrong, or the hub refuses; [`Error::Failed`] when the hub, the
/// connection or the disk fails.
pub fn fetch(id: &str, session: &Session<'_>) -> Result<ModelFiles> {
    fetch_with(id, CacheCheck::Digest, session)
}

fn fetch_with(id: &str, check: CacheCheck, session: &Session<'_>) -> Result<ModelFiles> {
    let settings = HubSettings::resolve(&|name| session.variable(name)).user_error("cannot use the hub settings")?;
    let hub_id: HubId = id.parse().user_error("cannot use the hub id")?;
    let mut is_waiting = false;
    let mut tell = |event: FetchEvent<'_>| {
        match event {
            FetchEvent::Started { file, bytes } => {
                session.note(format!("fetching {file} ({:.1} MB)", bytes as f64 / 1e6));
            }
            FetchEvent::Waiting if !std::mem::replace(&mut is_waiting, true) => {
                session.note(format!("waiting for another process that fetches {id}"));
            }
            _ => {}
        }
        if session.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let fetched = hub::fetch(&hub_id, WeightPrecision::Full, &settings, check, &mut tell);
    let attempt = format!("cannot fetch `{id}`");
    match fetched {
        Err(Pipeline::Hub(error)) if !error.is_user_error() => Err(error).failed(attempt),
        other => other.user_error(attempt),
    }
}

/// A base whose files cannot be used; for a base of the cache, with what mends damaged files.
fn unusable(attempt: &str, error: Pipeline, hub_id: Option<&str>) -> Error {
    let may_be_damaged = matches!(
        error,
        Pipeline::MissingFile { .. }
            | Pipeline::InvalidConfig { .. }
            | Pipeline::MissingWeights { .. }
            | Pipeline::MissingShards { .. }
            | Pipeline::Numerics(NumericsError::TensorFile { .. })
            | Pipeline::TensorMismatch { .. }
    );
    let hint = hub_id.filter(|_| may_be_damaged).map(|id| {
        format!("`catelier base fetch {id}` compares the files in the cache with the hub's digests and fetches damaged ones again")
    });
    user_error(attempt, hint, error)
}

/// A base whose files are at hand, before its weights are loaded.
#[derive(Debug)]
pub struct BaseFiles {
    /// Whether it is the tiny model of [`embedded`].
    pub is_embedded: bool,
    /// Its id, if the files are in the hub's cache.
    pub hub_id: Option<String>,
    /// The files.
    pub files: ModelFiles,
    /// Its configurations.
    pub config: BaseConfig,
}

impl BaseFiles {
    /// What the base's defaults depend on.
    pub fn defaults(&self) -> BaseDefaults {
        BaseDefaults { is_embedded: self.is_embedded, resolution: self.config.resolution() }
    }

    /// The model, its weights converted to `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::User`] for files that are no supported base.
    pub fn load(&self, dtype: DType, device: &Device, session: &Session<'_>) -> Result<Base> {
        if self.is_embedded {
            session.note("base: embedded (a tiny model for trying things out, not for artists' work)");
        }
        let model = BaseModel::from_config(self.config.clone(), &self.files, dtype, device);
        let model = model.map_err(|error| unusable("cannot load the base", error, self.hub_id.as_deref()))?;
        session.report(Event::BaseLoaded { name: model.name.clone() });
        Ok(Base { model, is_embedded: self.is_embedded })
    }

    /// The modules that an adapter for this base can have; no weights are read.
    pub fn modules(&self) -> Vec<ModuleInfo> {
        self.config.modules()
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
        BaseDefaults { is_embedded: self.is_embedded, resolution: self.model.resolution }
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

/// What a base holds, as `base inspect --json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BaseSummary {
    /// Its folder, hub id, or [`EMBEDDED`].
    pub name: String,
    /// `sd1`, `sd2` or `sdxl`.
    pub family: &'static str,
    /// `epsilon` or `velocity`, what the UNet predicts.
    pub prediction: &'static str,
    /// Side of the images that it was trained at, in pixels.
    pub resolution_px: usize,
    /// Tokens of a prompt.
    pub tokens: usize,
    /// The hash that tells bases apart; `None` without weights.
    pub fingerprint: Option<String>,
    /// Parameters of each component.
    pub parameters: BTreeMap<Component, u64>,
    /// Modules of the UNet that can be adapted.
    pub modules: usize,
    /// The same by the name of the targets.
    pub modules_by_target: BTreeMap<&'static str, usize>,
}

/// What the base of this name holds, from its configurations and the headers of its weights.
///
/// # Errors
/// As [`BaseSource::open`].
pub fn inspect(name: &str, session: &Session<'_>) -> Result<BaseSummary> {
    let BaseFiles { hub_id, files, config, .. } = BaseSource::parse(name)?.open(session)?;
    let fingerprint = match config.fingerprint(&files) {
        Err(Pipeline::MissingWeights { .. }) => None,
        found => Some(found.map_err(|error| unusable("cannot read the base", error, hub_id.as_deref()))?),
    };
    let of_unet = format!("{}.", Component::Unet);
    let modules: Vec<_> = config.modules().into_iter().filter(|module| module.path.starts_with(&of_unet)).collect();
    let count = |targets: Targets| targets.select(&modules).map_or(0, |modules| modules.len());
    Ok(BaseSummary {
        name: config.name.clone(),
        family: config.family().id(),
        prediction: match config.prediction() {
            Prediction::Epsilon => "epsilon",
            Prediction::Velocity => "velocity",
        },
        resolution_px: config.resolution(),
        tokens: config.tokens(),
        fingerprint,
        parameters: config.parameters(),
        modules: modules.len(),
        modules_by_target: BTreeMap::from([
            ("attention", count(Targets::attention())),
            ("linears", count(Targets::linears())),
            ("convolutions", count(Targets::convolutions())),
        ]),
    })
}
