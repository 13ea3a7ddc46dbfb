//! `vae/config.json`.

use serde::{Deserialize, Serialize};

use super::check::{Check, MOST_LEVELS, Rule, Table};
use crate::error::Result;
use crate::models::files::ModelFiles;

/// `vae/config.json` of an `AutoencoderKL`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct VaeConfig {
    /// Channels of the image.
    pub in_channels: usize,
    /// Channels of the decoded image.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of the levels, finest first; every level but the last halves height and width.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every group normalisation.
    pub norm_num_groups: usize,
    /// Factor that gives the latents about unit variance.
    pub scaling_factor: f64,
    /// Subtracted from the latents before scaling.
    pub shift_factor: Option<f64>,
    /// Whether the middle has attention.
    pub mid_block_add_attention: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether half precision overflows in this model; it then runs in f32.
    pub force_upcast: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            layers_per_block: 1,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            force_upcast: true,
        }
    }
}

const CHANNELS: Rule = Rule::Whole(1, 16_384);

/// The keys of an `AutoencoderKL`.
pub(super) const VAE: &Table = &[
    ("_class_name", Rule::OneOf(&["\"AutoencoderKL\""])),
    ("_diffusers_version", Rule::Irrelevant),
    ("_name_or_path", Rule::Irrelevant),
    ("act_fn", Rule::OneOf(&["\"silu\"", "\"swish\""])),
    ("block_out_channels", Rule::List(MOST_LEVELS, &CHANNELS)),
    ("down_block_types", Rule::List(MOST_LEVELS, &Rule::OneOf(&["\"DownEncoderBlock2D\""]))),
    ("force_upcast", Rule::Flag),
    ("in_channels", Rule::OneOf(&["3"])),
    ("latent_channels", CHANNELS),
    ("latents_mean", Rule::OneOf(&["null"])),
    ("latents_std", Rule::OneOf(&["null"])),
    ("layers_per_block", Rule::Whole(1, 16)),
    ("mid_block_add_attention", Rule::Flag),
    ("norm_num_groups", CHANNELS),
    ("out_channels", Rule::OneOf(&["3"])),
    // Only for diffusers' own tiles.
    ("sample_size", Rule::Irrelevant),
    ("scaling_factor", Rule::Real(1e-4, 1e4)),
    ("shift_factor", Rule::OrNull(&Rule::Real(-1e4, 1e4))),
    ("up_block_types", Rule::List(MOST_LEVELS, &Rule::OneOf(&["\"UpDecoderBlock2D\""]))),
    ("use_post_quant_conv", Rule::Flag),
    ("use_quant_conv", Rule::Flag),
];

impl VaeConfig {
    /// Reads `config.json` in the folder `component`, usually `vae`.
    ///
    /// # Errors
    /// [`crate::Error::InvalidConfig`], or [`crate::Error::UnsupportedSettings`] with every key that is not supported.
    pub fn load(files: &ModelFiles, component: &str) -> Result<Self> {
        let mut check = Check::new(&format!("{component}/config.json"), files, VAE)?;
        let config: Self = check.parse()?;
        for key in ["down_block_types", "up_block_types"] {
            if let Some(found) = check.length(key) {
                check.count(key, found, config.block_out_channels.len());
            }
        }
        for &width in &config.block_out_channels {
            check.divides("norm_num_groups", config.norm_num_groups, width);
        }
        check.finish()?;
        Ok(config)
    }

    /// Width of a latent cell in pixels: 8 with four levels.
    pub fn factor(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1)
    }
}
