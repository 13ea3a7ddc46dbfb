//! Embeddings of timesteps, and of SDXL's image sizes.

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::silu;

use crate::error::Result;
use crate::models::config::{AddedEmbeddingConfig, TimestepConfig, UNetConfig};
use crate::models::slots::{LayerBuilder, LinearSlot};
use crate::models::unet::layout::{MlpLayout, UNetLayout};
use crate::models::{AddedCondition, ImageSizes};

/// Sinusoidal embedding of values (Vaswani et al. 2017, section 3.5), cosines or sines first.
#[derive(Debug)]
struct Sinusoids {
    /// One frequency per pair of sine and cosine: `[1, width / 2]`.
    frequencies: Tensor,
    cosines_first: bool,
    /// Whether the width is odd; the last column is zero then.
    odd: bool,
}

impl Sinusoids {
    fn new(width: usize, config: &TimestepConfig, device: &Device) -> TensorResult<Self> {
        // In f32 throughout, because the weights were trained with frequencies rounded to f32.
        const LONGEST_PERIOD: f64 = 10_000.0;
        let half = width / 2;
        let steps = (half as f64 - config.freq_shift) as f32;
        let slope = -LONGEST_PERIOD.ln() as f32;
        let frequencies: Vec<f32> = (0..half).map(|index| (slope * index as f32 / steps).exp()).collect();
        Ok(Self {
            frequencies: Tensor::from_vec(frequencies, (1, half), device)?,
            cosines_first: config.flip_sin_to_cos,
            odd: width % 2 == 1,
        })
    }

    /// `numbers: [n]` to `[n, width]`, in f32.
    fn embed(&self, numbers: &Tensor) -> TensorResult<Tensor> {
        let angles = numbers.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(&self.frequencies)?;
        let (sines, cosines) = (angles.sin()?, angles.cos()?);
        let both = if self.cosines_first { [cosines, sines] } else { [sines, cosines] };
        let both = Tensor::cat(&both, 1)?;
        if self.odd { both.pad_with_zeros(1, 0, 1) } else { Ok(both) }
    }
}

/// Two linear layers with SiLU between, as in both embeddings.
#[derive(Debug)]
struct EmbeddingMlp {
    linear_1: LinearSlot,
    linear_2: LinearSlot,
}

impl EmbeddingMlp {
    fn load(builder: &LayerBuilder, layout: &MlpLayout) -> Result<Self> {
        Ok(Self { linear_1: builder.linear(&layout.linear_1)?, linear_2: builder.linear(&layout.linear_2)? })
    }

    fn forward(&self, x: &Tensor, adapters: &AdapterSet) -> TensorResult<Tensor> {
        self.linear_2.forward(&silu(&self.linear_1.forward(x, adapters)?)?, adapters)
    }
}

/// The embedding of each sample's timestep.
#[derive(Debug)]
pub(super) struct TimeEmbedding {
    sinusoids: Sinusoids,
    mlp: EmbeddingMlp,
    dtype: DType,
}

impl TimeEmbedding {
    pub(super) fn load(builder: &LayerBuilder, layout: &MlpLayout, config: &UNetConfig) -> Result<Self> {
        let weights = builder.weights();
        Ok(Self {
            sinusoids: Sinusoids::new(layout.linear_1.in_features, &config.timestep, weights.device())?,
            mlp: EmbeddingMlp::load(builder, layout)?,
            dtype: weights.activation_dtype(),
        })
    }

    /// `timesteps: [batch]` to `[batch, width]`.
    pub(super) fn forward(&self, timesteps: &Tensor, adapters: &AdapterSet) -> TensorResult<Tensor> {
        self.mlp.forward(&self.sinusoids.embed(timesteps)?.to_dtype(self.dtype)?, adapters)
    }
}

/// SDXL's embedding of the pooled prompt and the image sizes, added to the time embedding.
#[derive(Debug)]
pub(super) struct AddedEmbedding {
    sinusoids: Sinusoids,
    mlp: EmbeddingMlp,
    config: AddedEmbeddingConfig,
    dtype: DType,
}

impl AddedEmbedding {
    pub(super) fn load(builder: &LayerBuilder, layout: &UNetLayout, config: &UNetConfig) -> Result<Option<Self>> {
        let (Some(added), Some(mlp)) = (config.added.clone(), &layout.added_embedding) else { return Ok(None) };
        let weights = builder.weights();
        Ok(Some(Self {
            sinusoids: Sinusoids::new(added.time_width, &config.timestep, weights.device())?,
            mlp: EmbeddingMlp::load(builder, mlp)?,
            config: added,
            dtype: weights.activation_dtype(),
        }))
    }

    /// Width of the pooled prompt.
    pub(super) fn pooled_width(&self) -> usize {
        self.config.input_width.saturating_sub(ImageSizes::COUNT * self.config.time_width)
    }

    /// `[batch, width]`.
    pub(super) fn forward(&self, added: &AddedCondition, adapters: &AdapterSet) -> TensorResult<Tensor> {
        let (batch, numbers) = added.time_ids.dims2()?;
        let sizes = self.sinusoids.embed(&added.time_ids.flatten_all()?)?;
        let sizes = sizes.reshape((batch, numbers * self.config.time_width))?.to_dtype(self.dtype)?;
        let pooled = added.pooled.to_dtype(self.dtype)?;
        self.mlp.forward(&Tensor::cat(&[pooled, sizes], 1)?, adapters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sinusoids(width: usize, flip_sin_to_cos: bool) -> Sinusoids {
        let config = TimestepConfig { width, flip_sin_to_cos, freq_shift: 0.0 };
        Sinusoids::new(width, &config, &Device::Cpu).unwrap()
    }

    #[test]
    fn frequencies_fall_from_one_and_cosines_come_first_when_flipped() {
        let at_one = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        let row = sinusoids(4, true).embed(&at_one).unwrap().to_vec2::<f32>().unwrap().remove(0);
        let expected = [1f32.cos(), 0.01f32.cos(), 1f32.sin(), 0.01f32.sin()];
        assert!(row.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-7), "{row:?}");
        let plain = sinusoids(4, false).embed(&at_one).unwrap().to_vec2::<f32>().unwrap().remove(0);
        assert_eq!(plain, [row[2], row[3], row[0], row[1]]);
    }

    #[test]
    fn an_odd_width_ends_in_zeros() {
        let numbers = Tensor::new(&[3u32, 7], &Device::Cpu).unwrap();
        let rows = sinusoids(5, true).embed(&numbers).unwrap().to_vec2::<f32>().unwrap();
        assert!(rows.iter().all(|row| row.len() == 5 && row[4] == 0.0));
    }
}
