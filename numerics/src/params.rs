//! Trainable parameters and their gradients, by name.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Storage, Tensor, Var};

use crate::error::During;
use crate::finite::is_finite;
use crate::{Error, Result};

/// The trained variables, by name.
#[derive(Debug, Clone, Default)]
pub struct Parameters(BTreeMap<String, Var>);

impl Parameters {
    /// Returns an empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a variable; returns the previous variable of that name, if any.
    pub fn insert(&mut self, name: impl Into<String>, variable: Var) -> Option<Var> {
        self.0.insert(name.into(), variable)
    }

    /// The variable of that name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.0.get(name)
    }

    /// All variables in the order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Var)> {
        self.0.iter().map(|(name, variable)| (name.as_str(), variable))
    }

    /// Number of variables.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of elements in all variables together.
    pub fn element_count(&self) -> usize {
        self.0.values().map(|variable| variable.elem_count()).sum()
    }

    /// Takes the gradient of every variable out of `store` and detaches it: a gradient that stays in the graph keeps
    /// all activations of the step in memory.
    ///
    /// # Errors
    /// [`Error::Gradients`] names every variable whose gradient is missing or contains NaN or infinity.
    pub fn collect_gradients(&self, store: &GradStore) -> Result<Gradients> {
        let (mut found, mut missing) = (BTreeMap::new(), Vec::new());
        for (name, variable) in &self.0 {
            match store.get(variable) {
                Some(gradient) => _ = found.insert(name.clone(), gradient.detach()),
                None => missing.push(name.clone()),
            }
        }
        let gradients = Gradients(found);
        let not_finite = gradients.not_finite()?;
        if missing.is_empty() && not_finite.is_empty() {
            Ok(gradients)
        } else {
            Err(Error::Gradients { missing, not_finite })
        }
    }
}

impl FromIterator<(String, Var)> for Parameters {
    fn from_iter<I: IntoIterator<Item = (String, Var)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

/// Sum of squares of each tensor, ordered by name; f64, added up in row-major order.
fn squared_norms(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<f64>> {
    let mut norms = Vec::with_capacity(tensors.len());
    norms.extend(tensors.values().map_while(squared_norm_in_place));
    if norms.len() == tensors.len() { Ok(norms) } else { squared_norms_on_device(tensors) }
}

/// Sum of squares of a contiguous f32 tensor on the CPU, without a copy.
fn squared_norm_in_place(tensor: &Tensor) -> Option<f64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else { return None };
    let (start, end) = layout.contiguous_offsets()?;
    Some(values[start..end].iter().map(|value| f64::from(*value) * f64::from(*value)).sum())
}

/// Sums of squares by tensor operations, ordered by name. One copy brings all sums to the host, because on a GPU every
/// copy waits for the queued work.
fn squared_norms_on_device(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<f64>> {
    let squared_norm = |(name, tensor): (&String, &Tensor)| {
        let sum = tensor.to_dtype(DType::F64).and_then(|values| values.sqr()?.sum_all());
        sum.during(format!("measuring the gradient of `{name}`"))
    };
    let sums = tensors.iter().map(squared_norm).collect::<Result<Vec<_>>>()?;
    Tensor::stack(&sums, 0).and_then(|sums| sums.to_vec1()).during("reading the norms of the gradients")
}

/// One detached gradient per parameter, by name.
#[derive(Debug, Clone, Default)]
pub struct Gradients(BTreeMap<String, Tensor>);

impl Gradients {
    /// Gradients by parameter name; the tensors are detached.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self(tensors.into_iter().map(|(name, tensor)| (name, tensor.detach())).collect())
    }

    /// The gradient of the parameter `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// All gradients in the order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Number of gradients.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Euclidean norm over the elements of all gradients.
    pub fn global_norm(&self) -> Result<f64> {
        Ok(squared_norms(&self.0)?.iter().sum::<f64>().sqrt())
    }

    /// Names of the gradients that contain NaN or infinity, in order.
    fn not_finite(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for ((name, tensor), square) in self.0.iter().zip(squared_norms(&self.0)?) {
            // The squares of finite f64 values above 1e154 overflow, so an infinite sum needs a check of the values.
            let finite = square.is_finite()
                || is_finite(tensor).during(format!("looking for values of `{name}` that are not finite"))?;
            if !finite {
                names.push(name.clone());
            }
        }
        Ok(names)
    }

    /// Scales the gradients so that their global norm is at most `max_norm`; returns the norm before scaling.
    ///
    /// **Source** `torch.nn.utils.clip_grad_norm_`: the factor is `max_norm / (norm + 1e-6)`, at most 1.
    pub fn clip(&mut self, max_norm: f64) -> Result<f64> {
        let norm = self.global_norm()?;
        let factor = max_norm / (norm + 1e-6);
        if factor < 1.0 {
            self.scale(factor)?;
        }
        Ok(norm)
    }

    /// Adds the gradients of `other` to the gradients of the same name; an empty set becomes a copy of `other`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the names or shapes differ.
    pub fn accumulate(&mut self, other: &Gradients) -> Result<()> {
        if self.is_empty() {
            self.0.clone_from(&other.0);
            return Ok(());
        }
        self.check_same(other)?;
        for (name, sum) in &mut self.0 {
            *sum = (&*sum + &other.0[name]).during(format!("adding the gradients of `{name}`"))?;
        }
        Ok(())
    }

    /// Multiplies every gradient by `factor`.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        for (name, tensor) in &mut self.0 {
            *tensor = (&*tensor * factor).during(format!("scaling the gradient of `{name}`"))?;
        }
        Ok(())
    }

    fn check_same(&self, other: &Gradients) -> Result<()> {
        let names = differing(&self.0, |name| other.0.get(name).map(Tensor::dims));
        let extra = other.0.keys().filter(|name| !self.0.contains_key(*name)).cloned();
        let names: Vec<_> = names.into_iter().chain(extra).collect();
        if names.is_empty() { Ok(()) } else { Err(Error::Mismatch { what: "gradients", names }) }
    }
}

/// Names in `expected` for which `dims_of` returns no shape or a different one.
pub(crate) fn differing<'a>(
    expected: &BTreeMap<String, Tensor>,
    dims_of: impl Fn(&str) -> Option<&'a [usize]>,
) -> Vec<String> {
    let differs = |(name, tensor): &(&String, &Tensor)| dims_of(name) != Some(tensor.dims());
    expected.iter().filter(differs).map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::noise::{Noise, Stream};

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn gradients(pairs: &[(&str, &[f32])]) -> Gradients {
        Gradients::new(pairs.iter().map(|(name, values)| (name.to_string(), tensor(values))).collect())
    }

    fn values(gradients: &Gradients, name: &str) -> Vec<f32> {
        gradients.get(name).unwrap().to_vec1().unwrap()
    }

    fn parameters() -> Parameters {
        let variable = |values: &[f32]| Var::from_tensor(&tensor(values)).unwrap();
        [("b".to_string(), variable(&[1.0, 2.0])), ("a".to_string(), variable(&[3.0]))].into_iter().collect()
    }

    #[test]
    fn parameters_come_in_the_order_of_their_names() {
        let parameters = parameters();
        assert_eq!(parameters.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((parameters.len(), parameters.element_count()), (2, 3));
    }

    #[test]
    fn collected_gradients_are_right_and_hold_no_graph() {
        let parameters = parameters();
        let (a, b) = (parameters.get("a").unwrap(), parameters.get("b").unwrap());
        let loss = (b.sqr().unwrap().broadcast_mul(a)).unwrap().sum_all().unwrap();
        let gradients = parameters.collect_gradients(&loss.backward().unwrap()).unwrap();
        assert_eq!(values(&gradients, "a"), [5.0]);
        assert_eq!(values(&gradients, "b"), [6.0, 12.0]);
        assert!(gradients.iter().all(|(_, gradient)| !gradient.track_op()));
    }

    #[test]
    fn every_missing_and_not_finite_gradient_is_named() {
        let mut parameters = parameters();
        parameters.insert("c", Var::from_tensor(&tensor(&[0.0])).unwrap());
        parameters.insert("d", Var::from_tensor(&tensor(&[0.0])).unwrap());
        let c = parameters.get("c").unwrap();
        // The slope of the square root at 0 is infinite.
        let loss = (c.sqrt().unwrap() + parameters.get("a").unwrap().as_tensor()).unwrap().sum_all().unwrap();
        let error = parameters.collect_gradients(&loss.backward().unwrap()).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(&error, Error::Gradients { missing, not_finite } if missing == &["b", "d"] && not_finite == &["c"])
        );
        assert!(text.contains("2 trained parameters without a gradient: `b`, `d`"), "{text}");
        assert!(text.contains("not finite: `c`") && error.hint().is_some(), "{text}");
    }

    #[test]
    fn the_norm_is_the_sum_of_squares_in_row_major_order_to_the_bit() {
        let wide = Noise::new(5).normal(Stream("test"), 0, 0, (37, 53), &Device::Cpu).unwrap();
        for tensor in [wide.clone(), wide.t().unwrap(), wide.to_dtype(DType::BF16).unwrap()] {
            let rows: Vec<f64> = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
            let expected = rows.iter().map(|value| value * value).sum::<f64>().sqrt();
            let gradients = Gradients::new([("a".to_string(), tensor)].into());
            assert_eq!(gradients.global_norm().unwrap().to_bits(), expected.to_bits());
            let on_device = squared_norms_on_device(&gradients.0).unwrap();
            assert_eq!(on_device[0].sqrt().to_bits(), expected.to_bits());
        }
    }

    #[test]
    fn huge_finite_gradients_are_finite() {
        // The first square overflows in f32, the second in f64.
        let huge = [Tensor::new(&[3e38f32], &Device::Cpu), Tensor::new(&[1e200f64], &Device::Cpu)];
        for slope in huge.map(|tensor| tensor.unwrap()) {
            let variable = Var::zeros(1, slope.dtype(), &Device::Cpu).unwrap();
            let loss = (variable.as_tensor() * &slope).unwrap().sum_all().unwrap();
            let parameters: Parameters = [("a".to_string(), variable)].into_iter().collect();
            let gradients = parameters.collect_gradients(&loss.backward().unwrap()).unwrap();
            assert!(gradients.get("a").unwrap().eq(&slope).unwrap().to_vec1::<u8>().unwrap() == [1]);
        }
    }

    #[test]
    fn one_value_that_is_not_finite_is_enough() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let gradients = gradients(&[("a", &[1.0, 2.0]), ("b", &[3.0, bad, 4.0]), ("c", &[3e38, -3e38])]);
            assert_eq!(gradients.not_finite().unwrap(), ["b"], "{bad}");
        }
    }

    #[test]
    fn no_gradients_have_norm_zero() {
        assert_eq!(Gradients::default().global_norm().unwrap(), 0.0);
    }

    #[test]
    fn clipping_shrinks_to_the_norm_and_returns_the_norm_before() {
        let mut large = gradients(&[("a", &[3.0]), ("b", &[0.0, 4.0])]);
        assert_eq!(large.clip(1.0).unwrap(), 5.0);
        assert!((large.global_norm().unwrap() - 1.0).abs() < 1e-6);
        assert!((values(&large, "b")[1] - 0.8).abs() < 1e-6);
        let mut small = gradients(&[("a", &[0.3]), ("b", &[0.0, 0.4])]);
        assert!((small.clip(1.0).unwrap() - 0.5).abs() < 1e-7);
        assert_eq!(values(&small, "b"), [0.0, 0.4]);
    }

    #[test]
    fn accumulation_adds_by_name_and_refuses_other_names() {
        let mut sum = Gradients::default();
        sum.accumulate(&gradients(&[("a", &[1.0]), ("b", &[2.0])])).unwrap();
        sum.accumulate(&gradients(&[("a", &[10.0]), ("b", &[20.0])])).unwrap();
        sum.scale(0.5).unwrap();
        assert_eq!((values(&sum, "a"), values(&sum, "b")), (vec![5.5], vec![11.0]));
        let error = sum.accumulate(&gradients(&[("a", &[1.0, 2.0]), ("c", &[0.0])])).unwrap_err();
        assert!(matches!(error, Error::Mismatch { names, .. } if names == ["a", "b", "c"]));
    }
}
