//! Exponential moving average of parameters.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};

use crate::error::During;
use crate::params::{Parameters, differing};
use crate::{Error, Result};

/// An exponential moving average of the parameters, kept in f64 for f64 parameters and in f32 for all others.
///
/// `average ← d · average + (1 − d) · parameter` with `d = min(decay, (1 + n) / (10 + n))` at update `n = 1, 2, …`.
/// The first updates have a small `d`, so that the initial values lose their weight soon.
///
/// **Source** the warm-up of TensorFlow's `ExponentialMovingAverage`, as in diffusers' `EMAModel`.
#[derive(Debug, Clone)]
pub struct Ema {
    decay: f64,
    updates: u64,
    average: BTreeMap<String, Tensor>,
}

impl Ema {
    /// Starts at the current values of `parameters`; `decay` is in `[0, 1)`.
    ///
    /// # Errors
    /// [`Error::Number`] if `decay` is outside its range.
    pub fn new(parameters: &Parameters, decay: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&decay) {
            return Err(Error::Number {
                what: "decay of the average",
                expected: "at least 0 and below 1",
                found: decay,
            });
        }
        let copy = |(name, variable): (&str, &Var)| Ok((name.to_string(), wide_copy(name, variable)?));
        Ok(Self { decay, updates: 0, average: parameters.iter().map(copy).collect::<Result<_>>()? })
    }

    /// Updates the average with the current values of `parameters`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the names or shapes of `parameters` have changed since the start.
    pub fn update(&mut self, parameters: &Parameters) -> Result<()> {
        self.check(differing(&self.average, |name| parameters.get(name).map(|variable| variable.dims())))?;
        self.updates += 1;
        let decay = self.decay.min((1 + self.updates) as f64 / (10 + self.updates) as f64);
        for (name, average) in &mut self.average {
            let variable = parameters.get(name).expect("presence was checked above");
            let now = wide_copy(name, variable)?;
            let mix = || (&*average * decay)? + (now * (1.0 - decay))?;
            *average = mix().during(format!("averaging parameter `{name}`"))?;
        }
        Ok(())
    }

    /// The averages by parameter name, detached.
    pub fn average(&self) -> &BTreeMap<String, Tensor> {
        &self.average
    }

    /// Number of updates; together with [`Ema::average`], the whole state to save.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Restores saved averages and the number of updates.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the averages have other names or shapes than the parameters.
    pub fn restore(&mut self, average: &BTreeMap<String, Tensor>, updates: u64) -> Result<()> {
        let mut names = differing(&self.average, |name| average.get(name).map(Tensor::dims));
        names.extend(average.keys().filter(|name| !self.average.contains_key(*name)).cloned());
        self.check(names)?;
        for (name, tensor) in &mut self.average {
            let restored = average[name].detach().to_device(tensor.device());
            *tensor = restored.during(format!("restoring the average of `{name}`"))?;
        }
        self.updates = updates;
        Ok(())
    }

    fn check(&self, names: Vec<String>) -> Result<()> {
        if names.is_empty() { Ok(()) } else { Err(Error::Mismatch { what: "averaged parameters", names }) }
    }
}

/// A copy that does not change when the variable is set.
fn wide_copy(name: &str, variable: &Var) -> Result<Tensor> {
    let dtype = if variable.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let copy = || variable.as_detached_tensor().to_dtype(dtype)?.copy();
    copy().during(format!("copying parameter `{name}`"))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn parameters(value: f64) -> Parameters {
        let variable = Var::from_tensor(&Tensor::new(&[value], &Device::Cpu).unwrap()).unwrap();
        [("w".to_string(), variable)].into_iter().collect()
    }

    fn value(ema: &Ema) -> f64 {
        ema.average()["w"].to_vec1::<f64>().unwrap()[0]
    }

    #[test]
    fn the_average_follows_by_the_warmed_up_decay() {
        let parameters = parameters(0.0);
        let mut ema = Ema::new(&parameters, 0.25).unwrap();
        parameters.get("w").unwrap().set(&Tensor::new(&[1.0], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(value(&ema), 0.0);
        ema.update(&parameters).unwrap();
        let first = 1.0 - 2.0 / 11.0;
        assert!((value(&ema) - first).abs() < 1e-15);
        ema.update(&parameters).unwrap();
        // At n = 2 the warm-up, 3 / 12, equals the configured decay.
        assert!((value(&ema) - (first * 0.25 + 0.75)).abs() < 1e-15);
    }

    #[test]
    fn a_restored_average_continues_where_it_was() {
        let parameters = parameters(2.0);
        let mut ema = Ema::new(&parameters, 0.9).unwrap();
        let saved = [("w".to_string(), Tensor::new(&[5.0], &Device::Cpu).unwrap())].into();
        ema.restore(&saved, 7).unwrap();
        assert_eq!((value(&ema), ema.updates()), (5.0, 7));
        assert!(ema.restore(&BTreeMap::new(), 7).is_err());
    }

    #[test]
    fn impossible_decays_and_foreign_parameters_are_refused() {
        assert!(matches!(Ema::new(&parameters(0.0), 1.0), Err(Error::Number { .. })));
        assert!(matches!(Ema::new(&parameters(0.0), f64::NAN), Err(Error::Number { .. })));
        let mut ema = Ema::new(&parameters(0.0), 0.5).unwrap();
        assert!(matches!(ema.update(&Parameters::new()), Err(Error::Mismatch { .. })));
    }
}
