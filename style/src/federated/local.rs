//! Training of one model on the works of one client, or of the server on the public set.

use candle_core::{DType, Tensor, Var};
use catelier_federation::NamedTensors;
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::optim::{AdamW, AdamWConfig};
use catelier_numerics::params::Parameters;

use super::Settings;
use super::rows::{Rows, Work};
use crate::error::{Error, Result};

/// Views of a work in a batch.
const VIEWS: usize = 2;

/// Works with two views each, in rows `[2 works, channels + 1]`.
pub(super) struct Batch {
    pub(super) rows: Tensor,
    pub(super) labels: Vec<u32>,
}

/// A loss of a batch under a model.
pub(super) type Loss<'l> = dyn Fn(&Batch, &NamedTensors) -> candle_core::Result<Tensor> + 'l;

/// A training at one place and time: what is drawn there follows from these alone.
pub(super) struct Training<'t> {
    pub(super) settings: &'t Settings,
    pub(super) rows: &'t Rows,
    /// The tensors that are trained; the others stay.
    pub(super) trained: &'t [&'static str],
    /// Number of the round, and of the client or server.
    pub(super) place: (u64, u64),
}

impl Training<'_> {
    /// The model after so many epochs from `start`, by a fresh optimizer.
    pub(super) fn epochs(&self, start: &NamedTensors, epochs: usize, loss: &Loss<'_>) -> Result<NamedTensors> {
        let batches = |epoch: usize| {
            let order = self.order(epoch);
            order.chunks(self.settings.batch).map(<[Work]>::to_vec).collect::<Vec<_>>()
        };
        self.steps(start, (0..epochs).flat_map(batches), loss)
    }

    /// The model after so many steps, through as many epochs as they take.
    pub(super) fn some_steps(&self, start: &NamedTensors, steps: usize, loss: &Loss<'_>) -> Result<NamedTensors> {
        let batches = (0..).flat_map(|epoch| {
            let order = self.order(epoch);
            order.chunks(self.settings.batch).map(<[Work]>::to_vec).collect::<Vec<_>>()
        });
        self.steps(start, batches.take(steps), loss)
    }

    fn steps(
        &self,
        start: &NamedTensors,
        batches: impl Iterator<Item = Vec<Work>>,
        loss: &Loss<'_>,
    ) -> Result<NamedTensors> {
        let parameters = self.parameters(start)?;
        let mut model = start.clone();
        model.extend(parameters.iter().map(|(name, variable)| (name.to_owned(), variable.as_tensor().clone())));
        let mut optimizer = AdamW::new(AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() });
        for (step, works) in batches.enumerate() {
            let batch = self.batch(step, &works)?;
            let gradients = loss(&batch, &model).and_then(|loss| loss.backward()).map_err(Error::tensor("a loss"))?;
            let gradients =
                parameters.collect_gradients(&gradients).map_err(Error::numerics("training a style model"))?;
            let stepped = optimizer.step(&parameters, &gradients, self.settings.learning_rate);
            stepped.map_err(Error::numerics("training a style model"))?;
        }
        model.values_mut().for_each(|tensor| *tensor = tensor.detach());
        Ok(model)
    }

    fn parameters(&self, start: &NamedTensors) -> Result<Parameters> {
        let variable = |name: &&'static str| {
            let copy = start[*name].to_dtype(DType::F32).and_then(|tensor| Var::from_tensor(&tensor.copy()?));
            Ok(((*name).to_owned(), copy.map_err(Error::tensor("a model"))?))
        };
        self.trained.iter().map(variable).collect()
    }

    /// The works in the order of an epoch.
    fn order(&self, epoch: usize) -> Vec<Work> {
        let places = self.uniforms("style.order", epoch, self.rows.works.len());
        let mut order: Vec<(f64, Work)> = places.into_iter().zip(self.rows.works.iter().copied()).collect();
        order.sort_by(|left, right| left.0.total_cmp(&right.0));
        order.into_iter().map(|(_, work)| work).collect()
    }

    /// Two views of each work: different ones where there are several.
    fn batch(&self, step: usize, works: &[Work]) -> Result<Batch> {
        let drawn = self.uniforms("style.views", step, VIEWS * works.len());
        let (mut numbers, mut labels) = (Vec::new(), Vec::new());
        for (work, drawn) in works.iter().zip(drawn.chunks_exact(VIEWS)) {
            let pick = |share: f64, of: u32| (share * f64::from(of)) as u32;
            let first = pick(drawn[0], work.views);
            let second = if work.views == 1 { 0 } else { (first + 1 + pick(drawn[1], work.views - 1)) % work.views };
            numbers.extend([work.first + first, work.first + second]);
            labels.extend([work.label; VIEWS]);
        }
        Ok(Batch { rows: self.rows.chosen(&numbers)?, labels })
    }

    fn uniforms(&self, stream: &'static str, index: usize, count: usize) -> Vec<f64> {
        let (round, place) = self.place;
        // A round has fewer than 2^20 steps.
        Noise::new(self.settings.seed).uniforms(Stream(stream), (round << 20) + index as u64, place, count)
    }
}
