//! What a strategy keeps on the server between rounds.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use catelier_adapters::{Adapter, LayerUpdate, LoraFactors};

use crate::error::{Error, Result};
use crate::numbers::{numbers, tensor};

/// What a strategy keeps on the server between rounds: named f64 tensors and counts, such as the moments of EWWA-FL for
/// every client. It is saved with the [`State`](crate::State).
#[derive(Debug, Clone, Default)]
pub struct Memory {
    tensors: BTreeMap<String, Tensor>,
    counts: BTreeMap<String, u64>,
}

impl Memory {
    /// The memory of a strategy before its first round.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing is kept, which is so for every strategy without a state of its own.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty() && self.counts.is_empty()
    }

    /// Number of elements of all tensors; one takes 8 bytes.
    pub fn element_count(&self) -> usize {
        self.tensors.values().map(Tensor::elem_count).sum()
    }

    /// The count of this name; 0 if there is none.
    pub fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn set_count(&mut self, name: impl Into<String>, count: u64) {
        self.counts.insert(name.into(), count);
    }

    pub(crate) fn from_parts(tensors: BTreeMap<String, Tensor>, counts: BTreeMap<String, u64>) -> Self {
        Self { tensors, counts }
    }

    pub(crate) fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    pub(crate) fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }

    /// The values kept under this name, or zeros; `count` values.
    ///
    /// # Errors
    /// [`Error::Memory`] if another number of values is kept.
    pub(crate) fn values(&self, name: &str, count: usize) -> Result<Vec<f64>> {
        let Some(tensor) = self.tensors.get(name) else { return Ok(vec![0.0; count]) };
        if tensor.elem_count() != count {
            let (expected, found) = (count, tensor.elem_count());
            return Err(Error::Memory { name: name.to_owned(), expected, found });
        }
        numbers(tensor)
    }

    pub(crate) fn set_values(&mut self, name: impl Into<String>, values: Vec<f64>) -> Result<()> {
        let count = values.len();
        let tensor = Tensor::from_vec(values, count, &Device::Cpu).map_err(Error::tensor("keeping values"))?;
        self.tensors.insert(name.into(), tensor);
        Ok(())
    }

    /// The LoRA kept under this name; `None` if there is none. Its modules are those of `like`.
    pub(crate) fn adapter(&self, name: &str, like: &Adapter) -> Result<Option<Adapter>> {
        let factors = |(module, update): (&str, &LayerUpdate)| {
            let get = |part: &str| self.tensors.get(&format!("{name}/{module}.{part}")).map(tensor);
            let (Some(down), Some(up)) = (get("down"), get("up")) else { return Ok(None) };
            let (down, up) = (down?, up?);
            let rank = down.dims().first().copied().unwrap_or(0);
            let factors = LoraFactors::new(down, up, rank as f64).map_err(Error::adapters("reading the memory"))?;
            let (expected, found) = (update.weight_shape(), LayerUpdate::from(factors.clone()).weight_shape());
            if expected != found {
                let (expected, found) = (expected.iter().product(), found.iter().product());
                return Err(Error::Memory { name: format!("{name}/{module}"), expected, found });
            }
            Ok(Some((module.to_owned(), factors)))
        };
        let kept = like.iter().filter_map(|pair| factors(pair).transpose()).collect::<Result<Adapter>>()?;
        Ok(if kept.is_empty() { None } else { Some(kept) })
    }

    /// Keeps a LoRA whose scale is 1, that is, whose alpha is its rank.
    pub(crate) fn set_adapter(&mut self, name: &str, adapter: &Adapter) {
        self.tensors.retain(|key, _| !key.starts_with(&format!("{name}/")));
        for (module, update) in adapter.iter() {
            for (part, tensor) in update.tensors() {
                self.tensors.insert(format!("{name}/{module}.{part}"), tensor.detach());
            }
        }
    }
}
