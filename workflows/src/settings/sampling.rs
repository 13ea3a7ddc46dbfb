//! How images are generated.

use catelier_pipelines::diffusion::sampler::SamplerKind;
use catelier_pipelines::generation::{GuidanceFrom, GuidanceRange};
use serde::{Deserialize, Serialize};

#[cfg(feature = "clap")]
use super::named;
use super::settings;
use crate::value::{ImageSize, Text};

settings! {
    /// How images are generated, as a user states it.
    SamplingSettings
    /// How images are generated.
    ResolvedSampling {
        /// Denoising steps [default: 25]
        #[arg(long, value_name = "N")]
        steps: usize => usize,
        /// Classifier-free guidance; 1 is none [default: 2 for the embedded base, 7.5 for others]
        #[arg(long, value_name = "F")]
        guidance: f64 => f64,
        /// Where guidance starts from: empty (the negative prompt, empty where none is given), trigger (the prompt's
        /// triggers, followed by the negative prompt), or the trigger's share in a mixture of both, such as 0.5, for half more
        /// time; a prompt without a trigger starts from the negative prompt [default: empty]
        #[arg(long, value_name = "WHERE")]
        guidance_from: Text<GuidanceFrom> => Text<GuidanceFrom>,
        /// The part of the steps in which guidance acts, such as 0.2-0.8 for the middle ones; the others follow the prompt
        /// alone, and take less time [default: 0-1]
        #[arg(long, value_name = "A-B")]
        guidance_range: Text<GuidanceRange> => Text<GuidanceRange>,
        /// ddim, ddpm, pndm, euler, euler-a, heun, dpm++2m, dpm++2m-sde, unipc or lcm [default: ddim]
        #[arg(long, value_name = "NAME")]
        sampler: Text<SamplerKind> => Text<SamplerKind>,
        /// The negative prompt
        #[arg(long, value_name = "TEXT")]
        negative: String => String,
        /// Seed of the first image; the next ones count up [default: 42]
        #[arg(long, value_name = "N")]
        seed: u64 => u64,
        /// Width and height in pixels [default: the size that the base was trained at]
        #[arg(long, value_name = "WxH")]
        size: Text<ImageSize> => Text<ImageSize>,
        /// Decode images larger than 512 pixels in tiles: less memory, and pixels that differ a little. auto does so when
        /// too little memory is left for the whole image, and says so [default: auto]
        #[arg(long, value_parser = named::<TileVae>(), value_name = "WHEN")]
        tile_vae: TileVae => TileVae,
    }
}

/// When the autoencoder decodes an image in tiles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TileVae {
    /// When too little memory is left for the whole image.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}
