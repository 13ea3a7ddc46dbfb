//! The set of adapters that a model takes as an argument of every call.

use std::convert::Infallible;
use std::sync::Arc;

use candle_core::Tensor;
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::ops::{FrozenConv2d, FrozenLinear};

use crate::adapter::Adapter;
use crate::layer::FrozenLayer;
use crate::module::{is_under, path_number};
use crate::update::LayerUpdate;

/// The random stream that dropout masks are drawn from.
const DROPOUT: Stream = Stream("adapter.dropout");

/// The adapters of one model call, each at its strength. The empty set is the base model.
///
/// A model runs each of its modules through the set ([`linear`](Self::linear), [`conv2d`](Self::conv2d)), which adds
/// the adapters' changes. Cloning is cheap.
///
/// An adapter changes a layer's result by `strength · (adapted layer(x) − layer(x))`. The changes of several adapters
/// are added; each is relative to the base, so their order does not matter. The strength scales the product of a LoRA;
/// a DoRA at strength 0.5 gives the mean of the base layer's result and the fully adapted one.
///
/// **Gradient** flows to the inputs and to every tensor of every adapter in the set.
#[derive(Debug, Clone, Default)]
pub struct AdapterSet {
    entries: Arc<Vec<Entry>>,
    dropout: Option<AdapterDropout>,
    multipliers: Option<Tensor>,
}

#[derive(Debug, Clone)]
struct Entry {
    adapter: Adapter,
    strength: f64,
}

/// Dropout on the adapters' inputs, for training only. The frozen layer takes the whole input. The change of a DoRA,
/// including its product with the frozen weight, is computed from the dropped input, as PEFT does.
///
/// The mask is a function of seed, step, module path and the adapter's index in the set, so a recomputed block or a
/// resumed run drops the same values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdapterDropout {
    /// Probability that an input value is dropped, `0 <= p < 1`; kept values are multiplied by `1 / (1 - p)`.
    pub probability: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Training step.
    pub step: u64,
}

impl AdapterSet {
    /// The empty set: the frozen base model.
    pub fn base() -> Self {
        Self::default()
    }

    /// One adapter at a strength, 1 for its full effect.
    pub fn single(adapter: &Adapter, strength: f64) -> Self {
        let mut set = Self::base();
        set.push(adapter, strength);
        set
    }

    /// Adds an adapter at a strength.
    pub fn push(&mut self, adapter: &Adapter, strength: f64) {
        Arc::make_mut(&mut self.entries).push(Entry { adapter: adapter.clone(), strength });
    }

    /// Whether the set changes nothing: every adapter is empty or has strength 0.
    pub fn is_base(&self) -> bool {
        self.entries.iter().all(|entry| entry.strength == 0.0 || entry.adapter.is_empty())
    }

    /// The same set with dropout on the adapters' inputs.
    pub fn with_dropout(mut self, dropout: AdapterDropout) -> Self {
        self.dropout = Some(dropout).filter(|dropout| dropout.probability > 0.0);
        self
    }

    /// The same set with one more factor of the strength for each sample: `multipliers: [batch]`.
    ///
    /// The factor 0 gives a sample the base's prediction, so that adapted and base predictions can share a batch.
    pub fn with_multipliers(mut self, multipliers: Tensor) -> Self {
        self.multipliers = Some(multipliers);
        self
    }

    /// Whether an adapter of the set changes the module at `path`.
    pub fn adapts(&self, path: &str) -> bool {
        self.updates_at(path).next().is_some()
    }

    /// `residual + layer(x)` for the linear `layer` at `path`, with the changes of all adapters.
    ///
    /// **Shapes** `x: [batch, ..., in]`; returns `[batch, ..., out]`, the shape of the residual.
    ///
    /// # Errors
    /// candle's error if the shapes do not fit.
    pub fn linear(
        &self,
        path: &str,
        x: &Tensor,
        layer: &FrozenLinear,
        residual: Option<&Tensor>,
    ) -> candle_core::Result<Tensor> {
        self.adapt(path, x, layer, residual)
    }

    /// `residual + layer(x)` for the convolution `layer` at `path`, with the changes of all adapters.
    ///
    /// **Shapes** `x: [batch, in, height, width]`; returns `[batch, out, oh, ow]`, the shape of the residual.
    ///
    /// # Errors
    /// candle's error if the shapes do not fit.
    pub fn conv2d(
        &self,
        path: &str,
        x: &Tensor,
        layer: &FrozenConv2d,
        residual: Option<&Tensor>,
    ) -> candle_core::Result<Tensor> {
        self.adapt(path, x, layer, residual)
    }

    /// The updates at `path`, each with its adapter's index in the set and its strength.
    fn updates_at<'a>(&'a self, path: &'a str) -> impl Iterator<Item = (usize, &'a LayerUpdate, f64)> {
        let entries = self.entries.iter().enumerate().filter(|(_, entry)| entry.strength != 0.0);
        entries.filter_map(move |(place, entry)| Some((place, entry.adapter.get(path)?, entry.strength)))
    }

    /// Without dropout and multipliers, the layer and the first update are one node of the graph, which is faster and
    /// keeps fewer activations. The changes of the other updates are added.
    fn adapt(
        &self,
        path: &str,
        x: &Tensor,
        layer: &impl FrozenLayer,
        residual: Option<&Tensor>,
    ) -> candle_core::Result<Tensor> {
        let mut updates = self.updates_at(path).peekable();
        let plain = self.dropout.is_none() && self.multipliers.is_none();
        let mut output = match updates.next_if(|_| plain) {
            Some((_, update, strength)) => update.forward(layer, x, strength, residual)?,
            None => layer.forward(x, residual)?,
        };
        for (place, update, strength) in updates {
            let change = update.change(layer, &self.dropped(path, place, x)?, strength)?;
            output = (output + self.multiplied(change)?)?;
        }
        Ok(output)
    }

    /// The input after dropout: kept values are divided by `1 - p`, so that the expectation stays the same.
    fn dropped(&self, path: &str, place: usize, x: &Tensor) -> candle_core::Result<Tensor> {
        let Some(dropout) = self.dropout else {
            return Ok(x.clone());
        };
        let number = path_number(path).wrapping_add(place as u64);
        let kept = 1.0 / (1.0 - dropout.probability);
        let mask: Vec<f32> = Noise::new(dropout.seed)
            .uniforms(DROPOUT, dropout.step, number, x.elem_count())
            .into_iter()
            .map(|uniform| if uniform < dropout.probability { 0.0 } else { kept as f32 })
            .collect();
        let mask = Tensor::from_vec(mask, x.shape(), x.device())?;
        x * mask.to_dtype(x.dtype())?
    }

    /// The change times the multiplier of each sample.
    fn multiplied(&self, update: Tensor) -> candle_core::Result<Tensor> {
        let Some(multipliers) = &self.multipliers else {
            return Ok(update);
        };
        let mut shape = vec![1; update.rank()];
        shape[0] = multipliers.dim(0)?;
        let multipliers = multipliers.reshape(shape)?.to_dtype(update.dtype())?;
        update.broadcast_mul(&multipliers)
    }

    /// Every tensor of the updates below `prefix`, in a fixed order: the parameters of a checkpointed segment.
    pub fn parameters_under(&self, prefix: &str) -> Vec<Tensor> {
        self.entries
            .iter()
            .flat_map(|entry| entry.adapter.iter())
            .filter(|(path, _)| is_under(path, prefix))
            .flat_map(|(_, update)| update.tensors())
            .map(|(_, tensor)| tensor.clone())
            .collect()
    }

    /// The set for the modules below `prefix` with its tensors replaced by `parameters`, in the order of
    /// [`parameters_under`](Self::parameters_under). A checkpointed segment computes with these.
    ///
    /// # Panics
    /// If `parameters` has another length than `parameters_under(prefix)`.
    pub fn with_parameters(&self, prefix: &str, parameters: &[Tensor]) -> Self {
        let mut parameters = parameters.iter();
        let mut next = |_: &'static str, _: &Tensor| {
            let parameter = parameters.next().expect("one parameter for each tensor");
            Ok::<_, Infallible>(parameter.clone())
        };
        let mut with_parameters = |entry: &Entry| {
            let updates = entry.adapter.iter().filter(|(path, _)| is_under(path, prefix));
            let updates = updates.map(|(path, update)| {
                let Ok(update) = update.try_map(&mut next);
                (path.to_owned(), update)
            });
            Entry { adapter: updates.collect(), strength: entry.strength }
        };
        let entries = self.entries.iter().map(&mut with_parameters).collect();
        assert!(parameters.next().is_none(), "more parameters than the updates under `{prefix}` have");
        Self { entries: Arc::new(entries), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::dora::DoraFactors;
    use crate::factors::LoraFactors;

    const PATH: &str = "unet.mid_block.attentions.0.attn1.to_q";

    fn wave(shape: &[usize], phase: f32) -> Tensor {
        let values = (0..shape.iter().product()).map(|i: usize| (1.7 * i as f32 + phase).sin());
        Tensor::from_vec(values.collect(), shape, &Device::Cpu).unwrap()
    }

    fn adapter(path: &str, phase: f32) -> Adapter {
        let factors = LoraFactors::new(wave(&[2, 6], phase), wave(&[5, 2], -phase), 3.0).unwrap();
        Adapter::from_iter([(path.to_owned(), factors)])
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
    }

    #[track_caller]
    fn assert_near(actual: &Tensor, expected: &Tensor, tolerance: f32) {
        assert_eq!(actual.dims(), expected.dims());
        for (left, right) in values(actual).iter().zip(values(expected)) {
            assert!((left - right).abs() <= tolerance, "{left} against {right}");
        }
    }

    fn layer(dtype: DType) -> FrozenLinear {
        FrozenLinear::new(&wave(&[5, 6], 9.0).to_dtype(dtype).unwrap(), None).unwrap()
    }

    fn linear(set: &AdapterSet, x: &Tensor) -> Tensor {
        set.linear(PATH, x, &layer(DType::F32), None).unwrap()
    }

    #[test]
    fn the_empty_set_and_adapters_of_other_modules_change_nothing() {
        let x = wave(&[2, 3, 6], 0.5);
        let base = linear(&AdapterSet::base(), &x);
        let elsewhere = AdapterSet::single(&adapter("unet.conv_in", 1.0), 1.0);
        assert_eq!(values(&linear(&elsewhere, &x)), values(&base));
        assert!(AdapterSet::base().is_base());
        assert!(AdapterSet::single(&adapter(PATH, 1.0), 0.0).is_base());
        assert!(!elsewhere.is_base());
    }

    #[test]
    fn an_adapted_layer_is_the_layer_with_the_merged_weight() {
        let (x, weight) = (wave(&[2, 3, 6], 0.5), wave(&[5, 6], 0.2));
        let adapter = adapter(PATH, 1.0);
        let layer = |weight: &Tensor| FrozenLinear::new(weight, None).unwrap();
        let apply = |weight: &Tensor| layer(weight).forward(&x).unwrap();
        let adapted = AdapterSet::single(&adapter, 0.7).linear(PATH, &x, &layer(&weight), None).unwrap();
        let merged = adapter.get(PATH).unwrap().merged_into(&weight, 0.7).unwrap();
        assert_near(&adapted, &apply(&merged), 1e-5);
    }

    #[test]
    fn an_adapted_convolution_is_the_convolution_with_the_merged_kernel() {
        let (x, weight) = (wave(&[2, 3, 8, 6], 0.5), wave(&[4, 3, 3, 3], 0.2));
        let factors = LoraFactors::new(wave(&[2, 3, 3, 3], 0.1), wave(&[4, 2, 1, 1], 0.4), 1.0).unwrap();
        let adapter = Adapter::from_iter([(PATH.to_owned(), factors)]);
        for (stride, padding) in [(1, 1), (2, 1), (1, 0)] {
            let layer = |weight: &Tensor| FrozenConv2d::new(weight, None, stride, padding).unwrap();
            let apply = |weight: &Tensor| layer(weight).forward(&x).unwrap();
            let adapted = AdapterSet::single(&adapter, 1.5).conv2d(PATH, &x, &layer(&weight), None).unwrap();
            let merged = adapter.get(PATH).unwrap().merged_into(&weight, 1.5).unwrap();
            assert_near(&adapted, &apply(&merged), 1e-4);
        }
    }

    fn dora(path: &str, phase: f32) -> Adapter {
        let factors = adapter(path, phase).get(path).unwrap().low_rank().clone();
        let magnitude = (wave(&[5], phase).abs().unwrap() + 0.5).unwrap();
        Adapter::from_iter([(path.to_owned(), DoraFactors::new(factors, magnitude).unwrap())])
    }

    #[test]
    fn several_adapters_add_up_in_any_order() {
        let x = wave(&[2, 3, 6], 0.5);
        let change = |set: &AdapterSet| (linear(set, &x) - linear(&AdapterSet::base(), &x)).unwrap();
        for (left, right) in [
            (adapter(PATH, 1.0), adapter(PATH, 2.0)),
            (dora(PATH, 1.0), adapter(PATH, 2.0)),
            (dora(PATH, 1.0), dora(PATH, 2.0)),
        ] {
            let alone = change(&AdapterSet::single(&left, 0.5)) + change(&AdapterSet::single(&right, -1.0));
            let expected = alone.unwrap();
            for order in [[(&left, 0.5), (&right, -1.0)], [(&right, -1.0), (&left, 0.5)]] {
                let mut both = AdapterSet::base();
                order.iter().for_each(|(adapter, strength)| both.push(adapter, *strength));
                assert_near(&change(&both), &expected, 1e-5);
            }
        }
    }

    #[test]
    fn a_dora_at_no_strength_is_the_base_and_at_half_strength_the_mean() {
        let x = wave(&[2, 3, 6], 0.5);
        let at = |strength| linear(&AdapterSet::single(&dora(PATH, 1.0), strength), &x);
        let base = linear(&AdapterSet::base(), &x);
        assert_eq!(values(&at(0.0)), values(&base));
        let mean = ((at(1.0) + base).unwrap() * 0.5).unwrap();
        assert_near(&at(0.5), &mean, 1e-5);
    }

    #[test]
    fn dropout_of_a_dora_spares_the_base_s_part() {
        let dropout = AdapterDropout { probability: 0.5, seed: 1, step: 2 };
        let (x, path) = (wave(&[1, 1, 6], 0.5), PATH);
        let dora = dora(path, 1.0);
        let found = linear(&AdapterSet::single(&dora, 1.0).with_dropout(dropout), &x);
        let mask = values(&AdapterSet::base().with_dropout(dropout).dropped(path, 0, &x).unwrap());
        assert!(mask.contains(&0.0) && mask.iter().any(|value| *value != 0.0), "{mask:?}");
        let dropped = Tensor::from_vec(mask, (1, 1, 6), &Device::Cpu).unwrap();
        let change = linear(&AdapterSet::single(&dora, 1.0), &dropped) - linear(&AdapterSet::base(), &dropped);
        assert_near(&found, &(linear(&AdapterSet::base(), &x) + change.unwrap()).unwrap(), 1e-5);
    }

    #[test]
    fn multipliers_choose_sample_by_sample() {
        let x = wave(&[2, 3, 6], 0.5);
        let full = AdapterSet::single(&adapter(PATH, 1.0), 1.0);
        let multipliers = Tensor::new(&[0f32, 2.0], &Device::Cpu).unwrap();
        let mixed = linear(&full.clone().with_multipliers(multipliers), &x);
        let (base, adapted) = (linear(&AdapterSet::base(), &x), linear(&full, &x));
        assert_eq!(values(&mixed.get(0).unwrap()), values(&base.get(0).unwrap()));
        let twice = ((adapted * 2.0).unwrap() - base).unwrap();
        assert_near(&mixed.get(1).unwrap(), &twice.get(1).unwrap(), 1e-5);
    }

    #[test]
    fn half_precision_inputs_keep_their_dtype() {
        let x = wave(&[2, 3, 6], 0.5);
        let set = AdapterSet::single(&adapter(PATH, 1.0), 1.0);
        let output = set.linear(PATH, &x.to_dtype(DType::BF16).unwrap(), &layer(DType::BF16), None).unwrap();
        assert_eq!(output.dtype(), DType::BF16);
        assert_near(&output, &linear(&set, &x), 0.1);
    }

    /// A set over identity factors, so that the update shows the dropped input itself.
    fn identity_with(dropout: AdapterDropout, width: usize) -> AdapterSet {
        let eye = Tensor::eye(width, DType::F32, &Device::Cpu).unwrap();
        let factors = LoraFactors::new(eye.clone(), eye, width as f64).unwrap();
        AdapterSet::single(&Adapter::from_iter([(PATH.to_owned(), factors)]), 1.0).with_dropout(dropout)
    }

    fn dropped(dropout: AdapterDropout) -> Vec<f32> {
        let ones = Tensor::ones((50, 40), DType::F32, &Device::Cpu).unwrap();
        let nothing = FrozenLinear::new(&Tensor::zeros((40, 40), DType::F32, &Device::Cpu).unwrap(), None).unwrap();
        let output = identity_with(dropout, 40).linear(PATH, &ones, &nothing, None);
        values(&output.unwrap())
    }

    #[test]
    fn dropout_keeps_the_expectation() {
        let output = dropped(AdapterDropout { probability: 0.25, seed: 1, step: 2 });
        let kept = output.iter().filter(|value| **value > 0.0).count();
        assert!(output.iter().all(|value| *value == 0.0 || (value - 4.0 / 3.0).abs() < 1e-5));
        assert!((1420..=1580).contains(&kept), "{kept} of 2000, expected 1500");
    }

    #[test]
    fn dropout_is_a_function_of_seed_and_step() {
        let at = |seed, step| dropped(AdapterDropout { probability: 0.5, seed, step });
        assert_eq!(at(1, 2), at(1, 2));
        assert_ne!(at(1, 2), at(1, 3));
        assert_ne!(at(1, 2), at(2, 2));
        assert!(dropped(AdapterDropout { probability: 0.0, seed: 1, step: 2 }).iter().all(|v| *v == 1.0));
    }

    #[test]
    fn other_parameters_take_the_places_of_the_first() {
        let x = wave(&[2, 3, 6], 0.5);
        let mut set = AdapterSet::single(&adapter(PATH, 1.0), 0.5);
        set.push(&dora(PATH, 2.0), 1.0);
        set.push(&adapter("unet.up_blocks.0.a", 3.0), 1.0);
        let parameters = set.parameters_under("unet.mid_block");
        assert_eq!(parameters.len(), 5);
        let vars: Vec<Var> = parameters.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let replaced = set.with_parameters("unet.mid_block", &tensors);
        let output = linear(&replaced, &x);
        assert_eq!(values(&output), values(&linear(&set, &x)));
        let gradients = output.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert!(vars.iter().all(|var| values(gradients.get(var).unwrap()).iter().any(|g| *g != 0.0)));
    }

    #[test]
    #[should_panic(expected = "more parameters")]
    fn too_many_parameters_are_a_bug() {
        let set = AdapterSet::single(&adapter(PATH, 1.0), 0.5);
        set.with_parameters("unet.mid_block", &[wave(&[1], 0.0), wave(&[1], 0.0), wave(&[1], 0.0)]);
    }
}
