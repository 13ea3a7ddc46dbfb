//! `vae/config.json`.

use serde::{Deserialize, Serialize};

use super::check::Check;
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

const VAE_FIXED: &[(&str, &[&str])] =
    &[("act_fn", &["\"silu\"", "\"swish\""]), ("latents_mean", &["null"]), ("latents_std", &["null"])];

impl VaeConfig {
    /// Reads `config.json` in the folder `component`, usually `vae`.
    ///
    /// # Errors
    /// [`crate::Error::InvalidConfig`], or [`crate::Error::UnsupportedSettings`] with every key that is not supported.
    pub fn load(files: &ModelFiles, component: &str) -> Result<Self> {
        let mut check = Check::new(&format!("{component}/config.json"), files)?;
        check.fixed(VAE_FIXED);
        check.every("down_block_types", &["DownEncoderBlock2D"]);
        check.every("up_block_types", &["UpDecoderBlock2D"]);
        let config: Self = check.parse()?;
        if config.block_out_channels.is_empty() {
            check.refuse("block_out_channels", "[]", "at least one level");
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
