//! Draws pictures with one base and one set of sampling settings, for every command that shows pictures.

use catelier_adapters::AdapterSet;
use catelier_evaluation::Generation;
use catelier_pipelines::base::BaseModel;
use catelier_pipelines::generate::{GenerateRequest, Generator};
use catelier_pipelines::model::Tiling;
use catelier_pipelines::picture_file::PictureParameters;
use image::RgbImage;

use crate::cli::{SamplingArgs, TileVae};
use crate::failure::{Blame, Failure, Outcome};
use crate::progress::Progress;
use crate::{memory, terminal};

/// Guidance that the embedded base was tuned at.
const EMBEDDED_GUIDANCE: f64 = 4.0;
/// Guidance that real Stable Diffusion is used with.
const USUAL_GUIDANCE: f64 = 7.5;
/// Memory that the allocator holds for each byte that is alive: `bench vae --shape sd15 --latent 64` holds 1.31 GB while
/// 1.01 GB are.
const HELD_PER_LIVE: f64 = 4.0 / 3.0;
/// Pictures no larger than this are drawn several at a time.
const SMALL_PX: usize = 128;

/// A base, its sampling settings, and the prompts it has read so far.
pub(crate) struct Easel<'a> {
    base: &'a BaseModel,
    generator: Generator<'a>,
    settings: GenerateRequest,
}

impl<'a> Easel<'a> {
    /// Ready to draw as `sampling` says.
    pub(crate) fn new(base: &'a BaseModel, is_embedded: bool, sampling: &SamplingArgs) -> Outcome<Self> {
        let side = base.resolution;
        let (width, height) = size(sampling.size.as_deref(), side)?;
        let usual = if is_embedded { EMBEDDED_GUIDANCE } else { USUAL_GUIDANCE };
        let settings = GenerateRequest {
            negative: Some(sampling.negative.clone()).filter(|negative| !negative.is_empty()),
            steps: sampling.steps,
            guidance: sampling.guidance.unwrap_or(usual),
            sampler: sampling.sampler.parse().request("cannot use the sampler")?,
            width,
            height,
            batch: if side <= SMALL_PX { 8 } else { 1 },
            ..GenerateRequest::default()
        };
        Ok(Self { base, generator: Generator::new(base), settings })
    }

    /// One picture for each prompt and seed.
    pub(crate) fn draw(
        &mut self,
        label: &str,
        prompts: &[String],
        seeds: &[u64],
        adapters: &AdapterSet,
    ) -> Outcome<Vec<RgbImage>> {
        let request = GenerateRequest { prompts: prompts.to_vec(), seeds: seeds.to_vec(), ..self.settings.clone() };
        let mut progress = Progress::new(label, prompts.len());
        let pictures = self.generator.generate(&request, adapters, &mut |at| {
            let drawn = at.pictures_done + at.batch * at.call / at.calls;
            progress.reach(drawn, String::new());
        });
        pictures.run("cannot draw")
    }

    /// What the PNG of a picture says about it.
    pub(crate) fn parameters(&self, prompt: &str, seed: u64, adapters: &[(String, String)]) -> PictureParameters {
        PictureParameters {
            prompt: prompt.to_string(),
            negative: self.settings.negative.clone(),
            steps: self.settings.steps,
            sampler: self.settings.sampler.label().to_string(),
            guidance: self.settings.guidance,
            seed,
            width: self.settings.width,
            height: self.settings.height,
            model: self.base.name.clone(),
            model_hash: Some(self.base.fingerprint.clone()),
            adapters: adapters.to_vec(),
            version: concat!("catelier ", env!("CARGO_PKG_VERSION")).to_string(),
        }
    }

    /// What a score file says about how its pictures were made.
    pub(crate) fn generation(&self, adapter: Option<&str>, trigger: Option<&str>) -> Generation {
        Generation {
            base: self.base.name.clone(),
            adapter: adapter.map(str::to_string),
            trigger: trigger.map(str::to_string),
            sampler: self.settings.sampler.name().to_string(),
            steps: self.settings.steps,
            guidance: self.settings.guidance,
            width: self.settings.width,
            height: self.settings.height,
        }
    }

    /// The settings in one line, for the heading of a sheet.
    pub(crate) fn caption(&self, seed: u64) -> String {
        let settings = &self.settings;
        format!("{} steps of {}, guidance {}, seed {seed}", settings.steps, settings.sampler.label(), settings.guidance)
    }
}

/// Lets `base` decode pictures of the size that `sampling` asks for as it says; a note tells when memory decides for
/// tiles.
pub(crate) fn with_tiling(base: BaseModel, sampling: &SamplingArgs) -> Outcome<BaseModel> {
    let tiling = match sampling.tile_vae {
        TileVae::On => Tiling::always(),
        TileVae::Off => Tiling::never(),
        // What another device has is for its own system to tell.
        TileVae::Auto if !base.device().is_cpu() => Tiling::never(),
        TileVae::Auto => {
            memory::available().map_or(Tiling::never(), |left| Tiling::above((left as f64 / HELD_PER_LIVE) as u64))
        }
    };
    let base = base.with_tiling(tiling).run("cannot use tiles")?;
    let (width, height) = size(sampling.size.as_deref(), base.resolution)?;
    let size = (height as usize, width as usize);
    if sampling.tile_vae == TileVae::Auto && base.vae.decodes_in_tiles(size) {
        let gigabytes = |live: u64| live as f64 * HELD_PER_LIVE / 1e9;
        let (needed, left) = (gigabytes(base.vae.decoding_bytes(size)), gigabytes(tiling.above_bytes));
        terminal::say(&format!(
            "decoding in tiles: {width}x{height} would take {needed:.1} GB whole, and {left:.1} GB are left \
             (`--tile-vae on` does so on every machine, `off` on none)"
        ));
    }
    Ok(base)
}

/// `WxH`, or the side that the base was trained at.
fn size(text: Option<&str>, side: usize) -> Outcome<(u32, u32)> {
    let Some(text) = text else { return Ok((side as u32, side as u32)) };
    let parsed =
        text.split_once(['x', 'X']).and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    parsed.ok_or_else(|| Failure::request(format!("`{text}` is not a size"), "write it as `512x512`"))
}
