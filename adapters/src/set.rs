//! The adapters that one call of a model is made with.

use std::sync::Arc;

use candle_core::Tensor;
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::ops::{self, Around, FrozenConv2d, FrozenLinear};

use crate::adapter::Adapter;
use crate::factors::LoraFactors;
use crate::module::{is_under, path_number};

/// Where dropout masks come from.
const DROPOUT: Stream = Stream("adapter.dropout");

/// The adapters a model is called with, each at its strength. The empty set is the base model.
///
/// A model asks the set to run each of its modules with what the adapters change there
/// ([`linear`](Self::linear), [`conv2d`](Self::conv2d)). Cloning is cheap.
///
/// **Gradient** flows to the inputs and to the factors of every adapter in the set.
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

/// Dropout on the adapters' inputs, for training only.
///
/// The mask is a function of seed, step, module path and the adapter's place in the set, so a
/// recomputed or resumed step drops the same values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdapterDropout {
    /// Probability that an input value is dropped, `0 <= p < 1`; kept ones grow by `1 / (1 - p)`.
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

    /// Adds an adapter; its effect is added to that of the others.
    pub fn push(&mut self, adapter: &Adapter, strength: f64) {
        Arc::make_mut(&mut self.entries).push(Entry { adapter: adapter.clone(), strength });
    }

    /// Whether the set changes nothing: it has no adapter with factors and a strength.
    pub fn is_base(&self) -> bool {
        self.entries.iter().all(|entry| entry.strength == 0.0 || entry.adapter.is_empty())
    }

    /// The same set with dropout on the adapters' inputs.
    pub fn with_dropout(mut self, dropout: AdapterDropout) -> Self {
        self.dropout = Some(dropout).filter(|dropout| dropout.probability > 0.0);
        self
    }

    /// The same set with one more strength per sample: `multipliers: [batch]`.
    ///
    /// A zero leaves the sample to the base model, so adapted and base predictions can share a
    /// batch.
    pub fn with_multipliers(mut self, multipliers: Tensor) -> Self {
        self.multipliers = Some(multipliers);
        self
    }

    /// Whether an adapter of the set changes what the module at `path` does.
    pub fn reaches(&self, path: &str) -> bool {
        self.reaching(path).next().is_some()
    }

    /// The linear `layer` at `path` with what the adapters add to it, on top of the residual, if there is one.
    ///
    /// **Shapes** `x: [batch, ..., in]`; returns `[batch, ..., out]`, the shape of the residual.
    pub fn linear(
        &self,
        path: &str,
        x: &Tensor,
        layer: &FrozenLinear,
        residual: Option<&Tensor>,
    ) -> candle_core::Result<Tensor> {
        self.adapt(
            path,
            x,
            || layer.forward_around(x, Around { prelude: None, residual }),
            |LoraFactors { down, up, .. }, scale| layer.forward_adapted(x, down, up, scale, residual),
            |x, LoraFactors { down, up, .. }, scale| ops::low_rank_linear(x, down, up, scale),
        )
    }

    /// The convolution `layer` at `path` with what the adapters add to it, on top of the residual, if there is one.
    ///
    /// **Shapes** `x: [batch, in, height, width]`; returns `[batch, out, oh, ow]`, the shape of the residual.
    pub fn conv2d(
        &self,
        path: &str,
        x: &Tensor,
        layer: &FrozenConv2d,
        residual: Option<&Tensor>,
    ) -> candle_core::Result<Tensor> {
        let (stride, padding) = (layer.stride(), layer.padding());
        self.adapt(
            path,
            x,
            || layer.forward_around(x, None, Around { prelude: None, residual }),
            |LoraFactors { down, up, .. }, scale| layer.forward_adapted(x, down, up, scale, residual),
            |x, LoraFactors { down, up, .. }, scale| ops::low_rank_conv2d(x, down, up, scale, stride, padding),
        )
    }

    /// The adapters' factors at `path`, each with its place in the set and its strength.
    fn reaching<'a>(&'a self, path: &'a str) -> impl Iterator<Item = (usize, &'a LoraFactors, f64)> {
        let entries = self.entries.iter().enumerate().filter(|(_, entry)| entry.strength != 0.0);
        entries.filter_map(move |(place, entry)| Some((place, entry.adapter.get(path)?, entry.strength)))
    }

    /// A layer with all updates: `together` is the layer and one update as one node, which is faster and keeps less.
    fn adapt(
        &self,
        path: &str,
        x: &Tensor,
        alone: impl FnOnce() -> candle_core::Result<Tensor>,
        together: impl FnOnce(&LoraFactors, f64) -> candle_core::Result<Tensor>,
        update: impl Fn(&Tensor, &LoraFactors, f64) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let mut reaching = self.reaching(path).peekable();
        let plain = self.dropout.is_none() && self.multipliers.is_none();
        let mut output = match reaching.next_if(|_| plain) {
            Some((_, factors, strength)) => together(&with_dtype_of(factors, x)?, factors.scale() * strength)?,
            None => alone()?,
        };
        for (place, factors, strength) in reaching {
            let factors = with_dtype_of(factors, x)?;
            let update = update(&self.dropped(path, place, x)?, &factors, factors.scale() * strength)?;
            output = (output + self.multiplied(update)?)?;
        }
        Ok(output)
    }

    /// The input with dropped values, the others grown so that the expectation stays.
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

    /// The update at each sample's own strength.
    fn multiplied(&self, update: Tensor) -> candle_core::Result<Tensor> {
        let Some(multipliers) = &self.multipliers else {
            return Ok(update);
        };
        let mut shape = vec![1; update.rank()];
        shape[0] = multipliers.dim(0)?;
        let multipliers = multipliers.reshape(shape)?.to_dtype(update.dtype())?;
        update.broadcast_mul(&multipliers)
    }

    /// Every `down` and `up` of the modules below `prefix`, in a fixed order: what a checkpointed
    /// segment hands over as its parameters.
    pub fn parameters_under(&self, prefix: &str) -> Vec<Tensor> {
        self.entries
            .iter()
            .flat_map(|entry| entry.adapter.iter())
            .filter(|(path, _)| is_under(path, prefix))
            .flat_map(|(_, factors)| [factors.down.clone(), factors.up.clone()])
            .collect()
    }

    /// The set for the modules below `prefix`, over other tensors: those a checkpointed segment
    /// gets in place of [`parameters_under`](Self::parameters_under), in the same order.
    ///
    /// # Panics
    /// If the number of tensors is not that of `parameters_under(prefix)`.
    pub fn rebound(&self, prefix: &str, parameters: &[Tensor]) -> Self {
        let mut pairs = parameters.chunks_exact(2);
        let mut rebind = |entry: &Entry| Entry {
            strength: entry.strength,
            adapter: entry
                .adapter
                .iter()
                .filter(|(path, _)| is_under(path, prefix))
                .map(|(path, factors)| {
                    let pair = pairs.next().expect("one pair of tensors for each module");
                    (path.to_owned(), rebound_factors(factors, pair))
                })
                .collect(),
        };
        let entries = self.entries.iter().map(&mut rebind).collect();
        assert!(
            pairs.next().is_none() && pairs.remainder().is_empty(),
            "more tensors than the modules under `{prefix}` have"
        );
        Self { entries: Arc::new(entries), ..self.clone() }
    }
}

fn rebound_factors(factors: &LoraFactors, pair: &[Tensor]) -> LoraFactors {
    LoraFactors { down: pair[0].clone(), up: pair[1].clone(), alpha: factors.alpha }
}

/// The factors in the dtype that the model computes in.
fn with_dtype_of(factors: &LoraFactors, x: &Tensor) -> candle_core::Result<LoraFactors> {
    Ok(LoraFactors {
        down: factors.down.to_dtype(x.dtype())?,
        up: factors.up.to_dtype(x.dtype())?,
        alpha: factors.alpha,
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

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
    fn the_empty_set_and_strangers_change_nothing() {
        let x = wave(&[2, 3, 6], 0.5);
        let base = linear(&AdapterSet::base(), &x);
        let stranger = AdapterSet::single(&adapter("unet.conv_in", 1.0), 1.0);
        assert_eq!(values(&linear(&stranger, &x)), values(&base));
        assert!(AdapterSet::base().is_base());
        assert!(AdapterSet::single(&adapter(PATH, 1.0), 0.0).is_base());
        assert!(!stranger.is_base());
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
        let adapter = Adapter::from_iter([(PATH.to_owned(), factors.clone())]);
        for (stride, padding) in [(1, 1), (2, 1), (1, 0)] {
            let layer = |weight: &Tensor| FrozenConv2d::new(weight, None, stride, padding).unwrap();
            let apply = |weight: &Tensor| layer(weight).forward(&x).unwrap();
            let adapted = AdapterSet::single(&adapter, 1.5).conv2d(PATH, &x, &layer(&weight), None).unwrap();
            let merged = factors.merged_into(&weight, 1.5).unwrap();
            assert_near(&adapted, &apply(&merged), 1e-4);
        }
    }

    #[test]
    fn several_adapters_add_up() {
        let x = wave(&[2, 3, 6], 0.5);
        let (left, right) = (adapter(PATH, 1.0), adapter(PATH, 2.0));
        let mut both = AdapterSet::single(&left, 0.5);
        both.push(&right, -1.0);
        let update = |set: &AdapterSet| (linear(set, &x) - linear(&AdapterSet::base(), &x)).unwrap();
        let expected = (update(&AdapterSet::single(&left, 0.5)) + update(&AdapterSet::single(&right, -1.0))).unwrap();
        assert_near(&update(&both), &expected, 1e-5);
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
    fn rebinding_puts_other_tensors_in_the_same_places() {
        let x = wave(&[2, 3, 6], 0.5);
        let mut set = AdapterSet::single(&adapter(PATH, 1.0), 0.5);
        set.push(&adapter(PATH, 2.0), 1.0);
        set.push(&adapter("unet.up_blocks.0.a", 3.0), 1.0);
        let parameters = set.parameters_under("unet.mid_block");
        assert_eq!(parameters.len(), 4);
        let vars: Vec<Var> = parameters.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let rebound = set.rebound("unet.mid_block", &tensors);
        let output = linear(&rebound, &x);
        assert_eq!(values(&output), values(&linear(&set, &x)));
        let gradients = output.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert!(vars.iter().all(|var| values(gradients.get(var).unwrap()).iter().any(|g| *g != 0.0)));
    }

    #[test]
    #[should_panic(expected = "more tensors")]
    fn rebinding_too_many_tensors_is_a_bug() {
        let set = AdapterSet::single(&adapter(PATH, 1.0), 0.5);
        set.rebound("unet.mid_block", &[wave(&[1], 0.0), wave(&[1], 0.0), wave(&[1], 0.0)]);
    }
}
