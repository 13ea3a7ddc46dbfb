//! The prefix of a prediction: its layers before the first attention.
//!
//! These layers do not see the prompt, so predictions for the same latents and timesteps share their outputs.

use candle_core::{Result as TensorResult, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::silu;

use super::cross_attention::PromptInput;
use super::levels::{BlockInputs, DownLevel};
use super::{UNet, added_mismatch, expect_shape};
use crate::error::Result;
use crate::models::AddedCondition;
use crate::models::checkpoint::Pass;

/// The prefix that predictions for the same latents and timesteps share, under any condition; see
/// [`UNet::shared_prefix`].
#[derive(Debug, Clone)]
pub struct SharedPrefix {
    prefix: Prefix,
    /// Whether no adapter changes a layer before the first attention.
    unadapted: bool,
}

/// Latents, timesteps and added condition of a prediction, with those activations of its prefix that have been
/// computed; see [`UNet::prefix`].
#[derive(Debug, Clone)]
pub struct Prefix {
    /// `[batch, in_channels, height, width]`.
    pub(super) latents: Tensor,
    /// `[batch]`.
    pub(super) timesteps: Tensor,
    pub(super) added: Option<AddedCondition>,
    first_layers: FirstLayers,
    /// Output of the prefix; `None` if an adapter changes it or it has not been computed.
    output: Option<PrefixOutput>,
}

/// Outputs of the layers that see neither the prompt nor the added condition; `None` for a layer that an adapter
/// changes.
#[derive(Debug, Clone, Default)]
struct FirstLayers {
    /// `[batch, width]`.
    time_embedding: Option<Tensor>,
    /// `[batch, channels, height, width]`.
    conv_in: Option<Tensor>,
}

/// Activations at the first attention.
#[derive(Debug, Clone)]
pub(super) struct PrefixOutput {
    /// The time embedding after SiLU: `[batch, width]`.
    pub(super) time: Tensor,
    /// Skip connections for the way up, in the order of the way down.
    pub(super) skips: Vec<Tensor>,
    /// Output of the first residual block of the first level with attention.
    pub(super) map: Tensor,
}

const TIME_EMBEDDING: &str = "unet.time_embedding";
const CONV_IN: &str = "unet.conv_in";

/// Receives activations with their names.
pub(super) type Observer<'a> = &'a mut dyn FnMut(&str, &Tensor);

impl UNet {
    /// Computes the prefix that predictions for these latents and timesteps share under several conditions and adapter
    /// sets. Layers that an adapter changes are left to each prediction. Shapes as for [`predict`](Self::predict).
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict).
    pub fn shared_prefix(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        adapters: &[&AdapterSet],
    ) -> Result<SharedPrefix> {
        self.check_latents(latents, timesteps)?;
        let base = AdapterSet::base();
        let unadapted = |path: &str| adapters.iter().all(|set| set.parameters_under(path).is_empty());
        let time_embedding =
            unadapted(TIME_EMBEDDING).then(|| self.time_embedding.forward(timesteps, &base)).transpose()?;
        let conv_in =
            unadapted(CONV_IN).then(|| self.conv_in.forward(&latents.to_dtype(self.dtype)?, &base)).transpose()?;
        let first_layers = FirstLayers { time_embedding, conv_in };
        let mut prefix = Prefix { first_layers, ..Prefix::uncomputed(latents, timesteps, None) };
        let unadapted = self.before_attention().iter().all(|path| unadapted(path));
        if unadapted && self.added_embedding.is_none() {
            prefix.output = Some(self.prefix_output(&prefix, self.base_pass(&base), &mut |_, _| {})?);
        }
        Ok(SharedPrefix { prefix, unadapted })
    }

    /// Computes the rest of the prefix under an added condition. Only SDXL has one; for other families `shared` is
    /// complete.
    ///
    /// # Errors
    /// [`crate::Error::InvalidInput`] for an added condition that does not fit, [`crate::Error::Tensor`] if memory is
    /// short.
    pub fn prefix(&self, shared: &SharedPrefix, added: Option<&AddedCondition>) -> Result<Prefix> {
        let mut prefix = Prefix { added: added.cloned(), ..shared.prefix.clone() };
        self.check_added(&prefix.latents, added)?;
        if shared.unadapted && prefix.output.is_none() {
            prefix.output = Some(self.prefix_output(&prefix, self.base_pass(&AdapterSet::base()), &mut |_, _| {})?);
        }
        Ok(prefix)
    }

    fn base_pass<'a>(&'a self, base: &'a AdapterSet) -> Pass<'a> {
        Pass { adapters: base, recompute: &self.recompute }
    }

    /// The output of `prefix`; computes the activations that `prefix` lacks.
    pub(super) fn prefix_output(
        &self,
        prefix: &Prefix,
        pass: Pass<'_>,
        observe: Observer<'_>,
    ) -> TensorResult<PrefixOutput> {
        let Prefix { latents, timesteps, added, first_layers, output } = prefix;
        if let Some(output) = output {
            return Ok(output.clone());
        }
        let time = match &first_layers.time_embedding {
            Some(time) => time.clone(),
            None => self.time_embedding.forward(timesteps, pass.adapters)?,
        };
        let map = match &first_layers.conv_in {
            Some(map) => map.clone(),
            None => self.conv_in.forward(&latents.to_dtype(self.dtype)?, pass.adapters)?,
        };
        observe("time_embedding", &time);
        observe("conv_in", &map);
        let time = match (&self.added_embedding, added) {
            (Some(embedding), Some(added)) => (time + embedding.forward(added, pass.adapters)?)?,
            _ => time,
        };
        self.to_the_first_attention(&time, map, pass, observe)
    }

    /// The layers between the first convolution and the first attention; `time` includes the added embedding.
    fn to_the_first_attention(
        &self,
        time: &Tensor,
        map: Tensor,
        pass: Pass<'_>,
        observe: Observer<'_>,
    ) -> TensorResult<PrefixOutput> {
        let time = silu(time)?;
        let (mut x, mut skips) = (map.clone(), vec![map]);
        let (before, rest) = self.down.split_at(self.first_attention());
        for (index, level) in before.iter().enumerate() {
            let inputs = BlockInputs { time: &time, prompt: PromptInput::Unseen, pass };
            x = level.forward(level.first_resnet(&x, &time, pass)?, &mut skips, &inputs)?;
            observe(&format!("down_blocks.{index}"), &x);
        }
        let map = rest.first().map_or(Ok(x.clone()), |level| level.first_resnet(&x, &time, pass))?;
        Ok(PrefixOutput { time, skips, map })
    }

    /// Index of the first level on the way down that has attention.
    pub(super) fn first_attention(&self) -> usize {
        let has_attention = |level: &DownLevel| level.transformers().next().is_some();
        self.down.iter().position(has_attention).unwrap_or(self.down.len())
    }

    /// Paths of the modules before the first attention.
    fn before_attention(&self) -> Vec<String> {
        let level = self.first_attention();
        let mut paths = [TIME_EMBEDDING, "unet.add_embedding", CONV_IN].map(String::from).to_vec();
        paths.extend((0..level).map(|level| format!("unet.down_blocks.{level}")));
        paths.push(format!("unet.down_blocks.{level}.resnets.0"));
        paths
    }

    pub(super) fn check_added(&self, latents: &Tensor, added: Option<&AddedCondition>) -> Result<()> {
        let batch = latents.dim(0)?;
        match (&self.added_embedding, added) {
            (Some(embedding), Some(added)) => {
                expect_shape("pooled", &added.pooled, &[Some(batch), Some(embedding.pooled_width())])?;
                expect_shape("time_ids", &added.time_ids, &[Some(batch), Some(6)])
            }
            (None, None) => Ok(()),
            (Some(_), None) => Err(added_mismatch("a pooled prompt and image sizes", "none")),
            (None, Some(_)) => Err(added_mismatch("none", "a pooled prompt and image sizes")),
        }
    }
}

impl Prefix {
    /// A prefix without any activation.
    pub(super) fn uncomputed(latents: &Tensor, timesteps: &Tensor, added: Option<&AddedCondition>) -> Self {
        let (latents, timesteps) = (latents.clone(), timesteps.clone());
        Self { latents, timesteps, added: added.cloned(), first_layers: FirstLayers::default(), output: None }
    }

    /// The rows of `self`, then those of `other`; both must come from one [`SharedPrefix`].
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] if memory is short.
    pub fn cat(&self, other: &Self) -> Result<Self> {
        let added = match (&self.added, &other.added) {
            (Some(one), Some(other)) => Some(AddedCondition::cat(&[one, other])?),
            _ => None,
        };
        let output = self.output.as_ref().zip(other.output.as_ref());
        Ok(Self {
            latents: cat(&self.latents, &other.latents)?,
            timesteps: cat(&self.timesteps, &other.timesteps)?,
            added,
            first_layers: self.first_layers.cat(&other.first_layers)?,
            output: output.map(|(one, other)| one.cat(other)).transpose()?,
        })
    }
}

impl FirstLayers {
    fn cat(&self, other: &Self) -> TensorResult<Self> {
        let both = |one: &Option<Tensor>, other: &Option<Tensor>| {
            one.as_ref().zip(other.as_ref()).map(|(one, other)| cat(one, other)).transpose()
        };
        Ok(Self {
            time_embedding: both(&self.time_embedding, &other.time_embedding)?,
            conv_in: both(&self.conv_in, &other.conv_in)?,
        })
    }
}

impl PrefixOutput {
    fn cat(&self, other: &Self) -> TensorResult<Self> {
        let skips = self.skips.iter().zip(&other.skips).map(|(one, other)| cat(one, other));
        Ok(Self {
            time: cat(&self.time, &other.time)?,
            skips: skips.collect::<TensorResult<_>>()?,
            map: cat(&self.map, &other.map)?,
        })
    }
}

fn cat(one: &Tensor, other: &Tensor) -> TensorResult<Tensor> {
    Tensor::cat(&[one, other], 0)
}
