//! An adapter: low-rank factors by module path, and how a fresh one is drawn.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::params::Parameters;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::factors::LoraFactors;
use crate::module::{Component, ModuleInfo, path_number};
use crate::targets::Targets;

/// Where the values of a fresh `down` come from.
const INITIAL_DOWN: Stream = Stream("adapter.down");

/// What a fresh adapter looks like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rows of every `down`, 1 or more.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`; finite and not zero.
    pub alpha: f64,
    /// Probability that an input value of the adapter is dropped in training, `0 <= p < 1`.
    pub dropout: f64,
    /// The modules that get factors.
    pub targets: Targets,
}

impl LoraConfig {
    /// Checks the ranges of all fields.
    ///
    /// **Errors** [`Error::InvalidRank`], [`Error::InvalidAlpha`], [`Error::InvalidDropout`].
    pub fn validate(&self) -> Result<()> {
        if self.rank == 0 {
            return Err(Error::InvalidRank { rank: self.rank });
        }
        if !self.alpha.is_finite() || self.alpha == 0.0 {
            return Err(Error::InvalidAlpha { alpha: self.alpha });
        }
        check_dropout(self.dropout)
    }
}

/// A probability of 1 would drop everything and divide by zero.
pub(crate) fn check_dropout(probability: f64) -> Result<()> {
    if (0.0..1.0).contains(&probability) { Ok(()) } else { Err(Error::InvalidDropout { probability }) }
}

/// Low-rank factors by module path, in the order of the paths.
///
/// Cloning is cheap: clones share their factors until one of them is changed.
#[derive(Debug, Clone, Default)]
pub struct Adapter {
    factors: Arc<BTreeMap<String, LoraFactors>>,
}

impl Adapter {
    /// An adapter without factors.
    pub fn new() -> Self {
        Self::default()
    }

    /// A fresh adapter for the targets among `modules`, with its trainable parameters.
    ///
    /// `down` is drawn uniformly from `±1 / sqrt(fan_in)` (Kaiming with `a = sqrt(5)`), `up` is
    /// zero, so the adapter changes nothing yet. What a module gets depends on the seed and its
    /// path, not on the other targets. Parameters are named `<path>.down` and `<path>.up`; the
    /// adapter's tensors are those of the parameters, f32.
    ///
    /// **Gradient** flows from the adapter's use to the parameters.
    ///
    /// **Errors** as [`LoraConfig::validate`] and [`Targets::select`].
    pub fn init(config: &LoraConfig, modules: &[ModuleInfo], seed: u64, device: &Device) -> Result<(Self, Parameters)> {
        config.validate()?;
        let noise = Noise::new(seed);
        let mut adapter = Self::new();
        for module in config.targets.select(modules)? {
            let factors = fresh_factors(module, config, &noise, device)?;
            adapter.insert(module.path.clone(), factors);
        }
        adapter.trainable(device)
    }

    /// The adapter over its parameters: `<path>.down` and `<path>.up`, one alpha for all.
    ///
    /// **Errors** [`Error::ParameterNames`] naming every parameter that has no partner.
    pub fn from_parameters(parameters: &Parameters, alpha: f64) -> Result<Self> {
        let tensors: BTreeMap<&str, &Tensor> = parameters.iter().map(|(name, var)| (name, var.as_tensor())).collect();
        Self::from_tensors(&tensors, |_| alpha)
    }

    /// The adapter over other tensors of the same parameter names, `<path>.down` and `<path>.up`; every module keeps its
    /// alpha.
    ///
    /// # Errors
    /// [`Error::ParameterNames`] naming every tensor that has no partner.
    pub fn with_parameters(&self, tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        Self::from_tensors(&tensors, self.alpha_of())
    }

    /// The alpha of a module of this adapter.
    fn alpha_of(&self) -> impl Fn(&str) -> f64 {
        |path| self.get(path).map_or(1.0, |factors| factors.alpha)
    }

    /// Pairs `<path>.down` with `<path>.up`.
    fn from_tensors(tensors: &BTreeMap<&str, &Tensor>, alpha_of: impl Fn(&str) -> f64) -> Result<Self> {
        let mut adapter = Self::new();
        for (name, down) in tensors {
            let Some(path) = name.strip_suffix(".down") else {
                continue;
            };
            let Some(up) = tensors.get(format!("{path}.up").as_str()) else {
                continue;
            };
            let factors = LoraFactors::new((*down).clone(), (*up).clone(), alpha_of(path))?;
            adapter.insert(path.to_owned(), factors);
        }
        if 2 * adapter.len() == tensors.len() {
            return Ok(adapter);
        }
        let stray = |name: &&&str| {
            let path = name.rsplit_once('.').map_or("", |(path, _)| path);
            adapter.get(path).is_none()
        };
        Err(Error::ParameterNames { names: tensors.keys().filter(stray).map(|n| (*n).to_owned()).collect() })
    }

    /// The same values as fresh parameters on `device`, in f32, to train on from here.
    pub fn trainable(&self, device: &Device) -> Result<(Self, Parameters)> {
        let mut parameters = Parameters::default();
        for (path, factors) in self.iter() {
            let factors = factors.detached().moved(device, DType::F32)?;
            for (name, tensor) in [("down", &factors.down), ("up", &factors.up)] {
                let var = Var::from_tensor(tensor).map_err(Error::tensor("creating parameters"))?;
                parameters.insert(format!("{path}.{name}"), var);
            }
        }
        let tensors = parameters.iter().map(|(name, var)| (name, var.as_tensor())).collect();
        let adapter = Self::from_tensors(&tensors, self.alpha_of())?;
        Ok((adapter, parameters))
    }

    /// Sets the factors of one module and returns those it had.
    pub fn insert(&mut self, path: impl Into<String>, factors: LoraFactors) -> Option<LoraFactors> {
        Arc::make_mut(&mut self.factors).insert(path.into(), factors)
    }

    /// The factors of one module.
    pub fn get(&self, path: &str) -> Option<&LoraFactors> {
        self.factors.get(path)
    }

    /// Module paths and factors, in the order of the paths.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &LoraFactors)> + Clone {
        self.factors.iter().map(|(path, factors)| (path.as_str(), factors))
    }

    /// Number of adapted modules.
    pub fn len(&self) -> usize {
        self.factors.len()
    }

    /// Whether no module is adapted.
    pub fn is_empty(&self) -> bool {
        self.factors.is_empty()
    }

    /// Number of values in all factors.
    pub fn element_count(&self) -> usize {
        self.factors.values().map(LoraFactors::element_count).sum()
    }

    /// The components that have adapted modules, and how many each has.
    pub fn components(&self) -> BTreeMap<Component, usize> {
        let mut counts = BTreeMap::new();
        for (component, _) in self.iter().filter_map(|(path, _)| Component::of_path(path)) {
            *counts.entry(component).or_default() += 1;
        }
        counts
    }

    /// The rank of all modules, if they share one.
    pub fn uniform_rank(&self) -> Option<usize> {
        uniform(self.factors.values().map(LoraFactors::rank))
    }

    /// The alpha of all modules, if they share one.
    pub fn uniform_alpha(&self) -> Option<f64> {
        uniform(self.factors.values().map(|factors| factors.alpha))
    }

    /// The same adapter without a gradient path: what is handed out, saved or averaged.
    pub fn detached(&self) -> Self {
        self.map(LoraFactors::detached)
    }

    /// The adapter at `strength` times its effect, kept in the alphas.
    pub fn scaled(&self, strength: f64) -> Self {
        self.map(|factors| factors.scaled(strength))
    }

    /// The same values on another device and in another dtype.
    pub fn moved(&self, device: &Device, dtype: DType) -> Result<Self> {
        self.iter().map(|(path, factors)| Ok((path.to_owned(), factors.moved(device, dtype)?))).collect()
    }

    /// Frobenius norm of the whole update, all modules together.
    pub fn delta_norm(&self) -> Result<f64> {
        let squares = self.factors.values().map(|f| Ok(f.delta_norm()?.powi(2)));
        Ok(squares.sum::<Result<f64>>()?.sqrt())
    }

    fn map(&self, change: impl Fn(&LoraFactors) -> LoraFactors) -> Self {
        self.iter().map(|(path, factors)| (path.to_owned(), change(factors))).collect()
    }
}

impl FromIterator<(String, LoraFactors)> for Adapter {
    fn from_iter<I: IntoIterator<Item = (String, LoraFactors)>>(factors: I) -> Self {
        Self { factors: Arc::new(factors.into_iter().collect()) }
    }
}

/// The value that all share; none if they differ or there are none.
fn uniform<T: PartialEq>(mut values: impl Iterator<Item = T>) -> Option<T> {
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

/// Kaiming-uniform `down` and zero `up`, as `torch.nn.Linear` and PEFT draw them.
fn fresh_factors(module: &ModuleInfo, config: &LoraConfig, noise: &Noise, device: &Device) -> Result<LoraFactors> {
    let down_shape = module.kind.down_shape(config.rank);
    let bound = 1.0 / (module.kind.fan_in() as f64).sqrt();
    let count = down_shape.iter().product();
    let values: Vec<f32> = noise
        .uniforms(INITIAL_DOWN, 0, path_number(&module.path), count)
        .into_iter()
        .map(|uniform| ((2.0 * uniform - 1.0) * bound) as f32)
        .collect();
    let down = Tensor::from_vec(values, down_shape, device);
    let up = Tensor::zeros(module.kind.up_shape(config.rank), DType::F32, device);
    LoraFactors::new(
        down.map_err(Error::tensor("creating `down`"))?,
        up.map_err(Error::tensor("creating `up`"))?,
        config.alpha,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::module::ModuleKind;

    fn modules() -> Vec<ModuleInfo> {
        ["to_q", "to_k", "to_v"]
            .iter()
            .map(|name| ModuleInfo {
                path: format!("unet.mid_block.attentions.0.attn1.{name}"),
                kind: ModuleKind::Linear { in_features: 16, out_features: 8 },
            })
            .collect()
    }

    fn config(targets: &str) -> LoraConfig {
        LoraConfig { rank: 4, alpha: 8.0, dropout: 0.0, targets: targets.parse().unwrap() }
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn fresh_adapter_is_identity() {
        let (adapter, _) = Adapter::init(&config("attention"), &modules(), 7, &Device::Cpu).unwrap();
        assert_eq!(adapter.len(), 3);
        for (_, factors) in adapter.iter() {
            assert!(values(&factors.delta().unwrap()).iter().all(|v| *v == 0.0));
            assert!(values(&factors.down).iter().any(|v| *v != 0.0));
            assert!((factors.scale() - 2.0).abs() < 1e-12);
        }
    }

    #[test]
    fn fresh_down_is_uniform_within_the_kaiming_bound() {
        let module =
            ModuleInfo { path: "unet.a".to_owned(), kind: ModuleKind::Linear { in_features: 64, out_features: 8 } };
        let (adapter, _) = Adapter::init(&config("a"), &[module], 1, &Device::Cpu).unwrap();
        let drawn = values(&adapter.get("unet.a").unwrap().down);
        let largest = drawn.iter().fold(0f32, |max, v| max.max(v.abs()));
        let variance = drawn.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 256.0;
        assert!((0.11..=0.125).contains(&largest), "{largest}");
        assert!((variance - 0.125 * 0.125 / 3.0).abs() < 0.001, "{variance}");
    }

    #[test]
    fn what_a_module_draws_depends_on_seed_and_path_alone() {
        let init = |targets, seed| {
            let (adapter, _) = Adapter::init(&config(targets), &modules(), seed, &Device::Cpu).unwrap();
            let path = "unet.mid_block.attentions.0.attn1.to_k";
            values(&adapter.get(path).unwrap().down)
        };
        assert_eq!(init("attention", 3), init("to_k", 3));
        assert_ne!(init("to_k", 3), init("to_k", 4));
    }

    #[test]
    fn modules_draw_different_values() {
        let (adapter, _) = Adapter::init(&config("attention"), &modules(), 3, &Device::Cpu).unwrap();
        let drawn: Vec<_> = adapter.iter().map(|(_, f)| values(&f.down)).collect();
        assert_ne!(drawn[0], drawn[1]);
    }

    #[test]
    fn gradients_reach_both_parameters() {
        let (adapter, parameters) = Adapter::init(&config("to_q"), &modules(), 3, &Device::Cpu).unwrap();
        let factors = adapter.iter().next().unwrap().1;
        let loss = (factors.delta().unwrap() + 1.0).unwrap().sqr().unwrap();
        let gradients = loss.sum_all().unwrap().backward().unwrap();
        let of = |name: &str| {
            let path = "unet.mid_block.attentions.0.attn1.to_q";
            let var = parameters.get(&format!("{path}.{name}")).unwrap();
            values(gradients.get(var).unwrap())
        };
        assert!(of("up").iter().all(|g| *g != 0.0));
        assert!(of("down").iter().all(|g| *g == 0.0), "up is zero");
        assert!(loss.backward().is_ok());
        assert!(!adapter.detached().iter().next().unwrap().1.down.is_variable());
    }

    #[test]
    fn an_adapter_is_found_again_from_its_parameters() {
        let (adapter, parameters) = Adapter::init(&config("attention"), &modules(), 3, &Device::Cpu).unwrap();
        let again = Adapter::from_parameters(&parameters, 8.0).unwrap();
        assert_eq!(again.len(), adapter.len());
        for ((path, left), (other, right)) in adapter.iter().zip(again.iter()) {
            assert_eq!(path, other);
            assert_eq!(values(&left.down), values(&right.down));
        }
    }

    #[test]
    fn a_parameter_without_partner_is_named() {
        let (_, mut parameters) = Adapter::init(&config("to_q"), &modules(), 3, &Device::Cpu).unwrap();
        let lonely = Var::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
        parameters.insert("unet.lonely.down".to_owned(), lonely);
        let error = Adapter::from_parameters(&parameters, 8.0).unwrap_err();
        assert!(error.to_string().contains("`unet.lonely.down`"), "{error}");
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let refused = |change: fn(&mut LoraConfig)| {
            let mut config = config("to_q");
            change(&mut config);
            config.validate().is_err()
        };
        assert!(refused(|c| c.rank = 0));
        assert!(refused(|c| c.alpha = 0.0));
        assert!(refused(|c| c.alpha = f64::NAN));
        assert!(refused(|c| c.dropout = 1.0));
        assert!(refused(|c| c.dropout = -0.1));
        assert!(config("to_q").validate().is_ok());
    }

    #[test]
    fn a_clone_keeps_its_factors_when_the_other_changes() {
        let (adapter, _) = Adapter::init(&config("to_q"), &modules(), 3, &Device::Cpu).unwrap();
        let mut changed = adapter.clone();
        let (path, factors) = adapter.iter().next().unwrap();
        changed.insert(path, factors.scaled(3.0));
        assert!((adapter.get(path).unwrap().alpha - 8.0).abs() < 1e-12);
        assert!((changed.get(path).unwrap().alpha - 24.0).abs() < 1e-12);
    }
}
