//! What a run starts from, and what of it stays as it is.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};
use catelier_adapters::Adapter;
use catelier_numerics::params::{Gradients, Parameters};

use super::TrainError;

/// What a run starts from: an adapter, and what a round of a federation asks beside it.
#[derive(Debug, Clone, Default)]
pub struct StartingPoint {
    /// The adapter. It decides kind, rank and alpha.
    pub adapter: Adapter,
    /// Parameters that keep their values, `<path>.<tensor>`: no gradient, no state of the optimizer.
    pub frozen: BTreeSet<String>,
    /// An update that belongs to the base of the adapted predictions and is not trained. CAT holds the whole to the base
    /// without it.
    pub merged: Option<Adapter>,
    /// The factor `mu >= 0` of FedProx's term `mu / 2 · ‖w − w_start‖²` over the trained parameters; 0 for none.
    ///
    /// **Source** FedProx, arXiv 1812.06127, equation 2.
    pub proximal: f64,
}

impl From<Adapter> for StartingPoint {
    /// All parameters of the adapter are trained.
    fn from(adapter: Adapter) -> Self {
        Self { adapter, ..Self::default() }
    }
}

impl StartingPoint {
    /// Whether all parameters of the adapter are trained, with nothing beside them.
    pub fn is_plain(&self) -> bool {
        self.frozen.is_empty() && self.merged.is_none() && self.proximal == 0.0
    }

    /// Refuses frozen names that the adapter lacks, a start without a parameter to train, and a factor out of range.
    pub(super) fn validate(&self) -> Result<(), TrainError> {
        let names: BTreeSet<String> = self.tensors().into_keys().collect();
        let unknown: Vec<String> = self.frozen.difference(&names).cloned().collect();
        if !unknown.is_empty() {
            return Err(catelier_adapters::Error::ParameterNames { names: unknown }.into());
        }
        if self.frozen.len() == names.len() {
            return Err(TrainError::NothingToTrain);
        }
        match self.proximal.is_finite() && self.proximal >= 0.0 {
            true => Ok(()),
            false => Err(TrainError::setting("proximal", self.proximal, "must be finite and 0 or more")),
        }
    }

    /// The adapter with these tensors in place of its trained ones.
    pub(super) fn with_trained(&self, trained: &BTreeMap<String, Tensor>) -> Result<Adapter, TrainError> {
        let mut tensors = self.tensors();
        tensors.extend(trained.iter().map(|(name, tensor)| (name.clone(), tensor.clone())));
        Ok(self.adapter.with_parameters(&tensors)?)
    }

    /// The tensors of the adapter by name.
    fn tensors(&self) -> BTreeMap<String, Tensor> {
        let of_module = |(path, update): (&str, &catelier_adapters::LayerUpdate)| -> Vec<(String, Tensor)> {
            update.tensors().map(|(name, tensor)| (format!("{path}.{name}"), tensor.clone())).collect()
        };
        self.adapter.iter().flat_map(of_module).collect()
    }
}

/// FedProx's term: the values from which the parameters of a run are not to move far.
#[derive(Debug)]
pub(super) struct Proximal {
    mu: f64,
    start: BTreeMap<String, Tensor>,
}

impl Proximal {
    /// The term around the values that `parameters` have now; `None` for `mu = 0`.
    pub(super) fn new(mu: f64, parameters: &Parameters) -> Result<Option<Self>, TrainError> {
        if mu == 0.0 {
            return Ok(None);
        }
        let start = parameters.iter().map(|(name, value)| Ok((name.to_owned(), value.as_tensor().detach().copy()?)));
        Ok(Some(Self { mu, start: start.collect::<Result<_, candle_core::Error>>()? }))
    }

    /// The term's value, and its gradient `mu (w − w_start)`.
    pub(super) fn term(&self, parameters: &Parameters) -> Result<(f64, Gradients), TrainError> {
        let (mut square, mut gradients) = (0.0, BTreeMap::new());
        for (name, value) in parameters.iter() {
            let moved = (value.as_tensor().detach() - &self.start[name])?;
            square += moved.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
            gradients.insert(name.to_owned(), (moved * self.mu)?);
        }
        Ok((self.mu / 2.0 * square, Gradients::new(gradients)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn the_gradient_of_the_proximal_term_is_its_slope() {
        let value = Var::from_tensor(&Tensor::new(&[0.5f32, -1.0, 2.0], &Device::Cpu).unwrap()).unwrap();
        let parameters: Parameters = [("a".to_owned(), value.clone())].into_iter().collect();
        let proximal = Proximal::new(3.0, &parameters).unwrap().unwrap();
        assert_eq!(proximal.term(&parameters).unwrap().0, 0.0);
        let moved = |by: [f32; 3]| {
            value.set(&Tensor::new(&[0.5 + by[0], -1.0 + by[1], 2.0 + by[2]], &Device::Cpu).unwrap()).unwrap();
            proximal.term(&parameters).unwrap()
        };
        let (term, gradient) = moved([0.5, -0.25, 0.0]);
        assert!((term - 1.5 * (0.25 + 0.0625)).abs() < 1e-9);
        let slope = (moved([0.5 + 1e-2, -0.25, 0.0]).0 - moved([0.5 - 1e-2, -0.25, 0.0]).0) / 2e-2;
        let gradient = gradient.get("a").unwrap().to_vec1::<f32>().unwrap();
        assert!((slope - f64::from(gradient[0])).abs() < 1e-3);
        assert_eq!(gradient, [1.5, -0.75, 0.0]);
        assert!(Proximal::new(0.0, &parameters).unwrap().is_none());
    }
}
