//! AdamW, with its state saved by parameter name.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};

use crate::error::During;
use crate::params::{Gradients, Parameters};
use crate::{Error, Result};

const STEP: &str = "step";
const FIRST_MOMENT: &str = "first_moment.";
const SECOND_MOMENT: &str = "second_moment.";

/// Hyperparameters of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the running mean of gradients, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the running mean of squared gradients, in `[0, 1)`.
    pub beta2: f64,
    /// Added to the denominator, ≥ 0.
    pub epsilon: f64,
    /// Weight decay: each step multiplies the parameter by `1 − learning rate · weight_decay`; ≥ 0.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    /// PyTorch's defaults.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 1e-2 }
    }
}

/// AdamW: Adam with decoupled weight decay.
///
/// **Source** Loshchilov and Hutter, arXiv 1711.05101, in the order of operations of `torch.optim.AdamW`:
/// `p ← p · (1 − lr · decay)`, `m ← β₁ m + (1 − β₁) g`, `v ← β₂ v + (1 − β₂) g²`,
/// `p ← p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)`. Moments are f64 for f64 parameters and f32 for all others.
#[derive(Debug, Clone)]
pub struct AdamW {
    config: AdamWConfig,
    steps: u32,
    moments: BTreeMap<String, Moments>,
}

#[derive(Debug, Clone)]
struct Moments {
    first: Tensor,
    second: Tensor,
}

impl Moments {
    /// The moments on the device of their parameter; restored moments stay on the host until the first step.
    fn on(&self, device: &Device) -> candle_core::Result<Self> {
        Ok(Self { first: self.first.to_device(device)?, second: self.second.to_device(device)? })
    }
}

impl AdamW {
    /// An optimizer before its first step.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, steps: 0, moments: BTreeMap::new() }
    }

    /// Number of steps taken.
    pub fn steps(&self) -> u64 {
        u64::from(self.steps)
    }

    /// Updates every parameter once with its gradient.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if a gradient is missing or has another shape, or if the restored state belongs to other
    /// parameters; then no parameter has changed.
    pub fn step(&mut self, parameters: &Parameters, gradients: &Gradients, learning_rate: f64) -> Result<()> {
        self.step_at(parameters, gradients, |_| learning_rate)
    }

    /// [`step`](Self::step) with a learning rate for each parameter name: the parameter groups of `torch.optim`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] as in [`step`](Self::step).
    pub fn step_at(
        &mut self,
        parameters: &Parameters,
        gradients: &Gradients,
        learning_rate_of: impl Fn(&str) -> f64,
    ) -> Result<()> {
        self.check(parameters, gradients)?;
        self.steps += 1;
        for (name, variable) in parameters.iter() {
            let gradient = gradients.get(name).expect("presence was checked above");
            let learning_rate = learning_rate_of(name);
            self.update(name, variable, gradient, learning_rate).during(format!("updating parameter `{name}`"))?;
        }
        Ok(())
    }

    fn check(&self, parameters: &Parameters, gradients: &Gradients) -> Result<()> {
        let differs = |(name, variable): &(&str, &Var)| gradients.get(name).map(Tensor::dims) != Some(variable.dims());
        let names: Vec<_> = parameters.iter().filter(differs).map(|(name, _)| name.to_string()).collect();
        if !names.is_empty() {
            return Err(Error::Mismatch { what: "gradients", names });
        }
        let stale = |(name, moments): &(&String, &Moments)| {
            parameters.get(name).map(|variable| variable.dims()) != Some(moments.first.dims())
        };
        let mut names: Vec<_> = self.moments.iter().filter(stale).map(|(name, _)| name.clone()).collect();
        if self.steps > 0 {
            let fresh = parameters.iter().map(|(name, _)| name).filter(|name| !self.moments.contains_key(*name));
            names.extend(fresh.map(str::to_string));
        }
        if names.is_empty() { Ok(()) } else { Err(Error::Mismatch { what: "optimizer state", names }) }
    }

    fn update(&mut self, name: &str, variable: &Var, gradient: &Tensor, learning_rate: f64) -> candle_core::Result<()> {
        let AdamWConfig { beta1, beta2, epsilon, weight_decay } = self.config;
        let dtype = if variable.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let gradient = gradient.detach().to_dtype(dtype)?;
        let moments = match self.moments.get(name) {
            Some(moments) => moments.on(variable.device())?,
            None => Moments { first: gradient.zeros_like()?, second: gradient.zeros_like()? },
        };
        let first = ((moments.first * beta1)? + (&gradient * (1.0 - beta1))?)?;
        let second = ((moments.second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;

        let correction1 = 1.0 - beta1.powf(f64::from(self.steps));
        let correction2 = (1.0 - beta2.powf(f64::from(self.steps))).sqrt();
        let denominator = ((second.sqrt()? / correction2)? + epsilon)?;
        let decayed = (variable.as_detached_tensor().to_dtype(dtype)? * (1.0 - learning_rate * weight_decay))?;
        let moved = (decayed - ((&first / denominator)? * (learning_rate / correction1))?)?;
        variable.set(&moved.to_dtype(variable.dtype())?)?;
        self.moments.insert(name.to_string(), Moments { first, second });
        Ok(())
    }

    /// The optimizer's state: `step`, and `first_moment.<name>` and `second_moment.<name>` for each parameter.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let step = Tensor::new(self.steps, &Device::Cpu).expect("a number always fits on the host");
        let mut state = BTreeMap::from([(STEP.to_string(), step)]);
        for (name, moments) in &self.moments {
            state.insert(format!("{FIRST_MOMENT}{name}"), moments.first.clone());
            state.insert(format!("{SECOND_MOMENT}{name}"), moments.second.clone());
        }
        state
    }

    /// Restores the state from the tensors of [`AdamW::state`]. The next step checks that they fit the parameters.
    ///
    /// # Errors
    /// [`Error::Mismatch`] names all tensors that are missing, unknown or unpaired; then the state has not changed.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let steps = match state.get(STEP) {
            Some(step) => step.to_scalar::<u32>().during("reading the number of optimizer steps")?,
            None => return Err(Error::Mismatch { what: "optimizer state", names: vec![STEP.into()] }),
        };
        let (mut moments, mut odd) = (BTreeMap::new(), Vec::new());
        for key in state.keys().filter(|key| *key != STEP) {
            match moments_of(key, state) {
                Some((name, found)) => drop(moments.insert(name.to_string(), found)),
                None => odd.push(key.clone()),
            }
        }
        if !odd.is_empty() {
            return Err(Error::Mismatch { what: "optimizer state", names: odd });
        }
        (self.steps, self.moments) = (steps, moments);
        Ok(())
    }
}

/// The parameter name in `key`, a moment's key, with both moments of that parameter.
fn moments_of<'a>(key: &'a str, state: &BTreeMap<String, Tensor>) -> Option<(&'a str, Moments)> {
    let name = key.strip_prefix(FIRST_MOMENT).or_else(|| key.strip_prefix(SECOND_MOMENT))?;
    let first = state.get(&format!("{FIRST_MOMENT}{name}"))?;
    let second = state.get(&format!("{SECOND_MOMENT}{name}"))?;
    let paired = first.dims() == second.dims() && first.dtype() == second.dtype();
    paired.then(|| (name, Moments { first: first.detach(), second: second.detach() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.99, epsilon: 1e-3, weight_decay: 0.1 };

    fn parameters(values: &[f64]) -> Parameters {
        let variable = Var::from_tensor(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap();
        [("w".to_string(), variable)].into_iter().collect()
    }

    fn gradients(values: &[f64]) -> Gradients {
        Gradients::new([("w".to_string(), Tensor::new(values, &Device::Cpu).unwrap())].into())
    }

    fn values(parameters: &Parameters) -> Vec<f64> {
        parameters.get("w").unwrap().to_vec1().unwrap()
    }

    #[test]
    fn two_steps_agree_with_the_formula_done_by_hand() {
        let (parameters, mut optimizer) = (parameters(&[1.0, -2.0]), AdamW::new(CONFIG));
        optimizer.step(&parameters, &gradients(&[0.5, 0.1]), 0.01).unwrap();
        // Corrected moments of the first step are g and g², so p ← p · (1 − 0.001) − 0.01 · g / (|g| + 0.001).
        let after_one = [1.0 * 0.999 - 0.01 * 0.5 / 0.501, -2.0 * 0.999 - 0.01 * 0.1 / 0.101];
        for (found, expected) in values(&parameters).iter().zip(after_one) {
            assert!((found - expected).abs() < 1e-15, "expected {expected}, found {found}");
        }
        optimizer.step(&parameters, &gradients(&[-0.5, 0.3]), 0.02).unwrap();
        let m = [0.9 * 0.05 - 0.1 * 0.5, 0.9 * 0.01 + 0.1 * 0.3];
        let v = [0.99 * 0.0025 + 0.01 * 0.25, 0.99 * 0.0001 + 0.01 * 0.09];
        for (i, found) in values(&parameters).into_iter().enumerate() {
            let denominator = f64::sqrt(v[i]) / f64::sqrt(1.0 - 0.99 * 0.99) + 0.001;
            let expected = after_one[i] * 0.998 - 0.02 / (1.0 - 0.81) * m[i] / denominator;
            assert!((found - expected).abs() < 1e-15, "expected {expected}, found {found}");
        }
    }

    #[test]
    fn each_parameter_moves_at_its_own_learning_rate() {
        let variable = || Var::from_tensor(&Tensor::new(&[1.0f64], &Device::Cpu).unwrap()).unwrap();
        let pair: Parameters =
            [("fast".to_string(), variable()), ("slow".to_string(), variable())].into_iter().collect();
        let gradient = || Tensor::new(&[0.5f64], &Device::Cpu).unwrap();
        let both = Gradients::new([("fast".to_string(), gradient()), ("slow".to_string(), gradient())].into());
        let rate = |name: &str| if name == "fast" { 0.02 } else { 0.01 };
        AdamW::new(CONFIG).step_at(&pair, &both, rate).unwrap();
        for (name, rate) in [("fast", 0.02), ("slow", 0.01)] {
            let alone = parameters(&[1.0]);
            AdamW::new(CONFIG).step(&alone, &gradients(&[0.5]), rate).unwrap();
            assert_eq!(pair.get(name).unwrap().to_vec1::<f64>().unwrap(), values(&alone), "{name}");
        }
    }

    #[test]
    fn a_restored_optimizer_continues_bit_for_bit() {
        let (whole, mut optimizer) = (parameters(&[1.0, -2.0]), AdamW::new(CONFIG));
        optimizer.step(&whole, &gradients(&[0.5, 0.1]), 0.01).unwrap();
        let (half, mut resumed) = (parameters(&values(&whole)), AdamW::new(CONFIG));
        resumed.restore(&optimizer.state()).unwrap();
        assert_eq!(resumed.steps(), 1);
        for (optimizer, parameters) in [(&mut optimizer, &whole), (&mut resumed, &half)] {
            optimizer.step(parameters, &gradients(&[0.2, 0.7]), 0.01).unwrap();
        }
        assert_eq!(values(&whole), values(&half));
    }

    #[test]
    fn half_precision_parameters_keep_full_precision_moments() {
        let variable = Var::from_tensor(&Tensor::new(&[1.0f32], &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap());
        let parameters: Parameters = [("w".to_string(), variable.unwrap())].into_iter().collect();
        let gradient = Tensor::new(&[0.5f32], &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
        let mut optimizer = AdamW::new(CONFIG);
        optimizer.step(&parameters, &Gradients::new([("w".to_string(), gradient)].into()), 0.1).unwrap();
        assert_eq!(optimizer.state()["first_moment.w"].dtype(), DType::F32);
        assert_eq!(parameters.get("w").unwrap().dtype(), DType::BF16);
    }

    #[test]
    fn the_moved_variable_keeps_no_graph() {
        let (parameters, mut optimizer) = (parameters(&[1.0]), AdamW::new(CONFIG));
        optimizer.step(&parameters, &gradients(&[0.5]), 0.01).unwrap();
        assert!(optimizer.state().values().all(|tensor| !tensor.track_op()));
    }

    #[test]
    fn gradients_and_states_of_other_parameters_are_refused_before_anything_moves() {
        let (parameters, mut optimizer) = (parameters(&[1.0]), AdamW::new(CONFIG));
        for wrong in [Gradients::default(), gradients(&[1.0, 2.0])] {
            let error = optimizer.step(&parameters, &wrong, 0.01).unwrap_err();
            assert!(matches!(error, Error::Mismatch { what: "gradients", names } if names == ["w"]));
        }
        optimizer.step(&parameters, &gradients(&[1.0]), 0.0).unwrap();
        let mut state = optimizer.state();
        let unpaired = state.remove("second_moment.w").unwrap();
        assert!(optimizer.restore(&state).is_err());
        state.remove("first_moment.w");
        for part in [FIRST_MOMENT, SECOND_MOMENT] {
            state.insert(format!("{part}other"), unpaired.clone());
        }
        optimizer.restore(&state).unwrap();
        let error = optimizer.step(&parameters, &gradients(&[1.0]), 0.01).unwrap_err();
        assert!(matches!(error, Error::Mismatch { what: "optimizer state", names } if names == ["other", "w"]));
        assert!(optimizer.restore(&BTreeMap::new()).is_err());
        assert_eq!(values(&parameters), [1.0]);
    }
}
