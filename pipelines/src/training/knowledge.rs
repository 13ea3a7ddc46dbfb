//! What an adapter knows, told by its predictions: the exchange of adapters of any kind, rank and targets.
//!
//! On proxy items, which are images at fixed noise and timesteps that everybody has, an adapter's knowledge is what it
//! predicts beyond the base. Knowledge of several adapters is averaged, and another adapter is trained towards the mean.
//!
//! **Source** FedMEKT, arXiv 2307.13214, exchanges embeddings of proxy data between unlike encoders; residuals of noise
//! predictions in their place are our own.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::hex;
use catelier_numerics::noise::Noise;
use sha2::{Digest, Sha256};

use super::{Captions, DrawIndex, EncodedDataset, LatentDraw, TRAINING, TrainError, draw_latents};
use crate::diffusion::TimestepSampling;
use crate::models::base::BaseModel;

/// Draws of proxy items are counted from here, so that they are none of a run's own.
const FIRST_DRAW: u64 = 1 << 32;

/// The proxy items: each of the first samples of a dataset at several draws of noise and timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proxies {
    /// Number of samples, the first of the dataset.
    pub samples: usize,
    /// Draws of noise and timestep for each sample, at least one.
    pub draws: usize,
    /// Seed of the draws, on which all agree.
    pub seed: u64,
}

impl Proxies {
    /// The item of a sample at a uniform draw in [0, 1); `None` for a sample that is no proxy.
    pub(super) fn item(&self, sample: usize, uniform: f64) -> Option<DrawIndex> {
        let draw = ((uniform * self.draws as f64) as u64).min(self.draws as u64 - 1);
        (sample < self.samples).then_some(DrawIndex { draw: FIRST_DRAW + draw, sample: sample as u64 })
    }

    /// Whether `index` is one of the items.
    pub(super) fn have(&self, index: &DrawIndex) -> bool {
        index.draw >= FIRST_DRAW && index.sample < self.samples as u64
    }

    fn items(&self, samples: Range<usize>) -> impl Iterator<Item = DrawIndex> {
        let draws = FIRST_DRAW..FIRST_DRAW + self.draws as u64;
        samples.flat_map(move |sample| draws.clone().map(move |draw| DrawIndex { draw, sample: sample as u64 }))
    }
}

/// What an adapter predicts beyond the base on proxy items, for each `[1, 4, height/8, width/8]`.
#[derive(Debug, Clone)]
pub struct Knowledge {
    proxies: Proxies,
    residuals: BTreeMap<DrawIndex, Tensor>,
}

impl Knowledge {
    /// The knowledge of `adapters` on the items of these samples, under the captions with the trigger.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled) if `is_stopped` between two items; any error of the model.
    pub fn of(
        base: &BaseModel,
        dataset: &EncodedDataset,
        proxies: Proxies,
        samples: Range<usize>,
        adapters: &AdapterSet,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Self, TrainError> {
        let mut residuals = BTreeMap::new();
        for item in proxies.items(samples) {
            if is_stopped() {
                return Err(crate::Error::Cancelled.into());
            }
            let adapted = predict(base, dataset, proxies.seed, item, adapters)?;
            let residual = (adapted - predict(base, dataset, proxies.seed, item, &AdapterSet::base())?)?;
            residuals.insert(item, residual.to_dtype(DType::F32)?.detach());
        }
        Ok(Self { proxies, residuals })
    }

    /// The weighted mean: for each item of those that know it, whose weights are above 0.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for knowledge of other proxy items, or none at all.
    pub fn mean(parts: &[(&Self, f64)]) -> Result<Self, TrainError> {
        let unlike = |rule: &str| TrainError::setting("proxies", parts.len(), rule);
        let [(first, _), ..] = parts else { return Err(unlike("must come from at least one adapter")) };
        if parts.iter().any(|(part, _)| part.proxies != first.proxies) {
            return Err(unlike("must be the same items for all adapters"));
        }
        let mut sums: BTreeMap<DrawIndex, (Tensor, f64)> = BTreeMap::new();
        for (part, weight) in parts {
            for (item, residual) in &part.residuals {
                let own = (residual * *weight)?;
                let sum = match sums.remove(item) {
                    Some((sum, weights)) => ((sum + own)?, weights + weight),
                    None => (own, *weight),
                };
                sums.insert(*item, sum);
            }
        }
        let mean = |(item, (sum, weights)): (DrawIndex, (Tensor, f64))| Ok((item, (sum / weights)?));
        Ok(Self { proxies: first.proxies, residuals: sums.into_iter().map(mean).collect::<Result<_, TrainError>>()? })
    }

    /// The distance to what `other` knows of the same items, in units of this knowledge's norm.
    ///
    /// # Errors
    /// [`TrainError::Tensor`] for items of another shape.
    pub fn relative_distance(&self, other: &Self) -> Result<f64, TrainError> {
        let (mut apart, mut whole) = (0.0, 0.0);
        for (item, residual) in &self.residuals {
            let Some(others) = other.residuals.get(item) else { continue };
            apart += square(&(residual - others)?)?;
            whole += square(residual)?;
        }
        Ok((apart / f64::max(whole, f64::MIN_POSITIVE)).sqrt())
    }

    /// Whether all residuals are finite.
    ///
    /// # Errors
    /// [`TrainError::Tensor`] if a residual cannot be read.
    pub fn is_finite(&self) -> Result<bool, TrainError> {
        let squares = self.residuals.values().map(square).collect::<Result<Vec<_>, _>>()?;
        Ok(squares.iter().all(|square| square.is_finite()))
    }

    /// Bytes of all residuals in f32.
    pub fn byte_count(&self) -> usize {
        self.residuals.values().map(|residual| 4 * residual.elem_count()).sum()
    }

    /// The items' proxies.
    pub(super) fn proxies(&self) -> Proxies {
        self.proxies
    }

    /// The predictions to train towards: the base's, and what is known beyond it.
    pub(super) fn targets(
        &self,
        base: &BaseModel,
        dataset: &EncodedDataset,
    ) -> Result<BTreeMap<DrawIndex, Tensor>, TrainError> {
        let target = |(item, residual): (&DrawIndex, &Tensor)| {
            let base_prediction = predict(base, dataset, self.proxies.seed, *item, &AdapterSet::base())?;
            Ok((*item, (base_prediction.detach() + residual.to_dtype(base.unet.dtype())?)?))
        };
        self.residuals.iter().map(target).collect()
    }

    /// SHA-256 over items and residuals, in hexadecimal digits.
    pub(super) fn digest(&self) -> Result<String, TrainError> {
        let mut hash = Sha256::new();
        hash.update(format!("{:?}", self.proxies));
        for (item, residual) in &self.residuals {
            hash.update(item.draw.to_le_bytes());
            hash.update(item.sample.to_le_bytes());
            let values = residual.flatten_all()?.to_vec1::<f32>()?;
            hash.update(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
        }
        Ok(hex::encode(hash.finalize()))
    }
}

fn square(tensor: &Tensor) -> Result<f64, TrainError> {
    Ok(tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?)
}

/// The prediction for one item under its caption with the trigger.
fn predict(
    base: &BaseModel,
    dataset: &EncodedDataset,
    seed: u64,
    item: DrawIndex,
    adapters: &AdapterSet,
) -> Result<Tensor, TrainError> {
    let sample = &dataset.samples[item.sample as usize];
    let noise = Noise::new(seed);
    let (latents, unit) = draw_latents(base, &noise, LatentDraw::Mode, sample, item, &TRAINING)?;
    let timesteps = [timestep(base, &noise, item)];
    let noisy = base.schedule.add_noise(&latents, &unit, &timesteps)?;
    let timesteps = Tensor::new(&timesteps, base.device())?;
    let captions = Captions::cat(&[&sample.with_trigger], base.text.adapted_by(adapters).then_some(&base.text))?;
    let (condition, _) = captions.adapted(adapters)?;
    Ok(base.unet.predict(&noisy, &timesteps, &condition, adapters)?.detach())
}

/// The timestep of an item.
pub(super) fn timestep(base: &BaseModel, noise: &Noise, item: DrawIndex) -> u32 {
    let samples = item.sample..item.sample + 1;
    TimestepSampling::Uniform.draw(&base.schedule, noise, TRAINING.timestep, item.draw, samples)[0]
}
