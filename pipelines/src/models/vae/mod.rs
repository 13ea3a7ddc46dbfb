//! The autoencoder between images and latents (`AutoencoderKL`), frozen and without gradients.

mod blocks;
mod layout;
mod memory;
mod tiled;

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use catelier_numerics::ops::FrozenConv2d;

use self::blocks::{Decoder, Encoder};
pub(crate) use self::layout::{LEGACY_NAMES, VaeLayout};
use self::tiled::Cut;
pub use self::tiled::Tiling;
use super::config::VaeConfig;
use super::slots::LayerBuilder;
use crate::error::{Error, Result};
use crate::models::files::ModelFiles;

/// A frozen autoencoder.
///
/// *Unscaled* latents are the encoder's output and the decoder's input; *scaled* latents have about unit variance and
/// are the UNet's input. [`scale`](Self::scale) and [`unscale`](Self::unscale) convert between them.
#[derive(Debug)]
pub struct Vae {
    config: VaeConfig,
    dtype: DType,
    encoder: Encoder,
    quant_conv: Option<FrozenConv2d>,
    post_quant_conv: Option<FrozenConv2d>,
    decoder: Decoder,
    tiling: Tiling,
}

/// A normal distribution for each value of the unscaled latents.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Means: `[batch, latent_channels, height / 8, width / 8]`.
    pub mean: Tensor,
    /// Logarithms of the variances, in -30..=20; the same shape.
    pub logvar: Tensor,
}

impl Moments {
    /// The most likely latents: the means.
    pub fn mode(&self) -> Tensor {
        self.mean.clone()
    }

    /// A sample of the distribution, from `noise`: standard normal, of the means' shape.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the shapes differ.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        let deviation = (&self.logvar * 0.5)?.exp()?;
        Ok((&self.mean + (deviation * noise)?)?)
    }
}

/// [`Vae::encoding_bytes`] from the configuration, without weights.
pub fn encoding_bytes(config: &VaeConfig, size: (usize, usize)) -> u64 {
    memory::encoding(config, size)
}

impl Vae {
    /// Loads `vae/` of a base model, with its weights converted to `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::UnsupportedSettings`] for a configuration that this network does not implement,
    /// [`Error::TensorMismatch`] for weights that do not fit it, and those of [`ModelFiles::weights`].
    pub fn load(files: &ModelFiles, dtype: DType, device: &Device) -> Result<Self> {
        Self::load_component(files, "vae", dtype, device)
    }

    /// [`load`](Self::load) for an autoencoder in another folder of the base.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn load_component(files: &ModelFiles, component: &str, dtype: DType, device: &Device) -> Result<Self> {
        Self::from_config(VaeConfig::load(files, component)?, files, component, dtype, device)
    }

    /// [`load_component`](Self::load_component) with a configuration that has been read already.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn from_config(
        config: VaeConfig,
        files: &ModelFiles,
        component: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        // Half precision overflows in models with `force_upcast`; they run in f32 whatever the other networks do.
        let dtype = if config.force_upcast && dtype == DType::F16 { DType::F32 } else { dtype };
        let weights = files.weights(component, dtype, device)?;
        let layout = VaeLayout::new(&config);
        weights.expect(&layout.tensors_in(&weights))?;
        Self::build(&LayerBuilder::new(layout::ROOT, weights), &layout, config)
    }

    fn build(builder: &LayerBuilder, layout: &VaeLayout, config: VaeConfig) -> Result<Self> {
        let optional = |shape: &Option<_>| shape.as_ref().map(|shape| builder.frozen_conv2d(shape)).transpose();
        Ok(Self {
            encoder: Encoder::load(builder, &layout.encoder, &config)?,
            quant_conv: optional(&layout.quant_conv)?,
            post_quant_conv: optional(&layout.post_quant_conv)?,
            decoder: Decoder::load(builder, &layout.decoder, &config)?,
            dtype: builder.weights().activation_dtype(),
            tiling: Tiling::never(),
            config,
        })
    }

    /// Sets when large images are processed in tiles; after loading, every image is processed whole.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a side that is 0 or no multiple of 4.
    pub fn with_tiling(self, tiling: Tiling) -> Result<Self> {
        if tiling.side == 0 || !tiling.side.is_multiple_of(4) {
            let rule = "must be a multiple of 4 cells".into();
            return Err(Error::InvalidSetting { setting: "tile side", value: tiling.side.to_string(), rule });
        }
        Ok(Self { tiling, ..self })
    }

    /// Peak memory of f32 activations, in bytes, while one image of `size` pixels (height, width) is decoded whole.
    pub fn decoding_bytes(&self, size: (usize, usize)) -> u64 {
        memory::decoding(&self.config, (size.0 / self.factor(), size.1 / self.factor()))
    }

    /// Peak memory of f32 activations, in bytes, while one image of `size` pixels (height, width) is encoded whole.
    pub fn encoding_bytes(&self, size: (usize, usize)) -> u64 {
        encoding_bytes(&self.config, size)
    }

    /// Whether a single image of `size` pixels (height, width) is decoded in tiles.
    pub fn decodes_in_tiles(&self, size: (usize, usize)) -> bool {
        self.cuts(size, self.decoding_bytes(size))
    }

    /// Whether a single image of `size` pixels (height, width) is encoded in tiles.
    pub fn encodes_in_tiles(&self, size: (usize, usize)) -> bool {
        self.cuts(size, self.encoding_bytes(size))
    }

    fn cuts(&self, (height, width): (usize, usize), bytes: u64) -> bool {
        height.max(width) > self.tiling.side * self.factor() && bytes > self.tiling.above_bytes
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Width of a latent cell in pixels, 8 for Stable Diffusion.
    pub fn factor(&self) -> usize {
        self.config.factor()
    }

    /// Encodes `image: [batch, 3, height, width]`, values in -1..=1, to a distribution over unscaled latents, in f32.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for another shape, or a side shorter than [`factor`](Self::factor).
    pub fn encode(&self, image: &Tensor) -> Result<Moments> {
        const LOG_VARIANCE: (f64, f64) = (-30.0, 20.0);
        self.expect_map("image", image, self.config.in_channels, self.factor())?;
        let image = image.detach().to_dtype(self.dtype)?;
        let (batch, _, height, width) = image.dims4()?;
        let moments = if self.cuts((height, width), batch as u64 * self.encoding_bytes((height, width))) {
            let side = self.tiling.side;
            Cut::new(side * self.factor(), side).apply(&image, |tile| self.encode_whole(tile))?
        } else {
            self.encode_whole(&image)?
        };
        let moments = moments.to_dtype(DType::F32)?;
        let latent = self.config.latent_channels;
        Ok(Moments {
            mean: moments.narrow(1, 0, latent)?.contiguous()?,
            logvar: moments.narrow(1, latent, latent)?.contiguous()?.clamp(LOG_VARIANCE.0, LOG_VARIANCE.1)?,
        })
    }

    /// Decodes scaled latents `[batch, latent_channels, h, w]` to an image `[batch, 3, h * 8, w * 8]` in f32, about
    /// -1..=1 and not clamped.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for another shape.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.expect_map("latents", latents, self.config.latent_channels, 1)?;
        let latents = self.unscale(&latents.detach())?.to_dtype(self.dtype)?;
        let (batch, _, height, width) = latents.dims4()?;
        let size = (height * self.factor(), width * self.factor());
        let image = if self.cuts(size, batch as u64 * self.decoding_bytes(size)) {
            let side = self.tiling.side;
            Cut::new(side, side * self.factor()).apply(&latents, |tile| self.decode_whole(tile))?
        } else {
            self.decode_whole(&latents)?
        };
        Ok(image.to_dtype(DType::F32)?)
    }

    fn encode_whole(&self, image: &Tensor) -> TensorResult<Tensor> {
        let moments = self.encoder.forward(image)?;
        self.quant_conv.as_ref().map_or(Ok(moments.clone()), |conv| conv.forward(&moments))
    }

    fn decode_whole(&self, latents: &Tensor) -> TensorResult<Tensor> {
        match &self.post_quant_conv {
            Some(conv) => self.decoder.forward(&conv.forward(latents)?),
            None => self.decoder.forward(latents),
        }
    }

    /// Converts the encoder's latents to the UNet's: `(latents - shift) * scaling`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if memory is short.
    pub fn scale(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(((latents - self.config.shift_factor.unwrap_or(0.0))? * self.config.scaling_factor)?)
    }

    /// Converts the UNet's latents to the decoder's: `latents / scaling + shift`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if memory is short.
    pub fn unscale(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(((latents / self.config.scaling_factor)? + self.config.shift_factor.unwrap_or(0.0))?)
    }

    fn expect_map(&self, what: &'static str, map: &Tensor, channels: usize, side: usize) -> Result<()> {
        if matches!(map.dims(), [_, found, height, width]
            if *found == channels && *height >= side && *width >= side)
        {
            return Ok(());
        }
        let expected = format!("[batch, {channels}, height, width], sides of {side} or more");
        Err(Error::InvalidInput { what, expected, found: format!("{:?}", map.dims()) })
    }
}
