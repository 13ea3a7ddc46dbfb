//! An adapter: layer updates by module path, and how a fresh one is drawn.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::params::Parameters;
use serde::{Deserialize, Serialize};

use crate::dora::DoraFactors;
use crate::error::{Error, Result};
use crate::factors::{LARGEST_RANK, LoraFactors};
use crate::kind::UpdateKind;
use crate::module::{Component, ModuleInfo, path_number};
use crate::targets::Targets;
use crate::update::LayerUpdate;

/// The random stream that the values of a fresh `down` are drawn from.
const INITIAL_DOWN: Stream = Stream("adapter.down");

/// Settings of a fresh adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rows of every `down`, from 1 to [`LARGEST_RANK`].
    pub rank: usize,
    /// The update is scaled by `alpha / rank`; finite as f32 and not zero.
    pub alpha: f64,
    /// Probability that an input value of the adapter is dropped in training, `0 <= p < 1`.
    pub dropout: f64,
    /// The modules that get factors.
    pub targets: Targets,
}

impl LoraConfig {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    /// [`Error::InvalidRank`], [`Error::InvalidAlpha`], [`Error::InvalidDropout`].
    pub fn validate(&self) -> Result<()> {
        check_rank(self.rank)?;
        if !(self.alpha as f32).is_finite() || self.alpha == 0.0 {
            return Err(Error::InvalidAlpha { alpha: self.alpha });
        }
        check_dropout(self.dropout)
    }
}

/// Refuses rank 0, and ranks that no memory holds.
pub(crate) fn check_rank(rank: usize) -> Result<()> {
    if (1..=LARGEST_RANK).contains(&rank) { Ok(()) } else { Err(Error::InvalidRank { rank }) }
}

/// A probability of 1 would drop every value, and the factor `1 / (1 - p)` of the kept ones would be infinite.
pub(crate) fn check_dropout(probability: f64) -> Result<()> {
    if (0.0..1.0).contains(&probability) { Ok(()) } else { Err(Error::InvalidDropout { probability }) }
}

/// Layer updates by module path, in the order of the paths.
///
/// Cloning is cheap: clones share their updates until one of them is changed.
#[derive(Debug, Clone, Default)]
pub struct Adapter {
    updates: Arc<BTreeMap<String, LayerUpdate>>,
}

impl Adapter {
    /// An adapter without updates.
    pub fn new() -> Self {
        Self::default()
    }

    /// A fresh LoRA for the targets among `modules`, with its trainable parameters.
    ///
    /// `down` is drawn uniformly from `±1 / sqrt(fan_in)` (Kaiming with `a = sqrt(5)`), `up` is zero, so the adapter
    /// changes nothing yet. The values of a module depend on the seed and its path, not on the other targets.
    /// Parameters are named `<path>.down` and `<path>.up`, f32; the adapter shares their tensors.
    ///
    /// **Gradient** flows from the adapter's use to the parameters.
    ///
    /// # Errors
    /// As [`LoraConfig::validate`] and [`Targets::select`].
    pub fn init(config: &LoraConfig, modules: &[ModuleInfo], seed: u64, device: &Device) -> Result<(Self, Parameters)> {
        Self::fresh(config, modules, seed, device)?.trainable(device)
    }

    /// A fresh adapter of any kind, with factors drawn as in [`init`](Self::init).
    ///
    /// `row_norms(path)` returns the norm of the base's weights for each output of the module, `[out]`. A fresh DoRA
    /// takes these norms as magnitudes, named `<path>.magnitude`, so it changes nothing yet.
    ///
    /// # Errors
    /// As [`init`](Self::init), and any error of `row_norms`.
    pub fn init_kind(
        kind: UpdateKind,
        config: &LoraConfig,
        modules: &[ModuleInfo],
        row_norms: impl Fn(&str) -> candle_core::Result<Tensor>,
        seed: u64,
        device: &Device,
    ) -> Result<(Self, Parameters)> {
        let mut adapter = Self::fresh(config, modules, seed, device)?;
        match kind {
            UpdateKind::Lora => {}
            UpdateKind::Dora => adapter = adapter.decomposed(row_norms)?,
        }
        adapter.trainable(device)
    }

    fn fresh(config: &LoraConfig, modules: &[ModuleInfo], seed: u64, device: &Device) -> Result<Self> {
        config.validate()?;
        let noise = Noise::new(seed);
        let fresh = |module: &ModuleInfo| Ok((module.path.clone(), fresh_factors(module, config, &noise, device)?));
        config.targets.select(modules)?.into_iter().map(fresh).collect()
    }

    /// The DoRA with the factors of this adapter and the magnitudes that `magnitude(path)` returns.
    fn decomposed(&self, magnitude: impl Fn(&str) -> candle_core::Result<Tensor>) -> Result<Self> {
        let decomposed = |(path, update): (&str, &LayerUpdate)| {
            let magnitude = magnitude(path).map_err(Error::tensor(&format!("measuring the weights of `{path}`")))?;
            Ok((path.to_owned(), DoraFactors::new(update.low_rank().clone(), magnitude)?))
        };
        self.iter().map(decomposed).collect()
    }

    /// The same adapter with its tensors replaced by `tensors`, which are named as in [`trainable`](Self::trainable):
    /// `<path>.<tensor>`.
    ///
    /// # Errors
    /// [`Error::ParameterNames`] names every tensor that is missing, has another shape, or belongs to no module of the
    /// adapter.
    pub fn with_parameters(&self, tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        let mut expected = BTreeMap::new();
        for (path, update) in self.iter() {
            expected.extend(update.tensors().map(|(name, tensor)| (format!("{path}.{name}"), tensor.dims())));
        }
        let other = |(name, dims): &(&String, &&[usize])| tensors.get(*name).map(Tensor::dims) != Some(**dims);
        let mut names: Vec<String> = expected.iter().filter(other).map(|(name, _)| name.clone()).collect();
        names.extend(tensors.keys().filter(|name| !expected.contains_key(*name)).cloned());
        if !names.is_empty() {
            return Err(Error::ParameterNames { names });
        }
        self.try_map(|path, name, _| Ok(tensors[&format!("{path}.{name}")].clone()))
    }

    /// The adapter over fresh trainable parameters with the same values, f32 on `device`; a parameter is named
    /// `<path>.<tensor>`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device refuses.
    pub fn trainable(&self, device: &Device) -> Result<(Self, Parameters)> {
        self.trainable_but(device, |_| false)
    }

    /// As [`trainable`](Self::trainable), with the parameters that `is_frozen` names left out: they keep their values and
    /// get no gradient.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device refuses.
    pub fn trainable_but(&self, device: &Device, is_frozen: impl Fn(&str) -> bool) -> Result<(Self, Parameters)> {
        let mut parameters = Parameters::default();
        let adapter = self.try_map(|path, name, tensor| {
            let tensor = tensor.detach().to_device(device)?.to_dtype(DType::F32)?;
            let name = format!("{path}.{name}");
            if is_frozen(&name) {
                return Ok(tensor);
            }
            let var = Var::from_tensor(&tensor)?;
            let tensor = var.as_tensor().clone();
            parameters.insert(name, var);
            Ok(tensor)
        })?;
        Ok((adapter, parameters))
    }

    /// Sets the update of one module and returns the one it had.
    pub fn insert(&mut self, path: impl Into<String>, update: impl Into<LayerUpdate>) -> Option<LayerUpdate> {
        Arc::make_mut(&mut self.updates).insert(path.into(), update.into())
    }

    /// The update of one module.
    pub fn get(&self, path: &str) -> Option<&LayerUpdate> {
        self.updates.get(path)
    }

    /// Module paths and updates, in the order of the paths.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &LayerUpdate)> + Clone {
        self.updates.iter().map(|(path, update)| (path.as_str(), update))
    }

    /// Number of adapted modules.
    pub fn len(&self) -> usize {
        self.updates.len()
    }

    /// Whether no module is adapted.
    pub fn is_empty(&self) -> bool {
        self.updates.is_empty()
    }

    /// Number of elements of all tensors.
    pub fn element_count(&self) -> usize {
        self.updates.values().map(LayerUpdate::element_count).sum()
    }

    /// The number of adapted modules of each component that has any.
    pub fn components(&self) -> BTreeMap<Component, usize> {
        let mut counts = BTreeMap::new();
        for (component, _) in self.iter().filter_map(|(path, _)| Component::of_path(path)) {
            *counts.entry(component).or_default() += 1;
        }
        counts
    }

    /// The kind of all modules, if it is the same.
    pub fn uniform_kind(&self) -> Option<UpdateKind> {
        uniform(self.updates.values().map(LayerUpdate::kind))
    }

    /// The rank of all modules, if it is the same.
    pub fn uniform_rank(&self) -> Option<usize> {
        uniform(self.updates.values().map(LayerUpdate::rank))
    }

    /// The alpha of all modules, if it is the same.
    pub fn uniform_alpha(&self) -> Option<f64> {
        uniform(self.updates.values().map(LayerUpdate::alpha))
    }

    /// The same adapter detached from the graph, for saving and averaging: no gradient flows to its tensors.
    pub fn detached(&self) -> Self {
        let detached = self.try_map(|_, _, tensor| Ok(tensor.detach()));
        detached.expect("detaching a tensor cannot fail")
    }

    /// The LoRA with `strength` times its effect. Only alphas change, so no factor is rounded.
    ///
    /// # Errors
    /// [`Error::NotLora`] for a module of another kind, whose effect is not proportional to its alpha.
    pub fn scaled(&self, strength: f64) -> Result<Self> {
        let scaled = |(path, update): (&str, &LayerUpdate)| {
            Ok((path.to_owned(), plain_lora("scaling", path, update)?.scaled(strength)))
        };
        self.iter().map(scaled).collect()
    }

    /// The low-rank factors of all modules as a LoRA; for a DoRA, the factors that update its direction.
    pub fn low_rank(&self) -> Self {
        self.iter().map(|(path, update)| (path.to_owned(), update.low_rank().clone())).collect()
    }

    /// A copy on another device in another dtype; see [`LayerUpdate::to`].
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device refuses.
    pub fn to(&self, device: &Device, dtype: DType) -> Result<Self> {
        self.iter().map(|(path, update)| Ok((path.to_owned(), update.to(device, dtype)?))).collect()
    }

    /// Frobenius norm of the low-rank updates of all modules together. The change that a DoRA makes to the weights
    /// depends on the base too and is not measured here.
    ///
    /// # Errors
    /// [`Error::Tensor`] if a factor cannot be read.
    pub fn delta_norm(&self) -> Result<f64> {
        let squares = self.updates.values().map(|update| Ok(update.low_rank().delta_norm()?.powi(2)));
        Ok(squares.sum::<Result<f64>>()?.sqrt())
    }

    /// The same updates with every tensor replaced by `f(path, name, tensor)`.
    fn try_map(&self, mut f: impl FnMut(&str, &'static str, &Tensor) -> candle_core::Result<Tensor>) -> Result<Self> {
        let mut map = |(path, update): (&str, &LayerUpdate)| {
            let update = update.try_map(|name, tensor| f(path, name, tensor));
            Ok((path.to_owned(), update.map_err(Error::tensor(&format!("copying the update of `{path}`")))?))
        };
        self.iter().map(&mut map).collect()
    }
}

impl<U: Into<LayerUpdate>> FromIterator<(String, U)> for Adapter {
    fn from_iter<I: IntoIterator<Item = (String, U)>>(updates: I) -> Self {
        Self { updates: Arc::new(updates.into_iter().map(|(path, update)| (path, update.into())).collect()) }
    }
}

/// The factors of a LoRA; [`Error::NotLora`] for a module of another kind. `doing` names the operation in the error.
pub(crate) fn plain_lora<'a>(doing: &'static str, path: &str, update: &'a LayerUpdate) -> Result<&'a LoraFactors> {
    let not_lora = || Error::NotLora { doing, module: path.to_owned(), kind: update.kind() };
    update.as_lora().ok_or_else(not_lora)
}

/// The value that all items have; `None` if they differ or there are no items.
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
        for (_, update) in adapter.iter() {
            assert!(values(&update.low_rank().delta().unwrap()).iter().all(|v| *v == 0.0));
            assert!(values(&update.low_rank().down).iter().any(|v| *v != 0.0));
            assert!((update.scale() - 2.0).abs() < 1e-12);
        }
    }

    #[test]
    fn fresh_down_is_uniform_within_the_kaiming_bound() {
        let module =
            ModuleInfo { path: "unet.a".to_owned(), kind: ModuleKind::Linear { in_features: 64, out_features: 8 } };
        let (adapter, _) = Adapter::init(&config("a"), &[module], 1, &Device::Cpu).unwrap();
        let drawn = values(&adapter.get("unet.a").unwrap().low_rank().down);
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
            values(&adapter.get(path).unwrap().low_rank().down)
        };
        assert_eq!(init("attention", 3), init("to_k", 3));
        assert_ne!(init("to_k", 3), init("to_k", 4));
    }

    #[test]
    fn modules_draw_different_values() {
        let (adapter, _) = Adapter::init(&config("attention"), &modules(), 3, &Device::Cpu).unwrap();
        let drawn: Vec<_> = adapter.iter().map(|(_, update)| values(&update.low_rank().down)).collect();
        assert_ne!(drawn[0], drawn[1]);
    }

    #[test]
    fn gradients_reach_both_parameters() {
        let (adapter, parameters) = Adapter::init(&config("to_q"), &modules(), 3, &Device::Cpu).unwrap();
        let factors = adapter.iter().next().unwrap().1.low_rank();
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
        assert!(!adapter.detached().iter().next().unwrap().1.low_rank().down.is_variable());
    }

    fn norms(_: &str) -> candle_core::Result<Tensor> {
        Tensor::new(&[1f64, 2., 3., 4., 5., 6., 7., 8.], &Device::Cpu)
    }

    #[test]
    fn a_fresh_dora_has_the_norms_of_its_base_and_the_factors_of_a_lora() {
        let init = |kind| Adapter::init_kind(kind, &config("to_q"), &modules(), norms, 3, &Device::Cpu).unwrap();
        let ((dora, parameters), (lora, _)) = (init(UpdateKind::Dora), init(UpdateKind::Lora));
        let path = "unet.mid_block.attentions.0.attn1.to_q";
        let [dora, lora] = [&dora, &lora].map(|adapter| adapter.get(path).unwrap());
        assert_eq!(values(dora.get("magnitude").unwrap()), [1., 2., 3., 4., 5., 6., 7., 8.]);
        assert_eq!(values(&dora.low_rank().down), values(&lora.low_rank().down));
        assert_eq!(parameters.get(&format!("{path}.magnitude")).unwrap().dtype(), DType::F32);
        let failing = |_: &str| candle_core::bail!("no weights");
        let error = Adapter::init_kind(UpdateKind::Dora, &config("to_q"), &modules(), failing, 3, &Device::Cpu);
        assert!(error.unwrap_err().to_string().contains(path));
    }

    #[test]
    fn other_parameters_take_the_places_of_the_first_and_alphas_stay() {
        let (adapter, _) =
            Adapter::init_kind(UpdateKind::Dora, &config("attention"), &modules(), norms, 3, &Device::Cpu).unwrap();
        let mut parameters = BTreeMap::new();
        for (path, update) in adapter.iter() {
            parameters.extend(update.tensors().map(|(name, t)| (format!("{path}.{name}"), (t + 1.0).unwrap())));
        }
        let replaced = adapter.with_parameters(&parameters).unwrap();
        for ((_, new), (_, old)) in replaced.iter().zip(adapter.iter()) {
            assert!((new.alpha() - old.alpha()).abs() < 1e-12);
            for ((name, new), (_, old)) in new.tensors().zip(old.tensors()) {
                assert_eq!(values(new), values(&(old + 1.0).unwrap()), "{name}");
            }
        }
        let (_, lost) = parameters.pop_first().unwrap();
        parameters.insert("unet.lonely.down".to_owned(), lost);
        let error = adapter.with_parameters(&parameters).unwrap_err();
        assert!(error.to_string().contains("`unet.lonely.down`"), "{error}");
        assert!(error.to_string().contains("to_k.down`"), "{error}");
    }

    #[test]
    fn what_is_defined_for_lora_alone_refuses_dora_in_words() {
        let (dora, _) =
            Adapter::init_kind(UpdateKind::Dora, &config("to_q"), &modules(), norms, 3, &Device::Cpu).unwrap();
        let errors = [
            dora.scaled(2.0).unwrap_err(),
            crate::sum(&[(&dora, 1.0)]).unwrap_err(),
            crate::resize(&dora, 2).unwrap_err(),
        ];
        for (error, doing) in errors.iter().zip(["scaling", "adding", "resizing"]) {
            assert!(error.to_string().contains(doing), "{error}");
            assert!(error.to_string().ends_with("to_q` is a DoRA"), "{error}");
        }
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
    fn a_clone_keeps_its_updates_when_the_other_changes() {
        let (adapter, _) = Adapter::init(&config("to_q"), &modules(), 3, &Device::Cpu).unwrap();
        let mut changed = adapter.clone();
        let (path, update) = adapter.iter().next().unwrap();
        changed.insert(path, update.low_rank().scaled(3.0));
        assert!((adapter.get(path).unwrap().alpha() - 8.0).abs() < 1e-12);
        assert!((changed.get(path).unwrap().alpha() - 24.0).abs() < 1e-12);
    }
}
