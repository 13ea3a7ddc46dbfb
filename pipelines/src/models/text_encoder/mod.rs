//! CLIP text encoders; a base model has one or two of them.

mod layers;
mod layout;
mod prompts;

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use catelier_adapters::{AdapterSet, ModuleInfo};
use catelier_numerics::ops::{FrozenLayerNorm, FrozenLinear};

use self::layers::Layer;
pub(crate) use self::layout::{TextEncoderLayout, TextLayerLayout};
use super::config::TextEncoderConfig;
use super::shapes::MatrixShape;
use super::slots::{FrozenLayers, LayerBuilder};
use crate::error::{Error, Result};
use crate::models::files::{ModelFiles, Weights};
pub use prompts::TextEncoders;

/// A frozen `CLIPTextModel`, or a `CLIPTextModelWithProjection` if its weights have a projection.
#[derive(Debug)]
pub struct TextEncoder {
    config: TextEncoderConfig,
    /// Module path of the network: `text_encoder.text_model`.
    path: String,
    modules: Vec<ModuleInfo>,
    frozen_layers: FrozenLayers,
    /// `[vocabulary, width]`
    token_embedding: Tensor,
    /// `[max_length, width]`
    position_embedding: Tensor,
    /// Type of activations.
    dtype: DType,
    layers: Vec<Layer>,
    final_layer_norm: FrozenLayerNorm,
    text_projection: Option<FrozenLinear>,
}

/// The outputs for a batch of prompts.
#[derive(Debug, Clone)]
pub struct TextOutput {
    /// The embeddings, then the output of each layer before the final norm: each `[batch, tokens, width]`.
    pub hidden: Vec<Tensor>,
    /// The last layer after the final norm: `[batch, tokens, width]`.
    pub last: Tensor,
    /// The row of `last` at each prompt's end token: `[batch, width]`.
    pub pooled: Tensor,
    /// `pooled` after the projection, if the encoder has one: `[batch, projection]`.
    pub projected: Option<Tensor>,
}

/// The end token in old configurations, whatever the vocabulary. transformers then pools at the highest id of the
/// prompt, which is the end token in CLIP's vocabulary.
const UNSET_END_TOKEN: u32 = 2;

impl TextEncoder {
    /// Loads the folder `component` (`text_encoder` or `text_encoder_2`) of a base model.
    ///
    /// Tensor names may lack the first part `text_model.`; module paths always have it.
    ///
    /// # Errors
    /// [`Error::UnsupportedSettings`] for a configuration that this network does not implement,
    /// [`Error::TensorMismatch`] for weights that do not fit it, and those of [`ModelFiles::weights`].
    pub fn load(files: &ModelFiles, component: &str, dtype: DType, device: &Device) -> Result<Self> {
        Self::from_config(TextEncoderConfig::load(files, component)?, files, component, dtype, device)
    }

    /// [`load`](Self::load) with a configuration that has been read already.
    pub(super) fn from_config(
        config: TextEncoderConfig,
        files: &ModelFiles,
        component: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let weights = files.weights(component, dtype, device)?;
        let layout = TextEncoderLayout::new(component, &config);
        weights.expect(&layout.tensors_in(&weights))?;
        Self::build(component, &weights, &layout, config)
    }

    fn build(
        component: &str,
        weights: &Weights,
        layout: &TextEncoderLayout,
        config: TextEncoderConfig,
    ) -> Result<Self> {
        let inner = if layout::is_prefixed(weights) { weights.at(layout::PREFIX) } else { weights.clone() };
        let builder = LayerBuilder::new(&format!("{component}.{}", layout::PREFIX), inner);
        let layers = layout.layers.iter().map(|layer| Layer::load(&builder, layer, &config)).collect::<Result<_>>()?;
        Ok(Self {
            token_embedding: builder.matrix(&layout.token_embedding)?,
            position_embedding: builder.matrix(&layout.position_embedding)?,
            layers,
            final_layer_norm: builder.layer_norm(&layout.final_layer_norm, config.layer_norm_eps)?,
            text_projection: load_projection(&LayerBuilder::new(component, weights.clone()), &layout.text_projection)?,
            path: format!("{component}.text_model"),
            modules: layout.modules(),
            frozen_layers: builder.frozen_layers(),
            dtype: weights.activation_dtype(),
            config,
        })
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &TextEncoderConfig {
        &self.config
    }

    /// Every linear layer that an adapter can change, in the order of the forward pass.
    pub fn modules(&self) -> &[ModuleInfo] {
        &self.modules
    }

    /// The module path of its last layer, including the dot at its end.
    pub(super) fn last_layer_path(&self) -> String {
        format!("{}.encoder.layers.{}.", self.path, self.config.num_hidden_layers.saturating_sub(1))
    }

    /// Norm of the weights of each output of the module at `path`, `[out]`: the initial magnitudes of a DoRA.
    ///
    /// # Errors
    /// An error if there is no such module.
    pub fn row_norms(&self, path: &str) -> candle_core::Result<Tensor> {
        self.frozen_layers.row_norms(path)
    }

    /// Encodes prompts given as token ids, all of the same length.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for an empty batch, prompts of different lengths, too many tokens, or an id outside the
    /// vocabulary.
    pub fn encode(&self, prompts: &[Vec<u32>], adapters: &AdapterSet) -> Result<TextOutput> {
        self.check_ids(prompts)?;
        let mut x = self.embed(prompts)?;
        let mut hidden = vec![x.clone()];
        for layer in &self.layers {
            x = layer.forward(&x, adapters)?;
            hidden.push(x.clone());
        }
        let last = self.normalize(&x)?;
        let pooled = pool(&last, &self.end_positions(prompts))?;
        let projected = self.text_projection.as_ref().map(|linear| linear.forward(&pooled)).transpose()?;
        Ok(TextOutput { hidden, last, pooled, projected })
    }

    /// The final layer norm of hidden states `[batch, tokens, width]`.
    ///
    /// # Errors
    /// [`Error::Tensor`] for hidden states of another width.
    pub fn normalize(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.final_layer_norm.forward(hidden)?)
    }

    /// Token and position embeddings: `[batch, tokens, width]`.
    fn embed(&self, prompts: &[Vec<u32>]) -> TensorResult<Tensor> {
        let (batch, tokens) = (prompts.len(), prompts[0].len());
        let ids = Tensor::from_vec(prompts.concat(), batch * tokens, self.token_embedding.device())?;
        let embedded = self.token_embedding.index_select(&ids, 0)?.reshape((batch, tokens, ()))?;
        let positions = self.position_embedding.narrow(0, 0, tokens)?.to_dtype(self.dtype)?;
        embedded.to_dtype(self.dtype)?.broadcast_add(&positions)
    }

    /// The position of each prompt's end token, at which pooling takes its row.
    fn end_positions(&self, prompts: &[Vec<u32>]) -> Vec<usize> {
        prompts.iter().map(|ids| end_position(ids, self.config.eos_token_id)).collect()
    }

    fn check_ids(&self, prompts: &[Vec<u32>]) -> Result<()> {
        let invalid = |expected: String, found: String| Err(Error::InvalidInput { what: "token ids", expected, found });
        let Some(length) = prompts.first().map(Vec::len) else {
            return invalid("at least one prompt".into(), "none".into());
        };
        if let Some(other) = prompts.iter().find(|ids| ids.len() != length) {
            return invalid(format!("prompts of {length} tokens"), format!("one of {}", other.len()));
        }
        let longest = self.config.max_position_embeddings;
        if length == 0 || length > longest {
            return invalid(format!("1 to {longest} tokens"), length.to_string());
        }
        match prompts.iter().flatten().find(|&&id| id as usize >= self.config.vocab_size) {
            Some(id) => invalid(format!("ids below {}", self.config.vocab_size), id.to_string()),
            None => Ok(()),
        }
    }
}

/// The projection of the pooled prompt, if the weights have one.
fn load_projection(builder: &LayerBuilder, shape: &MatrixShape) -> Result<Option<FrozenLinear>> {
    let load = || Ok(FrozenLinear::new(&builder.matrix(shape)?, None)?);
    builder.contains(&shape.path).then(load).transpose()
}

/// The position of the end token: the first one, or the first highest id if the configuration does not know the end
/// token. Without an end token it is 0, as in transformers.
fn end_position(ids: &[u32], end_token: u32) -> usize {
    let sought = if end_token == UNSET_END_TOKEN { ids.iter().max().copied() } else { Some(end_token) };
    ids.iter().position(|&id| Some(id) == sought).unwrap_or(0)
}

/// Row `positions[i]` of sample `i`: `[batch, tokens, width]` to `[batch, width]`.
fn pool(last: &Tensor, positions: &[usize]) -> TensorResult<Tensor> {
    let (batch, tokens, width) = last.dims3()?;
    let rows: Vec<u32> =
        positions.iter().enumerate().map(|(sample, position)| (sample * tokens + position) as u32).collect();
    let rows = Tensor::from_vec(rows, batch, last.device())?;
    last.reshape((batch * tokens, width))?.index_select(&rows, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_takes_the_highest_id_when_the_end_token_is_unset() {
        assert_eq!(end_position(&[5, 2, 9, 9, 1], UNSET_END_TOKEN), 2);
    }

    #[test]
    fn pooling_takes_the_first_end_token_otherwise() {
        assert_eq!(end_position(&[5, 7, 9, 7], 7), 1);
        assert_eq!(end_position(&[5, 6], 7), 0);
    }

    #[test]
    fn pooled_rows_come_from_their_own_sample() {
        let last = Tensor::arange(0f32, 12.0, &Device::Cpu).unwrap().reshape((2, 3, 2)).unwrap();
        assert_eq!(pool(&last, &[1, 2]).unwrap().to_vec2::<f32>().unwrap(), [[2.0, 3.0], [10.0, 11.0]]);
    }
}
