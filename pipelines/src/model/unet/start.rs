//! What predictions for the same latents and timesteps have in common: the way to the first attention.

use candle_core::{Result as TensorResult, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::silu;

use super::levels::{DownLevel, Guidance};
use super::prompt_keys::Prompt;
use super::{UNet, added_mismatch, expect_shape};
use crate::error::Result;
use crate::model::AddedCondition;
use crate::model::checkpoint::Pass;

/// Latents and timesteps of some predictions, and what no prompt changes; see [`UNet::begin`].
#[derive(Debug, Clone)]
pub struct Beginning {
    /// `[batch, in_channels, height, width]`.
    latents: Tensor,
    /// `[batch]`.
    timesteps: Tensor,
    /// `None` where an adapter changes it.
    entry: Option<Entry>,
    /// `None` where an adapter or an added condition changes it.
    stem: Option<Stem>,
}

/// Where predictions under one added condition begin; see [`UNet::start`].
#[derive(Debug, Clone)]
pub struct Start {
    /// `[batch, in_channels, height, width]`.
    pub(super) latents: Tensor,
    /// `[batch]`.
    pub(super) timesteps: Tensor,
    pub(super) added: Option<AddedCondition>,
    /// `None` where an adapter changes it.
    stem: Option<Stem>,
}

/// What sees neither the prompt nor what is added to it.
#[derive(Debug, Clone)]
struct Entry {
    /// The embedded timesteps: `[batch, width]`.
    time: Tensor,
    /// After the first convolution.
    map: Tensor,
}

/// What comes before the first attention.
#[derive(Debug, Clone)]
pub(super) struct Stem {
    /// The activated time embedding: `[batch, width]`.
    pub(super) time: Tensor,
    /// What the way up needs of it, in order.
    pub(super) skips: Vec<Tensor>,
    /// After the first residual block of the first level with attention.
    pub(super) begun: Tensor,
}

/// Sees activations by name.
pub(super) type Observer<'a> = &'a mut dyn FnMut(&str, &Tensor);

impl UNet {
    /// Begins predictions for these latents and timesteps under several conditions and adapter sets: what none of them
    /// changes is computed here, once. Shapes as for [`predict`](Self::predict).
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict).
    pub fn begin(&self, latents: &Tensor, timesteps: &Tensor, adapters: &[&AdapterSet]) -> Result<Beginning> {
        self.check_latents(latents, timesteps)?;
        let base = Pass { adapters: &AdapterSet::base(), recompute: &self.recompute };
        let before = self.before_attention();
        let touched = |path: &String| adapters.iter().any(|set| !set.parameters_under(path).is_empty());
        let entry = (!before.iter().any(touched)).then(|| self.enter(latents, timesteps, base.adapters)).transpose()?;
        let stem = match (&entry, &self.added_embedding) {
            (Some(entry), None) => Some(self.stem(entry, None, base, &mut |_, _| {})?),
            _ => None,
        };
        Ok(Beginning { latents: latents.clone(), timesteps: timesteps.clone(), entry, stem })
    }

    /// Goes on under an added condition up to the first attention. Without one, as in all families but SDXL, everything is
    /// there already.
    ///
    /// # Errors
    /// [`crate::Error::InvalidInput`] for an added condition that does not fit, [`crate::Error::Tensor`] when memory is short.
    pub fn start(&self, beginning: &Beginning, added: Option<&AddedCondition>) -> Result<Start> {
        let Beginning { latents, timesteps, entry, stem } = beginning;
        self.check_added(latents, added)?;
        let stem = match (stem, entry) {
            (None, Some(entry)) => {
                let base = Pass { adapters: &AdapterSet::base(), recompute: &self.recompute };
                Some(self.stem(entry, added, base, &mut |_, _| {})?)
            }
            _ => stem.clone(),
        };
        Ok(Start { latents: latents.clone(), timesteps: timesteps.clone(), added: added.cloned(), stem })
    }

    /// From the start of a prediction to its first attention, unless that is known.
    pub(super) fn stem_of(&self, start: &Start, pass: Pass<'_>, observe: Observer<'_>) -> TensorResult<Stem> {
        match &start.stem {
            Some(stem) => Ok(stem.clone()),
            None => {
                let entry = self.enter(&start.latents, &start.timesteps, pass.adapters)?;
                self.stem(&entry, start.added.as_ref(), pass, observe)
            }
        }
    }

    fn enter(&self, latents: &Tensor, timesteps: &Tensor, adapters: &AdapterSet) -> TensorResult<Entry> {
        let time = self.time_embedding.forward(timesteps, adapters)?;
        Ok(Entry { time, map: self.conv_in.forward(&latents.to_dtype(self.dtype)?, adapters)? })
    }

    fn stem(
        &self,
        entry: &Entry,
        added: Option<&AddedCondition>,
        pass: Pass<'_>,
        observe: Observer<'_>,
    ) -> TensorResult<Stem> {
        observe("time_embedding", &entry.time);
        observe("conv_in", &entry.map);
        let time = match (&self.added_embedding, added) {
            (Some(embedding), Some(added)) => (&entry.time + embedding.forward(added, pass.adapters)?)?,
            _ => entry.time.clone(),
        };
        let time = silu(&time)?;
        let (mut x, mut skips) = (entry.map.clone(), vec![entry.map.clone()]);
        let (before, rest) = self.down.split_at(self.first_attention());
        for (index, level) in before.iter().enumerate() {
            let guidance = Guidance { time: &time, prompt: Prompt::Unseen, pass };
            x = level.forward(level.begin(&x, &time, pass)?, &mut skips, &guidance)?;
            observe(&format!("down_blocks.{index}"), &x);
        }
        let begun = rest.first().map_or(Ok(x.clone()), |level| level.begin(&x, &time, pass))?;
        Ok(Stem { time, skips, begun })
    }

    /// The number of the first level on the way down that has attention.
    pub(super) fn first_attention(&self) -> usize {
        let has_attention = |level: &DownLevel| level.transformers().next().is_some();
        self.down.iter().position(has_attention).unwrap_or(self.down.len())
    }

    /// Modules that are passed before the first attention.
    fn before_attention(&self) -> Vec<String> {
        let level = self.first_attention();
        let mut paths = ["unet.time_embedding", "unet.add_embedding", "unet.conv_in"].map(String::from).to_vec();
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
            (Some(_), None) => Err(added_mismatch("a pooled prompt and picture sizes", "none")),
            (None, Some(_)) => Err(added_mismatch("none", "a pooled prompt and picture sizes")),
        }
    }
}

impl Start {
    /// A prediction of which nothing is known yet.
    pub(super) fn fresh(latents: &Tensor, timesteps: &Tensor, added: Option<&AddedCondition>) -> Self {
        Self { latents: latents.clone(), timesteps: timesteps.clone(), added: added.cloned(), stem: None }
    }

    /// The rows of both, those of `self` first; both are of one [`Beginning`].
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] when memory is short.
    pub fn before(&self, other: &Self) -> Result<Self> {
        let added = match (&self.added, &other.added) {
            (Some(one), Some(other)) => Some(AddedCondition::cat(&[one, other])?),
            _ => None,
        };
        let stem = match (&self.stem, &other.stem) {
            (Some(one), Some(other)) => Some(one.before(other)?),
            _ => None,
        };
        let join = |one: &Tensor, other: &Tensor| Tensor::cat(&[one, other], 0);
        Ok(Self {
            latents: join(&self.latents, &other.latents)?,
            timesteps: join(&self.timesteps, &other.timesteps)?,
            added,
            stem,
        })
    }
}

impl Stem {
    fn before(&self, other: &Self) -> TensorResult<Self> {
        let join = |one: &Tensor, other: &Tensor| Tensor::cat(&[one, other], 0);
        Ok(Self {
            time: join(&self.time, &other.time)?,
            skips: self
                .skips
                .iter()
                .zip(&other.skips)
                .map(|(one, other)| join(one, other))
                .collect::<TensorResult<_>>()?,
            begun: join(&self.begun, &other.begun)?,
        })
    }
}
