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
    start: Start,
    /// Whether no adapter changes anything before the first attention.
    shared: bool,
}

/// Where predictions under one added condition begin; see [`UNet::start`].
#[derive(Debug, Clone)]
pub struct Start {
    /// `[batch, in_channels, height, width]`.
    pub(super) latents: Tensor,
    /// `[batch]`.
    pub(super) timesteps: Tensor,
    pub(super) added: Option<AddedCondition>,
    entry: Entry,
    /// `None` where an adapter changes it.
    stem: Option<Stem>,
}

/// What sees neither the prompt nor what is added to it; nothing where an adapter changes it.
#[derive(Debug, Clone, Default)]
struct Entry {
    /// The embedded timesteps: `[batch, width]`.
    time: Option<Tensor>,
    /// After the first convolution.
    map: Option<Tensor>,
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

const TIME_EMBEDDING: &str = "unet.time_embedding";
const CONV_IN: &str = "unet.conv_in";

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
        let base = AdapterSet::base();
        let same = |path: &str| adapters.iter().all(|set| set.parameters_under(path).is_empty());
        let time = same(TIME_EMBEDDING).then(|| self.time_embedding.forward(timesteps, &base)).transpose()?;
        let map = same(CONV_IN).then(|| self.conv_in.forward(&latents.to_dtype(self.dtype)?, &base)).transpose()?;
        let (latents, timesteps) = (latents.clone(), timesteps.clone());
        let mut start = Start { latents, timesteps, added: None, entry: Entry { time, map }, stem: None };
        let shared = self.before_attention().iter().all(|path| same(path));
        if shared && self.added_embedding.is_none() {
            start.stem = Some(self.stem_of(&start, self.base_pass(&base), &mut |_, _| {})?);
        }
        Ok(Beginning { start, shared })
    }

    /// Goes on under an added condition up to the first attention. Without one, as in all families but SDXL, everything is
    /// there already.
    ///
    /// # Errors
    /// [`crate::Error::InvalidInput`] for an added condition that does not fit, [`crate::Error::Tensor`] when memory is short.
    pub fn start(&self, beginning: &Beginning, added: Option<&AddedCondition>) -> Result<Start> {
        let mut start = Start { added: added.cloned(), ..beginning.start.clone() };
        self.check_added(&start.latents, added)?;
        if beginning.shared && start.stem.is_none() {
            start.stem = Some(self.stem_of(&start, self.base_pass(&AdapterSet::base()), &mut |_, _| {})?);
        }
        Ok(start)
    }

    fn base_pass<'a>(&'a self, base: &'a AdapterSet) -> Pass<'a> {
        Pass { adapters: base, recompute: &self.recompute }
    }

    /// From the start of a prediction to its first attention, as far as that is not known.
    pub(super) fn stem_of(&self, start: &Start, pass: Pass<'_>, observe: Observer<'_>) -> TensorResult<Stem> {
        let Start { latents, timesteps, added, entry, stem } = start;
        if let Some(stem) = stem {
            return Ok(stem.clone());
        }
        let time = match &entry.time {
            Some(time) => time.clone(),
            None => self.time_embedding.forward(timesteps, pass.adapters)?,
        };
        let map = match &entry.map {
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

    /// From the embedded timesteps and what is added to them, and the map after the first convolution.
    fn to_the_first_attention(
        &self,
        time: &Tensor,
        map: Tensor,
        pass: Pass<'_>,
        observe: Observer<'_>,
    ) -> TensorResult<Stem> {
        let time = silu(time)?;
        let (mut x, mut skips) = (map.clone(), vec![map]);
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
            (Some(_), None) => Err(added_mismatch("a pooled prompt and picture sizes", "none")),
            (None, Some(_)) => Err(added_mismatch("none", "a pooled prompt and picture sizes")),
        }
    }
}

impl Start {
    /// A prediction of which nothing is known yet.
    pub(super) fn fresh(latents: &Tensor, timesteps: &Tensor, added: Option<&AddedCondition>) -> Self {
        let (latents, timesteps) = (latents.clone(), timesteps.clone());
        Self { latents, timesteps, added: added.cloned(), entry: Entry::default(), stem: None }
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
        let stem = self.stem.as_ref().zip(other.stem.as_ref());
        Ok(Self {
            latents: joined(&self.latents, &other.latents)?,
            timesteps: joined(&self.timesteps, &other.timesteps)?,
            added,
            entry: self.entry.before(&other.entry)?,
            stem: stem.map(|(one, other)| one.before(other)).transpose()?,
        })
    }
}

impl Entry {
    fn before(&self, other: &Self) -> TensorResult<Self> {
        let join = |one: &Option<Tensor>, other: &Option<Tensor>| {
            one.as_ref().zip(other.as_ref()).map(|(one, other)| joined(one, other)).transpose()
        };
        Ok(Self { time: join(&self.time, &other.time)?, map: join(&self.map, &other.map)? })
    }
}

impl Stem {
    fn before(&self, other: &Self) -> TensorResult<Self> {
        let skips = self.skips.iter().zip(&other.skips).map(|(one, other)| joined(one, other));
        Ok(Self {
            time: joined(&self.time, &other.time)?,
            skips: skips.collect::<TensorResult<_>>()?,
            begun: joined(&self.begun, &other.begun)?,
        })
    }
}

fn joined(one: &Tensor, other: &Tensor) -> TensorResult<Tensor> {
    Tensor::cat(&[one, other], 0)
}
