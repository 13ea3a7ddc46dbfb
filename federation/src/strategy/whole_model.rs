//! Every strategy on whole models: matrices by name, such as the head of a style model.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{Adapter, LayerUpdate, LoraFactors};

use super::{NamedTensors, Strategy};
use crate::contribution::Contribution;
use crate::error::{Error, Result};
use crate::memory::Memory;

/// A client's model of a round, and its weight in means.
#[derive(Debug, Clone)]
pub struct ModelReply {
    /// The trained matrices, with the names and shapes of the global ones.
    pub tensors: NamedTensors,
    /// Weight, finite and above 0; only ratios matter.
    pub weight: f64,
}

impl Strategy {
    /// One round on whole models of matrices `[rows, columns]`: the new global model, in the dtype of the old one, and the
    /// memory for the next round.
    ///
    /// What a rule sees is every client's change of every matrix, as an update of full rank: one factor is the change, the
    /// other the identity, which all clients share. So `fedavg` and all rules that average factors are exact, and robust
    /// rules compare changes. [`Ewwa`](super::Ewwa) gets the models themselves, by [`Ewwa::step`](super::Ewwa::step).
    ///
    /// # Errors
    /// [`Error::Incompatible`] for a rule that keeps a part of an adapter at home or merges updates into a base;
    /// [`Error::Global`] for a reply without a tensor of the global model, or in another shape; those of
    /// [`step`](Self::step).
    pub fn step_model(
        &self,
        round: usize,
        global: &NamedTensors,
        replies: &BTreeMap<String, ModelReply>,
        memory: &Memory,
    ) -> Result<(NamedTensors, Memory)> {
        self.refuse_halves()?;
        if let Self::Ewwa { settings, .. } = self {
            let models = replies.iter().map(|(client, reply)| (client.clone(), reply.tensors.clone())).collect();
            return settings.step(global, &models, memory);
        }
        let start = changes(global, global)?;
        let contributions = replies.iter().map(|(client, reply)| contribution(client, global, reply));
        let contributions = contributions.collect::<Result<Vec<_>>>()?;
        let (aggregate, memory) = self.step(round, Some(&start), &contributions, memory)?;
        Ok((moved(global, &aggregate.adapter)?, memory))
    }

    /// Refuses rules whose rounds treat `down` and `up` differently, or that need a base.
    fn refuse_halves(&self) -> Result<()> {
        if !matches!(self, Self::Rolora | Self::Fedsa | Self::Flora | Self::Fedex) {
            return Ok(());
        }
        let reason = "it is a rule for the two factors of an adapter";
        Err(Error::Incompatible { strategy: self.to_string(), other: "a whole model", reason })
    }
}

fn contribution(client: &str, global: &NamedTensors, reply: &ModelReply) -> Result<Contribution> {
    let adapter = changes(global, &reply.tensors)?;
    Ok(Contribution { client: client.to_owned(), adapter, weight: reply.weight, base_fingerprint: None })
}

/// The change of every matrix as a LoRA of full rank.
fn changes(global: &NamedTensors, model: &NamedTensors) -> Result<Adapter> {
    let change = |(name, start): (&String, &Tensor)| {
        let found = model.get(name).filter(|found| found.dims() == start.dims());
        let Some(found) = found.filter(|found| found.rank() == 2) else {
            let found = model.get(name).map_or(Vec::new(), |found| found.dims().to_vec());
            return Err(Error::Global { module: name.clone(), expected: start.dims().to_vec(), found });
        };
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32);
        let change = wide(found).and_then(|found| found - wide(start)?).map_err(Error::tensor("subtracting models"))?;
        Ok((name.clone(), LayerUpdate::from(full_rank(&change.detach())?)))
    };
    global.iter().map(change).collect()
}

/// A matrix as the product of itself and the identity. The shorter side is the rank, so that the longer one is an output:
/// a wide matrix is transposed.
fn full_rank(change: &Tensor) -> Result<LoraFactors> {
    let build = || {
        let tall = if is_wide(change) { change.t()?.contiguous()? } else { change.clone() };
        let rank = tall.dim(1)?;
        Ok((Tensor::eye(rank, DType::F32, &Device::Cpu)?, tall, rank))
    };
    let (down, up, rank) = build().map_err(Error::tensor("forming an update of full rank"))?;
    LoraFactors::new(down, up, rank as f64).map_err(Error::adapters("forming an update of full rank"))
}

fn is_wide(matrix: &Tensor) -> bool {
    matches!(matrix.dims(), [rows, columns] if columns > rows)
}

/// The global model, moved by the aggregated change.
fn moved(global: &NamedTensors, aggregate: &Adapter) -> Result<NamedTensors> {
    let moved = |(name, start): (&String, &Tensor)| {
        let Some(update) = aggregate.get(name) else { return Ok((name.clone(), start.clone())) };
        let factors = update.low_rank();
        let add = || {
            let change = (factors.up.matmul(&factors.down)? * factors.scale())?;
            let change = if is_wide(start) { change.t()?.contiguous()? } else { change };
            (start.to_dtype(DType::F32)? + change)?.to_dtype(start.dtype())
        };
        Ok((name.clone(), add().map_err(Error::tensor("moving a model"))?.detach()))
    };
    global.iter().map(moved).collect()
}
